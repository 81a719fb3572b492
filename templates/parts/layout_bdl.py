"""Activations (B, D, L): how they lie in memory."""

from torch import Tensor

from templates.parts.op import CHANNEL


def allocate(like: Tensor, steps: int, channels: int | None = None) -> Tensor:
    """An activation of `steps` steps, not yet written, with the batch and dtype of `like`, and its
    channels if no others are given.

    Rows are padded to a multiple of 8 elements, so that accesses stay 16 bytes wide whatever the
    length.
    """
    batch = like.shape[0]
    channels = like.shape[CHANNEL] if channels is None else channels
    row = (steps + 7) // 8 * 8
    return like.new_empty_strided((batch, channels, steps), (channels * row, row, 1))


def rows_reached(config: dict[str, int], tiles: int) -> int:
    """How many rows a program of so many tiles reads."""
    return config.get("BLOCK_D", 1)
