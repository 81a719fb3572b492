"""The eager meaning of graphs: what they say of whole sequences, in torch.

B batch, D channels, L time steps, K taps of a row of a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional

from sh2gen.graph.nodes import (
    Add,
    ChannelSum,
    Conv,
    Graph,
    Input,
    ModeGradient,
    Modes,
    Multiply,
    Parameter,
    ParameterView,
    Scale,
    Shift,
    Silu,
    SiluGradient,
    TapGradient,
)
from sh2gen.spec.language import TapOrder
from sh2gen.spec.operator import OpSpec

Tensors = Mapping[str, Tensor]


def evaluate(
    graph: Graph,
    spec: OpSpec,
    inputs: Tensors,
    parameters: Tensors,
    *,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """The outputs of a graph by name, in order.

    Args:
        inputs: every `Input` of the graph -> (B, D, L); others are ignored.
        parameters: every tensor that the graph reads, a decay filter with its decay applied.
        dtype: of all arithmetic.

    Returns:
        Activations are (B, D, L). Gradients of parameters are (R, K) or (R,), the R rows of their
        view in the stored order of taps; `parameter_gradients` puts these together.
    """
    values: dict[str, Tensor] = {}
    like = inputs[graph.inputs[0]].to(dtype)
    for node in graph.nodes:
        match node:
            case Input(out=out):
                values[out] = inputs[out].to(dtype)
            case Parameter(view=view):
                taps = channel_taps(spec, view, parameters[view.tensor].to(dtype))  # (D, K)
                values[node.out] = taps[..., None]  # (D, K, 1)
            case Modes():
                values[node.out] = modal_filter(spec, node, parameters, like)[..., None]
            case Conv(x=x, taps=taps_name, direction=direction):
                signal, taps = values[x], values[taps_name]
                values[node.out] = torch.zeros_like(signal)
                for lag in range(min(taps.shape[1], signal.shape[2])):
                    values[node.out] += taps[:, lag] * delayed(signal, direction * lag)
            case Multiply(a=a, b=b):
                values[node.out] = values[a] * values[b]
            case Add(a=a, b=b):
                values[node.out] = values[a] + values[b]
            case Scale(x=x, factor=factor):
                values[node.out] = values[factor][:, 0] * values[x]
            case Shift(x=x, offset=offset):
                values[node.out] = values[offset][:, 0] + values[x]
            case Silu(x=x):
                values[node.out] = functional.silu(values[x])
            case SiluGradient(grad=grad, x=x):
                values[node.out] = values[grad] * silu_slope(values[x])
            case TapGradient(grad=grad, x=x, view=view):
                assert view.length is not None
                lags = [
                    (values[grad] * delayed(values[x], lag)).sum((0, 2))
                    if lag < values[x].shape[2]
                    else values[x].new_zeros(spec.channels)
                    for lag in range(view.length)
                ]
                values[node.out] = view_rows(spec, view, torch.stack(lags))
            case ModeGradient(grad=grad, x=x, modes=modes):
                found = graph.modes(modes)
                by_lag = long_gradient(values[grad], values[x], like.shape[2])
                sums = mode_sums(spec, found, parameters, by_lag)
                rows = [view_rows(spec, found.views[0], by_channel.T) for by_channel in sums]
                values[node.out] = torch.stack(rows)
            case ChannelSum(x=x, view=view):
                values[node.out] = view_rows(spec, view, values[x].sum((0, 2))[None])
            case _:
                assert_never(node)
    return {name: values[name] for name in graph.outputs}


def parameter_gradients(graph: Graph, spec: OpSpec, outputs: Tensors) -> dict[str, Tensor]:
    """The gradients of parameters among the outputs of a backward graph, in their shapes."""
    shapes = {p.name: p.shape for p in spec.parameters}
    gradients: dict[str, Tensor] = {}
    for name, value in outputs.items():
        node = graph.by_name[name]
        if isinstance(node, ModeGradient):
            modes = graph.modes(node.modes)
            gradients |= dict(zip((view.tensor for view in modes.views), value, strict=True))
        if isinstance(node, TapGradient | ChannelSum):
            tensor = node.view.tensor
            if tensor not in gradients:
                gradients[tensor] = value.new_zeros(shapes[tensor])
            gradients[tensor][view_slice(spec, node.view)] += value
    return gradients


def delayed(x: Tensor, steps: int) -> Tensor:
    """x[t - steps], zero where that is outside the sequence; fewer steps than it has."""
    length = x.shape[2]
    if steps >= 0:
        return functional.pad(x[..., : length - steps], (steps, 0))
    return functional.pad(x[..., -steps:], (0, -steps))


def silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s + x * s * (1 - s)


def view_slice(spec: OpSpec, view: ParameterView) -> slice:
    """Which rows of the parameter tensor a view reads: one for every `width` channels."""
    rows = spec.channels // view.width
    if view.interleaved:
        return slice(view.role, None, view.roles)
    return slice(view.role * rows, (view.role + 1) * rows)


def channel_taps(spec: OpSpec, view: ParameterView, tensor: Tensor) -> Tensor:
    """The row of each channel, lag 0 first: (D, K), K = 1 for a vector."""
    rows = tensor[view_slice(spec, view)].reshape(spec.channels // view.width, -1)
    if view.order is TapOrder.LAG_LAST:
        rows = rows.flip(1)
    return rows.repeat_interleave(view.width, dim=0)


def view_rows(spec: OpSpec, view: ParameterView, lags: Tensor) -> Tensor:
    """The adjoint of channel_taps, of sums by lag and channel (K, D): (R, K), or (R,)."""
    rows = lags.reshape(len(lags), -1, view.width).sum(2).T
    if view.order is TapOrder.LAG_LAST:
        rows = rows.flip(1)
    return rows if view.length else rows[:, 0]


def poles_residues(
    spec: OpSpec, modes: Modes, parameters: Tensors, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Poles and residues of every channel, (D, N) each; complex ones of pairs."""
    rows = [channel_taps(spec, view, parameters[view.tensor].to(like)) for view in modes.views]
    if modes.pairs:
        return torch.complex(rows[0], rows[1]), torch.complex(rows[2], rows[3])
    return rows[0], rows[1]


