"""What a baseline is, and what several of them need.

A baseline says of a spec what part of it it computes (all of it, or which steps it leaves out),
or why it computes none. Prepared for a length, it turns inputs and parameters into the tensors
that it wants, in its own layout and dtypes; that is not part of its time. Both steps are
differentiable, so that every gradient of a baseline can be compared with float64.

Packages are called as their documentation says, and none of them is imported before it is asked
for. Notation: B batch, L length, D channels, G filter groups, K taps, F taps of the featurizer.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sh2gen.graph.reference import filter_taps
from sh2gen.spec.language import Activation, Bias, FilterKind, GateSpec, Projection, Skip, TapOrder
from sh2gen.spec.operator import OpSpec

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a baseline computes: an operator, and the steps of the whole that it leaves out."""

    spec: OpSpec
    without: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        return not self.without


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """A baseline for one operator, length and dtype.

    Attributes:
        convert: inputs (B, D, L) in the io dtype and float32 parameters, by their names in the
            spec -> the tensors that `call` takes. Differentiable, and not timed.
        call: those tensors -> y, in the baseline's layout.
        canonical: y -> a view of it as (B, D, L).
    """

    convert: Callable[[Tensors, Tensors], Tensors]
    call: Callable[[Tensors], Tensor]
    canonical: Callable[[Tensor], Tensor] = lambda y: y


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """One way of computing operators.

    Attributes:
        name: as `--baselines` takes it.
        does: what it is, in a few words.
        layout: of activations, as it wants them.
        computes: which part of an operator it computes, or why none.
        prepare: for the operator of that part, a length and the io dtype. Whatever it raises is
            why the baseline cannot run; ImportError: it is not there.
        package: what must be installed, if anything.
        fits: why it does not take a length, or None.
        differentiable: whether it has a backward.
    """

    name: str
    does: str
    layout: str
    computes: Callable[[OpSpec], Part | str]
    prepare: Callable[[OpSpec, int, torch.dtype], Implementation]
    package: str | None = None
    fits: Callable[[OpSpec, int], str | None] = lambda spec, length: None
    differentiable: bool = True


def part(spec: OpSpec, *, featurizer: bool = True, gates: bool = True, modes: bool = True) -> Part:
    """The operator without its state, which no baseline gives, and without what is False.

    Args:
        modes: False takes the taps of a modal filter as given.
    """
    without = []
    if spec.featurizer is not None and not featurizer:
        spec = dataclasses.replace(spec, featurizer=None)
        without.append("featurizer")
    if (spec.gates.pre or spec.gates.post) and not gates:
        spec = dataclasses.replace(spec, gates=GateSpec())
        without.append("gates")
    if modal(spec) and not modes:
        without.append("making the filter from its modes")
    if spec.state is not None:
        spec = dataclasses.replace(spec, state=None)
        without.append("state")
    return Part(spec=spec, without=tuple(without))


def taps_of(spec: OpSpec) -> int | None:
    """K, or None for a modal filter, which is as long as the sequence."""
    return spec.filter.length


def modal(spec: OpSpec) -> bool:
    return spec.filter.kind is FilterKind.MODAL


def given_taps(
    spec: OpSpec, parameters: Mapping[str, Tensor], length: int, *, folded: bool = False
) -> Tensor:
    """The filter of every channel (D, min(K, L)), lag 0 first, in float32.

    Args:
        folded: a weight of z is added to the tap of lag 0, which is the same operator.
    """
    taps = per_channel(spec, filter_taps(spec, parameters, length))
    weight = weight_of_z(spec, parameters)
    if folded and weight is not None:
        taps = torch.cat((taps[:, :1] + weight[:, None], taps[:, 1:]), 1)
    return taps


def per_channel(spec: OpSpec, rows: Tensor) -> Tensor:
    """A row for every channel, of rows that D / R consecutive channels share."""
    width = spec.channels // len(rows)
    return rows if width == 1 else rows.repeat_interleave(width, 0)


def weight_of_z(spec: OpSpec, parameters: Mapping[str, Tensor]) -> Tensor | None:
    """The factor (D,) of z that is added to the convolution, by whatever name."""
    if spec.skip is not Skip.NONE:
        return per_channel(spec, parameters["skip"])
    return parameters["bias"] if spec.bias is Bias.GATED else None


def ungated_bias(spec: OpSpec, parameters: Mapping[str, Tensor]) -> Tensor | None:
    return parameters["bias"] if spec.bias is Bias.UNGATED else None


def featurizer_rows(spec: OpSpec, weight: Tensor, *, order: TapOrder) -> list[Tensor]:
    """The featurizer of each input, (D, F), with its taps in this order."""
    assert spec.featurizer is not None
    n = len(spec.inputs)
    if spec.layout.projection is Projection.THIRDS:
        rows = list(weight.chunk(n))
    else:
        rows = [weight[i::n] for i in range(n)]
    return rows if order is spec.featurizer.taps else [r.flip(1) for r in rows]


def log_poles_of(parameters: Mapping[str, Tensor]) -> Tensor:
    """The log-poles (G, N) of a modal filter, however they are stored."""
    if "log_poles" in parameters:
        return parameters["log_poles"]
    return -torch.exp(parameters["p"]) * torch.exp(parameters["gamma"])


def imported(names: Sequence[str], attribute: str) -> Any:
    """An attribute of the first of these modules that has it: packages move their functions."""
    problems = []
    for name in names:
        try:
            return getattr(importlib.import_module(name), attribute)
        except (ImportError, AttributeError) as error:
            problems.append(str(error))
    raise ImportError("; ".join(dict.fromkeys(problems)))


def no_gates_or_featurizer(spec: OpSpec) -> str | None:
    if spec.gates.pre or spec.gates.post:
        return "it has no gates"
    return "it has no featurizer" if spec.featurizer is not None else None


def taps_problem(spec: OpSpec, least: int, most: int) -> str | None:
    taps = taps_of(spec)
    if taps is None:
        return "it convolves with taps, and this filter is made of modes"
    if not least <= taps <= most:
        return f"it takes {least} to {most} taps, and this filter has {taps}"
    return None


def short_tensors(spec: OpSpec, parameters: Tensors, length: int) -> Tensors:
    """`weight` (D, K), its last tap for lag 0, and `bias` (D,) if there is one."""
    taps = given_taps(spec, parameters, max(length, taps_of(spec) or 0), folded=True)
    made = {"weight": taps.flip(1).contiguous()}
    if (bias := ungated_bias(spec, parameters)) is not None:
        made["bias"] = bias
    return made


def silu(spec: OpSpec) -> str | None:
    return "silu" if spec.activation is Activation.SILU else None
