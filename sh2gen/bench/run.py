"""One operator on one GPU beside other ways of computing it.

`run` compares every baseline with float64 and then times it, each in a process of its own: a
kernel that faults takes its process with it, and what one package leaves in memory or changes in
torch reaches no other. What cannot run is a line with the reason; only a wrong kernel of sh2gen
itself is an error, and then nothing is timed. One that does not answer is asked no more at that
size and at larger ones. An interrupt ends a run with what was measured until then.
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sh2gen.base.errors import CheckFailed
from sh2gen.base.process import Worker, python_worker
from sh2gen.bench.baselines.base import Baseline, Part
from sh2gen.bench.results import TIMED, Effort, Outcome, Results, Size, Steps
from sh2gen.bench.worker import OWN, Answer, Job, one_line, own_baseline
from sh2gen.cost.cost import bound_bytes, config_on, predictions
from sh2gen.cost.decode import STEPS
from sh2gen.cost.memory import peak
from sh2gen.cost.work import BLOCK_T, ROWS, work
from sh2gen.plan.plan import Plan
from sh2gen.runtime.measure import Timing, versions
from sh2gen.runtime.operator import Operator
from sh2gen.schedule.config import DIRECTIONS, Schedule
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target

Progress = Callable[[str], None]  # what happens next
Bounds = Mapping[Workload, Mapping[str, float]]  # microseconds by direction
CHECKED = Workload(batch=2, length=1024)  # where output and all gradients are compared
WRONG = 0.02  # relative error in the 2-norm; rounding once to bfloat16 costs 0.0017
# Seconds until the first answer of a process, which imports a package and compiles. torch.compile
# of FFTs takes a minute.
TIME_LIMIT = 600.0
INTERRUPTED = "interrupted"  # as a reason


def run(
    path: Path,
    plan: Plan,
    schedule: Schedule,
    target: Target,
    *,
    baselines: Sequence[Baseline],
    workloads: Sequence[Workload],
    origins: Mapping[str, str] | None = None,
    not_taken: Sequence[str] = (),
    device: str = "cuda",
    checked: Workload = CHECKED,
    time_limit: float = TIME_LIMIT,
    progress: Progress | None = None,
) -> Results:
    """Verify and time the operator of a generated file, then baselines beside it.

    Args:
        path: the generated file, of this plan and schedule.
        target: whose rates predictions take.
        workloads: the sizes to time at.
        origins, not_taken: as of `Results`.
        device: "cuda"; "cpu" is for tests, and times what a CPU does.
        checked: the size at which baselines are compared with float64, gradients included.
        time_limit: seconds after which a process that has not given its first answer is killed;
            of further ones see `_Asked`.

    After a KeyboardInterrupt, once timing has begun, the results are what was measured so far.

    Raises:
        CheckFailed: V001, a kernel of sh2gen is wrong or does not run; V002, so is one that
            decodes; V003, a bound cannot be measured. Nothing is given then.
    """
    say = progress or (lambda _: None)
    operator = Operator(path)
    spec = operator.spec
    session = _Session(
        path=path, spec=spec, device=device, checked=checked, limit=time_limit, say=say
    )
    own, finished = own_baseline(operator), False
    with closing(session.process()) as asked:
        checks = session.verified(asked, workloads)
        bounds = session.bounds(asked, spec, workloads)
        with suppress(KeyboardInterrupt):
            if plan.step is not None:
                checks += session.stepped(asked)
            session.measured(asked, own, Part(spec=spec), bounds)
            asked.close()  # what it has of the GPU's memory is for others
            for baseline in baselines:
                session.tried(baseline, bounds)
            finished = True
    outcomes = session.found
    if not finished:
        outcomes += _unreached((own, *baselines), workloads, outcomes)
    on_gpu = device == "cuda"
    return Results(
        op=spec.op,
        digest=spec.digest,
        channels=spec.channels,
        plan=plan.name,
        schedule=str(schedule),
        origins=dict(origins or {}),
        not_taken=tuple(not_taken),
        dtype=spec.dtype.io.value,
        gpu=torch.cuda.get_device_name() if on_gpu else "CPU",
        target=target.name,
        versions=_versions(baselines),
        date=time.strftime("%Y-%m-%d"),
        checks=checks,
        interrupted=not finished,
        bound_bytes={d: float(bound_bytes(spec, d)) for d in DIRECTIONS},
        sizes=tuple(
            Size(
                batch=w.batch,
                length=w.length,
                bounds=us,
                predicted=_predicted(spec, plan, schedule, target, w),
                peak=_predicted_peak(spec, plan, schedule, target, w),
            )
            for w, us in bounds.items()
        ),
        steps=tuple(session.steps),
        efforts=_efforts(spec, plan, schedule, target, max(w.length for w in bounds)),
        outcomes=tuple(outcomes),
    )


def _there(package: str) -> bool:
    """Whether a module can be found; if that is not clear, importing it will tell."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return True


