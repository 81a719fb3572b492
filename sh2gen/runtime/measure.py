"""Timing on a GPU, and the bounds that times are judged by.

A time is the median over replays of a CUDA graph, with the L2 cache flushed before each
(triton.testing.do_bench).
A bound is an elementwise kernel of this run on this GPU that moves the same bytes and computes
nothing worth mentioning: no fused operator can be faster than it by more than noise.
"""

from __future__ import annotations

import ctypes
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sh2gen.base.jsonl import POSITIVE
from sh2gen.base.versions import installed
from sh2gen.cost.cost import moved
from sh2gen.runtime.operator import Operator
from sh2gen.spec.language import Sequences
from sh2gen.spec.operator import OpSpec

try:
    import triton
    import triton.language as tl
    from triton.testing import do_bench
except ImportError:  # what was measured elsewhere can be read here
    triton = SimpleNamespace(jit=lambda function: function)

Device = torch.device | str


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of one call: the 20th percentile, the median, and the 80th percentile."""

    low: POSITIVE
    median: POSITIVE
    high: POSITIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """One way of computing an operator at one size, ready to be timed.

    Attributes:
        forward: computes y, as for training.
        backward: computes every gradient from a forward that has been.
        both: a forward, and the backward of it.
        tensors: everything that a forward takes.
        dy: the gradient that arrives from above.
    """

    forward: Callable[[], Any]
    backward: Callable[[], Any]
    both: Callable[[], Any]
    tensors: tuple[Tensor, ...]
    dy: Tensor


def io_dtype(spec: OpSpec) -> torch.dtype:
    """Of activations."""
    found: torch.dtype = getattr(torch, spec.dtype.io.value)
    return found


def activation(
    operator: Operator, batch: int, length: int, dtype: torch.dtype, device: Device = "cuda"
) -> Tensor:
    """N(0, 1) in the layout of an operator, as its own outputs lie in memory."""
    like = torch.empty((batch, operator.spec.channels, 1), device=device, dtype=dtype)
    if operator.layout == "BLD":
        like = like.transpose(1, 2)
    made: Tensor = operator.namespace.allocate(like, length)
    return made.normal_()


def parameters(spec: OpSpec, device: Device = "cuda") -> dict[str, Tensor]:
    """Random float32 parameters by name; log-poles are negative."""
    drawn = {p.name: torch.randn(p.shape, device=device) * 0.3 for p in spec.parameters}
    if "log_poles" in drawn:
        drawn["log_poles"].abs_().neg_()
    return drawn


def arguments(
    operator: Operator, batch: int, length: int, dtype: torch.dtype, device: Device = "cuda"
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Random inputs, parameters and an upstream gradient of one call of an operator."""
    inputs = [activation(operator, batch, length, dtype, device) for _ in operator.spec.inputs]
    drawn = list(parameters(operator.spec, device).values())
    return inputs, drawn, activation(operator, batch, length, dtype, device)


def document_lengths(length: int, median: float = 1000.0, sigma: float = 1.0) -> list[int]:
    """Documents that fill a row of so many steps: of log-normal lengths, always the same."""
    rng = torch.Generator().manual_seed(0)
    found: list[int] = []
    while (left := length - sum(found)) > 0:
        drawn = median * torch.exp(sigma * torch.randn((), generator=rng)).item()
        found.append(min(left, max(1, round(drawn))))
    return found


def documents_of(
    operator: Operator, x: Tensor, lengths: Sequence[int] | None = None
) -> tuple[list[Tensor], list[int]]:
    """What library ops of an operator of packed sequences take, behind parameters, of documents of
    these lengths; absent: of `document_lengths`.

    Returns:
        Tensors, and numbers.
    """
    names = operator.namespace
    steps = x.shape[names.TIME]
    lengths = document_lengths(steps) if lengths is None else lengths
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32).to(x.device)
    if hasattr(names, "documents_of"):
        return names.documents_of(x, ends), []
    return [ends], [max(lengths)]


