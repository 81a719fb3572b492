"""The verifier passes what is right and catches what is wrong.

`TorchRunner` is a plain runner; each mutation below is it with one mistake that a kernel may have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from sh2gen.base.errors import CheckFailed, Sh2genError
from sh2gen.graph.reference import decayed_filter
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.language import Bias, FilterKind, Precision, Projection, TapOrder
from sh2gen.spec.operator import OpSpec
from sh2gen.verify.case import Case, Runner, poisoned
from sh2gen.verify.properties import PROPERTIES
from sh2gen.verify.report import Check, Report
from sh2gen.verify.twins import twin
from sh2gen.verify.verify import verify
from tests.strategies import register_profiles, shapes, specs

register_profiles()


class TorchRunner:
    """The operator in torch, float32 from inputs to output, one rounding at the end.

    The convolution adds shifted copies tap by tap, so that it is causal bit for bit.
    """

    name = "eager"
    exactly_causal = True

    def __init__(self, spec: OpSpec, layout: str = "BLD") -> None:
        self.spec = spec
        self.layout = layout

    def forward(self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        first = inputs[self.spec.inputs[0]]
        y = self.operator({n: self.load(x) for n, x in inputs.items()}, dict(parameters))
        out = torch.empty(first.shape, dtype=first.dtype, device=first.device)
        self.store(self.swap(y).to(first.dtype), out)
        return out

    def forward_packed(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
    ) -> Tensor:
        features = self.swap(inputs["features"])  # (B, n*D, L)
        roles, names = len(self.spec.inputs), self.spec.inputs
        if self.spec.layout.projection is Projection.THIRDS:
            parts = features.chunk(roles, 1)
        else:
            parts = tuple(features[:, role::roles] for role in range(roles))
        return self.forward(
            {n: self.swap(x) for n, x in zip(names, parts, strict=True)}, parameters
        )

    def gradients(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dy: Tensor
    ) -> dict[str, Tensor]:
        acts = {n: self.load(x).detach().requires_grad_() for n, x in inputs.items()}
        params = {n: p.detach().clone().requires_grad_() for n, p in parameters.items()}
        y = self.operator(acts, params)
        leaves = acts | params
        above = self.load(dy)
        found = torch.autograd.grad(y, list(leaves.values()), above, materialize_grads=True)
        grads = dict(zip(leaves, found, strict=True))
        return {n: self.swap(g).to(dy.dtype) if n in acts else g for n, g in grads.items()}

    def load(self, x: Tensor) -> Tensor:
        """(B, D, L) in the type of sums."""
        return self.swap(x).to(torch.promote_types(x.dtype, torch.float32))

    def swap(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2) if self.layout == "BLD" else x

    def store(self, y: Tensor, out: Tensor) -> None:
        out.copy_(y)

    def operator(self, acts: dict[str, Tensor], params: dict[str, Tensor]) -> Tensor:
        spec = self.spec
        if spec.featurizer is not None:
            rows = params["featurizer"].unflatten(0, self.packing())
            rows = rows if spec.layout.projection is Projection.THIRDS else rows.transpose(0, 1)
            order = spec.featurizer.taps
            for i, name in enumerate(spec.inputs):
                acts = acts | {name: self.convolve(acts[name], self.lags(rows[i], order))}
        z = acts["k"] * acts["v"] if spec.gates.pre else acts[spec.inputs[-1]]
        z = self.intermediate(z)
        pre = self.convolution(z, self.filter(params, z.shape[-1]))
        if "skip" in params:
            pre = pre + self.skip(params["skip"], z)
        if "bias" in params:
            bias = params["bias"][:, None]
            pre = pre + (bias * z if spec.bias is Bias.GATED else bias)
        if spec.gates.post:
            return acts["q"] * pre
        return functional.silu(pre) if spec.activation == "silu" else pre

    def packing(self) -> tuple[int, int]:
        roles = len(self.spec.inputs)
        thirds = self.spec.layout.projection is Projection.THIRDS
        return (roles, -1) if thirds else (-1, roles)

    def filter(self, params: dict[str, Tensor], length: int) -> Tensor:
        if self.spec.filter.kind is FilterKind.MODAL:
            time = torch.arange(length, dtype=torch.float32)
            if "log_poles" in params:
                poles = params["log_poles"]
            else:
                poles = -(params["p"] + params["gamma"]).exp()
            size = (poles[..., None] * time).exp()
            if "frequencies" in params:  # angles of many steps are no float32
                angle = params["frequencies"].double()[..., None] * time
                real, imag = (params[f"residues_{part}"][..., None] for part in ("real", "imag"))
                h = (2 * size * (real * angle.cos() - imag * angle.sin()).float()).sum(1)
            else:
                h = (params["residues"][..., None] * size).sum(1)
        else:
            h = params["filter"]
            if self.spec.filter.kind is FilterKind.DECAY:
                h = h * decayed_filter(self.spec, torch.ones_like(h))
            h = self.lags(h, self.spec.filter.taps)
        return h.repeat_interleave(self.spec.group_width, 0)

    def skip(self, weight: Tensor, z: Tensor) -> Tensor:
        return weight.repeat_interleave(z.shape[1] // len(weight))[:, None] * z

    def intermediate(self, z: Tensor) -> Tensor:
        return z

    def lags(self, rows: Tensor, order: TapOrder) -> Tensor:
        return rows.flip(-1) if order is TapOrder.LAG_LAST else rows

    def convolution(self, z: Tensor, rows: Tensor) -> Tensor:
        """The inner one, of `operator`."""
        return self.convolve(z, rows)

    def convolve(self, z: Tensor, rows: Tensor) -> Tensor:
        """z (B, D, L), rows (D, K) lag first."""
        y = torch.zeros_like(z)
        for lag in range(min(rows.shape[1], z.shape[-1])):
            late = functional.pad(z[..., : z.shape[-1] - lag], (lag, 0))
            y = y + rows[:, lag, None] * late
        return y


class FftRunner(TorchRunner):
    """The same by float32 FFT: right, but not causal bit for bit."""

    name = "fft"
    exactly_causal = False

    def convolve(self, z: Tensor, rows: Tensor) -> Tensor:
        length = z.shape[-1]
        size = 2 * length
        spectrum = torch.fft.rfft(z, size) * torch.fft.rfft(rows[:, :length], size)
        return torch.fft.irfft(spectrum, size)[..., :length]


class TensorCoreRunner(TorchRunner):
    """Operands of the inner convolution and of its gradients in the io dtype."""

    def filter(self, params: dict[str, Tensor], length: int) -> Tensor:
        return _Rounded.apply(super().filter(params, length), self.io(), None)

    def intermediate(self, z: Tensor) -> Tensor:
        return _Rounded.apply(z, self.io(), None)

    def convolution(self, z: Tensor, rows: Tensor) -> Tensor:
        return _Rounded.apply(super().convolution(z, rows), None, self.io())

    def io(self) -> torch.dtype:
        return IO[self.spec.dtype.io]


class _Rounded(torch.autograd.Function):
    """x rounded to one dtype and its gradient to another (None: not at all)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dtype: torch.dtype | None, gradient: torch.dtype | None
    ) -> Tensor:
        ctx.gradient = gradient
        return x.clone() if dtype is None else x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        rounded = grad if ctx.gradient is None else grad.to(ctx.gradient).to(grad.dtype)
        return rounded, None, None


