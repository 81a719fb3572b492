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
from sh2gen.plan.geometry import Grid, sm90_suits, stream_grid, tile_grid, walk_grid
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
from sh2gen.targets.constants import Eager, Streams, Tiles
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
            of recurrences and of the variant for sm_90, what programs wait on top of traffic and
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


def _kind(kernel: Kernel) -> str:
    """Which part of the model a kernel's programs are of: how they lie decides, not their text."""
    kinds = {tile_grid: "tile", stream_grid: "stream", walk_grid: "recurrence"}
    return kinds[kernel.grid]


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
    once, launch = target.constants.once, target.constants.launch
    bound = elements * bound_bytes(spec, direction) / target.elementwise_bandwidth + once
    kernel = plan.kernel(direction)
    if kernel is None:
        graph = plan.graph if direction == "forward" else plan.backward_graph
        moved, launches = _eager(graph, plan, workload, spec, target.constants.eager)
        memory = moved / target.elementwise_bandwidth
        return Prediction(
            seconds=memory + launches * launch,
            memory=memory,
            tensor=0.0,
            issue=0.0,
            fixed=launches * launch,
            bound=bound,
        )
    at = at_work(spec, plan, kernel, schedule, workload, target)
    sums = direction == "backward" and bool(plan.reductions)  # of all parameters at once
    launches, spans, issue, waves = 1 + sums, 1, at.issue + at.tensor, 0.0
    if at.running is None:
        seconds = _variant_seconds(at)
    elif _kind(kernel) == "tile":
        seconds, issue, waves = tile_seconds(at)
    elif _kind(kernel) == "stream":
        (seconds, waves), issue = stream_seconds(at), 0.0
    else:
        seconds, issue, spans = _recurrence_seconds(at)
        launches += spans > 1
    if at.running is None or _kind(kernel) == "recurrence":
        waves = max(0.0, seconds - math.hypot(at.memory, issue))
    # A recurrence is as long as its programs, which all begin at once.
    fixed = launch * launches + (0.0 if _kind(kernel) == "recurrence" else once)
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
        running: None for a variant.
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
    if kernel.role == Role.BACKWARD and _kind(kernel) != "recurrence":
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
        issue=elements * per_element / _issued(target),
        tensor=elements * products / product_rate(spec, target),
        by_rows=target.constants.way(kernel.role).by_rows if plan.layout is Layout.BLD else 0.0,
        grid=grid,
        running=None if variant else running(kernel, numbers, spec, target),
    )


@lru_cache(maxsize=4096)
def _counted(effort: Work, rows: int, block: int) -> tuple[float, float]:
    """Instructions and flops of matrix products, per token and channel, of these tiles."""
    sizes = {ROWS: rows, BLOCK_T: block}
    return float(effort.instructions.subs(sizes)), float(effort.tensor_flops.subs(sizes))


def _values(numbers: Mapping[str, int], target: Target) -> float:
    """Values of a tile that a thread has."""
    rows = numbers.get("BLOCK_D", 1) * numbers.get("SEGMENTS", 1)
    return rows * numbers["BLOCK_T"] / (target.warp_size * numbers["num_warps"])


def _issued(target: Target) -> float:
    """Instructions of threads that a target issues in a second."""
    return target.sms * target.lanes_per_sm * target.clock


def _norm(power: float, *parts: float) -> float:
    """What parts take together that overlap: between their sum and the largest."""
    return float(sum(part**power for part in parts) ** (1 / power))


