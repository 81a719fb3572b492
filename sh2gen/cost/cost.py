"""What a plan costs before anything runs: bytes, arithmetic and a predicted time.

A fold over the tile program gives, per token and channel, how much memory traffic a kernel cannot
avoid and how many instructions a thread issues; both are sympy expressions in the plan's symbols,
so `explain` can print them. The prediction puts them beside a target's rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy

from sh2gen.graph.nodes import (
    Conv,
    Graph,
    Input,
    ModeGradient,
    Modes,
    Parameter,
    TapGradient,
    activations,
)
from sh2gen.plan.blocks import (
    LoadToeplitz,
    Recall,
    Remember,
    StoreToeplitz,
    Toeplitz,
    ToeplitzGradient,
    ZeroToeplitz,
)
from sh2gen.plan.edges import Edge
from sh2gen.plan.geometry import Grid, sm90_suits
from sh2gen.plan.modes import (
    Blocks,
    EndParts,
    KeepState,
    LoadModes,
    LoadState,
    ModalConv,
    ModalGradient,
    Parts,
    StateGradient,
    States,
    StoreModes,
    ZeroModes,
    ZeroState,
)
from sh2gen.plan.plan import Kernel, Plan, Role, Variant
from sh2gen.plan.statements import (
    Accumulate,
    Extend,
    Fir,
    LoadRows,
    LoadTaps,
    LoadVector,
    Rowwise,
    StorePartial,
    StoreRows,
    ZeroTaps,
)
from sh2gen.plan.values import Layout, Rows
from sh2gen.schedule.config import DIRECTIONS, Schedule, launch_config
from sh2gen.schedule.facts import operand_bytes, tap_terms
from sh2gen.spec.language import DType, Precision, Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target

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
# Seconds that an elementwise kernel takes whatever its size, and that others do too: programs
# begin all at once and end one by one.
ONCE = 5e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Constants of kernels of tiles, by direction (`benchmarks/calibrate.py`).

    A program waits for its tiles one after another, and as many run at once as registers allow: in
    waves. Traffic, instructions, waves and the dispatch of programs overlap.

    Attributes:
        overlap: exponent of the norm that joins the four: 1 adds them, infinity takes the
            largest.
        issued: instructions for each that the fold counts.
        once: instructions of a thread before and after its tiles; `once_wide` times as many more
            where a program has several channels, whose taps are private to lanes; `once_partial`
            more for each partial sum.
        start: seconds of a program before and after its tiles; `start_partial` more for each
            partial sum, and `barrier` more for each where warps exchange them.
        tile: seconds of a tile; `value` more for each value of it that a thread has, times the
            root of how many tensors are loaded; `crowd` more for each value above 16, less the
            more tensors there are, by the square; `wide` more for each block of rows of a thread
            where a program has several channels.
        dispatch: seconds of the GPU for each program that it starts.
        again: of the traffic, what is read twice where a program has several tiles of 8 rows a
            thread and asks for no hint (`EVICT_LAST`): the context, which the caches had lost.
    """

    overlap: float
    issued: float
    once: float
    once_wide: float = 0.0
    once_partial: float = 0.0
    start: float
    start_partial: float = 0.0
    barrier: float = 0.0
    tile: float
    value: float
    crowd: float
    wide: float
    dispatch: float
    again: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """Constants of kernels that stream along segments, by direction, but for the twin for sm_90.

    Attributes:
        overlap: as of `Tiles`; here of traffic and waves.
        tile: seconds of a tile; `unhidden` more where fewer than three tiles are in flight, and
            `alone` more where there is one.
        product: seconds of a tile for each 100 operations of an element in products, and for each
            convolution among these, which wait for each other whatever the rows; `few` times as
            much more where a thread has fewer than 8 values of a tile. Both from many taps
            (docs/performance.md), not from sweeps, and in bfloat16: other types take more by their
            rates.
        warm_up: what a tile of warm-up takes, of a tile; `warm_product`, what its products do, of
            those of a tile.
        spill: share of the time for each register that a schedule does not grant.
    """

    overlap: float
    tile: float
    unhidden: float
    alone: float
    product: float
    few: float = 0.0
    warm_up: float
    warm_product: float
    spill: float