# ---- operators ----------------------------------------------------------------------------------


def make(**fields: Any) -> OpSpec:
    inner = {"kind": "explicit", "length": 7, "groups": 2}
    base = {"op": "probe", "channels": 6, "filter": inner, "dtype": {"io": "float32"}}
    return spec_from_dict(base | fields)


HYENA = make(
    featurizer={"length": 3}, gates={"pre": True, "post": True}, skip="channel", bias="ungated"
)
PLAIN = make(skip="group")
SHAPES = ((1, 1), (3, 6), (1, 7), (2, 33))
IO = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def run(spec: OpSpec, runner: Runner, dtype: str = "float32", **options: Any) -> Report:
    options.setdefault("shapes", SHAPES)
    return verify(spec, runner, dtype=IO[dtype], **options)


def failed(report: Report) -> set[str]:
    """Names of the properties that failed."""
    return {check.name.split()[0] for check in report.failures}


# ---- what is right passes -----------------------------------------------------------------------


@given(st.data())
def test_right_runners_pass(data: st.DataObject) -> None:
    """Every operator, layout, dtype and precision."""
    io = tuple(IO)
    precision = ("fast", "balanced", "exact")
    kinds = ("explicit", "decay", "modal", "freeform")
    spec = data.draw(specs(kinds=kinds, io=io, precision=precision))
    kind = data.draw(st.sampled_from((TorchRunner, FftRunner)))
    runner = kind(spec, data.draw(st.sampled_from(("BLD", "BDL"))))
    chosen = [data.draw(shapes(spec, longest=100))]
    seed = data.draw(st.integers(0, 1000))
    report = run(spec, runner, spec.dtype.io, shapes=chosen, seed=seed)
    assert report.ok, report.failures


