"""Directions that must agree in their tiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sh2gen.lower import plans
from sh2gen.schedule.config import DIRECTIONS, coupling, schedule
from sh2gen.schedule.space import Config, search_space
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.tuning import session
from sh2gen.tuning.lab import Workbench
from sh2gen.tuning.records import Status
from tests.fakes import Fakes, named
from tests.tuning.searches import MODAL


def modal(folder: Path, spec: OpSpec = MODAL) -> tuple[Fakes, dict[str, dict[int, Config]]]:
    """Forward is best alone with tiles of 512 steps, backward with 1024; together these are."""
    plan = plans(MODAL)[0]
    tiles: dict[str, dict[int, Config]] = {}
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
    assert forward.decision.config == tiles["forward"][1024]
    assert backward.decision.config == tiles["backward"][1024]
    configs = {"forward": forward.decision.config, "backward": backward.decision.config}
    schedule(MODAL, fakes.plan, {d: dict(found) for d, found in configs.items()})  # is legal
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
        assert tuned.decision.config == tiles[direction][512]
        assert tuned.decision.start_us == (20.0, 900.0)
        raced = [job["config"] for job in fakes.jobs("time")][-42:]
        assert {named(n) for n in tiles[direction].values()} <= set(raced)


def test_an_interrupt_while_pairs_are_raced_keeps_the_tiles_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless others are much faster."""
    fakes, tiles = modal(tmp_path)
    raced: list[int] = []

    class Interrupting(Workbench):
        def race(self, batch: Sequence[Config], *arguments: Any) -> Any:
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
            assert one.decision.config == tiles[one.task.direction][taken]


@pytest.mark.parametrize("resume", [False, True])
def test_one_direction_alone_keeps_the_tiles_of_the_other(tmp_path: Path, resume: bool) -> None:
    fakes, tiles = modal(tmp_path)
    if resume:
        fakes.tune()  # knows of tiles of all lengths
        fakes.forget()
    starts = {direction: found[2048] for direction, found in tiles.items()}
    (forward,) = fakes.tune(directions=["forward"], starts=starts, resume=resume)
    assert forward.decision is not None
    assert forward.decision.config == tiles["forward"][2048]
    assert set(forward.result.tried) == {tiles["forward"][2048]}


def test_an_interrupt_before_backward_keeps_the_tiles_that_backward_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next file would have to leave the config of one direction out."""
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
    assert forward.decision.config == tiles["forward"][2048]


def test_a_start_beyond_the_search_space_is_timed_with_its_own_other_direction(
    tmp_path: Path,
) -> None:
    """16 blocks of 16 steps, which no list names, but legal together."""
    fakes, _ = modal(tmp_path)
    small = {"SEGMENTS": 16, "BLOCK_T": 16}
    odd = schedule(MODAL, fakes.plan, dict.fromkeys(DIRECTIONS, small))
    starts = {direction: odd.config(direction) for direction in DIRECTIONS}
    forward, _ = fakes.tune(starts=starts)
    assert forward.result.tried[odd.forward].status is Status.OK
