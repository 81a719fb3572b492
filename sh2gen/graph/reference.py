"""The operator in float64, from its description alone: what plans and kernels are judged against.

Nothing here knows of graphs, plans or blocks. The convolution is computed in two ways that share
no arithmetic, an FFT and a direct sum over taps, so that they check each other.

Notation: B batch, L length, D channels, G filter groups, K taps, F taps of the featurizer,
n inputs. `sh2gen.spec` states the mathematics. Activations are (B, D, L) here whatever their
layout in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sh2gen.base.errors import Sh2genError
from sh2gen.spec.language import Activation, Bias, FilterKind, Projection, Skip, TapOrder
from sh2gen.spec.operator import OpSpec

Method = Literal["fft", "direct"]

# The parameters in which the result is not linear: they make the poles of a modal filter.
POLES = frozenset({"p", "gamma", "log_poles", "frequencies"})

_TERMS = 2**18  # of modes and steps that are computed at once

# |silu'| <= 1.0999 and |silu''| <= 0.5, rounded up.
SILU_SLOPE = 1.1
SILU_CURVATURE = 0.5


def reference(
    spec: OpSpec,
    inputs: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    *,
    method: Method = "fft",
    absolute: bool = False,
    groups: Sequence[int] | None = None,
    left_context: Mapping[str, Tensor] | None = None,
    ends: Sequence[int] | None = None,
) -> Tensor:
    """The output of the operator in float64, differentiable by autograd.

    Args:
        inputs: every name of `spec.inputs` -> (B, D, L), any floating dtype.
        parameters: every name of `spec.parameters` -> its shape. A freeform filter may have
            fewer taps.
        method: how convolutions are computed. The error of "fft" is relative to the largest
            values of a row, that of "direct" to each element, at a cost that grows with K.
        absolute: the same operator on absolute values, so that no two terms cancel; silu becomes
            1.1 times the identity. It is the scale of the rounding errors in each element
            (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1).
        groups: the tensors hold only the channels of these filter groups, in this order, as
            `sample_groups` cuts them out.
        left_context: every input name -> (B, D, P), the P samples before `inputs`; absent: zeros.
        ends: the steps behind the documents that rows hold, one after another, from step 0 to L;
            absent: each row is one.

    Returns:
        y (B, D, L), float64, where D counts the channels of `groups`.

    Raises:
        Sh2genError: C001, a tensor is missing, unknown or of another shape.
    """
    groups = range(spec.filter.groups) if groups is None else groups
    _check_shapes(spec, inputs, parameters, len(groups))
    past = 0
    if left_context is not None:
        past = next(iter(left_context.values())).shape[-1]
        inputs = {name: torch.cat((left_context[name], x), dim=-1) for name, x in inputs.items()}
    acts = {name: x.to(torch.float64) for name, x in inputs.items()}
    params = {name: p.to(torch.float64) for name, p in parameters.items()}
    if absolute:
        acts, params = _magnitudes(acts), _magnitudes(params)
    return _documents(spec, acts, params, method, absolute, groups, ends)[..., past:]


def reference_gradients(
    spec: OpSpec,
    inputs: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    dy: Tensor,
    *,
    method: Method = "fft",
    absolute: bool = False,
    groups: Sequence[int] | None = None,
    ends: Sequence[int] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradient of <y, dy> by every input and parameter, in float64.

    Args:
        dy: (B, D, L), the gradient that arrives from above.
        absolute: sums of absolute values instead, the scale of the rounding errors in each
            element of the output and of the gradients.
        inputs, parameters, method, groups, ends: as in `reference`.

    Returns:
        y (B, D, L), and name -> gradient, in the shape of that input or parameter.
    """

    groups = range(spec.filter.groups) if groups is None else groups
    _check_shapes(spec, inputs, parameters, len(groups))
    # Copies: the caller's own tensors never collect gradients.
    acts, params = (
        {name: t.detach().to(torch.float64, copy=True) for name, t in tensors.items()}
        for tensors in (inputs, parameters)
    )
    above = dy.detach().to(torch.float64)
    if absolute:
        # Before differentiating: |x| has no slope at 0, where a gradient has terms all the same.
        acts, params, above = _magnitudes(acts), _magnitudes(params), above.abs()
    leaves = acts | params
    with torch.enable_grad():
        for leaf in leaves.values():
            leaf.requires_grad_()
        y = _documents(spec, acts, params, method, absolute, groups, ends)
        grads = torch.autograd.grad(y, list(leaves.values()), above)
    named = dict(zip(leaves, grads, strict=True))
    if absolute:  # the derivative by a pole is negative throughout
        named = {name: grad.abs() for name, grad in named.items()}
    return y.detach(), named