@pytest.mark.parametrize("spec", [HYENA, PLAIN], ids=["hyena", "plain"])
def test_float64_passes(spec: OpSpec) -> None:
    assert verify(spec, TorchRunner(spec), dtype=torch.float64, shapes=SHAPES).ok


def test_long_modal_filter_passes() -> None:
    """The reference is an FFT here (more than 256 taps), the runner is causal."""
    inner = {"kind": "modal", "groups": 2, "modes": 2, "parametrisation": "p_gamma"}
    spec = make(channels=2, filter=inner, gates={"pre": True, "post": True}, skip="channel")
    report = run(spec, TorchRunner(spec), shapes=[(1, 400)])
    assert report.ok, report.failures


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 5), (1, 64)])
def test_balanced_leaves_room_for_tensor_cores(seed: int, shape: tuple[int, int]) -> None:
    """Operands and result rounded: sqrt(3) times one rounding, also where luck plays a part."""
    for io in ("bfloat16", "float16"):
        spec = replace(HYENA, dtype=replace(HYENA.dtype, io=io))
        options = {"shapes": [shape], "properties": ["equality", "adjoint"], "seed": seed}
        report = run(spec, TensorCoreRunner(spec), io, **options)
        assert report.ok, report.failures


def test_a_right_runner_passes_at_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among millions of random numbers some are exactly zero."""
    monkeypatch.setattr(Case, "activation", _half_zero)
    for dtype in IO:
        report = run(HYENA, TorchRunner(HYENA), dtype)
        assert report.ok, report.failures


def _half_zero(case: Case, rng: torch.Generator, *, batch: int | None = None) -> Tensor:
    shape = [case.batch if batch is None else batch, case.spec.channels, case.spec.channels]
    shape[case.time_dim] = case.length
    return case.place(torch.randn(shape, generator=rng).clamp(min=0))


def test_every_property_ran() -> None:
    report = run(HYENA, TorchRunner(HYENA))
    states = {"chunks"}  # which this operator does not have; tests/equivalence/test_state.py
    assert {check.name.split()[0] for check in report.checks} == set(PROPERTIES) - states


# ---- what is wrong is caught --------------------------------------------------------------------


class WrongTapOrder(TorchRunner):
    def lags(self, rows: Tensor, order: TapOrder) -> Tensor:
        return rows if order is TapOrder.LAG_LAST else rows.flip(-1)


class DroppedLastTap(TorchRunner):
    def filter(self, params: dict[str, Tensor], length: int) -> Tensor:
        return super().filter(params, length)[:, :-1]


class NeighboursFilter(TorchRunner):
    """The first channel of every group but the first reads the previous group's filter."""

    def filter(self, params: dict[str, Tensor], length: int) -> Tensor:
        rows = super().filter(params, length)
        width = self.spec.group_width
        first = [max(0, c - 1) if c % width == 0 else c for c in range(len(rows))]
        return rows[first]


class MissingSkip(TorchRunner):
    def skip(self, weight: Tensor, z: Tensor) -> Tensor:
        return 0 * super().skip(weight, z)


class OffByOneNearTheEnd(TorchRunner):
    def operator(self, acts: dict[str, Tensor], params: dict[str, Tensor]) -> Tensor:
        y = super().operator(acts, params)
        if y.shape[-1] < 4:
            return y
        return torch.cat((y[..., :-2], y[..., -3:-2], y[..., -1:]), -1)


class BFloat16Intermediate(TorchRunner):
    def intermediate(self, z: Tensor) -> Tensor:
        return _Rounded.apply(z, torch.bfloat16, None)


class TF32Intermediate(TorchRunner):
    """10 bits of mantissa: what tl.dot does with float32 unless told otherwise."""

    def intermediate(self, z: Tensor) -> Tensor:
        step = 2.0 ** (torch.frexp(z.detach()).exponent.float() - 11)
        return z + ((z / step).round() * step - z).detach()


