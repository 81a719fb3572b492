"""Statements of recurrences: blocks, and the states of modes between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sh2gen.graph.nodes import ParameterView
from sh2gen.plan.statements import Statement
from sh2gen.plan.values import (
    BLOCK,
    Call,
    Carried,
    Kind,
    Name,
    Operand,
    Pack,
    Scope,
    pointer,
    pole_pointers,
    row_of,
)


def mode_pointers(views: tuple[ParameterView, ...]) -> tuple[str | Pack, ...]:
    """What loads poles and residues: of real poles, those that they are made of are packed."""
    if len(views) == 4:
        return tuple(map(pointer, views))
    poles, residues = views
    return pole_pointers(poles), pointer(residues)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadModes(Statement):
    """The modes of a channel's filter, as tables of exponentials that tiles need."""

    out: str
    views: tuple[ParameterView, ...]

    @property
    def makes(self) -> Name:
        return Name(Kind.CONSTANT, self.out)

    @property
    def parameters(self) -> tuple[ParameterView, ...]:
        return self.views

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        first = self.views[0]
        modes = (*mode_pointers(self.views), row_of(first), str(first.length), "MODES", "M")
        sizes = ("BLOCK_T", "OPERAND", "PRECISION", "TERMS=TERMS")
        return (Call("load_modes", (*modes, *sizes), (self.out,)),)

    def __str__(self) -> str:
        tensors = ", ".join(view.tensor for view in self.views)
        return f"{self.out} = load_modes({tensors}, {self.views[0].length})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroModes(Statement):
    """Accumulators from which gradients are made, for a state of `length` numbers: as many of
    poles, and as many of residues.

    Attributes:
        last: whether the gradient of the last state adds to them too.
    """

    out: str
    length: int
    last: bool = False

    @property
    def makes(self) -> Name:
        return Name(Kind.TOTALS, self.out)

    @property
    def partial_rows(self) -> int:
        return 2 * self.length

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        zeros = Call("zero_modes", ("MODES", "M", "BLOCK_T"), (self.out,))
        last = Call("with_last", (self.out, "MODES"), (self.out,))
        return (zeros, last) if self.last else (zeros,)

    def __str__(self) -> str:
        return f"{self.out} = zero_modes()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks(Statement):
    """x as a matrix that products read: blocks of consecutive steps by steps."""

    out: str
    x: Operand

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (self.x,)

    @property
    def makes(self) -> Name:
        return Name(Kind.BLOCKS, self.out)

    def check(self) -> None:
        assert self.x.rows == BLOCK, f"{self}: the block's own rows only"

    def piece(self, scope: Scope) -> Call:
        """The rows of a part of the tile, as a part of the matrix."""
        return Call("piece_of", (scope.take(self.x), "H", "N", "OPERAND"))

    def whole(self, pieces: str | Pack) -> Call:
        """The matrix of its parts."""
        return Call("block_of", (pieces, "M", "N", "PRECISION"), (self.out,))

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        return (self.whole(Pack((self.piece(scope),))),)

    def __str__(self) -> str:
        return f"{self.out} = block_of({self.x})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadState(Statement):
    """The state before the tile, which forward has kept."""

    out: str
    is_product: ClassVar[bool] = True

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        sizes = (str(scope.state_size), "CHANNELS", "MODES", "M")
        return (Call("load_state", ("states_ptr", "number", *sizes), (self.out,)),)

    def __str__(self) -> str:
        return f"{self.out} = load_state(states)"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepState(Statement):
    """Write the state at the edge of the tile that it has come to: before it, if backward will
    follow; or what the tile adds.
    """

    state: str

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        sizes = (str(scope.state_size), "CHANNELS", "MODES", "M", "KEEP")
        return (Call("keep_state", ("states_ptr", "number", self.state, *sizes)),)

    def __str__(self) -> str:
        return f"keep_state(states, {self.state})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroState(Statement):
    """A state of which only what a tile adds is asked for."""

    out: str

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        return (Call("zero_state", ("MODES", "M"), (self.out,)),)

    def __str__(self) -> str:
        return f"{self.out} = zero_state()"


