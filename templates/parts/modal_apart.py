"""Recurrences of documents that lie apart (apart.py), each from the first step of a block on: no
state goes from a block to one in which a document begins.
"""

import triton
import triton.language as tl

from templates.parts.channels_first import vector_rows
from templates.parts.modal import lane_of, operand_states, passed_on, product, swapped


@triton.jit
def begun_bits(begun_ptr, t, read_end, M: tl.constexpr, BLOCK_T: tl.constexpr):
    """In which 32 steps of eight consecutive blocks a document begins, of a tile that begins at
    step t: [1, M / 8], a bit each.
    """
    tl.static_assert(BLOCK_T <= 32, "a document begins with a block")
    first = t + tl.arange(0, M // 8)[None, :] * (8 * BLOCK_T)
    bits = tl.load(begun_ptr + first // 256, mask=first < read_end, other=0).to(tl.int32)
    return (bits >> (first // 32 % 8)) & (2 ** (BLOCK_T // 4) - 1)


@triton.jit
def chosen_block(begun, p: tl.constexpr, BLOCK_T: tl.constexpr, entered, other):
    """The first of both where a state enters the p-th of eight blocks, else the other."""
    if p * BLOCK_T % 32 == 0:
        return tl.where((begun >> (p * BLOCK_T // 32)) & 1 == 0, entered, other)
    else:
        return entered


@triton.jit
def passing(begun, M: tl.constexpr, TIME: tl.constexpr):
    """Which states pass the eight blocks of a lane of the scan, and more at each doubling; those
    that come from the tile's edge to a lane; and whether one passes the tile. TIME is 1 from its
    first step on, -1 from its last.
    """
    GROUPS: tl.constexpr = M // 8
    group = tl.arange(0, GROUPS)[None, :]
    all_pass = (begun == 0).to(tl.int32)
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
def scan_states_apart(ends, scan, state, begun,
    MODES: tl.constexpr, M: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """`scan_states` of documents."""
    group, block, doublings, from_edge, left, lost = scan
    GROUPS: tl.constexpr = M // 8
    doubled, edge, whole = passing(begun, M, 1)
    end = vector_rows(swapped(tl.trans(ends), M, True), MODES, GROUPS)
    total = end[0]
    for p in tl.static_range(1, 8):
        total = chosen_block(begun, p, BLOCK_T, total * block + end[p], end[p])
    for i in tl.static_range(4):
        if 2**i < GROUPS:
            before = tl.gather(total, (group + (GROUPS - 2**i)) % GROUPS, 1)
            total += tl.where((group >= 2**i) & doubled[i], doublings[i] * before, 0.0)
    before = tl.gather(total, (group + (GROUPS - 1)) % GROUPS, 1)
    now = tl.where(group > 0, before, 0.0) + tl.where(edge, from_edge * state, 0.0)
    now = chosen_block(begun, 0, BLOCK_T, now, 0.0)
    states = (now,)
    for p in tl.static_range(7):
        now = chosen_block(begun, p + 1, BLOCK_T, now * block + end[p], 0.0)
        states = states + (now,)
    added = lane_of(total, GROUPS - 1, MODES, M)
    return states, passed_on(tl.where(whole, state, 0.0), lost, added)


@triton.jit
def scan_adjoint_apart(starts, scan, state, begun,
    MODES: tl.constexpr, M: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """`scan_adjoint` of documents."""
    group, block, doublings, entered_edge, left, lost = scan
    GROUPS: tl.constexpr = M // 8
    doubled, edge, whole = passing(begun, M, -1)
    start = vector_rows(swapped(tl.trans(starts), M, True), MODES, GROUPS)
    total = chosen_block(begun, 7, BLOCK_T, start[7], 0.0)
    for p in tl.static_range(1, 8):
        total = chosen_block(begun, 7 - p, BLOCK_T, total * block + start[7 - p], 0.0)
    for i in tl.static_range(4):
        if 2**i < GROUPS:
            after = tl.gather(total, (group + 2**i) % GROUPS, 1)
            total += tl.where((group < GROUPS - 2**i) & doubled[i], doublings[i] * after, 0.0)
    after = tl.gather(total, (group + 1) % GROUPS, 1)
    now = tl.where(group < GROUPS - 1, after, 0.0) + tl.where(edge, left * state, 0.0)
    states = (now,)
    for p in tl.static_range(7):
        now = chosen_block(begun, 7 - p, BLOCK_T, now * block + start[7 - p], 0.0)
        states = (now,) + states
    added = lane_of(total, 0, MODES, M)
    return states, passed_on(tl.where(whole, state, 0.0), lost, added)


@triton.jit
def states_before_apart(
    block, modes, state, begun_ptr, t, read_end, MODES: tl.constexpr, M: tl.constexpr,
    BLOCK_T: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`states_before` of documents."""
    ends = product((block,), modes.to_end, tl.zeros((M, MODES), tl.float32), 1, PRECISION)
    begun = begun_bits(begun_ptr, t, read_end, M, BLOCK_T)
    found, state = scan_states_apart(ends, modes.scan, state, begun, MODES, M, BLOCK_T)
    return operand_states(found, MODES, M, OPERAND, PRECISION), state


@triton.jit
def states_after_apart(
    block, modes, state, begun_ptr, t, read_end, MODES: tl.constexpr, M: tl.constexpr,
    BLOCK_T: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`states_after` of documents."""
    starts = product((block,), modes.to_start, tl.zeros((M, MODES), tl.float32), 1, PRECISION)
    begun = begun_bits(begun_ptr, t, read_end, M, BLOCK_T)
    found, state = scan_adjoint_apart(starts, modes.scan, state, begun, MODES, M, BLOCK_T)
    return operand_states(found, MODES, M, OPERAND, PRECISION), state
