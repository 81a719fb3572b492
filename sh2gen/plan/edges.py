"""Statements of recurrences where a sequence, or one of its splits, begins or ends: what a state
that is carried in and out takes and gives.
"""

from __future__ import annotations

from dataclasses import dataclass

from sh2gen.plan.statements import Statement
from sh2gen.plan.values import Call, Operand, Scope


class Edge(Statement):
    """What happens at the ends of a sequence."""

    __slots__ = ()


def _said(helper: str, arguments: tuple[str, ...], outs: tuple[str, ...] = ()) -> str:
    left = f"{', '.join(outs)} = " if outs else ""
    return f"{left}{helper}({', '.join(arguments)})  # at the ends of a sequence"


def _sizes(scope: Scope, *more: str) -> tuple[str, ...]:
    return (str(scope.state_size), "MODES", "M", *more)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveState(Edge):
    """Write the state after the last step, which lies in the rows x of a tile, from the states
    before its blocks."""

    states: str
    x: Operand
    modes: str

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        where = (self.states, scope.take(self.x), self.modes, "tile", "ends")
        return (Call("store_final_state", (*where, *_sizes(scope, "N"))),)

    def __str__(self) -> str:
        return _said("store_final_state", (self.states, str(self.x), self.modes))


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveGradient(Edge):
    """Add what the gradient of the last state gives to those of modes."""

    total: str
    states: str
    x: Operand
    modes: str

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        where = (self.total, self.states, scope.take(self.x), self.modes, "tile", "ends")
        return (Call("leave_gradient", (*where, *_sizes(scope, "N")), (self.total,)),)

    def __str__(self) -> str:
        said = (self.total, self.states, str(self.x), self.modes)
        return _said("leave_gradient", said, (self.total,))


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveAdjoint(Edge):
    """Add what the gradient of the last state gives to the steps of the last block."""

    rows: str
    modes: str

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        where = (self.rows, self.modes, "tile", "ends")
        return (Call("leave_adjoint", (*where, *_sizes(scope, "N")), (self.rows,)),)

    def __str__(self) -> str:
        return _said("leave_adjoint", (self.rows, self.modes), (self.rows,))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnterGradient(Edge):
    """Write the gradient of the state before the first step."""

    state: str
    modes: str

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        where = (self.state, self.modes, "ends", "split")
        return (Call("enter_gradient", (*where, *_sizes(scope))),)

    def __str__(self) -> str:
        return _said("enter_gradient", (self.state, self.modes))


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryGradient(Edge):
    """Write the gradient of an input's steps before the first.

    Attributes:
        rows: of its gradient after the featurizer, that follow the history.
        role: of the input.
    """

    rows: str
    taps: str
    role: int

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        where = ("d_history_ptr", "channel", self.rows, self.taps, "program", str(self.role))
        return (Call("history_gradient", (*where, "CHANNELS", "H", "N")),)

    def __str__(self) -> str:
        return _said("history_gradient", (self.rows, self.taps))


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRows(Edge):
    """Write the first rows of a split, of which gradients of inputs before it are made."""

    rows: str
    role: int

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        where = ("edges_ptr", "channel", self.rows, str(self.role))
        return (Call("first_rows", (*where, "CHANNELS", "H", "N", "SPLIT")),)

    def __str__(self) -> str:
        return _said("first_rows", (self.rows,))


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveRows(Edge):
    """Write the last rows of a split, of which gradients of inputs in it are made."""

    x: Operand
    role: int
    length: int

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        here = "(back == 0) & (part == PARTS - 1)"
        where = (
            "edges_ptr",
            "channel",
            scope.take(self.x),
            here,
            str(self.role),
            str(self.length),
        )
        return (Call("leave_rows", (*where, "CHANNELS", "H", "N", "SPLIT")),)

    def __str__(self) -> str:
        return _said("leave_rows", (str(self.x),))
