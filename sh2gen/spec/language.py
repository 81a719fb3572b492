"""What an operator is: the language of its description in YAML.

One dataclass per YAML mapping and one enum per closed choice, with what follows from them; `rules`
combines them, `decode` reads them by their annotations, so that a new field is one line in its
dataclass.

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

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any, ClassVar

import yaml


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
    def exponents(self) -> tuple[int, int]:
        """(a, b): the rates alpha run from 10**a to 10**b in equal ratios over the groups."""
        return {"strong": (0, 2), "normal": (-1, 2), "weak": (-2, 2)}[self.value]


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
    `preset`, tiled `repeats` times over the groups; tau_k = k / (cache_length - 1).
    Implementations disagree on cache_length (8192, or the number of taps), and it changes the
    filter completely: it has no default.
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
    """How one sequence is split over ranks, and what they exchange.

    segments          of channels, for all_to_all_pipelined: one travels while another is convolved
    """

    ranks: int
    sharding: Sharding = Sharding.ZIGZAG
    exchange: Exchange = Exchange.AUTO
    segments: int = 4

    EXAMPLE: ClassVar[str] = "{ranks: 8, sharding: zigzag}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A problem size to optimise for: B sequences of L samples."""

    batch: int
    length: int

    EXAMPLE: ClassVar[str] = "{batch: 1, length: 8192}"


DEFAULT_WORKLOADS = (Workload(batch=1, length=8192),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterSpec:
    """One trainable float32 tensor.

    Attributes:
        dims: its shape as expressions in `channels` and `groups`.
        init: the chain of torch.Tensor methods that fills it.
    """

    name: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    init: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A whole operator as it was described; this module's docstring says what it computes. Whether
    it makes sense is for `OpSpec`.
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
    workloads: tuple[Workload, ...] = DEFAULT_WORKLOADS
    # The file this came from, for messages. No part of the language, of equality or of the digest.
    source: str | None = field(
        default=None, compare=False, repr=False, metadata={"internal": True}
    )

    # Groups of the operator that this is a miniature of, which decide what its kernels are. No
    # part of the language or of the digest.
    groups_in_full: int | None = field(default=None, repr=False, metadata={"internal": True})

    EXAMPLE: ClassVar[str] = (
        "{op: my_conv, channels: 4096, filter: {kind: explicit, length: 7, groups: 256}}"
    )

    @property
    def inputs(self) -> tuple[str, ...]:
        """The activation inputs, in packing order."""
        if not (self.gates.pre or self.gates.post):
            return ("x",)
        return ("q",) * self.gates.post + ("k",) * self.gates.pre + ("v",)

    @property
    def lag(self) -> int:
        """Steps of history that the first stage of an operator needs."""
        return self.featurizer.length - 1 if self.featurizer else 0

    @property
    def history(self) -> int:
        """Steps before a sequence that its outputs read: those of the featurizer and, unless a
        state stands for them, those of the filter.
        """
        modal = self.filter.kind is FilterKind.MODAL
        return self.lag + (0 if modal else (self.filter.length or 1) - 1)

    @property
    def interleaved(self) -> bool:
        """Whether several inputs are packed channel by channel."""
        return self.layout.projection is Projection.INTERLEAVED and len(self.inputs) > 1

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
        plain = plain_value(self, defaults=False)
        assert isinstance(plain, dict)
        return plain

    def to_dict(self) -> dict[str, Any]:
        """Every field in plain values, absent ones as "none". `spec_from_dict` undoes it."""
        plain = plain_value(self)
        assert isinstance(plain, dict)
        return plain

    def to_yaml(self) -> str:
        """The canonical YAML text, every field written. `parse_spec` undoes it."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=1000)


def _parameters(spec: Description) -> Iterator[ParameterSpec]:
    """See `OpSpec.parameters`."""
    inner = spec.filter

    def uniform(taps: int) -> str:
        bound = f"{1 / math.sqrt(taps):.6g}"
        return f"uniform_(-{bound}, {bound})"

    if inner.kind is FilterKind.MODAL:
        assert inner.modes is not None
        shape, taps = (inner.groups, inner.modes), inner.modes
        dims = ("groups", str(inner.modes))
        if inner.parametrisation is Parametrisation.P_GAMMA:
            yield ParameterSpec(name="p", shape=shape, dims=dims, init="fill_(-1.0)")
            yield ParameterSpec(
                name="gamma", shape=shape, dims=dims, init="uniform_(0.01, 0.1).log_()"
            )
        else:
            # The same distribution in one parameter: a = -exp(-1) U(0.01, 0.1).
            yield ParameterSpec(
                name="log_poles",
                shape=shape,
                dims=dims,
                init=f"uniform_(0.01, 0.1).mul_({-math.exp(-1):.6g})",
            )
        if inner.pairs:
            init = f"uniform_(0.0, {math.pi:.6g})"
            yield ParameterSpec(name="frequencies", shape=shape, dims=dims, init=init)
        # A pair is 2 Re: of the same variance as a real mode with residues half as large.
        std = f"{(0.05 if inner.pairs else 0.1) / math.sqrt(inner.modes):.6g}"
        for name in ("residues_real", "residues_imag") if inner.pairs else ("residues",):
            yield ParameterSpec(name=name, shape=shape, dims=dims, init=f"normal_(0.0, {std})")
    else:
        assert inner.length is not None
        shape, taps = (inner.groups, inner.length), inner.length
        if inner.decay is not None:
            init = f"normal_(0.0, {1e-5 / math.sqrt(inner.decay.cache_length):.6g})"
        elif spec.featurizer is not None and inner.kind is FilterKind.EXPLICIT:
            init = uniform(spec.featurizer.length)
        else:
            init = uniform(taps)
        dims = ("groups", str(inner.length))
        yield ParameterSpec(name="filter", shape=shape, dims=dims, init=init)
    if spec.featurizer is not None:
        rows = len(spec.inputs) * spec.channels
        length = spec.featurizer.length
        many = f"{len(spec.inputs)} * " * (len(spec.inputs) > 1)
        dims = (f"{many}channels", str(length))
        init = uniform(length)
        yield ParameterSpec(name="featurizer", shape=(rows, length), dims=dims, init=init)
    if spec.skip is not Skip.NONE:
        rows = spec.channels if spec.skip is Skip.CHANNEL else inner.groups
        dim = "channels" if spec.skip is Skip.CHANNEL else "groups"
        yield ParameterSpec(name="skip", shape=(rows,), dims=(dim,), init=uniform(taps))
    if spec.bias is not Bias.NONE:
        yield ParameterSpec(
            name="bias", shape=(spec.channels,), dims=("channels",), init=uniform(taps)
        )


def plain_value(value: Any, defaults: bool = True) -> Any:
    """A value of the language as YAML and JSON hold it, without what is at its default if so
    asked.
    """
    if value is None:
        return "none"
    if isinstance(value, StrEnum):
        return value.value
    if is_dataclass(value):
        items = ((f, getattr(value, f.name)) for f in language_fields(type(value)))
        return {f.name: plain_value(x, defaults) for f, x in items if defaults or x != f.default}
    if isinstance(value, tuple):
        return [plain_value(item, defaults) for item in value]
    return value


def language_fields(kind: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that are keys of its YAML mapping."""
    return [f for f in fields(kind) if not f.metadata.get("internal")]
