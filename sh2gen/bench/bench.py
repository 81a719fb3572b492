"""One operator on one GPU beside other ways of computing it.

`run` compares every contender with float64 and then times it, each in a process of its own: a
kernel that faults takes its process with it, and what one package leaves in memory or changes in
torch reaches no other. What cannot run is a line with the reason; only a wrong kernel of sh2gen
itself is an error, and then nothing is timed. One that does not answer is asked no more at that
size and at larger ones. An interrupt ends a run with what was measured until then.

A share is the time of an elementwise kernel of this run that reads and writes the same activations
over the contender's time. Times are medians with the 20th and 80th percentiles, of the GPU alone
where a call can be captured in a CUDA graph (sh2gen.measure).
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sh2gen.base import jsonl
from sh2gen.base.errors import CheckFailed, Sh2genError
from sh2gen.base.files import read_text
from sh2gen.base.jsonl import COUNT, POSITIVE, READING
from sh2gen.base.process import Worker, python_worker
from sh2gen.bench.contenders import Contender, Part
from sh2gen.bench.worker import OWN, Answer, Job, one_line, own_contender
from sh2gen.cost.cost import BLOCK_T, ROWS, bound_bytes, numbers_on, predictions, work
from sh2gen.plan.plan import Plan
from sh2gen.runtime.measure import Timing, versions
from sh2gen.runtime.operator import Operator
from sh2gen.schedule.config import DIRECTIONS, Schedule
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target

Progress = Callable[[str], None]  # what happens next
Bounds = Mapping[Workload, Mapping[str, float]]  # microseconds by direction

TIMED = ("forward", "backward", "both")
CHECKED = Workload(batch=2, length=1024)  # where output and all gradients are compared
WRONG = 0.02  # relative error in the 2-norm; rounding once to bfloat16 costs 0.0017
# Seconds until the first answer of a process, which imports a package and compiles. torch.compile
# of FFTs takes a minute.
TIME_LIMIT = 600.0
INTERRUPTED = "interrupted"  # as a reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was found of one contender, at one size or (batch and length None) at all of them.

    Attributes:
        contender, does, layout: as in the table of contenders.
        without: steps of the operator that it leaves out; none: it computes the whole.
        reason: why it was not timed; empty if it was.
        times: microseconds, by direction.
        shares: of the bound of what it computes, by direction.
        reasons: why a direction has no time.
        error: of y at this size, relative to float64 in the 2-norm.
        gradient_error: the largest of any gradient, at the size CHECKED.
        memory: peak over what a call takes and gives, by direction (forward, both).
        captured: whether every time is of a CUDA graph; otherwise the host may count.
    """

    contender: str
    does: str
    layout: str
    without: tuple[str, ...] = ()
    batch: int | None = None
    length: int | None = None
    reason: str = ""
    times: Mapping[str, Timing] = field(default_factory=dict)
    shares: Mapping[str, READING] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    error: float | None = None
    gradient_error: float | None = None
    memory: Mapping[str, READING] = field(default_factory=dict)
    captured: bool = True

    @property
    def size(self) -> tuple[int | None, int | None]:
        return self.batch, self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Bounds and predictions of the whole operator at one size, in microseconds by direction."""

    batch: COUNT
    length: COUNT
    bounds: Mapping[str, POSITIVE]
    predicted: Mapping[str, POSITIVE]

    @property
    def size(self) -> tuple[int, int]:
        return self.batch, self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Work of one kernel of sh2gen per token and channel, for the roofline."""

    bytes: POSITIVE
    flops: READING  # outside of matrix products
    product_flops: READING

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return (self.flops + self.product_flops) / self.bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything that `run` found.

    Attributes:
        op, digest, channels, plan, schedule, dtype: what was measured.
        origins: by direction, where the numbers of the schedule come from, in words.
        not_taken: a line for each other plan of which numbers were tuned.
        gpu, target: the device's name, and the target whose rates predictions take.
        versions: of Python, CUDA and packages.
        date: of the run.
        checks: comparisons that sh2gen's kernels passed before they were timed.
        interrupted: whether the run ended before everything was measured.
        bound_bytes: per token and channel, what the elementwise bound moves, by direction.
        sizes: in the order in which they were measured.
        efforts: of sh2gen's kernels by direction; none if it runs without kernels.
        outcomes: of all contenders, sh2gen first.
    """

    op: str
    digest: str
    channels: COUNT
    plan: str
    schedule: str
    origins: Mapping[str, str]
    not_taken: tuple[str, ...]
    dtype: str
    gpu: str
    target: str
    versions: Mapping[str, str]
    date: str
    checks: int
    interrupted: bool
    bound_bytes: Mapping[str, POSITIVE]
    sizes: tuple[Size, ...]
    efforts: Mapping[str, Effort]
    outcomes: tuple[Outcome, ...]

    def at(self, size: tuple[int, int]) -> tuple[Outcome, ...]:
        """What was found at one size."""
        return tuple(o for o in self.outcomes if o.size == size)

    def own(self, size: tuple[int, int], direction: str) -> float | None:
        """Microseconds of sh2gen; None where there are none or they are not finite."""
        for outcome in self.at(size):
            if outcome.contender == OWN and direction in outcome.times:
                us = outcome.times[direction].median
                return us if math.isfinite(us) else None
        return None

    def ratio(self, outcome: Outcome, direction: str) -> float | None:
        """How many times as long as sh2gen a contender takes; None where either has no time."""
        if outcome.batch is None or outcome.length is None or direction not in outcome.times:
            return None
        own = self.own((outcome.batch, outcome.length), direction)
        return None if own is None else outcome.times[direction].median / own

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which knows no infinity: None stands for what is not finite."""
        plain: dict[str, Any] = _finite(asdict(self))
        for outcome, entry in zip(self.outcomes, plain["outcomes"], strict=True):
            entry["whole"] = not outcome.without
            ratios = {d: self.ratio(outcome, d) for d in outcome.times}
            entry["over_sh2gen"] = _finite(ratios)
        return plain

    @classmethod
    def from_dict(cls, plain: Any) -> Results:
        """What `to_dict` was of, with NaN for measured numbers that are None.

        Raises:
            ValueError: it is of nothing; names the field.
        """
        values = jsonl.value_of(plain, Mapping[str, Any], "it")
        if isinstance(values.get("outcomes"), list):
            values["outcomes"] = [_own_fields(x, i) for i, x in enumerate(values["outcomes"])]
        found: Results = jsonl.value_of(values, cls, "")
        if problem := next(_misfits(found), None):
            raise ValueError(problem)
        return found


