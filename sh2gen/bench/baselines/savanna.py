"""savanna."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sh2gen.bench.baselines.base import (
    Baseline,
    Implementation,
    Part,
    Tensors,
    given_taps,
    imported,
    part,
    taps_problem,
)
from sh2gen.spec.language import Bias, Skip
from sh2gen.spec.operator import OpSpec


def _savanna_computes(spec: OpSpec) -> Part | str:
    if problem := taps_problem(spec, 1, 128):
        return problem
    if not (spec.gates.pre and spec.gates.post):
        return "its kernels have both gates"
    if spec.group_width < 16:
        return f"it takes groups of 16 channels or more, and these have {spec.group_width}"
    if spec.bias is Bias.UNGATED:
        return "it has no bias"
    found = part(spec, featurizer=False)
    if spec.skip is Skip.CHANNEL or spec.bias is Bias.GATED:  # which no filter of a group holds
        bare = dataclasses.replace(found.spec, skip=Skip.NONE, bias=Bias.NONE)
        return Part(spec=bare, without=(*found.without, "skip"))
    return found


def _savanna_fits(spec: OpSpec, length: int) -> str | None:
    return "the length must be a multiple of its chunk, 128" if length % 128 else None


def _savanna(spec: OpSpec, length: int, dtype: torch.dtype) -> Implementation:
    function = imported(
        ["savanna.kernels.triton_src.cgcg.interface"], "two_pass_chunked_gate_conv_gate"
    )
    groups, width = spec.filter.groups, spec.group_width

    def convert(inputs: Tensors, parameters: Tensors) -> Tensors:
        made = {
            name: x.transpose(1, 2).reshape(x.shape[0], length, groups, width).contiguous()
            for name, x in inputs.items()
        }
        taps = given_taps(spec, parameters, max(length, 128), folded=True)[::width]
        return made | {"taps": taps.flip(1).to(dtype)[:, None].contiguous()}

    def call(t: Tensors) -> Tensor:
        batch = t["v"].shape[0]
        found = function(
            t["v"], t["k"], t["q"], t["taps"], bs=batch, seqlen=length, g=groups, dg=width
        )
        y: Tensor = found[0] if isinstance(found, tuple) else found
        return y

    return Implementation(
        convert=convert,
        call=call,
        canonical=lambda y: y.reshape(y.shape[0], length, -1).transpose(1, 2),
    )


BASELINES: tuple[Baseline, ...] = (
    Baseline(
        name="savanna",
        does="two_pass_chunked_gate_conv_gate of savanna",
        layout="BLGD",
        computes=_savanna_computes,
        prepare=_savanna,
        package="savanna",
        fits=_savanna_fits,
    ),
)
