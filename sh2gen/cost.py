"""What a plan costs before anything runs (layer 4): bytes, arithmetic and a predicted time.

A fold over the tile program gives, per token and channel, how much memory traffic a kernel cannot
avoid and how many instructions a thread issues; both are sympy expressions in the plan's symbols,
so `explain` can print them. The prediction puts them beside a target's rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

import sympy

from sh2gen.ir import Conv, Graph, ModeGradient, Modes, Parameter, TapGradient, activations
from sh2gen.plan import (
    Accumulate,
    Blocks,
    EagerConv,
    Edge,
    EndParts,
    Extend,
    Fir,
    KeepState,
    KernelPlan,
    Layout,
    LoadModes,
    LoadRows,
    LoadState,
    LoadTaps,
    LoadToeplitz,
    LoadVector,
    ModalConv,
    ModalGradient,
    Parts,
    Plan,
    Recall,
    Remember,
    Rows,
    Rowwise,
    StateGradient,
    States,
    StoreModes,
    StorePartial,
    StoreRows,
    StoreToeplitz,
    Toeplitz,
    ToeplitzGradient,
    ZeroModes,
    ZeroState,
    ZeroTaps,
    ZeroToeplitz,
)
from sh2gen.schedule import DIRECTIONS, Schedule
from sh2gen.spec import DType, OpSpec, Workload
from sh2gen.target import Target

ROWS = sympy.Symbol("ROWS", positive=True)
BLOCK_T = sympy.Symbol("BLOCK_T", positive=True)
_BYTES = {DType.BFLOAT16: 2, DType.FLOAT16: 2, DType.FLOAT32: 4}
_INSTRUCTIONS = {  # a row of a rowwise function, in instructions of one thread
    "multiply": 1,
    "add": 1,
    "scale": 1,
    "shift": 1,
    "silu": 6,
    "silu_gradient": 10,
}
# Instructions for each number of a block's states: two products, powers, halving and rounding.
# Those of pairs take twice as many.
_SCAN = 8
# Rows of a lane's window with which an SM holds 16 warps, at about five registers a row. With more
# it holds fewer, and issues less in proportion.
_WINDOW = 26
# Factors between what was measured (docs/performance.md) and what this model says without them.
# Programs that stream wait for loads and products that nothing overlaps with, the twin for sm_90
# less than others. Channels last, rows move in short accesses and through shared memory.
_STREAM = {"forward": 1.1, "backward": 3.0}
_STREAM_SM90 = 1.4
_RECURRENCE = {"forward": 1.05, "backward": 1.6}  # a scan, which all others wait for
# Seconds a step of a recurrence, of a program that has a multiprocessor to itself: where channels
# are few nothing else counts (docs/performance.md, sequences in spans).
_WALK = {"forward": 0.9e-9, "backward": 1.75e-9}
_STREAM_BLD = 2.3
# Likewise, products of fewer rows to a warp than so many wait for their operands, and reach this
# share of the rate of large ones.
_FEW_ROWS = {"forward": (16, 0.25), "backward": (8, 0.11)}
LAUNCH = 2.5e-6  # seconds from one kernel's end to the next one's first instruction


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Work of one kernel per token and channel.

    Attributes:
        bytes: that must cross DRAM if caches serve every second read.
        flops: floating-point operations outside of matrix products, a multiply-add as two.
        tensor_flops: those of matrix products, in terms of BLOCK_T, zeros in the corners of
            Toeplitz matrices included.
        instructions: issued by a thread, in terms of ROWS: recomputed context shrinks as ROWS
            grows.
    """

    bytes: int
    flops: Any
    tensor_flops: Any
    instructions: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Predicted seconds of one direction of a plan at one workload, and the bounds behind it.

    Attributes:
        seconds: predicted time, launches included.
        memory: seconds that the traffic alone takes at the elementwise rate.
        tensor: seconds that matrix products alone take at the rate of large ones.
        issue: seconds that the instructions alone take, and products at the rate that they reach.
        bound: seconds of an elementwise kernel that reads and writes what the operator must.
        spans: of a sequence, each by a program of its own, if it is cut.
    """

    seconds: float
    memory: float
    tensor: float
    issue: float
    bound: float
    spans: int = 1

    @property
    def share(self) -> float:
        """Of the bound: 1 is as fast as reading the inputs and writing the output can be."""
        return self.bound / self.seconds


def work(kernel: KernelPlan, layout: Layout, io: DType) -> Work:
    """The fold over one tile program."""
    flops: Any = sympy.Integer(0)
    instructions: Any = sympy.Integer(0)
    products: Any = sympy.Integer(0)
    size = _BYTES[io]
    loads = [s for s in kernel.program.prologue if isinstance(s, LoadModes)]
    modes = sum(len(load.views) // 2 * (load.views[0].length or 0) for load in loads)
    scan = _SCAN * (2 if any(len(load.views) == 4 for load in loads) else 1)
    traffic = size * len(kernel.program.loads)  # a second read of a tensor is served by a cache

    def count(rows: Rows) -> Any:
        return ROWS + rows.hi - rows.lo

    for statement in kernel.program.body:
        match statement:
            case LoadRows(rows=rows):
                # Conversion to float32; and an address and a load for each vector of 8 or each
                # row.
                access = sympy.Rational(3, 8) if layout is Layout.BDL else 3
                instructions += count(rows) * (1 + access)
            case StoreRows():
                traffic += size
                access = sympy.Rational(3, 8) if layout is Layout.BDL else 3
                instructions += ROWS * (1 + access)
            case Fir(length=length, rows=rows):
                flops += count(rows) * (2 * length - 1)
                instructions += count(rows) * length
            case Rowwise(function=function, rows=rows):
                flops += count(rows)
                instructions += count(rows) * _INSTRUCTIONS[function]
            case Accumulate(length=length):
                flops += ROWS * 2 * length
                instructions += ROWS * length
            case Extend(count=extended):
                instructions += 2 * extended  # a shuffle and a choice
            case Remember():
                instructions += ROWS  # rounding, and a store to shared memory
            case Recall():
                instructions += ROWS
            case Toeplitz(length=length):
                products += _product_flops(length)
                instructions += 2 * ROWS  # from the layout of products to that of rows
            case ToeplitzGradient(length=length):
                products += _product_flops(length)
            case Blocks():
                instructions += ROWS
            case States():  # sums of a block for every mode, of two terms, and a scan of these
                products += 2 * 2 * modes
                instructions += ROWS * scan * modes / BLOCK_T
            case ModalConv():
                products += 2 * BLOCK_T + 3 * 2 * modes
                instructions += 2 * ROWS
            case ModalGradient():
                products += 2 * BLOCK_T + 2 * 2 * 2 * modes
            case LoadState() | KeepState() | StateGradient() | Edge() | Parts() | EndParts():
                pass  # once a tile, or a sequence
            case LoadTaps() | LoadVector() | LoadToeplitz() | ZeroTaps() | ZeroToeplitz():
                pass  # once a program, not once a row
            case LoadModes() | ZeroModes() | StoreModes() | ZeroState():
                pass
            case StorePartial() | StoreToeplitz():
                pass
            case _:
                assert_never(statement)
    return Work(
        bytes=traffic,
        flops=sympy.expand(flops / ROWS),
        tensor_flops=products,
        instructions=sympy.expand(instructions / ROWS),
    )


def products_a_tile(kernel: KernelPlan, block: int) -> int:
    """Matrix products of a tile, in blocks of so many steps."""
    statements = (s for s in kernel.program.body if isinstance(s, Toeplitz | ToeplitzGradient))
    return sum(int(matrices(s.length).subs(BLOCK_T, block)) for s in statements)


def _product_flops(length: int) -> Any:
    """Of the products of one block with all matrices that `length` taps make, per element."""
    return 2 * BLOCK_T * matrices(length)


def matrices(length: int) -> Any:
    """How many Toeplitz matrices `length` taps make, in terms of BLOCK_T."""
    return 1 + sympy.ceiling((length - 1) / BLOCK_T)


def numbers_on(target: Target, schedule: Schedule, direction: str) -> dict[str, int]:
    """The numbers of a kernel, or of its twin if the target runs that."""
    twin = schedule.twin(direction) if target.capability == 90 else {}
    return twin or dict(schedule.numbers(direction))


def moved(spec: OpSpec, direction: str) -> tuple[int, int]:
    """How many activations the elementwise bound reads and writes: forward every input and y;
    backward dy and every input, and every input's gradient.
    """
    n = len(spec.inputs)
    return (n, 1) if direction == "forward" else (n + 1, n)


def bound_bytes(spec: OpSpec, direction: str) -> int:
    """Bytes per token and channel of the elementwise bound."""
    return sum(moved(spec, direction)) * _BYTES[spec.dtype.io]


def predict(
    spec: OpSpec,
    plan: Plan,
    schedule: Schedule,
    direction: str,
    workload: Workload,
    target: Target,
) -> Prediction:
    """Predicted time of one direction on a target that runs nothing else."""
    elements = workload.batch * workload.length * spec.channels
    bound = elements * bound_bytes(spec, direction) / target.elementwise_bandwidth
    kernel = plan.forward if direction == "forward" else plan.backward
    if kernel is None:
        graph = plan.graph if direction == "forward" else plan.backward_graph
        memory = elements * _eager_bytes(graph, plan.eager) / target.elementwise_bandwidth
        launches = 2 * len(graph.nodes)
        return Prediction(
            seconds=memory + launches * LAUNCH, memory=memory, tensor=0.0, issue=0.0, bound=bound
        )
    effort = work(kernel, plan.layout, spec.dtype.io)
    numbers = numbers_on(target, schedule, direction)
    twin = numbers == schedule.twin(direction)
    memory = elements * effort.bytes / target.elementwise_bandwidth
    if direction == "backward":
        tokens_a_program = numbers.get("BLOCK_T", 1) * numbers.get("TILES", 1)
        splits = workload.batch
        if kernel.skeleton != "recurrence":  # of which a program walks along all of time
            splits *= math.ceil(workload.length / tokens_a_program)
        partials = splits * kernel.program.partial_rows * spec.channels * 4
        memory += 2 * partials / target.elementwise_bandwidth  # written, and read to be summed
    rows, reach = numbers.get("ROWS", 8), kernel.program.reach
    sizes = {ROWS: rows, BLOCK_T: numbers.get("BLOCK_T", 64)}
    per_element = float(effort.instructions.subs(sizes))
    issue = elements * per_element / (target.sms * 128 * target.clock)
    issue *= max(1.0, (rows + reach.hi - reach.lo) / _WINDOW)
    stream = kernel.skeleton == "stream"
    access = _STREAM_BLD if stream and plan.layout is Layout.BLD else 1.0
    issue *= access
    products = float(effort.tensor_flops.subs(sizes))
    bfloat16 = spec.dtype.io is DType.BFLOAT16
    tensor = elements * products / (target.matmul if bfloat16 else target.fp32)
    few, share = _FEW_ROWS[direction]
    slow = bfloat16 and stream and not twin
    slow = slow and numbers["BLOCK_D"] * numbers["SEGMENTS"] < few * numbers["num_warps"]
    issue += tensor / (share if slow else 1.0)
    # Loads wait while arithmetic issues and the other way round, but programs on one SM overlap:
    # the root of the squares lies between the larger of the two and their sum, and matches what
    # was measured (docs/performance.md).
    seconds = math.hypot(memory * access, issue)
    if stream:
        seconds *= _STREAM_SM90 if twin else _STREAM[direction]
    sums = direction == "backward" and bool(plan.reductions)  # of all parameters at once
    launches, spans = 1 + sums, 1
    if kernel.skeleton == "recurrence":
        spans, steps = spans_of(spec, numbers, workload.length)
        seconds *= _RECURRENCE[direction]
        if spans > 1:  # half of the inputs are read before, for the sums of tiles
            seconds, steps, launches = 1.4 * seconds, 3 * steps // 2, launches + 1
        seconds = max(seconds, steps * _WALK[direction])
    seconds += LAUNCH * launches
    return Prediction(
        seconds=seconds, memory=memory, tensor=tensor, issue=issue, bound=bound, spans=spans
    )


def spans_of(spec: OpSpec, numbers: Mapping[str, int], length: int) -> tuple[int, int]:
    """Into how many spans a recurrence cuts a sequence of so many steps, and how long these are:
    as `walk_programs` of templates/parts/launch.py, which launches them.
    """
    tile = numbers["SEGMENTS"] * numbers["BLOCK_T"]
    wanted = numbers["PROGRAMS"] // min(workload.batch for workload in spec.workloads)
    tiles_in_all = math.ceil(length / tile)
    spans = min(tiles_in_all // 2, wanted // spec.channels)
    tiles = math.ceil(tiles_in_all / spans) if spans >= 4 else tiles_in_all
    if math.ceil(tiles_in_all / tiles) < 4:
        tiles = tiles_in_all
    return math.ceil(tiles_in_all / tiles), tiles * tile


def _eager_bytes(graph: Graph, conv: EagerConv) -> int:
    """Bytes per token and channel of plain PyTorch: every node reads and writes float32."""
    total = 0
    for node in graph.nodes:
        if isinstance(node, Parameter | Modes):
            continue
        total += 4 * (len(activations(node)) + 1)
        if isinstance(node, Conv | TapGradient | ModeGradient) and conv is EagerConv.FFT:
            total += 3 * 2 * 3 * 8  # three transforms of twice the length, three passes each
    return total


def predictions(
    spec: OpSpec, plan: Plan, schedule: Schedule, workload: Workload, target: Target
) -> dict[str, Prediction]:
    """Both directions at one workload."""
    return {
        direction: predict(spec, plan, schedule, direction, workload, target)
        for direction in DIRECTIONS
    }


def score(spec: OpSpec, plan: Plan, schedule: Schedule, target: Target) -> float:
    """What plans are chosen by, less is better: predicted time over its bound, summed over
    directions and workloads."""
    total = 0.0
    for workload in spec.workloads:
        for prediction in predictions(spec, plan, schedule, workload, target).values():
            total += prediction.seconds / prediction.bound
    return total
