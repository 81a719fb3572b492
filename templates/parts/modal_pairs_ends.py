"""Helpers of modal_ends.py where modes are pairs: a sequence whose state is carried in and out."""

from typing import NamedTuple

import triton
import triton.language as tl

from templates.parts.modal_ends import keep_state, of_mode, steps_left
from templates.parts.modal_pairs import (
    chosen,
    decay_by,
    exponential,
    passed_on,
    plus,
    times,
    turns_of,
)


class Ends(NamedTuple):
    """`Ends` of modal_ends.py, of complex poles."""

    entry_ptr: object
    leaving_ptr: object
    log_poles_ptr: object
    frequencies_ptr: object


@triton.jit
def complex_pole(ends, mode, there):
    """The log-poles of some modes."""
    a = tl.load(ends.log_poles_ptr + mode, mask=there, other=0.0).to(tl.float32)
    frequency = tl.load(ends.frequencies_ptr + mode, mask=there, other=0.0).to(tl.float32)
    return a, turns_of(frequency)


@triton.jit
def last_gradient(ends, mode):
    """What the gradient of the last state of one mode is as an adjoint state: its conjugate."""
    return tl.load(ends.leaving_ptr + 2 * mode), -tl.load(ends.leaving_ptr + 2 * mode + 1)


@triton.jit
def pair_of(state, mode, MODES: tl.constexpr, M: tl.constexpr):
    """`of_mode` of modal.py, of complex numbers."""
    return of_mode(state[0], mode, MODES // 2, M), of_mode(state[1], mode, MODES // 2, M)


@triton.jit
def store_final_state(
    state, rows, tile, ends, COUNT: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`store_final_state` of modal.py, of COUNT / 2 complex numbers."""
    closes, left, ahead = steps_left(tile, rows, M, N)
    if closes:
        for mode in range(COUNT // 2):
            a = complex_pole(ends, mode, True)
            step = exponential(a, 1)
            value = (tl.zeros((M, N), tl.float32), tl.zeros((M, N), tl.float32))
            for r in tl.static_range(len(rows)):
                value = chosen(ahead >= r, plus(times(value, step), (rows[r], 0.0)), value)
            later = tl.maximum(ahead - (len(rows) - 1), 0)
            real, imag = times(value, exponential(a, later))
            begun = pair_of(state, mode, MODES, M)
            real_sum = tl.sum(tl.reshape(real, (M * N,)), 0)
            imag_sum = tl.sum(tl.reshape(imag, (M * N,)), 0)
            after = passed_on(begun, decay_by(a, left), (real_sum, imag_sum))
            tl.store(ends.leaving_ptr + 2 * mode, after[0])
            tl.store(ends.leaving_ptr + 2 * mode + 1, after[1])


@triton.jit
def leave_gradient(
    total, state, rows, tile, ends, COUNT: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`leave_gradient` of modal.py, of COUNT / 2 complex numbers."""
    closes, left, ahead = steps_left(tile, rows, M, N)
    real_found, imag_found = total[5], total[6]
    for mode in range(tl.where(closes, COUNT // 2, 0)):
        a = complex_pole(ends, mode, True)
        step = exponential(a, 1)
        value = (tl.zeros((M, N), tl.float32), tl.zeros((M, N), tl.float32))
        weighted = value
        for r in tl.static_range(len(rows)):  # a step later all d are one more
            weighted = chosen(ahead >= r, times(plus(weighted, value), step), weighted)
            value = chosen(ahead >= r, plus(times(value, step), (rows[r], 0.0)), value)
        later = tl.maximum(ahead - (len(rows) - 1), 0)
        value = plus(weighted, (later * value[0], later * value[1]))
        real, imag = times(value, exponential(a, later))
        begun = times(exponential(a, left), pair_of(state, mode, MODES, M))
        real_sum = tl.sum(tl.reshape(real, (M * N,)), 0) + left * begun[0]
        imag_sum = tl.sum(tl.reshape(imag, (M * N,)), 0) + left * begun[1]
        gradient = times(last_gradient(ends, mode), (real_sum, imag_sum))
        here = tl.arange(0, MODES // 2) == mode
        real_found += tl.where(here, gradient[0], 0.0)
        imag_found += tl.where(here, gradient[1], 0.0)
    return total[:5] + (real_found, imag_found)


@triton.jit
def join_adjoint(state, there, left, ends, COUNT: tl.constexpr, MODES: tl.constexpr):
    """`join_adjoint` of modal.py, of COUNT / 2 complex numbers."""
    mode = tl.arange(0, MODES // 2)[:, None]
    there &= mode < COUNT // 2
    a = complex_pole(ends, mode, there)
    real = tl.load(ends.leaving_ptr + 2 * mode, mask=there, other=0.0)
    imag = tl.load(ends.leaving_ptr + 2 * mode + 1, mask=there, other=0.0)
    joined = times((real, -imag), exponential(a, tl.maximum(left - 1, 0)))
    return plus(state, (tl.where(there, joined[0], 0.0), tl.where(there, joined[1], 0.0)))


@triton.jit
def leave_adjoint(
    rows, state, tile, ends, COUNT: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`leave_adjoint` of modal.py, of COUNT / 2 complex numbers."""
    closes, left, ahead = steps_left(tile, rows, M, N)
    for mode in range(tl.where(closes, COUNT // 2, 0)):
        a = complex_pole(ends, mode, True)
        step = exponential(a, 1)
        later = tl.maximum(ahead - (len(rows) - 1), 0)
        decayed = times(last_gradient(ends, mode), exponential(a, later))
        out = ()
        for r in tl.static_range(len(rows) - 1, -1, -1):
            out = (rows[r] + tl.where(ahead >= r, decayed[0], 0.0),) + out
            decayed = chosen(ahead >= r, times(decayed, step), decayed)
        rows = out
    state = join_adjoint(state, closes, left, ends, COUNT, MODES)
    return rows, state


@triton.jit
def enter_gradient(
    state, modes, ends, split, COUNT: tl.constexpr, MODES: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """`enter_gradient` of modal.py, of COUNT / 2 complex numbers."""
    if split.program == 0:
        gradient = times(exponential(modes.poles, 1), state)
        keep_state(ends.entry_ptr, 0, (gradient[0], -gradient[1]), COUNT, 0, MODES, M, True)
