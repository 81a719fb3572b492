"""What combinations of a description are refused, beyond what its types say."""

from __future__ import annotations

import builtins
import keyword
import math
import re
import sys
from collections.abc import Iterator
from typing import Any

from sh2gen.base.errors import Sh2genError
from sh2gen.spec.language import (
    DEFAULT_WORKLOADS,
    Activation,
    Bias,
    ContextSpec,
    DecaySpec,
    Description,
    DType,
    Exchange,
    FilterKind,
    Sharding,
    Skip,
    TapOrder,
    plain_value,
)
from sh2gen.spec.words import show

_MAX_INT = 2**31 - 1  # kernels take sizes as 32-bit integers
_MAX_ELEMENTS = 2**40  # of one tensor: 2 TiB in bfloat16, more than any GPU holds
# A generated file is named after its operator: beside other files it must not hide a module.
_RESERVED = {"sh2gen", "torch", "triton", "tl", "numpy", *sys.stdlib_module_names}
_RESERVED.update(dir(builtins), keyword.kwlist, keyword.softkwlist)


class RuleError(Sh2genError):
    """A broken rule. `path` is the value to point at, as in "workloads[0].batch" ("" for all)."""

    def __init__(self, code: str, path: str, message: str, *, help: str | None = None) -> None:
        super().__init__(code, message, help=help)
        self.args = (code, path, message)  # for pickle
        self.path = path


def problems(spec: Description) -> Iterator[RuleError]:
    """Every rule of the language that the types alone do not say."""
    yield from _name_problems(spec.op)
    yield from _range_problems(spec)
    yield from _filter_problems(spec)
    if spec.activation is not Activation.NONE and (spec.gates.pre or spec.gates.post):
        yield RuleError(
            "S006",
            "activation",
            f"activation {spec.activation} with a gate: it is for single-input operators",
            help="write `activation: none`, or drop the gates",
        )
    if spec.bias is Bias.GATED and spec.skip is not Skip.NONE:
        yield RuleError(
            "S006",
            "bias",
            f"bias gated with skip {spec.skip}: both are a weight times z",
            help="write `skip: channel` and `bias: none`",
        )
    if spec.dtype.accumulate is not DType.FLOAT32:
        yield RuleError(
            "S006", "dtype.accumulate", f"sums are float32, they cannot be {spec.dtype.accumulate}"
        )
    if spec.state is not None:
        if not (spec.state.initial or spec.state.final):
            yield RuleError(
                "S006",
                "state",
                "a state that is neither taken in nor given out",
                help="write `state: none`, or set `initial` or `final` to true",
            )
        if spec.filter.kind is FilterKind.MODAL and spec.state.dtype is not DType.FLOAT32:
            yield RuleError("S006", "state.dtype", "the state of a modal filter is float32")
    if spec.context is not None:
        if spec.state is not None and not (spec.state.initial and spec.state.final):
            yield RuleError(
                "S006",
                "state",
                "ranks take and give the state of their chunks",
                help="leave `state` out, or write `state: {initial: true, final: true}`",
            )
        yield from _whole_problems(spec)
        modal = spec.filter.kind is FilterKind.MODAL
        finite_only = (Exchange.HALO, Exchange.HALO_OVERLAPPED)
        if modal and spec.context.exchange in finite_only:
            yield RuleError(
                "S006",
                "context.exchange",
                f"exchange {spec.context.exchange} with a modal filter: its past has no end",
                help="write `exchange: state`, or `auto`",
            )
        if not modal and spec.context.exchange is Exchange.STATE:
            yield RuleError(
                "S006",
                "context.exchange",
                f"exchange state with a filter of kind {spec.filter.kind}: it is for modal",
                help="write `exchange: halo`, or `auto`",
            )
    for name, shape, path in _tensors(spec):
        if math.prod(shape) > _MAX_ELEMENTS:
            sizes = ", ".join(map(str, shape))
            yield RuleError(
                "S005", path, f"{name} would have shape ({sizes}), more than any GPU holds"
            )


def _whole_problems(spec: Any) -> Iterator[RuleError]:
    """Of exchanges in which a filter is applied to whole sequences."""
    assert spec.context is not None
    exchange, ranks = spec.context.exchange, spec.context.ranks
    other = "state" if spec.filter.kind is FilterKind.MODAL else "halo"
    serves = f"write `exchange: {other}`, which serves any number"
    units = spec.channels if spec.filter.groups == 1 else spec.filter.groups
    if exchange in (Exchange.ALL_TO_ALL, Exchange.ALL_TO_ALL_PIPELINED) and units % ranks:
        what = "channels" if spec.filter.groups == 1 else "groups"
        problem = f"exchange {exchange} over {ranks} ranks, which do not divide {units} {what}"
        yield RuleError("S006", "context.ranks", problem, help=serves)
    if exchange is Exchange.P2P_FFT:
        chunks = ranks * (1 + (spec.context.sharding is Sharding.ZIGZAG))
        if ranks & (ranks - 1):
            problem = f"exchange {exchange} over {ranks} ranks, which are no power of 2"
            yield RuleError("S006", "context.ranks", problem, help=serves)
        for workload in spec.workloads:
            if workload.length % chunks:
                problem = f"exchange {exchange} of {workload.length} steps in {chunks} chunks"
                yield RuleError("S006", "workloads", f"{problem} of one length", help=serves)
    piped = (Exchange.AUTO, Exchange.ALL_TO_ALL_PIPELINED)
    if spec.context.segments != ContextSpec(ranks=1).segments and exchange not in piped:
        problem = f"segments with exchange {exchange}: they are for all_to_all_pipelined"
        yield RuleError("S006", "context.segments", problem, help="leave `segments` out")


