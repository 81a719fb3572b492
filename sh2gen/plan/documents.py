"""Statements of rows that hold several documents, and the pass that makes a tile program of one
sequence one of documents: each product of two steps counts within a document alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sh2gen.plan.blocks import Toeplitz, ToeplitzGradient
from sh2gen.plan.modes import ModalConv, ModalGradient, StateGradient, States
from sh2gen.plan.program import TileProgram
from sh2gen.plan.statements import Accumulate, Fir, LoadRows, Statement
from sh2gen.plan.values import BLOCK, Call, Carried, Kind, Name, Rows, Scope

BORDERS = "borders"
_OF_BLOCKS = Toeplitz | ToeplitzGradient | States | ModalConv | StateGradient | ModalGradient


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPositions(Statement):
    """How many steps of its document are before each of some rows; -1 outside of the row."""

    out: str
    rows: Rows

    @property
    def makes(self) -> Name:
        return Name(Kind.ROWS, self.out, self.rows)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        out = scope.hold(self.out, self.rows)
        stop = f"ROWS + {self.rows.hi}" if self.rows.hi else "ROWS"
        where = ("position_ptr", "tile", f"LO={self.rows.lo}", f"HI={stop}", "ROWS=ROWS")
        return (Call("load_positions", (*where, "LANES=1", "N=N"), (out,)),)

    def __str__(self) -> str:
        return f"{self.out} = load_positions({self.rows})"


@dataclass(frozen=True, slots=True, kw_only=True)
class TileBorders(Statement):
    """Where documents begin in the blocks of the tile, and whether that is near: in the tile, in
    the `left` - 1 steps before a block or the `right` steps behind.
    """

    out: str = BORDERS
    left: int
    right: int

    @property
    def makes(self) -> Name:
        return Name(Kind.BORDERS, self.out)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        begin: str | Call = "tile.begin"
        found: list[Call] = []
        if scope.lanes == "H":  # a tile of a recurrence, whose rows may be computed in parts
            begin = Call("block_begins", ("t", "M", "BLOCK_T"))
            of_tile = ("position_ptr", "t", "read_end", "M", "BLOCK_T")
            found.append(Call("passed_blocks", of_tile, ("passes",)))
        reach = (f"LEFT={self.left}", f"RIGHT={self.right}")
        where = ("position_ptr", begin, "read_begin", "read_end", "BLOCK_T", *reach)
        return (Call("borders_of", where, (self.out,)), *found)

    def __str__(self) -> str:
        return f"{self.out} = borders_of(tile)"


@dataclass(frozen=True, slots=True, kw_only=True)
class NearAhead(Statement):
    """Whether documents begin in the tile that a stream backward in time reaches LEAD steps later,
    or in the `left` - 1 steps before.
    """

    left: int

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        where = ("position_ptr", "ahead.begin", "read_begin", "read_end", "BLOCK_T")
        reach = (f"LEFT={self.left}", "RIGHT=0")
        return (Call("is_near", (*where, *reach), ("near_ahead",)),)

    def __str__(self) -> str:
        return "near_ahead = is_near(ahead)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Until(Statement):
    """How far to the right of the tile before this one its documents may reach, from what was
    known of this tile: of a stream backward in time.
    """

    borders: str = BORDERS

    @property
    def reads(self) -> tuple[Name, ...]:
        return (Name(Kind.BORDERS, self.borders),)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        return (Call("reach_before", ("until", self.borders, "BLOCK_T"), ("until",)),)

    def carries(self, scope: Scope) -> tuple[Carried, ...]:
        return (Carried(call=Call("far_reach", (scope.lanes,), ("until",))),)

    def __str__(self) -> str:
        return f"until = reach_before(until, {self.borders})"


def of_documents(program: TileProgram) -> TileProgram:
    """The same tile program of rows that hold documents."""
    if not any(isinstance(s, _OF_BLOCKS) for s in program.body):
        return dataclasses.replace(program, body=tuple(_with_positions(program.body)))
    after = (Until(),) if program.time == -1 and program.warmup else ()
    lengths = [s.length for s in program.body if isinstance(s, Fir | Accumulate | Toeplitz)]
    firs = [s.length for s in program.body if isinstance(s, Fir) and s.direction == -1]
    left, right = max(1, *lengths, 2) - 1, max([1, *firs]) - 1

    def found(statements: Sequence[Statement]) -> tuple[Statement, ...]:
        return tuple(_with_borders((*statements, *after), left, right)) if statements else ()

    return dataclasses.replace(program, body=found(program.body), warmup=found(program.warmup))


def of_one_document(statements: Iterable[Statement]) -> tuple[Statement, ...]:
    """Statements of documents as those of tiles that no border is near."""
    found = (s for s in statements if not isinstance(s, LoadPositions))
    return tuple(
        dataclasses.replace(s, within="") if isinstance(s, Fir | Accumulate) else s for s in found
    )


def _multiplies_lags(statement: Statement) -> bool:
    """Whether a statement multiplies steps that are not the same."""
    match statement:
        case Fir(length=length) | Accumulate(function="tap_gradient", length=length):
            return length > 1
    return False


def _with_positions(statements: Sequence[Statement]) -> list[Statement]:
    """Statements over rows that know the positions of these."""
    name, rows = "position", BLOCK
    found: list[Statement] = []
    for statement in statements:
        if isinstance(statement, Fir | Accumulate) and _multiplies_lags(statement):
            statement = dataclasses.replace(statement, within=name)
            rows = rows.join(*(o.rows for o in statement.operands if o.name == name))
        found.append(statement)
    return [LoadPositions(out=name, rows=rows), *found]


def _with_borders(statements: Sequence[Statement], left: int, right: int) -> list[Statement]:
    """Statements over blocks that know the borders of these."""
    ahead: set[str] = set()
    found: list[Statement] = [TileBorders(left=left, right=right)]
    for statement in statements:
        early = isinstance(statement, LoadRows) and statement.ahead
        early |= any(operand.name in ahead for operand in statement.operands)
        if early and statement.makes is not None:
            ahead.add(statement.makes.name)
        if isinstance(statement, Fir | Accumulate) and _multiplies_lags(statement):
            near = ("near_ahead", "ahead") if early else (f"{BORDERS}.near", "tile")
            statement = dataclasses.replace(statement, near=near)
            if early and not any(isinstance(s, NearAhead) for s in found):
                found.append(NearAhead(left=max(2, statement.length) - 1))
        elif isinstance(statement, _OF_BLOCKS):
            statement = dataclasses.replace(statement, within=BORDERS)
        found.append(statement)
    return found
