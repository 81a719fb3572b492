"""A sequence in chunks, each after the state that the one before has left, is the whole sequence:
any split, forward and backward through the states, by every algorithm.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sh2gen.emit.emit import emit
from sh2gen.graph.reference import reference_gradients
from sh2gen.lower import plans
from sh2gen.runtime.operator import InterpreterRunner, Operator, OperatorRunner
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from sh2gen.verify.verify import verify
from tests.equivalence.test_interpreter import FLOAT32
from tests.strategies import register_profiles
from tests.strategies_schedules import (
    Tensors,
    assert_close,
    canonical,
    interpreted,
    random_tensors,
    transposed,
    written,
)

register_profiles()
BOTH = {"pre": True, "post": True}
CARRIED = {"initial": True, "final": True}
FILTERS: dict[str, dict[str, Any]] = {
    "modal": {"kind": "modal", "modes": 3, "groups": 2, "parametrisation": "log_poles"},
    "direct": {"kind": "explicit", "length": 4, "groups": 2},
    "toeplitz": {"kind": "explicit", "length": 20, "groups": 2},
    "fft": {"kind": "explicit", "length": 20, "groups": 2},
}
PARAMETRISATIONS = ("log_poles", "complex")
SMALL: dict[str, dict[str, int]] = {
    "modal": {"SEGMENTS": 16, "BLOCK_T": 16, "num_warps": 4, "maxnreg": 0, "PROGRAMS": 1},
}
EXPONENTS = 4e-5  # exp() of float32 numbers, as far from float64 as these may be, and no more


def make(algorithm: str, **fields: Any) -> OpSpec:
    inner = FILTERS[algorithm] | fields.pop("filter", {})
    base: dict[str, Any] = {"op": "probe", "channels": 4, "filter": inner, "state": CARRIED}
    return spec_from_dict(base | fields)


def runner_of(
    spec: OpSpec, algorithm: str, folder: Path, *, layout: str = "BDL", programs: int = 1
) -> InterpreterRunner | OperatorRunner:
    """Kernels under the interpreter; of fft, which has none, plain PyTorch."""
    plan = next(p for p in plans(spec, algorithm) if p.layout == layout)
    config = SMALL[algorithm] | {"PROGRAMS": programs} if algorithm in SMALL else None
    made = schedule(spec, plan, {"forward": config, "backward": config} if config else None)
    if plan.kernels:
        return interpreted(spec, plan, made, folder)
    return OperatorRunner(Operator(written(spec, plan, made, folder)), "eager")


def names_of(runner: InterpreterRunner | OperatorRunner) -> Any:
    """What the file of a runner defines."""
    return runner.namespace if hasattr(runner, "namespace") else runner.operator.namespace


def chunked(
    runner: InterpreterRunner | OperatorRunner,
    inputs: Tensors,
    parameters: Tensors,
    dy: Tensor,
    cuts: list[int],
) -> tuple[Tensor, Tensors]:
    """y (B, D, L) and gradients, computed between the cuts."""
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    weights = {name: x.clone().requires_grad_() for name, x in parameters.items()}
    parts: list[Tensor] = []
    state: Any = None
    for begin, end in itertools.pairwise(cuts):
        steps = {n: transposed(x[..., begin:end], runner.layout) for n, x in leaves.items()}
        y, state = runner.chunk(steps, weights, state)
        parts.append(canonical(y, runner.layout))
    whole = torch.cat(parts, 2)
    named = leaves | weights
    return whole, dict(
        zip(named, torch.autograd.grad(whole, list(named.values()), dy), strict=True)
    )


def check(
    spec: OpSpec,
    algorithm: str,
    folder: Path,
    cuts: list[int],
    *,
    batch: int = 1,
    layout: str = "BDL",
    programs: int = 1,
) -> None:
    runner = runner_of(spec, algorithm, folder, layout=layout, programs=programs)
    inputs, parameters, dy = random_tensors(spec, batch, cuts[-1], dtype=torch.float32)
    y, gradients = chunked(runner, inputs, parameters, dy, cuts)
    if algorithm == "fft":  # its errors are relative to a row, not to an element
        expected, others = reference_gradients(spec, inputs, parameters, dy)
        for got, wanted in [(y, expected), *((gradients[n], others[n]) for n in gradients)]:
            assert (got - wanted).norm() <= 32 * FLOAT32 * wanted.norm()
        return
    assert_close(spec, inputs, parameters, dy, y, gradients, unit=FLOAT32)


# ---- splits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
@pytest.mark.parametrize(
    "cuts",
    [[0, 300], [0, 1, 2, 40], [0, 256, 512], [0, 257, 300]],
    ids=str,
)
def test_modal_chunks(cuts: list[int], parametrisation: str, tmp_path: Path) -> None:
    inner = {"parametrisation": parametrisation}
    spec = make("modal", filter=inner, featurizer={"length": 3}, gates=BOTH, skip="channel")
    check(spec, "modal", tmp_path, cuts, batch=2)


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
@pytest.mark.parametrize("cuts", [[0, 1800], [0, 3, 1801]], ids=str)
def test_modal_chunks_in_splits(cuts: list[int], parametrisation: str, tmp_path: Path) -> None:
    """Chunks that several programs share: states enter, pass between and leave them."""
    inner = {"parametrisation": parametrisation, "groups": 1}
    spec = make("modal", channels=1, filter=inner, featurizer={"length": 3}, gates=BOTH)
    check(spec, "modal", tmp_path, cuts, batch=2, programs=64)


@pytest.mark.parametrize("layout", ["BDL", "BLD"])
@pytest.mark.parametrize("algorithm", ["direct", "toeplitz", "fft"])
@pytest.mark.parametrize("cuts", [[0, 1, 2, 20], [0, 40, 47, 70]], ids=str)
def test_chunks_of_finite_filters(
    algorithm: str, layout: str, cuts: list[int], tmp_path: Path
) -> None:
    spec = make(algorithm, featurizer={"length": 3}, gates=BOTH, skip="channel")
    check(spec, algorithm, tmp_path, cuts, batch=2, layout=layout)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"gates": {"post": True}, "bias": "ungated"},
        {"gates": BOTH, "featurizer": {"length": 4}, "layout": {"projection": "interleaved"}},
        {"featurizer": {"length": 1}},
        {"filter": {"parametrisation": "p_gamma", "groups": 4, "modes": 17}},
        {"filter": {"parametrisation": "complex", "groups": 4, "modes": 9}},
        {"filter": {"parametrisation": "complex", "groups": 1, "modes": 32}, "skip": "group"},
    ],
    ids=str,
)
def test_every_structure(fields: dict[str, Any], tmp_path: Path) -> None:
    check(make("modal", **fields), "modal", tmp_path, [0, 130, 300])


@st.composite
def splits(draw: st.DrawFn) -> tuple[str, OpSpec, list[int], int]:
    algorithm = draw(st.sampled_from(("modal", "direct", "toeplitz")))
    modal = algorithm == "modal"
    taps: dict[str, Any] = {}
    if modal:
        parametrisation = draw(st.sampled_from(PARAMETRISATIONS))
        taps = {"modes": draw(st.integers(1, 5)), "parametrisation": parametrisation}
    if algorithm == "direct":
        taps = {"length": draw(st.integers(1, 9))}
    if algorithm == "toeplitz":
        taps = {"length": draw(st.integers(2, 40))}
    spec = make(
        algorithm,
        filter=taps,
        gates={"pre": draw(st.booleans()), "post": draw(st.booleans())},
        featurizer=draw(st.just("none") | st.integers(1, 4).map(lambda taps: {"length": taps})),
        skip=draw(st.sampled_from(("none", "channel", "group"))),
    )
    length = draw(st.integers(1, 400 if modal else 60))
    inner = draw(st.lists(st.integers(1, max(1, length - 1)), max_size=3, unique=True))
    cuts = sorted({0, length, *(c for c in inner if c < length)})
    return algorithm, spec, cuts, draw(st.integers(1, 2))


@given(splits())
@settings(
    max_examples=max(12, settings().max_examples // 20),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes minutes here
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_any_split_is_the_whole(tmp_path: Path, drawn: tuple[str, OpSpec, list[int], int]) -> None:
    algorithm, spec, cuts, batch = drawn
    check(spec, algorithm, tmp_path, cuts, batch=batch)


def test_chunks_of_complex_modes_compile(tmp_path: Path) -> None:
    """Plain PyTorch of a state of pairs, without a graph break."""
    spec = make("modal", filter={"parametrisation": "complex"}, gates=BOTH)
    plan = plans(spec, "modal")[0]
    operator = Operator(written(spec, plan, schedule(spec, plan), tmp_path))
    inputs, parameters, _ = random_tensors(spec, 1, 70, dtype=torch.float32)
    function = getattr(operator.namespace, spec.op)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    y, state = compiled(*inputs.values(), *parameters.values())
    expected, last = function(*inputs.values(), *parameters.values())
    assert torch.allclose(y, expected, atol=1e-5)
    assert torch.allclose(state.modes, last.modes, atol=1e-5)


# ---- the state itself ---------------------------------------------------------------------------


def test_modal_state_is_the_sum_of_decayed_steps(tmp_path: Path) -> None:
    """s_n after L steps is sum over t of exp(a_n (L - 1 - t)) z[t], at any L; of -50 to -1e-7."""
    spec = make("modal", filter={"modes": 8, "groups": 4})
    runner = runner_of(spec, "modal", tmp_path)
    inputs, parameters, _ = random_tensors(spec, 1, 300, dtype=torch.float32)
    poles = -torch.logspace(math.log10(50), -7, 8, dtype=torch.float64)
    parameters["log_poles"] = poles.float().expand(4, 8).contiguous()
    _, state = runner.chunk(inputs, parameters, None)
    ahead = torch.arange(299, -1, -1, dtype=torch.float64)
    weights = torch.exp(poles.float().double()[:, None] * ahead)
    expected = torch.einsum("bdt,nt->bdn", inputs["x"].double(), weights)
    scale = torch.einsum("bdt,nt->bdn", inputs["x"].double().abs(), weights)
    assert state[1].dtype == torch.float32
    assert ((state[1] - expected).abs() <= 32 * FLOAT32 * scale + EXPONENTS * FLOAT32).all()


def test_the_state_of_pairs_is_real_and_imaginary_parts(tmp_path: Path) -> None:
    """As torch.view_as_complex reads them: sum over t of exp(a_n (L - 1 - t)) z[t], of decays from
    50 to 1e-7 and angles of up to 500 turns; by kernels and by plain PyTorch.
    """
    spec = make("modal", filter={"modes": 8, "groups": 4, "parametrisation": "complex"})
    kernels = runner_of(spec, "modal", tmp_path)
    plan = plans(spec, "modal")[0]
    (tmp_path / "eager").mkdir()
    path = written(spec, plan, schedule(spec, plan), tmp_path / "eager")
    inputs, parameters, _ = random_tensors(spec, 1, 300, dtype=torch.float32)
    poles = -torch.logspace(math.log10(50), -7, 8)
    frequencies = torch.tensor([0.1, 3.0, 0.0, 1e-4, math.pi, -2.0, 0.7, 10.5])
    parameters["log_poles"] = poles.expand(4, 8).contiguous()
    parameters["frequencies"] = frequencies.expand(4, 8).contiguous()
    ahead = torch.arange(299, -1, -1, dtype=torch.float64)
    weights = torch.exp(torch.complex(poles.double(), frequencies.double())[:, None] * ahead)
    x = inputs["x"].double()
    expected = torch.einsum("bdt,nt->bdn", x.to(torch.complex128), weights)
    scale = torch.einsum("bdt,nt->bdn", x.abs(), weights.abs())
    for runner in (kernels, OperatorRunner(Operator(path), "eager")):
        _, state = runner.chunk(inputs, parameters, None)
        assert state[1].dtype == torch.float32 and state[1].shape == (1, 4, 8, 2)
        error = (torch.view_as_complex(state[1]) - expected).abs()
        assert (error <= 32 * FLOAT32 * scale + EXPONENTS * FLOAT32).all()


def step_by_step(
    x: Tensor, parameters: Tensors, state: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """y and the last state of x (B, D, L) after a state, by s = exp(a) s + x and y = R s, the real
    part of that twice for pairs.
    """
    pairs = "frequencies" in parameters
    width = x.shape[1] // groups
    if pairs:
        a = torch.complex(parameters["log_poles"], parameters["frequencies"])
        residue = 2 * torch.complex(parameters["residues_real"], parameters["residues_imag"])
        s = torch.complex(state[..., 0], state[..., 1])
    else:
        a, residue, s = parameters["log_poles"], parameters["residues"], state
    a, residue = (p.repeat_interleave(width, 0) for p in (a, residue))
    y = []
    for value in x.unbind(2):
        s = torch.exp(a) * s + value[..., None]
        y.append((residue * s).sum(2))
    whole = torch.stack(y, 2)
    return (whole.real, torch.view_as_real(s)) if pairs else (whole, s)


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
@pytest.mark.parametrize("length", [1, 2, 255, 256, 300])
def test_between_two_states(length: int, parametrisation: str, tmp_path: Path) -> None:
    """From any state to a loss on y and on the last state: results and gradients of kernels and of
    plain PyTorch are those of the recurrence in float64. One residue is zero, one mode dies at
    once.
    """
    spec = make("modal", filter={"modes": 4, "parametrisation": parametrisation})
    kernels = runner_of(spec, "modal", tmp_path)
    plan = plans(spec, "modal")[0]
    (tmp_path / "eager").mkdir()
    path = written(spec, plan, schedule(spec, plan), tmp_path / "eager")
    inputs, parameters, dy = random_tensors(spec, 2, length, dtype=torch.float32)
    for name in parameters:
        if "residues" in name:
            parameters[name][:, 1] = 0
    parameters["log_poles"][:, 2] = -200
    rng = torch.Generator().manual_seed(0)
    parts = (2,) if parametrisation == "complex" else ()
    past, weight = (torch.randn(2, 4, 4, *parts, generator=rng) for _ in range(2))

    def results(function: Any, dtype: torch.dtype) -> list[Tensor]:
        x = inputs["x"].to(dtype).requires_grad_()
        weights = {n: p.to(dtype).requires_grad_() for n, p in parameters.items()}
        entering = past.to(dtype).requires_grad_()
        y, leaving = function(x, weights, entering)
        leaves = [x, *weights.values(), entering]
        above = [dy.to(dtype), weight.to(dtype)]
        return [y, leaving, *torch.autograd.grad([y, leaving], leaves, above)]

    def of(runner: Any) -> Any:
        def function(x: Tensor, weights: Tensors, entering: Tensor) -> tuple[Tensor, Tensor]:
            before = names_of(runner).zero_state_like(x)._replace(modes=entering)
            y, state = runner.chunk({"x": x}, weights, before)
            return y, state.modes

        return function

    exact = results(lambda *given: step_by_step(*given, groups=2), torch.float64)
    for runner in (kernels, OperatorRunner(Operator(path), "eager")):
        for got, wanted in zip(results(of(runner), torch.float32), exact, strict=True):
            assert got.dtype == torch.float32
            assert (got - wanted).norm() <= 2e-6 * wanted.norm() + 1e-30


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_gradient_of_the_state_alone(parametrisation: str, tmp_path: Path) -> None:
    """A loss on the last state only, by plain PyTorch in float64 and by kernels in float32."""
    inner = {"parametrisation": parametrisation}
    spec = make("modal", filter=inner, featurizer={"length": 3}, gates=BOTH)
    kernels = runner_of(spec, "modal", tmp_path)
    plan = plans(spec, "modal")[0]
    (tmp_path / "eager").mkdir()
    eager = OperatorRunner(
        Operator(written(spec, plan, schedule(spec, plan), tmp_path / "eager")), "eager"
    )
    inputs, parameters, _ = random_tensors(spec, 2, 300, dtype=torch.float32)
    torch.manual_seed(0)
    parts = (2,) if parametrisation == "complex" else ()
    past = (torch.randn(2, 3, 12), torch.randn(2, 4, 3, *parts))  # a ring of 3 slots, and modes
    weight = torch.randn(2, 4, 3, *parts)

    def gradients(runner: Any, dtype: torch.dtype) -> list[Tensor]:
        leaves = {n: x.to(dtype).requires_grad_() for n, x in inputs.items()}
        weights = {n: x.to(dtype).requires_grad_() for n, x in parameters.items()}
        state = [x.to(dtype).requires_grad_() for x in past]
        before = names_of(runner).zero_state_like(leaves["q"])
        y, after = runner.chunk(leaves, weights, before._replace(tails=state[0], modes=state[1]))
        loss = (after.modes * weight.to(dtype)).sum() + 0 * y.sum()
        everything = [*leaves.values(), *weights.values(), *state]
        return list(torch.autograd.grad(loss, everything))

    for got, wanted in zip(
        gradients(kernels, torch.float32), gradients(eager, torch.float64), strict=True
    ):
        assert (got - wanted).norm() <= 1e-5 * wanted.norm() + 1e-30


@pytest.mark.parametrize("length", [1, 2, 9, 40])
@pytest.mark.parametrize("room", [1, 3])
@pytest.mark.parametrize(
    ("algorithm", "layout"),
    [("direct", "BDL"), ("direct", "BLD"), ("toeplitz", "BDL"), ("modal", "BDL")],
)
def test_the_kernel_of_what_is_kept(
    algorithm: str, layout: str, room: int, length: int, tmp_path: Path
) -> None:
    """It leaves the rings that plain PyTorch leaves, of all steps and of as many as rows have, and
    zeros in slots beyond what is read.
    """
    fields = {"featurizer": {"length": 3}, "gates": BOTH}
    runner = runner_of(make(algorithm, **fields), algorithm, tmp_path, layout=layout)
    assert isinstance(runner, InterpreterRunner)
    names, spec = runner.namespace, make(algorithm, **fields)
    torch.manual_seed(length)
    inputs, parameters, _ = random_tensors(spec, 2, length, dtype=torch.float32)
    given = [transposed(x, layout) for x in inputs.values()]
    state = names.initial_state(2, spec.channels, steps=room)
    kept = [name for name, (lag, _) in names.RINGS.items() if lag]
    for name in kept:
        getattr(state, name).normal_()
    names.move_to(state, slice(None), torch.tensor([5, 17]))
    past = [*(getattr(state, name) for name in kept), state.count]
    for ends in (None, torch.tensor([length, max(0, length - 4)], dtype=torch.int32)):
        more = () if ends is None else (ends,)
        weights = list(parameters.values())
        *found, count, done = names.launch_leave(given, weights, past, ends)
        wanted = names.eager_leave((*given, *weights, *past, *more), ends is not None)
        expected = state.count + (length if ends is None else ends)
        assert torch.equal(count, expected)
        assert torch.equal(done, count[:, None].expand(done.shape))
        for name, a, b in zip(kept, found, wanted, strict=True):
            lag, rows = names.RINGS[name][0], torch.arange(2)
            torch.testing.assert_close(*(names.past_of(x, rows, count, lag) for x in (a, b)))
            beyond = names.past_of(a, rows, count, a.shape[1])[..., : a.shape[1] - lag]
            assert not beyond.any()


def test_a_state_that_goes_on_is_not_the_beginning(tmp_path: Path) -> None:
    """Dropping the state between chunks is seen: the checks above could not pass without it."""
    spec = make("modal", featurizer={"length": 3}, gates=BOTH)
    runner = runner_of(spec, "modal", tmp_path)
    inputs, parameters, dy = random_tensors(spec, 1, 64, dtype=torch.float32)
    second = {n: x[..., 32:] for n, x in inputs.items()}
    fresh, _ = runner.chunk(second, parameters, None)
    expected, _ = reference_gradients(spec, inputs, parameters, dy)
    assert (fresh - expected[..., 32:]).norm() > 0.01 * expected[..., 32:].norm()


# ---- what users call ----------------------------------------------------------------------------


@pytest.fixture(params=["modal", "pairs", "direct"])
def operator(request: pytest.FixtureRequest, tmp_path: Path) -> Operator:
    pairs = request.param == "pairs"
    algorithm = "modal" if pairs else request.param
    inner = {"parametrisation": "complex"} if pairs else {}
    spec = make(algorithm, filter=inner, featurizer={"length": 3}, gates=BOTH)
    plan = plans(spec, algorithm)[0]
    return Operator(written(spec, plan, schedule(spec, plan), tmp_path))


def test_module_packed_and_function_agree(operator: Operator) -> None:
    inputs, parameters, _ = random_tensors(operator.spec, 2, 20, dtype=torch.float32)
    module = operator.module()
    module.load_state_dict(parameters)
    tensors = [transposed(x, operator.layout) for x in inputs.values()]
    features = torch.cat(tensors, operator.namespace.CHANNEL)
    first = operator(*tensors, **parameters)
    for y, state in (module(*tensors), operator(features, **parameters), module(features)):
        assert torch.equal(y, first[0])
        assert all(torch.equal(a, b) for a, b in zip(state[:-1], first[1][:-1], strict=True))
    again = operator(*tensors, **parameters, state=first[1])
    assert torch.equal(module(*tensors, state=first[1])[0], again[0])
    assert torch.equal(module(features, state=first[1])[0], again[0])


def test_wrong_states_are_refused(operator: Operator) -> None:
    inputs, parameters, _ = random_tensors(operator.spec, 2, 20, dtype=torch.float32)
    tensors = [transposed(x, operator.layout) for x in inputs.values()]
    _, state = operator(*tensors, **parameters)
    field = state._fields[0]
    shorter = state._replace(**{field: state[0][:1]})
    with pytest.raises(ValueError, match=rf"state.{field} has shape .* expected"):
        operator(*tensors, **parameters, state=shorter)
    other = state._replace(**{field: state[0].int()})
    with pytest.raises(TypeError, match=rf"state.{field} is torch.int32, expected float32"):
        operator(*tensors, **parameters, state=other)
    with pytest.raises(TypeError, match="state has 3 fields"):
        operator(*tensors, **parameters, state=(*state, *state, *state)[:3])
    with pytest.raises(TypeError, match=rf"state.{field} is a int, expected a tensor"):
        operator(*tensors, **parameters, state=(1, *state[1:]))
    with pytest.raises(ValueError, match="a state of drafts is for decode and prefill alone"):
        operator(*tensors, **parameters, state=state._replace(draft=True))


def test_initial_or_final_alone(tmp_path: Path) -> None:
    inputs, parameters, _ = random_tensors(make("modal"), 1, 40, dtype=torch.float32)
    results = {}
    for name in ("initial", "final"):
        spec = make("modal", state={name: True})
        plan = plans(spec, "modal")[0]
        (tmp_path / name).mkdir()
        path = written(spec, plan, schedule(spec, plan), tmp_path / name)
        results[name] = Operator(path)
    x = inputs["x"]
    _, state = results["final"](x[..., :13], **parameters)
    later = results["initial"](x[..., 13:], **parameters, state=state)
    whole, _ = results["final"](x, **parameters)
    assert torch.allclose(later, whole[..., 13:], atol=1e-5)
    with pytest.raises(TypeError):
        results["final"](x, **parameters, state=state)


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_the_verifier_sees_a_lost_state(parametrisation: str, tmp_path: Path) -> None:
    """`chunks` fails for a runner that begins anew with every chunk, and only then."""
    spec = make("modal", filter={"parametrisation": parametrisation}, gates=BOTH)
    plan = plans(spec, "modal")[0]
    right = OperatorRunner(Operator(written(spec, plan, schedule(spec, plan), tmp_path)), "eager")

    class Forgetful(OperatorRunner):
        def chunk(self, inputs: Any, parameters: Any, state: Any) -> Any:
            return super().chunk(inputs, parameters, None)

    wrong = Forgetful(right.operator, "forgetful")
    for runner, ok in ((right, True), (wrong, False)):
        report = verify(spec, runner, dtype=torch.float32, shapes=[(1, 50)], properties=["chunks"])
        assert len(report.checks) > 5 and report.ok is ok


def test_source_says_stateful() -> None:
    """What is compiled ahead of time is what calls with a state launch, and nothing of it is in
    kernels of an operator without one.
    """
    ends = {"entry_ptr", "leaving_ptr", "d_entry_ptr", "d_leaving_ptr"}
    for state in ("none", CARRIED):
        spec = make("modal", state=state)
        plan = plans(spec, "modal")[0]
        source = emit(spec, plan, schedule(spec, plan))
        found = {name for kernel in source.kernels for name, _ in kernel.signature}
        past = {"history_ptr", "d_history_ptr"} if spec.lag else set()
        every = {*ends, "history_ptr", "d_history_ptr"}
        assert found & every == (set() if state == "none" else ends | past)
        assert ("load_initial_state" in source.text) == (state != "none")


def test_exact_chunks_add_two_rounded_gradients(tmp_path: Path) -> None:
    """Steps that two chunks read: torch adds their gradients in bfloat16."""
    inner = {"kind": "explicit", "length": 31, "groups": 4}
    gates = {"pre": True, "post": True}
    values = {"op": "short", "channels": 64, "filter": inner, "gates": gates}
    state = {"initial": True, "final": True}
    spec = spec_from_dict(values | {"precision": "exact", "state": state})
    plan = plans(spec)[0]
    path = tmp_path / "short.py"
    path.write_text(emit(spec, plan, schedule(spec, plan)).text)
    runner = OperatorRunner(Operator(path), "eager")
    for seed in range(3):
        options = {"shapes": [(1, 200)], "seed": seed}
        verify(
            spec, runner, dtype=torch.bfloat16, properties=["chunks", "equality"], **options
        ).require()


@pytest.mark.parametrize("algorithm", ["direct", "toeplitz"])
def test_chunks_of_a_slice_have_its_rungs(algorithm: str, tmp_path: Path) -> None:
    """Of a filter that decays: channels of the last groups alone are as among all."""
    decay = {"preset": "strong", "cache_length": 30}
    spec = make(algorithm, channels=8, filter={"kind": "decay", "groups": 4, "decay": decay})
    inputs, parameters, dy = random_tensors(spec, 1, 37, dtype=torch.float32)
    whole, gradients = chunked(
        runner_of(spec, algorithm, tmp_path), inputs, parameters, dy, [0, 37]
    )
    (tmp_path / "part").mkdir()
    runner = runner_of(spec.with_width(4, 2), algorithm, tmp_path / "part")
    part, _ = runner.sliced(spec, range(2, 4))
    some = {name: x[:, 4:] for name, x in inputs.items()}
    weights = {name: x[2:] for name, x in parameters.items()}
    y, found = chunked(part, some, weights, dy[:, 4:], [0, 11, 37])
    torch.testing.assert_close(y, whole[:, 4:], rtol=1e-5, atol=1e-5)
    for name, x in found.items():
        wanted = gradients[name][2:] if name in weights else gradients[name][:, 4:]
        torch.testing.assert_close(x, wanted, rtol=1e-5, atol=1e-5)
