"""The ordered sum of partial sums: the second step of every parameter gradient."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["splits", "first"])
def sum_partials(
    partials_ptr,  # [splits, P, CHANNELS] float32
    out_ptr,  # [rows, LENGTH] float32, rows = ROLES * CHANNELS / WIDTH
    splits, first,
    P: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, LENGTH: tl.constexpr,
    ROLES: tl.constexpr, INTERLEAVED: tl.constexpr, LAG_LAST: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Gradient rows of one parameter tensor: partials first .. first + ROLES * LENGTH - 1, summed
    over programs and over the WIDTH channels that share a row, always in the same order."""
    groups: tl.constexpr = CHANNELS // WIDTH
    blocks: tl.constexpr = (groups + BLOCK_G - 1) // BLOCK_G
    index = tl.program_id(0) // blocks  # which lag of which role
    group = tl.program_id(0) % blocks * BLOCK_G + tl.arange(0, BLOCK_G)[:, None]
    member = tl.arange(0, BLOCK_W)[None, :]
    total = tl.zeros((BLOCK_G, BLOCK_W), tl.float32)
    for begin in range(0, WIDTH, BLOCK_W):
        inside = (group < groups) & (begin + member < WIDTH)
        where = partials_ptr + (first + index) * CHANNELS + group * WIDTH + begin + member
        for _ in range(splits):
            total += tl.load(where, mask=inside, other=0.0)
            where += P * CHANNELS
    role = index // LENGTH
    lag = index % LENGTH
    tap = LENGTH - 1 - lag if LAG_LAST else lag
    row = group * ROLES + role if INTERLEAVED else role * groups + group
    tl.store(
        out_ptr + row * LENGTH + tap, tl.sum(total, axis=1, keep_dims=True), mask=group < groups
    )
