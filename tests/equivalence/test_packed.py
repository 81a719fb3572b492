"""Rows that hold several documents: plans, plain PyTorch and kernels give what each document gives
alone, and nothing leaks from one to another.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from sh2gen.emit.emit import emit
from sh2gen.graph.reference import reference_gradients
from sh2gen.lower import plans
from sh2gen.plan.interpret import interpret
from sh2gen.plan.plan import Plan
from sh2gen.runtime.operator import InterpreterRunner, Operator, OperatorRunner
from sh2gen.schedule.config import interpreter_schedule, schedule
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.language import Sequences
from sh2gen.spec.operator import OpSpec
from sh2gen.verify.verify import verify
from tests.strategies import MODES, PAIRS, register_profiles, specs
from tests.strategies_schedules import random_tensors

register_profiles()
QUICK = settings(
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes minutes here
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    max_examples=max(8, settings().max_examples // 20),
)


def packed(spec: OpSpec) -> OpSpec:
    return dataclasses.replace(spec, sequences=Sequences.PACKED)


@st.composite
def borders(draw: st.DrawFn, longest: int) -> list[int]:
    """Where documents end: of any lengths, some of none or of one step."""
    lengths = st.one_of(st.integers(0, 3), st.integers(0, longest))
    found = draw(st.lists(lengths, min_size=1, max_size=8))
    assume(any(found))
    return list(itertools.accumulate(found))


@given(st.data())
def test_plans_mean_documents(data: st.DataObject) -> None:
    spec = packed(data.draw(specs(kinds=("explicit", "decay", "modal"))))
    ends = data.draw(borders(40))
    inputs, parameters, dy = random_tensors(spec, 1, ends[-1])
    begins = torch.tensor([0, *ends])
    step = torch.arange(ends[-1])
    position = step - begins[torch.searchsorted(begins, step, right=True) - 1]
    y, gradients = reference_gradients(spec, inputs, parameters, dy, method="direct", ends=ends)
    for plan in plans(spec):
        if plan.kernels:
            found, of = interpret(plan, spec, inputs | {"position": position}, parameters, dy)
            torch.testing.assert_close(found, y)
            for name, gradient in gradients.items():
                torch.testing.assert_close(of[name], gradient)


def run_of(spec: OpSpec, plan: Plan, folder: Path) -> list[OperatorRunner | InterpreterRunner]:
    """Plain PyTorch, and kernels under the interpreter."""
    made = interpreter_schedule(spec, plan) if plan.kernels else schedule(spec, plan)
    path = folder / f"{spec.digest}_{plan.name.replace('/', '_')}.py"
    path.write_text(emit(spec, plan, made).text)
    kernels = [InterpreterRunner(path)] if plan.kernels else []
    return [OperatorRunner(Operator(path), "eager"), *kernels]


@given(st.data())
@QUICK
def test_kernels_and_plain_pytorch(tmp_path: Path, data: st.DataObject) -> None:
    """By the property of the verifier: equality with float64 of each document alone, and that
    other values of one change no bit of the others.
    """
    kinds = ("explicit", "decay", "modal")
    spec = packed(data.draw(specs(9, kinds=kinds, max_groups=2, widths=(1, 2, 3))))
    plan = data.draw(st.sampled_from(plans(spec)))
    length = data.draw(st.sampled_from((1, 2, 7, 8, 29, 61, 130)))
    seed = data.draw(st.integers(0, 1000))
    for runner in run_of(spec, plan, tmp_path):
        report = verify(
            spec,
            runner,
            dtype=torch.float32,
            shapes=[(1, length)],
            seed=seed,
            properties=("documents",),
        )
        assert report.checks
        report.require()


GATED = {
    "op": "probe",
    "channels": 4,
    "featurizer": {"length": 3},
    "gates": {"pre": True, "post": True},
    "skip": "channel",
    "sequences": "packed",
}
SHORT = {"kind": "explicit", "length": 7, "groups": 2}
LONG = {"kind": "explicit", "length": 70, "groups": 2}


@pytest.mark.parametrize(
    ("inner", "wanted", "length"),
    [
        (LONG, "toeplitz/BDL/recompute", 700),
        (LONG, "toeplitz/BDL/recompute", 704),
        (LONG, "toeplitz/BLD/recompute", 304),
        (SHORT, "direct/BDL/recompute", 304),
        (MODES, "modal/BDL/save-states", 1120),
        (PAIRS, "modal/BDL/save-states", 600),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_documents_over_many_tiles(
    inner: dict[str, object], wanted: str, length: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Long ones and short ones, with borders at the edges of blocks and beside them. Words of two
    steps are read of rows of whole vectors in float16.
    """
    spec = spec_from_dict(GATED | {"filter": inner, "featurizer": {"length": 3 + length % 3 % 2}})
    plan = next(p for p in plans(spec) if p.name == wanted)
    *_, runner = run_of(spec, plan, tmp_path)
    ends = [5, 5, 6, 16, 31, 32, 33, 128, 129, 256, 259, length]
    inputs, parameters, dy = random_tensors(spec, 1, length, dtype=dtype)
    swap = plan.layout == "BLD"
    several = [length] * 40  # behind which programs have nothing to do
    own = runner.of_documents(torch.tensor([0, *ends, *several], dtype=torch.int32))
    given_ = {n: x.mT.contiguous() if swap else x for n, x in inputs.items()}
    y = own.forward(given_, parameters)
    found = own.gradients(given_, parameters, dy.mT.contiguous() if swap else dy)
    wanted_y, gradients = reference_gradients(
        spec, inputs, parameters, dy, method="direct", ends=ends
    )
    close = 2e-5 if dtype == torch.float32 else 4e-3
    for name, value in ({"y": wanted_y} | gradients).items():
        result = y if name == "y" else found[name]
        result = result.mT if swap and result.dim() == 3 else result
        error = (result.double() - value).abs().max() / value.abs().max()
        assert error < close, name
