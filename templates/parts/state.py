"""The history that calls with a state take and give: the last steps of all inputs.

Capitalised names are constants of the generated file; HISTORY is how many steps a call needs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from templates.parts.op import CHANNEL, INPUTS, TIME

HISTORY = 0


def zero_history(x: Tensor, steps: int) -> Tensor:
    """The history of a sequence that has not begun, for inputs like x."""
    shape = list(x.shape)
    shape[CHANNEL], shape[TIME] = len(INPUTS) * shape[CHANNEL], steps
    return x.new_zeros(shape)


def last_steps(inputs: Sequence[Tensor], history: Tensor) -> Tensor:
    """The history after these inputs, of that before them."""
    length = inputs[0].shape[TIME]
    pasts = history.chunk(len(inputs), CHANNEL)
    if length < HISTORY:
        kept = [torch.cat([past, x], TIME) for past, x in zip(pasts, inputs, strict=True)]
    else:
        kept = list(inputs)
    return torch.cat([x.narrow(TIME, x.shape[TIME] - HISTORY, HISTORY) for x in kept], CHANNEL)


def join_history(inputs: Sequence[Tensor], history: Tensor) -> tuple[list[Tensor], int]:
    """The inputs after their history, and how many steps were put in front: zeros fill up to a
    multiple of 8, which keeps accesses 16 bytes wide.
    """
    steps = -(-HISTORY // 8) * 8
    joined = []
    for past, x in zip(history.chunk(len(inputs), CHANNEL), inputs, strict=True):
        zeros = zero_history(past, steps - HISTORY).narrow(CHANNEL, 0, x.shape[CHANNEL])
        joined.append(torch.cat([zeros, past, x], TIME))
    return joined, steps
