"""hyena_mr: 128-tap decay causal convolution, filters of groups of channels, featurizer of 3 taps,
pre and post gates

    z = (featurizer * k) . (featurizer * v)
    y = (featurizer * q) . (filter * z + skip . z)

Activations are (B, D, L) with B batch, L time steps, D channels; G filter groups of D / G channels
each, K = 128 taps. Plan toeplitz/BDL/recompute.

Written by sh2gen. Imports torch and, where there is one, triton; nothing else.
Verified: by Triton's interpreter, not yet run on a GPU.
sha256, with zeros here: dcb9340b7507fb1527e1d5ef8121b5ed0f35b34ca90850135018d46fdb65d103
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import reduce
from operator import itemgetter, or_
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:  # plain PyTorch needs no Triton: let the kernels be defined, though not run
    from types import SimpleNamespace

    HAS_TRITON = False
    tl = SimpleNamespace(constexpr=None)
    triton = SimpleNamespace(
        jit=lambda function=None, **_: function or (lambda f: f),
        constexpr_function=lambda function: function,
    )
try:  # Gluon is experimental: what it offers changes between versions of Triton
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia import hopper

    HAS_GLUON = True
except ImportError:
    from types import SimpleNamespace

    HAS_GLUON = False
    gl = SimpleNamespace(constexpr=None)
    gluon = SimpleNamespace(jit=triton.jit, constexpr_function=lambda function: function)

OP = "hyena_mr"
PLAN = "toeplitz/BDL/recompute"
LAYOUT = "BDL"
INPUTS = ("q", "k", "v")
PARAMETERS = ("filter", "featurizer", "skip")
TAPS = ("filter", "featurizer")  # also in the shape of a conv1d's weight
CHANNELS, GROUPS = 4096, 256  # unless others are given
SHAPE = "(B, {}, L)"  # of an activation
TIME, CHANNEL = 2, 1  # axes of an activation
LEAST = 1  # steps of a call
BYTE_BUDGET = 2**30  # of the temporaries of plain PyTorch
PLAIN = 0  # how many want plain PyTorch on every device, instead of library ops
RINGS = {"tails": (2, 3), "z": (127, 1)}  # of a state that decodes: lag and roles
COUNTED = 16  # channels that it counts as one
MODES_SHAPE = ()  # of a channel, if a state has modes
EXPONENTS = (-2, 2)  # of ten, where the ladder ends
REPEATS = 1  # of the ladder of decays
CACHE_LENGTH = 8192
LAG_LAST = False
WIDEST = 1  # stride of the last axis
BINARIES: dict = {}  # compiled kernels by the traits of their arguments
CHOSEN: dict = {}  # configs by device, channels and groups
TOLD = ("num_warps", "num_stages", "maxnreg")  # to the compiler, of a config
SUMS = {"num_warps": 4}  # config of what adds sums
LAUNCHES = threading.local()  # those that a thread wants noted
TAPES: dict = {}  # what calls do, by the traits of their tensors
RECENT: dict = {}  # the last call of each kind
MOST_TAPES = 1024
DIRECT = ("3.6.0",)  # of Triton whose compiled kernels are launched without its launcher
WIDTHS = {(4096, 256): 1, (1920, 128): 1, (8192, 512): 1}  # least batch by channels and groups
CONFIGS: dict = {  # by GPU, channels and groups
    ("NVIDIA H200", 4096, 256): {
        "forward": {
            "ROWS": 8,
            "BLOCK_D": 16,
            "SEGMENTS": 4,
            "BLOCK_T": 64,
            "TILES": 64,
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
            "PREFETCH": 3,
            "TILES_SM90": 256,
            "num_warps": 4,
            "maxnreg": 0,
        },
        "decode": {"BLOCK_D": 32, "CHUNK": 128, "DOUBLE": 0, "num_warps": 1},
    },
    ("NVIDIA H200", 8192, 512): {
        "forward": {
            "ROWS": 8,
            "BLOCK_D": 16,
            "SEGMENTS": 4,
            "BLOCK_T": 64,
            "TILES": 64,
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
            "PREFETCH": 3,
            "TILES_SM90": 256,
            "num_warps": 4,
            "maxnreg": 0,
        },
        "decode": {"BLOCK_D": 32, "CHUNK": 128, "DOUBLE": 0, "num_warps": 1},
    },
}
CAPABILITIES: dict = {
    "NVIDIA H200": (9, 0)
}  # of these GPUs, whose configs serve others of the same
SPEC = {
    "op": "hyena_mr",
    "channels": 4096,
    "filter": {
        "kind": "decay",
        "length": 128,
        "groups": 256,
        "taps": "lag_first",
        "decay": {"preset": "weak", "cache_length": 8192, "repeats": 1},
        "modes": "none",
        "parametrisation": "none",
    },
    "featurizer": {"length": 3, "taps": "lag_last"},
    "gates": {"pre": True, "post": True},
    "skip": "channel",
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


def parameter_shapes(channels: int, groups: int) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter."""
    return {"filter": (groups, 128), "featurizer": (3 * channels, 3), "skip": (channels,)}


# -----------------------------------------------------------------------------------------------
# Helpers of the kernels
# -----------------------------------------------------------------------------------------------


@triton.jit
def decay_at(lag, rate):
    """What the tap of a lag is multiplied by, at a rate."""
    return tl.exp2(-rate * lag)


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
    ptr, group, rates, LENGTH: tl.constexpr, LAG_LAST: tl.constexpr,
    BLOCK_T: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """T_s[j, i] = taps[s BLOCK_T + i - j], zero where there is no such tap: matrices
    [BLOCK_T, BLOCK_T] that take a block of inputs, and those before it, to a block of outputs.
    With two TERMS then come as many of what rounding leaves of taps. `rates` holds that of the
    decay of taps, if they decay.
    """
    j = tl.arange(0, BLOCK_T)[:, None]
    i = tl.arange(0, BLOCK_T)[None, :]
    matrices, low = (), ()
    for s in tl.static_range((LENGTH - 1 + BLOCK_T - 1) // BLOCK_T + 1):
        lag = s * BLOCK_T + i - j
        tap = LENGTH - 1 - lag if LAG_LAST else lag
        where = ptr + group * LENGTH + tap
        value = tl.load(where, mask=(lag >= 0) & (lag < LENGTH), other=0.0)
        if len(rates) > 0:
            value = value.to(tl.float32) * decay_at(tl.maximum(lag, 0), rates[0])
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
def load_steps(
    ptr, tile, stride, unit,
    LO: tl.constexpr, HI: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Rows LO .. HI - 1 from the first step of each block of ROWS; zero outside [read_begin,
    read_end).

    EVEN says that the segment's bounds are multiples of 8, so that a vector is inside or outside
    as a whole. Otherwise only tiles at an edge pay for a mask on every element. Lanes may begin at
    different times t, from `earliest` to `latest`.
    """
    rows = ()
    for vector in tl.static_range(LO // 8, (HI + 7) // 8):
        index = tl.arange(0, N * 8)[None, :]
        begin = tile.begin + vector * 8 + index // 8 * ROWS  # of the vector
        time = begin + index % 8
        where = ptr + tile.offset * stride + time * unit
        if EVEN:
            x = tl.load(
                where,
                mask=tile.channel_mask & (begin >= tile.read_begin) & (begin < tile.read_end),
                other=0.0,
            )
        elif (tile.earliest + vector * 8 >= tile.read_begin) & (
            tile.latest + vector * 8 + N * ROWS <= tile.read_end
        ):
            x = tl.load(where, mask=tile.channel_mask, other=0.0)
        else:
            x = tl.load(
                where,
                mask=tile.channel_mask & (time >= tile.read_begin) & (time < tile.read_end),
                other=0.0,
            )
        rows = rows + vector_rows(x, BLOCK_D, N)
    return rows[LO - LO // 8 * 8 : LO - LO // 8 * 8 + HI - LO]


@triton.jit
def context_rows(
    ptr, tile, row, unit, COUNT: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The COUNT steps before each segment's tile, for every lane of it: COUNT x [M, N]."""
    rows = load_steps(ptr, tile, row, unit, LO=-COUNT, HI=0, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=1)
    out = ()
    for r in tl.static_range(COUNT):
        out = out + (rows[r] + tl.zeros((M, N), tl.float32),)
    return out


@triton.jit
def prepend(rows, before, COUNT: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """The last COUNT rows of the lane before each lane, then its own; the first lane takes
    `before`. Also what the next tile takes there.
    """
    lane = tl.arange(0, N)[None, :] + tl.zeros((M, 1), tl.int32)
    context = ()
    last = ()
    for r in tl.static_range(COUNT):
        turned = tl.gather(rows[len(rows) - COUNT + r], (lane + (N - 1)) % N, 1)
        context = context + (tl.where(lane == 0, before[r], turned),)
        last = last + (turned,)
    return context + rows, last


@triton.jit
def zero_rows(COUNT: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """COUNT rows [M, N] of zeros."""
    rows = ()
    for _ in tl.static_range(COUNT):
        rows = rows + (tl.zeros((M, N), tl.float32),)
    return rows


@triton.jit
def extend(rows, after, COUNT: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Each lane's rows, then the first COUNT of the next lane; the last lane takes `after`.
    Also what the next tile, which is earlier, takes there.
    """
    lane = tl.arange(0, N)[None, :] + tl.zeros((M, 1), tl.int32)
    extended = rows
    first = ()
    for r in tl.static_range(COUNT):
        turned = tl.gather(rows[r], (lane + 1) % N, 1)
        extended = extended + (tl.where(lane == N - 1, after[r], turned),)
        first = first + (turned,)
    return extended, first


class Tile(NamedTuple):
    """Channels x time steps that a program computes at once, and what of them there is.

    Attributes:
        offset: of every row from the program's first channel.
        channel_mask: whether a row is a channel of the program.
        begin: the step at which every row begins, from `earliest` to `latest`.
        read_begin, read_end: activations are read within, and zero elsewhere.
        write_end: results are written before.
    """

    offset: object
    channel_mask: object
    begin: object
    earliest: object
    latest: object
    read_begin: object
    read_end: object
    write_end: object


@triton.jit
def load_taps(ptr, row, channel_mask, LENGTH: tl.constexpr, LAG_LAST: tl.constexpr):
    """The taps of each lane's filter as float32, lag 0 first: LENGTH x [BLOCK_D, 1]."""
    taps = ()
    for lag in tl.static_range(LENGTH):
        tap = LENGTH - 1 - lag if LAG_LAST else lag
        value = tl.load(ptr + row * LENGTH + tap, mask=channel_mask, other=0.0)
        taps = taps + (value.to(tl.float32),)
    return taps


@triton.jit
def load_vector(ptr, row, channel_mask):
    """One float32 parameter for each lane: [BLOCK_D, 1]."""
    return tl.load(ptr + row, mask=channel_mask, other=0.0).to(tl.float32)


@triton.jit
def fir(x, taps, LENGTH: tl.constexpr):
    """y[t] = sum_j taps[j] x[t - j]. The first row of x is LENGTH - 1 before the first of y."""
    y = ()
    for r in tl.static_range(LENGTH - 1, len(x)):
        total = taps[0] * x[r]
        for lag in tl.static_range(1, LENGTH):
            if LENGTH == 2:  # many a backward kernel ends the compiler of Triton 3.6 otherwise
                total = tl.fma(taps[lag], x[r - lag], total)
            else:
                total += taps[lag] * x[r - lag]
        y = y + (total,)
    return y


@triton.jit
def fir_adjoint(x, taps, LENGTH: tl.constexpr):
    """y[t] = sum_j taps[j] x[t + j]. The last row of x is LENGTH - 1 after the last of y."""
    y = ()
    for r in tl.static_range(len(x) - LENGTH + 1):
        total = taps[0] * x[r]
        for lag in tl.static_range(1, LENGTH):
            total += taps[lag] * x[r + lag]
        y = y + (total,)
    return y


@triton.jit
def multiply(a, b):
    y = ()
    for r in tl.static_range(len(a)):
        y = y + (a[r] * b[r],)
    return y


@triton.jit
def add(a, b):
    y = ()
    for r in tl.static_range(len(a)):
        y = y + (a[r] + b[r],)
    return y


@triton.jit
def scale(x, factor):
    """Each row times a per-channel factor [BLOCK_D, 1]."""
    y = ()
    for r in tl.static_range(len(x)):
        y = y + (x[r] * factor,)
    return y


@triton.jit
def zero_taps(LENGTH: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr):
    """LENGTH accumulators [BLOCK_D, N]."""
    total = ()
    for _ in tl.static_range(LENGTH):
        total = total + (tl.zeros((BLOCK_D, N), tl.float32),)
    return total


@triton.jit
def tap_gradient(total, grad, x, LENGTH: tl.constexpr):
    """total[j] += sum_t grad[t] x[t - j], j < LENGTH; x starts LENGTH - 1 rows before grad."""
    out = ()
    for lag in tl.static_range(LENGTH):
        value = total[lag]
        for r in tl.static_range(len(grad)):
            value += grad[r] * x[r + LENGTH - 1 - lag]
        out = out + (value,)
    return out


@triton.jit
def channel_sum(total, x):
    """total[0] += sum_t x[t]."""
    value = total[0]
    for r in tl.static_range(len(x)):
        value += x[r]
    return (value,)


@triton.jit
def store_partial(ptr, first, total, channel, channel_mask, CHANNELS: tl.constexpr):
    """Write accumulators, summed over blocks of time, to rows first, ... of [P, CHANNELS]."""
    for i in tl.static_range(len(total)):
        x = total[i]
        value = tl.sum(x) if x.shape[0] == 1 else tl.sum(x, axis=1, keep_dims=True)
        tl.store(ptr + (first + i) * CHANNELS + channel, value, mask=channel_mask)


@triton.jit
def locate(program, splits, BLOCK_D: tl.constexpr, CHANNELS: tl.constexpr):
    """(batch, first channel, time program) of one program; neighbours in time run together."""
    channel_programs: tl.constexpr = (CHANNELS + BLOCK_D - 1) // BLOCK_D
    outer = program // splits
    return outer // channel_programs, outer % channel_programs * BLOCK_D, program % splits


@triton.jit
def advance(ptr, batch_stride, stride, STRIDE_UNIT: tl.constexpr, unit, origin):
    """The pointer to origin = (batch, channel, time), in 64-bit arithmetic, and the row stride.

    Strides come in units of STRIDE_UNIT elements, which tells the compiler how rows are aligned.
    """
    batch, channel, time = origin
    offset = (
        batch.to(tl.int64) * batch_stride * STRIDE_UNIT
        + channel.to(tl.int64) * stride * STRIDE_UNIT
    )
    return ptr + offset + time.to(tl.int64) * unit, stride * STRIDE_UNIT


@triton.jit
def store_steps(
    ptr, tile, rows, stride, unit, EVEN: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr
):
    """Write the rows of every block that lie before `write_end`."""
    for vector in tl.static_range(len(rows) // 8):
        x = rows_vector(rows, vector * 8, BLOCK_D, N, ptr.dtype.element_ty)
        index = tl.arange(0, N * 8)[None, :]
        begin = tile.begin + vector * 8 + index // 8 * len(rows)
        time = begin + index % 8
        where = ptr + tile.offset * stride + time * unit
        if EVEN:
            tl.store(where, x, mask=tile.channel_mask & (begin < tile.write_end))
        elif tile.latest + vector * 8 + N * len(rows) <= tile.write_end:
            tl.store(where, x, mask=tile.channel_mask)
        else:
            tl.store(where, x, mask=tile.channel_mask & (time < tile.write_end))


@triton.jit
def power_of_two(whole, part):
    """2 ** (whole + part), float32, for int32 whole >= -126 and |part| <= 1/2: within 1.4 of its
    2 ** -24.

    By multiplications and additions alone: a kernel on the verge of spilling registers, as the one
    for sm_90, spills one in its loop where anything before that divides or takes an exponential
    (ptxas of CUDA 12.8), which takes 3% of its time.
    """
    value = tl.fma(part, 0.0001537073295746658, 0.0013399840024177657)
    value = tl.fma(part, value, 0.009618373173938611)
    value = tl.fma(part, value, 0.05550329064855148)
    value = tl.fma(part, value, 0.24022648462595472)
    value = tl.fma(part, value, 0.693147205552896)
    value = tl.fma(part, value, 1.0)
    return value * ((whole + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def decay_rate(rung, first_rate, rung_step):
    """By how many powers of two taps decay per lag, float32, on a rung of a ladder (arXiv
    2503.01868, section 2): 2 ** (first_rate + rung rung_step - 64), int64 in units of 2 ** -48.
    """
    log2 = rung.to(tl.int64) * rung_step + (first_rate + (1 << 47))
    part = ((log2 >> 24) & 0xFFFFFF).to(tl.int32).to(tl.float32) * (1 / 2**24) - 0.5
    return power_of_two((log2 >> 48).to(tl.int32) - 64, part)


@gluon.constexpr_function
def row_layout():
    """[64, 4]: a row of a quarter."""
    lanes = [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout([], lanes, [[8, 0], [16, 0], [32, 0]], [], [64, 4])


@gluon.constexpr_function
def quarter_layout():
    """[64, 32]: a quarter as bfloat16."""
    lanes = [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]]
    warps = [[8, 0], [16, 0], [32, 0]]
    return gl.DistributedLinearLayout([[0, 1], [0, 2], [0, 4]], lanes, warps, [], [64, 32])


@gluon.constexpr_function
def edge_layout():
    """[64, 4]: how the words before a block are copied, a row to a lane."""
    lanes = [[1, 0], [2, 0], [4, 0], [0, 0], [0, 0]]
    warps = [[8, 0], [16, 0], [32, 0]]
    return gl.DistributedLinearLayout([[0, 1], [0, 2]], lanes, warps, [], [64, 4])


@gluon.constexpr_function
def copy_layout():
    """[64, 32]: how the words of a block are copied, 128 bytes of a row at a time."""
    return gl.BlockedLayout([1, 4], [4, 8], [8, 1], [1, 0])


@gluon.constexpr_function
def product_layout():
    """[128, 64]: sums of products that convolve."""
    return gl.NVMMADistributedLayout([3, 0], [8, 1], [16, 64, 16])


@gluon.constexpr_function
def operand_memory():
    """Shared memory that products read: bfloat16, rows of 128 bytes."""
    return gl.NVMMASharedLayout(128, 16, 2)


@gluon.jit
def step_of(column):
    """The step of a block that stands in a column of products."""
    return column // 32 * 32 + column // 2 % 4 * 8 + column // 8 % 4 * 2 + column % 2


@gluon.jit
def decay_by_sums(lag, rate):
    """decay_at, without an exponential: see power_of_two."""
    exponent = gl.maximum(-rate * lag, -126.0)
    SHIFT: gl.constexpr = 12582912.0  # 1.5 * 2 ** 23: a sum with it is rounded to whole numbers
    nearest = exponent + SHIFT
    whole = nearest.to(gl.int32, bitcast=True) - 0x4B400000
    return power_of_two(whole, exponent - (nearest - SHIFT))


@gluon.jit
def toeplitz_decay(s: gl.constexpr, i, j, rate):
    """Decays of lags 64 s + i - j, any numbers where these are negative. Those of whole blocks
    back are products of a decay for each row and one for each column, which are few.
    """
    if s == 0:
        return decay_by_sums(gl.maximum(i - j, 0), rate)
    else:
        return decay_by_sums(64 * (s - 1) + i, rate) * decay_by_sums(64 - j, rate)


@gluon.jit
def toeplitz_matrices(
    ptr, group, rates, LENGTH: gl.constexpr, LAG_LAST: gl.constexpr, COUNT: gl.constexpr
):
    """T_s[j, i] = taps[64 s + i - j], zero where there is no such tap, in shared memory: COUNT
    matrices [64, 64] with steps in the order of products. `rates` as of load_toeplitz.
    """
    matrices = gl.allocate_shared_memory(gl.bfloat16, [COUNT, 64, 64], operand_memory())
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [8, 1], [1, 0])
    j = step_of(gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, layout)), 1))
    i = step_of(gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(0, layout)), 0))
    for s in gl.static_range(COUNT):
        lag = s * 64 + i - j
        tap = LENGTH - 1 - lag if LAG_LAST else lag
        where = ptr + group * LENGTH + tap
        value = gl.load(where, mask=(lag >= 0) & (lag < LENGTH), other=0.0)
        if len(rates) > 0:
            value = value.to(gl.float32) * toeplitz_decay(s, i, j, rates[0])
        matrices.index(s).store(value.to(gl.bfloat16))
    return matrices


@gluon.jit
def block_ring(COUNT: gl.constexpr):
    """Shared memory for the blocks [128, 64] of a remembered value, the oldest to be replaced."""
    return gl.allocate_shared_memory(gl.bfloat16, [COUNT, 128, 64], operand_memory())


@gluon.jit
def input_slots(LAG: gl.constexpr):
    """Shared memory for one block of an input: the words [64, 32] of both halves and, where a lag
    looks back, the 8 steps before, words [64, 4] of both halves.
    """
    block: gl.constexpr = gl.NVMMASharedLayout(64, 32, 2)
    edge: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    slots = (
        gl.allocate_shared_memory(gl.int32, [64, 32], block),
        gl.allocate_shared_memory(gl.int32, [64, 32], block),
    )
    if LAG > 0:
        slots = slots + (
            gl.allocate_shared_memory(gl.int32, [64, 4], edge),
            gl.allocate_shared_memory(gl.int32, [64, 4], edge),
        )
    return slots


@gluon.jit
def places(
    LAYOUT: gl.constexpr, N: gl.constexpr, UNIT: gl.constexpr, section, first,
    BLOCK_D: gl.constexpr,
):  # fmt: skip
    """Where elements of UNIT steps lie, [64, N] each: offset from the program's first element, and
    the step at which its vector of 8 begins, counted from `first`; very late for rows that are
    none of the `members` channels of the section.
    """
    members, row, tiles = section
    r = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, LAYOUT)), 1)
    n = gl.expand_dims(gl.arange(0, N, layout=gl.SliceLayout(0, LAYOUT)), 0)
    member = r % BLOCK_D
    vector: gl.constexpr = 8 // UNIT
    offset = member * (row * vector) + r // BLOCK_D * (tiles * (64 // UNIT)) + n
    begin = r // BLOCK_D * (tiles * 64) + n // vector * 8 - first
    return offset, gl.where(member < members, begin, 2**30)