def _versions(baselines: Iterable[Baseline]) -> dict[str, str]:
    """Of what times depend on, and of the packages of baselines that are installed."""
    owners = metadata.packages_distributions()
    packages = dict.fromkeys(c.package for c in baselines if c.package)
    return versions() | {p: metadata.version(owners[p][0]) for p in packages if p in owners}


def _predicted(
    spec: OpSpec, plan: Plan, schedule: Schedule, target: Target, workload: Workload
) -> dict[str, float]:
    """Microseconds by direction."""
    found = predictions(spec, plan, schedule, workload, target)
    return {direction: 1e6 * one.seconds for direction, one in found.items()}


def _predicted_peak(
    spec: OpSpec, plan: Plan, schedule: Schedule, target: Target, workload: Workload
) -> dict[str, float]:
    """Of memory, in activations; none of plain PyTorch."""
    found = peak(spec, plan, schedule, workload, target)
    if found is None:
        return {}
    return {"forward": found.times(found.forward), "both": found.times(found.step)}


def _efforts(
    spec: OpSpec, plan: Plan, schedule: Schedule, target: Target, length: int
) -> dict[str, Effort]:
    """What kernels do that run at a length."""
    found = {}
    for kernel in plan.kernels:
        effort = work(kernel, plan.layout, spec)
        config = config_on(target, spec, plan, kernel, schedule, length)
        sizes = {ROWS: config.get("ROWS", 8), BLOCK_T: config.get("BLOCK_T", 64)}
        found[kernel.name] = Effort(
            bytes=float(effort.bytes),
            flops=float(effort.flops.subs(sizes)),
            product_flops=float(effort.tensor_flops.subs(sizes)),
        )
    return found


@dataclass(slots=True, kw_only=True)
class _Asked:
    """A process, and how long it may take.

    The first answer may take `limit` seconds, and so may the first of a process that replaces
    another. Further ones may take half of that, or twice the longest so far if that is more. One
    that took longer is not asked again at this size or at larger ones: whatever hangs in one
    direction hangs in others, and each would cost as much.
    """

    worker: Worker
    limit: float
    started: bool = False
    longest: float = 0.0
    gave_up: Workload | None = None
    why: str = ""

    def ask(self, job: Job) -> Answer:
        size = Workload(batch=job["batch"], length=job["length"])
        if self.gave_up is not None and _steps(size) >= _steps(self.gave_up):
            return {"failed": f"skipped: {self.why} at {_named(self.gave_up)}"}
        limit = self.limit
        if self.started:
            limit = min(limit, max(limit / 2, 2 * self.longest))
        begin = time.monotonic()
        answer = ask(self.worker, job, limit)
        if answer.get("gave_up"):
            self.gave_up, self.why = size, answer["failed"]
        else:
            self.longest = max(self.longest, time.monotonic() - begin)
        self.started = not ("failed" in answer or "retry" in answer)  # else it is replaced
        return answer

    def close(self) -> None:
        self.worker.close()


