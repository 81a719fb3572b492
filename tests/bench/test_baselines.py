"""Baselines compute the operators that they say they compute: on a CPU, packages by fakes.

A fake is what a package documents, in plain PyTorch: it shows that taps, gates, weights and
layouts are handed over in the right order, and nothing about the package itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sh2gen.base.errors import Sh2genError
from sh2gen.bench.baselines import BASELINES, chosen
from sh2gen.bench.baselines.base import Part, part
from sh2gen.bench.baselines.pytorch import synthesised
from sh2gen.bench.worker import answer
from sh2gen.graph.reference import filter_taps
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec

FLOAT32 = {"dtype": {"io": "float32"}}
GATES = {"gates": {"pre": True, "post": True}}
FEATURIZER = {"featurizer": {"length": 3, "taps": "lag_last"}}


def taps(length: int, groups: int = 2, **more: Any) -> dict[str, Any]:
    return {"filter": {"kind": "explicit", "length": length, "groups": groups, **more}}


def modes(parametrisation: str, groups: int = 32) -> dict[str, Any]:
    inner = {"kind": "modal", "modes": 3, "groups": groups, "parametrisation": parametrisation}
    return {"filter": inner}


DECAY = taps(12) | {
    "filter": {
        "kind": "decay",
        "length": 12,
        "groups": 2,
        "decay": {"preset": "weak", "cache_length": 64},
    }
}
BIASED = {"bias": "ungated", "activation": "silu"}
OPERATORS: dict[str, dict[str, Any]] = {
    "se": taps(7, taps="lag_last") | FEATURIZER | GATES,
    "mr": DECAY | FEATURIZER | GATES | {"skip": "channel"},
    "mixed": taps(5)
    | {"featurizer": {"length": 4, "taps": "lag_first"}, "skip": "group"}
    | GATES
    | {"layout": {"projection": "interleaved"}},
    "short": taps(4, 32, taps="lag_last") | BIASED,
    "pre": taps(3) | {"gates": {"pre": True}, "bias": "gated"},
    "post": taps(3) | {"gates": {"post": True}, "bias": "ungated"},
    "freeform": {"filter": {"kind": "freeform", "length": 200, "groups": 32}},
    "li": modes("p_gamma") | FEATURIZER | GATES | {"skip": "channel"},
    "real": modes("log_poles", 2) | {"skip": "channel"},
    "pairs": modes("complex") | {"skip": "channel"},
}


def operator(values: dict[str, Any]) -> OpSpec:
    return spec_from_dict({"op": "small_op", "channels": 32} | FLOAT32 | values)


def compared(name: str, spec: OpSpec, length: int = 48, batch: int = 2) -> dict[str, Any]:
    """Errors of a baseline against float64, or why there are none."""
    baseline = BASELINES[name]
    found = baseline.computes(spec)
    assert isinstance(found, Part), found
    return answer(
        {
            "do": "check",
            "path": "",
            "spec": found.spec.to_dict(),
            "baseline": name,
            "batch": batch,
            "length": length,
            "device": "cpu",
            "gradients": baseline.differentiable,
        }
    )


def assert_right(answered: dict[str, Any], allowed: float = 2e-5) -> None:
    assert "failed" not in answered, answered
    errors = {"y": answered["y"]} | answered["gradients"]
    assert max(errors.values()) < allowed, errors


# ---- PyTorch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("name", ["eager", "fft", "fft_given"])
def test_pytorch(name: str, op: str) -> None:
    spec = operator(OPERATORS[op])
    verdict = BASELINES[name].computes(spec)
    modal = op in ("li", "real", "pairs")
    if (name == "eager" and modal) or (name == "fft_given" and not modal):
        assert isinstance(verdict, str) and "see fft" in verdict
        return
    assert_right(compared(name, spec))


def test_filters_longer_than_the_sequence() -> None:
    spec = operator(OPERATORS["mr"])
    for name in ("eager", "fft"):
        assert_right(compared(name, spec, length=5))


def test_torch_compile() -> None:
    assert_right(compared("compile", operator(OPERATORS["se"])))


def test_torch_compile_compiles_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default PyTorch gives up after some, and calls the plain function from then on."""
    compiled: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    spec, lengths = operator(taps(3)), range(20, 32)
    for length in lengths:
        way = BASELINES["compile"].prepare(spec, length, torch.float32)
        inputs = {name: torch.randn(1, 32, length) for name in spec.inputs}
        weights = {p.name: torch.randn(p.shape) for p in spec.parameters}
        way.call(way.convert(inputs, weights))
    assert len(compiled) == len(lengths)


@pytest.mark.parametrize("kind", ["log_poles", "complex"])
def test_filters_from_modes(kind: str) -> None:
    spec = operator(modes(kind))
    drawn = {p.name: torch.rand(p.shape) for p in spec.parameters}
    drawn["log_poles"].neg_()
    torch.testing.assert_close(synthesised(drawn, 40), filter_taps(spec, drawn, 40))


