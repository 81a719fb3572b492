"""The ordered sum of partial sums: the second step of every parameter gradient."""

import triton
import triton.language as tl


@triton.constexpr_function
def columns_at_once(width):
    """How many of `width` columns that share a row a program sums at once: a power of two."""
    return min(1024, 1 << (width - 1).bit_length())


@triton.constexpr_function
def rows_at_once(width):
    """How many rows of the gradient a program sums, where `width` columns share each."""
    return max(1, 128 // columns_at_once(width))


@triton.constexpr_function
def sum_blocks(columns, width):
    """How many programs sum one row of partial sums of so many columns."""
    return -(-(columns // width) // rows_at_once(width))


@triton.jit
def sum_rows(
    partials_ptr,  # [splits, P, COLUMNS] float32
    out_ptr,  # [rows, LENGTH] float32, rows = ROLES * COLUMNS / WIDTH
    splits, program,
    FIRST: tl.constexpr, P: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
    LENGTH: tl.constexpr, ROLES: tl.constexpr, INTERLEAVED: tl.constexpr, LAG_LAST: tl.constexpr,
):  # fmt: skip
    """One program's gradient rows of one parameter tensor: of partials FIRST .. FIRST + ROLES *
    LENGTH - 1, summed over splits and over the WIDTH columns that share a row, always in the same
    order."""
    BLOCK_G: tl.constexpr = rows_at_once(WIDTH)
    BLOCK_W: tl.constexpr = columns_at_once(WIDTH)
    AT_ONCE: tl.constexpr = 8  # splits: their loads wait together, their sums one after another
    groups: tl.constexpr = COLUMNS // WIDTH
    blocks: tl.constexpr = (groups + BLOCK_G - 1) // BLOCK_G
    index = program // blocks  # which lag of which role
    group = program % blocks * BLOCK_G + tl.arange(0, BLOCK_G)[:, None]
    member = tl.arange(0, BLOCK_W)[None, :]
    total = tl.zeros((BLOCK_G, BLOCK_W), tl.float32)
    for begin in range(0, WIDTH, BLOCK_W):
        inside = (group < groups) & (begin + member < WIDTH)
        where = partials_ptr + (FIRST + index) * COLUMNS + group * WIDTH + begin + member
        for split in range(0, splits, AT_ONCE):
            for i in tl.static_range(AT_ONCE):
                there = inside & (split + i < splits)
                total += tl.load(where + i * P * COLUMNS, mask=there, other=0.0)
            where += AT_ONCE * P * COLUMNS
    role = index // LENGTH
    lag = index % LENGTH
    tap = LENGTH - 1 - lag if LAG_LAST else lag
    row = group * ROLES + role if INTERLEAVED else role * groups + group
    tl.store(
        out_ptr + row * LENGTH + tap, tl.sum(total, axis=1, keep_dims=True), mask=group < groups
    )
