"""Which decision of tuned tables serves here.

`find` takes the decision for exactly what is wanted, else the nearest one whose config is legal
here: of a GPU of the same compute capability, for another Triton, workload, or number of channels
of the same group width. What differs is always said.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sh2gen.base import jsonl
from sh2gen.schedule.space import Config
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import with_defaults
from sh2gen.targets import target as targets
from sh2gen.targets.target import Target
from sh2gen.tuning.records import (
    Key,
)
from sh2gen.tuning.tables import Decision, in_order, width

# Fields that may differ if the group width, how many channels share a filter, does not; and how
# that is said.
_PHRASES = {
    "channels": "for {} channels, here {}",
    "filter.groups": "for {} groups, here {}",
    "sequences": "for {} sequences, here {}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a decision is looked for: as in `Decision`, and which configs are legal here."""

    key: Key
    fields: Mapping[str, Any] = field(hash=False)
    workloads: tuple[Workload, ...]
    config_legal: Callable[[Config], bool]


@dataclass(frozen=True, slots=True)
class Found:
    """A decision that serves, and in what it differs from what was wanted: nothing if exact.

    Attributes:
        other_gpu: whether the GPU is one of the differences.
    """

    decision: Decision
    differences: tuple[str, ...]
    other_gpu: bool = False

    @property
    def exact(self) -> bool:
        return not self.differences

    @property
    def label(self) -> str:
        """Where the config comes from, for the user."""
        text = f"tuned on {_where(self.decision)}"
        if self.exact:
            return text
        between = " " if self.differences[0].startswith(("for ", "with ")) else "; "
        return f"nearest: {text}{between}{'; '.join(self.differences)}"

    def us(self, target: Target) -> tuple[float, ...]:
        """Microseconds for each workload of the decision on `target`.

        Of another GPU than it was tuned on they are no measurement, but its times scaled by the
        bandwidth that elementwise kernels reach on both.
        """
        there = gpu_called(self.decision.key.gpu)
        if there is None or there == target:
            return self.decision.us
        scale = there.elementwise_bandwidth / target.elementwise_bandwidth
        return tuple(us * scale for us in self.decision.us)


def find(decisions: Sequence[Decision], wanted: Wanted, target: Target) -> Found | None:
    """The decision for exactly what is wanted, else the nearest that serves, if any does.

    Nearest is first of the same GPU, then of the same Triton, of the nearest number of channels,
    for the nearest workloads: by how far each that is wanted is from those of the decision; of
    such as near, by how far each of the decision's is from those wanted.

    Args:
        decisions: of equally near ones the first serves (`read_tables`).
        wanted: an exact decision, too, serves only with a config that is legal.
        target: the GPU that it is wanted for, the one called `wanted.key.gpu`.
    """
    ranked = _nearest_first(decisions, wanted, target)
    found = _compare(ranked[0], wanted, target) if ranked else []
    if not ranked or any(d.excludes for d in found):  # those that serve come first
        return None
    other_gpu = ranked[0].key.gpu != wanted.key.gpu
    return Found(ranked[0], tuple(d.phrase for d in found), other_gpu)


def misses(
    decisions: Sequence[Decision], wanted: Wanted, target: Target, limit: int = 10
) -> tuple[str, ...]:
    """How decisions differ from what is wanted, a line each, nearest first, `limit` at most; a
    last line counts those that have none. A line says whether the decision is `nearest`, which
    serves if none is nearer, or by what it is excluded.

    Those that serve come first, as `find` orders them; then those in whose way least stands. Of
    other operators, but for the number of channels, there is a line only if of this one nothing
    was decided: three.
    """
    ranked = _nearest_first(decisions, wanted, target)
    related = [d for d in ranked if _related(d, wanted)]
    shown = related[:limit] or ranked[:3]
    lines = []
    for decision in shown:
        found = _verdict(_compare(decision, wanted, target))
        lines.append(f"{decision.op} on {_where(decision)}: {found}")
    if left := len(ranked) - len(shown):
        others = len(ranked) - len(related) if related else left
        what = f"{left} more, {others}" if 0 < others < left else f"{left}"
        lines.append(f"and {what} " + ("of other operators" if others else "more"))
    return tuple(lines)


def _verdict(found: Sequence[_Difference]) -> str:
    """What differences come to: first those that exclude, and not too many."""
    ordered = sorted(found, key=lambda d: not d.excludes)
    shown = ordered[:3] if len(ordered) > 4 else ordered
    excluding = [d.line for d in shown if d.excludes]
    others = [d.line for d in shown if not d.excludes]
    parts = [f"excluded by {'; '.join(excluding)}"] * bool(excluding)
    parts += [f"{'' if excluding else 'nearest: '}differs in {'; '.join(others)}"] * bool(others)
    parts += [f"{len(ordered) - len(shown)} more"] * (len(shown) < len(ordered))
    return "; ".join(parts) or "nothing differs"


def _related(decision: Decision, wanted: Wanted) -> bool:
    """Whether it is of the same operator, with any number of channels and of groups."""
    return all(path in _PHRASES for path, *_ in _different(wanted.fields, decision.fields))


