"""Recurrences over blocks of time, under Triton's interpreter, compute what the reference says.

Few programs each: several tiles along time, ragged ends, groups of several channels.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sh2gen.graph.reference import reference_gradients
from sh2gen.lower import plans
from sh2gen.runtime.operator import InterpreterRunner
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from tests.equivalence.test_interpreter import FLOAT32, check
from tests.strategies import register_profiles
from tests.strategies_schedules import Case, Tensors, assert_close, interpreted, random_tensors

register_profiles()
TILE = 256  # of 16 blocks of 16 steps
BOTH = {"pre": True, "post": True}


def make(modes: int = 3, groups: int = 2, width: int = 1, **fields: Any) -> OpSpec:
    """Only the convolution, unless fields say more."""
    inner: dict[str, Any] = {"kind": "modal", "modes": modes, "groups": groups}
    inner |= {"parametrisation": "log_poles"} | fields.pop("filter", {})
    return spec_from_dict({"op": "probe", "channels": groups * width, "filter": inner} | fields)


def small_case(spec: OpSpec, length: int, *, batch: int = 1, **config: int) -> Case:
    plan = plans(spec, "modal")[0]
    given = {"SEGMENTS": 16, "BLOCK_T": 16, "num_warps": 4, "maxnreg": 0, "PROGRAMS": 1} | config
    parts = {"PARTS": given.pop("PARTS", 1)}
    made = schedule(spec, plan, {"forward": given, "backward": given | parts})
    return Case(spec, plan, made, batch, length)


# ---- lengths, modes, structure ------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 7, 8, 15, 16, 17, 255, TILE, 257, 600])
def test_every_length(length: int, tmp_path: Path) -> None:
    spec = make(featurizer={"length": 3}, gates=BOTH, skip="channel")
    check(small_case(spec, length), tmp_path, torch.float32)


@pytest.mark.parametrize("modes", [1, 2, 16, 17, 33])
def test_every_number_of_modes(modes: int, tmp_path: Path) -> None:
    check(small_case(make(modes, groups=1), 300), tmp_path, torch.float32)


@pytest.mark.parametrize(
    "config",
    [
        {"SEGMENTS": 32},
        {"SEGMENTS": 64, "BLOCK_T": 16},
        {"SEGMENTS": 16, "BLOCK_T": 32},
        {"SEGMENTS": 32, "BLOCK_T": 32},
        {"SEGMENTS": 64, "BLOCK_T": 32},
        {"SEGMENTS": 128, "BLOCK_T": 16},
        {"SEGMENTS": 16, "BLOCK_T": 64},
    ],
)
def test_every_tile(config: dict[str, int], tmp_path: Path) -> None:
    length = 1 + 2 * config.get("SEGMENTS", 16) * config.get("BLOCK_T", 16)
    spec = make(groups=1, gates=BOTH, featurizer={"length": 2})
    check(small_case(spec, length, **config), tmp_path, torch.float32)


STRUCTURES: list[dict[str, Any]] = [
    {"width": 3, "skip": "group"},
    {"gates": {"pre": True}, "bias": "gated"},
    {"gates": {"post": True}, "bias": "ungated", "featurizer": {"length": 4}},
    {"gates": BOTH, "featurizer": {"length": 3}, "layout": {"projection": "interleaved"}},
]
P_GAMMA = {"filter": {"parametrisation": "p_gamma"}, "featurizer": {"length": 1}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("fields", [*STRUCTURES, P_GAMMA])
def test_every_structure(fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    check(small_case(make(**fields), 300, batch=2), tmp_path, dtype)


def test_modes_that_do_not_decay(tmp_path: Path) -> None:
    """p and gamma of minus infinity: exp of it is 0, and so is its gradient."""
    spec = make(3, **P_GAMMA)
    case = small_case(spec, 40)
    inputs, parameters, dy = random_tensors(spec, 1, 40, dtype=torch.float32)
    parameters["p"][0, 0] = parameters["gamma"][1, 1] = -math.inf
    runner = interpreted(spec, case.plan, case.schedule, tmp_path)
    y, found = gradients_of(spec, runner, inputs, parameters, dy)
    plain = {name: p.clone() for name, p in parameters.items()}
    plain["p"][0, 0] = plain["gamma"][1, 1] = -100.0
    expected, wanted = gradients_of(spec, runner, inputs, plain, dy)
    assert torch.equal(y, expected)
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=0, atol=1e-30), name


@pytest.mark.parametrize(
    ("parametrisation", "dtype"),
    [("log_poles", torch.float16), ("complex", torch.float64)],
)
def test_parameters_of_every_dtype(
    parametrisation: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Kernels compute with the same numbers in float32; gradients are rounded once."""
    spec = make(1, width=2, filter={"parametrisation": parametrisation}, featurizer={"length": 2})
    case = small_case(spec, 20)
    inputs, parameters, dy = random_tensors(spec, 1, 20, dtype=torch.float32)
    runner = interpreted(spec, case.plan, case.schedule, tmp_path)
    given = {name: p.to(dtype) for name, p in parameters.items()}
    y, found = gradients_of(spec, runner, inputs, given, dy)
    same = {name: p.float() for name, p in given.items()}
    expected, wanted = gradients_of(spec, runner, inputs, same, dy)
    assert torch.equal(y, expected)
    for name in given:
        assert found[name].dtype == dtype and torch.equal(found[name], wanted[name].to(dtype))


