"""Searches on a GPU that is made up: what is kept of them, two at once, and interrupts."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sh2gen.api.tune import _kept, _task_spec, _tasks
from sh2gen.cost.decode import STEPS
from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.schedule.config import DIRECTIONS, schedule
from sh2gen.schedule.space import Config, search_space
from sh2gen.spec.language import Workload
from sh2gen.tuning import records, session
from sh2gen.tuning.choose import candidates, tables
from sh2gen.tuning.decide import Tuned
from sh2gen.tuning.lab import Workbench
from sh2gen.tuning.search import Result
from sh2gen.tuning.tables import Decision, read_tables, write_decisions
from tests.fakes import GPU, SPEC, Fakes, forward_points, named, save
from tests.gpus import H200
from tests.tuning.searches import many, of, start_tuning


def test_a_decision_says_what_it_was_decided_by(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    points = fakes.points["forward"]
    (tuned,) = fakes.tune()
    decision = tuned.decision
    assert decision is not None
    assert decision.config == points[-1] and decision.start == points[0]
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
    assert tuned.decision.config == tuned.decision.start == points[0]


def test_a_start_that_fails_is_named_and_has_no_time(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    start, *_, best = fakes.points["forward"]
    fakes.rule("forward", start, verify={"status": "wrong", "detail": "y: too far off"})
    (tuned,) = fakes.tune()
    decision = tuned.decision
    assert decision is not None and decision.config == best
    assert decision.start == start and decision.start_us == ()
    assert Decision.from_line(decision.to_line()) == decision
    assert tuned.to_dict()["start"] == {"status": "wrong", "detail": "y: too far off"}


def test_what_was_wrong_can_be_asked_for_again(tmp_path: Path) -> None:
    """Records say on which inputs a candidate was compared."""
    fakes = many(tmp_path)
    fakes.rule("forward", fakes.points["forward"][5], verify={"status": "wrong", "detail": "!"})
    fakes.tune()
    of_inputs = {job["config"]: job["seed"] for job in fakes.jobs("verify")}
    assert len(set(of_inputs.values())) == len(fakes.points["forward"])
    lines = [line for line in fakes.lines() if line.status in ("ok", "wrong")]
    assert {named(line.config): line.seed for line in lines} == of_inputs


def test_checks_are_those_of_the_winner(tmp_path: Path) -> None:
    """Not of the last that was verified, as finalists of an earlier search are in the end."""
    fakes = many(tmp_path)
    best = fakes.points["forward"][-1]
    fakes.rule("forward", best, verify={"status": "ok", "checks": 7})
    for resume in (False, True):
        (tuned,) = fakes.tune(resume=resume)
        assert tuned.decision is not None and tuned.decision.config == best
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
    for config in points:
        fakes.rule("forward", config, verify={"status": "wrong", "detail": "y"})
    (tuned,) = fakes.tune()
    assert tuned.decision is None and tuned.result.winner == points[0]
    assert tuned.to_dict()["tried"] == {"wrong": 3} and tuned.to_dict()["decision"] is None


def test_workloads_share_a_config_and_have_a_line_each(tmp_path: Path) -> None:
    long, short = Workload(batch=1, length=131072), Workload(batch=2, length=1024)
    spec = dataclasses.replace(SPEC, workloads=(short, long))  # in no order
    points = forward_points({"TILES": 2}, {"TILES": 4})
    fakes = Fakes(tmp_path, {"forward": points}, spec)
    for config, us in zip(points, ([100.0, 100.0], [10.0, 150.0], [90.0, 90.0]), strict=True):
        fakes.rule("forward", config, us=us)
    (tuned,) = fakes.tune()
    assert tuned.decision is not None
    assert tuned.decision.workloads == (long, short)
    assert tuned.decision.config == points[1]  # 160 together, of bounds that are equal
    assert tuned.decision.us == (10.0, 150.0)
    for config in points:
        lines = of(fakes.lines(), config)
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
    assert forward.decision.config == fakes.points["forward"][-1]
    problems = [text for text in fakes.said if text.startswith("cannot be recorded")]
    assert problems == [
        f"cannot be recorded, tuning goes on: cannot write {fakes.log.path}: "
        "No space left on device"
    ]
    assert fakes.lines() == []


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
    assert tuned.decision.config == one.points["forward"][-1]


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
    taken, lock = iter([True]), fcntl.flock

    def flock(file: int, kind: int) -> None:
        if os.path.isfile(f"/proc/self/fd/{file}") and next(taken, False):  # no scratch folder
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
        lock(file, kind)  # else scratch folders of other processes are taken for abandoned

    with many(tmp_path).installed():
        monkeypatch.setattr("fcntl.flock", flock)
        with (
            pytest.warns(UserWarning, match="another `sh2gen tune` is running"),
            session.Session(1),
        ):
            assert list(taken) == []


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
    assert found[0].decision.config == fakes.points["forward"][-1]
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


def test_a_config_that_is_asked_for_does_not_replace_a_better_one_unbeaten(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    points = fakes.points["forward"]
    (tuned,) = fakes.tune(
        starts=dict.fromkeys(DIRECTIONS, points[-1]), also={"forward": points[2]}
    )
    assert list(tuned.result.tried)[:2] == [points[-1], points[2]]
    assert tuned.decision is not None and tuned.decision.config == points[-1]


def test_an_interrupted_search_replaces_a_finished_one_only_if_it_raced_with_it(
    tmp_path: Path,
) -> None:
    fakes = many(tmp_path / "fakes")
    (tuned,) = fakes.tune()
    assert tuned.decision is not None and tuned.result.raced
    other = dataclasses.replace(tuned.decision, config=fakes.points["forward"][3])
    cut = dataclasses.replace(tuned.result, interrupted=True, raced=False)
    said: list[str] = []
    table = tmp_path / "nvidia-h200" / "small_conv.jsonl"

    def kept(result: Result, decision: Decision) -> Path | None:
        found = dataclasses.replace(tuned, result=result, decision=decision)
        return _kept(tmp_path, found, said.append)

    def held() -> list[Config]:
        return [one.config for one in read_tables([tmp_path])[0]]

    assert kept(tuned.result, tuned.decision) == table
    assert kept(cut, tuned.decision) == table and not said  # which says the same
    assert kept(cut, other) is None and len(said) == 1 and "stays" in said[0]
    assert held() == [tuned.decision.config]
    assert kept(dataclasses.replace(cut, raced=True), other) == table
    assert held() == [other.config]
    brief = dataclasses.replace(tuned.decision, effort="measure, interrupted")
    assert kept(tuned.result, brief) == table and kept(cut, other) == table
    assert held() == [other.config]


def test_decoding_is_tuned_once_and_compile_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For 1, 64 and 256 rows at once, whatever the workloads; no other direction is searched."""
    plan = plans(SPEC)[0]
    default = schedule(SPEC, plan).decode
    points = [default, *(p for p in search_space(SPEC, plan, "decode").points if p != default)]
    fakes = Fakes(tmp_path, {"decode": points[:5]}, dataclasses.replace(SPEC, workloads=STEPS))
    fakes.rule("decode", points[3], us=[2.0, 4.0, 9.0])
    (tuned,) = fakes.tune()
    decision = tuned.decision
    assert decision is not None and decision.config == points[3] and decision.start == default
    assert decision.us == pytest.approx((2.0, 4.0, 9.0)) and decision.workloads == STEPS
    assert decision.key.direction == "decode"
    assert {job["config"] for job in fakes.jobs("verify")} == set(map(named, points[:5]))

    table = write_decisions(records.home() / "tuned", [decision])
    for spec in (SPEC, dataclasses.replace(SPEC, workloads=(Workload(batch=3, length=77),))):
        first = candidates(spec, H200, known=tables())[0]
        assert first.plan == plan and first.schedule.decode == points[3]
        assert first.origins["decode"].startswith("tuned on NVIDIA H200")
        assert first.origins["forward"] == "default"
    assert Decision.from_line(table.read_text().splitlines()[0]) == decision
    (mine,) = emit(SPEC, plan, first.schedule).configs.values()
    assert mine["decode"] == dict(points[3])


def test_decoding_is_searched_after_all_lengths() -> None:
    sets = [(Workload(batch=1, length=length),) for length in (256, 512)]
    found = _tasks(SPEC, sets, ("forward", "backward", "decode"))
    assert [directions for _, directions in found] == [["forward", "backward"]] * 2 + [("decode",)]
    assert [spec.workloads for spec, _ in found] == [*sets, SPEC.workloads]
    assert _task_spec(*found[0]).workloads == sets[0] and _task_spec(*found[-1]).workloads == STEPS
    assert _tasks(SPEC, sets, ("decode",)) == [(SPEC, ("decode",))]
