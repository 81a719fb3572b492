"""What is before the first step of a call, of kernels that load rows one by one."""

import triton
import triton.language as tl


@triton.jit
def with_past(
    rows, ring, count, tile, FIRST: tl.constexpr, BEFORE: tl.constexpr, ROWS: tl.constexpr,
    N: tl.constexpr, LAG: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`with_past` of past.py, a row at a time."""
    out = ()
    for r in tl.static_range(BEFORE):
        time = tile.begin + FIRST + r + tl.arange(0, N)[None, :] * ROWS
        lag = tile.read_begin - time
        there = tile.channel_mask & (lag > 0) & (lag <= LAG)
        where = ring + (count + (SLOTS - lag)) % SLOTS * COLUMNS + tile.offset
        past = tl.load(where, mask=there, other=0.0).to(tl.float32)
        out = out + (tl.where(lag > 0, past, rows[r]),)
    return out + rows[BEFORE : len(rows)]
