"""Sweeps: what became of every candidate of a space, kept as data.

A sweep is what a search with all the time in the world saw. Strategies are replayed on it, and the
cost model is fitted to it and judged by it, on machines without a GPU. A file is a line of JSON
that says what was swept where, and a line a candidate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sh2gen.base import jsonl
from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import read_text, write_whole
from sh2gen.schedule.space import Config
from sh2gen.spec.language import Workload
from sh2gen.tuning.records import Key, Status
from sh2gen.tuning.search import Outcome

VERSION = 2
_OLDER = {1: jsonl.renamed("numbers", "config")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What was swept, where and when.

    Attributes:
        key: operator, plan, direction, GPU, versions of what decides about times.
        op: name of the operator.
        workloads: what every candidate was timed at.
        bounds: microseconds of an elementwise kernel that moves the same bytes, for each.
        start: the schedule that the search began with.
        date: when it ended.
        versions: of torch, triton, sh2gen, python, ...
    """

    key: Key
    op: str
    workloads: tuple[Workload, ...]
    bounds: tuple[float, ...]
    start: Config
    date: str
    versions: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A candidate: the values of its knobs in the order of `start`, and its outcome."""

    config: tuple[int, ...]
    status: Status
    stage: str
    us: tuple[tuple[float, float, float], ...]
    built: Mapping[str, int] = field(hash=False)
    seconds: Mapping[str, float] = field(hash=False)
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A header and the outcomes of all candidates that were tried."""

    header: Header
    outcomes: Mapping[Config, Outcome]

    def of(self, workload: Workload) -> Sweep:
        """The same at one of its workloads.

        Raises:
            ValueError: it was not timed at that.
        """
        at = self.header.workloads.index(workload)
        header = Header(
            key=self.header.key,
            op=self.header.op,
            workloads=(workload,),
            bounds=(self.header.bounds[at],),
            start=self.header.start,
            date=self.header.date,
            versions=self.header.versions,
        )
        share = 1 / len(self.header.workloads)  # of the time that timing took

        def at_one(outcome: Outcome) -> Outcome:
            seconds = dict(outcome.seconds)
            if "quick" in seconds:
                seconds["quick"] *= share
            return Outcome(
                status=outcome.status,
                us=outcome.us[at : at + 1],
                detail=outcome.detail,
                stage=outcome.stage,
                built=outcome.built,
                seconds=seconds,
            )

        return Sweep(
            header=header, outcomes={n: at_one(outcome) for n, outcome in self.outcomes.items()}
        )


def write_sweep(path: Path, sweep: Sweep) -> None:
    """Write a file whole.

    Raises:
        Sh2genError: C005 if it cannot be written.
    """
    lines = [jsonl.encode(sweep.header, VERSION)]
    names = [name for name, _ in sweep.header.start]
    for config, outcome in sweep.outcomes.items():
        assert [name for name, _ in config] == names, "candidates of one space"
        line = _Line(
            config=tuple(value for _, value in config),
            status=outcome.status,
            stage=outcome.stage,
            us=tuple(tuple(round(t, 3) for t in us) for us in outcome.us),  # type: ignore[misc]
            built=dict(outcome.built),
            seconds={name: round(s, 3) for name, s in outcome.seconds.items()},
            detail=outcome.detail[:300],
        )
        lines.append(jsonl.encode(line, VERSION))
    write_whole(path, "\n".join(lines) + "\n")


def read_sweep(path: Path) -> Sweep:
    """Read a file.

    Raises:
        Sh2genError: R002, naming the line that is damaged; R001 if the file cannot be read.
    """
    try:
        first, *rest = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise Sh2genError("R001", f"cannot read the sweep {path}: {error}") from error
    outcomes: dict[Config, Outcome] = {}
    at = 1
    try:
        header: Header = jsonl.decode(first, Header, VERSION, _OLDER)
        names = [name for name, _ in header.start]
        for text in rest:
            at += 1
            line: _Line = jsonl.decode(text, _Line, VERSION, _OLDER)
            outcomes[tuple(zip(names, line.config, strict=True))] = Outcome(
                status=line.status,
                us=line.us,
                detail=line.detail,
                stage=line.stage,
                built=line.built,
                seconds=line.seconds,
            )
    except ValueError as error:
        raise Sh2genError("R002", f"{path}:{at}: {error}") from error
    return Sweep(header=header, outcomes=outcomes)
