"""Launchers of a generated file, differentiable without its library ops."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor


class Kernels(torch.autograd.Function):
    """The launchers of a generated file, differentiable: y of all inputs and parameters, after
    what kernels take of a state; and of modes, whose kernels give it, their state after that.
    """

    @staticmethod
    def forward(
        ctx: Any, namespace: ModuleType, ladder: dict[str, Any], count: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        past, rest, roles = tensors[:count], tensors[count:], len(namespace.INPUTS)
        before = {"state": past} if past else {}
        found = namespace.launch_forward(rest[:roles], rest[roles:], **before, **ladder)
        y, *saved = found
        leaving = [saved.pop().clone()] if hasattr(namespace, "stateful_op") else []
        ctx.namespace, ctx.ladder, ctx.count, ctx.saved = namespace, ladder, count, saved
        ctx.save_for_backward(*tensors)
        return (y, *leaving)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *d_leaving: Tensor) -> Any:
        tensors, roles = ctx.saved_tensors, len(ctx.namespace.INPUTS)
        past, rest = tensors[: ctx.count], tensors[ctx.count :]
        more: dict[str, Any] = {"d_leaving": d_leaving[0]} if d_leaving else {}
        more |= {"state": past} if past else {}
        found = ctx.namespace.launch_backward(
            dy, rest[:roles], rest[roles:], ctx.saved, **more, **ctx.ladder
        )
        d_past = found[len(rest) :] or [None] * ctx.count  # of taps, plain PyTorch finds it
        return None, None, None, *d_past, *found[: len(rest)]