def _name_problems(op: str) -> Iterator[RuleError]:
    """The name becomes a file, a class and a torch operator: ASCII, and hiding nothing."""
    if re.fullmatch(r"[a-z][a-z0-9_]{0,63}", op) is None:
        yield RuleError(
            "S007",
            "op",
            f"{show(op)} is not an operator name",
            help="a lower-case letter, then a-z, 0-9 and _, 64 at most: `op: hyena_se`",
        )
    if op in _RESERVED:
        message = (
            f"the operator name `{op}` is taken: Python or PyTorch has something of that name"
        )
        yield RuleError("S007", "op", message, help=f"try `{op}_conv`")


def _range_problems(spec: Description) -> Iterator[RuleError]:
    """Every integer of the description lies in 1 ... 2**31 - 1."""
    for path, value in _integers(plain_value(spec), ""):
        if value < 1:
            yield RuleError("S005", path, f"{path} is {value}; it must be at least 1")
        if value > _MAX_INT:
            yield RuleError("S005", path, f"{path} is larger than {_MAX_INT}, the largest size")
    if (rows := len(spec.inputs) * spec.channels) > _MAX_INT:
        roles = ", ".join(spec.inputs)
        message = f"{roles} of {spec.channels} channels have {rows} rows: more than {_MAX_INT}"
        yield RuleError("S005", "channels", message)
    if not spec.workloads:
        yield RuleError(
            "S005",
            "workloads",
            "no workload",
            help="for example `workloads: [{batch: 1, length: 8192}]`",
        )


def _filter_problems(spec: Description) -> Iterator[RuleError]:
    """What each kind of filter needs and excludes."""
    inner, kind = spec.filter, spec.filter.kind
    if spec.channels % inner.groups:
        small = [d for d in range(1, math.isqrt(spec.channels) + 1) if spec.channels % d == 0]
        divisors = sorted({*small, *(spec.channels // d for d in small)})
        near = sorted(divisors, key=lambda d: abs(d - inner.groups))[:2]
        yield RuleError(
            "S006",
            "filter.groups",
            f"{inner.groups} groups do not divide {spec.channels} channels",
            help=f"the nearest that do: {' and '.join(map(str, sorted(near)))}",
        )
    for name, owner, example in (
        ("decay", FilterKind.DECAY, f"`decay: {DecaySpec.EXAMPLE}`"),
        ("modes", FilterKind.MODAL, "`modes: 16`"),
        (
            "parametrisation",
            FilterKind.MODAL,
            "`parametrisation: log_poles`, or `p_gamma`, or `complex` for conjugate pairs",
        ),
    ):
        given = getattr(inner, name) is not None
        if given and kind is not owner:
            yield RuleError(
                "S006",
                f"filter.{name}",
                f"`{name}` with a filter of kind {kind}: it belongs to kind {owner}",
                help=f"remove `{name}`, or write `kind: {owner}`",
            )
        if not given and kind is owner:
            message = f"a filter of kind {kind} needs `{name}`"
            yield RuleError("S003", "filter", message, help=f"for example {example}")
    if kind is FilterKind.MODAL:
        if inner.length is not None:
            yield RuleError(
                "S006",
                "filter.length",
                "`length` with a filter of kind modal, which spans the whole sequence",
                help="remove `length`",
            )
        if inner.taps is not TapOrder.LAG_FIRST:
            yield RuleError(
                "S006",
                "filter.taps",
                "`taps` with a filter of kind modal, which stores poles and no taps",
                help="remove `taps`",
            )
    elif inner.length is None:
        yield RuleError(
            "S003",
            "filter",
            f"a filter of kind {kind} needs `length`, its number of taps",
            help="for example `length: 7`",
        )
    if inner.decay is not None:
        if inner.length is not None and inner.decay.cache_length < inner.length:
            yield RuleError(
                "S006",
                "filter.decay.cache_length",
                f"cache_length {inner.decay.cache_length} is less than the {inner.length} taps",
                help="it is the length over which the decay is defined, at least the filter's own",
            )
        if inner.groups % inner.decay.repeats:
            yield RuleError(
                "S006",
                "filter.decay.repeats",
                f"{inner.decay.repeats} repeats do not divide {inner.groups} groups",
            )


def _tensors(spec: Description) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Every tensor of a call: what it is, its shape, and the path of the value to blame."""
    owners = {"featurizer": "featurizer.length", "skip": "channels", "bias": "channels"}
    for parameter in spec.parameters:
        # Filters of all kinds live in `filter`; modal ones under several names.
        yield (
            f"parameter `{parameter.name}`",
            parameter.shape,
            owners.get(parameter.name, "filter"),
        )
    for i, workload in enumerate(spec.workloads):
        shape = (workload.batch, workload.length, len(spec.inputs) * spec.channels)
        if spec.workloads == DEFAULT_WORKLOADS:  # then nothing stands there to point at
            yield f"the input of {workload.length} steps", shape, "channels"
        else:
            yield "the input of this workload", shape, f"workloads[{i}]"


def _integers(plain: Any, path: str) -> Iterator[tuple[str, int]]:
    """Every integer in a plain value with its path: ("workloads[0].batch", 1)."""
    if isinstance(plain, int) and not isinstance(plain, bool):
        yield path, plain
    elif isinstance(plain, dict):
        for key, value in plain.items():
            yield from _integers(value, f"{path}.{key}".lstrip("."))
    elif isinstance(plain, list):
        for i, value in enumerate(plain):
            yield from _integers(value, f"{path}[{i}]")