TILES = {
    "forward": Tiles(
        overlap=3.35,
        issued=1.07,
        once=127.0,
        once_wide=0.492,
        start=1.59e-07,
        tile=6.8e-07,
        value=3.22e-08,
        crowd=1.13e-07,
        wide=3.49e-08,
        dispatch=4.19e-10,
        again=0.0409,
    ),
    "backward": Tiles(
        overlap=3.66,
        issued=1.57,
        once=57.1,
        once_partial=13.3,
        start=5.37e-08,
        start_partial=5.29e-08,
        barrier=1.33e-07,
        tile=5.91e-07,
        value=5.74e-08,
        crowd=1.07e-07,
        wide=3.87e-07,
        dispatch=4.7e-10,
    ),
}
STREAMS = {
    "forward": Streams(
        overlap=1.31,
        tile=3.46e-07,
        unhidden=6.47e-07,
        alone=1.38e-07,
        product=2.7e-07,
        warm_up=1.0,
        warm_product=1.0,
        spill=0.00148,
    ),
    "backward": Streams(
        overlap=1.65,
        tile=1.26e-07,
        unhidden=2.09e-07,
        alone=7.31e-07,
        product=1.6e-07,
        few=0.4,
        warm_up=0.82,
        warm_product=0.5,
        spill=0.0017,
    ),
}
# Factors between what was measured (docs/performance.md) and what this model says without them.
# The twin for sm_90 waits for loads and products that nothing overlaps with.
_STREAM_SM90 = 1.3
_TILE_SM90 = 5e-6  # seconds of its tiles, where channels are few
# Seconds of a tile of a stream for each value that a thread has: channels last, rows move in short
# accesses and through shared memory.
_BY_ROWS = {"forward": 1e-7, "backward": 4.5e-7}
_RECURRENCE = {"forward": 0.92, "backward": 0.88}  # a scan, which all others wait for
# Instructions that a thread of a recurrence issues once a tile: exchanges between blocks, tables.
_ONCE_A_TILE = {"forward": 250, "backward": 2000}
# Seconds that a program of one takes before its first tile and after its last, for all that run at
# once: of tables, states and sums.
_ONCE_A_PROGRAM = {"forward": 1.6e-6, "backward": 2.4e-6}
# By which factor it takes longer where warps have too few rows of products (`_FEW_ROWS`).
_FEW_ROWS_OF_STATES = {"forward": 1.4, "backward": 1.2}
_FEW_ROWS = {"forward": 16, "backward": 8}
# Seconds a step of a recurrence, of a program that has a multiprocessor to itself: where channels
# are few nothing else counts (docs/performance.md, sequences in spans).
_WALK = {"forward": 0.9e-9, "backward": 1.75e-9}
# Registers that a thread needs, for a value of its tile and beside: estimates, from builds for
# sm_90. What a schedule does not grant is spilled, which costs this share of the time a register.
_REGISTERS = {
    ("stream", "forward"): (5.0, 85),
    ("stream", "backward"): (0.0, 255),
    ("recurrence", "forward"): (1.5, 85),
    ("recurrence", "backward"): (0.5, 205),
}
_SPILL = 0.0012
# How many times as many registers the compiler uses where `maxnreg` lets it, of tiles.
_GRANTED = 1.5
# Shared memory, in tiles of all its inputs: for each tile in flight, and beside.
_TILES_IN_FLIGHT = {
    ("stream", "forward"): (1.0, 1.0),
    ("stream", "backward"): (2.75, 0.5),
    ("recurrence", "forward"): (1.0, 1.2),
    ("recurrence", "backward"): (2.75, 0.5),
}
# How long programs of a recurrence that run at once wait for each other at barriers, as a share of
# the time for each warp of one; other factors were fitted where it is `_WAIT_THEN`.
_WAIT = 0.1
_WAIT_THEN = {"forward": 1.08, "backward": 1.13}
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
        at_once: programs. Of tiles backward, as if a part of a program could run: registers are
            estimated so roughly that a step from one number to the next would lie at the wrong
            place. And what `maxnreg` does not grant counts as if it were held: spilling is as bad.
    """

    registers: int
    spilled: int
    shared: int
    programs: int
    warps: int
    at_once: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Predicted seconds of one direction of a plan at one workload, and the bounds behind it.

    Attributes:
        seconds: predicted time, launches included.
        memory: seconds that the traffic alone takes at the elementwise rate.
        tensor: seconds that matrix products alone take at the rate of large ones.
        issue: seconds that the instructions alone take, products included; 0 for streams, where
            they are part of what a tile takes.
        waves: seconds that programs take one wave after another, each of as many as run at once;
            of recurrences and of the twin for sm_90, what programs wait on top of traffic and
            instructions.
        fixed: seconds of launches, and of programs that begin and end, whatever the size.
        bound: seconds of an elementwise kernel that reads and writes what the operator must.
        spans: of a sequence, each by a program of its own, if it is cut.
        running: what runs at once on a multiprocessor; None without kernels.
    """

    seconds: float
    memory: float
    tensor: float
    issue: float
    waves: float = 0.0
    fixed: float
    bound: float
    spans: int = 1
    running: Running | None = None

    @property
    def share(self) -> float:
        """Of the bound: 1 is as fast as reading the inputs and writing the output can be."""
        return self.bound / self.seconds


