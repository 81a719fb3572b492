"""Statements of streams: blocks of time, convolved by products with Toeplitz matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sh2gen.graph.nodes import ParameterView
from sh2gen.plan.rings import Past
from sh2gen.plan.statements import Statement
from sh2gen.plan.values import (
    BLOCK,
    Call,
    Carried,
    Kind,
    Name,
    Operand,
    Pack,
    Rows,
    Scope,
    decay_rate,
    lag_last,
    pointer,
)


def products(length: int) -> str:
    """How many blocks `length` taps reach, the tile's own included, each with a product."""
    return f"1 + ceil({length - 1} / BLOCK_T)"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadToeplitz(Statement):
    """The taps that a group's channels share, as Toeplitz matrices: how a block's outputs depend
    on the block itself, on the one before it, and so on.
    """

    out: str
    view: ParameterView

    @property
    def makes(self) -> Name:
        return Name(Kind.CONSTANT, self.out)

    @property
    def parameters(self) -> tuple[ParameterView, ...]:
        return (self.view,)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        order = f"LAG_LAST={lag_last(self.view)}"
        rate = Pack((decay_rate(self.view, "group"),) if self.view.decay else ())
        taps = (pointer(self.view), "group", rate, f"LENGTH={self.view.length}", order)
        sizes = tuple(f"{name}={name}" for name in ("BLOCK_T", "OPERAND", "PRECISION", "TERMS"))
        return (Call("load_toeplitz", (*taps, *sizes), (self.out,)),)

    def __str__(self) -> str:
        return f"{self.out} = load_toeplitz({self.view.tensor}, {self.view.length})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroToeplitz(Statement):
    """Accumulators of the gradient of Toeplitz matrices, zero before the first tile."""

    out: str
    length: int

    @property
    def makes(self) -> Name:
        return Name(Kind.TOTALS, self.out)

    @property
    def partial_groups(self) -> int:
        return self.length

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        return (Call("zero_toeplitz", (str(self.length), "BLOCK_T"), (self.out,)),)

    def __str__(self) -> str:
        return f"{self.out} = zero_toeplitz({self.length})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remember(Statement):
    """x as a matrix, blocks of time by steps, and those of the LEAD steps beside it.

    Attributes:
        ahead: x is LEAD steps earlier than the tile, and what is kept are the blocks between: the
            block of the tile first, then earlier ones. Otherwise x is of the tile: its block
            first, then those that the stream visited before.
        past: what x is before the first step, where the tile may lie.
    """

    out: str
    x: Operand
    length: int
    ahead: bool = False
    past: Past | None = None

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (self.x,)

    @property
    def makes(self) -> Name:
        return Name(Kind.BLOCKS, self.out)

    def check(self) -> None:
        assert self.x.rows == BLOCK, f"{self}: remembers the block's own rows only"

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        kept = f"{self.out}_kept"
        sizes = ("going", scope.lanes, "N", "OPERAND", "PRECISION")
        helper = "look_ahead" if self.ahead else "remember"
        if self.past is None:
            return (Call(helper, (kept, scope.take(self.x), *sizes), (self.out, kept)),)
        block, tile = f"{self.x.name}_block", "ahead" if self.ahead else "tile"
        where = (self.past.ring.pointer, "count", tile, scope.lanes, "N", "OPERAND", "PRECISION")
        entered = (scope.take(self.x), *where, str(self.past.lag), *self.past.ring.sizes)
        return (
            Call("entered_block", entered, (block,)),
            Call(f"{helper}_entered", (kept, block, "going"), (self.out, kept)),
        )

    def carries(self, scope: Scope) -> tuple[Carried, ...]:
        arguments = ("HISTORY", scope.lanes, "BLOCK_T", "OPERAND")
        return (Carried(call=Call("zero_blocks", arguments, (f"{self.out}_kept",))),)

    def __str__(self) -> str:
        return f"{self.out} = {'look_ahead' if self.ahead else 'remember'}({self.x})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall(Statement):
    """Rows of the tile's own block of what is remembered, or of blocks that products make."""

    out: str
    blocks: str
    rows: Rows = BLOCK

    @property
    def reads(self) -> tuple[Name, ...]:
        return (Name(Kind.BLOCKS, self.blocks),)

    @property
    def makes(self) -> Name:
        return Name(Kind.ROWS, self.out, self.rows)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        out = scope.hold(self.out, self.rows)
        return (Call("recall", (self.blocks, "part", "PARTS", "M", "N"), (out,)),)

    def __str__(self) -> str:
        return f"{self.out} = recall({self.blocks})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Toeplitz(Statement):
    """Convolution of remembered blocks with taps (direction +1), or its adjoint (-1), as matrix
    products: one for every block that the taps reach.
    """

    out: str
    blocks: str
    taps: str
    length: int
    direction: int
    rows: Rows = BLOCK
    is_product: ClassVar[bool] = True

    @property
    def helper(self) -> str:
        return "toeplitz" if self.direction == +1 else "toeplitz_adjoint"

    @property
    def reads(self) -> tuple[Name, ...]:
        return Name(Kind.BLOCKS, self.blocks), Name(Kind.CONSTANT, self.taps)

    @property
    def makes(self) -> Name:
        return Name(Kind.ROWS, self.out, self.rows)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        out = scope.hold(self.out, self.rows)
        sizes = ("HISTORY + 1", scope.lanes, "N", "PRECISION")
        return (Call(self.helper, (self.blocks, self.taps, *sizes), (out,)),)

    def __str__(self) -> str:
        call = f"{self.out} = {self.helper}({self.blocks}, {self.taps})"
        return f"{call}  # {products(self.length)} products"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToeplitzGradient(Statement):
    """Add products of the tile's block of `grad` with all of `blocks` to accumulators."""

    out: str
    grad: str
    blocks: str
    length: int
    is_product: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[Name, ...]:
        blocks = (Name(Kind.BLOCKS, self.grad), Name(Kind.BLOCKS, self.blocks))
        return (*blocks, Name(Kind.TOTALS, self.out))

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        sizes = ("HISTORY + 1", scope.lanes, "BLOCK_T", "PRECISION")
        arguments = (self.out, self.grad, self.blocks, *sizes)
        return (Call("toeplitz_gradient", arguments, (self.out,)),)

    def __str__(self) -> str:
        call = f"{self.out} += toeplitz_gradient({self.grad}, {self.blocks})"
        return f"{call}  # {products(self.length)} products"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreToeplitz(Statement):
    """Write the sums along diagonals of accumulators, which are the gradients of taps."""

    total: str
    length: int

    @property
    def reads(self) -> tuple[Name, ...]:
        return (Name(Kind.TOTALS, self.total),)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        arguments = ("group_partials_ptr", self.total, "COLUMNS", str(self.length), "BLOCK_T")
        return (Call("store_toeplitz", arguments),)

    def __str__(self) -> str:
        return f"store_toeplitz({self.total})"
