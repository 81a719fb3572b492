"""A few steps of sequences whose past lies in rings: the helpers of kernels that decode.

A ring is [slots, columns]; the past of step t, counted from the first of a sequence, lies in slot
t % slots. A value of a tile program is a tuple of steps [BLOCK_D], a channel a lane.
"""

import triton
import triton.language as tl

from templates.parts.modal import decay_by
from templates.parts.trained import decay_at, log_pole


@triton.jit
def read_steps(
    ptr, row, channel, batch_stride, channel_stride, time_stride, channel_mask,
    STEPS: tl.constexpr,
):  # fmt: skip
    """The steps of a row as float32."""
    ptr += row * batch_stride.to(tl.int64) + channel * channel_stride.to(tl.int64)
    x = ()
    for i in tl.static_range(STEPS):
        x = x + (tl.load(ptr + i * time_stride, mask=channel_mask, other=0.0).to(tl.float32),)
    return x


@triton.jit
def write_steps(ptr, row, channel, batch_stride, channel_stride, time_stride, channel_mask, x):
    """Write steps to a row."""
    ptr += row * batch_stride.to(tl.int64) + channel * channel_stride.to(tl.int64)
    for i in tl.static_range(len(x)):
        tl.store(ptr + i * time_stride, x[i], mask=channel_mask)


@triton.jit
def no_steps(
    ptr, row, channel, batch_stride, channel_stride, time_stride, channel_mask,
    STEPS: tl.constexpr,
):  # fmt: skip
    """Write zeros to a row."""
    ptr += row * batch_stride.to(tl.int64) + channel * channel_stride.to(tl.int64)
    for i in tl.static_range(STEPS):
        tl.store(ptr + i * time_stride, tl.zeros(channel.shape, tl.float32), mask=channel_mask)