@lru_cache(maxsize=256)  # asked for again for every workload and every candidate
def work(kernel: Kernel, layout: Layout, spec: OpSpec) -> Work:
    """The fold over one tile program."""
    flops: Any = sympy.Integer(0)
    instructions: Any = sympy.Integer(0)
    products: Any = sympy.Integer(0)
    size = _BYTES[spec.dtype.io]
    terms = tap_terms(spec, spec.dtype.io)
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
                products += terms * _product_flops(length)
                instructions += 2 * ROWS  # from the layout of products to that of rows
            case ToeplitzGradient(length=length):
                products += _product_flops(length)
            case Blocks():
                instructions += ROWS
            case States():  # sums of a block for every mode, of two terms, and a scan of these
                products += 2 * 2 * modes
                instructions += ROWS * scan * modes / BLOCK_T
            case ModalConv():
                products += terms * 2 * BLOCK_T + 3 * 2 * modes
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
                raise AssertionError(f"{statement}: no cost is known of it")
    return Work(
        bytes=traffic,
        flops=sympy.expand(flops / ROWS),
        tensor_flops=products,
        instructions=sympy.expand(instructions / ROWS),
    )


def products_a_tile(kernel: Kernel, block: int) -> int:
    """Matrix products of a tile, in blocks of so many steps."""
    statements = (s for s in kernel.program.body if isinstance(s, Toeplitz | ToeplitzGradient))
    return sum(int(matrices(s.length).subs(BLOCK_T, block)) for s in statements)


def _product_flops(length: int) -> Any:
    """Of the products of one block with all matrices that `length` taps make, per element."""
    return 2 * BLOCK_T * matrices(length)


def matrices(length: int) -> Any:
    """How many Toeplitz matrices `length` taps make, in terms of BLOCK_T."""
    return 1 + sympy.ceiling((length - 1) / BLOCK_T)


def variant_of_call(
    spec: OpSpec, plan: Plan, kernel: Kernel, config: dict[str, int], length: int, capability: int
) -> Variant | None:
    """The variant of a kernel that runs in its place on a GPU, for whole sequences of so many
    steps that lie in memory as the operator's own outputs do: as launchers decide it.
    """
    bounds = (0, length, length)
    for variant in kernel.variants:
        own = variant.config(config)
        if (
            own
            and capability == variant.capability
            and spec.dtype.io is DType.BFLOAT16
            and stride_step(spec, plan) == 8
            and sm90_suits(length, length, bounds, own)
        ):
            return variant
    return None


def config_on(
    target: Target, spec: OpSpec, plan: Plan, kernel: Kernel, schedule: Schedule, length: int
) -> dict[str, int]:
    """The config of a kernel, or of the variant that runs on this target at this length."""
    config = launch_config(spec, schedule, kernel.role)
    variant = variant_of_call(spec, plan, kernel, config, length, target.capability)
    return variant.config(config) if variant else config


