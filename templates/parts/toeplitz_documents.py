"""Blocks of time of several documents as products with Toeplitz matrices (documents.py)."""

import triton
import triton.language as tl

from templates.parts.channels_first import vector_rows
from templates.parts.documents import border_before, columns_before, columns_from
from templates.parts.toeplitz import toeplitz, toeplitz_adjoint, toeplitz_gradient


@triton.jit
def own_product(x, matrices, COUNT: tl.constexpr, PRECISION: tl.constexpr):
    """The part of `toeplitz` that is of the block itself."""
    y = tl.dot(x, matrices[0], input_precision=PRECISION)
    if len(matrices) > COUNT:
        y = tl.dot(x, matrices[COUNT], y, input_precision=PRECISION)
    return y


@triton.jit
def own_adjoint(x, matrices, COUNT: tl.constexpr, PRECISION: tl.constexpr):
    """The part of `toeplitz_adjoint` that is of the block itself."""
    y = tl.dot(x, tl.trans(matrices[0]), input_precision=PRECISION)
    if len(matrices) > COUNT:
        y = tl.dot(x, tl.trans(matrices[COUNT]), y, input_precision=PRECISION)
    return y


@triton.jit
def toeplitz_within(
    blocks, matrices, borders, COUNT: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`toeplitz` of documents."""
    if borders.near:
        column = tl.arange(0, N * 8)[None, :]
        y = own_product(blocks[0], matrices, COUNT, PRECISION)
        for s in tl.static_range(1, COUNT):
            x = columns_from(borders.first, blocks[s], column - s * (N * 8))
            y = tl.dot(x, matrices[s], y, input_precision=PRECISION)
            if len(matrices) > COUNT:
                y = tl.dot(x, matrices[COUNT + s], y, input_precision=PRECISION)
        border, stop, going = borders.tail, borders.tail * 0 + N * 8, borders.last
        while going > 0:
            own = columns_from(border, blocks[0], column)
            begun = (border > 0) & (column >= border) & (column < stop)
            y = tl.where(begun, own_product(own, matrices, COUNT, PRECISION), y)
            stop = tl.where(border > 0, border, stop)
            border = border_before(borders, border)
            going = tl.max(border)
        rows = vector_rows(y, M, N)
    else:
        rows = toeplitz(blocks, matrices, COUNT, M, N, PRECISION)
    return rows


@triton.jit
def toeplitz_adjoint_within(
    blocks, matrices, borders, until, COUNT: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`toeplitz_adjoint` of documents, of which that of a block's last step ends before column
    `until`, beyond the block.
    """
    if borders.near | (tl.min(until) < COUNT * (N * 8)):
        column = tl.arange(0, N * 8)[None, :]
        y = own_adjoint(blocks[0], matrices, COUNT, PRECISION)
        for s in tl.static_range(1, COUNT):
            x = columns_before(until, blocks[s], column + s * (N * 8))
            y = tl.dot(x, tl.trans(matrices[s]), y, input_precision=PRECISION)
            if len(matrices) > COUNT:
                y = tl.dot(x, tl.trans(matrices[COUNT + s]), y, input_precision=PRECISION)
        border, going = borders.tail, borders.last
        while going > 0:
            own = columns_before(border, blocks[0], column)
            y = tl.where(column < border, own_adjoint(own, matrices, COUNT, PRECISION), y)
            border = border_before(borders, border)
            going = tl.max(border)
        rows = vector_rows(y, M, N)
    else:
        rows = toeplitz_adjoint(blocks, matrices, COUNT, M, N, PRECISION)
    return rows


@triton.jit
def toeplitz_gradient_within(
    total, grad, blocks, borders, COUNT: tl.constexpr,
    M: tl.constexpr, BLOCK_T: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`toeplitz_gradient` of documents."""
    if borders.near:
        column = tl.arange(0, BLOCK_T)[None, :]
        known = (blocks[0],)
        for s in tl.static_range(1, COUNT):
            known = known + (columns_from(borders.first, blocks[s], column - s * BLOCK_T),)
        before = columns_before(borders.head, grad[0], column)
        total = toeplitz_gradient(total, (before,), known, COUNT, M, BLOCK_T, PRECISION)
        own, others = total[0], total[1:]
        border, stop, going = borders.tail, borders.tail * 0 + BLOCK_T, borders.last
        while going > 0:
            x = columns_from(border, blocks[0], column)
            begun = (border > 0) & (column >= border) & (column < stop)
            part = tl.where(begun, grad[0], 0.0)
            columns = tl.reshape(tl.permute(tl.join(x, x * 0.0), (1, 2, 0)), (2 * BLOCK_T, M))
            own = tl.dot(columns, part, own, input_precision=PRECISION)
            stop = tl.where(border > 0, border, stop)
            border = border_before(borders, border)
            going = tl.max(border)
        total = (own,) + others
    else:
        total = toeplitz_gradient(total, grad, blocks, COUNT, M, BLOCK_T, PRECISION)
    return total


@triton.jit
def far_reach(M: tl.constexpr):
    """What `reach_before` is given of tiles that nothing is known after."""
    return tl.full((M, 1), 1 << 29, tl.int32)


@triton.jit
def reach_before(until, borders, BLOCK_T: tl.constexpr):
    """The column before which the document of a block's last step ends, beyond the block: of the
    blocks before these, from that of these.
    """
    end = tl.where(borders.head < BLOCK_T, borders.head, until)
    return tl.where(borders.first == 0, 0, end) + BLOCK_T
