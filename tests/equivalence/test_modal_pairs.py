"""Pairs of complex modes, under Triton's interpreter, compute what the reference says: output and
the gradients of log-poles, frequencies, both parts of residues, and everything else.
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

from sh2gen.graph.reference import reference, reference_gradients
from sh2gen.spec.operator import OpSpec
from tests.equivalence.test_interpreter import FLOAT32, check
from tests.equivalence.test_modal import BOTH, STRUCTURES, TILE, gradients_of, make, small_case
from tests.strategies import register_profiles
from tests.strategies_schedules import Case, Tensors, assert_close, interpreted, random_tensors

register_profiles()


def pairs(modes: int = 3, groups: int = 2, width: int = 1, **fields: Any) -> OpSpec:
    return make(modes, groups, width, filter={"parametrisation": "complex"}, **fields)


def check_with(
    case: Case, folder: Path, parameters: Tensors, dtype: torch.dtype = torch.float32
) -> None:
    """`check`, of these log-poles and frequencies."""
    spec = case.spec
    inputs, drawn, dy = random_tensors(spec, case.batch, case.length, dtype=dtype)
    drawn |= {name: x.float() for name, x in parameters.items()}
    runner = interpreted(spec, case.plan, case.schedule, folder)
    y, gradients = gradients_of(spec, runner, inputs, drawn, dy)
    roundings = 0 if dtype == torch.float32 else 2
    assert_close(spec, inputs, drawn, dy, y, gradients, roundings=roundings, unit=FLOAT32)


# ---- lengths, modes, structure ------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 8, 15, 16, 17, 255, TILE, 257, 600])
def test_every_length(length: int, tmp_path: Path) -> None:
    spec = pairs(featurizer={"length": 3}, gates=BOTH, skip="channel")
    check(small_case(spec, length), tmp_path, torch.float32)


@pytest.mark.parametrize("modes", [1, 2, 8, 9, 17, 32])
def test_every_number_of_pairs(modes: int, tmp_path: Path) -> None:
    check(small_case(pairs(modes, groups=1), 300), tmp_path, torch.float32)


@pytest.mark.parametrize(
    "config",
    [
        {"SEGMENTS": 32},
        {"BLOCK_T": 32},
        {"SEGMENTS": 64, "BLOCK_T": 32},
        {"SEGMENTS": 128, "BLOCK_T": 16},
        {"SEGMENTS": 16, "BLOCK_T": 64},
    ],
)
def test_every_tile(config: dict[str, int], tmp_path: Path) -> None:
    length = 1 + 2 * config.get("SEGMENTS", 16) * config.get("BLOCK_T", 16)
    spec = pairs(groups=1, gates=BOTH, featurizer={"length": 2})
    check(small_case(spec, length, **config), tmp_path, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("fields", STRUCTURES)
def test_every_structure(fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    check(small_case(pairs(**fields), 300, batch=2), tmp_path, dtype)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Case, Tensors]:
    """Operators, and log-poles and frequencies of several magnitudes."""
    spec = pairs(
        draw(st.integers(1, 12)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
        gates={"pre": draw(st.booleans()), "post": draw(st.booleans())},
        featurizer=draw(st.just("none") | st.integers(1, 4).map(lambda taps: {"length": taps})),
        skip=draw(st.sampled_from(("none", "channel", "group"))),
    )
    config = {
        "SEGMENTS": draw(st.sampled_from((16, 32))),
        "BLOCK_T": draw(st.sampled_from((16, 32))),
    }
    length = draw(st.integers(1, 3 * config["SEGMENTS"] * config["BLOCK_T"] // 2))
    case = small_case(spec, length, batch=draw(st.integers(1, 2)), **config)
    assert spec.filter.modes is not None
    rng = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    uniform = torch.rand(2, spec.filter.groups, spec.filter.modes, generator=rng)
    decay = draw(st.sampled_from((1e-6, 1e-3, 0.1, 3.0, 100.0)))
    turn = draw(st.sampled_from((0.0, 1e-5, 0.01, math.pi, 20.0)))
    return case, {"log_poles": -decay * uniform[0], "frequencies": turn * (uniform[1] - 0.2)}


@given(cases(), st.sampled_from((torch.float32, torch.float16)))
@settings(
    max_examples=max(10, settings().max_examples // 20),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes minutes here
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_drawn_operators(tmp_path: Path, drawn: tuple[Case, Tensors], dtype: torch.dtype) -> None:
    check_with(drawn[0], tmp_path, drawn[1], dtype)


# ---- numbers ------------------------------------------------------------------------------------


def responses(
    spec: OpSpec, folder: Path, length: int, parameters: Tensors
) -> tuple[Tensor, Tensor]:
    """To an impulse at the start: of the kernel, and exactly, which is the filter."""
    case = small_case(spec, length)
    runner = interpreted(spec, case.plan, case.schedule, folder)
    x = torch.zeros(1, spec.channels, length)
    x[..., 0] = 1
    y = runner.forward({"x": x}, parameters).double()
    a, frequency, real, imag = (
        parameters[name].double()[..., None]
        for name in ("log_poles", "frequencies", "residues_real", "residues_imag")
    )
    time = torch.arange(length, dtype=torch.float64)
    terms = torch.exp(a * time) * (
        real * (frequency * time).cos() - imag * (frequency * time).sin()
    )
    return y, 2 * terms.sum(1)[None]


def test_frequencies_from_none_to_half_a_turn(tmp_path: Path) -> None:
    """The last one alternates in sign; gradients are those of everything."""
    spec = pairs(16, groups=1, gates=BOTH, featurizer={"length": 3}, skip="channel")
    poles = -torch.logspace(-1, -5, 16)[None]
    frequencies = torch.linspace(0, math.pi, 16)[None]
    check_with(small_case(spec, 700), tmp_path, {"log_poles": poles, "frequencies": frequencies})


@pytest.mark.parametrize("largest", [math.pi, -math.pi, 100.0, 1e4])
def test_angles_are_exact_beyond_turns(largest: float, tmp_path: Path) -> None:
    """Of frequencies that are no small numbers, where float32 of frequency * step is off by 1e-2:
    their response within three tiles, to some roundings of float32.
    """
    frequencies = largest * torch.tensor([[1.0, 0.9, 0.31, 0.007]])
    parameters = {
        "log_poles": torch.tensor([[-1e-3, -1e-4, -1e-2, -1e-5]]),
        "frequencies": frequencies,
        "residues_real": torch.tensor([[0.5, -0.3, 0.2, 0.1]]),
        "residues_imag": torch.tensor([[0.1, 0.4, -0.2, 0.3]]),
    }
    y, exact = responses(pairs(4, groups=1), tmp_path, 3 * TILE, parameters)
    assert (y - exact).abs().max() < 2e-6


def test_poles_from_slowest_to_fastest(tmp_path: Path) -> None:
    """Log-poles of -50 to -1e-7: nothing overflows, nothing is lost."""
    poles = -torch.logspace(math.log10(50), -7, 16, dtype=torch.float64)[None]
    frequencies = torch.linspace(3, 0.1, 16)[None]
    spec = pairs(16, groups=1, gates=BOTH, featurizer={"length": 3}, skip="channel")
    check_with(small_case(spec, 700), tmp_path, {"log_poles": poles, "frequencies": frequencies})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pairs_that_nearly_cancel(dtype: torch.dtype, tmp_path: Path) -> None:
    """Two pairs that differ by a hundredth of their decay, two by as much of their frequency."""
    spec = pairs(4, groups=1)
    case = small_case(spec, 600)
    runner = interpreted(spec, case.plan, case.schedule, tmp_path)
    inputs, parameters, dy = random_tensors(spec, 1, 600, dtype=dtype)
    parameters["log_poles"] = torch.tensor([[-0.01, -0.0101, -0.02, -0.02]])
    parameters["frequencies"] = torch.tensor([[0.3, 0.3, 0.02, 0.0202]])
    parameters["residues_real"] = torch.tensor([[100.0, -100.0, 30.0, -30.0]])
    parameters["residues_imag"] = torch.tensor([[50.0, -50.0, -10.0, 10.0]])
    y, gradients = gradients_of(spec, runner, inputs, parameters, dy)
    wide = {name: x.double() for name, x in inputs.items()}
    weights = {name: x.double() for name, x in parameters.items()}
    value, expected = reference_gradients(spec, wide, weights, dy.double())
    for found, exact in ((y, value), (gradients["x"], expected["x"])):
        error = (found.double() - exact).norm() / exact.norm()
        once = (exact.to(dtype).double() - exact).norm() / exact.norm()
        assert error < (2 * once if dtype == torch.float16 else 2e-4), error


@pytest.mark.parametrize("frequency", [0.0, 1e-6, 0.37, math.pi, 2.9])
def test_a_slow_pair_does_not_drift(frequency: float, tmp_path: Path) -> None:
    """After 200 tiles, size and phase of the response to an impulse at the start."""
    length = 200 * TILE
    parameters = {
        "log_poles": torch.tensor([[-2e-5]]),
        "frequencies": torch.tensor([[frequency]]),
        "residues_real": torch.full((1, 1), 0.3),
        "residues_imag": torch.full((1, 1), -0.4),
    }
    y, exact = responses(pairs(1, groups=1), tmp_path, length, parameters)
    late = slice(length - TILE, length)
    size = math.exp(-2e-5 * length)  # that of 2 R exp(a t)
    assert (y - exact)[..., late].abs().max() < 1.5e-5 * size


def test_pairs_without_frequency_are_real_modes(tmp_path: Path) -> None:
    """Of residues twice as large; the gradient of a frequency of a real residue is then zero."""
    alone, others = (make(4, groups=1), pairs(4, groups=1))
    inputs, parameters, dy = random_tensors(alone, 1, 300, dtype=torch.float32)
    zero = torch.zeros(1, 4)
    half = parameters["residues"] / 2
    same = {"log_poles": parameters["log_poles"], "frequencies": zero}
    same |= {"residues_real": half, "residues_imag": zero}
    found = []
    for spec, weights in ((alone, parameters), (others, same)):
        case = small_case(spec, 300)
        (tmp_path / spec.digest).mkdir()
        runner = interpreted(spec, case.plan, case.schedule, tmp_path / spec.digest)
        found.append(gradients_of(spec, runner, inputs, weights, dy))
    (y, gradients), (y_pairs, gradients_pairs) = found
    close = {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(y_pairs, y, **close)
    torch.testing.assert_close(gradients_pairs["x"], gradients["x"], **close)
    torch.testing.assert_close(gradients_pairs["log_poles"], gradients["log_poles"], **close)
    torch.testing.assert_close(
        gradients_pairs["residues_real"], 2 * gradients["residues"], **close
    )
    assert not gradients_pairs["frequencies"].any() and not gradients_pairs["residues_imag"].any()


def test_a_conjugate_is_the_same_pair(tmp_path: Path) -> None:
    """Frequencies and imaginary parts of the other sign: the same filter."""
    spec = pairs(3, groups=1)
    inputs, parameters, dy = random_tensors(spec, 1, 300, dtype=torch.float32)
    odd = ("frequencies", "residues_imag")
    others = {name: -x if name in odd else x for name, x in parameters.items()}
    case = small_case(spec, 300)
    runner = interpreted(spec, case.plan, case.schedule, tmp_path)
    y, gradients = gradients_of(spec, runner, inputs, parameters, dy)
    y_other, gradients_other = gradients_of(spec, runner, inputs, others, dy)
    torch.testing.assert_close(y_other, y, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        sign = -1 if name in odd else 1
        torch.testing.assert_close(gradients_other[name], sign * gradient, rtol=1e-4, atol=1e-3)
    assert torch.allclose(reference(spec, inputs, others), reference(spec, inputs, parameters))
