"""The lab of a search: the GPU of this machine, where candidates are built, verified and timed.

Candidates are built ahead of time in processes side by side, and verified and timed in one more,
which is replaced when a candidate hangs or breaks it. Triton's cache carries the binaries from the
former to the latter: files that differ in configs alone are imported as one, with others,
so that the kernels that they share are compiled once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sh2gen.base.errors import CheckFailed, Sh2genError
from sh2gen.base.files import write_whole
from sh2gen.base.process import Worker, python_worker
from sh2gen.build.build import BuiltKernel, Compilers, built_kernel, failure, kernel_job, misfit
from sh2gen.emit.emit import emit
from sh2gen.emit.kernels import StepCall, step_sources
from sh2gen.emit.launched import (
    alignment_of,
    kernel_digests,
    launched,
    launched_by,
    short_shape,
)
from sh2gen.plan.kernel import Role
from sh2gen.plan.source import Alignment, KernelSource, Source
from sh2gen.schedule.config import (
    DIRECTIONS,
    Schedule,
    coupling,
    partner,
    roles_of,
    schedule,
)
from sh2gen.schedule.space import Config, search_space
from sh2gen.targets.target import Target
from sh2gen.tuning.journal import Task
from sh2gen.tuning.records import (
    Status,
    check_times,
)
from sh2gen.tuning.search import (
    AHEAD,
    LONG_MS,
    QUICK_MS,
    Outcome,
    Quantiles,
    together,
)

# Seconds; what starts a process waits for imports and for the driver.
BUILD_LIMIT, VERIFY_LIMIT, TIME_LIMIT = 60.0, 120.0, 60.0
# What hangs is given up after so many times what a job takes, but not before so many seconds: the
# first of a process loads libraries, which takes a few. Before any has been done it is not known:
# half of what is left is spent on finding out, since a start that is given up is compared with
# nothing.
_PATIENCE, LEAST_LIMIT, FIRST_LIMIT = 10, 10.0, 30.0
# Knobs that only the compiler sees: kernels of equal code that differ in these run the same.
_COMPILED = ("maxnreg", "PREFETCH", "PARTS")
# Prompt after which decoding is verified, in so many rows: longer than most filters.
SHORT_PROMPT = (2, 300)
# Calls that the property `decode` makes: of one step and of two, and the same as drafts; beside
# what is timed.
DECODED = [
    StepCall(batch=1, steps=count, room=2, slotted=draft, draft=draft, wide=True)
    for count in (1, 2)
    for draft in (False, True)
]


def ask(worker: Worker, job: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """The answer of tune_worker.py, which tells what happened if there is none."""
    answer = worker.run(json.dumps(job), limit)
    if "gave_up" in answer:
        return {"status": "timeout", "detail": f"{job['do']} was at it after {limit:.3g} s"}
    if "died" in answer:
        return {"status": "runtime", "detail": answer["died"]}
    if "status" not in answer:  # then whoever said it is not at this job
        worker.stop()
        return {"status": "runtime", "detail": f"no answer to {job['do']}: {answer}"}
    return answer


def measuring_worker() -> Worker:
    """A process that verifies and times on this GPU."""
    return python_worker("sh2gen.tuning.worker", "the process on the GPU")


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A candidate on its way: its file, the configs by kernel that this is run with, its kernels,
    and which of these its direction launches at the workloads.
    """

    config: Config
    file: str
    configs: Mapping[str, Mapping[str, int]]
    short: tuple[int, int]  # batch and length at which it is verified beside the workloads
    kernels: list[tuple[KernelSource, Future[dict[str, Any]]]]
    timed: tuple[KernelSource, ...]


