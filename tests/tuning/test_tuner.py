"""Tuning from end to end, with processes that stand for the GPU and answers that stand for
compilers (tests/fakes.py).
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sh2gen.api.tune import _kept
from sh2gen.base.errors import CheckFailed, Sh2genError
from sh2gen.lower import plans
from sh2gen.schedule.config import DIRECTIONS, coupling, schedule
from sh2gen.schedule.space import Numbers, search_space
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.tuning import lab, records, session
from sh2gen.tuning.decide import Tuned
from sh2gen.tuning.lab import Workbench, settings
from sh2gen.tuning.records import Measurement, Status
from sh2gen.tuning.search import Problem, Result
from sh2gen.tuning.tables import Decision, read_tables
from tests.fakes import ALL, FEW, GPU, SPEC, Fakes, compiled, forward_points, named, save

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SH2GEN_HOME", str(tmp_path / "home"))


MANY = [
    {"BLOCK_T": block, "TILES": tiles}
    for block, tiles in itertools.product((512, 1024, 2048), (1, 2, 4, 8))
    if (block, tiles) != (1024, 1)
]


def many(folder: Path) -> Fakes:
    """Twelve candidates that are right: 100 us, 88 us, 86 us, ..., of which the last is best."""
    points = forward_points(*MANY)
    fakes = Fakes(folder, {"forward": points})
    for i, numbers in enumerate(points):
        fakes.rule("forward", numbers, us=[100.0 if i == 0 else 90.0 - 2 * i])
    return fakes


def of(lines: list[Measurement], numbers: Numbers) -> list[Measurement]:
    return [line for line in lines if line.numbers == numbers]


# ---- what becomes of candidates -----------------------------------------------------------------

# Knobs, what becomes of the candidate, and what its line says: status, stage, a part of the text.
FATES: list[tuple[dict[str, int], dict[str, Any], tuple[Status, str, str]]] = [
    ({"TILES": 2}, {"us": [90.0]}, (Status.OK, "final", "")),
    ({"TILES": 4}, {"us": [80.0]}, (Status.OK, "final", "")),
    ({"TILES": 8}, {"verify": "hang"}, (Status.TIMEOUT, "verify", "verify was at it after 1.5 s")),
    ({"TILES": 16}, {"time": "hang"}, (Status.TIMEOUT, "quick", "time was at it after 1.5 s")),
    (
        {"TILES": 32},
        {"verify": "die"},
        (Status.RUNTIME, "verify", "the process died of SIGSEGV"),
    ),
    (
        {"TILES": 64},
        {"us": [1.0], "verify": {"status": "wrong", "detail": "y: relative error 3, allowed 0.1"}},
        (Status.WRONG, "verify", "y: relative error 3, allowed 0.1"),
    ),
    (
        {"TILES": 128},
        {"us": [1.0], "verify": {"status": "wrong", "detail": "y: nan, allowed 0.1 NaN at 7"}},
        (Status.WRONG, "verify", "NaN at 7"),
    ),
    (
        {"BLOCK_T": 512, "TILES": 2},
        {"us": [1.0], "time": {"status": "memory", "detail": "OutOfMemoryError: 80 GiB"}},
        (Status.MEMORY, "quick", "OutOfMemoryError: 80 GiB"),
    ),
    (
        {"BLOCK_T": 512, "TILES": 4},
        {"verify": {"status": "resources", "detail": "OutOfResources: shared memory"}},
        (Status.RESOURCES, "verify", "OutOfResources: shared memory"),
    ),
    (
        {"BLOCK_T": 512, "TILES": 8},
        {"verify": {"status": "runtime", "detail": "illegal address", "broken": True}},
        (Status.RUNTIME, "verify", "illegal address"),
    ),
    (
        {"BLOCK_T": 512, "TILES": 16},
        {"verify": "garbage"},
        (Status.RUNTIME, "verify", "said what is no answer: a line that a compiler printed"),
    ),
    (
        {"BLOCK_T": 512, "TILES": 32},
        {"verify": {"progress": 0.5}},
        (Status.RUNTIME, "verify", "no answer to verify: {'progress': 0.5}"),
    ),
]
# Likewise of what compilers say; the candidates would all be the fastest.
BUILDS: list[tuple[dict[str, int], dict[str, Any], tuple[Status, str, str]]] = [
    (
        {"BLOCK_T": 2048, "TILES": 1},
        {"error": "CompilationError: at 7:3"},
        (Status.COMPILE, "build", "does not compile for sm_90\nCompilationError: at 7:3"),
    ),
    (
        {"BLOCK_T": 2048, "TILES": 2},
        {"gave_up": True},
        (Status.TIMEOUT, "build", "was still compiling for sm_90 after 60 s"),
    ),
    (
        {"BLOCK_T": 2048, "TILES": 4},
        {"died": "the compiler died with status -9"},
        (Status.COMPILE, "build", "the compiler died with status -9"),
    ),
    (
        {"BLOCK_T": 2048, "TILES": 8},
        {"registers": 255, "spills": 90, "instructions": 900, "stack": 64},
        (Status.RESOURCES, "build", "small_conv_forward: it spills registers"),
    ),
    (
        {"BLOCK_T": 2048, "TILES": 16},
        {"shared": 10**6},
        (Status.RESOURCES, "build", "1,000,000 bytes of shared memory"),
    ),
]


def fates(folder: Path) -> tuple[Fakes, dict[Numbers, tuple[Status, str, str]]]:
    points = forward_points(*(knobs for knobs, _, _ in (*FATES, *BUILDS)))
    fakes = Fakes(folder, {"forward": points})
    expected = {}
    for numbers, (_, rule, fate) in zip(points[1:], FATES, strict=False):
        fakes.rule("forward", numbers, **rule)
        expected[numbers] = fate
    for numbers, (_, _, fate) in zip(points[1 + len(FATES) :], BUILDS, strict=True):
        fakes.rule("forward", numbers, us=[1.0])
        expected[numbers] = fate

    def build(job: dict[str, Any]) -> dict[str, Any]:
        if job["name"].endswith("_forward"):
            for knobs, answer, _ in BUILDS:
                if all(job["constants"][name] == value for name, value in knobs.items()):
                    return (
                        compiled(job, **answer) if {"spills", "shared"} & set(answer) else answer
                    )
        return compiled(job)

    fakes.compile = build
    return fakes, expected


def test_whatever_becomes_of_candidates_the_best_right_one_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("VERIFY_LIMIT", "TIME_LIMIT"):
        monkeypatch.setattr(lab, limit, 1.5)
    fakes, expected = fates(tmp_path)
    (tuned,) = fakes.tune()
    best = next(n for n, (status, _, _) in expected.items() if status is Status.OK)
    start, second, best, *_ = fakes.points["forward"]
    assert tuned.decision is not None and tuned.decision.numbers == best
    assert tuned.result.winner == best and not tuned.result.interrupted
    lines = fakes.lines()
    for numbers, (status, stage, text) in expected.items():
        last = of(lines, numbers)[-1]
        assert (last.status, last.stage) == (status, stage), named(numbers)
        assert text in last.detail
        assert (last.us is None) == (status is not Status.OK)
        assert last.workload == (SPEC.workloads[0] if last.us else None)
    for numbers in (start, second, best):  # a line a stage
        assert [line.stage for line in of(lines, numbers)] == ["quick", "final"]
    (constraint,) = of(lines, ())
    assert (constraint.status, constraint.count) == (Status.CONSTRAINT, 7)
    assert constraint.detail == f"{FEW.that}: {FEW.because}"
    assert set(tuned.to_dict()["tried"].items()) == {
        ("ok", 3),
        ("timeout", 3),
        ("runtime", 4),
        ("wrong", 2),
        ("memory", 1),
        ("resources", 3),
        ("compile", 2),
    }
    # What was not right was never timed, and a process that failed or broke had no other job.
    jobs = fakes.jobs()
    timed = {job["numbers"] for job in jobs if job["do"] == "time"}
    wrong = [n for n, (status, stage, _) in expected.items() if stage in ("verify", "build")]
    assert not timed & set(map(named, wrong))
    built = {job["numbers"] for job in jobs if job["do"] == "verify"}
    assert not built & {named(n) for n, (_, stage, _) in expected.items() if stage == "build"}
    for numbers, rule in fakes.rules["forward"].items():
        fatal = [rule.get("verify"), rule.get("time")]
        if any(f in ("hang", "die", "garbage") or "broken" in (f or ()) for f in fatal):
            at = max(i for i, job in enumerate(jobs) if job["numbers"] == numbers)
            assert jobs[at]["pid"] not in {job["pid"] for job in jobs[at + 1 :]}, rule
    assert len({job["pid"] for job in jobs}) == 1 + 6


def test_of_equal_binaries_one_is_timed_and_the_start_always(tmp_path: Path) -> None:
    """Equal in all but what only compilers see, and tried before the start."""
    plan = plans(SPEC)[0]
    base = {"ROWS": 8, "BLOCK_T": 256, "TILES": 4, "num_warps": 1}
    changes = ({"maxnreg": 192}, {"maxnreg": 0}, {"maxnreg": 128}, {"TILES": 8})
    points = [schedule(SPEC, plan, {"backward": base | change}).backward for change in changes]

    def last_first(problem: Problem, bounds: Sequence[float], tried: Any, first: int) -> Any:
        yield from problem.points[::-1]

    fakes = Fakes(tmp_path, {"backward": points})
    fakes.compile = lambda job: compiled(job, code="all the same")
    fakes.effort = dataclasses.replace(ALL, strategy=last_first)
    starts = {"forward": schedule(SPEC, plan).forward, "backward": points[0]}
    (tuned,) = fakes.tune(starts=starts)
    assert [tuned.result.tried[point].status for point in points] == ["ok", "same", "ok", "ok"]
    (same,) = of(fakes.lines("backward"), points[1])
    assert same.stage == "build" and same.detail == f"as {named(points[2])}"
    assert named(points[1]) not in {job["numbers"] for job in fakes.jobs("verify")}
    assert tuned.decision is not None and tuned.decision.start_us == (100.0,)


def test_a_gpu_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    fakes.rules["machine"] = {"machine": {"status": "runtime", "detail": "no CUDA"}}
    with pytest.raises(CheckFailed, match="the GPU cannot be used: no CUDA") as caught:
        fakes.tune()
    assert caught.value.code == "V003" and not fakes.log.path.exists()
    del fakes.rules["machine"]
    fakes.rule("forward", fakes.points["forward"][0], bounds={"status": "memory", "detail": "!"})
    with pytest.raises(CheckFailed, match="the GPU cannot be used: !"):
        fakes.tune()


# ---- what is kept -------------------------------------------------------------------------------


def test_a_decision_says_what_it_was_decided_by(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    points = fakes.points["forward"]
    (tuned,) = fakes.tune()
    decision = tuned.decision
    assert decision is not None
    assert decision.numbers == points[-1] and decision.start == points[0]
    assert decision.us == pytest.approx((68.0,)) and decision.start_us == pytest.approx((100.0,))
    assert decision.bound_us == (50.0,)
    assert decision.low[0] <= decision.us[0] <= decision.high[0]
    assert decision.checks == 21 and decision.effort == "exhaustive"
    assert (decision.key.gpu, decision.key.triton) == (GPU, "3.6")
    assert (decision.op, decision.workloads) == ("small_conv", SPEC.workloads)
    assert decision.versions["torch"] == "2.11.0"
    assert "; best 68.0 us, 0.74 of the bound" in fakes.said[-1]
    assert fakes.said[-1].startswith("small_conv forward B=1 L=8192: 12 of 12, 0 dropped")


def test_the_start_is_decided_for_if_it_is_as_good(tmp_path: Path) -> None:
    points = forward_points({"TILES": 2}, {"TILES": 4})
    fakes = Fakes(tmp_path, {"forward": points})
    fakes.rule("forward", points[1], us=[101.0])
    (tuned,) = fakes.tune()
    assert tuned.decision is not None
    assert tuned.decision.numbers == tuned.decision.start == points[0]


def test_a_start_that_fails_is_named_and_has_no_time(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    start, *_, best = fakes.points["forward"]
    fakes.rule("forward", start, verify={"status": "wrong", "detail": "y: too far off"})
    (tuned,) = fakes.tune()
    decision = tuned.decision
    assert decision is not None and decision.numbers == best
    assert decision.start == start and decision.start_us == ()
    assert Decision.from_line(decision.to_line()) == decision
    assert tuned.to_dict()["start"] == {"status": "wrong", "detail": "y: too far off"}


def test_what_was_wrong_can_be_asked_for_again(tmp_path: Path) -> None:
    """Records say on which inputs a candidate was compared."""
    fakes = many(tmp_path)
    fakes.rule("forward", fakes.points["forward"][5], verify={"status": "wrong", "detail": "!"})
    fakes.tune()
    of_inputs = {job["numbers"]: job["seed"] for job in fakes.jobs("verify")}
    assert len(set(of_inputs.values())) == len(fakes.points["forward"])
    lines = [line for line in fakes.lines() if line.status in ("ok", "wrong")]
    assert {named(line.numbers): line.seed for line in lines} == of_inputs


def test_checks_are_those_of_the_winner(tmp_path: Path) -> None:
    """Not of the last that was verified, as finalists of an earlier search are in the end."""
    fakes = many(tmp_path)
    best = fakes.points["forward"][-1]
    fakes.rule("forward", best, verify={"status": "ok", "checks": 7})
    for resume in (False, True):
        (tuned,) = fakes.tune(resume=resume)
        assert tuned.decision is not None and tuned.decision.numbers == best
        assert tuned.decision.checks == 7


def test_nothing_is_decided_by_what_only_an_earlier_search_saw(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    fakes.tune()
    fakes.points["forward"].append(forward_points({"TILES": 16})[1])

    def stop(text: str) -> None:
        raise KeyboardInterrupt

    fakes.forget()
    (tuned,) = fakes.tune(resume=True, say=stop)
    assert tuned.result.interrupted and len(fakes.jobs("verify")) == 1
    assert tuned.decision is None


def test_nothing_is_decided_if_nothing_is_right(tmp_path: Path) -> None:
    points = forward_points({"TILES": 2}, {"TILES": 4})
    fakes = Fakes(tmp_path, {"forward": points})
    for numbers in points:
        fakes.rule("forward", numbers, verify={"status": "wrong", "detail": "y"})
    (tuned,) = fakes.tune()
    assert tuned.decision is None and tuned.result.winner == points[0]
    assert tuned.to_dict()["tried"] == {"wrong": 3} and tuned.to_dict()["decision"] is None


def test_workloads_share_their_numbers_and_have_a_line_each(tmp_path: Path) -> None:
    long, short = Workload(batch=1, length=131072), Workload(batch=2, length=1024)
    spec = dataclasses.replace(SPEC, workloads=(short, long))  # in no order
    points = forward_points({"TILES": 2}, {"TILES": 4})
    fakes = Fakes(tmp_path, {"forward": points}, spec)
    for numbers, us in zip(points, ([100.0, 100.0], [10.0, 150.0], [90.0, 90.0]), strict=True):
        fakes.rule("forward", numbers, us=us)
    (tuned,) = fakes.tune()
    assert tuned.decision is not None
    assert tuned.decision.workloads == (long, short)
    assert tuned.decision.numbers == points[1]  # 160 together, of bounds that are equal
    assert tuned.decision.us == (10.0, 150.0)
    for numbers in points:
        lines = of(fakes.lines(), numbers)
        assert [line.workload for line in lines] == [long, short] * 2
    del fakes.points["forward"][1]
    fakes.forget()
    (tuned,) = fakes.tune(resume=True)
    assert tuned.decision is not None and tuned.decision.us == (90.0, 90.0)


def test_a_full_disk_is_said_once_and_tuning_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, line: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(records, "_write", full)
    fakes = many(tmp_path)
    fakes.points["backward"] = [schedule(SPEC, plans(SPEC)[0]).backward]
    forward, _ = fakes.tune()
    assert forward.decision is not None
    assert forward.decision.numbers == fakes.points["forward"][-1]
    problems = [text for text in fakes.said if text.startswith("cannot be recorded")]
    assert problems == [
        f"cannot be recorded, tuning goes on: cannot write {fakes.log.path}: "
        "No space left on device"
    ]
    assert fakes.lines() == []


def test_what_the_machine_fails_at_is_said_once_and_tried_again(tmp_path: Path) -> None:
    """A full disk, say: also where kernels are shared, of which one failed."""
    fakes = many(tmp_path)
    points = fakes.points["forward"]
    fault = {"error": "OSError: [Errno 28] No space left on device", "help": "make room"}
    full = True

    def build(job: dict[str, Any]) -> dict[str, Any]:
        last = job["name"].endswith("_forward") and job["constants"]["TILES"] == 8
        return fault if full and last else compiled(job)

    fakes.compile = build
    (tuned,) = fakes.tune()
    assert tuned.to_dict()["tried"] == {"ok": 9, "runtime": 3}
    (line,) = of(fakes.lines(), points[-1])
    assert (line.status, line.stage) == (Status.RUNTIME, "build")
    assert "could not be compiled on this machine\nOSError: [Errno 28]" in line.detail
    said = [text for text in fakes.said if "make room" in text]
    assert said == [
        "candidates cannot be built on this machine: make room; --resume tries it again"
    ]
    full = False
    (again,) = fakes.tune(resume=True)
    assert again.to_dict()["tried"] == {"ok": 12}
    assert again.decision is not None and again.decision.numbers == points[-1]


def test_finalists_of_an_earlier_search_that_cannot_be_written_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = many(tmp_path)
    fakes.tune()
    write, written = lab.write_whole, iter([True])

    def full(path: Path, text: str) -> None:
        if not next(written, False):  # the first is needed to measure bounds
            raise Sh2genError("C005", "cannot write: No space left on device")
        write(path, text)

    monkeypatch.setattr(lab, "write_whole", full)
    monkeypatch.setattr(lab, "settings", lambda text: (text, settings(text)[1]))  # a file each
    (tuned,) = fakes.tune(resume=True)
    assert all(one.no_verdict for n, one in tuned.result.final.items() if n != tuned.problem.start)
    assert len(tuned.result.final) == 7 and tuned.decision is not None
    assert tuned.decision.numbers == tuned.problem.start


def test_a_kernel_that_the_machine_failed_to_build_is_built_for_the_next(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    failing = iter([True])

    def build(job: dict[str, Any]) -> dict[str, Any]:
        shared = job["name"].endswith("_backward")
        return {"error": "!", "help": "?"} if shared and next(failing, False) else compiled(job)

    fakes.compile = build
    (tuned,) = fakes.tune()
    assert tuned.to_dict()["tried"] == {"ok": 12}  # the start in the end, too
    assert tuned.decision is not None and tuned.decision.start_us == (100.0,)


@pytest.mark.parametrize("first", [False, True])
def test_what_hangs_costs_little_of_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """Ten times what verification took so far, however long it may take at most."""
    monkeypatch.setattr(lab, "LEAST_LIMIT", 0.3)
    monkeypatch.setattr(lab, "FIRST_LIMIT", 0.4)
    fakes = many(tmp_path)
    points = fakes.points["forward"]
    hanging = points[:1] if first else points[3:6]
    for numbers in hanging:
        fakes.rule("forward", numbers, verify="hang")
    begin = time.monotonic()
    (tuned,) = fakes.tune(budget=1.0 if first else 60.0)
    assert time.monotonic() - begin < 10
    limit = "0.4" if first else "0.3"
    for numbers in hanging:
        outcome = tuned.result.tried[numbers]
        assert outcome.status is Status.TIMEOUT
        assert outcome.detail == f"verify was at it after {limit} s"
    assert tuned.decision is not None and tuned.decision.numbers == points[-1]


@pytest.mark.parametrize(
    ("budget", "limit"), [(None, 120.0), (300.0, 120.0), (200.0, 80.0), (60.0, 30.0), (1.0, 30.0)]
)
def test_the_first_candidate_has_half_of_what_is_left_to_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: float | None, limit: float
) -> None:
    """Of the part of the budget that trying may take; how long others take is not known yet."""
    limits: list[float] = []
    ask = lab.ask

    def noted(worker: Any, job: Any, seconds: float) -> dict[str, Any]:
        if job["do"] == "verify":
            limits.append(seconds)
        return ask(worker, job, seconds)

    monkeypatch.setattr(lab, "ask", noted)
    many(tmp_path).tune(budget=budget)
    assert limits[0] == pytest.approx(limit, abs=5.0)
    assert set(limits[1:]) == {10.0}
    text = " ".join((ROOT / "docs" / "tuning.md").read_text().split())
    assert (
        f"and {lab.LEAST_LIMIT:.0f} s at least; the first for half of what is left of the "
        f"budget, {lab.FIRST_LIMIT:.0f} s at least; never for more than "
        f"{lab.VERIFY_LIMIT:.0f} s, or {lab.TIME_LIMIT:.0f} s of timing)"
    ) in text


def test_the_start_of_a_process_is_not_counted_as_a_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab, "LEAST_LIMIT", 0.3)
    fakes = many(tmp_path)
    fakes.rules["start"] = 0.6
    fakes.rule("forward", fakes.points["forward"][3], verify="die")
    (tuned,) = fakes.tune()
    assert tuned.to_dict()["tried"] == {"ok": 11, "runtime": 1}


def test_the_time_of_day_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = itertools.cycle((4e9, 0.0, -1e9, 1.7e9))
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    fakes = many(tmp_path)
    begin = time.monotonic()
    (tuned,) = fakes.tune(budget=300.0)
    assert tuned.decision is not None
    assert tuned.decision.numbers == fakes.points["forward"][-1]
    assert len(tuned.result.tried) == 12
    assert 0 < tuned.result.seconds <= time.monotonic() - begin
    assert all(0 <= line.seconds < 300 for line in fakes.lines())


def test_a_budget_ends_the_search(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    fakes.rules["pause"] = 0.2
    (tuned,) = fakes.tune(budget=1.0)
    assert 0 < len(tuned.result.tried) < 12
    assert tuned.result.seconds < 1.0 + 8 * 0.4 + 1.0  # one more, and every finalist once
    assert tuned.decision is not None and not tuned.result.interrupted


def test_a_start_that_compilers_do_not_come_to_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab, "FIRST_LIMIT", 0.4)
    fakes = many(tmp_path)
    fakes.side_by_side = True

    def build(job: dict[str, Any]) -> dict[str, Any]:
        time.sleep(4.0)
        return compiled(job)

    fakes.compile = build
    (tuned,) = fakes.tune(budget=1.0)
    assert 1.0 < tuned.result.seconds < 3.0
    assert tuned.decision is None and tuned.result.winner == fakes.points["forward"][0]
    assert not any(line.stage == "build" for line in fakes.lines())  # no verdict


def test_finalists_that_are_not_built_in_time_are_left_out(tmp_path: Path) -> None:
    """And take no compiler from the search that follows, but those that are at them."""
    fakes = many(tmp_path)
    start, *others = fakes.points["forward"]
    fakes.tune()
    fakes.side_by_side = True
    fakes.points["backward"] = [schedule(SPEC, plans(SPEC)[0]).backward]
    begun: list[int] = []

    def build(job: dict[str, Any]) -> dict[str, Any]:
        chosen = job["constants"]
        if job["name"].endswith("_forward") and any(
            chosen[name] != value for name, value in start if name in chosen
        ):
            begun.append(len(begun))
            time.sleep(4.0)
        return compiled(job)

    fakes.compile = build
    forward, backward = fakes.tune(budget=1.0, resume=True)
    assert forward.result.seconds < 3.0
    assert set(forward.result.final) == {start} and forward.decision is not None
    assert forward.decision.numbers == start and set(forward.result.tried) == {start, *others}
    assert len(begun) == 4 and backward.decision is not None


# ---- resuming -----------------------------------------------------------------------------------


def test_what_is_known_is_not_asked_for_again_but_finalists_are_verified(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    points = fakes.points["forward"]
    fakes.rule("forward", points[5], verify={"status": "wrong", "detail": "y"})
    (first,) = fakes.tune()
    assert len(fakes.jobs("verify")) == 12
    known, before = first.result.tried, len(fakes.lines())
    fakes.forget()
    (again,) = fakes.tune(resume=True)
    assert again.decision is not None and again.decision.numbers == points[-1]
    finalists = {named(n) for n in again.result.final}
    verified = [job["numbers"] for job in fakes.jobs("verify")]
    # What failed on the GPU is tried again: it may have been the GPU.
    assert sorted(verified) == sorted({*finalists, named(points[5])}) and len(finalists) == 7
    assert set(again.result.tried) == set(known)
    assert again.result.tried[points[5]].status is Status.WRONG
    late = [line for line in fakes.lines()[before:] if line.status is not Status.CONSTRAINT]
    assert {line.stage for line in late} == {"verify", "final"}
    assert again.result.tried[points[2]].built["registers"] == 64
    fakes.forget()
    (whole,) = fakes.tune()
    assert len(fakes.jobs("verify")) == 12 and whole.decision is not None


def test_a_finalist_that_is_wrong_by_now_does_not_win(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    points = fakes.points["forward"]
    fakes.tune()
    fakes.rule("forward", points[-1], verify={"status": "wrong", "detail": "y"})
    (again,) = fakes.tune(resume=True)
    assert again.decision is not None and again.decision.numbers == points[-2]
    assert of(fakes.lines(), points[-1])[-1].status is Status.WRONG


def test_finalists_of_an_earlier_search_are_built_side_by_side(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    fakes.tune()
    fakes.forget()
    verified: list[int] = []  # how many were, whenever a compiler had a job

    def build(job: dict[str, Any]) -> dict[str, Any]:
        noted = (fakes.folder / "jobs.jsonl").exists()
        verified.append(len(fakes.jobs("verify")) if noted else 0)
        return compiled(job)

    fakes.compile = build
    fakes.tune(resume=True)
    assert len(verified) > 7 and set(verified) == {0}


def few_channels(folder: Path) -> Fakes:
    """Three candidates of an operator whose launchers cut sequences into spans."""
    few = dataclasses.replace(
        MODAL, channels=64, filter=dataclasses.replace(MODAL.filter, groups=64)
    )
    plan = plans(few)[0]
    points = [schedule(few, plan, {"forward": {"num_warps": n}}).forward for n in (1, 2, 4)]
    return Fakes(folder, {"forward": points}, few)


def resumed(fakes: Fakes, *workloads: Workload) -> tuple[set[str], Tuned]:
    """What is verified of a set of workloads after searches of others, and the search."""
    fakes.spec = dataclasses.replace(fakes.spec, workloads=workloads)
    (tuned,) = fakes.tune(resume=True, decide=False)
    verified = {job["numbers"] for job in fakes.jobs("verify")}
    fakes.forget()
    return verified, tuned


SMALL, LARGE = Workload(batch=1, length=2048), Workload(batch=8, length=65536)


def test_times_of_a_file_for_other_batches_are_not_known(tmp_path: Path) -> None:
    """Into how many spans a sequence is cut is decided by the least batch that a file is for, so
    the same numbers launch something else at the same workload.
    """
    fakes = few_channels(tmp_path)
    numbers = schedule(fakes.spec, fakes.plan)
    files = {
        lab.emit(dataclasses.replace(fakes.spec, workloads=sizes), fakes.plan, numbers).text
        for sizes in ((SMALL, LARGE), (LARGE,))
    }
    assert len(files) == 2
    all_of_them = set(map(named, fakes.points["forward"]))
    assert resumed(fakes, SMALL, LARGE)[0] == all_of_them
    assert resumed(fakes, LARGE)[0] == all_of_them
    assert resumed(fakes, LARGE)[0] == set()
    assert resumed(fakes, SMALL)[0] == set()  # timed beside the large one, of the same file


def test_what_a_compiler_said_of_other_launches_is_not_known(tmp_path: Path) -> None:
    fakes = few_channels(tmp_path)
    bad = fakes.points["forward"][2]

    def build(job: dict[str, Any]) -> dict[str, Any]:
        fails = job["name"].endswith("_forward") and job["options"]["num_warps"] == 4
        return {"error": "CompilationError"} if fails else compiled(job)

    fakes.compile = build
    assert resumed(fakes, SMALL, LARGE)[1].result.tried[bad].status is Status.COMPILE
    fakes.compile = compiled
    assert resumed(fakes, SMALL, LARGE)[1].result.tried[bad].status is Status.COMPILE
    verified, tuned = resumed(fakes, SMALL)
    assert verified == {named(bad)} and tuned.result.tried[bad].status is Status.OK


def test_lines_that_do_not_say_what_was_tuned_together_are_not_known(tmp_path: Path) -> None:
    """As those of earlier versions."""
    fakes = many(tmp_path)
    fakes.tune()
    lines = [dataclasses.replace(line, workloads=()) for line in fakes.lines()]
    fakes.log.path.unlink()
    fakes.log.append(lines)
    fakes.forget()
    fakes.tune(resume=True)
    assert len(fakes.jobs("verify")) == 12


@pytest.mark.parametrize("change", ["triton", "damaged"])
def test_lines_that_say_nothing_of_this_are_not_taken(tmp_path: Path, change: str) -> None:
    fakes = many(tmp_path)
    fakes.tune()
    text = fakes.log.path.read_text()
    if change == "triton":
        text = text.replace('"triton": "3.6"', '"triton": "3.5"')
    else:
        text = text.replace('{"v"', '{"w"')
    fakes.log.path.write_text(text)
    fakes.forget()
    fakes.points["backward"] = [schedule(SPEC, plans(SPEC)[0]).backward]
    fakes.tune(resume=True)
    assert len(fakes.jobs("verify")) == 12 + 1
    said = [text for text in fakes.said if text.startswith("skipped: ")]
    assert len(said) == len(set(said)) == (0 if change == "triton" else text.count("\n"))


def start_tuning(folder: Path, home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.fakes", str(folder)]
    environment = os.environ | {"SH2GEN_HOME": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment)


def test_a_search_that_is_killed_is_resumed(tmp_path: Path) -> None:
    fakes = many(tmp_path / "fakes")
    fakes.rules["pause"] = 0.05
    save(fakes, fakes.folder)
    process = start_tuning(fakes.folder, records.home())
    try:
        deadline = time.monotonic() + 120
        while len(fakes.log.read()[0]) < 6:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert fakes.log.path.read_bytes().endswith(b"\n")
    found = {line.numbers for line in fakes.lines() if line.status is Status.OK}
    judged = {job["numbers"] for job in fakes.jobs("time")}
    assert 5 <= len(found) < 12 and len(judged - set(map(named, found))) <= 1
    fakes.forget()
    del fakes.rules["pause"]
    (tuned,) = fakes.tune(resume=True)
    assert tuned.decision is not None
    assert tuned.decision.numbers == fakes.points["forward"][-1]
    assert set(tuned.result.tried) == set(fakes.points["forward"])
    verified = {job["numbers"] for job in fakes.jobs("verify")}
    again = verified & {named(n) for n in found}
    assert again <= {named(n) for n in tuned.result.final}


def test_two_searches_write_one_log(tmp_path: Path) -> None:
    """On two GPUs of one kind, so that neither waits for the other."""
    one, other = (many(tmp_path / name) for name in ("one", "other"))
    other.rules["machine"] = {"uuid": "77f1"}
    one.rules["pause"] = other.rules["pause"] = 0.02
    save(other, other.folder)
    process = start_tuning(other.folder, records.home())
    try:
        deadline = time.monotonic() + 120
        while not other.log.read()[0]:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        one.tune()
        assert process.wait(120) == 0
        assert not any("another" in text for text in one.said)
    finally:
        process.kill()
        process.wait()
    lines = one.lines()  # none of them damaged
    for numbers in one.points["forward"]:
        assert [line.stage for line in of(lines, numbers)].count("quick") == 2
    assert [line.stage for line in lines].count("final") == 2 * 7


# ---- two searches on one GPU --------------------------------------------------------------------


def test_a_search_waits_for_another_on_its_gpu_or_for_the_death_of_that(tmp_path: Path) -> None:
    one, other = (many(tmp_path / name) for name in ("one", "other"))
    other.rules["pause"] = 0.2
    save(other, other.folder)
    process = start_tuning(other.folder, records.home())
    waited: list[list[str]] = []

    class Said(list[str]):
        def append(self, text: str) -> None:
            super().append(text)
            if "another `sh2gen tune` is running on this GPU" in text:
                waited.append([job["do"] for job in one.jobs()])
                threading.Timer(2.0, process.kill).start()

    one.said = Said()
    try:
        deadline = time.monotonic() + 120
        while not other.log.read()[0]:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        begin = time.monotonic()
        (tuned,) = one.tune(budget=30.0)
        took = time.monotonic() - begin
        assert process.poll() is not None
    finally:
        process.kill()
        process.wait()
    assert waited == [["machine"]] and "waiting until it ends" in one.said[0]
    assert tuned.decision is not None and tuned.result.seconds < took - 2.0  # without the wait
    assert tuned.decision.numbers == one.points["forward"][-1]


def test_a_search_that_waits_can_be_interrupted(tmp_path: Path, foreground: None) -> None:
    one, other = (many(tmp_path / name) for name in ("one", "other"))
    save(other, other.folder)
    with one.installed(), session.Session(1):
        process = start_tuning(other.folder, records.home())
        try:
            deadline = time.monotonic() + 120
            while not (other.folder / "jobs.jsonl").exists():
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.02)
            time.sleep(1.0)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(10) != 0
        finally:
            process.kill()
            process.wait()
    assert [job["do"] for job in other.jobs()] == ["machine"] and not other.log.path.exists()


def test_a_process_has_one_session_on_a_gpu(tmp_path: Path) -> None:
    """A second would wait for the first for ever."""
    fakes = many(tmp_path)
    with fakes.installed():
        with session.Session(1), pytest.raises(RuntimeError, match="has a Session on this GPU"):
            session.Session(1)
        with session.Session(1):  # what is closed is no more in the way, nor what failed
            pass


def test_a_gpu_that_cannot_be_locked_is_said_and_tuned_on(tmp_path: Path) -> None:
    records.home().mkdir()
    (records.home() / "gpus").write_text("")
    fakes = many(tmp_path)
    (tuned,) = fakes.tune()
    assert tuned.decision is not None
    place = records.home() / "gpus" / "4d8b.lock"
    assert fakes.said[0] == (
        f"cannot lock {place}: File exists; run no other `sh2gen tune` on this GPU meanwhile"
    )


def test_whoever_is_not_told_of_a_wait_is_warned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour of silence is worse."""
    taken = iter([True])

    def flock(file: int, kind: int) -> None:
        if os.path.isfile(f"/proc/self/fd/{file}") and next(taken, False):  # no scratch folder
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))

    with many(tmp_path).installed():
        monkeypatch.setattr("fcntl.flock", flock)
        with (
            pytest.warns(UserWarning, match="another `sh2gen tune` is running"),
            session.Session(1),
        ):
            assert list(taken) == []


