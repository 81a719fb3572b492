"""Which plan computes an operator, and with which numbers (layer 7).

A lock file decides if there is one. Else the plan is the cheapest by prediction, and its numbers
are those that were tuned for exactly this, else the nearest that were tuned, else the defaults.
Nothing is ever measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from sh2gen import target as targets
from sh2gen.cost import score
from sh2gen.emit import kernel_digest, refuse_clash
from sh2gen.errors import Sh2genError
from sh2gen.jsonl import Damage
from sh2gen.lower import plans
from sh2gen.plan import Plan
from sh2gen.records import Key, operator_digest
from sh2gen.schedule import DIRECTIONS, Numbers, Schedule, coupling, partner, schedule, space
from sh2gen.spec import OpSpec
from sh2gen.tables import (
    Decision,
    Found,
    LockEntry,
    Wanted,
    fields_of,
    find,
    in_order,
    locked_schedule,
    misses,
    read_lock,
    read_tables,
    table_folders,
)
from sh2gen.target import Target

Changes = Mapping[str, Mapping[str, int]]  # direction -> knob -> value


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A plan with its schedule and what it is predicted to cost, less is better.

    Attributes:
        origins: by direction, where the numbers come from, in words.
    """

    plan: Plan
    schedule: Schedule
    score: float
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Where numbers are looked up: what was tuned, or what a lock file pins.

    Attributes:
        damages: lines of tables that were skipped.
    """

    decisions: tuple[Decision, ...] = ()
    damages: tuple[Damage, ...] = ()
    lock: Path | None = None
    entries: tuple[LockEntry, ...] = ()


def tables(extra: Path | None = None, locked: Path | None = None) -> Tables:
    """The tuned tables of `extra`, the user and the package; or a lock file alone.

    Raises:
        Sh2genError: R001, R002 if the lock file cannot be read.
    """
    if locked is not None:
        return Tables(lock=locked, entries=read_lock(locked))
    decisions, damages = read_tables(table_folders(extra))
    return Tables(decisions=decisions, damages=damages)


def candidates(
    spec: OpSpec,
    target: Target,
    plan: str | None = None,
    changes: Changes | None = None,
    known: Tables | None = None,
) -> tuple[Candidate, ...]:
    """Plans that compute the operator, the cheapest by prediction first, under default numbers;
    the first of them under the best numbers known.

    Args:
        plan: a prefix of the plan's name: "direct", "direct/BLD", "direct/BLD/recompute".
        changes: other numbers, of the plan that is the cheapest: those of other plans mean
            something else.
        known: where to look numbers up; None for the defaults.

    Raises:
        Sh2genError: L codes if nothing applies; R003 if a lock file does not say; S007 for a name
            that means something else in the file, before K codes if the numbers are not legal.
    """
    pinned: Schedule | None = None
    if known is not None and known.lock is not None:
        pinned = locked_schedule(known.lock, known.entries, spec.op, operator_digest(spec))
        if plan is not None and not (pinned.plan + "/").startswith(plan.rstrip("/") + "/"):
            raise Sh2genError(
                "R003", f"{known.lock} pins {spec.op} to {pinned.plan}, which is not `{plan}`"
            )
        plan = pinned.plan
    found = plans(spec, plan.split("/")[0] if plan else None)
    if plan is not None:
        names = [p.name for p in found]
        found = tuple(p for p in found if (p.name + "/").startswith(plan.rstrip("/") + "/"))
        if not found:
            raise Sh2genError("L003", f"{spec.op} has no plan `{plan}`", help="; ".join(names))

    def candidate(p: Plan) -> Candidate:
        numbers = schedule(spec, p)
        return Candidate(plan=p, schedule=numbers, score=score(spec, p, numbers, target))

    first, *others = sorted(map(candidate, found), key=lambda c: c.score)
    if first.plan.kernels and (changes or known is not None):
        refuse_clash(spec, first.plan, first.schedule)  # whatever the numbers
        first = _with_numbers(spec, target, first, changes or {}, known, pinned)
    elif changes:
        schedule(spec, first.plan, changes)  # says that there is nothing to change
    return (first, *others)


def _with_numbers(
    spec: OpSpec,
    target: Target,
    first: Candidate,
    changes: Changes,
    known: Tables | None,
    pinned: Schedule | None,
) -> Candidate:
    """A candidate under the best numbers known, some of them changed."""
    numbers = {d: first.schedule.numbers(d) for d in DIRECTIONS}
    origins = dict.fromkeys(DIRECTIONS, "default")
    if pinned is not None and known is not None:
        numbers = {d: pinned.numbers(d) for d in DIRECTIONS}
        origins = dict.fromkeys(DIRECTIONS, f"pinned by {known.lock}")
    elif known is not None:
        tuned = _tuned(spec, target, first.plan, known.decisions)
        numbers |= {d: found for d, (found, _) in tuned.items()}
        origins |= {d: label for d, (_, label) in tuned.items()}
    merged = {d: dict(numbers[d]) | dict(changes.get(d, {})) for d in DIRECTIONS}
    chosen = schedule(
        spec, first.plan, merged | {d: changes[d] for d in changes if d not in merged}
    )
    for direction in DIRECTIONS:
        if changes.get(direction):
            names = " ".join(f"{name}={value}" for name, value in changes[direction].items())
            origins[direction] += f", with {names} as given"
    return replace(
        first,
        schedule=chosen,
        score=score(spec, first.plan, chosen, target),
        origins=origins,
    )


def _tuned(
    spec: OpSpec, target: Target, plan: Plan, decisions: tuple[Decision, ...]
) -> dict[str, tuple[Numbers, str]]:
    """Tuned numbers of both directions that may go together, and where they come from."""
    relevant = [decision for decision in decisions if decision.key.plan == plan.name]
    found: dict[str, tuple[Numbers, str]] = {}
    for direction in DIRECTIONS:
        here = [decision for decision in relevant if decision.key.direction == direction]
        if here and (one := find(here, wanted(spec, target, plan, direction), target)):
            found[direction] = one.decision.numbers, f"{one.label}; {_times(one, target)}"
    agreed = {coupling(plan, numbers) for numbers, _ in found.values()}
    if (len(agreed) == 1 and len(found) == len(DIRECTIONS)) or not plan.states:
        return found
    # Numbers that were not tuned together: those of backward count, which takes longer.
    for direction in ("backward", "forward"):
        if direction in found:
            (other,) = (d for d in DIRECTIONS if d != direction)
            try:
                matching = partner(spec, plan, direction, found[direction][0])
            except Sh2genError:
                continue
            label = f"goes with the tiles of {direction}"
            return {direction: found[direction], other: (matching, label)}
    return {}


def _times(found: Found, target: Target) -> str:
    """What the numbers took where they were tuned, or what that means for another GPU."""
    times = ", ".join(
        f"{us:.1f} us at B={workload.batch} L={workload.length}"
        for us, workload in zip(found.us(target), found.decision.workloads, strict=True)
    )
    return times if found.us(target) == found.decision.us else f"by its bandwidth {times}"


def wanted(spec: OpSpec, target: Target, plan: Plan, direction: str) -> Wanted:
    """What tuned numbers are looked up by."""

    def legal(numbers: Numbers) -> bool:
        where = space(spec, plan, direction)
        try:
            return where.check(direction, dict(numbers)) == numbers
        except Sh2genError:
            return False

    key = Key(
        spec=operator_digest(spec),
        plan=plan.name,
        direction=direction,
        gpu=gpu_name(target),
        triton=triton_version(),
        templates=_kernel_digest(spec, plan),
    )
    return Wanted(
        key=key,
        fields=fields_of(spec),
        workloads=in_order(spec.workloads),
        numbers_legal=legal,
    )


@cache
def _kernel_digest(spec: OpSpec, plan: Plan) -> str:
    return kernel_digest(spec, plan)


def gpu_name(target: Target) -> str:
    """What the driver calls this machine's GPU if that is the target, else what it is called
    elsewhere.
    """
    if targets.from_device() == target:
        return torch.cuda.get_device_name()
    return target.device_name


def triton_version() -> str:
    """Triton's minor version here, which decides what kernels are compiled to."""
    try:
        return ".".join(metadata.version("triton").split(".")[:2])
    except metadata.PackageNotFoundError:
        return "none"


def explain_misses(
    spec: OpSpec, target: Target, plan: Plan, known: Tables
) -> dict[str, tuple[str, ...]]:
    """By direction, what distinguishes each tuned decision from what is wanted here."""
    return {
        direction: misses(
            [d for d in known.decisions if d.key.direction == direction],
            wanted(spec, target, plan, direction),
            target,
        )
        for direction in DIRECTIONS
    }
