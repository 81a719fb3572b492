"""flash-linear-attention."""

from __future__ import annotations

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

_UNROLLED_TAPS = 32  # what fla, whose kernel is unrolled over taps, is tried with


def _fla_computes(spec: OpSpec) -> Part | str:
    return taps_problem(spec, 1, _UNROLLED_TAPS) or no_gates_or_featurizer(spec) or part(spec)


def _fla(spec: OpSpec, length: int, dtype: torch.dtype) -> Implementation:
    function = imported(
        ["fla.modules.conv", "fla.modules.convolution", "fla.modules.causal_conv1d"],
        "causal_conv1d",
    )

    def convert(inputs: Tensors, parameters: Tensors) -> Tensors:
        x = inputs["x"].transpose(1, 2).contiguous()
        return {"x": x} | short_tensors(spec, parameters, length)

    def call(tensors: Tensors) -> Tensor:
        found = function(
            x=tensors["x"],
            weight=tensors["weight"],
            bias=tensors.get("bias"),
            activation=silu(spec),
        )
        y: Tensor = found[0] if isinstance(found, tuple) else found  # beside a state
        return y

    return Implementation(convert=convert, call=call, canonical=lambda y: y.transpose(1, 2))


BASELINES: tuple[Baseline, ...] = (
    Baseline(
        name="fla",
        does="causal_conv1d of flash-linear-attention",
        layout="BLD",
        computes=_fla_computes,
        prepare=_fla,
        package="fla",
    ),
)
