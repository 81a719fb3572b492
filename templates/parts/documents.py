"""Several documents in one row: what keeps a step from what is not of its own document.

`position` holds, for each step, how many steps of its document are before it, at most 32767, in
int16; and -1 behind the last step. A product of steps that are a lag apart counts where the later
one's position is at least that lag.

Tiles of blocks that are multiplied as matrices know of each block where documents begin in it
(`Borders`). The product of a block as a whole is right up to the first of these borders, and from
each of them on another one is of what follows it alone. So a block without a border takes one
product, as it does in a row of one document.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from templates.parts.borders import last_border
from templates.parts.channels_first import vector_phases


@triton.jit
def load_positions(
    ptr, tile, LO: tl.constexpr, HI: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """Positions of rows LO .. HI - 1 from the first step of each block of ROWS, [LANES, N]; -1
    outside [read_begin, read_end), of which the first is a multiple of 8.
    """
    rows = ()
    for vector in tl.static_range(LO // 8, (HI + 7) // 8):
        index = tl.arange(0, N * 8)[None, :]
        begin = tile.begin + vector * 8 + index // 8 * ROWS  # of the vector
        there = (begin >= tile.read_begin) & (begin < tile.read_end)
        position = tl.load(ptr + begin + index % 8, mask=there, other=-1)
        rows = rows + vector_phases(position, LANES, N)
    out = ()
    for r in tl.static_range(LO - LO // 8 * 8, LO - LO // 8 * 8 + HI - LO):
        out = out + (rows[r].to(tl.int32),)
    return out


@triton.jit
def fir_within(x, ptr, tile, taps, LENGTH: tl.constexpr, LANES: tl.constexpr, N: tl.constexpr):
    """`fir` of documents."""
    position = load_positions(ptr, tile, LO=0, HI=8, ROWS=8, LANES=LANES, N=N)
    y = ()
    for r in tl.static_range(LENGTH - 1, len(x)):
        total = taps[0] * x[r]
        for lag in tl.static_range(1, LENGTH):
            own = tl.where(position[r - LENGTH + 1] >= lag, x[r - lag], 0.0)
            if LENGTH == 2:
                total = tl.fma(taps[lag], own, total)
            else:
                total += taps[lag] * own
        y = y + (total,)
    return y


@triton.jit
def fir_adjoint_within(
    x, ptr, tile, taps, LENGTH: tl.constexpr, LANES: tl.constexpr, N: tl.constexpr
):
    """`fir_adjoint` of documents."""
    position = load_positions(ptr, tile, LO=0, HI=7 + LENGTH, ROWS=8, LANES=LANES, N=N)
    y = ()
    for r in tl.static_range(len(x) - LENGTH + 1):
        total = taps[0] * x[r]
        for lag in tl.static_range(1, LENGTH):
            total += taps[lag] * tl.where(position[r + lag] >= lag, x[r + lag], 0.0)
        y = y + (total,)
    return y


# ---- blocks that are multiplied as matrices -----------------------------------------------------


class Borders(NamedTuple):
    """Where documents begin in the blocks of a tile, as columns of a block, [M, 1] each.

    Attributes:
        ptr: of the positions.
        begin: the first step of each block.
        first: where the document of its first step begins, at most 0.
        head: the first border beyond the first column; as many as there are columns if none is.
        tail: where the document of its last step begins.
        last: the greatest `tail` of the tile.
    """

    ptr: object
    begin: object
    first: object
    head: object
    tail: object
    last: object


@triton.jit
def begin_of(ptr, begin, column, there):
    """The column at which the document of a column begins: far to the left where nothing is."""
    return column - tl.load(ptr + begin + column, mask=there, other=32767).to(tl.int32)


@triton.jit
def is_near(
    ptr, begin, read_begin, read_end,
    BLOCK_T: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
):  # fmt: skip
    """Whether a document begins in blocks of steps from `begin` on, [M, 1], in the LEFT - 1 steps
    before one, or in the RIGHT steps behind.
    """
    there = (begin >= read_begin) & (begin < read_end)
    last = tl.minimum(read_end - begin, BLOCK_T + RIGHT) - 1
    return tl.max(begin_of(ptr, begin, last, there)) > -LEFT


@triton.jit
def borders_of(ptr, begin, read_begin, read_end, BLOCK_T: tl.constexpr):
    """The borders of blocks that begin at steps `begin`, [M, 1]."""
    there = (begin >= read_begin) & (begin < read_end)
    first = begin_of(ptr, begin, begin * 0, there)
    tail = begin_of(ptr, begin, tl.minimum(read_end - begin, BLOCK_T) - 1, there)
    head = tl.where(tail > 0, tail, BLOCK_T)
    last = tl.max(tail)
    going = last
    while going > 0:
        earlier = begin_of(ptr, begin, head - 1, head < BLOCK_T)
        head = tl.where(earlier > 0, earlier, head)
        going = tl.max(earlier)
    return Borders(ptr, begin, first, head, tail, last)


@triton.jit
def border_before(borders, border):
    """The border before one that is within its block; not positive where there is none."""
    return begin_of(borders.ptr, borders.begin, border - 1, border > 0)


@triton.jit
def columns_from(border, x, column):
    """x [M, BLOCK_T] from a column on, and zero before."""
    return tl.where(column >= border, x, 0.0)


@triton.jit
def columns_before(border, x, column):
    """x [M, BLOCK_T] before a column, and zero from there on."""
    return tl.where(column < border, x, 0.0)


@triton.jit(do_not_specialize=["documents", "rounds", "steps"])
def find_positions(
    cu_seqlens_ptr,  # [documents + 1]: 0, and where each document ends
    position_ptr,  # [steps, up to a multiple of 8] int16
    documents, rounds, steps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """How many steps of its document are before each step, at most 32767; -1 behind the last."""
    step = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    border = last_border(cu_seqlens_ptr, step, documents, rounds, BLOCK)
    position = step - tl.load(cu_seqlens_ptr + border).to(tl.int32)
    position = tl.minimum(tl.maximum(position, 0), 32767)
    position = tl.where(step < steps, position, -1)
    tl.store(position_ptr + step, position.to(tl.int16), mask=step < (steps + 7) // 8 * 8)
