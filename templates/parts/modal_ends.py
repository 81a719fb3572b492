"""States of tiles and at the ends of sequences and splits: what is carried in, and out."""

from typing import NamedTuple

import triton
import triton.language as tl

from templates.parts.channels_first import rows_vector, vector_rows
from templates.parts.modal import (
    decay_by,
    lane_of,
    operand_states,
    passed_on,
    scan_adjoint,
    zero_state,
)
from templates.parts.rows import fir_adjoint, load_taps
from templates.parts.toeplitz import product


class Split(NamedTuple):
    """One of the splits of a sequence, and what all of its tiles add to states.

    Attributes:
        sums_ptr: of the sequence's tiles, if it is split.
        program: which split this is.
        tile_0, tiles: its first tile, and how many it has at most.
        tiles_in_all: of the sequence.
    """

    sums_ptr: object
    program: object
    tile_0: object
    tiles: object
    tiles_in_all: object


class Ends(NamedTuple):
    """Where a channel's state before the first step lies, or its gradient, and that after the
    last step.
    """

    entry_ptr: object
    leaving_ptr: object


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
):  # fmt: skip
    """The LENGTH steps of one input before the first, the oldest first."""
    steps = ()
    for i in tl.static_range(LENGTH):
        steps = steps + (tl.load(ptr + (ROLE * CHANNELS + row) * LENGTH + i).to(tl.float32),)
    return steps


