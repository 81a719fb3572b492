"""Spaces: the legal configs of one direction of a plan, and those that a search tries.

A space is read from `schedules/<algorithm>.yaml`: knobs, constraints written once with the reason
for each, defaults, and which of the legal configs a search tries. The same constraints refuse a
user's schedule, prune a search and filter the schedules that tests draw.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sh2gen.base.errors import Sh2genError
from sh2gen.plan.plan import Plan
from sh2gen.schedule.expressions import compiled, first_case, holds, number_of, relation
from sh2gen.schedule.facts import facts_of
from sh2gen.schedule.knobs import knobs_of, malformed, not_legal, read_schedules
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target

DECODE = "decode"  # the role of the kernel that decodes, and its schedule file
Config = tuple[tuple[str, int], ...]
Knobs = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Constraint:
    """A relation between knobs and facts of the operator, and why it must hold."""

    that: str
    because: str

    @property
    def relation(self) -> Any:
        return relation(self.that)

    def holds(self, values: Mapping[str, int]) -> bool:
        return holds(self.that, values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The legal configs of one direction of one plan of one operator."""

    knobs: Knobs
    constraints: tuple[Constraint, ...]
    facts: tuple[tuple[str, int], ...]
    default: Config

    def violations(self, values: Mapping[str, int]) -> tuple[Constraint, ...]:
        """The constraints that do not hold."""
        known = dict(self.facts) | dict(values)
        return tuple(c for c in self.constraints if not c.holds(known))

    def points(self) -> Iterator[Config]:
        """Every legal config, the last knob's changing fastest."""
        return _choices(self.knobs, self.constraints, self.facts, Counter())

    def repairs(self, values: Mapping[str, int], kept: Iterable[str]) -> Config:
        """Knobs beside the kept ones that alone make these values legal, and the nearest number
        that does.
        """
        found = []
        for name, possible in self.knobs:
            at = possible.index(values[name])
            nearest = sorted(possible, key=lambda n: abs(possible.index(n) - at))
            legal = (n for n in nearest if not self.violations({**values, name: n}))
            if name not in kept and (number := next(legal, None)) is not None:
                found.append((name, number))
        return tuple(found)

    def check(self, direction: str, changes: Mapping[str, int]) -> Config:
        """The default with some knobs changed.

        Raises:
            Sh2genError: K001 unknown knob, K002 illegal value, K003 violated constraint.
        """
        legal = dict(self.knobs)
        for name, value in changes.items():
            if name not in legal:
                if not legal:
                    raise Sh2genError(
                        "K001",
                        f"unknown knob `{name}` ({direction}): this plan has no kernels to tune",
                        help="leave it out, or take a plan with kernels; "
                        "`sh2gen explain` lists the plans",
                    )
                near = difflib.get_close_matches(name, legal, n=1, cutoff=0.5)
                raise Sh2genError(
                    "K001",
                    f"unknown knob `{name}` ({direction})",
                    help=f"did you mean `{near[0]}`?" if near else f"one of {', '.join(legal)}",
                )
            if value not in legal[name]:
                raise Sh2genError(
                    "K002",
                    f"{direction} {name} = {value} is not allowed",
                    help="one of " + ", ".join(map(str, legal[name])),
                )
        values = dict(self.default) | dict(changes)
        for constraint in self.violations(values):
            given = ", ".join(f"{k} = {v}" for k, v in values.items() if v or k in changes)
            ways = " or ".join(f"{k} to {v}" for k, v in self.repairs(values, changes))
            raise Sh2genError(
                "K003",
                f"{direction} schedule violates {constraint.that}: {constraint.because}",
                help=f"change {ways} too; given {given}" if ways else f"given {given}",
            )
        return tuple(values.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a search tries of one direction of one plan of one operator.

    The sizes of the products that the schedule file lists add up to the points but the default,
    what was dropped, and what was repeated.

    Attributes:
        points: legal configs without duplicates: the default, then in the order of the file.
        dropped: constraints that listed configs violate, and how many candidates each dropped;
            a candidate counts for the first of them that its knobs decide.
        repeated: candidates that were points already.
    """

    points: tuple[Config, ...]
    dropped: tuple[tuple[Constraint, int], ...]
    repeated: int


def file_of(algorithm: str, direction: str) -> str:
    """The schedule file of a direction of plans of an algorithm."""
    return DECODE if direction == DECODE else algorithm


def space(spec: OpSpec, plan: Plan, direction: str, target: Target | None = None) -> Space:
    """The space of one direction of a plan on a target, by default that of `targets`; empty if it
    has no kernel there.
    """
    text = read_schedules(file_of(plan.algorithm, direction))
    facts = facts_of(spec, target)
    here = {direction, plan.layout.value}
    rules = [rule for rule in text["require"] if here.issuperset(rule.get("only", ()))]
    knobs = knobs_of(text, plan.layout.value, direction)
    if direction == DECODE and plan.step is None:
        return Space(knobs=(), constraints=(), facts=tuple(facts.items()), default=())
    default = first_case(text["default"].get(plan.layout.value, {}).get(direction, {}), facts)
    return Space(
        knobs=tuple(knobs.items()),
        constraints=tuple(Constraint(rule["that"], rule["because"]) for rule in rules),
        facts=tuple(facts.items()),
        default=tuple((name, default[name]) for name in knobs) if default else (),
    )


def search_space(spec: OpSpec, plan: Plan, direction: str, target: Target | None = None) -> Survey:
    """The configs of one direction of a plan that are worth trying, the default first.

    Without kernels, or if the schedule file lists nothing for the layout and direction, that is
    the default alone.

    Raises:
        Sh2genError: K004 if an expression of the schedule file gives an illegal number here.
    """
    where = space(spec, plan, direction, target)
    facts, default = dict(where.facts), dict(where.default)
    points = {where.default: None}
    dropped: Counter[Constraint] = Counter()
    repeated = 0
    for knobs in _blocks(plan, direction, facts):
        tried = tuple((name, knobs.get(name, (default[name],))) for name, _ in where.knobs)
        for (name, legal), (_, values) in zip(where.knobs, tried, strict=True):
            if strange := set(values) - set(legal):
                place = f"search of {plan.layout.value} {direction}: {name}"
                raise malformed(
                    file_of(plan.algorithm, direction), not_legal(place, strange.pop(), legal)
                )
        for point in _choices(tried, where.constraints, where.facts, dropped):
            repeated += point in points
            points[point] = None
    return Survey(
        points=tuple(points),
        dropped=tuple((c, dropped[c]) for c in where.constraints if dropped[c]),
        repeated=repeated,
    )


def _blocks(
    plan: Plan, direction: str, facts: Mapping[str, int]
) -> Iterator[dict[str, tuple[int, ...]]]:
    """The values of the knobs that each block names, of blocks whose `when` holds."""
    search = read_schedules(file_of(plan.algorithm, direction)).get("search", {})
    if direction == DECODE and plan.step is None:
        return
    for block in search.get(plan.layout.value, {}).get(direction, []):
        if all(holds(relation, facts) for relation in block.get("when", ())):
            yield {
                name: tuple(dict.fromkeys(number_of(value, facts) for value in values))
                for name, values in block.items()
                if name != "when"
            }


def neighbours(points: Iterable[Config], config: Config) -> tuple[Config, ...]:
    """Of some points those that differ from `config` in one knob, by the next smaller or larger
    value that there is with all others equal; knob by knob, smaller first.

    `config` need not be one of the points.
    """
    beside: dict[str, dict[int, Config]] = {name: {} for name, _ in config}
    for point in points:
        differing = [b for a, b in zip(config, point, strict=True) if a != b]
        if len(differing) == 1:
            ((name, value),) = differing
            beside[name][value] = point
    found = []
    for name, at in config:
        smaller = max((v for v in beside[name] if v < at), default=None)
        larger = min((v for v in beside[name] if v > at), default=None)
        found += [beside[name][v] for v in (smaller, larger) if v is not None]
    return tuple(found)


def _choices(
    knobs: Knobs,
    constraints: Sequence[Constraint],
    facts: tuple[tuple[str, int], ...],
    dropped: Counter[Constraint],
) -> Iterator[Config]:
    """Every choice of a value for each knob that keeps the constraints.

    A constraint is checked as soon as its knobs have values, and what it rules out is never
    enumerated, only counted in `dropped`.
    """
    place = {name: at for at, (name, _) in enumerate(knobs, start=1)}
    due: list[list[tuple[Constraint, tuple[str, ...], Any]]] = [[] for _ in range(len(knobs) + 1)]
    for constraint in constraints:
        needed, holds = compiled(constraint.that)
        due[max((place.get(name, 0) for name in needed), default=0)].append(
            (constraint, needed, holds)
        )
    values = dict(facts)

    def choose(at: int) -> Iterator[Config]:
        for constraint, needed, holds in due[at]:
            if not holds(*(values[name] for name in needed)):
                dropped[constraint] += math.prod(len(possible) for _, possible in knobs[at:])
                return
        if at == len(knobs):
            yield tuple((name, values[name]) for name, _ in knobs)
            return
        name, possible = knobs[at]
        for number in possible:
            values[name] = number
            yield from choose(at + 1)

    return choose(0)
