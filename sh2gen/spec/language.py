"""What the user asked for: an operator description in YAML, as a frozen `OpSpec`.

Two halves. The first is the language: one dataclass per YAML mapping, one enum per closed choice,
and the rules that combine them (`_problems`). The second reads it: `load_spec`, `parse_spec` and
`spec_from_dict` walk the YAML nodes by the annotations of the dataclasses, so a new field is one
line in its dataclass. YAML's own guesses about types (`no`, `1e-3`, `0x10`) play no part, and
every refusal points at the offending text.

Notation: B batch, L samples of the time axis, D channels, G filter groups, K taps of the inner
filter, F taps of the featurizer. "The paper" is arXiv 2503.01868, on StripedHyena 2.

The operator. With f the featurizer on every input (the identity if there is none), and `conv` the
causal convolution over time, (h conv z)[t] = sum over k = 0 .. K-1 of h[k] z[t-k] with z zero
before the first sample:

    z   = f(k) * f(v)                     with a pre gate; else f(v), or f(x) without any gate
    pre = h conv z + skip * z + bias      a gated bias is bias * z instead of bias
    y   = f(q) * pre                      with a post gate; else activation(pre)
"""

from __future__ import annotations

import builtins
import dataclasses
import difflib
import hashlib
import json
import keyword
import math
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import yaml

from sh2gen.base.errors import Location, Sh2genError
from sh2gen.base.files import listed, open_regular
from sh2gen.base.resources import shipped_op, shipped_ops


class FilterKind(StrEnum):
    """Where the inner filter h[g, k] of group g at lag k comes from (the paper, section 2).

    EXPLICIT   h is the parameter: Hyena-SE
    DECAY      h[g, k] = hhat[g, k] exp(-alpha_g tau_k), hhat the parameter: Hyena-MR
    MODAL      h[g, k] = sum over n of R[g, n] exp(a[g, n] k), over the whole sequence: Hyena-LI;
               with parametrisation complex, twice the real part of that: S4D
    FREEFORM   h is a tensor of any number of taps up to `length`
    """

    EXPLICIT = "explicit"
    DECAY = "decay"
    MODAL = "modal"
    FREEFORM = "freeform"


class TapOrder(StrEnum):
    """Which end of a stored filter row is the current sample."""

    LAG_FIRST = "lag_first"  # tap 0 multiplies the current sample (true convolution)
    LAG_LAST = "lag_last"  # the last tap does (cross-correlation, as torch's conv1d stores it)


class DecayPreset(StrEnum):
    """The range of the decay ladder of Hyena-MR."""

    STRONG = "strong"
    NORMAL = "normal"
    WEAK = "weak"

    @property
    def exponents(self) -> tuple[float, float]:
        """(a, b): the rates alpha run from 10**a to 10**b in equal ratios over the groups."""
        return {"strong": (0.0, 2.0), "normal": (-1.0, 2.0), "weak": (-2.0, 2.0)}[self.value]


class Parametrisation(StrEnum):
    """How a modal filter stores its log-poles a and residues R.

    Two of real poles, a < 0; and pairs of complex ones with their conjugates, of which the first
    are stored (S4D, arXiv 2206.11893; H3, arXiv 2212.14052):

        h[k] = sum over n of R[n] exp(a[n] k) + its conjugate = 2 Re sum over n of R[n] exp(a[n] k)
    """

    P_GAMMA = "p_gamma"  # a = -exp(p) exp(gamma): two redundant parameters, as trained
    LOG_POLES = "log_poles"  # a itself
    COMPLEX = "complex"  # a = log_poles + i frequencies, R = residues_real + i residues_imag


class Skip(StrEnum):
    """The weight of z added to the convolution: none, one per channel, or one per group."""

    NONE = "none"
    CHANNEL = "channel"
    GROUP = "group"


class Bias(StrEnum):
    """What a per-channel bias b adds to the convolution: nothing, b z (gated), or b (ungated)."""

    NONE = "none"
    GATED = "gated"
    UNGATED = "ungated"


class Activation(StrEnum):
    """Applied to the output of a single-input operator."""

    NONE = "none"
    SILU = "silu"


class Precision(StrEnum):
    """How far a result may be from float64.

    FAST and BALANCED: 4x and 2x the error of the exact value rounded once to the io dtype.
    EXACT: float32 arithmetic throughout.
    """

    FAST = "fast"
    BALANCED = "balanced"
    EXACT = "exact"


