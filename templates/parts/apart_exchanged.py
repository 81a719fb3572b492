"""Documents that lie apart (apart.py) in channels-last tensors, in tiles that are loaded as those
of channels-first tensors are, with the strides exchanged: neighbours in memory are channels.
"""

import triton
import triton.language as tl

from templates.parts.channels_first import rows_vector, vector_rows


@triton.jit
def step_places(tile, vector, ROWS: tl.constexpr, N: tl.constexpr):
    """Of the eight steps of a vector of each block of ROWS, [.., N * 8]: where they lie, whether
    they do, and the step itself.
    """
    index = tl.arange(0, N * 8)[None, :]
    first = tile.begin + vector * 8 + index // 8 * ROWS
    there = (first >= tile.read_begin) & (first < tile.read_end)
    source = tl.load(tile.sources + first // 8, mask=there, other=0)
    step = ((source >> 9) * 8 + index % 8).to(tl.int64)
    return step, tile.channel_mask & (((source >> (index % 8)) & 1) > 0), first + index % 8


@triton.jit
def load_steps(
    ptr, tile, stride, unit,
    LO: tl.constexpr, HI: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Rows LO .. HI - 1 from the first step of each block of ROWS; zero where no document is."""
    rows = ()
    for vector in tl.static_range(LO // 8, (HI + 7) // 8):
        step, there, _ = step_places(tile, vector, ROWS, N)
        x = tl.load(ptr + tile.offset * stride + step * unit, mask=there, other=0.0)
        rows = rows + vector_rows(x, BLOCK_D, N)
    return rows[LO - LO // 8 * 8 : LO - LO // 8 * 8 + HI - LO]


@triton.jit
def store_steps(
    ptr, tile, rows, stride, unit, EVEN: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr
):
    """Write the rows of every block that lie before `write_end`, where a document is."""
    for vector in tl.static_range(len(rows) // 8):
        x = rows_vector(rows, vector * 8, BLOCK_D, N, ptr.dtype.element_ty)
        step, there, time = step_places(tile, vector, len(rows), N)
        where = ptr + tile.offset * stride + step * unit
        tl.store(where, x, mask=there & (time < tile.write_end))