@gluon.jit
def fetch_words(slot, ptr, where, shift, length):
    offset, begin = where
    mask = (begin + shift).to(gl.uint32) < length.to(gl.uint32)  # a negative step is a large one
    hopper.async_copy.async_copy_global_to_shared(slot, ptr + (offset + shift // 2), mask=mask)


@gluon.jit
def fetch(slots, ptr, words, edges, t, halfway, length):
    """Begin to copy the block at t of an input into its slots, zero where the step counted from
    the first that there is does not lie in 0 .. length - 1.
    """
    for half in gl.static_range(2):
        fetch_words(slots[half], ptr, words, t + half * halfway, length)
        if len(slots) == 4:
            fetch_words(slots[2 + half], ptr, edges, t - 8 + half * halfway, length)


@gluon.jit
def lane_of():
    """Which of the four lanes of its row a lane is: [64, 4]."""
    layout: gl.constexpr = row_layout()
    lane = gl.expand_dims(gl.arange(0, 4, layout=gl.SliceLayout(0, layout)), 0)
    return lane + gl.zeros((64, 4), gl.int32, layout)


@gluon.jit
def anew(x):
    """x, but not what the compiler knows of it."""
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [x], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def channels(section, WIDTH: gl.constexpr, BLOCK_D: gl.constexpr):
    """Of each row of a half [64, 4]: its number, its channel, and whether the group has it."""
    parts: gl.constexpr = (WIDTH + BLOCK_D - 1) // BLOCK_D
    layout: gl.constexpr = row_layout()
    row = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, layout)), 1)
    row = anew(row + lane_of() * 0)
    member = section % parts * BLOCK_D + row % BLOCK_D
    return row, section // parts * WIDTH + member, member < WIDTH


@gluon.jit
def unpacked(words):
    """Rows of words as float32 rows, two each."""
    out = ()
    for r in gl.static_range(len(words)):
        low = (words[r] << 16).to(gl.float32, bitcast=True)
        high = (words[r] & -65536).to(gl.float32, bitcast=True)
        out = out + (low, high)
    return out


@gluon.jit
def with_context(own, before, LAG: gl.constexpr):
    """The rows of a quarter from words of its lanes' vectors, and the LAG rows before them, of
    which the first lane takes words `before`, the w-th in lane w.
    """
    count: gl.constexpr = (LAG + 1) // 2
    context = ()
    if LAG > 0:
        lane = lane_of()
        for w in gl.static_range(4 - count, 4):
            if w == 3:  # the last lane holds the last word
                turned = gl.gather(gl.where(lane == 3, before, own[3]), (lane + 3) % 4, 1)
            else:
                first = gl.gather(before, lane * 0 + w, 1)
                turned = gl.where(lane == 0, first, gl.gather(own[w], (lane + 3) % 4, 1))
            context = context + (turned,)
    return unpacked(context + own)[2 * count - LAG : 2 * count + 8]


@gluon.constexpr_function
def word_layout():
    """[64, 16]: a quarter as words of two steps."""
    lanes = [[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]]
    warps = [[8, 0], [16, 0], [32, 0]]
    return gl.DistributedLinearLayout([[0, 1], [0, 2]], lanes, warps, [], [64, 16])


@gluon.jit
def evens_and_odds(parts, N: gl.constexpr):
    """Each [64, 2 N] as its even columns and its odd ones; all even ones first."""
    evens = ()
    odds = ()
    for i in gl.static_range(len(parts)):
        even, odd = gl.split(gl.reshape(parts[i], (64, N, 2)))
        evens = evens + (even,)
        odds = odds + (odd,)
    return evens + odds


@gluon.jit
def word_rows(words):
    """[64, 16] words -> 4 rows [64, 4] of words."""
    parts = evens_and_odds(evens_and_odds((words,), 8), 4)
    out = ()
    for r in gl.static_range(4):
        out = out + (gl.convert_layout(parts[r], row_layout(), assert_trivial=True),)
    return out


@gluon.jit
def read_rows(slots, part: gl.constexpr, half: gl.constexpr, LAG: gl.constexpr):
    """The rows of a quarter of an input and the LAG rows before them."""
    own = word_rows(slots[half].slice(16 * part, 16, dim=1).load(word_layout()))
    before = own[3]  # not asked for
    if LAG > 0:
        if part == 1:
            before = slots[half].slice(12, 4, dim=1).load(row_layout())
        else:
            before = slots[2 + half].load(row_layout())
    return with_context(own, before, LAG)


@gluon.jit
def quarter_rows(quarter):
    """[64, 32] -> 8 float32 rows [64, 4]."""
    parts = evens_and_odds(evens_and_odds(evens_and_odds((quarter,), 16), 8), 4)
    out = ()
    for r in gl.static_range(8):
        row = parts[r].to(gl.float32)
        out = out + (gl.convert_layout(row, row_layout(), assert_trivial=True),)
    return out


@gluon.jit
def interleaved(parts, N: gl.constexpr):
    """The inverse of evens_and_odds, of parts [64, N]."""
    count: gl.constexpr = len(parts) // 2
    out = ()
    for i in gl.static_range(count):
        out = out + (gl.reshape(gl.join(parts[i], parts[count + i]), (64, N * 2)),)
    return out


@gluon.jit
def rows_quarter(rows):
    """The inverse of quarter_rows, rounded to bfloat16."""
    parts = ()
    for r in gl.static_range(8):
        parts = parts + (rows[r].to(gl.bfloat16),)
    quarter = interleaved(interleaved(interleaved(parts, 4), 8), 16)[0]
    return gl.convert_layout(quarter, quarter_layout(), assert_trivial=True)


@gluon.jit
def other_order(quarter):
    """Columns of a quarter from the order of steps to that of products, or back."""
    return gl.reshape(gl.permute(gl.reshape(quarter, (64, 4, 4, 2)), (0, 2, 1, 3)), (64, 32))


@gluon.jit
def remember_block(ring, newest, quarters):
    """Put a block, given by its quarters (part 0 half 0, part 0 half 1, part 1 half 0, ...), in
    place of the oldest of a ring.
    """
    parts = ()
    for part in gl.static_range(2):
        a = gl.reshape(other_order(quarters[2 * part]), (8, 8, 32))
        b = gl.reshape(other_order(quarters[2 * part + 1]), (8, 8, 32))
        both = gl.permute(gl.join(a, b), (0, 3, 1, 2))  # 8 rows of one half, 8 of the other
        parts = parts + (gl.reshape(both, (128, 32)),)
    block = gl.reshape(gl.permute(gl.join(parts[0], parts[1]), (0, 2, 1)), (128, 64))
    ring.index(newest).store(gl.convert_layout(block, product_layout(), assert_trivial=True))


@gluon.jit
def block_quarters(block):
    """The quarters of a block [128, 64] in the layout of products, in the order of steps."""
    first, second = gl.split(gl.permute(gl.reshape(block, (128, 2, 32)), (0, 2, 1)))
    parts = (first, second)
    out = ()
    for part in gl.static_range(2):
        a, b = gl.split(gl.permute(gl.reshape(parts[part], (8, 2, 8, 32)), (0, 2, 3, 1)))
        a = other_order(gl.reshape(a, (64, 32)))
        b = other_order(gl.reshape(b, (64, 32)))
        a = gl.convert_layout(a, quarter_layout(), assert_trivial=True)
        b = gl.convert_layout(b, quarter_layout(), assert_trivial=True)
        out = out + (a, b)
    return out


@gluon.jit
def visited(newest, ago: gl.constexpr, COUNT: gl.constexpr):
    """Where in a ring the block is that the stream remembered `ago` blocks before the newest."""
    return (newest + (COUNT - ago)) % COUNT


@gluon.jit
def begin_toeplitz(ring, newest, matrices, COUNT: gl.constexpr):
    """sum_s z_{n-s} T_s for the block n that was remembered COUNT - 1 blocks ago; not awaited."""
    y = gl.zeros((128, 64), gl.float32, product_layout())
    for s in gl.static_range(COUNT):
        z = ring.index(visited(newest, COUNT - 1 - s, COUNT))
        y = hopper.warpgroup_mma(z, matrices.index(s), y, use_acc=s > 0, is_async=True)
    return y


@gluon.jit
def begin_toeplitz_adjoint(ring, newest, matrices, COUNT: gl.constexpr):
    """sum_s e_{n+s} T_s^T for the block n that was remembered last; not awaited."""
    y = gl.zeros((128, 64), gl.float32, product_layout())
    for s in gl.static_range(COUNT):
        e = ring.index(visited(newest, s, COUNT))
        turned = matrices.index(s).permute((1, 0))
        y = hopper.warpgroup_mma(e, turned, y, use_acc=s > 0, is_async=True)
    return y


@gluon.constexpr_function
def gradient_layout():
    """[64, 64]: sums of products that make the gradient of a Toeplitz matrix."""
    return gl.NVMMADistributedLayout([3, 0], [4, 2], [16, 32, 16])


@gluon.jit
def zero_gradients(COUNT: gl.constexpr):
    """Accumulators of the gradients of matrices."""
    total = ()
    for _ in gl.static_range(COUNT):
        total = total + (gl.zeros((64, 64), gl.float32, gradient_layout()),)
    return total


@gluon.jit
def begin_toeplitz_gradient(total, grad, ring, newest, going, COUNT: gl.constexpr):
    """total[s] += z_{n-s}^T e_n, or without the sum so far unless `going`; not awaited."""
    e = grad.index(newest)
    out = ()
    for s in gl.static_range(COUNT):
        turned = ring.index(visited(newest, COUNT - 1 - s, COUNT)).permute((1, 0))
        sums = hopper.warpgroup_mma(turned, e, total[s], use_acc=going, is_async=True)
        out = out + (sums,)
    return out


@gluon.jit
def end_gradients(total):
    """Wait for all products."""
    done = hopper.warpgroup_mma_wait(0, deps=total)
    if len(total) == 1:
        return (done,)
    else:
        return done


@gluon.jit
def zero_lanes(COUNT: gl.constexpr):
    """COUNT rows [64, 4] of zeros."""
    rows = ()
    for _ in gl.static_range(COUNT):
        rows = rows + (gl.zeros((64, 4), gl.float32, row_layout()),)
    return rows


@gluon.jit
def renewed(total, fresh):
    """Accumulators, zero if `fresh`."""
    out = ()
    for i in gl.static_range(len(total)):
        out = out + (gl.where(fresh, 0.0, total[i]),)
    return out


@gluon.jit
def extend_rows(rows, after, COUNT: gl.constexpr):
    """Each lane's rows, then the first COUNT of the next lane; the last lane takes after[0]. Also
    `after` for the quarters to come: two halves take turns.
    """
    lane = lane_of()
    extended = rows
    first = ()
    for r in gl.static_range(COUNT):
        turned = gl.gather(rows[r], (lane + 1) % 4, 1)
        extended = extended + (gl.where(lane == 3, after[0][r], turned),)
        first = first + (turned,)
    return extended, (after[1], first)


@gluon.jit
def store_quarter(ptr, where, shift, rows, end):
    """Write a quarter as bfloat16, up to `write_end`."""
    offset, begin = where
    gl.store(ptr + (offset + shift), rows_quarter(rows), mask=begin + shift < end)


@gluon.jit
def store_sums(ptr, total, channel, channel_mask, CHANNELS: gl.constexpr, FIRST: gl.constexpr):
    """Write accumulators, summed over lanes, to rows FIRST, ... of [P, CHANNELS]."""
    lane = lane_of()
    for i in gl.static_range(len(total)):
        value = gl.expand_dims(gl.sum(total[i], axis=1), 1)
        value = value + gl.zeros((64, 4), gl.float32, row_layout())
        where = ptr + (FIRST + i) * CHANNELS + channel
        gl.store(where, value, mask=channel_mask & (lane == 0))


@gluon.jit
def store_diagonals(ptr, total, STRIDE: gl.constexpr, LENGTH: gl.constexpr, COUNT: gl.constexpr):
    """Write the sums along diagonals, gradients of taps 0 .. LENGTH - 1 by lag, STRIDE apart."""
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [8, 1], [1, 0])
    column: gl.constexpr = gl.SliceLayout(0, layout)
    lag = gl.arange(0, 64, layout=column)
    turn = gl.expand_dims(lag, 0)
    j = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, layout)), 1) + turn * 0
    before = gl.zeros((64,), gl.float32, column)
    for s in gl.static_range(COUNT):
        own = gl.reshape(total[s], (2, 4, 4, 2, 2, 4, 4, 2))
        own = gl.reshape(gl.permute(own, (0, 2, 1, 3, 4, 6, 5, 7)), (64, 64))  # in order of steps
        # Row j turned left by j: column c holds i = j + c, or, wrapped, that of earlier lags.
        turned = gl.gather(gl.convert_layout(own, layout), (j + turn) % 64, 1)
        wrapped = j + turn >= 64
        earlier = before + gl.sum(gl.where(wrapped, turned, 0.0), axis=0)
        before = gl.sum(gl.where(wrapped, 0.0, turned), axis=0)
        if s > 0:
            tap = (s - 1) * 64 + lag
            gl.store(ptr + tap * STRIDE, earlier, mask=tap < LENGTH)
    tap = (COUNT - 1) * 64 + lag
    gl.store(ptr + tap * STRIDE, before, mask=tap < LENGTH)


@triton.jit
def read_steps(
    ptr, row, channel, batch_stride, channel_stride, time_stride, channel_mask,
    STEPS: tl.constexpr,
):  # fmt: skip
    """The steps of a row as float32."""
    ptr += row * batch_stride.to(tl.int64) + channel * channel_stride.to(tl.int64)
    x = ()
    for i in tl.static_range(STEPS):
        x = x + (tl.load(ptr + i * time_stride, mask=channel_mask, other=0.0).to(tl.float32),)
    return x


@triton.jit
def write_steps(ptr, row, channel, batch_stride, channel_stride, time_stride, channel_mask, x):
    """Write steps to a row."""
    ptr += row * batch_stride.to(tl.int64) + channel * channel_stride.to(tl.int64)
    for i in tl.static_range(len(x)):
        tl.store(ptr + i * time_stride, x[i], mask=channel_mask)


@triton.jit
def no_steps(
    ptr, row, channel, batch_stride, channel_stride, time_stride, channel_mask,
    STEPS: tl.constexpr,
):  # fmt: skip
    """Write zeros to a row."""
    ptr += row * batch_stride.to(tl.int64) + channel * channel_stride.to(tl.int64)
    for i in tl.static_range(STEPS):
        tl.store(ptr + i * time_stride, tl.zeros(channel.shape, tl.float32), mask=channel_mask)