class Workbench:
    """`search.Lab` on this machine's GPU.

    Args:
        task: what is searched for.
        starts: by direction; that of the task is timed even if others give the same binary: these
            are dropped. Of others, what candidates go with where they can; by default the default.
        folder: for generated files; nothing in it is needed afterwards.
        compilers, worker: processes, which the caller closes.
        seed: of all random inputs; every candidate gets others.

    Attributes:
        bounds: as of `Lab`, measured at the start.
        checks: comparisons that candidates passed, of those that were verified.

    Raises:
        CheckFailed: V003, the GPU cannot be used.
    """

    def __init__(
        self,
        task: Task,
        target: Target,
        *,
        starts: Mapping[str, Config],
        folder: Path,
        compilers: Compilers,
        worker: Worker,
        seed: int = 0,
    ) -> None:
        self._spec, self._plan, self._direction = task.spec, task.plan, task.direction
        self._sizes = [[w.batch, w.length] for w in task.workloads]
        self._target, self._folder, self._seed = target, folder, seed
        given = schedule(task.spec, task.plan, target=target)
        self._start = starts[task.direction]
        self._starts = {role: given.config(role) for role in roles_of(task.plan)} | dict(starts)
        self._until = math.inf
        self._compilers, self._worker = compilers, worker
        self._files: dict[str, tuple[str, str]] = {}  # bare text -> path, text
        self._jobs: dict[str, Future[dict[str, Any]]] = {}
        self._codes: dict[tuple[Any, ...], Config] = {}
        self._verified: dict[Config, _Candidate] = {}
        self._took: dict[str, list[float]] = {}  # seconds, by job
        self.checks: dict[Config, int] = {}
        self._inputs: dict[Config, int] = {}  # seeds of what each was compared on
        default = search_space(task.spec, task.plan, task.direction, target).points[0]
        for _ in range(2):  # the process may have been broken by what came before
            answer = self._ask("bounds", self._prepare(default), VERIFY_LIMIT)
            if answer["status"] == "ok":
                break
            worker.stop()
        else:
            raise CheckFailed("V003", f"the GPU cannot be used: {answer['detail']}")
        self.bounds = tuple(float(us[1]) for us in answer["us"])
        try:
            check_times("bounds", self.bounds)
        except ValueError as error:
            raise CheckFailed("V003", f"the GPU's times cannot be used: {error}") from None

    def now(self) -> float:
        return time.monotonic()

    def evaluate(
        self, source: Iterator[Config], deadline: float
    ) -> Iterator[tuple[Config, Outcome]]:
        self._until = deadline
        under_way: list[_Candidate] = []
        try:
            while True:
                while len(under_way) < self._compilers.workers + AHEAD:
                    config = next(source, None)
                    if config is None:
                        break
                    begun = self._begin(config)
                    if isinstance(begun, Outcome):
                        yield config, begun
                    else:
                        under_way.append(begun)
                if not under_way:
                    return
                ready = next((c for c in under_way if _settled(c)), None)
                if self.now() >= deadline:
                    return
                if ready is None:
                    pending = [f for c in under_way for _, f in c.kernels if not f.done()]
                    patience = min(1.0, max(0.0, deadline - self.now()))
                    wait(pending, timeout=patience, return_when=FIRST_COMPLETED)
                    continue
                under_way.remove(ready)
                yield ready.config, self._outcome(ready)
        finally:  # the deadline, or a search that wants no more
            self._cancel()

    def race(
        self, batch: Sequence[Config], rounds: int, stage: str, deadline: float
    ) -> Iterator[Mapping[Config, Outcome]]:
        self._until = deadline
        # The start first, which others are compared with; what there is no time for is left out.
        batch = sorted(batch, key=lambda config: config != self._start)
        times: dict[Config, list[tuple[Quantiles, ...]]] = {n: [] for n in batch}
        failed: dict[Config, Outcome] = {}
        late = [config for config in batch if config not in self._verified]
        for config in late:  # all are built at once
            self._begin(config)
        try:
            for config in late:
                outcome = self._late(config, deadline, first=config == batch[0])
                if outcome is None:
                    del times[config]
                elif outcome.status is not Status.OK:
                    failed[config] = outcome
        finally:
            self._cancel()
        for i in range(rounds):
            if i and self.now() >= deadline:
                return
            for config in times:
                if config not in failed:
                    found = self._time(self._verified[config], LONG_MS, stage)
                    if isinstance(found, Outcome):
                        failed[config] = dataclasses.replace(found, seed=self._inputs[config])
                    else:
                        times[config].append(found)
            yield failed | {
                config: Outcome(
                    status=Status.OK,
                    us=together(found),
                    stage=stage,
                    seed=self._inputs[config],
                )
                for config, found in times.items()
                if config not in failed
            }

    def _late(self, config: Config, deadline: float, first: bool) -> Outcome | None:
        """Build, verify and time a candidate that an earlier search tried, or that there was no
        time for; None if there is none now. The first, which others are compared with, has some:
        compilers may still be at others.
        """
        left = deadline - self.now()
        if left <= 0 and not first:
            return None
        candidate = self._begin(config)
        if isinstance(candidate, Outcome):
            return candidate
        end = self.now() + max(left, FIRST_LIMIT * first)
        while not _settled(candidate):
            if self.now() >= end:
                return None
            pending = [future for _, future in candidate.kernels if not future.done()]
            wait(pending, max(0.0, end - self.now()), FIRST_COMPLETED)
        return self._outcome(candidate)

    def _cancel(self) -> None:
        """Leave out what compilers have not begun; what they are at goes on."""
        self._jobs = {job: future for job, future in self._jobs.items() if not future.cancel()}

    def _begin(self, config: Config) -> _Candidate | Outcome:
        """A candidate that is being built, or why it cannot be."""
        try:
            return self._prepare(config)
        except Sh2genError as error:
            illegal = error.code.startswith("K")  # else it could not be written, say
            status = Status.CONSTRAINT if illegal else Status.RUNTIME
            return dropped(status, "constraint" if illegal else "build", error.message)

    def _prepare(self, config: Config) -> _Candidate:
        """Emit a candidate and have compiled what its calls will launch, unless it is already."""
        configs = {**self._starts, self._direction: config}
        if len({coupling(self._plan, configs[d]) for d in DIRECTIONS}) > 1:
            (other,) = set(DIRECTIONS) - {self._direction}
            configs[other] = partner(self._spec, self._plan, self._direction, config, self._target)
        whole = Schedule(plan=self._plan.name, **configs)
        source = emit(self._spec, self._plan, whole)
        (stated,) = source.configs.values()
        if source.frame not in self._files:
            path = self._folder / str(len(self._files)) / f"{self._spec.op}.py"
            write_whole(path, source.text)
            self._files[source.frame] = str(path), source.text
        file, text = self._files[source.frame]
        shared = dataclasses.replace(source, text=text)
        of, capability = (self._spec, self._plan, whole, source.kernels), self._target.capability
        sizes = [(batch, length) for batch, length in self._sizes]
        timed = launched_by(*of, sizes, capability, self._direction)
        if self._direction == Role.DECODE:
            short = SHORT_PROMPT
            rows = short[0], max(batch for batch, _ in sizes)
            calls = [dataclasses.replace(one, batch=batch) for batch in rows for one in DECODED]
            every = (*timed, *step_sources(self._spec, self._plan, whole, calls))
        else:
            short = short_shape(*of, sizes, capability)
            every = launched(*of, (short, *sizes), capability)
        kernels = [(kernel, self._submit(shared, kernel)) for kernel in every]
        return _Candidate(config, file, stated, short, kernels, timed)

    def digests(self, config: Config) -> dict[str, str]:
        """`kernel_digests` of a candidate that was timed."""
        candidate = self._verified[config]
        return kernel_digests(
            self._spec.op,
            (
                (kernel, future.result()["ptx_digest"])
                for kernel, future in candidate.kernels
                if kernel in candidate.timed
            ),
        )

    def _submit(self, source: Source, kernel: KernelSource) -> Future[dict[str, Any]]:
        job = kernel_job(source, self._target, kernel, Alignment.ALIGNED)
        known = self._jobs.get(job)
        if known is None or (known.done() and "help" in known.result()):  # it may work by now
            self._jobs[job] = self._compilers.submit(job)
        return self._jobs[job]

    def _outcome(self, candidate: _Candidate) -> Outcome:
        """Judge what was built, then verify and time it."""
        role = Role(self._direction)
        built: list[BuiltKernel] = []
        spent = {"build": 0.0}
        for kernel, future in candidate.kernels:
            if not future.done():
                continue  # another has failed
            alignment = alignment_of(kernel)
            answer, label = future.result(), f"{kernel.name} ({alignment})"
            if problem := failure(answer, label, self._target, BUILD_LIMIT):
                status = Status.TIMEOUT if "gave_up" in answer else Status.COMPILE
                if "help" in answer:
                    status = Status.RUNTIME
                    problem += f"\n{answer['help']}; --resume tries it again"
                return dropped(status, "build", problem, spent)
            if kernel.role == role and not kernel.reduces:
                built.append(built_kernel(kernel, alignment, answer))
                spent["build"] += answer["seconds"]
        resources = _resources(built)
        for one in built:
            if unfit := misfit(one, self._target):
                problem = f"{one.kernel.name}: {unfit[0]}"
                return dropped(Status.RESOURCES, "build", problem, spent, resources)
        seen = tuple(n for n in candidate.config if n[0] not in _COMPILED)
        code = (seen, *((one.code, one.registers, one.shared) for one in built))
        same = self._codes.setdefault(code, candidate.config)
        if same != candidate.config and candidate.config != self._start:
            text = " ".join(f"{name}={value}" for name, value in same)
            return dropped(Status.SAME, "build", f"as {text}", spent, resources)
        clock = self.now()
        self._seed += 1
        self._inputs[candidate.config] = self._seed
        short = candidate.short
        answer = self._ask("verify", candidate, VERIFY_LIMIT, seed=self._seed, short=short)
        spent["verify"] = self.now() - clock
        if answer["status"] != "ok":
            failed = _answered(answer, "verify", spent, resources)
            return dataclasses.replace(failed, seed=self._seed)
        self.checks[candidate.config] = answer["checks"]
        clock = self.now()
        times = self._time(candidate, QUICK_MS, "quick")
        spent["quick"] = self.now() - clock
        if isinstance(times, Outcome):
            return dataclasses.replace(times, built=resources, seconds=spent, seed=self._seed)
        self._verified[candidate.config] = candidate
        return Outcome(
            status=Status.OK,
            us=times,
            stage="quick",
            built=resources,
            seconds=spent,
            seed=self._seed,
        )

    def _time(
        self, candidate: _Candidate, milliseconds: tuple[int, int], stage: str
    ) -> tuple[Quantiles, ...] | Outcome:
        """Quantiles for each workload, or why there are none."""
        warmup, repeat = milliseconds
        limits = {"warmup_ms": warmup, "repeat_ms": repeat}
        answer = self._ask("time", candidate, TIME_LIMIT, **limits)
        if answer["status"] != "ok":
            return _answered(answer, stage)
        times = answer.get("us") or ()
        try:
            found = tuple((float(low), float(us), float(high)) for low, us, high in times)
            check_times("us", tuple(us for one in found for us in one))
        except (TypeError, ValueError):
            found = ()
        if len(found) != len(self._sizes):
            return dropped(Status.RUNTIME, stage, f"these are no times: {times}")
        return found

    def _ask(self, do: str, candidate: _Candidate, limit: float, **more: Any) -> dict[str, Any]:
        job = {
            "do": do,
            "file": candidate.file,
            "config": candidate.configs,
            "direction": self._direction,
            "workloads": self._sizes,
        }
        if not self._worker.running:  # its start is not counted as a candidate's
            ask(self._worker, {"do": "machine"}, VERIFY_LIMIT)
        begin = self.now()
        answer = ask(self._worker, job | more, self._patience(do, limit))
        if answer["status"] == "ok":
            self._took.setdefault(do, []).append(self.now() - begin)
        return answer

    def _patience(self, do: str, most: float) -> float:
        """After how many seconds a job hangs, to judge by others: it may cost neither `most`, nor
        (but for the least limits) all that is left of the budget.
        """
        left = self._until - self.now()
        if took := self._took.get(do):
            return min(most, max(LEAST_LIMIT, min(_PATIENCE * median(took), left)))
        return min(most, max(FIRST_LIMIT, left / 2))


def _settled(candidate: _Candidate) -> bool:
    """Whether all kernels are compiled, or one has failed."""
    done = [future for _, future in candidate.kernels if future.done()]
    return len(done) == len(candidate.kernels) or any("cubin" not in f.result() for f in done)


def _resources(built: Sequence[BuiltKernel]) -> dict[str, int]:
    """The most of each resource that the kernels of a direction take."""
    names = ("registers", "spills", "shared")
    return {name: max((getattr(k, name) for k in built), default=0) for name in names}


def dropped(
    status: Status,
    stage: str,
    detail: str,
    seconds: Mapping[str, float] | None = None,
    built: Mapping[str, int] | None = None,
) -> Outcome:
    return Outcome(
        status=status, stage=stage, detail=detail, seconds=seconds or {}, built=built or {}
    )


def _answered(
    answer: Mapping[str, Any],
    stage: str,
    seconds: Mapping[str, float] | None = None,
    built: Mapping[str, int] | None = None,
) -> Outcome:
    """What the process on the GPU said of a candidate that failed there."""
    return dropped(Status(answer["status"]), stage, answer["detail"], seconds, built)
