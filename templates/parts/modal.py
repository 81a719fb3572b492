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

import triton
import triton.language as tl

from templates.parts.channels_first import load_steps, rows_vector, vector_rows
from templates.parts.rows import fir_adjoint, load_taps
from templates.parts.toeplitz import rounded, terms


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
def load_poles(poles_ptr, residues_ptr, row, COUNT: tl.constexpr, MODES: tl.constexpr):
    """The COUNT <= MODES poles and residues of a channel, [MODES]; all others are silent."""
    mode = tl.arange(0, MODES)
    a = tl.load(poles_ptr + row * COUNT + mode, mask=mode < COUNT, other=-1.0)
    return a, tl.load(residues_ptr + row * COUNT + mode, mask=mode < COUNT, other=0.0)


@triton.jit
def load_modes(
    poles_ptr, residues_ptr, row, COUNT: tl.constexpr, MODES: tl.constexpr, M: tl.constexpr,
    BLOCK_T: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """All that a channel's tiles need of its modes, of which there are COUNT <= MODES.

    Returns:
        0: poles a, 1: residues R, as load_poles does.
        2: T[j, i] = h[i - j], the convolution within a block, as TERMS operands.
        3: exp(a (BLOCK_T - 1 - j)), [BLOCK_T, MODES]: from a block to its own end.
        4: R exp(a (i + 1)), [MODES, BLOCK_T]: from the states before a block to its outputs.
        5: R exp(a j), 6: exp(a (BLOCK_T - i)): 3 and 4 of the adjoint, which walks backward in
            time. Its states weigh with R, so that they are gradients of states but for exp(a).
        7: for the scan, see `scan_states`.
    """
    a, residue = load_poles(poles_ptr, residues_ptr, row, COUNT, MODES)
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
    scan_constants = (group, block, doublings, entered, left, decay_by(a, M * BLOCK_T)[:, None])
    return a, residue, within, to_end, from_before, to_start, from_after, scan_constants


@triton.jit
def zero_state(MODES: tl.constexpr, M: tl.constexpr):
    """The state of a sequence that has not begun, for every lane of the scan."""
    return tl.zeros((MODES, M // 8), tl.float32)


@triton.jit
def lane_of(x, lane: tl.constexpr, MODES: tl.constexpr, M: tl.constexpr):
    """The numbers of one lane of the scan, for every lane."""
    return tl.gather(x, tl.full((MODES, M // 8), lane, tl.int32), 1)


@triton.jit
def scan_states(ends, constants, state, MODES: tl.constexpr, M: tl.constexpr):
    """States before all blocks of a tile, from the sums [M, MODES] that blocks add and the state
    before the tile; and the state after it.
    """
    group, block, doublings, entered, left, lost = constants
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
def scan_adjoint(starts, constants, state, MODES: tl.constexpr, M: tl.constexpr):
    """`scan_states` backward in time: states after all blocks of a tile, from the state after the
    tile; and the state before it.
    """
    group, block, doublings, entered, left, lost = constants
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
    ends = product((block,), modes[3], tl.zeros((M, MODES), tl.float32), 1, PRECISION)
    found, state = scan_states(ends, modes[7], state, MODES, M)
    return operand_states(found, MODES, M, OPERAND, PRECISION), state


@triton.jit
def states_after(
    block, modes, state,
    MODES: tl.constexpr, M: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The adjoint states after each block of a tile, and before the tile."""
    starts = product((block,), modes[5], tl.zeros((M, MODES), tl.float32), 1, PRECISION)
    found, state = scan_adjoint(starts, modes[7], state, MODES, M)
    return operand_states(found, MODES, M, OPERAND, PRECISION), state


@triton.jit
def modal(block, found, modes, PRECISION: tl.constexpr):
    """Blocks of y[t] = sum_n R_n sum_j exp(a_n j) x[t - j]: of the block, and of its past."""
    y = tl.dot(block, modes[2][0], input_precision=PRECISION)
    if len(modes[2]) == 2:
        y = tl.dot(block, modes[2][1], y, input_precision=PRECISION)
    states = by_block(found[1], modes[4][0].shape[0])
    return product(states, modes[4], y, len(states), PRECISION)


@triton.jit
def modal_adjoint(block, found, modes, PRECISION: tl.constexpr):
    """Blocks of y[t] = sum_n R_n sum_j exp(a_n j) x[t + j]: of the block, and of its future."""
    y = tl.dot(block, tl.trans(modes[2][0]), input_precision=PRECISION)
    if len(modes[2]) == 2:
        y = tl.dot(block, tl.trans(modes[2][1]), y, input_precision=PRECISION)
    states = by_block(found[1], modes[6][0].shape[0])
    return product(states, modes[6], y, len(states), PRECISION)


@triton.jit
def zero_modes(
    MODES: tl.constexpr, M: tl.constexpr, BLOCK_T: tl.constexpr, STATEFUL: tl.constexpr
):
    """Accumulators of `modal_gradient` and, if STATEFUL, of `leave_gradient`."""
    within = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    outer = tl.zeros((MODES, BLOCK_T), tl.float32)
    both = tl.zeros((MODES, M // 8), tl.float32)
    if STATEFUL:
        return within, outer, outer, both, tl.zeros((MODES,), tl.float32)
    else:
        return within, outer, outer, both


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
    MODES: tl.constexpr, M: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Write the gradients of COUNT poles, then of residues, to rows first, ... of [P, CHANNELS].

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
    sums = tl.permute(tl.join(by_pole, near + before), (0, 2, 1))
    sums = lane_sum(tl.reshape(sums, (2 * MODES, BLOCK_T)))
    row = tl.arange(0, 2 * MODES)
    mode, which = row // 2, row % 2
    where = ptr + (first + which * COUNT + mode) * CHANNELS + channel
    tl.store(where, sums, mask=(mode < COUNT) & channel_mask)


@triton.jit
def extend(rows, after, COUNT: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Each lane's rows, then the first COUNT of the next lane; the last lane takes `after`.
    Also what the next tile, which is earlier, takes there.
    """
    lane = tl.arange(0, M * N)
    last = tl.reshape(lane, (M, N)) == M * N - 1
    extended = rows
    first = ()
    next_lane = (lane + 1) % (M * N)
    for r in tl.static_range(0, COUNT, 2):
        if r + 1 < COUNT:  # threads exchange two as quickly as one
            low = rows[r].to(tl.uint32, bitcast=True).to(tl.uint64)
            high = rows[r + 1].to(tl.uint32, bitcast=True).to(tl.uint64)
            both = tl.reshape(
                tl.gather(tl.reshape(low | high << 32, (M * N,)), next_lane, 0), (M, N)
            )
            low = both.to(tl.uint32).to(tl.float32, bitcast=True)
            first = first + (low, (both >> 32).to(tl.uint32).to(tl.float32, bitcast=True))
        else:
            flat = tl.reshape(rows[r], (M * N,))
            first = first + (tl.reshape(tl.gather(flat, next_lane, 0), (M, N)),)
    for r in tl.static_range(COUNT):
        extended = extended + (tl.where(last, after[r], first[r]),)
    return extended, first


@triton.jit
def folded(total, rows):
    """total + the sum of rows, which may have twice as many lanes: then of their two halves."""
    M: tl.constexpr = rows[0].shape[0]
    N: tl.constexpr = rows[0].shape[1]
    if total.shape[0] == M:
        for r in tl.static_range(len(rows)):
            total += rows[r]
        return total
    else:
        value = rows[0]
        for r in tl.static_range(1, len(rows)):
            value += rows[r]
        upper, lower = halves(value, M, N)
        return total + (upper + lower)


@triton.jit
def tap_gradient(total, grad, x, LENGTH: tl.constexpr):
    """total[j] += sum_t grad[t] x[t - j], j < LENGTH; x starts LENGTH - 1 rows before grad."""
    out = ()
    for lag in tl.static_range(LENGTH):
        rows = ()
        for r in tl.static_range(len(grad)):
            rows = rows + (grad[r] * x[r + LENGTH - 1 - lag],)
        out = out + (folded(total[lag], rows),)
    return out


@triton.jit
def channel_sum(total, x):
    """total[0] += sum_t x[t]."""
    return (folded(total[0], x),)


@triton.jit
def load_lagged(
    ptr, row, unit, tile, LAG: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`load_steps` from LAG <= 4 rows before the first: these by a load of 4 or 8 bytes, where
    load_steps would load the whole vector that they end.
    """
    offset, channel_mask, t, earliest, latest, read_begin, read_end, write_end = tile
    COUNT: tl.constexpr = triton.next_power_of_2(LAG)
    index = tl.arange(0, N * COUNT)[None, :]
    begin = t + index // COUNT * ROWS - COUNT
    time = begin + index % COUNT
    where = ptr + offset * row + time * unit
    if EVEN:
        vector = begin - (8 - COUNT)  # inside or outside as a whole
        x = tl.load(
            where, mask=channel_mask & (vector >= read_begin) & (vector < read_end), other=0.0
        )
    else:
        x = tl.load(where, mask=channel_mask & (time >= read_begin) & (time < read_end), other=0.0)
    x = x.to(tl.float32)
    if COUNT == 1:
        lagged = (x,)
    elif COUNT == 2:
        lagged = tl.split(tl.reshape(x, (M, N, 2)))
    else:
        even, odd = tl.split(tl.reshape(x, (M, N * 2, 2)))
        x0, x2 = tl.split(tl.reshape(even, (M, N, 2)))
        x1, x3 = tl.split(tl.reshape(odd, (M, N, 2)))
        lagged = (x0, x1, x2, x3)
    own = load_steps(ptr, row, unit, tile, 0, ROWS, EVEN, ROWS, M, N)
    return lagged[COUNT - LAG :] + own


@triton.jit
def joined_halves(total):
    """Tensors joined in pairs, the first with the first of the second half."""
    HALF: tl.constexpr = len(total) // 2
    out = ()
    for i in tl.static_range(HALF):
        out = out + (tl.join(total[i], total[i + HALF]),)
    return out


@triton.jit
def store_partial(ptr, first, total, channel, channel_mask, CHANNELS: tl.constexpr):
    """Write accumulators, summed over the tile, to rows first, ... of [P, CHANNELS]; many at once,
    which costs little more than one.
    """
    COUNT: tl.constexpr = triton.next_power_of_2(len(total))
    some = total
    for _ in tl.static_range(COUNT - len(total)):
        some = some + (total[0],)
    for _ in tl.static_range(COUNT.bit_length() - 1):
        some = joined_halves(some)
    row = tl.arange(0, COUNT)
    where = ptr + (first + row) * CHANNELS + channel
    sums = lane_sum(tl.trans(tl.reshape(some[0], (total[0].numel, COUNT))))
    tl.store(where, sums, mask=channel_mask & (row < len(total)))


@triton.jit
def load_state(
    ptr, number, COUNT: tl.constexpr, CHANNELS: tl.constexpr, MODES: tl.constexpr, M: tl.constexpr
):
    """The state before tile `number`, for every lane of the scan."""
    mode = tl.arange(0, MODES)[:, None] + tl.zeros((1, M // 8), tl.int32)
    where = ptr + number * (CHANNELS * COUNT) + mode
    return tl.load(where, mask=mode < COUNT, other=0.0)


@triton.jit
def keep_state(
    ptr, number, state, COUNT: tl.constexpr, CHANNELS: tl.constexpr,
    MODES: tl.constexpr, M: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Write the state before tile `number`, if KEEP."""
    if KEEP:
        mode = tl.arange(0, MODES)[:, None] + tl.zeros((1, M // 8), tl.int32)
        lane = tl.arange(0, M // 8)[None, :]
        where = ptr + number * (CHANNELS * COUNT) + mode
        tl.store(where, state, mask=(mode < COUNT) & (lane == 0))


# ---- the ends of a sequence whose state is carried in and out -----------------------------------


@triton.jit
def load_history(
    ptr, row, ROLE: tl.constexpr, LENGTH: tl.constexpr, CHANNELS: tl.constexpr,
    STATEFUL: tl.constexpr,
):  # fmt: skip
    """The LENGTH steps of one input before the first, the oldest first; none unless STATEFUL."""
    steps = ()
    if STATEFUL:
        for i in tl.static_range(LENGTH):
            steps = steps + (tl.load(ptr + (ROLE * CHANNELS + row) * LENGTH + i).to(tl.float32),)
    return steps


@triton.jit
def with_history(rows, history, tile, COUNT: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Rows whose context, in the first lane of the first tile, is COUNT steps of history."""
    offset, channel_mask, t, earliest, latest, read_begin, read_end, write_end = tile
    lane = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    begins = (lane == 0) & (earliest == read_begin)
    out = ()
    for r in tl.static_range(COUNT):
        out = out + (tl.where(begins, history[r], rows[r]),)
    return out + rows[COUNT:]


@triton.jit
def chosen(condition, a, b):
    """a where the condition holds, else b."""
    return tl.where(condition, a, b)


@triton.jit
def walk(
    state, split, begin, stop, modes, COUNT: tl.constexpr, CHANNELS: tl.constexpr,
    MODES: tl.constexpr, M: tl.constexpr, TIME: tl.constexpr,
):  # fmt: skip
    """The state after `begin` tiles, counted from an end of the sequence, to that after `stop`, by
    the sums that the other launch has found. TIME is 1 from its first step on, -1 from its last.
    """
    sums_ptr, program, tile_0, tiles, tiles_in_all = split
    LANES: tl.constexpr = M // 8
    for some in range(begin, stop, LANES):
        number = tl.minimum(some + tl.arange(0, LANES)[None, :], stop - 1)
        tile = number if TIME == 1 else tiles_in_all - 1 - number
        sums = load_state(sums_ptr, tile, COUNT, CHANNELS, MODES, M)  # a tile a lane
        for i in tl.static_range(LANES):
            later = passed_on(state, modes[7][5], lane_of(sums, i, MODES, M))
            state = chosen(some + i < stop, later, state)
    return state


@triton.jit
def load_initial_state(
    ends, split, modes, COUNT: tl.constexpr, CHANNELS: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, STATEFUL: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """The state before the first step of a split, for every lane of the scan: if SPLIT, by the
    arithmetic of a walk along all tiles before it.
    """
    state = zero_state(MODES, M)
    if STATEFUL:
        state = load_state(ends[0], 0, COUNT, 0, MODES, M)
    if SPLIT:
        state = walk(state, split, 0, split[2], modes, COUNT, CHANNELS, MODES, M, 1)
    return state


@triton.jit
def enter_adjoint(
    ends, split, modes, end, COUNT: tl.constexpr, CHANNELS: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, BLOCK_T: tl.constexpr, STATEFUL: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """The adjoint state after the last step of a split, for every lane, as load_initial_state.
    The gradient of the last state joins it in the last tile.
    """
    state = zero_state(MODES, M)
    if SPLIT:
        sums_ptr, program, tile_0, tiles, tiles_in_all = split
        after = tl.maximum(tiles_in_all - tile_0 - tiles, 0)
        last = load_state(sums_ptr, tiles_in_all - 1, COUNT, CHANNELS, MODES, M)
        if STATEFUL:
            left = end - (tiles_in_all - 1 - tile_0) * (M * BLOCK_T)
            last = join_adjoint(last, after > 0, left, ends, COUNT, MODES)
        state = chosen(after > 0, last, state)
        state = walk(state, split, 1, after, modes, COUNT, CHANNELS, MODES, M, -1)
    return state


@triton.jit
def steps_left(tile, rows, M: tl.constexpr, N: tl.constexpr):
    """Whether a sequence ends within a tile, how many steps of it are before the end, and for
    every lane how many steps follow its first row within the sequence.
    """
    offset, channel_mask, t, earliest, latest, read_begin, read_end, write_end = tile
    left = write_end - earliest
    lane = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    return left <= M * N * len(rows), left, left - 1 - lane * len(rows)


@triton.jit
def of_mode(state, mode, MODES: tl.constexpr, M: tl.constexpr):
    """One mode's number in the state before or after a tile."""
    index = tl.arange(0, MODES)[:, None]
    lane = tl.arange(0, M // 8)[None, :]
    return tl.sum(tl.sum(tl.where((index == mode) & (lane == 0), state, 0.0), 1), 0)


@triton.jit
def store_final_state(
    state, rows, tile, ends, COUNT: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, STATEFUL: tl.constexpr,
):  # fmt: skip
    """Write the state after the last step, from that before the last tile, if STATEFUL.

    A tile that is not whole would decay beyond the end, and nothing divides by a decay: so the
    last tile is summed once more, by steps to the end instead of to the end of the tile.
    """
    if STATEFUL:
        closes, left, ahead = steps_left(tile, rows, M, N)
        if closes:
            for mode in range(COUNT):
                a = tl.load(ends[2] + mode)
                step = tl.exp(a)
                total = tl.zeros((M, N), tl.float32)
                for r in tl.static_range(len(rows)):
                    total = tl.where(ahead >= r, total * step + rows[r], total)
                total *= tl.exp(a * tl.maximum(ahead - (len(rows) - 1), 0))
                before = of_mode(state, mode, MODES, M)
                added = tl.sum(tl.reshape(total, (M * N,)), 0)
                tl.store(ends[1] + mode, passed_on(before, decay_by(a, left), added))


@triton.jit
def leave_gradient(
    total, state, rows, tile, ends, COUNT: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, STATEFUL: tl.constexpr,
):  # fmt: skip
    """Add what the gradient of the last state gives to those of poles within the last tile: that
    of d exp(a d), d steps from x[t] or from the state before the tile to the end.
    """
    if STATEFUL:
        closes, left, ahead = steps_left(tile, rows, M, N)
        found = total[4]
        for mode in range(tl.where(closes, COUNT, 0)):
            a = tl.load(ends[2] + mode)
            step = tl.exp(a)
            value, weighted = tl.zeros((M, N), tl.float32), tl.zeros((M, N), tl.float32)
            for r in tl.static_range(len(rows)):  # a step later all d are one more
                weighted = tl.where(ahead >= r, (weighted + value) * step, weighted)
                value = tl.where(ahead >= r, value * step + rows[r], value)
            later = tl.maximum(ahead - (len(rows) - 1), 0)
            value = (weighted + later * value) * tl.exp(a * later)
            by_state = left * tl.exp(a * left) * of_mode(state, mode, MODES, M)
            by_pole = tl.sum(tl.reshape(value, (M * N,)), 0) + by_state
            found += tl.where(tl.arange(0, MODES) == mode, tl.load(ends[1] + mode) * by_pole, 0.0)
        return total[:4] + (found,)
    else:
        return total


@triton.jit
def join_adjoint(state, there, left, ends, COUNT: tl.constexpr, MODES: tl.constexpr):
    """Add the gradient of the last state, if `there`, to the adjoint state `left` steps before."""
    mode = tl.arange(0, MODES)[:, None]
    there &= mode < COUNT
    a = tl.load(ends[2] + mode, mask=there, other=0.0)
    grad = tl.load(ends[1] + mode, mask=there, other=0.0)
    return state + tl.where(there, grad * tl.exp(a * tl.maximum(left - 1, 0)), 0.0)


@triton.jit
def leave_adjoint(
    rows, state, tile, ends, COUNT: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, STATEFUL: tl.constexpr,
):  # fmt: skip
    """Add what the gradient of the last state gives to gradients of the steps of the last tile,
    and to the adjoint state before it.
    """
    if STATEFUL:
        closes, left, ahead = steps_left(tile, rows, M, N)
        for mode in range(tl.where(closes, COUNT, 0)):
            a = tl.load(ends[2] + mode)
            step = tl.exp(a)
            decayed = tl.load(ends[1] + mode) * tl.exp(a * tl.maximum(ahead - (len(rows) - 1), 0))
            out = ()
            for r in tl.static_range(len(rows) - 1, -1, -1):
                out = (rows[r] + tl.where(ahead >= r, decayed, 0.0),) + out
                decayed = tl.where(ahead >= r, decayed * step, decayed)
            rows = out
        state = join_adjoint(state, closes, left, ends, COUNT, MODES)
    return rows, state


@triton.jit
def enter_gradient(
    state, modes, ends, split, COUNT: tl.constexpr, MODES: tl.constexpr, M: tl.constexpr,
    STATEFUL: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the state before the first step, if STATEFUL."""
    if STATEFUL:  # noqa: SIM102 (a constant, then a value)
        if split[1] == 0:
            gradient = tl.exp(modes[0])[:, None] * state
            keep_state(ends[0], 0, gradient, COUNT, 0, MODES, M, True)


@triton.jit
def leave_rows(
    ptr, row, rows, here, ROLE: tl.constexpr, LENGTH: tl.constexpr, CHANNELS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Write the last LENGTH rows of a split, of a gradient before its featurizer's adjoint, for
    `join_spans`, if SPLIT and `here`, in the tile that holds them.
    """
    if SPLIT:  # noqa: SIM102 (a constant, then a value)
        if here:
            lane = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
            where = ptr + (ROLE * CHANNELS + row) * (2 * LENGTH) + LENGTH
            for r in tl.static_range(LENGTH):
                value = rows[len(rows) - LENGTH + r]
                tl.store(where + r + lane * 0, value, mask=lane == M * N - 1)


@triton.jit
def first_rows(
    ptr, row, after, ROLE: tl.constexpr, CHANNELS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Write the first rows of a split likewise, if SPLIT: the last lane of `after` holds them."""
    if SPLIT:
        LENGTH: tl.constexpr = len(after)
        lane = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
        where = ptr + (ROLE * CHANNELS + row) * (2 * LENGTH)
        for r in tl.static_range(LENGTH):
            tl.store(where + r + lane * 0, after[r], mask=lane == M * N - 1)


@triton.jit
def history_gradient(
    ptr, row, after, taps, program, ROLE: tl.constexpr, CHANNELS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, STATEFUL: tl.constexpr,
):  # fmt: skip
    """Write the gradient of one input's history, from `after` of `extend` and its featurizer's
    taps, if STATEFUL: the last lane of `after` holds the first rows of the sequence.
    """
    if STATEFUL:
        LENGTH: tl.constexpr = len(after)
        lane = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
        for back in tl.static_range(1, LENGTH + 1):
            value = taps[back] * after[0]
            for r in tl.static_range(1, LENGTH + 1 - back):
                value += taps[back + r] * after[r]
            where = ptr + (ROLE * CHANNELS + row) * LENGTH + (LENGTH - back)
            tl.store(where + lane * 0, value, mask=(lane == M * N - 1) & (program == 0))


@triton.jit(do_not_specialize=["d_input_batch", "d_input_row", "splits", "steps"])
def join_splits(
    edges_ptr,  # [batch, splits, ROLES, CHANNELS, 2, LENGTH] float32: first and last rows
    featurizer_ptr,  # of one row a channel and role
    d_input_ptr, d_input_batch, d_input_row,
    splits, steps,
    UNIT: tl.constexpr, CHANNELS: tl.constexpr, ROLES: tl.constexpr, ROLE: tl.constexpr,
    LENGTH: tl.constexpr, INTERLEAVED: tl.constexpr, LAG_LAST: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradient of one input in the last LENGTH steps of every split of so many steps but the
    last: the featurizer's adjoint of that split's last rows and of the next one's first.
    """
    BLOCKS: tl.constexpr = (CHANNELS + BLOCK_D - 1) // BLOCK_D
    outer = tl.program_id(0) // BLOCKS
    batch, split = outer // (splits - 1), outer % (splits - 1)
    row = tl.program_id(0) % BLOCKS * BLOCK_D + tl.arange(0, BLOCK_D)
    channel_mask = row < CHANNELS
    of_role = row * ROLES + ROLE if INTERLEAVED else ROLE * CHANNELS + row
    taps = load_taps(featurizer_ptr, of_role, channel_mask, LENGTH + 1, LAG_LAST)
    own = ((batch * splits + split).to(tl.int64) * ROLES + ROLE) * CHANNELS + row
    own = edges_ptr + own * (2 * LENGTH) + LENGTH
    later = own + (2 * ROLES * CHANNELS - 1) * LENGTH
    rows, others = (), ()
    for r in tl.static_range(LENGTH):
        rows = rows + (tl.load(own + r, mask=channel_mask, other=0.0),)
        others = others + (tl.load(later + r, mask=channel_mask, other=0.0),)
    gradient = fir_adjoint(rows + others, taps, LENGTH + 1)
    end = (split + 1).to(tl.int64) * steps
    where = d_input_ptr + batch.to(tl.int64) * d_input_batch + row.to(tl.int64) * d_input_row
    for r in tl.static_range(LENGTH):
        value = gradient[r].to(d_input_ptr.dtype.element_ty)
        tl.store(where + (end - LENGTH + r) * UNIT, value, mask=channel_mask)
