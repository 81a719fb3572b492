"""Rows that hold several documents: statements, and passes that make tile programs of one sequence
those of documents.

With taps, the row is computed as one document, and then the first steps of each again, its *head*
(`outside_heads`, `of_heads`). With modes, products and states end where documents do (`of_modes`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from sh2gen.plan.blocks import Toeplitz, ToeplitzGradient
from sh2gen.plan.modes import ModalConv, ModalGradient, StateGradient, States
from sh2gen.plan.program import TileProgram
from sh2gen.plan.statements import (
    Accumulate,
    Fir,
    LoadRows,
    Statement,
    StoreRows,
)
from sh2gen.plan.values import BLOCK, Call, Kind, Name, Operand, Scope

BORDERS = "borders"
_OF_STATES = States | ModalConv | StateGradient | ModalGradient


@dataclass(frozen=True, slots=True, kw_only=True)
class TileBorders(Statement):
    """Where documents begin in the blocks of a recurrence's tile. It matters if one does there, in
    the `left` - 1 steps before or in the `right` steps behind.
    """

    out: str = BORDERS
    left: int
    right: int

    @property
    def makes(self) -> Name:
        return Name(Kind.BORDERS, self.out)

    @property
    def near(self) -> Call:
        """Whether it matters."""
        reach = (f"LEFT={self.left}", f"RIGHT={self.right}")
        return Call("is_near", (*self._where, "BLOCK_T", *reach))

    @property
    def _where(self) -> tuple[str | Call, ...]:
        begin = Call("block_begins", ("t", "M", "BLOCK_T"))
        return "position_ptr", begin, "read_begin", "read_end"

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        blocks = ("position_ptr", "t", "read_end", "M", "BLOCK_T")
        return (
            Call("borders_of", (*self._where, "BLOCK_T"), (self.out,)),
            Call("passed_blocks", blocks, ("passes",)),
        )

    def __str__(self) -> str:
        return f"{self.out} = borders_of(tile)"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRows(Statement):
    """The block's rows of a value that are in the head of a document, and zero behind it; or the
    other way round, those `outside` of heads.
    """

    out: str
    x: Operand
    outside: bool = False

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (self.x,)

    @property
    def makes(self) -> Name:
        return Name(Kind.ROWS, self.out, self.x.rows)

    def check(self) -> None:
        assert self.x.rows == BLOCK, f"{self}: the block's own rows only"

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        rows, out = scope.take(self.x), scope.hold(self.out, self.x.rows)
        if self.outside:
            return (Call("outside_heads", (rows, "counted_ptr", "tile", "ROWS", "N"), (out,)),)
        return (Call("own_rows", (rows, "tile", "N"), (out,)),)

    def __str__(self) -> str:
        return f"{self.out} = {'outside_heads' if self.outside else 'own_rows'}({self.x})"


def of_modes(program: TileProgram) -> TileProgram:
    """A recurrence over rows that hold documents: no product of two steps goes beyond them."""
    lengths = [s.length for s in program.body if isinstance(s, Fir)]
    adjoint = [s.length for s in program.body if isinstance(s, Fir) and s.direction == -1]
    found: list[Statement] = [
        TileBorders(left=max([2, *lengths]) - 1, right=max([1, *adjoint]) - 1)
    ]
    for statement in program.body:
        match statement:
            case Fir(length=length) | Accumulate(function="tap_gradient", length=length) if (
                length > 1
            ):
                found.append(dataclasses.replace(statement, within=True))
            case _ if isinstance(statement, _OF_STATES):
                found.append(dataclasses.replace(statement, within=BORDERS))
            case _:
                found.append(statement)
    return dataclasses.replace(program, body=tuple(found))


def of_one(statements: Iterable[Statement]) -> tuple[Statement, ...]:
    """Statements of a recurrence over documents as those of tiles that no border is near."""
    found: list[Statement] = []
    for s in statements:
        match s:
            case Fir() | Accumulate():
                found.append(dataclasses.replace(s, within=False))
            case _ if isinstance(s, _OF_STATES):
                found.append(dataclasses.replace(s, within=""))
            case TileBorders():
                pass
            case _:
                found.append(s)
    return tuple(found)


def outside_heads(program: TileProgram) -> TileProgram:
    """The tile program of a whole row, in which dy is zero in heads, and sums are without them: so
    what is added of steps in heads, whose gradients later steps add to, is left to `of_heads`.
    """
    late: set[str] = set()  # gradients to which later steps add

    def changed(statements: tuple[Statement, ...]) -> tuple[Statement, ...]:
        found: list[Statement] = []
        for s in statements:
            adjoint = isinstance(s, Fir | Toeplitz) and s.direction == -1
            if s.makes and (adjoint or any(x.name in late for x in s.operands)):
                late.add(s.makes.name)
            match s:
                case LoadRows(tensor="dy"):
                    found.append(dataclasses.replace(s, counted=True))
                case Accumulate(inputs=(grad, *_)) if grad.name in late:
                    found += _of_rows(s, found, outside=True)
                case _:
                    found.append(s)
        return tuple(found)

    return dataclasses.replace(program, body=changed(program.body), warmup=changed(program.warmup))


def of_heads(program: TileProgram) -> TileProgram:
    """The tile program of heads: all reads are within a document, results are written in its head,
    and sums are of that. Nothing is before it: a walk forward in time needs no warmup.
    """

    def changed(statements: tuple[Statement, ...]) -> tuple[Statement, ...]:
        found: list[Statement] = []
        for s in statements:
            match s:
                case LoadRows() | StoreRows() | ToeplitzGradient():
                    found.append(dataclasses.replace(s, own=True))
                case Accumulate():
                    found += _of_rows(s, found, outside=False)
                case _:
                    found.append(s)
        return tuple(found)

    warmup = changed(program.warmup) if program.time == -1 else ()
    return dataclasses.replace(program, body=changed(program.body), warmup=warmup)


def _of_rows(sums: Accumulate, before: list[Statement], outside: bool) -> list[Statement]:
    """Sums over rows in heads alone or outside of them, with what makes these unless it is among
    the statements before.
    """
    grad, *others = sums.inputs
    name = f"{grad.name}_{'counted' if outside else 'own'}"
    made = [HeadRows(out=name, x=grad, outside=outside)]
    known = any(isinstance(s, HeadRows) and s.out == name for s in before)
    own = dataclasses.replace(sums, inputs=(Operand(name, BLOCK), *others))
    return [*([] if known else made), own]
