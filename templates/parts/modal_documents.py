"""Recurrences of several documents in a row (documents.py): states end where documents do.

Of a block that documents begin in, the states before it are of the steps up to the first border,
and what it adds to the states after it are the steps from the last one on.
"""

import triton
import triton.language as tl

from templates.parts.channels_first import vector_rows
from templates.parts.documents import (
    border_before,
    columns_before,
    columns_from,
    load_positions,
)
from templates.parts.modal import (
    by_block,
    by_mode,
    lane_of,
    operand_states,
    passed_on,
    product,
    step_of,
    swapped,
)
from templates.parts.modal_rows import folded


@triton.jit
def tap_gradient_within(
    total, grad, x, ptr, tile, LENGTH: tl.constexpr, LANES: tl.constexpr, N: tl.constexpr
):
    """`tap_gradient` of documents."""
    position = load_positions(ptr, tile, LO=0, HI=8, ROWS=8, LANES=LANES, N=N)
    out = ()
    for lag in tl.static_range(LENGTH):
        rows = ()
        for r in tl.static_range(len(grad)):
            own = tl.where(position[r] >= lag, x[r + LENGTH - 1 - lag], 0.0)
            rows = rows + (grad[r] * own,)
        out = out + (folded(total[lag], rows),)
    return out


@triton.jit
def block_begins(t, M: tl.constexpr, BLOCK_T: tl.constexpr):
    """The first step of each block of a tile that begins at step t, [M, 1], in the order of
    products.
    """
    row = tl.arange(0, M)
    if M <= 64:
        row = row % 16 // 8 * (M // 2) + row // 16 * 8 + row % 8
    return t + row[:, None] * BLOCK_T