class UnwrittenElement(TorchRunner):
    def store(self, y: Tensor, out: Tensor) -> None:
        mask = torch.ones_like(y, dtype=torch.bool)
        mask[-1, -1, -1] = False
        out[mask] = y[mask]


class UnwrittenGradient(TorchRunner):
    def gradients(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dy: Tensor
    ) -> dict[str, Tensor]:
        grads = super().gradients(inputs, parameters, dy)
        buffer = torch.empty_like(grads["filter"])
        buffer[:, 1:] = grads["filter"][:, 1:]
        return grads | {"filter": buffer}


class Leak(TorchRunner):
    """A millionth of the next sample."""

    def convolve(self, z: Tensor, rows: Tensor) -> Tensor:
        return super().convolve(z, rows) + 1e-6 * functional.pad(z[..., 1:], (0, 1))


class UnmaskedRead(TorchRunner):
    """What lies before the tensor is taken for the sample before the first."""

    def load(self, x: Tensor) -> Tensor:
        x = self.swap(x)
        before = x.as_strided(x.shape, x.stride(), max(0, x.storage_offset() - x.stride(-1)))[
            ..., :1
        ]
        first = x[..., :1] + 0 * before
        x = torch.cat((first, x[..., 1:]), -1)
        return x.to(torch.promote_types(x.dtype, torch.float32))


class IgnoresStrides(TorchRunner):
    def load(self, x: Tensor) -> Tensor:
        if not x.is_contiguous():
            x = x.transpose(1, 2).reshape(x.shape)
        return super().load(x)


class NeighboursInTheBatch(TorchRunner):
    def convolve(self, z: Tensor, rows: Tensor) -> Tensor:
        y = super().convolve(z, rows)
        return y * (1 + 2.0**-23 * (z.shape[0] > 1))


class Unrepeatable(TorchRunner):
    calls = 0

    def convolve(self, z: Tensor, rows: Tensor) -> Tensor:
        self.calls += 1
        y = super().convolve(z, rows)
        return y * (1 + 2.0**-23 * (self.calls % 3))


class WrongPacking(TorchRunner):
    def forward_packed(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
    ) -> Tensor:
        names = self.spec.inputs
        parts = inputs["features"].unflatten(self.channel_dim(), (-1, len(names)))
        parts = parts.unbind(self.channel_dim() + 1)
        return self.forward(dict(zip(names, parts, strict=True)), parameters)

    def channel_dim(self) -> int:
        return 2 if self.layout == "BLD" else 1


class RestartsEveryBlock(TorchRunner):
    """Forgets the past at every 16th sample."""

    def convolve(self, z: Tensor, rows: Tensor) -> Tensor:
        blocks = z.split(16, -1)
        return torch.cat([TorchRunner.convolve(self, block, rows) for block in blocks], -1)


MUTATIONS: list[tuple[type[TorchRunner], OpSpec, str, str]] = [
    # the mistake, the operator, the io dtype, a property that must see it
    (WrongTapOrder, HYENA, "float32", "equality"),
    (WrongTapOrder, HYENA, "bfloat16", "impulse"),
    (DroppedLastTap, HYENA, "float32", "equality"),
    (DroppedLastTap, HYENA, "bfloat16", "impulse"),
    (NeighboursFilter, HYENA, "bfloat16", "equality"),
    (MissingSkip, HYENA, "bfloat16", "equality"),
    (MissingSkip, PLAIN, "float16", "equality"),
    (OffByOneNearTheEnd, HYENA, "bfloat16", "equality"),
    (OffByOneNearTheEnd, PLAIN, "float32", "time_shift"),
    (BFloat16Intermediate, HYENA, "float32", "equality"),
    (BFloat16Intermediate, PLAIN, "float16", "equality"),
    (TF32Intermediate, HYENA, "float32", "equality"),
    (UnwrittenElement, PLAIN, "bfloat16", "equality"),
    (UnwrittenGradient, PLAIN, "float32", "equality"),
    (Leak, HYENA, "float32", "causality"),
    (UnmaskedRead, PLAIN, "float16", "equality"),
    (IgnoresStrides, HYENA, "float16", "strides"),
    (NeighboursInTheBatch, PLAIN, "float32", "batch_invariance"),
    (Unrepeatable, HYENA, "float32", "determinism"),
    (WrongPacking, HYENA, "bfloat16", "packed"),
    (RestartsEveryBlock, HYENA, "bfloat16", "equality"),
]


