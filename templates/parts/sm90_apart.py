"""Documents that lie apart (apart.py) in streams of sm90.py: places of vectors are looked up, and
what lies in vectors beside a document's steps is cut away as it is read.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper

from templates.parts.sm90 import (
    copy_layout,
    edge_layout,
    lane_of,
    quarter_layout,
    row_layout,
    rows_quarter,
    with_context,
    word_layout,
    word_rows,
)


@gluon.constexpr_function
def vectors_of(LAYOUT):
    """A layout of rows of vectors, split into these: [64, vectors, elements of one]."""
    if copy_layout() == LAYOUT:
        return gl.BlockedLayout([1, 1, 4], [4, 8, 1], [8, 1, 1], [2, 1, 0])
    warps = [[8, 0, 0], [16, 0, 0], [32, 0, 0]]
    if edge_layout() == LAYOUT:
        lanes = [[1, 0, 0], [2, 0, 0], [4, 0, 0], [0, 0, 0], [0, 0, 0]]
        return gl.DistributedLinearLayout([[0, 0, 1], [0, 0, 2]], lanes, warps, [], [64, 1, 4])
    lanes = [[0, 1, 0], [0, 2, 0], [1, 0, 0], [2, 0, 0], [4, 0, 0]]
    elements = [[0, 0, 1], [0, 0, 2], [0, 0, 4]]
    return gl.DistributedLinearLayout(elements, lanes, warps, [], [64, 4, 8])


@gluon.jit
def places(
    LAYOUT: gl.constexpr, N: gl.constexpr, UNIT: gl.constexpr, section, first,
    BLOCK_D: gl.constexpr, sources,
):  # fmt: skip
    """Of vectors of elements of UNIT steps, [64, vectors]: the offset of a row's first element;
    the step at which each begins, counted from `first`, very late for rows that are none of the
    `members` channels of the section; and `sources`.
    """
    members, row, tiles = section
    VECTOR: gl.constexpr = 8 // UNIT
    VECTORS: gl.constexpr = vectors_of(LAYOUT)
    own: gl.constexpr = gl.SliceLayout(2, VECTORS)
    r = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, own)), 1)
    v = gl.expand_dims(gl.arange(0, N // VECTOR, layout=gl.SliceLayout(0, own)), 0)
    offset = gl.minimum(r % BLOCK_D, members - 1) * (row * VECTOR) + v * 0
    begin = r // BLOCK_D * (tiles * 64) + v * 8 - first
    return offset, gl.where(r % BLOCK_D < members, begin, 2**30), sources


@gluon.jit
def sources_at(sources, step, length):
    """Of vectors that begin at these steps; 0 outside 0 .. length - 1."""
    there = step.to(gl.uint32) < length.to(gl.uint32)
    return gl.load(sources + step // 8, mask=there, other=0)


@gluon.jit
def words_at(where, shift, length, LAYOUT: gl.constexpr):
    """Where the words of vectors are; where there is none, some other's."""
    offset, begin, sources = where
    COUNT: gl.constexpr = 4 * begin.shape[1]
    offset = offset + (sources_at(sources, begin + shift, length) >> 9) * 4
    whole = gl.expand_dims(offset, 2) + gl.zeros((64, COUNT // 4, 4), gl.int32, vectors_of(LAYOUT))
    whole = gl.convert_layout(gl.reshape(whole, (64, COUNT)), LAYOUT, assert_trivial=True)
    n = gl.expand_dims(gl.arange(0, COUNT, layout=gl.SliceLayout(0, LAYOUT)), 0)
    return gl.max_contiguous(gl.multiple_of(whole + n % 4, [1, 4]), [1, 4])


@gluon.jit
def located(words, edges, t, halfway, length, EDGES: gl.constexpr):
    """Where the words of the block at t are, of both halves; and of the vectors before it."""
    found = ()
    for half in gl.static_range(2):
        found = found + (words_at(words, t + half * halfway, length, copy_layout()),)
    if EDGES:
        for half in gl.static_range(2):
            found = found + (words_at(edges, t - 8 + half * halfway, length, edge_layout()),)
    return found


@gluon.jit
def fetch(slots, ptr, places):
    """Begin to copy a block of an input into its slots."""
    for half in gl.static_range(2):
        hopper.async_copy.async_copy_global_to_shared(slots[half], ptr + places[half])
        if len(slots) == 4:
            edge = ptr + places[2 + half]
            hopper.async_copy.async_copy_global_to_shared(slots[2 + half], edge)


@gluon.jit
def lane_places(members, tiles, first, BLOCK_D: gl.constexpr, sources):
    """The step at which the vector of each lane begins, [64, 4], counted from `first`, very late
    for rows of no channel; that of the first lane; and `sources`.
    """
    layout: gl.constexpr = row_layout()
    r = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, layout)), 1)
    lane = lane_of()
    begin = r // BLOCK_D * (tiles * 64) - first
    begin = gl.where(r % BLOCK_D < members, begin + lane * 0, 2**30)
    return begin + lane * 8, begin, sources


@gluon.jit
def kept_word(source, word):
    """A mask of the steps that a vector has in one of its words."""
    return (((source % 256) >> (2 * word)) * 0x8001 & 0x10001) * 0xFFFF


@gluon.jit
def read_rows(
    slots, part: gl.constexpr, half: gl.constexpr, lanes, shift, length, LAG: gl.constexpr
):
    """The rows of a quarter of an input, which begins at step `shift`, and the LAG rows before
    them; zero where no document is.
    """
    begin, first, sources = lanes
    source = sources_at(sources, begin + shift, length)
    words = word_rows(slots[half].slice(16 * part, 16, dim=1).load(word_layout()))
    own = ()
    for w in gl.static_range(4):
        own = own + (words[w] & kept_word(source, w),)
    before = own[3]  # not asked for
    if LAG > 0:
        if part == 1:
            before = slots[half].slice(12, 4, dim=1).load(row_layout())
        else:
            before = slots[2 + half].load(row_layout())
        before = before & kept_word(sources_at(sources, first + shift - 8, length), lane_of())
    return with_context(own, before, LAG)


@gluon.jit
def any_ragged(lanes, t, halfway, length):
    """Whether a vector of the tile at t has some of its steps alone; nearly no vector has."""
    begin, _, sources = lanes
    found = 0
    for part in gl.static_range(2):
        for half in gl.static_range(2):
            source = sources_at(sources, begin + (t + 32 * part + half * halfway), length)
            found += ((source > 0) & (source % 256 < 255)).to(gl.int32)
    return gl.max(gl.max(found, axis=1), axis=0) > 0


@gluon.jit
def store_quarter(ptr, where, shift, rows, end, ragged):
    """Write a quarter as bfloat16, up to `write_end`, where a document is; `ragged` says whether
    that may be a part of a vector.
    """
    VECTORS: gl.constexpr = vectors_of(quarter_layout())
    offset, begin, sources = where
    source = sources_at(sources, begin + shift, end)
    each = gl.arange(0, 8, layout=gl.SliceLayout(0, gl.SliceLayout(0, VECTORS)))
    each = gl.expand_dims(gl.expand_dims(each, 0), 0)
    to = gl.expand_dims(ptr + (offset + (source >> 9) * 8), 2) + each
    x = gl.convert_layout(gl.reshape(rows_quarter(rows), (64, 4, 8)), VECTORS, assert_trivial=True)
    gl.store(to, x, mask=gl.expand_dims(source % 256 == 255, 2))
    if ragged:
        bits = gl.expand_dims(source % 256, 2)
        gl.store(to, x, mask=(((bits >> each) & 1) > 0) & (bits < 255))
