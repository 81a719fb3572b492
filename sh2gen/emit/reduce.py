"""What the skeleton `reduce` asks for, and how its kernel is launched: the gradients of all
parameters from partial sums, by one kernel.

Programs are shared out among parameter tensors, in the order in which launchers return these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sh2gen.plan.plan import Plan, Reduction
from sh2gen.plan.source import KernelSource, Role
from sh2gen.schedule.config import Schedule
from sh2gen.spec.language import TapOrder
from sh2gen.spec.operator import OpSpec

KERNEL = "sum_partials"
WARPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Partials:
    """A tensor of partial sums, [splits, rows, columns] float32.

    Attributes:
        name: in launchers.
        splits: the kernel's argument that says how many there are.
        rows: of every parameter that it holds.
        columns: channels, or the parts of groups.
    """

    name: str
    splits: str
    rows: int
    columns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The programs begin .. end - 1, which sum the gradient of one parameter tensor.

    Attributes:
        shape: of the gradient, in words.
        partials: what they sum.
        constants: those of sum_rows, in its order.
    """

    tensor: str
    shape: str
    partials: Partials
    begin: int
    end: int
    constants: tuple[tuple[str, int | bool], ...]


def sections(
    spec: OpSpec, plan: Plan, schedule: Schedule, tensors: Sequence[str]
) -> tuple[Section, ...]:
    """All sections of the kernel that sums partial sums, in the order of `tensors`."""
    if not plan.reductions:
        return ()
    assert plan.backward is not None
    shapes = {p.name: str(p.shape) for p in spec.parameters}
    shapes.setdefault("log_poles", shapes.get("residues", ""))
    # Programs of a backward stream that share the channels of a group.
    parts = -(-spec.group_width // dict(schedule.backward).get("BLOCK_D", 1))
    of_channels = Partials(
        name="partials",
        splits="splits",
        rows=plan.backward.program.partial_rows,
        columns=spec.channels,
    )
    found: list[Section] = []
    for r in sorted(plan.reductions, key=lambda r: tensors.index(r.tensor)):
        partials, width = of_channels, r.view.width
        if r.by_group:
            width, columns = parts, spec.filter.groups * parts
            partials = Partials(
                name="group_partials", splits="group_splits", rows=r.rows, columns=columns
            )
        constants = _constants(r, partials, width)
        groups = partials.columns // width
        begin = found[-1].end if found else 0
        end = begin + r.rows * -(-groups // constants["BLOCK_G"])
        found.append(
            Section(
                tensor=r.tensor,
                shape=shapes[r.tensor],
                partials=partials,
                begin=begin,
                end=end,
                constants=tuple(constants.items()),
            )
        )
    return tuple(found)


def _constants(r: Reduction, partials: Partials, width: int) -> dict[str, int | bool]:
    """What sum_rows is compiled for, if `width` columns share a row of the parameter."""
    block_w = min(1024, 1 << (width - 1).bit_length())
    return {
        "FIRST": r.first,
        "P": partials.rows,
        "COLUMNS": partials.columns,
        "WIDTH": width,
        "LENGTH": r.view.length or 1,
        "ROLES": r.view.roles,
        "INTERLEAVED": r.view.interleaved,
        "LAG_LAST": r.view.order is TapOrder.LAG_LAST,
        "BLOCK_G": max(1, 128 // block_w),
        "BLOCK_W": block_w,
    }


def summed(sections: Sequence[Section]) -> tuple[Partials, ...]:
    """The tensors of partial sums that sections sum: of channels, then of groups."""
    return tuple(sorted({s.partials for s in sections}, key=lambda p: p.name, reverse=True))


def kernel_source(sections: Sequence[Section]) -> KernelSource:
    """How a launch of the kernel looks to the compiler."""
    partials = summed(sections)
    pointers = (*(f"{p.name}_ptr" for p in partials), *(f"d_{s.tensor}_ptr" for s in sections))
    counts = ((p.splits, "i32") for p in partials)
    return KernelSource(
        name=KERNEL,
        role=Role.REDUCE,
        signature=(*((pointer, "*fp32") for pointer in pointers), *counts),
        constants=(),
        divisible=pointers,
        unaligned_keeps=pointers,
        num_warps=WARPS,
        num_stages=3,
    )
