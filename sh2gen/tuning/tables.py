"""Tuned tables: the schedules that searches decided for, and which of them serves here.

A table is <folder>/<GPU>/<operator>.jsonl, a decision a line. `find` takes the decision for
exactly what is wanted, else the nearest one whose numbers are legal here: of a GPU of the same
compute capability, for another Triton, workload, or number of channels of the same group width.
What differs is always said. A decision is found by what the operator is, not by the text of its
kernels: beside it stand digests of these as the compiler made them (`kernels`), by which
`sh2gen tables check` finds what to time again. (A job that wants no look-up at all pins its
schedules in a `lockfile`, whose functions are to be had here too.)
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sh2gen.base import jsonl
from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import listed, read_regular, write_whole
from sh2gen.base.jsonl import Damage
from sh2gen.base.resources import folder as package_folder
from sh2gen.schedule.schedule import Numbers, completed
from sh2gen.spec.language import OpSpec, Workload, spec_from_dict, with_defaults
from sh2gen.targets import target as targets
from sh2gen.targets.target import Target
from sh2gen.tuning.lockfile import LockEntry as LockEntry
from sh2gen.tuning.lockfile import lock_error as lock_error
from sh2gen.tuning.lockfile import lock_text as lock_text
from sh2gen.tuning.lockfile import locked_entry as locked_entry
from sh2gen.tuning.lockfile import read_lock as read_lock
from sh2gen.tuning.lockfile import refuse_to_write as refuse_to_write
from sh2gen.tuning.records import (
    Key,
    check_date,
    check_times,
    check_workloads,
    home,
    operator_digest,
    slug,
)

VERSION = 2  # of the lines; those of 1 are read too
# Fields that may differ if the group width, how many channels share a filter, does not; and how
# that is said.
_PHRASES = {"channels": "for {} channels, here {}", "filter.groups": "for {} groups, here {}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The numbers that a search decided for, for one direction of one plan on one GPU.

    Attributes:
        key: what it was decided for; with `workloads`, what it is found by.
        fields: `fields_of` the operator, readable, so that a miss can name what differs.
        kernels: by the name of a kernel in its file, without the operator's, a digest of all
            binaries of it that the workloads launch (`kernel_digests`); empty if not known, as of
            lines of version 1.
        op: name of the operator then.
        workloads: what the numbers were chosen for, sorted, each once.
        numbers: knob and value, in the order of the schedule file.
        us, low, high: microseconds of a call for each workload: median, 20th, 80th percentile.
        bound_us: of an elementwise kernel that moves the same bytes.
        start_us: of `start`, timed together with `numbers`; empty if it failed.
        start: the schedule that the search started from.
        checks: comparisons with float64 that passed before it was timed.
        effort: how thorough the search was.
        date: `records.now()` then.
        versions: of torch, triton, sh2gen, python, CUDA, and `driver_cuda`, the newest CUDA
            that the driver supports.

    Raises:
        ValueError: times that are not one a workload or that a call cannot take, workloads out of
            order, a date of another form, a name that is not an operator's, fields without
            channels and groups.
    """

    key: Key
    fields: Mapping[str, Any] = field(hash=False)
    kernels: Mapping[str, str] = field(hash=False)
    op: str
    workloads: tuple[Workload, ...]
    numbers: Numbers
    us: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    bound_us: tuple[float, ...]
    start_us: tuple[float, ...]
    start: Numbers
    checks: int
    effort: str
    date: str
    versions: Mapping[str, str] = field(hash=False)

    def __post_init__(self) -> None:
        if re.fullmatch(r"[a-z][a-z0-9_]{0,63}", self.op) is None:  # it becomes a file's name
            raise ValueError(f"op must be an operator's name, not {self.op!r}")
        check_workloads(self.workloads)
        if not self.workloads or self.workloads != in_order(self.workloads):
            raise ValueError("workloads must be sorted, each once, and at least one")
        for name in ("us", "low", "high", "bound_us", "start_us"):
            times = getattr(self, name)
            check_times(name, times)
            if len(times) != len(self.workloads) and (times or name != "start_us"):
                raise ValueError(f"{name} must have a time for each workload")
        check_date(self.date)
        _width(self.fields)

    @property
    def identity(self) -> tuple[Key, tuple[Workload, ...]]:
        """What a table holds one decision for."""
        return self.key, self.workloads

    def to_line(self) -> str:
        """One line of JSON, without its newline. `from_line` undoes it."""
        return jsonl.encode(self, VERSION)

    @classmethod
    def from_line(cls, line: str) -> Decision:
        """Read a line. ValueError says which field is wrong, and how."""
        values = jsonl.loads(line)
        if isinstance(values, dict) and values.get("v") == 1:
            line = jsonl.dumps(_of_version_1(values))
        found = jsonl.decode(line, cls, VERSION)
        assert isinstance(found, Decision)
        return found

    @property
    def spec(self) -> OpSpec:
        """The operator that it was decided for, with its workloads.

        Raises:
            Sh2genError: this version knows no such operator.
        """
        values = {"op": self.op, **self.fields}
        return dataclasses.replace(spec_from_dict(values), workloads=self.workloads)


def _of_version_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """A line of version 1 as one of today: fields had all defaults, keys a digest of text."""
    key, fields = values.get("key"), values.get("fields")
    if not (isinstance(key, dict) and isinstance(fields, dict)):
        raise ValueError("key and fields must be objects")
    try:
        spec = spec_from_dict({"op": "op", **fields})
    except Sh2genError as error:
        raise ValueError(f"fields describe no operator: {error.message}") from None
    key = {k: v for k, v in key.items() if k != "templates"} | {"spec": operator_digest(spec)}
    return {**values, "v": VERSION, "key": key, "fields": fields_of(spec), "kernels": {}}


