"""Helpers of modal_apart.py where modes are pairs."""

import triton
import triton.language as tl

from templates.parts.modal_apart import passing
from templates.parts.modal_pairs import (
    chosen,
    from_lane,
    lane_of,
    passed_on,
    plus,
    scan_rows,
    times,
)


@triton.jit
def chosen_block(begun, p: tl.constexpr, BLOCK_T: tl.constexpr, entered, other):
    """`chosen_block` of modal_apart.py, of complex numbers."""
    if p * BLOCK_T % 32 == 0:
        return chosen((begun >> (p * BLOCK_T // 32)) & 1 == 0, entered, other)
    else:
        return entered


@triton.jit
def scan_states_apart(ends, scan, state, begun,
    MODES: tl.constexpr, M: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """`scan_states` of documents, of complex numbers."""
    group, block, doublings, from_edge, left, lost = scan
    GROUPS: tl.constexpr = M // 8
    doubled, edge, whole = passing(begun, M, 1)
    end = scan_rows(ends, MODES, M)
    total = end[0]
    for p in tl.static_range(1, 8):
        total = chosen_block(begun, p, BLOCK_T, plus(times(total, block), end[p]), end[p])
    for i in tl.static_range(4):
        if 2**i < GROUPS:
            there = (group >= 2**i) & doubled[i]
            before = from_lane(total, (group + (GROUPS - 2**i)) % GROUPS, there)
            total = plus(total, times(doublings[i], before))
    now = from_lane(total, (group + (GROUPS - 1)) % GROUPS, group > 0)
    now = plus(now, chosen(edge, times(from_edge, state), (0.0, 0.0)))
    now = chosen_block(begun, 0, BLOCK_T, now, (0.0, 0.0))
    states = (now,)
    for p in tl.static_range(7):
        now = chosen_block(begun, p + 1, BLOCK_T, plus(times(now, block), end[p]), (0.0, 0.0))
        states = states + (now,)
    added = lane_of(total, GROUPS - 1, MODES, M)
    return states, passed_on(chosen(whole, state, (0.0, 0.0)), lost, added)


@triton.jit
def scan_adjoint_apart(starts, scan, state, begun,
    MODES: tl.constexpr, M: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """`scan_adjoint` of documents, of complex numbers."""
    group, block, doublings, entered_edge, left, lost = scan
    GROUPS: tl.constexpr = M // 8
    doubled, edge, whole = passing(begun, M, -1)
    start = scan_rows(starts, MODES, M)
    total = chosen_block(begun, 7, BLOCK_T, start[7], (0.0, 0.0))
    for p in tl.static_range(1, 8):
        more = plus(times(total, block), start[7 - p])
        total = chosen_block(begun, 7 - p, BLOCK_T, more, (0.0, 0.0))
    for i in tl.static_range(4):
        if 2**i < GROUPS:
            there = (group < GROUPS - 2**i) & doubled[i]
            after = from_lane(total, (group + 2**i) % GROUPS, there)
            total = plus(total, times(doublings[i], after))
    now = from_lane(total, (group + 1) % GROUPS, group < GROUPS - 1)
    now = plus(now, chosen(edge, times(left, state), (0.0, 0.0)))
    states = (now,)
    for p in tl.static_range(7):
        more = plus(times(now, block), start[7 - p])
        now = chosen_block(begun, 7 - p, BLOCK_T, more, (0.0, 0.0))
        states = (now,) + states
    added = lane_of(total, 0, MODES, M)
    return states, passed_on(chosen(whole, state, (0.0, 0.0)), lost, added)
