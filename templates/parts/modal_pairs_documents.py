"""Helpers of modal_documents.py where modes are pairs."""

import triton
import triton.language as tl

from templates.parts.modal_documents import passing
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
def scan_states_within(ends, scan, state, passes, MODES: tl.constexpr, M: tl.constexpr):
    """`scan_states` of documents, of complex numbers."""
    group, block, doublings, entered, left, lost = scan
    GROUPS: tl.constexpr = M // 8
    doubled, edge, whole = passing(passes, M, 1)
    end = scan_rows(ends, MODES, M)
    total = end[0]
    for p in tl.static_range(1, 8):
        total = plus(chosen(passes[p], times(total, block), (0.0, 0.0)), end[p])
    for i in tl.static_range(4):
        if 2**i < GROUPS:
            there = (group >= 2**i) & doubled[i]
            before = from_lane(total, (group + (GROUPS - 2**i)) % GROUPS, there)
            total = plus(total, times(doublings[i], before))
    now = from_lane(total, (group + (GROUPS - 1)) % GROUPS, group > 0)
    now = plus(now, chosen(edge, times(entered, state), (0.0, 0.0)))
    states = (now,)
    for p in tl.static_range(7):
        now = plus(chosen(passes[p], times(now, block), (0.0, 0.0)), end[p])
        states = states + (now,)
    added = lane_of(total, GROUPS - 1, MODES, M)
    return states, passed_on(chosen(whole, state, (0.0, 0.0)), lost, added)


@triton.jit
def scan_adjoint_within(starts, scan, state, passes, MODES: tl.constexpr, M: tl.constexpr):
    """`scan_adjoint` of documents, of complex numbers."""
    group, block, doublings, entered, left, lost = scan
    GROUPS: tl.constexpr = M // 8
    doubled, edge, whole = passing(passes, M, -1)
    start = scan_rows(starts, MODES, M)
    total = start[7]
    for p in tl.static_range(1, 8):
        total = plus(chosen(passes[7 - p], times(total, block), (0.0, 0.0)), start[7 - p])
    for i in tl.static_range(4):
        if 2**i < GROUPS:
            there = (group < GROUPS - 2**i) & doubled[i]
            after = from_lane(total, (group + 2**i) % GROUPS, there)
            total = plus(total, times(doublings[i], after))
    now = from_lane(total, (group + 1) % GROUPS, group < GROUPS - 1)
    now = plus(now, chosen(edge, times(left, state), (0.0, 0.0)))
    states = (now,)
    for p in tl.static_range(7):
        now = plus(chosen(passes[7 - p], times(now, block), (0.0, 0.0)), start[7 - p])
        states = (now,) + states
    added = lane_of(total, 0, MODES, M)
    return states, passed_on(chosen(whole, state, (0.0, 0.0)), lost, added)


@triton.jit
def state_gradient_within(total, grad_states, states, passes):
    """`state_gradient` of documents, where the product of two states is complex."""
    both = (total[3], total[4])
    for p in tl.static_range(8):
        found = times(states[0][p], grad_states[0][p])
        both = plus(both, chosen(passes[p], found, (0.0, 0.0)))
    return total[:3] + both + total[5:]
