"""The kernel that adds partial sums to the gradients of all parameters, as text and as a launch.

Its programs are shared out among parameter tensors, in the order in which launchers return these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sh2gen.plan.actions import Reduce
from sh2gen.plan.geometry import sharers
from sh2gen.plan.kernel import Reduction, Role
from sh2gen.plan.plan import Plan
from sh2gen.plan.source import KernelSource
from sh2gen.spec.language import TapOrder
from sh2gen.spec.operator import OpSpec

KERNEL = "sum_partials"
WARPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The programs that sum the gradient of one parameter tensor.

    Attributes:
        shape: of the gradient, in words.
        rows: of partial sums.
        partials: the tensor of partial sums, `splits` the argument that says how many there are.
        columns, width: of a row, and how many share a row of the parameter, in the kernel's text.
        constants: those of sum_rows, in its order.
    """

    tensor: str
    shape: str
    rows: int
    partials: str
    splits: str
    columns: str
    width: str
    constants: tuple[tuple[str, object], ...]


def sections(spec: OpSpec, plan: Plan) -> tuple[Section, ...]:
    """All sections of the kernel."""
    if not plan.reductions:
        return ()
    (role,) = (r for r, found in plan.actions.items() if any(isinstance(a, Reduce) for a in found))
    kernel = plan.kernel(role)
    assert kernel is not None
    order = list(spec.kernel_parameters)
    shapes = {p.name: f"[{', '.join(p.dims)}]" for p in spec.parameters}
    shapes.setdefault("log_poles", shapes.get("residues", ""))
    found = []
    for r in sorted(plan.reductions, key=lambda r: order.index(r.tensor)):
        columns, width = "CHANNELS", "WIDTH" if r.view.grouped else "1"
        rows = kernel.program.partial_rows
        if r.by_group:
            rows, columns, width = r.rows, "CHANNELS // WIDTH * SHARERS", "SHARERS"
        found.append(
            Section(
                tensor=r.tensor,
                shape=shapes[r.tensor],
                rows=r.rows,
                partials="group_partials" if r.by_group else "partials",
                splits="group_splits" if r.by_group else "splits",
                columns=columns,
                width=width,
                constants=_constants(r, rows, columns, width),
            )
        )
    return tuple(found)


def _constants(
    r: Reduction, rows: int, columns: str, width: str
) -> tuple[tuple[str, object], ...]:
    """What sum_rows is compiled for."""
    return (
        ("FIRST", r.first),
        ("P", rows),
        ("COLUMNS", columns),
        ("WIDTH", width),
        ("LENGTH", r.view.length or 1),
        ("ROLES", r.view.roles),
        ("INTERLEAVED", r.view.interleaved),
        ("LAG_LAST", r.view.order is TapOrder.LAG_LAST),
    )


def partials(spec: OpSpec, plan: Plan) -> list[dict[str, Any]]:
    """The tensors of partial sums: of channels, then of groups."""
    found = {s.partials: s for s in sections(spec, plan)}
    return [
        {
            "name": name,
            "splits": found[name].splits,
            "rows": dict(found[name].constants)["P"],
            "columns": found[name].columns,
        }
        for name in ("partials", "group_partials")
        if name in found
    ]


def constants(spec: OpSpec, plan: Plan) -> tuple[str, ...]:
    """The constants of the kernel."""
    found = sections(spec, plan)
    grouped = any("WIDTH" in s.width + s.columns for s in found)
    shared = any(s.width == "SHARERS" for s in found)
    return ("CHANNELS", *(("WIDTH",) if grouped else ()), *(("SHARERS",) if shared else ()))


def kernel_source(spec: OpSpec, plan: Plan, config: dict[str, int]) -> KernelSource:
    """How a launch of the kernel looks to the compiler, under the config of backward."""
    tensors = partials(spec, plan)
    of_parameters = (f"d_{s.tensor}_ptr" for s in sections(spec, plan))
    pointers = (*(f"{p['name']}_ptr" for p in tensors), *of_parameters)
    known = {"CHANNELS": spec.channels, "WIDTH": spec.group_width}
    if "BLOCK_D" in config:
        known["SHARERS"] = sharers(spec.group_width, config)
    return KernelSource(
        name=KERNEL,
        role=Role.BACKWARD,
        reduces=True,
        signature=(
            *((pointer, "*fp32") for pointer in pointers),
            *((p["splits"], "i32") for p in tensors),
        ),
        constants=tuple((name, known[name]) for name in constants(spec, plan)),
        divisible=pointers,
        unaligned_keeps=pointers,
        num_warps=WARPS,
        num_stages=3,
    )