def _steps(workload: Workload) -> int:
    return workload.batch * workload.length


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    """What all jobs of one run have in common, and what they found."""

    path: Path
    spec: OpSpec
    device: str
    checked: Workload
    limit: float
    say: Progress
    found: list[Outcome] = field(default_factory=list)
    steps: list[Steps] = field(default_factory=list)

    def process(self) -> _Asked:
        """A process that is not started yet."""
        worker = python_worker("sh2gen.bench.worker", "its process")
        return _Asked(worker=worker, limit=self.limit)

    def job(self, do: str, spec: OpSpec, baseline: str, workload: Workload, **more: Any) -> Job:
        return {
            "do": do,
            "path": str(self.path),
            "spec": spec.to_dict(),
            "baseline": baseline,
            "batch": workload.batch,
            "length": workload.length,
            "device": self.device,
        } | more

    def verified(self, asked: _Asked, workloads: Sequence[Workload]) -> int:
        """How many comparisons of sh2gen's own kernels were made, all of which passed."""
        checks = 0
        for size in dict.fromkeys((Workload(batch=2, length=37), self.checked, *workloads)):
            self.say(f"{self.spec.op}: verifying its kernels at {_named(size)}")
            answer = asked.ask(self.job("verify", self.spec, OWN, size))
            if "failed" in answer:
                problem = f"its kernels do not run at {_named(size)}: {answer['failed']}"
                raise CheckFailed("V001", f"{self.spec.op}: {problem}")
            if not answer["ok"]:
                raise CheckFailed(answer["code"], answer["message"], help=answer["help"])
            checks += int(answer["checks"])
        return checks

    def bounds(self, asked: _Asked, spec: OpSpec, workloads: Iterable[Workload]) -> Bounds:
        """Of elementwise kernels that move the activations of the whole or of a part."""
        found = {}
        for workload in workloads:
            us = {}
            for direction in DIRECTIONS:
                answer = asked.ask(self.job("bound", spec, OWN, workload, direction=direction))
                if "failed" in answer:
                    problem = f"no bound at {_named(workload)}: {answer['failed']}"
                    raise CheckFailed("V003", problem)
                us[direction] = answer["us"][1]
            found[workload] = us | {"both": sum(us.values())}
        return found

    def stepped(self, asked: _Asked) -> int:
        """Find what decoding takes; how many checks it passed first.

        Raises:
            CheckFailed: its kernel is wrong. One that does not run leaves its times out.
        """
        checks = 0
        for size in STEPS:
            self.say(f"{self.spec.op}: verifying and timing a step of {size.batch} sequences")
            answer = asked.ask(self.job("decode", self.spec, OWN, size))
            if "failed" in answer:
                self.say(f"{self.spec.op}: no steps of {size.batch}: {answer['failed']}")
                continue
            if not answer["ok"]:
                raise CheckFailed(answer["code"], answer["message"], help=answer["help"])
            checks += answer["checks"]
            found = Timing(*answer["us"])
            self.steps.append(
                Steps(batch=size.batch, us=found, bound=answer["bound"], host=answer["host"])
            )
        return checks

    def tried(self, baseline: Baseline, bounds: Bounds) -> None:
        """Find outcomes of one baseline, in a process of its own.

        Args:
            bounds: of the whole, at every size that is measured.
        """

        def none(reason: str) -> None:
            self.found.append(_outcome(baseline, (), None, reason=reason))

        found = baseline.computes(self.spec)
        if isinstance(found, str):
            return none(f"does not apply: {found}")
        if baseline.package is not None and not _there(baseline.package):
            return none(f"not installed: there is no module {baseline.package}")
        with closing(self.process()) as asked:
            if found.spec.inputs != self.spec.inputs:  # a part has bounds of its own
                try:
                    bounds = self.bounds(asked, found.spec, bounds)
                except CheckFailed as error:  # what was measured of others is not lost for that
                    return none(error.message)
            self.measured(asked, baseline, found, bounds)

    def measured(self, asked: _Asked, baseline: Baseline, part: Part, bounds: Bounds) -> None:
        """Find outcomes of a baseline that is there and applies."""
        name, differentiable = baseline.name, baseline.differentiable
        self.say(f"{name}: comparing with float64 at {_named(self.checked)}")
        job = self.job("check", part.spec, name, self.checked, gradients=differentiable)
        answer = asked.ask(job)
        if reason := _problem(answer):
            self.found.append(_outcome(baseline, part.without, None, reason=reason))
            return
        gradient_error = max(answer["gradients"].values(), default=None)
        for workload, us in bounds.items():
            self.at(asked, baseline, part, us, workload, gradient_error)

    def at(
        self,
        asked: _Asked,
        baseline: Baseline,
        part: Part,
        bounds: Mapping[str, float],
        workload: Workload,
        gradient_error: float | None,
    ) -> None:
        """Find the outcome of one baseline at one size; of an interrupted one, what there is."""
        name = baseline.name

        def found(**values: Any) -> None:
            self.found.append(_outcome(baseline, part.without, workload, **values))

        if (fits := baseline.fits(part.spec, workload.length)) is not None:
            return found(reason=f"does not apply: {fits}")
        self.say(f"{name}: timing at {_named(workload)}")
        answer = asked.ask(self.job("check", part.spec, name, workload, gradients=False))
        if reason := _problem(answer):
            return found(reason=reason)
        times: dict[str, Timing] = {}
        reasons: dict[str, str] = {}
        peaks: dict[str, float] = {}
        step: Timing | None = None
        captured = True
        try:
            for direction in TIMED:
                if direction != "forward" and not baseline.differentiable:
                    reasons[direction] = "it has no backward"
                    continue
                job = self.job("time", part.spec, name, workload, direction=direction, graph=True)
                timed = asked.ask(job)
                if "retry" in timed:  # it cannot be captured
                    timed, captured = asked.ask(job | {"graph": False}), False
                if "failed" in timed:
                    reasons[direction] = timed["failed"]
                    continue
                times[direction] = Timing(*timed["us"])
            if "both" in times:
                stepped = asked.ask(self.job("step", part.spec, name, workload, direction="both"))
                if "failed" in stepped:
                    reasons["step"] = stepped["failed"]
                else:
                    step = Timing(*stepped["us"])
            for direction in ("forward", "both"):
                if direction in times:
                    job = self.job("memory", part.spec, name, workload, direction=direction)
                    if (most := asked.ask(job).get("peak")) is not None:
                        peaks[direction] = most
        finally:
            reasons |= {d: INTERRUPTED for d in TIMED if d not in times and d not in reasons}
            found(
                reason="" if times else reasons["forward"],
                times=times,
                shares={d: bounds[d] / t.median for d, t in times.items()},
                reasons=reasons,
                error=answer["y"],
                gradient_error=gradient_error,
                step=step,
                peak=peaks,
                captured=captured,
            )


