"""What calls do whose kernels carry nothing from one split to another."""

from __future__ import annotations

from sh2gen.plan.plan import Action, Allocate, Kernel, Launch, Reduce, Reduction, Role


def whole(
    forward: Kernel,
    backward: Kernel,
    saved: tuple[str, ...],
    reductions: tuple[Reduction, ...],
) -> dict[Role, tuple[Action, ...]]:
    """One launch forward; one backward, and one that adds partial sums."""
    program = backward.program
    partials = [Allocate(names=("partials",), make="partials")] * bool(program.partial_rows)
    groups = [Allocate(names=("group_partials",), make="group_partials")]
    return {
        Role.FORWARD: (
            Allocate(names=("y", *saved), make="activations"),
            Launch(kernel=forward),
        ),
        Role.BACKWARD: (
            Allocate(names=program.stores, make="gradients"),
            *partials,
            *groups * bool(program.partial_groups),
            Launch(kernel=backward),
            *([Reduce(reductions=reductions)] if reductions else []),
        ),
    }