def calls(
    operator: Operator,
    batch: int,
    length: int,
    dtype: torch.dtype,
    device: Device = "cuda",
    documents: Sequence[int] | None = None,
) -> Calls:
    """The library ops of a generated file on random tensors: what autograd would call.

    Of an operator of packed sequences all of the batch lies in one row, which holds documents of
    these lengths, absent: of `document_lengths`.

    Of an operator with a state these are the ops that take it, as a call of the operator does: it
    is zero here, and so is the gradient of the state after the sequence. `tensors` end with it.
    There are no such ops for a CPU.
    """
    packed = operator.spec.sequences is Sequences.PACKED
    if packed:
        batch, length = 1, batch * length
    inputs, weights, dy = arguments(operator, batch, length, dtype, device)
    namespace = operator.namespace
    numbers: list[int] = []
    if packed:
        own, numbers = documents_of(operator, inputs[0], documents)
        weights = [*weights, *own]
    if operator.spec.state is not None:
        weights += namespace.past_for_kernels(namespace.zero_state_like(inputs[0]), inputs[0])
    if hasattr(namespace, "stateful_op"):
        return _stateful_calls(namespace, inputs, weights, dy)
    # Of a plan that saves states, forward is that of training: it keeps them.
    keep = [True] if operator.plan.endswith("/save-states") else []
    ladder = [0, None] if operator.spec.filter.decay is not None else []
    ladder += numbers

    def forward() -> Any:
        return namespace.forward_op(*inputs, *weights, *ladder, *keep)

    saved = list(forward())[1:] if "/save-" in operator.plan else []

    def backward() -> Any:
        return namespace.backward_op(dy, *inputs, *weights, *saved, *ladder)

    def both() -> Any:
        forward()
        return backward()

    return Calls(forward=forward, backward=backward, both=both, tensors=(*inputs, *weights), dy=dy)


def _stateful_calls(
    namespace: ModuleType, inputs: list[Tensor], weights: list[Tensor], dy: Tensor
) -> Calls:
    """The same of an operator whose kernels take the state before a sequence and give the one
    after it.
    """
    tensors = (*inputs, *weights)

    def forward() -> Any:
        return namespace.stateful_op(*tensors, True)  # keeps what backward reads

    _, leaving, saved = forward()
    d_leaving = torch.zeros_like(leaving)

    def backward() -> Any:
        return namespace.stateful_backward_op(dy, d_leaving, *tensors, saved)

    def both() -> Any:
        forward()
        return backward()

    return Calls(forward=forward, backward=backward, both=both, tensors=tensors, dy=dy)


def time_call(
    call: Callable[[], Any],
    warmup_ms: int = 20,
    repeat_ms: int = 80,
    *,
    stream: torch.cuda.Stream | None = None,
    graph: bool = True,
) -> Timing:
    """Time the GPU work of a call: it is captured in a CUDA graph, and replays of that are timed.

    So the time of the host, which runs ahead of the GPU in any real program, is not in it.

    Args:
        call: launches work on the current stream, the same each time.
        warmup_ms, repeat_ms: do_bench's budgets.
        stream: where the call runs and is captured, by default streams of its own. Autograd runs
            a backward on the stream of its forward: a capture has to be on that one.
        graph: False times the calls themselves, for what cannot be captured. A short one is then
            bound by the host.
    """
    side = torch.cuda.Stream() if stream is None else stream  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()  # compiles, and fills caches that a capture may not
    torch.cuda.current_stream().wait_stream(side)
    quantiles = [0.2, 0.5, 0.8]
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured, stream=stream):
            call()
        found = do_bench(captured.replay, warmup=warmup_ms, rep=repeat_ms, quantiles=quantiles)
    else:
        with torch.cuda.stream(side):
            found = do_bench(call, warmup=warmup_ms, rep=repeat_ms, quantiles=quantiles)
    return Timing(*(1e3 * milliseconds for milliseconds in found))


def host_time(call: Callable[[], Any], repeats: int = 50) -> float:
    """Microseconds that the host needs to issue a call, with the GPU idle before: the median."""
    times = []
    call()
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    torch.cuda.synchronize()
    return 1e6 * statistics.median(times)


