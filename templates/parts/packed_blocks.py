"""Packed features: blocks of D channels, an input each."""

from collections.abc import Sequence

from torch import Tensor

from templates.parts.op import CHANNEL, INPUTS


def unpack(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inputs themselves, or their views of one tensor of packed features."""
    if len(inputs) == len(INPUTS):
        return tuple(inputs)
    (features,) = inputs
    return features.chunk(len(INPUTS), CHANNEL)