def _own_fields(entry: Any, i: int) -> Any:
    """An outcome without what `to_dict` adds; it writes all fields, those with a default too."""
    if not isinstance(entry, dict):
        return entry
    for name in (one.name for one in fields(Outcome)):
        if name not in entry:
            raise ValueError(f"outcomes[{i}].{name} is missing")
    return {k: v for k, v in entry.items() if k not in ("whole", "over_sh2gen")}


def _misfits(results: Results) -> Iterator[str]:
    """What its annotations do not say of results and holds of all that `run` finds."""
    if not results.op.isidentifier():  # files are named after it
        yield f"op must be the name of an operator, not {json.dumps(results.op)}"
    if not results.sizes:
        yield "sizes must not be empty"
    needed: list[tuple[str, Mapping[str, float], Iterable[str]]] = [
        ("bound_bytes", results.bound_bytes, DIRECTIONS),
        *((f"sizes[{i}].bounds", s.bounds, TIMED) for i, s in enumerate(results.sizes)),
        *((f"outcomes[{i}].shares", o.shares, o.times) for i, o in enumerate(results.outcomes)),
    ]
    for path, values, directions in needed:
        yield from (f"{path}.{d} is missing" for d in directions if d not in values)
    sizes = {s.size for s in results.sizes}
    for i, o in enumerate(results.outcomes):
        if o.size not in sizes and (o.times or o.size != (None, None)):
            found = f"batch {json.dumps(o.batch)} and length {json.dumps(o.length)}"
            yield f"outcomes[{i}] must have batch and length of one of sizes, not {found}"


