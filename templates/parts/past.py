"""What is before the first step of a call: rings [slots, columns], step t in slot t % slots."""

import triton
import triton.language as tl

from templates.parts.channels_first import rows_vector, vector_rows
from templates.parts.toeplitz import carry, rounded


@triton.jit
def with_past(
    rows, ring, count, tile, FIRST: tl.constexpr, BEFORE: tl.constexpr, ROWS: tl.constexpr,
    N: tl.constexpr, LAG: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Rows FIRST .. from the first step of each block of ROWS, those before the first step of the
    call from the ring, which has the LAG steps before step `count` of the sequence. No others than
    the first BEFORE rows can be that early.

    As vectors of steps, as activations are loaded: of loads of rows the compiler cannot make
    operands of products (Triton 3.6: "Illegal shared layout").
    """
    out = ()
    for vector in tl.static_range((BEFORE + 7) // 8):
        index = tl.arange(0, N * 8)[None, :]
        first = tile.begin + (FIRST + vector * 8)
        lag = tile.read_begin - (first + index // 8 * ROWS + index % 8)
        there = tile.channel_mask & (lag > 0) & (lag <= LAG)
        where = ring + (count + (SLOTS - lag)) % SLOTS * COLUMNS + tile.offset
        past = vector_rows(tl.load(where, mask=there, other=0.0), rows[0].shape[0], N)
        for r in tl.static_range(8):
            if vector * 8 + r < BEFORE:
                time = first + r + tl.arange(0, N)[None, :] * ROWS
                own = rows[vector * 8 + r]
                out = out + (tl.where(time < tile.read_begin, past[r], own),)
    return out + rows[BEFORE : len(rows)]


@triton.jit
def entered_block(
    rows, ring, count, tile,
    M: tl.constexpr, N: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    LAG: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Rows as a block [M, N * 8] of time, as products read it; from the ring as `with_past`."""
    block = rounded(rows_vector(rows, 0, M, N, OPERAND), PRECISION)
    time = tile.begin + tl.arange(0, N * 8)[None, :]
    lag = tile.read_begin - time
    there = tile.channel_mask & (lag > 0) & (lag <= LAG)
    where = ring + (count + (SLOTS - lag)) % SLOTS * COLUMNS + tile.offset
    past = tl.load(where, mask=there, other=0.0).to(tl.float32).to(OPERAND)
    return tl.where(lag > 0, rounded(past, PRECISION), block)


@triton.jit
def remember_entered(past, block, going):
    """`remember` of a block."""
    blocks = (block,) + past
    if len(past) == 0:
        return blocks, past
    else:
        return blocks, (block,) + carry(past[0 : len(past) - 1], going)


@triton.jit
def look_ahead_entered(coming, block, going):
    """`look_ahead` of a block."""
    blocks = coming + (block,)
    if len(coming) == 0:
        return blocks, coming
    else:
        return blocks, carry(coming[1 : len(coming)], going) + (block,)