def fields_of(spec: OpSpec) -> dict[str, Any]:
    """An operator in plain values, without its name, its workloads and what is at its default."""
    return {k: v for k, v in spec.canonical().items() if k not in ("op", "workloads")}


def in_order(workloads: Sequence[Workload]) -> tuple[Workload, ...]:
    """Workloads sorted by batch, then length, each once."""
    return tuple(sorted(set(workloads), key=lambda w: (w.batch, w.length)))


# ---- files --------------------------------------------------------------------------------------


def table_folders(extra: Path | None = None) -> tuple[Path, ...]:
    """Where tables are looked for: `extra`, the user's own, those of the package."""
    own = (home() / "tuned", package_folder("schedules") / "tuned")
    return own if extra is None else (extra, *own)


def holds_tables(folder: Path) -> bool:
    """Whether there is a table below this folder, of whatever operator."""
    return any(_files(folder))


def _files(folder: Path) -> Iterator[Path]:
    """The tables of a folder, <gpu>/<op>.jsonl."""
    for gpu in listed(folder):
        yield from (folder / gpu / op for op in listed(folder / gpu) if op.endswith(".jsonl"))


def read_tables(folders: Sequence[Path]) -> tuple[tuple[Decision, ...], tuple[Damage, ...]]:
    """The decisions of all tables below these folders, and the lines that are none.

    Those that come first count more among equals: a folder's before the next one's, and of a
    folder the newest. Folders need not exist. Numbers have the knobs that are newer than they are
    (`schedule.completed`).
    """
    decisions: list[Decision] = []
    damages: list[Damage] = []
    for folder in folders:
        inside: list[Decision] = []
        try:
            os.scandir(folder).close()
        except FileNotFoundError:
            continue
        except OSError as error:
            reason = f"cannot be read: {error.strerror or error}"
            damages.append(Damage(path=folder, line=0, reason=reason))
        for path in _files(folder):
            found, bad = jsonl.read_lines(path, Decision.from_line)
            inside += map(_completed, found)
            damages += bad
        decisions += sorted(inside, key=lambda d: d.date, reverse=True)
    return tuple(decisions), tuple(damages)


def _completed(decision: Decision) -> Decision:
    plan, direction = decision.key.plan, decision.key.direction
    numbers = completed(plan, direction, decision.numbers)
    if numbers == decision.numbers:
        return decision
    start = completed(plan, direction, decision.start)
    return dataclasses.replace(decision, numbers=numbers, start=start)


def table_path(folder: Path, decision: Decision) -> Path:
    """The table in a folder that holds what is decided for this operator and GPU."""
    return folder / slug(decision.key.gpu) / f"{decision.op}.jsonl"


def write_decisions(folder: Path, decisions: Sequence[Decision]) -> Path:
    """Put decisions, all of one operator and one GPU, into their table; returns its path.

    Each takes the place of those with its key and workloads. Every other line of the table stays,
    byte for byte, damaged ones and ones of another version too: `read_tables` names them, and
    what becomes of them is for the user to say.

    Raises:
        Sh2genError: C005 if the table cannot be read or written; it is then untouched.
        ValueError: none, or of several operators or GPUs.
    """
    (path,) = {table_path(folder, decision) for decision in decisions}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file beside the tables, because every new table is another file.
        lock = os.open(path.parent / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with jsonl.locked(lock):
                write_whole(path, _merged(path, decisions), errors="surrogateescape")
        finally:
            os.close(lock)
    except OSError as error:
        raise Sh2genError("C005", f"cannot write {path}: {error.strerror or error}") from error
    return path


def _merged(path: Path, decisions: Sequence[Decision]) -> str:
    """The text of a table with these decisions in it."""
    new = {d.identity: d.to_line() for d in decisions}
    try:
        old = read_regular(path).decode("utf-8", errors="surrogateescape")
    except FileNotFoundError:
        old = ""
    lines = []
    put: set[Any] = set()
    for line in old.removesuffix("\n").split("\n") if old else []:
        try:
            identity = Decision.from_line(line).identity
        except ValueError:
            lines.append(line)
            continue
        if identity not in new:
            lines.append(line)
        elif identity not in put:
            lines.append(new[identity])
            put.add(identity)
    lines += [line for identity, line in new.items() if identity not in put]
    return "".join(f"{line}\n" for line in lines)


# ---- look-up ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a decision is looked for: as in `Decision`, and which numbers are legal here."""

    key: Key
    fields: Mapping[str, Any] = field(hash=False)
    workloads: tuple[Workload, ...]
    numbers_legal: Callable[[Numbers], bool]


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
        """Where the numbers come from, for the user."""
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
        wanted: an exact decision, too, serves only with numbers that are legal.
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
    differ("group width", _width(wanted.fields), _width(decision.fields))
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
    # Numbers of another plan mean nothing here.
    if not any(d.excludes for d in found) and not wanted.numbers_legal(decision.numbers):
        found.append(_Difference("numbers that are not legal here"))
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


def _width(fields: Mapping[str, Any]) -> int:
    """Channels in a group. ValueError if the fields of an operator do not say."""
    inner = fields.get("filter")
    channels = fields.get("channels")
    groups = inner.get("groups") if isinstance(inner, Mapping) else None
    if type(channels) is int and type(groups) is int and 1 <= groups <= channels:
        return channels // groups
    raise ValueError("fields must have whole numbers `channels` and `filter.groups`")


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
