"""Positions of rows of channels-last tensors, which are read step by step."""

import triton
import triton.language as tl


@triton.jit
def load_positions(
    ptr, tile, LO: tl.constexpr, HI: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """Positions of rows LO .. HI - 1 from the first step of each block of ROWS, [LANES, N]; -1
    outside [read_begin, read_end).
    """
    rows = ()
    block = tl.arange(0, N)[None, :] * ROWS
    for r in tl.static_range(LO, HI):
        time = tile.begin + r + block
        there = (time >= tile.read_begin) & (time < tile.read_end)
        rows = rows + (tl.load(ptr + time, mask=there, other=-1).to(tl.int32),)
    return rows