def read_results(path: Path) -> tuple[Results, ...]:
    """Results from a file of what `bench --json` printed: of one run, or a list of several.

    Raises:
        Sh2genError: C006 if it cannot be read or is something else.
    """
    place, found = "", []
    try:
        plain = jsonl.loads(read_text(path))
        if plain == []:
            raise ValueError("its list is empty")
        for i, one in enumerate(plain if isinstance(plain, list) else [plain]):
            place = f"[{i}]: " if isinstance(plain, list) else ""
            found.append(Results.from_dict(one))
    except OSError as error:
        raise Sh2genError("C006", f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise Sh2genError(
            "C006",
            f"{path} is not what `bench --json` prints: {place}{one_line(str(error))}",
            help="`sh2gen bench OP --json > FILE`, by the same version, writes such a file",
        ) from error
    return tuple(found)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- running ------------------------------------------------------------------------------------


def run(
    path: Path,
    plan: Plan,
    schedule: Schedule,
    target: Target,
    *,
    contenders: Sequence[Contender],
    workloads: Sequence[Workload],
    origins: Mapping[str, str] | None = None,
    not_taken: Sequence[str] = (),
    device: str = "cuda",
    checked: Workload = CHECKED,
    time_limit: float = TIME_LIMIT,
    progress: Progress | None = None,
) -> Results:
    """Verify and time the operator of a generated file, then contenders beside it.

    Args:
        path: the generated file, of this plan and schedule.
        target: whose rates predictions take.
        workloads: the sizes to time at.
        origins, not_taken: as of `Results`.
        device: "cuda"; "cpu" is for tests, and times what a CPU does.
        checked: the size at which contenders are compared with float64, gradients included.
        time_limit: seconds after which a process that has not given its first answer is killed;
            of further ones see `_Asked`.

    After a KeyboardInterrupt, once timing has begun, the results are what was measured so far.

    Raises:
        CheckFailed: V001, a kernel of sh2gen is wrong or does not run; V003, a bound cannot be
            measured. Nothing was timed.
    """
    say = progress or (lambda _: None)
    operator = Operator(path)
    spec = operator.spec
    session = _Session(
        path=path, spec=spec, device=device, checked=checked, limit=time_limit, say=say
    )
    own, finished = own_contender(operator), False
    with closing(session.process()) as asked:
        checks = session.verified(asked, workloads)
        bounds = session.bounds(asked, spec, workloads)
        with suppress(KeyboardInterrupt):
            session.measured(asked, own, Part(spec=spec), bounds)
            asked.close()  # what it has of the GPU's memory is for others
            for contender in contenders:
                session.contend(contender, bounds)
            finished = True
    outcomes = session.found
    if not finished:
        outcomes += _unreached((own, *contenders), workloads, outcomes)
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
        versions=_versions(contenders),
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
            )
            for w, us in bounds.items()
        ),
        efforts=_efforts(spec, plan, schedule, target, max(w.length for w in bounds)),
        outcomes=tuple(outcomes),
    )


