"""s4d: causal convolution with sums of 32 pairs of complex exponentials

    z = x
    y = filter * z + skip . z

Activations are (B, D, L) with B batch, L time steps, D channels; G filter groups of D / G channels
each, N = 32 pairs of modes. Plan modal/BDL/save-states.

Written by sh2gen. Imports torch and, where there is one, triton; nothing else.
Verified: by Triton's interpreter, not yet run on a GPU.
sha256, with zeros here: d14f4ab3677a7ac8eef319407ac71469d08b375069f4036f6cbb0a42ce1e9560
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import reduce
from operator import itemgetter, or_
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:  # plain PyTorch needs no Triton: let the kernels be defined, though not run
    from types import SimpleNamespace

    HAS_TRITON = False
    tl = SimpleNamespace(constexpr=None)
    triton = SimpleNamespace(
        jit=lambda function=None, **_: function or (lambda f: f),
        constexpr_function=lambda function: function,
    )

OP = "s4d"
PLAN = "modal/BDL/save-states"
LAYOUT = "BDL"
INPUTS = ("x",)
PARAMETERS = ("log_poles", "frequencies", "residues_real", "residues_imag", "skip")
TAPS = ()  # also in the shape of a conv1d's weight
CHANNELS, GROUPS = 1024, 1024  # unless others are given
SHAPE = "(B, {}, L)"  # of an activation
TIME, CHANNEL = 2, 1  # axes of an activation
LEAST = 1  # steps of a call
BYTE_BUDGET = 2**30  # of the temporaries of plain PyTorch
PLAIN = 0  # how many want plain PyTorch on every device, instead of library ops
RINGS = {"z": (0, 1)}  # of a state that decodes: lag and roles
COUNTED = 16  # channels that it counts as one
MODES_SHAPE = (32, 2)  # of a channel, if a state has modes
BLOCK = 64  # steps that plain PyTorch convolves by one product
WIDEST = 1  # stride of the last axis
BINARIES: dict = {}  # compiled kernels by the traits of their arguments
CHOSEN: dict = {}  # configs by device, channels and groups
TOLD = ("num_warps", "num_stages", "maxnreg")  # to the compiler, of a config
SUMS = {"num_warps": 4}  # config of what adds sums
LAUNCHES = threading.local()  # those that a thread wants noted
TAPES: dict = {}  # what calls do, by the traits of their tensors
RECENT: dict = {}  # the last call of each kind
MOST_TAPES = 1024
DIRECT = ("3.6.0",)  # of Triton whose compiled kernels are launched without its launcher
PRODUCT_ROWS: dict = {9: 64, 10: 128}  # of product instructions by compute capability, others 16
WIDTHS = {(1024, 1024): 1}  # least batch by channels and groups
CONFIGS: dict = {}  # by GPU, channels and groups
CAPABILITIES: dict = {}  # of these GPUs, whose configs serve others of the same
SPEC = {
    "op": "s4d",
    "channels": 1024,
    "filter": {
        "kind": "modal",
        "length": "none",
        "groups": 1024,
        "taps": "lag_first",
        "decay": "none",
        "modes": 32,
        "parametrisation": "complex",
    },
    "featurizer": "none",
    "gates": {"pre": False, "post": False},
    "skip": "channel",
    "bias": "none",
    "activation": "none",
    "precision": "balanced",
    "dtype": {"io": "bfloat16", "accumulate": "float32"},
    "layout": {"activations": "auto", "projection": "thirds"},
    "state": "none",
    "sequences": "dense",
    "context": "none",
    "workloads": [{"batch": 1, "length": 8192}, {"batch": 1, "length": 131072}],
}


def parameter_shapes(channels: int, groups: int) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter."""
    return {
        "log_poles": (groups, 32),
        "frequencies": (groups, 32),
        "residues_real": (groups, 32),
        "residues_imag": (groups, 32),
        "skip": (channels,),
    }


# -----------------------------------------------------------------------------------------------
# Helpers of the kernels
# -----------------------------------------------------------------------------------------------


@triton.jit
def turns_of(frequency):
    """Turns a step, from -1/2 to 1/2 in float64, of radians a step."""
    turns = frequency.to(tl.float64) * 0.15915494309189535
    return turns - tl.floor(turns + 0.5)


