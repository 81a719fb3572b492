"""Packed features: channel by channel, its inputs one after another."""

from collections.abc import Sequence

from torch import Tensor

from templates.parts.op import CHANNEL, INPUTS


def unpack(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inputs themselves, or their views of one tensor of packed features."""
    if len(inputs) == len(INPUTS):
        return tuple(inputs)
    (features,) = inputs
    return features.unflatten(CHANNEL, (-1, len(INPUTS))).unbind(CHANNEL + 1)
