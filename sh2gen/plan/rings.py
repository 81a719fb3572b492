"""What is kept of the past of a sequence: rings, which a state of other fields goes with."""

from __future__ import annotations

from dataclasses import dataclass

from sh2gen.spec.language import FilterKind
from sh2gen.spec.operator import OpSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RingField:
    """A ring of a state that is decoded from: [places, slots, roles * channels].

    Attributes:
        lag: steps that a call reads of it.
        roles: values side by side.
        io: whether it has the dtype that the state was asked for; float32 or wider otherwise.
        meaning: in words.
    """

    name: str
    lag: int
    roles: int = 1
    io: bool = True
    meaning: str

    def columns(self, channels: str) -> str:
        """Of a slot, in the text of a file that calls its channels so."""
        return f"{self.roles} * {channels}" if self.roles > 1 else channels


@dataclass(frozen=True, slots=True)
class Ring:
    """Where the past of a value lies.

    Attributes:
        field: of the state.
        role, roles: which of so many blocks of channels of a slot.
    """

    field: str
    role: int = 0
    roles: int = 1

    @property
    def pointer(self) -> str:
        """To the channels of a row's slot 0."""
        begin = {0: "", 1: " + CHANNELS"}.get(self.role, f" + {self.role} * CHANNELS")
        return f"{self.field}_ring{begin}"

    @property
    def sizes(self) -> tuple[str, str]:
        """Slots, and columns of a slot."""
        columns = "CHANNELS" if self.roles == 1 else f"{self.roles} * CHANNELS"
        return f"{self.field.upper()}_SLOTS", columns

    def __str__(self) -> str:
        return self.field + (f"[{self.role}]" if self.roles > 1 else "")


@dataclass(frozen=True, slots=True)
class Past:
    """The `lag` steps before the first one of a call, which a ring has."""

    ring: Ring
    lag: int

    def arguments(self, tile: str, first: str, before: str, rows: str = "ROWS") -> tuple[str, ...]:
        """What `with_past` takes beside rows, which are those from step `first` of a tile on; of
        these the first `before` may be past.
        """
        where = (self.ring.pointer, "count", tile, first, before, rows, "N", str(self.lag))
        return (*where, *self.ring.sizes)


def rings(spec: OpSpec) -> tuple[RingField, ...]:
    """The pasts that decoding keeps: of the inputs, and of z. Of a modal filter the modes stand
    for the past of z; its ring keeps drafts alone.
    """
    found = []
    names = ", ".join(spec.inputs)
    if spec.lag:
        found.append(
            RingField(
                name="tails",
                lag=spec.lag,
                roles=len(spec.inputs),
                meaning=f"the last inputs, blocks of D channels, {names} in this order",
            )
        )
    if spec.filter.kind is FilterKind.MODAL:
        found.append(RingField(name="z", lag=0, io=False, meaning="the last drafts of z"))
    elif (lag := (spec.filter.length or 1) - 1) > 0:
        found.append(RingField(name="z", lag=lag, meaning="the last values that the filter reads"))
    return tuple(found)
