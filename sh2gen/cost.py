"""What a plan costs before anything runs (layer 4): bytes, arithmetic and a predicted time.

A fold over the tile program gives, per token and channel, how much memory traffic a kernel cannot
avoid and how many instructions a thread issues; both are sympy expressions in the plan's symbols,
so `explain` can print them. The prediction puts them beside a target's rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
_WINDOW = {"forward": 20, "backward": 26}
# Factors between what was measured (docs/performance.md) and what this model says without them.
# Programs that stream wait for loads and products that nothing overlaps with, the twin for sm_90
# less than others. Channels last, rows move in short accesses and through shared memory.
_STREAM = {"forward": 1.0, "backward": 2.5}
_STREAM_SM90 = 1.3
_RECURRENCE = {"forward": 0.92, "backward": 0.88}  # a scan, which all others wait for
# Instructions that a thread of a recurrence issues once a tile: exchanges between blocks, tables.
_ONCE_A_TILE = {"forward": 250, "backward": 2000}
# Seconds that tiles and streams take whatever they do: programs begin all at once and end one by
# one, and the partial sums of many are summed after backward.
_ONCE = {"forward": 6e-6, "backward": 8e-6}
# Seconds that a program of one takes before its first tile and after its last, for all that run at
# once: of tables, states and sums.
_ONCE_A_PROGRAM = {"forward": 1.6e-6, "backward": 2.4e-6}
# By which factor it takes longer where warps have too few rows of products (`_FEW_ROWS`).
_FEW_ROWS_OF_STATES = {"forward": 1.4, "backward": 1.2}
# Seconds a step of a recurrence, of a program that has a multiprocessor to itself: where channels
# are few nothing else counts (docs/performance.md, sequences in spans).
_WALK = {"forward": 0.9e-9, "backward": 1.75e-9}
_STREAM_BLD = 2.5
_STREAM_BLD_ODD = 3.6  # groups that begin at odd places: one by one
# Likewise, products of fewer rows to a warp than so many wait for their operands, and reach this
# share of the rate of large ones.
_FEW_ROWS = {"forward": (16, 0.25), "backward": (8, 0.22)}
# Registers that a thread needs, for a value of its tile and beside: estimates, from builds for
# sm_90. What a schedule does not grant is spilled, which costs this share of the time a register.
_REGISTERS = {
    ("stream", "forward"): (5.0, 85),
    ("stream", "backward"): (0.0, 255),
    ("recurrence", "forward"): (1.5, 85),
    ("recurrence", "backward"): (0.5, 205),
}
_SPILL = 0.0012
# Shared memory of a stream, in tiles of all its inputs: for each tile in flight, and beside.
_TILES_IN_FLIGHT = {"forward": (1.0, 1.2), "backward": (2.75, 0.5)}
# How long what runs at once waits, as a share of the time: over the warps of a multiprocessor, and
# over its programs for each warp of one, which wait for each other at barriers. Other factors were
# fitted where these waits are what they are under default numbers, `_WAIT_THEN`.
_WAIT = {"tile": (2.0, 0.0), "stream": (0.0, 0.2), "recurrence": (0.0, 0.1)}
_WAIT_THEN = {
    ("tile", "forward"): 1.2,
    ("tile", "backward"): 1.05,
    ("stream", "forward"): 1.4,
    ("stream", "backward"): 1.4,
    ("recurrence", "forward"): 1.08,
    ("recurrence", "backward"): 1.13,
}
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
class Running:
    """What of a kernel a multiprocessor runs at once, by estimate.

    Attributes:
        registers: that a thread has.
        spilled: that it needs beside these.
        shared: bytes of shared memory of a program.
        programs: on one multiprocessor.
        warps: of all of these.
    """

    registers: int
    spilled: int
    shared: int
    programs: int
    warps: int

    def of(self, programs: int, target: Target) -> Running:
        """The same where there are only so many programs for the whole GPU."""
        most = min(self.programs, max(1, math.ceil(programs / target.sms)))
        return replace(self, programs=most, warps=self.warps // self.programs * most)


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
        running: what runs at once on a multiprocessor; None without kernels.
    """

    seconds: float
    memory: float
    tensor: float
    issue: float
    bound: float
    spans: int = 1
    running: Running | None = None

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
        traffic = _eager_bytes(graph, plan.eager, workload.length)
        memory = elements * traffic / target.elementwise_bandwidth
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
    if kernel.skeleton == "recurrence":
        values = numbers["SEGMENTS"] * numbers["BLOCK_T"] / (32 * numbers["num_warps"])
        per_element += _ONCE_A_TILE[direction] / values
    issue = elements * per_element / (target.sms * 128 * target.clock)
    issue *= max(1.0, (rows + reach.hi - reach.lo) / _WINDOW[direction])
    stream = kernel.skeleton == "stream"
    access = 1.0
    if stream and plan.layout is Layout.BLD:
        access = _STREAM_BLD if spec.group_width % 8 == 0 else _STREAM_BLD_ODD
    issue *= access
    products = float(effort.tensor_flops.subs(sizes))
    bfloat16 = spec.dtype.io is DType.BFLOAT16
    tensor = elements * products / (target.matmul if bfloat16 else target.fp32)
    few, share = _FEW_ROWS[direction]
    rows_each = numbers.get("BLOCK_D", 1) * numbers.get("SEGMENTS", 1) / numbers["num_warps"]
    slow = bfloat16 and kernel.skeleton != "tile" and not twin and rows_each < few
    issue += tensor / (share if slow and stream else 1.0)
    # Loads wait while arithmetic issues and the other way round, but programs on one SM overlap:
    # the root of the squares lies between the larger of the two and their sum, and matches what
    # was measured (docs/performance.md).
    seconds = math.hypot(memory * access, issue)
    at_once = None if twin else running(kernel, numbers, len(spec.inputs), target)
    along_time, again = 1, 1.0
    if stream:
        along_time, again = segments_of(numbers, workload.length, spec.filter.length or 1)
        seconds *= again
    if at_once is not None:
        if stream:
            programs = workload.batch * along_time * stream_width(spec, numbers)
            at_once = at_once.of(programs, target)
        seconds *= _waiting(kernel, at_once)
    if stream:
        seconds *= _STREAM_SM90 if twin else _STREAM[direction]
    sums = direction == "backward" and bool(plan.reductions)  # of all parameters at once
    launches, spans = 1 + sums, 1
    if kernel.skeleton != "recurrence":
        seconds += _ONCE[direction]
    if kernel.skeleton == "recurrence":
        spans, steps = spans_of(spec, numbers, workload.length)
        seconds *= _RECURRENCE[direction] * (_FEW_ROWS_OF_STATES[direction] if slow else 1.0)
        if spans > 1:  # half of the inputs are read before, for the sums of tiles
            seconds, steps, launches = 1.4 * seconds, 3 * steps // 2, launches + 1
        if at_once is not None:
            rounds = workload.batch * spec.channels * spans / (target.sms * at_once.programs)
            seconds += rounds * _ONCE_A_PROGRAM[direction]
        seconds = max(seconds, steps * _WALK[direction])
    seconds += LAUNCH * launches
    return Prediction(
        seconds=seconds,
        memory=memory,
        tensor=tensor,
        issue=issue,
        bound=bound,
        spans=spans,
        running=at_once,
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


def running(
    kernel: KernelPlan, numbers: Mapping[str, int], inputs: int, target: Target
) -> Running:
    """Estimate what a multiprocessor runs at once of a kernel in Triton under some numbers."""
    direction = kernel.direction
    warps = numbers["num_warps"]
    shared = 0
    if kernel.skeleton == "tile":
        lanes = numbers["BLOCK_D"] * numbers["BLOCK_T"] / (numbers["ROWS"] * 32 * warps)
        loads = [s.rows for s in kernel.program.body if isinstance(s, LoadRows)]
        live = sum(numbers["ROWS"] + rows.hi - rows.lo for rows in loads)
        needed = 20 + 0.55 * live * max(1.0, lanes) ** 0.7
    else:
        rows = numbers.get("BLOCK_D", 1) * numbers["SEGMENTS"]
        slope, beside = _REGISTERS[kernel.skeleton, direction]
        needed = beside + slope * rows * numbers["BLOCK_T"] / (32 * warps)
        tile = 2 * rows * numbers["BLOCK_T"] * (inputs + (direction == "backward"))
        each, fixed = _TILES_IN_FLIGHT[direction]
        in_flight = numbers["PREFETCH"] - (kernel.skeleton == "recurrence")
        shared = int(tile * (each * in_flight + fixed))
    granted = min(numbers.get("maxnreg") or target.registers_per_thread, 255)
    registers = max(32, min(granted, math.ceil(needed / 8) * 8))
    programs = min(
        target.blocks_per_sm,
        target.threads_per_sm // (32 * warps),
        target.registers_per_sm // (registers * 32 * warps),
        target.shared_per_sm // (shared + 1024),
    )
    return Running(
        registers=registers,
        spilled=max(0, round(needed) - granted),
        shared=shared,
        programs=max(1, programs),
        warps=max(1, programs) * warps,
    )


def segments_of(numbers: Mapping[str, int], length: int, taps: int) -> tuple[int, float]:
    """How many programs of a stream lie along a sequence of so many steps, as `stream_programs` of
    templates/parts/launch.py has it, and how many tiles they compute for each of the sequence:
    those of warm-up, and those beyond its end.
    """
    steps = numbers["BLOCK_T"] * numbers["SEGMENTS"]
    in_all = math.ceil(length / steps)
    tiles = max(1, min(numbers["TILES"], in_all), math.ceil(in_all / 32))
    along_time = math.ceil(in_all / tiles)
    warm_up = math.ceil((taps - 1) / numbers["BLOCK_T"]) + 1
    return along_time, along_time * (tiles + warm_up) / in_all


def stream_width(spec: OpSpec, numbers: Mapping[str, int]) -> int:
    """How many programs of a stream lie across the channels."""
    return spec.filter.groups * math.ceil(spec.group_width / numbers["BLOCK_D"])


def _waiting(kernel: KernelPlan, found: Running) -> float:
    """By which factor a kernel takes longer than with as much running as under default numbers."""
    over_warps, over_programs = _WAIT[kernel.skeleton]
    warps_each = found.warps / found.programs
    waits = 1 + over_warps / found.warps + over_programs * warps_each / found.programs
    return waits / _WAIT_THEN[kernel.skeleton, kernel.direction] * (1 + _SPILL * found.spilled)


def _eager_bytes(graph: Graph, conv: EagerConv, length: int) -> float:
    """Bytes per token and channel of plain PyTorch: every node reads and writes float32."""
    total = 0.0
    passes = 2.5 if length <= 2**14 else 4.0  # of a transform: longer ones do not fit on chip
    for node in graph.nodes:
        if isinstance(node, Parameter | Modes):
            continue
        total += 4 * (len(activations(node)) + 1)
        if isinstance(node, Conv | TapGradient | ModeGradient) and conv is EagerConv.FFT:
            total += 3 * 2 * passes * 8  # three transforms of twice the length
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
