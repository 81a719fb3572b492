"""conv_512: 512-tap explicit causal convolution, filters shared by 16 channels

    z = x
    y = filter * z

Activations are (B, D, L) with B batch, L time steps, D = 4096 channels; G = 256 filter
groups, K = 512 taps. Plan toeplitz/BDL/recompute.

Written by sh2gen. Imports torch and, where there is one, triton; nothing else.
Verified: by Triton's interpreter, not yet run on a GPU.
sha256, with zeros here: ed004096cc1747a60d682a98dd15412196b441d4d2d2d028c6587a14e79d36f7
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:  # plain PyTorch needs no Triton: let the kernels be defined, though not run
    from types import SimpleNamespace

    HAS_TRITON = False
    tl = SimpleNamespace(constexpr=None)
    triton = SimpleNamespace(jit=lambda function=None, **_: function or (lambda f: f))

OP = "conv_512"
PLAN = "toeplitz/BDL/recompute"
LAYOUT = "BDL"
INPUTS = ("x",)
PARAMETERS = {"filter": (256, 512)}
CHANNELS = 4096
INTERLEAVED = False  # how features are packed: channel by channel, or input by input
TIME, CHANNEL = 2, 1  # axes of an activation
BYTE_BUDGET = 2**30  # of the temporaries of plain PyTorch
PLAIN = 0  # how many want plain PyTorch on every device, instead of library ops
BINARIES: dict = {}  # compiled kernels by the traits of their arguments
SCHEDULE = {
    "forward": {
        "ROWS": 8,
        "BLOCK_D": 16,
        "SEGMENTS": 2,
        "BLOCK_T": 64,
        "TILES": 32,
        "PREFETCH": 3,
    },
    "backward": {
        "ROWS": 8,
        "BLOCK_D": 16,
        "SEGMENTS": 2,
        "BLOCK_T": 32,
        "TILES": 64,
        "PREFETCH": 1,
    },
}
OPTIONS = {  # of the compiler
    "forward": {"num_warps": 4, "enable_fp_fusion": True},
    "backward": {"num_warps": 8, "enable_fp_fusion": True},
    "reduce": {"num_warps": 4, "enable_fp_fusion": True},
}
NUMBERS = {
    "forward": {
        "ROWS": 8,
        "BLOCK_D": 16,
        "SEGMENTS": 2,
        "BLOCK_T": 64,
        "TILES": 32,
        "PREFETCH": 3,
        "num_warps": 4,
        "maxnreg": 0,
    },
    "backward": {
        "ROWS": 8,
        "BLOCK_D": 16,
        "SEGMENTS": 2,
        "BLOCK_T": 32,
        "TILES": 64,
        "PREFETCH": 1,
        "TILES_SM90": 0,
        "num_warps": 8,
        "maxnreg": 0,
    },
}  # the schedule
SPEC = {
    "op": "conv_512",
    "channels": 4096,
    "filter": {
        "kind": "explicit",
        "length": 512,
        "groups": 256,
        "taps": "lag_first",
        "decay": "none",
        "modes": "none",
        "parametrisation": "none",
    },
    "featurizer": "none",
    "gates": {"pre": False, "post": False},
    "skip": "none",
    "bias": "none",
    "activation": "none",
    "precision": "balanced",
    "dtype": {"io": "bfloat16", "accumulate": "float32"},
    "layout": {"activations": "auto", "projection": "thirds"},
    "state": "none",
    "sequences": "dense",
    "context": "none",
    "workloads": [
        {"batch": 1, "length": 2048},
        {"batch": 1, "length": 8192},
        {"batch": 1, "length": 32768},
        {"batch": 1, "length": 131072},
    ],
}

# -----------------------------------------------------------------------------------------------
# Helpers of the kernels
# -----------------------------------------------------------------------------------------------


@triton.jit
def rounded(x, PRECISION: tl.constexpr):
    """x as a product reads it: float32 is rounded to TF32, where the hardware would cut it off."""
    if PRECISION == "tf32":
        bits = x.to(tl.int32, bitcast=True)
        return ((bits + 0x1000) & ~0x1FFF).to(tl.float32, bitcast=True)
    else:
        return x


@triton.jit
def terms(x, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """x as a sum of operands: two terms, or x itself where products read float32 as it is."""
    high = rounded(x.to(OPERAND), PRECISION)
    if tl.float32 == OPERAND and PRECISION == "ieee":
        return (high,)
    else:
        return high, rounded((x - high.to(tl.float32)).to(OPERAND), PRECISION)


@triton.jit
def load_toeplitz(
    ptr, group, LENGTH: tl.constexpr, LAG_LAST: tl.constexpr,
    BLOCK_T: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """T_s[j, i] = taps[s BLOCK_T + i - j], zero where there is no such tap: matrices
    [BLOCK_T, BLOCK_T] that take a block of inputs, and those before it, to a block of outputs.
    With two TERMS then come as many of what rounding leaves of taps.
    """
    j = tl.arange(0, BLOCK_T)[:, None]
    i = tl.arange(0, BLOCK_T)[None, :]
    matrices, low = (), ()
    for s in tl.static_range((LENGTH - 1 + BLOCK_T - 1) // BLOCK_T + 1):
        lag = s * BLOCK_T + i - j
        tap = LENGTH - 1 - lag if LAG_LAST else lag
        where = ptr + group * LENGTH + tap
        value = tl.load(where, mask=(lag >= 0) & (lag < LENGTH), other=0.0)
        if TERMS == 1:
            matrices = matrices + (rounded(value.to(OPERAND), PRECISION),)
        else:
            both = terms(value.to(tl.float32), OPERAND, PRECISION)
            matrices = matrices + both[:1]
            low = low + both[1:]
    return matrices + low


@triton.jit
def zero_blocks(
    COUNT: tl.constexpr, M: tl.constexpr, BLOCK_T: tl.constexpr, OPERAND: tl.constexpr
):
    """COUNT blocks [M, BLOCK_T] of zeros."""
    blocks = ()
    for _ in tl.static_range(COUNT):
        blocks = blocks + (tl.zeros((M, BLOCK_T), OPERAND),)
    return blocks


@triton.jit
def carry(blocks, going):
    """The same blocks, as values of this tile.

    The compiler prefetches loads only in loops that hand nothing on over two tiles unchanged;
    `going` is true, which the compiler cannot know.
    """
    out = ()
    for i in tl.static_range(len(blocks)):
        out = out + (tl.where(going, blocks[i], tl.zeros_like(blocks[i])),)
    return out


@triton.jit
def rows_vector(
    rows, first: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr, dtype: tl.constexpr
):
    """The inverse of vector_rows for rows first .. first + 7, rounded to dtype."""
    x04 = tl.reshape(tl.join(rows[first].to(dtype), rows[first + 4].to(dtype)), (BLOCK_D, N * 2))
    x15 = tl.reshape(
        tl.join(rows[first + 1].to(dtype), rows[first + 5].to(dtype)), (BLOCK_D, N * 2)
    )
    x26 = tl.reshape(
        tl.join(rows[first + 2].to(dtype), rows[first + 6].to(dtype)), (BLOCK_D, N * 2)
    )
    x37 = tl.reshape(
        tl.join(rows[first + 3].to(dtype), rows[first + 7].to(dtype)), (BLOCK_D, N * 2)
    )
    even = tl.reshape(tl.join(x04, x26), (BLOCK_D, N * 4))
    odd = tl.reshape(tl.join(x15, x37), (BLOCK_D, N * 4))
    return tl.reshape(tl.join(even, odd), (BLOCK_D, N * 8))


@triton.jit
def remember(
    past, rows, going,
    M: tl.constexpr, N: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The block of these rows and those before it; and what the next tile has before it."""
    block = rounded(rows_vector(rows, 0, M, N, OPERAND), PRECISION)
    blocks = (block,) + past
    if len(past) == 0:
        return blocks, past
    else:
        return blocks, (block,) + carry(past[0 : len(past) - 1], going)


