"""Convolution with sums of exponentials: products within blocks of time, a state between them.

A tile is M blocks of BLOCK_T consecutive steps of one channel, a block a row: a matrix
[M, BLOCK_T]. The state of mode n before a block is s_n = sum over earlier x[t] of exp(a_n d), d
steps from x[t] to the last step before the block; a block adds its own end, sums of its steps,
and the states before all blocks of a tile follow from a scan over its rows.

In products a tile has its rows and columns in the order in which threads hold their sums, where
there is a warp for 16 rows and blocks have 32 steps (`to_products`): so a value goes from rows to
products and back without leaving its thread. States are scanned in the order of time.

The scan holds a tile's states as eight tensors [MODES, M / 8]: lane (n, g) is mode n, the p-th
tensor the p-th of eight consecutive blocks. So most of the scan stays within a thread.

Products read operands of type OPERAND (see toeplitz.py). States and exponentials are two terms of
it, high and low: modes may cancel almost wholly, and one rounded term would not.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from templates.parts.channels_first import rows_vector, vector_rows
from templates.parts.toeplitz import rounded, terms
from templates.parts.trained import log_pole


class Scan(NamedTuple):
    """What `scan_states` and `scan_adjoint` multiply states by.

    Attributes:
        group: of eight blocks, which one a lane is.
        block: the decay over a block, `doublings` over 8, 16, 32 and 64.
        entered, left: from the tile's edge to a lane's first block, and from its last.
        lost: over the tile.
    """

    group: object
    block: object
    doublings: object
    entered: object
    left: object
    lost: object


class Modes(NamedTuple):
    """All that a channel's tiles need of its modes.

    Attributes:
        poles: a, `residues` R, as load_poles gives them.
        within: T[j, i] = h[i - j], the convolution within a block, as TERMS operands.
        to_end: exp(a (BLOCK_T - 1 - j)), [BLOCK_T, MODES]: from a block to its own end.
        from_before: R exp(a (i + 1)), [MODES, BLOCK_T]: from the states before a block to its
            outputs.
        to_start: R exp(a j), `from_after`: exp(a (BLOCK_T - i)): these two of the adjoint, which
            walks backward in time. Its states weigh with R, so that they are gradients of states
            but for exp(a).
    """

    poles: object
    residues: object
    within: object
    to_end: object
    from_before: object
    to_start: object
    from_after: object
    scan: object


@triton.jit
def transposed(x):
    """Every term of x, transposed."""
    out = ()
    for i in tl.static_range(len(x)):
        out = out + (tl.trans(x[i]),)
    return out


@triton.jit
def settled(x):
    """x itself, by sums of one number each, which cost nothing.

    Triton 3.6 follows an operand of mma.sync back to its loads, and if it meets a `tl.join` there,
    it takes twice as many numbers side by side as the instruction does. Operands in shared memory
    are then read two bytes at a time instead of by ldmatrix. It does not look beyond a sum.
    """
    return tl.sum(tl.reshape(x, (x.shape[0], x.shape[1], 1)), 2)


@triton.jit
def settled_states(x):
    """Terms of states [MODES, M], settled: as [M, MODES] where gradients of modes are products by
    mma.sync, which then read what other products have in shared memory anyway.
    """
    turned = transposed(x) if x[0].shape[0] < 64 else x
    out = ()
    for i in tl.static_range(len(turned)):
        out = out + (settled(turned[i]),)
    return out


@triton.jit
def by_block(x, MODES: tl.constexpr):
    """What settled_states returns as [M, MODES]."""
    if MODES < 64:
        return x
    else:
        return transposed(x)


@triton.jit
def by_mode(x, MODES: tl.constexpr):
    """What settled_states returns as [MODES, M]."""
    if MODES < 64:
        return transposed(x)
    else:
        return x


@triton.jit
def product(a, b, total, TERMS: tl.constexpr, PRECISION: tl.constexpr):
    """total + a b, of TERMS terms of a and all of b: but for the product of two low ones."""
    total = tl.dot(a[0], b[0], total, input_precision=PRECISION)
    if len(b) > 1:
        total = tl.dot(a[0], b[1], total, input_precision=PRECISION)
    if TERMS > 1:
        total = tl.dot(a[1], b[0], total, input_precision=PRECISION)
    return total


@triton.jit
def step_of(column, M: tl.constexpr, BLOCK_T: tl.constexpr):
    """The step of a block that stands in a column of products, or the column of a step."""
    if M <= 64 and BLOCK_T == 32:
        return column // 2 % 4 * 8 + column // 8 * 2 + column % 2
    else:
        return column


@triton.jit
def swapped(x, M: tl.constexpr, BACK: tl.constexpr):
    """Columns of [MODES, M], which are blocks, from the order of time to that of products' rows,
    or BACK.
    """
    MODES: tl.constexpr = x.shape[0]
    W: tl.constexpr = M // 16  # warps, each with 16 rows
    if M <= 64:
        y = tl.reshape(x, (MODES, W, 2, 8)) if BACK else tl.reshape(x, (MODES, 2, W, 8))
        return tl.reshape(tl.permute(y, (0, 2, 1, 3)), (MODES, M))
    else:
        return x


@triton.jit
def to_products(x, M: tl.constexpr, N: tl.constexpr):
    """A tile [M, 8 N], a block of time a row, in the order of products."""
    W: tl.constexpr = M // 16
    if M > 64:
        return x
    elif N == 4:
        y = tl.permute(tl.reshape(x, (2, W, 8, 4, 4, 2)), (1, 0, 2, 4, 3, 5))
        return tl.reshape(y, (M, N * 8))
    else:
        return tl.reshape(tl.permute(tl.reshape(x, (2, W, 8, N * 8)), (1, 0, 2, 3)), (M, N * 8))


@triton.jit
def from_products(x, M: tl.constexpr, N: tl.constexpr):
    """The inverse of to_products."""
    W: tl.constexpr = M // 16
    if M > 64:
        return x
    elif N == 4:
        y = tl.permute(tl.reshape(x, (W, 2, 8, 4, 4, 2)), (1, 0, 2, 4, 3, 5))
        return tl.reshape(y, (M, N * 8))
    else:
        return tl.reshape(tl.permute(tl.reshape(x, (W, 2, 8, N * 8)), (1, 0, 2, 3)), (M, N * 8))


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0, to float32's relative precision: by Taylor's series near 0."""
    series = 1.0 + x / 7.0
    for i in tl.static_range(5):
        series = 1.0 + x * series / (6.0 - i)
    return tl.where(x > -0.125, x * series, tl.exp(x) - 1.0)


