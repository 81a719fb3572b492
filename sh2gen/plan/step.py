"""Statements of a few steps in time: of a kernel that a sequence is decoded by, and what it keeps.

The past of a convolution lies in a ring, [slots, columns]: that of step t, counted from the first
of the sequence, in slot t % slots. A value is its steps of this call, as the rows of other
kernels are; what a convolution reads begins with the past.
"""

from __future__ import annotations

from dataclasses import dataclass

from sh2gen.graph.nodes import ParameterView
from sh2gen.plan.rings import Past, Ring
from sh2gen.plan.statements import Statement
from sh2gen.plan.values import (
    BLOCK,
    Call,
    Kind,
    Name,
    Operand,
    Pack,
    Rows,
    Scope,
    decay_rate,
    lag_last,
    pointer,
    pole_pointers,
    row_of,
)

MOST_LOADED = 16  # taps that a channel's lane holds in registers; more are read in blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSteps(Statement):
    """The steps of an input."""

    out: str

    @property
    def makes(self) -> Name:
        return Name(Kind.ROWS, self.out, BLOCK)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        where = (f"{self.out}_ptr", "row", "channel")
        strides = tuple(f"{self.out}_{axis}" for axis in ("batch", "channel", "time"))
        out = scope.hold(self.out, BLOCK)
        return (Call("read_steps", (*where, *strides, "channel_mask", "STEPS"), (out,)),)

    def __str__(self) -> str:
        return f"{self.out} = read_steps({self.out})"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSteps(Statement):
    """Write the steps of a value, rounded once to the tensor's dtype."""

    tensor: str
    x: Operand

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (self.x,)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        where = (f"{self.tensor}_ptr", "row", "channel")
        strides = tuple(f"{self.tensor}_{axis}" for axis in ("batch", "channel", "time"))
        arguments = (*where, *strides, "channel_mask", scope.take(self.x))
        return (Call("write_steps", arguments),)

    def __str__(self) -> str:
        return f"write_steps({self.tensor}, {self.x})"


@dataclass(frozen=True, slots=True, kw_only=True)
class AfterRing(Statement):
    """x after the `lag` steps before it."""

    out: str
    x: str
    ring: Ring
    lag: int

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (Operand(self.x, BLOCK),)

    @property
    def makes(self) -> Name:
        return Name(Kind.ROWS, self.out, Rows(-self.lag, 0))

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        where = (self.x, self.ring.pointer, "count", "channel", "channel_mask", str(self.lag))
        out = scope.hold(self.out, Rows(-self.lag, 0))
        return (Call("after_ring", (*where, *self.ring.sizes), (out,)),)

    def __str__(self) -> str:
        return f"{self.out} = after_ring({self.x}, {self.ring}, {self.lag})"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepSteps(Statement):
    """Write the steps of a value to its ring, once all has been read that they replace."""

    x: str
    ring: Ring

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (Operand(self.x, BLOCK),)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        where = (self.ring.pointer, "count", "channel", "channel_mask")
        return (Call("keep_steps", (self.x, *where, *self.ring.sizes)),)

    def __str__(self) -> str:
        return f"keep_steps({self.x}, {self.ring})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadAt(Statement):
    """Steps of an input from `first` on, and the `lag` before them; those before the first of the
    call from its ring.
    """

    out: str
    past: Past | None = None

    @property
    def rows(self) -> Rows:
        return Rows(-self.past.lag, 0) if self.past else BLOCK

    @property
    def makes(self) -> Name:
        return Name(Kind.ROWS, self.out, self.rows)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        where = (f"{self.out}_ptr", "row", "channel")
        strides = tuple(f"{self.out}_{axis}" for axis in ("batch", "channel", "time"))
        out, context = scope.hold(self.out, self.rows), str(-self.rows.lo)
        sizes = (*where, *strides, "channel_mask", "first", "steps", context, "STEPS")
        loaded = Call("steps_at", sizes, (out,))
        if self.past is None:
            return (loaded,)
        return loaded, Call("with_ring", (out, *ring_arguments(self.past, context)), (out,))

    def __str__(self) -> str:
        return f"{self.out} = steps_at({self.out}, {self.rows})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveSteps(Statement):
    """Write the last steps of a value, of which none was known before the first of the call but
    those of its ring, to the ring that takes the place of this.
    """

    x: str
    past: Past
    known: bool = False  # with what was before the first step

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (Operand(self.x, BLOCK),)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        ring, x = self.past.ring, scope.take(Operand(self.x, BLOCK))
        calls = []
        if not self.known:
            x, given = f"{self.x}_kept", (x, *ring_arguments(self.past, "0"))
            calls.append(Call("with_ring", given, (x,)))
        pointer_after = ring.pointer.replace("_ring", "_after", 1)
        where = (pointer_after, "count", "first", "end", "channel", "channel_mask")
        left = (x, *where, str(self.past.lag), *ring.sizes)
        return (*calls, Call("leave_steps", left))

    def __str__(self) -> str:
        return f"leave_steps({self.x}, {self.past.ring})"


