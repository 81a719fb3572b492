"""Tuned tables: the schedules that searches decided for.

A table is <folder>/<GPU>/<operator>.jsonl, a decision a line. A decision is found by what the
operator is (`lookup`), not by the text of its kernels: beside it stand digests of these as the
compiler made them (`kernels`), by which `sh2gen tables check` finds what to time again. (A job
that wants no look-up at all pins its schedules in a `lockfile`.)
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sh2gen.base import jsonl
from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import listed, read_regular, write_whole
from sh2gen.base.jsonl import Damage
from sh2gen.base.resources import folder as package_folder
from sh2gen.schedule.config import completed
from sh2gen.schedule.space import Config
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.tuning.records import (
    Key,
    check_date,
    check_times,
    check_workloads,
    home,
    operator_digest,
    slug,
)

VERSION = 3  # of the lines; older ones are read too


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The config that a search decided for, for one direction of one plan on one GPU.

    Attributes:
        key: what it was decided for; with `workloads`, what it is found by.
        fields: `fields_of` the operator, readable, so that a miss can name what differs.
        kernels: by the name of a kernel in its file, without the operator's, a digest of all
            binaries of it that the workloads launch (`kernel_digests`); empty if not known, as of
            lines of version 1.
        op: name of the operator then.
        workloads: what the config was chosen for, sorted, each once.
        config: knob and value, in the order of the schedule file.
        us, low, high: microseconds of a call for each workload: median, 20th, 80th percentile.
        bound_us: of an elementwise kernel that moves the same bytes.
        start_us: of `start`, timed together with `config`; empty if it failed.
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
    config: Config
    us: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    bound_us: tuple[float, ...]
    start_us: tuple[float, ...]
    start: Config
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
        width(self.fields)

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
        found = jsonl.decode(line, cls, VERSION, _OLDER)
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
    """A line of version 1 as one of 2: fields had all defaults, keys a digest of text."""
    key, fields = values.get("key"), values.get("fields")
    if not (isinstance(key, dict) and isinstance(fields, dict)):
        raise ValueError("key and fields must be objects")
    try:
        spec = spec_from_dict({"op": "op", **fields})
    except Sh2genError as error:
        raise ValueError(f"fields describe no operator: {error.message}") from None
    key = {k: v for k, v in key.items() if k != "templates"} | {"spec": operator_digest(spec)}
    return {**values, "key": key, "fields": fields_of(spec), "kernels": {}}


_OLDER = {1: _of_version_1, 2: jsonl.renamed("numbers", "config")}


def fields_of(spec: OpSpec) -> dict[str, Any]:
    """An operator in plain values, without its name, its workloads and what is at its default."""
    return {k: v for k, v in spec.canonical().items() if k not in ("op", "workloads")}


def in_order(workloads: Sequence[Workload]) -> tuple[Workload, ...]:
    """Workloads sorted by batch, then length, each once."""
    return tuple(sorted(set(workloads), key=lambda w: (w.batch, w.length)))


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
    folder the newest. Folders need not exist. Configs have the knobs that are newer than they are
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
    config = completed(plan, direction, decision.config)
    if config == decision.config:
        return decision
    start = completed(plan, direction, decision.start)
    return dataclasses.replace(decision, config=config, start=start)


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


def width(fields: Mapping[str, Any]) -> int:
    """Channels in a group. ValueError if the fields of an operator do not say."""
    inner = fields.get("filter")
    channels = fields.get("channels")
    groups = inner.get("groups") if isinstance(inner, Mapping) else None
    if type(channels) is int and type(groups) is int and 1 <= groups <= channels:
        return channels // groups
    raise ValueError("fields must have whole numbers `channels` and `filter.groups`")
