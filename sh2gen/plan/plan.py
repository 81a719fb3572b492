"""Plans: all structure of one way to compute an operator, and no config.

A plan says what a call does, action by action; which values share a kernel, what each kernel does
to a tile and takes, which layout the tensors have and what forward saves for backward. Block sizes
are symbols (ROWS, BLOCK_D, BLOCK_T, ...); a config gives them values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sh2gen.graph.nodes import Graph
from sh2gen.plan.actions import Action, Eager, Join, Launch, Reduce, When
from sh2gen.plan.arguments import Argument
from sh2gen.plan.kernel import Kernel, Reduction, Role
from sh2gen.plan.values import Layout


class EagerConv(StrEnum):
    """How the plain-PyTorch path of a generated file convolves."""

    DIRECT = "direct"
    MODAL = "modal"
    FFT = "fft"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to compute an operator, forward and backward.

    Attributes:
        algorithm: the lowering that proposed it.
        layout: of every activation.
        saved: forward values that are stored for backward; all others are recomputed.
        states: whether forward stores the states before its tiles, if backward is to follow.
        graph: the forward operator.
        backward_graph: its adjoint under the cut `saved`.
        actions: what a call of each role does, in order; of `Role`, and of any other name.
        eager: how the plain-PyTorch path convolves.
        step: the kernel that decodes, if there are kernels.
        past: kernels between a state and those of calls, if calls have states: one that gives the
            rings after a call, `leave`, and of modes one that reads them in order of time,
            `history`.
    """

    algorithm: str
    layout: Layout
    saved: tuple[str, ...] = ()
    states: bool = False
    graph: Graph
    backward_graph: Graph
    actions: Mapping[str, tuple[Action, ...]] = field(hash=False)
    eager: EagerConv = EagerConv.DIRECT
    step: Kernel | None = None
    past: tuple[Kernel, ...] = ()

    @property
    def name(self) -> str:
        """How the command line and records refer to it: algorithm/layout/what is saved."""
        saved = (*self.saved, *(["states"] if self.states else []))
        keep = "save-" + "-".join(saved) if saved else "recompute"
        return f"{self.algorithm}/{self.layout.value}/{keep}"

    @property
    def launches(self) -> tuple[Launch, ...]:
        """Of tile programs, those that every call makes before those of split sequences."""
        found = [a for actions in self.actions.values() for a in actions if isinstance(a, Launch)]
        return tuple(sorted(found, key=lambda launch: launch.when is When.SPLIT))

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """Those that every call of their role launches."""
        return tuple(launch.kernel for launch in self.launches if launch.when is When.ALWAYS)

    @property
    def roles(self) -> tuple[Role, ...]:
        """Those whose configs kernels take, each once."""
        return tuple(dict.fromkeys(kernel.role for kernel in self.kernels))

    @property
    def split_kernels(self) -> tuple[Kernel, ...]:
        """Those that find, where a sequence is split, what every tile adds to the state."""
        return tuple(launch.kernel for launch in self.launches if launch.when is When.SPLIT)

    @property
    def first_kernels(self) -> tuple[Kernel, ...]:
        """Those of the first steps of a call, which its past may reach."""
        return tuple(launch.kernel for launch in self.launches if launch.when is When.PAST)

    def kernel(self, role: str) -> Kernel | None:
        """The kernel that computes the results of a role; None in plain PyTorch."""
        launches = (a for a in self.actions[role] if isinstance(a, Launch))
        return next((a.kernel for a in launches if a.when is When.ALWAYS), None)

    @property
    def leave(self) -> Kernel | None:
        """The kernel that gives the rings after a call."""
        return next((kernel for kernel in self.past if kernel.name == "leave"), None)

    @property
    def history(self) -> Kernel | None:
        """The kernel that reads rings in order of time."""
        return next((kernel for kernel in self.past if kernel.name == "history"), None)

    def with_kernels(self, change: Callable[[Kernel], Kernel]) -> Plan:
        """The same plan, with other kernels in the place of its own."""
        actions = {
            role: tuple(
                dataclasses.replace(a, kernel=change(a.kernel)) if isinstance(a, Launch) else a
                for a in found
            )
            for role, found in self.actions.items()
        }
        return dataclasses.replace(self, actions=actions)

    @property
    def joined(self) -> tuple[Argument, ...]:
        """The arguments of the kernel that joins gradients where splits meet, if there is one."""
        found = [a for actions in self.actions.values() for a in actions if isinstance(a, Join)]
        return found[0].arguments if found else ()

    @property
    def reductions(self) -> tuple[Reduction, ...]:
        """Parameter gradients that are summed from partial sums."""
        every = (a for actions in self.actions.values() for a in actions)
        return tuple(r for a in every if isinstance(a, Reduce) for r in a.reductions)

    def __str__(self) -> str:
        blocks = [f"plan {self.name}"]
        for kernel in self.kernels:
            blocks.append(f"{kernel.name} kernel ({kernel.skeleton}):\n{_indent(kernel.program)}")
            for variant in kernel.variants:
                how = f", in phases:\n{_indent(variant.phases)}" if variant.phases else " alike"
                blocks.append(f"its tiles on {variant.name}{how}")
        for kernel in self.first_kernels:
            blocks.append(
                f"{kernel.name} kernel ({kernel.skeleton}), of the first steps, which a past "
                f"may reach:\n{_indent(kernel.program)}"
            )
        for kernel in self.split_kernels:
            blocks.append(
                f"{kernel.name} kernel ({kernel.skeleton}), if several programs share a channel:\n"
                f"{_indent(kernel.program)}"
            )
        for reduction in self.reductions:
            last = reduction.first + reduction.rows - 1
            of = "of groups " if reduction.by_group else ""
            blocks.append(
                f"d_{reduction.tensor} = sum of partials {of}{reduction.first} .. {last}"
            )
        for kernel in (*filter(None, (self.step,)), *self.past):
            program = _indent(kernel.program).replace("for each tile:", "for each sequence:")
            blocks.append(f"{kernel.name} kernel ({kernel.skeleton}):\n{program}")
        for role, actions in self.actions.items():
            for action in actions:
                if isinstance(action, Eager):
                    blocks.append(
                        f"{role}: plain PyTorch, convolution by {self.eager.value}, in chunks of "
                        f"channels\n{_indent(action.graph)}"
                    )
        return "\n".join(blocks)


def _indent(value: object) -> str:
    return "\n".join("    " + line for line in str(value).splitlines())
