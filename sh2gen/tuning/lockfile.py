"""Lock files: the schedules of a whole job, pinned in one readable file.

    {"v": 2, "schedules": [
      {"op": "hyena_mr", "digest": "...", "kernels": "...", "plan": "...", "forward": {...}, ...}
    ]}

Whoever compiles with it gets the same plans and configs tomorrow, whatever tables say by then; and
is told if the text of the kernels has changed since, as after an update of sh2gen.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sh2gen.base import jsonl
from sh2gen.base.errors import Location, Sh2genError
from sh2gen.base.files import read_text, require_writable
from sh2gen.schedule.space import Config

VERSION = 2  # of the file


@dataclass(frozen=True, slots=True, kw_only=True)
class LockEntry:
    """The schedule of one operator of a job.

    Attributes:
        op: its name.
        digest: its `operator_digest`.
        kernels: `kernel_digest` of the plan, the text that the config was taken for.
        plan, forward, backward, decode: as in `Schedule`, with every knob there is; files of
            earlier versions do not say how to decode, which is the default then.
    """

    op: str
    digest: str
    kernels: str
    plan: str
    forward: Config
    backward: Config
    decode: Config = ()

    def config(self, direction: str) -> Config:
        """Of "forward", "backward" or "decode"."""
        return {"forward": self.forward, "backward": self.backward}.get(direction, self.decode)


def refuse_to_write(path: Path) -> None:
    """Refuse a lock file that could not be written, before any work is done for it.

    Raises:
        Sh2genError: C005 if its folder cannot be written, or something else is there.
    """
    require_writable(path, "the lock file ")
    if os.path.lexists(path):
        try:
            read_lock(path)
        except Sh2genError as error:
            raise Sh2genError(
                "C005",
                f"{path} is there already and is no lock file: {error.message}",
                help="move it, or give --lock another name",
            ) from None


def lock_text(path: Path, entries: Sequence[LockEntry]) -> str:
    """What a lock file holds, the schedules of a whole job: sorted by operator, one a line.

    Raises:
        Sh2genError: R002 if an operator is given twice.
    """
    _refuse_duplicates(path, entries)
    ordered = sorted(entries, key=lambda e: (e.op, e.digest))
    lines = ",\n".join(f"  {jsonl.dumps(jsonl.plain(e))}" for e in ordered)
    return f'{{"v": {VERSION}, "schedules": [\n{lines}\n]}}\n'


def read_lock(path: Path) -> tuple[LockEntry, ...]:
    """The schedules that a lock file pins.

    Raises:
        Sh2genError: R001 if the file cannot be read; R002, with the place, if it is malformed.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise Sh2genError("R001", f"cannot read {path}: {error.strerror}") from None
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


def locked_entry(path: Path, entries: Sequence[LockEntry], op: str, digest: str) -> LockEntry:
    """What `entries`, read from `path`, pin for an operator.

    The digest decides; the name only between operators that differ in nothing but their names.

    Raises:
        Sh2genError: R003 if there is none.
    """
    same = [entry for entry in entries if entry.digest == digest]
    if same:
        return min(same, key=lambda e: e.op != op)
    named = any(entry.op == op for entry in entries)
    raise Sh2genError(
        "R003",
        f"{path} does not pin `{op}`"
        + (": it pins another operator of that name" if named else ""),
        help="the operator has changed since: write the lock file again" if named else None,
    )


def lock_error(
    path: Path, entry: LockEntry, error: Sh2genError, word: str = "plan"
) -> Sh2genError:
    """The same error of what a lock file says: with the file's name, and the place of a word of
    the entry if there is a line for it.
    """
    place: Location | None = None
    try:
        lines = read_text(path).split("\n")
    except OSError:
        lines = []
    wanted = (f'"op": {jsonl.dumps(entry.op)}', jsonl.dumps(entry.digest), f'"{word}":')
    for number, line in enumerate(lines, start=1):
        if all(text in line for text in wanted):
            column = line.index(wanted[-1]) + 1
            place = Location(file=str(path), line=number, column=column, text=line)
            break
    return Sh2genError(error.code, f"{path}: {error.message}", location=place, help=error.help)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lock:
    schedules: tuple[LockEntry, ...]


def _refuse_duplicates(path: Path, entries: Sequence[LockEntry]) -> None:
    for (op, digest), count in Counter((e.op, e.digest) for e in entries).items():
        if count > 1:
            raise Sh2genError("R002", f"{path} is malformed: `{op}` ({digest[:8]}) is given twice")
