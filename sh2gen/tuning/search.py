"""Searching a space of schedules: what to try next, when to stop, and who wins.

A search sees configs, what they are predicted to cost, and a `Lab` that builds, verifies and times
them: a GPU (`lab`), or the records of a sweep (`Replay`), so that strategies are compared and
tested without one. What it minimises is the mean over workloads of time over the bound.

A search goes in rounds that halve the field: everything that is tried is timed briefly, the best
quarter for longer, the best few against the schedule of the start, one after another and several
times. That schedule stays unless one wins by more than times spread; where a search ends before
that was found out, unless one is so much faster that no spread explains it.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median, quantiles
from typing import Protocol

from sh2gen.schedule.space import Config, neighbours
from sh2gen.tuning.records import Status

Quantiles = tuple[float, float, float]  # 20 %, median and 80 % of times, microseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a candidate.

    Attributes:
        us: quantiles of its times, one a workload; empty unless `status` is OK.
        detail: why it was dropped.
        stage: how far it came: floor, build, verify, quick, longer, final.
        built: registers, spills, bytes of shared memory.
        seconds: by stage, that it took.
        seed: of the inputs that it was compared on, if it came so far.
    """

    status: Status
    us: tuple[Quantiles, ...] = ()
    detail: str = ""
    stage: str = ""
    built: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None

    @property
    def no_verdict(self) -> bool:
        """Whether it could not be built, by no fault of its own: the disk is full, say."""
        return self.status is Status.RUNTIME and self.stage == "build"


