"""Documents that lie apart (apart.py) in channels-last tensors, which are read step by step."""

import triton
import triton.language as tl

from templates.parts.apart import vector_sources


@triton.jit
def load_steps(
    ptr, tile, stride, unit,
    LO: tl.constexpr, HI: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Rows LO .. HI - 1 from the first step of each block of ROWS; zero where no document is."""
    rows = ()
    for vector in tl.static_range(LO // 8, (HI + 7) // 8):
        _, source = vector_sources(tile, vector * 8, ROWS, 1, N)
        source = source[None, :]
        where = (ptr + ((source >> 9) * 8).to(tl.int64) * stride) + tile.offset * unit
        for r in tl.static_range(8):
            there = tile.channel_mask & (((source >> r) & 1) > 0)
            x = tl.load(where + r * stride, mask=there, other=0.0)
            rows = rows + (x.to(tl.float32),)
    return rows[LO - LO // 8 * 8 : LO - LO // 8 * 8 + HI - LO]


@triton.jit
def store_steps(
    ptr, tile, rows, stride, unit, EVEN: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr
):
    """Write the rows of every block that lie before `write_end`, where a document is."""
    for vector in tl.static_range(len(rows) // 8):
        first, source = vector_sources(tile, vector * 8, len(rows), 1, N)
        source = tl.where(first < tile.write_end, source, 0)[None, :]
        where = (ptr + ((source >> 9) * 8).to(tl.int64) * stride) + tile.offset * unit
        for r in tl.static_range(8):
            there = tile.channel_mask & (((source >> r) & 1) > 0)
            tl.store(where + r * stride, rows[vector * 8 + r].to(ptr.dtype.element_ty), mask=there)