# ---- several programs for one channel -----------------------------------------------------------


@pytest.mark.parametrize("programs", [8, 16])
@pytest.mark.parametrize("length", [7 * TILE + 1, 8 * TILE, 16 * TILE])
def test_every_number_of_splits(programs: int, length: int, tmp_path: Path) -> None:
    spec = make(featurizer={"length": 3}, gates=BOTH, skip="channel", groups=1)
    case = small_case(spec, length, PROGRAMS=programs)
    check(case, tmp_path, torch.float32)


@pytest.mark.parametrize(
    "fields",
    [
        {"groups": 1, "width": 2, "skip": "group"},
        {"gates": {"post": True}, "bias": "ungated", "featurizer": {"length": 4}, "groups": 1},
        {
            "groups": 1,
            "gates": BOTH,
            "featurizer": {"length": 2},
            "layout": {"projection": "interleaved"},
        },
        {
            "groups": 1,
            "modes": 9,
            "filter": {"parametrisation": "complex"},
            "featurizer": {"length": 3},
        },
    ],
    ids=str,
)
def test_splits_of_every_structure(fields: dict[str, Any], tmp_path: Path) -> None:
    case = small_case(make(**fields), 7 * TILE + 7, batch=2, PROGRAMS=512, PARTS=2)
    check(case, tmp_path, torch.float16)