def mode_taps(poles: Tensor, like: Tensor) -> Tensor:
    """exp(a j) of every channel and mode, j along the last axis of `like`: (D, N, L)."""
    steps = torch.arange(like.shape[-1], dtype=like.dtype, device=like.device)
    return torch.exp(poles[..., None] * steps)


def modal_filter(spec: OpSpec, modes: Modes, parameters: Tensors, like: Tensor) -> Tensor:
    """The taps of every channel, lag 0 first, one for each step of `like`: (D, L)."""
    poles, residues = poles_residues(spec, modes, parameters, like)
    taps = (residues[..., None] * mode_taps(poles, like)).sum(1)
    return 2 * taps.real if modes.pairs else taps


def mode_sums(spec: OpSpec, modes: Modes, parameters: Tensors, lags: Tensor) -> Tensor:
    """Gradients of `modes.views` by channel, (2, D, N) or (4, D, N), from those of all taps
    (L, D).
    """
    poles, residues = poles_residues(spec, modes, parameters, lags)
    weighted = mode_taps(poles, lags.T) * lags.T[:, None]  # (D, N, L)
    steps = torch.arange(len(lags), dtype=lags.dtype, device=lags.device)
    both = torch.stack((residues * (weighted * steps).sum(2), weighted.sum(2)))
    if modes.pairs:  # of 2 Re(R exp(a j)) by a part of a or R: 2 Re, or, of imaginary ones, -2 Im
        return torch.stack((2 * both.real, -2 * both.imag), 1).flatten(0, 1)
    return both


def long_gradient(grad: Tensor, x: Tensor, length: int) -> Tensor:
    """sum over batch and time of grad[t] x[t - j] for every lag j: (length, D)."""
    lags = x.new_zeros(length, x.shape[1])
    for lag in range(min(length, x.shape[2])):
        lags[lag] = (grad * delayed(x, lag)).sum((0, 2))
    return lags