@pytest.mark.parametrize(
    ("mutation", "spec", "dtype", "by"),
    MUTATIONS,
    ids=[f"{m[0].__name__}-{m[2]}-{m[3]}" for m in MUTATIONS],
)
@pytest.mark.parametrize("layout", ["BLD", "BDL"])
def test_mutation_is_caught(
    mutation: type[TorchRunner], spec: OpSpec, dtype: str, by: str, layout: str
) -> None:
    report = run(spec, mutation(spec, layout), dtype)
    assert by in failed(report)


@pytest.mark.parametrize("precision", list(Precision))
def test_one_bfloat16_operand_is_not_exact(precision: Precision) -> None:
    """It costs sqrt(2) of a rounding: for the two other policies that is within the rules."""
    spec = replace(HYENA, precision=precision)
    report = run(spec, BFloat16Intermediate(spec), "bfloat16", shapes=[(2, 64)])
    assert report.ok == (precision is not Precision.EXACT)


class Scaled(TorchRunner):
    """One gradient is 1 % too large."""

    def __init__(self, spec: OpSpec, name: str) -> None:
        super().__init__(spec)
        self.wrong = name

    def gradients(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dy: Tensor
    ) -> dict[str, Tensor]:
        grads = super().gradients(inputs, parameters, dy)
        return grads | {self.wrong: grads[self.wrong] * 1.01}


@pytest.mark.parametrize("name", ["q", "k", "v", "filter", "featurizer", "skip", "bias"])
@pytest.mark.parametrize(
    ("by", "dtype"), [("equality", "float32"), ("equality", "float16"), ("adjoint", "float32")]
)
def test_scaled_gradient_is_caught(name: str, by: str, dtype: str) -> None:
    report = run(HYENA, Scaled(HYENA, name), dtype, properties=[by], shapes=[(1, 33)])
    assert any(name in check.name for check in report.failures)


def test_scaled_gradient_is_caught_in_bfloat16() -> None:
    """Where there are enough elements for a statistic."""
    spec = replace(HYENA, channels=64, filter=replace(HYENA.filter, groups=32))
    for name in ("q", "k", "v", "filter", "featurizer", "skip"):
        options = {"properties": ["equality"], "shapes": [(1, 64)]}
        assert not run(spec, Scaled(spec, name), "bfloat16", **options).ok


