"""Generated Triton kernels, under Triton's interpreter, compute what the reference says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sh2gen.lower import plans
from sh2gen.runtime.operator import InterpreterRunner
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from tests.strategies import register_profiles
from tests.strategies_schedules import (
    Case,
    Tensors,
    assert_close,
    canonical,
    interpreted,
    kernel_cases,
    pack,
    random_tensors,
    transposed,
)

register_profiles()
FLOAT32 = 2.0**-24
SMALL = {"BDL": {"BLOCK_D": 8, "BLOCK_T": 32}, "BLD": {"BLOCK_D": 32, "BLOCK_T": 8}}


def make(**fields: Any) -> OpSpec:
    inner = {"kind": "explicit", "length": 3, "groups": 2}
    base = {"op": "probe", "channels": 6, "filter": inner, "featurizer": {"length": 2}}
    return spec_from_dict(base | {"gates": {"pre": True, "post": True}} | fields)


def small_case(
    spec: OpSpec, layout: str, length: int, *, batch: int = 1, saved: bool = False, **config: int
) -> Case:
    """One operator under a schedule of few, small tiles."""
    plan = next(p for p in plans(spec, "direct") if p.layout == layout and bool(p.saved) == saved)
    given = {"ROWS": 8, "TILES": 2, "num_warps": 1} | SMALL[layout] | config
    made = schedule(spec, plan, {"forward": given, "backward": given})
    return Case(spec, plan, made, batch, length)


def results(
    runner: InterpreterRunner, inputs: Tensors, parameters: Tensors, dy: Tensor, layout: str
) -> tuple[Tensor, Tensors]:
    """y and gradients as (B, D, L), of tensors in a layout."""
    y = canonical(runner.forward(inputs, parameters), layout)
    gradients = runner.gradients(inputs, parameters, dy)
    return y, {
        name: canonical(g, layout) if name in inputs else g for name, g in gradients.items()
    }


def check(case: Case, folder: Path, dtype: torch.dtype) -> None:
    spec, layout = case.spec, case.plan.layout.value
    inputs, parameters, dy = random_tensors(spec, case.batch, case.length, dtype=dtype)
    runner = interpreted(spec, case.plan, case.schedule, folder)
    laid_out = {name: transposed(x, layout) for name, x in inputs.items()}
    y, gradients = results(runner, laid_out, parameters, transposed(dy, layout), layout)
    assert y.dtype == dtype and all(gradients[name].dtype == dtype for name in inputs)
    # Results are rounded once; so is a saved value, which leads to further results, and so are
    # both operands of a product, to TF32.
    roundings = 3 if case.plan.algorithm == "toeplitz" else 2
    roundings = 0 if dtype == torch.float32 else roundings
    assert_close(spec, inputs, parameters, dy, y, gradients, roundings=roundings, unit=FLOAT32)


@given(kernel_cases(), st.sampled_from((torch.float32, torch.float16)))
@settings(
    max_examples=max(12, settings().max_examples // 20),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes minutes here
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_kernels_equal_the_reference(tmp_path: Path, case: Case, dtype: torch.dtype) -> None:
    check(case, tmp_path, dtype)


@pytest.mark.parametrize(
    ("layout", "length"),
    [("BDL", n) for n in (1, 2, 3, 7, 8, 31, 32, 33)] + [("BLD", n) for n in (1, 2, 4, 7, 8, 17)],
)
def test_every_length(layout: str, length: int, tmp_path: Path) -> None:
    spec = make(channels=2, gates={"pre": False, "post": True}, bias="ungated")
    check(small_case(spec, layout, length), tmp_path, torch.float32)


@pytest.mark.parametrize("length", [7, 32, 72])
def test_a_hint_changes_no_bit(length: int, tmp_path: Path) -> None:
    spec = make(channels=2)
    case = small_case(spec, "BDL", length)
    tensors = random_tensors(spec, 1, length, dtype=torch.float32)
    seen = []
    for value in (0, 1):
        forward = dict(case.schedule.forward) | {"EVICT_LAST": value}
        hinted = dataclasses.replace(case.schedule, forward=tuple(forward.items()))
        runner = interpreted(spec, case.plan, hinted, tmp_path)
        seen.append(results(runner, *tensors, "BDL"))
    (y, gradients), (hinted_y, hinted_gradients) = seen
    assert_close(spec, *tensors, hinted_y, hinted_gradients, unit=FLOAT32)
    assert torch.equal(y, hinted_y)
    assert all(torch.equal(g, hinted_gradients[name]) for name, g in gradients.items())


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("layout", ["BDL", "BLD"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_plan(layout: str, saved: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    spec = make(skip="channel", bias="ungated")
    check(small_case(spec, layout, 11, batch=2, saved=saved), tmp_path, dtype)


@pytest.mark.parametrize("layout", ["BDL", "BLD"])
def test_short_conv_with_bias_and_silu(layout: str, tmp_path: Path) -> None:
    gates = {"pre": False, "post": False}
    spec = make(featurizer="none", gates=gates, bias="ungated", activation="silu")
    check(small_case(spec, layout, 11, batch=3), tmp_path, torch.float32)


@pytest.mark.parametrize("channels", [1, 31, 33])
def test_channels_that_do_not_fill_their_blocks(channels: int, tmp_path: Path) -> None:
    inner = {"kind": "explicit", "length": 2, "groups": 1}
    gates = {"pre": False, "post": False}
    spec = make(channels=channels, filter=inner, featurizer="none", gates=gates, skip="group")
    check(small_case(spec, "BLD", 9), tmp_path, torch.float32)


# ---- other ways to lie in memory ----------------------------------------------------------------


def time_sliced(x: Tensor) -> Tensor:
    wide = torch.full((x.shape[0], x.shape[1] + 3, x.shape[2] + 5), float("nan"), dtype=x.dtype)
    view = wide[:, 1:-2, 2:-3]
    return view.copy_(x)


def every_other(x: Tensor) -> Tensor:
    wide = torch.full((*x.shape, 2), float("nan"), dtype=x.dtype)
    return wide.select(3, 1).copy_(x)


def every_fourth(x: Tensor) -> Tensor:
    wide = torch.full((*x.shape, 4), float("nan"), dtype=x.dtype)
    return wide.select(3, 2).copy_(x)


def axes_swapped(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def batch_inside(x: Tensor) -> Tensor:
    return x.permute(1, 2, 0).contiguous().permute(2, 0, 1)


@pytest.mark.parametrize(
    "lay_out", [time_sliced, every_other, every_fourth, axes_swapped, batch_inside]
)
@pytest.mark.parametrize("layout", ["BDL", "BLD"])
def test_inputs_that_are_not_contiguous(
    layout: str, lay_out: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    spec = make(channels=2, featurizer="none", gates={"pre": False, "post": True})
    case = small_case(spec, layout, 13, batch=2, saved=True)
    runner = interpreted(spec, case.plan, case.schedule, tmp_path)
    inputs, parameters, dy = random_tensors(spec, 2, 13, dtype=torch.float32)
    laid_out = {name: lay_out(transposed(x, layout)) for name, x in inputs.items()}
    strange = {name: axes_swapped(p[None])[0] for name, p in parameters.items()}
    dy_laid_out = lay_out(transposed(dy, layout))
    y, gradients = results(runner, laid_out, strange, dy_laid_out, layout)
    assert_close(spec, inputs, parameters, dy, y, gradients, unit=FLOAT32)


def test_inputs_of_different_strides_and_expanded_gradients(tmp_path: Path) -> None:
    spec = make(channels=2, featurizer="none")
    case = small_case(spec, "BDL", 13, batch=2)
    runner = interpreted(spec, case.plan, case.schedule, tmp_path)
    inputs, parameters, _ = random_tensors(spec, 2, 13, dtype=torch.float32)
    mixed = {
        "q": every_other(inputs["q"]),
        "k": inputs["k"],
        "v": inputs["v"][:1].expand(2, -1, -1),
    }
    inputs["v"] = mixed["v"]
    dy = torch.ones(()).expand(2, 2, 13)  # of y.sum()
    y, gradients = results(runner, mixed, parameters, dy, "BDL")
    assert_close(spec, inputs, parameters, dy, y, gradients, unit=FLOAT32)


@pytest.mark.parametrize("projection", ["thirds", "interleaved"])
@pytest.mark.parametrize("layout", ["BDL", "BLD"])
@pytest.mark.parametrize("gates", [(True, True), (True, False)])  # three inputs, and two
def test_packed_features(
    layout: str, projection: str, gates: tuple[bool, bool], tmp_path: Path
) -> None:
    pre, post = gates
    spec = make(gates={"pre": pre, "post": post}, layout={"projection": projection})
    case = small_case(spec, layout, 11, batch=2)
    runner = interpreted(spec, case.plan, case.schedule, tmp_path)
    inputs, parameters, dy = random_tensors(spec, 2, 11, dtype=torch.float32)
    features = {"features": transposed(pack(spec, inputs), layout)}
    y = canonical(runner.forward_packed(features, parameters), layout)
    gradients = runner.gradients(features, parameters, transposed(dy, layout))
    packed = gradients.pop("features")
    assert packed.shape == features["features"].shape

    unpacked = runner.namespace.unpack([packed])
    gradients |= {
        name: canonical(g, layout) for name, g in zip(spec.inputs, unpacked, strict=True)
    }
    assert_close(spec, inputs, parameters, dy, y, gradients, unit=FLOAT32)


# ---- schedules ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "choices"),
    [
        (
            "BDL",
            [
                {"BLOCK_D": 1, "BLOCK_T": 256},
                {"BLOCK_D": 4, "BLOCK_T": 64, "TILES": 1},
                {"BLOCK_D": 32, "BLOCK_T": 16, "ROWS": 16, "TILES": 4},
                {"BLOCK_D": 2, "BLOCK_T": 256, "num_warps": 2},
            ],
        ),
        (
            "BLD",
            [
                {"BLOCK_D": 32, "BLOCK_T": 8, "TILES": 1},
                {"BLOCK_D": 32, "BLOCK_T": 16, "ROWS": 16},
                {"BLOCK_D": 64, "BLOCK_T": 8, "TILES": 8, "num_warps": 2},
            ],
        ),
    ],
)
def test_block_sizes_do_not_matter(
    layout: str, choices: list[dict[str, int]], tmp_path: Path
) -> None:
    spec = make(skip="channel", channels=4)
    inputs, parameters, dy = random_tensors(spec, 1, 35, dtype=torch.float32)
    laid_out = {name: transposed(x, layout) for name, x in inputs.items()}
    found = []
    for config in choices:
        case = small_case(spec, layout, 35, **config)
        runner = interpreted(spec, case.plan, case.schedule, tmp_path)
        y, gradients = results(runner, laid_out, parameters, transposed(dy, layout), layout)
        assert_close(spec, inputs, parameters, dy, y, gradients, unit=FLOAT32)
        found.append((y, gradients))
    for y, gradients in found[1:]:  # sums over time are in another order; nothing else is
        assert torch.equal(y, found[0][0])
        assert all(torch.equal(gradients[name], found[0][1][name]) for name in spec.inputs)


def test_the_same_call_gives_the_same_bits(tmp_path: Path) -> None:
    spec = make()
    case = small_case(spec, "BDL", 70)
    runner = interpreted(spec, case.plan, case.schedule, tmp_path)
    inputs, parameters, dy = random_tensors(spec, 1, 70, dtype=torch.float32)
    (y, first), (again, second) = (
        results(runner, inputs, parameters, dy, "BDL") for _ in range(2)
    )
    assert torch.equal(y, again)
    assert all(torch.equal(first[name], second[name]) for name in first)
