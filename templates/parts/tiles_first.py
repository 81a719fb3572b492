"""Rows of channels-first tensors, loaded as channels_first.py does, in tiles that carry nothing.

All lanes of such a tile begin at one time. Its context is read again by the tile beside it,
perhaps in another program, so that these loads take a hint of what the caches are to keep;
elsewhere it gains nothing (docs/decisions/010).
"""

import triton
import triton.language as tl

from templates.parts.channels_first import vector_rows


@triton.jit
def load_steps(
    ptr, tile, stride, unit,
    LO: tl.constexpr, HI: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr,
    EVICT_LAST: tl.constexpr = 0,
):  # fmt: skip
    """Rows LO .. HI - 1 from the first step of each block of ROWS; zero outside [read_begin,
    read_end).

    EVEN says that the segment's bounds are multiples of 8, so that a vector is inside or outside
    as a whole. Otherwise only tiles at an edge pay for a mask on every element. EVICT_LAST asks
    the caches to evict last what is read.
    """
    EVICT: tl.constexpr = "evict_last" if EVICT_LAST else ""
    rows = ()
    for vector in tl.static_range(LO // 8, (HI + 7) // 8):
        index = tl.arange(0, N * 8)[None, :]
        begin = tile.begin + vector * 8 + index // 8 * ROWS  # of the vector
        time = begin + index % 8
        where = ptr + tile.offset * stride + time * unit
        if EVEN:
            mask = tile.channel_mask & (begin >= tile.read_begin) & (begin < tile.read_end)
            x = tl.load(where, mask=mask, other=0.0, eviction_policy=EVICT)
        elif (tile.begin + vector * 8 >= tile.read_begin) & (
            tile.begin + vector * 8 + N * ROWS <= tile.read_end
        ):
            x = tl.load(where, mask=tile.channel_mask, other=0.0, eviction_policy=EVICT)
        else:
            mask = tile.channel_mask & (time >= tile.read_begin) & (time < tile.read_end)
            x = tl.load(where, mask=mask, other=0.0, eviction_policy=EVICT)
        rows = rows + vector_rows(x, BLOCK_D, N)
    return rows[LO - LO // 8 * 8 : LO - LO // 8 * 8 + HI - LO]
