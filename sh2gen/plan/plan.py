"""Plans: all structure of one way to compute an operator, and no numbers.

A plan says which values share a kernel, what each kernel does to a tile, which layout the tensors
have and what forward saves for backward. Block sizes are symbols (ROWS, BLOCK_D, BLOCK_T, ...); a
schedule gives them values. A kernel's body is a *tile program*: a straight-line tuple of
statements, of which `emit` (text), `interpret` (meaning) and `cost` (work) are three folds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from sh2gen.graph.nodes import Graph, ParameterView


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
class LoadToeplitz:
    """The taps that a group's channels share, as Toeplitz matrices: how a block's outputs depend
    on the block itself, on the one before it, and so on.
    """

    out: str
    view: ParameterView

    def __str__(self) -> str:
        return f"{self.out} = load_toeplitz({self.view.tensor}, {self.view.length})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroToeplitz:
    """Accumulators of the gradient of Toeplitz matrices, zero before the first tile."""

    out: str
    length: int

    def __str__(self) -> str:
        return f"{self.out} = zero_toeplitz({self.length})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroTaps:
    """`length` accumulators, zero before the first tile."""

    out: str
    length: int

    def __str__(self) -> str:
        return f"{self.out} = zero_taps({self.length})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRows:
    """Rows of an activation; zero outside the segment.

    Attributes:
        carried: rows of context come from the tile before, not from memory: of a stream that runs
            forward in time.
        ahead: of the tile that a stream backward in time reaches LEAD steps later.
        history: a call may say what was before the first step.
        lagged: rows of context are loaded by themselves, not with a vector that they end.
    """

    out: str
    tensor: str
    rows: Rows
    carried: bool = False
    ahead: bool = False
    history: bool = False
    lagged: bool = False

    def __str__(self) -> str:
        where = ", carried" * self.carried + ", ahead" * self.ahead + ", history" * self.history
        where += ", lagged" * self.lagged
        return f"{self.out} = load_rows({self.tensor}, {self.rows}{where})"


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
class Extend:
    """x and the `count` rows that follow it: from the next lane and, at the end of the tile, from
    the tile that a stream backward in time computed before this one.
    """

    out: str
    x: Operand
    count: int
    rows: Rows

    def __str__(self) -> str:
        return f"{self.out} = extend({self.x}, {self.count})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remember:
    """x as a matrix, blocks of time by steps, and those of the LEAD steps beside it.

    Attributes:
        ahead: x is LEAD steps earlier than the tile, and what is kept are the blocks between: the
            block of the tile first, then earlier ones. Otherwise x is of the tile: its block
            first, then those that the stream visited before.
    """

    out: str
    x: Operand
    length: int
    ahead: bool = False

    def __str__(self) -> str:
        return f"{self.out} = {'look_ahead' if self.ahead else 'remember'}({self.x})"


def products(length: int) -> str:
    """How many blocks `length` taps reach, the tile's own included, each with a product."""
    return f"1 + ceil({length - 1} / BLOCK_T)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """Rows of the tile's own block of what is remembered, or of blocks that products make."""

    out: str
    blocks: str
    rows: Rows = BLOCK

    def __str__(self) -> str:
        return f"{self.out} = recall({self.blocks})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Toeplitz:
    """Convolution of remembered blocks with taps (direction +1), or its adjoint (-1), as matrix
    products: one for every block that the taps reach.
    """

    out: str
    blocks: str
    taps: str
    length: int
    direction: int
    rows: Rows = BLOCK

    @property
    def helper(self) -> str:
        return "toeplitz" if self.direction == +1 else "toeplitz_adjoint"

    def __str__(self) -> str:
        call = f"{self.out} = {self.helper}({self.blocks}, {self.taps})"
        return f"{call}  # {products(self.length)} products"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToeplitzGradient:
    """Add products of the tile's block of `grad` with all of `blocks` to accumulators."""

    out: str
    grad: str
    blocks: str
    length: int

    def __str__(self) -> str:
        call = f"{self.out} += toeplitz_gradient({self.grad}, {self.blocks})"
        return f"{call}  # {products(self.length)} products"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreToeplitz:
    """Write the sums along diagonals of accumulators, which are the gradients of taps."""

    total: str
    length: int

    def __str__(self) -> str:
        return f"store_toeplitz({self.total})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadModes:
    """The modes of a channel's filter, as tables of exponentials that tiles need."""

    out: str
    views: tuple[ParameterView, ...]

    def __str__(self) -> str:
        tensors = ", ".join(view.tensor for view in self.views)
        return f"{self.out} = load_modes({tensors}, {self.views[0].length})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroModes:
    """Accumulators from which gradients are made, for a state of `length` numbers: as many of
    poles, and as many of residues.
    """

    out: str
    length: int

    def __str__(self) -> str:
        return f"{self.out} = zero_modes()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """x as a matrix that products read: blocks of consecutive steps by steps."""

    out: str
    x: Operand

    def __str__(self) -> str:
        return f"{self.out} = block_of({self.x})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadState:
    """The state before the tile, which forward has kept."""

    out: str

    def __str__(self) -> str:
        return f"{self.out} = load_state(states)"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepState:
    """Write the state at the edge of the tile that it has come to: before it, if backward will
    follow; or what the tile adds.
    """

    state: str

    def __str__(self) -> str:
        return f"keep_state(states, {self.state})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroState:
    """A state of which only what a tile adds is asked for."""

    out: str

    def __str__(self) -> str:
        return f"{self.out} = zero_state()"


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """The states of all modes before each block (direction +1), or those of the adjoint after
    each (-1), from the blocks themselves and the state at the tile's edge, which is updated.
    """

    out: str
    blocks: str
    modes: str
    state: str
    direction: int

    @property
    def helper(self) -> str:
        return "states_before" if self.direction == +1 else "states_after"

    def __str__(self) -> str:
        arguments = f"{self.blocks}, {self.modes}, {self.state}"
        return f"{self.out}, {self.state} = {self.helper}({arguments})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalConv:
    """Blocks of a convolution with modes (direction +1), or of its adjoint (-1): of each block
    with itself, and with all others through the states.
    """

    out: str
    blocks: str
    states: str
    modes: str
    direction: int

    @property
    def helper(self) -> str:
        return "modal" if self.direction == +1 else "modal_adjoint"

    def __str__(self) -> str:
        return f"{self.out} = {self.helper}({self.blocks}, {self.states}, {self.modes})"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateGradient:
    """Add products of states with those of the adjoint to accumulators."""

    out: str
    grad_states: str
    states: str

    def __str__(self) -> str:
        return f"{self.out} += state_gradient({self.grad_states}, {self.states})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalGradient:
    """Add products of blocks and states with blocks of the other to accumulators."""

    out: str
    grad: str
    grad_states: str
    blocks: str
    states: str

    def __str__(self) -> str:
        arguments = f"{self.grad}, {self.grad_states}, {self.blocks}, {self.states}"
        return f"{self.out} += modal_gradient({arguments})"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreModes:
    """Write the gradients of poles, then of residues, to rows first, first + 1, ... of this
    program's partial sums; of pairs, `length` modes of each part one after another.
    """

    total: str
    views: tuple[ParameterView, ...]
    first: int
    length: int

    def __str__(self) -> str:
        tensors = ", ".join(view.tensor for view in self.views)
        return f"store_modes({self.first}, {self.total}, {tensors})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """What a stream does where its sequence begins or ends, if a state is carried in and out, or
    where one of its spans does.

    Attributes:
        helper: leave_state writes the last state; leave_gradient and leave_adjoint add what its
            gradient gives, to those of modes and to those of steps; enter_gradient writes that of
            the first state, history_gradient that of an input's history; leave_rows and first_rows
            write rows of which the gradients of inputs are made where two spans meet.
        outs: the values that it updates.
        values: these, states, modes and taps.
        x: rows of the tile.
        role: of the input whose history or gradient it is.
        length: of the rows that are written.
    """

    helper: str
    outs: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    x: Operand | None = None
    role: int = 0
    length: int = 0

    def __str__(self) -> str:
        arguments = ", ".join([*self.values, *([str(self.x)] if self.x else [])])
        outs = f"{', '.join(self.outs)} = " if self.outs else ""
        return f"{outs}{self.helper}({arguments})  # at the ends of a sequence"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What follows, until EndParts, is computed for one part of the tile's blocks after another:
    so fewer rows are held at once.

    Attributes:
        time: +1 the earliest part first, -1 the latest.
    """

    time: int

    def __str__(self) -> str:
        return f"for each part of the tile, the {'first' if self.time == +1 else 'last'} first:"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndParts:
    """Blocks are whole from here on."""

    def __str__(self) -> str:
        return "end of parts"