@triton.jit
def decay_by(a, steps):
    """What `passed_on` takes for exp(a steps): exp(a steps) - 1, or itself where that is near 0,
    which is the one with the smaller error. They differ in sign, so the latter is never 0.
    """
    return tl.where(a * steps > -1.0, expm1(a * steps), tl.maximum(tl.exp(a * steps), 2.0**-126))


@triton.jit
def passed_on(state, lost, sums):
    """exp(a steps) state + sums, of `decay_by`. exp() itself, rounded to float32, would drift over
    many tiles of a slow mode, and 1 + expm1() be nothing but rounding for a fast one.
    """
    return tl.where(lost > 0.0, 0.0, state) + (lost * state + sums)


@triton.jit
def taps_matrix(matrix, OPERAND: tl.constexpr, PRECISION: tl.constexpr, TERMS: tl.constexpr):
    """The convolution within a block as operands: of one term, or of TERMS."""
    if TERMS == 1:
        return (rounded(matrix.to(OPERAND), PRECISION),)
    else:
        return terms(matrix, OPERAND, PRECISION)


@triton.jit
def load_poles(pole_pointers, residues_ptr, row, COUNT: tl.constexpr, MODES: tl.constexpr):
    """The COUNT <= MODES poles and residues of a channel, [MODES]; all others are silent."""
    mode = tl.arange(0, MODES)
    where, there = row * COUNT + mode, mode < COUNT
    residue = tl.load(residues_ptr + where, mask=there, other=0.0).to(tl.float32)
    return log_pole(pole_pointers, where, there), residue