def sample_groups(
    spec: OpSpec, tensors: Mapping[str, Tensor], groups: Sequence[int]
) -> dict[str, Tensor]:
    """The part of each tensor that belongs to some filter groups, over all of time.

    For sizes at which float64 of everything does not fit: compare the same part of a result with
    `reference(spec, ..., groups=groups)` on these tensors. The part has no `OpSpec` of its own,
    because the decay of a group depends on its place among all.

    Args:
        tensors: parameters or their gradients by their names, whole; under any other name,
            activations (B, D, L).
        groups: which filter groups, of range(G).

    Returns:
        name -> the rows of these groups, in the order of `groups`.
    """
    width, roles = spec.group_width, len(spec.inputs)
    group = torch.tensor(groups)
    channel = (group[:, None] * width + torch.arange(width)).flatten()
    if spec.layout.projection is Projection.THIRDS:
        featurizer = (torch.arange(roles)[:, None] * spec.channels + channel).flatten()
    else:
        featurizer = (channel[:, None] * roles + torch.arange(roles)).flatten()
    rows = {p.name: group for p in spec.parameters}
    rows |= {"featurizer": featurizer, "bias": channel}
    if spec.skip is Skip.CHANNEL:
        rows["skip"] = channel

    def take(name: str, tensor: Tensor) -> Tensor:
        dim = 0 if name in rows else 1
        return tensor.index_select(dim, rows.get(name, channel).to(tensor.device))

    return {name: take(name, tensor) for name, tensor in tensors.items()}


def filter_taps(
    spec: OpSpec,
    parameters: Mapping[str, Tensor],
    length: int,
    *,
    absolute: bool = False,
    groups: Sequence[int] | None = None,
) -> Tensor:
    """The inner filter itself, lag 0 first and decay applied: (G, min(K, length)).

    Args:
        parameters: the parameters of `spec`, of which this reads the filter's own.
        length: how many samples it acts on. Later taps cannot matter, and a modal filter has
            one tap per sample.
        absolute: the scale of the rounding errors of each tap instead.
        groups: the parameters hold only these groups.
    """
    if absolute:
        parameters = _magnitudes(parameters)
    return _taps(spec, parameters, length, absolute, groups)


def _taps(
    spec: OpSpec,
    parameters: Mapping[str, Tensor],
    length: int,
    absolute: bool,
    groups: Sequence[int] | None,
) -> Tensor:
    """`filter_taps`, of magnitudes already taken."""
    if spec.filter.kind is FilterKind.MODAL:
        return _modal_taps(parameters, length, absolute)
    stored = parameters["filter"]
    if spec.filter.kind is FilterKind.DECAY:
        stored = decayed_filter(spec, stored, groups=groups)
    return _lag_first(stored, spec.filter.taps)[:, :length]


