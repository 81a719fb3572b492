"""Plans: all structure of one way to compute an operator, and no numbers.

A plan says which values share a kernel, what each kernel does to a tile, which layout the tensors
have and what forward saves for backward. Block sizes are symbols (ROWS, BLOCK_D, BLOCK_T, ...); a
schedule gives them values.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum

from sh2gen.graph.nodes import Graph, ParameterView
from sh2gen.plan.program import Phases, TileProgram
from sh2gen.plan.values import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPlan:
    """One kernel: a skeleton filled with a tile program.

    Attributes:
        name: suffix of the kernel's name in the generated file.
        skeleton: the file in templates/ that owns grid, loop, segments, masks and offsets.
        parts: files in templates/parts/ whose helpers it calls; the first that defines a name
            wins, so that an algorithm can put a helper of its own before a shared one.
        program: its tile program.
        phases: the same for the twin that a schedule may ask for, or None where there is none.
        hinted: whether its loads take the hint of the knob EVICT_LAST.
    """

    name: str
    skeleton: str
    parts: tuple[str, ...]
    program: TileProgram
    phases: Phases | None = None
    hinted: bool = False

    def __post_init__(self) -> None:
        self.program.validate()
        if self.phases is not None:
            self.phased.validate()

    @property
    def direction(self) -> str:
        """Of whose numbers it takes: forward or backward."""
        return self.name.partition("_")[0]

    @property
    def phased(self) -> TileProgram:
        """The program with its body in phases."""
        assert self.phases is not None
        return dataclasses.replace(self.program, body=self.phases.body)


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
class Plan:
    """One way to compute an operator, forward and backward.

    Attributes:
        algorithm: the lowering that proposed it.
        layout: of every activation.
        saved: forward values that are stored for backward; all others are recomputed.
        states: whether forward stores the states before its tiles, if backward is to follow.
        graph: the forward operator.
        backward_graph: its adjoint under the cut `saved`.
        forward: the kernel, or None if the plain-PyTorch path is the algorithm.
        backward: likewise.
        sums: the kernels that find what each tile adds to the state, and to that of the adjoint,
            where several programs share one channel.
        reductions: parameter gradients summed from the backward kernel's partial sums.
        eager: how the plain-PyTorch path convolves.
    """

    algorithm: str
    layout: Layout
    saved: tuple[str, ...] = ()
    states: bool = False
    graph: Graph
    backward_graph: Graph
    forward: KernelPlan | None = None
    backward: KernelPlan | None = None
    sums: tuple[KernelPlan, ...] = ()
    reductions: tuple[Reduction, ...] = ()
    eager: EagerConv = EagerConv.DIRECT

    @property
    def name(self) -> str:
        """How the command line and records refer to it: algorithm/layout/what is saved."""
        saved = (*self.saved, *(["states"] if self.states else []))
        keep = "save-" + "-".join(saved) if saved else "recompute"
        return f"{self.algorithm}/{self.layout.value}/{keep}"

    @property
    def kernels(self) -> tuple[KernelPlan, ...]:
        return tuple(kernel for kernel in (self.forward, self.backward) if kernel is not None)

    def __str__(self) -> str:
        blocks = [f"plan {self.name}"]
        for kernel in self.kernels:
            blocks.append(f"{kernel.name} kernel ({kernel.skeleton}):\n{_indent(kernel.program)}")
            if kernel.phases is not None:
                blocks.append(f"its tiles on sm_90, in phases:\n{_indent(kernel.phases)}")
        for kernel in self.sums:
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
        if not self.kernels:
            blocks.append(
                f"plain PyTorch, convolution by {self.eager.value}, in chunks of channels\n"
                f"forward:\n{_indent(self.graph)}\nbackward:\n{_indent(self.backward_graph)}"
            )
        return "\n".join(blocks)


def _indent(value: object) -> str:
    return "\n".join("    " + line for line in str(value).splitlines())
