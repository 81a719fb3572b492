"""What tile programs are made of: rows of values, and calls of helpers as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sh2gen.graph.nodes import ParameterView
from sh2gen.spec.language import TapOrder


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


class Kind(StrEnum):
    """What a name of a tile program stands for."""

    ROWS = "rows"  # a value, row by row
    CONSTANT = "constant"  # taps, vectors, matrices and modes of parameters
    BLOCKS = "blocks"  # a value as matrices that products read
    STATES = "states"  # of all modes, before or after each block
    TOTALS = "totals"  # accumulators of parameter gradients


@dataclass(frozen=True, slots=True)
class Name:
    """A name, and what it stands for; of rows, which ones.

    A name is the same whatever rows it holds.
    """

    kind: Kind
    name: str
    rows: Rows | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Pack:
    """A tuple of values, as an argument."""

    items: tuple[str | Call, ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.items))}{',' * (len(self.items) == 1)})"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a helper in a kernel: `outs = helper(arguments)`."""

    helper: str
    arguments: tuple[str | Call | Pack, ...]
    outs: tuple[str, ...] = ()

    def __str__(self) -> str:
        outs = f"{', '.join(self.outs)} = " if self.outs else ""
        return f"{outs}{self.helper}({', '.join(map(str, self.arguments))})"

    @property
    def helpers(self) -> tuple[str, ...]:
        """This helper, and those that its arguments call."""
        items = [x for a in self.arguments for x in (a.items if isinstance(a, Pack) else (a,))]
        return (self.helper, *(name for x in items if isinstance(x, Call) for name in x.helpers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What a statement carries from tile to tile: how it is before the first tile.

    Attributes:
        call: makes it.
        time: at which the tile begins from which it is loaded, in the kernel's text; None if it
            is the same whenever that is.
    """

    call: Call
    time: str | None = None


@dataclass(slots=True, kw_only=True)
class Scope:
    """How a kernel's text names what statements call helpers with.

    Attributes:
        strides: of every activation, from row to row and from step to step.
        lanes: the constexpr that says how many lanes a row has beside N.
        accumulators: likewise for accumulators of rows.
        apart: whether documents lie apart in tiles.
        hints: what loads of activations take beside all others.
        state_size: numbers of a channel's state.
        inputs: of the operator, in order.
        loaded_before: values whose first tile is that of the LEAD steps before.
        held: the rows of every value so far, which statements add to.
    """

    strides: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    lanes: str = ""
    accumulators: str = ""
    apart: bool = False
    hints: tuple[str, ...] = ()
    state_size: int = 0
    inputs: tuple[str, ...] = ()
    loaded_before: frozenset[str] = frozenset()
    held: dict[str, Rows] = field(default_factory=dict)

    def take(self, operand: Operand) -> str:
        """The rows of an operand, of a tuple that may hold more."""
        have, want = self.held[operand.name], operand.rows
        if have == want:
            return operand.name
        start, stop = want.lo - have.lo, want.hi - have.lo
        rows = f"{start} : ROWS + {stop}" if stop else f"{start}:ROWS"
        return f"{operand.name}[{rows}]"

    def hold(self, name: str, rows: Rows) -> str:
        """The name of a value that holds these rows from here on."""
        self.held[name] = rows
        return name


def pointer(view: ParameterView) -> str:
    """The argument of a kernel that a parameter tensor is."""
    return f"{view.tensor}_ptr"


def pole_pointers(view: ParameterView, offset: str = "") -> Pack:
    """The arguments of a kernel of which log-poles are made."""
    return Pack(tuple(f"{name}_ptr{offset}" for name in view.sources))


def ladder(view: ParameterView) -> dict[str, str]:
    """The arguments of a kernel that computes decays of taps, and their types."""
    if view.decay is None:
        return {}
    several = {"first_group": "i32", "rungs": "i32"} if view.decay.repeats > 1 else {}
    return several | {"first_rate": "i64", "rung_step": "i64"}


def decay_rate(view: ParameterView, group: str) -> Call:
    """The rate at which taps of a group decay."""
    assert view.decay is not None
    rung = f"({group} + first_group) % rungs" if view.decay.repeats > 1 else group
    return Call("decay_rate", (rung, "first_rate", "rung_step"))


def row_of(view: ParameterView) -> str:
    """The row of a parameter tensor that belongs to channel `row`, in a kernel's text."""
    if view.grouped:
        return "channel // WIDTH"
    if view.roles == 1:
        return "channel"
    if view.interleaved:
        return f"channel * {view.roles} + {view.role}" if view.role else f"channel * {view.roles}"
    match view.role:
        case 0:
            return "channel"
        case 1:
            return "CHANNELS + channel"
        case role:
            return f"{role} * CHANNELS + channel"


def lag_last(view: ParameterView) -> str:
    """Whether the last tap of a row is that of lag 0, in a kernel's text."""
    return str(view.order is TapOrder.LAG_LAST)
