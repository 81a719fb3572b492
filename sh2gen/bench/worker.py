"""What `bench` does in processes of their own, which `process.Worker` starts.

A job says what to `do` (verify, bound, check, time, step, memory, decode) with which `baseline`
and `spec`, at which `batch` and `length`, on which `device`; `path` is the generated file. An
answer holds `failed`, why there is no other, whatever a baseline raises; or `retry`, if a call
cannot be captured. Then the process is `broken`: after a CUDA error nothing works in it, and after
too much memory most of it is taken.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sh2gen.base.errors import CheckFailed
from sh2gen.base.process import serve
from sh2gen.bench.baselines import BASELINES
from sh2gen.bench.baselines.base import Baseline, Implementation, Part
from sh2gen.cost.decode import decoding
from sh2gen.graph.reference import reference, reference_gradients, sample_groups
from sh2gen.runtime.measure import (
    Calls,
    Timing,
    activation,
    arguments,
    bound,
    calls,
    host_time,
    io_dtype,
    out_of_memory,
    parameters,
    time_call,
    wall_time,
)
from sh2gen.runtime.operator import Operator, OperatorRunner
from sh2gen.runtime.steps import step_bound, steps, time_steps
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from sh2gen.verify.verify import verify

Job = dict[str, Any]  # plain values
Answer = dict[str, Any]  # plain values

OWN = "sh2gen"
DECODED = (2, 300)  # a prompt and the steps after it, in so many rows
DECODED_ALONE = 7  # steps


def answer(job: Job) -> Answer:
    """The answer to one job; never raises what a baseline raises."""
    try:
        return _JOBS[job["do"]](job)
    except ImportError as error:
        return _failed(f"cannot be imported: {error}")
    except Exception as error:
        if out_of_memory(error):
            return _failed("out of memory")
        return _failed(f"{type(error).__name__}: {error}")


def _failed(why: str) -> Answer:
    return {"failed": one_line(why), "broken": True}


def one_line(text: str, most: int = 240) -> str:
    """A message without line breaks, cut if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."


def _sizes(job: Job) -> tuple[OpSpec, int, int, torch.dtype]:
    spec = spec_from_dict(job["spec"])
    return spec, job["batch"], job["length"], io_dtype(spec)


def _verify(job: Job) -> Answer:
    """Equality of sh2gen's kernels with float64."""
    operator = Operator(Path(job["path"]))
    return _verified(operator, job, "equality", (job["batch"], job["length"]))


def _verified(operator: Operator, job: Job, name: str, shape: tuple[int, int]) -> Answer:
    """What a property of the operator came to at a size."""
    report = verify(
        operator.spec,
        OperatorRunner(operator, "cuda" if job["device"] == "cuda" else "eager"),
        dtype=io_dtype(operator.spec),
        shapes=[shape],
        device=job["device"],
        properties=[name],
        property_shapes=[shape],
    )
    if job["device"] == "cuda":
        torch.cuda.empty_cache()
    try:
        report.require()
    except CheckFailed as error:
        return {"ok": False, "code": error.code, "message": error.message, "help": error.help}
    return {"ok": True, "checks": len(report.checks)}


def _decode(job: Job) -> Answer:
    """The property `decode`; then what a step of so many rows takes, on the GPU and of the host,
    and what its bytes alone take.
    """
    operator = Operator(Path(job["path"]))
    batch, device = job["batch"], job["device"]
    # A prompt and the steps after it; and few steps of so many rows, which may be other kernels.
    checks = 0
    for shape in (DECODED, (batch, DECODED_ALONE)):
        answer = _verified(operator, job, "decode", shape)
        if not answer["ok"]:
            return answer
        checks += answer["checks"]
    answer["checks"] = checks
    made = steps(operator, batch, device)
    if device == "cpu":
        size = batch * decoding(operator.spec).step // 4
        alone = _by_clock(torch.empty(size, dtype=torch.bfloat16).clone)
        step = _by_clock(made[0])
        return answer | {"us": astuple(step), "bound": alone.median, "host": step.median}
    with torch.no_grad():
        host = host_time(made[0])
    found = {"us": astuple(time_steps(made)), "host": host}
    del made
    torch.cuda.empty_cache()
    return answer | found | {"bound": step_bound(operator.spec, batch).median}


