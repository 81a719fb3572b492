"""What decoding keeps of the past: rings, which a state of other fields goes with."""

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
