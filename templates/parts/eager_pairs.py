"""Plain-PyTorch helpers for pairs of complex modes: taps[j] = 2 Re sum_n R_n exp(a_n j).

Exponentials are computed in double precision, because angles of many steps are large, and rounded
to the precision of the activations.
"""

import torch
from torch import Tensor
from torch.nn import functional

from templates.parts.eager import BLOCK, block_steps, row_ends, tap_gradient_fft


def poles_and_residues(modes: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Log-poles a and residues 2 R, complex128 (C, N)."""
    log_poles, frequencies, real, imag = (x.double() for x in modes)
    return torch.complex(log_poles, frequencies), 2 * torch.complex(real, imag)


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


def by_parts(by_pole: Tensor, by_residue: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The gradients by real and imaginary parts of a and R; by_pole has the factor 2 in it."""
    parts = (by_pole.real, -by_pole.imag, 2 * by_residue.real, -2 * by_residue.imag)
    return tuple(part.to(dtype) for part in parts)


def modal_taps(modes: tuple[Tensor, ...], length: int) -> Tensor:
    """taps[j] = 2 Re sum_n R_n exp(a_n j) for j < length: (C, length)."""
    poles, residues = poles_and_residues(modes)
    step = torch.arange(length, device=poles.device)
    taps = modes[0].new_zeros(len(poles), length)
    for mode in range(poles.shape[1]):  # one after the other: all at once are large
        taps += (residues[:, mode, None] * torch.exp(poles[:, mode, None] * step)).real
    return taps


def mode_gradient_fft(grad: Tensor, x: Tensor, modes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """mode_gradient_modal by FFT."""
    poles, residues = poles_and_residues(modes)
    length = x.shape[2]
    lags = tap_gradient_fft(grad, x, length)
    step = torch.arange(length, device=x.device)
    by_pole, by_residue = torch.zeros_like(poles), torch.zeros_like(poles)
    for mode in range(poles.shape[1]):
        weighted = torch.exp(poles[:, mode, None] * step) * lags
        by_pole[:, mode] = (step * weighted).sum(1)
        by_residue[:, mode] = weighted.sum(1)
    return by_parts(residues * by_pole, by_residue, x.dtype)