def tile_seconds(at: AtWork, constants: Tiles | None = None) -> tuple[float, float, float]:
    """Of a kernel of tiles: in all, of its instructions alone, and of its waves alone."""
    n, length = at.numbers, at.workload.length
    constants = constants or at.target.constants.way(at.kernel.role).tiles
    rows, warps = n["ROWS"], n["num_warps"]
    tiles, programs = min(n["TILES"], math.ceil(length / n["BLOCK_T"])), at.grid.programs
    partial = at.kernel.program.partial_rows if at.kernel.role == "backward" else 0
    wide = n["BLOCK_D"] > 1
    once = constants.once * (1 + constants.once_wide * wide) + constants.once_partial * partial
    beyond = math.ceil(length / n["BLOCK_T"]) * n["BLOCK_T"] / length  # steps after the last
    threads = at.target.warp_size * warps * programs
    issue = at.issue * constants.issued * beyond
    issue += threads * once / _issued(at.target)
    values = max(rows, _values(n, at.target))
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
    constants = constants or at.target.constants.way(at.kernel.role).streams
    assert at.running is not None
    tiles, warm_up, programs = at.grid.tiles, warm_up_tiles(at), at.grid.programs
    chain = sum(isinstance(s, Toeplitz) for s in at.kernel.program.body)
    product = constants.product * chain * at.products / 100
    if _values(n, at.target) < 8:
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
    by_rows = at.by_rows * _values(n, at.target)
    before = (tile + constants.warm_product * product) * spilled + by_rows
    tile = (tile + product) * spilled + by_rows
    waves = _waves(programs, at) * (tiles * tile + constants.warm_up * warm_up * before)
    return _norm(constants.overlap, at.memory, waves), waves


def _variant_seconds(at: AtWork) -> float:
    """Of the variant for sm_90 of a kernel that streams."""
    tiles, warm_up = at.grid.tiles, warm_up_tiles(at)
    steps = at.numbers["BLOCK_T"] * at.numbers["SEGMENTS"]
    again = at.grid.splits * (tiles + warm_up) * steps / at.workload.length
    variant = at.target.constants.variant
    seconds = math.hypot(at.memory, at.issue + at.tensor) * again * variant.stream
    return max(seconds, (tiles + warm_up) * variant.tile)  # one wave at least


def _recurrence_seconds(at: AtWork) -> tuple[float, float, int]:
    """Of a recurrence: in all, of its instructions alone, and into how many spans sequences are
    cut.
    """
    n, spec = at.numbers, at.spec
    constants = at.target.constants.way(at.kernel.role).recurrences
    assert at.running is not None
    elements = at.workload.batch * at.workload.length * spec.channels
    beside = constants.tile / _values(n, at.target)
    if n["PREFETCH"] > 1:  # loads go through shared memory, from where vectors of 8 are read
        beside += sum(isinstance(s, LoadRows) for s in at.kernel.program.body) / 8
    issue = at.issue + at.tensor + elements * beside / _issued(at.target)
    # Loads wait while arithmetic issues and the other way round, but programs on one SM overlap:
    # the root of the squares lies between the larger of the two and their sum.
    seconds = math.hypot(at.memory, issue)
    warps_each = at.running.warps / at.running.programs
    waits = (1 + constants.wait * warps_each / at.running.programs) / constants.waited
    seconds *= waits * (1 + constants.spill * at.running.spilled) * constants.scan
    rows_each = n["SEGMENTS"] / n["num_warps"]
    if operand_bytes(spec) == 2 and rows_each < constants.few_rows:
        seconds *= constants.few
    spans, steps = at.grid.splits, at.grid.tiles * n["SEGMENTS"] * n["BLOCK_T"]
    if spans > 1:  # half of the inputs are read before, for the sums of tiles
        seconds, steps = constants.spans * seconds, 3 * steps // 2
    programs = at.workload.batch * spec.channels * spans
    rounds = programs / (at.target.sms * at.running.programs)
    seconds += rounds * constants.program
    return max(seconds, steps * constants.step), issue, spans


def stride_step(spec: OpSpec, plan: Plan) -> int:
    """As that of templates/parts/launch.py: rows of channels-first activations are padded to whole
    vectors.
    """
    return 8 if plan.layout is Layout.BDL or spec.channels % 8 == 0 else 1