@dataclass(frozen=True, slots=True)
class _Difference:
    """Between a decision and what is wanted. Without a phrase the decision does not serve."""

    line: str  # such as "triton: 3.6 here, 3.5 there"
    phrase: str = ""  # what follows "tuned on NVIDIA H200", such as "with Triton 3.5, here 3.6"

    @property
    def excludes(self) -> bool:
        return not self.phrase


def _compare(decision: Decision, wanted: Wanted, target: Target) -> list[_Difference]:
    """Every difference, first those that a user most wants to know of."""
    found: list[_Difference] = []

    def differ(
        name: str, here: Any, there: Any, phrase: str = "", word: Callable[[Any], str] = str
    ) -> None:
        if here != there:
            found.append(_Difference(f"{name}: {word(here)} here, {word(there)} there", phrase))

    a, b = wanted.key, decision.key
    differ("plan", a.plan, b.plan)
    differ("direction", a.direction, b.direction)
    here, there = in_order(wanted.workloads), decision.workloads
    if here != there:
        line = f"workloads: {_sizes(here)} here, {_sizes(there)} there"
        if shared := set(here) & set(there):  # then those that differ are few among many
            sides = (("here", set(here) - shared), ("there", set(there) - shared))
            only = [f"{_sizes(in_order(list(w)))} only {where}" for where, w in sides if w]
            line = f"workloads: {', '.join(only)}"
        found.append(_Difference(line, f"for {_sizes(there)}, here {_sizes(here)}"))
    differ("group width", width(wanted.fields), width(decision.fields))
    whole = (with_defaults(wanted.fields), with_defaults(decision.fields))
    fields = list(_different(*whole))
    for path, one, other in fields:
        phrase = _PHRASES.get(path, "").format(other, one)  # of these the width says all
        differ(path, one, other, phrase, _word)
    if not fields:  # then what the digest is of has changed
        differ("spec", a.spec, b.spec, "with another digest of the operator", _start)
    differ("triton", a.triton, b.triton, f"with Triton {b.triton}, here {a.triton}")
    gpu = gpu_called(b.gpu)
    related = gpu is not None and gpu.capability == target.capability
    name = (
        target.name if gpu_called(a.gpu) == target else a.gpu
    )  # one that is no target, by its own
    differ("gpu", a.gpu, b.gpu, f"not measured on {name}" if related else "")
    # A config of another plan means nothing here.
    if not any(d.excludes for d in found) and not wanted.config_legal(decision.config):
        found.append(_Difference("a config that is not legal here"))
    return found


def _nearest_first(
    decisions: Sequence[Decision], wanted: Wanted, target: Target
) -> list[Decision]:
    """Decisions by what stands in their way, then by distance; equals stay in their order."""

    def distance(decision: Decision) -> tuple[float, ...]:
        found = _compare(decision, wanted, target)
        a, b = wanted.key, decision.key
        return (
            sum(d.excludes for d in found),
            len(found) > 0,
            a.gpu != b.gpu,
            a.triton != b.triton,
            _octaves(wanted.fields["channels"], decision.fields["channels"]),
            _workload_distance(wanted.workloads, decision.workloads),
            # Of such as near, what had to be good for the least that is far from here.
            _workload_distance(decision.workloads, wanted.workloads),
        )

    return sorted(decisions, key=distance)


def _workload_distance(wanted: Sequence[Workload], others: Sequence[Workload]) -> float:
    """The mean over wanted workloads of the octaves to the nearest of the others."""
    nearest = (
        min(_octaves(w.batch, o.batch) + _octaves(w.length, o.length) for o in others)
        for w in in_order(wanted)
    )
    return statistics.fmean(nearest)


def _octaves(a: int, b: int) -> float:
    return abs(math.log2(a / b))


def _different(here: Any, there: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every value that differs, with its dotted path: ("filter.length", 128, 7)."""
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for name in (*here, *(name for name in there if name not in here)):
            inside = f"{path}.{name}" if path else name
            yield from _different(here.get(name, "absent"), there.get(name, "absent"), inside)
    elif here != there:
        yield path, here, there


def _sizes(workloads: Sequence[Workload]) -> str:
    """B=1 L=2048, 8192, B=2 L=8192"""
    before = (0, *(w.batch for w in workloads))
    return ", ".join(
        f"{w.length}" if w.batch == batch else f"B={w.batch} L={w.length}"
        for w, batch in zip(workloads, before, strict=False)
    )


def _word(value: Any) -> str:
    """A value as operator files have it."""
    return jsonl.dumps(value).replace('"', "")


def _start(digest: str) -> str:
    return digest[:8]


def _where(decision: Decision) -> str:
    return f"{decision.key.gpu} ({decision.date.partition('T')[0]})"


def gpu_called(name: str) -> Target | None:
    """The GPU that a driver calls `name`."""
    return next((gpu for gpu in targets.known() if re.fullmatch(gpu.device_name, name)), None)