def _unreached(
    baselines: Iterable[Baseline], workloads: Iterable[Workload], found: Sequence[Outcome]
) -> list[Outcome]:
    """Of what an interrupted run did not come to: baselines, and sizes of the last one."""
    lines = []
    for baseline in baselines:
        mine = {o.size: o for o in found if o.baseline == baseline.name}
        if not mine:
            lines.append(_outcome(baseline, (), None, reason=INTERRUPTED))
        elif (None, None) not in mine:
            without = next(iter(mine.values())).without
            lines += [
                _outcome(baseline, without, w, reason=INTERRUPTED)
                for w in workloads
                if (w.batch, w.length) not in mine
            ]
    return lines


def _outcome(
    baseline: Baseline,
    without: tuple[str, ...],
    workload: Workload | None,
    **found: Any,
) -> Outcome:
    return Outcome(
        baseline=baseline.name,
        does=baseline.does,
        layout=baseline.layout,
        without=without,
        batch=None if workload is None else workload.batch,
        length=None if workload is None else workload.length,
        **found,
    )


def _named(workload: Workload) -> str:
    return f"B={workload.batch} L={workload.length}"


def _problem(answer: Answer) -> str:
    """Why a baseline is not timed after this comparison, or nothing."""
    if "failed" in answer:
        return str(answer["failed"])
    errors = {"y": answer["y"]}
    errors |= {f"the gradient of {n}": e for n, e in answer["gradients"].items()}
    wrong = {name: e for name, e in errors.items() if not e <= WRONG}  # NaN too
    if not wrong:
        return ""
    name = max(wrong, key=lambda n: wrong[n] if math.isfinite(wrong[n]) else math.inf)
    others = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return f"wrong: error {wrong[name]:.2g} in {name}{others}"


def ask(worker: Worker, job: Job, limit: float) -> Answer:
    """The answer of bench_worker.py, in which `failed` says in a line why there is none, and
    `gave_up` that it took too long.
    """
    answer = worker.run(json.dumps(job), limit)
    if "gave_up" in answer:
        return {"failed": f"no answer in {limit:.0f} s", "gave_up": True}
    if "died" in answer:
        how, *words = filter(str.strip, answer["died"].splitlines())
        return {"failed": one_line(": ".join([how, *words[-1:]]))}
    return answer
