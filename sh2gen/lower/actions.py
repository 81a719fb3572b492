"""What calls do, action by action."""

from __future__ import annotations

from collections.abc import Mapping

from sh2gen.plan.actions import Action, Allocate, Give, Launch, Reduce, Room, When
from sh2gen.plan.kernel import Kernel, Reduction, Role
from sh2gen.spec.language import Sequences
from sh2gen.spec.operator import OpSpec

RANGE = "for steps begin .. end - 1 of the segment after `context` steps."


def whole(
    spec: OpSpec,
    forward: Kernel,
    backward: Kernel,
    saved: tuple[str, ...],
    reductions: tuple[Reduction, ...],
    first: Mapping[Role, Kernel],
) -> dict[str, tuple[Action, ...]]:
    """What calls do whose kernels carry nothing from one split to another: one launch forward;
    one backward, and one that adds partial sums.

    Args:
        first: kernels of the first steps, where calls begin after a past.
    """
    before = {role: Launch(kernel=kernel, when=When.PAST) for role, kernel in first.items()}
    packed = spec.sequences is Sequences.PACKED  # whose rows are computed as a whole
    results = ("y", *saved)
    given = ", of what is known of documents." if packed else f" {RANGE}"
    doc = (
        f"{gradients_doc(spec)}\n\nWith a range, the gradients of inputs are for its steps "
        "and those of parameters sum over them; `dy` and saved values cover the whole segment, "
        "without its context."
    )
    if packed:
        doc = gradients_doc(spec)
    return {
        Role.FORWARD: (
            Allocate(names=results, room=Room.ACTIVATION),
            *([before[Role.FORWARD]] if first else []),
            Launch(kernel=forward),
            Give(names=results, doc=f"[{', '.join(results)}]{given}"),
        ),
        Role.BACKWARD: (
            Allocate(names=tuple(f"d_{name}" for name in spec.inputs), room=Room.GRADIENTS),
            *partials(backward),
            *([before[Role.BACKWARD]] if first else []),
            Launch(kernel=backward),
            *([Reduce(reductions=reductions)] if reductions else []),
            Give(names=("gradients",), doc=doc),
        ),
    }


def gradients_doc(spec: OpSpec) -> str:
    """What backward gives, in words."""
    names = ", ".join(p.name for p in spec.parameters)
    return f"Gradients of the inputs, packed if they are, then of {names}."


def partials(kernel: Kernel) -> list[Allocate]:
    """Room for the partial sums that a kernel writes."""
    program = kernel.program
    found: list[Allocate] = []
    if rows := program.partial_rows:
        splits = ("batch", "splits", "sums")
        shape: tuple[tuple[str | int, ...], ...] = (splits, (rows,), ("channels",))
        found.append(Allocate(names=("partials",), room=Room.FLOAT32, shape=shape))
    if rows := program.partial_groups:
        shape = (("batch", "splits"), (rows,), ("columns",))
        found.append(Allocate(names=("group_partials",), room=Room.FLOAT32, shape=shape))
    return found
