"""Helpers of modal_ends.py where modes are pairs: a sequence whose state is carried in and out."""

import triton
import triton.language as tl

from templates.parts.modal_ends import add_steps, ending, keep_state, state_of, steps_of
from templates.parts.modal_pairs import (
    chosen,
    decay_by,
    exponential,
    passed_on,
    plus,
    times,
)


@triton.jit
def to_the_end(a, left, BLOCK_T: tl.constexpr):
    """`to_the_end` of modal_ends.py, of complex numbers."""
    ahead = (left - 1 - tl.arange(0, BLOCK_T))[None, :]
    weight = exponential(a, tl.maximum(ahead, 0))
    return ahead, chosen(ahead >= 0, weight, (0.0, 0.0))


@triton.jit
def last_gradient(ends, COUNT: tl.constexpr, MODES: tl.constexpr):
    """The gradient of the last state as an adjoint state, [MODES / 2, 1]: its conjugate."""
    mode = tl.arange(0, MODES // 2)[:, None]
    there = mode < COUNT // 2
    real = tl.load(ends.leaving_ptr + 2 * mode, mask=there, other=0.0)
    return real, -tl.load(ends.leaving_ptr + 2 * mode + 1, mask=there, other=0.0)


@triton.jit
def begun(states, block, MODES: tl.constexpr, M: tl.constexpr):
    """`state_of` of modal_ends.py, of complex numbers, [MODES / 2, 1]."""
    real, imag = (), ()
    for p in tl.static_range(8):
        real = real + (states[p][0],)
        imag = imag + (states[p][1],)
    real = state_of(real, block, MODES // 2, M)
    return real[:, None], state_of(imag, block, MODES // 2, M)[:, None]


@triton.jit
def summed(z):
    """Sums of complex numbers along rows, which stay columns."""
    return tl.sum(z[0], 1)[:, None], tl.sum(z[1], 1)[:, None]


@triton.jit
def store_final_state(
    states, rows, modes, tile, ends, COUNT: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`store_final_state` of modal_ends.py, of COUNT / 2 complex numbers."""
    closes, block, left = ending(tile, M, N * 8)
    if closes:
        _, weight = to_the_end(modes.poles, left, N * 8)
        added = summed(times(weight, (steps_of(rows, block, M, N)[None, :], 0.0)))
        before = begun(states[0], block, MODES, M)
        after = passed_on(before, decay_by(modes.poles, left), added)
        mode = tl.arange(0, MODES // 2)[:, None]
        tl.store(ends.leaving_ptr + 2 * mode, after[0], mask=mode < COUNT // 2)
        tl.store(ends.leaving_ptr + 2 * mode + 1, after[1], mask=mode < COUNT // 2)


@triton.jit
def leave_gradient(
    total, states, rows, modes, tile, ends, COUNT: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`leave_gradient` of modal_ends.py, of COUNT / 2 complex numbers."""
    closes, block, left = ending(tile, M, N * 8)
    real, imag = total[5], total[6]
    if closes:
        ahead, weight = to_the_end(modes.poles, left, N * 8)
        steps = ahead * steps_of(rows, block, M, N)[None, :]
        before = times(exponential(modes.poles, left), begun(states[0], block, MODES, M))
        by_pole = plus(summed(times(weight, (steps, 0.0))), times((1.0 * left, 0.0), before))
        given = times(last_gradient(ends, COUNT, MODES), by_pole)
        real += tl.sum(given[0], 1)
        imag += tl.sum(given[1], 1)
    return total[:5] + (real, imag)


@triton.jit
def join_adjoint(state, there, steps, a, ends, COUNT: tl.constexpr, MODES: tl.constexpr):
    """`join_adjoint` of modal_ends.py, of COUNT / 2 complex numbers."""
    decayed = exponential(a, tl.maximum(steps - 1, 0))
    joined = times(last_gradient(ends, COUNT, MODES), decayed)
    return plus(state, chosen(there, joined, (0.0, 0.0)))


@triton.jit
def leave_adjoint(
    rows, modes, tile, ends, COUNT: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`leave_adjoint` of modal_ends.py, of COUNT / 2 complex numbers."""
    closes, block, left = ending(tile, M, N * 8)
    if closes:
        _, weight = to_the_end(modes.poles, left, N * 8)
        given = tl.sum(times(last_gradient(ends, COUNT, MODES), weight)[0], 0)
        rows = add_steps(rows, given, block, M, N)
    return rows


@triton.jit
def enter_gradient(
    state, modes, ends, split, COUNT: tl.constexpr, MODES: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """`enter_gradient` of modal_ends.py, of COUNT / 2 complex numbers."""
    if split.program == 0:
        gradient = times(exponential(modes.poles, 1), state)
        keep_state(ends.entry_ptr, 0, (gradient[0], -gradient[1]), COUNT, 0, MODES, M, True)
