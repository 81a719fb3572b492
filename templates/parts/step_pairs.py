"""What decoding by pairs of complex modes needs in the place of helpers of `step.py`."""

import triton
import triton.language as tl

from templates.parts.modal_pairs import decay_by, turns_of


@triton.jit
def modes_of_step(
    log_poles_ptr, frequencies_ptr, residues_real_ptr, residues_imag_ptr, row, channel_mask,
    COUNT: tl.constexpr, MODES: tl.constexpr,
):  # fmt: skip
    """`modes_of_step` of step.py, of pairs: complex numbers are tuples of two tensors."""
    mode = tl.arange(0, MODES)[None, :]
    there = channel_mask[:, None] & (mode < COUNT)
    where = row[:, None] * COUNT + mode
    decay = tl.load(log_poles_ptr + where, mask=there, other=-1.0).to(tl.float32)
    frequency = tl.load(frequencies_ptr + where, mask=there, other=0.0).to(tl.float32)
    real = tl.load(residues_real_ptr + where, mask=there, other=0.0).to(tl.float32)
    imag = tl.load(residues_imag_ptr + where, mask=there, other=0.0).to(tl.float32)
    return decay_by((decay, turns_of(frequency)), 1), (real, imag)


@triton.jit
def read_state(ptr, channel, channel_mask, COUNT: tl.constexpr, MODES: tl.constexpr):
    """`read_state` of step.py, of pairs."""
    mode = tl.arange(0, MODES)[None, :]
    there = channel_mask[:, None] & (mode < COUNT)
    where = ptr + (channel[:, None] * COUNT + mode) * 2
    return tl.load(where, mask=there, other=0.0), tl.load(where + 1, mask=there, other=0.0)


@triton.jit
def write_state(ptr, state, channel, channel_mask, COUNT: tl.constexpr, MODES: tl.constexpr):
    """`write_state` of step.py, of pairs."""
    mode = tl.arange(0, MODES)[None, :]
    there = channel_mask[:, None] & (mode < COUNT)
    where = ptr + (channel[:, None] * COUNT + mode) * 2
    tl.store(where, state[0], mask=there)
    tl.store(where + 1, state[1], mask=there)


@triton.jit
def after_step(state, modes, x):
    """`after_step` of step.py, of pairs."""
    lost, real, imag = modes[0], state[0], state[1]
    kept_real, kept_imag = tl.where(lost[2], real, 0.0), tl.where(lost[2], imag, 0.0)
    change = tl.fma(lost[0], real, tl.fma(-lost[1], imag, x[:, None]))
    return kept_real + change, kept_imag + tl.fma(lost[0], imag, lost[1] * real)


@triton.jit
def sum_of_modes(state, modes):
    """`sum_of_modes` of step.py, of pairs: twice the real part."""
    return 2.0 * tl.sum(modes[1][0] * state[0] - modes[1][1] * state[1], axis=1)
