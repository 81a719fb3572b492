"""Tile programs: what a kernel does once, and for every tile, as a tuple of statements.

`emit` (text), `interpret` (meaning) and `cost` (work) are three folds over that one tuple.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sh2gen.graph.nodes import ParameterView
from sh2gen.plan.statements import LoadRows, Statement, StoreRows
from sh2gen.plan.values import BLOCK, Kind, Rows

_MADE = {
    Kind.ROWS: "computed",
    Kind.CONSTANT: "loaded",
    Kind.BLOCKS: "computed",
    Kind.STATES: "computed",
    Kind.TOTALS: "zeroed",
}


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
    def totals(self) -> tuple[Statement, ...]:
        """What zeroes the accumulators."""
        return tuple(s for s in self.prologue if s.makes and s.makes.kind is Kind.TOTALS)

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
        return tuple(dict.fromkeys(name for view in self.views for name in view.sources))

    @property
    def views(self) -> tuple[ParameterView, ...]:
        """What is read of parameter tensors."""
        every = (*self.prologue, *self.body)
        return tuple(view for statement in every for view in statement.parameters)

    @property
    def partial_rows(self) -> int:
        """Rows of partial sums of channels that each program writes."""
        return sum(s.partial_rows for s in self.prologue)

    @property
    def partial_groups(self) -> int:
        """Rows of partial sums of groups that each program writes."""
        return sum(s.partial_groups for s in self.prologue)

    def validate(self) -> None:
        """Assert that every name exists and holds the rows that are asked of it."""
        held: dict[str, Rows] = {}
        known = {s.makes for s in self.prologue}
        for statement in self.body:
            statement.check()
            for read in statement.reads:
                assert read in known, f"{statement}: {read.name} is not {_MADE[read.kind]}"
            for operand in statement.operands:
                assert operand.name in held, f"{statement}: {operand.name} is not defined"
                have = held[operand.name]
                assert have.join(operand.rows) == have, f"{statement}: {operand.name} holds {have}"
            made = statement.makes
            if made is not None and made.rows is not None:
                assert made.name not in held, f"{statement}: {made.name} is defined twice"
                held[made.name] = made.rows
            known.add(made)
        for statement in self.epilogue:
            for read in statement.reads:
                assert read in known, f"{statement}: {read.name} is not {_MADE[read.kind]}"

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
    products: tuple[Statement, ...]
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