def _there(package: str) -> bool:
    """Whether a module can be found; if that is not clear, importing it will tell."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return True


def _versions(contenders: Iterable[Contender]) -> dict[str, str]:
    """Of what times depend on, and of the packages of contenders that are installed."""
    owners = metadata.packages_distributions()
    packages = dict.fromkeys(c.package for c in contenders if c.package)
    return versions() | {p: metadata.version(owners[p][0]) for p in packages if p in owners}


def _predicted(
    spec: OpSpec, plan: Plan, schedule: Schedule, target: Target, workload: Workload
) -> dict[str, float]:
    """Microseconds by direction."""
    found = predictions(spec, plan, schedule, workload, target)
    return {direction: 1e6 * one.seconds for direction, one in found.items()}


def _efforts(
    spec: OpSpec, plan: Plan, schedule: Schedule, target: Target, length: int
) -> dict[str, Effort]:
    """What kernels do that run at a length."""
    found = {}
    for kernel in plan.kernels:
        effort = work(kernel, plan.layout, spec)
        numbers = numbers_on(target, spec, plan, schedule, kernel.name, length)
        sizes = {ROWS: numbers.get("ROWS", 8), BLOCK_T: numbers.get("BLOCK_T", 64)}
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

    def process(self) -> _Asked:
        """A process that is not started yet."""
        worker = python_worker("sh2gen.bench.worker", "its process")
        return _Asked(worker=worker, limit=self.limit)

    def job(self, do: str, spec: OpSpec, contender: str, workload: Workload, **more: Any) -> Job:
        return {
            "do": do,
            "path": str(self.path),
            "spec": spec.to_dict(),
            "contender": contender,
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

    def contend(self, contender: Contender, bounds: Bounds) -> None:
        """Find outcomes of one contender, in a process of its own.

        Args:
            bounds: of the whole, at every size that is measured.
        """

        def none(reason: str) -> None:
            self.found.append(_outcome(contender, (), None, reason=reason))

        found = contender.computes(self.spec)
        if isinstance(found, str):
            return none(f"does not apply: {found}")
        if contender.package is not None and not _there(contender.package):
            return none(f"not installed: there is no module {contender.package}")
        with closing(self.process()) as asked:
            if found.spec.inputs != self.spec.inputs:  # a part has bounds of its own
                try:
                    bounds = self.bounds(asked, found.spec, bounds)
                except CheckFailed as error:  # what was measured of others is not lost for that
                    return none(error.message)
            self.measured(asked, contender, found, bounds)

    def measured(self, asked: _Asked, contender: Contender, part: Part, bounds: Bounds) -> None:
        """Find outcomes of a contender that is there and applies."""
        name, differentiable = contender.name, contender.differentiable
        self.say(f"{name}: comparing with float64 at {_named(self.checked)}")
        job = self.job("check", part.spec, name, self.checked, gradients=differentiable)
        answer = asked.ask(job)
        if reason := _problem(answer):
            self.found.append(_outcome(contender, part.without, None, reason=reason))
            return
        gradient_error = max(answer["gradients"].values(), default=None)
        for workload, us in bounds.items():
            self.at(asked, contender, part, us, workload, gradient_error)

    def at(
        self,
        asked: _Asked,
        contender: Contender,
        part: Part,
        bounds: Mapping[str, float],
        workload: Workload,
        gradient_error: float | None,
    ) -> None:
        """Find the outcome of one contender at one size; of an interrupted one, what there is."""
        name = contender.name

        def found(**values: Any) -> None:
            self.found.append(_outcome(contender, part.without, workload, **values))

        if (fits := contender.fits(part.spec, workload.length)) is not None:
            return found(reason=f"does not apply: {fits}")
        self.say(f"{name}: timing at {_named(workload)}")
        answer = asked.ask(self.job("check", part.spec, name, workload, gradients=False))
        if reason := _problem(answer):
            return found(reason=reason)
        times: dict[str, Timing] = {}
        reasons: dict[str, str] = {}
        memory: dict[str, float] = {}
        captured = True
        try:
            for direction in TIMED:
                if direction != "forward" and not contender.differentiable:
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
            for direction in ("forward", "both"):
                if direction in times:
                    job = self.job("memory", part.spec, name, workload, direction=direction)
                    if (peak := asked.ask(job).get("peak")) is not None:
                        memory[direction] = peak
        finally:
            reasons |= {d: INTERRUPTED for d in TIMED if d not in times and d not in reasons}
            found(
                reason="" if times else reasons["forward"],
                times=times,
                shares={d: bounds[d] / t.median for d, t in times.items()},
                reasons=reasons,
                error=answer["y"],
                gradient_error=gradient_error,
                memory=memory,
                captured=captured,
            )


def _unreached(
    contenders: Iterable[Contender], workloads: Iterable[Workload], found: Sequence[Outcome]
) -> list[Outcome]:
    """Of what an interrupted run did not come to: contenders, and sizes of the last one."""
    lines = []
    for contender in contenders:
        mine = {o.size: o for o in found if o.contender == contender.name}
        if not mine:
            lines.append(_outcome(contender, (), None, reason=INTERRUPTED))
        elif (None, None) not in mine:
            without = next(iter(mine.values())).without
            lines += [
                _outcome(contender, without, w, reason=INTERRUPTED)
                for w in workloads
                if (w.batch, w.length) not in mine
            ]
    return lines


def _outcome(
    contender: Contender,
    without: tuple[str, ...],
    workload: Workload | None,
    **found: Any,
) -> Outcome:
    return Outcome(
        contender=contender.name,
        does=contender.does,
        layout=contender.layout,
        without=without,
        batch=None if workload is None else workload.batch,
        length=None if workload is None else workload.length,
        **found,
    )


def _named(workload: Workload) -> str:
    return f"B={workload.batch} L={workload.length}"


def _problem(answer: Answer) -> str:
    """Why a contender is not timed after this comparison, or nothing."""
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
