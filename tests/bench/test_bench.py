"""`bench` without a GPU: what its processes answer, results, tables, figures, refusals.

Processes run on the CPU here, where times mean nothing. Packages are fakes in a folder.
"""

from __future__ import annotations

import importlib.util
import json
import math
import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from sh2gen.api.bench import bench_operator
from sh2gen.base.errors import CheckFailed, Sh2genError
from sh2gen.base.files import signed
from sh2gen.base.process import python_worker
from sh2gen.base.resources import folder
from sh2gen.bench import worker as bench_worker
from sh2gen.bench.baselines import BASELINES, chosen
from sh2gen.bench.baselines.base import Implementation
from sh2gen.bench.results import TIMED, Outcome, Results, read_results
from sh2gen.bench.run import INTERRUPTED, _Asked, _problem, _Session, ask, run
from sh2gen.bench.table import table
from sh2gen.bench.worker import OWN, answer, calls_of, one_line
from sh2gen.cli.cli import main
from sh2gen.emit.emit import emit
from sh2gen.runtime import measure
from sh2gen.runtime.measure import calls
from sh2gen.runtime.operator import Operator
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import load_spec, spec_from_dict
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import target
from sh2gen.tuning.choose import candidates, wanted
from sh2gen.tuning.tables import Decision, fields_of, write_decisions
from tests.synthetic import LENGTHS, bench_results

SPEC: OpSpec = spec_from_dict(
    {
        "op": "small_conv",
        "channels": 8,
        "filter": {"kind": "explicit", "length": 4, "groups": 8, "taps": "lag_last"},
    }
)
SIZES = (Workload(batch=1, length=24), Workload(batch=2, length=16))
SMALL = Workload(batch=2, length=20)

RIGHT = """
import torch
from torch.nn import functional

def causal_conv1d_fn(x, weight, bias=None, activation=None):
    print("packages print what they like")
    if x.stride(1) == 1:
        raise RuntimeError("channels last\\nis not for this fake")
    padded = functional.pad(x.float(), (weight.shape[1] - 1, 0))
    return functional.conv1d(padded, weight[:, None], bias, groups=len(weight)).to(x.dtype)
"""
DEADLY = """
import os, sys

def causal_conv1d(x, weight, bias=None, activation=None):
    print("last words", file=sys.stderr, flush=True)
    os.abort()
"""
WRONG = """
import torch

class FlashFFTConv(torch.nn.Module):
    def __init__(self, seqlen, dtype):
        super().__init__()

    def forward(self, u, k):
        return u * k.sum(1)[:, None].to(u.dtype)
"""


def written(path: Path, spec: OpSpec = SPEC) -> tuple[Path, Any, Any]:
    """The generated file of an operator, its plan and its schedule."""
    best = candidates(spec, target("H200"))[0]
    path = path / f"{spec.op}.py"
    path.write_text(emit(spec, best.plan, best.schedule).text)
    return path, best.plan, best.schedule


def measured(path: Path, peers: str, **options: Any) -> Any:
    arguments = {"workloads": SIZES, "device": "cpu", "checked": SMALL} | options
    return run(*written(path), target("H200"), baselines=chosen(peers), **arguments)


def of(results: Any, name: str) -> list[Outcome]:
    return [o for o in results.outcomes if o.baseline == name]


