"""The kernel that adds partial sums to the gradients of all parameters, as text and as a launch.

Its programs are shared out among parameter tensors, in the order in which launchers return these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sh2gen.graph.nodes import ParameterView
from sh2gen.plan.actions import Reduce
from sh2gen.plan.geometry import sharers
from sh2gen.plan.kernel import Reduction, Role
from sh2gen.plan.plan import Plan
from sh2gen.plan.source import KernelSource
from sh2gen.plan.values import Call, decay_rate, ladder
from sh2gen.spec.language import TapOrder
from sh2gen.spec.operator import OpSpec

KERNEL = "sum_partials"
WARPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The programs that sum the gradient of one parameter tensor.

    Attributes:
        tensors: parameters that all have this gradient.
        derivative: what makes it of that of what kernels compute, in the kernel's text, and
            `helpers` that this calls.
        sizes: numbers that this takes, and their types.
        shape: of the gradient, in words.
        rows: of partial sums.
        partials: the tensor of partial sums, `splits` the argument that says how many there are.
        columns, width: of a row, and how many share a row of the parameter, in the kernel's text.
        constants: those of sum_rows, in its order.
    """

    tensors: tuple[str, ...]
    derivative: str
    helpers: tuple[str, ...]
    sizes: dict[str, str]
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
    found = []
    for r in sorted(plan.reductions, key=lambda r: order.index(r.tensor)):
        columns, width = "CHANNELS", "WIDTH" if r.view.grouped else "1"
        rows = kernel.program.partial_rows
        if r.by_group:
            rows, columns, width = r.rows, "CHANNELS // WIDTH * SHARERS", "SHARERS"
        found.append(
            Section(
                tensors=r.view.sources,
                derivative=str(found_by) if (found_by := _derivative(r.view)) else "",
                helpers=found_by.helpers if found_by else (),
                sizes=ladder(r.view),
                shape=shapes[r.view.sources[0]],
                rows=r.rows,
                partials="group_partials" if r.by_group else "partials",
                splits="group_splits" if r.by_group else "splits",
                columns=columns,
                width=width,
                constants=_constants(r, rows, columns, width),
            )
        )
    return tuple(found)


def _derivative(view: ParameterView) -> Call | None:
    """What makes the gradient of a parameter of that of what kernels compute of it."""
    sums = f"d_{view.sources[0]}"
    if view.decay:
        return Call("before_decay", (sums, decay_rate(view, f"{sums}.group")))
    return None


def gradients(spec: OpSpec, plan: Plan) -> list[str]:
    """The parameters whose gradients the kernel writes, in its order."""
    return [name for s in sections(spec, plan) for name in s.tensors]


def sizes(spec: OpSpec, plan: Plan) -> dict[str, str]:
    """The numbers that it takes, and their types: how many partial sums there are, and others."""
    found = {p["splits"]: "i32" for p in partials(spec, plan)}
    return found | {n: kind for s in sections(spec, plan) for n, kind in s.sizes.items()}


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
    tensors = (p["name"] for p in partials(spec, plan))
    made = (f"d_{name}" for name in gradients(spec, plan))
    pointers = tuple(f"{name}_ptr" for name in (*tensors, *made))
    known = {"CHANNELS": spec.channels, "WIDTH": spec.group_width}
    if "BLOCK_D" in config:
        known["SHARERS"] = sharers(spec.group_width, config)
    return KernelSource(
        name=KERNEL,
        role=Role.BACKWARD,
        reduces=True,
        signature=(
            *((pointer, "*fp32") for pointer in pointers),
            *sizes(spec, plan).items(),
        ),
        constants=tuple((name, known[name]) for name in constants(spec, plan)),
        divisible=pointers,
        unaligned_keeps=pointers,
        num_warps=WARPS,
        num_stages=3,
    )