@triton.jit
def with_history(rows, history, tile, COUNT: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Rows whose context, in the first lane of the first tile, is COUNT steps of history."""
    lane = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    begins = (lane == 0) & (tile.earliest == tile.read_begin)
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
    LANES: tl.constexpr = M // 8
    for some in range(begin, stop, LANES):
        number = tl.minimum(some + tl.arange(0, LANES)[None, :], stop - 1)
        tile = number if TIME == 1 else split.tiles_in_all - 1 - number
        sums = load_state(split.sums_ptr, tile, COUNT, CHANNELS, MODES, M)  # a tile a lane
        for i in tl.static_range(LANES):
            later = passed_on(state, modes.scan.lost, lane_of(sums, i, MODES, M))
            state = chosen(some + i < stop, later, state)
    return state


@triton.jit
def state_before(
    split, modes, COUNT: tl.constexpr, CHANNELS: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """The state before the first step of a split, for every lane of the scan, where it is zero
    before the sequence: if SPLIT, by the arithmetic of a walk along all tiles before it.
    """
    state = zero_state(MODES, M)
    if SPLIT:
        state = walk(state, split, 0, split.tile_0, modes, COUNT, CHANNELS, MODES, M, 1)
    return state


@triton.jit
def load_initial_state(
    ends, split, modes, COUNT: tl.constexpr, CHANNELS: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """`state_before` where that before the sequence is given."""
    state = load_state(ends.entry_ptr, 0, COUNT, 0, MODES, M)
    if SPLIT:
        state = walk(state, split, 0, split.tile_0, modes, COUNT, CHANNELS, MODES, M, 1)
    return state


@triton.jit
def adjoint_after(
    split, modes, COUNT: tl.constexpr, CHANNELS: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """The adjoint state after the last step of a split, for every lane, as `state_before`."""
    state = zero_state(MODES, M)
    if SPLIT:
        after = tl.maximum(split.tiles_in_all - split.tile_0 - split.tiles, 0)
        last = load_state(split.sums_ptr, split.tiles_in_all - 1, COUNT, CHANNELS, MODES, M)
        state = chosen(after > 0, last, state)
        state = walk(state, split, 1, after, modes, COUNT, CHANNELS, MODES, M, -1)
    return state


@triton.jit
def enter_adjoint(
    ends, split, modes, end, COUNT: tl.constexpr, CHANNELS: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, BLOCK_T: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """`adjoint_after` where the gradient of the last state is given, which joins it in the last
    tile.
    """
    state = zero_state(MODES, M)
    if SPLIT:
        after = tl.maximum(split.tiles_in_all - split.tile_0 - split.tiles, 0)
        last = load_state(split.sums_ptr, split.tiles_in_all - 1, COUNT, CHANNELS, MODES, M)
        steps = end - (split.tiles_in_all - 1 - split.tile_0) * (M * BLOCK_T)
        last = join_adjoint(last, after > 0, steps, modes.poles, ends, COUNT, MODES)
        state = chosen(after > 0, last, state)
        state = walk(state, split, 1, after, modes, COUNT, CHANNELS, MODES, M, -1)
    return state


@triton.jit
def ending(tile, M: tl.constexpr, BLOCK_T: tl.constexpr):
    """Whether a sequence ends within a tile, in which of its blocks, and how many steps of that
    are before the end.
    """
    steps = tile.write_end - tile.earliest
    block = (steps - 1) // BLOCK_T
    return steps <= M * BLOCK_T, block, steps - block * BLOCK_T


@triton.jit
def steps_of(rows, block, M: tl.constexpr, N: tl.constexpr):
    """The steps of one block of a tile, [8 N]."""
    own = tl.arange(0, M)[:, None] == block
    return tl.sum(tl.where(own, rows_vector(rows, 0, M, N, tl.float32), 0.0), 0)


@triton.jit
def add_steps(rows, steps, block, M: tl.constexpr, N: tl.constexpr):
    """Add [8 N] to the steps of one block of a tile: the adjoint of steps_of."""
    own = tl.arange(0, M)[:, None] == block
    added = vector_rows(tl.where(own, steps[None, :], 0.0), M, N)
    out = ()
    for r in tl.static_range(len(rows)):
        out = out + (rows[r] + added[r],)
    return out


@triton.jit
def state_of(states, block, MODES: tl.constexpr, M: tl.constexpr):
    """The state before one block of a tile, [MODES], from those before all of them."""
    group = tl.arange(0, M // 8)[None, :]
    found = tl.zeros((MODES, M // 8), tl.float32)
    for p in tl.static_range(8):
        found += tl.where(8 * group + p == block, states[p], 0.0)
    return tl.sum(found, 1)


@triton.jit
def to_the_end(a, left, BLOCK_T: tl.constexpr):
    """How many steps every step of the last block is before its last, `left` in all, and
    exp(a d) of these d, [MODES, BLOCK_T]; zero behind the end.
    """
    ahead = (left - 1 - tl.arange(0, BLOCK_T))[None, :]
    weight = tl.where(ahead >= 0, tl.exp(a[:, None] * tl.maximum(ahead, 0)), 0.0)
    return ahead, weight


@triton.jit
def last_gradient(ends, COUNT: tl.constexpr, MODES: tl.constexpr):
    """The gradient of the last state, [MODES]."""
    mode = tl.arange(0, MODES)
    return tl.load(ends.leaving_ptr + mode, mask=mode < COUNT, other=0.0)


@triton.jit
def store_final_state(
    states, rows, modes, tile, ends, COUNT: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Write the state after the last step, from that before the block which holds it.

    A block that is not whole would decay beyond the end, and nothing divides by a decay: so the
    last block is summed once more, by steps to the end instead of to the end of the block.
    """
    closes, block, left = ending(tile, M, N * 8)
    if closes:
        _, weight = to_the_end(modes.poles, left, N * 8)
        added = tl.sum(weight * steps_of(rows, block, M, N)[None, :], 1)
        before = state_of(states[0], block, MODES, M)
        mode = tl.arange(0, MODES)
        after = passed_on(before, decay_by(modes.poles, left), added)
        tl.store(ends.leaving_ptr + mode, after, mask=mode < COUNT)


@triton.jit
def leave_gradient(
    total, states, rows, modes, tile, ends, COUNT: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Add what the gradient of the last state gives to those of poles within the last block: that
    of d exp(a d), d steps from x[t] or from the state before the block to the end.
    """
    closes, block, left = ending(tile, M, N * 8)
    found = total[4]
    if closes:
        ahead, weight = to_the_end(modes.poles, left, N * 8)
        by_pole = tl.sum(ahead * weight * steps_of(rows, block, M, N)[None, :], 1)
        by_pole += left * tl.exp(modes.poles * left) * state_of(states[0], block, MODES, M)
        found += last_gradient(ends, COUNT, MODES) * by_pole
    return total[:4] + (found,)


@triton.jit
def join_adjoint(state, there, steps, a, ends, COUNT: tl.constexpr, MODES: tl.constexpr):
    """Add the gradient of the last state, where it is `there`, to adjoint states so many steps
    before the end.
    """
    decayed = tl.exp(a[:, None] * tl.maximum(steps - 1, 0))
    joined = last_gradient(ends, COUNT, MODES)[:, None] * decayed
    return state + tl.where(there, joined, 0.0)


@triton.jit
def states_to_end(
    block, modes, state, tile, ends,
    COUNT: tl.constexpr, MODES: tl.constexpr, M: tl.constexpr, BLOCK_T: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`states_after` where a sequence ends with the gradient of its last state, which joins the
    adjoint states after all blocks before the last.
    """
    starts = product((block,), modes.to_start, tl.zeros((M, MODES), tl.float32), 1, PRECISION)
    found, state = scan_adjoint(starts, modes.scan, state, MODES, M)
    steps = tile.write_end - tile.earliest
    if steps <= M * BLOCK_T:
        group = tl.arange(0, M // 8)[None, :]
        joined = ()
        for p in tl.static_range(8):
            ahead = steps - (8 * group + (p + 1)) * BLOCK_T
            joined = joined + (
                join_adjoint(found[p], ahead > 0, ahead, modes.poles, ends, COUNT, MODES),
            )
        found = joined
        state = join_adjoint(state, True, steps, modes.poles, ends, COUNT, MODES)
    return operand_states(found, MODES, M, OPERAND, PRECISION), state


@triton.jit
def leave_adjoint(
    rows, modes, tile, ends, COUNT: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Add what the gradient of the last state gives to those of the steps of the last block."""
    closes, block, left = ending(tile, M, N * 8)
    if closes:
        _, weight = to_the_end(modes.poles, left, N * 8)
        given = tl.sum(last_gradient(ends, COUNT, MODES)[:, None] * weight, 0)
        rows = add_steps(rows, given, block, M, N)
    return rows


@triton.jit
def enter_gradient(
    state, modes, ends, split, COUNT: tl.constexpr, MODES: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the state before the first step."""
    if split.program == 0:
        gradient = tl.exp(modes.poles)[:, None] * state
        keep_state(ends.entry_ptr, 0, gradient, COUNT, 0, MODES, M, True)


@triton.jit
def leave_rows(
    ptr, row, rows, here, ROLE: tl.constexpr, LENGTH: tl.constexpr, CHANNELS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Write the last LENGTH rows of a split, of a gradient before its featurizer's adjoint, for
    `join_splits`, if SPLIT and `here`, in the tile that holds them.
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
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Write the gradient of one input's history, from `after` of `extend` and its featurizer's
    taps: the last lane of `after` holds the first rows of the sequence.
    """
    LENGTH: tl.constexpr = len(after)
    lane = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    for back in tl.static_range(1, LENGTH + 1):
        value = taps[back] * after[0]
        for r in tl.static_range(1, LENGTH + 1 - back):
            value += taps[back + r] * after[r]
        where = ptr + (ROLE * CHANNELS + row) * LENGTH + (LENGTH - back)
        tl.store(where + lane * 0, value, mask=(lane == M * N - 1) & (program == 0))


@triton.jit(do_not_specialize=["d_input_batch", "d_input_stride", "splits", "steps"])
def join_splits(
    edges_ptr,  # [batch, splits, ROLES, CHANNELS, 2, LENGTH] float32: first and last rows
    featurizer_ptr,  # of one row a channel and role
    d_input_ptr, d_input_batch, d_input_stride,
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
    where = d_input_ptr + batch.to(tl.int64) * d_input_batch + row.to(tl.int64) * d_input_stride
    for r in tl.static_range(LENGTH):
        value = gradient[r].to(d_input_ptr.dtype.element_ty)
        tl.store(where + (end - LENGTH + r) * UNIT, value, mask=channel_mask)
