"""Activations (B, L, D): how they lie in memory."""

from torch import Tensor

from templates.parts.op import CHANNEL


def allocate(like: Tensor, steps: int, channels: int | None = None) -> Tensor:
    """An activation of `steps` steps, not yet written, with the batch and dtype of `like`, and its
    channels if no others are given.
    """
    channels = like.shape[CHANNEL] if channels is None else channels
    return like.new_empty((like.shape[0], steps, channels))


def rows_reached(config: dict[str, int], tiles: int) -> int:
    """How many rows a program of so many tiles reads, with the steps that it looks back and
    ahead.
    """
    return config["BLOCK_T"] * config.get("SEGMENTS", 1) * tiles + 4096
