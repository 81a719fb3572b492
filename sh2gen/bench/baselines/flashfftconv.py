"""FlashFFTConv."""

from __future__ import annotations

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
)
from sh2gen.spec.language import Activation, Bias
from sh2gen.spec.operator import OpSpec


def _flashfftconv_computes(spec: OpSpec) -> Part | str:
    if spec.gates.pre != spec.gates.post:
        return "it takes both gates or none"
    if spec.bias is Bias.UNGATED or spec.activation is not Activation.NONE:
        return "it has neither an ungated bias nor an activation"
    return part(spec, featurizer=False, modes=False)


def _flashfftconv_size(length: int) -> int:
    """Of the FFT: a power of two of at least twice the length."""
    return max(256, 1 << (2 * length - 1).bit_length())


def _flashfftconv_fits(spec: OpSpec, length: int) -> str | None:
    size = _flashfftconv_size(length)
    if size > 4194304:
        return "its longest FFT has 4194304 points, twice the length"
    if length % (4 if size in (512, 2048) else 2):
        return "the length must be even, and a multiple of 4 for FFTs of 512 and 2048 points"
    if size > 32768 and spec.channels % 16:
        return "more than 32768 points need D % 16 == 0"
    return None


def _flashfftconv(spec: OpSpec, length: int, dtype: torch.dtype) -> Implementation:
    if dtype == torch.float32:
        raise ValueError("it takes bfloat16 and float16")
    module = imported(["flashfftconv"], "FlashFFTConv")(_flashfftconv_size(length), dtype=dtype)

    def convert(inputs: Tensors, parameters: Tensors) -> Tensors:
        taps = given_taps(spec, parameters, length, folded=True).contiguous()
        module.to(taps.device)
        return inputs | {"taps": taps}

    def call(t: Tensors) -> Tensor:
        gates = (t["k"], t["q"]) if spec.gates.pre else ()
        y: Tensor = module(t[spec.inputs[-1]], t["taps"], *gates)
        return y

    return Implementation(convert=convert, call=call)


BASELINES: tuple[Baseline, ...] = (
    Baseline(
        name="flashfftconv",
        does="FlashFFTConv",
        layout="BDL",
        computes=_flashfftconv_computes,
        prepare=_flashfftconv,
        package="flashfftconv",
        fits=_flashfftconv_fits,
    ),
)
