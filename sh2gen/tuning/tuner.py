"""Tuning: searches whose lab is the GPU of this machine.

Candidates are built ahead of time in processes side by side, and verified and timed in one more,
which is replaced when a candidate hangs or breaks it. Triton's cache carries the binaries from the
former to the latter: files that differ in numbers alone are imported as one, with other settings,
so that the kernels that they share are compiled once.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sh2gen.base import jsonl
from sh2gen.base.errors import CheckFailed, Sh2genError
from sh2gen.base.files import scratch, unsigned, write_whole
from sh2gen.base.process import Worker, python_worker
from sh2gen.build.build import BuiltKernel, Compilers, built_kernel, failure, kernel_job, misfit
from sh2gen.cost.cost import predict
from sh2gen.emit.emit import emit
from sh2gen.emit.launches import kernel_digests, launched, of_direction, short_shape, variant_of
from sh2gen.plan.plan import Plan
from sh2gen.plan.source import KernelSource, Role, Source, Variant
from sh2gen.schedule.schedule import DIRECTIONS, Numbers, Schedule, coupling, partner, search_space
from sh2gen.spec.language import OpSpec, Workload
from sh2gen.targets.target import Target
from sh2gen.tuning.journal import Journal, Machine, Task
from sh2gen.tuning.records import (
    Log,
    Status,
    check_times,
    home,
    log_path,
    now,
    operator_digest,
    slug,
)
from sh2gen.tuning.search import (
    AHEAD,
    EFFORTS,
    ENOUGH,
    LAST_ROUNDS,
    LONG_MS,
    QUICK_MS,
    Outcome,
    Problem,
    Quantiles,
    Result,
    Tried,
    beats,
    choose,
    clearly_beats,
    score,
    search,
    together,
)
from sh2gen.tuning.sweeps import Header, Sweep
from sh2gen.tuning.tables import Decision, fields_of

# Seconds; what starts a process waits for imports and for the driver.
BUILD_LIMIT, VERIFY_LIMIT, TIME_LIMIT = 60.0, 120.0, 60.0
# What hangs is given up after so many times what a job takes, but not before so many seconds: the
# first of a process loads libraries, which takes a few. Before any has been done it is not known:
# half of what is left is spent on finding out, since a start that is given up is compared with
# nothing.
_PATIENCE, LEAST_LIMIT, FIRST_LIMIT = 10, 10.0, 30.0
_PAIRS = 3  # of directions that must agree: how many are raced with the one that stays
# Numbers that only the compiler sees: kernels of equal code that differ in these run the same.
_COMPILED = ("maxnreg", "PREFETCH", "PARTS")
# The blocks of a generated file that a schedule decides, and the name that a digest makes unique.
_SETTINGS = re.compile(
    r"^(SCHEDULE|OPTIONS|PROGRAMS|NUMBERS) = (\{.*?\})(?:  #[^\n]*)?$", re.M | re.S
)
_UNIQUE = re.compile(r'(name = unique = "\w+_)[0-9a-f]{8}"')


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


def settings(text: str) -> tuple[str, dict[str, Any]]:
    """The text of a generated file without what a schedule decides, and that."""
    text = unsigned(text)
    found = {name: ast.literal_eval(block) for name, block in _SETTINGS.findall(text)}
    return _UNIQUE.sub(r'\1"', _SETTINGS.sub(r"\1", text)), found


def problem(
    spec: OpSpec,
    plan: Plan,
    direction: str,
    workloads: Sequence[Workload],
    target: Target,
    start: Numbers,
    points: Sequence[Numbers] | None = None,
    also: tuple[Numbers, ...] = (),
) -> Problem:
    """The candidates of one direction with what they are predicted to cost.

    Args:
        start: what is kept if nothing beats it.
        points: all candidates; by default those of the plan's search space.
        also: others, to be tried first.
    """
    if points is None:
        points = search_space(spec, plan, direction, target).points
    points = tuple(dict.fromkeys((start, *also, *points)))
    predicted, floors = {}, {}
    for numbers in points:
        schedule = Schedule(plan=plan.name, **{direction: numbers})
        found = [predict(spec, plan, schedule, direction, w, target) for w in workloads]
        predicted[numbers] = sum(p.seconds / p.bound for p in found) / len(found)
        floors[numbers] = sum(max(p.memory, p.tensor) / p.bound for p in found) / len(found)
    # Bandwidth is never quite what the table says.
    floors = {numbers: 0.9 * floor for numbers, floor in floors.items()}
    return Problem(points=points, start=start, predicted=predicted, floors=floors, also=also)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A candidate on its way: which file it is, with which settings, its kernels, and which of
    these its direction launches at the workloads.
    """

    numbers: Numbers
    file: str
    settings: dict[str, Any]
    short: tuple[int, int]  # batch and length at which it is verified beside the workloads
    kernels: list[tuple[KernelSource, Future[dict[str, Any]]]]
    timed: tuple[KernelSource, ...]


