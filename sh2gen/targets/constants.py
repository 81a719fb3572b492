"""The constants of the cost model that a GPU's file holds, and what each of them means.

They are fitted to times that were measured on one GPU, or are estimates of what its compiler does;
`sh2gen/cost/cost.py` is where they are used. Units are seconds, bytes and 32-bit registers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Constants of kernels of tiles, of one direction (`benchmarks/calibrate.py`).

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
    """Constants of kernels that stream along segments, of one direction, but for the variant for
    sm_90.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrences:
    """Constants of recurrences, of one direction.

    Attributes:
        scan: factor between what was measured and what the model says without it: of a scan,
            which all other instructions wait for.
        tile: instructions that a thread issues once a tile: exchanges between blocks, tables.
        program: seconds of a program before its first tile and after its last, for all that run
            at once: of tables, states and sums.
        few_rows: warps that have fewer rows of products than this take `few` times as long.
        step: seconds a time step of a program that has a multiprocessor to itself: where channels
            are few nothing else counts (docs/performance.md, sequences in splits).
        wait: share of the time for each warp of a program that programs which run at once wait for
            each other at barriers; other factors were fitted where all of it is `waited`.
        spill: share of the time for each register that a schedule does not grant.
        splits: factor of the time where sequences are cut: half of the inputs are read before, for
            the sums of tiles.
    """

    scan: float
    tile: float
    program: float
    few_rows: int
    few: float
    step: float
    wait: float
    waited: float
    spill: float
    splits: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a program of a stream or a recurrence holds, by estimate from builds.

    Attributes:
        value: registers of a thread for each value of a tile that it has.
        registers: those that it needs beside.
        tile: shared memory for each tile in flight, in tiles of all inputs.
        shared: what there is beside, in tiles of all inputs.
    """

    value: float
    registers: float
    tile: float
    shared: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Constants of one direction.

    Attributes:
        by_rows: seconds of a tile of a stream for each value that a thread has: channels last,
            rows move in short accesses and through shared memory.
    """

    tiles: Tiles
    streams: Streams
    by_rows: float
    recurrences: Recurrences
    stream: Footprint
    recurrence: Footprint


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardRegisters:
    """Registers of a thread of a forward kernel of tiles, by estimate from builds.

    Attributes:
        fixed: whatever it does.
        power: exponent of the values that it has of a tile, for each tensor that is loaded.
        next_tile: where a program has several tiles, that much more over ROWS: addresses and masks
            of the next one, beside those of this one.
        hinted: factor where these loads have a hint.
        wide: factor where a program has several channels, whose taps are private to lanes.
    """

    fixed: float
    power: float
    next_tile: float
    hinted: float
    wide: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BackwardRegisters:
    """Registers of a thread of a backward kernel of tiles, by estimate from builds.

    Attributes:
        fixed: whatever it does.
        value: for each value of a tile that it has, of each tensor that is loaded.
        context: for each row of context.
        partial: for each partial sum.
        granted: how many times as many the compiler uses where `maxnreg` lets it.
    """

    fixed: float
    value: float
    context: float
    partial: float
    granted: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Transforms:
    """FFTs of plain PyTorch: a transform with its inverse and the product between them.

    Attributes:
        number: bytes moved for each number of a padded row; `octave` more for each octave beyond
            256 numbers.
        launches: kernels.
    """

    number: float
    octave: float
    launches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Eager:
    """Bytes that plain PyTorch moves, fitted to times of it (tests/data/plans).

    Attributes:
        conv, gradient: transforms of a convolution, and of the gradient of taps.
        power_of_two: factor of their bytes where the size is one.
        channels_last: bytes more of an activation that is channels last, to turn it around.
        taps: bytes of a tap of a channel: expanded, padded and transformed.
    """

    conv: Transforms
    gradient: Transforms
    power_of_two: float
    channels_last: float
    taps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The variant for sm_90 of a stream, which waits for loads and products that nothing overlaps
    with.

    Attributes:
        stream: factor between what was measured (docs/performance.md) and what the model says
            without it.
        tile: seconds of a tile, where channels are few.
    """

    stream: float
    tile: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """All constants of the cost model of one GPU.

    Attributes:
        once: seconds that an elementwise kernel takes whatever its size, and that others do too:
            programs begin all at once and end one by one.
        launch: seconds from one kernel's end to the next one's first instruction.
        variant: of the variant for sm_90, on GPUs that run it.
    """

    once: float
    launch: float
    variant: Variant
    forward: Way
    backward: Way
    forward_registers: ForwardRegisters
    backward_registers: BackwardRegisters
    eager: Eager

    def way(self, direction: str) -> Way:
        """The constants of "forward" or "backward"."""
        return self.forward if direction == "forward" else self.backward