# ---- processes ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """For every process: tests run side by side."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_baselines_in_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that is right, one that raises, one that kills its process, one that is wrong."""
    for name, text in (
        ("causal_conv1d.py", RIGHT),
        ("fla/modules/conv.py", DEADLY),
        ("flashfftconv.py", WRONG),
    ):
        path = tmp_path / "packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    said: list[str] = []
    results = measured(
        tmp_path, "causal_conv1d,fla,flashfftconv,savanna,vortex", progress=said.append
    )

    own = of(results, OWN)
    assert [o.size for o in own] == [(1, 24), (2, 16)] == [s.size for s in results.sizes]
    for outcome in own + of(results, "causal_conv1d"):
        assert set(outcome.times) == set(TIMED) == set(outcome.shares) and not outcome.reasons
        assert outcome.error is not None and 0 < outcome.error < 0.005
        assert outcome.gradient_error is not None and 0 < outcome.gradient_error < 0.005
        ratio = results.ratio(outcome, "forward")
        assert ratio == 1.0 if outcome.baseline == OWN else ratio > 0
    reasons = {o.baseline: o.reason for o in results.outcomes if o.reason}
    (raised,) = of(results, "causal_conv1d_last")
    assert raised.reason == "RuntimeError: channels last is not for this fake"
    assert reasons["fla"] == "its process died of SIGABRT: last words"
    assert reasons["flashfftconv"].startswith("wrong: error ")
    assert reasons["savanna"] == "does not apply: its kernels have both gates"
    assert results.checks > 0 and results.efforts["forward"].bytes == 4
    assert any(line == "causal_conv1d: timing at B=2 L=16" for line in said)
    assert "packages print" not in "".join(capfd.readouterr())
    text = table(results)
    for name, reason in reasons.items():
        assert f"  {name}: {reason}" in text.splitlines()
    plain = json.dumps(results.to_dict(), allow_nan=False)
    assert Results.from_dict(json.loads(plain)) == results


def test_nothing_is_timed_where_the_kernels_are_wrong(tmp_path: Path) -> None:
    path, plan, numbers = written(tmp_path)
    text = path.read_text()
    changed = text.replace("return functional.conv1d(x,", "return 1.1 * functional.conv1d(x,")
    assert changed != text
    path.write_text(signed(changed))
    said: list[str] = []
    with pytest.raises(CheckFailed) as caught:
        run(
            path,
            plan,
            numbers,
            target("H200"),
            baselines=chosen("fft"),
            workloads=SIZES,
            device="cpu",
            checked=SMALL,
            progress=said.append,
        )
    assert caught.value.code == "V001" and caught.value.exit_code == 1
    assert "equality" in str(caught.value)
    assert not any("timing" in line for line in said)


def test_a_process_that_does_not_answer_is_replaced(tmp_path: Path) -> None:
    path, *_ = written(tmp_path)
    job = {
        "do": "check",
        "path": str(path),
        "spec": SPEC.to_dict(),
        "baseline": OWN,
        "batch": 1,
        "length": 8,
        "device": "cpu",
        "gradients": False,
    }
    with closing(python_worker("sh2gen.bench.worker", "its process")) as worker:
        assert ask(worker, job, 0.01) == {"failed": "no answer in 0 s", "gave_up": True}
        assert ask(worker, job, 60)["y"] < 0.005
        unknown = ask(worker, job | {"baseline": "nobody"}, 60)
        assert unknown["failed"] == "KeyError: 'nobody'"
        assert ask(worker, job, 60)["y"] < 0.005


def test_answers_in_one_line() -> None:
    job = {"do": "check", "spec": SPEC.to_dict(), "batch": 1, "length": 4, "device": "cpu"}
    found = answer(job | {"baseline": "nobody", "path": ""})
    assert found == {"failed": "KeyError: 'nobody'", "broken": True}
    assert len(one_line("word " * 1000)) == 240


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ..."),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
)
def test_too_much_memory_is_a_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(job: Any) -> Any:
        raise error

    monkeypatch.setitem(bench_worker._JOBS, "check", full)
    assert answer({"do": "check"}) == {"failed": "out of memory", "broken": True}


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ({"y": 0.002, "gradients": {"x": 0.003}}, ""),
        ({"y": 0.03, "gradients": {}}, "wrong: error 0.03 in y"),
        ({"y": 0.001, "gradients": {"x": math.nan}}, "wrong: error nan in the gradient of x"),
        ({"y": 1.0, "gradients": {"x": 2.0}}, "wrong: error 2 in the gradient of x, and 1 more"),
        ({"failed": "out of memory"}, "out of memory"),
    ],
)
def test_what_is_wrong(errors: dict[str, Any], reason: str) -> None:
    assert _problem(errors) == reason