@triton.jit
def look_ahead(
    coming, rows, going,
    M: tl.constexpr, N: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The tile's block and those of the steps before it, of which these rows are the earliest;
    and what the next tile has already.
    """
    block = rounded(rows_vector(rows, 0, M, N, OPERAND), PRECISION)
    blocks = coming + (block,)
    if len(coming) == 0:
        return blocks, coming
    else:
        return blocks, carry(coming[1 : len(coming)], going) + (block,)


@triton.jit
def vector_rows(x, BLOCK_D: tl.constexpr, N: tl.constexpr):
    """[BLOCK_D, N * 8] -> its eight phases, each a float32 row [BLOCK_D, N]."""
    even, odd = tl.split(tl.reshape(x, (BLOCK_D, N * 4, 2)))
    x04, x26 = tl.split(tl.reshape(even, (BLOCK_D, N * 2, 2)))
    x15, x37 = tl.split(tl.reshape(odd, (BLOCK_D, N * 2, 2)))
    x0, x4 = tl.split(tl.reshape(x04, (BLOCK_D, N, 2)))
    x1, x5 = tl.split(tl.reshape(x15, (BLOCK_D, N, 2)))
    x2, x6 = tl.split(tl.reshape(x26, (BLOCK_D, N, 2)))
    x3, x7 = tl.split(tl.reshape(x37, (BLOCK_D, N, 2)))
    rows = (x0, x1, x2, x3, x4, x5, x6, x7)
    out = ()
    for r in tl.static_range(8):
        out = out + (rows[r].to(tl.float32),)
    return out


@triton.jit
def toeplitz(
    blocks, matrices, COUNT: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of y[t] = sum_j taps[j] x[t - j], from the COUNT blocks of x at t and before."""
    y = tl.dot(blocks[0], matrices[0], input_precision=PRECISION)
    for s in tl.static_range(1, COUNT):
        y = tl.dot(blocks[s], matrices[s], y, input_precision=PRECISION)
    for s in tl.static_range(len(matrices) - COUNT):
        y = tl.dot(blocks[s], matrices[COUNT + s], y, input_precision=PRECISION)
    return vector_rows(y, M, N)


@triton.jit
def toeplitz_adjoint(
    blocks, matrices, COUNT: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of y[t] = sum_j taps[j] x[t + j], from the COUNT blocks of x at t and after."""
    y = tl.dot(blocks[0], tl.trans(matrices[0]), input_precision=PRECISION)
    for s in tl.static_range(1, COUNT):
        y = tl.dot(blocks[s], tl.trans(matrices[s]), y, input_precision=PRECISION)
    for s in tl.static_range(len(matrices) - COUNT):
        y = tl.dot(blocks[s], tl.trans(matrices[COUNT + s]), y, input_precision=PRECISION)
    return vector_rows(y, M, N)


@triton.jit
def zero_toeplitz(LENGTH: tl.constexpr, BLOCK_T: tl.constexpr):
    """Accumulators of the gradients of two matrices each, the columns of both in turn.

    Products of 64 rows run on the tensor cores as a whole, those of fewer do not.
    """
    total = ()
    for _ in tl.static_range(0, (LENGTH - 1 + BLOCK_T - 1) // BLOCK_T + 1, 2):
        total = total + (tl.zeros((2 * BLOCK_T, BLOCK_T), tl.float32),)
    return total


@triton.jit
def toeplitz_gradient(
    total, grad, blocks, COUNT: tl.constexpr,
    M: tl.constexpr, BLOCK_T: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total[s][j, i] += sum over rows of blocks[s][j] grad[0][i], s < COUNT; two s to an
    accumulator.
    """
    out = ()
    for pair in tl.static_range(len(total)):
        if 2 * pair + 1 < COUNT:
            both = tl.join(blocks[2 * pair], blocks[2 * pair + 1])
        else:
            both = tl.join(blocks[2 * pair], tl.zeros_like(blocks[2 * pair]))
        columns = tl.reshape(tl.permute(both, (1, 2, 0)), (2 * BLOCK_T, M))
        out = out + (tl.dot(columns, grad[0], total[pair], input_precision=PRECISION),)
    return out


@triton.jit
def store_toeplitz(ptr, total, STRIDE: tl.constexpr, LENGTH: tl.constexpr, BLOCK_T: tl.constexpr):
    """Write the sums along diagonals, gradients of taps 0 .. LENGTH - 1 by lag, STRIDE apart."""
    j = tl.arange(0, BLOCK_T)[:, None]
    turn = tl.arange(0, BLOCK_T)[None, :]
    lag = tl.arange(0, BLOCK_T)
    before = tl.zeros((BLOCK_T,), tl.float32)
    for s in tl.static_range((LENGTH - 1 + BLOCK_T - 1) // BLOCK_T + 1):
        pair = tl.permute(tl.reshape(total[s // 2], (BLOCK_T, 2, BLOCK_T)), (0, 2, 1))
        even, odd = tl.split(pair)
        own = odd if s % 2 else even
        # Row j turned left by j: column c holds i = j + c, or, wrapped, that of earlier lags.
        turned = tl.gather(own, (j + turn) % BLOCK_T, 1)
        wrapped = j + turn >= BLOCK_T
        earlier = before + tl.sum(tl.where(wrapped, turned, 0.0), axis=0)
        before = tl.sum(tl.where(wrapped, 0.0, turned), axis=0)
        if s > 0:
            tap = (s - 1) * BLOCK_T + lag
            tl.store(ptr + tap * STRIDE, earlier, mask=tap < LENGTH)
    tap = (LENGTH - 1 + BLOCK_T - 1) // BLOCK_T * BLOCK_T + lag
    tl.store(ptr + tap * STRIDE, before, mask=tap < LENGTH)


@triton.jit
def locate(program, time_programs, BLOCK_D: tl.constexpr, CHANNELS: tl.constexpr):
    """(batch, first channel, time program) of one program; neighbours in time run together."""
    channel_programs: tl.constexpr = (CHANNELS + BLOCK_D - 1) // BLOCK_D
    outer = program // time_programs
    return outer // channel_programs, outer % channel_programs * BLOCK_D, program % time_programs


@triton.jit
def advance(ptr, batch_stride, row, STEP: tl.constexpr, unit, origin):
    """The pointer to origin = (batch, channel, time), in 64-bit arithmetic, and the row stride.

    Strides come in units of STEP elements, which tells the compiler how rows are aligned.
    """
    batch, channel, time = origin
    offset = batch.to(tl.int64) * batch_stride * STEP + channel.to(tl.int64) * row * STEP
    return ptr + offset + time.to(tl.int64) * unit, row * STEP


@triton.jit
def load_rows(
    ptr, row, unit, tile,
    LO: tl.constexpr, HI: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Rows LO .. HI - 1 from the first step of each block of ROWS; zero outside [first, last).

    EVEN says that the segment's bounds are multiples of 8, so that a vector is inside or outside
    as a whole. Otherwise only tiles at an edge pay for a mask on every element. Lanes may begin at
    different times t, from `earliest` to `latest`.
    """
    channel, inside, t, earliest, latest, first, last, end = tile
    rows = ()
    for vector in tl.static_range(LO // 8, (HI + 7) // 8):
        index = tl.arange(0, N * 8)[None, :]
        begin = t + vector * 8 + index // 8 * ROWS  # of the vector
        time = begin + index % 8
        where = ptr + channel * row + time * unit
        if EVEN:
            x = tl.load(where, mask=inside & (begin >= first) & (begin < last), other=0.0)
        elif (earliest + vector * 8 >= first) & (latest + vector * 8 + N * ROWS <= last):
            x = tl.load(where, mask=inside, other=0.0)
        else:
            x = tl.load(where, mask=inside & (time >= first) & (time < last), other=0.0)
        rows = rows + vector_rows(x, BLOCK_D, N)
    return rows[LO - LO // 8 * 8 : LO - LO // 8 * 8 + HI - LO]


@triton.jit
def store_rows(
    ptr, row, unit, tile, rows, EVEN: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr
):
    """Write the rows of every block that lie before `end`."""
    channel, inside, t, earliest, latest, first, last, end = tile
    for vector in tl.static_range(len(rows) // 8):
        x = rows_vector(rows, vector * 8, BLOCK_D, N, ptr.dtype.element_ty)
        index = tl.arange(0, N * 8)[None, :]
        begin = t + vector * 8 + index // 8 * len(rows)
        time = begin + index % 8
        where = ptr + channel * row + time * unit
        if EVEN:
            tl.store(where, x, mask=inside & (begin < end))
        elif latest + vector * 8 + N * len(rows) <= end:
            tl.store(where, x, mask=inside)
        else:
            tl.store(where, x, mask=inside & (time < end))


@triton.jit
def sum_rows(
    partials_ptr,  # [splits, P, COLUMNS] float32
    out_ptr,  # [rows, LENGTH] float32, rows = ROLES * COLUMNS / WIDTH
    splits, program,
    FIRST: tl.constexpr, P: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
    LENGTH: tl.constexpr, ROLES: tl.constexpr, INTERLEAVED: tl.constexpr, LAG_LAST: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program's gradient rows of one parameter tensor: of partials FIRST .. FIRST + ROLES *
    LENGTH - 1, summed over splits and over the WIDTH columns that share a row, always in the same
    order."""
    AT_ONCE: tl.constexpr = 8  # splits: their loads wait together, their sums one after another
    groups: tl.constexpr = COLUMNS // WIDTH
    blocks: tl.constexpr = (groups + BLOCK_G - 1) // BLOCK_G
    index = program // blocks  # which lag of which role
    group = program % blocks * BLOCK_G + tl.arange(0, BLOCK_G)[:, None]
    member = tl.arange(0, BLOCK_W)[None, :]
    total = tl.zeros((BLOCK_G, BLOCK_W), tl.float32)
    for begin in range(0, WIDTH, BLOCK_W):
        inside = (group < groups) & (begin + member < WIDTH)
        where = partials_ptr + (FIRST + index) * COLUMNS + group * WIDTH + begin + member
        for split in range(0, splits, AT_ONCE):
            for i in tl.static_range(AT_ONCE):
                there = inside & (split + i < splits)
                total += tl.load(where + i * P * COLUMNS, mask=there, other=0.0)
            where += AT_ONCE * P * COLUMNS
    role = index // LENGTH
    lag = index % LENGTH
    tap = LENGTH - 1 - lag if LAG_LAST else lag
    row = group * ROLES + role if INTERLEAVED else role * groups + group
    tl.store(
        out_ptr + row * LENGTH + tap, tl.sum(total, axis=1, keep_dims=True), mask=group < groups
    )


# -----------------------------------------------------------------------------------------------
# Kernels
# -----------------------------------------------------------------------------------------------


@triton.jit(
    do_not_specialize=[
        "x_batch", "x_row",
        "y_batch", "y_row",
        "first", "last", "end", "time_programs", "tiles",
    ]
)  # fmt: skip
def conv_512_forward(
    x_ptr, x_batch, x_row,
    y_ptr, y_batch, y_row,
    filter_ptr,  # (256, 512)
    first, last, end, time_programs, tiles,
    CHANNELS: tl.constexpr, UNIT: tl.constexpr,
    STEP: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK_T: tl.constexpr,
    TILES: tl.constexpr, PREFETCH: tl.constexpr,
):  # fmt: skip
    """z = x; y = filter * z

    A program computes SEGMENTS consecutive segments of `tiles` tiles of BLOCK_T steps side by
    side,
    forward in time, for BLOCK_D channels of a group. Time counts from the first step
    written; activations are read in [first, last), are zero elsewhere, and are written up to
    `end`.
    EVEN says that these three are multiples of 8; strides count in units of STEP elements.
    """
    N: tl.constexpr = BLOCK_T // ROWS  # blocks of ROWS steps in a tile
    M: tl.constexpr = SEGMENTS * BLOCK_D  # rows of a product
    HISTORY: tl.constexpr = (512 - 1 + BLOCK_T - 1) // BLOCK_T  # blocks before one
    LEAD: tl.constexpr = HISTORY * BLOCK_T
    OPERAND: tl.constexpr = tl.bfloat16 if x_ptr.dtype.element_ty == tl.bfloat16 else tl.float32
    PRECISION: tl.constexpr = "tf32" if x_ptr.dtype.element_ty == tl.float16 else "ieee"
    PARTS: tl.constexpr = (16 + BLOCK_D - 1) // BLOCK_D  # of a group
    PROGRAMS: tl.constexpr = CHANNELS // 16 * PARTS  # along channels
    batch, part, block = locate(tl.program_id(0), time_programs, 1, PROGRAMS)
    group = part // PARTS
    channel_0 = group * 16 + part % PARTS * BLOCK_D
    steps = tiles * BLOCK_T  # of a segment
    step_0 = block * (SEGMENTS * steps)
    origin = (batch, channel_0, step_0)
    x_ptr, x_row = advance(x_ptr, x_batch, x_row, STEP, UNIT, origin)
    y_ptr, y_row = advance(y_ptr, y_batch, y_row, STEP, 1, origin)
    first -= step_0
    last -= step_0
    end -= step_0
    lane = tl.arange(0, M)[:, None]
    channel = lane % BLOCK_D
    segment = lane // BLOCK_D * steps  # where it begins
    row = channel_0 + channel
    inside = row < (group + 1) * 16
    going = time_programs > 0
    latest = (SEGMENTS - 1) * steps
    filter = load_toeplitz(filter_ptr, group, 512, False, BLOCK_T, OPERAND, PRECISION, TERMS=1)
    x_blocks_kept = zero_blocks(HISTORY, M, BLOCK_T, OPERAND)
    for t in range(-LEAD, 0, BLOCK_T):
        tile = (channel, inside, segment + t, t, latest + t, first, last, 0)
        x = load_rows(x_ptr, x_row, UNIT, tile, 0, ROWS, EVEN, ROWS, M, N)
        x_blocks, x_blocks_kept = remember(x_blocks_kept, x, going, M, N, OPERAND, PRECISION)
    for t in tl.range(0, tl.minimum(steps, end), BLOCK_T, num_stages=PREFETCH):
        tile = (channel, inside, segment + t, t, latest + t, first, last, end)
        x = load_rows(x_ptr, x_row, UNIT, tile, 0, ROWS, EVEN, ROWS, M, N)
        x_blocks, x_blocks_kept = remember(x_blocks_kept, x, going, M, N, OPERAND, PRECISION)
        conv = toeplitz(x_blocks, filter, HISTORY + 1, M, N, PRECISION)
        store_rows(y_ptr, y_row, 1, tile, conv, EVEN, M, N)


@triton.jit(
    do_not_specialize=[
        "x_batch", "x_row",
        "dy_batch", "dy_row",
        "d_x_batch", "d_x_row",
        "first", "last", "end", "time_programs", "tiles",
    ]
)  # fmt: skip
def conv_512_backward(
    x_ptr, x_batch, x_row,
    dy_ptr, dy_batch, dy_row,
    d_x_ptr, d_x_batch, d_x_row,
    filter_ptr,  # (256, 512)
    group_partials_ptr,  # [programs along batch and time, 512, programs along channels] float32
    first, last, end, time_programs, tiles,
    CHANNELS: tl.constexpr, UNIT: tl.constexpr, D_UNIT: tl.constexpr,
    STEP: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK_T: tl.constexpr,
    TILES: tl.constexpr, PREFETCH: tl.constexpr,
):  # fmt: skip
    """Gradients of every input, and partial sums of those of parameters.

    A program computes SEGMENTS consecutive segments of `tiles` tiles of BLOCK_T steps side by
    side,
    backward in time, for BLOCK_D channels of a group. Time counts from the first step
    written; activations are read in [first, last), are zero elsewhere, and are written up to
    `end`.
    EVEN says that these three are multiples of 8; strides count in units of STEP elements.
    """
    N: tl.constexpr = BLOCK_T // ROWS  # blocks of ROWS steps in a tile
    M: tl.constexpr = SEGMENTS * BLOCK_D  # rows of a product
    HISTORY: tl.constexpr = (512 - 1 + BLOCK_T - 1) // BLOCK_T  # blocks before one
    LEAD: tl.constexpr = HISTORY * BLOCK_T
    OPERAND: tl.constexpr = tl.bfloat16 if x_ptr.dtype.element_ty == tl.bfloat16 else tl.float32
    PRECISION: tl.constexpr = "tf32" if x_ptr.dtype.element_ty == tl.float16 else "ieee"
    PARTS: tl.constexpr = (16 + BLOCK_D - 1) // BLOCK_D  # of a group
    PROGRAMS: tl.constexpr = CHANNELS // 16 * PARTS  # along channels
    batch, part, block = locate(tl.program_id(0), time_programs, 1, PROGRAMS)
    group = part // PARTS
    channel_0 = group * 16 + part % PARTS * BLOCK_D
    steps = tiles * BLOCK_T  # of a segment
    step_0 = block * (SEGMENTS * steps)
    origin = (batch, channel_0, step_0)
    x_ptr, x_row = advance(x_ptr, x_batch, x_row, STEP, UNIT, origin)
    dy_ptr, dy_row = advance(dy_ptr, dy_batch, dy_row, STEP, 1, origin)
    d_x_ptr, d_x_row = advance(d_x_ptr, d_x_batch, d_x_row, STEP, D_UNIT, origin)
    first -= step_0
    last -= step_0
    end -= step_0
    lane = tl.arange(0, M)[:, None]
    channel = lane % BLOCK_D
    segment = lane // BLOCK_D * steps  # where it begins
    row = channel_0 + channel
    inside = row < (group + 1) * 16
    going = time_programs > 0
    latest = (SEGMENTS - 1) * steps
    filter = load_toeplitz(filter_ptr, group, 512, False, BLOCK_T, OPERAND, PRECISION, TERMS=1)
    d_filter = zero_toeplitz(512, BLOCK_T)
    x_blocks_kept = zero_blocks(HISTORY, M, BLOCK_T, OPERAND)
    dy_blocks_kept = zero_blocks(HISTORY, M, BLOCK_T, OPERAND)
    for back in range(0, LEAD, BLOCK_T):
        t = steps + LEAD - back
        tile = (channel, inside, segment + t, t, latest + t, first, last, 0)
        early = t - LEAD
        ahead = (channel, inside, segment + early, early, latest + early, first, last, 0)
        x_ahead = load_rows(x_ptr, x_row, UNIT, ahead, 0, ROWS, EVEN, ROWS, M, N)
        x_blocks, x_blocks_kept = look_ahead(
            x_blocks_kept, x_ahead, going, M, N, OPERAND, PRECISION
        )
        dy = load_rows(dy_ptr, dy_row, 1, tile, 0, ROWS, EVEN, ROWS, M, N)
        dy_blocks, dy_blocks_kept = remember(dy_blocks_kept, dy, going, M, N, OPERAND, PRECISION)
    # The first tile lies after the segment: only what the one before it takes from it is used.
    for back in tl.range(0, steps + BLOCK_T, BLOCK_T, num_stages=PREFETCH):
        t = steps - back
        stop = tl.where(back > 0, end, 0)
        tile = (channel, inside, segment + t, t, latest + t, first, last, stop)
        early = t - LEAD
        ahead = (channel, inside, segment + early, early, latest + early, first, last, 0)
        x_ahead = load_rows(x_ptr, x_row, UNIT, ahead, 0, ROWS, EVEN, ROWS, M, N)
        x_blocks, x_blocks_kept = look_ahead(
            x_blocks_kept, x_ahead, going, M, N, OPERAND, PRECISION
        )
        dy = load_rows(dy_ptr, dy_row, 1, tile, 0, ROWS, EVEN, ROWS, M, N)
        dy_blocks, dy_blocks_kept = remember(dy_blocks_kept, dy, going, M, N, OPERAND, PRECISION)
        d_x = toeplitz_adjoint(dy_blocks, filter, HISTORY + 1, M, N, PRECISION)
        store_rows(d_x_ptr, d_x_row, D_UNIT, tile, d_x, EVEN, M, N)
        d_filter = toeplitz_gradient(
            d_filter, dy_blocks, x_blocks, HISTORY + 1, M, BLOCK_T, PRECISION
        )
        if back == 0:
            d_filter = zero_toeplitz(512, BLOCK_T)
    split = batch * time_programs + block
    group_partials_ptr += split.to(tl.int64) * (512 * PROGRAMS) + part
    store_toeplitz(group_partials_ptr, d_filter, PROGRAMS, 512, BLOCK_T)


@triton.jit(do_not_specialize=["group_splits"])
def sum_partials(
    group_partials_ptr,  # [group_splits, 512, 256] float32
    d_filter_ptr,  # (256, 512)
    group_splits,
):  # fmt: skip
    """Gradients of filter, each by programs of its own."""
    program = tl.program_id(0)
    sum_rows(
        group_partials_ptr, d_filter_ptr, group_splits, program,
        FIRST=0, P=512, COLUMNS=256, WIDTH=1, LENGTH=512, ROLES=1,
        INTERLEAVED=False, LAG_LAST=False, BLOCK_G=128, BLOCK_W=1,
    )  # fmt: skip


# -----------------------------------------------------------------------------------------------
# Launchers
# -----------------------------------------------------------------------------------------------


def dense(x: Tensor) -> Tensor:
    """x itself if its last axis is contiguous, else a copy for which it is."""
    return x if x.stride(2) == 1 else allocate(x, x.shape[TIME]).copy_(x)


def common_unit(tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], int]:
    """The tensors and the stride of their last axis, which kernels take as a constant.

    Views of interleaved features keep their stride; anything wider, or mixed, is copied first.
    """
    units = {x.stride(2) for x in tensors}
    widest = 1 if LAYOUT == "BDL" else len(INPUTS)
    if len(units) == 1 and min(units) in range(1, widest + 1):
        return tuple(tensors), units.pop()
    return tuple(dense(x) for x in tensors), 1


def operand(x: Tensor, begin: int, step: int) -> tuple[Tensor, int, int]:
    """What a kernel takes for an activation: data from `begin` on, and strides over `step`."""
    batch_stride, row_stride, _ = x.stride()
    data = x.narrow(TIME, begin, x.shape[TIME] - begin) if begin else x
    return data, batch_stride // step if x.shape[0] > 1 else 0, row_stride // step


def segment(
    x: Tensor, context: int, begin: int, end: int | None, tile: int
) -> tuple[int, int, tuple[int, int, int]]:
    """Bounds of a launch: first step in x, number of steps, and the kernel's (first, last, end).

    A segment is x without its `context` leading steps, which are history: read, never written.
    Outputs are the steps begin .. end - 1 of the segment; a range that ends inside it is whole
    tiles.
    """
    length = x.shape[TIME] - context
    end = length if end is None else end
    if not (context >= 0 and 0 <= begin <= end <= length):
        raise ValueError(
            f"{OP}: steps {begin} .. {end} are not within a segment of {length} steps"
        )
    if end != length and (end - begin) % tile:
        raise ValueError(f"{OP}: {end - begin} steps are no multiple of the tile of {tile} steps")
    return context + begin, end - begin, (-(context + begin), length - begin, end - begin)


def even(bounds: tuple[int, int, int]) -> bool:
    """Whether a vector of 8 steps lies within or without the bounds as a whole."""
    return all(bound % 8 == 0 for bound in bounds)


def stream_programs(
    batch: int, steps: int, schedule: dict[str, int], width: int, whole: bool
) -> tuple[int, int, int]:
    """As `programs` for programs that stream along segments of a group of `width` channels:
    programs along time, tiles of a segment, programs in all.

    A segment has TILES tiles, fewer if the steps are few, and more if they are so many that the
    partial sums of more than 32 programs along time would weigh something. `whole` asks for
    segments that end with the steps, so that no sum goes beyond them.
    """
    tiles_in_all = -(-steps // (schedule["BLOCK_T"] * schedule["SEGMENTS"]))
    tiles = max(1, min(schedule["TILES"], tiles_in_all), -(-tiles_in_all // 32))
    while whole and tiles_in_all % tiles:
        tiles -= 1
    along_time = -(-tiles_in_all // tiles)
    along_channels = CHANNELS // width * -(-width // schedule["BLOCK_D"])
    return along_time, tiles, batch * along_time * along_channels


def stride_step(schedule: dict[str, int], tensors: Sequence[Tensor], tiles: int) -> int:
    """8 if all strides are multiples of 8 elements, so that accesses are 16 bytes wide; else 1.

    Refuses row strides that the 32-bit offsets within a program of so many tiles cannot hold;
    those of the program itself are 64-bit.
    """
    rows = schedule.get("BLOCK_D", 1)
    if LAYOUT == "BLD":  # and the steps that it looks back and ahead
        rows = schedule["BLOCK_T"] * schedule.get("SEGMENTS", 1) * tiles + 4096
    step = 8
    for x in tensors:
        batch_stride, row_stride, _ = x.stride()
        if rows * row_stride >= 2**31:
            raise ValueError(f"{OP}: a row stride of {row_stride} elements is too large")
        if row_stride % 8 or (batch_stride % 8 and x.shape[0] > 1):
            step = 1
    return step


def trait(argument: Tensor | int) -> tuple[object, ...]:
    """What Triton compiles another binary for: dtype and alignment, or 64 bits."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    return (argument >= 2**31,)


def launch(kernel, grid: int, *arguments: Tensor | int, options: dict[str, int], **constants: int):
    """Run a kernel on the device of its first argument.

    Binding arguments anew for each launch takes the host longer than a short kernel takes the GPU,
    so the binary for arguments of these traits is remembered and launched directly. It takes the
    constants by position, after the arguments.
    """
    device = arguments[0].device
    key = (kernel, device, *map(trait, arguments), *constants.values(), *options.values())
    binary = BINARIES.get(key)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if binary is None:
            assert kernel.arg_names[len(arguments) :] == list(constants), "in the kernel's order"
            BINARIES[key] = kernel[(grid,)](*arguments, **constants, **options)
        else:
            binary[(grid, 1, 1)](*arguments, *constants.values())


def reduce_partials(
    kernel, grid: int, partials: Sequence[Tensor], parameters: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients of parameter tensors, in their shapes and dtypes, from partial sums
    [splits, rows, columns], by one launch of all sections of the kernel that sums these.
    """
    sums = [
        torch.empty_like(p, dtype=torch.float32, memory_format=torch.contiguous_format)
        for p in parameters
    ]
    launch(
        kernel, grid, *partials, *sums, *(p.shape[0] for p in partials), options=OPTIONS["reduce"]
    )
    return [total.to(p.dtype) for total, p in zip(sums, parameters, strict=True)]


def launch_forward(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    context: int = 0,
    begin: int = 0,
    end: int | None = None,
) -> list[Tensor]:
    """[y] for steps begin .. end - 1 of the segment after `context` steps."""
    schedule, options = SCHEDULE["forward"], OPTIONS["forward"]
    (x,), unit = common_unit(unpack(inputs))
    (filter,) = (p.contiguous() for p in parameters)
    first, steps, bounds = segment(x, context, begin, end, schedule["BLOCK_T"])
    time_programs, tiles, grid = stream_programs(x.shape[0], steps, schedule, 16, False)
    outputs = [allocate(x, steps)]
    step = stride_step(schedule, (x, *outputs), tiles)
    if grid:
        launch(
            conv_512_forward,
            grid,
            *operand(x, first, step),
            *operand(outputs[0], 0, step),
            filter,
            *bounds,
            time_programs,
            tiles,
            options=options,
            CHANNELS=CHANNELS,
            UNIT=unit,
            STEP=step,
            EVEN=even(bounds),
            **schedule,
        )
    return outputs


def launch_backward(
    dy: Tensor,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    saved: Sequence[Tensor],
    context: int = 0,
    begin: int = 0,
    end: int | None = None,
) -> list[Tensor]:
    """Gradients of the inputs, packed if they are, then of filter.

    With a range, the gradients of inputs are for its steps and those of parameters sum over them;
    `dy` and saved values cover the whole segment, without its context.
    """
    schedule, options = SCHEDULE["backward"], OPTIONS["backward"]
    (x,), unit = common_unit(unpack(inputs))
    (filter,) = (p.contiguous() for p in parameters)
    dy = dense(dy)
    tile = schedule["BLOCK_T"] * schedule["SEGMENTS"]
    first, steps, bounds = segment(x, context, begin, end, tile)
    gradients = [allocate(x, steps) for x in inputs]
    d_inputs = unpack(gradients)
    inner = bounds[1] > bounds[2]  # a range that ends before its segment does
    time_programs, tiles, grid = stream_programs(dy.shape[0], steps, schedule, 16, inner)
    step = stride_step(schedule, (x, dy, *d_inputs), tiles)
    splits = dy.shape[0] * time_programs
    columns = CHANNELS // 16 * -(-16 // schedule["BLOCK_D"])
    group_partials = dy.new_empty((splits, 512, columns), dtype=torch.float32)
    if grid:
        launch(
            conv_512_backward,
            grid,
            *operand(x, first, step),
            *operand(dy, begin, step),
            *operand(d_inputs[0], 0, step),
            filter,
            group_partials,
            *bounds,
            time_programs,
            tiles,
            options=options,
            CHANNELS=CHANNELS,
            UNIT=unit,
            D_UNIT=d_inputs[0].stride(2),
            STEP=step,
            EVEN=even(bounds),
            **schedule,
        )
    gradients += reduce_partials(sum_partials, 1024, [group_partials], [filter])
    return gradients


# -----------------------------------------------------------------------------------------------
# Plain PyTorch: tensors on a CPU
# -----------------------------------------------------------------------------------------------


def allocate(like: Tensor, steps: int, packed: int | None = None) -> Tensor:
    """An activation of `steps` steps, not yet written, with the batch and dtype of `like`.

    It has the channels of `like`, or `packed` times CHANNELS. Channels-first rows are padded to a
    multiple of 8 elements, so that accesses stay 16 bytes wide whatever the length.
    """
    batch = like.shape[0]
    channels = like.shape[CHANNEL] if packed is None else packed * CHANNELS
    if LAYOUT == "BLD":
        return like.new_empty((batch, steps, channels))
    row = (steps + 7) // 8 * 8
    return like.new_empty_strided((batch, channels, steps), (channels * row, row, 1))


def unpack(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inputs themselves, or their views of one tensor of packed features."""
    roles = len(INPUTS)
    if len(inputs) == roles:
        return tuple(inputs)
    (features,) = inputs
    if not INTERLEAVED:
        return features.chunk(roles, CHANNEL)
    return features.unflatten(CHANNEL, (CHANNELS, roles)).unbind(CHANNEL + 1)


def given(*inputs: Tensor | None) -> list[Tensor]:
    """The inputs that are there: all, or only the first, which is then packed features."""
    return [x for x in inputs if x is not None]


def without_autocast(x: Tensor):
    """A context in which PyTorch computes in the dtypes that it is given, on the device of x."""
    kind = x.device.type
    known = torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if known else nullcontext()


def refuse_second(ctx, *gradients):
    """Refuse derivatives of gradients, which library ops here lack."""
    raise NotImplementedError(
        f"{OP}: no second derivatives: compute them of plain PyTorch, within operator.plain()"
    )


def refuse_batched(dy: Tensor) -> None:
    """Refuse what batches gradients in PyTorch's old way, for which no op can have a rule."""
    if torch._C._functorch.is_legacy_batchedtensor(dy):
        raise NotImplementedError(
            f"{OP}: no batched gradients by is_grads_batched or vectorize=True: use torch.vmap of "
            "torch.autograd.grad, or plain PyTorch, within operator.plain()"
        )


def in_turn(op):
    """A batching rule: one after another, of a tensor that the op gives or of each of several."""

    def batched(info, dims, *arguments):
        pairs = list(zip(arguments, dims, strict=True))
        results = [
            op(*(x if dim is None else x.select(dim, i) for x, dim in pairs))
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        several = type(results[0])
        return several(stacked), several([0] * len(stacked))

    return batched


def two_axes(taps: Tensor) -> Tensor:
    """Taps (G, K), of those or of the weight (G, 1, K) of a conv1d."""
    return taps.squeeze(1) if taps.dim() == 3 else taps


def refuse_transforms(tensors: Sequence[Tensor]) -> None:
    """Refuse derivatives that library ops here lack: those in forward mode, which PyTorch would
    silently take for zero, and those of torch.func.
    """
    functorch = torch._C._functorch
    forward = backward = False
    if torch.compiler.is_compiling():  # which tensors have tangents is not seen there
        forward = forward_ad._current_level >= 0
    elif functorch.maybe_current_level() is not None:
        kinds = {i.level(): i.key() for i in functorch.get_interpreter_stack()}
        jvp, vmap = functorch.TransformType.Jvp, functorch.TransformType.Vmap
        innermost = max((n for n, kind in kinds.items() if kind != vmap), default=0)
        for x in tensors:
            while functorch.is_functorch_wrapped_tensor(x):
                if functorch.is_gradtrackingtensor(x):
                    backward |= x.requires_grad and torch.is_grad_enabled()
                    level = functorch.maybe_get_level(x)
                    if kinds.get(level) == jvp:  # whose tangents are seen from there alone
                        dual = forward_ad.unpack_dual(x)
                        forward |= level != innermost or dual.tangent is not None
                x = functorch.get_unwrapped(x)
            forward |= forward_ad.unpack_dual(x).tangent is not None
    elif forward_ad._current_level >= 0:
        forward = any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)
    if forward or backward:
        mode = "in forward mode (jvp, jacfwd)" if forward else "by torch.func (grad, vjp, jacrev)"
        raise NotImplementedError(
            f"{OP}: no derivatives {mode}: call backward() or torch.autograd.grad instead, or "
            "compute them of plain PyTorch, within operator.plain()"
        )


def chunks(channels: int, width: int, bytes_per_channel: int, budget: int) -> Iterator[slice]:
    """Slices of channels whose temporaries stay below `budget` bytes, at least one channel each.

    A slice is whole groups of `width` channels, or lies within one group. An empty batch has none.
    """
    if bytes_per_channel == 0:
        return
    if channels * bytes_per_channel <= budget:  # exporters want numbers for slices, no symbols
        yield slice(0, channels)
        return
    size = max(1, min(channels, budget // bytes_per_channel))
    size = size // width * width if size > width else size
    group = channels if size > width else width
    for first in range(0, channels, group):
        for begin in range(first, first + group, size):
            yield slice(begin, min(first + group, begin + size))


def channel_rows(parameter: Tensor, c: slice, width: int, dtype: torch.dtype) -> Tensor:
    """The row of each channel of a slice; `width` consecutive channels share one."""
    index = torch.arange(c.start, c.stop, device=parameter.device) // width
    return parameter[index].to(dtype)


def add_rows(total: Tensor, c: slice, rows: Tensor, width: int) -> None:
    """The adjoint of channel_rows: add one row a channel to the rows that the channels share."""
    first, groups = c.start // width, max(1, (c.stop - c.start) // width)
    total[first : first + groups] += rows.unflatten(0, (groups, -1)).sum(1)


def conv_direct(x: Tensor, taps: Tensor, direction: int) -> Tensor:
    """y[t] = sum_j taps[j] x[t - direction * j], zero outside the sequence."""
    channels, reach = taps.shape[0], taps.shape[1] - 1
    if direction > 0:
        x, kernel = functional.pad(x, (reach, 0)), taps.flip(1)
    else:
        x, kernel = functional.pad(x, (0, reach)), taps
    return functional.conv1d(x, kernel.unsqueeze(1), groups=channels)


def tap_gradient_direct(grad: Tensor, x: Tensor, length: int) -> Tensor:
    """sum over b, t of grad[t] x[t - j] for j < length: (C, length)."""
    steps = x.shape[2]
    rows = [(grad[..., j:] * x[..., : max(0, steps - j)]).sum((0, 2)) for j in range(length)]
    return torch.stack(rows, 1)


def canonical(x: Tensor) -> Tensor:
    """An activation as (B, D, L), without a copy."""
    return x


def eager_forward(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
) -> list[Tensor]:
    """[y] of the unpacked inputs."""
    (x_all,) = (canonical(x) for x in inputs)
    dtype = torch.float64 if x_all.dtype == torch.float64 else torch.float32
    (filter,) = (p.to(dtype) for p in parameters)
    outputs = [allocate(inputs[0], inputs[0].shape[TIME])]
    (out_0,) = (canonical(x) for x in outputs)
    batch, _, length = x_all.shape
    channel_bytes = 4 * batch * length * dtype.itemsize
    for c in chunks(CHANNELS, 16, channel_bytes, BYTE_BUDGET):
        x = x_all[:, c].to(dtype)
        filter_c = channel_rows(filter, c, 16, dtype)
        conv = conv_direct(x, filter_c, +1)
        out_0[:, c] = conv
    return outputs


def eager_backward(
    dy: Tensor,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    saved: Sequence[Tensor],
) -> list[Tensor]:
    """Gradients of the inputs, packed if they are, then of the parameters."""
    dy_all, x_all = (canonical(x) for x in (dy, *unpack(inputs), *saved))
    dtype = torch.float64 if dy_all.dtype == torch.float64 else torch.float32
    (filter,) = parameters
    d_inputs = [allocate(x, x.shape[TIME]) for x in inputs]
    (d_x_all,) = (canonical(x) for x in unpack(d_inputs))
    d_filter_all = torch.zeros_like(filter, dtype=dtype)
    batch, _, length = dy_all.shape
    channel_bytes = 5 * batch * length * dtype.itemsize
    for c in chunks(CHANNELS, 16, channel_bytes, BYTE_BUDGET):
        x = x_all[:, c].to(dtype)
        filter_c = channel_rows(filter, c, 16, dtype)
        dy = dy_all[:, c].to(dtype)
        d_x = conv_direct(dy, filter_c, -1)
        d_filter = tap_gradient_direct(dy, x, 512)
        add_rows(d_filter_all, c, d_filter, 16)
        d_x_all[:, c] = d_x
    return [*d_inputs, d_filter_all.to(filter.dtype)]


# -----------------------------------------------------------------------------------------------
# The operator: torch.library ops, autograd, checks, functions and module
# -----------------------------------------------------------------------------------------------


def library_name() -> str:
    """The ops' name in torch.ops.sh2gen; numbered if this file is imported more than once."""
    name = unique = "conv_512_e4b14421"
    count = 1
    while hasattr(torch.ops.sh2gen, unique):
        count += 1
        unique = f"{name}_{count}"
    return unique


LIBRARY_NAME = library_name()


@torch.library.custom_op(f"sh2gen::{LIBRARY_NAME}", mutates_args=())
def forward_op(
    x: Tensor,
    filter: Tensor,
) -> Tensor:
    """y; of packed features if the later inputs are None."""
    inputs = given(x)
    with torch.autocast(x.device.type, enabled=False):
        return eager_forward(unpack(inputs), [filter])[0]


@torch.library.custom_op(f"sh2gen::{LIBRARY_NAME}_backward", mutates_args=())
def backward_op(
    dy: Tensor,
    x: Tensor,
    filter: Tensor,
) -> list[Tensor]:
    """Gradients of the inputs that are given, then of the parameters."""
    inputs, parameters = given(x), [filter]
    with torch.autocast(dy.device.type, enabled=False):
        contiguous = [p.contiguous() for p in parameters]
        return eager_backward(dy, inputs, contiguous, [])


@forward_op.register_kernel("cuda")
def _(
    x: Tensor,
    filter: Tensor,
) -> Tensor:
    inputs = given(x)
    return launch_forward(inputs, [filter])[0]


@backward_op.register_kernel("cuda")
def _(
    dy: Tensor,
    x: Tensor,
    filter: Tensor,
) -> list[Tensor]:
    inputs, parameters = given(x), [filter]
    return launch_backward(dy, inputs, parameters, [])


@forward_op.register_fake
def _(
    x: Tensor,
    filter: Tensor,
) -> Tensor:
    steps = x.shape[TIME]
    return allocate(x, steps, 1)


@backward_op.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    filter: Tensor,
) -> list[Tensor]:
    inputs, parameters = given(x), [filter]
    contiguous = torch.contiguous_format
    d_parameters = [torch.empty_like(p, memory_format=contiguous) for p in parameters]
    return [*(allocate(x, x.shape[TIME]) for x in inputs), *d_parameters]


def save(ctx, inputs, output) -> None:
    """What backward needs: every argument."""
    ctx.save_for_backward(*inputs)


def differentiate(ctx, dy):
    """Gradients of every argument of forward_op."""
    refuse_batched(dy)
    gradients = backward_op(dy, *ctx.saved_tensors)
    given_inputs = len(gradients) - 1
    absent = [None] * (len(INPUTS) - given_inputs)
    return *gradients[:given_inputs], *absent, *gradients[given_inputs:]


forward_op.register_autograd(differentiate, setup_context=save)
backward_op.register_autograd(refuse_second)
forward_op.register_vmap(in_turn(forward_op))
backward_op.register_vmap(in_turn(backward_op))


def effective(
    filter: Tensor,
) -> list[Tensor]:
    """The parameters as forward_op takes them."""
    filter = two_axes(filter)
    return [filter]


def run_op(inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """y of all inputs, or of packed features alone."""
    if PLAIN:
        with without_autocast(inputs[0]):
            return eager_forward(unpack(inputs), parameters)[0]
    refuse_transforms([*inputs, *parameters])
    absent = [None] * (len(INPUTS) - len(inputs))
    return forward_op(*inputs, *absent, *parameters)


def check_dense(name: str, tensor: Tensor) -> None:
    """Refuse what is no tensor of strides."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{OP}: {name} is a {type(tensor).__name__}, expected a tensor")
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else tensor.layout
        raise TypeError(f"{OP}: {name} is {kind}, expected a dense tensor")


def check(inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    """Refuse tensors of a wrong kind, naming the argument and what was expected of it."""
    names = INPUTS if len(inputs) == len(INPUTS) else ("features",)
    x = inputs[0]
    channels = CHANNELS if names == INPUTS else len(INPUTS) * CHANNELS
    for name, tensor in zip((*names, *PARAMETERS), (*inputs, *parameters), strict=True):
        check_dense(name, tensor)
        if tensor.device != x.device:
            raise ValueError(
                f"{OP}: {name} is on {tensor.device}, but {names[0]} is on {x.device}"
            )
    accepted = (torch.bfloat16, torch.float16, torch.float32)
    for name, tensor in zip(names, inputs, strict=True):
        if tensor.dim() != 3 or tensor.shape[CHANNEL] != channels or tensor.shape[TIME] < 1:
            raise ValueError(
                f"{OP}: {name} has shape {tuple(tensor.shape)}, expected "
                f"(B, {channels}, L) with L >= 1"
            )
        if tensor.shape != x.shape:
            raise ValueError(
                f"{OP}: {name} has shape {tuple(tensor.shape)}, "
                f"but {names[0]} has {tuple(x.shape)}"
            )
        if tensor.dtype not in accepted and (tensor.dtype != torch.float64 or x.is_cuda):
            raise TypeError(
                f"{OP}: {name} is {tensor.dtype}, expected bfloat16, float16 or float32 "
                "(float64 is for CPU only)"
            )
        if tensor.dtype != x.dtype:
            raise TypeError(f"{OP}: {name} is {tensor.dtype}, but {names[0]} is {x.dtype}")
    for (name, shape), tensor in zip(PARAMETERS.items(), parameters, strict=True):
        conv1d = (shape[0], 1, shape[-1]) if name in ("filter",) else shape
        if tuple(tensor.shape) not in (shape, conv1d):
            raise ValueError(f"{OP}: {name} has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.dtype not in (*accepted, torch.float64):
            raise TypeError(
                f"{OP}: {name} is {tensor.dtype}, expected float32, bfloat16, float16 or float64"
            )
    if x.device.type == "cuda" and not HAS_TRITON:
        raise RuntimeError(f"{OP}: CUDA tensors need Triton, which is not installed")


def conv_512(x: Tensor, filter: Tensor) -> Tensor:
    """conv_512: 512-tap explicit causal convolution, filters shared by 16 channels

    Args:
        x: (B, D, L), bfloat16, float16 or float32
        filter: (256, 512), float32; tap 0 multiplies the current sample

    Returns:
        y (B, D, L) in the dtype of the inputs, differentiable in every argument.

    Raises:
        TypeError, ValueError: naming the argument and the shape, dtype or device expected.
    """
    check([x], [filter])
    return run_op([x], effective(filter))


class Conv512(nn.Module):
    """The operator with its parameters: filter (256, 512).

    They are float32 and stay so under `.to(torch.bfloat16)`, `.half()` and autocast: they are few,
    and rounding them would cost more accuracy than the whole computation.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        super().__init__()
        for name, shape in PARAMETERS.items():
            values = torch.empty(shape, dtype=torch.float32, device=device)
            self.register_parameter(name, nn.Parameter(values))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh parameters."""
        with torch.no_grad():
            self.filter.uniform_(-0.0441942, 0.0441942)

    def _apply(self, fn, recurse: bool = True):
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype in (torch.bfloat16, torch.float16):
                return tensor.to(moved.device)
            return moved

        return super()._apply(keep_float32, recurse)

    def forward(self, *inputs: Tensor) -> Tensor:
        """y (B, D, L) of x (B, D, L)."""
        parameters = [getattr(self, name) for name in PARAMETERS]
        if len(inputs) == len(INPUTS):
            return conv_512(*inputs, *parameters)
        raise TypeError(f"{OP}: expected 1 input, got {len(inputs)}")

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={shape}" for name, shape in PARAMETERS.items())
