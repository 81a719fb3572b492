"""The verifier on runners that are wrong: what is wrong is caught."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sh2gen.spec.language import Precision, TapOrder
from sh2gen.spec.operator import OpSpec
from tests.verify.runners import (
    HYENA,
    IO,
    PLAIN,
    FftRunner,
    MissingSkip,
    Rounded,
    TorchRunner,
    failed,
    make,
    run,
)


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


class OffByOneNearTheEnd(TorchRunner):
    def operator(self, acts: dict[str, Tensor], params: dict[str, Tensor]) -> Tensor:
        y = super().operator(acts, params)
        if y.shape[-1] < 4:
            return y
        return torch.cat((y[..., :-2], y[..., -3:-2], y[..., -1:]), -1)


class BFloat16Intermediate(TorchRunner):
    def intermediate(self, z: Tensor) -> Tensor:
        return Rounded.apply(z, torch.bfloat16, None)


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


@pytest.mark.parametrize(("io", "groups", "rung"), [("float32", 2, 0), ("bfloat16", 8, 3)])
def test_a_slice_on_other_rungs_is_caught(io: str, groups: int, rung: int) -> None:
    """One that begins a ladder of its own, and one that is a group off: by `slices` alone."""

    class Off(TorchRunner):
        def sliced(self, spec: OpSpec, groups: range) -> tuple[Self, bool]:
            return super().sliced(spec, range(rung, rung + len(groups)))[0], False

    decay = {"preset": "strong", "cache_length": 8}
    inner = {"kind": "decay", "length": 7, "groups": groups, "decay": decay}
    spec = make(channels=groups, filter=inner)
    assert run(spec, TorchRunner(spec), io, shapes=[(2, 9)], properties=["slices"]).ok
    assert failed(run(spec, Off(spec), io, shapes=[(2, 9)])) == {"slices"}


def test_fft_that_wraps_around_is_caught() -> None:
    class Wraps(FftRunner):
        def convolve(self, z: Tensor, rows: Tensor) -> Tensor:
            length = z.shape[-1]
            spectrum = torch.fft.rfft(z, length) * torch.fft.rfft(rows, length)
            return torch.fft.irfft(spectrum, length)

    for dtype in IO:
        assert {"equality", "impulse"} <= failed(run(PLAIN, Wraps(PLAIN), dtype))