def wall_time(call: Callable[[], Any], rounds: int = 15, budget: float = 3.0) -> Timing:
    """Microseconds that a call takes among others like it, as in a training loop: whichever of the
    host and the GPU takes longer. Of rounds of ten calls, at whose end the GPU is waited for;
    three of these at least, even if they take longer than `budget` seconds.
    """
    each = 10
    times: list[float] = []
    for _ in range(3):
        call()
    end = time.perf_counter() + budget
    while len(times) < 3 or (len(times) < rounds and time.perf_counter() < end):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(each):
            call()
        torch.cuda.synchronize()
        times.append(1e6 * (time.perf_counter() - begin) / each)
    low, middle, high = (sorted(times)[round(q * (len(times) - 1))] for q in (0.2, 0.5, 0.8))
    return Timing(low, middle, high)


@triton.jit  # type: ignore[untyped-decorator]
def _product(reads, writes, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Every written tensor becomes the product of all read ones, all flat and contiguous."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < size
    value = tl.load(reads[0] + offset, mask=inside)
    for i in tl.static_range(1, len(reads)):
        value *= tl.load(reads[i] + offset, mask=inside)
    for i in tl.static_range(len(writes)):
        tl.store(writes[i] + offset, value, mask=inside)


def elementwise(shape: tuple[int, ...], dtype: torch.dtype, reads: int, writes: int) -> Timing:
    """The fastest of a few block sizes of a kernel that reads and writes so many tensors."""
    inputs = tuple(torch.randn(shape, device="cuda").to(dtype) for _ in range(reads))
    outputs = tuple(torch.empty(shape, device="cuda", dtype=dtype) for _ in range(writes))
    size = inputs[0].numel()

    def launch(block: int, warps: int) -> Timing:
        grid = (triton.cdiv(size, block),)
        return time_call(
            lambda: _product[grid](inputs, outputs, size, BLOCK=block, num_warps=warps)
        )

    timings = [launch(block, warps) for block, warps in ((1024, 4), (2048, 4), (4096, 8))]
    return min(timings, key=lambda timing: timing.median)


def bound(spec: OpSpec, batch: int, length: int, dtype: torch.dtype, direction: str) -> Timing:
    """The elementwise bound of a direction: it moves the activations that an operator must."""
    return elementwise((batch * length * spec.channels,), dtype, *moved(spec, direction))


def copy(shape: tuple[int, ...], dtype: torch.dtype) -> Timing:
    """A device-to-device copy of one tensor through PyTorch."""
    source = torch.randn(shape, device="cuda").to(dtype)
    target = torch.empty_like(source)
    return time_call(lambda: target.copy_(source))


def out_of_memory(error: BaseException) -> bool:
    """Whether this is why a call failed, as torch or as Triton says it."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def machine() -> dict[str, Any]:
    """What times are of, as plain values: `gpu`, its name, and `versions`.

    Beside `versions()` these hold `driver_cuda`, the newest CUDA that the driver supports.
    """
    found = {**versions(), "driver_cuda": driver_cuda()}
    return {"gpu": torch.cuda.get_device_name(), "versions": found}


def driver_cuda() -> str:
    """The newest CUDA that this machine's driver supports; torch has no public name for it.

    Raises:
        OSError: this machine has no NVIDIA driver.
    """
    number = ctypes.c_int()
    if status := ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)):
        raise OSError(f"the NVIDIA driver does not tell its version: error {status}")
    return cuda_version(number.value)


def cuda_version(number: int) -> str:
    """How CUDA writes a version that it gives as a number: 12080 is 12.8."""
    return f"{number // 1000}.{number % 1000 // 10}"


def versions() -> dict[str, str]:
    """Of Python, of the packages that times depend on, and of the CUDA that torch was made for."""
    found = {"python": platform.python_version()}
    packages = ("torch", "triton", "sh2gen")
    found |= {name: installed(name) or "not installed" for name in packages}
    return found | {"cuda": str(torch.version.cuda)}