# ---- interrupts ---------------------------------------------------------------------------------


def test_an_interrupt_keeps_the_best_so_far(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    fakes.points["backward"] = [schedule(SPEC, plans(SPEC)[0]).backward]

    def say(text: str) -> None:
        if ": 7 of 12" in text:
            raise KeyboardInterrupt

    (tuned,) = fakes.tune(say=say)
    assert tuned.result.interrupted and len(tuned.result.tried) == 7
    assert tuned.decision is not None and tuned.decision.effort == "exhaustive, interrupted"
    assert tuned.decision.us[0] == min(one.us[0][1] for one in tuned.result.tried.values())
    assert tuned.decision.start_us == (100.0,)
    assert len([line for line in fakes.lines() if line.us]) == 7


def test_an_interrupt_between_two_directions_keeps_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = many(tmp_path)
    fakes.points["backward"] = [schedule(SPEC, plans(SPEC)[0]).backward]
    made: list[str] = []

    class Interrupting(Workbench):
        def __init__(self, task: Any, *arguments: Any, **options: Any) -> None:
            made.append(task.direction)
            if task.direction == stop:
                raise KeyboardInterrupt
            super().__init__(task, *arguments, **options)

    monkeypatch.setattr(session, "Workbench", Interrupting)
    stop = "backward"
    found: list[Tuned] = []
    with pytest.raises(KeyboardInterrupt):
        fakes.tune(found)
    assert made == ["forward", "backward"] and len(found) == 1
    assert found[0].decision is not None
    assert found[0].decision.numbers == fakes.points["forward"][-1]
    stop = "forward"
    with pytest.raises(KeyboardInterrupt):
        fakes.tune(found)
    assert len(found) == 1


def test_a_gpu_that_is_gone_for_the_second_direction_leaves_the_first(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    fakes.points["backward"] = [schedule(SPEC, plans(SPEC)[0]).backward]
    fault = {"status": "runtime", "detail": "no device"}
    fakes.rule("backward", fakes.points["backward"][0], bounds=fault)
    (tuned,) = fakes.tune()
    assert tuned.decision is not None and tuned.task.direction == "forward"
    assert any("no device" in text for text in fakes.said)


@pytest.mark.parametrize("us", [[float("nan")], [-3.0], [0.0], [], [1.0, 2.0]])
def test_what_are_no_times_is_a_failure_of_the_candidate(us: list[float], tmp_path: Path) -> None:
    fakes = many(tmp_path)
    strange = fakes.points["forward"][3]
    fakes.rule("forward", strange, us=us)
    (tuned,) = fakes.tune()
    assert tuned.result.tried[strange].status is Status.RUNTIME
    assert "no times" in tuned.result.tried[strange].detail
    assert tuned.decision is not None and tuned.decision.numbers == fakes.points["forward"][-1]


def test_numbers_that_are_asked_for_do_not_replace_better_ones_unbeaten(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    points = fakes.points["forward"]
    (tuned,) = fakes.tune(
        starts=dict.fromkeys(DIRECTIONS, points[-1]), also={"forward": points[2]}
    )
    assert list(tuned.result.tried)[:2] == [points[-1], points[2]]
    assert tuned.decision is not None and tuned.decision.numbers == points[-1]


def test_failures_at_other_workloads_are_tried_again(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    best = fakes.points["forward"][-1]
    fakes.rule("forward", best, verify={"status": "memory", "detail": "out of memory"})
    (first,) = fakes.tune()
    assert first.result.tried[best].status is Status.MEMORY
    fakes.rules["forward"][named(best)].pop("verify")
    (again,) = fakes.tune(resume=True)
    assert again.decision is not None and again.decision.numbers == best


def test_an_interrupted_search_replaces_a_finished_one_only_if_it_raced_with_it(
    tmp_path: Path,
) -> None:
    fakes = many(tmp_path / "fakes")
    (tuned,) = fakes.tune()
    assert tuned.decision is not None and tuned.result.raced
    other = dataclasses.replace(tuned.decision, numbers=fakes.points["forward"][3])
    cut = dataclasses.replace(tuned.result, interrupted=True, raced=False)
    said: list[str] = []
    table = tmp_path / "nvidia-h200" / "small_conv.jsonl"

    def kept(result: Result, decision: Decision) -> Path | None:
        found = dataclasses.replace(tuned, result=result, decision=decision)
        return _kept(tmp_path, found, said.append)

    def held() -> list[Numbers]:
        return [one.numbers for one in read_tables([tmp_path])[0]]

    assert kept(tuned.result, tuned.decision) == table
    assert kept(cut, tuned.decision) == table and not said  # which says the same
    assert kept(cut, other) is None and len(said) == 1 and "stays" in said[0]
    assert held() == [tuned.decision.numbers]
    assert kept(dataclasses.replace(cut, raced=True), other) == table
    assert held() == [other.numbers]
    brief = dataclasses.replace(tuned.decision, effort="measure, interrupted")
    assert kept(tuned.result, brief) == table and kept(cut, other) == table
    assert held() == [other.numbers]


# ---- directions that must agree -----------------------------------------------------------------

MODAL = spec_from_dict(
    {
        "op": "small_modal",
        "channels": 16,
        "filter": {"kind": "modal", "modes": 2, "groups": 16, "parametrisation": "complex"},
    }
)


def modal(folder: Path, spec: OpSpec = MODAL) -> tuple[Fakes, dict[str, dict[int, Numbers]]]:
    """Forward is best alone with tiles of 512 steps, backward with 1024; together these are."""
    plan = plans(MODAL)[0]
    tiles: dict[str, dict[int, Numbers]] = {}
    for direction in DIRECTIONS:
        points = search_space(MODAL, plan, direction).points
        firsts = {coupling(plan, point): point for point in reversed(points)}
        tiles[direction] = {steps: firsts[steps] for steps in (2048, 512, 1024)}
    assert coupling(plan, search_space(MODAL, plan, "forward").points[0]) == 2048
    fakes = Fakes(folder, {d: list(found.values()) for d, found in tiles.items()}, spec)
    for steps, forward, backward in (
        (2048, 120.0, 300.0),
        (512, 80.0, 250.0),
        (1024, 85.0, 150.0),
    ):
        fakes.rule("forward", tiles["forward"][steps], us=[forward])
        fakes.rule("backward", tiles["backward"][steps], us=[backward])
    return fakes, tiles


def test_winners_agree_in_their_tiles_also_if_the_best_alone_do_not(tmp_path: Path) -> None:
    fakes, tiles = modal(tmp_path)
    forward, backward = fakes.tune()
    assert forward.decision is not None and backward.decision is not None
    assert forward.result.winner == tiles["forward"][512]
    assert forward.decision.numbers == tiles["forward"][1024]
    assert backward.decision.numbers == tiles["backward"][1024]
    numbers = {"forward": forward.decision.numbers, "backward": backward.decision.numbers}
    schedule(MODAL, fakes.plan, {d: dict(found) for d, found in numbers.items()})  # is legal
    assert forward.decision.us == pytest.approx((85.0,))


def test_pairs_are_judged_as_searches_judge_and_raced(tmp_path: Path) -> None:
    """By the mean of what each workload takes over its bound: in microseconds alone the longest
    decides. The pairs that could win are timed one beside the other, with the start.
    """
    sizes = (Workload(batch=1, length=1024), Workload(batch=1, length=65536))
    fakes, tiles = modal(tmp_path, dataclasses.replace(MODAL, workloads=sizes))
    default = {d: search_space(MODAL, fakes.plan, d).points[0] for d in DIRECTIONS}
    for direction in DIRECTIONS:
        bounds = {"status": "ok", "us": [[5.0, 5.0, 5.0], [500.0, 500.0, 500.0]]}
        fakes.rule(direction, default[direction], bounds=bounds)
        for steps, us in {
            2048: ([20.0, 900.0], [20.0, 900.0]),
            512: ([10.0, 800.0], [12.0, 850.0]),  # in all 1672 us, and 1.93 of the bound
            1024: ([12.0, 780.0], [12.0, 790.0]),  # in all 1594 us, and 1.99 of the bound
        }.items():
            found = us[direction == "backward"]
            fakes.rule(direction, tiles[direction][steps], us=found)
    forward, backward = fakes.tune()
    assert forward.result.winner == tiles["forward"][512]
    assert backward.result.winner == tiles["backward"][1024]
    for tuned in (forward, backward):
        assert tuned.decision is not None
        direction = tuned.task.direction
        assert tuned.decision.numbers == tiles[direction][512]
        assert tuned.decision.start_us == (20.0, 900.0)
        raced = [job["numbers"] for job in fakes.jobs("time")][-42:]
        assert {named(n) for n in tiles[direction].values()} <= set(raced)


def test_an_interrupt_while_pairs_are_raced_keeps_the_tiles_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless others are much faster."""
    fakes, tiles = modal(tmp_path)
    raced: list[int] = []

    class Interrupting(Workbench):
        def race(self, batch: Sequence[Numbers], *arguments: Any) -> Any:
            raced.append(len(batch))
            if len(raced) == 3:
                raise KeyboardInterrupt
            return super().race(batch, *arguments)

    monkeypatch.setattr(session, "Workbench", Interrupting)
    for steps, taken in ((2048, 1024), (1024, 2048)):
        raced.clear()
        if steps == 1024:  # 245 us, as against 250
            for direction, us in (("forward", 100.0), ("backward", 150.0)):
                fakes.rule(direction, tiles[direction][2048], us=[us])
        found = fakes.tune()
        assert [one.result.interrupted for one in found] == [True, True]
        for one in found:
            assert one.decision is not None and one.decision.effort.endswith("interrupted")
            assert one.decision.numbers == tiles[one.task.direction][taken]


@pytest.mark.parametrize("resume", [False, True])
def test_one_direction_alone_keeps_the_tiles_of_the_other(tmp_path: Path, resume: bool) -> None:
    fakes, tiles = modal(tmp_path)
    if resume:
        fakes.tune()  # knows of tiles of all lengths
        fakes.forget()
    starts = {direction: found[2048] for direction, found in tiles.items()}
    (forward,) = fakes.tune(directions=["forward"], starts=starts, resume=resume)
    assert forward.decision is not None
    assert forward.decision.numbers == tiles["forward"][2048]
    assert set(forward.result.tried) == {tiles["forward"][2048]}


def test_an_interrupt_before_backward_keeps_the_tiles_that_backward_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next file would have to leave the numbers of one direction out."""
    fakes, tiles = modal(tmp_path)

    class Interrupting(Workbench):
        def __init__(self, task: Any, *arguments: Any, **options: Any) -> None:
            if task.direction == "backward":
                raise KeyboardInterrupt
            super().__init__(task, *arguments, **options)

    monkeypatch.setattr(session, "Workbench", Interrupting)
    (forward,) = fakes.tune()
    assert forward.result.interrupted and forward.result.winner == tiles["forward"][512]
    assert forward.decision is not None
    assert forward.decision.numbers == tiles["forward"][2048]


def test_a_start_beyond_the_search_space_is_timed_with_its_own_other_direction(
    tmp_path: Path,
) -> None:
    """16 blocks of 16 steps, which no list names, but legal together."""
    fakes, _ = modal(tmp_path)
    small = {"SEGMENTS": 16, "BLOCK_T": 16}
    odd = schedule(MODAL, fakes.plan, dict.fromkeys(DIRECTIONS, small))
    starts = {direction: odd.numbers(direction) for direction in DIRECTIONS}
    forward, _ = fakes.tune(starts=starts)
    assert forward.result.tried[odd.forward].status is Status.OK
