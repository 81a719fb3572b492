"""The ordered sum of partial sums: the second step of every parameter gradient."""

from typing import NamedTuple

import triton
import triton.language as tl

from templates.parts.trained import decay_at


class Sums(NamedTuple):
    """What a program has summed of the gradient of a parameter [rows, LENGTH].

    Attributes:
        total: float32 [BLOCK_G, 1].
        group: of which groups or channels, likewise.
        lag: of which tap or mode.
        where: elements of the parameter, those that are `there`.
    """

    total: object
    group: object
    lag: object
    where: object
    there: object


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
    splits, program,
    FIRST: tl.constexpr, P: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
    LENGTH: tl.constexpr, ROLES: tl.constexpr, INTERLEAVED: tl.constexpr, LAG_LAST: tl.constexpr,
):  # fmt: skip
    """One program's gradient rows of one parameter tensor [rows, LENGTH], rows = ROLES * COLUMNS /
    WIDTH: of partials FIRST .. FIRST + ROLES * LENGTH - 1, summed over splits and over the WIDTH
    columns that share a row, always in the same order.
    """
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
    total = tl.sum(total, axis=1, keep_dims=True)
    return Sums(total, group, lag, row * LENGTH + tap, group < groups)


@triton.jit
def store_gradient(out_ptr, sums):
    """Write gradients of a parameter, in its dtype."""
    tl.store(out_ptr + sums.where, sums.total, mask=sums.there)


@triton.jit
def before_decay(sums, rate):
    """Gradients of taps before their decay, of those after it."""
    return Sums(
        sums.total * decay_at(sums.lag, rate), sums.group, sums.lag, sums.where, sums.there
    )
