"""Several documents in one row: kernels read and write it as if they lay apart.

Between the documents of a row stand as many steps of zeros as filters reach back by, and perhaps
more. In such a row no document reaches another, so kernels of one sequence compute it. It is
nowhere in memory: a vector of eight of its steps is where `sources` says, at a multiple of 8 in
the row that there is, so that accesses are as wide as they are without documents. The first and
the last vector of a document may hold steps of its neighbours, which are read as zero and not
written.

`sources` holds a number for each vector, 0 where it holds no step: that of the vector in the row,
times 512; 256 if a document begins in it; and a bit for each step that it has. `ended` is how many
there are up to the last one with a step: behind it are those of empty documents, and kernels end.
`begun` says in which vectors documents begin, of those in which one may, a bit each.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from templates.parts.channels_first import rows_vector, vector_rows


class Tile(NamedTuple):
    """Channels x time steps that a program computes at once, and what of them there is.

    Attributes:
        offset: of every row from the program's first channel.
        channel_mask: whether a row is a channel of the program.
        begin: the step at which every row begins, from `earliest` to `latest`.
        read_begin, read_end: activations are read within, and zero elsewhere.
        write_end: results are written before.
        sources: where vectors are, from the program's first step on.
    """

    offset: object
    channel_mask: object
    begin: object
    earliest: object
    latest: object
    read_begin: object
    read_end: object
    write_end: object
    sources: object


@triton.jit(do_not_specialize=["documents", "rounds", "steps", "vectors"])
def find_sources(
    cu_seqlens_ptr,  # [documents + 1]: 0, and where each document ends
    sources_ptr,  # [vectors] int32
    ended_ptr,  # [1] int32
    begun_ptr,  # [vectors / 8 ALIGN] uint8
    documents, rounds, steps, vectors,
    SPACE: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where the vectors of a row of so many steps are once its documents lie apart. One begins
    SPACE vectors later for each before it, and then at the next multiple of ALIGN vectors; in
    which of these documents begin.

    What is behind the last border is one more document. Whatever the borders are, no vector is
    beyond the row.
    """
    vector = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    low = tl.zeros((BLOCK,), tl.int32)  # the last document that does not begin behind the vector
    high = low + documents
    for _ in range(rounds):
        middle = (low + high + 1) // 2
        border = tl.minimum(tl.load(cu_seqlens_ptr + middle), steps).to(tl.int32)
        behind = tl.cdiv(border // 8 + middle * SPACE, ALIGN) * ALIGN > vector
        low = tl.where(behind, low, middle)
        high = tl.where(behind, middle - 1, high)
    begin = tl.minimum(tl.load(cu_seqlens_ptr + low), steps).to(tl.int32)
    begin = tl.where(low > 0, begin, 0)
    inner = low < documents
    end = tl.minimum(tl.load(cu_seqlens_ptr + low + 1, mask=inner, other=0), steps)
    end = tl.where(inner, end.to(tl.int32), steps)
    first = tl.cdiv(begin // 8 + low * SPACE, ALIGN) * ALIGN
    source = begin // 8 + (vector - first)
    step = source[:, None] * 8 + tl.arange(0, 8)[None, :]
    own = (step >= tl.maximum(begin, 0)[:, None]) & (step < end[:, None])
    bits = tl.sum(own.to(tl.int32) << tl.arange(0, 8)[None, :], 1)
    begun = ((bits > 0) & (vector == first)).to(tl.int32)
    found = tl.where(bits > 0, source * 512 + begun * 256 + bits, 0)
    tl.store(sources_ptr + vector, found, mask=vector < vectors)
    last = (source == (steps - 1) // 8) & ((bits >> ((steps - 1) % 8)) & 1 > 0)
    tl.store(ended_ptr + vector * 0, vector + 1, mask=last & (vector < vectors))
    BYTES: tl.constexpr = BLOCK // (8 * ALIGN)
    eights = tl.sum(tl.reshape(begun, (BYTES, 8, ALIGN)), 2) << tl.arange(0, 8)[None, :]
    byte = tl.program_id(0) * BYTES + tl.arange(0, BYTES)
    there = byte < tl.cdiv(vectors, 8 * ALIGN)
    tl.store(begun_ptr + byte, tl.sum(eights, 1).to(tl.uint8), mask=there)


@triton.jit
def used_steps(ended_ptr, end):
    """Steps of the row with its documents apart that kernels have to walk along, of `end`."""
    return tl.minimum(tl.maximum(tl.load(ended_ptr), 0) * 8, end)


@triton.jit
def vector_sources(tile, shift, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr):
    """Of the vectors that begin `shift` steps behind the first of each block of ROWS, lanes
    [BLOCK_D * N]: the step at which they begin, and its source, 0 outside [read_begin, read_end).
    """
    first = tile.begin + shift + tl.arange(0, N)[None, :] * ROWS + tl.zeros((BLOCK_D, 1), tl.int32)
    first = tl.reshape(first, (BLOCK_D * N,))
    there = (first >= tile.read_begin) & (first < tile.read_end)
    return first, tl.load(tile.sources + first // 8, mask=there, other=0)


@triton.jit
def vector_places(
    tile, stride, unit, source, EVEN: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr
):
    """How far behind the program's first element vectors begin, lanes [BLOCK_D * N], the row's
    first where there is none; and whether lanes are channels.
    """
    lane = tl.reshape(tile.offset * stride + tl.zeros((BLOCK_D, N), tl.int32), (BLOCK_D * N,))
    offset = lane + (source >> 9) * 8 * unit
    if EVEN:  # of which the compiler loses sight in a reshape
        offset = tl.multiple_of(offset, 8)
    member = tile.channel_mask & (tl.zeros((BLOCK_D, N), tl.int32) == 0)
    return offset, tl.reshape(member, (BLOCK_D * N,))


@triton.jit
def kept_steps(source):
    """Whether vectors have each of their steps, [lanes, 8]."""
    return ((source[:, None] >> tl.arange(0, 8)[None, :]) & 1) > 0


@triton.jit
def load_words(ptr, offset, member, source, FIRST: tl.constexpr, EVICT: tl.constexpr):
    """Words of two steps from FIRST on of vectors of four, [lanes, 4 - FIRST]; zero where no step
    is. A word is masked at once, before it is two numbers.
    """
    words = ptr.to(tl.pointer_type(tl.int32), bitcast=True) + tl.multiple_of(offset // 2, 4)
    number = (FIRST + tl.arange(0, 4 - FIRST))[None, :]
    x = tl.load(words[:, None] + number, mask=member[:, None], other=0, eviction_policy=EVICT)
    pair = (source % 256)[:, None] >> (2 * number)
    return x & ((pair * 0x8001 & 0x10001) * 0xFFFF)


@triton.jit
def both_steps(words, dtype: tl.constexpr):
    """Words as float32: first steps, and second ones."""
    if dtype == tl.bfloat16:
        first = (words << 16).to(tl.float32, bitcast=True)
        return first, (words & -65536).to(tl.float32, bitcast=True)
    else:
        first = words.to(tl.int16).to(dtype, bitcast=True)
        second = (words >> 16).to(tl.int16).to(dtype, bitcast=True)
        return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def load_steps(
    ptr, tile, stride, unit,
    LO: tl.constexpr, HI: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr,
    EVICT_LAST: tl.constexpr = 0,
):  # fmt: skip
    """Rows LO .. HI - 1 from the first step of each block of ROWS; zero where no document is.

    EVEN says that all vectors of the row are within it as a whole, and are where 16 bytes begin.
    EVICT_LAST asks the caches to evict last what is read.
    """
    EVICT: tl.constexpr = "evict_last" if EVICT_LAST else ""
    dtype: tl.constexpr = ptr.dtype.element_ty
    rows = ()
    for vector in tl.static_range(LO // 8, (HI + 7) // 8):
        _, source = vector_sources(tile, vector * 8, ROWS, BLOCK_D, N)
        offset, member = vector_places(tile, stride, unit, source, EVEN, BLOCK_D, N)
        if EVEN and unit == 1 and dtype.primitive_bitwidth == 16:
            words = load_words(ptr, offset, member, source, 0, EVICT)
            even, odd = tl.split(tl.reshape(words, (BLOCK_D, N * 2, 2)))
            w0, w2 = tl.split(tl.reshape(even, (BLOCK_D, N, 2)))
            w1, w3 = tl.split(tl.reshape(odd, (BLOCK_D, N, 2)))
            rows = rows + both_steps(w0, dtype) + both_steps(w1, dtype)
            rows = rows + both_steps(w2, dtype) + both_steps(w3, dtype)
        else:
            where = (ptr + offset)[:, None] + tl.arange(0, 8)[None, :] * unit
            kept = kept_steps(source)
            mask = (member & (source > 0))[:, None]
            if not EVEN:
                mask = mask & kept
            x = tl.load(where, mask=mask, other=0.0, eviction_policy=EVICT)
            x = tl.where(kept, x, 0.0)
            rows = rows + vector_rows(tl.reshape(x, (BLOCK_D, N * 8)), BLOCK_D, N)
    return rows[LO - LO // 8 * 8 : LO - LO // 8 * 8 + HI - LO]


@triton.jit
def store_steps(
    ptr, tile, rows, stride, unit, EVEN: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr
):
    """Write the rows of every block that lie before `write_end`, where a document is."""
    for vector in tl.static_range(len(rows) // 8):
        x = rows_vector(rows, vector * 8, BLOCK_D, N, ptr.dtype.element_ty)
        x = tl.reshape(x, (BLOCK_D * N, 8))
        first, source = vector_sources(tile, vector * 8, len(rows), BLOCK_D, N)
        source = tl.where(first < tile.write_end, source, 0)
        offset, member = vector_places(tile, stride, unit, source, EVEN, BLOCK_D, N)
        where = (ptr + offset)[:, None] + tl.arange(0, 8)[None, :] * unit
        if EVEN:  # nearly all vectors are written as a whole
            tl.store(where, x, mask=(member & (source % 256 == 255))[:, None])
            ragged = member & (source % 256 < 255)
            tl.store(where, x, mask=ragged[:, None] & kept_steps(source))
        else:
            tl.store(where, x, mask=member[:, None] & kept_steps(source))


@triton.jit
def load_lagged(
    ptr, tile, row, unit, LAG: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`load_steps` from LAG <= 4 rows before the first: these by a load of 4 or 8 bytes, where
    load_steps would load the whole vector that they end.
    """
    dtype: tl.constexpr = ptr.dtype.element_ty
    if EVEN and unit == 1 and dtype.primitive_bitwidth == 16:
        WORDS: tl.constexpr = (LAG + 1) // 2
        _, source = vector_sources(tile, -8, ROWS, M, N)
        offset, member = vector_places(tile, row, unit, source, EVEN, M, N)
        words = load_words(ptr, offset, member, source, 4 - WORDS, "")
        if WORDS == 1:
            lagged = both_steps(tl.reshape(words, (M, N)), dtype)
        else:
            w2, w3 = tl.split(tl.reshape(words, (M, N, 2)))
            lagged = both_steps(w2, dtype) + both_steps(w3, dtype)
        own = load_steps(ptr, tile, row, unit, LO=0, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=N)
        return lagged[2 * WORDS - LAG :] + own
    else:
        return load_steps(ptr, tile, row, unit, -LAG, ROWS, EVEN, ROWS, M, N)