@triton.jit
def load_modes(
    pole_pointers, residues_ptr, row, COUNT: tl.constexpr, MODES: tl.constexpr, M: tl.constexpr,
    BLOCK_T: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """All that a channel's tiles need of its modes, of which there are COUNT <= MODES."""
    a, residue = load_poles(pole_pointers, residues_ptr, row, COUNT, MODES)
    step = step_of(tl.arange(0, BLOCK_T), M, BLOCK_T)
    powers = tl.exp(a[:, None] * step[None, :])
    reversed_powers = tl.exp(a[:, None] * (BLOCK_T - 1 - step)[None, :])
    taps = tl.sum(residue[:, None] * powers, axis=0)
    lag = step[None, :] - step[:, None]
    by_row = taps[None, :] + tl.zeros((BLOCK_T, 1), tl.float32)
    matrix = tl.where(lag >= 0, tl.gather(by_row, step_of(tl.maximum(lag, 0), M, BLOCK_T), 1), 0.0)
    within = taps_matrix(matrix, OPERAND, PRECISION, TERMS)
    weight = (residue * tl.exp(a))[:, None]
    to_end = transposed(terms(reversed_powers, OPERAND, PRECISION))
    to_start = transposed(terms(residue[:, None] * powers, OPERAND, PRECISION))
    from_before = terms(weight * powers, OPERAND, PRECISION)
    from_after = terms(tl.exp(a)[:, None] * reversed_powers, OPERAND, PRECISION)
    GROUPS: tl.constexpr = M // 8
    group = tl.arange(0, GROUPS)[None, :] + tl.zeros((MODES, 1), tl.int32)
    block = tl.exp(a * BLOCK_T)[:, None] + tl.zeros((1, GROUPS), tl.float32)
    doublings = ()
    for i in tl.static_range(4):
        doublings = doublings + (tl.exp(a * (8 * BLOCK_T * 2**i))[:, None],)
    entered = tl.exp(a[:, None] * (8 * BLOCK_T * group))
    left = tl.exp(a[:, None] * (8 * BLOCK_T * (GROUPS - 1 - group)))
    scan = Scan(group, block, doublings, entered, left, decay_by(a, M * BLOCK_T)[:, None])
    return Modes(a, residue, within, to_end, from_before, to_start, from_after, scan)


@triton.jit
def zero_state(MODES: tl.constexpr, M: tl.constexpr):
    """The state of a sequence that has not begun, for every lane of the scan."""
    return tl.zeros((MODES, M // 8), tl.float32)


@triton.jit
def lane_of(x, lane: tl.constexpr, MODES: tl.constexpr, M: tl.constexpr):
    """The numbers of one lane of the scan, for every lane."""
    return tl.gather(x, tl.full((MODES, M // 8), lane, tl.int32), 1)


@triton.jit
def scan_states(ends, scan, state, MODES: tl.constexpr, M: tl.constexpr):
    """States before all blocks of a tile, from the sums [M, MODES] that blocks add and the state
    before the tile; and the state after it.
    """
    group, block, doublings, entered, left, lost = scan
    GROUPS: tl.constexpr = M // 8
    end = vector_rows(swapped(tl.trans(ends), M, True), MODES, GROUPS)
    total = end[0]
    for p in tl.static_range(1, 8):
        total = total * block + end[p]
    for i in tl.static_range(4):
        if 2**i < GROUPS:
            before = tl.gather(total, (group + (GROUPS - 2**i)) % GROUPS, 1)
            total += tl.where(group >= 2**i, doublings[i] * before, 0.0)
    before = tl.gather(total, (group + (GROUPS - 1)) % GROUPS, 1)
    now = tl.where(group > 0, before, 0.0) + entered * state
    states = (now,)
    for p in tl.static_range(7):
        now = now * block + end[p]
        states = states + (now,)
    added = lane_of(total, GROUPS - 1, MODES, M)
    return states, passed_on(state, lost, added)


@triton.jit
def scan_adjoint(starts, scan, state, MODES: tl.constexpr, M: tl.constexpr):
    """`scan_states` backward in time: states after all blocks of a tile, from the state after the
    tile; and the state before it.
    """
    group, block, doublings, entered, left, lost = scan
    GROUPS: tl.constexpr = M // 8
    start = vector_rows(swapped(tl.trans(starts), M, True), MODES, GROUPS)
    total = start[7]
    for p in tl.static_range(1, 8):
        total = total * block + start[7 - p]
    for i in tl.static_range(4):
        if 2**i < GROUPS:
            after = tl.gather(total, (group + 2**i) % GROUPS, 1)
            total += tl.where(group < GROUPS - 2**i, doublings[i] * after, 0.0)
    after = tl.gather(total, (group + 1) % GROUPS, 1)
    now = tl.where(group < GROUPS - 1, after, 0.0) + left * state
    states = (now,)
    for p in tl.static_range(7):
        now = now * block + start[7 - p]
        states = (now,) + states
    added = lane_of(total, 0, MODES, M)
    return states, passed_on(state, lost, added)


@triton.jit
def piece_of(rows, H: tl.constexpr, N: tl.constexpr, OPERAND: tl.constexpr):
    """Rows of a part of a tile as operands [H, BLOCK_T], a block of time a row."""
    return rows_vector(rows, 0, H, N, OPERAND)


@triton.jit
def block_of(pieces, M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr):
    """A tile of one or two pieces as a matrix that products read: [M, BLOCK_T]."""
    block = pieces[0]
    if len(pieces) == 2:
        block = tl.reshape(tl.permute(tl.join(pieces[0], pieces[1]), (2, 0, 1)), (M, N * 8))
    return settled(to_products(rounded(block, PRECISION), M, N))


@triton.jit
def halves(x, M: tl.constexpr, N: tl.constexpr):
    """The upper and the lower half of the rows of [M, N], which threads hold side by side."""
    return tl.split(tl.permute(tl.reshape(x, (2, M // 2, N)), (1, 2, 0)))


@triton.jit
def recall(block, part: tl.constexpr, PARTS: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """The rows of a part of a tile, of one or two, as products read or make them."""
    by_time = from_products(block, M, N)
    if PARTS == 1:
        return vector_rows(by_time, M, N)
    else:
        return vector_rows(halves(by_time, M, N * 8)[part], M // 2, N)


@triton.jit
def operand_states(
    states, MODES: tl.constexpr, M: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr
):
    """Scanned states, as they are and as operands."""
    matrix = swapped(rows_vector(states, 0, MODES, M // 8, tl.float32), M, False)
    return states, settled_states(terms(matrix, OPERAND, PRECISION))


@triton.jit
def states_before(
    block, modes, state,
    MODES: tl.constexpr, M: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The states before each block of a tile, and after the tile."""
    ends = product((block,), modes.to_end, tl.zeros((M, MODES), tl.float32), 1, PRECISION)
    found, state = scan_states(ends, modes.scan, state, MODES, M)
    return operand_states(found, MODES, M, OPERAND, PRECISION), state


@triton.jit
def states_after(
    block, modes, state,
    MODES: tl.constexpr, M: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The adjoint states after each block of a tile, and before the tile."""
    starts = product((block,), modes.to_start, tl.zeros((M, MODES), tl.float32), 1, PRECISION)
    found, state = scan_adjoint(starts, modes.scan, state, MODES, M)
    return operand_states(found, MODES, M, OPERAND, PRECISION), state


@triton.jit
def modal(block, found, modes, PRECISION: tl.constexpr):
    """Blocks of y[t] = sum_n R_n sum_j exp(a_n j) x[t - j]: of the block, and of its past."""
    y = tl.dot(block, modes.within[0], input_precision=PRECISION)
    if len(modes.within) == 2:
        y = tl.dot(block, modes.within[1], y, input_precision=PRECISION)
    states = by_block(found[1], modes.from_before[0].shape[0])
    return product(states, modes.from_before, y, len(states), PRECISION)


@triton.jit
def modal_adjoint(block, found, modes, PRECISION: tl.constexpr):
    """Blocks of y[t] = sum_n R_n sum_j exp(a_n j) x[t + j]: of the block, and of its future."""
    y = tl.dot(block, tl.trans(modes.within[0]), input_precision=PRECISION)
    if len(modes.within) == 2:
        y = tl.dot(block, tl.trans(modes.within[1]), y, input_precision=PRECISION)
    states = by_block(found[1], modes.from_after[0].shape[0])
    return product(states, modes.from_after, y, len(states), PRECISION)


@triton.jit
def zero_modes(MODES: tl.constexpr, M: tl.constexpr, BLOCK_T: tl.constexpr):
    """Accumulators of `modal_gradient`."""
    within = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    outer = tl.zeros((MODES, BLOCK_T), tl.float32)
    both = tl.zeros((MODES, M // 8), tl.float32)
    return within, outer, outer, both


@triton.jit
def with_last(total, MODES: tl.constexpr):
    """Accumulators with that of `leave_gradient`."""
    return total + (tl.zeros((MODES,), tl.float32),)


@triton.jit
def modal_gradient(total, grad, grad_states, block, states, PRECISION: tl.constexpr):
    """Sums over blocks from which `store_modes` makes gradients: products of steps of a block x
    with those of its gradient e; of states before it with e; of x with adjoint states after it.
    """
    within = tl.dot(tl.trans(block), grad, total[0], input_precision=PRECISION)
    before, after = total[1], total[2]
    MODES: tl.constexpr = before.shape[0]
    entering, leaving = by_mode(states[1], MODES), by_mode(grad_states[1], MODES)
    for i in tl.static_range(len(entering)):
        before = tl.dot(entering[i], grad, before, input_precision=PRECISION)
        after = tl.dot(leaving[i], block, after, input_precision=PRECISION)
    return (within, before, after) + total[3:]


@triton.jit
def state_gradient(total, grad_states, states):
    """The last of the sums: products of states before a block with adjoint states after it."""
    both = total[3]
    for p in tl.static_range(8):
        both += states[0][p] * grad_states[0][p]
    return total[:3] + (both,) + total[4:]


@triton.jit
def lane_sum(x):
    """Sums of rows: threads exchange all of x once and then add what is in their own registers,
    where tl.sum would have threads exchange every row several times.
    """
    COUNT: tl.constexpr = x.shape[0]
    phases = vector_rows(x, COUNT, x.shape[1] // 8)
    total = phases[0]
    for i in tl.static_range(1, 8):
        total += phases[i]
    return tl.sum(total, 1)


@triton.jit
def lag_sums(x, lag, M: tl.constexpr, BLOCK_T: tl.constexpr):
    """Sums of x[j, j + lag] over the steps j of a block, of a matrix in the order of products."""
    SIZE: tl.constexpr = BLOCK_T * BLOCK_T
    j = tl.arange(0, BLOCK_T)[:, None]
    i = j + lag[None, :]
    index = step_of(j, M, BLOCK_T) * BLOCK_T + step_of(i % BLOCK_T, M, BLOCK_T)
    diagonal = tl.gather(tl.reshape(x, (SIZE,)), tl.reshape(index, (SIZE,)), 0)
    return tl.sum(tl.where(i < BLOCK_T, tl.reshape(diagonal, (BLOCK_T, BLOCK_T)), 0.0), 0)


@triton.jit
def store_modes(
    ptr, first, total, poles, channel, channel_mask, COUNT: tl.constexpr, CHANNELS: tl.constexpr,
    MODES: tl.constexpr, M: tl.constexpr, BLOCK_T: tl.constexpr, EXPONENTS: tl.constexpr,
):  # fmt: skip
    """Write the gradients of COUNT poles, then of residues, to rows first, ... of [P, CHANNELS].
    With EXPONENTS those of p, which are those of gamma, of which poles are -exp(p) exp(gamma).

    From x to y, d steps later, the weight is R exp(a d): its derivative by R is exp(a d), by a it
    is R d exp(a d). d is i - j within a block; else it is the steps from x to the end of its
    block, the blocks between, and the steps from there to y, and d exp(a d) is a sum of three.
    """
    a, residue = poles  # loaded once more: they would be in registers all the time
    column = tl.arange(0, BLOCK_T)
    by_lag = lag_sums(total[0], step_of(column, M, BLOCK_T), M, BLOCK_T)[None, :]
    step = step_of(column, M, BLOCK_T)[None, :].to(tl.float32)
    decay = tl.exp(a[:, None] * step)
    near = decay * by_lag
    before = decay * (tl.exp(a)[:, None] * total[1])
    after = tl.exp(a[:, None] * (BLOCK_T - step)) * total[2]
    by_pole = residue[:, None] * (step * near + (step + 1.0) * before)
    by_pole += (BLOCK_T - 1.0 - step) * after  # which weighs with R already
    # Numbers of a mode are added to several columns, in equal parts.
    COLUMNS: tl.constexpr = BLOCK_T // (M // 8)
    both = tl.reshape(
        tl.broadcast_to(total[3][:, :, None], (MODES, M // 8, COLUMNS)), (MODES, BLOCK_T)
    )
    by_pole += (BLOCK_T / COLUMNS) * tl.exp(a * (BLOCK_T + 1))[:, None] * both
    if len(total) > 4:
        by_pole += (total[4] * (1.0 / BLOCK_T))[:, None]
    if EXPONENTS:
        by_pole *= a[:, None]
    sums = tl.permute(tl.join(by_pole, near + before), (0, 2, 1))
    sums = lane_sum(tl.reshape(sums, (2 * MODES, BLOCK_T)))
    row = tl.arange(0, 2 * MODES)
    mode, which = row // 2, row % 2
    where = ptr + (first + which * COUNT + mode) * CHANNELS + channel
    tl.store(where, sums, mask=(mode < COUNT) & channel_mask)
