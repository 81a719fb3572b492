"""How long the programs of a kernel take: tiles, streams, recurrences, and variants of these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sh2gen.cost.work import BYTES
from sh2gen.plan.blocks import (
    Toeplitz,
)
from sh2gen.plan.geometry import Grid, even_grid, row_grid, stream_grid, tile_grid, walk_grid
from sh2gen.plan.kernel import Kernel, Role
from sh2gen.plan.statements import (
    LoadRows,
)
from sh2gen.schedule.facts import operand_bytes, tap_terms
from sh2gen.spec.language import DType, Precision, Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.constants import Streams, Tiles
from sh2gen.targets.target import Target


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


def kind_of(kernel: Kernel) -> str:
    """Which part of the model a kernel's programs are of: how they lie decides, not their text."""
    kinds = {tile_grid: "tile", stream_grid: "stream"}
    kinds |= {even_grid: "stream", walk_grid: "recurrence", row_grid: "recurrence"}
    return kinds[kernel.grid]


def product_rate(spec: OpSpec, target: Target) -> float:
    """Floating-point operations a second of matrix products: in bfloat16 on the tensor cores; of
    float16 as tf32, which is half as fast; of float32, and for exact results, on other cores.
    """
    if operand_bytes(spec) == 2:
        return target.matmul
    if spec.dtype.io is DType.FLOAT16 and spec.precision is not Precision.EXACT:
        return target.matmul / 2
    return target.fp32


@dataclass(frozen=True, slots=True, kw_only=True)
class AtWork:
    """A kernel under a config at one workload: what `predict` puts a time on.

    Attributes:
        memory, issue, tensor: as of `Prediction`.
        products: floating-point operations of an element in matrix products.
        by_rows: seconds of a tile of a stream for each value that a thread has, channels last.
        running: None for a variant.
    """

    spec: OpSpec
    kernel: Kernel
    config: dict[str, int]
    grid: Grid
    workload: Workload
    target: Target
    memory: float
    issue: float
    tensor: float
    products: float
    by_rows: float
    running: Running | None


def values_of(config: Mapping[str, int], target: Target) -> float:
    """Values of a tile that a thread has."""
    rows = config.get("BLOCK_D", 1) * config.get("SEGMENTS", 1)
    return rows * config["BLOCK_T"] / (target.warp_size * config["num_warps"])


def issued_rate(target: Target) -> float:
    """Instructions of threads that a target issues in a second."""
    return target.sms * target.lanes_per_sm * target.clock


def _norm(power: float, *parts: float) -> float:
    """What parts take together that overlap: between their sum and the largest."""
    return float(sum(part**power for part in parts) ** (1 / power))


def tile_seconds(at: AtWork, constants: Tiles | None = None) -> tuple[float, float, float]:
    """Of a kernel of tiles: in all, of its instructions alone, and of its waves alone."""
    n, length = at.config, at.workload.length
    constants = constants or at.target.constants.way(at.kernel.role).tiles
    rows, warps = n["ROWS"], n["num_warps"]
    tiles, programs = min(n["TILES"], math.ceil(length / n["BLOCK_T"])), at.grid.programs
    partial = at.kernel.program.partial_rows if at.kernel.role == "backward" else 0
    wide = n["BLOCK_D"] > 1
    once = constants.once * (1 + constants.once_wide * wide) + constants.once_partial * partial
    beyond = math.ceil(length / n["BLOCK_T"]) * n["BLOCK_T"] / length  # steps after the last
    threads = at.target.warp_size * warps * programs
    issue = at.issue * constants.issued * beyond
    issue += threads * once / issued_rate(at.target)
    values = max(rows, values_of(n, at.target))
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
    n, spec = at.config, at.spec
    constants = constants or at.target.constants.way(at.kernel.role).streams
    assert at.running is not None
    tiles, warm_up, programs = at.grid.tiles, warm_up_tiles(at), at.grid.programs
    chain = sum(isinstance(s, Toeplitz) for s in at.kernel.program.body)
    product = constants.product * chain * at.products / 100
    if values_of(n, at.target) < 8:
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
    by_rows = at.by_rows * values_of(n, at.target)
    before = (tile + constants.warm_product * product) * spilled + by_rows
    tile = (tile + product) * spilled + by_rows
    waves = _waves(programs, at) * (tiles * tile + constants.warm_up * warm_up * before)
    return _norm(constants.overlap, at.memory, waves), waves


def variant_seconds(at: AtWork) -> float:
    """Of the variant for sm_90 of a kernel that streams."""
    tiles, warm_up = at.grid.tiles, warm_up_tiles(at)
    steps = at.config["BLOCK_T"] * at.config["SEGMENTS"]
    again = at.grid.splits * (tiles + warm_up) * steps / at.workload.length
    variant = at.target.constants.variant
    seconds = math.hypot(at.memory, at.issue + at.tensor) * again * variant.stream
    return max(seconds, (tiles + warm_up) * variant.tile)  # one wave at least


