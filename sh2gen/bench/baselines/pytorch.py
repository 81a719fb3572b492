"""PyTorch: direct sums and FFTs, as they are and by torch.compile."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from sh2gen.bench.baselines.base import (
    Baseline,
    Implementation,
    Part,
    Tensors,
    featurizer_rows,
    given_taps,
    log_poles_of,
    modal,
    part,
    per_channel,
    taps_of,
    ungated_bias,
    weight_of_z,
)
from sh2gen.spec.language import Activation, TapOrder
from sh2gen.spec.operator import OpSpec

_EAGER_TAPS = 1024  # what a depthwise convolution of PyTorch, which sums directly, is tried with
_MODES = ("log_poles", "frequencies", "residues", "residues_real", "residues_imag")


def convolved(z: Tensor, taps: Tensor) -> Tensor:
    """z (B, D, L) by FFT with taps (D, K), lag 0 first, K <= L, as long filters are computed
    elsewhere: float32, of twice the length. The result is float32.
    """
    size = 2 * z.shape[2]
    spectrum = torch.fft.rfft(taps, size)
    full: Tensor = torch.fft.irfft(torch.fft.rfft(z.float(), size) * spectrum, size)
    return full[..., : z.shape[2]]


def synthesised(modes: Mapping[str, Tensor], length: int) -> Tensor:
    """The filter of so many taps (G, L), mode by mode, as all at once would not fit.

    Args:
        modes: `log_poles` and `residues` (G, N); or of pairs `log_poles`, `frequencies`,
            `residues_real` and `residues_imag`.
    """
    poles = modes["log_poles"]
    step = torch.arange(length, device=poles.device)
    taps = torch.zeros(len(poles), length, device=poles.device)
    for n in range(poles.shape[1]):
        decay = torch.exp(poles[:, n, None] * step)
        if "frequencies" in modes:
            angle = modes["frequencies"][:, n, None] * step
            real, imag = modes["residues_real"], modes["residues_imag"]
            wave = real[:, n, None] * torch.cos(angle) - imag[:, n, None] * torch.sin(angle)
            taps += 2 * decay * wave
        else:
            taps += modes["residues"][:, n, None] * decay
    return taps


def depthwise(x: Tensor, taps: Tensor) -> Tensor:
    """x (B, D, L) by a causal depthwise convolution with taps (D, K), the last for lag 0."""
    padded = functional.pad(x, (taps.shape[1] - 1, 0))
    return functional.conv1d(padded, taps[:, None], groups=len(taps))


def in_pytorch(
    spec: OpSpec, tensors: Tensors, convolve: Callable[[Tensor, Tensors], Tensor]
) -> Tensor:
    """The operator as one would write it in PyTorch, around a convolution.

    Args:
        tensors: inputs (B, D, L) in the io dtype, `featurizer_q` and the like (D, F) in the io
            dtype with the last tap for lag 0, `skip` and `bias` (D, 1), and what `convolve` takes.
        convolve: z (B, D, L) and the tensors -> the convolution.
    """
    acts = {name: tensors[name] for name in spec.inputs}
    if spec.featurizer is not None:
        acts = {name: depthwise(x, tensors[f"featurizer_{name}"]) for name, x in acts.items()}
    z = acts["k"] * acts["v"] if spec.gates.pre else acts[spec.inputs[-1]]
    pre = convolve(z, tensors)
    if "skip" in tensors:
        pre = pre + tensors["skip"] * z
    if "bias" in tensors:
        pre = pre + tensors["bias"]
    if spec.gates.post:
        pre = acts["q"] * pre
    if spec.activation is Activation.SILU:
        pre = functional.silu(pre)
    return pre.to(z.dtype)


def pytorch_tensors(
    spec: OpSpec, inputs: Tensors, parameters: Tensors, dtype: torch.dtype
) -> Tensors:
    """What `in_pytorch` takes but for the filter; skip and bias in `dtype`."""
    made = dict(inputs)
    if spec.featurizer is not None:
        io = inputs[spec.inputs[0]].dtype
        rows = featurizer_rows(spec, parameters["featurizer"], order=TapOrder.LAG_LAST)
        for name, taps in zip(spec.inputs, rows, strict=True):
            made[f"featurizer_{name}"] = taps.to(io).contiguous()
    for name, values in (
        ("skip", weight_of_z(spec, parameters)),
        ("bias", ungated_bias(spec, parameters)),
    ):
        if values is not None:
            made[name] = values[:, None].to(dtype)
    return made


def _eager_computes(spec: OpSpec) -> Part | str:
    taps = taps_of(spec)
    if taps is None:
        return "a filter as long as the sequence is not summed directly: see fft"
    if taps > _EAGER_TAPS:
        return f"{taps} taps, more than {_EAGER_TAPS}, are not summed directly: see fft"
    return part(spec)


def _eager(spec: OpSpec, length: int, dtype: torch.dtype) -> Implementation:
    def convert(inputs: Tensors, parameters: Tensors) -> Tensors:
        made = pytorch_tensors(spec, inputs, parameters, dtype)
        made["taps"] = given_taps(spec, parameters, length).flip(1).to(dtype).contiguous()
        return made

    def call(tensors: Tensors) -> Tensor:
        return in_pytorch(spec, tensors, lambda z, t: depthwise(z, t["taps"]))

    return Implementation(convert=convert, call=call)


def _fft(spec: OpSpec, length: int, dtype: torch.dtype) -> Implementation:
    """With the filter made from its modes in the call, if it has any."""
    if not modal(spec):
        return _fft_given(spec, length, dtype)

    def convert(inputs: Tensors, parameters: Tensors) -> Tensors:
        made = pytorch_tensors(spec, inputs, parameters, torch.float32)
        known = parameters | {"log_poles": log_poles_of(parameters)}
        return made | {name: known[name] for name in _MODES if name in known}

    def convolve(z: Tensor, tensors: Tensors) -> Tensor:
        return convolved(z, per_channel(spec, synthesised(tensors, length)))

    return Implementation(convert=convert, call=lambda t: in_pytorch(spec, t, convolve))


def _fft_given(spec: OpSpec, length: int, dtype: torch.dtype) -> Implementation:
    def convert(inputs: Tensors, parameters: Tensors) -> Tensors:
        made = pytorch_tensors(spec, inputs, parameters, torch.float32)
        made["taps"] = given_taps(spec, parameters, length).contiguous()
        return made

    def call(tensors: Tensors) -> Tensor:
        return in_pytorch(spec, tensors, lambda z, t: convolved(z, t["taps"]))

    return Implementation(convert=convert, call=call)


def _fft_given_computes(spec: OpSpec) -> Part | str:
    if not modal(spec):
        return "its taps are given in any case: see fft"
    return part(spec, modes=False)


def _compiled(spec: OpSpec, length: int, dtype: torch.dtype) -> Implementation:
    direct = isinstance(_eager_computes(spec), Part)
    plain = (_eager if direct else _fft)(spec, length, dtype)
    # A process that may be killed compiles by itself, and a backward that is timed runs again on
    # what forward has saved. Every length is compiled anew; after some, PyTorch would go on with
    # the plain function and only warn.
    for name, option, value in (
        ("torch._inductor.config", "compile_threads", 1),
        ("torch._functorch.config", "donated_buffer", False),
        ("torch._dynamo.config", "recompile_limit", 1 << 16),
        ("torch._dynamo.config", "accumulated_recompile_limit", 1 << 16),
        ("torch._dynamo.config", "fail_on_recompile_limit_hit", True),
    ):
        config = importlib.import_module(name)
        if hasattr(config, option):
            setattr(config, option, value)
    return dataclasses.replace(plain, call=torch.compile(plain.call, dynamic=False))


BASELINES: tuple[Baseline, ...] = (
    Baseline(
        name="eager",
        does="PyTorch with conv1d, in the io dtype",
        layout="BDL",
        computes=_eager_computes,
        prepare=_eager,
    ),
    Baseline(
        name="compile",
        does="eager, or fft where taps are too many, by torch.compile",
        layout="BDL",
        computes=part,
        prepare=_compiled,
    ),
    Baseline(
        name="fft",
        does="PyTorch with float32 FFTs of twice the length",
        layout="BDL",
        computes=part,
        prepare=_fft,
    ),
    Baseline(
        name="fft_given",
        does="fft, with the taps of a modal filter given",
        layout="BDL",
        computes=_fft_given_computes,
        prepare=_fft_given,
    ),
)