def _bound(job: Job) -> Answer:
    spec, batch, length, dtype = _sizes(job)
    if job["device"] == "cpu":
        return {"us": astuple(_by_clock(torch.randn(batch, spec.channels, length).clone))}
    return {"us": astuple(bound(spec, batch, length, dtype, job["direction"]))}


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
    """Microseconds of one direction; `retry` if it cannot be captured."""
    call = getattr(_calls(job), job["direction"])
    if job["device"] == "cpu":
        return {"us": astuple(_by_clock(call))}
    try:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        timing = time_call(call, stream=stream, graph=job["graph"])
    except RuntimeError as error:
        if out_of_memory(error) or not job["graph"]:
            raise
        return {"retry": one_line(str(error)), "broken": True}
    return {"us": astuple(timing)}


def _by_clock(call: Callable[[], Any]) -> Timing:
    """Of a CPU, for tests."""
    call()
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - begin))
    return Timing(*sorted(times))


def _step(job: Job) -> Answer:
    """Wall time of a training step in eager mode: of sh2gen's module, or of a baseline's function
    and autograd.
    """
    _, batch, length, dtype = _sizes(job)
    step = _module_step(job, batch, length, dtype) if job["baseline"] == OWN else None
    step = step or _by_autograd(job).both
    return {"us": astuple(_by_clock(step) if job["device"] == "cpu" else wall_time(step))}


def _module_step(job: Job, batch: int, length: int, dtype: torch.dtype) -> Callable[[], Any]:
    operator = Operator(Path(job["path"]))
    module = operator.module(device=job["device"])
    inputs, _, dy = arguments(operator, batch, length, dtype, job["device"])
    leaves = [*(x.requires_grad_() for x in inputs), *module.parameters()]

    def step() -> Any:
        found = module(*inputs)
        y = found if isinstance(found, Tensor) else found[0]  # beside a state
        return torch.autograd.grad(y, leaves, dy)

    return step


def _memory(job: Job) -> Answer:
    """Peak memory of a call beside inputs and parameters, in activations; of both with dy.

    Of sh2gen too by autograd, which keeps what backward needs.
    """
    if job["device"] == "cpu":
        return {"peak": None}
    made, forward = _by_autograd(job), job["direction"] == "forward"
    call = made.forward if forward else made.both
    call()  # compiles, tunes, and fills caches
    gc.collect()  # else tensors in cycles of objects count before the call, and not after it
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    grown = torch.cuda.max_memory_allocated() - before
    activation_bytes = made.dy.numel() * made.dy.element_size()
    return {"peak": grown / activation_bytes + (0 if forward else 1)}


def _drawn(
    spec: OpSpec, batch: int, length: int, dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Inputs (B, D, L), parameters and dy: the same for every baseline that computes `spec`."""
    torch.manual_seed(0)
    shape = (batch, spec.channels, length)
    inputs = {n: torch.randn(shape, device=device).to(dtype) for n in spec.inputs}
    weights = parameters(spec, device)
    return inputs, weights, torch.randn(shape, device=device).to(dtype)


def own_baseline(operator: Operator) -> Baseline:
    """sh2gen's kernels as a baseline like others."""
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
    return Baseline(
        name=OWN,
        does="the kernels of this operator",
        layout=operator.layout,
        computes=lambda spec: Part(spec=spec),
        prepare=lambda spec, length, dtype: way,
    )


def _implementation(job: Job) -> Implementation:
    spec, _, length, dtype = _sizes(job)
    own = job["baseline"] == OWN
    baseline = own_baseline(Operator(Path(job["path"]))) if own else BASELINES[job["baseline"]]
    return baseline.prepare(spec, length, dtype)


def _calls(job: Job) -> Calls:
    """What is timed of sh2gen or of a baseline."""
    _, batch, length, dtype = _sizes(job)
    if job["baseline"] == OWN:
        return calls(Operator(Path(job["path"])), batch, length, dtype, job["device"])
    return _by_autograd(job)


def _by_autograd(job: Job) -> Calls:
    spec, batch, length, dtype = _sizes(job)
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
    "step": _step,
    "memory": _memory,
    "decode": _decode,
}


def main() -> None:
    """Answer jobs, as `process.serve` does."""
    serve(answer)
