"""Lock files: the schedules of a whole job, pinned in one readable file (layer 6).

    {"v": 1, "schedules": [
      {"op": "hyena_mr", "digest": "...", "plan": "...", "forward": {...}, "backward": {...}}
    ]}

Whoever trains with it runs the same kernels tomorrow, whatever tables say by then.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sh2gen import jsonl
from sh2gen.errors import Location, Sh2genError
from sh2gen.files import write_whole
from sh2gen.schedule import Numbers, Schedule

VERSION = 1  # of the file


@dataclass(frozen=True, slots=True, kw_only=True)
class LockEntry:
    """The schedule of one operator of a job.

    Attributes:
        op: its name.
        digest: its `operator_digest`.
        plan, forward, backward: as in `Schedule`.
    """

    op: str
    digest: str
    plan: str
    forward: Numbers
    backward: Numbers


def write_lock(path: Path, entries: Sequence[LockEntry]) -> None:
    """Write the schedules of a whole job into one file, sorted by operator, one a line.

    Raises:
        Sh2genError: C005 if the file cannot be written, or is there and is no lock file; R002 if
            an operator is given twice.
    """
    if path.exists():
        try:
            read_lock(path)
        except Sh2genError as error:
            raise Sh2genError(
                "C005",
                f"{path} is there already and is no lock file: {error.message}",
                help="move it, or choose another name",
            ) from None
    _refuse_duplicates(path, entries)
    ordered = sorted(entries, key=lambda e: (e.op, e.digest))
    lines = ",\n".join(f"  {jsonl.dumps(jsonl.plain(e))}" for e in ordered)
    write_whole(path, f'{{"v": {VERSION}, "schedules": [\n{lines}\n]}}\n')


def read_lock(path: Path) -> tuple[LockEntry, ...]:
    """The schedules that a lock file pins.

    Raises:
        Sh2genError: R001 if the file cannot be read; R002, with the place, if it is malformed.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise Sh2genError("R001", f"cannot read {path}: {reason}") from None
    try:
        entries = jsonl.decode(text, _Lock, VERSION).schedules
    except json.JSONDecodeError as error:
        lines = text.split("\n")
        place = Location(
            file=str(path), line=error.lineno, column=error.colno, text=lines[error.lineno - 1]
        )
        raise Sh2genError("R002", f"not JSON: {error.msg}", location=place) from None
    except ValueError as error:
        raise Sh2genError("R002", f"{path} is malformed: {error}") from None
    _refuse_duplicates(path, entries)
    assert isinstance(entries, tuple)
    return entries


def locked_schedule(path: Path, entries: Sequence[LockEntry], op: str, digest: str) -> Schedule:
    """The schedule that `entries`, read from `path`, pin for an operator.

    The digest decides; the name only between operators that differ in nothing but their names.

    Raises:
        Sh2genError: R003 if there is none.
    """
    same = [entry for entry in entries if entry.digest == digest]
    if same:
        entry = min(same, key=lambda e: e.op != op)
        return Schedule(plan=entry.plan, forward=entry.forward, backward=entry.backward)
    named = any(entry.op == op for entry in entries)
    raise Sh2genError(
        "R003",
        f"{path} does not pin `{op}`"
        + (": it pins another operator of that name" if named else ""),
        help="the operator has changed since: write the lock file again" if named else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lock:
    schedules: tuple[LockEntry, ...]


def _refuse_duplicates(path: Path, entries: Sequence[LockEntry]) -> None:
    for (op, digest), count in Counter((e.op, e.digest) for e in entries).items():
        if count > 1:
            raise Sh2genError("R002", f"{path} is malformed: `{op}` ({digest[:8]}) is given twice")
