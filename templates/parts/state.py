"""The history that calls with a state take and give: the last steps of all inputs.

Capitalised names are constants of the generated file; HISTORY is how many steps a call needs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from templates.parts.check import check_dense
from templates.parts.op import CHANNEL, INPUTS, OP, TIME

HISTORY = 0


class STATE(NamedTuple):
    history: Tensor


def state_fields(x: Tensor) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    raise NotImplementedError


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


def zero_state_like(x: Tensor):
    """The state of a sequence that has not begun, for inputs like x."""
    fields = state_fields(x).values()
    return STATE(*(x.new_zeros(shape, dtype=dtype) for shape, dtype in fields))


def state_like(state: Sequence[Tensor], x: Tensor):
    """The state in the dtypes of inputs like x; refuses one that does not belong to these."""
    names = ", ".join(STATE._fields)
    if not isinstance(state, (tuple, list)):
        raise TypeError(
            f"{OP}: state is a {type(state).__name__}, expected a {STATE.__name__} of {names}"
        )
    if len(state) != len(STATE._fields):
        raise TypeError(f"{OP}: state has {len(state)} tensors, expected {names}")
    accepted = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    fields = state_fields(x)
    for (name, (wanted, _)), tensor in zip(fields.items(), state, strict=True):
        check_dense(f"state.{name}", tensor)
        if tuple(tensor.shape) != wanted:
            raise ValueError(
                f"{OP}: state.{name} has shape {tuple(tensor.shape)}, expected {wanted}"
            )
        if tensor.dtype not in accepted:
            raise TypeError(
                f"{OP}: state.{name} is {tensor.dtype}, "
                "expected float32, bfloat16, float16 or float64"
            )
        if tensor.device != x.device:
            raise ValueError(
                f"{OP}: state.{name} is on {tensor.device}, but {INPUTS[0]} is on {x.device}"
            )
    dtypes = (dtype for _, dtype in fields.values())
    return STATE(*(tensor.to(dtype) for tensor, dtype in zip(state, dtypes, strict=True)))
