"""Records: what was measured, one line of JSON each, only ever appended.

A line is whole or it is damaged, and a damaged one costs nothing but itself: the process may be
killed at any point, the disk may be full, two processes may append to one file. A search that is
started again reads its log and measures only what is missing.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from sh2gen.base import jsonl
from sh2gen.base.jsonl import Damage
from sh2gen.schedule.config import ROLES
from sh2gen.schedule.space import Config
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec

VERSION = 3  # of the lines
_OLDER = {2: jsonl.renamed("numbers", "config")}
_DETAIL = 2000  # characters of an error that are kept
_DATE = "%Y-%m-%dT%H:%M:%SZ"
_SHORTEST, _LONGEST = 1e-3, 1e12  # microseconds of a call: a nanosecond, eleven days


class Status(StrEnum):
    """What became of a candidate.

    OK           built, right and timed, as far as its stage goes
    CONSTRAINT   a constraint of its space does not hold
    FLOOR        its bytes and arithmetic alone take too long
    RESOURCES    registers, spills or shared memory are beyond the GPU's or too many
    COMPILE      it does not compile
    WRONG        a result is outside its tolerance
    RUNTIME      it failed when it ran
    TIMEOUT      building or running took too long
    MEMORY       the GPU had no memory for it
    SAME         the same binary and config as another candidate, which stands for both
    """

    OK = "ok"
    CONSTRAINT = "constraint"
    FLOOR = "floor"
    RESOURCES = "resources"
    COMPILE = "compile"
    WRONG = "wrong"
    RUNTIME = "runtime"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    SAME = "same"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What decides whether a measurement or a decision can be used again.

    Attributes:
        spec: `operator_digest` of the operator.
        plan: name of the plan, such as "toeplitz/BDL/recompute".
        direction: forward, backward or decode.
        gpu: as the driver calls it, such as "NVIDIA H200".
        triton: its minor version, such as "3.6".
    """

    spec: str
    plan: str
    direction: str
    gpu: str
    triton: str

    def __post_init__(self) -> None:
        if self.direction not in ROLES:
            raise ValueError(
                f"direction must be one of {', '.join(ROLES)}, not {self.direction!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What happened to one candidate (or to `count` of them), on one workload or on none.

    Attributes:
        key: what it is a measurement of.
        text: `emit.kernel_digest` then: a search that is resumed takes no time of other text.
        op: name of the operator, for people.
        config: the candidate; empty where a line stands for many.
        workload: None if no workload matters, as when a constraint does not hold.
        workloads: all that the candidate was tried for together, which decide what is launched;
            none in lines that are older than this.
        status: what became of it.
        us: microseconds of a call, (low, median, high); None if it was not timed.
        stage: how far it went: constraint, floor, build, verify, quick, final, ...
        detail: an error or a reason. The middle of a long one is cut out.
        count: candidates that this line stands for.
        built: registers, spills, shared memory, seconds; None if it was not built.
        seconds: time spent on it.
        versions: of torch, triton, sh2gen, python, CUDA, and `driver_cuda`, the newest CUDA
            that the driver supports.
        date: `now()` when it was made. A label: the order of events is the order of lines.
        seed: of the inputs.
        effort: how thorough the search was.

    Raises:
        ValueError: a time that a call cannot take, seconds that are negative or not finite, a
            count or a size below 1.
    """

    key: Key
    text: str
    op: str
    config: Config
    workload: Workload | None
    workloads: tuple[Workload, ...] = ()
    status: Status
    us: tuple[float, float, float] | None
    stage: str
    detail: str
    count: int = 1
    built: Mapping[str, Any] | None = field(default=None, hash=False)
    seconds: float
    versions: Mapping[str, str] = field(hash=False)
    date: str
    seed: int
    effort: str

    def __post_init__(self) -> None:
        check_times("us", self.us or ())
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise ValueError(f"seconds must be finite and not negative, not {self.seconds}")
        check_workloads((*self.workloads, *((self.workload,) if self.workload else ())))
        if self.count < 1:
            raise ValueError(f"count must be at least 1, not {self.count}")
        if len(self.detail) > _DETAIL:  # compilers say what happened at the start or at the end
            half = (_DETAIL - 5) // 2
            object.__setattr__(self, "detail", f"{self.detail[:half]} ... {self.detail[-half:]}")

    def to_line(self) -> str:
        """One line of JSON, without its newline. `from_line` undoes it."""
        return jsonl.encode(self, VERSION)

    @classmethod
    def from_line(cls, line: str) -> Measurement:
        """Read a line. ValueError says which field is wrong, and how."""
        found = jsonl.decode(line, cls, VERSION, _OLDER)
        assert isinstance(found, Measurement)
        return found


@dataclass(frozen=True, slots=True)
class Log:
    """The measurements in one file, which need not exist yet."""

    path: Path

    def append(self, measurements: Iterable[Measurement]) -> str | None:
        """Add lines at the end, while no other process does.

        Returns:
            None, or why not all could be written (no space left, ...). That is no error: a search
            goes on without its records.
        """
        lines = [f"{m.to_line()}\n".encode("ascii") for m in measurements]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Readable, to see how it ends.
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                with jsonl.locked(file):
                    size = os.fstat(file).st_size
                    if lines and size and os.pread(file, 1, size - 1) != b"\n":
                        lines[0] = b"\n" + lines[0]  # a write was cut off: leave it behind
                    for line in lines:
                        _write(file, line)
            finally:
                os.close(file)
        except OSError as error:
            return f"cannot write {self.path}: {error.strerror or error}"
        return None

    def read(self) -> tuple[tuple[Measurement, ...], tuple[Damage, ...]]:
        """All measurements in the order in which they were written, and the lines that are none.

        A file that is not there is empty; one that cannot be read is one damage.
        """
        return jsonl.read_lines(self.path, Measurement.from_line)


def home() -> Path:
    """Where this user's records and tuned tables are: $SH2GEN_HOME, else the user's cache."""
    if place := os.environ.get("SH2GEN_HOME"):
        return Path(place)
    import platformdirs  # a machine that only measures for others may lack it

    return platformdirs.user_cache_path("sh2gen", appauthor=False)


def log_path(gpu: str, op: str, digest: str) -> Path:
    """The log of one operator (its name and `operator_digest`) on one GPU."""
    return home() / "records" / slug(gpu) / f"{op}-{digest[:8]}.jsonl"


def slug(gpu: str) -> str:
    """The name of a GPU as a folder's: "NVIDIA H200" is nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") or "unknown"


def operator_digest(spec: OpSpec) -> str:
    """The digest of an operator, whatever it is called and whatever its workloads are."""
    return dataclasses.replace(spec, op="op").digest


def now() -> str:
    """The time of day in UTC, as records give it: 2026-11-25T10:00:00Z."""
    return datetime.datetime.now(datetime.UTC).strftime(_DATE)


def check_date(date: str) -> None:
    """ValueError unless it is of the form of `now()`, by which dates sort as text."""
    try:
        right = datetime.datetime.strptime(date, _DATE).strftime(_DATE) == date
    except ValueError:
        right = False
    if not right:
        raise ValueError(f"date must be like 2026-11-25T10:00:00Z, not {date!r}")


def check_times(name: str, us: tuple[float, ...]) -> None:
    """ValueError unless all are times that a call can take: others are divided by them."""
    if bad := [t for t in us if not _SHORTEST <= t <= _LONGEST]:  # so NaN is bad
        limits = f"from {_SHORTEST} to {_LONGEST:g} microseconds"
        raise ValueError(f"{name} must be {limits}, not {bad[0]}")


def check_workloads(workloads: tuple[Workload, ...]) -> None:
    """ValueError unless all sizes are at least 1."""
    for w in workloads:
        if min(w.batch, w.length) < 1:
            raise ValueError(f"a workload must be at least 1 x 1, not {w.batch} x {w.length}")


def _write(file: int, line: bytes) -> None:
    """One write; more only if the system takes a part of the line."""
    while line:
        written = os.write(file, line)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        line = line[written:]
