"""One operator on one GPU beside other ways of computing it (layer 6).

`run` compares every contender with float64 and then times it, each in a child process of its own:
a kernel that faults takes its process with it, and what one package leaves in memory or changes in
torch reaches no other. Jobs and answers are JSON over a pipe. What cannot run is a line with the
reason; only a wrong kernel of sh2gen itself is an error, and then nothing is timed.

A share is the time of an elementwise kernel of this run that reads and writes the same activations
over the contender's time. Times are medians with the 20th and 80th percentiles, of the GPU alone
where a call can be captured in a CUDA graph (sh2gen.measure).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import platform
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sh2gen.contenders import CONTENDERS, Contender, Implementation, Part
from sh2gen.cost import BLOCK_T, ROWS, numbers_on, predictions, work
from sh2gen.errors import CheckFailed
from sh2gen.measure import Calls, Timing, activation, calls, elementwise, parameters, time_call
from sh2gen.operator import Operator, OperatorRunner
from sh2gen.plan import Plan
from sh2gen.reference import reference, reference_gradients, sample_groups
from sh2gen.schedule import Schedule
from sh2gen.spec import OpSpec, Workload, spec_from_dict
from sh2gen.target import Target
from sh2gen.verify import verify

Progress = Callable[[str], None]  # what happens next
Job = dict[str, Any]  # plain values
Answer = dict[str, Any]  # plain values; `failed`: why there is no other

OWN = "sh2gen"
TIMED = ("forward", "backward", "both")
CHECKED = Workload(batch=2, length=1024)  # where output and all gradients are compared
WRONG = 0.02  # relative error in the 2-norm; rounding once to bfloat16 costs 0.0017
TIME_LIMIT = 600.0  # seconds an answer


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
    shares: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    error: float | None = None
    gradient_error: float | None = None
    memory: Mapping[str, float] = field(default_factory=dict)
    captured: bool = True

    @property
    def size(self) -> tuple[int | None, int | None]:
        return self.batch, self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Bounds and predictions of the whole operator at one size, in microseconds by direction."""

    batch: int
    length: int
    bounds: Mapping[str, float]
    predicted: Mapping[str, float]

    @property
    def size(self) -> tuple[int, int]:
        return self.batch, self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Work of one kernel of sh2gen per token and channel, for the roofline."""

    bytes: float
    flops: float  # outside of matrix products
    product_flops: float

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return (self.flops + self.product_flops) / self.bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything that `run` found.

    Attributes:
        op, digest, channels, plan, schedule, dtype: what was measured.
        gpu, target: the device's name, and the target whose rates predictions take.
        versions: of Python and packages.
        date: of the run.
        checks: comparisons that sh2gen's kernels passed before they were timed.
        sizes: in the order in which they were measured.
        efforts: of sh2gen's kernels by direction; none if it runs without kernels.
        outcomes: of all contenders, sh2gen first.
    """

    op: str
    digest: str
    channels: int
    plan: str
    schedule: str
    dtype: str
    gpu: str
    target: str
    versions: Mapping[str, str]
    date: str
    checks: int
    sizes: tuple[Size, ...]
    efforts: Mapping[str, Effort]
    outcomes: tuple[Outcome, ...]

    def at(self, size: tuple[int, int]) -> tuple[Outcome, ...]:
        """What was found at one size."""
        return tuple(o for o in self.outcomes if o.size == size)

    def own(self, size: tuple[int, int], direction: str) -> float | None:
        """Microseconds of sh2gen."""
        for outcome in self.at(size):
            if outcome.contender == OWN and direction in outcome.times:
                return outcome.times[direction].median
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
        device: "cuda"; "cpu" is for tests, and times what a CPU does.
        checked: the size at which contenders are compared with float64, gradients included.
        time_limit: seconds after which a child that has not answered is killed.

    Raises:
        CheckFailed: V001, a kernel of sh2gen is wrong or does not run; nothing was timed.
    """
    say = progress or (lambda _: None)
    operator = Operator(path)
    spec = operator.spec
    session = _Session(
        path=path, spec=spec, device=device, checked=checked, limit=time_limit, say=say
    )
    outcomes: list[Outcome] = []
    with session.child() as child:
        checks = session.verified(child, workloads)
        bounds = {
            (w.batch, w.length): session.bounds(child, len(spec.inputs), w) for w in workloads
        }
        whole = Part(spec=spec)
        outcomes += session.measured(child, _own(operator), whole, bounds, workloads)
    for contender in contenders:
        outcomes += session.outcomes(contender, bounds, workloads)
    on_gpu = device == "cuda"
    return Results(
        op=spec.op,
        digest=spec.digest,
        channels=spec.channels,
        plan=plan.name,
        schedule=str(schedule),
        dtype=spec.dtype.io.value,
        gpu=torch.cuda.get_device_name() if on_gpu else "CPU",
        target=target.name,
        versions=_versions(contenders),
        date=time.strftime("%Y-%m-%d"),
        checks=checks,
        sizes=tuple(_size(spec, plan, schedule, target, w, bounds) for w in workloads),
        efforts=_efforts(spec, plan, schedule, target),
        outcomes=tuple(outcomes),
    )


def _there(package: str) -> bool:
    """Whether a module can be found; if that is not clear, importing it will tell."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return True