@triton.jit
def after_ring(
    x, ring, count, channel, channel_mask,
    LAG: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The LAG steps before step `count`, and x."""
    past = ()
    for i in tl.static_range(LAG):
        slot = (count + (SLOTS - LAG + i)) % SLOTS
        step = tl.load(ring + slot * COLUMNS + channel, mask=channel_mask, other=0.0)
        past = past + (step.to(tl.float32),)
    return past + x


@triton.jit
def keep_steps(x, ring, count, channel, channel_mask, SLOTS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write x to the ring, from step `count` on."""
    for i in tl.static_range(len(x)):
        slot = (count + i) % SLOTS
        tl.store(ring + slot * COLUMNS + channel, x[i], mask=channel_mask)


@triton.jit
def ring_conv(
    x, ring, count, lead, lane, channel, CHANNELS: tl.constexpr, taps_ptr, group, rate, row,
    own_rate, DECAYS: tl.constexpr, STEPS: tl.constexpr, LENGTH: tl.constexpr,
    LAG_LAST: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr,
    SHARE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """y[t] = sum_j taps[j] x[t - j] over x and the ring, of which CHUNK slots are read at once.

    Args:
        lane: channels as [1, BLOCK_D / SHARE, SHARE], each SHARE of one group; `lead` is the first
            of these, and `group` theirs, [1, BLOCK_D / SHARE, 1]; `row` is that of each channel.
        rate: how fast taps of a group decay, and own_rate those of a channel, if they do.
    """
    totals = ()
    for _ in tl.static_range(STEPS):
        totals = totals + (tl.zeros((BLOCK_D // SHARE, SHARE), tl.float32),)
    there = lane < CHANNELS
    for first in range(0, SLOTS, CHUNK):
        slot = first + tl.arange(0, CHUNK)[:, None, None]
        lag = tl.where(slot < SLOTS, (count + (SLOTS - 1) - slot) % SLOTS + 1, LENGTH)
        past = tl.load(ring + slot * COLUMNS + lane, mask=(lag < LENGTH) & there, other=0.0)
        past = past.to(tl.float32)
        sums = ()
        for i in tl.static_range(STEPS):
            tap = LENGTH - 1 - (lag + i) if LAG_LAST else lag + i
            known = (lag + i < LENGTH) & (lead < CHANNELS)
            taps = tl.load(taps_ptr + group * LENGTH + tap, mask=known, other=0.0).to(tl.float32)
            if DECAYS:
                taps *= decay_at(lag + i, rate)
            sums = sums + (totals[i] + tl.sum(past * taps, axis=0),)
        totals = sums
    y = ()
    for i in tl.static_range(STEPS):
        total = tl.reshape(totals[i], (BLOCK_D,))
        for j in tl.static_range(i + 1):
            if i - j < LENGTH:
                tap = LENGTH - 1 - (i - j) if LAG_LAST else i - j
                here = channel < CHANNELS
                own = tl.load(taps_ptr + row * LENGTH + tap, mask=here, other=0.0).to(tl.float32)
                if DECAYS:
                    own *= decay_at(i - j, own_rate)
                total += own * x[j]
        y = y + (total,)
    return y


@triton.jit
def keep_count(done, count, channel, channel_mask, COUNTED: tl.constexpr):
    """Write how many steps there were to every COUNTED channels."""
    tl.store(done + channel // COUNTED, count, mask=channel_mask & (channel % COUNTED == 0))


@triton.constexpr_function
def columns_at_once(width):
    """How many of `width` columns that share a row a program sums at once: a power of two."""
    return min(1024, 1 << (width - 1).bit_length())


@triton.constexpr_function
def rows_at_once(width):
    """How many rows of the gradient a program sums, where `width` columns share each."""
    return max(1, 128 // columns_at_once(width))


@triton.constexpr_function
def sum_blocks(columns, width):
    """How many programs sum one row of partial sums of so many columns."""
    return -(-(columns // width) // rows_at_once(width))


class Sums(NamedTuple):
    """What a program has summed of the gradient of a parameter [rows, LENGTH].

    Attributes:
        total: float32 [BLOCK_G, 1].
        group: of which groups or channels, likewise.
        lag: of which tap or mode.
        where: elements of the parameter, those that are `there`.
    """

    total: object
    group: object
    lag: object
    where: object
    there: object


@triton.jit
def sum_rows(
    partials_ptr,  # [splits, P, COLUMNS] float32
    splits, program,
    FIRST: tl.constexpr, P: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
    LENGTH: tl.constexpr, ROLES: tl.constexpr, INTERLEAVED: tl.constexpr, LAG_LAST: tl.constexpr,
):  # fmt: skip
    """One program's gradient rows of one parameter tensor [rows, LENGTH], rows = ROLES * COLUMNS /
    WIDTH: of partials FIRST .. FIRST + ROLES * LENGTH - 1, summed over splits and over the WIDTH
    columns that share a row, always in the same order.
    """
    BLOCK_G: tl.constexpr = rows_at_once(WIDTH)
    BLOCK_W: tl.constexpr = columns_at_once(WIDTH)
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
    total = tl.sum(total, axis=1, keep_dims=True)
    return Sums(total, group, lag, row * LENGTH + tap, group < groups)


@triton.jit
def store_gradient(out_ptr, sums):
    """Write gradients of a parameter, in its dtype."""
    tl.store(out_ptr + sums.where, sums.total, mask=sums.there)


@triton.jit
def before_decay(sums, rate):
    """Gradients of taps before their decay, of those after it."""
    return Sums(
        sums.total * decay_at(sums.lag, rate), sums.group, sums.lag, sums.where, sums.there
    )


# -----------------------------------------------------------------------------------------------
# Kernels
# -----------------------------------------------------------------------------------------------


@triton.jit(
    do_not_specialize=[
        "q_batch", "q_stride",
        "k_batch", "k_stride",
        "v_batch", "v_stride",
        "y_batch", "y_stride",
        "read_begin", "read_end", "write_end", "splits", "tiles", "first_rate", "rung_step",
    ]
)  # fmt: skip
def hyena_mr_forward(
    q_ptr, q_batch, q_stride,
    k_ptr, k_batch, k_stride,
    v_ptr, v_batch, v_stride,
    y_ptr, y_batch, y_stride,
    featurizer_ptr,  # [3 * channels, 3]
    filter_ptr,  # [groups, 128]
    skip_ptr,  # [channels]
    read_begin, read_end, write_end, splits, tiles, first_rate, rung_step,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr, STRIDE_UNIT: tl.constexpr,
    EVEN: tl.constexpr, TERMS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    SEGMENTS: tl.constexpr, BLOCK_T: tl.constexpr, PREFETCH: tl.constexpr,
):  # fmt: skip
    """z = (featurizer * k) . (featurizer * v); y = (featurizer * q) . (filter * z + skip . z)

    A program computes SEGMENTS consecutive segments of `tiles` tiles of BLOCK_T steps next to each
    other, forward in time, for BLOCK_D channels of a group.

    Time counts from the first step written. Activations are read in [read_begin, read_end), are
    zero elsewhere, and are written up to `write_end`. EVEN says that these three are multiples of
    8; strides count in units of STRIDE_UNIT elements.
    """
    N: tl.constexpr = BLOCK_T // ROWS  # blocks of ROWS steps in a tile
    M: tl.constexpr = SEGMENTS * BLOCK_D  # rows of a product
    HISTORY: tl.constexpr = (128 - 1 + BLOCK_T - 1) // BLOCK_T  # blocks before one
    LEAD: tl.constexpr = HISTORY * BLOCK_T
    OPERAND: tl.constexpr = tl.bfloat16 if q_ptr.dtype.element_ty == tl.bfloat16 else tl.float32
    PRECISION: tl.constexpr = "tf32" if q_ptr.dtype.element_ty == tl.float16 else "ieee"
    PARTS: tl.constexpr = (WIDTH + BLOCK_D - 1) // BLOCK_D  # of a group
    COLUMNS: tl.constexpr = CHANNELS // WIDTH * PARTS  # along channels
    batch, part, block = locate(tl.program_id(0), splits, BLOCK_D=1, CHANNELS=COLUMNS)
    group = part // PARTS
    channel_0 = group * WIDTH + part % PARTS * BLOCK_D
    steps = tiles * BLOCK_T  # of a segment
    step_0 = block * (SEGMENTS * steps)
    origin = (batch, channel_0, step_0)
    q_ptr, q_stride = advance(q_ptr, q_batch, q_stride, STRIDE_UNIT, UNIT, origin)
    k_ptr, k_stride = advance(k_ptr, k_batch, k_stride, STRIDE_UNIT, UNIT, origin)
    v_ptr, v_stride = advance(v_ptr, v_batch, v_stride, STRIDE_UNIT, UNIT, origin)
    y_ptr, y_stride = advance(y_ptr, y_batch, y_stride, STRIDE_UNIT, 1, origin)
    read_begin -= step_0
    read_end -= step_0
    write_end -= step_0
    lane = tl.arange(0, M)[:, None]
    offset = lane % BLOCK_D
    segment = lane // BLOCK_D * steps  # where it begins
    channel = channel_0 + offset
    channel_mask = channel < (group + 1) * WIDTH
    going = splits > 0
    latest = (SEGMENTS - 1) * steps
    featurizer_q = load_taps(featurizer_ptr, channel, channel_mask, LENGTH=3, LAG_LAST=True)
    featurizer_k = load_taps(
        featurizer_ptr, CHANNELS + channel, channel_mask, LENGTH=3, LAG_LAST=True
    )
    featurizer_v = load_taps(
        featurizer_ptr, 2 * CHANNELS + channel, channel_mask, LENGTH=3, LAG_LAST=True
    )
    filter = load_toeplitz(
        filter_ptr,
        group,
        (decay_rate(group, first_rate, rung_step),),
        LENGTH=128,
        LAG_LAST=False,
        BLOCK_T=BLOCK_T,
        OPERAND=OPERAND,
        PRECISION=PRECISION,
        TERMS=TERMS,
    )
    skip = load_vector(skip_ptr, channel, channel_mask)
    z_blocks_kept = zero_blocks(HISTORY, M, BLOCK_T, OPERAND)
    t = 0
    tile = Tile(offset, channel_mask, segment + t, t, latest + t, read_begin, read_end, 0)
    q_before = context_rows(q_ptr, tile, q_stride, UNIT, COUNT=2, EVEN=EVEN, ROWS=ROWS, M=M, N=N)
    t = -LEAD
    tile = Tile(offset, channel_mask, segment + t, t, latest + t, read_begin, read_end, 0)
    k_before = context_rows(k_ptr, tile, k_stride, UNIT, COUNT=2, EVEN=EVEN, ROWS=ROWS, M=M, N=N)
    v_before = context_rows(v_ptr, tile, v_stride, UNIT, COUNT=2, EVEN=EVEN, ROWS=ROWS, M=M, N=N)
    for t in range(-LEAD, 0, BLOCK_T):
        tile = Tile(offset, channel_mask, segment + t, t, latest + t, read_begin, read_end, 0)
        k = load_steps(
            k_ptr, tile, k_stride, UNIT, LO=0, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=N
        )
        k, k_before = prepend(k, k_before, COUNT=2, M=M, N=N)
        k_hat = fir(k, featurizer_k, LENGTH=3)
        v = load_steps(
            v_ptr, tile, v_stride, UNIT, LO=0, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=N
        )
        v, v_before = prepend(v, v_before, COUNT=2, M=M, N=N)
        v_hat = fir(v, featurizer_v, LENGTH=3)
        z = multiply(k_hat, v_hat)
        z_blocks, z_blocks_kept = remember(z_blocks_kept, z, going, M, N, OPERAND, PRECISION)
    for t in tl.range(0, tl.minimum(steps, write_end), BLOCK_T, num_stages=PREFETCH):
        tile = Tile(
            offset, channel_mask, segment + t, t, latest + t, read_begin, read_end, write_end
        )
        q = load_steps(
            q_ptr, tile, q_stride, UNIT, LO=0, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=N
        )
        q, q_before = prepend(q, q_before, COUNT=2, M=M, N=N)
        q_hat = fir(q, featurizer_q, LENGTH=3)
        k = load_steps(
            k_ptr, tile, k_stride, UNIT, LO=0, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=N
        )
        k, k_before = prepend(k, k_before, COUNT=2, M=M, N=N)
        k_hat = fir(k, featurizer_k, LENGTH=3)
        v = load_steps(
            v_ptr, tile, v_stride, UNIT, LO=0, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=N
        )
        v, v_before = prepend(v, v_before, COUNT=2, M=M, N=N)
        v_hat = fir(v, featurizer_v, LENGTH=3)
        z = multiply(k_hat, v_hat)
        z_blocks, z_blocks_kept = remember(z_blocks_kept, z, going, M, N, OPERAND, PRECISION)
        conv = toeplitz(z_blocks, filter, HISTORY + 1, M, N, PRECISION)
        skipped = scale(z, skip)
        pre_skip = add(conv, skipped)
        y = multiply(q_hat, pre_skip)
        store_steps(y_ptr, tile, y, y_stride, unit=1, EVEN=EVEN, BLOCK_D=M, N=N)


@triton.jit(
    do_not_specialize=[
        "k_batch", "k_stride",
        "v_batch", "v_stride",
        "q_batch", "q_stride",
        "dy_batch", "dy_stride",
        "d_v_batch", "d_v_stride",
        "d_k_batch", "d_k_stride",
        "d_q_batch", "d_q_stride",
        "read_begin", "read_end", "write_end", "splits", "tiles", "first_rate", "rung_step",
    ]
)  # fmt: skip
def hyena_mr_backward(
    k_ptr, k_batch, k_stride,
    v_ptr, v_batch, v_stride,
    q_ptr, q_batch, q_stride,
    dy_ptr, dy_batch, dy_stride,
    d_v_ptr, d_v_batch, d_v_stride,
    d_k_ptr, d_k_batch, d_k_stride,
    d_q_ptr, d_q_batch, d_q_stride,
    featurizer_ptr,  # [3 * channels, 3]
    filter_ptr,  # [groups, 128]
    skip_ptr,  # [channels]
    partials_ptr,  # [batch, splits and SEGMENTS, 10, CHANNELS] float32
    group_partials_ptr,  # [batch and splits, 128, programs along channels] float32
    read_begin, read_end, write_end, splits, tiles, first_rate, rung_step,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr, D_UNIT: tl.constexpr,
    STRIDE_UNIT: tl.constexpr, EVEN: tl.constexpr, TERMS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK_T: tl.constexpr, PREFETCH: tl.constexpr,
):  # fmt: skip
    """Gradients of every input, and partial sums of those of parameters.

    A program computes SEGMENTS consecutive segments of `tiles` tiles of BLOCK_T steps next to each
    other, backward in time, for BLOCK_D channels of a group.

    Time counts from the first step written. Activations are read in [read_begin, read_end), are
    zero elsewhere, and are written up to `write_end`. EVEN says that these three are multiples of
    8; strides count in units of STRIDE_UNIT elements.
    """
    N: tl.constexpr = BLOCK_T // ROWS  # blocks of ROWS steps in a tile
    M: tl.constexpr = SEGMENTS * BLOCK_D  # rows of a product
    HISTORY: tl.constexpr = (128 - 1 + BLOCK_T - 1) // BLOCK_T  # blocks before one
    LEAD: tl.constexpr = HISTORY * BLOCK_T
    OPERAND: tl.constexpr = tl.bfloat16 if k_ptr.dtype.element_ty == tl.bfloat16 else tl.float32
    PRECISION: tl.constexpr = "tf32" if k_ptr.dtype.element_ty == tl.float16 else "ieee"
    PARTS: tl.constexpr = (WIDTH + BLOCK_D - 1) // BLOCK_D  # of a group
    COLUMNS: tl.constexpr = CHANNELS // WIDTH * PARTS  # along channels
    batch, part, block = locate(tl.program_id(0), splits, BLOCK_D=1, CHANNELS=COLUMNS)
    group = part // PARTS
    channel_0 = group * WIDTH + part % PARTS * BLOCK_D
    steps = tiles * BLOCK_T  # of a segment
    step_0 = block * (SEGMENTS * steps)
    origin = (batch, channel_0, step_0)
    k_ptr, k_stride = advance(k_ptr, k_batch, k_stride, STRIDE_UNIT, UNIT, origin)
    v_ptr, v_stride = advance(v_ptr, v_batch, v_stride, STRIDE_UNIT, UNIT, origin)
    q_ptr, q_stride = advance(q_ptr, q_batch, q_stride, STRIDE_UNIT, UNIT, origin)
    dy_ptr, dy_stride = advance(dy_ptr, dy_batch, dy_stride, STRIDE_UNIT, 1, origin)
    d_v_ptr, d_v_stride = advance(d_v_ptr, d_v_batch, d_v_stride, STRIDE_UNIT, D_UNIT, origin)
    d_k_ptr, d_k_stride = advance(d_k_ptr, d_k_batch, d_k_stride, STRIDE_UNIT, D_UNIT, origin)
    d_q_ptr, d_q_stride = advance(d_q_ptr, d_q_batch, d_q_stride, STRIDE_UNIT, D_UNIT, origin)
    read_begin -= step_0
    read_end -= step_0
    write_end -= step_0
    lane = tl.arange(0, M)[:, None]
    offset = lane % BLOCK_D
    segment = lane // BLOCK_D * steps  # where it begins
    channel = channel_0 + offset
    channel_mask = channel < (group + 1) * WIDTH
    going = splits > 0
    latest = (SEGMENTS - 1) * steps
    featurizer_q = load_taps(featurizer_ptr, channel, channel_mask, LENGTH=3, LAG_LAST=True)
    featurizer_k = load_taps(
        featurizer_ptr, CHANNELS + channel, channel_mask, LENGTH=3, LAG_LAST=True
    )
    featurizer_v = load_taps(
        featurizer_ptr, 2 * CHANNELS + channel, channel_mask, LENGTH=3, LAG_LAST=True
    )
    filter = load_toeplitz(
        filter_ptr,
        group,
        (decay_rate(group, first_rate, rung_step),),
        LENGTH=128,
        LAG_LAST=False,
        BLOCK_T=BLOCK_T,
        OPERAND=OPERAND,
        PRECISION=PRECISION,
        TERMS=TERMS,
    )
    skip = load_vector(skip_ptr, channel, channel_mask)
    d_featurizer_q = zero_taps(LENGTH=3, BLOCK_D=M, N=N)
    d_featurizer_k = zero_taps(LENGTH=3, BLOCK_D=M, N=N)
    d_featurizer_v = zero_taps(LENGTH=3, BLOCK_D=M, N=N)
    d_skip = zero_taps(LENGTH=1, BLOCK_D=M, N=N)
    d_filter = zero_toeplitz(LENGTH=128, BLOCK_T=BLOCK_T)
    z_blocks_kept = zero_blocks(HISTORY, M, BLOCK_T, OPERAND)
    d_pre_skip_blocks_kept = zero_blocks(HISTORY, M, BLOCK_T, OPERAND)
    d_v_hat_after = zero_rows(COUNT=2, M=M, N=N)
    d_k_hat_after = zero_rows(COUNT=2, M=M, N=N)
    d_q_hat_after = zero_rows(COUNT=2, M=M, N=N)
    for back in range(0, LEAD, BLOCK_T):
        t = steps + LEAD - back
        tile = Tile(offset, channel_mask, segment + t, t, latest + t, read_begin, read_end, 0)
        early = t - LEAD
        ahead = Tile(
            offset, channel_mask, segment + early, early, latest + early, read_begin, read_end, 0
        )
        k_ahead = load_steps(
            k_ptr, ahead, k_stride, UNIT, LO=-2, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=N
        )
        k_hat_ahead = fir(k_ahead, featurizer_k, LENGTH=3)
        v_ahead = load_steps(
            v_ptr, ahead, v_stride, UNIT, LO=-2, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=N
        )
        v_hat_ahead = fir(v_ahead, featurizer_v, LENGTH=3)
        z_ahead = multiply(k_hat_ahead, v_hat_ahead)
        z_blocks, z_blocks_kept = look_ahead(
            z_blocks_kept, z_ahead, going, M, N, OPERAND, PRECISION
        )
        q = load_steps(
            q_ptr, tile, q_stride, UNIT, LO=-2, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=N
        )
        q_hat = fir(q, featurizer_q, LENGTH=3)
        dy = load_steps(
            dy_ptr, tile, dy_stride, unit=1, LO=0, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=N
        )
        d_pre_skip = multiply(dy, q_hat)
        d_pre_skip_blocks, d_pre_skip_blocks_kept = remember(
            d_pre_skip_blocks_kept, d_pre_skip, going, M, N, OPERAND, PRECISION
        )
    # The first tile lies after the segment: only what the one before it takes from it is used.
    for back in tl.range(0, steps + BLOCK_T, BLOCK_T, num_stages=PREFETCH):
        t = steps - back
        stop = tl.where(back > 0, write_end, 0)
        tile = Tile(offset, channel_mask, segment + t, t, latest + t, read_begin, read_end, stop)
        early = t - LEAD
        ahead = Tile(
            offset, channel_mask, segment + early, early, latest + early, read_begin, read_end, 0
        )
        k_ahead = load_steps(
            k_ptr, ahead, k_stride, UNIT, LO=-2, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=N
        )
        k_hat_ahead = fir(k_ahead, featurizer_k, LENGTH=3)
        v_ahead = load_steps(
            v_ptr, ahead, v_stride, UNIT, LO=-2, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=N
        )
        v_hat_ahead = fir(v_ahead, featurizer_v, LENGTH=3)
        z_ahead = multiply(k_hat_ahead, v_hat_ahead)
        z_blocks, z_blocks_kept = look_ahead(
            z_blocks_kept, z_ahead, going, M, N, OPERAND, PRECISION
        )
        q = load_steps(
            q_ptr, tile, q_stride, UNIT, LO=-2, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=N
        )
        q_hat = fir(q, featurizer_q, LENGTH=3)
        k = load_steps(
            k_ptr, tile, k_stride, UNIT, LO=-2, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=N
        )
        k_hat = fir(k, featurizer_k, LENGTH=3)
        v = load_steps(
            v_ptr, tile, v_stride, UNIT, LO=-2, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=N
        )
        v_hat = fir(v, featurizer_v, LENGTH=3)
        z = multiply(k_hat, v_hat)
        conv = toeplitz(z_blocks, filter, HISTORY + 1, M, N, PRECISION)
        skipped = scale(z, skip)
        pre_skip = add(conv, skipped)
        dy = load_steps(
            dy_ptr, tile, dy_stride, unit=1, LO=0, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=N
        )
        d_q_hat = multiply(dy, pre_skip)
        d_pre_skip = multiply(dy, q_hat)
        d_pre_skip_blocks, d_pre_skip_blocks_kept = remember(
            d_pre_skip_blocks_kept, d_pre_skip, going, M, N, OPERAND, PRECISION
        )
        d_z_1 = scale(d_pre_skip, skip)
        skipped_product = multiply(d_pre_skip, z)
        d_skip = channel_sum(d_skip, skipped_product)
        d_z_2 = toeplitz_adjoint(d_pre_skip_blocks, filter, HISTORY + 1, M, N, PRECISION)
        d_filter = toeplitz_gradient(
            d_filter, d_pre_skip_blocks, z_blocks, HISTORY + 1, M, BLOCK_T, PRECISION
        )
        d_z = add(d_z_1, d_z_2)
        d_k_hat = multiply(d_z, v_hat)
        d_v_hat = multiply(d_z, k_hat)
        d_v_hat_on, d_v_hat_after = extend(d_v_hat, d_v_hat_after, COUNT=2, M=M, N=N)
        d_v = fir_adjoint(d_v_hat_on, featurizer_v, LENGTH=3)
        store_steps(d_v_ptr, tile, d_v, d_v_stride, D_UNIT, EVEN, M, N)
        d_featurizer_v = tap_gradient(d_featurizer_v, d_v_hat, v, LENGTH=3)
        d_k_hat_on, d_k_hat_after = extend(d_k_hat, d_k_hat_after, COUNT=2, M=M, N=N)
        d_k = fir_adjoint(d_k_hat_on, featurizer_k, LENGTH=3)
        store_steps(d_k_ptr, tile, d_k, d_k_stride, D_UNIT, EVEN, M, N)
        d_featurizer_k = tap_gradient(d_featurizer_k, d_k_hat, k, LENGTH=3)
        d_q_hat_on, d_q_hat_after = extend(d_q_hat, d_q_hat_after, COUNT=2, M=M, N=N)
        d_q = fir_adjoint(d_q_hat_on, featurizer_q, LENGTH=3)
        store_steps(d_q_ptr, tile, d_q, d_q_stride, D_UNIT, EVEN, M, N)
        d_featurizer_q = tap_gradient(d_featurizer_q, d_q_hat, q, LENGTH=3)
        if back == 0:
            d_featurizer_q = zero_taps(LENGTH=3, BLOCK_D=M, N=N)
            d_featurizer_k = zero_taps(LENGTH=3, BLOCK_D=M, N=N)
            d_featurizer_v = zero_taps(LENGTH=3, BLOCK_D=M, N=N)
            d_skip = zero_taps(LENGTH=1, BLOCK_D=M, N=N)
            d_filter = zero_toeplitz(LENGTH=128, BLOCK_T=BLOCK_T)
    split = (batch * splits + block) * SEGMENTS + lane // BLOCK_D
    partials_ptr += split.to(tl.int64) * (10 * CHANNELS)
    split = batch * splits + block
    group_partials_ptr += split.to(tl.int64) * (128 * COLUMNS) + part
    store_partial(
        partials_ptr,
        first=0,
        total=d_featurizer_q,
        channel=channel,
        channel_mask=channel_mask,
        CHANNELS=CHANNELS,
    )
    store_partial(
        partials_ptr,
        first=3,
        total=d_featurizer_k,
        channel=channel,
        channel_mask=channel_mask,
        CHANNELS=CHANNELS,
    )
    store_partial(
        partials_ptr,
        first=6,
        total=d_featurizer_v,
        channel=channel,
        channel_mask=channel_mask,
        CHANNELS=CHANNELS,
    )
    store_partial(
        partials_ptr,
        first=9,
        total=d_skip,
        channel=channel,
        channel_mask=channel_mask,
        CHANNELS=CHANNELS,
    )
    store_toeplitz(group_partials_ptr, d_filter, COLUMNS, LENGTH=128, BLOCK_T=BLOCK_T)


@gluon.jit(
    do_not_specialize=[
        "k_batch", "k_stride",
        "v_batch", "v_stride",
        "q_batch", "q_stride",
        "dy_batch", "dy_stride",
        "d_v_batch", "d_v_stride",
        "d_k_batch", "d_k_stride",
        "d_q_batch", "d_q_stride",
        "read_begin", "read_end", "write_end", "splits", "tiles", "first_rate", "rung_step",
    ]
)  # fmt: skip
def hyena_mr_backward_sm90(
    k_ptr, k_batch, k_stride,
    v_ptr, v_batch, v_stride,
    q_ptr, q_batch, q_stride,
    dy_ptr, dy_batch, dy_stride,
    d_v_ptr, d_v_batch, d_v_stride,
    d_k_ptr, d_k_batch, d_k_stride,
    d_q_ptr, d_q_batch, d_q_stride,
    featurizer_ptr,  # [3 * channels, 3]
    filter_ptr,  # [groups, 128]
    skip_ptr,  # [channels]
    partials_ptr,  # [batch, splits and SEGMENTS / 2, 10, CHANNELS] float32
    group_partials_ptr,  # [batch and splits, 128, programs along channels] float32
    read_begin, read_end, write_end, splits, tiles, first_rate, rung_step,
    CHANNELS: gl.constexpr, WIDTH: gl.constexpr, BLOCK_D: gl.constexpr, SEGMENTS: gl.constexpr,
    BLOCK_T: gl.constexpr,
):  # fmt: skip
    """Gradients of every input, and partial sums of those of parameters.

    For sm_90 and bfloat16. A program computes SEGMENTS consecutive segments of `tiles` tiles of
    BLOCK_T steps side by side, backward in time, for BLOCK_D channels of a group.

    Time counts from the first step written. Activations are read in [read_begin, read_end), are
    zero elsewhere, and are written up to `write_end`, all three multiples of 8; strides count in
    units of 8 elements.
    """
    gl.static_assert(BLOCK_D * SEGMENTS == 128 and BLOCK_T == 64, "rows and steps of a product")
    COUNT: gl.constexpr = (128 - 1 + BLOCK_T - 1) // BLOCK_T + 1  # blocks that taps reach
    LEAD: gl.constexpr = (COUNT - 1) * BLOCK_T
    PARTS: gl.constexpr = (WIDTH + BLOCK_D - 1) // BLOCK_D  # of a group
    COLUMNS: gl.constexpr = CHANNELS // WIDTH * PARTS  # along channels
    batch, section, block = locate(gl.program_id(0), splits, BLOCK_D=1, CHANNELS=COLUMNS)
    group = section // PARTS
    channel_0 = group * WIDTH + section % PARTS * BLOCK_D
    members = (group + 1) * WIDTH - channel_0
    steps = tiles * BLOCK_T  # of a segment
    halfway = SEGMENTS // 2 * steps
    step_0 = block * (SEGMENTS * steps)
    origin = (batch, channel_0, step_0)
    k_ptr, _ = advance(k_ptr, k_batch, k_stride, STRIDE_UNIT=8, unit=1, origin=origin)
    v_ptr, _ = advance(v_ptr, v_batch, v_stride, STRIDE_UNIT=8, unit=1, origin=origin)
    q_ptr, _ = advance(q_ptr, q_batch, q_stride, STRIDE_UNIT=8, unit=1, origin=origin)
    dy_ptr, _ = advance(dy_ptr, dy_batch, dy_stride, STRIDE_UNIT=8, unit=1, origin=origin)
    d_v_ptr, _ = advance(d_v_ptr, d_v_batch, d_v_stride, STRIDE_UNIT=8, unit=1, origin=origin)
    d_k_ptr, _ = advance(d_k_ptr, d_k_batch, d_k_stride, STRIDE_UNIT=8, unit=1, origin=origin)
    d_q_ptr, _ = advance(d_q_ptr, d_q_batch, d_q_stride, STRIDE_UNIT=8, unit=1, origin=origin)
    k_ptr = k_ptr.to(gl.pointer_type(gl.int32), bitcast=True)  # of two steps
    v_ptr = v_ptr.to(gl.pointer_type(gl.int32), bitcast=True)  # of two steps
    q_ptr = q_ptr.to(gl.pointer_type(gl.int32), bitcast=True)  # of two steps
    dy_ptr = dy_ptr.to(gl.pointer_type(gl.int32), bitcast=True)  # of two steps
    read_begin -= step_0
    length = read_end - step_0 - read_begin
    write_end -= step_0
    words = places(
        copy_layout(),
        N=32,
        UNIT=2,
        section=(members, k_stride, tiles),
        first=read_begin,
        BLOCK_D=BLOCK_D,
    )
    edges = places(
        edge_layout(),
        N=4,
        UNIT=2,
        section=(members, k_stride, tiles),
        first=read_begin,
        BLOCK_D=BLOCK_D,
    )
    dy_words = places(
        copy_layout(),
        N=32,
        UNIT=2,
        section=(members, dy_stride, tiles),
        first=read_begin,
        BLOCK_D=BLOCK_D,
    )
    outputs = places(
        quarter_layout(),
        N=32,
        UNIT=1,
        section=(members, d_v_stride, tiles),
        first=0,
        BLOCK_D=BLOCK_D,
    )
    _, channel, channel_mask = channels(section, WIDTH, BLOCK_D)
    featurizer_q = load_taps(featurizer_ptr, channel, channel_mask, LENGTH=3, LAG_LAST=True)
    featurizer_k = load_taps(
        featurizer_ptr, CHANNELS + channel, channel_mask, LENGTH=3, LAG_LAST=True
    )
    featurizer_v = load_taps(
        featurizer_ptr, 2 * CHANNELS + channel, channel_mask, LENGTH=3, LAG_LAST=True
    )
    skip = load_vector(skip_ptr, channel, channel_mask)
    filter = toeplitz_matrices(
        filter_ptr,
        group,
        (decay_rate(group, first_rate, rung_step),),
        LENGTH=128,
        LAG_LAST=False,
        COUNT=COUNT,
    )
    d_filter = zero_gradients(COUNT)
    d_featurizer_q = zero_lanes(COUNT=3)
    d_featurizer_k = zero_lanes(COUNT=3)
    d_featurizer_v = zero_lanes(COUNT=3)
    d_skip = zero_lanes(COUNT=1)
    d_q_hat_b_after = (zero_lanes(COUNT=2), zero_lanes(COUNT=2))
    d_v_hat_c_after = (zero_lanes(COUNT=2), zero_lanes(COUNT=2))
    d_k_hat_c_after = (zero_lanes(COUNT=2), zero_lanes(COUNT=2))
    z_blocks = block_ring(COUNT)
    d_pre_skip_blocks = block_ring(COUNT)
    k_early = input_slots(LAG=2)
    v_early = input_slots(LAG=2)
    q_block = input_slots(LAG=2)
    dy_block = input_slots(LAG=0)
    k_block = input_slots(LAG=2)
    v_block = input_slots(LAG=2)

    # Blocks beside the first tile's: what the recomputed convolution and the adjoint will reach.
    # The first tile lies after the segment: only what the one before it takes from it is used.
    t = steps + LEAD
    fetch(k_early, k_ptr, words, edges, t - LEAD, halfway, length)
    fetch(v_early, v_ptr, words, edges, t - LEAD, halfway, length)
    hopper.async_copy.commit_group()
    fetch(q_block, q_ptr, words, edges, t, halfway, length)
    fetch(dy_block, dy_ptr, dy_words, edges, t, halfway, length)
    hopper.async_copy.commit_group()
    newest = 0
    for _ in range(COUNT - 1):
        newest += 1
        before = t - BLOCK_T
        hopper.async_copy.wait_group(1)
        quarters = ()
        for part in gl.static_range(2):
            for half in gl.static_range(2):
                k_ahead = read_rows(k_early, part, half, LAG=2)
                k_hat_ahead = fir(k_ahead, featurizer_k, LENGTH=3)
                v_ahead = read_rows(v_early, part, half, LAG=2)
                v_hat_ahead = fir(v_ahead, featurizer_v, LENGTH=3)
                z_ahead = multiply(k_hat_ahead, v_hat_ahead)
                quarters = quarters + (rows_quarter(z_ahead),)
        remember_block(z_blocks, newest, quarters)
        fetch(k_early, k_ptr, words, edges, before - LEAD, halfway, length)
        fetch(v_early, v_ptr, words, edges, before - LEAD, halfway, length)
        hopper.async_copy.commit_group()
        hopper.async_copy.wait_group(1)
        quarters = ()
        for part in gl.static_range(2):
            for half in gl.static_range(2):
                q_a = read_rows(q_block, part, half, LAG=2)
                q_hat_a = fir(q_a, featurizer_q, LENGTH=3)
                dy_a = read_rows(dy_block, part, half, LAG=0)
                d_pre_skip_a = multiply(dy_a, q_hat_a)
                quarters = quarters + (rows_quarter(d_pre_skip_a),)
        remember_block(d_pre_skip_blocks, newest, quarters)
        fetch(q_block, q_ptr, words, edges, before, halfway, length)
        fetch(dy_block, dy_ptr, dy_words, edges, before, halfway, length)
        hopper.async_copy.commit_group()
        t = before
    newest = 0
    for back in range(0, steps + BLOCK_T, BLOCK_T):
        t = steps - back
        before = t - BLOCK_T
        dy_length = gl.where(before < 0, 0, length)  # inputs have a context there, dy has none
        stop = gl.where(back > 0, write_end, 0)
        hopper.async_copy.wait_group(1)
        quarters = ()
        for part in gl.static_range(2):
            for half in gl.static_range(2):
                k_ahead = read_rows(k_early, part, half, LAG=2)
                k_hat_ahead = fir(k_ahead, featurizer_k, LENGTH=3)
                v_ahead = read_rows(v_early, part, half, LAG=2)
                v_hat_ahead = fir(v_ahead, featurizer_v, LENGTH=3)
                z_ahead = multiply(k_hat_ahead, v_hat_ahead)
                quarters = quarters + (rows_quarter(z_ahead),)
        remember_block(z_blocks, newest, quarters)
        hopper.async_copy.wait_group(0)
        hopper.fence_async_shared()
        tl.debug_barrier()
        conv_product = begin_toeplitz(z_blocks, newest, filter, COUNT)
        fetch(k_block, k_ptr, words, edges, t, halfway, length)
        fetch(v_block, v_ptr, words, edges, t, halfway, length)
        hopper.async_copy.commit_group()
        quarters = ()
        for part in gl.static_range(2):
            for half in gl.static_range(2):
                q_a = read_rows(q_block, part, half, LAG=2)
                q_hat_a = fir(q_a, featurizer_q, LENGTH=3)
                dy_a = read_rows(dy_block, part, half, LAG=0)
                d_pre_skip_a = multiply(dy_a, q_hat_a)
                quarters = quarters + (rows_quarter(d_pre_skip_a),)
        remember_block(d_pre_skip_blocks, newest, quarters)
        hopper.fence_async_shared()
        tl.debug_barrier()
        d_z_2_product = begin_toeplitz_adjoint(d_pre_skip_blocks, newest, filter, COUNT)
        d_filter = begin_toeplitz_gradient(
            d_filter, d_pre_skip_blocks, z_blocks, newest, back > BLOCK_T, COUNT
        )
        fetch(k_early, k_ptr, words, edges, before - LEAD, halfway, length)
        fetch(v_early, v_ptr, words, edges, before - LEAD, halfway, length)
        hopper.async_copy.commit_group()
        d_featurizer_q = renewed(d_featurizer_q, back <= BLOCK_T)
        d_featurizer_k = renewed(d_featurizer_k, back <= BLOCK_T)
        d_featurizer_v = renewed(d_featurizer_v, back <= BLOCK_T)
        d_skip = renewed(d_skip, back <= BLOCK_T)
        z_b_quarters = block_quarters(
            z_blocks.index(visited(newest, COUNT - 1, COUNT)).load(product_layout())
        )
        conv_product = hopper.warpgroup_mma_wait(2 * COUNT, deps=(conv_product,))
        conv_quarters = block_quarters(conv_product)
        for part in gl.static_range(1, -1, -1):
            for half in gl.static_range(2):
                position = t + 32 * part + half * halfway
                conv = quarter_rows(conv_quarters[2 * part + half])
                z_b = quarter_rows(z_b_quarters[2 * part + half])
                q_b = read_rows(q_block, part, half, LAG=2)
                skipped_b = scale(z_b, skip)
                pre_skip_b = add(conv, skipped_b)
                dy_b = read_rows(dy_block, part, half, LAG=0)
                d_q_hat_b = multiply(dy_b, pre_skip_b)
                d_q_hat_on_b, d_q_hat_b_after = extend_rows(d_q_hat_b, d_q_hat_b_after, COUNT=2)
                d_q_b = fir_adjoint(d_q_hat_on_b, featurizer_q, LENGTH=3)
                store_quarter(d_q_ptr, outputs, position, d_q_b, stop)
                d_featurizer_q = tap_gradient(d_featurizer_q, d_q_hat_b, q_b, LENGTH=3)
        fetch(q_block, q_ptr, words, edges, before, halfway, length)
        fetch(dy_block, dy_ptr, dy_words, edges, before, halfway, dy_length)
        hopper.async_copy.commit_group()
        d_pre_skip_c_quarters = block_quarters(
            d_pre_skip_blocks.index(newest).load(product_layout())
        )
        hopper.async_copy.wait_group(2)
        d_z_2_product = hopper.warpgroup_mma_wait(COUNT, deps=(d_z_2_product,))
        d_z_2_quarters = block_quarters(d_z_2_product)
        for part in gl.static_range(1, -1, -1):
            for half in gl.static_range(2):
                position = t + 32 * part + half * halfway
                d_z_2 = quarter_rows(d_z_2_quarters[2 * part + half])
                d_pre_skip_c = quarter_rows(d_pre_skip_c_quarters[2 * part + half])
                k_c = read_rows(k_block, part, half, LAG=2)
                k_hat_c = fir(k_c, featurizer_k, LENGTH=3)
                v_c = read_rows(v_block, part, half, LAG=2)
                v_hat_c = fir(v_c, featurizer_v, LENGTH=3)
                z_c = multiply(k_hat_c, v_hat_c)
                d_z_1_c = scale(d_pre_skip_c, skip)
                skipped_product_c = multiply(d_pre_skip_c, z_c)
                d_skip = channel_sum(d_skip, skipped_product_c)
                d_z_c = add(d_z_1_c, d_z_2)
                d_k_hat_c = multiply(d_z_c, v_hat_c)
                d_v_hat_c = multiply(d_z_c, k_hat_c)
                d_v_hat_on_c, d_v_hat_c_after = extend_rows(d_v_hat_c, d_v_hat_c_after, COUNT=2)
                d_v_c = fir_adjoint(d_v_hat_on_c, featurizer_v, LENGTH=3)
                store_quarter(d_v_ptr, outputs, position, d_v_c, stop)
                d_featurizer_v = tap_gradient(d_featurizer_v, d_v_hat_c, v_c, LENGTH=3)
                d_k_hat_on_c, d_k_hat_c_after = extend_rows(d_k_hat_c, d_k_hat_c_after, COUNT=2)
                d_k_c = fir_adjoint(d_k_hat_on_c, featurizer_k, LENGTH=3)
                store_quarter(d_k_ptr, outputs, position, d_k_c, stop)
                d_featurizer_k = tap_gradient(d_featurizer_k, d_k_hat_c, k_c, LENGTH=3)
        d_filter = end_gradients(d_filter)
        newest = (newest + 1) % COUNT
    hopper.async_copy.wait_group(0)
    # Where this program is, computed once more: kept through the loop it would take registers.
    batch, section, block = locate(anew(gl.program_id(0)), splits, BLOCK_D=1, CHANNELS=COLUMNS)
    split = batch * splits + block
    lane, channel, channel_mask = channels(section, WIDTH, BLOCK_D)
    sums = partials_ptr + (split * (SEGMENTS // 2) + lane // BLOCK_D).to(gl.int64) * (
        10 * CHANNELS
    )
    taps = group_partials_ptr + split.to(gl.int64) * (128 * COLUMNS) + section
    store_sums(sums, d_featurizer_q, channel, channel_mask, CHANNELS, FIRST=0)
    store_sums(sums, d_featurizer_k, channel, channel_mask, CHANNELS, FIRST=3)
    store_sums(sums, d_featurizer_v, channel, channel_mask, CHANNELS, FIRST=6)
    store_sums(sums, d_skip, channel, channel_mask, CHANNELS, FIRST=9)
    store_diagonals(taps, d_filter, COLUMNS, LENGTH=128, COUNT=COUNT)


@triton.jit(
    do_not_specialize=[
        "q_batch", "q_channel", "q_time",
        "k_batch", "k_channel", "k_time",
        "v_batch", "v_channel", "v_time",
        "y_batch", "y_channel", "y_time",
        "places", "first_rate", "rung_step",
    ]
)  # fmt: skip
def hyena_mr_decode(
    q_ptr, q_batch, q_channel, q_time,
    k_ptr, k_batch, k_channel, k_time,
    v_ptr, v_batch, v_channel, v_time,
    y_ptr, y_batch, y_channel, y_time,
    featurizer_ptr,  # [3 * channels, 3]
    skip_ptr,  # [channels]
    filter_ptr,  # [groups, 128]
    tails_ptr,  # [places, TAILS_SLOTS, 3 * CHANNELS]
    z_ptr,  # [places, Z_SLOTS, CHANNELS]
    count_ptr,  # [places] int32: steps before these
    done_ptr,  # [places, CHANNELS / BLOCK] int32: the same of each block of channels
    slots_ptr,  # [batch] int32: places
    places, first_rate, rung_step,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, SHARE: tl.constexpr, STEPS: tl.constexpr,
    TAILS_SLOTS: tl.constexpr, Z_SLOTS: tl.constexpr, SLOTTED: tl.constexpr, DRAFT: tl.constexpr,
    BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """z = (featurizer * k) . (featurizer * v); y = (featurizer * q) . (filter * z + skip . z)

    A program computes STEPS steps of BLOCK_D channels of a sequence. The past of sequence i is row
    slots[i] of the state, if SLOTTED, else row i; of sequences whose slot is none of the `places`
    nothing is computed. DRAFT says that the state does not move on.
    """
    COLUMNS: tl.constexpr = (CHANNELS + BLOCK_D - 1) // BLOCK_D  # programs along channels
    channel_0 = tl.program_id(0) % COLUMNS * BLOCK_D
    channel = channel_0 + tl.arange(0, BLOCK_D)
    channel_mask = channel < CHANNELS
    lead = channel_0 + tl.arange(0, BLOCK_D // SHARE)[None, :, None] * SHARE
    lane = lead + tl.arange(0, SHARE)[None, None, :]
    group = lead // WIDTH
    featurizer_q = load_taps(featurizer_ptr, channel, channel_mask, LENGTH=3, LAG_LAST=True)
    featurizer_k = load_taps(
        featurizer_ptr, CHANNELS + channel, channel_mask, LENGTH=3, LAG_LAST=True
    )
    featurizer_v = load_taps(
        featurizer_ptr, 2 * CHANNELS + channel, channel_mask, LENGTH=3, LAG_LAST=True
    )
    skip = load_vector(skip_ptr, channel, channel_mask)
    row = tl.program_id(0) // COLUMNS
    slot = row
    if SLOTTED:
        slot = tl.load(slots_ptr + row)
        slot = tl.where(slot < places, slot, -1)
    if slot >= 0:
        place = slot.to(tl.int64)
        done = done_ptr + place * ((CHANNELS + 15) // 16)
        own = done + channel_0 // 16
        count = tl.load(count_ptr + place if DRAFT else own)  # of drafts, changed by none of these
        tails_ring = tails_ptr + place * (TAILS_SLOTS * 3 * CHANNELS)
        z_ring = z_ptr + place * (Z_SLOTS * CHANNELS)
        q = read_steps(q_ptr, row, channel, q_batch, q_channel, q_time, channel_mask, STEPS)
        q_rows = after_ring(
            q,
            tails_ring,
            count,
            channel,
            channel_mask,
            LAG=2,
            SLOTS=TAILS_SLOTS,
            COLUMNS=3 * CHANNELS,
        )
        q_hat = fir(q_rows, featurizer_q, LENGTH=3)
        k = read_steps(k_ptr, row, channel, k_batch, k_channel, k_time, channel_mask, STEPS)
        k_rows = after_ring(
            k,
            tails_ring + CHANNELS,
            count,
            channel,
            channel_mask,
            LAG=2,
            SLOTS=TAILS_SLOTS,
            COLUMNS=3 * CHANNELS,
        )
        k_hat = fir(k_rows, featurizer_k, LENGTH=3)
        v = read_steps(v_ptr, row, channel, v_batch, v_channel, v_time, channel_mask, STEPS)
        v_rows = after_ring(
            v,
            tails_ring + 2 * CHANNELS,
            count,
            channel,
            channel_mask,
            LAG=2,
            SLOTS=TAILS_SLOTS,
            COLUMNS=3 * CHANNELS,
        )
        v_hat = fir(v_rows, featurizer_v, LENGTH=3)
        z = multiply(k_hat, v_hat)
        conv = ring_conv(
            z,
            z_ring,
            count,
            lead,
            lane,
            channel,
            CHANNELS,
            filter_ptr,
            group,
            decay_rate(group, first_rate, rung_step),
            channel // WIDTH,
            decay_rate(channel // WIDTH, first_rate, rung_step),
            DECAYS=True,
            STEPS=STEPS,
            LENGTH=128,
            LAG_LAST=False,
            SLOTS=Z_SLOTS,
            COLUMNS=CHANNELS,
            BLOCK_D=BLOCK_D,
            SHARE=SHARE,
            CHUNK=CHUNK,
        )
        skipped = scale(z, skip)
        pre_skip = add(conv, skipped)
        y = multiply(q_hat, pre_skip)
        write_steps(y_ptr, row, channel, y_batch, y_channel, y_time, channel_mask, y)
        keep_steps(q, tails_ring, count, channel, channel_mask, TAILS_SLOTS, 3 * CHANNELS)
        keep_steps(
            k, tails_ring + CHANNELS, count, channel, channel_mask, TAILS_SLOTS, 3 * CHANNELS
        )
        keep_steps(
            v, tails_ring + 2 * CHANNELS, count, channel, channel_mask, TAILS_SLOTS, 3 * CHANNELS
        )
        keep_steps(z, z_ring, count, channel, channel_mask, Z_SLOTS, CHANNELS)
        tl.debug_barrier()  # no warp writes what another has yet to read
        if not DRAFT:
            keep_count(done, count + STEPS, channel, channel_mask, 16)
            tl.store(count_ptr + place, count + STEPS, mask=channel_0 == 0)
    else:
        no_steps(y_ptr, row, channel, y_batch, y_channel, y_time, channel_mask, STEPS)


@triton.constexpr_function
def section_end(index, CHANNELS, WIDTH, SHARERS):
    """The first program after those that sum the gradients of parameters 0 .. index."""
    sections = (
        (128, CHANNELS // WIDTH * SHARERS, SHARERS),  # filter
        (9, CHANNELS, 1),  # featurizer
        (1, CHANNELS, 1),  # skip
    )
    return sum(rows * sum_blocks(columns, width) for rows, columns, width in sections[: index + 1])


@triton.jit(do_not_specialize=["splits", "group_splits", "first_rate", "rung_step"])
def sum_partials(
    partials_ptr,  # [splits, 10, CHANNELS] float32
    group_partials_ptr,  # [group_splits, 128, CHANNELS // WIDTH * SHARERS] float32
    d_filter_ptr,  # [groups, 128]
    d_featurizer_ptr,  # [3 * channels, 3]
    d_skip_ptr,  # [channels]
    splits, group_splits, first_rate, rung_step,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, SHARERS: tl.constexpr,
):  # fmt: skip
    """Gradients of filter, featurizer, skip, each by programs of its own."""
    program = tl.program_id(0)
    if program < section_end(0, CHANNELS, WIDTH, SHARERS):
        d_filter = sum_rows(
            group_partials_ptr, group_splits, program,
            FIRST=0, P=128, COLUMNS=CHANNELS // WIDTH * SHARERS, WIDTH=SHARERS,
            LENGTH=128, ROLES=1, INTERLEAVED=False, LAG_LAST=False,
        )  # fmt: skip
        d_filter = before_decay(d_filter, decay_rate(d_filter.group, first_rate, rung_step))
        store_gradient(d_filter_ptr, d_filter)
    elif program < section_end(1, CHANNELS, WIDTH, SHARERS):
        d_featurizer = sum_rows(
            partials_ptr, splits, program - section_end(0, CHANNELS, WIDTH, SHARERS),
            FIRST=0, P=10, COLUMNS=CHANNELS, WIDTH=1,
            LENGTH=3, ROLES=3, INTERLEAVED=False, LAG_LAST=True,
        )  # fmt: skip
        store_gradient(d_featurizer_ptr, d_featurizer)
    else:
        d_skip = sum_rows(
            partials_ptr, splits, program - section_end(1, CHANNELS, WIDTH, SHARERS),
            FIRST=9, P=10, COLUMNS=CHANNELS, WIDTH=1,
            LENGTH=1, ROLES=1, INTERLEAVED=False, LAG_LAST=False,
        )  # fmt: skip
        store_gradient(d_skip_ptr, d_skip)


# -----------------------------------------------------------------------------------------------
# Launchers
# -----------------------------------------------------------------------------------------------


class Grid(NamedTuple):
    """The programs of a launch.

    Attributes:
        splits: of a sequence, each by a program of its own.
        tiles: of a split, or of each of its segments.
        columns: programs along channels.
        sums: partial sums that a program writes.
        programs: in all.
    """

    splits: int
    tiles: int
    columns: int
    sums: int
    programs: int


def sharers(width: int, config: dict[str, int]) -> int:
    """How many programs of a stream share the channels of a group."""
    return -(-width // config["BLOCK_D"])


def stream_grid(
    batch: int, steps: int, channels: int, width: int, config: dict[str, int], whole: bool = False
) -> Grid:
    """Of kernels that stream along SEGMENTS segments of time, for channels of one group.

    A segment has TILES tiles, fewer if the steps are few, and more if they are so many that the
    partial sums of more than 32 splits would weigh something. `whole` asks for segments that end
    with the steps, so that no sum goes beyond them.
    """
    in_all = -(-steps // (config["BLOCK_T"] * config["SEGMENTS"]))
    tiles = max(1, min(config["TILES"], in_all), -(-in_all // 32))
    while whole and in_all % tiles:
        tiles -= 1
    splits = -(-in_all // tiles)
    columns = channels // width * sharers(width, config)
    return Grid(splits, tiles, columns, config["SEGMENTS"], batch * splits * columns)


def even(bounds: tuple[int, int, int]) -> bool:
    """Whether a vector of 8 steps lies within or without the bounds as a whole."""
    return all(bound % 8 == 0 for bound in bounds)


def sm90_config(config: dict[str, int]) -> dict[str, int]:
    """The config of the variant for sm_90: 128 rows of products, blocks of 64 steps, 8 warps.
    Empty if there is none.
    """
    if not config.get("TILES_SM90"):
        return {}
    channels = config["BLOCK_D"]
    shape = {"BLOCK_D": channels, "SEGMENTS": 128 // channels, "BLOCK_T": 64}
    return shape | {"TILES": config["TILES_SM90"], "num_warps": 8}


def sm90_grid(
    batch: int, steps: int, channels: int, width: int, config: dict[str, int], whole: bool = False
) -> Grid:
    """As `stream_grid`, of the variant for sm_90, where two segments share a partial sum."""
    grid = stream_grid(batch, steps, channels, width, config, whole)
    return grid._replace(sums=config["SEGMENTS"] // 2)


def sm90_suits(
    reach: int, steps: int, bounds: tuple[int, int, int], config: dict[str, int]
) -> bool:
    """Whether sizes suit the variant for sm_90: whole vectors, and long enough to gain by it, for
    nearly two tiles.

    Args:
        reach: steps that may be read.
        bounds: of reads and writes, as kernels take them.
    """
    tile = config["BLOCK_T"] * config["SEGMENTS"]
    return even(bounds) and 4 * steps > 7 * tile and reach < 2**29


def step_grid(
    batch: int, steps: int, channels: int, width: int, config: dict[str, int], whole: bool = False
) -> Grid:
    """Of kernels that decode: a program has channels of one sequence, and all their steps."""
    columns = -(-channels // config["BLOCK_D"])
    return Grid(1, 1, columns, 1, columns * batch)


def step_config(config: dict[str, int], columns: int, steps: int) -> dict[str, int]:
    """The config of a call that decodes so many columns, channels of a sequence each: of many,
    programs are twice as wide; of several steps taps are read in blocks that take no more
    registers.
    """
    wide = 2 if 0 < config["DOUBLE"] < columns else 1
    chunk = max(16, config["CHUNK"] >> (max(1, steps) - 1).bit_length())
    return {
        "BLOCK_D": wide * config["BLOCK_D"],
        "CHUNK": chunk,
        "num_warps": wide * config["num_warps"],
    }


def shared_channels(width: int, config: dict[str, int]) -> int:
    """How many channels side by side have one filter, whatever the first of a program's is."""
    return min(config["BLOCK_D"], width & -width)


def gpu_of(device: torch.device) -> tuple[str, tuple[int, int]]:
    """What torch calls the GPU, and its compute capability; nothing of a CPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return "", (0, 0)
    return torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may take. Nothing limits Triton's interpreter."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 2**31
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def tap_terms(groups: int) -> int:
    """How many operands of products a tap is: two where few taps carry the result."""
    return 2 if groups < 32 else 1


def default_configs(channels: int, groups: int, device: torch.device) -> dict[str, dict[str, int]]:
    """The config of each kernel where CONFIGS has none."""
    width = channels // groups
    padded_width = 1 << (channels // groups - 1).bit_length()
    shared = shared_memory(device)
    if shared < 163840 and tap_terms(groups) == 2:
        forward = {
            "ROWS": 8,
            "BLOCK_D": min(32, padded_width),
            "SEGMENTS": 32 // min(32, padded_width),
            "BLOCK_T": 32,
            "TILES": 64,
            "PREFETCH": 3,
            "num_warps": 4,
            "maxnreg": 0,
        }
    elif tap_terms(groups) == 1:
        forward = {
            "ROWS": 8,
            "BLOCK_D": min(64, padded_width),
            "SEGMENTS": 64 // min(64, padded_width),
            "BLOCK_T": 64,
            "TILES": 32,
            "PREFETCH": 3,
            "num_warps": 4,
            "maxnreg": 0,
        }
    else:
        forward = {
            "ROWS": 8,
            "BLOCK_D": min(32, padded_width),
            "SEGMENTS": 32 // min(32, padded_width),
            "BLOCK_T": 32,
            "TILES": 64,
            "PREFETCH": 3,
            "num_warps": 4,
            "maxnreg": 0,
        }
    if tap_terms(groups) == 1 and padded_width >= 4:
        backward = {
            "ROWS": 8,
            "BLOCK_D": min(32, padded_width),
            "SEGMENTS": 32 // min(32, padded_width),
            "BLOCK_T": 32,
            "TILES": 64,
            "PREFETCH": 3,
            "TILES_SM90": 128,
            "num_warps": 4,
            "maxnreg": 0,
        }
    elif tap_terms(groups) == 1:
        backward = {
            "ROWS": 8,
            "BLOCK_D": min(32, padded_width),
            "SEGMENTS": 32 // min(32, padded_width),
            "BLOCK_T": 32,
            "TILES": 64,
            "PREFETCH": 3,
            "TILES_SM90": 0,
            "num_warps": 4,
            "maxnreg": 0,
        }
    else:
        backward = {
            "ROWS": 8,
            "BLOCK_D": min(16, padded_width),
            "SEGMENTS": 16 // min(16, padded_width),
            "BLOCK_T": 16,
            "TILES": 128,
            "PREFETCH": 1,
            "TILES_SM90": 0,
            "num_warps": 8,
            "maxnreg": 0,
        }
    if width == 8 * (width // 8):
        decode = {"BLOCK_D": 32, "CHUNK": 128, "DOUBLE": 0, "num_warps": 1}
    else:
        decode = {"BLOCK_D": 32, "CHUNK": 32, "DOUBLE": 0, "num_warps": 1}
    return {"forward": forward, "backward": backward, "decode": decode}


def configs_of(x: Tensor, channels: int, groups: int) -> dict[str, dict[str, int]]:
    """The config of every kernel and variant for inputs like x of so many channels and groups:
    that of CONFIGS for this GPU, or for one of its compute capability, or else the default.
    """
    key = (x.device, int(channels), int(groups))
    if key not in CHOSEN:
        here, capability = gpu_of(x.device)
        stated = {
            gpu: configs for (gpu, *width), configs in CONFIGS.items() if (*width,) == key[1:]
        }
        alike = [gpu for gpu in stated if CAPABILITIES.get(gpu) == capability]
        configs = next((stated[gpu] for gpu in ("", here, *alike) if gpu in stated), None)
        configs = dict(configs or default_configs(*key[1:], x.device))
        if backward_sm90 := sm90_config(configs["backward"]):
            configs["backward_sm90"] = backward_sm90
        CHOSEN[key] = configs
    return CHOSEN[key]


def dense(x: Tensor) -> Tensor:
    """x itself if its last axis is contiguous, else a copy for which it is."""
    return x if x.stride(2) == 1 else allocate(x, x.shape[TIME]).copy_(x)


def common_unit(tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], int]:
    """The tensors and the stride of their last axis, which kernels take as a constant.

    Views of interleaved features may keep theirs, up to WIDEST; anything wider, or mixed, is
    copied first.
    """
    units = {x.stride(2) for x in tensors}
    if len(units) == 1 and min(units) in range(1, WIDEST + 1):
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


def stride_step(config: dict[str, int], tensors: Sequence[Tensor], tiles: int) -> int:
    """8 if all strides are multiples of 8 elements, so that accesses are 16 bytes wide; else 1.

    Refuses row strides that the 32-bit offsets within a program of so many tiles cannot hold;
    those of the program itself are 64-bit.
    """
    rows, step = rows_reached(config, tiles), 8
    for x in tensors:
        batch_stride, row_stride, _ = x.stride()
        if rows * row_stride >= 2**31:
            raise ValueError(f"{OP}: a row stride of {row_stride} elements is too large")
        if row_stride % 8 or (batch_stride % 8 and x.shape[0] > 1):
            step = 1
    return step


def aligned(tensors: Sequence[Tensor]) -> bool:
    """Whether 16 bytes begin where each tensor does."""
    return all(x.data_ptr() % 16 == 0 for x in tensors)


def suits_sm90(
    tensors: Sequence[Tensor],
    unit: int,
    step: int,
    begin: int,
    bounds: tuple[int, int, int],
    config: dict[str, int],
) -> bool:
    """Whether a call can run the variant for sm_90, and is long enough to gain by it.

    The tensors are the inputs, which share a row stride as do their gradients at the end, and
    between them those that are read from step `begin` on.
    """
    tile = config["BLOCK_T"] * config["SEGMENTS"]
    x, roles = tensors[0], len(INPUTS)
    return (
        HAS_GLUON
        and x.device.type == "cuda"
        and x.dtype == torch.bfloat16
        and torch.cuda.get_device_capability(x.device) == (9, 0)
        and (unit, step) == (1, 8)
        and begin % 8 == 0
        and sm90_suits(bounds[1] - bounds[0], bounds[2], bounds, config)
        and (bounds[1] == bounds[2] or bounds[2] % tile == 0)
        and aligned(tensors)
        and len({tensor.stride(1) for tensor in tensors[:roles]}) == 1
        and len({tensor.stride(1) for tensor in tensors[-roles:]}) == 1
    )


def trait(argument: Tensor | int) -> tuple[object, ...]:
    """What Triton compiles another binary for: dtype and alignment, or 64 bits."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    return (argument >= 2**31,)


def launch(
    kernel, programs: int, *arguments: Tensor | int, config: dict[str, int], **constants: int
):
    """Run a kernel on the device of its first argument.

    The config gives the constants that are left, and what the compiler is told. Binding arguments
    anew for each launch takes the host longer than a short kernel takes the GPU, so the binary for
    arguments of these traits is remembered and launched directly. It takes the constants by
    position, after the arguments.
    """
    device = arguments[0].device
    given = len(arguments) + len(constants)
    values = (*constants.values(), *(config[name] for name in kernel.arg_names[given:]))
    options = {name: config[name] for name in TOLD if config.get(name)}
    key = (kernel, device, *map(trait, arguments), *values, *options.values())
    binary = BINARIES.get(key)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if binary is None:
            names = kernel.arg_names[len(arguments) :]
            assert names[: len(constants)] == list(constants), "in the kernel's order"
            named = dict(zip(names, values, strict=True))
            # Fusion is stated, because Triton's default changes between versions.
            binary = BINARIES[key] = kernel[(programs,)](
                *arguments, **named, **options, enable_fp_fusion=True
            )
        else:
            binary[(programs, 1, 1)](*arguments, *values)
    if (noted := getattr(LAUNCHES, "noted", None)) is not None:
        noted.append((kernel, programs, binary, arguments, values))


def reduce_partials(
    kernel,
    programs: int,
    partials: Sequence[Tensor],
    parameters: Sequence[Tensor],
    sizes: Sequence[int],
    **constants: int,
) -> list[Tensor]:
    """Gradients of parameter tensors, in their shapes and dtypes, from partial sums
    [splits, rows, columns], by one launch of all sections of the kernel that sums these.

    Args:
        sizes: the kernel's numbers beside how many partial sums there are.
    """
    sums = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in parameters]
    counts = (p.shape[0] for p in partials)
    launch(kernel, programs, *partials, *sums, *counts, *sizes, config=SUMS, **constants)
    return sums


def rows_reached(config: dict[str, int], tiles: int) -> int:
    """How many rows a program of so many tiles reads."""
    return config.get("BLOCK_D", 1)


def launch_forward(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    context: int = 0,
    begin: int = 0,
    end: int | None = None,
    first_group: int = 0,
    groups_in_all: int | None = None,
) -> list[Tensor]:
    """[y] for steps begin .. end - 1 of the segment after `context` steps."""
    (q, k, v), unit = common_unit(unpack(inputs))
    filter, featurizer, skip = (p.contiguous() for p in parameters)
    channels, groups = q.shape[CHANNEL], filter.shape[0]
    width = channels // groups
    rungs = rungs_of(groups, first_group, groups_in_all)
    first_rate, rung_step = ladder_of(first_group, rungs)
    configs = configs_of(q, channels, groups)
    config = configs["forward"]
    first, steps, bounds = segment(q, context, begin, end, config["BLOCK_T"])
    grid = stream_grid(q.shape[0], steps, channels, width, config)
    y = allocate(q, steps, channels)
    tensors = (q, k, v, y)
    step = stride_step(config, tensors, grid.tiles)
    if grid.programs:
        launch(
            hyena_mr_forward,
            grid.programs,
            *operand(q, first, step),
            *operand(k, first, step),
            *operand(v, first, step),
            *operand(y, 0, step),
            featurizer,
            filter,
            skip,
            *bounds,
            grid.splits,
            grid.tiles,
            first_rate,
            rung_step,
            config=config,
            CHANNELS=channels,
            WIDTH=width,
            UNIT=unit,
            STRIDE_UNIT=step,
            EVEN=even(bounds),
            TERMS=tap_terms(groups),
        )
    return [y]


def launch_backward(
    dy: Tensor,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    saved: Sequence[Tensor],
    context: int = 0,
    begin: int = 0,
    end: int | None = None,
    first_group: int = 0,
    groups_in_all: int | None = None,
) -> list[Tensor]:
    """Gradients of the inputs, packed if they are, then of filter, featurizer, skip.

    With a range, the gradients of inputs are for its steps and those of parameters sum over them;
    `dy` and saved values cover the whole segment, without its context.
    """
    (q, k, v), unit = common_unit(unpack(inputs))
    filter, featurizer, skip = (p.contiguous() for p in parameters)
    dy = dense(dy)
    channels, groups = q.shape[CHANNEL], filter.shape[0]
    width = channels // groups
    rungs = rungs_of(groups, first_group, groups_in_all)
    first_rate, rung_step = ladder_of(first_group, rungs)
    configs = configs_of(q, channels, groups)
    config = configs["backward"]
    first, steps, bounds = segment(q, context, begin, end, config["BLOCK_T"] * config["SEGMENTS"])
    grid = stream_grid(q.shape[0], steps, channels, width, config, bounds[1] > bounds[2])
    gradients = [allocate(x, steps) for x in inputs]
    d_q, d_k, d_v = unpack(gradients)
    d_unit = d_q.stride(2)
    tensors = (q, k, v, dy, d_q, d_k, d_v)
    step = stride_step(config, tensors, grid.tiles)
    sm90 = configs.get("backward_sm90")
    if sm90 is not None and suits_sm90(tensors, unit, step, begin, bounds, sm90):
        config = sm90
        grid = sm90_grid(q.shape[0], steps, channels, width, config, bounds[1] > bounds[2])
    partials = q.new_empty(
        (q.shape[0] * grid.splits * grid.sums, 10, channels), dtype=torch.float32
    )
    group_partials = q.new_empty(
        (q.shape[0] * grid.splits, 128, grid.columns), dtype=torch.float32
    )
    if grid.programs and config is sm90:
        launch(
            hyena_mr_backward_sm90,
            grid.programs,
            *operand(k, first, step),
            *operand(v, first, step),
            *operand(q, first, step),
            *operand(dy, begin, step),
            *operand(d_v, 0, step),
            *operand(d_k, 0, step),
            *operand(d_q, 0, step),
            featurizer,
            filter,
            skip,
            partials,
            group_partials,
            *bounds,
            grid.splits,
            grid.tiles,
            first_rate,
            rung_step,
            config=config,
            CHANNELS=channels,
            WIDTH=width,
        )
    elif grid.programs:
        launch(
            hyena_mr_backward,
            grid.programs,
            *operand(k, first, step),
            *operand(v, first, step),
            *operand(q, first, step),
            *operand(dy, begin, step),
            *operand(d_v, 0, step),
            *operand(d_k, 0, step),
            *operand(d_q, 0, step),
            featurizer,
            filter,
            skip,
            partials,
            group_partials,
            *bounds,
            grid.splits,
            grid.tiles,
            first_rate,
            rung_step,
            config=config,
            CHANNELS=channels,
            WIDTH=width,
            UNIT=unit,
            D_UNIT=d_unit,
            STRIDE_UNIT=step,
            EVEN=even(bounds),
            TERMS=tap_terms(groups),
        )
    gradients += reduce_partials(
        sum_partials,
        section_end(2, channels, width, sharers(width, config)),
        [partials, group_partials],
        [filter, featurizer, skip],
        [first_rate, rung_step],
        CHANNELS=channels,
        WIDTH=width,
        SHARERS=sharers(width, config),
    )
    return gradients


# -----------------------------------------------------------------------------------------------
# Plain PyTorch: tensors on a CPU
# -----------------------------------------------------------------------------------------------


def allocate(like: Tensor, steps: int, channels: int | None = None) -> Tensor:
    """An activation of `steps` steps, not yet written, with the batch and dtype of `like`, and its
    channels if no others are given.

    Rows are padded to a multiple of 8 elements, so that accesses stay 16 bytes wide whatever the
    length.
    """
    batch = like.shape[0]
    channels = like.shape[CHANNEL] if channels is None else channels
    row = (steps + 7) // 8 * 8
    return like.new_empty_strided((batch, channels, steps), (channels * row, row, 1))


def unpack(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inputs themselves, or their views of one tensor of packed features."""
    if len(inputs) == len(INPUTS):
        return tuple(inputs)
    (features,) = inputs
    return features.chunk(len(INPUTS), CHANNEL)


def channels_of(inputs: Sequence[Tensor]) -> int:
    """D of all inputs, or of packed features alone."""
    return inputs[0].shape[CHANNEL] * len(inputs) // len(INPUTS)


def given(*inputs: Tensor | None) -> list[Tensor]:
    """The inputs that are there: all, or only the first, which is then packed features."""
    return [x for x in inputs if x is not None]


def without_autocast(x: Tensor):
    """A context in which PyTorch computes in the dtypes that it is given, on the device of x."""
    kind = x.device.type  # tensors of shapes alone have no autocast
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


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


def transformed(tensors: Sequence[Tensor]) -> bool:
    """Whether a call is differentiated in a way that library ops lack, and plain PyTorch has: in
    forward mode, for which PyTorch would silently take zero, or by torch.func.
    """
    functorch = torch._C._functorch
    if torch.compiler.is_compiling():  # which tensors have tangents is not seen there
        return forward_ad._current_level >= 0
    if functorch.maybe_current_level() is not None:
        kinds = {i.level(): i.key() for i in functorch.get_interpreter_stack()}
        jvp, vmap = functorch.TransformType.Jvp, functorch.TransformType.Vmap
        innermost = max((n for n, kind in kinds.items() if kind != vmap), default=0)
        for x in tensors:
            while functorch.is_functorch_wrapped_tensor(x):
                if functorch.is_gradtrackingtensor(x):
                    if x.requires_grad and torch.is_grad_enabled():
                        return True
                    level = functorch.maybe_get_level(x)
                    if kinds.get(level) == jvp:  # whose tangents are seen from there alone
                        dual = forward_ad.unpack_dual(x)
                        if level != innermost or dual.tangent is not None:
                            return True
                x = functorch.get_unwrapped(x)
            if forward_ad.unpack_dual(x).tangent is not None:
                return True
        return False
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def spread(inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """The inputs, of which the first has every dimension that torch.vmap has added to any tensor:
    plain PyTorch writes into what is allocated like it.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is None:
        return list(inputs)
    nothing = sum(torch.zeros_like(x).sum() for x in (*inputs[1:], *parameters))
    return [inputs[0] + nothing.to(inputs[0].dtype), *inputs[1:]]


def rungs_of(groups: int, first_group: int, groups_in_all: int | None) -> int:
    """How many groups share one ladder of decays, of those of which these are from first_group on.
    Refuses what is no part of it.
    """
    whole = groups if groups_in_all is None else groups_in_all
    for name, value in (("first_group", first_group), ("groups_in_all", whole)):
        if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
            raise TypeError(f"{OP}: {name} must be a whole number, not {value!r}")
    if not 0 <= first_group <= whole - groups:
        raise ValueError(
            f"{OP}: {groups} filter groups from {first_group} on are not among {whole}: "
            f"first_group must be at least 0, and groups_in_all at least first_group + {groups}"
        )
    if whole % REPEATS:
        raise ValueError(
            f"{OP}: {groups} filter groups from {first_group} on are not of whole ladders of "
            f"decays: groups_in_all must be a multiple of {REPEATS}, not {whole}"
        )
    return whole // REPEATS


def ladder_of(first_group: int, rungs: int) -> tuple[int, int]:
    """How fast taps of the first group here decay, in powers of two per lag, and how much faster
    those of each later one: both as log2 in units of 2 ** -48, the first plus 64, so that kernels
    never take them for numbers of 32 bits. Of several ladders, the first group's is that of group
    0 of all.
    """
    slowest, fastest = (math.log2(10) * exponent for exponent in EXPONENTS)
    step = round((fastest - slowest) / max(1, rungs - 1) * 2**48)
    first = slowest + 64 - math.log2(math.log(2) * max(1, CACHE_LENGTH - 1))
    return round(first * 2**48) + first_group * step * (REPEATS == 1), step


def decays_of(taps: Tensor, first_group: int = 0, groups_in_all: int | None = None) -> Tensor:
    """The decays exp(-alpha tau) of taps (G, K), in their dtype (arXiv 2503.01868, section 2).

    The G groups are first_group, first_group + 1, ... of groups_in_all, which share one ladder of
    alphas: so that a slice of the channels has its own rungs.
    """
    groups, steps = taps.shape
    rungs = rungs_of(groups, first_group, groups_in_all)
    ladder = torch.logspace(*EXPONENTS, rungs, dtype=torch.float64, device=taps.device)
    alpha = ladder.repeat(REPEATS)[first_group : first_group + groups]
    lag = torch.arange(steps, dtype=torch.float64, device=taps.device)
    lag = lag.flip(0) if LAG_LAST else lag
    tau = lag / max(CACHE_LENGTH - 1, 1)
    return torch.exp(-alpha[:, None] * tau).to(taps.dtype)


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


def role_rows(parameter: Tensor, role: int, roles: int, interleaved: bool) -> Tensor:
    """The rows of one input in a parameter that several inputs share, as a view."""
    return parameter[role::roles] if interleaved else parameter.chunk(roles)[role]


def channel_rows(parameter: Tensor, c: slice, width: int, dtype: torch.dtype) -> Tensor:
    """The row of each channel of a slice; `width` consecutive channels share one."""
    if width == 1:
        return parameter[c].to(dtype)
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


def conv_within(x: Tensor, taps: Tensor) -> Tensor:
    """conv_direct of the steps of x that have all of their past in it."""
    if x.shape[2] < taps.shape[1]:  # none has
        return x[..., :0]
    return functional.conv1d(x, taps.flip(1).unsqueeze(1), groups=taps.shape[0])


def tap_gradient_direct(grad: Tensor, x: Tensor, length: int) -> Tensor:
    """sum over b, t of grad[t] x[t - j] for j < length: (C, length)."""
    steps = x.shape[2]
    rows = [(grad[..., j:] * x[..., : max(0, steps - j)]).sum((0, 2)) for j in range(length)]
    return torch.stack(rows, 1)


def canonical(x: Tensor) -> Tensor:
    """An activation as (B, D, L), without a copy."""
    return x


def effective(
    filter: Tensor, featurizer: Tensor, skip: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """The parameters as plain PyTorch computes with them, in `dtype`: where it differentiates,
    it sums gradients of rows that are spread over channels, which are rounded to a narrow dtype
    once.
    """
    filter = two_axes(filter).to(dtype)
    featurizer = two_axes(featurizer).to(dtype)
    skip = skip.to(dtype)
    return [filter, featurizer, skip]


def eager_forward(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    first_group: int,
    groups_in_all: int | None,
) -> list[Tensor]:
    """[y] of the unpacked inputs."""
    q_all, k_all, v_all = (canonical(x) for x in inputs)
    dtype = torch.float64 if q_all.dtype == torch.float64 else torch.float32
    filter, featurizer, skip = effective(*parameters, dtype)
    decays = decays_of(filter, first_group, groups_in_all)
    filter = filter * decays
    outputs = [allocate(inputs[0], inputs[0].shape[TIME])]
    (out_0,) = (canonical(x) for x in outputs)
    batch, channels, length = q_all.shape
    width = channels // filter.shape[0]
    channel_bytes = 13 * batch * length * dtype.itemsize
    for c in chunks(channels, width, channel_bytes, BYTE_BUDGET):
        q = q_all[:, c].to(dtype)
        featurizer_q_c = channel_rows(role_rows(featurizer, 0, 3, False), c, 1, dtype).flip(1)
        q_hat = conv_direct(q, featurizer_q_c, +1)
        k = k_all[:, c].to(dtype)
        featurizer_k_c = channel_rows(role_rows(featurizer, 1, 3, False), c, 1, dtype).flip(1)
        k_hat = conv_direct(k, featurizer_k_c, +1)
        v = v_all[:, c].to(dtype)
        featurizer_v_c = channel_rows(role_rows(featurizer, 2, 3, False), c, 1, dtype).flip(1)
        v_hat = conv_direct(v, featurizer_v_c, +1)
        z = k_hat * v_hat
        filter_c = channel_rows(filter, c, width, dtype)
        conv = conv_direct(z, filter_c, +1)
        skip_c = channel_rows(skip, c, 1, dtype)[:, None]
        skipped = z * skip_c
        pre_skip = conv + skipped
        y = q_hat * pre_skip
        out_0[:, c] = y
    return outputs


def eager_backward(
    dy: Tensor,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    saved: Sequence[Tensor],
    first_group: int,
    groups_in_all: int | None,
) -> list[Tensor]:
    """Gradients of the inputs, packed if they are, then of the parameters."""
    dy_all, q_all, k_all, v_all = (canonical(x) for x in (dy, *unpack(inputs), *saved))
    dtype = torch.float64 if dy_all.dtype == torch.float64 else torch.float32
    filter, featurizer, skip = effective(*parameters, dtype)
    decays = decays_of(filter, first_group, groups_in_all)
    filter = filter * decays
    d_inputs = [allocate(x, x.shape[TIME]) for x in inputs]
    d_q_all, d_k_all, d_v_all = (canonical(x) for x in unpack(d_inputs))
    d_filter_all = torch.zeros_like(filter, dtype=dtype)
    d_featurizer_all = torch.zeros_like(featurizer, dtype=dtype)
    d_skip_all = torch.zeros_like(skip, dtype=dtype)
    batch, channels, length = dy_all.shape
    width = channels // filter.shape[0]
    channel_bytes = 24 * batch * length * dtype.itemsize
    for c in chunks(channels, width, channel_bytes, BYTE_BUDGET):
        q = q_all[:, c].to(dtype)
        featurizer_q_c = channel_rows(role_rows(featurizer, 0, 3, False), c, 1, dtype).flip(1)
        q_hat = conv_direct(q, featurizer_q_c, +1)
        k = k_all[:, c].to(dtype)
        featurizer_k_c = channel_rows(role_rows(featurizer, 1, 3, False), c, 1, dtype).flip(1)
        k_hat = conv_direct(k, featurizer_k_c, +1)
        v = v_all[:, c].to(dtype)
        featurizer_v_c = channel_rows(role_rows(featurizer, 2, 3, False), c, 1, dtype).flip(1)
        v_hat = conv_direct(v, featurizer_v_c, +1)
        z = k_hat * v_hat
        filter_c = channel_rows(filter, c, width, dtype)
        conv = conv_direct(z, filter_c, +1)
        skip_c = channel_rows(skip, c, 1, dtype)[:, None]
        skipped = z * skip_c
        pre_skip = conv + skipped
        dy = dy_all[:, c].to(dtype)
        d_q_hat = dy * pre_skip
        d_pre_skip = dy * q_hat
        d_z_1 = d_pre_skip * skip_c
        skipped_product = d_pre_skip * z
        d_skip = skipped_product.sum((0, 2))
        add_rows(d_skip_all, c, d_skip, 1)
        d_z_2 = conv_direct(d_pre_skip, filter_c, -1)
        d_filter = tap_gradient_direct(d_pre_skip, z, 128)
        add_rows(d_filter_all, c, d_filter, width)
        d_z = d_z_1 + d_z_2
        d_k_hat = d_z * v_hat
        d_v_hat = d_z * k_hat
        d_v = conv_direct(d_v_hat, featurizer_v_c, -1)
        d_featurizer_v = tap_gradient_direct(d_v_hat, v, 3).flip(1)
        add_rows(role_rows(d_featurizer_all, 2, 3, False), c, d_featurizer_v, 1)
        d_k = conv_direct(d_k_hat, featurizer_k_c, -1)
        d_featurizer_k = tap_gradient_direct(d_k_hat, k, 3).flip(1)
        add_rows(role_rows(d_featurizer_all, 1, 3, False), c, d_featurizer_k, 1)
        d_q = conv_direct(d_q_hat, featurizer_q_c, -1)
        d_featurizer_q = tap_gradient_direct(d_q_hat, q, 3).flip(1)
        add_rows(role_rows(d_featurizer_all, 0, 3, False), c, d_featurizer_q, 1)
        d_q_all[:, c] = d_q
        d_k_all[:, c] = d_k
        d_v_all[:, c] = d_v
    gradients = [d_filter_all * decays, d_featurizer_all, d_skip_all]
    return [
        *d_inputs,
        *(d.to(p.dtype).view(p.shape) for d, p in zip(gradients, parameters, strict=True)),
    ]


# -----------------------------------------------------------------------------------------------
# The operator: torch.library ops, autograd, checks, functions and module
# -----------------------------------------------------------------------------------------------


def library_name() -> str:
    """The ops' name in torch.ops.sh2gen; numbered if this file is imported more than once."""
    name = unique = "hyena_mr_893b5760"
    count = 1
    while hasattr(torch.ops.sh2gen, f"{unique}_decode"):
        count += 1
        unique = f"{name}_{count}"
    return unique


LIBRARY_NAME = library_name()
LIBRARY = torch.library.Library("sh2gen", "FRAGMENT")


def library_op(
    name: str,
    fake: Callable,
    anywhere: Callable | None,
    on_gpu: Callable | None,
    changes: Sequence[str] = (),
):
    """An op of torch.ops.sh2gen whose schema is that of its fake implementation, of tensors
    without values.

    Args:
        changes: the arguments that it writes to.
    """
    schema = torch.library.infer_schema(fake, mutates_args=changes)
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    if anywhere is not None:
        LIBRARY.impl(name, anywhere, "CompositeExplicitAutograd")
    if on_gpu is not None:
        LIBRARY.impl(name, on_gpu, "CUDA")
    torch.library.register_fake(f"sh2gen::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.sh2gen, name).default


def differentiable(op, backward: Callable, setup_context: Callable | None = None) -> None:
    """Give an op its gradients, and a batching rule: one call after another."""
    torch.library.register_autograd(op, backward, setup_context=setup_context, lib=LIBRARY)
    torch.library.register_vmap(op, in_turn(op), lib=LIBRARY)


def forward_anywhere(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    filter: Tensor,
    featurizer: Tensor,
    skip: Tensor,
    first_group: int,
    groups_in_all: int | None,
) -> Tensor:
    """y; of packed features if the later inputs are None."""
    inputs = given(q, k, v)
    with torch.autocast(q.device.type, enabled=False):
        (y,) = eager_forward(
            unpack(inputs), [filter, featurizer, skip], first_group, groups_in_all
        )
    return y


def backward_anywhere(
    dy: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    filter: Tensor,
    featurizer: Tensor,
    skip: Tensor,
    first_group: int,
    groups_in_all: int | None,
) -> list[Tensor]:
    """Gradients of the inputs that are given, then of the parameters."""
    inputs, parameters = given(q, k, v), [filter, featurizer, skip]
    with torch.autocast(dy.device.type, enabled=False):
        contiguous = [p.contiguous() for p in parameters]
        return eager_backward(dy, inputs, contiguous, [], first_group, groups_in_all)


def forward_on_gpu(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    filter: Tensor,
    featurizer: Tensor,
    skip: Tensor,
    first_group: int,
    groups_in_all: int | None,
) -> Tensor:
    """The same by kernels."""
    inputs = given(q, k, v)
    outputs = launch_forward(
        inputs, [filter, featurizer, skip], first_group=first_group, groups_in_all=groups_in_all
    )
    return outputs[0]


def backward_on_gpu(
    dy: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    filter: Tensor,
    featurizer: Tensor,
    skip: Tensor,
    first_group: int,
    groups_in_all: int | None,
) -> list[Tensor]:
    """The same by kernels."""
    inputs, parameters = given(q, k, v), [filter, featurizer, skip]
    return launch_backward(
        dy, inputs, parameters, [], first_group=first_group, groups_in_all=groups_in_all
    )


def forward_fake(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    filter: Tensor,
    featurizer: Tensor,
    skip: Tensor,
    first_group: int,
    groups_in_all: int | None,
) -> Tensor:
    """The same without values."""
    inputs = given(q, k, v)
    steps, channels = q.shape[TIME], channels_of(inputs)
    return allocate(q, steps, channels)


def backward_fake(
    dy: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    filter: Tensor,
    featurizer: Tensor,
    skip: Tensor,
    first_group: int,
    groups_in_all: int | None,
) -> list[Tensor]:
    """The same without values."""
    inputs, parameters = given(q, k, v), [filter, featurizer, skip]
    contiguous = torch.contiguous_format
    d_parameters = [torch.empty_like(p, memory_format=contiguous) for p in parameters]
    return [*(allocate(x, x.shape[TIME]) for x in inputs), *d_parameters]


def save(ctx, inputs, output) -> None:
    """What backward needs: every argument."""
    ctx.save_for_backward(*inputs[:-2])
    ctx.numbers = inputs[-2:]


def differentiate(ctx, dy):
    """Gradients of every argument of forward_op."""
    refuse_batched(dy)
    gradients = backward_op(dy, *ctx.saved_tensors, *ctx.numbers)
    given_inputs = len(gradients) - 3
    absent = [None] * (len(INPUTS) - given_inputs)
    return *gradients[:given_inputs], *absent, *gradients[given_inputs:], None, None


forward_op = library_op(LIBRARY_NAME, forward_fake, forward_anywhere, forward_on_gpu)
backward_op = library_op(
    f"{LIBRARY_NAME}_backward", backward_fake, backward_anywhere, backward_on_gpu
)
differentiable(forward_op, differentiate, save)
differentiable(backward_op, refuse_second)


class Replay(NamedTuple):
    """One launch of a tape.

    Attributes:
        kernel: its name.
        start: launches it with arguments, on the stream that is current.
        numbers: those of its arguments that are no addresses.
        pick: gives its arguments of a tape's addresses, with these numbers behind them.
    """

    kernel: str
    start: Callable[[Sequence[int]], None]
    numbers: list[int]
    pick: Callable[[Sequence[int]], Sequence[int]]


class Tape(NamedTuple):
    """What a launcher does for tensors of some traits.

    Attributes:
        device: of all tensors.
        empty: makes a tensor there of a shape, strides and dtype, if that device is current.
        results: these of each tensor that it returns.
        scratch: bytes of what only kernels see.
        inner: addresses within tensors, as which of them, and how far from its own: of those that
            a launcher is given, then of its results, then of scratch.
        launches: in their order.
        facts: what the launcher is told beside tensors: whether to keep what gradients need, and
            where on a ladder of decays the filters are, if they decay.
        after: `recent`, the last gradients of such calls.
    """

    device: torch.device
    empty: Callable[[tuple, tuple, torch.dtype], Tensor]
    results: tuple[tuple, ...]
    scratch: int
    inner: tuple[tuple[int, int], ...]
    launches: tuple[Replay, ...]
    facts: tuple
    after: dict


class Recent(NamedTuple):
    """The last call of a kind.

    Attributes:
        guards: PyTorch's own, of compiled graphs: they tell whether other tensors have the same
            traits but for alignment, in a third of the time of traits_of.
        tape: of such calls; None if they have none.
        keep: whether gradients may be asked for.
    """

    guards: object
    tape: Tape | None
    keep: bool


class Noticed(TorchDispatchMode):
    """Notes whether PyTorch does nothing meanwhile but to allocate tensors and to make views."""

    def __init__(self) -> None:
        super().__init__()
        self.simple = True

    def __torch_dispatch__(self, func, _, args=(), kwargs=None):
        schema = func._schema
        writes = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
        views = all(r.alias_info is not None for r in schema.returns) and not writes
        self.simple &= views or "empty" in schema.name
        return func(*args, **(kwargs or {}))


def on_gpu(x: Tensor) -> bool:
    """Whether a first argument, which may be anything, is a tensor that kernels compute with."""
    return getattr(x, "is_cuda", False)


def seen_by_none() -> bool:
    """Whether only eager PyTorch sees a call: no compiler, mode, transform, tracer or profiler,
    and no hook of Triton's.
    """
    if torch.compiler.is_compiling() or PLAIN or not HAS_TRITON:
        return False
    if triton.__version__ not in DIRECT:
        return False
    for sees in SEERS:
        if sees():
            return False
    hooks = triton.knobs.runtime
    return (
        forward_ad._current_level < 0
        and not hooks.launch_enter_hook.calls
        and not hooks.launch_exit_hook.calls
    )


def traits_of(tensors: Sequence[Tensor]) -> tuple[tuple, list[int]] | None:
    """All that a launcher goes by, and the addresses of tensors; None of what is no plain tensor.
    What else PyTorch's dispatcher goes by has no memory of its own, except the sign of a view that
    negates.
    """
    found, places = [], []
    try:
        for x in tensors:
            if type(x) is not nn.Parameter and type(x) is not Tensor:
                return None
            place = x.data_ptr()
            places.append(place)
            aligned = place % 16 if place else -1
            found.append((x.shape, x.stride(), x.dtype, x.get_device(), aligned, x.is_neg()))
    except RuntimeError:  # sparse, nested, or a wrapper of others
        return None
    return tuple(found), places


def tape_of(
    launcher: Callable, tensors: Sequence[Tensor], traits: tuple, *facts: object
) -> Tape | None:
    """What launcher(tensors, *facts) does, which is done once if it is not known yet; None where
    that is more than to allocate and to launch, or where PyTorch has to see it.

    Raises:
        TypeError, ValueError: as the launcher, which checks its arguments.
    """
    key = (launcher, facts, traits)
    tape = TAPES.get(key, ...)  # other threads may clear them at any time
    if tape is ...:
        if not is_plain(tensors) or capturing():
            return None
        if len(TAPES) >= MOST_TAPES:
            TAPES.clear()
            RECENT.clear()
        tape = TAPES[key] = record(launcher, tensors, *facts)[0]
    return tape


def gradients_tape(tape: Tape, tensors: Sequence[Tensor]) -> tuple[Tape | None, list[int]]:
    """The tape of the gradients of a call whose tape this is, as `tape_of` gives it, and the
    addresses of dy and of what the call has kept for them, which hooks of saved tensors may have
    made anew.
    """
    recent = tape.after.get("recent")
    if recent is not None and recent.guards.check(*tensors):
        places = [x.data_ptr() for x in tensors]
        if all_aligned(places):
            return recent.tape, places
    found = traits_of(tensors)
    if found is None:
        return None, []
    traits, places = found
    after = tape_of(backward_of, tensors, traits, *tape.facts[1:])
    if all_aligned(places) and (guards := guards_of(tensors)) is not None:
        tape.after["recent"] = Recent(guards, after, True)
    return after, places


def direct(
    inputs: Sequence[Tensor], parameters: Sequence[Tensor], *ladder: int | None
) -> Tensor | None:
    """y of a call on a GPU that nothing but eager PyTorch sees; None of any other call."""
    if not on_gpu(inputs[0]) or not seen_by_none():
        return None
    if ladder and any(type(x) is not int and x is not None for x in ladder):
        return None
    tensors = (*inputs, *parameters)
    kind = (len(inputs), torch.is_grad_enabled(), *ladder)
    recent = RECENT.get(kind)
    if recent is not None and recent.guards.check(*tensors):
        places = [x.data_ptr() for x in tensors]
        if all_aligned(places):
            _, tape, keep = recent
            return apply_direct(tape, places, *tensors) if keep else replay(tape, places)[0]
    found = traits_of(tensors)
    if found is None:
        return None
    traits, places = found
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    tape = tape_of(forward_of, tensors, traits, keep, *ladder)
    if tape is None:
        return None
    if all_aligned(places) and (guards := guards_of(tensors)) is not None:
        RECENT[kind] = Recent(guards, tape, keep)
    return apply_direct(tape, places, *tensors) if keep else replay(tape, places)[0]


def directly_decoded(
    inputs: Sequence[Tensor], parameters: Sequence[Tensor], state, slots, *ladder: int | None
) -> Tensor | None:
    """y of a call of `decode` on a GPU that nothing but eager PyTorch sees; None of any other.

    A call that has no tape yet checks its arguments, and is done once: it changes the state.
    """
    if not isinstance(inputs, (tuple, list)) or not inputs:
        return None
    if not on_gpu(inputs[0]) or not seen_by_none():
        return None
    if type(state) is not STATE or (torch.is_grad_enabled() and requires_any(inputs)):
        return None  # which is refused
    if any(type(x) is not int and x is not None for x in ladder):
        return None
    given_slots = () if slots is None else (slots,)
    tensors = (*inputs, *parameters, *state[:-1], *given_slots)
    facts = (len(inputs), slots is not None, state.draft, *ladder)
    kind = ("decode", torch.is_grad_enabled(), *facts)
    recent = RECENT.get(kind)
    if recent is not None and recent.guards.check(*tensors):
        places = [x.data_ptr() for x in tensors]
        if all_aligned(places):
            return replay_decoded(recent.tape, places, state)
    found = traits_of(tensors)
    if found is None:
        return None
    traits, places = found
    tape = TAPES.get((decode_of, facts, traits), ...)
    if tape is None or (tape is ... and (capturing() or not is_plain(tensors))):
        return None
    if tape is ...:
        check_decoding(inputs, parameters, state, slots, *ladder)
        if len(TAPES) >= MOST_TAPES:
            TAPES.clear()
            RECENT.clear()
        TAPES[decode_of, facts, traits], results = record(decode_of, tensors, *facts)
        increment_version(state[:-1])
        return results[0]
    if all_aligned(places) and (guards := guards_of(tensors)) is not None:
        RECENT[kind] = Recent(guards, tape, False)
    return replay_decoded(tape, places, state)


def replay_decoded(tape: Tape, places: list[int], state) -> Tensor:
    """y of a tape of `decode`, which changes a state that gradients of calls before may need: so
    that autograd sees it.
    """
    y = replay(tape, places)[0]
    increment_version(state[:-1])
    return y


def requires_any(tensors: Sequence[Tensor]) -> bool:
    """Whether a gradient would be asked for."""
    return any(getattr(x, "requires_grad", False) for x in tensors)


def all_aligned(places: Sequence[int]) -> bool:
    """Whether memory begins at these addresses, all multiples of 16."""
    return all(places) and reduce(or_, places) % 16 == 0


def guards_of(tensors: Sequence[Tensor]) -> object | None:
    """What tells tensors of the same types, keys of dispatch, dtypes, devices, sizes, strides and
    needs of gradients, where this PyTorch has it: its name is not public.
    """
    made = getattr(torch._C._dynamo.guards, "TensorGuards", None)
    if made is None:
        return None
    return made(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)


def capturing() -> bool:
    """Whether launches go into a CUDA graph, which is to hold those of a call once."""
    return torch.cuda.is_current_stream_capturing()


def is_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether PyTorch's dispatcher would do nothing with tensors but to differentiate."""
    device = tensors[0].device
    with torch.inference_mode():
        inference = torch._C._dispatch_keys(torch.empty(0, device=device)).raw_repr()
    with torch.inference_mode(False):
        usual = torch._C._dispatch_keys(torch.empty(0, device=device)).raw_repr()
    return all(torch._C._dispatch_keys(x).raw_repr() in (usual, inference) for x in tensors)


def record(
    launcher: Callable, tensors: Sequence[Tensor], *facts: object
) -> tuple[Tape | None, list[Tensor]]:
    """The tape of a launch, which is done, and its results; no tape if it does more than to
    allocate and to launch.
    """
    # Objects of their own, by which arguments are told apart: one tensor may be given twice.
    tensors = [x.detach() for x in tensors]
    LAUNCHES.noted = []
    try:
        with torch.no_grad(), Noticed() as noticed:
            results = launcher(tensors, *facts)
        noted = LAUNCHES.noted
    finally:
        LAUNCHES.noted = None
    if not noticed.simple:
        return None, results
    bases = [*tensors, *results]
    scratch: dict[int, int] = {}  # where the memory of a tensor that only kernels see begins
    size = 0
    launches = []
    inner: list[tuple[int, int]] = []
    for kernel, programs, binary, arguments, constants in noted:
        start = starter(binary, tensors[0].device, programs, constants)
        if start is None:
            return None, results
        numbers, addresses = [], []
        for argument in arguments:
            if not isinstance(argument, Tensor) or argument.numel() == 0:
                numbers.append(0 if isinstance(argument, Tensor) else argument)
                addresses.append(None)
                continue
            memory = argument.untyped_storage()
            place = memory.data_ptr()
            same = [n for n, x in enumerate(bases) if x is argument]
            same = same or [
                n for n, x in enumerate(bases) if x.untyped_storage().data_ptr() == place
            ]
            if len(same) > 1:  # which of them a view is of cannot be told
                return None, results
            if not same and place not in scratch:
                scratch[place] = size
                size += -(-memory.nbytes() // 256) * 256
            base = same[0] if same else len(bases)
            start_of = bases[base].data_ptr() if same else place - scratch[place]
            addresses.append((base, argument.data_ptr() - start_of))
        launches.append((kernel.__name__, start, numbers, addresses))
        inner += [address for address in addresses if address is not None and address[1]]
    given = {x.untyped_storage().data_ptr() for x in tensors}
    places = [x.untyped_storage().data_ptr() for x in results if x.numel()]
    if given & set(places) or len(set(places)) < len(places):  # results that share memory
        return None, results
    shapes = tuple((tuple(x.shape), x.stride(), x.dtype) for x in results)
    device, count = tensors[0].device, len(bases) + bool(size)
    inner = list(dict.fromkeys(inner))
    replays = []
    for kernel, start, numbers, addresses in launches:
        where, after = [], count + len(inner)  # numbers are behind all addresses
        for address in addresses:
            if address is None:
                where.append(after)
                after += 1
            else:
                where.append(count + inner.index(address) if address[1] else address[0])
        replays.append(Replay(kernel, start, numbers, itemgetter(*where)))
    empty = empty_on(device, hasty=True)
    tape = Tape(device, empty, shapes, size, tuple(inner), tuple(replays), facts, {})
    return tape, results


def empty_on(device: torch.device, hasty: bool) -> Callable[[tuple, tuple, torch.dtype], Tensor]:
    """Makes tensors on a device that is current.

    Args:
        hasty: as PyTorch's compiled graphs do, if it has a function for that: it takes half the
            time, and leaves memory as it is where PyTorch is asked to fill it.
    """
    own = getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}", None)
    if own is not None and hasty:
        return own
    return lambda shape, strides, dtype: torch.empty_strided(
        shape, strides, dtype=dtype, device=device
    )


def starter(
    binary, device: torch.device, programs: int, constants: Sequence[object]
) -> Callable | None:
    """Launches a compiled kernel without Triton's own launcher, which looks at every argument
    anew; None of what cannot be launched so.
    """
    run = getattr(binary, "run", None)
    if not hasattr(run, "launch"):  # interpreted
        return None
    if run.global_scratch_size or run.profile_scratch_size:
        return None
    enqueue, function, packed = run.launch, binary.function, binary.packed_metadata
    cooperative, dependent = run.launch_cooperative_grid, run.launch_pdl
    stream_of, index = torch._C._cuda_getCurrentRawStream, device.index

    def start(arguments: Sequence[int]) -> None:
        enqueue(
            programs, 1, 1, stream_of(index), function, cooperative, dependent, None, None, packed,
            None, None, None, *arguments, *constants,
        )  # fmt: skip

    return start


def is_current(device: torch.device) -> bool:
    """Whether work goes to this GPU unless another is named."""
    return torch._C._cuda_getDevice() == device.index


def replay(tape: Tape, places: list[int]) -> list[Tensor]:
    """What a launcher gives for tensors of the traits of those that a tape is of.

    Args:
        places: where these tensors lie.
    """
    if is_current(tape.device):
        return replay_here(tape, places)
    with torch.cuda.device(tape.device):
        return replay_here(tape, places)


def replay_here(tape: Tape, places: list[int]) -> list[Tensor]:
    """The same on the current device."""
    empty = tape.empty
    if torch.are_deterministic_algorithms_enabled():  # it may have to be filled
        empty = empty_on(tape.device, hasty=False)
    results = [empty(*traits) for traits in tape.results]
    bases = places + [x.data_ptr() for x in results]
    if tape.scratch:  # kept until all is launched: later work on the stream may then have it
        scratch = empty((tape.scratch,), (1,), torch.uint8)
        bases.append(scratch.data_ptr())
    bases += [bases[i] + within for i, within in tape.inner]
    start_all(tape, bases)
    return results


def start_all(tape: Tape, addresses: list[int]) -> None:
    """Launch what a tape launches, of tensors at addresses, and within them."""
    for kernel, start, numbers, pick in tape.launches:
        try:
            start(pick(addresses + numbers))
        except Exception as error:
            raise RuntimeError(f"{OP}: {kernel} could not be launched on {tape.device}") from error


# True or something where modes of dispatch or of functions, transforms, a tracer or the profiler
# would see a call.
SEERS = (
    torch._C._len_torch_dispatch_stack,
    torch._C._len_torch_function_stack,
    torch._C._functorch.peek_interpreter_stack,
    torch._C._get_tracing_state,
    torch.autograd._profiler_enabled,
)


def forward_of(
    tensors: Sequence[Tensor], keep: bool, first_group: int, groups_in_all: int | None
) -> list[Tensor]:
    """y of inputs and parameters, and what gradients need if they are to be computed."""
    count = len(tensors) - 3
    inputs, parameters = tensors[:count], tensors[count:]
    check(inputs, parameters)
    outputs = launch_forward(
        inputs, parameters, first_group=first_group, groups_in_all=groups_in_all
    )
    return outputs if keep else outputs[:1]


def backward_of(
    tensors: Sequence[Tensor], first_group: int, groups_in_all: int | None
) -> list[Tensor]:
    """Gradients of the inputs and parameters; of dy, these, and what forward has kept."""
    dy, inputs, parameters, saved = parted(tensors)
    return launch_backward(
        dy, inputs, parameters, saved, first_group=first_group, groups_in_all=groups_in_all
    )


def parted(
    tensors: Sequence[Tensor],
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """dy, inputs, parameters and what forward has kept."""
    count = len(tensors) - 3
    return tensors[0], tensors[1:count], tensors[count : count + 3], tensors[count + 3 :]


def gradients_of(tape: Tape, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """`backward_of` tensors, of a call whose tape this is."""
    # If gradients of gradients are asked for, or something sees this part alone: library ops.
    if seen_by_none() and not torch.is_grad_enabled():
        after, places = gradients_tape(tape, tensors)
        if after is not None:
            return replay(after, places)
    refuse_batched(tensors[0])
    dy, inputs, parameters, saved = parted(tensors)
    absent = [None] * (len(INPUTS) - len(inputs))
    found: Sequence[Tensor] = backward_op(
        dy, *inputs, *absent, *parameters, *saved, *tape.facts[1:]
    )
    return found


class Direct(torch.autograd.Function):
    """A call that only eager PyTorch sees, differentiable."""

    @staticmethod
    def forward(ctx, tape: Tape, places: list[int], *tensors: Tensor) -> Tensor:
        y, *made = replay(tape, places)
        ctx.tape = tape
        ctx.save_for_backward(*tensors, *made)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        return None, None, *gradients_of(ctx.tape, (dy, *ctx.saved_tensors))


# What Direct.apply calls, after a look at each argument for what seen_by_none has ruled out.
apply_direct = super(torch.autograd.Function, Direct).apply


def check_dense(name: str, tensor: Tensor) -> None:
    """Refuse what is no tensor of strides."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{OP}: {name} is a {type(tensor).__name__}, expected a tensor")
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else tensor.layout
        raise TypeError(f"{OP}: {name} is {kind}, expected a dense tensor")


def check(inputs: Sequence[Tensor], parameters: Sequence[Tensor], least: int = LEAST) -> None:
    """Refuse tensors of a wrong kind, naming the argument and what was expected of it."""
    names = INPUTS if len(inputs) == len(INPUTS) else ("features",)
    x = inputs[0]
    for name, tensor in zip((*names, *PARAMETERS), (*inputs, *parameters), strict=True):
        check_dense(name, tensor)
        if tensor.device != x.device:
            raise ValueError(
                f"{OP}: {name} is on {tensor.device}, but {names[0]} is on {x.device}"
            )
    accepted = (torch.bfloat16, torch.float16, torch.float32)
    for name, tensor in zip(names, inputs, strict=True):
        roles = len(INPUTS) // len(inputs)  # packed in one tensor
        if tensor.dim() != 3 or tensor.shape[CHANNEL] % roles or tensor.shape[TIME] < least:
            channels = f"{roles} D" if roles > 1 else "D"
            shape = SHAPE.format(channels)
            raise ValueError(
                f"{OP}: {name} has shape {tuple(tensor.shape)}, expected {shape} with L >= {least}"
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
    check_parameters(channels_of(inputs), parameters)


def require_triton(x: Tensor) -> None:
    """Refuse what kernels would compute, where nothing can compile them."""
    if x.device.type == "cuda" and not HAS_TRITON:
        raise RuntimeError(f"{OP}: CUDA tensors need Triton, which is not installed")


def has_shape(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor has a shape; where some dimensions are symbols, one by one."""
    return tensor.shape == shape or (
        tensor.dim() == len(shape)
        and all(have == wanted for have, wanted in zip(tensor.shape, shape, strict=True))
    )


def check_parameters(channels: int, parameters: Sequence[Tensor]) -> None:
    """Refuse parameters that do not belong to so many channels, or to each other."""
    groups = parameters[0].shape[0] if parameters[0].dim() else 0
    if groups < 1 or channels < 1 or channels % groups:
        raise ValueError(
            f"{OP}: {PARAMETERS[0]} has shape {tuple(parameters[0].shape)}, expected a row for "
            f"each of G filter groups, where G divides {channels} channels"
        )
    shapes = parameter_shapes(channels, groups)
    accepted = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for (name, shape), tensor in zip(shapes.items(), parameters, strict=True):
        as_conv1d = (shape[0], 1, shape[-1])
        if not (has_shape(tensor, shape) or (name in TAPS and has_shape(tensor, as_conv1d))):
            raise ValueError(
                f"{OP}: {name} has shape {tuple(tensor.shape)}, expected {shape} for {channels} "
                f"channels in {groups} filter groups"
            )
        if tensor.dtype not in accepted:
            raise TypeError(
                f"{OP}: {name} is {tensor.dtype}, expected float32, bfloat16, float16 or float64"
            )


# -----------------------------------------------------------------------------------------------
# The past of sequences
# -----------------------------------------------------------------------------------------------


def check_sizes(dtype: torch.dtype, draft: bool, **sizes: int) -> None:
    """Refuse what no state is of."""
    if not isinstance(draft, bool):
        raise TypeError(f"{OP}: draft must be True or False, not {draft!r}")
    for name, number in sizes.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{OP}: {name} must be a whole number, not {number!r}")
        if number < (name != "batch"):
            raise ValueError(f"{OP}: {name} must be at least {int(name != 'batch')}, not {number}")
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise TypeError(
            f"{OP}: a state is float32, bfloat16 or float16 (float64 on a CPU), not {dtype}"
        )


def with_state(inputs: Sequence, state) -> tuple[Sequence[Tensor], object]:
    """The inputs, and the state that may come last of them."""
    if state is None and inputs:
        *inputs, state = inputs
    if isinstance(state, Tensor):
        raise TypeError(
            f"{OP}: expected {', '.join(INPUTS)} or packed features, then a state; slots by name"
        )
    return inputs, state


def check_count(inputs: Sequence[Tensor]) -> None:
    """Refuse another number of inputs than there are."""
    known = isinstance(inputs, (tuple, list)) and len(inputs) in (1, len(INPUTS))
    if not known or not all(isinstance(x, Tensor) for x in inputs):
        several = f"{', '.join(INPUTS)} or one tensor of packed features"
        what = several if len(INPUTS) > 1 else "one input"
        raise TypeError(f"{OP}: expected {what}, as tensors in a tuple or list, and a state")


def check_decode(
    inputs: Sequence[Tensor], state, slots: Tensor | None, any_steps: bool = False
) -> None:
    """Refuse a state and slots that do not belong to inputs, which have been checked."""
    if not isinstance(state, STATE):
        raise TypeError(
            f"{OP}: state is a {type(state).__name__}, expected a {STATE.__name__}, which "
            "initial_state of the same file gives"
        )
    x, channels = inputs[0], channels_of(inputs)
    for name, tensor in zip(state._fields, state, strict=True):
        if name != "draft":
            check_dense(f"state.{name}", tensor)
            if tensor.device != x.device:
                raise ValueError(
                    f"{OP}: state.{name} is on {tensor.device}, but {INPUTS[0]} is on {x.device}"
                )
            if not tensor.is_contiguous():
                raise ValueError(f"{OP}: state.{name} is not contiguous")
            if name not in ("count", "done") and not tensor.is_floating_point():
                raise TypeError(
                    f"{OP}: state.{name} is {tensor.dtype}, "
                    "expected float32, bfloat16, float16 or float64"
                )
    steps, places = x.shape[TIME], state.count.shape[0]
    for name, shape in (("count", (places,)), ("done", (places, -(-channels // COUNTED)))):
        number = getattr(state, name)
        if number.shape != shape or number.dtype != torch.int32:
            raise ValueError(
                f"{OP}: state.{name} is {number.dtype} {tuple(number.shape)}, expected "
                f"torch.int32 {shape}"
            )
    for name, (lag, roles) in RINGS.items():
        ring = getattr(state, name)
        if ring.dim() != 3 or ring.shape[0] != places or ring.shape[2] != roles * channels:
            raise ValueError(
                f"{OP}: state.{name} has shape {tuple(ring.shape)}, expected ({places}, slots, "
                f"{roles * channels}) for {channels} channels"
            )
        if (lag or state.draft) and ring.shape[1] < lag + steps and not any_steps:
            raise ValueError(
                f"{OP}: {steps} steps in one call, but the state has room for "
                f"{ring.shape[1] - lag}: initial_state(batch, steps={steps}), or prefill"
            )
    modes = getattr(state, "modes", None)
    if modes is not None and tuple(modes.shape) != (places, channels, *MODES_SHAPE):
        raise ValueError(
            f"{OP}: state.modes has shape {tuple(modes.shape)}, expected "
            f"{(places, channels, *MODES_SHAPE)} for {channels} channels"
        )
    if slots is None:
        if places != x.shape[0]:
            raise ValueError(
                f"{OP}: {INPUTS[0]} has {x.shape[0]} rows, but the state has {places}: slots say "
                "which of them is whose"
            )
        return
    check_slots(slots, state, x.shape[0])


def check_slots(slots: Tensor, state, rows: int | None = None) -> None:
    """Refuse what are no places of a state, as far as can be seen without a wait for a GPU."""
    check_dense("slots", slots)
    places, device = state.count.shape[0], state.count.device
    known = slots.dtype == torch.int32 and slots.device == device and slots.dim() == 1
    if not known or rows not in (None, len(slots)):
        raise ValueError(
            f"{OP}: slots are {slots.dtype} {tuple(slots.shape)} on {slots.device}, expected "
            f"torch.int32 ({'B' if rows is None else rows},) on {device}"
        )
    if not is_known(slots):
        return
    if bool((slots >= places).any()):
        raise ValueError(f"{OP}: slots are beyond the {places} places of the state")
    real = slots[slots >= 0]
    if len(real.unique()) < len(real):
        raise ValueError(f"{OP}: two rows have one place of the state: {slots.tolist()}")


def check_in_place(inputs: Sequence[Tensor], state) -> None:
    """Refuse what is not changed in place: modes that would be rounded, and gradients."""
    refuse_gradients(inputs)
    modes = getattr(state, "modes", state.count)
    narrow = modes.is_floating_point() and modes.dtype.itemsize < 4
    if narrow or (modes.is_cuda and modes.dtype == torch.float64):
        raise TypeError(
            f"{OP}: state.modes is {modes.dtype}, expected torch.float32 (or float64 on a CPU)"
        )


def refuse_gradients(inputs: Sequence[Tensor]) -> None:
    """Refuse inputs of which a gradient would be asked for."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        raise RuntimeError(f"{OP}: decoding has no gradients: call it under torch.no_grad()")


def all_rows(state) -> tuple[Tensor, Tensor]:
    """The places of a state, and how many steps there were in each."""
    return torch.arange(state.count.shape[0], device=state.count.device), state.count


def is_known(numbers: Tensor) -> bool:
    """Whether to look at numbers costs no wait for a GPU, and no compiler the whole of a graph."""
    return numbers.device.type == "cpu" and not torch.compiler.is_compiling()


def commit_drafts(state, accepted: Tensor, slots: Tensor | None) -> None:
    """What `commit` of a state does."""
    if not state.draft:
        raise ValueError(f"{OP}: this state moves on by itself: initial_state(..., draft=True)")
    if slots is not None:
        check_slots(slots, state)
    rows = state.count.shape if slots is None else slots.shape
    kinds = (torch.int32, torch.int64)
    if not isinstance(accepted, Tensor) or accepted.dtype not in kinds or accepted.shape != rows:
        raise TypeError(f"{OP}: accepted must be an int32 tensor {tuple(rows)}, not {accepted!r}")
    there = None if slots is None else has_place(slots, state)
    real = accepted if there is None else torch.where(there, accepted, 0)
    for name, (lag, _) in RINGS.items():
        room = getattr(state, name).shape[1] - lag
        if is_known(real) and bool(((real < 0) | (real > room)).any()):
            raise ValueError(f"{OP}: accepted are not all between 0 and {room} steps")
    if there is None:
        state.count.add_(real)
        return
    places = torch.where(there, slots, 0).long()
    state.count.index_add_(0, places, real.to(torch.int32))


def has_place(slots: Tensor, state) -> Tensor:
    """Which rows have a place of the state."""
    return (slots >= 0) & (slots < state.count.shape[0])


def reset_places(state, slots: Tensor | None) -> None:
    """What `reset` of a state does."""
    places = slice(None)
    if slots is not None:
        check_slots(slots, state)
        places = slots[has_place(slots, state)].long()
    for tensor in state[:-1]:
        tensor[places] = 0


def strided(x: Tensor) -> tuple[Tensor, int, int, int]:
    """What a kernel takes for steps: data, and strides of batch, channel and time."""
    return x, x.stride(0) if x.shape[0] > 1 else 0, x.stride(CHANNEL), x.stride(TIME)


def live_rows(slots: Tensor | None, state) -> tuple[Tensor, Tensor]:
    """Rows of a batch that are computed, and the places of their states."""
    if slots is None:
        rows, _ = all_rows(state)
        return rows, rows
    rows = has_place(slots, state).nonzero().flatten()
    return rows, slots[rows].long()


def ring_slots(ring: Tensor, count: Tensor, steps: int, begin: int) -> Tensor:
    """The slots of so many steps of each row from `begin` after step `count` on, (B, steps)."""
    step = torch.arange(begin, begin + steps, device=ring.device)
    return (count[:, None] + step) % ring.shape[1]


def past_of(ring: Tensor, places: Tensor, count: Tensor, lag: int) -> Tensor:
    """The `lag` steps before step `count`, (B, columns, lag)."""
    return ring[places[:, None], ring_slots(ring, count, lag, -lag)].transpose(1, 2)


def keep_in_ring(ring: Tensor, x: Tensor, places: Tensor, count: Tensor) -> None:
    """Write x (B, columns, T) to the ring, from step `count` on."""
    steps = x.transpose(1, 2).to(ring.dtype)
    ring[places[:, None], ring_slots(ring, count, x.shape[2], 0)] = steps


def in_ring(ring: Tensor, x: Tensor, places: Tensor, count: Tensor) -> Tensor:
    """`keep_in_ring` of a copy."""
    where = (places[:, None], ring_slots(ring, count, x.shape[2], 0))
    return ring.index_put(where, x.transpose(1, 2).to(ring.dtype))


def move_to(state, places: Tensor, count: Tensor) -> None:
    """Let sequences have had so many steps."""
    state.count[places] = count.to(torch.int32)
    state.done[places] = state.count[places, None]


def where_later(x: Tensor, past: Tensor, end: Tensor | int) -> Tensor:
    """The last T steps before an end, of each row or of all: of x (B, C, T) from step 0 on, and
    before that of the past, the T steps before step 0.
    """
    steps = x.shape[2]
    if isinstance(end, int):
        missing = max(0, steps - end)
        known = past[..., steps - missing :].to(x.dtype)
        return torch.cat([known, x[..., missing:]], 2) if missing else x
    time = end[:, None] - steps + torch.arange(steps, device=x.device)
    time = time[:, None].expand(-1, x.shape[1], -1)
    index = torch.where(time < 0, time + steps, 0)
    return torch.where(time < 0, past.to(x.dtype).gather(2, index), x)


def steps_before(x: Tensor, past: Tensor, end: Tensor | int, steps: int) -> Tensor:
    """The steps of x (B, C, L) before an end, of each row or of all; those before x are of the
    `past`, as far as it goes.
    """
    if isinstance(end, int):
        before = past[..., max(0, past.shape[2] - max(0, steps - end)) :].to(x.dtype)
        found = torch.cat([before, x[..., max(0, end - steps) : end]], 2)
        return functional.pad(found, (steps - found.shape[2], 0))
    index = end[:, None] - steps + torch.arange(steps, device=x.device)
    index, before = index[:, None].expand(-1, x.shape[1], -1), past.shape[2]
    # Not by clamp, whose constants inductor of PyTorch 2.11 folds into indices that fail.
    later = x.gather(2, torch.where(index < 0, 0, index))
    if not before:
        return later
    own = (index < 0) & (index >= -before)
    earlier = past.to(x.dtype).gather(2, torch.where(own, index + before, 0))
    return torch.where(index < 0, earlier, later)


def end_of_all(count: Tensor, steps: int) -> Tensor | int:
    """Where all rows end: a number, but for compilers, which would hold that one for all calls."""
    known = type(steps) is int and not torch.compiler.is_compiling()
    return steps if known else torch.full_like(count, steps)


def ends_of(lengths: Tensor | None, rows: Tensor, steps: int, x: Tensor) -> Tensor:
    """Where each row that is computed ends."""
    if lengths is None:
        return torch.full_like(rows, steps)
    check_dense("lengths", lengths)
    kinds = (torch.int32, torch.int64)
    if lengths.shape != x.shape[:1] or lengths.dtype not in kinds or lengths.device != x.device:
        raise ValueError(
            f"{OP}: lengths are {lengths.dtype} {tuple(lengths.shape)} on {lengths.device}, "
            f"expected int32 or int64 ({x.shape[0]},) on {x.device}"
        )
    own = lengths[rows].long()
    if is_known(own) and bool(((own < 0) | (own > steps)).any()):
        raise ValueError(f"{OP}: lengths are not all between 0 and {steps} steps")
    return own.clamp(0, steps)


class HyenaMrState(NamedTuple):
    """The past of sequences, in a place each. `decode` and `prefill` change it.

    A ring keeps step t, counted from the first of its sequence, in slot t % slots.

    tails (batch, 2 + steps, 3 * channels): the last inputs, blocks of D channels, q, k, v in this
    order
    z (batch, 127 + steps, channels): the last values that the filter reads
    count (batch,) int32: steps of each sequence so far
    done (batch, channels / 16) int32, of each 16 channels: count
    """

    tails: Tensor
    z: Tensor
    count: Tensor
    done: Tensor
    draft: bool

    def commit(self, accepted: Tensor, slots: Tensor | None = None) -> None:
        """Say how many steps of the last `decode` count, of a state of drafts: the others leave no
        trace. Those of `prefill` count at once.

        Args:
            accepted: int32, a number a row of that call, at most its steps. That is yours to see
                to: on a CPU it is compared with the room of the state, on a GPU with nothing.
            slots: as of that call.
        """
        commit_drafts(self, accepted, slots)

    def reset(self, slots: Tensor | None = None) -> None:
        """Let new sequences begin in places, or in all; negative slots are none. With slots it
        waits for a GPU.
        """
        reset_places(self, slots)


STATE = HyenaMrState


def initial_state(
    batch: int,
    channels: int = CHANNELS,
    *,
    steps: int = 1,
    draft: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> HyenaMrState:
    """The state of sequences that have not begun.

    Args:
        batch: how many places for a sequence it has.
        channels: D.
        steps: the most that one call computes.
        draft: whether steps count only once `commit` has said so.
        dtype: of the past of inputs and of what the filter reads, float32 or that of the inputs,
            which halves what a step reads and rounds what the filter reads once; modes are
            float32.
    """
    check_sizes(dtype, draft, batch=batch, channels=channels, steps=steps)
    index = torch.zeros((batch,), dtype=torch.int32, device=device)
    return HyenaMrState(
        torch.zeros((batch, 2 + steps, 3 * channels), dtype=dtype, device=device),
        torch.zeros((batch, 127 + steps, channels), dtype=dtype, device=device),
        index,
        index.new_zeros(batch, -(-channels // 16)),
        draft,
    )


# -----------------------------------------------------------------------------------------------
# Calls
# -----------------------------------------------------------------------------------------------


def run_op(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    first_group: int,
    groups_in_all: int | None,
) -> Tensor:
    """y of all inputs, or of packed features alone."""
    if PLAIN or transformed([*inputs, *parameters]):
        with without_autocast(inputs[0]):
            return eager_forward(
                unpack(spread(inputs, parameters)), parameters, first_group, groups_in_all
            )[0]
    absent = [None] * (len(INPUTS) - len(inputs))
    return forward_op(*inputs, *absent, *parameters, first_group, groups_in_all)


def hyena_mr(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    filter: Tensor,
    featurizer: Tensor,
    skip: Tensor,
    first_group: int = 0,
    groups_in_all: int | None = None,
) -> Tensor:
    """hyena_mr: 128-tap decay causal convolution, filters of groups of channels, featurizer of 3
    taps, pre and post gates

    Args:
        q: (B, D, L), bfloat16, float16 or float32
        k: (B, D, L), bfloat16, float16 or float32
        v: (B, D, L), bfloat16, float16 or float32
        filter: (groups, 128), float32; tap 0 multiplies the current sample, before its decay
        featurizer: (3 * channels, 3), float32; the last tap multiplies the current sample; blocks
            of D channels, q, k, v in this order
        skip: (channels), float32; times z, added to the convolution
        first_group: which group of the ladder of decays the first one here is
        groups_in_all: groups that share the ladder; absent: those that are here

    Returns:
        y (B, D, L) in the dtype of the inputs, differentiable in every argument.

    Raises:
        TypeError, ValueError: naming the argument and the shape, dtype or device expected.
    """
    y = direct([q, k, v], [filter, featurizer, skip], first_group, groups_in_all)
    if y is not None:
        return y
    check([q, k, v], [filter, featurizer, skip])
    require_triton(q)
    rungs_of(filter.shape[0], first_group, groups_in_all)
    return run_op([q, k, v], [filter, featurizer, skip], first_group, groups_in_all)


def hyena_mr_packed(
    features: Tensor,
    filter: Tensor,
    featurizer: Tensor,
    skip: Tensor,
    first_group: int = 0,
    groups_in_all: int | None = None,
) -> Tensor:
    """hyena_mr of packed features (B, 3 D, L): blocks of D channels, q, k, v in this order."""
    y = direct([features], [filter, featurizer, skip], first_group, groups_in_all)
    if y is not None:
        return y
    check([features], [filter, featurizer, skip])
    require_triton(features)
    rungs_of(filter.shape[0], first_group, groups_in_all)
    return run_op([features], [filter, featurizer, skip], first_group, groups_in_all)


# -----------------------------------------------------------------------------------------------
# Decoding: a few steps in time after a past that is kept
# -----------------------------------------------------------------------------------------------


def eager_window(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    tails: Tensor | None,
    past: Tensor | None,
    first_group: int,
    groups_in_all: int | None,
) -> tuple[Tensor | None, Tensor]:
    """y of a few steps (B, D, T) after the `tails` of inputs and the `past` of what the filter
    reads, and what it reads of these steps; that alone without a past.
    """
    q, k, v = inputs
    dtype, channels = q.dtype, q.shape[1]
    filter, featurizer, skip = effective(*parameters, dtype)
    decays = decays_of(filter, first_group, groups_in_all)
    filter = filter * decays
    c, width = slice(0, channels), channels // filter.shape[0]
    tails = tails.to(dtype)
    q_hat, k_hat, v_hat = conv_within(
        torch.cat([tails, torch.cat([q, k, v], 1)], 2), featurizer.flip(1)
    ).chunk(3, 1)
    z = k_hat * v_hat
    skip_c = channel_rows(skip, c, 1, dtype)[:, None]
    skipped = z * skip_c
    if past is None:
        return None, z
    past = past.to(dtype)
    filter_c = channel_rows(filter, c, width, dtype)
    z_rows = torch.cat([past, z], 2)
    conv = conv_within(z_rows, filter_c)
    pre_skip = conv + skipped
    y = q_hat * pre_skip
    return y, z


def eager_after(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: HyenaMrState,
    first_group: int,
    groups_in_all: int | None,
) -> Tensor:
    """y of some steps after a state in plain PyTorch, which differentiates it."""
    dtype = torch.promote_types(inputs[0].dtype, torch.float32)
    y = allocate(inputs[0], inputs[0].shape[TIME])
    known = [canonical(x).to(dtype) for x in inputs]
    rows, count = all_rows(state)
    tails = past_of(state.tails, rows, count, 2)
    past = past_of(state.z, rows, count, 127)
    canonical(y)[:] = eager_window(known, parameters, tails, past, first_group, groups_in_all)[0]
    return y


def state_after(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: HyenaMrState,
    end: Tensor | None,
    first_group: int,
    groups_in_all: int | None,
) -> HyenaMrState:
    """The state after the first `end` steps of each row, or all, of that before them, which
    stays as it is.
    """
    end = end_of_all(state.count, inputs[0].shape[TIME]) if end is None else end
    past = [
        state.tails,
        state.z,
    ]
    tails, z = eager_rings(inputs, parameters, past, state.count, end, first_group, groups_in_all)
    count = (state.count + end).to(torch.int32)
    done = count[:, None].repeat(1, state.done.shape[1])
    return STATE(tails, z, count, done, state.draft)


def eager_rings(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    past: Sequence[Tensor],
    count: Tensor,
    end: Tensor | int,
    first_group: int,
    groups_in_all: int | None,
) -> list[Tensor]:
    """The rings after the first `end` steps of each row or of all, of those before, in plain
    PyTorch.
    """
    tails, z = past
    rows = torch.arange(count.shape[0], device=count.device)
    known = [canonical(x) for x in inputs]
    tail = past_of(tails, rows, count, 2)
    pasts = tail.chunk(len(known), 1)
    dtype = torch.promote_types(known[0].dtype, torch.float32)
    last = [
        steps_before(x, tail, end, 129).to(dtype) for x, tail in zip(known, pasts, strict=True)
    ]
    before = torch.cat([x[..., :2] for x in last], 1)
    after = [x[..., 2:] for x in last]
    _, later = eager_window(after, parameters, before, None, first_group, groups_in_all)
    later = where_later(later, past_of(z, rows, count, 127), end)
    z = in_ring(z, later, rows, count + end - 127)
    last = [steps_before(x, tail, end, 2) for x, tail in zip(known, pasts, strict=True)]
    tails = in_ring(tails, torch.cat(last, 1), rows, count + end - 2)
    return [tails, z]


def eager_decode(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: HyenaMrState,
    slots: Tensor | None,
    first_group: int,
    groups_in_all: int | None,
) -> Tensor:
    """y of a few steps in plain PyTorch; the state moves on."""
    sequences = [canonical(x) for x in unpack(inputs)]
    batch, channels, steps = sequences[0].shape
    dtype = torch.float64 if sequences[0].dtype == torch.float64 else torch.float32
    result = allocate(inputs[0], steps, channels).zero_()
    rows, places = live_rows(slots, state)
    count = state.count[places]
    q, k, v = (x[rows].to(dtype) for x in sequences)
    given_rows = [q, k, v]
    tails = past_of(state.tails, places, count, 2)
    past = past_of(state.z, places, count, 127)
    y, z = eager_window(given_rows, parameters, tails, past, first_group, groups_in_all)
    keep_in_ring(state.z, z, places, count)
    keep_in_ring(state.tails, torch.cat([q, k, v], 1), places, count)
    canonical(result)[rows] = y.to(result.dtype)
    if not state.draft:
        move_to(state, places, count + steps)
    return result


def launch_decode(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: HyenaMrState,
    slots: Tensor | None,
    first_group: int,
    groups_in_all: int | None,
) -> Tensor:
    """The same by one kernel."""
    q, k, v = unpack(inputs)
    filter, featurizer, skip = (p.contiguous() for p in parameters)
    channels, groups = q.shape[CHANNEL], filter.shape[0]
    width = channels // groups
    rungs = rungs_of(groups, first_group, groups_in_all)
    first_rate, rung_step = ladder_of(first_group, rungs)
    batch, steps = q.shape[0], q.shape[TIME]
    places = state.count.shape[0]
    y = allocate(q, steps, channels)
    config = configs_of(q, channels, groups)["decode"]
    config = step_config(config, batch * channels, steps)
    grid = step_grid(batch, steps, channels, width, config)
    if grid.programs and steps:
        launch(
            hyena_mr_decode,
            grid.programs,
            *strided(q),
            *strided(k),
            *strided(v),
            *strided(y),
            featurizer,
            skip,
            filter,
            state.tails,
            state.z,
            state.count,
            state.done,
            state.count if slots is None else slots,
            places,
            first_rate,
            rung_step,
            config=config,
            CHANNELS=channels,
            WIDTH=width,
            SHARE=shared_channels(width, config),
            STEPS=steps,
            TAILS_SLOTS=state.tails.shape[1],
            Z_SLOTS=state.z.shape[1],
            SLOTTED=slots is not None,
            DRAFT=state.draft,
        )
    return y


def decode_anywhere(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    filter: Tensor,
    featurizer: Tensor,
    skip: Tensor,
    tails: Tensor,
    z: Tensor,
    count: Tensor,
    done: Tensor,
    slots: Tensor | None,
    draft: bool,
    first_group: int,
    groups_in_all: int | None,
) -> Tensor:
    """y of a few steps; of packed features if the later inputs are None."""
    state = STATE(tails, z, count, done, draft)
    with torch.autocast(q.device.type, enabled=False):
        return eager_decode(
            given(q, k, v), [filter, featurizer, skip], state, slots, first_group, groups_in_all
        )


def decode_on_gpu(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    filter: Tensor,
    featurizer: Tensor,
    skip: Tensor,
    tails: Tensor,
    z: Tensor,
    count: Tensor,
    done: Tensor,
    slots: Tensor | None,
    draft: bool,
    first_group: int,
    groups_in_all: int | None,
) -> Tensor:
    """The same by a kernel."""
    state = STATE(tails, z, count, done, draft)
    return launch_decode(
        given(q, k, v), [filter, featurizer, skip], state, slots, first_group, groups_in_all
    )


def decode_fake(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    filter: Tensor,
    featurizer: Tensor,
    skip: Tensor,
    tails: Tensor,
    z: Tensor,
    count: Tensor,
    done: Tensor,
    slots: Tensor | None,
    draft: bool,
    first_group: int,
    groups_in_all: int | None,
) -> Tensor:
    """The same without values."""
    inputs = given(q, k, v)
    return allocate(q, q.shape[TIME], channels_of(inputs))


def check_decoding(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: HyenaMrState,
    slots: Tensor | None,
    first_group: int,
    groups_in_all: int | None,
) -> None:
    """Refuse what `decode` cannot compute."""
    check_count(inputs)
    check(inputs, parameters)
    require_triton(inputs[0])
    rungs_of(parameters[0].shape[0], first_group, groups_in_all)
    check_decode(inputs, state, slots)
    check_in_place(inputs, state)


def decode_of(
    tensors: Sequence[Tensor],
    count: int,
    slotted: bool,
    draft: bool,
    first_group: int,
    groups_in_all: int | None,
) -> list[Tensor]:
    """y of `count` inputs, parameters, the tensors of a state, and slots if there are some."""
    inputs, others = tensors[:count], tensors[count:]
    parameters, state = others[: len(PARAMETERS)], others[len(PARAMETERS) :]
    slots = state[-1] if slotted else None
    state = STATE(*state[: len(STATE._fields) - 1], draft)
    return [launch_decode(inputs, parameters, state, slots, first_group, groups_in_all)]


decode_op = library_op(
    f"{LIBRARY_NAME}_decode",
    decode_fake,
    decode_anywhere,
    decode_on_gpu,
    changes=(
        "tails",
        "z",
        "count",
        "done",
    ),
)


def decode(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: HyenaMrState,
    slots: Tensor | None = None,
    first_group: int = 0,
    groups_in_all: int | None = None,
) -> Tensor:
    """y of one step or a few after a state, which moves on in place. For inference: it has no
    gradients.

    Args:
        inputs: q, k, v (B, D, L) with L steps, or one tensor of packed features (B, 3 D, L).
        parameters: filter, featurizer, skip.
        state: of `initial_state`, for at least L steps.
        slots: (B) int32, which place of the state a row's sequence has; of rows that are negative
            nothing is computed, and y is 0. A GPU does not see where they are wrong: beyond all
            places they are as negative ones, and two rows with one place leave a state of no use
            until it is reset. Absent: row i has place i.

    Returns:
        y (B, D, L) in the dtype of the inputs.

    Raises:
        TypeError, ValueError: naming the argument and the shape, dtype or device expected.
        RuntimeError: a gradient would be asked for.
    """
    y = directly_decoded(inputs, parameters, state, slots, first_group, groups_in_all)
    if y is not None:
        return y
    check_decoding(inputs, parameters, state, slots, first_group, groups_in_all)
    absent = [None] * (len(INPUTS) - len(inputs))
    function = decode_anywhere if PLAIN else decode_op
    with torch.no_grad():
        return function(
            *inputs,
            *absent,
            *parameters,
            *state[:-1],
            slots,
            state.draft,
            first_group,
            groups_in_all,
        )


def prefill(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: HyenaMrState,
    slots: Tensor | None = None,
    lengths: Tensor | None = None,
    first_group: int = 0,
    groups_in_all: int | None = None,
) -> Tensor:
    """y of any number of steps after a state, which moves on in place, as `decode` of one after
    the other; of drafts too, without `commit`. For inference: it has no gradients.

    Args:
        inputs, parameters, state, slots: as of `decode`, but for any number of steps.
        lengths: (B) whole numbers, how many of a row's steps are its own, of rows that are padded
            on the right: a state is that after these, and y is of no meaning beyond, where inputs
            must be finite. Absent: all.

    Returns:
        y (B, D, L) in the dtype of the inputs.

    Raises:
        TypeError, ValueError, RuntimeError: as `decode`.
    """
    check_count(inputs)
    check(inputs, parameters, least=0)
    steps = inputs[0].shape[TIME]
    require_triton(inputs[0])
    rungs_of(parameters[0].shape[0], first_group, groups_in_all)
    check_decode(inputs, state, slots, any_steps=True)
    check_in_place(inputs, state)
    if not steps:
        ends_of(lengths, live_rows(slots, state)[0], steps, inputs[0])
        return allocate(inputs[0], 0, channels_of(inputs))
    with torch.no_grad(), without_autocast(inputs[0]):
        sequences = unpack(inputs)
        rows, places = live_rows(slots, state)
        end = ends_of(lengths, rows, steps, sequences[0])
        own, before = sequences, state
        if slots is not None:
            own = [x[rows] for x in sequences]
            before = STATE(*(tensor[places] for tensor in state[:-1]), state.draft)
        y = run_op(own, parameters, first_group, groups_in_all)
        # What the past adds to: the first steps again.
        first = [x.narrow(TIME, 0, min(129, steps)) for x in own]
        begun = eager_after(first, parameters, before, first_group, groups_in_all)
        y.narrow(TIME, 0, begun.shape[TIME]).copy_(begun)
        after = state_after(own, parameters, before, end, first_group, groups_in_all)
        for tensor, made in zip(state[:-1], after[:-1], strict=True):
            if made is not tensor:
                tensor[places] = made.to(tensor.dtype)
        if slots is None:
            return y
        result = allocate(inputs[0], steps, channels_of(inputs)).zero_()
        result[rows] = y
        return result


class HyenaMr(nn.Module):
    """The operator with its parameters: filter (groups, 128), featurizer (3 * channels, 3), skip
    (channels).

    They are float32 and stay so under `.to(torch.bfloat16)`, `.half()` and autocast: they are few,
    and rounding them would cost more accuracy than the whole computation.

    Args:
        channels: D.
        groups: G, which divides D; as wide as those of 4096 channels in 256 if absent.
        first_group: which group of the ladder of decays the first one here is
        groups_in_all: groups that share the ladder; absent: those that are here
    """

    def __init__(
        self,
        channels: int = CHANNELS,
        groups: int | None = None,
        first_group: int = 0,
        groups_in_all: int | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("channels", channels), ("groups", groups)):
            if not isinstance(size, int | None):
                raise TypeError(f"{OP}: {name} must be a whole number, not {size!r}")
        if groups is None:
            width = CHANNELS // GROUPS
            if channels % width:
                raise ValueError(f"{OP}: {channels} channels are no whole groups of {width}")
            groups = channels // width
        if channels < 1 or groups < 1 or channels % groups:
            raise ValueError(f"{OP}: {groups} filter groups do not divide {channels} channels")
        rungs_of(groups, first_group, groups_in_all)
        self.channels, self.groups = channels, groups
        self.first_group = first_group
        self.groups_in_all = groups_in_all
        for name, shape in parameter_shapes(channels, groups).items():
            values = torch.empty(shape, dtype=torch.float32, device=device)
            self.register_parameter(name, nn.Parameter(values))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh parameters."""
        with torch.no_grad():
            self.filter.normal_(0.0, 1.10485e-07)
            self.featurizer.uniform_(-0.57735, 0.57735)
            self.skip.uniform_(-0.0883883, 0.0883883)

    def _apply(self, fn, recurse: bool = True):
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype in (torch.bfloat16, torch.float16):
                return tensor.to(moved.device)
            return moved

        return super()._apply(keep_float32, recurse)

    def forward(self, *inputs: Tensor) -> Tensor:
        """y (B, D, L) of q, k, v (B, D, L), or of packed features (B, 3 D, L)."""
        own = self._parameters  # which nn.Module searches slowly; parametrised ones are not there
        parameters = [own[n] if n in own else getattr(self, n) for n in PARAMETERS]
        if len(inputs) == len(INPUTS):
            return hyena_mr(
                *inputs,
                *parameters,
                first_group=self.first_group,
                groups_in_all=self.groups_in_all,
            )
        if len(inputs) == 1:
            return hyena_mr_packed(
                *inputs,
                *parameters,
                first_group=self.first_group,
                groups_in_all=self.groups_in_all,
            )
        raise TypeError(
            f"{OP}: expected {len(INPUTS)} inputs or 1 of packed features, got {len(inputs)}"
        )

    def initial_state(
        self,
        batch: int,
        *,
        steps: int = 1,
        draft: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> HyenaMrState:
        """`initial_state` for this module's channels, by default on its device."""
        device = next(self.parameters()).device if device is None else device
        return initial_state(
            batch, self.channels, steps=steps, draft=draft, dtype=dtype, device=device
        )

    def decode(
        self,
        *inputs: Tensor,
        state: HyenaMrState | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """y of one step or a few after a state, which may come last of the inputs: `decode` with
        this module's parameters.

        Example: `y = module.decode(q, k, v, module.initial_state(batch))`
        """
        inputs, state = with_state(inputs, state)
        parameters = [getattr(self, name) for name in PARAMETERS]
        return decode(
            inputs,
            parameters,
            state,
            slots,
            first_group=self.first_group,
            groups_in_all=self.groups_in_all,
        )

    def prefill(
        self,
        *inputs: Tensor,
        state: HyenaMrState | None = None,
        slots: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """y of a whole prompt, or of more of it, and the state after it: `prefill`."""
        inputs, state = with_state(inputs, state)
        parameters = [getattr(self, name) for name in PARAMETERS]
        return prefill(
            inputs,
            parameters,
            state,
            slots,
            lengths,
            first_group=self.first_group,
            groups_in_all=self.groups_in_all,
        )

    def extra_repr(self) -> str:
        text = f"channels={self.channels}, groups={self.groups}"
        for name, default in (("first_group", 0), ("groups_in_all", None)):
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text