class Scripted:
    """A worker whose answers are known beforehand, by what is to be done: an answer, several for
    one after the other, or what is raised.
    """

    def __init__(self, answers: dict[tuple[Any, ...], Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[Any, ...]] = []
        self.limits: list[float] = []

    def run(self, line: str, time_limit: float) -> dict[str, Any]:
        job = json.loads(line)
        key = (job["do"], *(job[k] for k in ("direction", "graph") if k in job))
        self.asked.append(key)
        self.limits.append(time_limit)
        found = self.answers[key]
        if isinstance(found, BaseException):
            raise found
        given: dict[str, Any] = found.pop(0) if isinstance(found, list) else found
        return given


ANSWERS: dict[tuple[Any, ...], Any] = {
    ("check",): {"y": 0.002, "gradients": {}},
    ("time", "forward", True): {"us": [9.0, 10.0, 12.0]},
    ("time", "backward", True): {"us": [19.0, 20.0, 21.0]},
    ("time", "both", True): {"us": [29.0, 30.0, 31.0]},
    ("memory", "forward"): {"peak": 1.5},
    ("memory", "both"): {"peak": 1.5},
}
BOUNDS = {"forward": 5.0, "backward": 8.0, "both": 13.0}
PART = BASELINES["fft"].computes(SPEC)


def scripted(worker: Scripted, limit: float = 600.0) -> tuple[Any, Any]:
    """A session, and the process that it asks."""
    session = _Session(
        path=Path(), spec=SPEC, device="cuda", checked=SMALL, limit=limit, say=lambda _: None
    )
    return session, _Asked(worker=worker, limit=limit)  # type: ignore[arg-type]


def test_directions_fail_one_by_one() -> None:
    """What cannot be captured is timed without a graph; what fails leaves the rest as it is."""
    worker = Scripted(
        ANSWERS
        | {
            ("time", "backward", True): {"retry": ""},  # an error without words
            ("time", "backward", False): {"us": [19.0, 20.0, 21.0]},
            ("time", "both", True): {"failed": "out of memory"},
        }
    )
    session, asked = scripted(worker)
    session.at(asked, BASELINES["fft"], PART, BOUNDS, SIZES[0], 0.003)
    outcome = session.found[-1]
    assert {d: t.median for d, t in outcome.times.items()} == {"forward": 10.0, "backward": 20.0}
    assert outcome.shares == {"forward": 0.5, "backward": 0.4}
    assert outcome.reasons == {"both": "out of memory"} and outcome.memory == {"forward": 1.5}
    assert not outcome.captured and outcome.reason == ""
    assert (outcome.error, outcome.gradient_error) == (0.002, 0.003)

    died = {"died": "its process died of SIGSEGV\n"}
    worker.answers |= {("time", d, True): died for d in TIMED}
    session.at(asked, BASELINES["fft"], PART, BOUNDS, SIZES[0], None)
    outcome = session.found[-1]
    assert outcome.reason == "its process died of SIGSEGV" and not outcome.times

    worker.answers["check",] = {"y": math.nan, "gradients": {}}
    session.at(asked, BASELINES["fft"], PART, BOUNDS, SIZES[0], None)
    assert session.found[-1].reason == "wrong: error nan in y" and worker.asked[-1] == ("check",)


def test_what_hangs_is_waited_for_once() -> None:
    """At a size it is not asked for the rest, and at larger ones for nothing; at smaller ones it
    is asked as before.
    """
    right = ANSWERS["time", "backward", True]
    worker = Scripted(ANSWERS | {("time", "backward", True): [right, {"gave_up": True}, right]})
    session, asked = scripted(worker)
    sizes = [Workload(batch=b, length=n) for b, n in ((1, 64), (1, 128), (1, 256), (4, 16))]
    session.measured(asked, BASELINES["fft"], PART, dict.fromkeys(sizes, BOUNDS))
    small, hung, large, small_too = session.found
    assert set(small.times) == set(small_too.times) == set(TIMED)
    assert set(hung.times) == {"forward"} and hung.reason == ""
    skipped = "skipped: no answer in 300 s at B=1 L=128"
    assert hung.reasons == {"backward": "no answer in 300 s", "both": skipped}
    assert large.reason == skipped and not large.times
    checks = 1 + 3  # of each size but the large one, and before them
    assert worker.asked.count(("check",)) == checks
    assert worker.asked.count(("time", "backward", True)) == 3

    worker = Scripted(ANSWERS | {("time", "forward", True): {"gave_up": True}})
    session, asked = scripted(worker)
    session.measured(asked, BASELINES["fft"], PART, dict.fromkeys(sizes[:3], BOUNDS))
    assert worker.asked == [("check",), ("check",), ("time", "forward", True)]
    reasons = ["no answer in 300 s", *2 * ["skipped: no answer in 300 s at B=1 L=64"]]
    assert [o.reason for o in session.found] == reasons


def test_the_first_answer_of_a_process_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It imports and compiles. What is slow all along gets twice the time that it took."""
    now = [0.0]
    monkeypatch.setattr("sh2gen.bench.run.time.monotonic", lambda: now[0])
    seconds = iter([3.0, 200.0, 400.0, 10.0, 1.0, 1.0])

    class Slow(Scripted):
        def run(self, line: str, time_limit: float) -> dict[str, Any]:
            now[0] += next(seconds)
            return super().run(line, time_limit)

    died = {"died": "its process died of SIGSEGV\n"}
    worker = Slow({("check",): [{"y": 0}, {"y": 0}, {"y": 0}, died, {"y": 0}, {"y": 0}]})
    _, asked = scripted(worker)
    for _ in range(6):
        asked.ask({"do": "check", "batch": 1, "length": 8})
    assert worker.limits == [600, 300, 400, 600, 600, 600]


def test_an_interrupted_direction_leaves_those_before_it() -> None:
    worker = Scripted(ANSWERS | {("time", "backward", True): KeyboardInterrupt()})
    session, asked = scripted(worker)
    with pytest.raises(KeyboardInterrupt):
        session.at(asked, BASELINES["fft"], PART, BOUNDS, SIZES[0], 0.003)
    (outcome,) = session.found
    assert set(outcome.times) == {"forward"} and outcome.reason == ""
    assert outcome.reasons == dict.fromkeys(("backward", "both"), INTERRUPTED)


def test_an_interrupt_leaves_what_was_measured(tmp_path: Path) -> None:
    """Sizes and baselines that were not reached are lines."""

    def interrupted(text: str) -> None:
        if text == "eager: timing at B=2 L=16":
            raise KeyboardInterrupt

    results = measured(tmp_path, "eager,fft,savanna", progress=interrupted)
    assert results.interrupted
    own, (first, second), (fft,) = (of(results, name) for name in (OWN, "eager", "fft"))
    assert all(set(o.times) == set(TIMED) for o in (*own, first)) and len(own) == 2
    assert second.size == (2, 16) and second.reason == fft.reason == INTERRUPTED
    lines = table(results).splitlines()
    assert "interrupted: here is what was measured until then" in lines
    assert "  eager at B=2 L=16: interrupted" in lines and "  savanna: interrupted" in lines
    assert Results.from_dict(results.to_dict()) == results


def test_a_part_without_a_bound_is_a_line(tmp_path: Path) -> None:
    """What was measured of others stays."""
    gated = load_spec(folder("ops") / "hyena_mr.yaml")
    session, _ = scripted(Scripted({}))
    session = replace(session, spec=gated, found=[])
    died = Scripted({("bound", "forward"): {"died": "its process died of SIGKILL\n"}})
    died.close = lambda: None  # type: ignore[attr-defined]
    asked = _Asked(worker=died, limit=1.0)  # type: ignore[arg-type]
    part = replace(PART, spec=SPEC, without=("gates",))  # type: ignore[type-var]
    baseline = replace(BASELINES["fft"], computes=lambda spec: part)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_Session, "process", lambda _: asked)
        session.tried(baseline, dict.fromkeys(SIZES, BOUNDS))
    (outcome,) = session.found
    assert outcome.reason == "no bound at B=1 L=24: its process died of SIGKILL"


def test_before_anything_is_timed_an_interrupt_is_one(tmp_path: Path) -> None:
    def interrupted(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, "eager", progress=interrupted)


@pytest.mark.parametrize(
    ("raised", "graph", "answered"),
    [
        (RuntimeError("not\npermitted"), True, {"retry": "not permitted"}),
        (RuntimeError("illegal access"), False, {"failed": "RuntimeError: illegal access"}),
        (torch.OutOfMemoryError("..."), True, {"failed": "out of memory"}),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True, {"failed": "out of memory"}),
    ],
)
def test_calls_that_cannot_be_captured(
    raised: Exception, graph: bool, answered: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(call: Any, **options: Any) -> Any:
        assert options == {"stream": "a stream", "graph": graph}
        raise raised

    monkeypatch.setattr(torch.cuda, "Stream", lambda: "a stream")
    monkeypatch.setattr(bench_worker, "time_call", refuse)
    monkeypatch.setattr(bench_worker, "_calls", lambda job: SimpleNamespace(backward=None))
    job = {"do": "time", "device": "cuda", "direction": "backward", "graph": graph}
    assert answer(job) == answered | {"broken": True}


# ---- what is timed ------------------------------------------------------------------------------


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
    asked: list[str] = []

    @namespace.stateful_op.register_kernel("cpu")
    def _(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        asked.append("forward")
        *given, history, state, keep = arguments
        y, leaving = namespace.eager_stateful(given[:roles], given[roles:], history, state)
        return y, leaving, namespace.allocate_states(y, y.shape[namespace.TIME], 16, keep)

    @namespace.stateful_backward_op.register_kernel("cpu")
    def _(dy: torch.Tensor, d_leaving: torch.Tensor, *arguments: Any) -> list[torch.Tensor]:
        asked.append("backward")
        *given, history, state, states = arguments
        assert not d_leaving.any() and not state.any()
        found: list[torch.Tensor] = namespace.backward_op(dy, *given, states)
        return [*found, torch.zeros_like(history), torch.zeros_like(state)]

    made = calls(operator, 2, 100, torch.float32, "cpu")
    y, leaving, states = made.forward()
    *given, history, state = made.tensors
    assert not history.any() and not state.any() and leaving.any()
    assert states.shape[1] > 0  # they are kept, as in training
    expected = namespace.forward_op(*given, True)
    torch.testing.assert_close(y, expected[0])
    gradients = made.backward()
    assert [x.shape for x in gradients] == [x.shape for x in made.tensors]
    stateless = namespace.backward_op(made.dy, *given, *expected[1:])
    for found, again, expect in zip(gradients, made.both(), stateless, strict=False):
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


# ---- tables and figures -------------------------------------------------------------------------


def test_the_table() -> None:
    text = table(bench_results())
    lines = text.splitlines()
    assert "B = 1, L = 8192; elementwise bounds in us: forward 70.5, backward 118.8" in text
    (own,) = (line for line in lines if line.startswith("  sh2gen ") and " 91.7 " in line)
    assert own.split()[1:6] == ["BDL", "91.7", "+-3%", "0.77", "1.00"]
    assert "  savanna: two_pass_chunked_gate_conv_gate of savanna; a part: without featurizer" in (
        line.removesuffix(", skip") for line in lines
    )
    assert "  fft at B=1 L=131072: backward: out of memory" in lines
    assert "  vortex: backward: it has no backward" in lines
    assert "  fla: wrong: error 0.31 in y" in lines
    assert sum("compile*" in line for line in lines) == len(LENGTHS)
    assert "without a CUDA graph" in text
    assert "numbers of forward: tuned on NVIDIA H200 (2026-11-25); 71.5 us at B=1 L=8192" in lines
    assert "numbers of backward: default" in lines
    assert "not taken: tuned numbers of direct/BLD/recompute" in lines
    default = replace(bench_results(), origins=dict.fromkeys(("forward", "backward"), "default"))
    assert "numbers: default" in table(default).splitlines()
    assert "interrupted" not in text
    captured = [replace(o, captured=True) for o in bench_results().outcomes]
    assert "CUDA graph" not in table(replace(bench_results(), outcomes=tuple(captured)))


def test_results_as_json() -> None:
    broken = replace(bench_results().outcomes[0], error=math.nan)
    results = replace(bench_results(), outcomes=(broken, *bench_results().outcomes[1:]))
    data = json.loads(json.dumps(results.to_dict(), allow_nan=False))
    first, eager = data["outcomes"][0], data["outcomes"][len(LENGTHS)]
    assert first["error"] is None and first["whole"] is True
    assert first["over_sh2gen"] == {"forward": 1.0, "backward": 1.0, "both": 1.0}
    assert eager["baseline"] == "eager"
    assert eager["over_sh2gen"]["forward"] == pytest.approx(16 / 1.3)
    assert eager["times"]["forward"]["low"] < eager["times"]["forward"]["median"]
    assert data["sizes"][1]["bounds"]["both"] == pytest.approx(
        data["sizes"][1]["bounds"]["forward"] + data["sizes"][1]["bounds"]["backward"]
    )


def test_results_are_read_back_from_json(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for results in (bench_results(), replace(bench_results(kernels=False), interrupted=True)):
        path.write_text(json.dumps(results.to_dict()))
        (found,) = read_results(path)
        assert found == results and isinstance(found, Results)
        assert table(found) == table(results)
    path.write_text(json.dumps([bench_results().to_dict(), results.to_dict()]))
    assert read_results(path) == (bench_results(), results)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "op is missing"),
        ("3", "it must be an object, not 3"),
        ("[]", "its list is empty"),
        (json.dumps([bench_results().to_dict(), 1]), r"\[1\]: it must be an object, not 1"),
        (json.dumps([bench_results().to_dict(), {}]), r"\[1\]: op is missing"),
        ("no JSON", "Expecting value"),
        ('{"op": NaN}', "NaN is no number"),
    ],
)
def test_other_files_are_no_results(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(
        Sh2genError, match=f"is not what `bench --json` prints: .*{words}"
    ) as found:
        read_results(path)
    assert found.value.code == "C006"
    with pytest.raises(Sh2genError, match="cannot read"):
        read_results(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("lengths", "kernels"), [(LENGTHS, True), ((8191,), True), ((2048, 8192), False)]
)
def test_figures(tmp_path: Path, lengths: tuple[int, ...], kernels: bool) -> None:
    pytest.importorskip("matplotlib")
    from sh2gen.bench.plots import figures

    results = bench_results(lengths, kernels=kernels)
    paths = figures(results, tmp_path)
    names = {"time", "share", "predicted"} | ({"roofline"} if kernels else set())
    assert {path.name for path in paths} == {f"invented_{name}.png" for name in names}
    first = [path.read_bytes() for path in paths]
    # Small enough for a repository.
    assert all(data.startswith(b"\x89PNG") and 10_000 < len(data) < 80_000 for data in first)
    assert [path.read_bytes() for path in figures(results, tmp_path)] == first


def test_figures_of_several_batches_and_of_no_times(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from sh2gen.bench.plots import figures

    results = bench_results()
    moved = {n: 1 + i % 2 for i, n in enumerate(LENGTHS)}
    sizes = tuple(replace(s, batch=moved[s.length]) for s in results.sizes)
    outcomes = tuple(
        o if o.length is None else replace(o, batch=moved[o.length]) for o in results.outcomes
    )
    assert figures(replace(results, sizes=sizes, outcomes=outcomes), tmp_path)
    assert figures(replace(results, outcomes=()), tmp_path)


def test_the_roof_of_memory_is_what_this_run_reached() -> None:
    from sh2gen.bench.plots import _bandwidth

    bounds = bench_results().sizes[-1].bounds["backward"]
    assert _bandwidth(bench_results()) == pytest.approx(14 * 4096 * 131072 / (bounds * 1e-6))


def test_nothing_in_a_figure_lies_outside_of_it() -> None:
    """Legends of many and of few, and words beside points; one tick at least has a label."""
    pytest.importorskip("matplotlib")
    from sh2gen.bench import plots

    results = bench_results()
    few = replace(results, outcomes=results.outcomes[: 2 * len(LENGTHS)])
    for found in (results, few, bench_results((8191,))):
        for figure in (
            plots._times(found),
            plots._shares(found),
            plots._predicted(found),
            plots._roofline(found, target("H200")),
        ):
            figure.canvas.draw()
            page = figure.bbox
            (legend,) = figure.legends
            for ax in figure.axes:
                labels = [t for t in ax.get_yticklabels() if t.get_text() and t.get_visible()]
                assert ax is not figure.axes[0] or len(labels) >= 2
                for thing in (ax, legend, *ax.texts):
                    box = thing.get_window_extent()
                    assert box.width <= page.width and box.x0 >= 0 and box.x1 <= page.width + 1
                    assert box.y0 >= 0 and box.y1 <= page.height
                assert not ax.get_window_extent().overlaps(legend.get_window_extent())


# ---- the command --------------------------------------------------------------------------------


def command(*arguments: str) -> Any:
    return CliRunner().invoke(main, ("bench", *arguments))


@pytest.fixture
def op(tmp_path: Path) -> str:
    path = tmp_path / "small_conv.yaml"
    path.write_text(SPEC.to_yaml())
    return str(path)


def test_without_a_gpu(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = command(op)
    assert result.exit_code == 2 and result.stdout == ""
    assert "error[V003]: there is no CUDA device here" in result.stderr
    for arguments, code in (
        (("--peers=nobody",), "C006"),
        (("--plan=nonsense",), "L003"),
        (("--set=forward.ROWS=7",), "K002"),
    ):
        result = command(op, *arguments)
        assert result.exit_code == 2 and f"error[{code}]" in result.stderr
    assert command(op, "--length=0").exit_code == 2


def test_the_command(op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def stub(op: str, **options: Any) -> Any:
        asked.update(options)
        return bench_results()

    monkeypatch.setattr("sh2gen.api.bench.bench_operator", stub)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "matplotlib" else found(name, *rest),
    )
    result = command(op, f"--plots={tmp_path}/new")
    assert result.exit_code == 2 and not asked and not (tmp_path / "new").exists()
    assert "error[C006]: --plots needs matplotlib, which is not here" in result.stderr
    result = command(op, "--length=64", "--length=128", "--batch=2", "--peers=fft")
    assert result.exit_code == 0
    assert result.stdout == table(bench_results()) + "\n"
    assert asked["lengths"] == (64, 128) and asked["batch"] == 2 and asked["peers"] == "fft"
    data = json.loads(command(op, "--json", "--tables=mine").stdout)
    assert data == json.loads(json.dumps(bench_results().to_dict()))
    assert data["origins"]["backward"] == "default" and asked["tables"] == "mine"


def test_the_command_writes_figures(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("sh2gen.api.bench.bench_operator", lambda op, **_: bench_results())
    result = command(op, "--json", f"--plots={tmp_path}/a/b")
    assert result.exit_code == 0 and json.loads(result.stdout)["op"] == "invented"
    paths = [line.removeprefix("wrote ") for line in result.stderr.splitlines()]
    assert len(paths) == 4 and all(Path(path).is_file() for path in paths)


def test_figures_that_cannot_be_written_come_after_results(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leave no file, neither empty nor of another name."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("sh2gen.api.bench.bench_operator", lambda op, **_: bench_results())
    (tmp_path / "figures" / "invented_share.png").mkdir(parents=True)
    for arguments in ((), ("--json",)):
        result = command(op, f"--plots={tmp_path}/figures", *arguments)
        assert result.exit_code == 2
        assert f"error[C005]: cannot write {tmp_path}/figures/invented_share.png" in result.stderr
        whole = json.dumps(bench_results().to_dict(), indent=2) if arguments else None
        assert result.stdout == (whole or table(bench_results())) + "\n"
        there = sorted(path.name for path in (tmp_path / "figures").iterdir())
        assert there == ["invented_share.png"]


def test_a_folder_that_cannot_be_written_is_refused_before_measuring(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it is too early to measure")

    with monkeypatch.context() as patched:
        patched.setattr("sh2gen.api.bench.bench_operator", never)
        (tmp_path / "file").write_text("")
        for place in ("file", "file/figures"):
            result = command(op, f"--plots={tmp_path}/{place}")
            assert result.exit_code == 2 and "error[C005]" in result.stderr
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "error[V003]" in command(op, f"--plots={tmp_path}/new").stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_command_prints_what_there_is(
    op: str, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")

    def stub(*_: Any, **__: Any) -> Any:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            return replace(bench_results(), interrupted=True)

    monkeypatch.setattr("sh2gen.api.bench.bench_operator", stub)
    before = signal.getsignal(number)
    result = command(op, f"--plots={tmp_path}")
    assert result.exit_code == 128 + number and "interrupted: here is what was" in result.stdout
    assert result.stderr.startswith("interrupted: the results are what was measured until then\n")
    assert (tmp_path / "invented_time.png").is_file()
    assert json.loads(command(op, "--json").stdout)["interrupted"] is True
    assert signal.getsignal(number) == before


def test_results_of_earlier_runs_are_shown(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    other = replace(bench_results((8191,)), op="other", interrupted=True)
    one.write_text(json.dumps(bench_results().to_dict()))
    two.write_text(json.dumps(other.to_dict()))
    result = command(f"--from={one}", f"--from={two}", f"--plots={tmp_path}/figures")
    assert result.exit_code == 0
    assert result.stdout == f"{table(bench_results())}\n\n{table(other)}\n"
    assert len(list((tmp_path / "figures").glob("*.png"))) == 8
    assert json.loads(command(f"--from={one}", "--json").stdout)["op"] == "invented"
    both = json.loads(command(f"--from={one}", f"--from={two}", "--json").stdout)
    assert [found["op"] for found in both] == ["invented", "other"]
    result = command(f"--from={one}", f"--from={one}", f"--plots={tmp_path}/more")
    assert result.exit_code == 2 and "error[C006]" in result.stderr
    assert f"2 results are of invented ({one}), and so is" in result.stderr


def test_what_does_not_go_with_results_of_earlier_runs(op: str) -> None:
    result = command()
    assert result.exit_code == 2 and "bench takes an op.yaml, or --from" in result.stderr
    for arguments in ((op,), ("--length=8",), ("--peers=",), ("--tables=mine",)):
        result = command("--from=results.json", *arguments)
        assert result.exit_code == 2 and "--from measures nothing" in result.stderr


def test_numbers_of_a_folder_of_tables_are_measured_and_named(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `compile` takes and names them, for the sizes that are measured."""
    monkeypatch.setenv("SH2GEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sh2gen.api.bench.resolve_target", lambda _: target("H200"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    spec = replace(SPEC, workloads=(Workload(batch=1, length=64),))
    plan = candidates(spec, target("H200"))[0].plan
    numbers = schedule(spec, plan, {"forward": {"TILES": 4}}).numbers("forward")
    us = (7.5,)
    decision = Decision(
        key=wanted(spec, target("H200"), plan, "forward").key,
        fields=fields_of(spec),
        kernels={},
        op=spec.op,
        workloads=spec.workloads,
        numbers=numbers,
        us=us,
        low=us,
        high=us,
        bound_us=us,
        start_us=us,
        start=numbers,
        checks=1,
        effort="measure",
        date="2026-11-25T10:00:00Z",
        versions={},
    )
    table_ = write_decisions(tmp_path / "mine", [decision])
    with table_.open("a") as file:
        file.write("a line that was cut off")
    taken: list[Any] = []

    def stub(path: Path, plan: Any, schedule: Any, *_: Any, **options: Any) -> Any:
        taken.append((dict(schedule.forward)["TILES"], options["origins"]))
        return bench_results()

    monkeypatch.setattr("sh2gen.bench.run.run", stub)
    result = command(op, "--length=64", f"--tables={tmp_path}/mine")
    assert result.exit_code == 0, result.stderr
    ((tiles, origins),) = taken
    assert tiles == 4
    assert origins["forward"] == "tuned on NVIDIA H200 (2026-11-25); 7.5 us at B=1 L=64"
    assert "skipped: " in result.stderr
    result = command(op, f"--tables={tmp_path}/none")
    assert result.exit_code == 2 and "error[C006]: there is no folder" in result.stderr


def test_sizes_that_are_measured(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the workloads, or those asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr("sh2gen.api.bench.resolve_target", lambda _: target("H200"))
    taken: list[Any] = []

    def stub(*_: Any, **options: Any) -> Any:
        taken.append([(w.batch, w.length) for w in options["workloads"]])
        return bench_results()

    monkeypatch.setattr("sh2gen.bench.run.run", stub)
    mr = folder("ops") / "hyena_mr.yaml"
    for options in ({}, {"batch": 2}, {"lengths": (8, 16, 8)}, {"lengths": (8,), "batch": 4}):
        bench_operator(mr, **options)
    assert taken == [
        [(1, 2048), (1, 8192), (1, 32768), (1, 131072)],
        [(2, 2048), (2, 8192), (2, 32768), (2, 131072)],
        [(1, 8), (1, 16)],
        [(4, 8)],
    ]


def test_names_of_baselines_are_theirs() -> None:
    assert all(name == baseline.name for name, baseline in BASELINES.items())
    assert OWN not in BASELINES


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
