"""causal-conv1d."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sh2gen.bench.baselines.base import (
    Baseline,
    Implementation,
    Part,
    Tensors,
    imported,
    no_gates_or_featurizer,
    part,
    short_tensors,
    silu,
    taps_problem,
)
from sh2gen.spec.operator import OpSpec


def _causal_conv1d_computes(spec: OpSpec) -> Part | str:
    return taps_problem(spec, 2, 4) or no_gates_or_featurizer(spec) or part(spec)


def _causal_conv1d(channels_last: bool) -> Callable[[OpSpec, int, torch.dtype], Implementation]:
    def prepare(spec: OpSpec, length: int, dtype: torch.dtype) -> Implementation:
        function = imported(["causal_conv1d"], "causal_conv1d_fn")

        def convert(inputs: Tensors, parameters: Tensors) -> Tensors:
            x = inputs["x"]
            if channels_last:  # the same shape (B, D, L), of other strides
                x = x.transpose(1, 2).contiguous().transpose(1, 2)
            return {"x": x} | short_tensors(spec, parameters, length)

        def call(tensors: Tensors) -> Tensor:
            y: Tensor = function(
                tensors["x"], tensors["weight"], tensors.get("bias"), activation=silu(spec)
            )
            return y

        return Implementation(convert=convert, call=call)

    return prepare


def _causal_conv1d_last_fits(spec: OpSpec, length: int) -> str | None:
    return "channels last, D must be a multiple of 8" if spec.channels % 8 else None


BASELINES: tuple[Baseline, ...] = (
    Baseline(
        name="causal_conv1d",
        does="causal_conv1d_fn of causal-conv1d",
        layout="BDL",
        computes=_causal_conv1d_computes,
        prepare=_causal_conv1d(channels_last=False),
        package="causal_conv1d",
    ),
    Baseline(
        name="causal_conv1d_last",
        does="causal_conv1d_fn of causal-conv1d, channels last",
        layout="BLD",
        computes=_causal_conv1d_computes,
        prepare=_causal_conv1d(channels_last=True),
        package="causal_conv1d",
        fits=_causal_conv1d_last_fits,
    ),
)
