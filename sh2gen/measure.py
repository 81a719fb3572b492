"""Timing on a GPU, and the bounds that times are judged by (layer 6).

A time is the median over replays of a CUDA graph, with the L2 cache flushed before each
(triton.testing.do_bench).
A bound is an elementwise kernel of this run on this GPU that moves the same bytes and computes
nothing worth mentioning: no fused operator can be faster than it by more than noise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.testing import do_bench


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of one call: median, and the 20th and 80th percentiles."""

    median: float
    low: float
    high: float


def time_call(call: Callable[[], Any], warmup_ms: int = 20, repeat_ms: int = 80) -> Timing:
    """Time the GPU work of a call: it is captured in a CUDA graph, and replays of that are timed.

    So the time of the host, which runs ahead of the GPU in any real program, is not in it.

    Args:
        call: launches work on the current stream, the same each time.
        warmup_ms, repeat_ms: do_bench's budgets.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # compiles, and fills caches that a capture may not
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    low, median, high = do_bench(
        graph.replay, warmup=warmup_ms, rep=repeat_ms, quantiles=[0.2, 0.5, 0.8]
    )
    return Timing(median=1e3 * median, low=1e3 * low, high=1e3 * high)


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
    """The elementwise bound: the fastest of a few block sizes that reads and writes so many
    tensors.
    """
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


def copy(shape: tuple[int, ...], dtype: torch.dtype) -> Timing:
    """A device-to-device copy of one tensor through PyTorch."""
    source = torch.randn(shape, device="cuda").to(dtype)
    target = torch.empty_like(source)
    return time_call(lambda: target.copy_(source))