def recurrence_seconds(at: AtWork) -> tuple[float, float, int]:
    """Of a recurrence: in all, of its instructions alone, and into how many splits sequences are
    cut.
    """
    n, spec = at.config, at.spec
    constants = at.target.constants.way(at.kernel.role).recurrences
    assert at.running is not None
    elements = at.workload.batch * at.workload.length * spec.channels
    beside = constants.tile / values_of(n, at.target)
    if n["PREFETCH"] > 1:  # loads go through shared memory, from where vectors of 8 are read
        beside += sum(isinstance(s, LoadRows) for s in at.kernel.program.body) / 8
    issue = at.issue + at.tensor + elements * beside / issued_rate(at.target)
    # Loads wait while arithmetic issues and the other way round, but programs on one SM overlap:
    # the root of the squares lies between the larger of the two and their sum.
    seconds = math.hypot(at.memory, issue)
    warps_each = at.running.warps / at.running.programs
    waits = (1 + constants.wait * warps_each / at.running.programs) / constants.waited
    seconds *= waits * (1 + constants.spill * at.running.spilled) * constants.scan
    rows_each = n["SEGMENTS"] / n["num_warps"]
    if operand_bytes(spec) == 2 and rows_each < constants.few_rows:
        seconds *= constants.few
    splits, steps = at.grid.splits, at.grid.tiles * n["SEGMENTS"] * n["BLOCK_T"]
    if splits > 1:  # half of the inputs are read before, for the sums of tiles
        seconds, steps = constants.splits * seconds, 3 * steps // 2
    programs = at.workload.batch * spec.channels * splits
    rounds = programs / (at.target.sms * at.running.programs)
    seconds += rounds * constants.program
    return max(seconds, steps * constants.step), issue, splits


def running(kernel: Kernel, config: Mapping[str, int], spec: OpSpec, target: Target) -> Running:
    """Estimate what a multiprocessor runs at once of a kernel in Triton under a config."""
    direction = kernel.role
    warps = config["num_warps"]
    most = target.registers_per_thread
    granted = min(config.get("maxnreg") or most, most)
    shared = 0
    is_tile = kind_of(kernel) == "tile"
    if is_tile:
        needed = _registers_of_tiles(kernel, config, target)
    else:
        rows = config.get("BLOCK_D", 1) * config["SEGMENTS"]
        way = target.constants.way(direction)
        holds = way.stream if kind_of(kernel) == "stream" else way.recurrence
        needed = holds.registers + holds.value * values_of(config, target)
        of_inputs = BYTES[spec.dtype.io] * rows * config["BLOCK_T"]
        of_inputs *= len(spec.inputs) + (direction == "backward")
        in_flight = config["PREFETCH"] - (kind_of(kernel) == "recurrence")
        shared = int(of_inputs * (holds.tile * in_flight + holds.shared))
    registers = max(32, min(granted, math.ceil(needed / 8) * 8))
    occupied: float = registers
    rough = is_tile and direction == "backward"  # as `Running.at_once` says
    if rough:
        occupied = needed
        if config.get("maxnreg"):  # what may use more than the compiler would choose does so
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


def shared_of_taps(kernel: Kernel, config: Mapping[str, int], spec: OpSpec) -> int:
    """Bytes of shared memory that a kernel of streams takes for its taps: as Toeplitz matrices of
    all blocks that they reach, which stay there.
    """
    if kind_of(kernel) != "stream" or spec.filter.length is None:
        return 0
    step = config["BLOCK_T"]
    blocks = -(-(spec.filter.length - 1) // step) + 1
    return blocks * step * step * operand_bytes(spec) * tap_terms(spec)


def _registers_of_tiles(kernel: Kernel, config: Mapping[str, int], target: Target) -> float:
    """What a thread of a kernel of tiles needs, by estimate."""
    values = max(float(config["ROWS"]), values_of(config, target))
    loads = [step.rows for step in kernel.program.body if isinstance(step, LoadRows)]
    if kernel.role == Role.FORWARD:
        forward = target.constants.forward_registers
        each = float(values**forward.power)
        if config["TILES"] > 1:
            each *= 1 + forward.next_tile / config["ROWS"]
            each *= forward.hinted if config.get("EVICT_LAST") else 1.0
        if config["BLOCK_D"] > 1:
            each *= forward.wide
        return forward.fixed + len(loads) * each
    backward = target.constants.backward_registers
    context = sum(rows.hi - rows.lo for rows in loads)
    of_rows = backward.value * len(loads) * values + backward.context * context
    return backward.fixed + of_rows + backward.partial * kernel.program.partial_rows


def warm_up_tiles(at: AtWork) -> int:
    """Tiles that a stream computes before its first, to fill what it remembers."""
    return math.ceil(((at.spec.filter.length or 1) - 1) / at.config["BLOCK_T"]) + 1