@triton.jit
def passed_blocks(ptr, t, read_end, M: tl.constexpr, BLOCK_T: tl.constexpr):
    """Whether blocks lie within one document that begins before them: of eight consecutive ones,
    each a tensor [1, M / 8], as the scan has them.
    """
    last = t + (tl.arange(0, M // 8)[None, :] * 8 + 1) * BLOCK_T - 1
    passes = ()
    for p in tl.static_range(8):
        time = last + p * BLOCK_T
        position = tl.load(ptr + time, mask=time < read_end, other=-1)
        passes = passes + (position.to(tl.int32) >= BLOCK_T,)
    return passes


@triton.jit
def passing(passes, M: tl.constexpr, TIME: tl.constexpr):
    """Which states pass the eight blocks of a lane of the scan, and more at each doubling; those
    that come from the tile's edge to a lane; and whether one passes the tile. TIME is 1 from its
    first step on, -1 from its last.
    """
    GROUPS: tl.constexpr = M // 8
    group = tl.arange(0, GROUPS)[None, :]
    all_pass = passes[0].to(tl.int32)
    for p in tl.static_range(1, 8):
        all_pass = all_pass * passes[p].to(tl.int32)
    doubled = ()
    for i in tl.static_range(4):
        if 2**i < GROUPS:
            doubled = doubled + (all_pass > 0,)
            if TIME == 1:
                other = tl.gather(all_pass, (group + (GROUPS - 2**i)) % GROUPS, 1)
                all_pass = tl.where(group >= 2**i, all_pass * other, all_pass)
            else:
                other = tl.gather(all_pass, (group + 2**i) % GROUPS, 1)
                all_pass = tl.where(group < GROUPS - 2**i, all_pass * other, all_pass)
    if TIME == 1:
        edge = (group == 0) | (tl.gather(all_pass, (group + (GROUPS - 1)) % GROUPS, 1) > 0)
        whole = tl.gather(all_pass, group * 0 + (GROUPS - 1), 1) > 0
    else:
        edge = (group == GROUPS - 1) | (tl.gather(all_pass, (group + 1) % GROUPS, 1) > 0)
        whole = tl.gather(all_pass, group * 0, 1) > 0
    return doubled, edge, whole


@triton.jit
def scan_states_within(ends, scan, state, passes, MODES: tl.constexpr, M: tl.constexpr):
    """`scan_states` of documents."""
    group, block, doublings, entered, left, lost = scan
    GROUPS: tl.constexpr = M // 8
    doubled, edge, whole = passing(passes, M, 1)
    end = vector_rows(swapped(tl.trans(ends), M, True), MODES, GROUPS)
    total = end[0]
    for p in tl.static_range(1, 8):
        total = tl.where(passes[p], total * block, 0.0) + end[p]
    for i in tl.static_range(4):
        if 2**i < GROUPS:
            before = tl.gather(total, (group + (GROUPS - 2**i)) % GROUPS, 1)
            total += tl.where((group >= 2**i) & doubled[i], doublings[i] * before, 0.0)
    before = tl.gather(total, (group + (GROUPS - 1)) % GROUPS, 1)
    now = tl.where(group > 0, before, 0.0) + tl.where(edge, entered * state, 0.0)
    states = (now,)
    for p in tl.static_range(7):
        now = tl.where(passes[p], now * block, 0.0) + end[p]
        states = states + (now,)
    added = lane_of(total, GROUPS - 1, MODES, M)
    return states, passed_on(tl.where(whole, state, 0.0), lost, added)


@triton.jit
def scan_adjoint_within(starts, scan, state, passes, MODES: tl.constexpr, M: tl.constexpr):
    """`scan_adjoint` of documents."""
    group, block, doublings, entered, left, lost = scan
    GROUPS: tl.constexpr = M // 8
    doubled, edge, whole = passing(passes, M, -1)
    start = vector_rows(swapped(tl.trans(starts), M, True), MODES, GROUPS)
    total = start[7]
    for p in tl.static_range(1, 8):
        total = tl.where(passes[7 - p], total * block, 0.0) + start[7 - p]
    for i in tl.static_range(4):
        if 2**i < GROUPS:
            after = tl.gather(total, (group + 2**i) % GROUPS, 1)
            total += tl.where((group < GROUPS - 2**i) & doubled[i], doublings[i] * after, 0.0)
    after = tl.gather(total, (group + 1) % GROUPS, 1)
    now = tl.where(group < GROUPS - 1, after, 0.0) + tl.where(edge, left * state, 0.0)
    states = (now,)
    for p in tl.static_range(7):
        now = tl.where(passes[7 - p], now * block, 0.0) + start[7 - p]
        states = (now,) + states
    added = lane_of(total, 0, MODES, M)
    return states, passed_on(tl.where(whole, state, 0.0), lost, added)


@triton.jit
def states_before_within(
    block, modes, state, borders, passes, MODES: tl.constexpr, M: tl.constexpr,
    BLOCK_T: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`states_before` of documents."""
    column = step_of(tl.arange(0, BLOCK_T), M, BLOCK_T)[None, :]
    later = columns_from(borders.tail, block, column)
    ends = product((later,), modes.to_end, tl.zeros((M, MODES), tl.float32), 1, PRECISION)
    found, state = scan_states_within(ends, modes.scan, state, passes, MODES, M)
    return operand_states(found, MODES, M, OPERAND, PRECISION), state


@triton.jit
def states_after_within(
    block, modes, state, borders, passes, MODES: tl.constexpr, M: tl.constexpr,
    BLOCK_T: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`states_after` of documents."""
    column = step_of(tl.arange(0, BLOCK_T), M, BLOCK_T)[None, :]
    stop = tl.where(borders.first < 0, borders.head, 0)
    earlier = columns_before(stop, block, column)
    starts = product((earlier,), modes.to_start, tl.zeros((M, MODES), tl.float32), 1, PRECISION)
    found, state = scan_adjoint_within(starts, modes.scan, state, passes, MODES, M)
    return operand_states(found, MODES, M, OPERAND, PRECISION), state


@triton.jit
def within_block(x, within, total, PRECISION: tl.constexpr):
    """total + the product of a block with that of its filter within blocks."""
    for i in tl.static_range(len(within)):
        total = tl.dot(x, within[i], total, input_precision=PRECISION)
    return total


@triton.jit
def turned(matrices):
    """Every matrix, transposed."""
    out = ()
    for i in tl.static_range(len(matrices)):
        out = out + (tl.trans(matrices[i]),)
    return out


@triton.jit
def modal_within(
    block, found, modes, borders, M: tl.constexpr, BLOCK_T: tl.constexpr, PRECISION: tl.constexpr
):
    """`modal` of documents."""
    column = step_of(tl.arange(0, BLOCK_T), M, BLOCK_T)[None, :]
    states = by_block(found[1], modes.from_before[0].shape[0])
    none = tl.zeros((M, BLOCK_T), tl.float32)
    y = product(states, modes.from_before, none, len(states), PRECISION)
    y = within_block(block, modes.within, tl.where(borders.first < 0, y, 0.0), PRECISION)
    border, stop, going = borders.tail, borders.tail * 0 + BLOCK_T, borders.last
    while going > 0:
        own = columns_from(border, block, column)
        begun = (border > 0) & (column >= border) & (column < stop)
        y = tl.where(begun, within_block(own, modes.within, none, PRECISION), y)
        stop = tl.where(border > 0, border, stop)
        border = border_before(borders, border)
        going = tl.max(border)
    return y


@triton.jit
def modal_adjoint_within(
    block, found, modes, borders, M: tl.constexpr, BLOCK_T: tl.constexpr, PRECISION: tl.constexpr
):
    """`modal_adjoint` of documents."""
    column = step_of(tl.arange(0, BLOCK_T), M, BLOCK_T)[None, :]
    states = by_block(found[1], modes.from_after[0].shape[0])
    none = tl.zeros((M, BLOCK_T), tl.float32)
    within = turned(modes.within)
    y = product(states, modes.from_after, none, len(states), PRECISION)
    y = within_block(block, within, y, PRECISION)
    border, going = borders.tail, borders.last
    while going > 0:
        own = columns_before(border, block, column)
        y = tl.where(column < border, within_block(own, within, none, PRECISION), y)
        border = border_before(borders, border)
        going = tl.max(border)
    return y


@triton.jit
def modal_gradient_within(
    total, grad, grad_states, block, states, borders,
    M: tl.constexpr, BLOCK_T: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`modal_gradient` of documents."""
    column = step_of(tl.arange(0, BLOCK_T), M, BLOCK_T)[None, :]
    begun = columns_before(borders.head, grad, column)
    within = tl.dot(tl.trans(block), begun, total[0], input_precision=PRECISION)
    before, after = total[1], total[2]
    MODES: tl.constexpr = before.shape[0]
    entering, leaving = by_mode(states[1], MODES), by_mode(grad_states[1], MODES)
    entered = tl.where(borders.first < 0, begun, 0.0)
    left = columns_from(borders.tail, block, column)
    for i in tl.static_range(len(entering)):
        before = tl.dot(entering[i], entered, before, input_precision=PRECISION)
        after = tl.dot(leaving[i], left, after, input_precision=PRECISION)
    border, stop, going = borders.tail, borders.tail * 0 + BLOCK_T, borders.last
    while going > 0:
        own = columns_from(border, block, column)
        part = tl.where((border > 0) & (column >= border) & (column < stop), grad, 0.0)
        within = tl.dot(tl.trans(own), part, within, input_precision=PRECISION)
        stop = tl.where(border > 0, border, stop)
        border = border_before(borders, border)
        going = tl.max(border)
    return (within, before, after) + total[3:]


@triton.jit
def state_gradient_within(total, grad_states, states, passes):
    """`state_gradient` of documents."""
    both = total[3]
    for p in tl.static_range(8):
        both += tl.where(passes[p], states[0][p] * grad_states[0][p], 0.0)
    return total[:3] + (both,) + total[4:]
