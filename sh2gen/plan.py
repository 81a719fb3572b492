"""Plans: all structure of one way to compute an operator, and no numbers (layer 3).

A plan says which values share a kernel, what each kernel does to a tile, which layout the tensors
have and what forward saves for backward. Block sizes are symbols (ROWS, BLOCK_D, BLOCK_T, ...); a
schedule gives them values. A kernel's body is a *tile program*: a straight-line tuple of
statements, of which `emit` (text), `interpret` (meaning) and `cost` (work) are three folds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from sh2gen.ir import Graph, ParameterView


class Layout(StrEnum):
    """How activations lie in memory; the last letter is contiguous."""

    BLD = "BLD"  # channels last
    BDL = "BDL"  # channels first


@dataclass(frozen=True, slots=True, order=True)
class Rows:
    """The time steps lo .. ROWS + hi - 1 relative to the first step of a block of ROWS steps.

    (0, 0) is the block itself; lo < 0 is left context, hi > 0 right context.
    """

    lo: int = 0
    hi: int = 0

    def join(self, other: Rows) -> Rows:
        return Rows(min(self.lo, other.lo), max(self.hi, other.hi))

    def __str__(self) -> str:
        return f"[{self.lo} : ROWS{self.hi:+d}]" if self.hi else f"[{self.lo} : ROWS]"


BLOCK = Rows(0, 0)


@dataclass(frozen=True, slots=True)
class Operand:
    """Some rows of a value of the tile program."""

    name: str
    rows: Rows

    def __str__(self) -> str:
        return f"{self.name}{self.rows}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTaps:
    """Taps of each lane's filter row, lag 0 first."""

    out: str
    view: ParameterView

    def __str__(self) -> str:
        return f"{self.out} = load_taps({self.view.tensor}, {self.view.length})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadVector:
    """One number of a vector parameter for each lane."""

    out: str
    view: ParameterView

    def __str__(self) -> str:
        return f"{self.out} = load_vector({self.view.tensor})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroTaps:
    """`length` accumulators, zero before the first tile."""

    out: str
    length: int

    def __str__(self) -> str:
        return f"{self.out} = zero_taps({self.length})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRows:
    """Rows of an activation; zero outside the segment."""

    out: str
    tensor: str
    rows: Rows

    def __str__(self) -> str:
        return f"{self.out} = load_rows({self.tensor}, {self.rows})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fir:
    """Causal convolution with taps (direction +1), or its adjoint (-1)."""

    out: str
    x: Operand
    taps: str
    length: int
    direction: int
    rows: Rows

    @property
    def helper(self) -> str:
        return "fir" if self.direction == +1 else "fir_adjoint"

    def __str__(self) -> str:
        return f"{self.out} = {self.helper}({self.x}, {self.taps})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rowwise:
    """A function of each row and, for scale and shift, of one vector parameter."""

    out: str
    function: str  # multiply | add | scale | shift | silu | silu_gradient
    operands: tuple[Operand, ...]
    vector: str | None = None
    rows: Rows

    def __str__(self) -> str:
        arguments = [*map(str, self.operands), *([self.vector] if self.vector else [])]
        return f"{self.out} = {self.function}({', '.join(arguments)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accumulate:
    """Add this tile's part of a parameter gradient to accumulators."""

    out: str
    function: str  # tap_gradient | channel_sum
    operands: tuple[Operand, ...]
    length: int

    def __str__(self) -> str:
        return f"{self.out} += {self.function}({', '.join(map(str, self.operands))})"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRows:
    """Write the block's rows of a value, rounded once to the tensor's dtype."""

    tensor: str
    x: Operand

    def __str__(self) -> str:
        return f"store_rows({self.tensor}, {self.x})"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePartial:
    """Write accumulators to rows first, first + 1, ... of this program's partial sums."""

    total: str
    first: int

    def __str__(self) -> str:
        return f"store_partial({self.first}, {self.total})"