def test_most_taps_are_not_summed_directly() -> None:
    verdict = BASELINES["eager"].computes(operator(taps(2000)))
    assert isinstance(verdict, str) and "2000 taps" in verdict


# ---- packages, by fakes -------------------------------------------------------------------------


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Of (B, D, L) with (D, K), the last tap for lag 0, as most packages store it."""
    padded = functional.pad(x, (weight.shape[1] - 1, 0))
    return functional.conv1d(padded, weight[:, None].to(x.dtype), bias, groups=len(weight))


def silu_if(activation: str | None, y: Tensor) -> Tensor:
    return functional.silu(y) if activation == "silu" else y


def causal_conv1d_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    return silu_if(activation, convolution(x, weight, bias))


def fla_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> tuple[Tensor, None]:
    return causal_conv1d_fn(x.transpose(1, 2), weight, bias, activation).transpose(1, 2), None


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
) -> Tensor:
    state, rows = torch.zeros(*u.shape[:2], A.shape[1], dtype=A.dtype), []
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        state = torch.exp(step * A) * state + step * B * u[:, :, t, None]
        total = (state * C).sum(2)
        rows.append(2 * total.real if total.is_complex() else total)
    y = torch.stack(rows, 2)
    return y if D is None else y + D[:, None] * u


def by_fft(x: Tensor, rows: Tensor) -> Tensor:
    size = 2 * x.shape[2]
    return torch.fft.irfft(torch.fft.rfft(x.float(), size) * torch.fft.rfft(rows, size), size)[
        ..., : x.shape[2]
    ].to(x.dtype)


class FlashFFTConv(torch.nn.Module):
    def __init__(self, seqlen: int, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.seqlen, self.dtype = seqlen, dtype

    def forward(
        self, u: Tensor, k: Tensor, pregate: Tensor | None = None, postgate: Tensor | None = None
    ) -> Tensor:
        assert self.seqlen >= 2 * u.shape[2] and u.dtype == self.dtype and k.dtype == torch.float32
        z = u if pregate is None else u * pregate
        y = by_fft(z, k)
        return y if postgate is None else y * postgate


def hcs_conv(
    x1: Tensor, x2: Tensor, v: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    return x2 * convolution(x1 * v, weight[:, 0], bias)


def hcm_fft_conv(
    u: Tensor,
    k: Tensor,
    D: Tensor,
    dropout_mask: None,
    gelu: bool = True,
) -> Tensor:
    assert not gelu and k.shape[1] == 1
    return by_fft(u, k[:, 0]) + u * D[:, None]


def hcl_fft_conv(h: Tensor, x1v: Tensor, x2: Tensor, D: Tensor, L: int, fft_size: int) -> Tensor:
    assert h.shape[0] == 1 and x1v.shape[2] == L and fft_size == 2 * L
    return x2 * (by_fft(x1v, h[0]) + D[:, None] * x1v)


def two_pass(
    x: Tensor,
    B: Tensor,
    C: Tensor,
    h: Tensor,
    bs: int,
    seqlen: int,
    g: int,
    dg: int,
) -> Tensor:
    assert x.shape == (bs, seqlen, g, dg) and x.is_contiguous() and h.shape[:2] == (g, 1)
    z = (B * x).flatten(2).transpose(1, 2)
    y = convolution(z, h[:, 0].repeat_interleave(dg, 0))
    return C * y.transpose(1, 2).reshape(x.shape)


def b2b_causal_conv1d(
    x: Tensor, weight_proj: Tensor, weight_mixer: Tensor, skip_bias: Tensor
) -> Tensor:
    features = convolution(x, weight_proj)
    z = features[:, 1::3] * features[:, 2::3]
    return features[:, 0::3] * (convolution(z, weight_mixer) + skip_bias[:, None] * z)


FAKES: dict[str, tuple[str, Callable[..., Any]]] = {
    "causal_conv1d_fn": ("causal_conv1d", causal_conv1d_fn),
    "causal_conv1d": ("fla.modules.convolution", fla_conv),
    "selective_scan_fn": ("mamba_ssm.ops.selective_scan_interface", selective_scan_fn),
    "FlashFFTConv": ("flashfftconv", FlashFFTConv),
    "hcs_conv": ("vortex.ops.hcs_interface", hcs_conv),
    "hcm_fft_conv": ("vortex.ops.hcm_interface", hcm_fft_conv),
    "hcl_fft_conv": ("vortex.ops.hcl_interface", hcl_fft_conv),
    "two_pass_chunked_gate_conv_gate": ("savanna.kernels.triton_src.cgcg.interface", two_pass),
    "b2b_causal_conv1d": ("cudnn.ops", b2b_causal_conv1d),
}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (module, function) in FAKES.items():
        made = ModuleType(module)
        setattr(made, name, function)
        monkeypatch.setitem(sys.modules, module, made)


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("name", "values", "without"),
    [
        ("causal_conv1d", OPERATORS["short"], ()),
        ("causal_conv1d", taps(3) | {"skip": "channel"}, ()),
        ("causal_conv1d_last", OPERATORS["short"], ()),
        ("fla", OPERATORS["short"], ()),
        ("fla", taps(7) | {"bias": "gated"}, ()),
        ("mamba_ssm", OPERATORS["li"], ("featurizer", "gates")),
        ("mamba_ssm", OPERATORS["real"], ()),
        ("mamba_ssm", OPERATORS["pairs"], ()),
        ("vortex", OPERATORS["se"], ("featurizer",)),
        ("vortex", OPERATORS["mixed"], ("featurizer",)),
        ("vortex", taps(130) | {"skip": "channel"} | GATES, ()),
        ("vortex", OPERATORS["freeform"], ()),
        ("vortex", OPERATORS["li"], ("featurizer", "making the filter from its modes")),
        ("savanna", OPERATORS["mixed"], ("featurizer",)),
        ("savanna", OPERATORS["mr"], ("featurizer", "skip")),
        ("cudnn", OPERATORS["se"], ()),
        ("cudnn", OPERATORS["mr"], ()),
        ("cudnn", OPERATORS["mixed"], ()),
    ],
)
def test_packages(name: str, values: dict[str, Any], without: tuple[str, ...]) -> None:
    spec = operator(values)
    found = BASELINES[name].computes(spec)
    assert isinstance(found, Part) and found.without == without
    assert found.whole == (not without)
    assert_right(compared(name, spec))


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("op", ["mr", "li", "freeform", "pairs"])
def test_flashfftconv_takes_16_bits(op: str) -> None:
    spec = operator(OPERATORS[op])
    assert "bfloat16 and float16" in compared("flashfftconv", spec)["failed"]
    narrow = operator(OPERATORS[op] | {"dtype": {"io": "bfloat16"}})
    assert_right(compared("flashfftconv", narrow), allowed=1e-2)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("causal_conv1d", OPERATORS["se"], "2 to 4 taps, and this filter has 7"),
        ("causal_conv1d", OPERATORS["li"], "made of modes"),
        ("causal_conv1d", OPERATORS["pre"], "no gates"),
        ("causal_conv1d", taps(4) | FEATURIZER, "no featurizer"),
        ("fla", taps(100), "1 to 32 taps, and this filter has 100"),
        ("mamba_ssm", OPERATORS["short"], "this filter has taps"),
        ("flashfftconv", OPERATORS["pre"], "both gates or none"),
        ("flashfftconv", OPERATORS["short"], "an activation"),
        ("vortex", OPERATORS["post"], "both gates"),
        ("savanna", taps(7, 4) | GATES, "groups of 16 channels or more, and these have 8"),
        ("savanna", OPERATORS["freeform"], "1 to 128 taps"),
        ("cudnn", taps(7) | GATES, "a featurizer and both gates"),
    ],
)
def test_what_does_not_apply(name: str, values: dict[str, Any], words: str) -> None:
    verdict = BASELINES[name].computes(operator(values))
    assert isinstance(verdict, str) and words in verdict


def test_lengths_that_do_not_fit() -> None:
    spec = operator(OPERATORS["mr"])
    savanna, flash = BASELINES["savanna"].fits, BASELINES["flashfftconv"].fits
    assert savanna(spec, 1024) is None and "128" in str(savanna(spec, 1000))
    assert flash(spec, 8192) is None and flash(spec, 1000) is None
    assert "even" in str(flash(spec, 8191)) and "4194304" in str(flash(spec, 1 << 22))
    assert "multiple of 8" in str(
        BASELINES["causal_conv1d_last"].fits(operator({"channels": 12, **taps(3, 12)}), 8)
    )


def test_a_state_is_left_out() -> None:
    spec = operator(OPERATORS["short"] | {"state": {"initial": True, "final": True}})
    assert part(spec).without == ("state",)
    assert_right(compared("eager", spec))


def test_a_package_that_moved_is_named() -> None:
    failed = compared("vortex", operator(OPERATORS["se"]))["failed"]
    assert failed.startswith("cannot be imported: ") and "vortex" in failed


def test_peers_are_chosen_by_name_or_package() -> None:
    assert len(chosen(None)) == len(BASELINES)
    names = [c.name for c in chosen("fft, causal_conv1d,fft")]
    assert names == ["fft", "causal_conv1d", "causal_conv1d_last"]
    with pytest.raises(Sh2genError) as caught:
        chosen("fft,numpy")
    assert caught.value.code == "C006" and "savanna" in str(caught.value.help)