def _versions(contenders: Iterable[Contender]) -> dict[str, str]:
    """Of Python, torch, triton and the packages of contenders that are installed."""
    owners = metadata.packages_distributions()
    modules = dict.fromkeys(["torch", "triton", *(c.package for c in contenders if c.package)])
    return {"python": platform.python_version()} | {
        module: metadata.version(owners[module][0]) for module in modules if module in owners
    }


def _size(
    spec: OpSpec,
    plan: Plan,
    schedule: Schedule,
    target: Target,
    workload: Workload,
    bounds: Mapping[tuple[int, int], Mapping[str, float]],
) -> Size:
    predicted = {
        direction: prediction.seconds * 1e6
        for direction, prediction in predictions(spec, plan, schedule, workload, target).items()
    }
    return Size(
        batch=workload.batch,
        length=workload.length,
        bounds=bounds[workload.batch, workload.length],
        predicted=predicted,
    )


def _efforts(spec: OpSpec, plan: Plan, schedule: Schedule, target: Target) -> dict[str, Effort]:
    found = {}
    for kernel in plan.kernels:
        effort = work(kernel, plan.layout, spec.dtype.io)
        numbers = numbers_on(target, schedule, kernel.name)
        sizes = {ROWS: numbers.get("ROWS", 8), BLOCK_T: numbers.get("BLOCK_T", 64)}
        found[kernel.name] = Effort(
            bytes=float(effort.bytes),
            flops=float(effort.flops.subs(sizes)),
            product_flops=float(effort.tensor_flops.subs(sizes)),
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    """What all jobs of one run have in common."""

    path: Path
    spec: OpSpec
    device: str
    checked: Workload
    limit: float
    say: Progress

    @contextlib.contextmanager
    def child(self) -> Iterator[_Child]:
        child = _Child()
        try:
            yield child
        finally:
            child.close()

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

    def verified(self, child: _Child, workloads: Sequence[Workload]) -> int:
        """How many comparisons of sh2gen's own kernels were made, all of which passed."""
        self.say(f"{self.spec.op}: verifying its kernels at every size")
        sizes = (Workload(batch=2, length=37), self.checked, *workloads)
        shapes = list(dict.fromkeys((w.batch, w.length) for w in sizes))
        job = self.job("verify", self.spec, OWN, self.checked, shapes=shapes)
        answer = child.ask(job, self.limit * len(shapes))
        if "failed" in answer:
            raise CheckFailed(
                "V001", f"{self.spec.op}: its kernels do not run: {answer['failed']}"
            )
        if not answer["ok"]:
            raise CheckFailed(answer["code"], answer["message"], help=answer["help"])
        return int(answer["checks"])

    def bounds(self, child: _Child, inputs: int, workload: Workload) -> dict[str, float]:
        """Microseconds of elementwise kernels that move the activations of so many inputs."""
        found = {}
        for direction, reads, writes in (
            ("forward", inputs, 1),
            ("backward", inputs + 1, inputs),
        ):
            job = self.job("bound", self.spec, OWN, workload, reads=reads, writes=writes)
            answer = child.ask(job, self.limit)
            if "failed" in answer:
                raise CheckFailed("V003", f"no bound at {_named(workload)}: {answer['failed']}")
            found[direction] = answer["us"][1]
        return found | {"both": sum(found.values())}

    def outcomes(
        self,
        contender: Contender,
        bounds: Mapping[tuple[int, int], Mapping[str, float]],
        workloads: Sequence[Workload],
    ) -> list[Outcome]:
        """Of one contender, in a child of its own."""

        def none(reason: str, without: tuple[str, ...] = ()) -> list[Outcome]:
            return [_outcome(contender, without, None, reason=reason)]

        found = contender.computes(self.spec)
        if isinstance(found, str):
            return none(f"does not apply: {found}")
        if contender.package is not None and not _there(contender.package):
            return none(f"not installed: there is no module {contender.package}")
        with self.child() as child:
            own = bounds
            if len(found.spec.inputs) != len(self.spec.inputs):  # a part has bounds of its own
                own = {
                    (w.batch, w.length): self.bounds(child, len(found.spec.inputs), w)
                    for w in workloads
                }
            return self.measured(child, contender, found, own, workloads)

    def measured(
        self,
        child: _Child,
        contender: Contender,
        part: Part,
        bounds: Mapping[tuple[int, int], Mapping[str, float]],
        workloads: Sequence[Workload],
    ) -> list[Outcome]:
        """Outcomes of a contender that is there and applies."""
        name, differentiable = contender.name, contender.differentiable
        self.say(f"{name}: comparing with float64 at {_named(self.checked)}")
        job = self.job("check", part.spec, name, self.checked, gradients=differentiable)
        answer = child.ask(job, self.limit)
        if reason := _problem(answer):
            return [_outcome(contender, part.without, None, reason=reason)]
        gradient_error = max(answer["gradients"].values(), default=None)
        return [
            self.at(child, contender, part, bounds[w.batch, w.length], w, gradient_error)
            for w in workloads
        ]

    def at(
        self,
        child: _Child,
        contender: Contender,
        part: Part,
        bounds: Mapping[str, float],
        workload: Workload,
        gradient_error: float | None,
    ) -> Outcome:
        """One contender at one size."""
        name = contender.name
        if (fits := contender.fits(part.spec, workload.length)) is not None:
            reason = f"does not apply: {fits}"
            return _outcome(contender, part.without, workload, reason=reason)
        self.say(f"{name}: timing at {_named(workload)}")
        check = self.job("check", part.spec, name, workload, gradients=False)
        answer = child.ask(check, self.limit)
        if reason := _problem(answer):
            return _outcome(contender, part.without, workload, reason=reason)
        times, reasons, memory, captured = {}, {}, {}, True
        for direction in TIMED:
            if direction != "forward" and not contender.differentiable:
                reasons[direction] = "it has no backward"
                continue
            job = self.job("time", part.spec, name, workload, direction=direction, graph=True)
            found = child.ask(job, self.limit)
            if found.get("retry"):  # it cannot be captured
                found, captured = child.ask(job | {"graph": False}, self.limit), False
            if "failed" in found:
                reasons[direction] = found["failed"]
                continue
            low, median, high = found["us"]
            times[direction] = Timing(median=median, low=low, high=high)
            if found["memory"] is not None:
                memory[direction] = found["memory"]
        return _outcome(
            contender,
            part.without,
            workload,
            reason="" if times else reasons["forward"],
            times=times,
            shares={d: bounds[d] / t.median for d, t in times.items()},
            reasons=reasons,
            error=answer["y"],
            gradient_error=gradient_error,
            memory=memory,
            captured=captured,
        )


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


class _Child:
    """A process that answers jobs: started for the first, and anew after one that failed."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Connection | None = None
        self._log = tempfile.NamedTemporaryFile(prefix="sh2gen-", suffix=".log")  # noqa: SIM115

    def ask(self, job: Job, limit: float) -> Answer:
        """The answer to a job, in which `failed` says why there is none."""
        if self._process is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send_bytes(json.dumps(job).encode())
            if not self._pipe.poll(limit):
                self._end()
                return {"failed": f"no answer in {limit:g} s"}
            answer: Answer = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            return {"failed": self._last_words()}
        if "failed" in answer or "retry" in answer:
            self._end()  # after a CUDA error nothing works; after too much memory, most is taken
        return answer

    def close(self) -> None:
        """End the process for good."""
        self._end()
        self._log.close()

    def _start(self) -> None:
        context = get_context("spawn")  # CUDA does not survive a fork
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._log.name))
        self._process.start()
        theirs.close()  # so that the pipe ends with the process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _last_words(self) -> str:
        self._process.join(10)
        code = self._process.exitcode
        self._end()
        how = f"status {code}"
        if code is not None and code < 0:
            how = signal.Signals(-code).name
        text = Path(self._log.name).read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return _short(f"its process died ({how})" + (f": {lines[-1]}" if lines else ""))


def _short(text: str, most: int = 240) -> str:
    """One line of a message."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."


# ---- in a child ---------------------------------------------------------------------------------


def serve(pipe: Connection, log: str) -> None:
    """Answer jobs until the pipe closes. What packages print goes to the file `log`."""
    with open(log, "wb", buffering=0) as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    while True:
        try:
            job: Job = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        if job["device"] == "cpu":
            torch.set_num_threads(1)  # tests run side by side
        pipe.send_bytes(json.dumps(answer(job)).encode())


def answer(job: Job) -> Answer:
    """The answer to one job; never raises what a contender raises."""
    try:
        return _JOBS[job["do"]](job)
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    except ImportError as error:
        return {"failed": _short(f"cannot be imported: {error}")}
    except Exception as error:
        return {"failed": _short(f"{type(error).__name__}: {error}")}


def _sizes(job: Job) -> tuple[OpSpec, int, int, torch.dtype]:
    spec = spec_from_dict(job["spec"])
    return spec, job["batch"], job["length"], getattr(torch, spec.dtype.io.value)


def _verify(job: Job) -> Answer:
    """Equality of sh2gen's kernels with float64 at every shape."""
    operator = Operator(Path(job["path"]))
    dtype = getattr(torch, operator.spec.dtype.io.value)
    report = verify(
        operator.spec,
        OperatorRunner(operator, job["device"]),
        dtype=dtype,
        shapes=[(batch, length) for batch, length in job["shapes"]],
        device=job["device"],
        properties=["equality"],
    )
    if job["device"] == "cuda":
        torch.cuda.empty_cache()
    try:
        report.require()
    except CheckFailed as error:
        return {"ok": False, "code": error.code, "message": error.message, "help": error.help}
    return {"ok": True, "checks": len(report.checks)}


def _bound(job: Job) -> Answer:
    spec, batch, length, dtype = _sizes(job)
    elements, reads, writes = batch * length * spec.channels, job["reads"], job["writes"]
    if job["device"] == "cuda":
        return {"us": _numbers(elementwise((elements,), dtype, reads, writes))}
    inputs = [torch.randn(elements).to(dtype) for _ in range(reads)]

    def product() -> list[Tensor]:
        value = inputs[0].clone()
        for x in inputs[1:]:
            value *= x
        return [value.clone() for _ in range(writes)]

    return {"us": _numbers(_by_clock(product))}


def _check(job: Job) -> Answer:
    """Errors of y, and of every gradient if they are asked for, relative to float64.

    Of large sizes some whole groups are compared, over all of time.
    """
    spec, batch, length, dtype = _sizes(job)
    device = torch.device(job["device"])
    way = _implementation(job)
    inputs, weights, dy = _drawn(spec, batch, length, dtype, device)
    leaves = inputs | weights
    gradients: dict[str, Tensor] = {}
    with torch.set_grad_enabled(job["gradients"]):
        for leaf in leaves.values():
            leaf.requires_grad_(job["gradients"])
        y = way.canonical(way.call(way.convert(inputs, weights)))
        if y.shape != dy.shape:
            raise ValueError(f"y has shape {tuple(y.shape)}, expected {tuple(dy.shape)}")
        if job["gradients"]:
            found = torch.autograd.grad(y, list(leaves.values()), dy.to(y.dtype))
            gradients = dict(zip(leaves, found, strict=True))
    groups = _groups(spec, batch, length, device)

    def doubles(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        some = sample_groups(spec, {n: x.detach() for n, x in tensors.items()}, groups)
        return {name: x.double() for name, x in some.items()}

    acts, params = doubles(inputs), doubles(weights)
    above = doubles({"dy": dy})["dy"]
    results = doubles({"y": y} | gradients)
    del y, gradients, inputs, leaves, dy
    method: Any = "direct" if (spec.filter.length or length) <= 256 else "fft"
    if job["gradients"]:
        value, exact = reference_gradients(spec, acts, params, above, method=method, groups=groups)
    else:
        value, exact = reference(spec, acts, params, method=method, groups=groups), {}
    errors = {name: _error(results[name], x) for name, x in ({"y": value} | exact).items()}
    return {"y": errors.pop("y"), "gradients": errors}


def _error(found: Tensor, exact: Tensor) -> float:
    size = float(exact.norm().item()) or 1.0
    return float((found - exact).norm().item()) / size


def _groups(spec: OpSpec, batch: int, length: int, device: torch.device) -> tuple[int, ...]:
    """All groups if a float64 reference of them is affordable, else some over the whole width."""
    budget = 1 << (18 if device.type == "cpu" else 22)  # elements
    total = spec.filter.groups
    count = min(total, max(2, budget // (batch * length * spec.group_width)))
    return tuple(sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(count)}))


def _time(job: Job) -> Answer:
    """Microseconds of one direction, and its memory; `retry` if it cannot be captured."""
    made, direction = _calls(job), job["direction"]
    call = getattr(made, direction)
    if job["device"] == "cpu":
        return {"us": _numbers(_by_clock(call)), "memory": None}
    memory = None
    if direction != "backward":  # which belongs to the stream of its first call
        call()  # compiles, tunes, and fills caches
        memory = _memory(made, call, direction)
    try:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        timing = time_call(call, stream=stream, graph=job["graph"])
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not job["graph"]:
            raise
        return {"retry": _short(str(error))}
    return {"us": _numbers(timing), "memory": memory}


def _numbers(timing: Timing) -> list[float]:
    return [timing.low, timing.median, timing.high]


def _by_clock(call: Callable[[], Any], repeats: int = 3) -> Timing:
    """Of a CPU, for tests."""
    call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - begin))
    low, median, high = sorted(times)
    return Timing(median=median, low=low, high=high)


