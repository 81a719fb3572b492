"""mamba-ssm."""

from __future__ import annotations

import torch
from torch import Tensor

from sh2gen.bench.baselines.base import (
    Baseline,
    Implementation,
    Part,
    Tensors,
    imported,
    log_poles_of,
    modal,
    part,
    per_channel,
    weight_of_z,
)
from sh2gen.spec.language import Activation, Bias
from sh2gen.spec.operator import OpSpec


def _mamba_computes(spec: OpSpec) -> Part | str:
    if not modal(spec):
        return "its scan is a recurrence, and this filter has taps"
    if (spec.filter.modes or 0) > 256:
        return f"it takes 256 modes at most, and this filter has {spec.filter.modes}"
    if spec.bias is Bias.UNGATED or spec.activation is not Activation.NONE:
        return "it has neither an ungated bias nor an activation"
    return part(spec, featurizer=False, gates=False)


def _mamba(spec: OpSpec, length: int, dtype: torch.dtype) -> Implementation:
    """The selective scan of Mamba with a step of one, and with input and output weights that do
    not depend on time: h[j] = sum of C exp(A j), and twice its real part for complex A.
    """
    function = imported(["mamba_ssm.ops.selective_scan_interface"], "selective_scan_fn")

    def convert(inputs: Tensors, parameters: Tensors) -> Tensors:
        poles, x = log_poles_of(parameters), inputs["x"]
        if spec.filter.pairs:
            poles = torch.complex(poles, parameters["frequencies"])
            residues = torch.complex(parameters["residues_real"], parameters["residues_imag"])
        else:
            residues = parameters["residues"]
        made = {
            "u": x,
            "delta": torch.ones_like(x),
            "A": per_channel(spec, poles).contiguous(),
            "C": per_channel(spec, residues).contiguous(),
        }
        made["B"] = torch.ones_like(made["A"])
        if (weight := weight_of_z(spec, parameters)) is not None:
            made["D"] = weight.contiguous()
        return made

    def call(t: Tensors) -> Tensor:
        y: Tensor = function(t["u"], t["delta"], t["A"], t["B"], t["C"], D=t.get("D"))
        return y

    return Implementation(convert=convert, call=call)


BASELINES: tuple[Baseline, ...] = (
    Baseline(
        name="mamba_ssm",
        does="selective_scan_fn of mamba-ssm, with weights that are constant in time",
        layout="BDL",
        computes=_mamba_computes,
        prepare=_mamba,
        package="mamba_ssm",
    ),
)
