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

from sh2gen.graph.nodes import Graph, ParameterView
from sh2gen.plan.arguments import Argument
from sh2gen.plan.geometry import Grid
from sh2gen.plan.program import Phases, TileProgram
from sh2gen.plan.values import Layout
from sh2gen.spec.language import DType


class Role(StrEnum):
    """What a call is for."""

    FORWARD = "forward"
    BACKWARD = "backward"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Another text of a kernel, which computes the same where it runs.

    Attributes:
        name: suffix of the kernel's name, and how messages call it.
        skeleton: the file in templates/ that it fills.
        parts: files in templates/parts/ whose helpers it calls, as of `Kernel`.
        phases: the kernel's body in the order of this skeleton; absent: as the kernel has it, for
            a skeleton that is filled as the kernel's own.
        arguments: what it takes; all but constants are those of the kernel.
        language: triton or gluon.
        capability: of the GPUs that it runs on, 90 for sm_90.
        io: the dtype of the activations that it computes.
        config: its config of that of the kernel, empty if that asks for none; of plan/geometry.
        grid: its programs; of plan/geometry.
        sizes: whether the steps that are read, those that are computed, and the bounds of a call
            suit it, under its config; of plan/geometry.
        suits: name of the helper of launchers which says whether it can compute a call: of its
            GPU and dtype, of sizes that suit, in memory as the variant takes it.
    """

    name: str
    skeleton: str
    parts: tuple[str, ...]
    phases: Phases | None
    arguments: tuple[Argument, ...]
    language: str
    capability: int
    io: DType
    config: Callable[[dict[str, int]], dict[str, int]]
    grid: Callable[..., Grid]
    sizes: Callable[[int, int, tuple[int, int, int], dict[str, int]], bool]
    suits: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One kernel: a skeleton filled with a tile program.

    Attributes:
        name: suffix of the kernel's name in the generated file.
        role: of the call whose config it takes.
        skeleton: the file in templates/ that owns grid, loop, segments, masks and offsets.
        parts: files in templates/parts/ whose helpers it calls; the first that defines a name
            wins, so that an algorithm can put a helper of its own before a shared one.
        program: its tile program.
        arguments: what it takes, in order.
        grid: its programs.
        variants: other texts of it, the first that suits a call is launched.
        lanes: constants of the skeleton that say how many lanes a row has beside N, and how many
            accumulators of rows have.
        exchanged: whether channels-last tiles are loaded as channels-first ones, with the strides
            exchanged.
        hinted: whether its loads take the hint of the knob EVICT_LAST.
    """

    name: str
    role: Role
    skeleton: str
    parts: tuple[str, ...]
    program: TileProgram
    arguments: tuple[Argument, ...]
    grid: Callable[..., Grid]
    variants: tuple[Variant, ...] = ()
    lanes: tuple[str, str] = ("BLOCK_D", "BLOCK_D")
    exchanged: bool = False
    hinted: bool = False

    def __post_init__(self) -> None:
        self.program.validate()
        for variant in self.variants:
            self.phased(variant).validate()

    def phased(self, variant: Variant) -> TileProgram:
        """The program with its body in the phases of a variant, if it has any."""
        if variant.phases is None:
            return self.program
        return dataclasses.replace(self.program, body=variant.phases.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """The ordered sum of partial sums into the gradient of one parameter tensor.

    Attributes:
        tensor: the parameter.
        first: its first row in the partial sums.
        view: its rows and taps; for a packed tensor that of role 0, the other roles follow.
        by_group: the partial sums are those of Toeplitz matrices: of groups, not of channels.
    """

    tensor: str
    first: int
    view: ParameterView
    by_group: bool = False

    @property
    def rows(self) -> int:
        """How many rows of partial sums it consumes."""
        return self.view.roles * (self.view.length or 1)


class EagerConv(StrEnum):
    """How the plain-PyTorch path of a generated file convolves."""

    DIRECT = "direct"
    MODAL = "modal"
    FFT = "fft"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocate:
    """Make room for tensors, by a function of launchers of the name `make`.

    Attributes:
        names: of the tensors.
        make: what makes them (`emit.launchers` says with which arguments).
    """

    names: tuple[str, ...]
    make: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Launch a kernel.

    Attributes:
        when_split: only if the sequence is split, for all splits but one.
    """

    kernel: Kernel
    when_split: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """Where a sequence is split, compute the gradients of inputs that two splits share."""

    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduce:
    """Add partial sums to the gradients of parameters, by one kernel."""

    reductions: tuple[Reduction, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Eager:
    """Compute a graph in plain PyTorch, in chunks of channels."""

    graph: Graph


Action = Allocate | Launch | Join | Reduce | Eager


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
        actions: what a call of each role does, in order.
        eager: how the plain-PyTorch path convolves.
    """

    algorithm: str
    layout: Layout
    saved: tuple[str, ...] = ()
    states: bool = False
    graph: Graph
    backward_graph: Graph
    actions: Mapping[Role, tuple[Action, ...]] = field(hash=False)
    eager: EagerConv = EagerConv.DIRECT

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
        return tuple(sorted(found, key=lambda launch: launch.when_split))

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """Those that every call of their role launches."""
        return tuple(launch.kernel for launch in self.launches if not launch.when_split)

    @property
    def split_kernels(self) -> tuple[Kernel, ...]:
        """Those that find, where a sequence is split, what every tile adds to the state."""
        return tuple(launch.kernel for launch in self.launches if launch.when_split)

    def kernel(self, role: str) -> Kernel | None:
        """The kernel that computes the results of a role; None in plain PyTorch."""
        return next((kernel for kernel in self.kernels if kernel.role == role), None)

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
    def reductions(self) -> tuple[Reduction, ...]:
        """Parameter gradients that are summed from partial sums."""
        reduces = (a for a in self.actions[Role.BACKWARD] if isinstance(a, Reduce))
        return tuple(reduction for reduce in reduces for reduction in reduce.reductions)

    def __str__(self) -> str:
        blocks = [f"plan {self.name}"]
        for kernel in self.kernels:
            blocks.append(f"{kernel.name} kernel ({kernel.skeleton}):\n{_indent(kernel.program)}")
            for variant in kernel.variants:
                how = f", in phases:\n{_indent(variant.phases)}" if variant.phases else " alike"
                blocks.append(f"its tiles on {variant.name}{how}")
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