Statement = (
    LoadTaps
    | LoadVector
    | ZeroTaps
    | LoadRows
    | Fir
    | Rowwise
    | Accumulate
    | StoreRows
    | StorePartial
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TileProgram:
    """What one program does: once before its tiles, for every tile, once after them."""

    prologue: tuple[Statement, ...]
    body: tuple[Statement, ...]
    epilogue: tuple[Statement, ...] = ()

    def __iter__(self) -> Iterator[Statement]:
        yield from (*self.prologue, *self.body, *self.epilogue)

    @property
    def reach(self) -> Rows:
        """The rows that a block needs of any loaded activation."""
        reach = BLOCK
        for statement in self.body:
            if isinstance(statement, LoadRows):
                reach = reach.join(statement.rows)
        return reach

    @property
    def loads(self) -> tuple[str, ...]:
        return tuple(s.tensor for s in self.body if isinstance(s, LoadRows))

    @property
    def stores(self) -> tuple[str, ...]:
        return tuple(s.tensor for s in self.body if isinstance(s, StoreRows))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Parameter tensors read, each once, in order."""
        views = [s.view.tensor for s in self.prologue if isinstance(s, LoadTaps | LoadVector)]
        return tuple(dict.fromkeys(views))

    @property
    def partial_rows(self) -> int:
        """Rows of partial sums that each program writes."""
        return sum(s.length for s in self.prologue if isinstance(s, ZeroTaps))

    def validate(self) -> None:
        """Assert that every operand exists and holds the rows that are asked of it."""
        held: dict[str, Rows] = {}
        totals = {s.out for s in self.prologue if isinstance(s, ZeroTaps)}
        constants = {s.out for s in self.prologue if isinstance(s, LoadTaps | LoadVector)}
        for statement in self.body:
            operands: tuple[Operand, ...] = ()
            match statement:
                case Fir(x=x, taps=taps, length=length, direction=direction, rows=rows):
                    assert taps in constants, f"{statement}: {taps} is not loaded"
                    lag = length - 1
                    want = Rows(rows.lo - lag, rows.hi)
                    want = want if direction == +1 else Rows(rows.lo, rows.hi + lag)
                    assert x.rows == want, f"{statement}: needs {want}"
                    operands = (x,)
                case Rowwise(operands=operands, vector=vector, rows=rows):
                    assert vector is None or vector in constants, f"{statement}: no {vector}"
                    assert all(o.rows == rows for o in operands), f"{statement}: rows differ"
                case Accumulate(operands=operands, out=out):
                    assert out in totals, f"{statement}: {out} is not zeroed"
                case StoreRows(x=x):
                    assert x.rows == BLOCK, f"{statement}: stores the block's own rows only"
                    operands = (x,)
                case _:
                    pass
            for operand in operands:
                assert operand.name in held, f"{statement}: {operand.name} is not defined"
                have = held[operand.name]
                assert have.join(operand.rows) == have, f"{statement}: {operand.name} holds {have}"
            if isinstance(statement, LoadRows | Fir | Rowwise):
                assert statement.out not in held, f"{statement}: {statement.out} is defined twice"
                held[statement.out] = statement.rows
        for statement in self.epilogue:
            assert isinstance(statement, StorePartial) and statement.total in totals

    def __str__(self) -> str:
        lines = [*map(str, self.prologue), "for each tile:"]
        lines += [f"    {statement}" for statement in self.body]
        return "\n".join([*lines, *map(str, self.epilogue)])


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPlan:
    """One kernel: a skeleton filled with a tile program.

    Attributes:
        name: suffix of the kernel's name in the generated file.
        skeleton: the file in templates/ that owns grid, loop, segments, masks and offsets.
        parts: files in templates/parts/ whose helpers it calls; the first that defines a name
            wins, so that an algorithm can put a helper of its own before a shared one.
        program: its tile program.
    """

    name: str
    skeleton: str
    parts: tuple[str, ...]
    program: TileProgram

    def __post_init__(self) -> None:
        self.program.validate()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """The ordered sum of partial sums into the gradient of one parameter tensor.

    Attributes:
        tensor: the parameter.
        first: its first row in the partial sums.
        view: its rows and taps; for a packed tensor that of role 0, the other roles follow.
    """

    tensor: str
    first: int
    view: ParameterView

    @property
    def rows(self) -> int:
        """How many rows of partial sums it consumes."""
        return self.view.roles * (self.view.length or 1)


class EagerConv(StrEnum):
    """How the plain-PyTorch path of a generated file convolves."""

    DIRECT = "direct"
    FFT = "fft"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to compute an operator, forward and backward.

    Attributes:
        algorithm: the lowering that proposed it.
        layout: of every activation.
        saved: forward values that are stored for backward; all others are recomputed.
        graph: the forward operator.
        backward_graph: its adjoint under the cut `saved`.
        forward: the kernel, or None if the plain-PyTorch path is the algorithm.
        backward: likewise.
        reductions: parameter gradients summed from the backward kernel's partial sums.
        eager: how the plain-PyTorch path convolves.
    """

    algorithm: str
    layout: Layout
    saved: tuple[str, ...] = ()
    graph: Graph
    backward_graph: Graph
    forward: KernelPlan | None = None
    backward: KernelPlan | None = None
    reductions: tuple[Reduction, ...] = ()
    eager: EagerConv = EagerConv.DIRECT

    @property
    def name(self) -> str:
        """How the command line and records refer to it: algorithm/layout/what is saved."""
        keep = "save-" + "-".join(self.saved) if self.saved else "recompute"
        return f"{self.algorithm}/{self.layout.value}/{keep}"

    @property
    def kernels(self) -> tuple[KernelPlan, ...]:
        return tuple(kernel for kernel in (self.forward, self.backward) if kernel is not None)

    def __str__(self) -> str:
        blocks = [f"plan {self.name}"]
        for kernel in self.kernels:
            blocks.append(f"{kernel.name} kernel ({kernel.skeleton}):\n{_indent(kernel.program)}")
        for reduction in self.reductions:
            last = reduction.first + reduction.rows - 1
            blocks.append(f"d_{reduction.tensor} = sum of partials {reduction.first} .. {last}")
        if not self.kernels:
            blocks.append(
                f"plain PyTorch, convolution by {self.eager.value}, in chunks of channels\n"
                f"forward:\n{_indent(self.graph)}\nbackward:\n{_indent(self.backward_graph)}"
            )
        return "\n".join(blocks)


def _indent(value: object) -> str:
    return "\n".join("    " + line for line in str(value).splitlines())
