"""Plain-PyTorch helpers: the path of generated files on a CPU, and of the `fft` algorithm
everywhere.

Activations are (B, C, L), taps (C, K) with lag 0 first, C the channels of one chunk.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 64


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


def role_rows(parameter: Tensor, role: int, roles: int, interleaved: bool) -> Tensor:
    """The rows of one input in a parameter that several inputs share, as a view."""
    return parameter[role::roles] if interleaved else parameter.chunk(roles)[role]


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


def conv_direct(x: Tensor, taps: Tensor, direction: int) -> Tensor:
    """y[t] = sum_j taps[j] x[t - direction * j], zero outside the sequence."""
    channels, reach = taps.shape[0], taps.shape[1] - 1
    if direction > 0:
        x, kernel = functional.pad(x, (reach, 0)), taps.flip(1)
    else:
        x, kernel = functional.pad(x, (0, reach)), taps
    return functional.conv1d(x, kernel.unsqueeze(1), groups=channels)


def conv_within(x: Tensor, taps: Tensor) -> Tensor:
    """conv_direct of the steps of x that have all of their past in it."""
    if x.shape[2] < taps.shape[1]:  # none has
        return x[..., :0]
    return functional.conv1d(x, taps.flip(1).unsqueeze(1), groups=taps.shape[0])


def tap_gradient_direct(grad: Tensor, x: Tensor, length: int) -> Tensor:
    """sum over b, t of grad[t] x[t - j] for j < length: (C, length)."""
    steps = x.shape[2]
    rows = [(grad[..., j:] * x[..., : max(0, steps - j)]).sum((0, 2)) for j in range(length)]
    return torch.stack(rows, 1)


def fft_size(length: int) -> int:
    """The smallest size >= length whose only prime factors are 2, 3 and 5: never far away."""
    best = 1 << (length - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            size = three << max(0, (-(-length // three) - 1).bit_length())
            best = min(best, size)
            three *= 3
        five *= 5
    return best


def conv_fft(x: Tensor, taps: Tensor, direction: int) -> Tensor:
    """conv_direct by FFT; taps beyond the sequence play no part."""
    steps = x.shape[2]
    taps = taps[:, :steps]
    size = fft_size(steps + taps.shape[1] - 1)
    spectrum = torch.fft.rfft(taps, size)
    if direction < 0:
        spectrum = spectrum.conj_physical()  # a lazy conj() is lost inside compiled graphs
    return torch.fft.irfft(torch.fft.rfft(x, size) * spectrum, size)[..., :steps]


def tap_gradient_fft(grad: Tensor, x: Tensor, length: int) -> Tensor:
    """tap_gradient_direct by FFT; zero for taps beyond the sequence."""
    steps = x.shape[2]
    kept = min(length, steps)
    size = fft_size(steps + kept - 1)
    spectrum = (torch.fft.rfft(grad, size) * torch.fft.rfft(x, size).conj_physical()).sum(0)
    return functional.pad(torch.fft.irfft(spectrum, size)[..., :kept], (0, length - kept))


def silu_gradient_eager(grad: Tensor, x: Tensor) -> Tensor:
    """grad * silu'(x)."""
    s = torch.sigmoid(x)
    return grad * s * (1 + x * (1 - s))


def powers(poles: Tensor, steps: Tensor) -> Tensor:
    """exp(a t) of poles a (C, N) and steps t (T,): (C, N, T)."""
    return torch.exp(poles[..., None] * steps.to(poles))


