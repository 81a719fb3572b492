"""Rows outside of heads (heads.py) in tiles that make no operands of products, where a choice for
each row takes fewer registers than one for each vector.
"""

import triton
import triton.language as tl

from templates.parts.heads import outside_heads
from templates.parts.tiles_first import load_steps


@triton.jit
def load_counted(
    ptr, counted_ptr, tile, stride, unit,
    LO: tl.constexpr, HI: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`load_steps` from the first step of each block on, zero in heads."""
    tl.static_assert(LO == 0, "rows are counted from a multiple of 8")
    rows = load_steps(ptr, tile, stride, unit, LO, HI, EVEN, ROWS, BLOCK_D, N)
    return outside_heads(rows, counted_ptr, tile, ROWS, N)