@dataclass(frozen=True, slots=True, kw_only=True)
class States(Statement):
    """The states of all modes before each block (direction +1), or those of the adjoint after
    each (-1), from the blocks themselves and the state at the tile's edge, which is updated.

    Attributes:
        entered: whether a kernel that walks in this direction finds the state at its first tile's
            edge, instead of what a statement has made.
        given: whether a call gives that at the end of the sequence, else it is zero.
        apart: of documents, beyond which no state goes.
    """

    out: str
    blocks: str
    modes: str
    state: str
    direction: int
    entered: bool = False
    given: bool = False
    apart: bool = False
    is_product: ClassVar[bool] = True

    @property
    def helper(self) -> str:
        if self.apart:
            return "states_before_apart" if self.direction == +1 else "states_after_apart"
        if self.direction == +1:
            return "states_before"
        return "states_to_end" if self.given else "states_after"

    @property
    def reads(self) -> tuple[Name, ...]:
        return Name(Kind.BLOCKS, self.blocks), Name(Kind.CONSTANT, self.modes)

    @property
    def makes(self) -> Name:
        return Name(Kind.STATES, self.out)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        sizes: tuple[str, ...] = ("MODES", "M")
        where: tuple[str, ...] = (self.blocks, self.modes, self.state)
        if self.apart:
            where, sizes = (*where, "begun_ptr", "t", "read_end"), (*sizes, "BLOCK_T")
        if self.helper == "states_to_end":
            where, sizes = (*where, "tile", "ends"), (str(scope.state_size), *sizes, "BLOCK_T")
        arguments = (*where, *sizes, "OPERAND", "PRECISION")
        return (Call(self.helper, arguments, (self.out, self.state)),)

    def carries(self, scope: Scope) -> tuple[Carried, ...]:
        if not self.entered:
            return ()
        sizes: tuple[str, ...] = (str(scope.state_size), "CHANNELS", "MODES", "M")
        where: tuple[str, ...] = ("split", self.modes)
        helper = "state_before" if self.direction == +1 else "adjoint_after"
        if self.given:
            where = ("ends", *where)
            helper = "load_initial_state" if self.direction == +1 else "enter_adjoint"
            if self.direction == -1:
                where, sizes = (*where, "write_end"), (*sizes, "BLOCK_T")
        return (Carried(call=Call(helper, (*where, *sizes, "SPLIT"), (self.state,))),)

    def __str__(self) -> str:
        arguments = f"{self.blocks}, {self.modes}, {self.state}"
        return f"{self.out}, {self.state} = {self.helper}({arguments})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalConv(Statement):
    """Blocks of a convolution with modes (direction +1), or of its adjoint (-1): of each block
    with itself, and with all others through the states.
    """

    out: str
    blocks: str
    states: str
    modes: str
    direction: int
    is_product: ClassVar[bool] = True

    @property
    def helper(self) -> str:
        return "modal" if self.direction == +1 else "modal_adjoint"

    @property
    def reads(self) -> tuple[Name, ...]:
        read = (Name(Kind.BLOCKS, self.blocks), Name(Kind.STATES, self.states))
        return (*read, Name(Kind.CONSTANT, self.modes))

    @property
    def makes(self) -> Name:
        return Name(Kind.BLOCKS, self.out)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        arguments = (self.blocks, self.states, self.modes, "PRECISION")
        return (Call(self.helper, arguments, (self.out,)),)

    def __str__(self) -> str:
        return f"{self.out} = {self.helper}({self.blocks}, {self.states}, {self.modes})"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateGradient(Statement):
    """Add products of states with those of the adjoint to accumulators."""

    out: str
    grad_states: str
    states: str

    @property
    def reads(self) -> tuple[Name, ...]:
        states = (Name(Kind.STATES, self.grad_states), Name(Kind.STATES, self.states))
        return (*states, Name(Kind.TOTALS, self.out))

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        return (Call("state_gradient", (self.out, self.grad_states, self.states), (self.out,)),)

    def __str__(self) -> str:
        return f"{self.out} += state_gradient({self.grad_states}, {self.states})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalGradient(Statement):
    """Add products of blocks and states with blocks of the other to accumulators."""

    out: str
    grad: str
    grad_states: str
    blocks: str
    states: str
    is_product: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[Name, ...]:
        blocks = (Name(Kind.BLOCKS, self.grad), Name(Kind.BLOCKS, self.blocks))
        states = (Name(Kind.STATES, self.grad_states), Name(Kind.STATES, self.states))
        return (*blocks, *states, Name(Kind.TOTALS, self.out))

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        arguments = (self.out, self.grad, self.grad_states, self.blocks, self.states, "PRECISION")
        return (Call("modal_gradient", arguments, (self.out,)),)

    def __str__(self) -> str:
        arguments = f"{self.grad}, {self.grad_states}, {self.blocks}, {self.states}"
        return f"{self.out} += modal_gradient({arguments})"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreModes(Statement):
    """Write the gradients of poles, then of residues, to rows first, first + 1, ... of this
    program's partial sums; of pairs, `length` modes of each part one after another.
    """

    total: str
    views: tuple[ParameterView, ...]
    first: int
    length: int

    @property
    def reads(self) -> tuple[Name, ...]:
        return (Name(Kind.TOTALS, self.total),)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        length = str(self.length)
        modes = (*mode_pointers(self.views), row_of(self.views[0]), length, "MODES")
        sizes = ("channel", "channel_mask", length, "CHANNELS", "MODES", "M", "BLOCK_T")
        found = ("partials_ptr", str(self.first), self.total, Call("load_poles", modes))
        own = (f"EXPONENTS={bool(self.views[0].trained)}",) if len(self.views) == 2 else ()
        return (Call("store_modes", (*found, *sizes, *own)),)

    def __str__(self) -> str:
        tensors = ", ".join(view.tensor for view in self.views)
        return f"store_modes({self.first}, {self.total}, {tensors})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts(Statement):
    """What follows, until EndParts, is computed for one part of the tile's blocks after another:
    so fewer rows are held at once.

    Attributes:
        time: +1 the earliest part first, -1 the latest.
    """

    time: int

    def __str__(self) -> str:
        return f"for each part of the tile, the {'first' if self.time == +1 else 'last'} first:"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndParts(Statement):
    """Blocks are whole from here on."""

    def __str__(self) -> str:
        return "end of parts"
