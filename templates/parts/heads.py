"""Several documents in one row, of filters with taps: the first steps of each by themselves.

A convolution with taps that runs over a row as if it were one document is wrong in the first steps
of each alone, its *head*: as many as taps reach back. So kernels compute the row, and after them
others the heads, of which each sees nothing but its own document. Backward, the row's kernels take
dy as zero in heads: what is left has gradients to which no other document adds. Those of heads
give the gradients of inputs there as a whole, and of parameters what heads add.

`remaining` holds, for each step, how many steps of its document are left, itself included, at most
32767, in int16; `counted` a byte for every eight steps, of which a bit says whether a step is in
no head.
"""

import triton
import triton.language as tl

from templates.parts.borders import last_border
from templates.parts.channels_first import rows_vector, vector_rows


@triton.jit(do_not_specialize=["documents", "rounds", "steps"])
def find_heads(
    cu_seqlens_ptr,  # [documents + 1]: 0, and where each document ends
    remaining_ptr,  # [steps, up to a multiple of 8] int16
    counted_ptr,  # [an eighth of these] uint8
    documents, rounds, steps,
    REACH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where documents end, and which steps are in no head of REACH steps."""
    step = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    border = last_border(cu_seqlens_ptr, step, documents, rounds, BLOCK)
    begin = tl.load(cu_seqlens_ptr + border).to(tl.int32)  # not behind the step: of 32 bits
    inner = border < documents
    end = tl.load(cu_seqlens_ptr + border + 1, mask=inner, other=0)
    end = tl.where(inner, tl.minimum(end, steps), steps).to(tl.int32)
    # Whatever the numbers are, every document has a step, and none goes beyond the row.
    left = tl.minimum(tl.maximum(end - step, 1), 32767)
    there = step < (steps + 7) // 8 * 8
    tl.store(remaining_ptr + step, tl.where(step < steps, left, 0).to(tl.int16), mask=there)
    counts = ((step - begin >= REACH) & (step < steps)).to(tl.int32)
    bits = tl.sum(tl.reshape(counts, (BLOCK // 8, 8)) << tl.arange(0, 8)[None, :], 1)
    vector = tl.program_id(0) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    tl.store(counted_ptr + vector, bits.to(tl.uint8), mask=vector < (steps + 7) // 8)


@triton.jit
def outside_heads(rows, ptr, tile, ROWS: tl.constexpr, N: tl.constexpr):
    """Rows from the first step of each block of ROWS on, zero in heads."""
    out = ()
    for r in tl.static_range(len(rows)):
        if r % 8 == 0:
            time = tile.begin + r + tl.arange(0, N)[None, :] * ROWS
            there = (time >= tile.read_begin) & (time < tile.read_end)
            bits = tl.load(ptr + time // 8, mask=there, other=0).to(tl.int32)
        out = out + (tl.where((bits & (1 << (r % 8))) != 0, rows[r], 0.0),)
    return out


@triton.jit
def load_counted(
    ptr, counted_ptr, tile, stride, unit,
    LO: tl.constexpr, HI: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`load_steps`, zero in heads. (Vectors are masked before they are rows: of rows that a choice
    has made Triton 3.6 makes no operands of products.)
    """
    rows = ()
    for vector in tl.static_range(LO // 8, (HI + 7) // 8):
        index = tl.arange(0, N * 8)[None, :]
        begin = tile.begin + vector * 8 + index // 8 * ROWS
        time = begin + index % 8
        first = begin if EVEN else time  # inside or outside as a whole, if so
        there = (first >= tile.read_begin) & (first < tile.read_end)
        where = ptr + tile.offset * stride + time * unit
        x = tl.load(where, mask=tile.channel_mask & there, other=0.0)
        bits = tl.load(counted_ptr + begin // 8, mask=there, other=0).to(tl.int32)
        x = tl.where(((bits >> (index % 8)) & 1) > 0, x, 0.0)
        rows = rows + vector_rows(x, BLOCK_D, N)
    return rows[LO - LO // 8 * 8 : LO - LO // 8 * 8 + HI - LO]


@triton.jit
def first_border(remaining_ptr, stretch):
    """The first border from a step on; step 0 is one."""
    left = tl.load(remaining_ptr + stretch - 1, mask=stretch > 0, other=1)
    return stretch - 1 + left.to(tl.int32)


@triton.jit
def load_own(
    ptr, tile, stride, unit,
    LO: tl.constexpr, HI: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`load_steps` of documents that begin and end anywhere."""
    rows = ()
    for vector in tl.static_range(LO // 8, (HI + 7) // 8):
        index = tl.arange(0, N * 8)[None, :]
        time = tile.begin + vector * 8 + index // 8 * ROWS + index % 8
        there = tile.channel_mask & (time >= tile.read_begin) & (time < tile.read_end)
        x = tl.load(ptr + tile.offset * stride + time * unit, mask=there, other=0.0)
        rows = rows + vector_rows(x, BLOCK_D, N)
    return rows[LO - LO // 8 * 8 : LO - LO // 8 * 8 + HI - LO]


@triton.jit
def store_own(ptr, tile, rows, stride, unit, BLOCK_D: tl.constexpr, N: tl.constexpr):
    """`store_steps` of documents that begin anywhere."""
    for vector in tl.static_range(len(rows) // 8):
        x = rows_vector(rows, vector * 8, BLOCK_D, N, ptr.dtype.element_ty)
        index = tl.arange(0, N * 8)[None, :]
        time = tile.begin + vector * 8 + index // 8 * len(rows) + index % 8
        there = tile.channel_mask & (time >= tile.read_begin) & (time < tile.write_end)
        tl.store(ptr + tile.offset * stride + time * unit, x, mask=there)


@triton.jit
def own_rows(rows, tile, N: tl.constexpr):
    """The rows of a tile that are in a head, and zero behind it."""
    out = ()
    for r in tl.static_range(len(rows)):
        time = tile.begin + r + tl.arange(0, N)[None, :] * len(rows)
        out = out + (tl.where(time < tile.write_end, rows[r], 0.0),)
    return out


@triton.jit
def own_block(blocks, tile, BLOCK_T: tl.constexpr):
    """The tile's own of some blocks likewise."""
    column = tl.arange(0, BLOCK_T)[None, :]
    return (tl.where(tile.begin + column < tile.write_end, blocks[0], 0.0),)
