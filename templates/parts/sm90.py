"""Streams backward in time on sm_90, in Gluon: the helpers that stream_sm90.py.j2 calls.

A program multiplies 128 rows, which are BLOCK_D channels of SEGMENTS segments, in two halves of 64
rows with half of the segments each. A block of 64 steps has two parts of 32 steps. The part of a
half is a *quarter* [64, 32]: each lane of 8 warps holds 8 consecutive steps of one row, in other
words 8 rows [64, 4] in the sense of rows.py, whose helpers serve here too.

Products on the tensor cores want columns 8 g + 2 c + e in lane c of a row. Which step a column
stands for is free, as long as all operands agree: column 8 g + 2 c + e of a part is its step
8 c + 2 g + e. So values go from rows to products and back without leaving their lane.

Blocks live in shared memory: inputs as words of two bfloat16 steps, remembered values as operands
of products.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper

from templates.parts.trained import power_of_two


@gluon.constexpr_function
def row_layout():
    """[64, 4]: a row of a quarter."""
    lanes = [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout([], lanes, [[8, 0], [16, 0], [32, 0]], [], [64, 4])


@gluon.constexpr_function
def word_layout():
    """[64, 16]: a quarter as words of two steps."""
    lanes = [[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]]
    warps = [[8, 0], [16, 0], [32, 0]]
    return gl.DistributedLinearLayout([[0, 1], [0, 2]], lanes, warps, [], [64, 16])


@gluon.constexpr_function
def quarter_layout():
    """[64, 32]: a quarter as bfloat16."""
    lanes = [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]]
    warps = [[8, 0], [16, 0], [32, 0]]
    return gl.DistributedLinearLayout([[0, 1], [0, 2], [0, 4]], lanes, warps, [], [64, 32])


@gluon.constexpr_function
def edge_layout():
    """[64, 4]: how the words before a block are copied, a row to a lane."""
    lanes = [[1, 0], [2, 0], [4, 0], [0, 0], [0, 0]]
    warps = [[8, 0], [16, 0], [32, 0]]
    return gl.DistributedLinearLayout([[0, 1], [0, 2]], lanes, warps, [], [64, 4])


@gluon.constexpr_function
def copy_layout():
    """[64, 32]: how the words of a block are copied, 128 bytes of a row at a time."""
    return gl.BlockedLayout([1, 4], [4, 8], [8, 1], [1, 0])


@gluon.constexpr_function
def product_layout():
    """[128, 64]: sums of products that convolve."""
    return gl.NVMMADistributedLayout([3, 0], [8, 1], [16, 64, 16])


@gluon.constexpr_function
def gradient_layout():
    """[64, 64]: sums of products that make the gradient of a Toeplitz matrix."""
    return gl.NVMMADistributedLayout([3, 0], [4, 2], [16, 32, 16])


@gluon.constexpr_function
def operand_memory():
    """Shared memory that products read: bfloat16, rows of 128 bytes."""
    return gl.NVMMASharedLayout(128, 16, 2)


@gluon.jit
def toeplitz_matrices(
    ptr, group, rates, LENGTH: gl.constexpr, LAG_LAST: gl.constexpr, COUNT: gl.constexpr
):
    """T_s[j, i] = taps[64 s + i - j], zero where there is no such tap, in shared memory: COUNT
    matrices [64, 64] with steps in the order of products. `rates` as of load_toeplitz.
    """
    matrices = gl.allocate_shared_memory(gl.bfloat16, [COUNT, 64, 64], operand_memory())
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [8, 1], [1, 0])
    j = step_of(gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, layout)), 1))
    i = step_of(gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(0, layout)), 0))
    for s in gl.static_range(COUNT):
        lag = s * 64 + i - j
        tap = LENGTH - 1 - lag if LAG_LAST else lag
        where = ptr + group * LENGTH + tap
        value = gl.load(where, mask=(lag >= 0) & (lag < LENGTH), other=0.0)
        if len(rates) > 0:
            value = value.to(gl.float32) * toeplitz_decay(s, i, j, rates[0])
        matrices.index(s).store(value.to(gl.bfloat16))
    return matrices


@gluon.jit
def decay_by_sums(lag, rate):
    """decay_at, without an exponential: see power_of_two."""
    exponent = gl.maximum(-rate * lag, -126.0)
    SHIFT: gl.constexpr = 12582912.0  # 1.5 * 2 ** 23: a sum with it is rounded to whole numbers
    nearest = exponent + SHIFT
    whole = nearest.to(gl.int32, bitcast=True) - 0x4B400000
    return power_of_two(whole, exponent - (nearest - SHIFT))


@gluon.jit
def toeplitz_decay(s: gl.constexpr, i, j, rate):
    """Decays of lags 64 s + i - j, any numbers where these are negative. Those of whole blocks
    back are products of a decay for each row and one for each column, which are few.
    """
    if s == 0:
        return decay_by_sums(gl.maximum(i - j, 0), rate)
    else:
        return decay_by_sums(64 * (s - 1) + i, rate) * decay_by_sums(64 - j, rate)


@gluon.jit
def step_of(column):
    """The step of a block that stands in a column of products."""
    return column // 32 * 32 + column // 2 % 4 * 8 + column // 8 % 4 * 2 + column % 2


@gluon.jit
def block_ring(COUNT: gl.constexpr):
    """Shared memory for the blocks [128, 64] of a remembered value, the oldest to be replaced."""
    return gl.allocate_shared_memory(gl.bfloat16, [COUNT, 128, 64], operand_memory())


@gluon.jit
def input_slots(LAG: gl.constexpr):
    """Shared memory for one block of an input: the words [64, 32] of both halves and, where a lag
    looks back, the 8 steps before, words [64, 4] of both halves.
    """
    block: gl.constexpr = gl.NVMMASharedLayout(64, 32, 2)
    edge: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    slots = (
        gl.allocate_shared_memory(gl.int32, [64, 32], block),
        gl.allocate_shared_memory(gl.int32, [64, 32], block),
    )
    if LAG > 0:
        slots = slots + (
            gl.allocate_shared_memory(gl.int32, [64, 4], edge),
            gl.allocate_shared_memory(gl.int32, [64, 4], edge),
        )
    return slots


@gluon.jit
def places(
    LAYOUT: gl.constexpr, N: gl.constexpr, UNIT: gl.constexpr, section, first,
    BLOCK_D: gl.constexpr,
):  # fmt: skip
    """Where elements of UNIT steps lie, [64, N] each: offset from the program's first element, and
    the step at which its vector of 8 begins, counted from `first`; very late for rows that are
    none of the `members` channels of the section.
    """
    members, row, tiles = section
    r = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, LAYOUT)), 1)
    n = gl.expand_dims(gl.arange(0, N, layout=gl.SliceLayout(0, LAYOUT)), 0)
    member = r % BLOCK_D
    vector: gl.constexpr = 8 // UNIT
    offset = member * (row * vector) + r // BLOCK_D * (tiles * (64 // UNIT)) + n
    begin = r // BLOCK_D * (tiles * 64) + n // vector * 8 - first
    return offset, gl.where(member < members, begin, 2**30)


@gluon.jit
def fetch(slots, ptr, words, edges, t, halfway, length):
    """Begin to copy the block at t of an input into its slots, zero where the step counted from
    the first that there is does not lie in 0 .. length - 1.
    """
    for half in gl.static_range(2):
        fetch_words(slots[half], ptr, words, t + half * halfway, length)
        if len(slots) == 4:
            fetch_words(slots[2 + half], ptr, edges, t - 8 + half * halfway, length)


@gluon.jit
def fetch_words(slot, ptr, where, shift, length):
    offset, begin = where
    mask = (begin + shift).to(gl.uint32) < length.to(gl.uint32)  # a negative step is a large one
    hopper.async_copy.async_copy_global_to_shared(slot, ptr + (offset + shift // 2), mask=mask)


@gluon.jit
def lane_of():
    """Which of the four lanes of its row a lane is: [64, 4]."""
    layout: gl.constexpr = row_layout()
    lane = gl.expand_dims(gl.arange(0, 4, layout=gl.SliceLayout(0, layout)), 0)
    return lane + gl.zeros((64, 4), gl.int32, layout)


@gluon.jit
def channels(section, WIDTH: gl.constexpr, BLOCK_D: gl.constexpr):
    """Of each row of a half [64, 4]: its number, its channel, and whether the group has it."""
    parts: gl.constexpr = (WIDTH + BLOCK_D - 1) // BLOCK_D
    layout: gl.constexpr = row_layout()
    row = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, layout)), 1)
    row = anew(row + lane_of() * 0)
    member = section % parts * BLOCK_D + row % BLOCK_D
    return row, section // parts * WIDTH + member, member < WIDTH


@gluon.jit
def anew(x):
    """x, but not what the compiler knows of it."""
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [x], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def evens_and_odds(parts, N: gl.constexpr):
    """Each [64, 2 N] as its even columns and its odd ones; all even ones first."""
    evens = ()
    odds = ()
    for i in gl.static_range(len(parts)):
        even, odd = gl.split(gl.reshape(parts[i], (64, N, 2)))
        evens = evens + (even,)
        odds = odds + (odd,)
    return evens + odds


@gluon.jit
def interleaved(parts, N: gl.constexpr):
    """The inverse of evens_and_odds, of parts [64, N]."""
    count: gl.constexpr = len(parts) // 2
    out = ()
    for i in gl.static_range(count):
        out = out + (gl.reshape(gl.join(parts[i], parts[count + i]), (64, N * 2)),)
    return out


@gluon.jit
def word_rows(words):
    """[64, 16] words -> 4 rows [64, 4] of words."""
    parts = evens_and_odds(evens_and_odds((words,), 8), 4)
    out = ()
    for r in gl.static_range(4):
        out = out + (gl.convert_layout(parts[r], row_layout(), assert_trivial=True),)
    return out


@gluon.jit
def unpacked(words):
    """Rows of words as float32 rows, two each."""
    out = ()
    for r in gl.static_range(len(words)):
        low = (words[r] << 16).to(gl.float32, bitcast=True)
        high = (words[r] & -65536).to(gl.float32, bitcast=True)
        out = out + (low, high)
    return out


@gluon.jit
def with_context(own, before, LAG: gl.constexpr):
    """The rows of a quarter from words of its lanes' vectors, and the LAG rows before them, of
    which the first lane takes words `before`, the w-th in lane w.
    """
    count: gl.constexpr = (LAG + 1) // 2
    context = ()
    if LAG > 0:
        lane = lane_of()
        for w in gl.static_range(4 - count, 4):
            if w == 3:  # the last lane holds the last word
                turned = gl.gather(gl.where(lane == 3, before, own[3]), (lane + 3) % 4, 1)
            else:
                first = gl.gather(before, lane * 0 + w, 1)
                turned = gl.where(lane == 0, first, gl.gather(own[w], (lane + 3) % 4, 1))
            context = context + (turned,)
    return unpacked(context + own)[2 * count - LAG : 2 * count + 8]


@gluon.jit
def read_rows(slots, part: gl.constexpr, half: gl.constexpr, LAG: gl.constexpr):
    """The rows of a quarter of an input and the LAG rows before them."""
    own = word_rows(slots[half].slice(16 * part, 16, dim=1).load(word_layout()))
    before = own[3]  # not asked for
    if LAG > 0:
        if part == 1:
            before = slots[half].slice(12, 4, dim=1).load(row_layout())
        else:
            before = slots[2 + half].load(row_layout())
    return with_context(own, before, LAG)


@gluon.jit
def quarter_rows(quarter):
    """[64, 32] -> 8 float32 rows [64, 4]."""
    parts = evens_and_odds(evens_and_odds(evens_and_odds((quarter,), 16), 8), 4)
    out = ()
    for r in gl.static_range(8):
        row = parts[r].to(gl.float32)
        out = out + (gl.convert_layout(row, row_layout(), assert_trivial=True),)
    return out


@gluon.jit
def rows_quarter(rows):
    """The inverse of quarter_rows, rounded to bfloat16."""
    parts = ()
    for r in gl.static_range(8):
        parts = parts + (rows[r].to(gl.bfloat16),)
    quarter = interleaved(interleaved(interleaved(parts, 4), 8), 16)[0]
    return gl.convert_layout(quarter, quarter_layout(), assert_trivial=True)


@gluon.jit
def other_order(quarter):
    """Columns of a quarter from the order of steps to that of products, or back."""
    return gl.reshape(gl.permute(gl.reshape(quarter, (64, 4, 4, 2)), (0, 2, 1, 3)), (64, 32))


@gluon.jit
def remember_block(ring, newest, quarters):
    """Put a block, given by its quarters (part 0 half 0, part 0 half 1, part 1 half 0, ...), in
    place of the oldest of a ring.
    """
    parts = ()
    for part in gl.static_range(2):
        a = gl.reshape(other_order(quarters[2 * part]), (8, 8, 32))
        b = gl.reshape(other_order(quarters[2 * part + 1]), (8, 8, 32))
        both = gl.permute(gl.join(a, b), (0, 3, 1, 2))  # 8 rows of one half, 8 of the other
        parts = parts + (gl.reshape(both, (128, 32)),)
    block = gl.reshape(gl.permute(gl.join(parts[0], parts[1]), (0, 2, 1)), (128, 64))
    ring.index(newest).store(gl.convert_layout(block, product_layout(), assert_trivial=True))


@gluon.jit
def block_quarters(block):
    """The quarters of a block [128, 64] in the layout of products, in the order of steps."""
    first, second = gl.split(gl.permute(gl.reshape(block, (128, 2, 32)), (0, 2, 1)))
    parts = (first, second)
    out = ()
    for part in gl.static_range(2):
        a, b = gl.split(gl.permute(gl.reshape(parts[part], (8, 2, 8, 32)), (0, 2, 3, 1)))
        a = other_order(gl.reshape(a, (64, 32)))
        b = other_order(gl.reshape(b, (64, 32)))
        a = gl.convert_layout(a, quarter_layout(), assert_trivial=True)
        b = gl.convert_layout(b, quarter_layout(), assert_trivial=True)
        out = out + (a, b)
    return out


@gluon.jit
def visited(newest, ago: gl.constexpr, COUNT: gl.constexpr):
    """Where in a ring the block is that the stream remembered `ago` blocks before the newest."""
    return (newest + (COUNT - ago)) % COUNT


@gluon.jit
def begin_toeplitz(ring, newest, matrices, COUNT: gl.constexpr):
    """sum_s z_{n-s} T_s for the block n that was remembered COUNT - 1 blocks ago; not awaited."""
    y = gl.zeros((128, 64), gl.float32, product_layout())
    for s in gl.static_range(COUNT):
        z = ring.index(visited(newest, COUNT - 1 - s, COUNT))
        y = hopper.warpgroup_mma(z, matrices.index(s), y, use_acc=s > 0, is_async=True)
    return y


@gluon.jit
def begin_toeplitz_adjoint(ring, newest, matrices, COUNT: gl.constexpr):
    """sum_s e_{n+s} T_s^T for the block n that was remembered last; not awaited."""
    y = gl.zeros((128, 64), gl.float32, product_layout())
    for s in gl.static_range(COUNT):
        e = ring.index(visited(newest, s, COUNT))
        turned = matrices.index(s).permute((1, 0))
        y = hopper.warpgroup_mma(e, turned, y, use_acc=s > 0, is_async=True)
    return y


@gluon.jit
def zero_gradients(COUNT: gl.constexpr):
    """Accumulators of the gradients of matrices."""
    total = ()
    for _ in gl.static_range(COUNT):
        total = total + (gl.zeros((64, 64), gl.float32, gradient_layout()),)
    return total


@gluon.jit
def begin_toeplitz_gradient(total, grad, ring, newest, going, COUNT: gl.constexpr):
    """total[s] += z_{n-s}^T e_n, or without the sum so far unless `going`; not awaited."""
    e = grad.index(newest)
    out = ()
    for s in gl.static_range(COUNT):
        turned = ring.index(visited(newest, COUNT - 1 - s, COUNT)).permute((1, 0))
        sums = hopper.warpgroup_mma(turned, e, total[s], use_acc=going, is_async=True)
        out = out + (sums,)
    return out


@gluon.jit
def end_gradients(total):
    """Wait for all products."""
    done = hopper.warpgroup_mma_wait(0, deps=total)
    if len(total) == 1:
        return (done,)
    else:
        return done


@gluon.jit
def zero_lanes(COUNT: gl.constexpr):
    """COUNT rows [64, 4] of zeros."""
    rows = ()
    for _ in gl.static_range(COUNT):
        rows = rows + (gl.zeros((64, 4), gl.float32, row_layout()),)
    return rows


@gluon.jit
def renewed(total, fresh):
    """Accumulators, zero if `fresh`."""
    out = ()
    for i in gl.static_range(len(total)):
        out = out + (gl.where(fresh, 0.0, total[i]),)
    return out


@gluon.jit
def extend_rows(rows, after, COUNT: gl.constexpr):
    """Each lane's rows, then the first COUNT of the next lane; the last lane takes after[0]. Also
    `after` for the quarters to come: two halves take turns.
    """
    lane = lane_of()
    extended = rows
    first = ()
    for r in gl.static_range(COUNT):
        turned = gl.gather(rows[r], (lane + 1) % 4, 1)
        extended = extended + (gl.where(lane == 3, after[0][r], turned),)
        first = first + (turned,)
    return extended, (after[1], first)


@gluon.jit
def store_quarter(ptr, where, shift, rows, end):
    """Write a quarter as bfloat16, up to `write_end`."""
    offset, begin = where
    gl.store(ptr + (offset + shift), rows_quarter(rows), mask=begin + shift < end)


@gluon.jit
def store_sums(ptr, total, channel, channel_mask, CHANNELS: gl.constexpr, FIRST: gl.constexpr):
    """Write accumulators, summed over lanes, to rows FIRST, ... of [P, CHANNELS]."""
    lane = lane_of()
    for i in gl.static_range(len(total)):
        value = gl.expand_dims(gl.sum(total[i], axis=1), 1)
        value = value + gl.zeros((64, 4), gl.float32, row_layout())
        where = ptr + (FIRST + i) * CHANNELS + channel
        gl.store(where, value, mask=channel_mask & (lane == 0))


@gluon.jit
def store_diagonals(ptr, total, STRIDE: gl.constexpr, LENGTH: gl.constexpr, COUNT: gl.constexpr):
    """Write the sums along diagonals, gradients of taps 0 .. LENGTH - 1 by lag, STRIDE apart."""
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [8, 1], [1, 0])
    column: gl.constexpr = gl.SliceLayout(0, layout)
    lag = gl.arange(0, 64, layout=column)
    turn = gl.expand_dims(lag, 0)
    j = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, layout)), 1) + turn * 0
    before = gl.zeros((64,), gl.float32, column)
    for s in gl.static_range(COUNT):
        own = gl.reshape(total[s], (2, 4, 4, 2, 2, 4, 4, 2))
        own = gl.reshape(gl.permute(own, (0, 2, 1, 3, 4, 6, 5, 7)), (64, 64))  # in order of steps
        # Row j turned left by j: column c holds i = j + c, or, wrapped, that of earlier lags.
        turned = gl.gather(gl.convert_layout(own, layout), (j + turn) % 64, 1)
        wrapped = j + turn >= 64
        earlier = before + gl.sum(gl.where(wrapped, turned, 0.0), axis=0)
        before = gl.sum(gl.where(wrapped, 0.0, turned), axis=0)
        if s > 0:
            tap = (s - 1) * 64 + lag
            gl.store(ptr + tap * STRIDE, earlier, mask=tap < LENGTH)
    tap = (COUNT - 1) * 64 + lag
    gl.store(ptr + tap * STRIDE, before, mask=tap < LENGTH)
