"""Rows of channels-last tensors (B, L, D): channels are contiguous, `row` is the time stride.

Each row of a tile is loaded on its own, with the same alignment whatever its lag; context rows
that a neighbouring block has just read come from the L1 cache.
"""

import triton
import triton.language as tl


@triton.jit
def load_steps(
    ptr, tile, stride, unit,
    LO: tl.constexpr, HI: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Rows LO .. HI - 1 from the first step of each block of ROWS; zero outside [read_begin,
    read_end).

    A step is inside or outside for all channels alike, so EVEN makes no difference here.
    """
    rows = ()
    block = tl.arange(0, N)[None, :] * ROWS
    lane = tile.offset * unit + block * stride
    for r in tl.static_range(LO, HI):
        time = tile.begin + r + block
        where = (
            ptr + (tile.begin + r) * stride
        ) + lane  # the step as a scalar, so that lanes are added once
        x = tl.load(
            where,
            mask=tile.channel_mask & (time >= tile.read_begin) & (time < tile.read_end),
            other=0.0,
        )
        rows = rows + (x.to(tl.float32),)
    return rows


@triton.jit
def store_steps(
    ptr, tile, rows, stride, unit, EVEN: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr
):
    """Write the rows of every block that lie before `write_end`."""
    block = tl.arange(0, N)[None, :] * len(rows)
    lane = tile.offset * unit + block * stride
    for r in tl.static_range(len(rows)):
        time = tile.begin + r + block
        where = (ptr + (tile.begin + r) * stride) + lane
        tl.store(
            where,
            rows[r].to(ptr.dtype.element_ty),
            mask=tile.channel_mask & (time < tile.write_end),
        )
