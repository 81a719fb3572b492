"""Other ways of computing an operator, which `bench` times beside its kernels.

A contender says of a spec what part of it it computes (all of it, or which steps it leaves out),
or why it computes none. Prepared for a length, it turns inputs and parameters into the tensors
that it wants, in its own layout and dtypes; that is not part of its time. Both steps are
differentiable, so that every gradient of a contender can be compared with float64.

Packages are called as their documentation says, and none of them is imported before it is asked
for. Notation: B batch, L length, D channels, G filter groups, K taps, F taps of the featurizer.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sh2gen.base.errors import Sh2genError
from sh2gen.graph.reference import filter_taps
from sh2gen.spec.language import Activation, Bias, FilterKind, GateSpec, Projection, Skip, TapOrder
from sh2gen.spec.operator import OpSpec

Tensors = dict[str, Tensor]

_EAGER_TAPS = 1024  # what a depthwise convolution of PyTorch, which sums directly, is tried with
_UNROLLED_TAPS = 32  # what fla, whose kernel is unrolled over taps, is tried with


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a contender computes: an operator, and the steps of the whole that it leaves out."""

    spec: OpSpec
    without: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        return not self.without


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """A contender for one operator, length and dtype.

    Attributes:
        convert: inputs (B, D, L) in the io dtype and float32 parameters, by their names in the
            spec -> the tensors that `call` takes. Differentiable, and not timed.
        call: those tensors -> y, in the contender's layout.
        canonical: y -> a view of it as (B, D, L).
    """

    convert: Callable[[Tensors, Tensors], Tensors]
    call: Callable[[Tensors], Tensor]
    canonical: Callable[[Tensor], Tensor] = lambda y: y


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way of computing operators.

    Attributes:
        name: as `--peers` takes it.
        does: what it is, in a few words.
        layout: of activations, as it wants them.
        computes: which part of an operator it computes, or why none.
        prepare: for the operator of that part, a length and the io dtype. Whatever it raises is
            why the contender cannot run; ImportError: it is not there.
        package: what must be installed, if anything.
        fits: why it does not take a length, or None.
        differentiable: whether it has a backward.
    """

    name: str
    does: str
    layout: str
    computes: Callable[[OpSpec], Part | str]
    prepare: Callable[[OpSpec, int, torch.dtype], Implementation]
    package: str | None = None
    fits: Callable[[OpSpec, int], str | None] = lambda spec, length: None
    differentiable: bool = True


# ---- parts of operators -------------------------------------------------------------------------


def part(spec: OpSpec, *, featurizer: bool = True, gates: bool = True, modes: bool = True) -> Part:
    """The operator without its state, which no contender gives, and without what is False.

    Args:
        modes: False takes the taps of a modal filter as given.
    """
    without = []
    if spec.featurizer is not None and not featurizer:
        spec = dataclasses.replace(spec, featurizer=None)
        without.append("featurizer")
    if (spec.gates.pre or spec.gates.post) and not gates:
        spec = dataclasses.replace(spec, gates=GateSpec())
        without.append("gates")
    if _modal(spec) and not modes:
        without.append("making the filter from its modes")
    if spec.state is not None:
        spec = dataclasses.replace(spec, state=None)
        without.append("state")
    return Part(spec=spec, without=tuple(without))


def taps_of(spec: OpSpec) -> int | None:
    """K, or None for a modal filter, which is as long as the sequence."""
    return spec.filter.length


def _modal(spec: OpSpec) -> bool:
    return spec.filter.kind is FilterKind.MODAL


def given_taps(
    spec: OpSpec, parameters: Mapping[str, Tensor], length: int, *, folded: bool = False
) -> Tensor:
    """The filter of every channel (D, min(K, L)), lag 0 first, in float32.

    Args:
        folded: a weight of z is added to the tap of lag 0, which is the same operator.
    """
    taps = _per_channel(spec, filter_taps(spec, parameters, length))
    weight = _weight_of_z(spec, parameters)
    if folded and weight is not None:
        taps = torch.cat((taps[:, :1] + weight[:, None], taps[:, 1:]), 1)
    return taps


def _per_channel(spec: OpSpec, rows: Tensor) -> Tensor:
    """A row for every channel, of rows that D / R consecutive channels share."""
    width = spec.channels // len(rows)
    return rows if width == 1 else rows.repeat_interleave(width, 0)


def _weight_of_z(spec: OpSpec, parameters: Mapping[str, Tensor]) -> Tensor | None:
    """The factor (D,) of z that is added to the convolution, by whatever name."""
    if spec.skip is not Skip.NONE:
        return _per_channel(spec, parameters["skip"])
    return parameters["bias"] if spec.bias is Bias.GATED else None


def _ungated_bias(spec: OpSpec, parameters: Mapping[str, Tensor]) -> Tensor | None:
    return parameters["bias"] if spec.bias is Bias.UNGATED else None


def featurizer_rows(spec: OpSpec, weight: Tensor, *, order: TapOrder) -> list[Tensor]:
    """The featurizer of each input, (D, F), with its taps in this order."""
    assert spec.featurizer is not None
    n = len(spec.inputs)
    if spec.layout.projection is Projection.THIRDS:
        rows = list(weight.chunk(n))
    else:
        rows = [weight[i::n] for i in range(n)]
    return rows if order is spec.featurizer.taps else [r.flip(1) for r in rows]


def log_poles_of(parameters: Mapping[str, Tensor]) -> Tensor:
    """The log-poles (G, N) of a modal filter, however they are stored."""
    if "log_poles" in parameters:
        return parameters["log_poles"]
    return -torch.exp(parameters["p"]) * torch.exp(parameters["gamma"])


_MODES = ("log_poles", "frequencies", "residues", "residues_real", "residues_imag")


# ---- plain PyTorch ------------------------------------------------------------------------------


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
        ("skip", _weight_of_z(spec, parameters)),
        ("bias", _ungated_bias(spec, parameters)),
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
    if not _modal(spec):
        return _fft_given(spec, length, dtype)

    def convert(inputs: Tensors, parameters: Tensors) -> Tensors:
        made = pytorch_tensors(spec, inputs, parameters, torch.float32)
        known = parameters | {"log_poles": log_poles_of(parameters)}
        return made | {name: known[name] for name in _MODES if name in known}

    def convolve(z: Tensor, tensors: Tensors) -> Tensor:
        return convolved(z, _per_channel(spec, synthesised(tensors, length)))

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
    if not _modal(spec):
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


# ---- packages -----------------------------------------------------------------------------------


def _imported(names: Sequence[str], attribute: str) -> Any:
    """An attribute of the first of these modules that has it: packages move their functions."""
    problems = []
    for name in names:
        try:
            return getattr(importlib.import_module(name), attribute)
        except (ImportError, AttributeError) as error:
            problems.append(str(error))
    raise ImportError("; ".join(dict.fromkeys(problems)))


def _no_gates_or_featurizer(spec: OpSpec) -> str | None:
    if spec.gates.pre or spec.gates.post:
        return "it has no gates"
    return "it has no featurizer" if spec.featurizer is not None else None


def _taps_problem(spec: OpSpec, least: int, most: int) -> str | None:
    taps = taps_of(spec)
    if taps is None:
        return "it convolves with taps, and this filter is made of modes"
    if not least <= taps <= most:
        return f"it takes {least} to {most} taps, and this filter has {taps}"
    return None


def _causal_conv1d_computes(spec: OpSpec) -> Part | str:
    return _taps_problem(spec, 2, 4) or _no_gates_or_featurizer(spec) or part(spec)


def _short_tensors(spec: OpSpec, parameters: Tensors, length: int) -> Tensors:
    """`weight` (D, K), its last tap for lag 0, and `bias` (D,) if there is one."""
    taps = given_taps(spec, parameters, max(length, taps_of(spec) or 0), folded=True)
    made = {"weight": taps.flip(1).contiguous()}
    if (bias := _ungated_bias(spec, parameters)) is not None:
        made["bias"] = bias
    return made


def _silu(spec: OpSpec) -> str | None:
    return "silu" if spec.activation is Activation.SILU else None


def _causal_conv1d(channels_last: bool) -> Callable[[OpSpec, int, torch.dtype], Implementation]:
    def prepare(spec: OpSpec, length: int, dtype: torch.dtype) -> Implementation:
        function = _imported(["causal_conv1d"], "causal_conv1d_fn")

        def convert(inputs: Tensors, parameters: Tensors) -> Tensors:
            x = inputs["x"]
            if channels_last:  # the same shape (B, D, L), of other strides
                x = x.transpose(1, 2).contiguous().transpose(1, 2)
            return {"x": x} | _short_tensors(spec, parameters, length)

        def call(tensors: Tensors) -> Tensor:
            y: Tensor = function(
                tensors["x"], tensors["weight"], tensors.get("bias"), activation=_silu(spec)
            )
            return y

        return Implementation(convert=convert, call=call)

    return prepare


def _causal_conv1d_last_fits(spec: OpSpec, length: int) -> str | None:
    return "channels last, D must be a multiple of 8" if spec.channels % 8 else None


def _fla_computes(spec: OpSpec) -> Part | str:
    return _taps_problem(spec, 1, _UNROLLED_TAPS) or _no_gates_or_featurizer(spec) or part(spec)


def _fla(spec: OpSpec, length: int, dtype: torch.dtype) -> Implementation:
    function = _imported(
        ["fla.modules.conv", "fla.modules.convolution", "fla.modules.causal_conv1d"],
        "causal_conv1d",
    )

    def convert(inputs: Tensors, parameters: Tensors) -> Tensors:
        x = inputs["x"].transpose(1, 2).contiguous()
        return {"x": x} | _short_tensors(spec, parameters, length)

    def call(tensors: Tensors) -> Tensor:
        found = function(
            x=tensors["x"],
            weight=tensors["weight"],
            bias=tensors.get("bias"),
            activation=_silu(spec),
        )
        y: Tensor = found[0] if isinstance(found, tuple) else found  # beside a state
        return y

    return Implementation(convert=convert, call=call, canonical=lambda y: y.transpose(1, 2))


def _mamba_computes(spec: OpSpec) -> Part | str:
    if not _modal(spec):
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
    function = _imported(["mamba_ssm.ops.selective_scan_interface"], "selective_scan_fn")

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
            "A": _per_channel(spec, poles).contiguous(),
            "C": _per_channel(spec, residues).contiguous(),
        }
        made["B"] = torch.ones_like(made["A"])
        if (weight := _weight_of_z(spec, parameters)) is not None:
            made["D"] = weight.contiguous()
        return made

    def call(t: Tensors) -> Tensor:
        y: Tensor = function(t["u"], t["delta"], t["A"], t["B"], t["C"], D=t.get("D"))
        return y

    return Implementation(convert=convert, call=call)


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
    module = _imported(["flashfftconv"], "FlashFFTConv")(_flashfftconv_size(length), dtype=dtype)

    def convert(inputs: Tensors, parameters: Tensors) -> Tensors:
        taps = given_taps(spec, parameters, length, folded=True).contiguous()
        module.to(taps.device)
        return inputs | {"taps": taps}

    def call(t: Tensors) -> Tensor:
        gates = (t["k"], t["q"]) if spec.gates.pre else ()
        y: Tensor = module(t[spec.inputs[-1]], t["taps"], *gates)
        return y

    return Implementation(convert=convert, call=call)


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
        short = _imported(["vortex.ops.hcs_interface"], "hcs_conv")

        def convert_short(inputs: Tensors, parameters: Tensors) -> Tensors:
            made = _short_tensors(spec, parameters, length)
            return inputs | {"weight": made.pop("weight")[:, None]} | made

        def call_short(t: Tensors) -> Tensor:
            y: Tensor = short(t["k"], t["q"], t["v"], t["weight"], t.get("bias"))
            return y

        return Implementation(convert=convert_short, call=call_short)

    def convert(inputs: Tensors, parameters: Tensors) -> Tensors:
        filter_rows = given_taps(spec, parameters, length)
        weight = _weight_of_z(spec, parameters)
        if weight is None:
            weight = torch.zeros_like(filter_rows[:, 0])
        return inputs | {"taps": filter_rows.contiguous(), "skip": weight}

    if taps is not None:
        medium = _imported(["vortex.ops.hcm_interface"], "hcm_fft_conv")

        def call_medium(t: Tensors) -> Tensor:
            z = t["k"] * t["v"] if spec.gates.pre else t[spec.inputs[-1]]
            y: Tensor = medium(z, t["taps"][:, None], t["skip"], None, gelu=False)
            return t["q"] * y if spec.gates.post else y

        return Implementation(convert=convert, call=call_medium)

    long = _imported(["vortex.ops.hcl_interface"], "hcl_fft_conv")

    def call_long(t: Tensors) -> Tensor:
        z = t["k"] * t["v"]
        y: Tensor = long(t["taps"][None], z, t["q"], t["skip"], length, 2 * length)
        return y

    return Implementation(convert=convert, call=call_long)


def _savanna_computes(spec: OpSpec) -> Part | str:
    if problem := _taps_problem(spec, 1, 128):
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
    function = _imported(
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


def _back_to_back_computes(spec: OpSpec) -> Part | str:
    if problem := _taps_problem(spec, 2, 256):
        return problem
    if spec.featurizer is None or not (spec.gates.pre and spec.gates.post):
        return "its kernel has a featurizer and both gates"
    if not 2 <= spec.featurizer.length <= 32:
        return "it takes featurizers of 2 to 32 taps"
    return "it has no ungated bias" if spec.bias is Bias.UNGATED else part(spec)


def _back_to_back(*modules: str) -> Callable[[OpSpec, int, torch.dtype], Implementation]:
    """Featurizer, gates and filter in one kernel, of features channel by channel."""

    def prepare(spec: OpSpec, length: int, dtype: torch.dtype) -> Implementation:
        function = _imported(modules, "b2b_causal_conv1d")

        def convert(inputs: Tensors, parameters: Tensors) -> Tensors:
            rows = featurizer_rows(spec, parameters["featurizer"], order=TapOrder.LAG_LAST)
            taps = given_taps(spec, parameters, max(length, taps_of(spec) or 0))
            weight = _weight_of_z(spec, parameters)
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


CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender(
            name="eager",
            does="PyTorch with conv1d, in the io dtype",
            layout="BDL",
            computes=_eager_computes,
            prepare=_eager,
        ),
        Contender(
            name="compile",
            does="eager, or fft where taps are too many, by torch.compile",
            layout="BDL",
            computes=part,
            prepare=_compiled,
        ),
        Contender(
            name="fft",
            does="PyTorch with float32 FFTs of twice the length",
            layout="BDL",
            computes=part,
            prepare=_fft,
        ),
        Contender(
            name="fft_given",
            does="fft, with the taps of a modal filter given",
            layout="BDL",
            computes=_fft_given_computes,
            prepare=_fft_given,
        ),
        Contender(
            name="causal_conv1d",
            does="causal_conv1d_fn of causal-conv1d",
            layout="BDL",
            computes=_causal_conv1d_computes,
            prepare=_causal_conv1d(channels_last=False),
            package="causal_conv1d",
        ),
        Contender(
            name="causal_conv1d_last",
            does="causal_conv1d_fn of causal-conv1d, channels last",
            layout="BLD",
            computes=_causal_conv1d_computes,
            prepare=_causal_conv1d(channels_last=True),
            package="causal_conv1d",
            fits=_causal_conv1d_last_fits,
        ),
        Contender(
            name="fla",
            does="causal_conv1d of flash-linear-attention",
            layout="BLD",
            computes=_fla_computes,
            prepare=_fla,
            package="fla",
        ),
        Contender(
            name="mamba_ssm",
            does="selective_scan_fn of mamba-ssm, with weights that are constant in time",
            layout="BDL",
            computes=_mamba_computes,
            prepare=_mamba,
            package="mamba_ssm",
        ),
        Contender(
            name="flashfftconv",
            does="FlashFFTConv",
            layout="BDL",
            computes=_flashfftconv_computes,
            prepare=_flashfftconv,
            package="flashfftconv",
            fits=_flashfftconv_fits,
        ),
        Contender(
            name="vortex",
            does="hcs_conv, hcm_fft_conv or hcl_fft_conv of vortex, which have no backward",
            layout="BDL",
            computes=_vortex_computes,
            prepare=_vortex,
            package="vortex",
            differentiable=False,
        ),
        Contender(
            name="savanna",
            does="two_pass_chunked_gate_conv_gate of savanna",
            layout="BLGD",
            computes=_savanna_computes,
            prepare=_savanna,
            package="savanna",
            fits=_savanna_fits,
        ),
        Contender(
            name="cudnn",
            does="b2b_causal_conv1d of cuDNN's frontend",
            layout="BDL, interleaved",
            computes=_back_to_back_computes,
            prepare=_back_to_back("cudnn.ops", "cudnn"),
            package="cudnn",
        ),
        Contender(
            name="subquadratic_ops",
            does="b2b_causal_conv1d of subquadratic-ops",
            layout="BDL, interleaved",
            computes=_back_to_back_computes,
            prepare=_back_to_back("subquadratic_ops_torch.b2b_causal_conv1d"),
            package="subquadratic_ops_torch",
        ),
    )
}


def chosen(peers: str | None) -> tuple[Contender, ...]:
    """The contenders of a list of names, all by default; a package stands for all of its own.

    Raises:
        Sh2genError: C006, a name that none has.
    """
    if peers is None:
        return tuple(CONTENDERS.values())
    found: list[Contender] = []
    for name in filter(None, (word.strip() for word in peers.split(","))):
        known = [c for c in CONTENDERS.values() if name in (c.name, c.package)]
        if not known:
            raise Sh2genError(
                "C006", f"unknown peer `{name}`", help=f"one of {', '.join(CONTENDERS)}"
            )
        found += [c for c in known if c not in found]
    return tuple(found)