class DType(StrEnum):
    """A floating-point type; `bf16`, `fp16` and `fp32` are read as well."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"

    @classmethod
    def _missing_(cls, value: object) -> DType | None:
        short = {"bf16": cls.BFLOAT16, "fp16": cls.FLOAT16, "fp32": cls.FLOAT32}
        return short.get(value) if isinstance(value, str) else None


class Activations(StrEnum):
    """The layout of activation tensors in memory."""

    AUTO = "auto"  # the compiler chooses
    BLD = "BLD"  # (B, L, D), channels last
    BDL = "BDL"  # (B, D, L), channels first


class Projection(StrEnum):
    """How n inputs lie in one packed tensor of n*D channels: input p of channel c."""

    THIRDS = "thirds"  # at p*D + c: all of q, then all of k, then all of v
    INTERLEAVED = "interleaved"  # at c*n + p: q, k, v of channel 0, then of channel 1, ...


class StateWidth(StrEnum):
    """How many past samples a state holds: causal_conv1d and vortex keep K-1, fla keeps K."""

    K_MINUS_1 = "K-1"
    K = "K"


class Sequences(StrEnum):
    """Whether a batch entry holds one sequence, or several end to end (cu_seqlens)."""

    DENSE = "dense"
    PACKED = "packed"


class Sharding(StrEnum):
    """Which part of the time axis rank r of W holds."""

    ZIGZAG = "zigzag"  # of 2W equal chunks, r and 2W-1-r
    CONTIGUOUS = "contiguous"  # of W equal chunks, r


class Exchange(StrEnum):
    """What ranks send each other: as the paper does, or the carried `state` of a modal filter."""

    AUTO = "auto"
    HALO = "halo"
    HALO_OVERLAPPED = "halo_overlapped"
    ALL_TO_ALL = "all_to_all"
    ALL_TO_ALL_PIPELINED = "all_to_all_pipelined"
    STATE = "state"
    P2P_FFT = "p2p_fft"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecaySpec:
    """The fixed envelope exp(-alpha_g tau_k) of a `decay` filter (Hyena-MR; the paper, section 2).

    alpha is a ladder of G / repeats rates in equal ratios from 10**a to 10**b, the exponents of
    `preset`, tiled `repeats` times over the groups; tau_k = k / (cache_length - 1). Peers disagree
    on cache_length (8192, or the number of taps), and it changes the filter completely: it has no
    default.
    """

    preset: DecayPreset
    cache_length: int
    repeats: int = 1

    EXAMPLE: ClassVar[str] = "{preset: weak, cache_length: 8192}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSpec:
    """The inner filter: G filters over contiguous blocks of channels, c using filter c // (D / G).

    length            K in taps; none only for modal, which spans the sequence; freeform: a maximum
    decay             for kind decay, and only there
    modes             exponentials per group, for kind modal and only there; with complex poles,
                      pairs of them
    parametrisation   for kind modal, and only there
    """

    kind: FilterKind
    length: int | None = None
    groups: int
    taps: TapOrder = TapOrder.LAG_FIRST
    decay: DecaySpec | None = None
    modes: int | None = None
    parametrisation: Parametrisation | None = None

    EXAMPLE: ClassVar[str] = "{kind: explicit, length: 7, groups: 256}"

    @property
    def pairs(self) -> bool:
        """Whether its modes are pairs of complex ones."""
        return self.parametrisation is Parametrisation.COMPLEX

    @property
    def state_size(self) -> int:
        """Real numbers in the state of a channel's modes, 0 without modes."""
        return (2 if self.pairs else 1) * (self.modes or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturizerSpec:
    """The short causal convolution on each input: F taps per channel, no bias (section 2)."""

    length: int
    taps: TapOrder = TapOrder.LAG_LAST

    EXAMPLE: ClassVar[str] = "{length: 3}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSpec:
    """Which elementwise products surround the convolution: k * v before it, q * (...) after it."""

    pre: bool = False
    post: bool = False

    EXAMPLE: ClassVar[str] = "{pre: true, post: true}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DTypeSpec:
    """The type of activations in memory, and of sums (float32 always)."""

    io: DType = DType.BFLOAT16
    accumulate: DType = DType.FLOAT32

    EXAMPLE: ClassVar[str] = "{io: bfloat16}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutSpec:
    """Memory order of activations, and of q, k, v within one packed tensor."""

    activations: Activations = Activations.AUTO
    projection: Projection = Projection.THIRDS

    EXAMPLE: ClassVar[str] = "{activations: BLD, projection: thirds}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpec:
    """The past carried into and out of a call, for chunked prefill and decoding."""

    initial: bool = False
    final: bool = False
    width: StateWidth = StateWidth.K_MINUS_1
    dtype: DType = DType.FLOAT32

    EXAMPLE: ClassVar[str] = "{initial: true, final: true}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSpec:
    """How one sequence is split over ranks, and what they exchange."""

    ranks: int
    sharding: Sharding = Sharding.ZIGZAG
    exchange: Exchange = Exchange.AUTO

    EXAMPLE: ClassVar[str] = "{ranks: 8, sharding: zigzag}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A problem size to optimise for: B sequences of L samples."""

    batch: int
    length: int

    EXAMPLE: ClassVar[str] = "{batch: 1, length: 8192}"


_DEFAULT_WORKLOADS = (Workload(batch=1, length=8192),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterSpec:
    """One trainable float32 tensor. `init` is the chain of torch.Tensor methods that fills it."""

    name: str
    shape: tuple[int, ...]
    init: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpSpec:
    """A whole operator; this module's docstring says what it computes.

    Building one that makes no sense raises Sh2genError, by whatever way it is built.
    """

    op: str
    channels: int  # D
    filter: FilterSpec
    featurizer: FeaturizerSpec | None = None
    gates: GateSpec = GateSpec()
    skip: Skip = Skip.NONE
    bias: Bias = Bias.NONE
    activation: Activation = Activation.NONE
    precision: Precision = Precision.BALANCED
    dtype: DTypeSpec = DTypeSpec()
    layout: LayoutSpec = LayoutSpec()
    state: StateSpec | None = None
    sequences: Sequences = Sequences.DENSE
    context: ContextSpec | None = None
    workloads: tuple[Workload, ...] = _DEFAULT_WORKLOADS
    # The file this came from, for messages. No part of the language, of equality or of the digest.
    source: str | None = field(
        default=None, compare=False, repr=False, metadata={"internal": True}
    )

    # Groups of the operator that this is a small twin of, which decide what its kernels are. No
    # part of the language or of the digest.
    groups_in_full: int | None = field(default=None, repr=False, metadata={"internal": True})

    EXAMPLE: ClassVar[str] = (
        "{op: my_conv, channels: 4096, filter: {kind: explicit, length: 7, groups: 256}}"
    )

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise problem

    @property
    def inputs(self) -> tuple[str, ...]:
        """The activation inputs, in packing order."""
        if not (self.gates.pre or self.gates.post):
            return ("x",)
        return ("q",) * self.gates.post + ("k",) * self.gates.pre + ("v",)

    @property
    def group_width(self) -> int:
        """Channels that share one filter: D / G."""
        return self.channels // self.filter.groups

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """The trainable tensors that exist, in the order in which every function takes them.

        filter      (G, K)    taps in the order `filter.taps`; kind decay: hhat, without envelope
        p, gamma    (G, N)    kind modal with p_gamma; N = filter.modes
        log_poles   (G, N)    kind modal with log_poles or complex
        frequencies (G, N)    kind modal with complex: radians a sample
        residues    (G, N)    kind modal; with complex, residues_real and residues_imag
        featurizer  (n*D, F)  n = len(inputs), rows in the packing `layout.projection`
        skip        (D,) or (G,)
        bias        (D,)

        Initial values are those of the paper's training code where it has some: U(-s, s) with
        s = 1 / sqrt(taps), where Hyena-SE takes the taps of its featurizer; a small Gaussian
        hhat; time constants of 27 to 272 samples for modal filters, and frequencies of U(0, pi).
        """
        return tuple(_parameters(self))

    @property
    def digest(self) -> str:
        """sha256 of `canonical` without workloads, however the operator was written."""
        canonical = {k: v for k, v in self.canonical().items() if k != "workloads"}
        text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def canonical(self) -> dict[str, Any]:
        """The fields that are not at their default, in plain values. `spec_from_dict` undoes it.

        So a field that the language gains later changes nothing of operators that leave it out.
        """
        plain = _plain(self, defaults=False)
        assert isinstance(plain, dict)
        return plain

    def to_dict(self) -> dict[str, Any]:
        """Every field in plain values, absent ones as "none". `spec_from_dict` undoes it."""
        plain = _plain(self)
        assert isinstance(plain, dict)
        return plain

    def to_yaml(self) -> str:
        """The canonical YAML text, every field written. `parse_spec` undoes it."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=1000)


_MAX_INT = 2**31 - 1  # kernels take sizes as 32-bit integers
_MAX_ELEMENTS = 2**40  # of one tensor: 2 TiB in bfloat16, more than any GPU holds
_MAX_BYTES = 100_000  # of an operator file; they are a page long
_MAX_DEPTH = 16  # of nested YAML collections; the language has 3
# A generated file is named after its operator: beside other files it must not hide a module.
_RESERVED = {"sh2gen", "torch", "triton", "tl", "numpy", *sys.stdlib_module_names}
_RESERVED.update(dir(builtins), keyword.kwlist, keyword.softkwlist)

# Where a value stands in the text: a yaml.Mark (line and column from 0; its stubs disagree).
_Mark = Any


class _RuleError(Sh2genError):
    """A broken rule. `path` is the value to point at, as in "workloads[0].batch" ("" for all)."""

    def __init__(self, code: str, path: str, message: str, *, help: str | None = None) -> None:
        super().__init__(code, message, help=help)
        self.args = (code, path, message)  # for pickle
        self.path = path


# ---- rules --------------------------------------------------------------------------------------


def _problems(spec: OpSpec) -> Iterator[_RuleError]:
    """Every rule of the language that the types alone do not say."""
    yield from _name_problems(spec.op)
    yield from _range_problems(spec)
    yield from _filter_problems(spec)
    if spec.activation is not Activation.NONE and (spec.gates.pre or spec.gates.post):
        yield _RuleError(
            "S006",
            "activation",
            f"activation {spec.activation} with a gate: it is for single-input operators",
            help="write `activation: none`, or drop the gates",
        )
    if spec.bias is Bias.GATED and spec.skip is not Skip.NONE:
        yield _RuleError(
            "S006",
            "bias",
            f"bias gated with skip {spec.skip}: both are a weight times z",
            help="write `skip: channel` and `bias: none`",
        )
    if spec.dtype.accumulate is not DType.FLOAT32:
        yield _RuleError(
            "S006", "dtype.accumulate", f"sums are float32, they cannot be {spec.dtype.accumulate}"
        )
    if spec.state is not None:
        if not (spec.state.initial or spec.state.final):
            yield _RuleError(
                "S006",
                "state",
                "a state that is neither taken in nor given out",
                help="write `state: none`, or set `initial` or `final` to true",
            )
        if spec.filter.kind is FilterKind.MODAL and spec.state.dtype is not DType.FLOAT32:
            yield _RuleError("S006", "state.dtype", "the state of a modal filter is float32")
    if spec.context is not None:
        modal = spec.filter.kind is FilterKind.MODAL
        finite_only = (Exchange.HALO, Exchange.HALO_OVERLAPPED)
        if modal and spec.context.exchange in finite_only:
            yield _RuleError(
                "S006",
                "context.exchange",
                f"exchange {spec.context.exchange} with a modal filter: its past has no end",
                help="write `exchange: state`, or `auto`",
            )
        if not modal and spec.context.exchange is Exchange.STATE:
            yield _RuleError(
                "S006",
                "context.exchange",
                f"exchange state with a filter of kind {spec.filter.kind}: it is for modal",
                help="write `exchange: halo`, or `auto`",
            )
    for name, shape, path in _tensors(spec):
        if math.prod(shape) > _MAX_ELEMENTS:
            sizes = ", ".join(map(str, shape))
            yield _RuleError(
                "S005", path, f"{name} would have shape ({sizes}), more than any GPU holds"
            )


def _name_problems(op: str) -> Iterator[_RuleError]:
    """The name becomes a file, a class and a torch operator: ASCII, and hiding nothing."""
    if re.fullmatch(r"[a-z][a-z0-9_]{0,63}", op) is None:
        yield _RuleError(
            "S007",
            "op",
            f"{_show(op)} is not an operator name",
            help="a lower-case letter, then a-z, 0-9 and _, 64 at most: `op: hyena_se`",
        )
    if op in _RESERVED:
        message = (
            f"the operator name `{op}` is taken: Python or PyTorch has something of that name"
        )
        yield _RuleError("S007", "op", message, help=f"try `{op}_conv`")


def _range_problems(spec: OpSpec) -> Iterator[_RuleError]:
    """Every integer of the description lies in 1 ... 2**31 - 1."""
    for path, value in _integers(_plain(spec), ""):
        if value < 1:
            yield _RuleError("S005", path, f"{path} is {value}; it must be at least 1")
        if value > _MAX_INT:
            yield _RuleError("S005", path, f"{path} is larger than {_MAX_INT}, the largest size")
    if (rows := len(spec.inputs) * spec.channels) > _MAX_INT:
        roles = ", ".join(spec.inputs)
        message = f"{roles} of {spec.channels} channels have {rows} rows: more than {_MAX_INT}"
        yield _RuleError("S005", "channels", message)
    if not spec.workloads:
        yield _RuleError(
            "S005",
            "workloads",
            "no workload",
            help="for example `workloads: [{batch: 1, length: 8192}]`",
        )


def _filter_problems(spec: OpSpec) -> Iterator[_RuleError]:
    """What each kind of filter needs and excludes."""
    inner, kind = spec.filter, spec.filter.kind
    if spec.channels % inner.groups:
        small = [d for d in range(1, math.isqrt(spec.channels) + 1) if spec.channels % d == 0]
        divisors = sorted({*small, *(spec.channels // d for d in small)})
        near = sorted(divisors, key=lambda d: abs(d - inner.groups))[:2]
        yield _RuleError(
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
            yield _RuleError(
                "S006",
                f"filter.{name}",
                f"`{name}` with a filter of kind {kind}: it belongs to kind {owner}",
                help=f"remove `{name}`, or write `kind: {owner}`",
            )
        if not given and kind is owner:
            message = f"a filter of kind {kind} needs `{name}`"
            yield _RuleError("S003", "filter", message, help=f"for example {example}")
    if kind is FilterKind.MODAL:
        if inner.length is not None:
            yield _RuleError(
                "S006",
                "filter.length",
                "`length` with a filter of kind modal, which spans the whole sequence",
                help="remove `length`",
            )
        if inner.taps is not TapOrder.LAG_FIRST:
            yield _RuleError(
                "S006",
                "filter.taps",
                "`taps` with a filter of kind modal, which stores poles and no taps",
                help="remove `taps`",
            )
    elif inner.length is None:
        yield _RuleError(
            "S003",
            "filter",
            f"a filter of kind {kind} needs `length`, its number of taps",
            help="for example `length: 7`",
        )
    if inner.decay is not None:
        if inner.length is not None and inner.decay.cache_length < inner.length:
            yield _RuleError(
                "S006",
                "filter.decay.cache_length",
                f"cache_length {inner.decay.cache_length} is less than the {inner.length} taps",
                help="it is the length over which the decay is defined, at least the filter's own",
            )
        if inner.groups % inner.decay.repeats:
            yield _RuleError(
                "S006",
                "filter.decay.repeats",
                f"{inner.decay.repeats} repeats do not divide {inner.groups} groups",
            )


def _tensors(spec: OpSpec) -> Iterator[tuple[str, tuple[int, ...], str]]:
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
        if spec.workloads == _DEFAULT_WORKLOADS:  # then nothing stands there to point at
            yield f"the input of {workload.length} steps", shape, "channels"
        else:
            yield "the input of this workload", shape, f"workloads[{i}]"


def _parameters(spec: OpSpec) -> Iterator[ParameterSpec]:
    """See `OpSpec.parameters`."""
    inner = spec.filter

    def uniform(taps: int) -> str:
        bound = f"{1 / math.sqrt(taps):.6g}"
        return f"uniform_(-{bound}, {bound})"

    if inner.kind is FilterKind.MODAL:
        assert inner.modes is not None
        shape, taps = (inner.groups, inner.modes), inner.modes
        if inner.parametrisation is Parametrisation.P_GAMMA:
            yield ParameterSpec(name="p", shape=shape, init="fill_(-1.0)")
            yield ParameterSpec(name="gamma", shape=shape, init="uniform_(0.01, 0.1).log_()")
        else:
            # The same distribution in one parameter: a = -exp(-1) U(0.01, 0.1).
            yield ParameterSpec(
                name="log_poles",
                shape=shape,
                init=f"uniform_(0.01, 0.1).mul_({-math.exp(-1):.6g})",
            )
        if inner.pairs:
            init = f"uniform_(0.0, {math.pi:.6g})"
            yield ParameterSpec(name="frequencies", shape=shape, init=init)
        # A pair is 2 Re: of the same variance as a real mode with residues half as large.
        std = f"{(0.05 if inner.pairs else 0.1) / math.sqrt(inner.modes):.6g}"
        for name in ("residues_real", "residues_imag") if inner.pairs else ("residues",):
            yield ParameterSpec(name=name, shape=shape, init=f"normal_(0.0, {std})")
    else:
        assert inner.length is not None
        shape, taps = (inner.groups, inner.length), inner.length
        if inner.decay is not None:
            init = f"normal_(0.0, {1e-5 / math.sqrt(inner.decay.cache_length):.6g})"
        elif spec.featurizer is not None and inner.kind is FilterKind.EXPLICIT:
            init = uniform(spec.featurizer.length)
        else:
            init = uniform(taps)
        yield ParameterSpec(name="filter", shape=shape, init=init)
    if spec.featurizer is not None:
        rows = len(spec.inputs) * spec.channels
        length = spec.featurizer.length
        yield ParameterSpec(name="featurizer", shape=(rows, length), init=uniform(length))
    if spec.skip is not Skip.NONE:
        rows = spec.channels if spec.skip is Skip.CHANNEL else inner.groups
        yield ParameterSpec(name="skip", shape=(rows,), init=uniform(taps))
    if spec.bias is not Bias.NONE:
        yield ParameterSpec(name="bias", shape=(spec.channels,), init=uniform(taps))


def _plain(value: Any, defaults: bool = True) -> Any:
    """A value of the language as YAML and JSON hold it, without what is at its default if so
    asked.
    """
    if value is None:
        return "none"
    if isinstance(value, StrEnum):
        return value.value
    if is_dataclass(value):
        items = ((f, getattr(value, f.name)) for f in _language(type(value)))
        return {f.name: _plain(x, defaults) for f, x in items if defaults or x != f.default}
    if isinstance(value, tuple):
        return [_plain(item, defaults) for item in value]
    return value


def with_defaults(values: Mapping[str, Any], kind: Any = OpSpec) -> dict[str, Any]:
    """Plain values of the language (`OpSpec.canonical`) with what they leave out, and with what
    this version of the language does not know.
    """
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    for f in _language(kind):
        kinds = (hints[f.name], *typing.get_args(hints[f.name]))
        inner = next((t for t in kinds if is_dataclass(t)), None)
        if f.name in values:
            value = values[f.name]
            nested = inner is not None and isinstance(value, Mapping)
            found[f.name] = with_defaults(value, inner) if nested else value
        elif f.default is not MISSING:
            found[f.name] = _plain(f.default)
    found |= {name: value for name, value in values.items() if name not in found}
    return found


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


# ---- reading ------------------------------------------------------------------------------------


def load_spec(path: str | PathLike[str]) -> OpSpec:
    """Read one operator file (UTF-8), or the shipped operator of that name.

    Everything that can be wrong with it raises Sh2genError.
    """
    path = shipped_op(path) or path
    file = str(path)
    if file.endswith(".py"):
        raise Sh2genError(
            "S001",
            f"{file} is Python, and an operator file is wanted here",
            help="`sh2gen verify` and `sh2gen.load` take generated files; all else takes the "
            "op.yaml, or the name of a shipped operator (`sh2gen ops` lists them)",
        )
    try:
        with open_regular(path) as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Sh2genError(
            "S001",
            f"cannot read {file}: {reason[0].lower()}{reason[1:]}",
            help=_nearby(Path(path), error),
        ) from None
    if len(data) > _MAX_BYTES:
        raise Sh2genError(
            "S001", f"{file} is larger than {_MAX_BYTES} bytes: not an operator file"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Sh2genError(
            "S001", f"{file} is not UTF-8 text: byte {data[error.start]:#04x} in line {line}"
        ) from None
    return dataclasses.replace(parse_spec(text, file), source=file)


def parse_spec(text: str, file: str = "<string>") -> OpSpec:
    """Read one operator from YAML text; `file` is what messages call it."""
    spec = _Decoder(text, file, OpSpec).decode()
    assert isinstance(spec, OpSpec)
    return spec


def spec_from_dict(values: Mapping[str, Any]) -> OpSpec:
    """Build an operator from what `OpSpec.to_dict` returned, with the same checks as a file."""
    try:
        text = json.dumps(values, ensure_ascii=False)  # JSON is YAML
    except (TypeError, ValueError, RecursionError) as error:
        raise Sh2genError("S004", f"not a description of plain values: {error}") from None
    return parse_spec(text, "<dict>")


class _Decoder:
    """One description: the nodes of `yaml.compose` against the annotations of the dataclasses."""

    def __init__(self, text: str, file: str, language: Any) -> None:
        self.text = text
        self.file = file
        self.language = language  # the dataclass of the whole description
        self.places: dict[str, _Mark] = {}  # where every value stands, for `_RuleError`

    def decode(self) -> Any:
        """The value, or the first error; rules that combine values come last."""
        root = self._compose()
        try:
            return self._value(root, self.language, "")
        except _RuleError as problem:
            path = problem.path
            while path not in self.places:  # a default: point at the mapping that leaves it out
                path = path[: max(path.rfind("."), path.rfind("["), 0)]
            problem.location = self._location(self.places[path])
            raise

    def _compose(self) -> yaml.Node:
        """The nodes. Anchors, tags and deep nesting are refused before anything expands them."""
        depth = 0
        try:
            for event in yaml.parse(self.text, Loader=yaml.BaseLoader):
                if getattr(event, "anchor", None) is not None:
                    raise self._error(
                        "S008", event.start_mark, "anchors and aliases (`&`, `*`) are not allowed"
                    )
                if getattr(event, "tag", None) is not None:
                    raise self._error("S008", event.start_mark, "tags (`!`) are not allowed")
                depth += isinstance(event, yaml.CollectionStartEvent)
                depth -= isinstance(event, yaml.CollectionEndEvent)
                if depth > _MAX_DEPTH:
                    raise self._error("S008", event.start_mark, "nested too deeply")
            root = yaml.compose(self.text, Loader=yaml.BaseLoader)
        except yaml.MarkedYAMLError as error:
            mark: _Mark = error.problem_mark or error.context_mark
            assert mark is not None
            message = " ".join(filter(None, (error.context, error.problem)))
            help = None
            if mark.index < len(self.text) and self.text[mark.index] == "\t":
                message, help = "a tab where YAML wants spaces", "indent with spaces"
            raise self._error("S008", mark, f"not YAML: {message}", help) from None
        except yaml.reader.ReaderError as error:
            char = self.text[error.position]
            before = self.text[: error.position].splitlines() or [""]
            mark = types.SimpleNamespace(line=len(before) - 1, column=len(before[-1]))
            raise self._error("S008", mark, f"not YAML: the character {_show(char)}") from None
        if root is None:
            example = f"for example `{self.language.EXAMPLE}`"
            raise Sh2genError("S008", f"{self.file} is empty", help=example)
        return root

    def _value(self, node: yaml.Node, kind: Any, path: str) -> Any:
        """The value of `node` as the annotation `kind` says.

        That is a dataclass, tuple[X, ...], a StrEnum, int, bool, str, or X | None.
        """
        self.places[path] = node.start_mark
        optional = isinstance(kind, types.UnionType)
        if optional:
            (kind,) = set(typing.get_args(kind)) - {types.NoneType}
            if isinstance(node, yaml.ScalarNode) and node.value == "none":
                return None
        if is_dataclass(kind) and isinstance(node, yaml.MappingNode):
            return self._mapping(node, kind, path)
        if typing.get_origin(kind) is tuple and isinstance(node, yaml.SequenceNode):
            item = typing.get_args(kind)[0]
            return tuple(self._value(n, item, f"{path}[{i}]") for i, n in enumerate(node.value))
        if isinstance(node, yaml.ScalarNode) and isinstance(kind, type):
            return self._scalar(node, kind, path, optional)
        raise self._wrong_type(node, kind, path, optional)

    def _scalar(self, node: yaml.ScalarNode, kind: type, path: str, optional: bool) -> Any:
        text, plain = str(node.value), node.style is None
        if kind is str and (text or not plain):
            return text
        if kind is bool and plain and text in ("true", "false"):
            return text == "true"
        if kind is int and plain and re.fullmatch(r"-?(0|[1-9][0-9]*)", text, re.ASCII):
            return int(text[:20])  # beyond _MAX_INT anyway; Python refuses thousands of digits
        if issubclass(kind, StrEnum):
            try:
                return kind(text)
            except ValueError:
                legal = [*kind, "none"] if optional else [*kind]
                message = f"{path} cannot be {_found(node)}"
                help = _nearest(text, legal, "one of")
                raise self._error("S004", node.start_mark, message, help) from None
        raise self._wrong_type(node, kind, path, optional)

    def _mapping(self, node: yaml.MappingNode, kind: Any, path: str) -> Any:
        where = f" in {path}" if path else ""
        hints = typing.get_type_hints(kind)
        legal = {f.name: f for f in _language(kind)}
        lines: dict[str, int] = {}
        values: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                message = f"a key must be a word, not {_found(key)}"
                raise self._error("S002", key.start_mark, message)
            if key.value not in legal:
                message = f"unknown key {_found(key)}{where}"
                help = self._home(key.value, path) or _nearest(key.value, [*legal], "the keys are")
                raise self._error("S002", key.start_mark, message, help)
            if key.value in lines:
                message = f"`{key.value}` is given twice{where}, first in line {lines[key.value]}"
                raise self._error("S002", key.start_mark, message)
            lines[key.value] = key.start_mark.line + 1
            values[key.value] = self._value(
                value, hints[key.value], f"{path}.{key.value}".lstrip(".")
            )
        for name, f in legal.items():
            if name not in values and f.default is MISSING:
                message = f"{path or 'the description'} needs the key `{name}`"
                example = f"for example `{kind.EXAMPLE}`"
                raise self._error("S003", node.start_mark, message, example)
        return kind(**values)

    def _wrong_type(self, node: yaml.Node, kind: Any, path: str, optional: bool) -> Sh2genError:
        what, example = _expected(kind)
        if optional:
            what += " or none"
        key, item, _ = path.rpartition(".")[2].partition("[")
        if item:  # shown inside its list
            example = f"[{example}]"
        help = f"for example `{key}: {example}`" if key else f"for example `{example}`"
        name = path or "the description"
        message = f"{name} must be {what}, not {_found(node)}"
        return self._error("S004", node.start_mark, message, help)

    def _home(self, key: str, path: str) -> str | None:
        """Where `key` belongs, if it is a key of another mapping."""
        top = {f.name for f in _language(self.language)}
        if path and key in top:
            return f"`{key}` belongs to the top level"
        homes = []
        for name, hint in typing.get_type_hints(self.language).items():
            for kind in (hint, *typing.get_args(hint)):
                if is_dataclass(kind) and any(f.name == key for f in _language(kind)):
                    homes.append(name)
        return f"`{key}` belongs to {' or '.join(homes)}" if homes else None

    def _error(self, code: str, mark: _Mark, message: str, help: str | None = None) -> Sh2genError:
        return Sh2genError(code, message, location=self._location(mark), help=help)

    def _location(self, mark: _Mark) -> Location:
        lines = self.text.splitlines()
        text = lines[mark.line] if mark.line < len(lines) else ""
        return Location(file=self.file, line=mark.line + 1, column=mark.column + 1, text=text)


# ---- words for messages -------------------------------------------------------------------------


def _language(kind: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that are keys of its YAML mapping."""
    return [f for f in fields(kind) if not f.metadata.get("internal")]


def _expected(kind: Any) -> tuple[str, str]:
    """What a value of `kind` is, in words and as an example."""
    if kind is int:
        return "a whole number in decimal digits", "128"
    if kind is bool:
        return "true or false", "true"
    if kind is str:
        return "a word", "hyena_se"
    if hasattr(kind, "EXAMPLE"):
        return "a mapping", kind.EXAMPLE
    if typing.get_origin(kind) is tuple:
        return "a list", f"[{_expected(typing.get_args(kind)[0])[1]}]"
    return "a word", str(next(iter(kind)))


def _found(node: yaml.Node) -> str:
    """What stands at `node`, in words."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if getattr(node, "style", None) is None:
        return _show(node.value) if node.value else "empty"
    return f"the string {_show(json.dumps(node.value, ensure_ascii=False))}"


def _show(text: str) -> str:
    """`text` in backticks, on one line, shortened."""
    text = text.replace("\n", "\\n")
    return f"`{text if len(text) <= 40 else text[:37] + '...'}`"


def _nearest(word: str, legal: list[str], introduction: str) -> str:
    """The legal spelling that was probably meant, or all of them."""
    lower = {str(choice).lower(): str(choice) for choice in legal}
    close = difflib.get_close_matches(word.lower(), lower, n=1)
    if close:
        return f"did you mean `{lower[close[0]]}`?"
    return f"{introduction} {', '.join(lower.values())}"


def _nearby(path: Path, error: OSError) -> str | None:
    """Operator files in a folder that was given for one, or one beside it with a similar name."""
    if not isinstance(error, FileNotFoundError | IsADirectoryError):
        return None
    if inside := [name for name in listed(path) if name.endswith(".yaml")]:
        return f"one of {', '.join(inside)} in it"
    beside = {name for name in listed(path.parent) if name.endswith(".yaml")}
    names = {name: str(path.with_name(name)) for name in beside - {path.name}}
    if str(path) == path.name and path.suffix in ("", ".yaml"):  # perhaps a shipped operator
        names |= {name + path.suffix: name for name in shipped_ops()}
    if close := difflib.get_close_matches(path.name, names, n=1):
        return f"did you mean `{names[close[0]]}`?"
    return "`sh2gen ops` lists the shipped operators" if str(path) == path.stem else None