def _memory(made: Calls, call: Callable[[], Any], direction: str) -> float:
    """Peak memory of a call over the bytes that it takes and gives."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    given = _bytes(call())
    torch.cuda.synchronize()
    grown = torch.cuda.max_memory_allocated() - before
    taken = _bytes(made.tensors) + (0 if direction == "forward" else _bytes(made.dy))
    return (taken + grown) / (taken + given)


def _bytes(tensors: Tensor | Iterable[Tensor | None]) -> int:
    several = (tensors,) if isinstance(tensors, Tensor) else tensors
    return sum(x.numel() * x.element_size() for x in several if x is not None)


def _drawn(
    spec: OpSpec, batch: int, length: int, dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Inputs (B, D, L), parameters and dy: the same for every contender that computes `spec`."""
    torch.manual_seed(0)
    shape = (batch, spec.channels, length)
    inputs = {n: torch.randn(shape, device=device).to(dtype) for n in spec.inputs}
    weights = parameters(spec, device)
    return inputs, weights, torch.randn(shape, device=device).to(dtype)


def _own(operator: Operator) -> Contender:
    """sh2gen's kernels as a contender like others."""
    last = operator.layout == "BLD"

    def convert(inputs: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
        made = dict(weights)
        for name, x in inputs.items():
            like = activation(operator, x.shape[0], x.shape[2], x.dtype, x.device)
            made[name] = like.copy_(x.transpose(1, 2) if last else x)
        return made

    def call(tensors: dict[str, Tensor]) -> Tensor:
        weights = {p.name: tensors[p.name] for p in operator.spec.parameters}
        found = operator(*(tensors[name] for name in operator.spec.inputs), **weights)
        y: Tensor = found if isinstance(found, Tensor) else found[0]  # beside a state
        return y

    way = Implementation(
        convert=convert, call=call, canonical=lambda y: y.transpose(1, 2) if last else y
    )
    return Contender(
        name=OWN,
        does="the kernels of this operator",
        layout=operator.layout,
        computes=lambda spec: Part(spec=spec),
        prepare=lambda spec, length, dtype: way,
    )


def _implementation(job: Job) -> Implementation:
    spec, _, length, dtype = _sizes(job)
    own = job["contender"] == OWN
    contender = _own(Operator(Path(job["path"]))) if own else CONTENDERS[job["contender"]]
    return contender.prepare(spec, length, dtype)


def _calls(job: Job) -> Calls:
    """What is timed of sh2gen or of a contender."""
    spec, batch, length, dtype = _sizes(job)
    if job["contender"] == OWN:
        return calls(Operator(Path(job["path"])), batch, length, dtype, job["device"])
    inputs, weights, _ = _drawn(spec, batch, length, dtype, torch.device(job["device"]))
    wants = job["direction"] != "forward"
    return calls_of(_implementation(job), inputs, weights, gradients=wants)


def calls_of(
    way: Implementation,
    inputs: dict[str, Tensor],
    weights: dict[str, Tensor],
    *,
    gradients: bool = True,
) -> Calls:
    """An implementation on its own tensors; backward and both are by autograd.

    Args:
        gradients: False leaves out what only a backward needs.
    """
    for x in (*inputs.values(), *weights.values()):
        x.requires_grad_(gradients)
    made = way.convert(inputs, weights)
    # What does not depend on inputs or parameters has no gradient.
    tensors = {n: x.detach().requires_grad_(x.requires_grad) for n, x in made.items()}
    del made
    leaves = [x for x in tensors.values() if x.requires_grad]

    def forward() -> Tensor:
        with torch.no_grad():
            return way.call(tensors)

    dy = torch.randn_like(forward())
    kept: list[Tensor] = []

    def backward() -> Any:
        if not kept:  # of the first call, so that forward ran on the stream that times it
            kept.append(way.call(tensors))
        return torch.autograd.grad(kept[0], leaves, dy, retain_graph=True)

    def both() -> Any:
        return torch.autograd.grad(way.call(tensors), leaves, dy)

    return Calls(
        forward=forward, backward=backward, both=both, tensors=tuple(tensors.values()), dy=dy
    )


_JOBS: dict[str, Callable[[Job], Answer]] = {
    "verify": _verify,
    "bound": _bound,
    "check": _check,
    "time": _time,
}


# ---- as text ------------------------------------------------------------------------------------


def table(results: Results) -> str:
    """Everything for a person: a table for each size, then what has no time and why."""
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    lines = [
        f"{results.op}: D = {results.channels}, {results.dtype}, {results.plan}, on {results.gpu}",
        f"{results.schedule}",
        f"{versions}, {results.date}; {results.checks} checks against float64 passed",
    ]
    for size in results.sizes:
        bounds = ", ".join(f"{d} {size.bounds[d]:.1f}" for d in TIMED)
        said = ", ".join(f"{d} {us:.1f}" for d, us in size.predicted.items())
        lines += [
            "",
            f"B = {size.batch}, L = {size.length}; elementwise bounds in us: {bounds}; "
            f"predicted for {results.target}: {said}",
        ]
        rows = [_cells(results, o) for o in results.at(size.size) if o.times]
        lines += _aligned([_HEAD, *rows])
    lines += ["", "  +- half of what lies between the 20th and the 80th percentile"]
    lines += ["  x  times as long as sh2gen; memory: peak over what a call takes and gives"]
    if any(not o.captured for o in results.outcomes):
        lines += ["  *  timed without a CUDA graph: the host's time may be in it"]
    lines += ["", *_meanings(results)]
    notes = _notes(results)
    return "\n".join([*lines, *(["", "Without a time:", *notes] if notes else [])])


_HEAD = [
    "",
    "layout",
    *(word for d in TIMED for word in (f"{d} us", "share", "x")),
    "error y",
    "gradients",
    "memory",
]


def _cells(results: Results, outcome: Outcome) -> list[str]:
    star = "" if outcome.captured else "*"
    part_ = " (part)" if outcome.without else ""
    cells = [outcome.contender + part_ + star, outcome.layout]
    for direction in TIMED:
        timing = outcome.times.get(direction)
        if timing is None:
            cells += ["-", "", ""]
            continue
        ratio = results.ratio(outcome, direction)
        spread = (timing.high - timing.low) / 2 / timing.median
        cells += [
            f"{timing.median:.1f} +-{100 * spread:.0f}%",
            f"{outcome.shares[direction]:.2f}",
            "" if ratio is None else f"{ratio:.2f}",
        ]
    for error in (outcome.error, outcome.gradient_error):
        cells.append("" if error is None else f"{error:.1e}")
    return [*cells, " / ".join(f"{outcome.memory[d]:.2f}" for d in TIMED if d in outcome.memory)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = 2  # columns of words
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _meanings(results: Results) -> list[str]:
    """What every contender that was timed is, and which part it computes."""
    lines = {}
    for o in results.outcomes:
        if o.times:
            part_ = f"; a part: without {', '.join(o.without)}" if o.without else ""
            lines[o.contender] = f"  {o.contender}: {o.does}{part_}"
    return list(lines.values())


def _notes(results: Results) -> list[str]:
    """Of contenders, sizes and directions that were not timed, equal ones together."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for o in results.outcomes:
        if o.reason:
            found.setdefault((o.contender, o.reason), []).append(o)
            continue
        reasons = dict(o.reasons)
        if reasons.get("both") == reasons.get("backward"):
            reasons.pop("both", None)
        for direction, reason in reasons.items():
            text = f"{direction}: {reason}"
            found.setdefault((o.contender, text), []).append(o)
    notes = []
    for (name, text), several in found.items():
        sizes = [f"B={o.batch} L={o.length}" for o in several if o.batch is not None]
        some = sizes and len(sizes) < len(results.sizes)
        notes.append(f"  {name}{' at ' + ', '.join(sizes) if some else ''}: {text}")
    return notes
