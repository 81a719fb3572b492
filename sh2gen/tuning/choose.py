"""Which plan computes an operator, and with which config.

A lock file decides if there is one. Else the plan is the cheapest by prediction, or one whose
config was tuned for exactly this and took less time. Its config is what was tuned for exactly
this, else the nearest that was tuned, else the default. Nothing is ever measured here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch

from sh2gen.base.errors import Sh2genError
from sh2gen.base.jsonl import Damage
from sh2gen.base.versions import installed, minor
from sh2gen.cost.cost import predict, score
from sh2gen.cost.decode import STEPS
from sh2gen.cost.programs import shared_of_taps
from sh2gen.emit.emit import kernel_digest, refuse_clash
from sh2gen.lower import plans
from sh2gen.plan.plan import Plan
from sh2gen.schedule.config import (
    DIRECTIONS,
    Schedule,
    completed,
    coupling,
    launch_config,
    partner,
    roles_of,
    schedule,
)
from sh2gen.schedule.space import DECODE, Config, space
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets import target as targets
from sh2gen.targets.target import Target
from sh2gen.tuning.lockfile import LockEntry, lock_error, locked_entry, read_lock
from sh2gen.tuning.lookup import Found, Wanted, find, misses
from sh2gen.tuning.records import Key, operator_digest
from sh2gen.tuning.tables import Decision, fields_of, in_order, read_tables, table_folders

Changes = Mapping[str, Mapping[str, int]]  # direction -> knob -> value


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A plan with its schedule and what it costs, less is better.

    Attributes:
        score: time over its bound, summed over directions and workloads; predicted or measured.
        measured: whether the score is of times that a config tuned for exactly this took.
        tuned: whether tables have a config of this plan for this operator and GPU.
        origins: by direction, where the config comes from, in words.
        decided: by direction, the decision for exactly this that they are, if they are.
        warnings: what the user must be told of them.
        untaken: of the user's own configs that are not, and of a plan that would take less time
            but does not fit, why not.
    """

    plan: Plan
    schedule: Schedule
    score: float
    measured: bool = False
    tuned: bool = False
    origins: Mapping[str, str] = field(default_factory=dict)
    decided: Mapping[str, Decision] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    untaken: tuple[str, ...] = ()

    @property
    def basis(self) -> str:
        """What the score is, in a word."""
        return "measured" if self.measured else "predicted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Where configs are looked up: what was tuned, or what a lock file pins.

    Attributes:
        decisions: as `read_tables` orders them.
        own: how many of these, the first, are not the package's.
        damages: lines of tables that were skipped.
    """

    decisions: tuple[Decision, ...] = ()
    own: int = 0
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
    *folders, package = table_folders(extra)
    (own, damages), (shipped, more) = read_tables(folders), read_tables([package])
    return Tables(decisions=own + shipped, own=len(own), damages=damages + more)


def candidates(
    spec: OpSpec,
    target: Target,
    plan: str | None = None,
    changes: Changes | None = None,
    known: Tables | None = None,
) -> tuple[Candidate, ...]:
    """Plans that compute the operator, the one that is taken first, under the best config known;
    the others cheapest first, under the default.

    Taken is the cheapest by prediction, unless a plan whose config was tuned for exactly this
    took less time: less than the former's did if these were tuned too, else than is predicted of
    it. So whoever tunes a plan never gets one that nobody tuned instead of it.

    Args:
        plan: a prefix of the plan's name: "direct", "direct/BLD", "direct/BLD/recompute".
        changes: other values, of the plan that is taken: those of other plans mean something
            else.
        known: where to look configs up; None for the defaults.

    Raises:
        Sh2genError: L codes if nothing applies; R003 if a lock file does not say, R002 if it does
            not say all, C006 for changes of what it says; S007 for a name that means something
            else in the file, before K codes if the config is not legal.
    """
    if known is not None and known.lock is not None:
        return (_pinned(spec, target, plan, changes, known.lock, known.entries),)
    found = plans(spec, plan.split("/")[0] if plan else None)
    if plan is not None:
        names = [p.name for p in found]
        found = tuple(p for p in found if (p.name + "/").startswith(plan.rstrip("/") + "/"))
        if not found:
            raise Sh2genError("L003", f"{spec.op} has no plan `{plan}`", help="; ".join(names))

    def candidate(p: Plan) -> Candidate:
        default = schedule(spec, p, target=target)
        return Candidate(plan=p, schedule=default, score=score(spec, p, default, target))

    ranked = sorted(map(candidate, found), key=lambda c: c.score)
    misfits = {c.plan.name: text for c in ranked if (text := _misfit(spec, target, c))}
    cheapest = ranked[0].plan.name
    ranked.sort(key=lambda c: c.plan.name in misfits)  # none of them if another fits
    if known is not None:
        ranked = [_measured(spec, target, c, known.decisions) for c in ranked]
    first = min([ranked[0], *(c for c in ranked if c.measured)], key=lambda c: c.score)
    others = sorted((c for c in ranked if c is not first), key=lambda c: c.score)
    if first.plan.kernels and (changes or known is not None):
        refuse_clash(spec, first.plan)  # whatever the config
        first = _with_config(spec, target, first, changes or {}, known)
    elif changes:
        schedule(spec, first.plan, changes, target)  # says that there is nothing to change
    if cheapest in misfits and first.plan.name != cheapest:
        first = replace(first, untaken=(misfits[cheapest], *first.untaken))
    return (first, *others)


def _misfit(spec: OpSpec, target: Target, candidate: Candidate) -> str:
    """Why the default of a plan does not fit a GPU; empty where nothing known here says so."""
    for kernel in candidate.plan.kernels:
        config = launch_config(spec, candidate.schedule, kernel.role)
        taken = shared_of_taps(kernel, config, spec)
        if taken > target.shared_per_block:
            return (
                f"{candidate.plan.name}: its taps take {taken:,} bytes of shared memory, and "
                f"{target.name} has {target.shared_per_block:,} a block"
            )
    return ""


def resized(spec: OpSpec, lengths: Sequence[int] = (), batch: int | None = None) -> OpSpec:
    """The operator for other workloads: these lengths, by default its own, in batches of `batch`,
    by default its own, or 1 with `lengths`.
    """
    if not lengths and batch is None:
        return spec
    own = [(w.batch, w.length) for w in spec.workloads]
    sizes = [(1, length) for length in lengths] or own
    workloads = [Workload(batch=batch or b, length=length) for b, length in sizes]
    return replace(spec, workloads=in_order(workloads))


def size_options(workloads: Sequence[Workload]) -> str:
    """The options of `compile` that stand for these workloads; empty if none do."""
    batches = {w.batch for w in workloads}
    if len(batches) > 1:
        return ""
    lengths = " ".join(f"--length {w.length}" for w in workloads)
    return lengths + "".join(f" --batch {b}" for b in batches if b > 1)


def passed_over(ranked: Sequence[Candidate]) -> tuple[str, ...]:
    """A line for each of `candidates` with a tuned config that is not taken, and for those of the
    user's own of the one that is: why not, and how to take them.
    """
    return (ranked[0].untaken if ranked else ()) + tuple(
        f"tuned config of {c.plan.name}: {c.score / ranked[0].score:.2f}x the cost, "
        f"{c.basis} (of {ranked[0].plan.name}: {ranked[0].basis}); --plan {c.plan.name} takes it"
        for c in ranked[1:]
        if c.tuned
    )


def _measured(
    spec: OpSpec, target: Target, candidate: Candidate, decisions: Sequence[Decision]
) -> Candidate:
    """A candidate by the times that its config took if that was tuned for exactly this."""
    plan, digest = candidate.plan, operator_digest(spec)
    own = [d for d in decisions if (d.key.plan, d.key.spec) == (plan.name, digest)]
    if own:  # else nobody needs to ask the driver
        gpu = gpu_name(target)
        own = [d for d in own if d.key.gpu == gpu]
    found: dict[str, Found] = {}
    for direction in DIRECTIONS:
        here = [d for d in own if d.key.direction == direction]
        if here and (one := find(here, wanted(spec, target, plan, direction), target)):
            found[direction] = one
    exact = {d: one.decision for d, one in found.items() if one.exact}
    if len(exact) < len(DIRECTIONS) or len({coupling(plan, d.config) for d in exact.values()}) > 1:
        return replace(candidate, tuned=bool(found))
    total = 0.0
    for direction, decision in exact.items():
        us = dict(zip(decision.workloads, decision.us, strict=True))
        for workload in spec.workloads:
            p = predict(spec, plan, candidate.schedule, direction, workload, target)
            total += us[workload] * 1e-6 / p.bound
    return replace(candidate, tuned=True, measured=True, score=total)


def _pinned(
    spec: OpSpec,
    target: Target,
    name: str | None,
    changes: Changes | None,
    lock: Path,
    entries: Sequence[LockEntry],
) -> Candidate:
    """What a lock file says of the operator, and nothing else."""
    entry = locked_entry(lock, entries, spec.op, operator_digest(spec))
    if changes:
        raise Sh2genError(
            "C006",
            f"{lock} pins the configs of {spec.op}: none can be given beside them",
            help="leave out the lock file, or the config",
        )
    if name is not None and not (entry.plan + "/").startswith(name.rstrip("/") + "/"):
        raise Sh2genError("R003", f"{lock} pins {spec.op} to {entry.plan}, which is not `{name}`")
    try:
        found = plans(spec, entry.plan.split("/")[0])
        named = [p for p in found if p.name == entry.plan]
        if not named:
            names = "; ".join(p.name for p in found)
            raise Sh2genError("L003", f"{spec.op} has no plan `{entry.plan}`", help=names)
    except Sh2genError as error:
        raise lock_error(lock, entry, error) from None
    (plan,) = named
    if plan.kernels:
        refuse_clash(spec, plan)  # whatever the config
    configs = {d: dict(completed(plan.name, d, entry.config(d))) for d in roles_of(plan)}
    if not entry.decode:  # it is older
        configs.pop(DECODE, None)
    for direction in configs:
        legal = [knob for knob, _ in space(spec, plan, direction, target).knobs]
        lacks = [knob for knob in legal if knob not in configs[direction]]
        strange = [knob for knob in configs[direction] if knob not in legal]
        if lacks or strange:
            what = f"lacks `{lacks[0]}`, a" if lacks else f"has `{strange[0]}`, which is no"
            wrong = Sh2genError(
                "R002",
                f"{direction} of {spec.op} {what} knob of {plan.name}",
                help="the kernels have changed since: write the lock file again",
            )
            raise lock_error(lock, entry, wrong, direction)
    try:
        chosen = schedule(spec, plan, configs, target)
    except Sh2genError as error:
        raise lock_error(lock, entry, error) from None
    origin, older = f"pinned by {lock}", not entry.decode
    warnings: tuple[str, ...] = ()
    if entry.kernels != kernels_of(spec, plan):
        origin += ", for kernels of other text"
        warnings = (
            f"{lock} was written for kernels of {spec.op} of other text: configs are as pinned, "
            "the kernels are not what they were then",
        )
    return Candidate(
        plan=plan,
        schedule=chosen,
        score=score(spec, plan, chosen, target),
        origins={
            role: f"default: {lock} is older than it" if role == DECODE and older else origin
            for role in roles_of(plan)
        },
        warnings=warnings,
    )


def _with_config(
    spec: OpSpec,
    target: Target,
    first: Candidate,
    changes: Changes,
    known: Tables | None,
) -> Candidate:
    """A candidate under the best config known, some knobs of it changed."""
    roles = roles_of(first.plan)
    configs = {d: first.schedule.config(d) for d in roles}
    origins = dict.fromkeys(roles, "default")
    decided: dict[str, Decision] = {}
    tuned: dict[str, _TunedConfig] = {}
    if known is not None:
        tuned = _tuned(spec, target, first.plan, known.decisions)
        configs |= {d: one.config for d, one in tuned.items()}
        origins |= {d: one.label for d, one in tuned.items()}
        decided = {
            d: one.decision for d, one in tuned.items() if one.decision and not changes.get(d)
        }
    merged = {d: dict(configs[d]) | dict(changes.get(d, {})) for d in roles}
    chosen = schedule(
        spec, first.plan, merged | {d: changes[d] for d in changes if d not in merged}, target
    )
    for direction in roles:
        if configs[direction] == chosen.config(direction) and direction in tuned:
            origins[direction] += tuned[direction].times
        if changes.get(direction):
            names = " ".join(f"{name}={value}" for name, value in changes[direction].items())
            origins[direction] += f", with {names} as given"
    untaken = _untaken(spec, target, first.plan, known) if known is not None else ()
    first = replace(first, schedule=chosen, origins=origins, decided=decided, untaken=untaken)
    if first.measured and not changes:
        return first
    return replace(first, score=score(spec, first.plan, chosen, target), measured=False)


@dataclass(frozen=True, slots=True)
class _TunedConfig:
    """A config of a table, where it comes from, what it took, and the decision if that is for
    exactly what is wanted.
    """

    config: Config
    label: str
    times: str = ""  # goes on where the label ends
    decision: Decision | None = None


def _tuned(
    spec: OpSpec, target: Target, plan: Plan, decisions: tuple[Decision, ...]
) -> dict[str, _TunedConfig]:
    """Tuned configs of both directions that may go together, and that of decoding."""
    relevant = [decision for decision in decisions if decision.key.plan == plan.name]
    found: dict[str, _TunedConfig] = {}
    for direction in roles_of(plan):
        here = [decision for decision in relevant if decision.key.direction == direction]
        if here and (one := find(here, wanted(spec, target, plan, direction), target)):
            times = f"; {_times(one, target)}"
            exact = one.decision if one.exact else None
            found[direction] = _TunedConfig(one.decision.config, one.label, times, exact)
    if not plan.states:
        return found
    steps = {DECODE: found.pop(DECODE)} if DECODE in found else {}
    agreed = {coupling(plan, one.config) for one in found.values()}
    if len(agreed) == 1 and len(found) == len(DIRECTIONS):
        return found | steps
    # Configs that were not tuned together: those of backward count, which takes longer.
    for direction in ("backward", "forward"):
        if direction in found:
            (other,) = (d for d in DIRECTIONS if d != direction)
            try:
                matching = partner(spec, plan, direction, found[direction].config, target)
            except Sh2genError:
                continue
            label = f"goes with the tiles of {direction}"
            return {direction: found[direction], other: _TunedConfig(matching, label)} | steps
    return steps


def _untaken(spec: OpSpec, target: Target, plan: Plan, known: Tables) -> tuple[str, ...]:
    """A line for each direction of which the package's config is taken although the user has
    tuned this operator for some of these workloads: the nearest of the user's own.
    """
    lines = []
    digest = operator_digest(spec)
    mine = known.decisions[: known.own]
    for direction in roles_of(plan):
        workloads = set(_workloads(spec, direction))
        here = (plan.name, direction)
        own = [
            d
            for d in mine
            if (d.key.plan, d.key.direction) == here
            and d.key.spec == digest
            and workloads & set(d.workloads)
        ]
        if not own:  # else nobody needs to ask the driver
            continue
        want = wanted(spec, target, plan, direction)
        every = [d for d in known.decisions if (d.key.plan, d.key.direction) == here]
        taken, nearest = find(every, want, target), find(own, want, target)
        if (
            taken is None
            or taken.decision in mine
            or nearest is None
            or nearest.decision.key.gpu != want.key.gpu
            or nearest.decision.config == taken.decision.config
        ):
            continue
        options = size_options(nearest.decision.workloads)
        how = f"; {options} takes it" if options else ""
        if len(nearest.differences) > 1 or nearest.decision.workloads == want.workloads:
            how = "; tune again to take such"  # not only the sizes are others
        label = nearest.label.removeprefix("nearest: ")
        lines.append(f"{direction} config of your own, {label}{how}")
    return tuple(lines)


def _times(found: Found, target: Target) -> str:
    """What the config took where it was tuned; if only the GPU is another, what that means for
    this one.
    """

    def at(times: Sequence[float]) -> str:
        return ", ".join(
            f"{us:.1f} us at B={workload.batch} L={workload.length}"
            for us, workload in zip(times, found.decision.workloads, strict=True)
        )

    if found.exact:
        return at(found.decision.us)
    if found.other_gpu and len(found.differences) == 1 and not target.stands_for:
        return f"about {at(found.us(target))} here by bandwidth"
    return f"there {at(found.decision.us)}"


def wanted(spec: OpSpec, target: Target, plan: Plan, direction: str) -> Wanted:
    """What a tuned config is looked up by."""

    def legal(config: Config) -> bool:
        where = space(spec, plan, direction, target)
        try:
            return where.check(direction, dict(config)) == config
        except Sh2genError:
            return False

    key = Key(
        spec=operator_digest(spec),
        plan=plan.name,
        direction=direction,
        gpu=gpu_name(target),
        triton=triton_version(),
    )
    return Wanted(
        key=key,
        fields=fields_of(spec),
        workloads=_workloads(spec, direction),
        config_legal=legal,
    )


def _workloads(spec: OpSpec, direction: str) -> tuple[Workload, ...]:
    """What configs of a direction are chosen for."""
    return STEPS if direction == DECODE else in_order(spec.workloads)


@cache
def kernels_of(spec: OpSpec, plan: Plan) -> str:
    """`emit.kernel_digest`, made once."""
    return kernel_digest(spec, plan)


def gpu_name(target: Target) -> str:
    """What the driver calls this machine's GPU if that is the target, else what it is called
    elsewhere. (One that has no file is served by another's, under its own name.)
    """
    if targets.from_device() == target:
        return torch.cuda.get_device_name()
    return target.device_name


def triton_version() -> str:
    """Triton's minor version here, which decides what kernels are compiled to."""
    version = installed("triton")
    return minor(version) if version else "none"


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
        for direction in roles_of(plan)
    }
