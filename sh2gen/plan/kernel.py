"""Kernels of a plan: what fills a skeleton, what it takes, and other texts of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from sh2gen.graph.nodes import ParameterView
from sh2gen.plan.arguments import Argument
from sh2gen.plan.geometry import Grid
from sh2gen.plan.program import Phases, TileProgram
from sh2gen.spec.language import DType


class Role(StrEnum):
    """What a call is for."""

    FORWARD = "forward"
    BACKWARD = "backward"
    DECODE = "decode"


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
        narrowed: makes its config of that of its role, and of how many steps it has to compute.
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
    narrowed: Callable[[dict[str, int], int], dict[str, int]] | None = None

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
