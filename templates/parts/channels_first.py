"""Rows of channels-first tensors (B, D, L): time is contiguous, `row` is the channel stride.

A block of time is cut into vectors of eight consecutive steps, so that every access is as wide as
the hardware allows whatever the lag: context is loaded as whole neighbouring vectors and the lag
is resolved by choosing registers. Vectors become rows by halving (`tl.split`), which moves no data
because each vector lies within one thread.
"""

import triton
import triton.language as tl


@triton.jit
def locate(program, splits, BLOCK_D: tl.constexpr, CHANNELS: tl.constexpr):
    """(batch, first channel, time program) of one program; neighbours in time run together."""
    channel_programs: tl.constexpr = (CHANNELS + BLOCK_D - 1) // BLOCK_D
    outer = program // splits
    return outer // channel_programs, outer % channel_programs * BLOCK_D, program % splits


@triton.jit
def advance(ptr, batch_stride, stride, STRIDE_UNIT: tl.constexpr, unit, origin):
    """The pointer to origin = (batch, channel, time), in 64-bit arithmetic, and the row stride.

    Strides come in units of STRIDE_UNIT elements, which tells the compiler how rows are aligned.
    """
    batch, channel, time = origin
    offset = (
        batch.to(tl.int64) * batch_stride * STRIDE_UNIT
        + channel.to(tl.int64) * stride * STRIDE_UNIT
    )
    return ptr + offset + time.to(tl.int64) * unit, stride * STRIDE_UNIT


@triton.jit
def vector_rows(x, BLOCK_D: tl.constexpr, N: tl.constexpr):
    """[BLOCK_D, N * 8] -> its eight phases, each a float32 row [BLOCK_D, N]."""
    even, odd = tl.split(tl.reshape(x, (BLOCK_D, N * 4, 2)))
    x04, x26 = tl.split(tl.reshape(even, (BLOCK_D, N * 2, 2)))
    x15, x37 = tl.split(tl.reshape(odd, (BLOCK_D, N * 2, 2)))
    x0, x4 = tl.split(tl.reshape(x04, (BLOCK_D, N, 2)))
    x1, x5 = tl.split(tl.reshape(x15, (BLOCK_D, N, 2)))
    x2, x6 = tl.split(tl.reshape(x26, (BLOCK_D, N, 2)))
    x3, x7 = tl.split(tl.reshape(x37, (BLOCK_D, N, 2)))
    rows = (x0, x1, x2, x3, x4, x5, x6, x7)
    out = ()
    for r in tl.static_range(8):
        out = out + (rows[r].to(tl.float32),)
    return out


@triton.jit
def rows_vector(
    rows, first: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr, dtype: tl.constexpr
):
    """The inverse of vector_rows for rows first .. first + 7, rounded to dtype."""
    x04 = tl.reshape(tl.join(rows[first].to(dtype), rows[first + 4].to(dtype)), (BLOCK_D, N * 2))
    x15 = tl.reshape(
        tl.join(rows[first + 1].to(dtype), rows[first + 5].to(dtype)), (BLOCK_D, N * 2)
    )
    x26 = tl.reshape(
        tl.join(rows[first + 2].to(dtype), rows[first + 6].to(dtype)), (BLOCK_D, N * 2)
    )
    x37 = tl.reshape(
        tl.join(rows[first + 3].to(dtype), rows[first + 7].to(dtype)), (BLOCK_D, N * 2)
    )
    even = tl.reshape(tl.join(x04, x26), (BLOCK_D, N * 4))
    odd = tl.reshape(tl.join(x15, x37), (BLOCK_D, N * 4))
    return tl.reshape(tl.join(even, odd), (BLOCK_D, N * 8))


@triton.jit
def load_steps(
    ptr, tile, stride, unit,
    LO: tl.constexpr, HI: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Rows LO .. HI - 1 from the first step of each block of ROWS; zero outside [read_begin,
    read_end).

    EVEN says that the segment's bounds are multiples of 8, so that a vector is inside or outside
    as a whole. Otherwise only tiles at an edge pay for a mask on every element. Lanes may begin at
    different times t, from `earliest` to `latest`.
    """
    rows = ()
    for vector in tl.static_range(LO // 8, (HI + 7) // 8):
        index = tl.arange(0, N * 8)[None, :]
        begin = tile.begin + vector * 8 + index // 8 * ROWS  # of the vector
        time = begin + index % 8
        where = ptr + tile.offset * stride + time * unit
        if EVEN:
            x = tl.load(
                where,
                mask=tile.channel_mask & (begin >= tile.read_begin) & (begin < tile.read_end),
                other=0.0,
            )
        elif (tile.earliest + vector * 8 >= tile.read_begin) & (
            tile.latest + vector * 8 + N * ROWS <= tile.read_end
        ):
            x = tl.load(where, mask=tile.channel_mask, other=0.0)
        else:
            x = tl.load(
                where,
                mask=tile.channel_mask & (time >= tile.read_begin) & (time < tile.read_end),
                other=0.0,
            )
        rows = rows + vector_rows(x, BLOCK_D, N)
    return rows[LO - LO // 8 * 8 : LO - LO // 8 * 8 + HI - LO]


@triton.jit
def store_steps(
    ptr, tile, rows, stride, unit, EVEN: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr
):
    """Write the rows of every block that lie before `write_end`."""
    for vector in tl.static_range(len(rows) // 8):
        x = rows_vector(rows, vector * 8, BLOCK_D, N, ptr.dtype.element_ty)
        index = tl.arange(0, N * 8)[None, :]
        begin = tile.begin + vector * 8 + index // 8 * len(rows)
        time = begin + index % 8
        where = ptr + tile.offset * stride + time * unit
        if EVEN:
            tl.store(where, x, mask=tile.channel_mask & (begin < tile.write_end))
        elif tile.latest + vector * 8 + N * len(rows) <= tile.write_end:
            tl.store(where, x, mask=tile.channel_mask)
        else:
            tl.store(where, x, mask=tile.channel_mask & (time < tile.write_end))
