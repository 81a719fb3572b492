"""Statements of tile programs: what is loaded, computed and stored of rows.

A statement is a class. It declares which names it reads and which one it makes, which helper it
calls with what (`calls`), and what it carries from tile to tile (`carries`). Three other places
know it: its helper in templates/parts/, its meaning in `plan.interpret`, its cost in `cost.work`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sh2gen.graph.nodes import ParameterView
from sh2gen.plan.rings import Past
from sh2gen.plan.values import (
    BLOCK,
    Call,
    Carried,
    Kind,
    Name,
    Operand,
    Rows,
    Scope,
    decay_rate,
    lag_last,
    pointer,
    row_of,
)


class Statement:
    """One line of a tile program; here, what a statement declares unless it says otherwise."""

    __slots__ = ()

    # Whether it runs on the tensor cores, between phases of rows.
    is_product: ClassVar[bool] = False

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The rows that it reads."""
        return ()

    @property
    def reads(self) -> tuple[Name, ...]:
        """What else it reads."""
        return ()

    @property
    def makes(self) -> Name | None:
        """What it makes, if anything."""
        return None

    @property
    def parameters(self) -> tuple[ParameterView, ...]:
        """The parameters that it loads."""
        return ()

    @property
    def partial_rows(self) -> int:
        """Rows of partial sums of channels that its accumulators will be written to."""
        return 0

    @property
    def partial_groups(self) -> int:
        """Likewise of partial sums of groups."""
        return 0

    def check(self) -> None:
        """Assert that its rows agree with each other."""

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        """The calls of helpers that it is in a kernel's text."""
        raise NotImplementedError

    def carries(self, scope: Scope) -> tuple[Carried, ...]:
        """What it carries from tile to tile."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTaps(Statement):
    """Taps of each lane's filter row, lag 0 first."""

    out: str
    view: ParameterView

    @property
    def makes(self) -> Name:
        return Name(Kind.CONSTANT, self.out)

    @property
    def parameters(self) -> tuple[ParameterView, ...]:
        return (self.view,)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        which = (pointer(self.view), row_of(self.view), "channel_mask")
        arguments = (*which, f"LENGTH={self.view.length}", f"LAG_LAST={lag_last(self.view)}")
        loaded = Call("load_taps", arguments, (self.out,))
        if self.view.decay is None:
            return (loaded,)
        rate = decay_rate(self.view, row_of(self.view))
        return loaded, Call("with_decay", (self.out, rate), (self.out,))

    def __str__(self) -> str:
        return f"{self.out} = load_taps({self.view.tensor}, {self.view.length})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadVector(Statement):
    """One number of a vector parameter for each lane."""

    out: str
    view: ParameterView

    @property
    def makes(self) -> Name:
        return Name(Kind.CONSTANT, self.out)

    @property
    def parameters(self) -> tuple[ParameterView, ...]:
        return (self.view,)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        arguments = (pointer(self.view), row_of(self.view), "channel_mask")
        return (Call("load_vector", arguments, (self.out,)),)

    def __str__(self) -> str:
        return f"{self.out} = load_vector({self.view.tensor})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroTaps(Statement):
    """`length` accumulators, zero before the first tile."""

    out: str
    length: int

    @property
    def makes(self) -> Name:
        return Name(Kind.TOTALS, self.out)

    @property
    def partial_rows(self) -> int:
        return self.length

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        return (Call("zero_taps", (str(self.length), scope.accumulators, "N"), (self.out,)),)

    def __str__(self) -> str:
        return f"{self.out} = zero_taps({self.length})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRows(Statement):
    """Rows of an activation; zero outside the segment.

    Attributes:
        carried: rows of context come from the tile before, not from memory: of a stream that runs
            forward in time.
        ahead: of the tile that a stream backward in time reaches LEAD steps later.
        history: a call says what was before the first step.
        lagged: rows of context are loaded by themselves, not with a vector that they end.
        past: what is before the first step.
        early: the tile itself may lie before that.
    """

    out: str
    tensor: str
    rows: Rows
    carried: bool = False
    ahead: bool = False
    history: bool = False
    lagged: bool = False
    past: Past | None = None
    early: bool = False

    @property
    def makes(self) -> Name:
        return Name(Kind.ROWS, self.out, self.rows)

    @property
    def context(self) -> str:
        """Steps before the block."""
        return str(-self.rows.lo)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        out = scope.hold(self.out, self.rows)
        data, strides = f"{self.tensor}_ptr", scope.strides[self.tensor]
        lanes = ("EVEN", "ROWS", scope.lanes, "N")
        if self.lagged:
            rows = Call("load_lagged", (data, "tile", *strides, self.context, *lanes), (out,))
            past = (out, f"{self.tensor}_history", "tile", self.context)
            with_history = Call("with_history", (*past, scope.lanes, "N"), (out,))
            return (rows, with_history) if self.history else (rows,)
        start = "0" if self.carried else str(self.rows.lo)
        stop = f"ROWS + {self.rows.hi}" if self.rows.hi else "ROWS"
        tile = "ahead" if self.ahead else "tile"
        where = (data, tile, *strides, start, stop)
        calls = [Call("load_steps", (*where, *lanes, *scope.hints), (out,))]
        # An early tile hands its last rows on to the next; of others the context alone matters.
        before = "" if start == "0" else self.context
        if self.early:
            before = f"ROWS + {self.rows.hi - int(start)}"
        if self.past is not None and before:
            calls.append(
                Call("with_past", (out, *self.past.arguments(tile, start, before)), (out,))
            )
        if self.carried:
            kept = (out, f"{out}_before")
            calls.append(Call("prepend", (*kept, self.context, scope.lanes, "N"), kept))
        return tuple(calls)

    def carries(self, scope: Scope) -> tuple[Carried, ...]:
        found = []
        if self.history:
            role = str(scope.inputs.index(self.tensor))
            arguments = ("history_ptr", "channel", role, self.context, "CHANNELS")
            out = (f"{self.tensor}_history",)
            found.append(Carried(call=Call("load_history", arguments, out)))
        if self.carried:
            tile = (f"{self.tensor}_ptr", "tile", *scope.strides[self.tensor], self.context)
            rows = (*tile, "EVEN", "ROWS", scope.lanes, "N")
            time = "-LEAD" if self.out in scope.loaded_before else "0"
            before = f"{self.out}_before"
            found.append(Carried(call=Call("context_rows", rows, (before,)), time=time))
            if self.past is not None:  # all lanes have the steps before the first
                past = (
                    before,
                    *self.past.arguments("tile", f"-{self.context}", self.context, "0"),
                )
                found.append(Carried(call=Call("with_past", past, (before,)), time=time))
        return tuple(found)

    def __str__(self) -> str:
        where = ", carried" * self.carried + ", ahead" * self.ahead + ", history" * self.history
        where += ", lagged" * self.lagged
        return f"{self.out} = load_steps({self.tensor}, {self.rows}{where})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enter(Statement):
    """Rows of a value, those before the first step from what is kept of the past."""

    out: str
    x: Operand
    past: Past

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (self.x,)

    @property
    def makes(self) -> Name:
        return Name(Kind.ROWS, self.out, self.x.rows)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        rows = self.x.rows
        past = self.past.arguments("tile", str(rows.lo), str(-rows.lo))
        out = scope.hold(self.out, rows)
        return (Call("with_past", (scope.take(self.x), *past), (out,)),)

    def __str__(self) -> str:
        return f"{self.out} = with_past({self.x}, {self.past.ring})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fir(Statement):
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

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (self.x,)

    @property
    def reads(self) -> tuple[Name, ...]:
        return (Name(Kind.CONSTANT, self.taps),)

    @property
    def makes(self) -> Name:
        return Name(Kind.ROWS, self.out, self.rows)

    def check(self) -> None:
        lag, rows = self.length - 1, self.rows
        forward = self.direction == +1
        want = Rows(rows.lo - lag, rows.hi) if forward else Rows(rows.lo, rows.hi + lag)
        assert self.x.rows == want, f"{self}: needs {want}"

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        arguments = (scope.take(self.x), self.taps, f"LENGTH={self.length}")
        return (Call(self.helper, arguments, (scope.hold(self.out, self.rows),)),)

    def __str__(self) -> str:
        return f"{self.out} = {self.helper}({self.x}, {self.taps})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extend(Statement):
    """x and the `count` rows that follow it: from the next lane and, at the end of the tile, from
    the tile that a stream backward in time computed before this one.
    """

    out: str
    x: Operand
    count: int
    rows: Rows

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (self.x,)

    @property
    def makes(self) -> Name:
        return Name(Kind.ROWS, self.out, self.rows)

    @property
    def after(self) -> str:
        """The rows that it carries."""
        return f"{self.x.name}_after"

    def check(self) -> None:
        want = Rows(self.x.rows.lo, self.x.rows.hi + self.count)
        assert self.rows == want, f"{self}: not {self.rows}"

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        out = scope.hold(self.out, self.rows)
        arguments = (scope.take(self.x), self.after, str(self.count), scope.lanes, "N")
        return (Call("extend", arguments, (out, self.after)),)

    def carries(self, scope: Scope) -> tuple[Carried, ...]:
        arguments = (str(self.count), scope.lanes, "N")
        return (Carried(call=Call("zero_rows", arguments, (self.after,))),)

    def __str__(self) -> str:
        return f"{self.out} = extend({self.x}, {self.count})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rowwise(Statement):
    """A function of each row and, for scale and shift, of one vector parameter.

    Attributes:
        function: multiply, add, scale, shift, silu or silu_gradient.
    """

    out: str
    function: str
    inputs: tuple[Operand, ...]
    vector: str | None = None
    rows: Rows

    @property
    def operands(self) -> tuple[Operand, ...]:
        return self.inputs

    @property
    def reads(self) -> tuple[Name, ...]:
        return () if self.vector is None else (Name(Kind.CONSTANT, self.vector),)

    @property
    def makes(self) -> Name:
        return Name(Kind.ROWS, self.out, self.rows)

    def check(self) -> None:
        assert all(o.rows == self.rows for o in self.inputs), f"{self}: rows differ"

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        arguments = (*map(scope.take, self.inputs), *((self.vector,) if self.vector else ()))
        return (Call(self.function, arguments, (scope.hold(self.out, self.rows),)),)

    def __str__(self) -> str:
        arguments = [*map(str, self.inputs), *([self.vector] if self.vector else [])]
        return f"{self.out} = {self.function}({', '.join(arguments)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accumulate(Statement):
    """Add this tile's part of a parameter gradient to accumulators.

    Attributes:
        function: tap_gradient of two values, or channel_sum of one.
    """

    out: str
    function: str
    inputs: tuple[Operand, ...]
    length: int

    @property
    def operands(self) -> tuple[Operand, ...]:
        return self.inputs

    @property
    def reads(self) -> tuple[Name, ...]:
        return (Name(Kind.TOTALS, self.out),)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        length = (f"LENGTH={self.length}",) if len(self.inputs) > 1 else ()
        arguments = (self.out, *map(scope.take, self.inputs), *length)
        return (Call(self.function, arguments, (self.out,)),)

    def __str__(self) -> str:
        return f"{self.out} += {self.function}({', '.join(map(str, self.inputs))})"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRows(Statement):
    """Write the block's rows of a value, rounded once to the tensor's dtype."""

    tensor: str
    x: Operand

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (self.x,)

    def check(self) -> None:
        assert self.x.rows == BLOCK, f"{self}: stores the block's own rows only"

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        what = (f"{self.tensor}_ptr", "tile", scope.take(self.x))
        arguments = (*what, *scope.strides[self.tensor], "EVEN", scope.lanes, "N")
        return (Call("store_steps", arguments),)

    def __str__(self) -> str:
        return f"store_steps({self.tensor}, {self.x})"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePartial(Statement):
    """Write accumulators to rows first, first + 1, ... of this program's partial sums.

    Attributes:
        totals: accumulators whose rows lie one after another.
    """

    totals: tuple[str, ...]
    first: int

    @property
    def reads(self) -> tuple[Name, ...]:
        return tuple(Name(Kind.TOTALS, total) for total in self.totals)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        total = " + ".join(self.totals)
        arguments = ("partials_ptr", str(self.first), total, "channel", "channel_mask", "CHANNELS")
        return (Call("store_partial", arguments),)

    def __str__(self) -> str:
        return f"store_partial({self.first}, {' + '.join(self.totals)})"
