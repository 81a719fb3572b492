"""Featurizer, gates and filter in one kernel, as two packages have it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sh2gen.bench.baselines.base import (
    Implementation,
    Part,
    Tensors,
    featurizer_rows,
    given_taps,
    imported,
    part,
    taps_of,
    taps_problem,
    weight_of_z,
)
from sh2gen.spec.language import Bias, TapOrder
from sh2gen.spec.operator import OpSpec


def back_to_back_computes(spec: OpSpec) -> Part | str:
    if problem := taps_problem(spec, 2, 256):
        return problem
    if spec.featurizer is None or not (spec.gates.pre and spec.gates.post):
        return "its kernel has a featurizer and both gates"
    if not 2 <= spec.featurizer.length <= 32:
        return "it takes featurizers of 2 to 32 taps"
    return "it has no ungated bias" if spec.bias is Bias.UNGATED else part(spec)


def back_to_back(*modules: str) -> Callable[[OpSpec, int, torch.dtype], Implementation]:
    """Featurizer, gates and filter in one kernel, of features channel by channel."""

    def prepare(spec: OpSpec, length: int, dtype: torch.dtype) -> Implementation:
        function = imported(modules, "b2b_causal_conv1d")

        def convert(inputs: Tensors, parameters: Tensors) -> Tensors:
            rows = featurizer_rows(spec, parameters["featurizer"], order=TapOrder.LAG_LAST)
            taps = given_taps(spec, parameters, max(length, taps_of(spec) or 0))
            weight = weight_of_z(spec, parameters)
            if weight is None:
                weight = torch.zeros_like(taps[:, 0])
            return {
                "x": torch.stack(list(inputs.values()), 2).flatten(1, 2),
                "weight_proj": torch.stack(rows, 1).flatten(0, 1).to(dtype).contiguous(),
                "weight_mixer": taps.flip(1).to(dtype).contiguous(),
                "skip_bias": weight.to(dtype),
            }

        def call(t: Tensors) -> Tensor:
            y: Tensor = function(t["x"], t["weight_proj"], t["weight_mixer"], t["skip_bias"])
            return y

        return Implementation(convert=convert, call=call)

    return prepare
