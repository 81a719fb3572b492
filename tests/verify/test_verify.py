"""The verifier on runners that are right, and what it reports."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sh2gen.base.errors import CheckFailed, Sh2genError
from sh2gen.spec.operator import OpSpec
from sh2gen.verify.case import Case, poisoned
from sh2gen.verify.properties import PROPERTIES
from sh2gen.verify.report import Check
from sh2gen.verify.verify import verify
from tests.strategies import register_profiles, shapes, specs
from tests.verify.runners import (
    HYENA,
    IO,
    PLAIN,
    SHAPES,
    FftRunner,
    MissingSkip,
    TensorCoreRunner,
    TorchRunner,
    make,
    run,
)

register_profiles()


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
    # Of states, of decays, of steps, of ranks and of documents: tests/equivalence/test_state.py,
    # below, tests/generated/test_decode.py, tests/ranks and tests/equivalence/test_packed.py.
    others = {"chunks", "slices", "decode", "ranks", "documents"}
    assert {check.name.split()[0] for check in report.checks} == set(PROPERTIES) - others


@pytest.mark.parametrize("kind", [TorchRunner, FftRunner])
def test_slices_of_a_ladder(kind: type[TorchRunner]) -> None:
    """Of one group there is none. Bits are compared where a runner promises them."""
    for groups in (1, 2, 3, 6):
        decay = {"preset": "weak", "cache_length": 9}
        inner = {"kind": "decay", "length": 5, "groups": groups, "decay": decay}
        spec = make(filter=inner, skip="group")
        report = run(spec, kind(spec), properties=["slices"], shapes=[(2, 9)])
        assert len(report.checks) == (4 if groups > 1 else 0)
        exact = [check for check in report.checks if check.bound == 0]
        assert len(exact) == (2 if groups > 1 and kind is TorchRunner else 0)
        assert not report.failures


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
