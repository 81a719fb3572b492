"""Searching: on landscapes whose best point is known, without a GPU."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sh2gen.schedule.space import Config
from sh2gen.tuning.records import Status
from sh2gen.tuning.search import (
    EFFORTS,
    Effort,
    Outcome,
    Problem,
    Replay,
    Result,
    Strategy,
    beats,
    clearly_beats,
    climb,
    ranked,
    score,
    search,
    shuffled,
)
from tests.strategies import register_profiles

register_profiles()

BOUND = (100.0,)
MEASURE = EFFORTS["measure"]
LONGEST = 15.0 + 0.5 + 0.1  # seconds to build, verify and time one candidate


@dataclass(frozen=True)
class Landscape:
    """A problem, and what becomes of each of its points."""

    problem: Problem
    outcomes: dict[Config, Outcome]

    def replay(self, seed: int = 0) -> Replay:
        return Replay(self.outcomes, BOUND, seed=seed)

    def ratio(self, winner: Config) -> float:
        """How much slower it is than the best there is."""
        best = min(score(outcome, BOUND) for outcome in self.outcomes.values())
        return score(self.outcomes[winner], BOUND) / best


def right(us: float, spread: float = 0.01, seconds: Mapping[str, float] | None = None) -> Outcome:
    return Outcome(
        status=Status.OK,
        us=((us * (1 - spread), us, us * (1 + spread)),),
        stage="quick",
        seconds=seconds or {"build": 2.0, "verify": 0.5, "quick": 0.1},
    )


def bad(status: Status = Status.RESOURCES) -> Outcome:
    return Outcome(status=status, stage="build", seconds={"build": 2.0})


def landscape(seed: int, failing: float = 0.15, error: float = 0.25) -> Landscape:
    """300 points of four knobs. The time is separable and log-quadratic in powers of two, the
    prediction is off by a factor, some points fail.
    """
    chance = random.Random(seed)
    sizes = (5, 5, 4, 3)
    optimum = [chance.uniform(0, size - 1) for size in sizes]
    sharp = [chance.uniform(0.01, 0.25) for _ in sizes]
    points: list[Config] = [
        tuple(zip("ABCD", (1 << e for e in exponents), strict=True))
        for exponents in itertools.product(*map(range, sizes))
    ]
    start = chance.choice(points)
    outcomes: dict[Config, Outcome] = {}
    predicted: dict[Config, float] = {}
    for point in points:
        offsets = (math.log2(value) - at for (_, value), at in zip(point, optimum, strict=True))
        cost = 1.15 * math.exp(sum(k * d * d for k, d in zip(sharp, offsets, strict=True)))
        predicted[point] = cost * math.exp(chance.gauss(0, error))
        build = chance.uniform(2, 15)
        if point != start and chance.random() < failing:
            status = chance.choice((Status.RESOURCES, Status.COMPILE))
            outcomes[point] = Outcome(status=status, stage="build", seconds={"build": build})
        else:
            seconds = {"build": build, "verify": 0.5, "quick": 0.1}
            outcomes[point] = right(100 * cost, seconds=seconds)
    problem = Problem(points=tuple(points), start=start, predicted=predicted)
    return Landscape(problem, outcomes)


def line(*times: float | Outcome, start: int = 0, floors: Sequence[float] = ()) -> Landscape:
    """Points on one knob, by their times or what becomes of them; predictions know the order."""
    points: list[Config] = [(("A", 1 << i),) for i in range(len(times))]
    outcomes = {
        point: one if isinstance(one, Outcome) else right(one)
        for point, one in zip(points, times, strict=True)
    }
    problem = Problem(
        points=tuple(points),
        start=points[start],
        predicted={point: float(i) for i, point in enumerate(points)},
        floors=dict(zip(points, floors, strict=False)),
    )
    return Landscape(problem, outcomes)


def effort(strategy: Strategy, **fields: Any) -> Effort:
    return dataclasses.replace(MEASURE, strategy=strategy, **fields)


ALL = effort(ranked, first=0, most=None, budget=None)


def run(here: Landscape, how: Effort, **options: Any) -> Result:
    return search(here.problem, here.replay(), how, **options)


# ---- what is found ------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.sampled_from((0.0, 0.2, 0.8)))
def test_all_points_have_the_best_among_them(seed: int, failing: float) -> None:
    here = landscape(seed, failing)
    result = run(here, EFFORTS["exhaustive"])
    assert set(result.tried) == set(here.problem.points)
    best = min(here.problem.points, key=lambda point: score(here.outcomes[point], BOUND))
    beaten = beats(here.outcomes[best], here.outcomes[here.problem.start], BOUND)
    # Brief times are noisy: which of several within that noise is the best they do not say.
    assert here.ratio(result.winner) < 1.02 or (not beaten and result.winner == here.problem.start)


@given(st.integers(0, 10**6))
def test_a_minute_finds_what_is_nearly_the_best_of_hundreds(seed: int) -> None:
    here = landscape(seed)
    lab = here.replay()
    result = search(here.problem, lab, MEASURE)
    assert here.ratio(result.winner) < 1.03
    assert len(result.tried) <= 96
    assert lab.now() <= 60.0 + LONGEST
    assert result.seconds == lab.now() and not result.interrupted


def mean(strategy: Strategy, **options: Any) -> float:
    found = [landscape(seed, **options) for seed in range(24)]
    how = effort(strategy)
    return sum(here.ratio(run(here, how).winner) for here in found) / len(found)


@pytest.mark.parametrize("error", [0.1, 0.5])
def test_climbing_and_ranking_beat_chance(error: float) -> None:
    chance = mean(shuffled, error=error)
    assert chance > 1.02
    for strategy in (climb, ranked):
        assert mean(strategy, error=error) < 1 + (chance - 1) / 4


def test_a_seed_decides_everything() -> None:
    here = landscape(3)
    one, two = (search(here.problem, here.replay(seed=5), MEASURE) for _ in range(2))
    assert one == two
    assert list(one.tried) == list(two.tried)
    other = search(here.problem, here.replay(seed=6), MEASURE)
    shared = set(one.tried) & set(other.tried)
    assert any(one.tried[point].us != other.tried[point].us for point in shared)


# ---- the start ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [climb, ranked, shuffled])
@pytest.mark.parametrize(("us", "wins"), [(100.5, False), (99.9, False), (97.0, True)])
def test_the_start_stays_unless_it_is_beaten_by_more_than_the_spread(
    strategy: Strategy, us: float, wins: bool
) -> None:
    here = line(us, 130.0, 100.0, 140.0, start=2)
    result = run(here, effort(strategy))
    assert result.winner == here.problem.points[0 if wins else 2]
    assert here.problem.start in result.final


def test_the_spread_is_of_the_one_whose_times_spread_more() -> None:
    calm, wild = right(100.0, 0.01), right(100.0, 0.1)
    assert beats(right(97.0, 0.01), calm, BOUND)
    assert not beats(right(97.0, 0.01), wild, BOUND)
    assert not beats(right(97.0, 0.1), calm, BOUND)
    assert beats(right(97.0), bad(), BOUND) and not beats(bad(), bad(), BOUND)


def test_the_score_is_a_mean_over_workloads() -> None:
    both = Outcome(status=Status.OK, us=((1.0, 10.0, 20.0), (1.0, 300.0, 900.0)))
    assert score(both, (10.0, 100.0)) == pytest.approx((1 + 3) / 2)
    assert score(bad(), (10.0, 100.0)) == math.inf


def test_the_start_is_timed_beside_the_finalists_however_slow_it_is() -> None:
    here = line(*(float(us) for us in range(100, 130)), 500.0, start=30)
    result = run(here, ALL)
    assert here.problem.start in result.final and len(result.final) == 7
    assert result.winner == here.problem.points[0]


@pytest.mark.parametrize("strategy", [climb, ranked, shuffled])
def test_a_start_that_fails_is_beaten_by_anything_right(strategy: Strategy) -> None:
    here = line(bad(), 200.0, 210.0)
    assert run(here, effort(strategy)).winner == here.problem.points[1]


def test_a_start_that_there_was_no_time_for_is_timed_before_it_is_given_up() -> None:
    slow = right(100.0, seconds={"build": 30.0, "verify": 0.5, "quick": 0.1})
    here = line(150.0, 160.0, slow, start=2)
    result = run(here, effort(ranked, budget=10.0))
    assert result.winner == here.problem.start
    assert result.final[here.problem.start].status is Status.OK


@pytest.mark.parametrize("strategy", [climb, ranked, shuffled])
def test_if_all_fail_the_start_stays(strategy: Strategy) -> None:
    here = line(*[bad(status) for status in (Status.COMPILE, Status.WRONG, Status.TIMEOUT)])
    result = run(here, effort(strategy))
    assert result.winner == here.problem.start
    assert not any(outcome.status is Status.OK for outcome in result.tried.values())
    assert len(result.tried) == 3 and not result.interrupted


def test_climbing_goes_on_while_nothing_is_right() -> None:
    here = line(*[bad()] * 40, 100.0)
    result = run(here, effort(climb, first=4, most=None, budget=None))
    assert result.winner == here.problem.points[40]


# ---- what is tried ------------------------------------------------------------------------------


class Watched:
    """A replay that notes what it is asked for.

    Args:
        stop: a stage, and after how many outcomes or rounds of it an interrupt comes.
    """

    def __init__(self, here: Landscape, stop: tuple[str, int] | None = None) -> None:
        self.replay = here.replay()
        self.stop = stop
        self.bounds = self.replay.bounds
        self.asked: list[Config] = []
        self.raced: list[tuple[str, int, tuple[Config, ...]]] = []

    def now(self) -> float:
        return self.replay.now()

    def evaluate(
        self, source: Iterator[Config], deadline: float
    ) -> Iterator[tuple[Config, Outcome]]:
        def watched() -> Iterator[Config]:
            for config in source:
                self.asked.append(config)
                yield config

        return self.until("evaluate", self.replay.evaluate(watched(), deadline))

    def race(
        self, batch: Sequence[Config], rounds: int, stage: str, deadline: float
    ) -> Iterator[Mapping[Config, Outcome]]:
        self.raced.append((stage, rounds, tuple(batch)))
        return self.until(stage, self.replay.race(batch, rounds, stage, deadline))

    def until(self, stage: str, outcomes: Iterator[Any]) -> Iterator[Any]:
        for i, one in enumerate(outcomes):
            if self.stop == (stage, i):
                raise KeyboardInterrupt
            yield one


def test_what_cannot_win_is_not_tried_and_the_start_always_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sh2gen.tuning.search.AHEAD", 0)
    here = line(100.0, 300.0, right(90.0, 0.0), 250.0, start=1, floors=[0.5, 9.0, 0.5, 2.0])

    def even_first(problem: Problem, bounds: Sequence[float], tried: Any, first: int) -> Any:
        yield from problem.points[::2]
        yield from problem.points

    lab = Watched(here)
    lab.replay = Replay(here.outcomes, BOUND, workers=1)
    result = search(here.problem, lab, effort(even_first))
    assert lab.asked == [here.problem.points[i] for i in (0, 2, 1)]
    dropped = result.tried[here.problem.points[3]]
    assert dropped.status is Status.FLOOR and dropped.stage == "floor"
    assert dropped.detail == "takes at least 2.00 of the bound, the best takes 0.90"


def test_what_is_known_is_not_tried_again() -> None:
    here = landscape(7)
    first = run(here, MEASURE)
    lab = Watched(here)
    noted: list[Config] = []
    again = search(
        here.problem, lab, MEASURE, known=first.tried, note=lambda n, o, t: noted.append(n)
    )
    assert not set(lab.asked) & set(first.tried)
    assert again.winner == first.winner
    finalists = {point for _, _, batch in lab.raced for point in batch}
    assert finalists <= set(noted) <= finalists | set(lab.asked)  # not all are done in time
    assert len(finalists) < len(first.tried)


def test_the_field_is_halved_and_finalists_are_timed_in_rounds() -> None:
    here = line(*(100.0 + i for i in range(40)))
    lab = Watched(here)
    search(here.problem, lab, ALL)
    (longer, one, many), (final, several, few) = lab.raced
    assert (longer, final) == ("longer", "final") and one == 1 and several > 3
    assert len(many) == 10 and len(few) == 6
    assert set(few) <= set(many)


@pytest.mark.parametrize("strategy", [climb, ranked, shuffled])
@pytest.mark.parametrize("most", [1, 5, 30])
def test_no_more_are_tried_than_the_effort_says(strategy: Strategy, most: int) -> None:
    here = landscape(11)
    result = run(here, effort(strategy, most=most, budget=None))
    assert len(result.tried) == most
    assert here.problem.start in result.tried


@given(st.integers(0, 10**6), st.sampled_from((climb, ranked, shuffled)), st.floats(5, 120))
def test_the_budget_is_kept(seed: int, strategy: Strategy, budget: float) -> None:
    here = landscape(seed)
    lab = here.replay()
    search(here.problem, lab, effort(strategy, budget=budget, most=None))
    assert lab.now() <= budget + LONGEST


# ---- interrupts ---------------------------------------------------------------------------------


def interrupted_in_note(count: int) -> Callable[[Config, Outcome, Any], None]:
    noted: list[Config] = []

    def note(config: Config, outcome: Outcome, tried: Any) -> None:
        noted.append(config)
        if len(noted) == count:
            raise KeyboardInterrupt

    return note


@pytest.mark.parametrize("count", [1, 10, 40])
def test_an_interrupt_keeps_the_best_so_far(count: int) -> None:
    here = landscape(13)
    result = run(here, ALL, note=interrupted_in_note(count))
    assert result.interrupted and len(result.tried) == count and result.final == {}
    best = min(result.tried, key=lambda point: score(result.tried[point], BOUND))
    start = here.problem.start
    timed = result.tried.get(start)
    clear = timed is not None and clearly_beats(result.tried[best], timed, BOUND)
    assert result.winner == (best if clear else start)


@pytest.mark.parametrize("rounds", [0, 2, 3])
def test_what_was_not_raced_needs_more_than_brief_times_can_be_off_by(rounds: int) -> None:
    here = line(100.0, 93.0, 94.0)
    for start, clear in ((0, False), (3, True)):
        here = line(100.0, 93.0, 94.0, 110.0, start=start)
        lab = Watched(here, stop=("final", rounds))
        result = search(here.problem, lab, ALL)
        assert result.interrupted and result.raced == (rounds == 3)
        wins = clear or rounds == 3
        assert result.winner == (here.problem.points[1] if wins else here.problem.start)


def test_what_only_an_earlier_search_timed_does_not_win() -> None:
    here = line(200.0, 90.0, 190.0, 195.0)
    known = dict(itertools.islice(run(here, ALL).tried.items(), 2))
    assert set(known) == set(here.problem.points[:2])
    for stop in (("evaluate", 1), ("final", 0)):
        result = search(here.problem, Watched(here, stop=stop), ALL, known=known)
        assert result.interrupted and result.winner == here.problem.start
    assert search(here.problem, Watched(here), ALL, known=known).winner == here.problem.points[1]


def test_a_start_that_the_machine_failed_to_build_stays() -> None:
    """Other than one that is wrong: a full disk says nothing of it."""
    for status, wins in ((Status.RUNTIME, False), (Status.COMPILE, True)):
        here = line(bad(status), 90.0)
        result = run(here, ALL)
        assert result.winner == here.problem.points[wins]


def test_there_is_time_for_last_rounds_however_long_a_timing_takes() -> None:
    slow = {"build": 0.1, "verify": 0.1, "quick": 0.5}
    here = line(*(right(100.0 - i / 10, seconds=slow) for i in range(200)))
    lab = Watched(here)
    result = search(here.problem, lab, MEASURE)
    assert result.raced and lab.now() <= 60.0 + LONGEST
    assert [(stage, len(batch)) for stage, _, batch in lab.raced] == [("final", 7)]


@pytest.mark.parametrize("stage", ["evaluate", "longer", "final"])
def test_an_interrupt_of_the_lab_keeps_what_was_found_before(stage: str) -> None:
    # Of few candidates none is timed for longer before the last rounds.
    here = line(150.0, 100.0, 120.0, *([160.0] * 27 if stage == "longer" else []))

    result = search(
        here.problem, Watched(here, stop=(stage, 2 if stage == "evaluate" else 0)), ALL
    )
    found = 2 if stage == "evaluate" else len(here.problem.points)
    assert result.interrupted and len(result.tried) == found
    assert result.winner == here.problem.points[1]


def test_an_interrupt_in_the_last_round_keeps_what_was_timed_side_by_side() -> None:
    here = line(100.0, 90.0, 91.0)
    result = search(here.problem, Watched(here, stop=("final", 3)), ALL)
    assert result.interrupted and set(result.final) == set(here.problem.points)


def test_finalists_that_fail_leave_the_rest() -> None:
    """As when the GPU breaks under one after another of them."""
    here = line(*(100.0 + i for i in range(9)), start=8)

    class Breaking(Watched):
        def race(
            self, batch: Sequence[Config], rounds: int, stage: str, deadline: float
        ) -> Iterator[Mapping[Config, Outcome]]:
            failed = dataclasses.replace(bad(Status.RUNTIME), stage=stage)
            yield dict.fromkeys(batch, failed)

    result = search(here.problem, Breaking(here), ALL)
    assert result.winner == min(result.tried, key=lambda n: score(result.tried[n], BOUND))
    assert result.tried[result.winner].status is Status.OK
    assert result.tried[here.problem.start].status is Status.RUNTIME


def test_other_errors_are_not_hidden() -> None:
    here = line(100.0)

    class Broken(Watched):
        def evaluate(
            self, source: Iterator[Config], deadline: float
        ) -> Iterator[tuple[Config, Outcome]]:
            raise OSError("no")

    with pytest.raises(OSError, match="no"):
        search(here.problem, Broken(here), ALL)


def test_a_start_that_was_not_timed_stays() -> None:
    """However good another looks: it was compared with nothing."""
    here = line(100.0, 50.0, 60.0)

    class Interrupting(Watched):
        def evaluate(
            self, source: Iterator[Config], deadline: float
        ) -> Iterator[tuple[Config, Outcome]]:
            for config, outcome in super().evaluate(source, deadline):
                if config != here.problem.start:
                    yield config, outcome
            raise KeyboardInterrupt

    result = search(here.problem, Interrupting(here), ALL)
    assert result.interrupted and len(result.tried) == 2
    assert result.winner == here.problem.start


def test_the_best_of_those_that_beat_the_start_wins() -> None:
    """Not the best of all, whose times spread too much to say so."""
    here = line(right(100.0, 0.001), right(90.0, 0.2), right(91.0, 0.001))
    assert search(here.problem, here.replay(), ALL).winner == here.problem.points[2]
