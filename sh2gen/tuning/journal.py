"""What a search reports, in the log of this machine, and what earlier ones found out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sh2gen.emit.emit import kernel_digest
from sh2gen.plan.plan import Plan
from sh2gen.schedule.space import Config
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.tuning.records import Key, Log, Measurement, Status, now, operator_digest
from sh2gen.tuning.search import Outcome, Quantiles
from sh2gen.tuning.tables import in_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is tuned: one direction of a plan, for all workloads of an operator at once."""

    spec: OpSpec
    plan: Plan
    direction: str

    @property
    def workloads(self) -> tuple[Workload, ...]:
        return in_order(self.spec.workloads)

    @property
    def title(self) -> str:
        sizes = ", ".join(f"B={w.batch} L={w.length}" for w in self.workloads)
        return f"{self.spec.op} {self.direction} {sizes}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What measurements are made on, as the process on the GPU sees it.

    Attributes:
        gpu: as the driver calls all of its kind.
        uuid: which of these it is.
    """

    gpu: str
    uuid: str
    versions: Mapping[str, str]

    @property
    def triton(self) -> str:
        """The minor version, which decides what a kernel is compiled to."""
        return ".".join(self.versions["triton"].split(".")[:2])


class Journal:
    """What a search reports, written down as it happens: a line of a log a candidate and workload.

    Args:
        log: appended to; nothing is lost but what is in flight when the process is killed.
        effort, seed: as the search has them.
        warn: told when lines cannot be read or written. The search goes on.
    """

    def __init__(
        self,
        task: Task,
        on: Machine,
        log: Log,
        effort: str,
        seed: int,
        warn: Callable[[str], None],
    ) -> None:
        self.task, self.on, self.effort = task, on, effort
        self._log, self._seed, self._warn = log, seed, warn
        self.key = Key(
            spec=operator_digest(task.spec),
            plan=task.plan.name,
            direction=task.direction,
            gpu=on.gpu,
            triton=on.triton,
        )
        self._text = kernel_digest(task.spec, task.plan)

    def write(self, config: Config, outcome: Outcome, count: int = 1) -> None:
        """One candidate, or several that one reason drops."""
        timed = outcome.status is Status.OK
        workloads: Sequence[Workload | None] = self.task.workloads if timed else (None,)
        lines = [
            Measurement(
                key=self.key,
                text=self._text,
                op=self.task.spec.op,
                config=config,
                workload=workload,
                workloads=self.task.workloads,
                status=outcome.status,
                us=outcome.us[i] if timed else None,
                stage=outcome.stage,
                detail=outcome.detail,
                count=count,
                built={**outcome.built, "seconds": dict(outcome.seconds)},
                seconds=sum(outcome.seconds.values()) / len(workloads),
                versions=self.on.versions,
                date=now(),
                seed=self._seed if outcome.seed is None else outcome.seed,
                effort=self.effort,
            )
            for i, workload in enumerate(workloads)
        ]
        if problem := self._log.append(lines):
            self._warn(f"cannot be recorded, tuning goes on: {problem}")

    def known(self) -> dict[Config, Outcome]:
        """What earlier searches found out about candidates that will not change: times of the
        first round at all workloads, and what a compiler says. Whatever failed on the GPU, or
        because a process died, is tried again.

        Only what was found out of the launches that this search would make counts. Where a
        sequence is cut into splits, into how many depends on the least batch of all workloads that
        a file is for (`emit_kernels.programs`): times were measured of this file if that is the
        same. Which kernels are built, and so what a compiler says and which candidates are the
        same, depends on all of them. Lines that do not say which these were say nothing here.
        """
        least = self.task.workloads[0].batch  # they are in order
        found: dict[Config, Outcome] = {}
        times: dict[Config, dict[Workload, Quantiles]] = {}
        measurements, damages = self._log.read()
        for damage in damages:
            self._warn(f"skipped: {damage}")
        for one in measurements:
            if (one.key, one.text) != (self.key, self._text) or one.status is Status.CONSTRAINT:
                continue
            if one.status is Status.OK:
                if one.stage != "quick" or one.workload is None or one.us is None:
                    continue
                if min((w.batch for w in one.workloads), default=None) != least:
                    continue
                here = times.setdefault(one.config, {})
                here[one.workload] = one.us
                if not all(workload in here for workload in self.task.workloads):
                    continue  # for other workloads
            elif one.stage != "build" or one.status is Status.RUNTIME or " died " in one.detail:
                found.pop(one.config, None)
                times.pop(one.config, None)
                continue
            elif one.workloads != self.task.workloads:
                continue
            built = dict(one.built or {})
            seconds = built.pop("seconds", {})
            right = one.status is Status.OK
            found[one.config] = Outcome(
                status=one.status,
                us=tuple(here[w] for w in self.task.workloads) if right else (),
                detail=one.detail,
                stage=one.stage,
                built=built,
                seconds=seconds,
            )
        return found
