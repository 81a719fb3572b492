"""Rows of channels-last tensors (B, L, D): channels are contiguous, `row` is the time stride.

Each row of a tile is loaded on its own, with the same alignment whatever its lag; context rows
that a neighbouring block has just read come from the L1 cache.
"""

import triton
import triton.language as tl


@triton.jit
def load_steps(
    ptr, stride, unit, tile,
    LO: tl.constexpr, HI: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Rows LO .. HI - 1 from the first step of each block of ROWS; zero outside [read_begin,
    read_end).

    A step is inside or outside for all channels alike, so EVEN makes no difference here.
    """
    offset, channel_mask, t, _, _, read_begin, read_end, write_end = tile
    rows = ()
    block = tl.arange(0, N)[None, :] * ROWS
    lane = offset * unit + block * stride
    for r in tl.static_range(LO, HI):
        time = t + r + block
        where = (
            ptr + (t + r) * stride
        ) + lane  # the step as a scalar, so that lanes are added once
        x = tl.load(where, mask=channel_mask & (time >= read_begin) & (time < read_end), other=0.0)
        rows = rows + (x.to(tl.float32),)
    return rows


@triton.jit
def store_steps(
    ptr, stride, unit, tile, rows, EVEN: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr
):
    """Write the rows of every block that lie before `write_end`."""
    offset, channel_mask, t, _, _, read_begin, read_end, write_end = tile
    block = tl.arange(0, N)[None, :] * len(rows)
    lane = offset * unit + block * stride
    for r in tl.static_range(len(rows)):
        time = t + r + block
        where = (ptr + (t + r) * stride) + lane
        tl.store(where, rows[r].to(ptr.dtype.element_ty), mask=channel_mask & (time < write_end))
