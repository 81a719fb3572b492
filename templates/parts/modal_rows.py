"""Rows of a recurrence: what extends them, sums over them and loads them."""

import triton
import triton.language as tl

from templates.parts.channels_first import load_steps
from templates.parts.modal import halves, lane_sum


@triton.jit
def extend(rows, after, COUNT: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Each lane's rows, then the first COUNT of the next lane; the last lane takes `after`.
    Also what the next tile, which is earlier, takes there.
    """
    lane = tl.arange(0, M * N)
    last = tl.reshape(lane, (M, N)) == M * N - 1
    extended = rows
    first = ()
    next_lane = (lane + 1) % (M * N)
    for r in tl.static_range(0, COUNT, 2):
        if r + 1 < COUNT:  # threads exchange two as quickly as one
            low = rows[r].to(tl.uint32, bitcast=True).to(tl.uint64)
            high = rows[r + 1].to(tl.uint32, bitcast=True).to(tl.uint64)
            both = tl.reshape(
                tl.gather(tl.reshape(low | high << 32, (M * N,)), next_lane, 0), (M, N)
            )
            low = both.to(tl.uint32).to(tl.float32, bitcast=True)
            first = first + (low, (both >> 32).to(tl.uint32).to(tl.float32, bitcast=True))
        else:
            flat = tl.reshape(rows[r], (M * N,))
            first = first + (tl.reshape(tl.gather(flat, next_lane, 0), (M, N)),)
    for r in tl.static_range(COUNT):
        extended = extended + (tl.where(last, after[r], first[r]),)
    return extended, first


@triton.jit
def folded(total, rows):
    """total + the sum of rows, which may have twice as many lanes: then of their two halves."""
    M: tl.constexpr = rows[0].shape[0]
    N: tl.constexpr = rows[0].shape[1]
    if total.shape[0] == M:
        for r in tl.static_range(len(rows)):
            total += rows[r]
        return total
    else:
        value = rows[0]
        for r in tl.static_range(1, len(rows)):
            value += rows[r]
        upper, lower = halves(value, M, N)
        return total + (upper + lower)


@triton.jit
def tap_gradient(total, grad, x, LENGTH: tl.constexpr):
    """total[j] += sum_t grad[t] x[t - j], j < LENGTH; x starts LENGTH - 1 rows before grad."""
    out = ()
    for lag in tl.static_range(LENGTH):
        rows = ()
        for r in tl.static_range(len(grad)):
            rows = rows + (grad[r] * x[r + LENGTH - 1 - lag],)
        out = out + (folded(total[lag], rows),)
    return out


@triton.jit
def channel_sum(total, x):
    """total[0] += sum_t x[t]."""
    return (folded(total[0], x),)


@triton.jit
def load_lagged(
    ptr, tile, row, unit, LAG: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`load_steps` from LAG <= 4 rows before the first: these by a load of 4 or 8 bytes, where
    load_steps would load the whole vector that they end.
    """
    COUNT: tl.constexpr = triton.next_power_of_2(LAG)
    index = tl.arange(0, N * COUNT)[None, :]
    begin = tile.begin + index // COUNT * ROWS - COUNT
    time = begin + index % COUNT
    where = ptr + tile.offset * row + time * unit
    if EVEN:
        vector = begin - (8 - COUNT)  # inside or outside as a whole
        x = tl.load(
            where,
            mask=tile.channel_mask & (vector >= tile.read_begin) & (vector < tile.read_end),
            other=0.0,
        )
    else:
        x = tl.load(
            where,
            mask=tile.channel_mask & (time >= tile.read_begin) & (time < tile.read_end),
            other=0.0,
        )
    x = x.to(tl.float32)
    if COUNT == 1:
        lagged = (x,)
    elif COUNT == 2:
        lagged = tl.split(tl.reshape(x, (M, N, 2)))
    else:
        even, odd = tl.split(tl.reshape(x, (M, N * 2, 2)))
        x0, x2 = tl.split(tl.reshape(even, (M, N, 2)))
        x1, x3 = tl.split(tl.reshape(odd, (M, N, 2)))
        lagged = (x0, x1, x2, x3)
    own = load_steps(ptr, tile, row, unit, LO=0, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=N)
    return lagged[COUNT - LAG :] + own


@triton.jit
def joined_halves(total):
    """Tensors joined in pairs, the first with the first of the second half."""
    HALF: tl.constexpr = len(total) // 2
    out = ()
    for i in tl.static_range(HALF):
        out = out + (tl.join(total[i], total[i + HALF]),)
    return out


@triton.jit
def store_partial(ptr, first, total, channel, channel_mask, CHANNELS: tl.constexpr):
    """Write accumulators, summed over the tile, to rows first, ... of [P, CHANNELS]; many at once,
    which costs little more than one.
    """
    COUNT: tl.constexpr = triton.next_power_of_2(len(total))
    some = total
    for _ in tl.static_range(COUNT - len(total)):
        some = some + (total[0],)
    for _ in tl.static_range(COUNT.bit_length() - 1):
        some = joined_halves(some)
    row = tl.arange(0, COUNT)
    where = ptr + (first + row) * CHANNELS + channel
    sums = lane_sum(tl.trans(tl.reshape(some[0], (total[0].numel, COUNT))))
    tl.store(where, sums, mask=channel_mask & (row < len(total)))