def running(kernel: Kernel, numbers: Mapping[str, int], spec: OpSpec, target: Target) -> Running:
    """Estimate what a multiprocessor runs at once of a kernel in Triton under some numbers."""
    direction = kernel.role
    warps = numbers["num_warps"]
    most = target.registers_per_thread
    granted = min(numbers.get("maxnreg") or most, most)
    shared = 0
    is_tile = _kind(kernel) == "tile"
    if is_tile:
        needed = _registers_of_tiles(kernel, numbers, target)
    else:
        rows = numbers.get("BLOCK_D", 1) * numbers["SEGMENTS"]
        way = target.constants.way(direction)
        holds = way.stream if _kind(kernel) == "stream" else way.recurrence
        needed = holds.registers + holds.value * _values(numbers, target)
        of_inputs = _BYTES[spec.dtype.io] * rows * numbers["BLOCK_T"]
        of_inputs *= len(spec.inputs) + (direction == "backward")
        in_flight = numbers["PREFETCH"] - (_kind(kernel) == "recurrence")
        shared = int(of_inputs * (holds.tile * in_flight + holds.shared))
    registers = max(32, min(granted, math.ceil(needed / 8) * 8))
    occupied: float = registers
    rough = is_tile and direction == "backward"  # as `Running.at_once` says
    if rough:
        occupied = needed
        if numbers.get("maxnreg"):  # what may use more than the compiler would choose does so
            occupied = max(
                needed, min(granted, target.constants.backward_registers.granted * needed)
            )
    at_once = max(
        1.0,
        min(
            target.blocks_per_sm,
            target.threads_per_sm / (target.warp_size * warps),
            target.registers_per_sm / (occupied * target.warp_size * warps),
            target.shared_per_sm / (shared + target.shared_reserved),
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


def _registers_of_tiles(kernel: Kernel, numbers: Mapping[str, int], target: Target) -> float:
    """What a thread of a kernel of tiles needs, by estimate."""
    values = max(float(numbers["ROWS"]), _values(numbers, target))
    loads = [step.rows for step in kernel.program.body if isinstance(step, LoadRows)]
    if kernel.role == Role.FORWARD:
        forward = target.constants.forward_registers
        each = float(values**forward.power)
        if numbers["TILES"] > 1:
            each *= 1 + forward.next_tile / numbers["ROWS"]
            each *= forward.hinted if numbers.get("EVICT_LAST") else 1.0
        if numbers["BLOCK_D"] > 1:
            each *= forward.wide
        return forward.fixed + len(loads) * each
    backward = target.constants.backward_registers
    context = sum(rows.hi - rows.lo for rows in loads)
    of_rows = backward.value * len(loads) * values + backward.context * context
    return backward.fixed + of_rows + backward.partial * kernel.program.partial_rows


def warm_up_tiles(at: AtWork) -> int:
    """Tiles that a stream computes before its first, to fill what it remembers."""
    return math.ceil(((at.spec.filter.length or 1) - 1) / at.numbers["BLOCK_T"]) + 1


def _eager(
    graph: Graph, plan: Plan, workload: Workload, spec: OpSpec, constants: Eager
) -> tuple[float, int]:
    """Bytes that plain PyTorch moves in a direction, and how many kernels it launches. Every
    elementwise node reads and writes float32.
    """
    elements = workload.batch * workload.length * spec.channels
    ends = sum(isinstance(node, Input) for node in graph.nodes) + len(graph.outputs)
    total = constants.channels_last * ends * elements * (plan.layout is Layout.BLD)
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
        transforms = constants.conv if isinstance(node, Conv) else constants.gradient
        each = transforms.number + transforms.octave * max(0.0, math.log2(size / 256))
        each *= constants.power_of_two if size & (size - 1) == 0 else 1.0
        padded = each * size * workload.batch * spec.channels
        total += padded + constants.taps * taps * spec.channels
        launches += transforms.launches
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