# What runs on the tensor cores, between phases.
Product = Toeplitz | ToeplitzGradient | LoadState | States | ModalConv | ModalGradient

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
    | LoadToeplitz
    | ZeroToeplitz
    | Extend
    | Remember
    | Recall
    | Toeplitz
    | ToeplitzGradient
    | StoreToeplitz
    | LoadModes
    | ZeroModes
    | Blocks
    | LoadState
    | KeepState
    | ZeroState
    | States
    | ModalConv
    | StateGradient
    | ModalGradient
    | StoreModes
    | Edge
    | Parts
    | EndParts
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TileProgram:
    """What one program does: once before its tiles, for every tile, once after them.

    Attributes:
        prologue, body, epilogue: these three.
        warmup: of a stream, the part of `body` that fills what it remembers, for the tiles of the
            LEAD steps before its first.
        time: of a stream, the direction in which it walks: +1 forward, -1 backward in time.
    """

    prologue: tuple[Statement, ...]
    body: tuple[Statement, ...]
    epilogue: tuple[Statement, ...] = ()
    warmup: tuple[Statement, ...] = ()
    time: int = +1

    def __iter__(self) -> Iterator[Statement]:
        yield from (*self.prologue, *self.body, *self.epilogue)

    @property
    def totals(self) -> tuple[ZeroTaps | ZeroToeplitz | ZeroModes, ...]:
        """The accumulators."""
        return tuple(
            s for s in self.prologue if isinstance(s, ZeroTaps | ZeroToeplitz | ZeroModes)
        )

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
        """Activations read, each once, in order."""
        return tuple(dict.fromkeys(s.tensor for s in self.body if isinstance(s, LoadRows)))

    @property
    def stores(self) -> tuple[str, ...]:
        return tuple(s.tensor for s in self.body if isinstance(s, StoreRows))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Parameter tensors read, each once, in order."""
        tensors: list[str] = []
        for s in self.prologue:
            match s:
                case LoadTaps(view=view) | LoadVector(view=view) | LoadToeplitz(view=view):
                    tensors.append(view.tensor)
                case LoadModes(views=views):
                    tensors += [view.tensor for view in views]
                case _:
                    pass
        return tuple(dict.fromkeys(tensors))

    @property
    def partial_rows(self) -> int:
        """Rows of partial sums that each program writes."""
        rows = sum(s.length for s in self.prologue if isinstance(s, ZeroTaps))
        return rows + sum(2 * s.length for s in self.prologue if isinstance(s, ZeroModes))

    def validate(self) -> None:
        """Assert that every operand exists and holds the rows that are asked of it."""
        held: dict[str, Rows] = {}
        blocks: set[str] = set()
        states: set[str] = set()
        totals = {s.out for s in self.totals}
        loads = LoadTaps | LoadVector | LoadToeplitz | LoadModes
        constants = {s.out for s in self.prologue if isinstance(s, loads)}
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
                case Extend(x=x, count=count, rows=rows):
                    assert rows == Rows(x.rows.lo, x.rows.hi + count), f"{statement}: not {rows}"
                    operands = (x,)
                case Remember(x=x, out=out):
                    assert x.rows == BLOCK, f"{statement}: remembers the block's own rows only"
                    blocks.add(out)
                    operands = (x,)
                case Recall(blocks=source):
                    assert source in blocks, f"{statement}: {source} is not remembered"
                case Toeplitz(blocks=source, taps=taps):
                    assert source in blocks, f"{statement}: {source} is not remembered"
                    assert taps in constants, f"{statement}: {taps} is not loaded"
                case ToeplitzGradient(out=out, grad=grad, blocks=source):
                    assert {grad, source} <= blocks, f"{statement}: not remembered"
                    assert out in totals, f"{statement}: {out} is not zeroed"
                case Blocks(x=x, out=out):
                    assert x.rows == BLOCK, f"{statement}: the block's own rows only"
                    blocks.add(out)
                    operands = (x,)
                case States(out=out, blocks=source, modes=modes):
                    assert source in blocks, f"{statement}: no {source}"
                    assert modes in constants, f"{statement}: {modes} is not loaded"
                    states.add(out)
                case ModalConv(out=out, blocks=source, states=found, modes=modes):
                    assert source in blocks and found in states, f"{statement}: not computed"
                    assert modes in constants, f"{statement}: {modes} is not loaded"
                    blocks.add(out)
                case StateGradient(out=out, grad_states=after, states=before):
                    assert {after, before} <= states, f"{statement}: states are not computed"
                    assert out in totals, f"{statement}: {out} is not zeroed"
                case ModalGradient(out=out, grad=grad, grad_states=after, blocks=x, states=before):
                    assert {grad, x} <= blocks, f"{statement}: blocks are not computed"
                    assert {after, before} <= states, f"{statement}: states are not computed"
                    assert out in totals, f"{statement}: {out} is not zeroed"
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
            if isinstance(statement, LoadRows | Fir | Rowwise | Extend | Toeplitz | Recall):
                assert statement.out not in held, f"{statement}: {statement.out} is defined twice"
                held[statement.out] = statement.rows
        for statement in self.epilogue:
            if isinstance(statement, Edge):
                continue
            assert isinstance(statement, StorePartial | StoreToeplitz | StoreModes)
            assert statement.total in totals, f"{statement}: {statement.total} is not zeroed"

    def __str__(self) -> str:
        lines = [*map(str, self.prologue)]
        if self.warmup:
            lines += ["for each tile of the LEAD steps before the first:"]
            lines += [f"    {statement}" for statement in self.warmup]
        order = ", the last in time first" if self.time == -1 else ""
        lines += [f"for each tile{order}:", *(f"    {statement}" for statement in self.body)]
        return "\n".join([*lines, *map(str, self.epilogue)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """The body of a stream backward in time, in the order of a kernel that keeps blocks in shared
    memory: between phases it holds remembered blocks only, and what a phase needs beyond
    these it reads and computes again.

    Attributes:
        ahead: what fills the blocks that the recomputed convolution will reach.
        own: what fills those of the tile.
        products: everything on the tensor cores.
        convolved: sums and stores of what depends on the recomputed convolution; may be empty.
        adjoint: all others.
    """

    ahead: tuple[Statement, ...]
    own: tuple[Statement, ...]
    products: tuple[Product, ...]
    convolved: tuple[Statement, ...]
    adjoint: tuple[Statement, ...]

    @property
    def body(self) -> tuple[Statement, ...]:
        return (*self.ahead, *self.own, *self.products, *self.convolved, *self.adjoint)

    def __str__(self) -> str:
        lines = []
        for name in ("ahead", "own", "products", "convolved", "adjoint"):
            lines += [f"{name}:", *(f"    {statement}" for statement in getattr(self, name))]
        return "\n".join(lines)


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
