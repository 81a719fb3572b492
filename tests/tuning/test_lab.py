"""What becomes of candidates on a GPU that is made up, and how long they are waited for."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tests.fakes
from sh2gen.base.errors import CheckFailed, Sh2genError
from sh2gen.lower import plans
from sh2gen.plan.source import Source
from sh2gen.schedule.config import schedule
from sh2gen.schedule.space import Config
from sh2gen.tuning import lab
from sh2gen.tuning.records import Status
from sh2gen.tuning.search import Problem
from tests.fakes import ALL, EMIT, FEW, SPEC, Fakes, compiled, forward_points, named
from tests.tuning.searches import ROOT, many, of

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


def fates(folder: Path) -> tuple[Fakes, dict[Config, tuple[Status, str, str]]]:
    points = forward_points(*(knobs for knobs, _, _ in (*FATES, *BUILDS)))
    fakes = Fakes(folder, {"forward": points})
    expected = {}
    for config, (_, rule, fate) in zip(points[1:], FATES, strict=False):
        fakes.rule("forward", config, **rule)
        expected[config] = fate
    for config, (_, _, fate) in zip(points[1 + len(FATES) :], BUILDS, strict=True):
        fakes.rule("forward", config, us=[1.0])
        expected[config] = fate

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
    assert tuned.decision is not None and tuned.decision.config == best
    assert tuned.result.winner == best and not tuned.result.interrupted
    lines = fakes.lines()
    for config, (status, stage, text) in expected.items():
        last = of(lines, config)[-1]
        assert (last.status, last.stage) == (status, stage), named(config)
        assert text in last.detail
        assert (last.us is None) == (status is not Status.OK)
        assert last.workload == (SPEC.workloads[0] if last.us else None)
    for config in (start, second, best):  # a line a stage
        assert [line.stage for line in of(lines, config)] == ["quick", "final"]
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
    timed = {job["config"] for job in jobs if job["do"] == "time"}
    wrong = [n for n, (status, stage, _) in expected.items() if stage in ("verify", "build")]
    assert not timed & set(map(named, wrong))
    built = {job["config"] for job in jobs if job["do"] == "verify"}
    assert not built & {named(n) for n, (_, stage, _) in expected.items() if stage == "build"}
    for config, rule in fakes.rules["forward"].items():
        fatal = [rule.get("verify"), rule.get("time")]
        if any(f in ("hang", "die", "garbage") or "broken" in (f or ()) for f in fatal):
            at = max(i for i, job in enumerate(jobs) if job["config"] == config)
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
    assert named(points[1]) not in {job["config"] for job in fakes.jobs("verify")}
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
    assert again.decision is not None and again.decision.config == points[-1]


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

    def apart(*arguments: Any) -> Source:
        source = EMIT(*arguments)
        return dataclasses.replace(source, frame=source.text)  # a file each

    monkeypatch.setattr(tests.fakes, "EMIT", apart)
    (tuned,) = fakes.tune(resume=True)
    assert all(one.no_verdict for n, one in tuned.result.final.items() if n != tuned.problem.start)
    assert len(tuned.result.final) == 7 and tuned.decision is not None
    assert tuned.decision.config == tuned.problem.start


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
    for config in hanging:
        fakes.rule("forward", config, verify="hang")
    begin = time.monotonic()
    (tuned,) = fakes.tune(budget=1.0 if first else 60.0)
    assert time.monotonic() - begin < 10
    limit = "0.4" if first else "0.3"
    for config in hanging:
        outcome = tuned.result.tried[config]
        assert outcome.status is Status.TIMEOUT
        assert outcome.detail == f"verify was at it after {limit} s"
    assert tuned.decision is not None and tuned.decision.config == points[-1]


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
    assert tuned.decision.config == fakes.points["forward"][-1]
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
    assert forward.decision.config == start and set(forward.result.tried) == {start, *others}
    assert len(begun) == 4 and backward.decision is not None


@pytest.mark.parametrize("us", [[float("nan")], [-3.0], [0.0], [], [1.0, 2.0]])
def test_what_are_no_times_is_a_failure_of_the_candidate(us: list[float], tmp_path: Path) -> None:
    fakes = many(tmp_path)
    strange = fakes.points["forward"][3]
    fakes.rule("forward", strange, us=us)
    (tuned,) = fakes.tune()
    assert tuned.result.tried[strange].status is Status.RUNTIME
    assert "no times" in tuned.result.tried[strange].detail
    assert tuned.decision is not None and tuned.decision.config == fakes.points["forward"][-1]
