"""How activations are packed and laid out: shared by kernels' launchers and plain PyTorch.

LAYOUT, INPUTS, CHANNELS, TIME and CHANNEL are constants of the generated file.
"""

from collections.abc import Sequence

from torch import Tensor

INTERLEAVED = False
LAYOUT, INPUTS, CHANNELS, TIME, CHANNEL = "BDL", ("x",), 1, 2, 1


def allocate(like: Tensor, steps: int, packed: int | None = None) -> Tensor:
    """An activation of `steps` steps, not yet written, with the batch and dtype of `like`.

    It has the channels of `like`, or `packed` times CHANNELS. Channels-first rows are padded to a
    multiple of 8 elements, so that accesses stay 16 bytes wide whatever the length.
    """
    batch = like.shape[0]
    channels = like.shape[CHANNEL] if packed is None else packed * CHANNELS
    if LAYOUT == "BLD":
        return like.new_empty((batch, steps, channels))
    row = (steps + 7) // 8 * 8
    return like.new_empty_strided((batch, channels, steps), (channels * row, row, 1))


def unpack(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inputs themselves, or their views of one tensor of packed features."""
    roles = len(INPUTS)
    if len(inputs) == roles:
        return tuple(inputs)
    (features,) = inputs
    if not INTERLEAVED:
        return features.chunk(roles, CHANNEL)
    return features.unflatten(CHANNEL, (CHANNELS, roles)).unbind(CHANNEL + 1)


def given(*inputs: Tensor | None) -> list[Tensor]:
    """The inputs that are there: all, or only the first, which is then packed features."""
    return [x for x in inputs if x is not None]
