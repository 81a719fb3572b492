"""What searches come to: configs that agree in their tiles, and what tables keep of them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sh2gen.plan.plan import Plan
from sh2gen.schedule.config import DIRECTIONS, coupling
from sh2gen.schedule.space import Config
from sh2gen.tuning.journal import Journal, Task
from sh2gen.tuning.lab import Workbench
from sh2gen.tuning.records import (
    Status,
    now,
)
from sh2gen.tuning.search import (
    ENOUGH,
    LAST_ROUNDS,
    Outcome,
    Problem,
    Result,
    Tried,
    beats,
    choose,
    clearly_beats,
    score,
)
from sh2gen.tuning.sweeps import Header, Sweep
from sh2gen.tuning.tables import Decision, fields_of

_PAIRS = 3  # of directions that must agree: how many are raced with the one that stays


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What a search of one task came to.

    Attributes:
        sweep: what became of every candidate.
        decision: what tables keep; None if not even one candidate was right, or none was asked
            for.
    """

    task: Task
    problem: Problem
    result: Result
    sweep: Sweep
    decision: Decision | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for --json."""
        counts = Counter(str(outcome.status) for outcome in self.result.tried.values())
        start = self.result.tried.get(self.problem.start)
        return {
            "op": self.task.spec.op,
            "plan": self.task.plan.name,
            "direction": self.task.direction,
            "workloads": [{"batch": w.batch, "length": w.length} for w in self.task.workloads],
            "points": len(self.problem.points),
            "tried": dict(sorted(counts.items())),
            "seconds": self.result.seconds,
            "interrupted": self.result.interrupted,
            "start": {"status": start.status, "detail": start.detail} if start else None,
            "decision": json.loads(self.decision.to_line()) if self.decision else None,
        }


@dataclass(frozen=True, slots=True)
class Search:
    """A search that has ended, and what it was made with."""

    journal: Journal
    bench: Workbench
    space: Problem
    result: Result

    def stopped(self) -> Search:
        """The same, after which no other is to begin."""
        return dataclasses.replace(self, result=dataclasses.replace(self.result, interrupted=True))


def tuned(one: Search, config: Config, decide: bool) -> Tuned:
    return Tuned(
        task=one.journal.task,
        problem=one.space,
        result=one.result,
        sweep=_sweep(one),
        decision=_decision(one, config) if decide else None,
    )


def in_agreement(
    plan: Plan, found: list[Search], starts: Mapping[str, Config], seconds: float
) -> list[tuple[Search, Config]]:
    """The winners, where both directions must agree in their tiles. If these do not, the best
    pairs of other tiles are raced with the best of the start's, which stays unless one beats it,
    forward and backward together. It stays too if only one direction was searched.

    Args:
        seconds: that are left for the race.
    """
    kept = coupling(plan, starts[DIRECTIONS[0]])
    winners = [one.result.winner for one in found]
    tiles = {coupling(plan, config) for config in winners}
    both = len(found) == len(DIRECTIONS)
    if len(tiles) == 1 and (both or tiles == {kept}):
        return list(zip(found, winners, strict=True))
    stay = []
    for one in found:
        field = {n: o for n, o in one.result.field.items() if coupling(plan, n) == kept}
        stay.append(choose(one.space, field, one.result.raced, one.bench.bounds))
    if not both or any(n not in one.result.tried for n, one in zip(stay, found, strict=True)):
        return list(zip(found, stay, strict=True))
    forward, backward = (_best_of_tiles(plan, one) for one in found)
    bounds = [sum(two) for two in zip(*(one.bench.bounds for one in found), strict=True)]

    def both_of(pair: Sequence[Config]) -> Outcome:
        return _sum([one.result.tried[n] for one, n in zip(found, pair, strict=True)])

    def cost(pair: Sequence[Config]) -> float:
        return score(both_of(pair), bounds)

    pairs = [[forward[t], backward[t]] for t in forward if t in backward and t != kept]
    pairs = sorted(pairs, key=cost)[:_PAIRS]
    raced = False
    if pairs and not any(one.result.interrupted for one in found):
        found, raced = _raced(found, [stay, *pairs], seconds)
    now, enough = both_of(stay), beats if raced else clearly_beats
    better = (pair for pair in sorted(pairs, key=cost) if enough(both_of(pair), now, bounds))
    return list(zip(found, stay if now.no_verdict else next(better, stay), strict=True))


def _best_of_tiles(plan: Plan, one: Search) -> dict[int | None, Config]:
    """By tiles, the best that was verified by this search: if there is one, of its last rounds."""
    right = [
        config
        for config, outcome in one.result.tried.items()
        if config in one.bench.checks and outcome.status is Status.OK
    ]

    def rank(config: Config) -> tuple[bool, float]:
        final = config in one.result.final
        return not final, score(one.result.tried[config], one.bench.bounds)

    return {coupling(plan, n): n for n in sorted(right, key=rank, reverse=True)}


def _sum(outcomes: Sequence[Outcome]) -> Outcome:
    """One after the other: what their times add up to, or what failed."""
    failed = [outcome for outcome in outcomes if outcome.status is not Status.OK]
    if failed:
        return failed[0]
    us = []
    for times in zip(*(outcome.us for outcome in outcomes), strict=True):  # of one workload
        low, middle, high = (sum(quantile) for quantile in zip(*times, strict=True))
        us.append((low, middle, high))
    return Outcome(status=Status.OK, us=tuple(us))


def _raced(
    found: list[Search], pairs: Sequence[Sequence[Config]], seconds: float
) -> tuple[list[Search], bool]:
    """The searches after last rounds of these pairs and the start; whether there were enough."""
    after = []
    end = found[0].bench.now()
    try:
        for i, one in enumerate(found):
            batch = dict.fromkeys((one.space.start, *(pair[i] for pair in pairs)))
            right = [n for n in batch if one.result.tried[n].status is Status.OK]
            end += seconds / len(found)
            rounds: list[Tried] = list(one.bench.race(right, LAST_ROUNDS, "final", end))
            final = rounds[-1]
            if len(rounds) < ENOUGH or all(o.status is not Status.OK for o in final.values()):
                return found, False
            for config, outcome in final.items():
                one.journal.write(config, outcome)
            tried = {**one.result.tried, **final}
            result = dataclasses.replace(one.result, tried=tried, final=final, raced=True)
            after.append(dataclasses.replace(one, result=result))
    except KeyboardInterrupt:
        return [one.stopped() for one in found], False
    return after, True


def _sweep(one: Search) -> Sweep:
    """All outcomes of the first round: later ones are of a few, and longer."""
    header = Header(
        key=one.journal.key,
        op=one.journal.task.spec.op,
        workloads=one.journal.task.workloads,
        bounds=one.bench.bounds,
        start=one.space.start,
        date=now(),
        versions=one.journal.on.versions,
    )
    return Sweep(header=header, outcomes=one.result.first)


def _decision(one: Search, config: Config) -> Decision | None:
    """What tables keep of a search, if it found the config right and compared it with the
    start. What is known of an earlier one does not count.
    """
    seen = {**one.result.tried, **one.result.final}
    outcome, start = seen.get(config), seen.get(one.space.start)
    if outcome is None or outcome.status is not Status.OK or start is None:
        return None
    checks = one.bench.checks.get(config)
    if checks is None:
        return None
    low, us, high = zip(*outcome.us, strict=True)
    task, effort = one.journal.task, one.journal.effort
    return Decision(
        key=one.journal.key,
        fields=fields_of(task.spec),
        kernels=one.bench.digests(config),
        op=task.spec.op,
        workloads=task.workloads,
        config=config,
        us=us,
        low=low,
        high=high,
        bound_us=one.bench.bounds,
        start_us=tuple(times[1] for times in start.us),  # none if it does not run here
        start=one.space.start,
        checks=checks,
        effort=f"{effort}, interrupted" if one.result.interrupted else effort,
        date=now(),
        versions=one.journal.on.versions,
    )