Tried = Mapping[Config, Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One direction of one plan.

    Attributes:
        points: all candidates.
        start: the schedule that stays if nothing beats it; one of the points.
        also: others that are tried right after it.
        predicted: cost of every point, in the unit of `score`.
        floors: the least that a point can cost, in the same unit.
    """

    points: tuple[Config, ...]
    start: Config
    predicted: Mapping[Config, float]
    floors: Mapping[Config, float] = field(default_factory=dict)
    also: tuple[Config, ...] = ()


class Lab(Protocol):
    """Where candidates are tried.

    Attributes:
        bounds: microseconds of the bound, one a workload.
    """

    bounds: tuple[float, ...]

    def now(self) -> float:
        """Seconds on a clock that only goes forward."""
        ...

    def evaluate(
        self, source: Iterator[Config], deadline: float
    ) -> Iterator[tuple[Config, Outcome]]:
        """Build, verify and briefly time candidates, in any order; those that are not done when
        the deadline passes are left out. `source` is asked for the next as late as builds allow.
        """
        ...

    def race(
        self, batch: Sequence[Config], rounds: int, stage: str, deadline: float
    ) -> Iterator[Mapping[Config, Outcome]]:
        """Time candidates that are right so many times, one after another in each round: after
        each what is known of all. At least one round; no other begins when the deadline passes.
        """
        ...


def score(outcome: Outcome, bounds: Sequence[float]) -> float:
    """The mean over workloads of the median time over the bound; infinite for what was dropped."""
    if outcome.status is not Status.OK:
        return float("inf")
    return fmean(us[1] / bound for us, bound in zip(outcome.us, bounds, strict=True))


def beats(challenger: Outcome, start: Outcome, bounds: Sequence[float]) -> bool:
    """Whether one is better than the other by more than half of what their times spread."""
    if challenger.status is not Status.OK:
        return False
    if start.status is not Status.OK:
        return True

    def spread(outcome: Outcome) -> float:
        pairs = zip(outcome.us, bounds, strict=True)
        return fmean((high - low) / 2 / bound for (low, _, high), bound in pairs)

    gain = score(start, bounds) - score(challenger, bounds)
    return gain > max(spread(challenger), spread(start))


def clearly_beats(challenger: Outcome, start: Outcome, bounds: Sequence[float]) -> bool:
    """The same where the two were not timed one beside the other, and by more than what times of
    one candidate differ by then.
    """
    return beats(challenger, start, bounds) and (
        score(challenger, bounds) < (1 - _CLEAR) * score(start, bounds)
    )


def together(rounds: Sequence[Sequence[Quantiles]]) -> tuple[Quantiles, ...]:
    """Quantiles over rounds, of their medians, one a workload; those of the round if it is one."""
    if len(rounds) == 1:
        return tuple(rounds[0])
    found = []
    for times in zip(*rounds, strict=True):
        tenths = quantiles([us[1] for us in times], n=10, method="inclusive")
        found.append((tenths[1], tenths[4], tenths[7]))
    return tuple(found)


# ---- strategies ---------------------------------------------------------------------------------

# Yields what to try next, one after another: asked for more, it sees all outcomes so far.
Strategy = Callable[[Problem, Sequence[float], Tried, int], Iterator[Config]]


def ranked(
    problem: Problem, bounds: Sequence[float], tried: Tried, first: int
) -> Iterator[Config]:
    """The start, then all points, the best by prediction first."""
    likely = _best_first(problem, problem.points)
    yield from dict.fromkeys((problem.start, *problem.also, *likely))


def climb(problem: Problem, bounds: Sequence[float], tried: Tried, first: int) -> Iterator[Config]:
    """The start, its neighbours and the best by prediction; then the neighbours of the best three
    that were found, and when these are known the next by prediction.
    """
    near = neighbours(problem.points, problem.start)
    likely = _best_first(problem, problem.points)
    known_good = (problem.start, *problem.also)
    opening = list(dict.fromkeys((*known_good, *near[: first // 2], *likely)))[:first]
    yield from opening
    given = {*opening, *tried}
    while len(given) < len(problem.points):
        right = [config for config, outcome in tried.items() if outcome.status is Status.OK]
        leaders = heapq.nsmallest(3, right, key=lambda config: score(tried[config], bounds))
        beside = {p for leader in leaders for p in neighbours(problem.points, leader)} - given
        following = next(p for p in likely if p in beside or (not beside and p not in given))
        given.add(following)
        yield following


def shuffled(
    problem: Problem, bounds: Sequence[float], tried: Tried, first: int
) -> Iterator[Config]:
    """All points in an order that means nothing, which other strategies must beat."""
    rest = [point for point in problem.points if point != problem.start]
    random.Random(0).shuffle(rest)
    yield from (problem.start, *rest)


def _best_first(problem: Problem, points: Iterable[Config]) -> list[Config]:
    return sorted(points, key=lambda point: problem.predicted[point])


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard to search.

    Attributes:
        first: candidates that a strategy begins with.
        most: candidates that are built; None for all there are.
        budget: seconds; None for as long as it takes.
    """

    strategy: Strategy
    first: int
    most: int | None
    budget: float | None


EFFORTS: dict[str, Effort] = {
    "measure": Effort(strategy=climb, first=30, most=120, budget=60.0),
    "patient": Effort(strategy=climb, first=60, most=400, budget=300.0),
    "exhaustive": Effort(strategy=ranked, first=0, most=None, budget=None),
}
# Candidates that wait for a process that compiles: a strategy that knows more chooses better.
AHEAD = 4
_QUARTER, _LONGER = 4, 24
_FINALISTS = 6
LAST_ROUNDS = 7
_ROUNDS = {"longer": 1, "final": LAST_ROUNDS}
# Last rounds that say how much times spread.
ENOUGH = 3
# Of the time of a start that others were not raced with. Brief times of one candidate differ by up
# to 6 % on the sweeps in tests/data.
_CLEAR = 0.1
# Milliseconds of warming up and of timing: at first, and in the rounds after that; and by how many
# seconds these take longer.
QUICK_MS, LONG_MS = (3, 12), (10, 40)
_MORE = (sum(LONG_MS) - sum(QUICK_MS)) / 1000
# Of the budget, what trying may take; the rest is for the rounds after it.
_TRYING = 0.8


# ---- the search ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a search found.

    Attributes:
        winner: the best candidate, or the start.
        first: the first outcome of every candidate that was tried or dropped.
        tried: the last one.
        final: the last round: the finalists and the start, timed one beside the other.
        raced: whether there were enough rounds for that to decide.
        field: what the winner was chosen from: these, or if they were not raced what this search
            found, without what an earlier one did.
        interrupted: whether it was told to stop before it was done.
    """

    winner: Config
    first: Tried
    tried: Tried
    final: Tried
    raced: bool
    field: Tried
    seconds: float
    interrupted: bool


def search(
    problem: Problem,
    lab: Lab,
    effort: Effort,
    *,
    known: Tried | None = None,
    note: Callable[[Config, Outcome, Tried], None] = lambda config, outcome, tried: None,
    last_rounds: bool = True,
) -> Result:
    """Search until the effort is spent, the space is, or a KeyboardInterrupt says so.

    Args:
        known: outcomes of an earlier search, which are not tried again.
        note: told of every outcome, with all so far.
        last_rounds: False ends with the first round, in which everything is timed briefly.

    Raises:
        whatever the lab does, but for KeyboardInterrupt, after which the best so far stands.
    """
    begin = lab.now()
    end = begin + (float("inf") if effort.budget is None else effort.budget)
    until = begin + (end - begin) * _TRYING
    tried: dict[Config, Outcome] = dict(known or {})
    first: dict[Config, Outcome] = dict(tried)
    measured: dict[Config, Outcome] = {}
    final: Tried = {}
    latest: Tried = {}  # of a round that is under way
    rounds_done = 0  # of the last stage
    interrupted = False

    def took(config: Config, outcome: Outcome) -> None:
        tried[config] = first[config] = measured[config] = outcome
        note(config, outcome, tried)

    try:
        source = _wanted(problem, effort, lab.bounds, tried, took)
        for config, outcome in lab.evaluate(source, until):
            took(config, outcome)
        right = [n for n, outcome in tried.items() if outcome.status is Status.OK]
        for stage, rounds in _ROUNDS.items() if last_rounds else ():
            right.sort(key=lambda config: score(tried[config], lab.bounds))
            keep = _FINALISTS
            if stage == "longer":
                keep = min(_LONGER, len(right) // _QUARTER, _affordable(tried, end - lab.now()))
                if keep <= _FINALISTS:
                    continue
            batch = right[:keep]
            # One that there was no time for, too: it stays unless it is beaten.
            if problem.start not in batch and (
                problem.start in right
                or problem.start not in tried
                or tried[problem.start].no_verdict
            ):
                batch.append(problem.start)
            rounds_done = 0
            for so_far in lab.race(batch, rounds, stage, end):
                latest = so_far
                rounds_done += stage == "final"
            final, latest = latest, {}
            tried |= final
            measured |= final
            for config, outcome in final.items():
                note(config, outcome, tried)
            right = [n for n, outcome in final.items() if outcome.status is Status.OK]
    except KeyboardInterrupt:
        interrupted, final = True, latest or final  # as far as it came, one beside the other
        tried |= final
        measured |= final
    raced = rounds_done >= ENOUGH and any(o.status is Status.OK for o in final.values())
    field = {
        n: one for n, one in measured.items() if not raced or n in final or n == problem.start
    }
    return Result(
        winner=choose(problem, field, raced, lab.bounds),
        first=first,
        tried=tried,
        final=final,
        raced=raced,
        field=field,
        seconds=lab.now() - begin,
        interrupted=interrupted,
    )


def _affordable(tried: Tried, seconds: float) -> int:
    """How many can be timed for longer in so many seconds, if last rounds are to come after it."""
    took = [
        (one.seconds["quick"], len(one.us)) for one in tried.values() if "quick" in one.seconds
    ]
    if not took or seconds == float("inf"):
        return _LONGER
    each = median(quick + _MORE * workloads for quick, workloads in took)
    return int(seconds / max(each, 1e-9)) - LAST_ROUNDS * (_FINALISTS + 1)


def _wanted(
    problem: Problem,
    effort: Effort,
    bounds: Sequence[float],
    tried: Tried,
    took: Callable[[Config, Outcome], None],
) -> Iterator[Config]:
    """What a strategy wants to try, without what is known and what cannot win."""
    given = 0
    for config in effort.strategy(problem, bounds, tried, effort.first):
        if config in tried:
            continue
        floor = problem.floors.get(config, 0.0)
        best = min((score(outcome, bounds) for outcome in tried.values()), default=float("inf"))
        if floor >= best and config != problem.start:
            detail = f"takes at least {floor:.2f} of the bound, the best takes {best:.2f}"
            took(config, Outcome(status=Status.FLOOR, detail=detail, stage="floor"))
            continue
        if effort.most is not None and given >= effort.most:
            return
        given += 1
        yield config


def choose(problem: Problem, field: Tried, raced: bool, bounds: Sequence[float]) -> Config:
    """The best of those that beat the start. The start, if none does or it was not timed: what is
    known to be good does not give way to what was compared with nothing.

    Args:
        raced: whether they were timed one beside the other.
    """
    start = field.get(problem.start)
    if start is None or start.no_verdict:
        return problem.start
    enough = beats if raced else clearly_beats
    ranked = sorted(field, key=lambda config: score(field[config], bounds))
    better = (config for config in ranked if enough(field[config], start, bounds))
    return next(better, problem.start)


# ---- replay -------------------------------------------------------------------------------------


class Replay:
    """A lab made of the records of a sweep: outcomes as they were, on a clock that builds, checks
    and times advance as they did then.

    Args:
        outcomes: by candidate; those that are right with `seconds` for build, verify, quick.
        bounds: as of `Lab`.
        workers: processes that build side by side.
        seed: of the noise of times, drawn within the quantiles that were recorded.
    """

    def __init__(
        self, outcomes: Tried, bounds: Sequence[float], *, workers: int = 15, seed: int = 0
    ) -> None:
        self.bounds = tuple(bounds)
        self._outcomes = outcomes
        self._workers = workers
        self._random = random.Random(seed)
        self._clock = 0.0
        self._built: set[Config] = set()

    def now(self) -> float:
        return self._clock

    def evaluate(
        self, source: Iterator[Config], deadline: float
    ) -> Iterator[tuple[Config, Outcome]]:
        free = [self._clock] * self._workers  # when each has no more to build
        under_way: list[tuple[float, int, Config]] = []  # by when they are built
        taken = 0
        while True:
            for config in itertools.islice(source, self._workers + AHEAD - len(under_way)):
                begin = max(heapq.heappop(free), self._clock)
                done = begin + self._outcomes[config].seconds.get("build", 0.0)
                heapq.heappush(free, done)
                heapq.heappush(under_way, (done, taken, config))
                taken += 1
            if not under_way:
                return
            done, _, config = heapq.heappop(under_way)
            self._clock = max(self._clock, min(done, deadline))
            if self._clock >= deadline:
                return
            outcome = self._outcomes[config]
            self._clock += outcome.seconds.get("verify", 0.0) + outcome.seconds.get("quick", 0.0)
            self._built.add(config)
            yield config, replace(outcome, us=self._seen(outcome, QUICK_MS))

    def race(
        self, batch: Sequence[Config], rounds: int, stage: str, deadline: float
    ) -> Iterator[Mapping[Config, Outcome]]:
        for config in batch:
            if config not in self._built:  # an earlier search tried it, or there was no time
                seconds = self._outcomes[config].seconds
                self._clock += seconds.get("build", 0.0) + seconds.get("verify", 0.0)
                self._built.add(config)
        found: dict[Config, list[tuple[Quantiles, ...]]] = {config: [] for config in batch}
        for i in range(rounds):
            if i and self._clock >= deadline:
                return
            for config in batch:
                outcome = self._outcomes[config]
                self._clock += outcome.seconds.get("quick", 0.0) + _MORE * len(outcome.us)
                found[config].append(self._seen(outcome, LONG_MS))
            yield {
                config: replace(self._outcomes[config], us=together(times), stage=stage)
                if times[0]
                else self._outcomes[config]
                for config, times in found.items()
            }

    def _seen(self, outcome: Outcome, milliseconds: tuple[int, int]) -> tuple[Quantiles, ...]:
        """Quantiles as timing for so long might have seen them: noise averages out."""
        share = (QUICK_MS[1] / milliseconds[1]) ** 0.5
        found = []
        for low, us, high in outcome.us:
            drawn = us + share * self._random.gauss(0, (high - low) / 2)
            drawn = min(high, max(low, drawn))
            found.append((low, drawn, high))
        return tuple(found)
