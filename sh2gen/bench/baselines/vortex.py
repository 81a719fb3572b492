"""vortex."""

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
    short_tensors,
    taps_of,
    weight_of_z,
)
from sh2gen.spec.language import Activation, Bias
from sh2gen.spec.operator import OpSpec


def _vortex_computes(spec: OpSpec) -> Part | str:
    taps = taps_of(spec)
    both = spec.gates.pre and spec.gates.post
    if (taps is None or taps < 128) and not both:
        return "its kernels have both gates"
    if spec.activation is not Activation.NONE:
        return "it has no activation"
    if spec.bias is Bias.UNGATED and (taps is None or taps >= 128):
        return "it has an ungated bias for short filters only"
    if spec.filter.pairs:
        return "its long filters have real modes"
    return part(spec, featurizer=False, modes=False)


def _vortex(spec: OpSpec, length: int, dtype: torch.dtype) -> Implementation:
    """Its kernels for short filters, medium ones (by FFT), and long ones (by FFT)."""
    taps = taps_of(spec)
    if taps is not None and taps < 128:
        short = imported(["vortex.ops.hcs_interface"], "hcs_conv")

        def convert_short(inputs: Tensors, parameters: Tensors) -> Tensors:
            made = short_tensors(spec, parameters, length)
            return inputs | {"weight": made.pop("weight")[:, None]} | made

        def call_short(t: Tensors) -> Tensor:
            y: Tensor = short(t["k"], t["q"], t["v"], t["weight"], t.get("bias"))
            return y

        return Implementation(convert=convert_short, call=call_short)

    def convert(inputs: Tensors, parameters: Tensors) -> Tensors:
        filter_rows = given_taps(spec, parameters, length)
        weight = weight_of_z(spec, parameters)
        if weight is None:
            weight = torch.zeros_like(filter_rows[:, 0])
        return inputs | {"taps": filter_rows.contiguous(), "skip": weight}

    if taps is not None:
        medium = imported(["vortex.ops.hcm_interface"], "hcm_fft_conv")

        def call_medium(t: Tensors) -> Tensor:
            z = t["k"] * t["v"] if spec.gates.pre else t[spec.inputs[-1]]
            y: Tensor = medium(z, t["taps"][:, None], t["skip"], None, gelu=False)
            return t["q"] * y if spec.gates.post else y

        return Implementation(convert=convert, call=call_medium)

    long = imported(["vortex.ops.hcl_interface"], "hcl_fft_conv")

    def call_long(t: Tensors) -> Tensor:
        z = t["k"] * t["v"]
        y: Tensor = long(t["taps"][None], z, t["q"], t["skip"], length, 2 * length)
        return y

    return Implementation(convert=convert, call=call_long)


BASELINES: tuple[Baseline, ...] = (
    Baseline(
        name="vortex",
        does="hcs_conv, hcm_fft_conv or hcl_fft_conv of vortex, which have no backward",
        layout="BDL",
        computes=_vortex_computes,
        prepare=_vortex,
        package="vortex",
        differentiable=False,
    ),
)