def product_rate(spec: OpSpec, target: Target) -> float:
    """Floating-point operations a second of matrix products: in bfloat16 on the tensor cores; of
    float16 as tf32, which is half as fast; of float32, and for exact results, on other cores.
    """
    if operand_bytes(spec) == 2:
        return target.matmul
    if spec.dtype.io is DType.FLOAT16 and spec.precision is not Precision.EXACT:
        return target.matmul / 2
    return target.fp32


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
    bound = elements * bound_bytes(spec, direction) / target.elementwise_bandwidth + ONCE
    kernel = plan.kernel(direction)
    if kernel is None:
        graph = plan.graph if direction == "forward" else plan.backward_graph
        moved, launches = _eager(graph, plan, workload, spec)
        memory = moved / target.elementwise_bandwidth
        return Prediction(
            seconds=memory + launches * LAUNCH,
            memory=memory,
            tensor=0.0,
            issue=0.0,
            fixed=launches * LAUNCH,
            bound=bound,
        )
    at = at_work(spec, plan, kernel, schedule, workload, target)
    sums = direction == "backward" and bool(plan.reductions)  # of all parameters at once
    launches, spans, issue, waves = 1 + sums, 1, at.issue + at.tensor, 0.0
    if at.running is None:
        seconds = _twin_seconds(at)
    elif kernel.skeleton == "tile":
        seconds, issue, waves = tile_seconds(at)
    elif kernel.skeleton == "stream":
        (seconds, waves), issue = stream_seconds(at), 0.0
    else:
        seconds, issue, spans = _recurrence_seconds(at)
        launches += spans > 1
    if at.running is None or kernel.skeleton == "recurrence":
        waves = max(0.0, seconds - math.hypot(at.memory, issue))
    # A recurrence is as long as its programs, which all begin at once.
    fixed = LAUNCH * launches + (0.0 if kernel.skeleton == "recurrence" else ONCE)
    return Prediction(
        seconds=max(seconds, at.memory, at.tensor) + fixed,
        memory=at.memory,
        tensor=at.tensor,
        issue=issue,
        waves=waves,
        fixed=fixed,
        bound=bound,
        spans=spans,
        running=at.running,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AtWork:
    """A kernel under some numbers at one workload: what `predict` puts a time on.

    Attributes:
        memory, issue, tensor: as of `Prediction`.
        products: floating-point operations of an element in matrix products.
        by_rows: seconds of a tile of a stream for each value that a thread has, channels last.
        running: None for the twin.
    """

    spec: OpSpec
    kernel: Kernel
    numbers: dict[str, int]
    grid: Grid
    workload: Workload
    target: Target
    memory: float
    issue: float
    tensor: float
    products: float
    by_rows: float
    running: Running | None


def at_work(
    spec: OpSpec,
    plan: Plan,
    kernel: Kernel,
    schedule: Schedule,
    workload: Workload,
    target: Target,
) -> AtWork:
    """What `predict` puts a time on, of one kernel of a plan."""
    elements = workload.batch * workload.length * spec.channels
    effort = work(kernel, plan.layout, spec)
    numbers = launch_config(spec, schedule, kernel.role)
    variant = variant_of_call(spec, plan, kernel, numbers, workload.length, target.capability)
    numbers = variant.config(numbers) if variant else numbers
    grid = (variant or kernel).grid(
        workload.batch, workload.length, spec.channels, spec.group_width, numbers
    )
    memory = elements * effort.bytes / target.elementwise_bandwidth
    if kernel.role == Role.BACKWARD and kernel.skeleton != "recurrence":
        splits = workload.batch * grid.splits * grid.sums
        partials = splits * kernel.program.partial_rows * spec.channels * 4
        memory += 2 * partials / target.elementwise_bandwidth  # written, and read to be summed
    rows, block = numbers.get("ROWS", 8), numbers.get("BLOCK_T", 64)
    per_element, products = _counted(effort, rows, block)
    return AtWork(
        spec=spec,
        kernel=kernel,
        numbers=numbers,
        workload=workload,
        target=target,
        memory=memory,
        products=products,
        issue=elements * per_element / (target.sms * 128 * target.clock),
        tensor=elements * products / product_rate(spec, target),
        by_rows=_BY_ROWS[kernel.role] if plan.layout is Layout.BLD else 0.0,
        grid=grid,
        running=None if variant else running(kernel, numbers, spec, target),
    )


@lru_cache(maxsize=4096)
def _counted(effort: Work, rows: int, block: int) -> tuple[float, float]:
    """Instructions and flops of matrix products, per token and channel, of these tiles."""
    sizes = {ROWS: rows, BLOCK_T: block}
    return float(effort.instructions.subs(sizes)), float(effort.tensor_flops.subs(sizes))


def _values(numbers: Mapping[str, int]) -> float:
    """Values of a tile that a thread has."""
    rows = numbers.get("BLOCK_D", 1) * numbers.get("SEGMENTS", 1)
    return rows * numbers["BLOCK_T"] / (32 * numbers["num_warps"])


def _norm(power: float, *parts: float) -> float:
    """What parts take together that overlap: between their sum and the largest."""
    return float(sum(part**power for part in parts) ** (1 / power))


def tile_seconds(at: AtWork, constants: Tiles | None = None) -> tuple[float, float, float]:
    """Of a kernel of tiles: in all, of its instructions alone, and of its waves alone."""
    n, length = at.numbers, at.workload.length
    constants = constants or TILES[at.kernel.role]
    rows, warps = n["ROWS"], n["num_warps"]
    tiles, programs = min(n["TILES"], math.ceil(length / n["BLOCK_T"])), at.grid.programs
    partial = at.kernel.program.partial_rows if at.kernel.role == "backward" else 0
    wide = n["BLOCK_D"] > 1
    once = constants.once * (1 + constants.once_wide * wide) + constants.once_partial * partial
    beyond = math.ceil(length / n["BLOCK_T"]) * n["BLOCK_T"] / length  # steps after the last
    threads = 32 * warps * programs
    issue = at.issue * constants.issued * beyond
    issue += threads * once / (at.target.sms * 128 * at.target.clock)
    values = max(rows, _values(n))
    loads = sum(isinstance(s, LoadRows) for s in at.kernel.program.body)
    tile = constants.tile + constants.value * values * math.sqrt(loads)
    tile += constants.crowd * max(0.0, values - 16) / loads**2
    tile += constants.wide * wide * values / rows
    start = constants.start
    start += partial * (constants.start_partial + constants.barrier * (warps > 1))
    waves = _waves(programs, at) * (start + tiles * tile)
    memory = at.memory
    if at.kernel.hinted and n["TILES"] > 1 and not n["EVICT_LAST"]:
        memory *= 1 + constants.again * 8 / rows
    dispatch = programs * constants.dispatch
    return _norm(constants.overlap, memory, issue, waves, dispatch), issue, waves


def _waves(programs: int, at: AtWork) -> int:
    """One after another, each of as many programs as all multiprocessors run at once."""
    assert at.running is not None
    return math.ceil(programs / (at.target.sms * at.running.at_once))


def stream_seconds(at: AtWork, constants: Streams | None = None) -> tuple[float, float]:
    """Of a kernel that streams: in all, and of its waves alone."""
    n, spec = at.numbers, at.spec
    constants = constants or STREAMS[at.kernel.role]
    assert at.running is not None
    tiles, warm_up, programs = at.grid.tiles, warm_up_tiles(at), at.grid.programs
    chain = sum(isinstance(s, Toeplitz) for s in at.kernel.program.body)
    product = constants.product * chain * at.products / 100
    if _values(n) < 8:
        product *= 1 + constants.few
    # What products take more than in bfloat16, of the multiprocessor's rate, which programs that
    # run at once share.
    slower = 1 / product_rate(spec, at.target) - 1 / at.target.matmul
    steps = n["BLOCK_D"] * n["SEGMENTS"] * n["BLOCK_T"]
    beside = min(at.running.at_once, math.ceil(programs / at.target.sms))
    product += steps * at.products * beside * slower * at.target.sms
    tile = constants.tile
    tile += constants.unhidden * (n["PREFETCH"] < 3) + constants.alone * (n["PREFETCH"] < 2)
    spilled = 1 + constants.spill * at.running.spilled
    # A tile of warm-up, of which less is multiplied than of others.
    before = (tile + constants.warm_product * product) * spilled + at.by_rows * _values(n)
    tile = (tile + product) * spilled + at.by_rows * _values(n)
    waves = _waves(programs, at) * (tiles * tile + constants.warm_up * warm_up * before)
    return _norm(constants.overlap, at.memory, waves), waves


def _twin_seconds(at: AtWork) -> float:
    """Of the twin for sm_90 of a kernel that streams."""
    tiles, warm_up = at.grid.tiles, warm_up_tiles(at)
    steps = at.numbers["BLOCK_T"] * at.numbers["SEGMENTS"]
    again = at.grid.splits * (tiles + warm_up) * steps / at.workload.length
    seconds = math.hypot(at.memory, at.issue + at.tensor) * again * _STREAM_SM90
    return max(seconds, (tiles + warm_up) * _TILE_SM90)  # one wave at least


def _recurrence_seconds(at: AtWork) -> tuple[float, float, int]:
    """Of a recurrence: in all, of its instructions alone, and into how many spans sequences are
    cut.
    """
    n, spec, direction = at.numbers, at.spec, at.kernel.role
    assert at.running is not None
    elements = at.workload.batch * at.workload.length * spec.channels
    beside = _ONCE_A_TILE[direction] / _values(n)
    if n["PREFETCH"] > 1:  # loads go through shared memory, from where vectors of 8 are read
        beside += sum(isinstance(s, LoadRows) for s in at.kernel.program.body) / 8
    issue = at.issue + at.tensor + elements * beside / (at.target.sms * 128 * at.target.clock)
    # Loads wait while arithmetic issues and the other way round, but programs on one SM overlap:
    # the root of the squares lies between the larger of the two and their sum.
    seconds = math.hypot(at.memory, issue)
    warps_each = at.running.warps / at.running.programs
    waits = (1 + _WAIT * warps_each / at.running.programs) / _WAIT_THEN[direction]
    seconds *= waits * (1 + _SPILL * at.running.spilled) * _RECURRENCE[direction]
    rows_each = n["SEGMENTS"] / n["num_warps"]
    if operand_bytes(spec) == 2 and rows_each < _FEW_ROWS[direction]:
        seconds *= _FEW_ROWS_OF_STATES[direction]
    spans, steps = at.grid.splits, at.grid.tiles * n["SEGMENTS"] * n["BLOCK_T"]
    if spans > 1:  # half of the inputs are read before, for the sums of tiles
        seconds, steps = 1.4 * seconds, 3 * steps // 2
    programs = at.workload.batch * spec.channels * spans
    rounds = programs / (at.target.sms * at.running.programs)
    seconds += rounds * _ONCE_A_PROGRAM[direction]
    return max(seconds, steps * _WALK[direction]), issue, spans


def stride_step(spec: OpSpec, plan: Plan) -> int:
    """As that of templates/parts/launch.py: rows of channels-first activations are padded to whole
    vectors.
    """
    return 8 if plan.layout is Layout.BDL or spec.channels % 8 == 0 else 1


def running(kernel: Kernel, numbers: Mapping[str, int], spec: OpSpec, target: Target) -> Running:
    """Estimate what a multiprocessor runs at once of a kernel in Triton under some numbers."""
    direction = kernel.role
    warps = numbers["num_warps"]
    granted = min(numbers.get("maxnreg") or target.registers_per_thread, 255)
    shared = 0
    is_tile = kernel.skeleton == "tile"
    if is_tile:
        needed = _registers_of_tiles(kernel, numbers)
    else:
        rows = numbers.get("BLOCK_D", 1) * numbers["SEGMENTS"]
        slope, beside = _REGISTERS[kernel.skeleton, direction]
        needed = beside + slope * _values(numbers)
        of_inputs = _BYTES[spec.dtype.io] * rows * numbers["BLOCK_T"]
        of_inputs *= len(spec.inputs) + (direction == "backward")
        each, fixed = _TILES_IN_FLIGHT[kernel.skeleton, direction]
        in_flight = numbers["PREFETCH"] - (kernel.skeleton == "recurrence")
        shared = int(of_inputs * (each * in_flight + fixed))
    registers = max(32, min(granted, math.ceil(needed / 8) * 8))
    occupied: float = registers
    rough = is_tile and direction == "backward"  # as `Running.at_once` says
    if rough:
        occupied = needed
        if numbers.get("maxnreg"):  # what may use more than the compiler would choose does so
            occupied = max(needed, min(granted, _GRANTED * needed))
    at_once = max(
        1.0,
        min(
            target.blocks_per_sm,
            target.threads_per_sm / (32 * warps),
            target.registers_per_sm / (occupied * 32 * warps),
            target.shared_per_sm / (shared + 1024),
        ),
    )
    programs = math.floor(at_once)
    return Running(
        registers=registers,
        spilled=max(0, round(needed) - granted),
        shared=shared,
        programs=programs,
        warps=programs * warps,
        at_once=at_once if rough else programs,
    )


def _registers_of_tiles(kernel: Kernel, numbers: Mapping[str, int]) -> float:
    """What a thread of a kernel of tiles needs: an estimate, from builds for sm_90."""
    values = max(float(numbers["ROWS"]), _values(numbers))
    loads = [step.rows for step in kernel.program.body if isinstance(step, LoadRows)]
    if kernel.role == "forward":
        each = float(values**0.93)
        if numbers["TILES"] > 1:  # addresses and masks of the next tile, beside those of this one
            each *= 1 + 3.6 / numbers["ROWS"]
            each *= 1.1 if numbers.get("EVICT_LAST") else 1.0
        if numbers["BLOCK_D"] > 1:  # taps are private to lanes
            each *= 1.2
        return 18 + len(loads) * each
    context = sum(rows.hi - rows.lo for rows in loads)
    of_rows = 1.35 * len(loads) * values + 1.15 * context
    return 18 + of_rows + 0.8 * kernel.program.partial_rows


def warm_up_tiles(at: AtWork) -> int:
    """Tiles that a stream computes before its first, to fill what it remembers."""
    return math.ceil(((at.spec.filter.length or 1) - 1) / at.numbers["BLOCK_T"]) + 1


# Of a transform with its inverse and the product between them: bytes for each number of a padded
# row, so many more for each octave beyond 256 numbers, less where the size is a power of two; and
# kernels that are launched. Fitted to tests/data/plans.
_FFT = {"conv": (86.0, 12.0, 18), "gradient": (98.0, 16.0, 20)}
_FFT_POWER = 0.7
_CHANNELS_LAST = 20.0  # bytes more of an activation that is channels last, to turn it around
_TAPS = 6.5  # bytes of a tap of a channel: expanded, padded and transformed


def _eager(graph: Graph, plan: Plan, workload: Workload, spec: OpSpec) -> tuple[float, int]:
    """Bytes that plain PyTorch moves in a direction, and how many kernels it launches. Every
    elementwise node reads and writes float32.
    """
    elements = workload.batch * workload.length * spec.channels
    ends = sum(isinstance(node, Input) for node in graph.nodes) + len(graph.outputs)
    total = _CHANNELS_LAST * ends * elements * (plan.layout is Layout.BLD)
    launches = 0
    for node in graph.nodes:
        if isinstance(node, Parameter | Modes):
            continue
        if not isinstance(node, Conv | TapGradient | ModeGradient):
            total += 4 * (len(activations(node)) + 1) * elements
            launches += 2
            continue
        taps = workload.length  # of modes, as many as there are steps
        if isinstance(node, Conv) and isinstance(graph.by_name[node.taps], Parameter):
            taps = graph.view(node.taps).length or taps
        elif isinstance(node, TapGradient):
            taps = node.view.length or taps
        kept = min(taps, workload.length)
        size = fft_size(workload.length + kept - 1)
        each, octave, kernels = _FFT["conv" if isinstance(node, Conv) else "gradient"]
        each += octave * max(0.0, math.log2(size / 256))
        each *= _FFT_POWER if size & (size - 1) == 0 else 1.0
        total += each * size * workload.batch * spec.channels + _TAPS * taps * spec.channels
        launches += kernels
    return total, launches


def fft_size(length: int) -> int:
    """As that of templates/parts/eager.py: the next size of factors 2, 3 and 5 alone."""
    best = 1 << (length - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            best = min(best, three << max(0, (-(-length // three) - 1).bit_length()))
            three *= 3
        five *= 5
    return best


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
