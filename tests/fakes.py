"""What stands for a GPU and for compilers where tuning is tested without them.

As a script (`python -m tests.fakes FOLDER`) it tunes with these, as `tuning.json` there says.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from sh2gen.base.process import Worker
from sh2gen.lower import plans
from sh2gen.plan.plan import Plan
from sh2gen.schedule.config import ROLES, schedule
from sh2gen.schedule.space import Config, Constraint, Survey
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target
from sh2gen.tuning import lab, session
from sh2gen.tuning.decide import Tuned
from sh2gen.tuning.records import Log, Measurement, log_path, operator_digest
from sh2gen.tuning.search import Effort, ranked
from sh2gen.tuning.session import Session
from tests.gpus import H200

GPU = "NVIDIA H200"
SPEC: OpSpec = spec_from_dict(
    {
        "op": "small_conv",
        "channels": 4,
        "filter": {"kind": "explicit", "length": 3, "groups": 4},
    }
)
FEW = Constraint("ROWS <= 8", "few rows are enough")
EMIT = functools.cache(lab.emit)  # the same candidates in many tests
ALL = Effort(strategy=ranked, first=0, most=None, budget=None)


def named(config: Config) -> str:
    return " ".join(f"{knob}={value}" for knob, value in config)


def compiled(job: Mapping[str, Any], **other: Any) -> dict[str, Any]:
    """What a compiler might answer: other constants and options give other instructions."""
    chosen = json.dumps([job["name"], job["constants"], job["options"]])
    return {
        "registers": 64,
        "stack": 0,
        "spills": 0,
        "instructions": 0,
        "shared": 1024,
        "code": hashlib.sha256(chosen.encode()).hexdigest(),
        "seconds": 2.0,
        "triton": "3.6.0",
        "ptx": "",
        "ptx_digest": "",
        "cubin": base64.b64encode(b"binary").decode(),
    } | other


@dataclass
class Fakes:
    """One set of candidates, and what becomes of each.

    Attributes:
        points: by direction, what a search tries; the first is the start.
        rules: as fake_gpu.py has them, by direction and config.
        compile: the answer of a compiler to a job.
        side_by_side: whether compilers may take a while, as many at once as there are workers.
        effort: what "exhaustive" stands for.
    """

    folder: Path
    points: dict[str, list[Config]]
    spec: OpSpec = SPEC
    rules: dict[str, Any] = field(default_factory=dict)
    compile: Callable[[dict[str, Any]], dict[str, Any]] = compiled
    side_by_side: bool = False
    effort: Effort = ALL
    said: list[str] = field(default_factory=list)

    @property
    def plan(self) -> Plan:
        return plans(self.spec)[0]

    def rule(self, direction: str, config: Config, **what: Any) -> None:
        self.rules.setdefault(direction, {}).setdefault(named(config), {}).update(what)

    def tune(self, into: list[Tuned] | None = None, **options: Any) -> tuple[Tuned, ...]:
        """What a search comes to; `into` gets it as it comes."""
        found: list[Tuned] = [] if into is None else into
        default = schedule(self.spec, self.plan)
        starts = {d: self.points.get(d, [default.config(d)])[0] for d in ROLES}
        options = {
            "directions": list(self.points),
            "starts": starts,
            "effort": "exhaustive",
            "say": self.said.append,
            "warn": self.said.append,
        } | options
        with self.installed(), Session(4, self.said.append, self.said.append) as session:
            found.extend(session.tune(self.spec, self.plan, H200, **options))
        return tuple(found)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "rules.json").write_text(json.dumps(self.rules))
        fakes = self

        class Compilers:
            def __init__(self, workers: int, time_limit: float) -> None:
                self.workers = workers
                self._pool = ThreadPoolExecutor(workers) if fakes.side_by_side else None

            def submit(self, job: str) -> Future[dict[str, Any]]:
                if self._pool:
                    return self._pool.submit(lambda: fakes.compile(json.loads(job)))
                future: Future[dict[str, Any]] = Future()
                future.set_result(fakes.compile(json.loads(job)))
                return future

            def close(self) -> None:
                if self._pool:
                    self._pool.shutdown(cancel_futures=True)

        def space(spec: OpSpec, plan: Plan, direction: str, target: Target) -> Survey:
            return Survey(points=tuple(self.points[direction]), dropped=((FEW, 7),), repeated=0)

        script = str(Path(__file__).with_name("fake_gpu.py"))
        command = (sys.executable, "-S", "-E", script, str(self.folder))
        with (
            mock.patch.object(session, "Compilers", Compilers),
            mock.patch.object(session, "measuring_worker", lambda: Worker(command, "the process")),
            mock.patch.object(session, "search_space", space),
            mock.patch.object(lab, "search_space", space),
            mock.patch.object(lab, "emit", EMIT),
            mock.patch.dict(session.EFFORTS, exhaustive=self.effort),
        ):
            yield

    @property
    def log(self) -> Log:
        return Log(log_path(GPU, self.spec.op, operator_digest(self.spec)))

    def lines(self, direction: str = "forward") -> list[Measurement]:
        measurements, damages = self.log.read()
        assert not damages
        return [m for m in measurements if m.key.direction == direction]

    def jobs(self, do: str | None = None) -> list[dict[str, Any]]:
        """The jobs that the process on the GPU was given, since the last call of `forget`."""
        path = self.folder / "jobs.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()]
        return [job for job in found if do in (None, job["do"])]

    def forget(self) -> None:
        (self.folder / "jobs.jsonl").unlink()


def forward_points(*changes: Mapping[str, int]) -> list[Config]:
    """Configs of the forward kernel of SPEC: the default, then with these changes."""
    plan = plans(SPEC)[0]
    found = [schedule(SPEC, plan, {"forward": change}).forward for change in ({}, *changes)]
    assert len(set(found)) == len(found)
    return found


def save(fakes: Fakes, folder: Path) -> None:
    """What the script needs to do the same in another process."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tuning.json").write_text(json.dumps({"points": fakes.points, "rules": fakes.rules}))


def main(arguments: Sequence[str]) -> None:
    folder = Path(arguments[0])
    given = json.loads((folder / "tuning.json").read_text())
    points = {
        direction: [tuple((name, value) for name, value in one) for one in found]
        for direction, found in given["points"].items()
    }
    Fakes(folder, points, rules=given["rules"]).tune()


if __name__ == "__main__":
    main(sys.argv[1:])