class ThreeWrong(TorchRunner):
    def __init__(self, spec: OpSpec, spoil: Callable[[Tensor], Tensor]) -> None:
        super().__init__(spec)
        self.spoil = spoil

    def store(self, y: Tensor, out: Tensor) -> None:
        out.copy_(y)
        flat = out.view(-1)
        for place in (12_345, flat.numel() // 2, flat.numel() - 7):
            flat[place] = self.spoil(flat[place])


@pytest.mark.parametrize(
    ("dtype", "spoil"),
    [
        ("float32", lambda y: y + 1e-4),
        ("float16", torch.zeros_like),
        ("bfloat16", lambda y: y + 1),
    ],
    ids=["a little", "zero", "one"],
)
def test_three_wrong_among_a_million(dtype: str, spoil: Callable[[Tensor], Tensor]) -> None:
    spec = make(channels=16, filter={"kind": "explicit", "length": 3, "groups": 1})
    runner, shape = ThreeWrong(spec, spoil), (1, 65_537)
    report = run(spec, runner, dtype, shapes=[shape], properties=["equality"])
    wrong = {check.name.split(": ")[1]: check for check in report.failures}
    assert wrong["y, elements"].detail.startswith("3 of 1048592 outside")
    if dtype == "bfloat16":  # what the norm alone would not see
        assert set(wrong) == {"y, elements"}


class Tweaked(TorchRunner):
    """Spoils what it returns."""

    def __init__(self, spec: OpSpec, tweak: Callable[[Any], Any], gradients: bool) -> None:
        super().__init__(spec)
        self.tweak, self.spoils_gradients = tweak, gradients

    def forward(self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        y = super().forward(inputs, parameters)
        return y if self.spoils_gradients else self.tweak(y)

    def gradients(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dy: Tensor
    ) -> dict[str, Tensor]:
        grads = super().gradients(inputs, parameters, dy)
        return self.tweak(grads) if self.spoils_gradients else grads


@pytest.mark.parametrize(
    ("gradients", "tweak"),
    [
        (False, lambda y: y.double()),
        (False, lambda y: y[:, :-1]),
        (False, lambda y: y.transpose(1, 2)),
        (True, lambda g: {n: t for n, t in g.items() if n != "filter"}),
        (True, lambda g: g | {"extra": g["filter"]}),
        (True, lambda g: g | {"skip": g["skip"].half()}),
        (True, lambda g: g | {"x": g["x"][..., :1]}),
    ],
)
def test_wrong_form_is_a_failed_check(gradients: bool, tweak: Callable[[Any], Any]) -> None:
    report = run(PLAIN, Tweaked(PLAIN, tweak, gradients), shapes=[(1, 9)])
    assert any(check.name == "equality B=1 L=9: form" for check in report.failures)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_never_passes(value: float) -> None:
    runner = Tweaked(PLAIN, lambda y: y.index_fill(1, torch.tensor([2]), value), False)
    report = run(PLAIN, runner, shapes=[(1, 9)], properties=["equality"])
    assert len(report.failures) == 3  # finite, norm, elements
    json.dumps(report.to_dict(), allow_nan=False)


def test_nan_is_caught_outside_of_the_compared_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where float64 of everything does not fit, three groups are compared: 0, 19 and another."""
    monkeypatch.setattr("sh2gen.verify.compare.affordable", lambda device: 3 * 8)
    spec = make(channels=20, filter={"kind": "explicit", "length": 3, "groups": 20})
    options = {"shapes": [(1, 8)], "properties": ["equality"]}
    good = run(spec, TorchRunner(spec), **options)
    assert good.ok
    assert any("of 24 outside" in check.detail for check in good.checks)

    for channel, value, ok in ((0, 9.0, False), (19, 9.0, False), (7, math.nan, False)):
        spoil = torch.tensor([channel])
        runner = Tweaked(spec, lambda y, c=spoil, v=value: y.index_fill(2, c, v), False)
        assert run(spec, runner, **options).ok == ok


# One group that is too wide: 8 of its 60 steps are compared at a time.
WIDE = replace(HYENA, filter=replace(HYENA.filter, groups=1, length=17))
PARTS = {"shapes": [(2, 60)], "properties": ["equality"], "compared": 2 * 6 * 8}


@pytest.mark.parametrize("dtype", IO)
@pytest.mark.parametrize("layout", ["BLD", "BDL"])
def test_of_a_group_that_is_too_large_parts_of_time_are_compared(layout: str, dtype: str) -> None:
    report = run(WIDE, TorchRunner(WIDE, layout), dtype, **PARTS)
    report.require()
    parts = {check.name.split(":")[0] for check in report.checks}
    assert {f"equality B=2 L=60, steps {part}" for part in ("0 .. 7", "52 .. 59")} < parts
    assert "equality B=2 L=60" in parts and len(parts) in (3, 4)
    assert any("of 96 outside" in check.detail for check in report.checks)
    report = run(WIDE, FftRunner(WIDE, layout), dtype, **PARTS)
    report.require()


@pytest.mark.parametrize("name", ["q", "k", "v", "filter", "featurizer", "skip", "bias"])
def test_a_scaled_gradient_is_caught_in_parts_of_time(name: str) -> None:
    report = run(WIDE, Scaled(WIDE, name), **PARTS)
    assert all(f"gradient of {name}" in check.name for check in report.failures)
    failed_parts = {check.name.split(":")[0] for check in report.failures}
    assert {f"equality B=2 L=60, steps {part}" for part in ("0 .. 7", "52 .. 59")} <= failed_parts


@pytest.mark.parametrize(("step", "value"), [(0, 9.0), (59, 9.0), (30, math.nan)])
def test_what_is_wrong_in_a_group_that_is_too_large_is_caught(step: int, value: float) -> None:
    """In the first and the last steps; NaN is caught anywhere."""
    spoil = torch.tensor([step])
    runner = Tweaked(WIDE, lambda y: y.index_fill(1, spoil, value), False)
    assert not run(WIDE, runner, **PARTS).ok


def test_wrong_decay_is_caught() -> None:
    """The decay of another cache_length: too weak, by a factor near one at every tap."""
    decay = {"preset": "weak", "cache_length": 128}
    spec = make(filter={"kind": "decay", "length": 7, "groups": 2, "decay": decay})
    other = replace(spec.filter.decay, cache_length=129)
    wrong = TorchRunner(replace(spec, filter=replace(spec.filter, decay=other)))
    assert run(spec, TorchRunner(spec)).ok
    assert {"equality", "impulse"} <= failed(run(spec, wrong))


def test_fft_that_wraps_around_is_caught() -> None:
    class Wraps(FftRunner):
        def convolve(self, z: Tensor, rows: Tensor) -> Tensor:
            length = z.shape[-1]
            spectrum = torch.fft.rfft(z, length) * torch.fft.rfft(rows, length)
            return torch.fft.irfft(spectrum, length)

    for dtype in IO:
        assert {"equality", "impulse"} <= failed(run(PLAIN, Wraps(PLAIN), dtype))


# ---- twins --------------------------------------------------------------------------------------


@given(specs(kinds=("explicit", "decay", "modal"), widths=(1, 15, 16, 100, 4096)))
def test_twin_keeps_the_structure(spec: OpSpec) -> None:
    small = twin(spec)
    assert small.channels <= 128
    assert small.filter.groups == min(2, spec.filter.groups)
    assert small.group_width % 16 == spec.group_width % 16
    if spec.group_width <= 64:
        assert small.group_width == spec.group_width
    for name in ("featurizer", "gates", "skip", "bias", "activation", "layout", "dtype"):
        assert getattr(small, name) == getattr(spec, name)
    assert small.filter.length == spec.filter.length
    assert small.filter.modes == spec.filter.modes
    assert twin(small) == small


def test_twin_of_one_wide_group() -> None:
    spec = make(channels=1000, filter={"kind": "explicit", "length": 7, "groups": 1})
    assert twin(spec).channels == 56  # 1000 % 16 == 56 % 16


def test_twin_of_few_taps() -> None:
    spec = make(filter={"kind": "explicit", "length": 515, "groups": 2})
    assert twin(spec, max_taps=64).filter.length == 51  # 515 % 16 == 51 % 16
    assert twin(spec, max_taps=515).filter.length == twin(spec).filter.length == 515
    inner = {"kind": "modal", "groups": 2, "modes": 2, "parametrisation": "p_gamma"}
    modal = make(filter=inner)
    assert twin(modal, max_taps=64) == twin(modal)


# ---- the rest -----------------------------------------------------------------------------------


def test_poison_and_what_was_before() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with pytest.raises(KeyError), poisoned():
        assert torch.empty(3).isnan().all()
        raise KeyError
    assert torch.are_deterministic_algorithms_enabled() == before


def test_same_seed_same_report() -> None:
    first, second = (run(PLAIN, TorchRunner(PLAIN), seed=3) for _ in range(2))
    assert first == second
    assert first != run(PLAIN, TorchRunner(PLAIN), seed=4)


def test_chosen_properties_shapes_and_progress() -> None:
    steps: list[tuple[int, int, str]] = []
    report = run(
        PLAIN,
        TorchRunner(PLAIN),
        shapes=[(1, 5), (2, 9)],
        properties=["equality", "impulse"],
        property_shapes=[(1, 3)],
        progress=lambda *step: steps.append(step),
    )
    assert report.ok
    assert steps == [
        (0, 3, "equality B=1 L=5"),
        (1, 3, "equality B=2 L=9"),
        (2, 3, "impulse B=1 L=3"),
    ]


def test_unknown_property_is_refused() -> None:
    with pytest.raises(Sh2genError, match="C006"):
        run(PLAIN, TorchRunner(PLAIN), properties=["beauty"])


def test_report() -> None:
    good = run(PLAIN, TorchRunner(PLAIN), shapes=[(1, 9)])
    good.require()
    text = json.dumps(good.to_dict(), allow_nan=False)
    assert json.loads(text)["ok"] is True
    bad = run(PLAIN, MissingSkip(PLAIN), shapes=[(1, 9)])
    with pytest.raises(CheckFailed, match="V001") as caught:
        bad.require()
    assert caught.value.exit_code == 1
    with pytest.raises(CheckFailed, match="V003"):
        run(PLAIN, TorchRunner(PLAIN), shapes=[]).require()


def test_check_is_never_passed_by_nan() -> None:
    assert not Check(name="", measured=math.nan, bound=1).passed
    assert not Check(name="", measured=0, bound=math.nan).passed
    assert Check(name="", measured=0, bound=0).passed
