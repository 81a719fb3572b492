"""Convolution of blocks of time by matrix products: what streams with long filters call.

A block of a tile is a matrix [M, BLOCK_T]: a row for each channel and segment, a column for each
step. Blocks that are kept from tile to tile are tuples of such matrices. OPERAND is the type that
products read: bfloat16 for tensors of bfloat16; otherwise float32, which for float16 is rounded
to TF32 (the same 11 bits, without the narrow range), and for float32 is multiplied as it is.
"""

import triton
import triton.language as tl

from templates.parts.channels_first import load_steps, rows_vector, vector_rows
from templates.parts.trained import decay_at


@triton.jit
def load_toeplitz(
    ptr, group, rates, LENGTH: tl.constexpr, LAG_LAST: tl.constexpr,
    BLOCK_T: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """T_s[j, i] = taps[s BLOCK_T + i - j], zero where there is no such tap: matrices
    [BLOCK_T, BLOCK_T] that take a block of inputs, and those before it, to a block of outputs.
    With two TERMS then come as many of what rounding leaves of taps. `rates` holds that of the
    decay of taps, if they decay.
    """
    j = tl.arange(0, BLOCK_T)[:, None]
    i = tl.arange(0, BLOCK_T)[None, :]
    matrices, low = (), ()
    for s in tl.static_range((LENGTH - 1 + BLOCK_T - 1) // BLOCK_T + 1):
        lag = s * BLOCK_T + i - j
        tap = LENGTH - 1 - lag if LAG_LAST else lag
        where = ptr + group * LENGTH + tap
        value = tl.load(where, mask=(lag >= 0) & (lag < LENGTH), other=0.0)
        if len(rates) > 0:
            value = value.to(tl.float32) * decay_at(tl.maximum(lag, 0), rates[0])
        if TERMS == 1:
            matrices = matrices + (rounded(value.to(OPERAND), PRECISION),)
        else:
            both = terms(value.to(tl.float32), OPERAND, PRECISION)
            matrices = matrices + both[:1]
            low = low + both[1:]
    return matrices + low


@triton.jit
def rounded(x, PRECISION: tl.constexpr):
    """x as a product reads it: float32 is rounded to TF32, where the hardware would cut it off."""
    if PRECISION == "tf32":
        bits = x.to(tl.int32, bitcast=True)
        return ((bits + 0x1000) & ~0x1FFF).to(tl.float32, bitcast=True)
    else:
        return x


@triton.jit
def terms(x, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """x as a sum of operands: two terms, or x itself where products read float32 as it is."""
    high = rounded(x.to(OPERAND), PRECISION)
    if tl.float32 == OPERAND and PRECISION == "ieee":
        return (high,)
    else:
        return high, rounded((x - high.to(tl.float32)).to(OPERAND), PRECISION)


@triton.jit
def zero_blocks(
    COUNT: tl.constexpr, M: tl.constexpr, BLOCK_T: tl.constexpr, OPERAND: tl.constexpr
):
    """COUNT blocks [M, BLOCK_T] of zeros."""
    blocks = ()
    for _ in tl.static_range(COUNT):
        blocks = blocks + (tl.zeros((M, BLOCK_T), OPERAND),)
    return blocks


@triton.jit
def carry(blocks, going):
    """The same blocks, as values of this tile.

    The compiler prefetches loads only in loops that hand nothing on over two tiles unchanged;
    `going` is true, which the compiler cannot know.
    """
    out = ()
    for i in tl.static_range(len(blocks)):
        out = out + (tl.where(going, blocks[i], tl.zeros_like(blocks[i])),)
    return out


@triton.jit
def remember(
    past, rows, going,
    M: tl.constexpr, N: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The block of these rows and those before it; and what the next tile has before it."""
    block = rounded(rows_vector(rows, 0, M, N, OPERAND), PRECISION)
    blocks = (block,) + past
    if len(past) == 0:
        return blocks, past
    else:
        return blocks, (block,) + carry(past[0 : len(past) - 1], going)


@triton.jit
def look_ahead(
    coming, rows, going,
    M: tl.constexpr, N: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The tile's block and those of the steps before it, of which these rows are the earliest;
    and what the next tile has already.
    """
    block = rounded(rows_vector(rows, 0, M, N, OPERAND), PRECISION)
    blocks = coming + (block,)
    if len(coming) == 0:
        return blocks, coming
    else:
        return blocks, carry(coming[1 : len(coming)], going) + (block,)


@triton.jit
def toeplitz(
    blocks, matrices, COUNT: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of y[t] = sum_j taps[j] x[t - j], from the COUNT blocks of x at t and before."""
    y = tl.dot(blocks[0], matrices[0], input_precision=PRECISION)
    for s in tl.static_range(1, COUNT):
        y = tl.dot(blocks[s], matrices[s], y, input_precision=PRECISION)
    for s in tl.static_range(len(matrices) - COUNT):
        y = tl.dot(blocks[s], matrices[COUNT + s], y, input_precision=PRECISION)
    return vector_rows(y, M, N)


@triton.jit
def toeplitz_adjoint(
    blocks, matrices, COUNT: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of y[t] = sum_j taps[j] x[t + j], from the COUNT blocks of x at t and after."""
    y = tl.dot(blocks[0], tl.trans(matrices[0]), input_precision=PRECISION)
    for s in tl.static_range(1, COUNT):
        y = tl.dot(blocks[s], tl.trans(matrices[s]), y, input_precision=PRECISION)
    for s in tl.static_range(len(matrices) - COUNT):
        y = tl.dot(blocks[s], tl.trans(matrices[COUNT + s]), y, input_precision=PRECISION)
    return vector_rows(y, M, N)


@triton.jit
def zero_toeplitz(LENGTH: tl.constexpr, BLOCK_T: tl.constexpr):
    """Accumulators of the gradients of two matrices each, the columns of both in turn.

    Products of 64 rows run on the tensor cores as a whole, those of fewer do not.
    """
    total = ()
    for _ in tl.static_range(0, (LENGTH - 1 + BLOCK_T - 1) // BLOCK_T + 1, 2):
        total = total + (tl.zeros((2 * BLOCK_T, BLOCK_T), tl.float32),)
    return total


@triton.jit
def toeplitz_gradient(
    total, grad, blocks, COUNT: tl.constexpr,
    M: tl.constexpr, BLOCK_T: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total[s][j, i] += sum over rows of blocks[s][j] grad[0][i], s < COUNT; two s to an
    accumulator.
    """
    out = ()
    for pair in tl.static_range(len(total)):
        if 2 * pair + 1 < COUNT:
            both = tl.join(blocks[2 * pair], blocks[2 * pair + 1])
        else:
            both = tl.join(blocks[2 * pair], tl.zeros_like(blocks[2 * pair]))
        columns = tl.reshape(tl.permute(both, (1, 2, 0)), (2 * BLOCK_T, M))
        out = out + (tl.dot(columns, grad[0], total[pair], input_precision=PRECISION),)
    return out


@triton.jit
def store_toeplitz(ptr, total, STRIDE: tl.constexpr, LENGTH: tl.constexpr, BLOCK_T: tl.constexpr):
    """Write the sums along diagonals, gradients of taps 0 .. LENGTH - 1 by lag, STRIDE apart."""
    j = tl.arange(0, BLOCK_T)[:, None]
    turn = tl.arange(0, BLOCK_T)[None, :]
    lag = tl.arange(0, BLOCK_T)
    before = tl.zeros((BLOCK_T,), tl.float32)
    for s in tl.static_range((LENGTH - 1 + BLOCK_T - 1) // BLOCK_T + 1):
        pair = tl.permute(tl.reshape(total[s // 2], (BLOCK_T, 2, BLOCK_T)), (0, 2, 1))
        even, odd = tl.split(pair)
        own = odd if s % 2 else even
        # Row j turned left by j: column c holds i = j + c, or, wrapped, that of earlier lags.
        turned = tl.gather(own, (j + turn) % BLOCK_T, 1)
        wrapped = j + turn >= BLOCK_T
        earlier = before + tl.sum(tl.where(wrapped, turned, 0.0), axis=0)
        before = tl.sum(tl.where(wrapped, 0.0, turned), axis=0)
        if s > 0:
            tap = (s - 1) * BLOCK_T + lag
            tl.store(ptr + tap * STRIDE, earlier, mask=tap < LENGTH)
    tap = (LENGTH - 1 + BLOCK_T - 1) // BLOCK_T * BLOCK_T + lag
    tl.store(ptr + tap * STRIDE, before, mask=tap < LENGTH)


@triton.jit
def context_rows(
    ptr, tile, row, unit, COUNT: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The COUNT steps before each segment's tile, for every lane of it: COUNT x [M, N]."""
    rows = load_steps(ptr, tile, row, unit, LO=-COUNT, HI=0, EVEN=EVEN, ROWS=ROWS, BLOCK_D=M, N=1)
    out = ()
    for r in tl.static_range(COUNT):
        out = out + (rows[r] + tl.zeros((M, N), tl.float32),)
    return out


@triton.jit
def prepend(rows, before, COUNT: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """The last COUNT rows of the lane before each lane, then its own; the first lane takes
    `before`. Also what the next tile takes there.
    """
    lane = tl.arange(0, N)[None, :] + tl.zeros((M, 1), tl.int32)
    context = ()
    last = ()
    for r in tl.static_range(COUNT):
        turned = tl.gather(rows[len(rows) - COUNT + r], (lane + (N - 1)) % N, 1)
        context = context + (tl.where(lane == 0, before[r], turned),)
        last = last + (turned,)
    return context + rows, last


@triton.jit
def zero_rows(COUNT: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """COUNT rows [M, N] of zeros."""
    rows = ()
    for _ in tl.static_range(COUNT):
        rows = rows + (tl.zeros((M, N), tl.float32),)
    return rows


@triton.jit
def extend(rows, after, COUNT: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Each lane's rows, then the first COUNT of the next lane; the last lane takes `after`.
    Also what the next tile, which is earlier, takes there.
    """
    lane = tl.arange(0, N)[None, :] + tl.zeros((M, 1), tl.int32)
    extended = rows
    first = ()
    for r in tl.static_range(COUNT):
        turned = tl.gather(rows[r], (lane + 1) % N, 1)
        extended = extended + (tl.where(lane == N - 1, after[r], turned),)
        first = first + (turned,)
    return extended, first