def block_steps(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, C, L) in blocks of BLOCK steps, zero beyond its end: (B, C, blocks, BLOCK); and the
    steps of a block.
    """
    padded = functional.pad(x, (0, -x.shape[2] % BLOCK))
    return padded.unflatten(2, (-1, BLOCK)), torch.arange(BLOCK, device=x.device)


def modal_states(blocks: Tensor, poles: Tensor, state: Tensor | None = None) -> Tensor:
    """The state of every mode before each block, which is the sum of exp(a d) x, d steps before
    the last one that is earlier than the block: (B, C, blocks, N). `state` is the first of them.
    """
    step = torch.arange(BLOCK, device=blocks.device)
    added = torch.einsum("bcmj,cnj->bcmn", blocks, powers(poles, BLOCK - 1 - step))
    lost = torch.expm1(BLOCK * poles)  # not exp, which would drift where a is small
    if state is None:
        state = added.new_zeros(added.shape[:2] + added.shape[3:])
    states = []
    for block in added.unbind(2):
        states.append(state)
        state = state + (lost * state + block)
    return torch.stack(states, 2) if states else added


def conv_modal(
    x: Tensor, modes: tuple[Tensor, Tensor], direction: int, state: Tensor | None = None
) -> Tensor:
    """conv_direct with taps[j] = sum_n residues[n] exp(poles[n] j), for any number of steps, after
    the state (B, C, N) of earlier ones if direction is +1.
    """
    if direction < 0:
        return conv_modal(x.flip(2), modes, +1).flip(2)
    poles, residues = modes
    blocks, step = block_steps(x)
    taps = (residues[..., None] * powers(poles, step)).sum(1)  # (C, BLOCK)
    lag = step - step[:, None]
    matrix = torch.where(lag >= 0, taps[:, lag.clamp(min=0)], 0.0)  # (C, BLOCK, BLOCK)
    y = torch.einsum("bcmj,cji->bcmi", blocks, matrix)
    weights = residues[..., None] * powers(poles, step + 1)
    y += torch.einsum("bcmn,cni->bcmi", modal_states(blocks, poles, state), weights)
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
    x: Tensor, modes: tuple[Tensor, Tensor], state: Tensor, ends: Tensor | None = None
) -> Tensor:
    """The state (B, C, N) after the last step of x, of that before the first; or after as many
    steps as `ends` says of each row.
    """
    poles, _ = modes
    x, steps = row_ends(x, ends)
    early = functional.pad(x, (-x.shape[2] % BLOCK, 0))  # blocks that end with x
    blocks = functional.pad(early, (0, BLOCK)).unflatten(2, (-1, BLOCK))
    added = modal_states(blocks, poles)[:, :, -1]
    return state + (torch.expm1(poles * steps) * state + added)


def mode_gradient_modal(
    grad: Tensor, x: Tensor, modes: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradients of poles and of residues, (C, N) each: of conv_modal(x, modes, +1) for the
    gradient `grad` of its result.
    """
    poles, residues = modes
    blocks, step = block_steps(x)
    grads, _ = block_steps(grad)
    before = modal_states(blocks, poles)
    after = modal_states(grads.flip(2, 3), poles).flip(2)
    products = torch.einsum("bcmj,bcmi->cji", blocks, grads)
    lags = [torch.diagonal(products, j, 1, 2).sum(1) for j in range(BLOCK)]
    near = powers(poles, step) * torch.stack(lags, 1)[:, None]
    ahead = powers(poles, step + 1) * torch.einsum("bcmn,bcmi->cni", before, grads)
    behind = powers(poles, BLOCK - step) * torch.einsum("bcmn,bcmj->cnj", after, blocks)
    both = torch.exp(poles * (BLOCK + 1)) * torch.einsum("bcmn,bcmn->cn", before, after)
    by_pole = (step * near + (step + 1) * ahead + (BLOCK - 1 - step) * behind).sum(2)
    return residues * (by_pole + BLOCK * both), (near + ahead).sum(2)


def modal_taps(modes: tuple[Tensor, Tensor], length: int) -> Tensor:
    """taps[j] = sum_n residues[n] exp(poles[n] j) for j < length: (C, length)."""
    poles, residues = modes
    step = torch.arange(length, device=poles.device)
    taps = poles.new_zeros(len(poles), length)
    for mode in range(poles.shape[1]):  # one after the other: all at once are large
        taps += residues[:, mode, None] * torch.exp(poles[:, mode, None] * step)
    return taps


def mode_gradient_fft(
    grad: Tensor, x: Tensor, modes: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """mode_gradient_modal by FFT."""
    poles, residues = modes
    length = x.shape[2]
    lags = tap_gradient_fft(grad, x, length)
    step = torch.arange(length, device=x.device)
    by_pole, by_residue = torch.zeros_like(poles), torch.zeros_like(poles)
    for mode in range(poles.shape[1]):
        weighted = torch.exp(poles[:, mode, None] * step) * lags
        by_pole[:, mode] = (step * weighted).sum(1)
        by_residue[:, mode] = weighted.sum(1)
    return residues * by_pole, by_residue