@triton.jit
def load_poles(
    log_poles_ptr, frequencies_ptr, residues_real_ptr, residues_imag_ptr, row,
    COUNT: tl.constexpr, MODES: tl.constexpr,
):  # fmt: skip
    """The COUNT <= MODES / 2 poles and residues of a channel, [MODES / 2]; others are silent."""
    mode = tl.arange(0, MODES // 2)
    there = mode < COUNT
    where = row * COUNT + mode
    decay = tl.load(log_poles_ptr + where, mask=there, other=-1.0).to(tl.float32)
    frequency = tl.load(frequencies_ptr + where, mask=there, other=0.0).to(tl.float32)
    turns = turns_of(frequency)
    real = tl.load(residues_real_ptr + where, mask=there, other=0.0).to(tl.float32)
    imag = tl.load(residues_imag_ptr + where, mask=there, other=0.0).to(tl.float32)
    return (decay[:, None], turns[:, None]), (real, imag)


class Modes(NamedTuple):
    """All that a channel's tiles need of its modes.

    Attributes:
        poles: a, `residues` R, as load_poles gives them.
        within: T[j, i] = h[i - j], the convolution within a block, as TERMS operands.
        to_end: exp(a (BLOCK_T - 1 - j)), [BLOCK_T, MODES]: from a block to its own end.
        from_before: R exp(a (i + 1)), [MODES, BLOCK_T]: from the states before a block to its
            outputs.
        to_start: R exp(a j), `from_after`: exp(a (BLOCK_T - i)): these two of the adjoint, which
            walks backward in time. Its states weigh with R, so that they are gradients of states
            but for exp(a).
    """

    poles: object
    residues: object
    within: object
    to_end: object
    from_before: object
    to_start: object
    from_after: object
    scan: object


class Scan(NamedTuple):
    """What `scan_states` and `scan_adjoint` multiply states by.

    Attributes:
        group: of eight blocks, which one a lane is.
        block: the decay over a block, `doublings` over 8, 16, 32 and 64.
        entered, left: from the tile's edge to a lane's first block, and from its last.
        lost: over the tile.
    """

    group: object
    block: object
    doublings: object
    entered: object
    left: object
    lost: object


@triton.jit
def beyond_turns(turns, steps):
    """The angle after so many steps, in turns from -1/2 to 1/2."""
    angle = turns * steps
    return (angle - tl.floor(angle + 0.5)).to(tl.float32)


@triton.jit
def times(a, b):
    """a b of complex numbers."""
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


@triton.jit
def rotation(part):
    """cos and sin of a part of a turn, from -1/2 to 1/2: Taylor's series about the nearest
    quarter, times that power of i.
    """
    quarter = tl.floor(4.0 * part + 0.5)
    x = (part - 0.25 * quarter) * 6.283185307179586
    square = x * x
    cosine = 1.0 - square * (1.0 / 90.0)
    sine = 1.0 - square * (1.0 / 72.0)
    for i in tl.static_range(4):
        cosine = 1.0 - square * cosine * (1.0 / ((8 - 2 * i) * (7 - 2 * i)))
    for i in tl.static_range(3):
        sine = 1.0 - square * sine * (1.0 / ((7 - 2 * i) * (6 - 2 * i)))
    even = 1.0 - tl.abs(quarter)
    odd = quarter * (2.0 - tl.abs(quarter))
    return times((even, odd), (cosine, x * sine))


@triton.jit
def exponential(a, steps):
    """exp(a steps) of log-poles a."""
    cosine, sine = rotation(beyond_turns(a[1], steps))
    size = tl.exp(a[0] * steps)
    return size * cosine, size * sine


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0, to float32's relative precision: by Taylor's series near 0."""
    series = 1.0 + x / 7.0
    for i in tl.static_range(5):
        series = 1.0 + x * series / (6.0 - i)
    return tl.where(x > -0.125, x * series, tl.exp(x) - 1.0)


@triton.jit
def exponential_minus_1(a, steps):
    """exp(a steps) - 1 to float32's relative precision: with x and y the parts of the exponent,
    (exp(x) - 1) cos y - 2 sin(y / 2)^2 + i exp(x) sin y.
    """
    part = beyond_turns(a[1], steps)
    cosine, sine = rotation(part)
    _, half = rotation(0.5 * part)
    loss = expm1(a[0] * steps)
    return loss * cosine - 2.0 * half * half, sine + loss * sine


@triton.jit
def decay_by(a, steps):
    """`decay_by` of modal.py, of complex numbers, and whether it is exp(a steps) - 1."""
    slow = a[0] * steps > -1.0
    near, far = exponential_minus_1(a, steps), exponential(a, steps)
    return tl.where(slow, near[0], far[0]), tl.where(slow, near[1], far[1]), slow


@triton.jit
def plus(a, b):
    """a + b of complex numbers."""
    return a[0] + b[0], a[1] + b[1]


@triton.jit
def stacked(z, MODES: tl.constexpr, COLUMNS: tl.constexpr):
    """Complex numbers [MODES / 2, COLUMNS] as rows [MODES, COLUMNS]."""
    return tl.reshape(tl.permute(tl.join(z[0], z[1]), (0, 2, 1)), (MODES, COLUMNS))


@triton.jit
def step_of(column, M: tl.constexpr, BLOCK_T: tl.constexpr):
    """The step of a block that stands in a column of products, or the column of a step."""
    if M <= 64 and BLOCK_T == 32:
        return column // 2 % 4 * 8 + column // 8 * 2 + column % 2
    else:
        return column


@triton.jit
def rounded(x, PRECISION: tl.constexpr):
    """x as a product reads it: float32 is rounded to TF32, where the hardware would cut it off."""
    if PRECISION == "tf32":
        bits = x.to(tl.int32, bitcast=True)
        return ((bits + 0x1000) & ~0x1FFF).to(tl.float32, bitcast=True)
    else:
        return x


@triton.jit
def terms(x, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """x as a sum of operands: two terms, or x itself where products read float32 as it is."""
    high = rounded(x.to(OPERAND), PRECISION)
    if tl.float32 == OPERAND and PRECISION == "ieee":
        return (high,)
    else:
        return high, rounded((x - high.to(tl.float32)).to(OPERAND), PRECISION)


@triton.jit
def taps_matrix(matrix, OPERAND: tl.constexpr, PRECISION: tl.constexpr, TERMS: tl.constexpr):
    """The convolution within a block as operands: of one term, or of TERMS."""
    if TERMS == 1:
        return (rounded(matrix.to(OPERAND), PRECISION),)
    else:
        return terms(matrix, OPERAND, PRECISION)


@triton.jit
def transposed(x):
    """Every term of x, transposed."""
    out = ()
    for i in tl.static_range(len(x)):
        out = out + (tl.trans(x[i]),)
    return out


@triton.jit
def load_modes(
    log_poles_ptr, frequencies_ptr, residues_real_ptr, residues_imag_ptr, row,
    COUNT: tl.constexpr, MODES: tl.constexpr, M: tl.constexpr,
    BLOCK_T: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """All that a channel's tiles need of its COUNT pairs, at most MODES / 2: what load_modes of
    modal.py returns, with real and imaginary parts in rows.
    """
    a, residue = load_poles(
        log_poles_ptr, frequencies_ptr, residues_real_ptr, residues_imag_ptr, row, COUNT, MODES
    )
    real, imag = residue
    twice = (2.0 * real[:, None], 2.0 * imag[:, None])
    step = step_of(tl.arange(0, BLOCK_T), M, BLOCK_T)
    powers = exponential(a, step[None, :])
    reversed_powers = exponential(a, (BLOCK_T - 1 - step)[None, :])
    taps = tl.sum(times(twice, powers)[0], axis=0)
    lag = step[None, :] - step[:, None]
    by_row = taps[None, :] + tl.zeros((BLOCK_T, 1), tl.float32)
    column = step_of(tl.maximum(lag, 0), M, BLOCK_T)
    matrix = tl.where(lag >= 0, tl.gather(by_row, column, 1), 0.0)
    within = taps_matrix(matrix, OPERAND, PRECISION, TERMS)
    next_step = exponential(a, 1)
    to_end = transposed(terms(stacked(reversed_powers, MODES, BLOCK_T), OPERAND, PRECISION))
    weighted = stacked(times(twice, powers), MODES, BLOCK_T)
    to_start = transposed(terms(weighted, OPERAND, PRECISION))
    # A real part is a product of real parts minus one of imaginary parts.
    ahead = times(times(twice, next_step), powers)
    behind = times(next_step, reversed_powers)
    from_before = terms(stacked((ahead[0], -ahead[1]), MODES, BLOCK_T), OPERAND, PRECISION)
    from_after = terms(stacked((behind[0], -behind[1]), MODES, BLOCK_T), OPERAND, PRECISION)
    GROUPS: tl.constexpr = M // 8
    group = tl.arange(0, GROUPS)[None, :] + tl.zeros((MODES // 2, 1), tl.int32)
    none = tl.zeros((1, GROUPS), tl.float32)
    block = plus(exponential(a, BLOCK_T), (none, none))
    doublings = ()
    for i in tl.static_range(4):
        doublings = doublings + (exponential(a, 8 * BLOCK_T * 2**i),)
    entered = exponential(a, 8 * BLOCK_T * group)
    left = exponential(a, 8 * BLOCK_T * (GROUPS - 1 - group))
    scan = Scan(group, block, doublings, entered, left, decay_by(a, M * BLOCK_T))
    return Modes(a, (real, imag), within, to_end, from_before, to_start, from_after, scan)


@triton.jit
def zero_state(MODES: tl.constexpr, M: tl.constexpr):
    """The state of a sequence that has not begun, for every lane of the scan."""
    zero = tl.zeros((MODES // 2, M // 8), tl.float32)
    return zero, zero


@triton.jit
def zero_modes(MODES: tl.constexpr, M: tl.constexpr, BLOCK_T: tl.constexpr):
    """Accumulators of `modal_gradient`."""
    within = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    outer = tl.zeros((MODES, BLOCK_T), tl.float32)
    both = tl.zeros((MODES // 2, M // 8), tl.float32)
    return within, outer, outer, both, both


@triton.jit
def by_mode(x, MODES: tl.constexpr):
    """What settled_states returns as [MODES, M]."""
    if MODES < 64:
        return transposed(x)
    else:
        return x


@triton.jit
def modal_gradient(total, grad, grad_states, block, states, PRECISION: tl.constexpr):
    """`modal_gradient` of modal.py."""
    within = tl.dot(tl.trans(block), grad, total[0], input_precision=PRECISION)
    before, after = total[1], total[2]
    MODES: tl.constexpr = before.shape[0]
    entering, leaving = by_mode(states[1], MODES), by_mode(grad_states[1], MODES)
    for i in tl.static_range(len(entering)):
        before = tl.dot(entering[i], grad, before, input_precision=PRECISION)
        after = tl.dot(leaving[i], block, after, input_precision=PRECISION)
    return (within, before, after) + total[3:]


@triton.jit
def state_gradient(total, grad_states, states):
    """`state_gradient` of modal.py, where the product of two states is complex."""
    both = (total[3], total[4])
    for p in tl.static_range(8):
        both = plus(both, times(states[0][p], grad_states[0][p]))
    return total[:3] + both + total[5:]


@triton.jit
def unstacked(x, MODES: tl.constexpr, COLUMNS: tl.constexpr):
    """The inverse of `stacked`."""
    return tl.split(tl.permute(tl.reshape(x, (MODES // 2, 2, COLUMNS)), (0, 2, 1)))


@triton.jit
def store_modes(
    ptr, first, total, poles, channel, channel_mask, COUNT: tl.constexpr, CHANNELS: tl.constexpr,
    MODES: tl.constexpr, M: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Write the gradients of COUNT log-poles, frequencies, real and imaginary parts of residues
    to rows first, ... of [P, CHANNELS]: 2 Re and -2 Im of sums as in store_modes of modal.py.

    Lags within a block count from 1, as those from before it, and share a table with them. One
    from 0 would be that of `load_modes`, which the compiler would keep in registers until now.
    """
    a, residue = poles
    j = step_of(tl.arange(0, BLOCK_T), M, BLOCK_T)[:, None]
    turn = step_of(tl.arange(0, BLOCK_T), M, BLOCK_T)[None, :]
    turned = tl.gather(total[0], step_of((j + turn + 1) % BLOCK_T, M, BLOCK_T), 1)
    by_lag = tl.sum(tl.where(j + turn + 1 < BLOCK_T, turned, 0.0), axis=0)[None, :]
    at_once = tl.sum(tl.sum(tl.where(j == turn, total[0], 0.0), axis=1), axis=0)
    real, imag = unstacked(total[1], MODES, BLOCK_T)
    before = times(exponential(a, turn + 1), (real + by_lag, imag))
    after = times(exponential(a, BLOCK_T - turn), unstacked(total[2], MODES, BLOCK_T))
    sums = (tl.sum(total[3], axis=1)[:, None], tl.sum(total[4], axis=1)[:, None])
    both = times(exponential(a, BLOCK_T + 1), sums)
    step = turn.to(tl.float32)
    ahead, later = (), ()
    for i in tl.static_range(2):
        ahead = ahead + (2.0 * tl.sum((step + 1.0) * before[i], axis=1),)
        behind = tl.sum((BLOCK_T - 1.0 - step) * after[i], axis=1)
        later = later + (behind + tl.sum(BLOCK_T * both[i], axis=1),)
    by_pole = plus(times(residue, ahead), later)  # what is later weighs with 2 R already
    if len(total) > 5:
        by_pole = plus(by_pole, total[5:])
    by_residue = (at_once + tl.sum(before[0], axis=1), tl.sum(before[1], axis=1))
    mode = tl.arange(0, MODES // 2)
    where = ptr + (first + mode) * CHANNELS + channel
    there = (mode < COUNT) & channel_mask
    tl.store(where, by_pole[0], mask=there)
    tl.store(where + COUNT * CHANNELS, -by_pole[1], mask=there)
    tl.store(where + 2 * COUNT * CHANNELS, 2.0 * by_residue[0], mask=there)
    tl.store(where + 3 * COUNT * CHANNELS, -2.0 * by_residue[1], mask=there)


@triton.jit
def load_state(
    ptr, number, COUNT: tl.constexpr, CHANNELS: tl.constexpr, MODES: tl.constexpr, M: tl.constexpr
):
    """The state before tile `number`, COUNT numbers, for every lane of the scan."""
    real = 2 * tl.arange(0, MODES // 2)[:, None] + tl.zeros((1, M // 8), tl.int32)
    where = ptr + number * (CHANNELS * COUNT) + real
    there = real < COUNT
    return tl.load(where, mask=there, other=0.0), tl.load(where + 1, mask=there, other=0.0)


@triton.jit
def keep_state(
    ptr, number, state, COUNT: tl.constexpr, CHANNELS: tl.constexpr,
    MODES: tl.constexpr, M: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Write the state before tile `number`, if KEEP: COUNT numbers, real parts before imaginary
    ones mode by mode.
    """
    if KEEP:
        real = 2 * tl.arange(0, MODES // 2)[:, None] + tl.zeros((1, M // 8), tl.int32)
        lane = tl.arange(0, M // 8)[None, :]
        where = ptr + number * (CHANNELS * COUNT) + real
        there = (real < COUNT) & (lane == 0)
        tl.store(where, state[0], mask=there)
        tl.store(where + 1, state[1], mask=there)


@triton.jit
def rows_vector(
    rows, first: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr, dtype: tl.constexpr
):
    """The inverse of vector_rows for rows first .. first + 7, rounded to dtype."""
    x04 = tl.reshape(tl.join(rows[first].to(dtype), rows[first + 4].to(dtype)), (BLOCK_D, N * 2))
    x15 = tl.reshape(
        tl.join(rows[first + 1].to(dtype), rows[first + 5].to(dtype)), (BLOCK_D, N * 2)
    )
    x26 = tl.reshape(
        tl.join(rows[first + 2].to(dtype), rows[first + 6].to(dtype)), (BLOCK_D, N * 2)
    )
    x37 = tl.reshape(
        tl.join(rows[first + 3].to(dtype), rows[first + 7].to(dtype)), (BLOCK_D, N * 2)
    )
    even = tl.reshape(tl.join(x04, x26), (BLOCK_D, N * 4))
    odd = tl.reshape(tl.join(x15, x37), (BLOCK_D, N * 4))
    return tl.reshape(tl.join(even, odd), (BLOCK_D, N * 8))


@triton.jit
def piece_of(rows, H: tl.constexpr, N: tl.constexpr, OPERAND: tl.constexpr):
    """Rows of a part of a tile as operands [H, BLOCK_T], a block of time a row."""
    return rows_vector(rows, 0, H, N, OPERAND)


@triton.jit
def settled(x):
    """x itself, by sums of one number each, which cost nothing.

    Triton 3.6 follows an operand of mma.sync back to its loads, and if it meets a `tl.join` there,
    it takes twice as many numbers side by side as the instruction does. Operands in shared memory
    are then read two bytes at a time instead of by ldmatrix. It does not look beyond a sum.
    """
    return tl.sum(tl.reshape(x, (x.shape[0], x.shape[1], 1)), 2)


@triton.jit
def to_products(x, M: tl.constexpr, N: tl.constexpr):
    """A tile [M, 8 N], a block of time a row, in the order of products."""
    W: tl.constexpr = M // 16
    if M > 64:
        return x
    elif N == 4:
        y = tl.permute(tl.reshape(x, (2, W, 8, 4, 4, 2)), (1, 0, 2, 4, 3, 5))
        return tl.reshape(y, (M, N * 8))
    else:
        return tl.reshape(tl.permute(tl.reshape(x, (2, W, 8, N * 8)), (1, 0, 2, 3)), (M, N * 8))


@triton.jit
def block_of(pieces, M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr):
    """A tile of one or two pieces as a matrix that products read: [M, BLOCK_T]."""
    block = pieces[0]
    if len(pieces) == 2:
        block = tl.reshape(tl.permute(tl.join(pieces[0], pieces[1]), (2, 0, 1)), (M, N * 8))
    return settled(to_products(rounded(block, PRECISION), M, N))


@triton.jit
def from_products(x, M: tl.constexpr, N: tl.constexpr):
    """The inverse of to_products."""
    W: tl.constexpr = M // 16
    if M > 64:
        return x
    elif N == 4:
        y = tl.permute(tl.reshape(x, (W, 2, 8, 4, 4, 2)), (1, 0, 2, 4, 3, 5))
        return tl.reshape(y, (M, N * 8))
    else:
        return tl.reshape(tl.permute(tl.reshape(x, (W, 2, 8, N * 8)), (1, 0, 2, 3)), (M, N * 8))


@triton.jit
def halves(x, M: tl.constexpr, N: tl.constexpr):
    """The upper and the lower half of the rows of [M, N], which threads hold side by side."""
    return tl.split(tl.permute(tl.reshape(x, (2, M // 2, N)), (1, 2, 0)))


@triton.jit
def vector_rows(x, BLOCK_D: tl.constexpr, N: tl.constexpr):
    """[BLOCK_D, N * 8] -> its eight phases, each a float32 row [BLOCK_D, N]."""
    even, odd = tl.split(tl.reshape(x, (BLOCK_D, N * 4, 2)))
    x04, x26 = tl.split(tl.reshape(even, (BLOCK_D, N * 2, 2)))
    x15, x37 = tl.split(tl.reshape(odd, (BLOCK_D, N * 2, 2)))
    x0, x4 = tl.split(tl.reshape(x04, (BLOCK_D, N, 2)))
    x1, x5 = tl.split(tl.reshape(x15, (BLOCK_D, N, 2)))
    x2, x6 = tl.split(tl.reshape(x26, (BLOCK_D, N, 2)))
    x3, x7 = tl.split(tl.reshape(x37, (BLOCK_D, N, 2)))
    rows = (x0, x1, x2, x3, x4, x5, x6, x7)
    out = ()
    for r in tl.static_range(8):
        out = out + (rows[r].to(tl.float32),)
    return out


@triton.jit
def recall(block, part: tl.constexpr, PARTS: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """The rows of a part of a tile, of one or two, as products read or make them."""
    by_time = from_products(block, M, N)
    if PARTS == 1:
        return vector_rows(by_time, M, N)
    else:
        return vector_rows(halves(by_time, M, N * 8)[part], M // 2, N)


@triton.jit
def settled_states(x):
    """Terms of states [MODES, M], settled: as [M, MODES] where gradients of modes are products by
    mma.sync, which then read what other products have in shared memory anyway.
    """
    turned = transposed(x) if x[0].shape[0] < 64 else x
    out = ()
    for i in tl.static_range(len(turned)):
        out = out + (settled(turned[i]),)
    return out


@triton.jit
def swapped(x, M: tl.constexpr, BACK: tl.constexpr):
    """Columns of [MODES, M], which are blocks, from the order of time to that of products' rows,
    or BACK.
    """
    MODES: tl.constexpr = x.shape[0]
    W: tl.constexpr = M // 16  # warps, each with 16 rows
    if M <= 64:
        y = tl.reshape(x, (MODES, W, 2, 8)) if BACK else tl.reshape(x, (MODES, 2, W, 8))
        return tl.reshape(tl.permute(y, (0, 2, 1, 3)), (MODES, M))
    else:
        return x


@triton.jit
def operand_states(
    states, MODES: tl.constexpr, M: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr
):
    """Scanned states, as they are and as operands."""
    real, imag = (), ()
    for p in tl.static_range(8):
        real = real + (states[p][0],)
        imag = imag + (states[p][1],)
    real_matrix = rows_vector(real, 0, MODES // 2, M // 8, tl.float32)
    imag_matrix = rows_vector(imag, 0, MODES // 2, M // 8, tl.float32)
    matrix = swapped(stacked((real_matrix, imag_matrix), MODES, M), M, False)
    return states, settled_states(terms(matrix, OPERAND, PRECISION))


@triton.jit
def product(a, b, total, TERMS: tl.constexpr, PRECISION: tl.constexpr):
    """total + a b, of TERMS terms of a and all of b: but for the product of two low ones."""
    total = tl.dot(a[0], b[0], total, input_precision=PRECISION)
    if len(b) > 1:
        total = tl.dot(a[0], b[1], total, input_precision=PRECISION)
    if TERMS > 1:
        total = tl.dot(a[1], b[0], total, input_precision=PRECISION)
    return total


@triton.jit
def from_lane(z, lane, there):
    """The complex numbers of other lanes, or zero."""
    real, imag = tl.gather(z[0], lane, 1), tl.gather(z[1], lane, 1)
    return tl.where(there, real, 0.0), tl.where(there, imag, 0.0)


@triton.jit
def lane_of(z, lane: tl.constexpr, MODES: tl.constexpr, M: tl.constexpr):
    """`lane_of` of modal.py, of complex numbers."""
    index = tl.full((MODES // 2, M // 8), lane, tl.int32)
    return tl.gather(z[0], index, 1), tl.gather(z[1], index, 1)


@triton.jit
def passed_on(state, lost, sums):
    """`passed_on` of modal.py, of complex numbers."""
    changed = plus(times((lost[0], lost[1]), state), sums)
    kept = tl.where(lost[2], state[0], 0.0), tl.where(lost[2], state[1], 0.0)
    return plus(kept, changed)


@triton.jit
def scan_rows(sums, MODES: tl.constexpr, M: tl.constexpr):
    """What blocks add to states, [M, MODES], as the scan reads it: eight numbers a lane."""
    both = tl.split(tl.reshape(sums, (M, MODES // 2, 2)))
    real = vector_rows(swapped(tl.trans(both[0]), M, True), MODES // 2, M // 8)
    imag = vector_rows(swapped(tl.trans(both[1]), M, True), MODES // 2, M // 8)
    out = ()
    for p in tl.static_range(8):
        out = out + ((real[p], imag[p]),)
    return out


@triton.jit
def scan_states(ends, scan, state, MODES: tl.constexpr, M: tl.constexpr):
    """`scan_states` of modal.py, of complex numbers."""
    group, block, doublings, entered, left, lost = scan
    GROUPS: tl.constexpr = M // 8
    end = scan_rows(ends, MODES, M)
    total = end[0]
    for p in tl.static_range(1, 8):
        total = plus(times(total, block), end[p])
    for i in tl.static_range(4):
        if 2**i < GROUPS:
            before = from_lane(total, (group + (GROUPS - 2**i)) % GROUPS, group >= 2**i)
            total = plus(total, times(doublings[i], before))
    now = from_lane(total, (group + (GROUPS - 1)) % GROUPS, group > 0)
    now = plus(now, times(entered, state))
    states = (now,)
    for p in tl.static_range(7):
        now = plus(times(now, block), end[p])
        states = states + (now,)
    added = lane_of(total, GROUPS - 1, MODES, M)
    return states, passed_on(state, lost, added)


@triton.jit
def states_before(
    block, modes, state,
    MODES: tl.constexpr, M: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The states before each block of a tile, and after the tile."""
    ends = product((block,), modes.to_end, tl.zeros((M, MODES), tl.float32), 1, PRECISION)
    found, state = scan_states(ends, modes.scan, state, MODES, M)
    return operand_states(found, MODES, M, OPERAND, PRECISION), state


@triton.jit
def scan_adjoint(starts, scan, state, MODES: tl.constexpr, M: tl.constexpr):
    """`scan_adjoint` of modal.py, of complex numbers."""
    group, block, doublings, entered, left, lost = scan
    GROUPS: tl.constexpr = M // 8
    start = scan_rows(starts, MODES, M)
    total = start[7]
    for p in tl.static_range(1, 8):
        total = plus(times(total, block), start[7 - p])
    for i in tl.static_range(4):
        if 2**i < GROUPS:
            after = from_lane(total, (group + 2**i) % GROUPS, group < GROUPS - 2**i)
            total = plus(total, times(doublings[i], after))
    now = from_lane(total, (group + 1) % GROUPS, group < GROUPS - 1)
    now = plus(now, times(left, state))
    states = (now,)
    for p in tl.static_range(7):
        now = plus(times(now, block), start[7 - p])
        states = (now,) + states
    added = lane_of(total, 0, MODES, M)
    return states, passed_on(state, lost, added)


@triton.jit
def states_after(
    block, modes, state,
    MODES: tl.constexpr, M: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The adjoint states after each block of a tile, and before the tile."""
    starts = product((block,), modes.to_start, tl.zeros((M, MODES), tl.float32), 1, PRECISION)
    found, state = scan_adjoint(starts, modes.scan, state, MODES, M)
    return operand_states(found, MODES, M, OPERAND, PRECISION), state


@triton.jit
def by_block(x, MODES: tl.constexpr):
    """What settled_states returns as [M, MODES]."""
    if MODES < 64:
        return x
    else:
        return transposed(x)


@triton.jit
def modal(block, found, modes, PRECISION: tl.constexpr):
    """Blocks of y[t] = sum_n R_n sum_j exp(a_n j) x[t - j]: of the block, and of its past."""
    y = tl.dot(block, modes.within[0], input_precision=PRECISION)
    if len(modes.within) == 2:
        y = tl.dot(block, modes.within[1], y, input_precision=PRECISION)
    states = by_block(found[1], modes.from_before[0].shape[0])
    return product(states, modes.from_before, y, len(states), PRECISION)


@triton.jit
def modal_adjoint(block, found, modes, PRECISION: tl.constexpr):
    """Blocks of y[t] = sum_n R_n sum_j exp(a_n j) x[t + j]: of the block, and of its future."""
    y = tl.dot(block, tl.trans(modes.within[0]), input_precision=PRECISION)
    if len(modes.within) == 2:
        y = tl.dot(block, tl.trans(modes.within[1]), y, input_precision=PRECISION)
    states = by_block(found[1], modes.from_after[0].shape[0])
    return product(states, modes.from_after, y, len(states), PRECISION)


@triton.jit
def folded(total, rows):
    """total + the sum of rows, which may have twice as many lanes: then of their two halves."""
    M: tl.constexpr = rows[0].shape[0]
    N: tl.constexpr = rows[0].shape[1]
    if total.shape[0] == M:
        for r in tl.static_range(len(rows)):
            total += rows[r]
        return total
    else:
        value = rows[0]
        for r in tl.static_range(1, len(rows)):
            value += rows[r]
        upper, lower = halves(value, M, N)
        return total + (upper + lower)


@triton.jit
def channel_sum(total, x):
    """total[0] += sum_t x[t]."""
    return (folded(total[0], x),)


@triton.jit
def joined_halves(total):
    """Tensors joined in pairs, the first with the first of the second half."""
    HALF: tl.constexpr = len(total) // 2
    out = ()
    for i in tl.static_range(HALF):
        out = out + (tl.join(total[i], total[i + HALF]),)
    return out


@triton.jit
def lane_sum(x):
    """Sums of rows: threads exchange all of x once and then add what is in their own registers,
    where tl.sum would have threads exchange every row several times.
    """
    COUNT: tl.constexpr = x.shape[0]
    phases = vector_rows(x, COUNT, x.shape[1] // 8)
    total = phases[0]
    for i in tl.static_range(1, 8):
        total += phases[i]
    return tl.sum(total, 1)


@triton.jit
def store_partial(ptr, first, total, channel, channel_mask, CHANNELS: tl.constexpr):
    """Write accumulators, summed over the tile, to rows first, ... of [P, CHANNELS]; many at once,
    which costs little more than one.
    """
    COUNT: tl.constexpr = triton.next_power_of_2(len(total))
    some = total
    for _ in tl.static_range(COUNT - len(total)):
        some = some + (total[0],)
    for _ in tl.static_range(COUNT.bit_length() - 1):
        some = joined_halves(some)
    row = tl.arange(0, COUNT)
    where = ptr + (first + row) * CHANNELS + channel
    sums = lane_sum(tl.trans(tl.reshape(some[0], (total[0].numel, COUNT))))
    tl.store(where, sums, mask=channel_mask & (row < len(total)))


class Split(NamedTuple):
    """One of the splits of a sequence, and what all of its tiles add to states.

    Attributes:
        sums_ptr: of the sequence's tiles, if it is split.
        program: which split this is.
        tile_0, tiles: its first tile, and how many it has at most.
        tiles_in_all: of the sequence.
    """

    sums_ptr: object
    program: object
    tile_0: object
    tiles: object
    tiles_in_all: object


@triton.jit
def chosen(condition, a, b):
    """a where the condition holds, else b, of complex numbers."""
    return tl.where(condition, a[0], b[0]), tl.where(condition, a[1], b[1])


@triton.jit
def walk(
    state, split, begin, stop, modes, COUNT: tl.constexpr, CHANNELS: tl.constexpr,
    MODES: tl.constexpr, M: tl.constexpr, TIME: tl.constexpr,
):  # fmt: skip
    """The state after `begin` tiles, counted from an end of the sequence, to that after `stop`, by
    the sums that the other launch has found. TIME is 1 from its first step on, -1 from its last.
    """
    LANES: tl.constexpr = M // 8
    for some in range(begin, stop, LANES):
        number = tl.minimum(some + tl.arange(0, LANES)[None, :], stop - 1)
        tile = number if TIME == 1 else split.tiles_in_all - 1 - number
        sums = load_state(split.sums_ptr, tile, COUNT, CHANNELS, MODES, M)  # a tile a lane
        for i in tl.static_range(LANES):
            later = passed_on(state, modes.scan.lost, lane_of(sums, i, MODES, M))
            state = chosen(some + i < stop, later, state)
    return state


@triton.jit
def state_before(
    split, modes, COUNT: tl.constexpr, CHANNELS: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """The state before the first step of a split, for every lane of the scan, where it is zero
    before the sequence: if SPLIT, by the arithmetic of a walk along all tiles before it.
    """
    state = zero_state(MODES, M)
    if SPLIT:
        state = walk(state, split, 0, split.tile_0, modes, COUNT, CHANNELS, MODES, M, 1)
    return state


@triton.jit
def adjoint_after(
    split, modes, COUNT: tl.constexpr, CHANNELS: tl.constexpr, MODES: tl.constexpr,
    M: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """The adjoint state after the last step of a split, for every lane, as `state_before`."""
    state = zero_state(MODES, M)
    if SPLIT:
        after = tl.maximum(split.tiles_in_all - split.tile_0 - split.tiles, 0)
        last = load_state(split.sums_ptr, split.tiles_in_all - 1, COUNT, CHANNELS, MODES, M)
        state = chosen(after > 0, last, state)
        state = walk(state, split, 1, after, modes, COUNT, CHANNELS, MODES, M, -1)
    return state


class Tile(NamedTuple):
    """Channels x time steps that a program computes at once, and what of them there is.

    Attributes:
        offset: of every row from the program's first channel.
        channel_mask: whether a row is a channel of the program.
        begin: the step at which every row begins, from `earliest` to `latest`.
        read_begin, read_end: activations are read within, and zero elsewhere.
        write_end: results are written before.
    """

    offset: object
    channel_mask: object
    begin: object
    earliest: object
    latest: object
    read_begin: object
    read_end: object
    write_end: object


@triton.jit
def load_vector(ptr, row, channel_mask):
    """One float32 parameter for each lane: [BLOCK_D, 1]."""
    return tl.load(ptr + row, mask=channel_mask, other=0.0).to(tl.float32)


@triton.jit
def multiply(a, b):
    y = ()
    for r in tl.static_range(len(a)):
        y = y + (a[r] * b[r],)
    return y


@triton.jit
def add(a, b):
    y = ()
    for r in tl.static_range(len(a)):
        y = y + (a[r] + b[r],)
    return y


@triton.jit
def scale(x, factor):
    """Each row times a per-channel factor [BLOCK_D, 1]."""
    y = ()
    for r in tl.static_range(len(x)):
        y = y + (x[r] * factor,)
    return y


@triton.jit
def zero_taps(LENGTH: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr):
    """LENGTH accumulators [BLOCK_D, N]."""
    total = ()
    for _ in tl.static_range(LENGTH):
        total = total + (tl.zeros((BLOCK_D, N), tl.float32),)
    return total


@triton.jit
def locate(program, splits, BLOCK_D: tl.constexpr, CHANNELS: tl.constexpr):
    """(batch, first channel, time program) of one program; neighbours in time run together."""
    channel_programs: tl.constexpr = (CHANNELS + BLOCK_D - 1) // BLOCK_D
    outer = program // splits
    return outer // channel_programs, outer % channel_programs * BLOCK_D, program % splits


@triton.jit
def advance(ptr, batch_stride, stride, STRIDE_UNIT: tl.constexpr, unit, origin):
    """The pointer to origin = (batch, channel, time), in 64-bit arithmetic, and the row stride.

    Strides come in units of STRIDE_UNIT elements, which tells the compiler how rows are aligned.
    """
    batch, channel, time = origin
    offset = (
        batch.to(tl.int64) * batch_stride * STRIDE_UNIT
        + channel.to(tl.int64) * stride * STRIDE_UNIT
    )
    return ptr + offset + time.to(tl.int64) * unit, stride * STRIDE_UNIT


@triton.jit
def load_steps(
    ptr, tile, stride, unit,
    LO: tl.constexpr, HI: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Rows LO .. HI - 1 from the first step of each block of ROWS; zero outside [read_begin,
    read_end).

    EVEN says that the segment's bounds are multiples of 8, so that a vector is inside or outside
    as a whole. Otherwise only tiles at an edge pay for a mask on every element. Lanes may begin at
    different times t, from `earliest` to `latest`.
    """
    rows = ()
    for vector in tl.static_range(LO // 8, (HI + 7) // 8):
        index = tl.arange(0, N * 8)[None, :]
        begin = tile.begin + vector * 8 + index // 8 * ROWS  # of the vector
        time = begin + index % 8
        where = ptr + tile.offset * stride + time * unit
        if EVEN:
            x = tl.load(
                where,
                mask=tile.channel_mask & (begin >= tile.read_begin) & (begin < tile.read_end),
                other=0.0,
            )
        elif (tile.earliest + vector * 8 >= tile.read_begin) & (
            tile.latest + vector * 8 + N * ROWS <= tile.read_end
        ):
            x = tl.load(where, mask=tile.channel_mask, other=0.0)
        else:
            x = tl.load(
                where,
                mask=tile.channel_mask & (time >= tile.read_begin) & (time < tile.read_end),
                other=0.0,
            )
        rows = rows + vector_rows(x, BLOCK_D, N)
    return rows[LO - LO // 8 * 8 : LO - LO // 8 * 8 + HI - LO]


@triton.jit
def store_steps(
    ptr, tile, rows, stride, unit, EVEN: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr
):
    """Write the rows of every block that lie before `write_end`."""
    for vector in tl.static_range(len(rows) // 8):
        x = rows_vector(rows, vector * 8, BLOCK_D, N, ptr.dtype.element_ty)
        index = tl.arange(0, N * 8)[None, :]
        begin = tile.begin + vector * 8 + index // 8 * len(rows)
        time = begin + index % 8
        where = ptr + tile.offset * stride + time * unit
        if EVEN:
            tl.store(where, x, mask=tile.channel_mask & (begin < tile.write_end))
        elif tile.latest + vector * 8 + N * len(rows) <= tile.write_end:
            tl.store(where, x, mask=tile.channel_mask)
        else:
            tl.store(where, x, mask=tile.channel_mask & (time < tile.write_end))


@triton.jit
def modes_of_step(
    log_poles_ptr, frequencies_ptr, residues_real_ptr, residues_imag_ptr, row, channel_mask,
    COUNT: tl.constexpr, MODES: tl.constexpr,
):  # fmt: skip
    """`modes_of_step` of step.py, of pairs: complex numbers are tuples of two tensors."""
    mode = tl.arange(0, MODES)[None, :]
    there = channel_mask[:, None] & (mode < COUNT)
    where = row[:, None] * COUNT + mode
    decay = tl.load(log_poles_ptr + where, mask=there, other=-1.0).to(tl.float32)
    frequency = tl.load(frequencies_ptr + where, mask=there, other=0.0).to(tl.float32)
    real = tl.load(residues_real_ptr + where, mask=there, other=0.0).to(tl.float32)
    imag = tl.load(residues_imag_ptr + where, mask=there, other=0.0).to(tl.float32)
    return decay_by((decay, turns_of(frequency)), 1), (real, imag)


@triton.jit
def read_steps(
    ptr, row, channel, batch_stride, channel_stride, time_stride, channel_mask,
    STEPS: tl.constexpr,
):  # fmt: skip
    """The steps of a row as float32."""
    ptr += row * batch_stride.to(tl.int64) + channel * channel_stride.to(tl.int64)
    x = ()
    for i in tl.static_range(STEPS):
        x = x + (tl.load(ptr + i * time_stride, mask=channel_mask, other=0.0).to(tl.float32),)
    return x


@triton.jit
def write_steps(ptr, row, channel, batch_stride, channel_stride, time_stride, channel_mask, x):
    """Write steps to a row."""
    ptr += row * batch_stride.to(tl.int64) + channel * channel_stride.to(tl.int64)
    for i in tl.static_range(len(x)):
        tl.store(ptr + i * time_stride, x[i], mask=channel_mask)


@triton.jit
def no_steps(
    ptr, row, channel, batch_stride, channel_stride, time_stride, channel_mask,
    STEPS: tl.constexpr,
):  # fmt: skip
    """Write zeros to a row."""
    ptr += row * batch_stride.to(tl.int64) + channel * channel_stride.to(tl.int64)
    for i in tl.static_range(STEPS):
        tl.store(ptr + i * time_stride, tl.zeros(channel.shape, tl.float32), mask=channel_mask)


@triton.jit
def after_step(state, modes, x):
    """`after_step` of step.py, of pairs."""
    lost, real, imag = modes[0], state[0], state[1]
    kept_real, kept_imag = tl.where(lost[2], real, 0.0), tl.where(lost[2], imag, 0.0)
    change = tl.fma(lost[0], real, tl.fma(-lost[1], imag, x[:, None]))
    return kept_real + change, kept_imag + tl.fma(lost[0], imag, lost[1] * real)


@triton.jit
def keep_steps(x, ring, count, channel, channel_mask, SLOTS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write x to the ring, from step `count` on."""
    for i in tl.static_range(len(x)):
        slot = (count + i) % SLOTS
        tl.store(ring + slot * COLUMNS + channel, x[i], mask=channel_mask)


@triton.jit
def read_state(ptr, channel, channel_mask, COUNT: tl.constexpr, MODES: tl.constexpr):
    """`read_state` of step.py, of pairs."""
    mode = tl.arange(0, MODES)[None, :]
    there = channel_mask[:, None] & (mode < COUNT)
    where = ptr + (channel[:, None] * COUNT + mode) * 2
    return tl.load(where, mask=there, other=0.0), tl.load(where + 1, mask=there, other=0.0)


@triton.jit
def sum_of_modes(state, modes):
    """`sum_of_modes` of step.py, of pairs: twice the real part."""
    return 2.0 * tl.sum(modes[1][0] * state[0] - modes[1][1] * state[1], axis=1)


@triton.jit
def write_state(ptr, state, channel, channel_mask, COUNT: tl.constexpr, MODES: tl.constexpr):
    """`write_state` of step.py, of pairs."""
    mode = tl.arange(0, MODES)[None, :]
    there = channel_mask[:, None] & (mode < COUNT)
    where = ptr + (channel[:, None] * COUNT + mode) * 2
    tl.store(where, state[0], mask=there)
    tl.store(where + 1, state[1], mask=there)


@triton.jit
def step_modes(
    x, modes, ptr, ring, count, replay, channel, channel_mask, SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr, COUNT: tl.constexpr, MODES: tl.constexpr, DRAFT: tl.constexpr,
):  # fmt: skip
    """The sums of modes after every step. The state after all of them is written; or, of drafts,
    that after the `replay` steps before, which the ring still has, and x to the ring.
    """
    state = read_state(ptr, channel, channel_mask, COUNT, MODES)
    if DRAFT:
        for i in range(replay):
            slot = (count - replay + i) % SLOTS
            step = tl.load(ring + slot * COLUMNS + channel, mask=channel_mask, other=0.0)
            state = after_step(state, modes, step)
        tl.debug_barrier()  # no warp writes what another has yet to read
        write_state(ptr, state, channel, channel_mask, COUNT, MODES)
        keep_steps(x, ring, count, channel, channel_mask, SLOTS, COLUMNS)
    y = ()
    for i in tl.static_range(len(x)):
        state = after_step(state, modes, x[i])
        y = y + (sum_of_modes(state, modes),)
    if not DRAFT:
        tl.debug_barrier()  # as above
        write_state(ptr, state, channel, channel_mask, COUNT, MODES)
    return y


@triton.jit
def keep_count(done, count, channel, channel_mask, COUNTED: tl.constexpr):
    """Write how many steps there were to every COUNTED channels."""
    tl.store(done + channel // COUNTED, count, mask=channel_mask & (channel % COUNTED == 0))


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


# -----------------------------------------------------------------------------------------------
# Kernels
# -----------------------------------------------------------------------------------------------


@triton.jit(
    do_not_specialize=[
        "x_batch", "x_stride",
        "y_batch", "y_stride",
        "read_begin", "read_end", "write_end", "splits", "tiles",
    ]
)  # fmt: skip
def s4d_forward(
    x_ptr, x_batch, x_stride,
    y_ptr, y_batch, y_stride,
    log_poles_ptr,  # [groups, 32]
    frequencies_ptr,  # [groups, 32]
    residues_real_ptr,  # [groups, 32]
    residues_imag_ptr,  # [groups, 32]
    skip_ptr,  # [channels]
    states_ptr,  # [batch, tiles, CHANNELS, 64] float32: before every tile
    split_sums_ptr,  # as states_ptr: what every tile adds to the state
    read_begin, read_end, write_end, splits, tiles,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr, STRIDE_UNIT: tl.constexpr,
    EVEN: tl.constexpr, TERMS: tl.constexpr, KEEP: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK_T: tl.constexpr, PREFETCH: tl.constexpr,
):  # fmt: skip
    """z = x; y = filter * z + skip . z

    A program walks forward in time along one channel's sequence, or a split of it: `tiles`
    tiles, or what is left. A tile is SEGMENTS blocks of BLOCK_T consecutive steps.

    Time counts from the first step written. Activations are read in [read_begin, read_end), are
    zero elsewhere, and are written up to `write_end`. EVEN says that these three are multiples of
    8; strides count in units of STRIDE_UNIT elements.
    SPLIT says that the sequence has several splits.
    """
    N: tl.constexpr = BLOCK_T // ROWS  # lanes of a block
    M: tl.constexpr = SEGMENTS  # rows of a product
    TILE: tl.constexpr = M * BLOCK_T
    PARTS: tl.constexpr = 1
    part: tl.constexpr = 0
    H: tl.constexpr = M
    MODES: tl.constexpr = 64  # with those that only fill a product
    OPERAND: tl.constexpr = tl.bfloat16 if x_ptr.dtype.element_ty == tl.bfloat16 else tl.float32
    PRECISION: tl.constexpr = "tf32" if x_ptr.dtype.element_ty == tl.float16 else "ieee"
    batch, channel, program = locate(tl.program_id(0), splits, BLOCK_D=1, CHANNELS=CHANNELS)
    tile_0 = program * tiles
    origin = (batch, channel, tile_0 * TILE)
    x_ptr, x_stride = advance(x_ptr, x_batch, x_stride, STRIDE_UNIT, UNIT, origin)
    y_ptr, y_stride = advance(y_ptr, y_batch, y_stride, STRIDE_UNIT, 1, origin)
    tiles_in_all = tl.cdiv(write_end, TILE)
    tile_before = batch.to(tl.int64) * tiles_in_all
    split_sums_ptr += (tile_before * CHANNELS + channel) * 64
    split = Split(split_sums_ptr, program, tile_0, tiles, tiles_in_all)
    states_ptr += ((tile_before + tile_0) * CHANNELS + channel) * 64
    read_begin -= tile_0 * TILE
    read_end -= tile_0 * TILE
    write_end -= tile_0 * TILE
    tiles = tl.minimum(tiles, tiles_in_all - tile_0)
    segment = tl.arange(0, H)[:, None] * BLOCK_T  # where a block begins
    offset = 0
    channel_mask = channel < CHANNELS
    filter = load_modes(
        log_poles_ptr,
        frequencies_ptr,
        residues_real_ptr,
        residues_imag_ptr,
        channel // WIDTH,
        COUNT=32,
        MODES=MODES,
        M=M,
        BLOCK_T=BLOCK_T,
        OPERAND=OPERAND,
        PRECISION=PRECISION,
        TERMS=TERMS,
    )
    skip = load_vector(skip_ptr, channel, channel_mask)
    x_state = state_before(
        split, filter, COUNT=64, CHANNELS=CHANNELS, MODES=MODES, M=M, SPLIT=SPLIT
    )
    for number in tl.range(0, tiles, num_stages=PREFETCH):
        t = number * TILE
        tile = Tile(
            offset,
            channel_mask,
            segment + t,
            t,
            t + TILE - BLOCK_T,
            read_begin,
            read_end,
            write_end,
        )
        x = load_steps(
            x_ptr, tile, x_stride, UNIT, LO=0, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=H, N=N
        )
        keep_state(
            states_ptr, number, x_state, COUNT=64, CHANNELS=CHANNELS, MODES=MODES, M=M, KEEP=KEEP
        )
        x_block = block_of((piece_of(x, H, N, OPERAND),), M, N, PRECISION)
        x_states, x_state = states_before(x_block, filter, x_state, MODES, M, OPERAND, PRECISION)
        conv_block = modal(x_block, x_states, filter, PRECISION)
        conv = recall(conv_block, part, PARTS, M, N)
        skipped = scale(x, skip)
        pre_skip = add(conv, skipped)
        store_steps(y_ptr, tile, pre_skip, y_stride, unit=1, EVEN=EVEN, BLOCK_D=H, N=N)


@triton.jit(
    do_not_specialize=[
        "x_batch", "x_stride",
        "dy_batch", "dy_stride",
        "d_x_batch", "d_x_stride",
        "read_begin", "read_end", "write_end", "splits", "tiles",
    ]
)  # fmt: skip
def s4d_backward(
    x_ptr, x_batch, x_stride,
    dy_ptr, dy_batch, dy_stride,
    d_x_ptr, d_x_batch, d_x_stride,
    log_poles_ptr,  # [groups, 32]
    frequencies_ptr,  # [groups, 32]
    residues_real_ptr,  # [groups, 32]
    residues_imag_ptr,  # [groups, 32]
    skip_ptr,  # [channels]
    states_ptr,  # [batch, tiles, CHANNELS, 64] float32: before every tile
    split_sums_ptr,  # as states_ptr: what every tile adds to the state
    partials_ptr,  # [batch and splits, 129, CHANNELS] float32
    read_begin, read_end, write_end, splits, tiles,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr, D_UNIT: tl.constexpr,
    STRIDE_UNIT: tl.constexpr, EVEN: tl.constexpr, TERMS: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK_T: tl.constexpr, PREFETCH: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Gradients of every input, and partial sums of those of parameters.

    A program walks backward in time along one channel's sequence, or a split of it: `tiles`
    tiles, or what is left. A tile is SEGMENTS blocks of BLOCK_T consecutive steps.
    Its rows are computed in PARTS, one after another.

    Time counts from the first step written. Activations are read in [read_begin, read_end), are
    zero elsewhere, and are written up to `write_end`. EVEN says that these three are multiples of
    8; strides count in units of STRIDE_UNIT elements.
    SPLIT says that the sequence has several splits.
    """
    N: tl.constexpr = BLOCK_T // ROWS  # lanes of a block
    M: tl.constexpr = SEGMENTS  # rows of a product
    TILE: tl.constexpr = M * BLOCK_T
    H: tl.constexpr = M // PARTS  # blocks of a part
    MODES: tl.constexpr = 64  # with those that only fill a product
    OPERAND: tl.constexpr = tl.bfloat16 if x_ptr.dtype.element_ty == tl.bfloat16 else tl.float32
    PRECISION: tl.constexpr = "tf32" if x_ptr.dtype.element_ty == tl.float16 else "ieee"
    batch, channel, program = locate(tl.program_id(0), splits, BLOCK_D=1, CHANNELS=CHANNELS)
    tile_0 = program * tiles
    origin = (batch, channel, tile_0 * TILE)
    x_ptr, x_stride = advance(x_ptr, x_batch, x_stride, STRIDE_UNIT, UNIT, origin)
    dy_ptr, dy_stride = advance(dy_ptr, dy_batch, dy_stride, STRIDE_UNIT, 1, origin)
    d_x_ptr, d_x_stride = advance(d_x_ptr, d_x_batch, d_x_stride, STRIDE_UNIT, D_UNIT, origin)
    tiles_in_all = tl.cdiv(write_end, TILE)
    tile_before = batch.to(tl.int64) * tiles_in_all
    split_sums_ptr += (tile_before * CHANNELS + channel) * 64
    split = Split(split_sums_ptr, program, tile_0, tiles, tiles_in_all)
    states_ptr += ((tile_before + tile_0) * CHANNELS + channel) * 64
    read_begin -= tile_0 * TILE
    read_end -= tile_0 * TILE
    write_end -= tile_0 * TILE
    tiles = tl.minimum(tiles, tiles_in_all - tile_0)
    segment = tl.arange(0, H)[:, None] * BLOCK_T  # where a block begins
    offset = 0
    channel_mask = channel < CHANNELS
    filter = load_modes(
        log_poles_ptr,
        frequencies_ptr,
        residues_real_ptr,
        residues_imag_ptr,
        channel // WIDTH,
        COUNT=32,
        MODES=MODES,
        M=M,
        BLOCK_T=BLOCK_T,
        OPERAND=OPERAND,
        PRECISION=PRECISION,
        TERMS=TERMS,
    )
    skip = load_vector(skip_ptr, channel, channel_mask)
    d_skip = zero_taps(LENGTH=1, BLOCK_D=M // 2, N=N)
    d_filter = zero_modes(MODES, M, BLOCK_T)
    dy_state = adjoint_after(
        split, filter, COUNT=64, CHANNELS=CHANNELS, MODES=MODES, M=M, SPLIT=SPLIT
    )
    for back in tl.range(0, tiles, num_stages=PREFETCH):
        number = tiles - 1 - back
        t = number * TILE
        x_state = load_state(states_ptr, number, COUNT=64, CHANNELS=CHANNELS, MODES=MODES, M=M)
        x_block = ()
        dy_block = ()
        for part in tl.static_range(PARTS):
            s = t + part * (H * BLOCK_T)
            last_block = s + (H - 1) * BLOCK_T
            rows = (segment + s, s, last_block)
            bounds = (read_begin, read_end, write_end)
            tile = Tile(offset, channel_mask, *rows, *bounds)
            x_a = load_steps(
                x_ptr, tile, x_stride, UNIT, LO=0, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=H, N=N
            )
            x_block = x_block + (piece_of(x_a, H, N, OPERAND),)
            dy_a = load_steps(
                dy_ptr,
                tile,
                dy_stride,
                unit=1,
                LO=0,
                HI=ROWS,
                EVEN=EVEN,
                ROWS=ROWS,
                BLOCK_D=H,
                N=N,
            )
            dy_block = dy_block + (piece_of(dy_a, H, N, OPERAND),)
        x_block = block_of(x_block, M, N, PRECISION)
        dy_block = block_of(dy_block, M, N, PRECISION)
        x_states, x_state = states_before(x_block, filter, x_state, MODES, M, OPERAND, PRECISION)
        dy_states, dy_state = states_after(
            dy_block, filter, dy_state, MODES, M, OPERAND, PRECISION
        )
        d_filter = state_gradient(d_filter, dy_states, x_states)
        d_x_2_block = modal_adjoint(dy_block, dy_states, filter, PRECISION)
        tl.debug_barrier()  # what follows loads again what it needs
        for part in tl.static_range(PARTS - 1, -1, -1):
            s = t + part * (H * BLOCK_T)
            last_block = s + (H - 1) * BLOCK_T
            rows = (segment + s, s, last_block)
            bounds = (read_begin, read_end, write_end)
            tile = Tile(offset, channel_mask, *rows, *bounds)
            d_x_2 = recall(d_x_2_block, part, PARTS, M, N)
            x_c = recall(x_block, part, PARTS, M, N)
            dy_c = recall(dy_block, part, PARTS, M, N)
            d_x_1_c = scale(dy_c, skip)
            skipped_product_c = multiply(dy_c, x_c)
            d_skip = channel_sum(d_skip, skipped_product_c)
            d_x_c = add(d_x_1_c, d_x_2)
            store_steps(d_x_ptr, tile, d_x_c, d_x_stride, D_UNIT, EVEN, H, N)
        d_filter = modal_gradient(d_filter, dy_block, dy_states, x_block, x_states, PRECISION)
    partials_ptr += (batch * splits + program).to(tl.int64) * (129 * CHANNELS)
    store_partial(
        partials_ptr,
        first=0,
        total=d_skip,
        channel=channel,
        channel_mask=channel_mask,
        CHANNELS=CHANNELS,
    )
    store_modes(
        partials_ptr,
        first=1,
        total=d_filter,
        poles=load_poles(
            log_poles_ptr,
            frequencies_ptr,
            residues_real_ptr,
            residues_imag_ptr,
            channel // WIDTH,
            COUNT=32,
            MODES=MODES,
        ),
        channel=channel,
        channel_mask=channel_mask,
        COUNT=32,
        CHANNELS=CHANNELS,
        MODES=MODES,
        M=M,
        BLOCK_T=BLOCK_T,
    )


@triton.jit(
    do_not_specialize=[
        "x_batch", "x_stride",
        "read_begin", "read_end", "write_end", "splits", "tiles",
    ]
)  # fmt: skip
def s4d_forward_sums(
    x_ptr, x_batch, x_stride,
    log_poles_ptr,  # [groups, 32]
    frequencies_ptr,  # [groups, 32]
    residues_real_ptr,  # [groups, 32]
    residues_imag_ptr,  # [groups, 32]
    states_ptr,  # [batch, tiles, CHANNELS, 64] float32: what every tile adds
    read_begin, read_end, write_end, splits, tiles,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr, STRIDE_UNIT: tl.constexpr,
    EVEN: tl.constexpr, TERMS: tl.constexpr, ROWS: tl.constexpr, SEGMENTS: tl.constexpr,
    BLOCK_T: tl.constexpr, PREFETCH: tl.constexpr,
):  # fmt: skip
    """What every tile adds to the state.

    A program walks forward in time along one channel's sequence, or a split of it: `tiles`
    tiles, or what is left. A tile is SEGMENTS blocks of BLOCK_T consecutive steps.

    Time counts from the first step written. Activations are read in [read_begin, read_end), are
    zero elsewhere, and are written up to `write_end`. EVEN says that these three are multiples of
    8; strides count in units of STRIDE_UNIT elements.
    """
    N: tl.constexpr = BLOCK_T // ROWS  # lanes of a block
    M: tl.constexpr = SEGMENTS  # rows of a product
    TILE: tl.constexpr = M * BLOCK_T
    KEEP: tl.constexpr = True
    H: tl.constexpr = M
    MODES: tl.constexpr = 64  # with those that only fill a product
    OPERAND: tl.constexpr = tl.bfloat16 if x_ptr.dtype.element_ty == tl.bfloat16 else tl.float32
    PRECISION: tl.constexpr = "tf32" if x_ptr.dtype.element_ty == tl.float16 else "ieee"
    batch, channel, program = locate(tl.program_id(0), splits, BLOCK_D=1, CHANNELS=CHANNELS)
    tile_0 = program * tiles
    origin = (batch, channel, tile_0 * TILE)
    x_ptr, x_stride = advance(x_ptr, x_batch, x_stride, STRIDE_UNIT, UNIT, origin)
    tiles_in_all = tl.cdiv(write_end, TILE)
    tile_before = batch.to(tl.int64) * tiles_in_all
    states_ptr += ((tile_before + tile_0) * CHANNELS + channel) * 64
    read_begin -= tile_0 * TILE
    read_end -= tile_0 * TILE
    write_end -= tile_0 * TILE
    tiles = tl.minimum(tiles, tiles_in_all - tile_0)
    segment = tl.arange(0, H)[:, None] * BLOCK_T  # where a block begins
    offset = 0
    channel_mask = channel < CHANNELS
    filter = load_modes(
        log_poles_ptr,
        frequencies_ptr,
        residues_real_ptr,
        residues_imag_ptr,
        channel // WIDTH,
        COUNT=32,
        MODES=MODES,
        M=M,
        BLOCK_T=BLOCK_T,
        OPERAND=OPERAND,
        PRECISION=PRECISION,
        TERMS=TERMS,
    )
    for number in tl.range(0, tiles, num_stages=PREFETCH):
        t = number * TILE
        tile = Tile(
            offset,
            channel_mask,
            segment + t,
            t,
            t + TILE - BLOCK_T,
            read_begin,
            read_end,
            write_end,
        )
        x = load_steps(
            x_ptr, tile, x_stride, UNIT, LO=0, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=H, N=N
        )
        x_state = zero_state(MODES, M)
        x_block = block_of((piece_of(x, H, N, OPERAND),), M, N, PRECISION)
        x_states, x_state = states_before(x_block, filter, x_state, MODES, M, OPERAND, PRECISION)
        keep_state(
            states_ptr, number, x_state, COUNT=64, CHANNELS=CHANNELS, MODES=MODES, M=M, KEEP=KEEP
        )


@triton.jit(
    do_not_specialize=[
        "dy_batch", "dy_stride",
        "read_begin", "read_end", "write_end", "splits", "tiles",
    ]
)  # fmt: skip
def s4d_backward_sums(
    dy_ptr, dy_batch, dy_stride,
    log_poles_ptr,  # [groups, 32]
    frequencies_ptr,  # [groups, 32]
    residues_real_ptr,  # [groups, 32]
    residues_imag_ptr,  # [groups, 32]
    states_ptr,  # [batch, tiles, CHANNELS, 64] float32: what every tile adds
    read_begin, read_end, write_end, splits, tiles,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, STRIDE_UNIT: tl.constexpr, EVEN: tl.constexpr,
    TERMS: tl.constexpr, ROWS: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK_T: tl.constexpr,
    PREFETCH: tl.constexpr,
):  # fmt: skip
    """What every tile adds to the adjoint state.

    A program walks backward in time along one channel's sequence, or a split of it: `tiles`
    tiles, or what is left. A tile is SEGMENTS blocks of BLOCK_T consecutive steps.

    Time counts from the first step written. Activations are read in [read_begin, read_end), are
    zero elsewhere, and are written up to `write_end`. EVEN says that these three are multiples of
    8; strides count in units of STRIDE_UNIT elements.
    """
    N: tl.constexpr = BLOCK_T // ROWS  # lanes of a block
    M: tl.constexpr = SEGMENTS  # rows of a product
    TILE: tl.constexpr = M * BLOCK_T
    KEEP: tl.constexpr = True
    H: tl.constexpr = M
    MODES: tl.constexpr = 64  # with those that only fill a product
    OPERAND: tl.constexpr = tl.bfloat16 if dy_ptr.dtype.element_ty == tl.bfloat16 else tl.float32
    PRECISION: tl.constexpr = "tf32" if dy_ptr.dtype.element_ty == tl.float16 else "ieee"
    batch, channel, program = locate(tl.program_id(0), splits, BLOCK_D=1, CHANNELS=CHANNELS)
    program += 1  # nothing is before the first split
    tile_0 = program * tiles
    origin = (batch, channel, tile_0 * TILE)
    dy_ptr, dy_stride = advance(dy_ptr, dy_batch, dy_stride, STRIDE_UNIT, 1, origin)
    tiles_in_all = tl.cdiv(write_end, TILE)
    tile_before = batch.to(tl.int64) * tiles_in_all
    states_ptr += ((tile_before + tile_0) * CHANNELS + channel) * 64
    read_begin -= tile_0 * TILE
    read_end -= tile_0 * TILE
    write_end -= tile_0 * TILE
    tiles = tl.minimum(tiles, tiles_in_all - tile_0)
    segment = tl.arange(0, H)[:, None] * BLOCK_T  # where a block begins
    offset = 0
    channel_mask = channel < CHANNELS
    filter = load_modes(
        log_poles_ptr,
        frequencies_ptr,
        residues_real_ptr,
        residues_imag_ptr,
        channel // WIDTH,
        COUNT=32,
        MODES=MODES,
        M=M,
        BLOCK_T=BLOCK_T,
        OPERAND=OPERAND,
        PRECISION=PRECISION,
        TERMS=TERMS,
    )
    for back in tl.range(0, tiles, num_stages=PREFETCH):
        number = tiles - 1 - back
        t = number * TILE
        tile = Tile(
            offset,
            channel_mask,
            segment + t,
            t,
            t + TILE - BLOCK_T,
            read_begin,
            read_end,
            write_end,
        )
        dy = load_steps(
            dy_ptr, tile, dy_stride, unit=1, LO=0, HI=ROWS, EVEN=EVEN, ROWS=ROWS, BLOCK_D=H, N=N
        )
        dy_state = zero_state(MODES, M)
        dy_block = block_of((piece_of(dy, H, N, OPERAND),), M, N, PRECISION)
        dy_states, dy_state = states_after(
            dy_block, filter, dy_state, MODES, M, OPERAND, PRECISION
        )
        keep_state(
            states_ptr, number, dy_state, COUNT=64, CHANNELS=CHANNELS, MODES=MODES, M=M, KEEP=KEEP
        )


@triton.jit(
    do_not_specialize=[
        "x_batch", "x_channel", "x_time",
        "y_batch", "y_channel", "y_time",
        "places",
    ]
)  # fmt: skip
def s4d_decode(
    x_ptr, x_batch, x_channel, x_time,
    y_ptr, y_batch, y_channel, y_time,
    log_poles_ptr,  # [groups, 32]
    frequencies_ptr,  # [groups, 32]
    residues_real_ptr,  # [groups, 32]
    residues_imag_ptr,  # [groups, 32]
    skip_ptr,  # [channels]
    z_ptr,  # [places, Z_SLOTS, CHANNELS]
    modes_ptr,  # [places, CHANNELS, 64] float32
    count_ptr,  # [places] int32: steps before these
    done_ptr,  # [places, CHANNELS / BLOCK] int32: the same of each block of channels
    slots_ptr,  # [batch] int32: places
    places,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr, Z_SLOTS: tl.constexpr,
    SLOTTED: tl.constexpr, DRAFT: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """z = x; y = filter * z + skip . z

    A program computes STEPS steps of BLOCK_D channels of a sequence. The past of sequence i is row
    slots[i] of the state, if SLOTTED, else row i; of sequences whose slot is none of the `places`
    nothing is computed. DRAFT says that the state does not move on.
    """
    COLUMNS: tl.constexpr = (CHANNELS + BLOCK_D - 1) // BLOCK_D  # programs along channels
    MODES: tl.constexpr = 32  # with those that only fill a block
    channel_0 = tl.program_id(0) % COLUMNS * BLOCK_D
    channel = channel_0 + tl.arange(0, BLOCK_D)
    channel_mask = channel < CHANNELS
    filter = modes_of_step(
        log_poles_ptr,
        frequencies_ptr,
        residues_real_ptr,
        residues_imag_ptr,
        channel // WIDTH,
        channel_mask,
        COUNT=32,
        MODES=MODES,
    )
    skip = load_vector(skip_ptr, channel, channel_mask)
    row = tl.program_id(0) // COLUMNS
    slot = row
    if SLOTTED:
        slot = tl.load(slots_ptr + row)
        slot = tl.where(slot < places, slot, -1)
    if slot >= 0:
        place = slot.to(tl.int64)
        done = done_ptr + place * ((CHANNELS + 15) // 16)
        own = done + channel_0 // 16
        count = tl.load(count_ptr + place if DRAFT else own)  # of drafts, changed by none of these
        z_ring = z_ptr + place * (Z_SLOTS * CHANNELS)
        modes_state = modes_ptr + place * (CHANNELS * 64)
        replay = count - tl.load(own) if DRAFT else 0
        x = read_steps(x_ptr, row, channel, x_batch, x_channel, x_time, channel_mask, STEPS)
        conv = step_modes(
            x,
            filter,
            modes_state,
            z_ring,
            count,
            replay,
            channel,
            channel_mask,
            Z_SLOTS,
            CHANNELS,
            COUNT=32,
            MODES=MODES,
            DRAFT=DRAFT,
        )
        skipped = scale(x, skip)
        pre_skip = add(conv, skipped)
        write_steps(y_ptr, row, channel, y_batch, y_channel, y_time, channel_mask, pre_skip)
        tl.debug_barrier()  # no warp writes what another has yet to read
        if not DRAFT:
            keep_count(done, count + STEPS, channel, channel_mask, 16)
            tl.store(count_ptr + place, count + STEPS, mask=channel_0 == 0)
        else:
            keep_count(done, count, channel, channel_mask, 16)
    else:
        no_steps(y_ptr, row, channel, y_batch, y_channel, y_time, channel_mask, STEPS)


@triton.constexpr_function
def section_end(index, CHANNELS, WIDTH):
    """The first program after those that sum the gradients of parameters 0 .. index."""
    sections = (
        (32, CHANNELS, WIDTH),  # log_poles
        (32, CHANNELS, WIDTH),  # frequencies
        (32, CHANNELS, WIDTH),  # residues_real
        (32, CHANNELS, WIDTH),  # residues_imag
        (1, CHANNELS, 1),  # skip
    )
    return sum(rows * sum_blocks(columns, width) for rows, columns, width in sections[: index + 1])


@triton.jit(do_not_specialize=["splits"])
def sum_partials(
    partials_ptr,  # [splits, 129, CHANNELS] float32
    d_log_poles_ptr,  # [groups, 32]
    d_frequencies_ptr,  # [groups, 32]
    d_residues_real_ptr,  # [groups, 32]
    d_residues_imag_ptr,  # [groups, 32]
    d_skip_ptr,  # [channels]
    splits,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of log_poles, frequencies, residues_real, residues_imag, skip, each by programs
    of its own.
    """
    program = tl.program_id(0)
    if program < section_end(0, CHANNELS, WIDTH):
        d_log_poles = sum_rows(
            partials_ptr, splits, program,
            FIRST=1, P=129, COLUMNS=CHANNELS, WIDTH=WIDTH,
            LENGTH=32, ROLES=1, INTERLEAVED=False, LAG_LAST=False,
        )  # fmt: skip
        store_gradient(d_log_poles_ptr, d_log_poles)
    elif program < section_end(1, CHANNELS, WIDTH):
        d_frequencies = sum_rows(
            partials_ptr, splits, program - section_end(0, CHANNELS, WIDTH),
            FIRST=33, P=129, COLUMNS=CHANNELS, WIDTH=WIDTH,
            LENGTH=32, ROLES=1, INTERLEAVED=False, LAG_LAST=False,
        )  # fmt: skip
        store_gradient(d_frequencies_ptr, d_frequencies)
    elif program < section_end(2, CHANNELS, WIDTH):
        d_residues_real = sum_rows(
            partials_ptr, splits, program - section_end(1, CHANNELS, WIDTH),
            FIRST=65, P=129, COLUMNS=CHANNELS, WIDTH=WIDTH,
            LENGTH=32, ROLES=1, INTERLEAVED=False, LAG_LAST=False,
        )  # fmt: skip
        store_gradient(d_residues_real_ptr, d_residues_real)
    elif program < section_end(3, CHANNELS, WIDTH):
        d_residues_imag = sum_rows(
            partials_ptr, splits, program - section_end(2, CHANNELS, WIDTH),
            FIRST=97, P=129, COLUMNS=CHANNELS, WIDTH=WIDTH,
            LENGTH=32, ROLES=1, INTERLEAVED=False, LAG_LAST=False,
        )  # fmt: skip
        store_gradient(d_residues_imag_ptr, d_residues_imag)
    else:
        d_skip = sum_rows(
            partials_ptr, splits, program - section_end(3, CHANNELS, WIDTH),
            FIRST=0, P=129, COLUMNS=CHANNELS, WIDTH=1,
            LENGTH=1, ROLES=1, INTERLEAVED=False, LAG_LAST=False,
        )  # fmt: skip
        store_gradient(d_skip_ptr, d_skip)


# -----------------------------------------------------------------------------------------------
# Launchers
# -----------------------------------------------------------------------------------------------


class Grid(NamedTuple):
    """The programs of a launch.

    Attributes:
        splits: of a sequence, each by a program of its own.
        tiles: of a split, or of each of its segments.
        columns: programs along channels.
        sums: partial sums that a program writes.
        programs: in all.
    """

    splits: int
    tiles: int
    columns: int
    sums: int
    programs: int


def walk_grid(
    batch: int, steps: int, channels: int, width: int, config: dict[str, int], whole: bool = False
) -> Grid:
    """Of kernels that walk along all of a sequence, a channel each, or along splits of it.

    A sequence is split where its channels are fewer programs than PROGRAMS, into four or more
    splits of two tiles or more. The batch has no say, so that it changes no bit of a sequence.
    """
    in_all = -(-steps // (config["BLOCK_T"] * config["SEGMENTS"]))
    splits = min(in_all // 2, config["PROGRAMS"] // channels)
    tiles = -(-in_all // splits) if splits >= 4 else in_all
    if -(-in_all // tiles if tiles else 0) < 4:
        tiles = in_all
    splits = -(-in_all // tiles) if tiles else 0
    return Grid(splits, tiles, channels, 1, batch * splits * channels)


def even(bounds: tuple[int, int, int]) -> bool:
    """Whether a vector of 8 steps lies within or without the bounds as a whole."""
    return all(bound % 8 == 0 for bound in bounds)


def step_grid(
    batch: int, steps: int, channels: int, width: int, config: dict[str, int], whole: bool = False
) -> Grid:
    """Of kernels that decode: a program has channels of one sequence, and all their steps."""
    columns = -(-channels // config["BLOCK_D"])
    return Grid(1, 1, columns, 1, columns * batch)


def step_config(config: dict[str, int], columns: int, steps: int) -> dict[str, int]:
    """The config of a call that decodes so many columns, channels of a sequence each: of many,
    programs are twice as wide; of several steps taps are read in blocks that take no more
    registers.
    """
    wide = 2 if 0 < config["DOUBLE"] < columns else 1
    chunk = max(16, config["CHUNK"] >> (max(1, steps) - 1).bit_length())
    return {
        "BLOCK_D": wide * config["BLOCK_D"],
        "CHUNK": chunk,
        "num_warps": wide * config["num_warps"],
    }


def gpu_of(device: torch.device) -> tuple[str, tuple[int, int]]:
    """What torch calls the GPU, and its compute capability; nothing of a CPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return "", (0, 0)
    return torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)


def rows_of_products(device: torch.device) -> int:
    """The rows of a product instruction; of a CPU, those of the least that has more than 16."""
    major, _ = gpu_of(device)[1]
    return PRODUCT_ROWS.get(major or min(PRODUCT_ROWS), 16)


def tap_terms(groups: int) -> int:
    """How many operands of products a tap is: two where few taps carry the result."""
    return 2 if groups < 32 else 1


def default_configs(channels: int, groups: int, device: torch.device) -> dict[str, dict[str, int]]:
    """The config of each kernel where CONFIGS has none."""
    product_rows = rows_of_products(device)
    if product_rows <= 16:
        forward = {
            "ROWS": 8,
            "SEGMENTS": 64,
            "BLOCK_T": 16,
            "PREFETCH": 1,
            "num_warps": 4,
            "maxnreg": 255,
            "PROGRAMS": 512,
        }
    else:
        forward = {
            "ROWS": 8,
            "SEGMENTS": 64,
            "BLOCK_T": 32,
            "PREFETCH": 1,
            "num_warps": 4,
            "maxnreg": 128,
            "PROGRAMS": 512,
        }
    if product_rows <= 16:
        backward = {
            "ROWS": 8,
            "SEGMENTS": 64,
            "BLOCK_T": 16,
            "PREFETCH": 1,
            "PARTS": 2,
            "num_warps": 8,
            "maxnreg": 255,
            "PROGRAMS": 256,
        }
    else:
        backward = {
            "ROWS": 8,
            "SEGMENTS": 64,
            "BLOCK_T": 32,
            "PREFETCH": 1,
            "PARTS": 1,
            "num_warps": 8,
            "maxnreg": 255,
            "PROGRAMS": 256,
        }
    decode = {"BLOCK_D": 32, "CHUNK": 0, "DOUBLE": 0, "num_warps": 2}
    return {"forward": forward, "backward": backward, "decode": decode}


def configs_of(x: Tensor, channels: int, groups: int) -> dict[str, dict[str, int]]:
    """The config of every kernel for inputs like x of so many channels and groups: that of
    CONFIGS for this GPU, or for one of its compute capability, or else the default.
    """
    key = (x.device, int(channels), int(groups))
    if key not in CHOSEN:
        here, capability = gpu_of(x.device)
        stated = {
            gpu: configs for (gpu, *width), configs in CONFIGS.items() if (*width,) == key[1:]
        }
        alike = [gpu for gpu in stated if CAPABILITIES.get(gpu) == capability]
        configs = next((stated[gpu] for gpu in ("", here, *alike) if gpu in stated), None)
        configs = dict(configs or default_configs(*key[1:], x.device))
        batch = WIDTHS.get(key[1:], WIDTHS[CHANNELS, GROUPS])
        for name, config in configs.items():  # of a sequence; a batch of these runs at once
            if "PROGRAMS" in config:
                configs[name] = config | {"PROGRAMS": max(1, config["PROGRAMS"] // batch)}
        CHOSEN[key] = configs
    return CHOSEN[key]


def dense(x: Tensor) -> Tensor:
    """x itself if its last axis is contiguous, else a copy for which it is."""
    return x if x.stride(2) == 1 else allocate(x, x.shape[TIME]).copy_(x)


def common_unit(tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], int]:
    """The tensors and the stride of their last axis, which kernels take as a constant.

    Views of interleaved features may keep theirs, up to WIDEST; anything wider, or mixed, is
    copied first.
    """
    units = {x.stride(2) for x in tensors}
    if len(units) == 1 and min(units) in range(1, WIDEST + 1):
        return tuple(tensors), units.pop()
    return tuple(dense(x) for x in tensors), 1


def operand(x: Tensor, begin: int, step: int) -> tuple[Tensor, int, int]:
    """What a kernel takes for an activation: data from `begin` on, and strides over `step`."""
    batch_stride, row_stride, _ = x.stride()
    data = x.narrow(TIME, begin, x.shape[TIME] - begin) if begin else x
    return data, batch_stride // step if x.shape[0] > 1 else 0, row_stride // step


def allocate_states(
    like: Tensor, channels: int, steps: int, config: dict[str, int], modes: int, keep: bool
) -> Tensor:
    """Room for the states before all tiles of so many steps, or none: [batch, tiles, channels,
    modes] float32.
    """
    tiles = -(-steps // (config["BLOCK_T"] * config["SEGMENTS"])) if keep else 0
    if tiles * channels * modes >= 2**31:
        raise ValueError(f"{OP}: {steps} steps have too many states; compute them in chunks")
    return like.new_empty((like.shape[0], tiles, channels, modes), dtype=torch.float32)


def stride_step(config: dict[str, int], tensors: Sequence[Tensor], tiles: int) -> int:
    """8 if all strides are multiples of 8 elements, so that accesses are 16 bytes wide; else 1.

    Refuses row strides that the 32-bit offsets within a program of so many tiles cannot hold;
    those of the program itself are 64-bit.
    """
    rows, step = rows_reached(config, tiles), 8
    for x in tensors:
        batch_stride, row_stride, _ = x.stride()
        if rows * row_stride >= 2**31:
            raise ValueError(f"{OP}: a row stride of {row_stride} elements is too large")
        if row_stride % 8 or (batch_stride % 8 and x.shape[0] > 1):
            step = 1
    return step


def aligned(tensors: Sequence[Tensor]) -> bool:
    """Whether 16 bytes begin where each tensor does."""
    return all(x.data_ptr() % 16 == 0 for x in tensors)


def trait(argument: Tensor | int) -> tuple[object, ...]:
    """What Triton compiles another binary for: dtype and alignment, or 64 bits."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    return (argument >= 2**31,)


def launch(
    kernel, programs: int, *arguments: Tensor | int, config: dict[str, int], **constants: int
):
    """Run a kernel on the device of its first argument.

    The config gives the constants that are left, and what the compiler is told. Binding arguments
    anew for each launch takes the host longer than a short kernel takes the GPU, so the binary for
    arguments of these traits is remembered and launched directly. It takes the constants by
    position, after the arguments.
    """
    device = arguments[0].device
    given = len(arguments) + len(constants)
    values = (*constants.values(), *(config[name] for name in kernel.arg_names[given:]))
    options = {name: config[name] for name in TOLD if config.get(name)}
    key = (kernel, device, *map(trait, arguments), *values, *options.values())
    binary = BINARIES.get(key)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if binary is None:
            names = kernel.arg_names[len(arguments) :]
            assert names[: len(constants)] == list(constants), "in the kernel's order"
            named = dict(zip(names, values, strict=True))
            # Fusion is stated, because Triton's default changes between versions.
            binary = BINARIES[key] = kernel[(programs,)](
                *arguments, **named, **options, enable_fp_fusion=True
            )
        else:
            binary[(programs, 1, 1)](*arguments, *values)
    if (noted := getattr(LAUNCHES, "noted", None)) is not None:
        noted.append((kernel, programs, binary, arguments, values))


def reduce_partials(
    kernel,
    programs: int,
    partials: Sequence[Tensor],
    parameters: Sequence[Tensor],
    sizes: Sequence[int],
    **constants: int,
) -> list[Tensor]:
    """Gradients of parameter tensors, in their shapes and dtypes, from partial sums
    [splits, rows, columns], by one launch of all sections of the kernel that sums these.

    Args:
        sizes: the kernel's numbers beside how many partial sums there are.
    """
    sums = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in parameters]
    counts = (p.shape[0] for p in partials)
    launch(kernel, programs, *partials, *sums, *counts, *sizes, config=SUMS, **constants)
    return sums


def rows_reached(config: dict[str, int], tiles: int) -> int:
    """How many rows a program of so many tiles reads."""
    return config.get("BLOCK_D", 1)


def launch_forward(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    keep: bool = True,
) -> list[Tensor]:
    """[y, states before tiles]."""
    (x,), unit = common_unit(unpack(inputs))
    log_poles, frequencies, residues_real, residues_imag, skip = (
        p.contiguous() for p in parameters
    )
    channels, groups = x.shape[CHANNEL], log_poles.shape[0]
    width = channels // groups
    configs = configs_of(x, channels, groups)
    config = configs["forward"]
    steps = x.shape[TIME]
    bounds = (0, steps, steps)
    grid = walk_grid(x.shape[0], steps, channels, width, config)
    y = allocate(x, steps, channels)
    tensors = (x, y)
    step = stride_step(config, tensors, grid.tiles)
    states = allocate_states(x, channels, steps, config, 64, keep)
    split_sums = allocate_states(x, channels, steps, config, 64, grid.splits > 1)
    if grid.programs and grid.splits > 1:
        launch(
            s4d_forward_sums,
            grid.programs // grid.splits * (grid.splits - 1),
            *operand(x, 0, step),
            log_poles,
            frequencies,
            residues_real,
            residues_imag,
            split_sums,
            *bounds,
            grid.splits - 1,
            grid.tiles,
            config=config,
            CHANNELS=channels,
            WIDTH=width,
            UNIT=unit,
            STRIDE_UNIT=step,
            EVEN=even(bounds),
            TERMS=tap_terms(groups),
        )
    if grid.programs:
        launch(
            s4d_forward,
            grid.programs,
            *operand(x, 0, step),
            *operand(y, 0, step),
            log_poles,
            frequencies,
            residues_real,
            residues_imag,
            skip,
            states,
            split_sums,
            *bounds,
            grid.splits,
            grid.tiles,
            config=config,
            CHANNELS=channels,
            WIDTH=width,
            UNIT=unit,
            STRIDE_UNIT=step,
            EVEN=even(bounds),
            TERMS=tap_terms(groups),
            KEEP=keep,
            SPLIT=grid.splits > 1,
        )
    return [y, states]


def launch_backward(
    dy: Tensor,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    saved: Sequence[Tensor],
) -> list[Tensor]:
    """Gradients of the inputs, packed if they are, then of log_poles, frequencies,
    residues_real, residues_imag, skip.
    """
    (x,), unit = common_unit(unpack(inputs))
    log_poles, frequencies, residues_real, residues_imag, skip = (
        p.contiguous() for p in parameters
    )
    dy = dense(dy)
    (states,) = saved
    channels, groups = x.shape[CHANNEL], log_poles.shape[0]
    width = channels // groups
    configs = configs_of(x, channels, groups)
    config = configs["backward"]
    steps = x.shape[TIME]
    bounds = (0, steps, steps)
    grid = walk_grid(x.shape[0], steps, channels, width, config)
    gradients = [allocate(x, steps) for x in inputs]
    (d_x,) = unpack(gradients)
    d_unit = d_x.stride(2)
    tensors = (x, dy, d_x)
    step = stride_step(config, tensors, grid.tiles)
    if not states.numel():
        states = launch_forward(inputs, parameters)[1]
    partials = x.new_empty(
        (x.shape[0] * grid.splits * grid.sums, 129, channels), dtype=torch.float32
    )
    split_sums = allocate_states(x, channels, steps, config, 64, grid.splits > 1)
    if grid.programs and grid.splits > 1:
        launch(
            s4d_backward_sums,
            grid.programs // grid.splits * (grid.splits - 1),
            *operand(dy, 0, step),
            log_poles,
            frequencies,
            residues_real,
            residues_imag,
            split_sums,
            *bounds,
            grid.splits - 1,
            grid.tiles,
            config=config,
            CHANNELS=channels,
            WIDTH=width,
            STRIDE_UNIT=step,
            EVEN=even(bounds),
            TERMS=tap_terms(groups),
        )
    if grid.programs:
        launch(
            s4d_backward,
            grid.programs,
            *operand(x, 0, step),
            *operand(dy, 0, step),
            *operand(d_x, 0, step),
            log_poles,
            frequencies,
            residues_real,
            residues_imag,
            skip,
            states,
            split_sums,
            partials,
            *bounds,
            grid.splits,
            grid.tiles,
            config=config,
            CHANNELS=channels,
            WIDTH=width,
            UNIT=unit,
            D_UNIT=d_unit,
            STRIDE_UNIT=step,
            EVEN=even(bounds),
            TERMS=tap_terms(groups),
            SPLIT=grid.splits > 1,
        )
    gradients += reduce_partials(
        sum_partials,
        section_end(4, channels, width),
        [partials],
        [log_poles, frequencies, residues_real, residues_imag, skip],
        [],
        CHANNELS=channels,
        WIDTH=width,
    )
    return gradients


# -----------------------------------------------------------------------------------------------
# Plain PyTorch: tensors on a CPU
# -----------------------------------------------------------------------------------------------


def allocate(like: Tensor, steps: int, channels: int | None = None) -> Tensor:
    """An activation of `steps` steps, not yet written, with the batch and dtype of `like`, and its
    channels if no others are given.

    Rows are padded to a multiple of 8 elements, so that accesses stay 16 bytes wide whatever the
    length.
    """
    batch = like.shape[0]
    channels = like.shape[CHANNEL] if channels is None else channels
    row = (steps + 7) // 8 * 8
    return like.new_empty_strided((batch, channels, steps), (channels * row, row, 1))


def unpack(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inputs themselves, or their views of one tensor of packed features."""
    if len(inputs) == len(INPUTS):
        return tuple(inputs)
    (features,) = inputs
    return features.chunk(len(INPUTS), CHANNEL)


def channels_of(inputs: Sequence[Tensor]) -> int:
    """D of all inputs, or of packed features alone."""
    return inputs[0].shape[CHANNEL] * len(inputs) // len(INPUTS)


def given(*inputs: Tensor | None) -> list[Tensor]:
    """The inputs that are there: all, or only the first, which is then packed features."""
    return [x for x in inputs if x is not None]


def without_autocast(x: Tensor):
    """A context in which PyTorch computes in the dtypes that it is given, on the device of x."""
    kind = x.device.type  # tensors of shapes alone have no autocast
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def refuse_symbols(x: Tensor) -> None:
    """Refuse to export for every length what takes steps that depend on it: where an exporter
    forgets what was asked about a length, the program would be wrong for others.
    """
    compiler = torch.compiler
    if compiler.is_exporting():
        unknown = compiler.is_dynamo_compiling()  # numbers look like symbols to it
        if PLAIN if unknown else type(x.shape[TIME]) is not int:
            raise ValueError(
                f"{OP}: plain PyTorch of this filter is exported for one length, with strict=False"
            )


def refuse_second(ctx, *gradients):
    """Refuse derivatives of gradients, which library ops here lack."""
    raise NotImplementedError(
        f"{OP}: no second derivatives: compute them of plain PyTorch, within operator.plain()"
    )


def refuse_batched(dy: Tensor) -> None:
    """Refuse what batches gradients in PyTorch's old way, for which no op can have a rule."""
    if torch._C._functorch.is_legacy_batchedtensor(dy):
        raise NotImplementedError(
            f"{OP}: no batched gradients by is_grads_batched or vectorize=True: use torch.vmap of "
            "torch.autograd.grad, or plain PyTorch, within operator.plain()"
        )


def in_turn(op):
    """A batching rule: one after another, of a tensor that the op gives or of each of several."""

    def batched(info, dims, *arguments):
        pairs = list(zip(arguments, dims, strict=True))
        results = [
            op(*(x if dim is None else x.select(dim, i) for x, dim in pairs))
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        several = type(results[0])
        return several(stacked), several([0] * len(stacked))

    return batched


def transformed(tensors: Sequence[Tensor]) -> bool:
    """Whether a call is differentiated in a way that library ops lack, and plain PyTorch has: in
    forward mode, for which PyTorch would silently take zero, or by torch.func.
    """
    functorch = torch._C._functorch
    if torch.compiler.is_compiling():  # which tensors have tangents is not seen there
        return forward_ad._current_level >= 0
    if functorch.maybe_current_level() is not None:
        kinds = {i.level(): i.key() for i in functorch.get_interpreter_stack()}
        jvp, vmap = functorch.TransformType.Jvp, functorch.TransformType.Vmap
        innermost = max((n for n, kind in kinds.items() if kind != vmap), default=0)
        for x in tensors:
            while functorch.is_functorch_wrapped_tensor(x):
                if functorch.is_gradtrackingtensor(x):
                    if x.requires_grad and torch.is_grad_enabled():
                        return True
                    level = functorch.maybe_get_level(x)
                    if kinds.get(level) == jvp:  # whose tangents are seen from there alone
                        dual = forward_ad.unpack_dual(x)
                        if level != innermost or dual.tangent is not None:
                            return True
                x = functorch.get_unwrapped(x)
            if forward_ad.unpack_dual(x).tangent is not None:
                return True
        return False
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def spread(inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """The inputs, of which the first has every dimension that torch.vmap has added to any tensor:
    plain PyTorch writes into what is allocated like it.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is None:
        return list(inputs)
    nothing = sum(torch.zeros_like(x).sum() for x in (*inputs[1:], *parameters))
    return [inputs[0] + nothing.to(inputs[0].dtype), *inputs[1:]]


def differentiates(*tensors: Tensor) -> bool:
    """Whether a gradient will be asked for, as far as can be known."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def poles_and_residues(modes: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Log-poles a and residues 2 R, complex128 (C, N)."""
    log_poles, frequencies, real, imag = (x.double() for x in modes)
    return torch.complex(log_poles, frequencies), 2 * torch.complex(real, imag)


def block_steps(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, C, L) in blocks of BLOCK steps, zero beyond its end: (B, C, blocks, BLOCK); and the
    steps of a block.
    """
    padded = functional.pad(x, (0, -x.shape[2] % BLOCK))
    return padded.unflatten(2, (-1, BLOCK)), torch.arange(BLOCK, device=x.device)


def powers(poles: Tensor, steps: Tensor) -> Tensor:
    """exp(a t) of poles a (C, N) and steps t (T,): complex128 (C, N, T)."""
    return torch.exp(poles[..., None] * steps)


def modal_states(blocks: Tensor, poles: Tensor, state: Tensor | None = None) -> Tensor:
    """The state of every mode before each block, which is the sum of exp(a d) x, d steps before
    the last one that is earlier than the block: complex (B, C, blocks, N). `state`, complex
    (B, C, N), is the first of them.
    """
    dtype = torch.complex128 if blocks.dtype == torch.float64 else torch.complex64
    step = torch.arange(BLOCK, device=blocks.device)
    table = powers(poles, BLOCK - 1 - step).to(dtype)
    added = torch.einsum("bcmj,cnj->bcmn", blocks.to(dtype), table)
    lost = (torch.exp(BLOCK * poles) - 1).to(dtype)  # not exp, which would drift where a is small
    if state is None:
        state = added.new_zeros(added.shape[:2] + added.shape[3:])
    states = []
    for block in added.unbind(2):
        states.append(state)
        state = state + (lost * state + block)
    return torch.stack(states, 2) if states else added


def conv_modal(
    x: Tensor, modes: tuple[Tensor, ...], direction: int, state: Tensor | None = None
) -> Tensor:
    """conv_direct with taps[j] = 2 Re sum_n R_n exp(a_n j), for any number of steps, after the
    state (B, C, N, 2) of earlier ones, real and imaginary parts, if direction is +1.
    """
    if direction < 0:
        return conv_modal(x.flip(2), modes, +1).flip(2)
    poles, residues = poles_and_residues(modes)
    blocks, step = block_steps(x)
    taps = (residues[..., None] * powers(poles, step)).sum(1).real.to(x.dtype)  # (C, BLOCK)
    lag = step - step[:, None]
    matrix = torch.where(lag >= 0, taps[:, lag.clamp(min=0)], 0.0)  # (C, BLOCK, BLOCK)
    y = torch.einsum("bcmj,cji->bcmi", blocks, matrix)
    entering = None if state is None else torch.complex(state[..., 0], state[..., 1])
    states = modal_states(blocks, poles, entering)
    weights = (residues[..., None] * powers(poles, step + 1)).to(states.dtype)
    y += torch.einsum("bcmn,cni->bcmi", states, weights).real
    return y.flatten(2)[..., : x.shape[2]]


def row_ends(x: Tensor, ends: Tensor | None) -> tuple[Tensor, Tensor | int]:
    """x (B, C, L) whose rows end at their last steps, after zeros; and their steps."""
    length = x.shape[2]
    if ends is None:
        return x, length
    index = torch.arange(length, device=x.device) - (length - ends[:, None])
    index = index[:, None].expand(-1, x.shape[1], -1)
    moved = torch.where(index < 0, 0, x.gather(2, index.clamp(min=0)))
    return moved, ends[:, None, None]


def leave_modes(
    x: Tensor, modes: tuple[Tensor, ...], state: Tensor, ends: Tensor | None = None
) -> Tensor:
    """The state (B, C, N, 2) after the last step of x, of that before the first; or after as many
    steps as `ends` says of each row.
    """
    poles, _ = poles_and_residues(modes)
    x, steps = row_ends(x, ends)
    early = functional.pad(x, (-x.shape[2] % BLOCK, 0))  # blocks that end with x
    blocks = functional.pad(early, (0, BLOCK)).unflatten(2, (-1, BLOCK))
    added = modal_states(blocks, poles)[:, :, -1]
    entering = torch.complex(state[..., 0], state[..., 1])
    lost = (torch.exp(poles * steps) - 1).to(entering.dtype)
    return torch.view_as_real(entering + (lost * entering + added))


def by_parts(by_pole: Tensor, by_residue: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The gradients by real and imaginary parts of a and R; by_pole has the factor 2 in it."""
    parts = (by_pole.real, -by_pole.imag, 2 * by_residue.real, -2 * by_residue.imag)
    return tuple(part.to(dtype) for part in parts)


def mode_gradient_modal(grad: Tensor, x: Tensor, modes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gradients of log-poles, frequencies, real and imaginary parts of residues, (C, N) each: of
    conv_modal(x, modes, +1) for the gradient `grad` of its result.
    """
    poles, residues = poles_and_residues(modes)
    blocks, step = block_steps(x)
    grads, _ = block_steps(grad)
    before = modal_states(blocks, poles)
    after = modal_states(grads.flip(2, 3), poles).flip(2)
    products = torch.einsum("bcmj,bcmi->cji", blocks, grads)
    lags = [torch.diagonal(products, j, 1, 2).sum(1) for j in range(BLOCK)]
    near = powers(poles, step) * torch.stack(lags, 1)[:, None]
    met = torch.einsum("bcmn,bcmi->cni", before, grads.to(before.dtype))
    ahead = powers(poles, step + 1) * met
    met = torch.einsum("bcmn,bcmj->cnj", after, blocks.to(after.dtype))
    behind = powers(poles, BLOCK - step) * met
    both = torch.exp(poles * (BLOCK + 1)) * torch.einsum("bcmn,bcmn->cn", before, after)
    by_pole = (step * near + (step + 1) * ahead + (BLOCK - 1 - step) * behind).sum(2)
    return by_parts(residues * (by_pole + BLOCK * both), (near + ahead).sum(2), x.dtype)


def chunks(channels: int, width: int, bytes_per_channel: int, budget: int) -> Iterator[slice]:
    """Slices of channels whose temporaries stay below `budget` bytes, at least one channel each.

    A slice is whole groups of `width` channels, or lies within one group. An empty batch has none.
    """
    if bytes_per_channel == 0:
        return
    if channels * bytes_per_channel <= budget:  # exporters want numbers for slices, no symbols
        yield slice(0, channels)
        return
    size = max(1, min(channels, budget // bytes_per_channel))
    size = size // width * width if size > width else size
    group = channels if size > width else width
    for first in range(0, channels, group):
        for begin in range(first, first + group, size):
            yield slice(begin, min(first + group, begin + size))


def channel_rows(parameter: Tensor, c: slice, width: int, dtype: torch.dtype) -> Tensor:
    """The row of each channel of a slice; `width` consecutive channels share one."""
    if width == 1:
        return parameter[c].to(dtype)
    index = torch.arange(c.start, c.stop, device=parameter.device) // width
    return parameter[index].to(dtype)


def add_rows(total: Tensor, c: slice, rows: Tensor, width: int) -> None:
    """The adjoint of channel_rows: add one row a channel to the rows that the channels share."""
    first, groups = c.start // width, max(1, (c.stop - c.start) // width)
    total[first : first + groups] += rows.unflatten(0, (groups, -1)).sum(1)


def canonical(x: Tensor) -> Tensor:
    """An activation as (B, D, L), without a copy."""
    return x


def effective(
    log_poles: Tensor,
    frequencies: Tensor,
    residues_real: Tensor,
    residues_imag: Tensor,
    skip: Tensor,
    dtype: torch.dtype,
) -> list[Tensor]:
    """The parameters as plain PyTorch computes with them, in `dtype`: where it differentiates,
    it sums gradients of rows that are spread over channels, which are rounded to a narrow dtype
    once.
    """
    log_poles = log_poles.to(dtype)
    frequencies = frequencies.to(dtype)
    residues_real = residues_real.to(dtype)
    residues_imag = residues_imag.to(dtype)
    skip = skip.to(dtype)
    return [log_poles, frequencies, residues_real, residues_imag, skip]


def eager_forward(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
) -> list[Tensor]:
    """[y] of the unpacked inputs."""
    (x_all,) = (canonical(x) for x in inputs)
    dtype = torch.float64 if x_all.dtype == torch.float64 else torch.float32
    log_poles, frequencies, residues_real, residues_imag, skip = effective(*parameters, dtype)
    outputs = [allocate(inputs[0], inputs[0].shape[TIME])]
    (out_0,) = (canonical(x) for x in outputs)
    batch, channels, length = x_all.shape
    width = channels // log_poles.shape[0]
    channel_bytes = 14 * batch * length * dtype.itemsize
    for c in chunks(channels, width, channel_bytes, BYTE_BUDGET):
        x = x_all[:, c].to(dtype)
        filter_modes = (
            channel_rows(log_poles, c, width, dtype),
            channel_rows(frequencies, c, width, dtype),
            channel_rows(residues_real, c, width, dtype),
            channel_rows(residues_imag, c, width, dtype),
        )
        conv = conv_modal(x, filter_modes, +1)
        skip_c = channel_rows(skip, c, 1, dtype)[:, None]
        skipped = x * skip_c
        pre_skip = conv + skipped
        out_0[:, c] = pre_skip
    return outputs


def eager_backward(
    dy: Tensor,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    saved: Sequence[Tensor],
) -> list[Tensor]:
    """Gradients of the inputs, packed if they are, then of the parameters."""
    dy_all, x_all = (canonical(x) for x in (dy, *unpack(inputs), *saved))
    dtype = torch.float64 if dy_all.dtype == torch.float64 else torch.float32
    log_poles, frequencies, residues_real, residues_imag, skip = effective(*parameters, dtype)
    d_inputs = [allocate(x, x.shape[TIME]) for x in inputs]
    (d_x_all,) = (canonical(x) for x in unpack(d_inputs))
    d_log_poles_all = torch.zeros_like(log_poles, dtype=dtype)
    d_frequencies_all = torch.zeros_like(frequencies, dtype=dtype)
    d_residues_real_all = torch.zeros_like(residues_real, dtype=dtype)
    d_residues_imag_all = torch.zeros_like(residues_imag, dtype=dtype)
    d_skip_all = torch.zeros_like(skip, dtype=dtype)
    batch, channels, length = dy_all.shape
    width = channels // log_poles.shape[0]
    channel_bytes = 16 * batch * length * dtype.itemsize
    for c in chunks(channels, width, channel_bytes, BYTE_BUDGET):
        x = x_all[:, c].to(dtype)
        filter_modes = (
            channel_rows(log_poles, c, width, dtype),
            channel_rows(frequencies, c, width, dtype),
            channel_rows(residues_real, c, width, dtype),
            channel_rows(residues_imag, c, width, dtype),
        )
        skip_c = channel_rows(skip, c, 1, dtype)[:, None]
        dy = dy_all[:, c].to(dtype)
        d_x_1 = dy * skip_c
        skipped_product = dy * x
        d_skip = skipped_product.sum((0, 2))
        add_rows(d_skip_all, c, d_skip, 1)
        d_x_2 = conv_modal(dy, filter_modes, -1)
        d_filter = mode_gradient_modal(dy, x, filter_modes)
        add_rows(d_log_poles_all, c, d_filter[0], width)
        add_rows(d_frequencies_all, c, d_filter[1], width)
        add_rows(d_residues_real_all, c, d_filter[2], width)
        add_rows(d_residues_imag_all, c, d_filter[3], width)
        d_x = d_x_1 + d_x_2
        d_x_all[:, c] = d_x
    gradients = [
        d_log_poles_all,
        d_frequencies_all,
        d_residues_real_all,
        d_residues_imag_all,
        d_skip_all,
    ]
    return [
        *d_inputs,
        *(d.to(p.dtype).view(p.shape) for d, p in zip(gradients, parameters, strict=True)),
    ]


def eager_stateful(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    history: Tensor,
    state: Tensor,
    ends: Tensor | None = None,
) -> list[Tensor]:
    """[y, state after the last step] of the unpacked inputs, their history and the state before
    the first step; or after the steps that each row has, if `ends` says so.
    """
    (x_all,) = (canonical(x) for x in inputs)
    dtype = torch.float64 if x_all.dtype == torch.float64 else torch.float32
    log_poles, frequencies, residues_real, residues_imag, skip = effective(*parameters, dtype)
    result = allocate(inputs[0], inputs[0].shape[TIME])
    out, leaving = canonical(result), []
    batch, channels, length = x_all.shape
    width = channels // log_poles.shape[0]
    channel_bytes = max(1, 14 * batch * length * dtype.itemsize)
    for c in chunks(channels, width, channel_bytes, BYTE_BUDGET):
        x = x_all[:, c].to(dtype)
        filter_modes = (
            channel_rows(log_poles, c, width, dtype),
            channel_rows(frequencies, c, width, dtype),
            channel_rows(residues_real, c, width, dtype),
            channel_rows(residues_imag, c, width, dtype),
        )
        conv = conv_modal(x, filter_modes, +1, state[:, c].to(dtype))
        skip_c = channel_rows(skip, c, 1, dtype)[:, None]
        skipped = x * skip_c
        pre_skip = conv + skipped
        out[:, c] = pre_skip
        leaving.append(leave_modes(x, filter_modes, state[:, c].to(dtype), ends))
    return [result, torch.cat(leaving, 1).to(state.dtype)]


# -----------------------------------------------------------------------------------------------
# The operator: torch.library ops, autograd, checks, functions and module
# -----------------------------------------------------------------------------------------------


def library_name() -> str:
    """The ops' name in torch.ops.sh2gen; numbered if this file is imported more than once."""
    name = unique = "s4d_f3873412"
    count = 1
    while hasattr(torch.ops.sh2gen, f"{unique}_decode"):
        count += 1
        unique = f"{name}_{count}"
    return unique


LIBRARY_NAME = library_name()
LIBRARY = torch.library.Library("sh2gen", "FRAGMENT")


def library_op(
    name: str,
    fake: Callable,
    anywhere: Callable | None,
    on_gpu: Callable | None,
    changes: Sequence[str] = (),
):
    """An op of torch.ops.sh2gen whose schema is that of its fake implementation, of tensors
    without values.

    Args:
        changes: the arguments that it writes to.
    """
    schema = torch.library.infer_schema(fake, mutates_args=changes)
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    if anywhere is not None:
        LIBRARY.impl(name, anywhere, "CompositeExplicitAutograd")
    if on_gpu is not None:
        LIBRARY.impl(name, on_gpu, "CUDA")
    torch.library.register_fake(f"sh2gen::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.sh2gen, name).default


def differentiable(op, backward: Callable, setup_context: Callable | None = None) -> None:
    """Give an op its gradients, and a batching rule: one call after another."""
    torch.library.register_autograd(op, backward, setup_context=setup_context, lib=LIBRARY)
    torch.library.register_vmap(op, in_turn(op), lib=LIBRARY)


def forward_anywhere(
    x: Tensor,
    log_poles: Tensor,
    frequencies: Tensor,
    residues_real: Tensor,
    residues_imag: Tensor,
    skip: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """y and the values saved for backward, if they are to be kept; of packed features if the
    later inputs are None.
    """
    inputs = given(x)
    with torch.autocast(x.device.type, enabled=False):
        (y,) = eager_forward(
            unpack(inputs), [log_poles, frequencies, residues_real, residues_imag, skip]
        )
    return y, allocate_states(y, y.shape[CHANNEL], 0, {}, 64, False)


def backward_anywhere(
    dy: Tensor,
    x: Tensor,
    log_poles: Tensor,
    frequencies: Tensor,
    residues_real: Tensor,
    residues_imag: Tensor,
    skip: Tensor,
    states: Tensor,
) -> list[Tensor]:
    """Gradients of the inputs that are given, then of the parameters."""
    inputs, parameters = given(x), [log_poles, frequencies, residues_real, residues_imag, skip]
    with torch.autocast(dy.device.type, enabled=False):
        contiguous = [p.contiguous() for p in parameters]
        return eager_backward(dy, inputs, contiguous, [])


def forward_on_gpu(
    x: Tensor,
    log_poles: Tensor,
    frequencies: Tensor,
    residues_real: Tensor,
    residues_imag: Tensor,
    skip: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The same by kernels."""
    inputs = given(x)
    outputs = launch_forward(
        inputs, [log_poles, frequencies, residues_real, residues_imag, skip], keep=keep
    )
    return tuple(outputs)


def backward_on_gpu(
    dy: Tensor,
    x: Tensor,
    log_poles: Tensor,
    frequencies: Tensor,
    residues_real: Tensor,
    residues_imag: Tensor,
    skip: Tensor,
    states: Tensor,
) -> list[Tensor]:
    """The same by kernels."""
    inputs, parameters = given(x), [log_poles, frequencies, residues_real, residues_imag, skip]
    return launch_backward(dy, inputs, parameters, [states])


def forward_fake(
    x: Tensor,
    log_poles: Tensor,
    frequencies: Tensor,
    residues_real: Tensor,
    residues_imag: Tensor,
    skip: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The same without values."""
    inputs = given(x)
    steps, channels = x.shape[TIME], channels_of(inputs)
    config = configs_of(x, channels, log_poles.shape[0])["forward"]
    kept = allocate_states(x, channels, steps, config, 64, keep and x.is_cuda)
    return allocate(x, steps, channels), kept


def backward_fake(
    dy: Tensor,
    x: Tensor,
    log_poles: Tensor,
    frequencies: Tensor,
    residues_real: Tensor,
    residues_imag: Tensor,
    skip: Tensor,
    states: Tensor,
) -> list[Tensor]:
    """The same without values."""
    inputs, parameters = given(x), [log_poles, frequencies, residues_real, residues_imag, skip]
    contiguous = torch.contiguous_format
    d_parameters = [torch.empty_like(p, memory_format=contiguous) for p in parameters]
    return [*(allocate(x, x.shape[TIME]) for x in inputs), *d_parameters]


def save(ctx, inputs, output) -> None:
    """What backward needs: every argument, and the saved values."""
    ctx.save_for_backward(*inputs[:-1], *output[1:])


def differentiate(ctx, dy, *_):
    """Gradients of every argument of forward_op."""
    refuse_batched(dy)
    gradients = backward_op(dy, *ctx.saved_tensors)
    given_inputs = len(gradients) - 5
    absent = [None] * (len(INPUTS) - given_inputs)
    return *gradients[:given_inputs], *absent, *gradients[given_inputs:], None


forward_op = library_op(LIBRARY_NAME, forward_fake, forward_anywhere, forward_on_gpu)
backward_op = library_op(
    f"{LIBRARY_NAME}_backward", backward_fake, backward_anywhere, backward_on_gpu
)
differentiable(forward_op, differentiate, save)
differentiable(backward_op, refuse_second)


class Replay(NamedTuple):
    """One launch of a tape.

    Attributes:
        kernel: its name.
        start: launches it with arguments, on the stream that is current.
        numbers: those of its arguments that are no addresses.
        pick: gives its arguments of a tape's addresses, with these numbers behind them.
    """

    kernel: str
    start: Callable[[Sequence[int]], None]
    numbers: list[int]
    pick: Callable[[Sequence[int]], Sequence[int]]


class Tape(NamedTuple):
    """What a launcher does for tensors of some traits.

    Attributes:
        device: of all tensors.
        empty: makes a tensor there of a shape, strides and dtype, if that device is current.
        results: these of each tensor that it returns.
        scratch: bytes of what only kernels see.
        inner: addresses within tensors, as which of them, and how far from its own: of those that
            a launcher is given, then of its results, then of scratch.
        launches: in their order.
        facts: what the launcher is told beside tensors: whether to keep what gradients need, and
            where on a ladder of decays the filters are, if they decay.
        after: `recent`, the last gradients of such calls.
    """

    device: torch.device
    empty: Callable[[tuple, tuple, torch.dtype], Tensor]
    results: tuple[tuple, ...]
    scratch: int
    inner: tuple[tuple[int, int], ...]
    launches: tuple[Replay, ...]
    facts: tuple
    after: dict


class Recent(NamedTuple):
    """The last call of a kind.

    Attributes:
        guards: PyTorch's own, of compiled graphs: they tell whether other tensors have the same
            traits but for alignment, in a third of the time of traits_of.
        tape: of such calls; None if they have none.
        keep: whether gradients may be asked for.
    """

    guards: object
    tape: Tape | None
    keep: bool


class Noticed(TorchDispatchMode):
    """Notes whether PyTorch does nothing meanwhile but to allocate tensors and to make views."""

    def __init__(self) -> None:
        super().__init__()
        self.simple = True

    def __torch_dispatch__(self, func, _, args=(), kwargs=None):
        schema = func._schema
        writes = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
        views = all(r.alias_info is not None for r in schema.returns) and not writes
        self.simple &= views or "empty" in schema.name
        return func(*args, **(kwargs or {}))


def on_gpu(x: Tensor) -> bool:
    """Whether a first argument, which may be anything, is a tensor that kernels compute with."""
    return getattr(x, "is_cuda", False)


def seen_by_none() -> bool:
    """Whether only eager PyTorch sees a call: no compiler, mode, transform, tracer or profiler,
    and no hook of Triton's.
    """
    if torch.compiler.is_compiling() or PLAIN or not HAS_TRITON:
        return False
    if triton.__version__ not in DIRECT:
        return False
    for sees in SEERS:
        if sees():
            return False
    hooks = triton.knobs.runtime
    return (
        forward_ad._current_level < 0
        and not hooks.launch_enter_hook.calls
        and not hooks.launch_exit_hook.calls
    )


def traits_of(tensors: Sequence[Tensor]) -> tuple[tuple, list[int]] | None:
    """All that a launcher goes by, and the addresses of tensors; None of what is no plain tensor.
    What else PyTorch's dispatcher goes by has no memory of its own, except the sign of a view that
    negates.
    """
    found, places = [], []
    try:
        for x in tensors:
            if type(x) is not nn.Parameter and type(x) is not Tensor:
                return None
            place = x.data_ptr()
            places.append(place)
            aligned = place % 16 if place else -1
            found.append((x.shape, x.stride(), x.dtype, x.get_device(), aligned, x.is_neg()))
    except RuntimeError:  # sparse, nested, or a wrapper of others
        return None
    return tuple(found), places


def tape_of(
    launcher: Callable, tensors: Sequence[Tensor], traits: tuple, *facts: object
) -> Tape | None:
    """What launcher(tensors, *facts) does, which is done once if it is not known yet; None where
    that is more than to allocate and to launch, or where PyTorch has to see it.

    Raises:
        TypeError, ValueError: as the launcher, which checks its arguments.
    """
    key = (launcher, facts, traits)
    tape = TAPES.get(key, ...)  # other threads may clear them at any time
    if tape is ...:
        if not is_plain(tensors) or capturing():
            return None
        if len(TAPES) >= MOST_TAPES:
            TAPES.clear()
            RECENT.clear()
        tape = TAPES[key] = record(launcher, tensors, *facts)[0]
    return tape


def gradients_tape(tape: Tape, tensors: Sequence[Tensor]) -> tuple[Tape | None, list[int]]:
    """The tape of the gradients of a call whose tape this is, as `tape_of` gives it, and the
    addresses of dy and of what the call has kept for them, which hooks of saved tensors may have
    made anew.
    """
    recent = tape.after.get("recent")
    if recent is not None and recent.guards.check(*tensors):
        places = [x.data_ptr() for x in tensors]
        if all_aligned(places):
            return recent.tape, places
    found = traits_of(tensors)
    if found is None:
        return None, []
    traits, places = found
    after = tape_of(backward_of, tensors, traits, *tape.facts[1:])
    if all_aligned(places) and (guards := guards_of(tensors)) is not None:
        tape.after["recent"] = Recent(guards, after, True)
    return after, places


def direct(
    inputs: Sequence[Tensor], parameters: Sequence[Tensor], *ladder: int | None
) -> Tensor | None:
    """y of a call on a GPU that nothing but eager PyTorch sees; None of any other call."""
    if not on_gpu(inputs[0]) or not seen_by_none():
        return None
    if ladder and any(type(x) is not int and x is not None for x in ladder):
        return None
    tensors = (*inputs, *parameters)
    kind = (len(inputs), torch.is_grad_enabled(), *ladder)
    recent = RECENT.get(kind)
    if recent is not None and recent.guards.check(*tensors):
        places = [x.data_ptr() for x in tensors]
        if all_aligned(places):
            _, tape, keep = recent
            return apply_direct(tape, places, *tensors) if keep else replay(tape, places)[0]
    found = traits_of(tensors)
    if found is None:
        return None
    traits, places = found
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    tape = tape_of(forward_of, tensors, traits, keep, *ladder)
    if tape is None:
        return None
    if all_aligned(places) and (guards := guards_of(tensors)) is not None:
        RECENT[kind] = Recent(guards, tape, keep)
    return apply_direct(tape, places, *tensors) if keep else replay(tape, places)[0]


def directly_decoded(
    inputs: Sequence[Tensor], parameters: Sequence[Tensor], state, slots, *ladder: int | None
) -> Tensor | None:
    """y of a call of `decode` on a GPU that nothing but eager PyTorch sees; None of any other.

    A call that has no tape yet checks its arguments, and is done once: it changes the state.
    """
    if not isinstance(inputs, (tuple, list)) or not inputs:
        return None
    if not on_gpu(inputs[0]) or not seen_by_none():
        return None
    if type(state) is not STATE or (torch.is_grad_enabled() and requires_any(inputs)):
        return None  # which is refused
    if any(type(x) is not int and x is not None for x in ladder):
        return None
    given_slots = () if slots is None else (slots,)
    tensors = (*inputs, *parameters, *state[:-1], *given_slots)
    facts = (len(inputs), slots is not None, state.draft, *ladder)
    kind = ("decode", torch.is_grad_enabled(), *facts)
    recent = RECENT.get(kind)
    if recent is not None and recent.guards.check(*tensors):
        places = [x.data_ptr() for x in tensors]
        if all_aligned(places):
            return replay_decoded(recent.tape, places, state)
    found = traits_of(tensors)
    if found is None:
        return None
    traits, places = found
    tape = TAPES.get((decode_of, facts, traits), ...)
    if tape is None or (tape is ... and (capturing() or not is_plain(tensors))):
        return None
    if tape is ...:
        check_decoding(inputs, parameters, state, slots, *ladder)
        if len(TAPES) >= MOST_TAPES:
            TAPES.clear()
            RECENT.clear()
        TAPES[decode_of, facts, traits], results = record(decode_of, tensors, *facts)
        increment_version(state[:-1])
        return results[0]
    if all_aligned(places) and (guards := guards_of(tensors)) is not None:
        RECENT[kind] = Recent(guards, tape, False)
    return replay_decoded(tape, places, state)


def replay_decoded(tape: Tape, places: list[int], state) -> Tensor:
    """y of a tape of `decode`, which changes a state that gradients of calls before may need: so
    that autograd sees it.
    """
    y = replay(tape, places)[0]
    increment_version(state[:-1])
    return y


def requires_any(tensors: Sequence[Tensor]) -> bool:
    """Whether a gradient would be asked for."""
    return any(getattr(x, "requires_grad", False) for x in tensors)


def all_aligned(places: Sequence[int]) -> bool:
    """Whether memory begins at these addresses, all multiples of 16."""
    return all(places) and reduce(or_, places) % 16 == 0


def guards_of(tensors: Sequence[Tensor]) -> object | None:
    """What tells tensors of the same types, keys of dispatch, dtypes, devices, sizes, strides and
    needs of gradients, where this PyTorch has it: its name is not public.
    """
    made = getattr(torch._C._dynamo.guards, "TensorGuards", None)
    if made is None:
        return None
    return made(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)


def capturing() -> bool:
    """Whether launches go into a CUDA graph, which is to hold those of a call once."""
    return torch.cuda.is_current_stream_capturing()


def is_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether PyTorch's dispatcher would do nothing with tensors but to differentiate."""
    device = tensors[0].device
    with torch.inference_mode():
        inference = torch._C._dispatch_keys(torch.empty(0, device=device)).raw_repr()
    with torch.inference_mode(False):
        usual = torch._C._dispatch_keys(torch.empty(0, device=device)).raw_repr()
    return all(torch._C._dispatch_keys(x).raw_repr() in (usual, inference) for x in tensors)


def record(
    launcher: Callable, tensors: Sequence[Tensor], *facts: object
) -> tuple[Tape | None, list[Tensor]]:
    """The tape of a launch, which is done, and its results; no tape if it does more than to
    allocate and to launch.
    """
    # Objects of their own, by which arguments are told apart: one tensor may be given twice.
    tensors = [x.detach() for x in tensors]
    LAUNCHES.noted = []
    try:
        with torch.no_grad(), Noticed() as noticed:
            results = launcher(tensors, *facts)
        noted = LAUNCHES.noted
    finally:
        LAUNCHES.noted = None
    if not noticed.simple:
        return None, results
    bases = [*tensors, *results]
    scratch: dict[int, int] = {}  # where the memory of a tensor that only kernels see begins
    size = 0
    launches = []
    inner: list[tuple[int, int]] = []
    for kernel, programs, binary, arguments, constants in noted:
        start = starter(binary, tensors[0].device, programs, constants)
        if start is None:
            return None, results
        numbers, addresses = [], []
        for argument in arguments:
            if not isinstance(argument, Tensor) or argument.numel() == 0:
                numbers.append(0 if isinstance(argument, Tensor) else argument)
                addresses.append(None)
                continue
            memory = argument.untyped_storage()
            place = memory.data_ptr()
            same = [n for n, x in enumerate(bases) if x is argument]
            same = same or [
                n for n, x in enumerate(bases) if x.untyped_storage().data_ptr() == place
            ]
            if len(same) > 1:  # which of them a view is of cannot be told
                return None, results
            if not same and place not in scratch:
                scratch[place] = size
                size += -(-memory.nbytes() // 256) * 256
            base = same[0] if same else len(bases)
            start_of = bases[base].data_ptr() if same else place - scratch[place]
            addresses.append((base, argument.data_ptr() - start_of))
        launches.append((kernel.__name__, start, numbers, addresses))
        inner += [address for address in addresses if address is not None and address[1]]
    given = {x.untyped_storage().data_ptr() for x in tensors}
    places = [x.untyped_storage().data_ptr() for x in results if x.numel()]
    if given & set(places) or len(set(places)) < len(places):  # results that share memory
        return None, results
    shapes = tuple((tuple(x.shape), x.stride(), x.dtype) for x in results)
    device, count = tensors[0].device, len(bases) + bool(size)
    inner = list(dict.fromkeys(inner))
    replays = []
    for kernel, start, numbers, addresses in launches:
        where, after = [], count + len(inner)  # numbers are behind all addresses
        for address in addresses:
            if address is None:
                where.append(after)
                after += 1
            else:
                where.append(count + inner.index(address) if address[1] else address[0])
        replays.append(Replay(kernel, start, numbers, itemgetter(*where)))
    empty = empty_on(device, hasty=True)
    tape = Tape(device, empty, shapes, size, tuple(inner), tuple(replays), facts, {})
    return tape, results


def empty_on(device: torch.device, hasty: bool) -> Callable[[tuple, tuple, torch.dtype], Tensor]:
    """Makes tensors on a device that is current.

    Args:
        hasty: as PyTorch's compiled graphs do, if it has a function for that: it takes half the
            time, and leaves memory as it is where PyTorch is asked to fill it.
    """
    own = getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}", None)
    if own is not None and hasty:
        return own
    return lambda shape, strides, dtype: torch.empty_strided(
        shape, strides, dtype=dtype, device=device
    )


def starter(
    binary, device: torch.device, programs: int, constants: Sequence[object]
) -> Callable | None:
    """Launches a compiled kernel without Triton's own launcher, which looks at every argument
    anew; None of what cannot be launched so.
    """
    run = getattr(binary, "run", None)
    if not hasattr(run, "launch"):  # interpreted
        return None
    if run.global_scratch_size or run.profile_scratch_size:
        return None
    enqueue, function, packed = run.launch, binary.function, binary.packed_metadata
    cooperative, dependent = run.launch_cooperative_grid, run.launch_pdl
    stream_of, index = torch._C._cuda_getCurrentRawStream, device.index

    def start(arguments: Sequence[int]) -> None:
        enqueue(
            programs, 1, 1, stream_of(index), function, cooperative, dependent, None, None, packed,
            None, None, None, *arguments, *constants,
        )  # fmt: skip

    return start


def is_current(device: torch.device) -> bool:
    """Whether work goes to this GPU unless another is named."""
    return torch._C._cuda_getDevice() == device.index


def replay(tape: Tape, places: list[int]) -> list[Tensor]:
    """What a launcher gives for tensors of the traits of those that a tape is of.

    Args:
        places: where these tensors lie.
    """
    if is_current(tape.device):
        return replay_here(tape, places)
    with torch.cuda.device(tape.device):
        return replay_here(tape, places)


def replay_here(tape: Tape, places: list[int]) -> list[Tensor]:
    """The same on the current device."""
    empty = tape.empty
    if torch.are_deterministic_algorithms_enabled():  # it may have to be filled
        empty = empty_on(tape.device, hasty=False)
    results = [empty(*traits) for traits in tape.results]
    bases = places + [x.data_ptr() for x in results]
    if tape.scratch:  # kept until all is launched: later work on the stream may then have it
        scratch = empty((tape.scratch,), (1,), torch.uint8)
        bases.append(scratch.data_ptr())
    bases += [bases[i] + within for i, within in tape.inner]
    start_all(tape, bases)
    return results


def start_all(tape: Tape, addresses: list[int]) -> None:
    """Launch what a tape launches, of tensors at addresses, and within them."""
    for kernel, start, numbers, pick in tape.launches:
        try:
            start(pick(addresses + numbers))
        except Exception as error:
            raise RuntimeError(f"{OP}: {kernel} could not be launched on {tape.device}") from error


# True or something where modes of dispatch or of functions, transforms, a tracer or the profiler
# would see a call.
SEERS = (
    torch._C._len_torch_dispatch_stack,
    torch._C._len_torch_function_stack,
    torch._C._functorch.peek_interpreter_stack,
    torch._C._get_tracing_state,
    torch.autograd._profiler_enabled,
)


def forward_of(tensors: Sequence[Tensor], keep: bool) -> list[Tensor]:
    """y of inputs and parameters, and what gradients need if they are to be computed."""
    count = len(tensors) - 5
    inputs, parameters = tensors[:count], tensors[count:]
    check(inputs, parameters)
    outputs = launch_forward(inputs, parameters, keep=keep)
    return outputs if keep else outputs[:1]


def backward_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the inputs and parameters; of dy, these, and what forward has kept."""
    dy, inputs, parameters, saved = parted(tensors)
    return launch_backward(dy, inputs, parameters, saved)


def parted(
    tensors: Sequence[Tensor],
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """dy, inputs, parameters and what forward has kept."""
    count = len(tensors) - 6
    return tensors[0], tensors[1:count], tensors[count : count + 5], tensors[count + 5 :]


def gradients_of(tape: Tape, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """`backward_of` tensors, of a call whose tape this is."""
    # If gradients of gradients are asked for, or something sees this part alone: library ops.
    if seen_by_none() and not torch.is_grad_enabled():
        after, places = gradients_tape(tape, tensors)
        if after is not None:
            return replay(after, places)
    refuse_batched(tensors[0])
    dy, inputs, parameters, saved = parted(tensors)
    absent = [None] * (len(INPUTS) - len(inputs))
    found: Sequence[Tensor] = backward_op(dy, *inputs, *absent, *parameters, *saved)
    return found


class Direct(torch.autograd.Function):
    """A call that only eager PyTorch sees, differentiable."""

    @staticmethod
    def forward(ctx, tape: Tape, places: list[int], *tensors: Tensor) -> Tensor:
        y, *made = replay(tape, places)
        ctx.tape = tape
        ctx.save_for_backward(*tensors, *made)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        return None, None, *gradients_of(ctx.tape, (dy, *ctx.saved_tensors))


# What Direct.apply calls, after a look at each argument for what seen_by_none has ruled out.
apply_direct = super(torch.autograd.Function, Direct).apply


def check_dense(name: str, tensor: Tensor) -> None:
    """Refuse what is no tensor of strides."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{OP}: {name} is a {type(tensor).__name__}, expected a tensor")
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else tensor.layout
        raise TypeError(f"{OP}: {name} is {kind}, expected a dense tensor")


def check(inputs: Sequence[Tensor], parameters: Sequence[Tensor], least: int = LEAST) -> None:
    """Refuse tensors of a wrong kind, naming the argument and what was expected of it."""
    names = INPUTS if len(inputs) == len(INPUTS) else ("features",)
    x = inputs[0]
    for name, tensor in zip((*names, *PARAMETERS), (*inputs, *parameters), strict=True):
        check_dense(name, tensor)
        if tensor.device != x.device:
            raise ValueError(
                f"{OP}: {name} is on {tensor.device}, but {names[0]} is on {x.device}"
            )
    accepted = (torch.bfloat16, torch.float16, torch.float32)
    for name, tensor in zip(names, inputs, strict=True):
        roles = len(INPUTS) // len(inputs)  # packed in one tensor
        if tensor.dim() != 3 or tensor.shape[CHANNEL] % roles or tensor.shape[TIME] < least:
            channels = f"{roles} D" if roles > 1 else "D"
            shape = SHAPE.format(channels)
            raise ValueError(
                f"{OP}: {name} has shape {tuple(tensor.shape)}, expected {shape} with L >= {least}"
            )
        if tensor.shape != x.shape:
            raise ValueError(
                f"{OP}: {name} has shape {tuple(tensor.shape)}, "
                f"but {names[0]} has {tuple(x.shape)}"
            )
        if tensor.dtype not in accepted and (tensor.dtype != torch.float64 or x.is_cuda):
            raise TypeError(
                f"{OP}: {name} is {tensor.dtype}, expected bfloat16, float16 or float32 "
                "(float64 is for CPU only)"
            )
        if tensor.dtype != x.dtype:
            raise TypeError(f"{OP}: {name} is {tensor.dtype}, but {names[0]} is {x.dtype}")
    check_parameters(channels_of(inputs), parameters)


def require_triton(x: Tensor) -> None:
    """Refuse what kernels would compute, where nothing can compile them."""
    if x.device.type == "cuda" and not HAS_TRITON:
        raise RuntimeError(f"{OP}: CUDA tensors need Triton, which is not installed")


def has_shape(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor has a shape; where some dimensions are symbols, one by one."""
    return tensor.shape == shape or (
        tensor.dim() == len(shape)
        and all(have == wanted for have, wanted in zip(tensor.shape, shape, strict=True))
    )


def check_parameters(channels: int, parameters: Sequence[Tensor]) -> None:
    """Refuse parameters that do not belong to so many channels, or to each other."""
    groups = parameters[0].shape[0] if parameters[0].dim() else 0
    if groups < 1 or channels < 1 or channels % groups:
        raise ValueError(
            f"{OP}: {PARAMETERS[0]} has shape {tuple(parameters[0].shape)}, expected a row for "
            f"each of G filter groups, where G divides {channels} channels"
        )
    shapes = parameter_shapes(channels, groups)
    accepted = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for (name, shape), tensor in zip(shapes.items(), parameters, strict=True):
        as_conv1d = (shape[0], 1, shape[-1])
        if not (has_shape(tensor, shape) or (name in TAPS and has_shape(tensor, as_conv1d))):
            raise ValueError(
                f"{OP}: {name} has shape {tuple(tensor.shape)}, expected {shape} for {channels} "
                f"channels in {groups} filter groups"
            )
        if tensor.dtype not in accepted:
            raise TypeError(
                f"{OP}: {name} is {tensor.dtype}, expected float32, bfloat16, float16 or float64"
            )


# -----------------------------------------------------------------------------------------------
# The past of sequences
# -----------------------------------------------------------------------------------------------


def check_sizes(dtype: torch.dtype, draft: bool, **sizes: int) -> None:
    """Refuse what no state is of."""
    if not isinstance(draft, bool):
        raise TypeError(f"{OP}: draft must be True or False, not {draft!r}")
    for name, number in sizes.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{OP}: {name} must be a whole number, not {number!r}")
        if number < (name != "batch"):
            raise ValueError(f"{OP}: {name} must be at least {int(name != 'batch')}, not {number}")
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise TypeError(
            f"{OP}: a state is float32, bfloat16 or float16 (float64 on a CPU), not {dtype}"
        )


def with_state(inputs: Sequence, state) -> tuple[Sequence[Tensor], object]:
    """The inputs, and the state that may come last of them."""
    if state is None and inputs:
        *inputs, state = inputs
    if isinstance(state, Tensor):
        raise TypeError(
            f"{OP}: expected {', '.join(INPUTS)} or packed features, then a state; slots by name"
        )
    return inputs, state


def check_count(inputs: Sequence[Tensor]) -> None:
    """Refuse another number of inputs than there are."""
    known = isinstance(inputs, (tuple, list)) and len(inputs) in (1, len(INPUTS))
    if not known or not all(isinstance(x, Tensor) for x in inputs):
        several = f"{', '.join(INPUTS)} or one tensor of packed features"
        what = several if len(INPUTS) > 1 else "one input"
        raise TypeError(f"{OP}: expected {what}, as tensors in a tuple or list, and a state")


def check_decode(
    inputs: Sequence[Tensor], state, slots: Tensor | None, any_steps: bool = False
) -> None:
    """Refuse a state and slots that do not belong to inputs, which have been checked."""
    if not isinstance(state, STATE):
        raise TypeError(
            f"{OP}: state is a {type(state).__name__}, expected a {STATE.__name__}, which "
            "initial_state of the same file gives"
        )
    x, channels = inputs[0], channels_of(inputs)
    for name, tensor in zip(state._fields, state, strict=True):
        if name != "draft":
            check_dense(f"state.{name}", tensor)
            if tensor.device != x.device:
                raise ValueError(
                    f"{OP}: state.{name} is on {tensor.device}, but {INPUTS[0]} is on {x.device}"
                )
            if not tensor.is_contiguous():
                raise ValueError(f"{OP}: state.{name} is not contiguous")
            if name not in ("count", "done") and not tensor.is_floating_point():
                raise TypeError(
                    f"{OP}: state.{name} is {tensor.dtype}, "
                    "expected float32, bfloat16, float16 or float64"
                )
    steps, places = x.shape[TIME], state.count.shape[0]
    for name, shape in (("count", (places,)), ("done", (places, -(-channels // COUNTED)))):
        number = getattr(state, name)
        if number.shape != shape or number.dtype != torch.int32:
            raise ValueError(
                f"{OP}: state.{name} is {number.dtype} {tuple(number.shape)}, expected "
                f"torch.int32 {shape}"
            )
    for name, (lag, roles) in RINGS.items():
        ring = getattr(state, name)
        if ring.dim() != 3 or ring.shape[0] != places or ring.shape[2] != roles * channels:
            raise ValueError(
                f"{OP}: state.{name} has shape {tuple(ring.shape)}, expected ({places}, slots, "
                f"{roles * channels}) for {channels} channels"
            )
        if (lag or state.draft) and ring.shape[1] < lag + steps and not any_steps:
            raise ValueError(
                f"{OP}: {steps} steps in one call, but the state has room for "
                f"{ring.shape[1] - lag}: initial_state(batch, steps={steps}), or prefill"
            )
    modes = getattr(state, "modes", None)
    if modes is not None and tuple(modes.shape) != (places, channels, *MODES_SHAPE):
        raise ValueError(
            f"{OP}: state.modes has shape {tuple(modes.shape)}, expected "
            f"{(places, channels, *MODES_SHAPE)} for {channels} channels"
        )
    if slots is None:
        if places != x.shape[0]:
            raise ValueError(
                f"{OP}: {INPUTS[0]} has {x.shape[0]} rows, but the state has {places}: slots say "
                "which of them is whose"
            )
        return
    check_slots(slots, state, x.shape[0])


def check_slots(slots: Tensor, state, rows: int | None = None) -> None:
    """Refuse what are no places of a state, as far as can be seen without a wait for a GPU."""
    check_dense("slots", slots)
    places, device = state.count.shape[0], state.count.device
    known = slots.dtype == torch.int32 and slots.device == device and slots.dim() == 1
    if not known or rows not in (None, len(slots)):
        raise ValueError(
            f"{OP}: slots are {slots.dtype} {tuple(slots.shape)} on {slots.device}, expected "
            f"torch.int32 ({'B' if rows is None else rows},) on {device}"
        )
    if not is_known(slots):
        return
    if bool((slots >= places).any()):
        raise ValueError(f"{OP}: slots are beyond the {places} places of the state")
    real = slots[slots >= 0]
    if len(real.unique()) < len(real):
        raise ValueError(f"{OP}: two rows have one place of the state: {slots.tolist()}")


def check_in_place(inputs: Sequence[Tensor], state) -> None:
    """Refuse what is not changed in place: modes that would be rounded, and gradients."""
    refuse_gradients(inputs)
    modes = getattr(state, "modes", state.count)
    narrow = modes.is_floating_point() and modes.dtype.itemsize < 4
    if narrow or (modes.is_cuda and modes.dtype == torch.float64):
        raise TypeError(
            f"{OP}: state.modes is {modes.dtype}, expected torch.float32 (or float64 on a CPU)"
        )


def refuse_gradients(inputs: Sequence[Tensor]) -> None:
    """Refuse inputs of which a gradient would be asked for."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        raise RuntimeError(f"{OP}: decoding has no gradients: call it under torch.no_grad()")


def all_rows(state) -> tuple[Tensor, Tensor]:
    """The places of a state, and how many steps there were in each."""
    return torch.arange(state.count.shape[0], device=state.count.device), state.count


def is_known(numbers: Tensor) -> bool:
    """Whether to look at numbers costs no wait for a GPU, and no compiler the whole of a graph."""
    return numbers.device.type == "cpu" and not torch.compiler.is_compiling()


def commit_drafts(state, accepted: Tensor, slots: Tensor | None) -> None:
    """What `commit` of a state does."""
    if not state.draft:
        raise ValueError(f"{OP}: this state moves on by itself: initial_state(..., draft=True)")
    if slots is not None:
        check_slots(slots, state)
    rows = state.count.shape if slots is None else slots.shape
    kinds = (torch.int32, torch.int64)
    if not isinstance(accepted, Tensor) or accepted.dtype not in kinds or accepted.shape != rows:
        raise TypeError(f"{OP}: accepted must be an int32 tensor {tuple(rows)}, not {accepted!r}")
    there = None if slots is None else has_place(slots, state)
    real = accepted if there is None else torch.where(there, accepted, 0)
    for name, (lag, _) in RINGS.items():
        room = getattr(state, name).shape[1] - lag
        if is_known(real) and bool(((real < 0) | (real > room)).any()):
            raise ValueError(f"{OP}: accepted are not all between 0 and {room} steps")
    if there is None:
        state.count.add_(real)
        return
    places = torch.where(there, slots, 0).long()
    state.count.index_add_(0, places, real.to(torch.int32))


def has_place(slots: Tensor, state) -> Tensor:
    """Which rows have a place of the state."""
    return (slots >= 0) & (slots < state.count.shape[0])


def reset_places(state, slots: Tensor | None) -> None:
    """What `reset` of a state does."""
    places = slice(None)
    if slots is not None:
        check_slots(slots, state)
        places = slots[has_place(slots, state)].long()
    for tensor in state[:-1]:
        tensor[places] = 0


def strided(x: Tensor) -> tuple[Tensor, int, int, int]:
    """What a kernel takes for steps: data, and strides of batch, channel and time."""
    return x, x.stride(0) if x.shape[0] > 1 else 0, x.stride(CHANNEL), x.stride(TIME)


def live_rows(slots: Tensor | None, state) -> tuple[Tensor, Tensor]:
    """Rows of a batch that are computed, and the places of their states."""
    if slots is None:
        rows, _ = all_rows(state)
        return rows, rows
    rows = has_place(slots, state).nonzero().flatten()
    return rows, slots[rows].long()


def ring_slots(ring: Tensor, count: Tensor, steps: int, begin: int) -> Tensor:
    """The slots of so many steps of each row from `begin` after step `count` on, (B, steps)."""
    step = torch.arange(begin, begin + steps, device=ring.device)
    return (count[:, None] + step) % ring.shape[1]


def keep_in_ring(ring: Tensor, x: Tensor, places: Tensor, count: Tensor) -> None:
    """Write x (B, columns, T) to the ring, from step `count` on."""
    steps = x.transpose(1, 2).to(ring.dtype)
    ring[places[:, None], ring_slots(ring, count, x.shape[2], 0)] = steps


def move_to(state, places: Tensor, count: Tensor) -> None:
    """Let sequences have had so many steps."""
    state.count[places] = count.to(torch.int32)
    state.done[places] = state.count[places, None]


def end_of_all(count: Tensor, steps: int) -> Tensor | int:
    """Where all rows end: a number, but for compilers, which would hold that one for all calls."""
    known = type(steps) is int and not torch.compiler.is_compiling()
    return steps if known else torch.full_like(count, steps)


def ends_of(lengths: Tensor | None, rows: Tensor, steps: int, x: Tensor) -> Tensor:
    """Where each row that is computed ends."""
    if lengths is None:
        return torch.full_like(rows, steps)
    check_dense("lengths", lengths)
    kinds = (torch.int32, torch.int64)
    if lengths.shape != x.shape[:1] or lengths.dtype not in kinds or lengths.device != x.device:
        raise ValueError(
            f"{OP}: lengths are {lengths.dtype} {tuple(lengths.shape)} on {lengths.device}, "
            f"expected int32 or int64 ({x.shape[0]},) on {x.device}"
        )
    own = lengths[rows].long()
    if is_known(own) and bool(((own < 0) | (own > steps)).any()):
        raise ValueError(f"{OP}: lengths are not all between 0 and {steps} steps")
    return own.clamp(0, steps)


def decode_modes(
    x: Tensor, poles: Tensor, residues: Tensor, state, places: Tensor, count: Tensor
) -> Tensor:
    """Sums of modes (C, N) after every step of x (B, C, T); their state moves on, or that of
    drafts to what was accepted of those before.
    """
    modes = state.modes[places].to(x.dtype)
    modes = torch.view_as_complex(modes) if poles.is_complex() else modes
    if poles.is_complex():
        lost, residues = (torch.exp(poles) - 1).to(modes.dtype), residues.to(modes.dtype)
    else:
        lost = torch.expm1(poles)  # not exp, which would drift where a pole is small

    def after(modes: Tensor, step: Tensor) -> Tensor:
        return modes + (lost * modes + step[..., None])

    def keep(modes: Tensor) -> None:
        real = torch.view_as_real(modes) if poles.is_complex() else modes
        state.modes[places] = real.to(state.modes.dtype)

    if state.draft:
        replay = count - state.done[places, 0]
        for i in range(int(replay.max()) if len(replay) else 0):
            step = state.z[places, (count - replay + i) % state.z.shape[1]].to(x.dtype)
            modes = torch.where((i < replay)[:, None, None], after(modes, step), modes)
        keep(modes)
        state.done[places] = count[:, None]
        keep_in_ring(state.z, x, places, count)
    y = []
    for step in x.unbind(2):
        modes = after(modes, step)
        y.append((residues * modes).sum(-1).real)
    if not state.draft:
        keep(modes)
    return torch.stack(y, 2) if y else x


class S4dState(NamedTuple):
    """The past of sequences, in a place each. `decode` and `prefill` change it.

    A ring keeps step t, counted from the first of its sequence, in slot t % slots.

    z (batch, steps, channels): the last drafts of z
    modes (batch, channels, 32, 2) float32: the state of the modes, real and imaginary parts
    count (batch,) int32: steps of each sequence so far
    done (batch, channels / 16) int32, of each 16 channels: count, without the steps that modes do
    not know of yet
    """

    z: Tensor
    modes: Tensor
    count: Tensor
    done: Tensor
    draft: bool

    def commit(self, accepted: Tensor, slots: Tensor | None = None) -> None:
        """Say how many steps of the last `decode` count, of a state of drafts: the others leave no
        trace. Those of `prefill` count at once.

        Args:
            accepted: int32, a number a row of that call, at most its steps. That is yours to see
                to: on a CPU it is compared with the room of the state, on a GPU with nothing.
            slots: as of that call.
        """
        commit_drafts(self, accepted, slots)

    def reset(self, slots: Tensor | None = None) -> None:
        """Let new sequences begin in places, or in all; negative slots are none. With slots it
        waits for a GPU.
        """
        reset_places(self, slots)


STATE = S4dState


def initial_state(
    batch: int,
    channels: int = CHANNELS,
    *,
    steps: int = 1,
    draft: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> S4dState:
    """The state of sequences that have not begun.

    Args:
        batch: how many places for a sequence it has.
        channels: D.
        steps: the most that one call computes.
        draft: whether steps count only once `commit` has said so.
        dtype: of the past of inputs and of what the filter reads, float32 or that of the inputs,
            which halves what a step reads and rounds what the filter reads once; modes are
            float32.
    """
    check_sizes(dtype, draft, batch=batch, channels=channels, steps=steps)
    wide = torch.promote_types(dtype, torch.float32)
    index = torch.zeros((batch,), dtype=torch.int32, device=device)
    return S4dState(
        torch.zeros((batch, steps, channels), dtype=wide, device=device),
        torch.zeros((batch, channels, 32, 2), dtype=wide, device=device),
        index,
        index.new_zeros(batch, -(-channels // 16)),
        draft,
    )


def past_for_kernels(state: S4dState, x: Tensor) -> tuple[Tensor, ...]:
    """What eager_stateful takes of a state, for inputs like x."""
    tails = x.new_empty((x.shape[0], 1 * x.shape[CHANNEL], 0))
    modes = state.modes.to(torch.promote_types(x.dtype, torch.float32))
    return canonical(tails.to(x.dtype)), modes


# -----------------------------------------------------------------------------------------------
# Calls
# -----------------------------------------------------------------------------------------------


def run_op(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
) -> Tensor:
    """y of all inputs, or of packed features alone."""
    if PLAIN or transformed([*inputs, *parameters]):
        refuse_symbols(inputs[0])
        with without_autocast(inputs[0]):
            return eager_forward(unpack(spread(inputs, parameters)), parameters)[0]
    absent = [None] * (len(INPUTS) - len(inputs))
    return forward_op(*inputs, *absent, *parameters, differentiates(*inputs, *parameters))[0]


def s4d(
    x: Tensor,
    log_poles: Tensor,
    frequencies: Tensor,
    residues_real: Tensor,
    residues_imag: Tensor,
    skip: Tensor,
) -> Tensor:
    """s4d: causal convolution with sums of 32 pairs of complex exponentials

    Args:
        x: (B, D, L), bfloat16, float16 or float32
        log_poles: (groups, 32), float32; real parts of a, < 0: pair n of the filter at lag j is 2
            Re R[n] exp(a[n] j)
        frequencies: (groups, 32), float32; imaginary parts of a: radians a step
        residues_real: (groups, 32), float32; real parts of residues R
        residues_imag: (groups, 32), float32; imaginary parts of residues R
        skip: (channels), float32; times z, added to the convolution

    Returns:
        y (B, D, L) in the dtype of the inputs, differentiable in every argument.

    Raises:
        TypeError, ValueError: naming the argument and the shape, dtype or device expected.
    """
    y = direct([x], [log_poles, frequencies, residues_real, residues_imag, skip])
    if y is not None:
        return y
    check([x], [log_poles, frequencies, residues_real, residues_imag, skip])
    require_triton(x)
    return run_op([x], [log_poles, frequencies, residues_real, residues_imag, skip])


# -----------------------------------------------------------------------------------------------
# Decoding: a few steps in time after a past that is kept
# -----------------------------------------------------------------------------------------------


def state_after(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: S4dState,
    end: Tensor | None,
    modes: Tensor,
) -> S4dState:
    """The state after the first `end` steps of each row, or all, of that before them, which
    stays as it is; of the modes after them.
    """
    end = end_of_all(state.count, inputs[0].shape[TIME]) if end is None else end
    count = (state.count + end).to(torch.int32)
    done = count[:, None].repeat(1, state.done.shape[1])
    return STATE(state.z, modes, count, done, state.draft)


def eager_decode(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: S4dState,
    slots: Tensor | None,
) -> Tensor:
    """y of a few steps in plain PyTorch; the state moves on."""
    sequences = [canonical(x) for x in unpack(inputs)]
    batch, channels, steps = sequences[0].shape
    dtype = torch.float64 if sequences[0].dtype == torch.float64 else torch.float32
    result = allocate(inputs[0], steps, channels).zero_()
    rows, places = live_rows(slots, state)
    count = state.count[places]
    (x,) = (x[rows].to(dtype) for x in sequences)
    log_poles, frequencies, residues_real, residues_imag, skip = effective(*parameters, dtype)
    c, width = slice(0, channels), channels // log_poles.shape[0]
    skip_c = channel_rows(skip, c, 1, dtype)[:, None]
    skipped = x * skip_c
    filter_modes = (
        channel_rows(log_poles, c, width, dtype),
        channel_rows(frequencies, c, width, dtype),
        channel_rows(residues_real, c, width, dtype),
        channel_rows(residues_imag, c, width, dtype),
    )
    poles, residues = poles_and_residues(filter_modes)
    conv = decode_modes(x, poles, residues, state, places, count)
    pre_skip = conv + skipped
    canonical(result)[rows] = pre_skip.to(result.dtype)
    if not state.draft:
        move_to(state, places, count + steps)
    return result


def launch_decode(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: S4dState,
    slots: Tensor | None,
) -> Tensor:
    """The same by one kernel."""
    (x,) = unpack(inputs)
    log_poles, frequencies, residues_real, residues_imag, skip = (
        p.contiguous() for p in parameters
    )
    channels, groups = x.shape[CHANNEL], log_poles.shape[0]
    width = channels // groups
    batch, steps = x.shape[0], x.shape[TIME]
    places = state.count.shape[0]
    y = allocate(x, steps, channels)
    config = configs_of(x, channels, groups)["decode"]
    config = step_config(config, batch * channels, steps)
    grid = step_grid(batch, steps, channels, width, config)
    if grid.programs and steps:
        launch(
            s4d_decode,
            grid.programs,
            *strided(x),
            *strided(y),
            log_poles,
            frequencies,
            residues_real,
            residues_imag,
            skip,
            state.z,
            state.modes,
            state.count,
            state.done,
            state.count if slots is None else slots,
            places,
            config=config,
            CHANNELS=channels,
            WIDTH=width,
            STEPS=steps,
            Z_SLOTS=state.z.shape[1],
            SLOTTED=slots is not None,
            DRAFT=state.draft,
        )
    return y


def decode_anywhere(
    x: Tensor,
    log_poles: Tensor,
    frequencies: Tensor,
    residues_real: Tensor,
    residues_imag: Tensor,
    skip: Tensor,
    z: Tensor,
    modes: Tensor,
    count: Tensor,
    done: Tensor,
    slots: Tensor | None,
    draft: bool,
) -> Tensor:
    """y of a few steps; of packed features if the later inputs are None."""
    state = STATE(z, modes, count, done, draft)
    with torch.autocast(x.device.type, enabled=False):
        return eager_decode(
            given(x), [log_poles, frequencies, residues_real, residues_imag, skip], state, slots
        )


def decode_on_gpu(
    x: Tensor,
    log_poles: Tensor,
    frequencies: Tensor,
    residues_real: Tensor,
    residues_imag: Tensor,
    skip: Tensor,
    z: Tensor,
    modes: Tensor,
    count: Tensor,
    done: Tensor,
    slots: Tensor | None,
    draft: bool,
) -> Tensor:
    """The same by a kernel."""
    state = STATE(z, modes, count, done, draft)
    return launch_decode(
        given(x), [log_poles, frequencies, residues_real, residues_imag, skip], state, slots
    )


def decode_fake(
    x: Tensor,
    log_poles: Tensor,
    frequencies: Tensor,
    residues_real: Tensor,
    residues_imag: Tensor,
    skip: Tensor,
    z: Tensor,
    modes: Tensor,
    count: Tensor,
    done: Tensor,
    slots: Tensor | None,
    draft: bool,
) -> Tensor:
    """The same without values."""
    inputs = given(x)
    return allocate(x, x.shape[TIME], channels_of(inputs))


def check_decoding(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: S4dState,
    slots: Tensor | None,
) -> None:
    """Refuse what `decode` cannot compute."""
    check_count(inputs)
    check(inputs, parameters)
    require_triton(inputs[0])
    check_decode(inputs, state, slots)
    check_in_place(inputs, state)


def decode_of(tensors: Sequence[Tensor], count: int, slotted: bool, draft: bool) -> list[Tensor]:
    """y of `count` inputs, parameters, the tensors of a state, and slots if there are some."""
    inputs, others = tensors[:count], tensors[count:]
    parameters, state = others[: len(PARAMETERS)], others[len(PARAMETERS) :]
    slots = state[-1] if slotted else None
    state = STATE(*state[: len(STATE._fields) - 1], draft)
    return [launch_decode(inputs, parameters, state, slots)]


decode_op = library_op(
    f"{LIBRARY_NAME}_decode",
    decode_fake,
    decode_anywhere,
    decode_on_gpu,
    changes=(
        "z",
        "modes",
        "count",
        "done",
    ),
)


def decode(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: S4dState,
    slots: Tensor | None = None,
) -> Tensor:
    """y of one step or a few after a state, which moves on in place. For inference: it has no
    gradients.

    Args:
        inputs: x (B, D, L) with L steps.
        parameters: log_poles, frequencies, residues_real, residues_imag, skip.
        state: of `initial_state`, for at least L steps.
        slots: (B) int32, which place of the state a row's sequence has; of rows that are negative
            nothing is computed, and y is 0. A GPU does not see where they are wrong: beyond all
            places they are as negative ones, and two rows with one place leave a state of no use
            until it is reset. Absent: row i has place i.

    Returns:
        y (B, D, L) in the dtype of the inputs.

    Raises:
        TypeError, ValueError: naming the argument and the shape, dtype or device expected.
        RuntimeError: a gradient would be asked for.
    """
    y = directly_decoded(inputs, parameters, state, slots)
    if y is not None:
        return y
    check_decoding(inputs, parameters, state, slots)
    absent = [None] * (len(INPUTS) - len(inputs))
    function = decode_anywhere if PLAIN else decode_op
    with torch.no_grad():
        return function(*inputs, *absent, *parameters, *state[:-1], slots, state.draft)


def prefill(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: S4dState,
    slots: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """y of any number of steps after a state, which moves on in place, as `decode` of one after
    the other; of drafts too, without `commit`. For inference: it has no gradients.

    Args:
        inputs, parameters, state, slots: as of `decode`, but for any number of steps.
        lengths: (B) whole numbers, how many of a row's steps are its own, of rows that are padded
            on the right: a state is that after these, and y is of no meaning beyond, where inputs
            must be finite. Absent: all.

    Returns:
        y (B, D, L) in the dtype of the inputs.

    Raises:
        TypeError, ValueError, RuntimeError: as `decode`.
    """
    check_count(inputs)
    check(inputs, parameters, least=0)
    steps = inputs[0].shape[TIME]
    require_triton(inputs[0])
    check_decode(inputs, state, slots, any_steps=True)
    check_in_place(inputs, state)
    if not steps:
        ends_of(lengths, live_rows(slots, state)[0], steps, inputs[0])
        return allocate(inputs[0], 0, channels_of(inputs))
    with torch.no_grad(), without_autocast(inputs[0]):
        if state.draft:  # of drafts, what was accepted
            eager_decode([x.narrow(TIME, 0, 0) for x in inputs], parameters, state, slots)
        sequences = unpack(inputs)
        rows, places = live_rows(slots, state)
        end = ends_of(lengths, rows, steps, sequences[0])
        own, before = sequences, state
        if slots is not None:
            own = [x[rows] for x in sequences]
            before = STATE(*(tensor[places] for tensor in state[:-1]), state.draft)
        history, modes = past_for_kernels(before, own[0])
        y, modes = eager_stateful(own, parameters, history, modes, end)
        after = state_after(own, parameters, before, end, modes)
        for tensor, made in zip(state[:-1], after[:-1], strict=True):
            if made is not tensor:
                tensor[places] = made.to(tensor.dtype)
        if slots is None:
            return y
        result = allocate(inputs[0], steps, channels_of(inputs)).zero_()
        result[rows] = y
        return result


class S4d(nn.Module):
    """The operator with its parameters: log_poles (groups, 32), frequencies (groups, 32),
    residues_real (groups, 32), residues_imag (groups, 32), skip (channels).

    They are float32 and stay so under `.to(torch.bfloat16)`, `.half()` and autocast: they are few,
    and rounding them would cost more accuracy than the whole computation.

    Args:
        channels: D.
        groups: G, which divides D; as wide as those of 1024 channels in 1024 if absent.
    """

    def __init__(
        self,
        channels: int = CHANNELS,
        groups: int | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("channels", channels), ("groups", groups)):
            if not isinstance(size, int | None):
                raise TypeError(f"{OP}: {name} must be a whole number, not {size!r}")
        if groups is None:
            width = CHANNELS // GROUPS
            if channels % width:
                raise ValueError(f"{OP}: {channels} channels are no whole groups of {width}")
            groups = channels // width
        if channels < 1 or groups < 1 or channels % groups:
            raise ValueError(f"{OP}: {groups} filter groups do not divide {channels} channels")
        self.channels, self.groups = channels, groups
        for name, shape in parameter_shapes(channels, groups).items():
            values = torch.empty(shape, dtype=torch.float32, device=device)
            self.register_parameter(name, nn.Parameter(values))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh parameters."""
        with torch.no_grad():
            self.log_poles.uniform_(0.01, 0.1).mul_(-0.367879)
            self.frequencies.uniform_(0.0, 3.14159)
            self.residues_real.normal_(0.0, 0.00883883)
            self.residues_imag.normal_(0.0, 0.00883883)
            self.skip.uniform_(-0.176777, 0.176777)

    def _apply(self, fn, recurse: bool = True):
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype in (torch.bfloat16, torch.float16):
                return tensor.to(moved.device)
            return moved

        return super()._apply(keep_float32, recurse)

    def forward(self, *inputs: Tensor) -> Tensor:
        """y (B, D, L) of x (B, D, L)."""
        own = self._parameters  # which nn.Module searches slowly; parametrised ones are not there
        parameters = [own[n] if n in own else getattr(self, n) for n in PARAMETERS]
        if len(inputs) == len(INPUTS):
            return s4d(*inputs, *parameters)
        raise TypeError(f"{OP}: expected 1 input, got {len(inputs)}")

    def initial_state(
        self,
        batch: int,
        *,
        steps: int = 1,
        draft: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> S4dState:
        """`initial_state` for this module's channels, by default on its device."""
        device = next(self.parameters()).device if device is None else device
        return initial_state(
            batch, self.channels, steps=steps, draft=draft, dtype=dtype, device=device
        )

    def decode(
        self,
        *inputs: Tensor,
        state: S4dState | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """y of one step or a few after a state, which may come last of the inputs: `decode` with
        this module's parameters.

        Example: `y = module.decode(x, module.initial_state(batch))`
        """
        inputs, state = with_state(inputs, state)
        parameters = [getattr(self, name) for name in PARAMETERS]
        return decode(inputs, parameters, state, slots)

    def prefill(
        self,
        *inputs: Tensor,
        state: S4dState | None = None,
        slots: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """y of a whole prompt, or of more of it, and the state after it: `prefill`."""
        inputs, state = with_state(inputs, state)
        parameters = [getattr(self, name) for name in PARAMETERS]
        return prefill(inputs, parameters, state, slots, lengths)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, groups={self.groups}"