@pytest.mark.parametrize(
    ("parametrisation", "dtype"), [("log_poles", torch.float16), ("complex", torch.float32)]
)
def test_splits_change_no_bit(parametrisation: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Outputs and gradients of inputs are those of one walk along the sequence: splits do the same
    arithmetic in the same order.
    """
    spec = make(
        groups=1,
        filter={"parametrisation": parametrisation},
        featurizer={"length": 4},
        gates=BOTH,
        skip="channel",
    )
    length = 7 * TILE + 9
    inputs, parameters, dy = random_tensors(spec, 1, length, dtype=dtype)
    found: list[list[Tensor]] = []
    for programs in (1, 64):
        case = small_case(spec, length, PROGRAMS=programs)
        folder = tmp_path / str(programs)
        folder.mkdir()
        runner = interpreted(spec, case.plan, case.schedule, folder)
        y, gradients = gradients_of(spec, runner, inputs, parameters, dy)
        found.append([y, *(gradients[name] for name in inputs)])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_few_channels_are_cut_into_four_splits_or_more(tmp_path: Path) -> None:
    """Of two tiles or more, for as many programs as are wanted or nearly; or not at all."""
    case = small_case(make(), 1)
    grid = interpreted(case.spec, case.plan, case.schedule, tmp_path).namespace.walk_grid

    def walked(batch: int, steps: int, wanted: int) -> tuple[int, int, int]:
        """Splits, tiles of each, and programs of 2 channels."""
        config = dict(case.schedule.forward) | {"PROGRAMS": wanted}
        found = grid(batch, steps, 2, 1, config)
        return found.splits, found.tiles, found.programs

    assert walked(1, 100 * TILE, 8) == (4, 25, 8)  # 2 channels
    assert walked(1, 99 * TILE + 1, 8) == (4, 25, 8)
    assert walked(3, 100 * TILE, 8) == (4, 25, 24)  # whatever the batch
    assert walked(1, 100 * TILE, 7) == (1, 100, 2)
    assert walked(1, 8 * TILE, 512) == (4, 2, 8)
    assert walked(1, 7 * TILE + 1, 512) == (4, 2, 8)
    assert walked(1, 7 * TILE, 512) == (1, 7, 2)
    assert walked(1, 9 * TILE, 9) == (1, 9, 2)  # 3 splits of 3 tiles
    assert walked(1, TILE, 512) == (1, 1, 2)
    assert walked(0, 100 * TILE, 512)[2] == 0


def test_ranges_are_refused(tmp_path: Path) -> None:
    """They would begin with a state of zero, silently."""
    case = small_case(make(), 1)
    n = interpreted(case.spec, case.plan, case.schedule, tmp_path).namespace
    inputs, parameters, dy = random_tensors(case.spec, 1, 600, dtype=torch.float32)
    given = list(inputs.values()), list(parameters.values())
    for arguments in ({"context": 8}, {"begin": 8}, {"end": 256}):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            n.launch_forward(*given, **arguments)
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            n.launch_backward(dy, *given, n.launch_forward(*given)[1:], **arguments)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    spec = make(
        draw(st.integers(1, 20)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
        gates={"pre": draw(st.booleans()), "post": draw(st.booleans())},
        featurizer=draw(st.just("none") | st.integers(1, 4).map(lambda taps: {"length": taps})),
        skip=draw(st.sampled_from(("none", "channel", "group"))),
        filter={"parametrisation": draw(st.sampled_from(("log_poles", "p_gamma")))},
    )
    config = {
        "SEGMENTS": draw(st.sampled_from((16, 32))),
        "BLOCK_T": draw(st.sampled_from((16, 32))),
        "PROGRAMS": draw(st.sampled_from((1, 8, 512))),
        "PARTS": draw(st.integers(1, 2)),
    }
    tile = config["SEGMENTS"] * config["BLOCK_T"]
    length = draw(st.integers(1, 3 * tile // 2) | st.just(7 * 256 + 5))
    return small_case(spec, length, batch=draw(st.integers(1, 2)), **config)


@given(cases(), st.sampled_from((torch.float32, torch.float16)))
@settings(
    max_examples=max(10, settings().max_examples // 20),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes minutes here
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_drawn_operators(tmp_path: Path, case: Case, dtype: torch.dtype) -> None:
    check(case, tmp_path, dtype)


# ---- numbers ------------------------------------------------------------------------------------


def gradients_of(
    spec: OpSpec, runner: InterpreterRunner, inputs: Tensors, parameters: Tensors, dy: Tensor
) -> tuple[Tensor, Tensors]:
    return runner.forward(inputs, parameters), runner.gradients(inputs, parameters, dy)


@pytest.mark.parametrize("programs", [1, 64])
def test_poles_from_slowest_to_fastest(programs: int, tmp_path: Path) -> None:
    """Log-poles of -50 to -1e-7: nothing overflows, nothing is lost."""
    poles = -torch.logspace(math.log10(50), -7, 16, dtype=torch.float64)
    spec = make(16, groups=1, gates=BOTH, featurizer={"length": 3}, skip="channel")
    case = small_case(spec, 2000, PROGRAMS=programs)
    runner = interpreted(spec, case.plan, case.schedule, tmp_path)
    inputs, parameters, dy = random_tensors(spec, 1, 2000, dtype=torch.float32)
    parameters["log_poles"] = poles.float()[None]
    y, gradients = gradients_of(spec, runner, inputs, parameters, dy)
    assert_close(spec, inputs, parameters, dy, y, gradients, unit=FLOAT32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_modes_that_nearly_cancel(dtype: torch.dtype, tmp_path: Path) -> None:
    """Pairs of modes of some hundred times the filter that they make: operands of one term would
    be off by as much. float32 has the rounding of its exponentials left, so many times over.
    """
    spec = make(4, groups=1)
    case = small_case(spec, 600)
    runner = interpreted(spec, case.plan, case.schedule, tmp_path)
    inputs, parameters, dy = random_tensors(spec, 1, 600, dtype=dtype)
    parameters["log_poles"] = torch.tensor([[-0.01, -0.0101, -0.002, -0.00202]])
    parameters["residues"] = torch.tensor([[100.0, -100.0, 30.0, -30.0]])
    y, gradients = gradients_of(spec, runner, inputs, parameters, dy)
    wide = {name: x.double() for name, x in inputs.items()}
    weights = {name: x.double() for name, x in parameters.items()}
    value, expected = reference_gradients(spec, wide, weights, dy.double())
    for found, exact in ((y, value), (gradients["x"], expected["x"])):
        error = (found.double() - exact).norm() / exact.norm()
        once = (exact.to(dtype).double() - exact).norm() / exact.norm()
        assert error < (2 * once if dtype == torch.float16 else 2e-4), error


@pytest.mark.parametrize("parametrisation", ["log_poles", "complex"])
@pytest.mark.parametrize("pole", [-1e-3, -3e-3, -5e-3, -0.02, -0.06, -3.0])
def test_an_impulse_decays_as_its_mode(pole: float, parametrisation: str, tmp_path: Path) -> None:
    """Relative to what is left, if only 1e-30, after tiles that forget little, much and all."""
    spec = make(1, groups=1, filter={"parametrisation": parametrisation})
    case = small_case(spec, 4 * TILE)
    runner = interpreted(spec, case.plan, case.schedule, tmp_path)
    x = torch.zeros(1, 1, 4 * TILE)
    x[..., 0] = 1
    parameters = {"log_poles": torch.tensor([[pole]])}
    if parametrisation == "complex":
        parameters |= {"frequencies": torch.zeros(1, 1), "residues_real": torch.ones(1, 1) / 2}
        parameters["residues_imag"] = torch.zeros(1, 1)
    else:
        parameters["residues"] = torch.ones(1, 1)
    y = runner.forward({"x": x}, parameters).double()
    decay = float(torch.tensor(pole))
    exact = torch.exp(decay * torch.arange(4 * TILE, dtype=torch.float64))
    assert ((y - exact).abs() <= 1e-5 * exact + 1e-35).all()


@pytest.mark.parametrize("programs", [1, 64])
def test_a_slow_mode_does_not_drift(programs: int, tmp_path: Path) -> None:
    """After 200 tiles, the response to an impulse at the start: exp(a t), to 1e-5."""
    length, pole = 200 * TILE, -2e-5
    spec = make(1, groups=1)
    case = small_case(spec, length, PROGRAMS=programs)
    runner = interpreted(spec, case.plan, case.schedule, tmp_path)
    x = torch.zeros(1, 1, length)
    x[..., 0] = 1
    parameters = {"log_poles": torch.tensor([[pole]]), "residues": torch.ones(1, 1)}
    y = runner.forward({"x": x}, parameters).double()
    exact = torch.exp(pole * torch.arange(length, dtype=torch.float64))
    late = slice(length - TILE, length)
    assert ((y - exact) / exact)[..., late].abs().max() < 1e-5
