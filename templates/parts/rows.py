"""Arithmetic on rows: the helpers that tile programs of short filters call.

A *row* is one time step of a tile: a float32 tensor of lanes [BLOCK_D, N], where lane (d, n)
is channel d of the n-th block of time. A value of a tile program is a tuple of rows at
consecutive times, so a lag is an index into a tuple: no shuffles, no shared memory, no reloads.
Taps are tuples of [BLOCK_D, 1] tensors with lag 0 first. Layout never shows here; see
channels_first.py and channels_last.py.

A function of two tuples takes the size of one as a constant: Triton up to 3.6 names what it
compiles by the types of arguments one after another, so that 17 rows and 4 taps are to it what 14
rows and 7 taps are (docs/decisions/012).

Where a tile is one channel, what is [BLOCK_D, 1] here are scalars: the binary is the same, but
Triton 3.6 looks at a whole kernel for every load and store of a tensor, and compiles the backward
kernel of Hyena-SE in half the time.
"""

from typing import NamedTuple

import triton
import triton.language as tl


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
def shift(x, offset):
    """Each row plus a per-channel offset [BLOCK_D, 1]."""
    y = ()
    for r in tl.static_range(len(x)):
        y = y + (x[r] + offset,)
    return y


@triton.jit
def silu(x):
    y = ()
    for r in tl.static_range(len(x)):
        y = y + (x[r] / (1.0 + tl.exp(-x[r])),)
    return y


@triton.jit
def silu_gradient(grad, x):
    """grad * silu'(x), with silu'(x) = s (1 + x (1 - s)) and s the logistic function of x."""
    y = ()
    for r in tl.static_range(len(x)):
        s = 1.0 / (1.0 + tl.exp(-x[r]))
        y = y + (grad[r] * s * (1.0 + x[r] * (1.0 - s)),)
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
