"""Random operators, step by step: plain PyTorch and interpreted kernels compute the whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.runtime.operator import InterpreterRunner, Operator, OperatorRunner
from sh2gen.schedule.config import interpreter_schedule, schedule
from sh2gen.spec.decode import spec_from_dict
from sh2gen.verify.verify import verify
from tests.strategies import register_profiles, specs

register_profiles()

KINDS = ("explicit", "decay", "freeform", "modal")


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_operator_decodes(data: st.DataObject, tmp_path: Path) -> None:
    """A file's kernel for steps follows from the operator, whichever plan it is of."""
    spec = data.draw(specs(40, kinds=KINDS))
    plan = data.draw(st.sampled_from(plans(spec)))
    source = emit(spec, plan, schedule(spec, plan))
    path = tmp_path / f"{source.digest}.py"
    path.write_text(source.text)
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 60)))
    options: dict[str, Any] = {"shapes": [shape], "properties": ["decode"]}
    runners: list[Any] = [OperatorRunner(Operator(path), "eager")]
    if plan.kernels:
        runners.append(InterpreterRunner(path))
    for runner in runners:
        verify(spec, runner, dtype=torch.float32, **options).require()


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    "inner",
    [
        {"kind": "explicit", "length": 5, "groups": 4},
        {"kind": "explicit", "length": 40, "groups": 4},
        {"kind": "modal", "modes": 3, "groups": 64, "parametrisation": "log_poles"},
    ],
    ids=["few", "blocks", "modes"],
)
def test_other_configs_decode_the_same(inner: Any, wide: bool, tmp_path: Path) -> None:
    """Of narrow and of doubled programs, whatever is the default; in the interpreter."""
    fields = {"op": "other_steps", "channels": 64, "filter": inner, "featurizer": {"length": 3}}
    spec = spec_from_dict(fields | {"gates": {"pre": True, "post": True}})
    plan = next(p for p in plans(spec) if p.step is not None)
    default = interpreter_schedule(spec, plan)
    blocks = 16 if inner.get("length") == 40 else 0
    # One column is more than no program is wide for: no legal knob is as low.
    own = {"BLOCK_D": 16, "CHUNK": blocks, "DOUBLE": int(wide), "num_warps": 1}
    path = tmp_path / "other_steps.py"
    changed = replace(default, decode=tuple(own.items()))
    assert changed.decode != default.decode
    path.write_text(emit(spec, plan, changed).text)
    runner = InterpreterRunner(path)
    seen = []
    launch = runner.namespace.launch

    def noted(kernel: Any, *arguments: Any, config: Any, **options: Any) -> Any:
        if kernel.__name__.endswith("_decode"):
            seen.append(config["BLOCK_D"])
        return launch(kernel, *arguments, config=config, **options)

    runner.namespace.launch = noted
    report = verify(spec, runner, dtype=torch.float32, shapes=[(2, 50)], properties=["decode"])
    report.require()
    assert set(seen) == {32 if wide else 16}


@pytest.mark.parametrize("taps", [17, 130, 600])
def test_long_filters_are_read_in_blocks(taps: int, tmp_path: Path) -> None:
    """By kernels, of groups whose channels share loads, all, some or none; also beyond a chunk."""
    for width in (1, 12, 32):
        inner = {"kind": "explicit", "length": taps, "groups": 2, "taps": "lag_last"}
        fields = {"op": f"long_{width}", "channels": 2 * width, "filter": inner, "bias": "ungated"}
        spec = spec_from_dict(fields)
        plan = plans(spec, "toeplitz")[0]
        path = tmp_path / f"{width}.py"
        path.write_text(emit(spec, plan, schedule(spec, plan)).text)
        names = InterpreterRunner(path).namespace
        torch.manual_seed(0)
        weights = [torch.randn(p.shape) for p in spec.parameters]
        x = torch.randn(2, 2 * width, taps + 40)
        kernel, plain = (names.initial_state(2, 2 * width, steps=2) for _ in range(2))
        for state in (kernel, plain):  # as if the last taps + 36 steps had been taken
            names.move_to(state, slice(None), torch.tensor([taps + 36] * 2))
            keep = names.keep_in_ring
            rows = torch.arange(2)
            last = x[..., 37 : taps + 36]
            keep(state.z, last, rows, state.count - last.shape[2])
        for t in (taps + 36, taps + 38):
            now = [x[..., t : t + 2]]
            y = names.launch_decode(now, weights, kernel, None)
            wanted = names.eager_decode(now, weights, plain, None)
            assert torch.allclose(y, wanted, rtol=1e-4, atol=1e-4 * taps**0.5)
        assert torch.equal(kernel.z, plain.z) and torch.equal(kernel.count, plain.count)
