"""What is timed: bounds, and calls that compute the operator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sh2gen.base.resources import folder
from sh2gen.bench.baselines.base import Implementation
from sh2gen.bench.worker import calls_of
from sh2gen.runtime import measure
from sh2gen.runtime.measure import calls
from sh2gen.runtime.operator import Operator
from sh2gen.spec.decode import load_spec
from tests.bench.runs import SPEC, written


def test_bounds_move_what_the_operator_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "elementwise", lambda *asked: asked)
    dtype = torch.float16
    gated = load_spec(folder("ops") / "hyena_se.yaml")
    for spec, direction, reads, writes in (
        (SPEC, "forward", 1, 1),
        (SPEC, "backward", 2, 1),
        (gated, "forward", 3, 1),
        (gated, "backward", 4, 3),
    ):
        shape = (2 * 16 * spec.channels,)
        found: Any = measure.bound(spec, 2, 16, dtype, direction)
        assert found == (shape, dtype, reads, writes)


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure.versions()
    assert set(found) == {"python", "torch", "triton", "sh2gen", "cuda"}
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    monkeypatch.setattr(measure, "installed", lambda package: None)
    assert measure.versions()["sh2gen"] == "not installed"


@pytest.mark.parametrize("op", ["short_conv_3", "hyena_li_1b"])
def test_calls_compute_the_operator(op: str, tmp_path: Path) -> None:
    spec = load_spec(folder("ops") / f"{op}.yaml")
    inner = replace(spec.filter, groups=4)
    path, *_ = written(tmp_path, replace(spec, channels=4, filter=inner))
    operator = Operator(path)
    made = calls(operator, 2, 12, torch.float32, "cpu")
    y = made.forward()
    y = y if isinstance(y, torch.Tensor) else y[0]
    assert y.shape == made.dy.shape and torch.isfinite(y).all()
    gradients = made.backward()
    assert len(gradients) == len(made.tensors)
    for found, again, tensor in zip(gradients, made.both(), made.tensors, strict=True):
        assert found.shape == tensor.shape
        torch.testing.assert_close(found, again)


def test_calls_of_modes_with_a_state_are_of_the_ops_that_take_it(tmp_path: Path) -> None:
    """On plain PyTorch in place of kernels: y is that of a call without a state, the state after
    the sequence is computed too, and the values for backward are kept and handed on.
    """
    spec = load_spec(folder("ops") / "hyena_li_stateful.yaml")
    path, *_ = written(tmp_path, replace(spec, channels=4, filter=replace(spec.filter, groups=4)))
    operator = Operator(path)
    namespace, roles = operator.namespace, len(spec.inputs)
    (tmp_path / "stateless").mkdir()
    path, *_ = written(tmp_path / "stateless", replace(operator.spec, state=None))
    names = Operator(path).namespace
    asked: list[str] = []

    def forward(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        asked.append("forward")
        *given, history, state, keep = arguments
        y, leaving = namespace.eager_stateful(given[:roles], given[roles:], history, state)
        config = namespace.configs_of(y, 4, 4)["forward"]
        kept = namespace.allocate_states(y, 4, y.shape[namespace.TIME], config, 16, keep)
        return y, leaving, kept

    def backward(dy: torch.Tensor, d_leaving: torch.Tensor, *arguments: Any) -> list[torch.Tensor]:
        asked.append("backward")
        *given, history, state, states = arguments
        assert not d_leaving.any() and not state.any()
        found: list[torch.Tensor] = names.backward_op(dy, *given, states)
        return [*found, torch.zeros_like(history), torch.zeros_like(state)]

    name, library = namespace.LIBRARY_NAME, namespace.LIBRARY
    library.impl(name, forward, "CPU")
    library.impl(f"{name}_backward", backward, "CPU")
    made = calls(operator, 2, 100, torch.float32, "cpu")
    y, leaving, states = made.forward()
    *given, history, state = made.tensors
    assert not history.any() and not state.any() and leaving.any()
    assert states.shape[1] > 0  # they are kept, as in training
    expected = names.forward_op(*given, True)
    torch.testing.assert_close(y, expected[0])
    gradients = made.backward()
    assert [x.shape for x in gradients] == [x.shape for x in made.tensors]
    without = names.backward_op(made.dy, *given, *expected[1:])
    for found, again, expect in zip(gradients, made.both(), without, strict=False):
        torch.testing.assert_close(found, expect)
        torch.testing.assert_close(found, again)
    assert asked == ["forward", "forward", "backward", "forward", "backward"]


def test_a_version_of_cuda_is_written_as_cuda_writes_it() -> None:
    assert [measure.cuda_version(n) for n in (12080, 13000, 11_040)] == ["12.8", "13.0", "11.4"]


def test_backward_of_a_baseline_is_by_autograd() -> None:
    """Constants have no gradient, and the graph of the first call is kept."""
    count = 0

    def call(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        nonlocal count
        count += 1
        return tensors["x"] * tensors["w"] * tensors["one"]

    way = Implementation(
        convert=lambda inputs, weights: (
            {"x": 2 * inputs["x"], "one": torch.ones(3)} | {"w": weights["w"]}
        ),
        call=call,
    )
    x, w = torch.randn(3), torch.randn(3)
    made = calls_of(way, {"x": x}, {"w": w})
    y = made.forward()
    assert not y.requires_grad
    torch.testing.assert_close(y, 2 * x.detach() * w.detach())
    before = count
    for _ in range(3):
        d_x, d_w = made.backward()
    assert count == before + 1
    torch.testing.assert_close(d_x, made.dy * w.detach())
    torch.testing.assert_close(made.both()[1], d_w)


@pytest.mark.parametrize(("status", "number"), [(0, 12080), (3, 0)])
def test_the_driver_is_asked_for_its_version(
    status: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own call: torch has no name for it in all versions."""

    class Driver:
        def __init__(self, name: str) -> None:
            assert name == "libcuda.so.1"

        def cuDriverGetVersion(self, where: Any) -> int:  # noqa: N802, the driver's name
            where._obj.value = number
            return status

    monkeypatch.setattr("ctypes.CDLL", Driver)
    if status:
        with pytest.raises(OSError, match="error 3"):
            measure.driver_cuda()
    else:
        assert measure.driver_cuda() == "12.8"
