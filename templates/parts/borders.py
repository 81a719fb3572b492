"""Which document of a row a step is in, by where documents end."""

import triton
import triton.language as tl


@triton.jit
def last_border(cu_seqlens_ptr, step, documents, rounds, BLOCK: tl.constexpr):
    """The index of the last border that is not behind each step, in `rounds` halvings."""
    low = tl.zeros((BLOCK,), tl.int32)
    high = low + documents
    for _ in range(rounds):
        middle = (low + high + 1) // 2
        behind = tl.load(cu_seqlens_ptr + middle) > step
        low = tl.where(behind, low, middle)
        high = tl.where(behind, middle - 1, high)
    return low
