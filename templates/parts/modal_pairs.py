"""What kernels of `modal` call where modes are pairs: h[j] = 2 Re sum_n R_n exp(a_n j), a complex.

The state of a mode is two numbers. MODES counts numbers: of a table or a matrix of states, row 2 n
is the real part of mode n and row 2 n + 1 the imaginary part, so that products are those of real
modes (modal.py). Where complex numbers are multiplied they are (real part, imaginary part).

An angle counts in turns: those of many steps are a product in float64, of which only the part
beyond whole turns is rounded to float32. A log-pole is (real part, turns a step in float64).

An adjoint state is V = 2 R times the sum of exp(a d) e, d steps to later steps, which is the
gradient of a state but for one exp(a): real part minus i times imaginary part of the gradients by
its two numbers. So it takes and gives the gradients of states as their conjugates.
"""

import triton
import triton.language as tl

from templates.parts.channels_first import rows_vector, vector_rows
from templates.parts.modal import (
    Modes,
    Scan,
    by_mode,
    expm1,
    settled_states,
    step_of,
    swapped,
    taps_matrix,
    transposed,
)
from templates.parts.toeplitz import terms


@triton.jit
def plus(a, b):
    """a + b of complex numbers."""
    return a[0] + b[0], a[1] + b[1]


@triton.jit
def times(a, b):
    """a b of complex numbers."""
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


@triton.jit
def chosen(condition, a, b):
    """a where the condition holds, else b, of complex numbers."""
    return tl.where(condition, a[0], b[0]), tl.where(condition, a[1], b[1])


@triton.jit
def turns_of(frequency):
    """Turns a step, from -1/2 to 1/2 in float64, of radians a step."""
    turns = frequency.to(tl.float64) * 0.15915494309189535
    return turns - tl.floor(turns + 0.5)


@triton.jit
def beyond_turns(turns, steps):
    """The angle after so many steps, in turns from -1/2 to 1/2."""
    angle = turns * steps
    return (angle - tl.floor(angle + 0.5)).to(tl.float32)


@triton.jit
def rotation(part):
    """cos and sin of a part of a turn, from -1/2 to 1/2: Taylor's series about the nearest
    quarter, times that power of i.
    """
    quarter = tl.floor(4.0 * part + 0.5)
    x = (part - 0.25 * quarter) * 6.283185307179586
    square = x * x
    cosine = 1.0 - square * (1.0 / 90.0)
    sine = 1.0 - square * (1.0 / 72.0)
    for i in tl.static_range(4):
        cosine = 1.0 - square * cosine * (1.0 / ((8 - 2 * i) * (7 - 2 * i)))
    for i in tl.static_range(3):
        sine = 1.0 - square * sine * (1.0 / ((7 - 2 * i) * (6 - 2 * i)))
    even = 1.0 - tl.abs(quarter)
    odd = quarter * (2.0 - tl.abs(quarter))
    return times((even, odd), (cosine, x * sine))


@triton.jit
def exponential(a, steps):
    """exp(a steps) of log-poles a."""
    cosine, sine = rotation(beyond_turns(a[1], steps))
    size = tl.exp(a[0] * steps)
    return size * cosine, size * sine


@triton.jit
def exponential_minus_1(a, steps):
    """exp(a steps) - 1 to float32's relative precision: with x and y the parts of the exponent,
    (exp(x) - 1) cos y - 2 sin(y / 2)^2 + i exp(x) sin y.
    """
    part = beyond_turns(a[1], steps)
    cosine, sine = rotation(part)
    _, half = rotation(0.5 * part)
    loss = expm1(a[0] * steps)
    return loss * cosine - 2.0 * half * half, sine + loss * sine


@triton.jit
def decay_by(a, steps):
    """`decay_by` of modal.py, of complex numbers, and whether it is exp(a steps) - 1."""
    slow = a[0] * steps > -1.0
    near, far = exponential_minus_1(a, steps), exponential(a, steps)
    return tl.where(slow, near[0], far[0]), tl.where(slow, near[1], far[1]), slow


@triton.jit
def passed_on(state, lost, sums):
    """`passed_on` of modal.py, of complex numbers."""
    changed = plus(times((lost[0], lost[1]), state), sums)
    kept = tl.where(lost[2], state[0], 0.0), tl.where(lost[2], state[1], 0.0)
    return plus(kept, changed)


