"""Peak memory of a call and of a training step: a fold over what their actions allocate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sh2gen.cost.cost import config_on, variant_of_call
from sh2gen.cost.work import BYTES
from sh2gen.plan.actions import Allocate, Eager, Give, Reduce, Room, When
from sh2gen.plan.geometry import Grid
from sh2gen.plan.kernel import Role
from sh2gen.plan.plan import Plan
from sh2gen.plan.values import Layout
from sh2gen.schedule.config import Schedule, launch_config
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Bytes beside inputs and parameters, at the most.

    Attributes:
        forward: of a call without gradients.
        step: of a call and its gradients, with y, dy and what forward keeps for backward.
        activation: of one activation, (B, D, L): the step of an operator of n inputs takes at
            least n + 2 of these.
    """

    forward: int
    step: int
    activation: int

    def times(self, count: int) -> float:
        """How many activations so many bytes are."""
        return count / self.activation


def peak(
    spec: OpSpec, plan: Plan, schedule: Schedule, workload: Workload, target: Target
) -> Peak | None:
    """Of whole sequences, whose inputs are tensors of their own; None of plain PyTorch, whose
    temporaries are those of its chunks of channels.
    """
    if any(isinstance(a, Eager) for actions in plan.actions.values() for a in actions):
        return None
    found = _Sizes(spec, plan, schedule, workload, target)
    forward, backward = Role.FORWARD, Role.BACKWARD
    kept = sum(found.of(forward, a) for a in found.actions(forward) if found.given(forward, a))
    called = sum(found.of(forward, a) for a in found.actions(forward))
    gradients = sum(found.of(backward, a) for a in found.actions(backward))
    return Peak(
        forward=sum(
            found.of(forward, a) for a in found.actions(forward) if a.when is not When.KEPT
        ),
        step=max(called, kept + found.activation + gradients + found.reduced(backward)),
        activation=found.activation,
    )


class _Sizes:
    """What tensors of a call take, in bytes."""

    def __init__(
        self, spec: OpSpec, plan: Plan, schedule: Schedule, workload: Workload, target: Target
    ) -> None:
        self.spec, self.plan, self.schedule = spec, plan, schedule
        self.workload, self.target = workload, target
        row = workload.length
        if plan.layout is Layout.BDL:  # padded to whole vectors, all but the last
            row = -(-row // 8) * 8
        elements = workload.batch * spec.channels * row - (row - workload.length)
        self.activation = elements * BYTES[spec.dtype.io]

    def actions(self, role: Role) -> list[Allocate]:
        """What a call of a role allocates."""
        grid = self.grid(role)
        made = (a for a in self.plan.actions[role] if isinstance(a, Allocate))
        return [a for a in made if a.when is not When.SPLIT or grid.splits > 1]

    def given(self, role: Role, action: Allocate) -> bool:
        """Whether an action makes what a call returns."""
        (give,) = (a for a in self.plan.actions[role] if isinstance(a, Give))
        return set(action.names) <= {*give.names}

    def config(self, role: Role) -> dict[str, int]:
        kernel = self.plan.kernel(role)
        assert kernel is not None
        where = self.spec, self.plan, kernel, self.schedule, self.workload.length
        return config_on(self.target, *where)

    def grid(self, role: Role) -> Grid:
        """The programs of the kernel of a role, or of the variant that runs in its place."""
        kernel, length = self.plan.kernel(role), self.workload.length
        assert kernel is not None
        config = launch_config(self.spec, self.schedule, role)
        of = (self.spec, self.plan, kernel, config, length, self.target.capability)
        grid = (variant_of_call(*of) or kernel).grid
        sizes = self.workload.batch, length, self.spec.channels, self.spec.group_width
        return grid(*sizes, self.config(role))

    def of(self, role: Role, action: Allocate) -> int:
        """All tensors of one action of a role."""
        spec, batch = self.spec, self.workload.batch
        count, state = len(action.names), spec.filter.state_size if self.plan.states else 0
        match action.room:
            case Room.ACTIVATION | Room.GRADIENTS:
                return count * self.activation
            case Room.STATES:
                config = self.config(role)
                tiles = -(-self.workload.length // (config["BLOCK_T"] * config["SEGMENTS"]))
                return count * batch * tiles * spec.channels * state * 4
            case Room.LIKE:
                if action.like == "entry":
                    return count * batch * spec.channels * state * 4
                size = BYTES[spec.dtype.io] if action.io else 4
                return count * batch * len(spec.inputs) * spec.channels * spec.lag * size
            case Room.FLOAT32:
                sizes = self.grid(role)._asdict() | {"batch": batch, "channels": spec.channels}
                factors = (f for product in action.shape for f in product)
                each = math.prod(f if isinstance(f, int) else sizes[f] for f in factors)
                return count * 4 * each

    def reduced(self, role: Role) -> int:
        """The gradients of parameters."""
        sums = any(isinstance(a, Reduce) for a in self.plan.actions[role])
        return sums * 4 * sum(math.prod(p.shape) for p in self.spec.parameters)
