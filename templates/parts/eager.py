"""Plain-PyTorch helpers: the path of generated files on a CPU, and of the `fft` algorithm
everywhere.

Activations are (B, C, L), taps (C, K) with lag 0 first, C the channels of one chunk.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional


def chunks(channels: int, width: int, bytes_per_channel: int, budget: int) -> Iterator[slice]:
    """Slices of channels whose temporaries stay below `budget` bytes, at least one channel each.

    A slice is whole groups of `width` channels, or lies within one group. An empty batch has none.
    """
    if bytes_per_channel == 0:
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