@triton.jit
def stacked(z, MODES: tl.constexpr, COLUMNS: tl.constexpr):
    """Complex numbers [MODES / 2, COLUMNS] as rows [MODES, COLUMNS]."""
    return tl.reshape(tl.permute(tl.join(z[0], z[1]), (0, 2, 1)), (MODES, COLUMNS))


@triton.jit
def unstacked(x, MODES: tl.constexpr, COLUMNS: tl.constexpr):
    """The inverse of `stacked`."""
    return tl.split(tl.permute(tl.reshape(x, (MODES // 2, 2, COLUMNS)), (0, 2, 1)))


@triton.jit
def load_poles(
    log_poles_ptr, frequencies_ptr, residues_real_ptr, residues_imag_ptr, row,
    COUNT: tl.constexpr, MODES: tl.constexpr,
):  # fmt: skip
    """The COUNT <= MODES / 2 poles and residues of a channel, [MODES / 2]; others are silent."""
    mode = tl.arange(0, MODES // 2)
    there = mode < COUNT
    where = row * COUNT + mode
    decay = tl.load(log_poles_ptr + where, mask=there, other=-1.0).to(tl.float32)
    frequency = tl.load(frequencies_ptr + where, mask=there, other=0.0).to(tl.float32)
    turns = turns_of(frequency)
    real = tl.load(residues_real_ptr + where, mask=there, other=0.0).to(tl.float32)
    imag = tl.load(residues_imag_ptr + where, mask=there, other=0.0).to(tl.float32)
    return (decay[:, None], turns[:, None]), (real, imag)


@triton.jit
def load_modes(
    log_poles_ptr, frequencies_ptr, residues_real_ptr, residues_imag_ptr, row,
    COUNT: tl.constexpr, MODES: tl.constexpr, M: tl.constexpr,
    BLOCK_T: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """All that a channel's tiles need of its COUNT pairs, at most MODES / 2: what load_modes of
    modal.py returns, with real and imaginary parts in rows.
    """
    a, residue = load_poles(
        log_poles_ptr, frequencies_ptr, residues_real_ptr, residues_imag_ptr, row, COUNT, MODES
    )
    real, imag = residue
    twice = (2.0 * real[:, None], 2.0 * imag[:, None])
    step = step_of(tl.arange(0, BLOCK_T), M, BLOCK_T)
    powers = exponential(a, step[None, :])
    reversed_powers = exponential(a, (BLOCK_T - 1 - step)[None, :])
    taps = tl.sum(times(twice, powers)[0], axis=0)
    lag = step[None, :] - step[:, None]
    by_row = taps[None, :] + tl.zeros((BLOCK_T, 1), tl.float32)
    column = step_of(tl.maximum(lag, 0), M, BLOCK_T)
    matrix = tl.where(lag >= 0, tl.gather(by_row, column, 1), 0.0)
    within = taps_matrix(matrix, OPERAND, PRECISION, TERMS)
    next_step = exponential(a, 1)
    to_end = transposed(terms(stacked(reversed_powers, MODES, BLOCK_T), OPERAND, PRECISION))
    weighted = stacked(times(twice, powers), MODES, BLOCK_T)
    to_start = transposed(terms(weighted, OPERAND, PRECISION))
    # A real part is a product of real parts minus one of imaginary parts.
    ahead = times(times(twice, next_step), powers)
    behind = times(next_step, reversed_powers)
    from_before = terms(stacked((ahead[0], -ahead[1]), MODES, BLOCK_T), OPERAND, PRECISION)
    from_after = terms(stacked((behind[0], -behind[1]), MODES, BLOCK_T), OPERAND, PRECISION)
    GROUPS: tl.constexpr = M // 8
    group = tl.arange(0, GROUPS)[None, :] + tl.zeros((MODES // 2, 1), tl.int32)
    none = tl.zeros((1, GROUPS), tl.float32)
    block = plus(exponential(a, BLOCK_T), (none, none))
    doublings = ()
    for i in tl.static_range(4):
        doublings = doublings + (exponential(a, 8 * BLOCK_T * 2**i),)
    entered = exponential(a, 8 * BLOCK_T * group)
    left = exponential(a, 8 * BLOCK_T * (GROUPS - 1 - group))
    scan = Scan(group, block, doublings, entered, left, decay_by(a, M * BLOCK_T))
    return Modes(a, (real, imag), within, to_end, from_before, to_start, from_after, scan)


@triton.jit
def zero_state(MODES: tl.constexpr, M: tl.constexpr):
    """The state of a sequence that has not begun, for every lane of the scan."""
    zero = tl.zeros((MODES // 2, M // 8), tl.float32)
    return zero, zero


@triton.jit
def scan_rows(sums, MODES: tl.constexpr, M: tl.constexpr):
    """What blocks add to states, [M, MODES], as the scan reads it: eight numbers a lane."""
    both = tl.split(tl.reshape(sums, (M, MODES // 2, 2)))
    real = vector_rows(swapped(tl.trans(both[0]), M, True), MODES // 2, M // 8)
    imag = vector_rows(swapped(tl.trans(both[1]), M, True), MODES // 2, M // 8)
    out = ()
    for p in tl.static_range(8):
        out = out + ((real[p], imag[p]),)
    return out


@triton.jit
def from_lane(z, lane, there):
    """The complex numbers of other lanes, or zero."""
    real, imag = tl.gather(z[0], lane, 1), tl.gather(z[1], lane, 1)
    return tl.where(there, real, 0.0), tl.where(there, imag, 0.0)


@triton.jit
def lane_of(z, lane: tl.constexpr, MODES: tl.constexpr, M: tl.constexpr):
    """`lane_of` of modal.py, of complex numbers."""
    index = tl.full((MODES // 2, M // 8), lane, tl.int32)
    return tl.gather(z[0], index, 1), tl.gather(z[1], index, 1)


@triton.jit
def scan_states(ends, scan, state, MODES: tl.constexpr, M: tl.constexpr):
    """`scan_states` of modal.py, of complex numbers."""
    group, block, doublings, entered, left, lost = scan
    GROUPS: tl.constexpr = M // 8
    end = scan_rows(ends, MODES, M)
    total = end[0]
    for p in tl.static_range(1, 8):
        total = plus(times(total, block), end[p])
    for i in tl.static_range(4):
        if 2**i < GROUPS:
            before = from_lane(total, (group + (GROUPS - 2**i)) % GROUPS, group >= 2**i)
            total = plus(total, times(doublings[i], before))
    now = from_lane(total, (group + (GROUPS - 1)) % GROUPS, group > 0)
    now = plus(now, times(entered, state))
    states = (now,)
    for p in tl.static_range(7):
        now = plus(times(now, block), end[p])
        states = states + (now,)
    added = lane_of(total, GROUPS - 1, MODES, M)
    return states, passed_on(state, lost, added)


@triton.jit
def scan_adjoint(starts, scan, state, MODES: tl.constexpr, M: tl.constexpr):
    """`scan_adjoint` of modal.py, of complex numbers."""
    group, block, doublings, entered, left, lost = scan
    GROUPS: tl.constexpr = M // 8
    start = scan_rows(starts, MODES, M)
    total = start[7]
    for p in tl.static_range(1, 8):
        total = plus(times(total, block), start[7 - p])
    for i in tl.static_range(4):
        if 2**i < GROUPS:
            after = from_lane(total, (group + 2**i) % GROUPS, group < GROUPS - 2**i)
            total = plus(total, times(doublings[i], after))
    now = from_lane(total, (group + 1) % GROUPS, group < GROUPS - 1)
    now = plus(now, times(left, state))
    states = (now,)
    for p in tl.static_range(7):
        now = plus(times(now, block), start[7 - p])
        states = (now,) + states
    added = lane_of(total, 0, MODES, M)
    return states, passed_on(state, lost, added)


@triton.jit
def operand_states(
    states, MODES: tl.constexpr, M: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr
):
    """Scanned states, as they are and as operands."""
    real, imag = (), ()
    for p in tl.static_range(8):
        real = real + (states[p][0],)
        imag = imag + (states[p][1],)
    real_matrix = rows_vector(real, 0, MODES // 2, M // 8, tl.float32)
    imag_matrix = rows_vector(imag, 0, MODES // 2, M // 8, tl.float32)
    matrix = swapped(stacked((real_matrix, imag_matrix), MODES, M), M, False)
    return states, settled_states(terms(matrix, OPERAND, PRECISION))


@triton.jit
def zero_modes(MODES: tl.constexpr, M: tl.constexpr, BLOCK_T: tl.constexpr):
    """Accumulators of `modal_gradient`."""
    within = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    outer = tl.zeros((MODES, BLOCK_T), tl.float32)
    both = tl.zeros((MODES // 2, M // 8), tl.float32)
    return within, outer, outer, both, both


@triton.jit
def with_last(total, MODES: tl.constexpr):
    """Accumulators with those of `leave_gradient`."""
    last = tl.zeros((MODES // 2,), tl.float32)
    return total + (last, last)


@triton.jit
def modal_gradient(total, grad, grad_states, block, states, PRECISION: tl.constexpr):
    """`modal_gradient` of modal.py."""
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
    """`state_gradient` of modal.py, where the product of two states is complex."""
    both = (total[3], total[4])
    for p in tl.static_range(8):
        both = plus(both, times(states[0][p], grad_states[0][p]))
    return total[:3] + both + total[5:]


@triton.jit
def store_modes(
    ptr, first, total, poles, channel, channel_mask, COUNT: tl.constexpr, CHANNELS: tl.constexpr,
    MODES: tl.constexpr, M: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Write the gradients of COUNT log-poles, frequencies, real and imaginary parts of residues
    to rows first, ... of [P, CHANNELS]: 2 Re and -2 Im of sums as in store_modes of modal.py.

    Lags within a block count from 1, as those from before it, and share a table with them. One
    from 0 would be that of `load_modes`, which the compiler would keep in registers until now.
    """
    a, residue = poles
    j = step_of(tl.arange(0, BLOCK_T), M, BLOCK_T)[:, None]
    turn = step_of(tl.arange(0, BLOCK_T), M, BLOCK_T)[None, :]
    turned = tl.gather(total[0], step_of((j + turn + 1) % BLOCK_T, M, BLOCK_T), 1)
    by_lag = tl.sum(tl.where(j + turn + 1 < BLOCK_T, turned, 0.0), axis=0)[None, :]
    at_once = tl.sum(tl.sum(tl.where(j == turn, total[0], 0.0), axis=1), axis=0)
    real, imag = unstacked(total[1], MODES, BLOCK_T)
    before = times(exponential(a, turn + 1), (real + by_lag, imag))
    after = times(exponential(a, BLOCK_T - turn), unstacked(total[2], MODES, BLOCK_T))
    sums = (tl.sum(total[3], axis=1)[:, None], tl.sum(total[4], axis=1)[:, None])
    both = times(exponential(a, BLOCK_T + 1), sums)
    step = turn.to(tl.float32)
    ahead, later = (), ()
    for i in tl.static_range(2):
        ahead = ahead + (2.0 * tl.sum((step + 1.0) * before[i], axis=1),)
        behind = tl.sum((BLOCK_T - 1.0 - step) * after[i], axis=1)
        later = later + (behind + tl.sum(BLOCK_T * both[i], axis=1),)
    by_pole = plus(times(residue, ahead), later)  # what is later weighs with 2 R already
    if len(total) > 5:
        by_pole = plus(by_pole, total[5:])
    by_residue = (at_once + tl.sum(before[0], axis=1), tl.sum(before[1], axis=1))
    mode = tl.arange(0, MODES // 2)
    where = ptr + (first + mode) * CHANNELS + channel
    there = (mode < COUNT) & channel_mask
    tl.store(where, by_pole[0], mask=there)
    tl.store(where + COUNT * CHANNELS, -by_pole[1], mask=there)
    tl.store(where + 2 * COUNT * CHANNELS, 2.0 * by_residue[0], mask=there)
    tl.store(where + 3 * COUNT * CHANNELS, -2.0 * by_residue[1], mask=there)


@triton.jit
def load_state(
    ptr, number, COUNT: tl.constexpr, CHANNELS: tl.constexpr, MODES: tl.constexpr, M: tl.constexpr
):
    """The state before tile `number`, COUNT numbers, for every lane of the scan."""
    real = 2 * tl.arange(0, MODES // 2)[:, None] + tl.zeros((1, M // 8), tl.int32)
    where = ptr + number * (CHANNELS * COUNT) + real
    there = real < COUNT
    return tl.load(where, mask=there, other=0.0), tl.load(where + 1, mask=there, other=0.0)


@triton.jit
def keep_state(
    ptr, number, state, COUNT: tl.constexpr, CHANNELS: tl.constexpr,
    MODES: tl.constexpr, M: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Write the state before tile `number`, if KEEP: COUNT numbers, real parts before imaginary
    ones mode by mode.
    """
    if KEEP:
        real = 2 * tl.arange(0, MODES // 2)[:, None] + tl.zeros((1, M // 8), tl.int32)
        lane = tl.arange(0, M // 8)[None, :]
        where = ptr + number * (CHANNELS * COUNT) + real
        there = (real < COUNT) & (lane == 0)
        tl.store(where, state[0], mask=there)
        tl.store(where + 1, state[1], mask=there)
