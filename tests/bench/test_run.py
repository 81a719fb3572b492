"""Baselines in processes of their own, which fail, hang and are interrupted."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sh2gen.base.errors import CheckFailed
from sh2gen.base.files import signed
from sh2gen.base.process import python_worker
from sh2gen.base.resources import folder
from sh2gen.bench import worker as bench_worker
from sh2gen.bench.baselines import BASELINES, chosen
from sh2gen.bench.results import TIMED, Results
from sh2gen.bench.run import INTERRUPTED, _Asked, _problem, _Session, ask, run
from sh2gen.bench.table import table
from sh2gen.bench.worker import OWN, answer, one_line
from sh2gen.spec.decode import load_spec
from sh2gen.spec.language import Workload
from sh2gen.targets.target import target
from tests.bench.runs import SIZES, SMALL, SPEC, measured, of, written

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
    assert [step.batch for step in results.steps] == [1, 64, 256]
    assert all(0 < step.us.low <= step.us.median and step.host > 0 for step in results.steps)
    assert any(line == "causal_conv1d: timing at B=2 L=16" for line in said)
    assert "packages print" not in "".join(capfd.readouterr())
    text = table(results)
    assert text.count("decode, one step of each sequence") == 1
    for name, reason in reasons.items():
        assert f"  {name}: {reason}" in text.splitlines()
    plain = json.dumps(results.to_dict(), allow_nan=False)
    assert Results.from_dict(json.loads(plain)) == results


def test_nothing_is_timed_where_the_kernels_are_wrong(tmp_path: Path) -> None:
    path, plan, made = written(tmp_path)
    text = path.read_text()
    changed = text.replace("return functional.conv1d(x,", "return 1.1 * functional.conv1d(x,")
    assert changed != text
    path.write_text(signed(changed))
    said: list[str] = []
    with pytest.raises(CheckFailed) as caught:
        run(
            path,
            plan,
            made,
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
    ("step", "both"): {"us": [39.0, 40.0, 41.0]},
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
    assert outcome.reasons == {"both": "out of memory"} and outcome.peak == {"forward": 1.5}
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


def test_nothing_is_timed_where_decoding_is_wrong(tmp_path: Path) -> None:
    path, plan, made = written(tmp_path)
    text, kept = path.read_text(), "ring_slots(ring, count, x.shape[2], 0)] = steps"
    assert text.count(kept) == 1
    path.write_text(signed(text.replace(kept, kept.replace("= steps", "= 2 * steps"))))
    sizes: dict[str, Any] = {"workloads": SIZES, "device": "cpu", "checked": SMALL}
    with pytest.raises(CheckFailed, match="decode B=2 L=300: y, step by step") as caught:
        run(path, plan, made, target("H200"), baselines=(), **sizes)
    assert caught.value.code == "V002"
