"""Calls that decode, as servers make them: on pools of states that are larger than the caches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sh2gen.cost.decode import decoding
from sh2gen.runtime.measure import Device, Timing, copy, io_dtype, parameters, time_call
from sh2gen.runtime.operator import Operator
from sh2gen.spec.operator import OpSpec

BEYOND_CACHE = 160 * 2**20  # bytes of a pool
_MOST = 4000  # calls that take turns
_LONG_AGO = 1000  # steps that a sequence of a pool has had


def pool_of(operator: Operator, batch: int, device: Device = "cuda") -> tuple[Any, list[Tensor]]:
    """A state of many places, as if they had gone on for long, and the slots of calls of so many
    rows that take turns.
    """
    names, channels = operator.namespace, operator.spec.channels
    how = {"dtype": io_dtype(operator.spec), "device": device}
    one = names.initial_state(1, channels, **how)
    each = batch * sum(x.numel() * x.element_size() for x in one[:-1])
    calls = min(_MOST, max(2, -(-BEYOND_CACHE // each) if str(device) != "cpu" else 0))
    state = names.initial_state(calls * batch, channels, **how)
    for tensor in state[:-1]:
        if tensor.is_floating_point():
            tensor.normal_()
    state.count.fill_(_LONG_AGO)
    state.done.fill_(_LONG_AGO)
    order = torch.arange(calls * batch, dtype=torch.int32, device=device)
    return state, list(order.view(calls, batch))


def inputs_of(operator: Operator, batch: int, device: Device = "cuda") -> list[Tensor]:
    """N(0, 1) of one step, contiguous."""
    spec = operator.spec
    shape = (batch, spec.channels, 1) if operator.layout == "BDL" else (batch, 1, spec.channels)
    return [torch.randn(shape, device=device).to(io_dtype(spec)) for _ in spec.inputs]


def steps(operator: Operator, batch: int, device: Device = "cuda") -> list[Callable[[], Any]]:
    """Calls that decode one step of so many rows each, of different places of one pool."""
    state, slots = pool_of(operator, batch, device)
    inputs = inputs_of(operator, batch, device)
    weights = list(parameters(operator.spec, device).values())
    return [partial(operator.namespace.decode, inputs, weights, state, one) for one in slots]


def time_steps(calls: list[Callable[[], Any]], warmup_ms: int = 20, repeat_ms: int = 80) -> Timing:
    """Time of the GPU for each of these calls, of a CUDA graph of all."""

    def run() -> None:
        with torch.no_grad():
            for call in calls:
                call()

    whole = time_call(run, warmup_ms, repeat_ms)
    return Timing(*(us / len(calls) for us in (whole.low, whole.median, whole.high)))


def step_bound(spec: OpSpec, batch: int) -> Timing:
    """Time of a copy of as many bytes as a step must read and write."""
    return copy((batch * decoding(spec).step // 4,), torch.bfloat16)
