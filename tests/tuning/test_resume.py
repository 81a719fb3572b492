"""Searches that go on with what earlier ones recorded."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from sh2gen.lower import plans
from sh2gen.schedule.config import schedule
from sh2gen.spec.language import Workload
from sh2gen.tuning import lab, records
from sh2gen.tuning.decide import Tuned
from sh2gen.tuning.records import Status
from tests.fakes import SPEC, Fakes, compiled, named, save
from tests.tuning.searches import MODAL, many, of, start_tuning


def test_what_is_known_is_not_asked_for_again_but_finalists_are_verified(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    points = fakes.points["forward"]
    fakes.rule("forward", points[5], verify={"status": "wrong", "detail": "y"})
    (first,) = fakes.tune()
    assert len(fakes.jobs("verify")) == 12
    known, before = first.result.tried, len(fakes.lines())
    fakes.forget()
    (again,) = fakes.tune(resume=True)
    assert again.decision is not None and again.decision.config == points[-1]
    finalists = {named(n) for n in again.result.final}
    verified = [job["config"] for job in fakes.jobs("verify")]
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
    assert again.decision is not None and again.decision.config == points[-2]
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
    """Three candidates of an operator whose launchers cut sequences into splits."""
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
    verified = {job["config"] for job in fakes.jobs("verify")}
    fakes.forget()
    return verified, tuned


SMALL, LARGE = Workload(batch=1, length=2048), Workload(batch=8, length=65536)


def test_times_of_a_file_for_other_batches_are_not_known(tmp_path: Path) -> None:
    """Into how many splits a sequence is cut is decided by the least batch that a file is for, so
    the same config launches something else at the same workload.
    """
    fakes = few_channels(tmp_path)
    made = schedule(fakes.spec, fakes.plan)
    files = {
        lab.emit(dataclasses.replace(fakes.spec, workloads=sizes), fakes.plan, made).text
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
    found = {line.config for line in fakes.lines() if line.status is Status.OK}
    judged = {job["config"] for job in fakes.jobs("time")}
    assert 5 <= len(found) < 12 and len(judged - set(map(named, found))) <= 1
    fakes.forget()
    del fakes.rules["pause"]
    (tuned,) = fakes.tune(resume=True)
    assert tuned.decision is not None
    assert tuned.decision.config == fakes.points["forward"][-1]
    assert set(tuned.result.tried) == set(fakes.points["forward"])
    verified = {job["config"] for job in fakes.jobs("verify")}
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
    for config in one.points["forward"]:
        assert [line.stage for line in of(lines, config)].count("quick") == 2
    assert [line.stage for line in lines].count("final") == 2 * 7


def test_failures_at_other_workloads_are_tried_again(tmp_path: Path) -> None:
    fakes = many(tmp_path)
    best = fakes.points["forward"][-1]
    fakes.rule("forward", best, verify={"status": "memory", "detail": "out of memory"})
    (first,) = fakes.tune()
    assert first.result.tried[best].status is Status.MEMORY
    fakes.rules["forward"][named(best)].pop("verify")
    (again,) = fakes.tune(resume=True)
    assert again.decision is not None and again.decision.config == best