def decayed_filter(spec: OpSpec, hhat: Tensor, *, groups: Sequence[int] | None = None) -> Tensor:
    """h = hhat exp(-alpha tau) of Hyena-MR (arXiv 2503.01868), both (G, K) in the stored order.

    alpha runs from 10**a to 10**b in equal ratios over one ladder of G / repeats groups, and the
    ladder repeats; tau is the lag over cache_length - 1. The envelope follows the lag: where taps
    are stored last lag first, it is reversed with them.
    """
    decay = spec.filter.decay
    assert decay is not None
    total, (low, high) = spec.filter.groups, decay.preset.exponents
    f64, device = torch.float64, hhat.device
    alpha = torch.logspace(low, high, total // decay.repeats, dtype=f64, device=device)
    alpha = alpha.repeat(decay.repeats)[list(range(total) if groups is None else groups)]
    tau = torch.linspace(0, 1, decay.cache_length, dtype=f64, device=device)[: hhat.shape[1]]
    envelope = torch.exp(-alpha[:, None] * tau)  # (G, K), lag 0 first
    return hhat * _lag_first(envelope, spec.filter.taps).to(hhat.dtype)


def _documents(
    spec: OpSpec,
    acts: dict[str, Tensor],
    params: dict[str, Tensor],
    method: Method,
    absolute: bool,
    groups: Sequence[int],
    ends: Sequence[int] | None,
) -> Tensor:
    """`_operator` of each document alone."""
    if ends is None:
        return _operator(spec, acts, params, method, absolute, groups)
    parts = [
        _operator(
            spec, {n: x[..., begin:end] for n, x in acts.items()}, params, method, absolute, groups
        )
        for begin, end in itertools.pairwise((0, *ends))
        if end > begin
    ]
    return torch.cat(parts, -1)


def _operator(
    spec: OpSpec,
    inputs: dict[str, Tensor],
    parameters: dict[str, Tensor],
    method: Method,
    absolute: bool,
    groups: Sequence[int],
) -> Tensor:
    """The operator itself on float64 tensors; for `absolute`, on magnitudes already taken."""
    acts = _featurize(spec, inputs, parameters, method)
    z = acts["k"] * acts["v"] if spec.gates.pre else acts[spec.inputs[-1]]
    pre = _convolve(_taps(spec, parameters, z.shape[-1], absolute, groups), z, method)
    if spec.skip is not Skip.NONE:
        pre = pre + _per_channel(parameters["skip"][:, None], z.shape[1]) * z
    if spec.bias is Bias.GATED:
        pre = pre + parameters["bias"][:, None] * z
    if spec.bias is Bias.UNGATED:
        pre = pre + parameters["bias"][:, None]
    if spec.gates.post:
        return acts["q"] * pre
    if spec.activation is Activation.SILU:
        return _silu_bound(pre) if absolute else functional.silu(pre)
    return pre


def _magnitudes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Absolute values of everything in which the result is linear."""
    return {name: t if name in POLES else t.abs() for name, t in tensors.items()}


def _featurize(
    spec: OpSpec, inputs: dict[str, Tensor], parameters: dict[str, Tensor], method: Method
) -> dict[str, Tensor]:
    """Each input convolved with its own rows of the featurizer; as it is without one."""
    if spec.featurizer is None:
        return inputs
    weight = _lag_first(parameters["featurizer"], spec.featurizer.taps)  # (n*D, F)
    roles, taps = len(spec.inputs), spec.featurizer.length
    if spec.layout.projection is Projection.THIRDS:
        weight = weight.reshape(roles, -1, taps)  # (n, D, F)
    else:
        weight = weight.reshape(-1, roles, taps).transpose(0, 1)  # (n, D, F)
    return {n: _convolve(weight[i], inputs[n], method) for i, n in enumerate(spec.inputs)}


def _convolve(taps: Tensor, z: Tensor, method: Method) -> Tensor:
    """sum over k of taps[r, k] z[b, d, t - k] -> (B, D, L).

    taps (R, K), lag 0 first, a row for each D / R consecutive channels; z (B, D, L).
    """
    length = z.shape[-1]
    taps = _per_channel(taps[:, :length], z.shape[1])  # (D, K)
    count = taps.shape[-1]
    if method == "fft":
        # Long enough that nothing wraps around; a power of two, where an FFT is most accurate.
        size = 1 << (length + count - 2).bit_length()
        spectrum = torch.fft.rfft(z, size) * torch.fft.rfft(taps, size)
        full: Tensor = torch.fft.irfft(spectrum, size)
        return full[..., :length]
    padded = functional.pad(z, (count - 1, 0))  # (B, D, K-1+L)
    y = torch.zeros_like(z)
    for lag in range(count):
        start = count - 1 - lag
        y = y + taps[:, lag, None] * padded[..., start : start + length]
    return y


def _modal_taps(parameters: Mapping[str, Tensor], length: int, absolute: bool) -> Tensor:
    """h[g, t] = sum over modes of R exp(a t), t < length (Hyena-LI, arXiv 2503.01868): (G, L).

    A relative error e in the exponent a t is one of |a t| e in the exponential: for `absolute`,
    each term counts 1 + |a t| / 8 times (an eighth: an exponent has few roundings).
    """
    if "frequencies" in parameters:
        return _pair_taps(parameters, length, absolute)
    if "log_poles" in parameters:
        poles = parameters["log_poles"]
    else:
        poles = -torch.exp(parameters["p"]) * torch.exp(parameters["gamma"])

    def term(time: Tensor, poles: Tensor, residues: Tensor) -> Tensor:
        exponent = poles[..., None] * time
        terms = residues[..., None] * torch.exp(exponent)
        return terms * (1 + exponent.detach().abs() / 8) if absolute else terms

    return _sum_of_modes(term, length, poles, parameters["residues"])


def _pair_taps(parameters: Mapping[str, Tensor], length: int, absolute: bool) -> Tensor:
    """h[g, t] = 2 Re of the sum over modes of R exp(a t), t < length, R and a complex: (G, L).

    `absolute` takes cos and sin for 1, and counts an error e of the phase as one of e. An angle
    acts modulo a turn: its error grows by one rounding of the factor between blocks of time, of at
    least 32 steps, not with the angle itself.
    """

    def term(
        time: Tensor, poles: Tensor, frequencies: Tensor, real: Tensor, imag: Tensor
    ) -> Tensor:
        exponent, angle = poles[..., None] * time, frequencies[..., None] * time
        if absolute:
            phase = frequencies[..., None].detach().abs().clamp(max=1 / 4) * time
            size = torch.exp(
                exponent + (angle - angle.detach())
            )  # whose slope is that by log-poles
            terms = (real + imag)[..., None] * size
            return 2 * terms * (1 + (exponent.detach().abs() + phase) / 8)
        wave = real[..., None] * torch.cos(angle) - imag[..., None] * torch.sin(angle)
        return 2 * torch.exp(exponent) * wave

    names = ("log_poles", "frequencies", "residues_real", "residues_imag")
    return _sum_of_modes(term, length, *(parameters[name] for name in names))


def _sum_of_modes(term: Callable[..., Tensor], length: int, *modes: Tensor) -> Tensor:
    """The sum over modes of term(time, *modes): (G, length), of modes (G, N).

    (G, N, L) at once is large, and so is what autograd would keep of it: some modes at a time, and
    backward computes their terms again.
    """
    time = torch.arange(length, dtype=modes[0].dtype, device=modes[0].device)
    h = torch.zeros(len(modes[0]), length, dtype=modes[0].dtype, device=modes[0].device)
    some = max(1, _TERMS // h.numel())

    def summed(*part: Tensor) -> Tensor:
        return term(time, *part).sum(1)

    for part in zip(*(torch.split(x, some, dim=1) for x in modes), strict=True):
        h = h + checkpoint(summed, *part, use_reentrant=False, preserve_rng_state=False)
    return h


def _silu_bound(pre: Tensor) -> Tensor:
    """1.1 pre with derivative 1.1 + 0.5 pre, for pre >= 0: how errors pass through silu.

    An error e in pre changes silu(pre) by at most 1.1 e, and the gradient silu'(pre) g by at most
    0.5 e g, beside the error that g brings, of which at most 1.1 passes.
    """
    curved = 0.5 * SILU_CURVATURE * pre * pre
    return SILU_SLOPE * pre + (curved - curved.detach())


def _lag_first(taps: Tensor, order: TapOrder) -> Tensor:
    """Rows of taps with lag 0 first (and back again: it is its own inverse)."""
    return taps.flip(-1) if order is TapOrder.LAG_LAST else taps


def _per_channel(rows: Tensor, channels: int) -> Tensor:
    """(R, K) -> (D, K): a row for every channel, of rows that D / R consecutive ones share."""
    return rows.repeat_interleave(channels // len(rows), dim=0)


def _check_shapes(
    spec: OpSpec, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], groups: int
) -> None:
    """Refuse tensors that would broadcast into a wrong but plausible answer."""
    expected = {
        p.name: (p.shape[0] * groups // spec.filter.groups, *p.shape[1:]) for p in spec.parameters
    }
    for given, names in ((inputs, set(spec.inputs)), (parameters, set(expected))):
        if set(given) != names:
            raise Sh2genError("C001", f"expected tensors {sorted(names)}, got {sorted(given)}")
    channels = groups * spec.group_width
    first = inputs[spec.inputs[0]].shape
    for name, x in inputs.items():
        if x.ndim != 3 or x.shape != first or x.shape[1] != channels or x.shape[2] < 1:
            wanted = f"(B, {channels}, L), the same for all inputs"
            raise Sh2genError("C001", f"`{name}` is {tuple(x.shape)}; expected {wanted}")
    for name, p in parameters.items():
        shape = expected[name]
        fewer = spec.filter.kind is FilterKind.FREEFORM and name == "filter" and p.ndim == 2
        if fewer and 1 <= p.shape[1] <= shape[1]:
            shape = (shape[0], p.shape[1])
        if tuple(p.shape) != shape:
            wrong = f"parameter `{name}` is {tuple(p.shape)}; expected {shape}"
            raise Sh2genError("C001", wrong)