def ring_arguments(past: Past, context: str) -> tuple[str, ...]:
    """What `with_ring` takes beside steps, `context` of them before step `first`."""
    where = (past.ring.pointer, "count", "first", "channel", "channel_mask", context)
    return (*where, str(past.lag), *past.ring.sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RingConv(Statement):
    """Causal convolution of x and its past with more taps than registers hold."""

    out: str
    x: str
    ring: Ring
    view: ParameterView

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (Operand(self.x, BLOCK),)

    @property
    def makes(self) -> Name:
        return Name(Kind.ROWS, self.out, BLOCK)

    @property
    def parameters(self) -> tuple[ParameterView, ...]:
        return (self.view,)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        row = row_of(self.view)
        rates = [decay_rate(self.view, r) if self.view.decay else "0" for r in ("group", row)]
        taps = (pointer(self.view), "group", rates[0], row, rates[1], str(bool(self.view.decay)))
        where = (self.x, self.ring.pointer, "count", "lead", "lane", "channel", "CHANNELS")
        sizes = ("STEPS", str(self.view.length), lag_last(self.view))
        arguments = (*where, *taps, *sizes, *self.ring.sizes, "BLOCK_D", "SHARE", "CHUNK")
        return (Call("ring_conv", arguments, (scope.hold(self.out, BLOCK),)),)

    def __str__(self) -> str:
        return f"{self.out} = ring_conv({self.x}, {self.ring}, {self.view.tensor})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoles(Statement):
    """How modes decay in a step, and their residues, of each channel."""

    out: str
    views: tuple[ParameterView, ...]

    @property
    def makes(self) -> Name:
        return Name(Kind.CONSTANT, self.out)

    @property
    def parameters(self) -> tuple[ParameterView, ...]:
        return self.views

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        first, *others = self.views
        poles: list[str | Call | Pack] = [pole_pointers(first), *map(pointer, others)]
        if len(self.views) == 4:
            poles = [*map(pointer, self.views)]
        sizes = (str(first.length), "MODES")
        where = (row_of(first), "channel_mask", *sizes)
        return (Call("modes_of_step", (*poles, *where), (self.out,)),)

    def __str__(self) -> str:
        return f"{self.out} = modes_of_step({', '.join(view.tensor for view in self.views)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModes(Statement):
    """Sums of the modes after every step of x. The state that is kept is that after the last; of
    drafts, that after what was accepted of those before, which lie in the ring.
    """

    out: str
    x: str
    modes: str
    ring: Ring
    count: int

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (Operand(self.x, BLOCK),)

    @property
    def reads(self) -> tuple[Name, ...]:
        return (Name(Kind.CONSTANT, self.modes),)

    @property
    def makes(self) -> Name:
        return Name(Kind.ROWS, self.out, BLOCK)

    def calls(self, scope: Scope) -> tuple[Call, ...]:
        past = (self.ring.pointer, "count", "replay", "channel", "channel_mask")
        sizes = (*self.ring.sizes, str(self.count), "MODES", "DRAFT")
        arguments = (self.x, self.modes, "modes_state", *past, *sizes)
        return (Call("step_modes", arguments, (scope.hold(self.out, BLOCK),)),)

    def __str__(self) -> str:
        return f"{self.out} = step_modes({self.x}, {self.modes})"