class Workbench:
    """`search.Lab` on this machine's GPU.

    Args:
        task: what is searched for.
        start: numbers that are timed even if others are the same binary: these are dropped.
        other: numbers of the other direction, where candidates can go with them.
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
        start: Numbers,
        other: Numbers,
        folder: Path,
        compilers: Compilers,
        worker: Worker,
        seed: int = 0,
    ) -> None:
        self._spec, self._plan, self._direction = task.spec, task.plan, task.direction
        self._sizes = [[w.batch, w.length] for w in task.workloads]
        self._target, self._folder, self._seed = target, folder, seed
        self._start, self._other = start, other
        self._until = math.inf
        self._compilers, self._worker = compilers, worker
        self._files: dict[str, tuple[str, str]] = {}  # bare text -> path, text
        self._jobs: dict[str, Future[dict[str, Any]]] = {}
        self._codes: dict[tuple[Any, ...], Numbers] = {}
        self._verified: dict[Numbers, _Candidate] = {}
        self._took: dict[str, list[float]] = {}  # seconds, by job
        self.checks: dict[Numbers, int] = {}
        self._inputs: dict[Numbers, int] = {}  # seeds of what each was compared on
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
        self, source: Iterator[Numbers], deadline: float
    ) -> Iterator[tuple[Numbers, Outcome]]:
        self._until = deadline
        under_way: list[_Candidate] = []
        try:
            while True:
                while len(under_way) < self._compilers.workers + AHEAD:
                    numbers = next(source, None)
                    if numbers is None:
                        break
                    begun = self._begin(numbers)
                    if isinstance(begun, Outcome):
                        yield numbers, begun
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
                yield ready.numbers, self._outcome(ready)
        finally:  # the deadline, or a search that wants no more
            self._cancel()

    def race(
        self, batch: Sequence[Numbers], rounds: int, stage: str, deadline: float
    ) -> Iterator[Mapping[Numbers, Outcome]]:
        self._until = deadline
        # The start first, which others are compared with; what there is no time for is left out.
        batch = sorted(batch, key=lambda numbers: numbers != self._start)
        times: dict[Numbers, list[tuple[Quantiles, ...]]] = {n: [] for n in batch}
        failed: dict[Numbers, Outcome] = {}
        late = [numbers for numbers in batch if numbers not in self._verified]
        for numbers in late:  # all are built at once
            self._begin(numbers)
        try:
            for numbers in late:
                outcome = self._late(numbers, deadline, first=numbers == batch[0])
                if outcome is None:
                    del times[numbers]
                elif outcome.status is not Status.OK:
                    failed[numbers] = outcome
        finally:
            self._cancel()
        for i in range(rounds):
            if i and self.now() >= deadline:
                return
            for numbers in times:
                if numbers not in failed:
                    found = self._time(self._verified[numbers], LONG_MS, stage)
                    if isinstance(found, Outcome):
                        failed[numbers] = dataclasses.replace(found, seed=self._inputs[numbers])
                    else:
                        times[numbers].append(found)
            yield failed | {
                numbers: Outcome(
                    status=Status.OK,
                    us=together(found),
                    stage=stage,
                    seed=self._inputs[numbers],
                )
                for numbers, found in times.items()
                if numbers not in failed
            }

    def _late(self, numbers: Numbers, deadline: float, first: bool) -> Outcome | None:
        """Build, verify and time a candidate that an earlier search tried, or that there was no
        time for; None if there is none now. The first, which others are compared with, has some:
        compilers may still be at others.
        """
        left = deadline - self.now()
        if left <= 0 and not first:
            return None
        candidate = self._begin(numbers)
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

    def _begin(self, numbers: Numbers) -> _Candidate | Outcome:
        """A candidate that is being built, or why it cannot be."""
        try:
            return self._prepare(numbers)
        except Sh2genError as error:
            illegal = error.code.startswith("K")  # else it could not be written, say
            status = Status.CONSTRAINT if illegal else Status.RUNTIME
            return _dropped(status, "constraint" if illegal else "build", error.message)

    def _prepare(self, numbers: Numbers) -> _Candidate:
        """Emit a candidate and have compiled what its calls will launch, unless it is already."""
        other = self._other
        if coupling(self._plan, other) != coupling(self._plan, numbers):
            other = partner(self._spec, self._plan, self._direction, numbers, self._target)
        pair = dict(zip(DIRECTIONS, (numbers, other), strict=True))
        if self._direction == "backward":
            pair = dict(zip(DIRECTIONS, (other, numbers), strict=True))
        whole = Schedule(plan=self._plan.name, **pair)
        source = emit(self._spec, self._plan, whole)
        bare, decided = settings(source.text)
        if bare not in self._files:
            path = self._folder / str(len(self._files)) / f"{self._spec.op}.py"
            write_whole(path, source.text)
            self._files[bare] = str(path), source.text
        file, text = self._files[bare]
        shared = dataclasses.replace(source, text=text)
        of, capability = (self._spec, self._plan, whole, source.kernels), self._target.capability
        sizes = [(batch, length) for batch, length in self._sizes]
        short = short_shape(*of, sizes, capability)
        kernels = [
            (kernel, self._submit(shared, kernel))
            for kernel in launched(*of, (short, *sizes), capability)
        ]
        timed = of_direction(launched(*of, sizes, capability), self._direction)
        return _Candidate(numbers, file, decided, short, kernels, timed)

    def digests(self, numbers: Numbers) -> dict[str, str]:
        """`kernel_digests` of a candidate that was timed."""
        candidate = self._verified[numbers]
        return kernel_digests(
            self._spec.op,
            (
                (kernel, future.result()["ptx_digest"])
                for kernel, future in candidate.kernels
                if kernel in candidate.timed
            ),
        )

    def _submit(self, source: Source, kernel: KernelSource) -> Future[dict[str, Any]]:
        job = kernel_job(source, self._target, kernel, Variant.ALIGNED)
        known = self._jobs.get(job)
        if known is None or (known.done() and "help" in known.result()):  # it may work by now
            self._jobs[job] = self._compilers.submit(job)
        return self._jobs[job]

    def _outcome(self, candidate: _Candidate) -> Outcome:
        """Judge what was built, then verify and time it."""
        role = Role.BACKWARD if self._direction == "backward" else Role.FORWARD
        built: list[BuiltKernel] = []
        spent = {"build": 0.0}
        for kernel, future in candidate.kernels:
            if not future.done():
                continue  # another has failed
            variant = variant_of(kernel)
            answer, label = future.result(), f"{kernel.name} ({variant})"
            if problem := failure(answer, label, self._target, BUILD_LIMIT):
                status = Status.TIMEOUT if "gave_up" in answer else Status.COMPILE
                if "help" in answer:
                    status = Status.RUNTIME
                    problem += f"\n{answer['help']}; --resume tries it again"
                return _dropped(status, "build", problem, spent)
            if kernel.role == role:
                built.append(built_kernel(kernel, variant, answer))
                spent["build"] += answer["seconds"]
        resources = _resources(built)
        for one in built:
            if unfit := misfit(one, self._target):
                problem = f"{one.kernel.name}: {unfit[0]}"
                return _dropped(Status.RESOURCES, "build", problem, spent, resources)
        seen = tuple(n for n in candidate.numbers if n[0] not in _COMPILED)
        code = (seen, *((one.code, one.registers, one.shared) for one in built))
        twin = self._codes.setdefault(code, candidate.numbers)
        if twin != candidate.numbers and candidate.numbers != self._start:
            text = " ".join(f"{name}={value}" for name, value in twin)
            return _dropped(Status.SAME, "build", f"as {text}", spent, resources)
        clock = self.now()
        self._seed += 1
        self._inputs[candidate.numbers] = self._seed
        short = candidate.short
        answer = self._ask("verify", candidate, VERIFY_LIMIT, seed=self._seed, short=short)
        spent["verify"] = self.now() - clock
        if answer["status"] != "ok":
            failed = _answered(answer, "verify", spent, resources)
            return dataclasses.replace(failed, seed=self._seed)
        self.checks[candidate.numbers] = answer["checks"]
        clock = self.now()
        times = self._time(candidate, QUICK_MS, "quick")
        spent["quick"] = self.now() - clock
        if isinstance(times, Outcome):
            return dataclasses.replace(times, built=resources, seconds=spent, seed=self._seed)
        self._verified[candidate.numbers] = candidate
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
            return _dropped(Status.RUNTIME, stage, f"these are no times: {times}")
        return found

    def _ask(self, do: str, candidate: _Candidate, limit: float, **more: Any) -> dict[str, Any]:
        job = {
            "do": do,
            "file": candidate.file,
            "settings": candidate.settings,
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


def _dropped(
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
    return _dropped(Status(answer["status"]), stage, answer["detail"], seconds, built)


# ---- the whole ----------------------------------------------------------------------------------


def machine(worker: Worker) -> Machine:
    """Raises CheckFailed, V003: the GPU cannot be used."""
    answer = ask(worker, {"do": "machine"}, VERIFY_LIMIT)
    if answer["status"] != "ok":
        raise CheckFailed("V003", f"the GPU cannot be used: {answer['detail']}")
    return Machine(gpu=answer["gpu"], uuid=answer["uuid"], versions=answer["versions"])


_OURS: set[str] = set()  # GPUs that sessions of this process have


def _alone(
    stack: ExitStack, uuid: str, say: Callable[[str], None], warn: Callable[[str], None]
) -> None:
    """Have the GPU to this search until the stack is closed, or the process dies: two would
    disturb each other's times. It waits for as long as another process has it.
    """
    if uuid in _OURS:  # which nobody would close while this one waits
        raise RuntimeError("this process has a Session on this GPU: close that before, or use it")
    _OURS.add(uuid)
    stack.callback(_OURS.discard, uuid)

    def busy() -> None:
        say("another `sh2gen tune` is running on this GPU: waiting until it ends")

    path = home() / "gpus" / f"{slug(uuid)}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        stack.callback(os.close, file)
        stack.enter_context(jsonl.locked(file, busy=busy))
    except OSError as error:  # what is found is worth having without it
        reason = error.strerror or error
        warn(f"cannot lock {path}: {reason}; run no other `sh2gen tune` on this GPU meanwhile")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What a search of one task came to.

    Attributes:
        sweep: what became of every candidate.
        decision: what tables keep; None if not even one candidate was right, or none was asked
            for.
    """

    task: Task
    problem: Problem
    result: Result
    sweep: Sweep
    decision: Decision | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for --json."""
        counts = Counter(str(outcome.status) for outcome in self.result.tried.values())
        start = self.result.tried.get(self.problem.start)
        return {
            "op": self.task.spec.op,
            "plan": self.task.plan.name,
            "direction": self.task.direction,
            "workloads": [{"batch": w.batch, "length": w.length} for w in self.task.workloads],
            "points": len(self.problem.points),
            "tried": dict(sorted(counts.items())),
            "seconds": self.result.seconds,
            "interrupted": self.result.interrupted,
            "start": {"status": start.status, "detail": start.detail} if start else None,
            "decision": json.loads(self.decision.to_line()) if self.decision else None,
        }


class Session:
    """The processes that tuning needs, and this GPU alone, for one operator after another.

        with Session() as session:
            session.tune(spec, plan, target, starts=...)

    Args:
        workers: processes that compile; by default one less than there are cores.
        say: told that a session of another process has the GPU: this one waits until that is
            closed. By default it is a warning, since it may take hours.
        warn: told that others cannot be kept from the GPU. By default it is a warning.

    Attributes:
        on: this machine, as the process on the GPU sees it.

    Raises:
        CheckFailed: V003, the GPU cannot be used.
        RuntimeError: this process has a session on this GPU already.
    """

    def __init__(
        self,
        workers: int | None = None,
        say: Callable[[str], None] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        with ExitStack() as stack:
            count = workers or max(1, len(os.sched_getaffinity(0)) - 1)
            self._folder = stack.enter_context(scratch())
            self._compilers = stack.enter_context(closing(Compilers(count, BUILD_LIMIT)))
            self._worker = stack.enter_context(closing(measuring_worker()))
            self.on = machine(self._worker)
            _alone(stack, self.on.uuid, say or warnings.warn, warn or warnings.warn)
            self._stack = stack.pop_all()
        self._searches = 0

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def bench(
        self, task: Task, target: Target, starts: Mapping[str, Numbers], seed: int = 0
    ) -> Workbench:
        """Where candidates of a task are built, verified and timed; arguments as of `tune`."""
        self._searches += 1
        (other,) = (d for d in DIRECTIONS if d != task.direction)
        return Workbench(
            task,
            target,
            start=starts[task.direction],
            other=starts[other],
            folder=self._folder / str(self._searches),
            compilers=self._compilers,
            worker=self._worker,
            seed=seed,
        )

    def tune(
        self,
        spec: OpSpec,
        plan: Plan,
        target: Target,
        *,
        directions: Sequence[str] = DIRECTIONS,
        starts: Mapping[str, Numbers],
        also: Mapping[str, Numbers] | None = None,
        effort: str = "measure",
        budget: float | None = None,
        decide: bool = True,
        seed: int = 0,
        resume: bool = False,
        say: Callable[[str], None] = lambda text: None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> Iterator[Tuned]:
        """Search for the numbers of a plan, for all workloads of the spec at once.

        Args:
            target: this machine's GPU.
            starts: by direction, the numbers that stay if nothing beats them.
            also: by direction, others to try first.
            effort: a word of `search.EFFORTS`.
            budget: seconds for a direction; by default what the effort says.
            decide: False leaves out the last rounds and the decision: a sweep.
            resume: go on with what the log of an earlier search holds.
            say, warn: told of progress, and of what cannot be read or written.

        Yields:
            one a direction, as soon as it is decided. After a KeyboardInterrupt, or if the GPU
            cannot be used any more, a direction that was not begun is missing.
        """
        hard = EFFORTS[effort]
        if budget is not None:
            hard = dataclasses.replace(hard, budget=budget)
        log = Log(log_path(self.on.gpu, spec.op, operator_digest(spec)))
        said: set[str] = set()

        def once(text: str) -> None:  # a full disk is full for every line
            if text not in said:
                said.add(text)
                warn(text)

        def searched(direction: str) -> _Search:
            task = Task(spec=spec, plan=plan, direction=direction)
            journal = Journal(task, self.on, log, effort, seed, once)
            bench = self.bench(task, target, starts, seed)
            known = journal.known() if resume else {}
            extra = (also or {}).get(direction)
            space = _space(task, target, directions, starts, journal, extra, not known)
            # A log may hold others: tiles of another length, say. The start has to be timed.
            here = {n: one for n, one in known.items() if n in set(space.points)}
            if here.get(space.start, Outcome(status=Status.OK)).status is not Status.OK:
                del here[space.start]
            note = _note(space, bench, journal, say, once)
            result = search(space, bench, hard, known=here, note=note, last_rounds=decide)
            return _Search(journal, bench, space, result)

        found: list[_Search] = []
        for direction in directions:
            try:
                found.append(searched(direction))
            except KeyboardInterrupt:  # before its search began
                if not found or not plan.states:  # those before are decided and told
                    raise
                found[-1] = found[-1].stopped()
            except CheckFailed as error:  # what is found already counts
                if not found:
                    raise
                warn(error.render())
                break
            if not plan.states:  # nothing that follows changes what was decided
                yield _tuned(found[-1], found[-1].result.winner, decide)
            if found[-1].result.interrupted:
                break
        if plan.states:
            left = math.inf
            if hard.budget is not None:
                left = sum(max(0.0, hard.budget - one.result.seconds) for one in found)
            agreed = (
                _agreed(plan, found, starts, left)
                if decide
                else [(one, one.result.winner) for one in found]
            )
            for one, numbers in agreed:
                yield _tuned(one, numbers, decide)


@dataclass(frozen=True, slots=True)
class _Search:
    """A search that has ended, and what it was made with."""

    journal: Journal
    bench: Workbench
    space: Problem
    result: Result

    def stopped(self) -> _Search:
        """The same, after which no other is to begin."""
        return dataclasses.replace(self, result=dataclasses.replace(self.result, interrupted=True))


def _tuned(one: _Search, numbers: Numbers, decide: bool) -> Tuned:
    return Tuned(
        task=one.journal.task,
        problem=one.space,
        result=one.result,
        sweep=_sweep(one),
        decision=_decision(one, numbers) if decide else None,
    )


def _space(
    task: Task,
    target: Target,
    directions: Sequence[str],
    starts: Mapping[str, Numbers],
    journal: Journal,
    extra: Numbers | None,
    anew: bool,
) -> Problem:
    """The candidates of a task, one more that is tried early; what constraints drop is written
    down by the number, if this is not the rest of a search that did.
    """
    spec, plan, direction = task.spec, task.plan, task.direction
    survey = search_space(spec, plan, direction, target)
    for constraint, count in survey.dropped if anew else ():
        text = f"{constraint.that}: {constraint.because}"
        journal.write((), _dropped(Status.CONSTRAINT, "constraint", text), count)
    points = survey.points
    (other,) = (d for d in DIRECTIONS if d != direction)
    if other not in directions:  # its numbers stay as they are
        points = tuple(p for p in points if coupling(plan, p) == coupling(plan, starts[other]))
    also = () if extra is None else (extra,)
    start = starts[direction]
    return problem(spec, plan, direction, task.workloads, target, start, points, also)


def _note(
    space: Problem,
    bench: Workbench,
    journal: Journal,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> Callable[[Numbers, Outcome, Tried], None]:
    """What is done at every outcome: it is written down, and progress is shown."""

    def note(numbers: Numbers, outcome: Outcome, tried: Tried) -> None:
        journal.write(numbers, outcome)
        if outcome.no_verdict:
            advice = outcome.detail.splitlines()[-1]
            warn(f"candidates cannot be built on this machine: {advice}")
        best = min(tried.values(), key=lambda one: score(one, bench.bounds))
        dropped = sum(one.status is not Status.OK for one in tried.values())
        text = f"{journal.task.title}: {len(tried)} of {len(space.points)}, {dropped} dropped"
        if best.status is Status.OK:
            times = ", ".join(f"{us[1]:.1f}" for us in best.us)
            text += f"; best {times} us, {1 / score(best, bench.bounds):.2f} of the bound"
        say(text)

    return note


def _agreed(
    plan: Plan, found: list[_Search], starts: Mapping[str, Numbers], seconds: float
) -> list[tuple[_Search, Numbers]]:
    """The winners, where both directions must agree in their tiles. If these do not, the best
    pairs of other tiles are raced with the best of the start's, which stays unless one beats it,
    forward and backward together. It stays too if only one direction was searched.

    Args:
        seconds: that are left for the race.
    """
    kept = coupling(plan, starts[DIRECTIONS[0]])
    winners = [one.result.winner for one in found]
    tiles = {coupling(plan, numbers) for numbers in winners}
    both = len(found) == len(DIRECTIONS)
    if len(tiles) == 1 and (both or tiles == {kept}):
        return list(zip(found, winners, strict=True))
    stay = []
    for one in found:
        field = {n: o for n, o in one.result.field.items() if coupling(plan, n) == kept}
        stay.append(choose(one.space, field, one.result.raced, one.bench.bounds))
    if not both or any(n not in one.result.tried for n, one in zip(stay, found, strict=True)):
        return list(zip(found, stay, strict=True))
    forward, backward = (_best_of_tiles(plan, one) for one in found)
    bounds = [sum(two) for two in zip(*(one.bench.bounds for one in found), strict=True)]

    def both_of(pair: Sequence[Numbers]) -> Outcome:
        return _sum([one.result.tried[n] for one, n in zip(found, pair, strict=True)])

    def cost(pair: Sequence[Numbers]) -> float:
        return score(both_of(pair), bounds)

    pairs = [[forward[t], backward[t]] for t in forward if t in backward and t != kept]
    pairs = sorted(pairs, key=cost)[:_PAIRS]
    raced = False
    if pairs and not any(one.result.interrupted for one in found):
        found, raced = _raced(found, [stay, *pairs], seconds)
    now, enough = both_of(stay), beats if raced else clearly_beats
    better = (pair for pair in sorted(pairs, key=cost) if enough(both_of(pair), now, bounds))
    return list(zip(found, stay if now.no_verdict else next(better, stay), strict=True))


def _best_of_tiles(plan: Plan, one: _Search) -> dict[int | None, Numbers]:
    """By tiles, the best that was verified by this search: if there is one, of its last rounds."""
    right = [
        numbers
        for numbers, outcome in one.result.tried.items()
        if numbers in one.bench.checks and outcome.status is Status.OK
    ]

    def rank(numbers: Numbers) -> tuple[bool, float]:
        final = numbers in one.result.final
        return not final, score(one.result.tried[numbers], one.bench.bounds)

    return {coupling(plan, n): n for n in sorted(right, key=rank, reverse=True)}


def _sum(outcomes: Sequence[Outcome]) -> Outcome:
    """One after the other: what their times add up to, or what failed."""
    failed = [outcome for outcome in outcomes if outcome.status is not Status.OK]
    if failed:
        return failed[0]
    us = []
    for times in zip(*(outcome.us for outcome in outcomes), strict=True):  # of one workload
        low, middle, high = (sum(quantile) for quantile in zip(*times, strict=True))
        us.append((low, middle, high))
    return Outcome(status=Status.OK, us=tuple(us))


def _raced(
    found: list[_Search], pairs: Sequence[Sequence[Numbers]], seconds: float
) -> tuple[list[_Search], bool]:
    """The searches after last rounds of these pairs and the start; whether there were enough."""
    after = []
    end = found[0].bench.now()
    try:
        for i, one in enumerate(found):
            batch = dict.fromkeys((one.space.start, *(pair[i] for pair in pairs)))
            right = [n for n in batch if one.result.tried[n].status is Status.OK]
            end += seconds / len(found)
            rounds: list[Tried] = list(one.bench.race(right, LAST_ROUNDS, "final", end))
            final = rounds[-1]
            if len(rounds) < ENOUGH or all(o.status is not Status.OK for o in final.values()):
                return found, False
            for numbers, outcome in final.items():
                one.journal.write(numbers, outcome)
            tried = {**one.result.tried, **final}
            result = dataclasses.replace(one.result, tried=tried, final=final, raced=True)
            after.append(dataclasses.replace(one, result=result))
    except KeyboardInterrupt:
        return [one.stopped() for one in found], False
    return after, True


def _sweep(one: _Search) -> Sweep:
    """All outcomes of the first round: later ones are of a few, and longer."""
    header = Header(
        key=one.journal.key,
        op=one.journal.task.spec.op,
        workloads=one.journal.task.workloads,
        bounds=one.bench.bounds,
        start=one.space.start,
        date=now(),
        versions=one.journal.on.versions,
    )
    return Sweep(header=header, outcomes=one.result.first)


def _decision(one: _Search, numbers: Numbers) -> Decision | None:
    """What tables keep of a search, if it found the numbers right and compared them with the
    start. What is known of an earlier one does not count.
    """
    seen = {**one.result.tried, **one.result.final}
    outcome, start = seen.get(numbers), seen.get(one.space.start)
    if outcome is None or outcome.status is not Status.OK or start is None:
        return None
    checks = one.bench.checks.get(numbers)
    if checks is None:
        return None
    low, us, high = zip(*outcome.us, strict=True)
    task, effort = one.journal.task, one.journal.effort
    return Decision(
        key=one.journal.key,
        fields=fields_of(task.spec),
        kernels=one.bench.digests(numbers),
        op=task.spec.op,
        workloads=task.workloads,
        numbers=numbers,
        us=us,
        low=low,
        high=high,
        bound_us=one.bench.bounds,
        start_us=tuple(times[1] for times in start.us),  # none if it does not run here
        start=one.space.start,
        checks=checks,
        effort=f"{effort}, interrupted" if one.result.interrupted else effort,
        date=now(),
        versions=one.journal.on.versions,
    )
