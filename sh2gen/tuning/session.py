"""Tuning: searches whose lab is the GPU of this machine, for one operator after another."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing

from sh2gen.base import jsonl
from sh2gen.base.errors import CheckFailed
from sh2gen.base.files import scratch
from sh2gen.base.process import Worker
from sh2gen.build.build import Compilers
from sh2gen.cost.cost import predict
from sh2gen.plan.plan import Plan
from sh2gen.schedule.config import DIRECTIONS, Schedule, coupling
from sh2gen.schedule.space import DECODE, Config, search_space
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target
from sh2gen.tuning.decide import Search, Tuned, in_agreement, tuned
from sh2gen.tuning.journal import Journal, Machine, Task
from sh2gen.tuning.lab import BUILD_LIMIT, VERIFY_LIMIT, Workbench, ask, dropped, measuring_worker
from sh2gen.tuning.records import (
    Log,
    Status,
    home,
    log_path,
    operator_digest,
    slug,
)
from sh2gen.tuning.search import (
    EFFORTS,
    Outcome,
    Problem,
    Tried,
    score,
    search,
)


def problem(
    spec: OpSpec,
    plan: Plan,
    direction: str,
    workloads: Sequence[Workload],
    target: Target,
    start: Config,
    points: Sequence[Config] | None = None,
    also: tuple[Config, ...] = (),
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
    if direction == DECODE:  # nothing predicts which config is the faster: all are tried
        alike = dict.fromkeys(points, 1.0)
        return Problem(points=points, start=start, predicted=alike, also=also)
    predicted, floors = {}, {}
    for config in points:
        schedule = Schedule(plan=plan.name, **{direction: config})
        found = [predict(spec, plan, schedule, direction, w, target) for w in workloads]
        predicted[config] = sum(p.seconds / p.bound for p in found) / len(found)
        floors[config] = sum(max(p.memory, p.tensor) / p.bound for p in found) / len(found)
    # Bandwidth is never quite what the table says.
    floors = {config: 0.9 * floor for config, floor in floors.items()}
    return Problem(points=points, start=start, predicted=predicted, floors=floors, also=also)


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
        self, task: Task, target: Target, starts: Mapping[str, Config], seed: int = 0
    ) -> Workbench:
        """Where candidates of a task are built, verified and timed; arguments as of `tune`."""
        self._searches += 1
        return Workbench(
            task,
            target,
            starts=starts,
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
        starts: Mapping[str, Config],
        also: Mapping[str, Config] | None = None,
        effort: str = "measure",
        budget: float | None = None,
        decide: bool = True,
        seed: int = 0,
        resume: bool = False,
        say: Callable[[str], None] = lambda text: None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> Iterator[Tuned]:
        """Search for the config of a plan, for all workloads of the spec at once.

        Args:
            target: this machine's GPU.
            starts: by direction, the config that stays if nothing beats it.
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

        def searched(direction: str) -> Search:
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
            return Search(journal, bench, space, result)

        found: list[Search] = []
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
                yield tuned(found[-1], found[-1].result.winner, decide)
            if found[-1].result.interrupted:
                break
        if plan.states:
            left = math.inf
            if hard.budget is not None:
                left = sum(max(0.0, hard.budget - one.result.seconds) for one in found)
            agreed = (
                in_agreement(plan, found, starts, left)
                if decide
                else [(one, one.result.winner) for one in found]
            )
            for one, config in agreed:
                yield tuned(one, config, decide)


def _space(
    task: Task,
    target: Target,
    directions: Sequence[str],
    starts: Mapping[str, Config],
    journal: Journal,
    extra: Config | None,
    anew: bool,
) -> Problem:
    """The candidates of a task, one more that is tried early; what constraints drop is written
    down by the number, if this is not the rest of a search that did.
    """
    spec, plan, direction = task.spec, task.plan, task.direction
    survey = search_space(spec, plan, direction, target)
    for constraint, count in survey.dropped if anew else ():
        text = f"{constraint.that}: {constraint.because}"
        journal.write((), dropped(Status.CONSTRAINT, "constraint", text), count)
    points = survey.points
    other = {"forward": "backward", "backward": "forward"}.get(direction)
    if other is not None and other not in directions:  # its config stays as it is
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
) -> Callable[[Config, Outcome, Tried], None]:
    """What is done at every outcome: it is written down, and progress is shown."""

    def note(config: Config, outcome: Outcome, tried: Tried) -> None:
        journal.write(config, outcome)
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