@triton.jit
def after_ring(
    x, ring, count, channel, channel_mask,
    LAG: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The LAG steps before step `count`, and x."""
    past = ()
    for i in tl.static_range(LAG):
        slot = (count + (SLOTS - LAG + i)) % SLOTS
        step = tl.load(ring + slot * COLUMNS + channel, mask=channel_mask, other=0.0)
        past = past + (step.to(tl.float32),)
    return past + x


@triton.jit
def keep_steps(x, ring, count, channel, channel_mask, SLOTS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write x to the ring, from step `count` on."""
    for i in tl.static_range(len(x)):
        slot = (count + i) % SLOTS
        tl.store(ring + slot * COLUMNS + channel, x[i], mask=channel_mask)


@triton.jit
def ring_conv(
    x, ring, count, lead, lane, channel, CHANNELS: tl.constexpr, taps_ptr, group, rate, row,
    own_rate, DECAYS: tl.constexpr, STEPS: tl.constexpr, LENGTH: tl.constexpr,
    LAG_LAST: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr,
    SHARE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """y[t] = sum_j taps[j] x[t - j] over x and the ring, of which CHUNK slots are read at once.

    Args:
        lane: channels as [1, BLOCK_D / SHARE, SHARE], each SHARE of one group; `lead` is the first
            of these, and `group` theirs, [1, BLOCK_D / SHARE, 1]; `row` is that of each channel.
        rate: how fast taps of a group decay, and own_rate those of a channel, if they do.
    """
    totals = ()
    for _ in tl.static_range(STEPS):
        totals = totals + (tl.zeros((BLOCK_D // SHARE, SHARE), tl.float32),)
    there = lane < CHANNELS
    for first in range(0, SLOTS, CHUNK):
        slot = first + tl.arange(0, CHUNK)[:, None, None]
        lag = tl.where(slot < SLOTS, (count + (SLOTS - 1) - slot) % SLOTS + 1, LENGTH)
        past = tl.load(ring + slot * COLUMNS + lane, mask=(lag < LENGTH) & there, other=0.0)
        past = past.to(tl.float32)
        sums = ()
        for i in tl.static_range(STEPS):
            tap = LENGTH - 1 - (lag + i) if LAG_LAST else lag + i
            known = (lag + i < LENGTH) & (lead < CHANNELS)
            taps = tl.load(taps_ptr + group * LENGTH + tap, mask=known, other=0.0).to(tl.float32)
            if DECAYS:
                taps *= decay_at(lag + i, rate)
            sums = sums + (totals[i] + tl.sum(past * taps, axis=0),)
        totals = sums
    y = ()
    for i in tl.static_range(STEPS):
        total = tl.reshape(totals[i], (BLOCK_D,))
        for j in tl.static_range(i + 1):
            if i - j < LENGTH:
                tap = LENGTH - 1 - (i - j) if LAG_LAST else i - j
                here = channel < CHANNELS
                own = tl.load(taps_ptr + row * LENGTH + tap, mask=here, other=0.0).to(tl.float32)
                if DECAYS:
                    own *= decay_at(i - j, own_rate)
                total += own * x[j]
        y = y + (total,)
    return y


@triton.jit
def modes_of_step(
    pole_pointers, residues_ptr, row, channel_mask, COUNT: tl.constexpr, MODES: tl.constexpr
):
    """What a step does to the COUNT <= MODES modes of each channel, and their residues."""
    mode = tl.arange(0, MODES)[None, :]
    there = channel_mask[:, None] & (mode < COUNT)
    where = row[:, None] * COUNT + mode
    residue = tl.load(residues_ptr + where, mask=there, other=0.0).to(tl.float32)
    return decay_by(log_pole(pole_pointers, where, there), 1), residue


@triton.jit
def read_state(ptr, channel, channel_mask, COUNT: tl.constexpr, MODES: tl.constexpr):
    """The state of each channel's modes, [BLOCK_D, MODES]."""
    mode = tl.arange(0, MODES)[None, :]
    there = channel_mask[:, None] & (mode < COUNT)
    return tl.load(ptr + channel[:, None] * COUNT + mode, mask=there, other=0.0)


@triton.jit
def write_state(ptr, state, channel, channel_mask, COUNT: tl.constexpr, MODES: tl.constexpr):
    """Write it."""
    mode = tl.arange(0, MODES)[None, :]
    there = channel_mask[:, None] & (mode < COUNT)
    tl.store(ptr + channel[:, None] * COUNT + mode, state, mask=there)


@triton.jit
def after_step(state, modes, x):
    """The state after a step x of each channel, of that before: `passed_on`, rounded alike in a
    loop and out of it, so that drafts that are replayed leave the same bits.
    """
    kept = tl.where(modes[0] > 0.0, 0.0, state)
    return kept + tl.fma(modes[0], state, x[:, None])


@triton.jit
def sum_of_modes(state, modes):
    """What a state adds to the output, of each channel."""
    return tl.sum(modes[1] * state, axis=1)


@triton.jit
def step_modes(
    x, modes, ptr, ring, count, replay, channel, channel_mask, SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr, COUNT: tl.constexpr, MODES: tl.constexpr, DRAFT: tl.constexpr,
):  # fmt: skip
    """The sums of modes after every step. The state after all of them is written; or, of drafts,
    that after the `replay` steps before, which the ring still has, and x to the ring.
    """
    state = read_state(ptr, channel, channel_mask, COUNT, MODES)
    if DRAFT:
        for i in range(replay):
            slot = (count - replay + i) % SLOTS
            step = tl.load(ring + slot * COLUMNS + channel, mask=channel_mask, other=0.0)
            state = after_step(state, modes, step)
        tl.debug_barrier()  # no warp writes what another has yet to read
        write_state(ptr, state, channel, channel_mask, COUNT, MODES)
        keep_steps(x, ring, count, channel, channel_mask, SLOTS, COLUMNS)
    y = ()
    for i in tl.static_range(len(x)):
        state = after_step(state, modes, x[i])
        y = y + (sum_of_modes(state, modes),)
    if not DRAFT:
        tl.debug_barrier()  # as above
        write_state(ptr, state, channel, channel_mask, COUNT, MODES)
    return y


@triton.jit
def steps_at(
    ptr, row, channel, batch_stride, channel_stride, time_stride, channel_mask, first, steps,
    CONTEXT: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """STEPS steps of a row from step `first` on and CONTEXT before them, as float32; zero where
    the row has none.
    """
    ptr += row * batch_stride.to(tl.int64) + channel * channel_stride.to(tl.int64)
    x = ()
    for i in tl.static_range(CONTEXT + STEPS):
        time = first - CONTEXT + i
        there = channel_mask & (time >= 0) & (time < steps)
        step = tl.load(ptr + time.to(tl.int64) * time_stride, mask=there, other=0.0)
        x = x + (step.to(tl.float32),)
    return x


@triton.jit
def with_ring(
    x, ring, count, first, channel, channel_mask,
    CONTEXT: tl.constexpr, LAG: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The steps x, CONTEXT of them before step `first`; those before step 0 from the ring."""
    out = ()
    for i in tl.static_range(len(x)):
        time = first - CONTEXT + i
        there = channel_mask & (time < 0) & (time >= -LAG)
        where = ring + (count + (SLOTS + time)) % SLOTS * COLUMNS + channel
        past = tl.load(where, mask=there, other=0.0).to(tl.float32)
        out = out + (tl.where(time < 0, past, x[i]),)
    return out


@triton.jit
def leave_steps(
    x, ring, count, first, end, channel, channel_mask,
    LAG: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the steps x from step `first` on to the ring, of the LAG before step `end`; zeros to
    the slots that are left.
    """
    for i in tl.static_range(len(x)):
        lag = end - (first + i)
        step = tl.where(lag <= LAG, x[i], 0.0)
        where = ring + (count + (SLOTS + end - lag)) % SLOTS * COLUMNS + channel
        tl.store(where, step, mask=channel_mask & (lag > 0) & (lag <= SLOTS))


@triton.jit
def keep_count(done, count, channel, channel_mask, COUNTED: tl.constexpr):
    """Write how many steps there were to every COUNTED channels."""
    tl.store(done + channel // COUNTED, count, mask=channel_mask & (channel % COUNTED == 0))
