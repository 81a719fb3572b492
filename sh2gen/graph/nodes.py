"""The operator as semantic nodes in SSA form.

A `Graph` says what is computed, never how: no kernels, no blocks, no layouts. Activations are
(B, D, L) tensors in this language whatever their layout in memory. Every node defines one value,
uses only values defined before it, and prints as one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import assert_never, get_args

import networkx as nx

from sh2gen.spec.language import (
    Bias,
    DecaySpec,
    FilterKind,
    Parametrisation,
    Projection,
    Skip,
    TapOrder,
)
from sh2gen.spec.operator import OpSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterView:
    """The part of one parameter tensor that a node reads, and the value that stands for it.

    `filter` and group skips have one row per group; skips and biases may have one per channel;
    the featurizer has one row per channel and role, packed as the projection is.

    Attributes:
        tensor: the parameter's name in the spec.
        width: consecutive channels that share a row (1: a private row for each channel).
        length: taps in a row, or None for a row of a single number.
        order: which tap is lag 0; None for modes, which are no taps.
        role: index of the input whose rows these are (featurizer only).
        roles: how many inputs share the tensor (1 if it is not packed).
        interleaved: packed as channel * roles + role, instead of role * channels + channel.
        grouped: it has a row for each group, whatever their width.
        trained: the parameters that kernels compute it of; absent: it is one itself.
        decay: of its taps, which are trained without.
    """

    tensor: str
    width: int = 1
    length: int | None = None
    order: TapOrder | None = TapOrder.LAG_FIRST
    role: int = 0
    roles: int = 1
    interleaved: bool = False
    grouped: bool = False
    trained: tuple[str, ...] = ()
    decay: DecaySpec | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The parameters behind it."""
        return self.trained or (self.tensor,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An activation (B, D, L) given from outside: an input, a saved value or the upstream
    gradient.
    """

    out: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """Taps (one filter per row) or a vector (one number per row) of a parameter tensor."""

    out: str
    view: ParameterView


@dataclass(frozen=True, slots=True, kw_only=True)
class Modes:
    """Taps of any number, sums of exponentials: taps[j] = sum_n R_n exp(a_n j), or, of pairs of
    complex modes, 2 Re of that.

    Attributes:
        views: a row of N modes each, for the same channels: of poles and residues; or, of pairs,
            real and imaginary parts of poles, then of residues.
    """

    out: str
    views: tuple[ParameterView, ...]

    @property
    def pairs(self) -> bool:
        return len(self.views) == 4

    @property
    def count(self) -> int:
        """N."""
        return self.views[0].length or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv:
    """out[t] = sum_j taps[j] x[t - direction * j]: causal for +1, its adjoint for -1."""

    out: str
    x: str
    taps: str
    direction: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiply:
    """out = a b, elementwise: a gate."""

    out: str
    a: str
    b: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Add:
    """out = a + b."""

    out: str
    a: str
    b: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """out[d] = factor[d] x[d]: the skip term."""

    out: str
    x: str
    factor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """out[d] = x[d] + offset[d]: the bias."""

    out: str
    x: str
    offset: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Silu:
    """out = x / (1 + exp(-x))."""

    out: str
    x: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiluGradient:
    """out = grad silu'(x)."""

    out: str
    grad: str
    x: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TapGradient:
    """out[row, j] = sum over b, t and the row's channels of grad[t] x[t - j]: gradient of Conv's
    taps.
    """

    out: str
    grad: str
    x: str
    view: ParameterView


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeGradient:
    """The gradients of poles and residues, from those g[j] = sum of grad[t] x[t - j] of all taps:
    out[0][row, n] = residue_n sum_j j exp(a_n j) g[j] and out[1][row, n] = sum_j exp(a_n j) g[j].
    Of pairs, both are complex, and 2 Re and -2 Im of each are the gradients by its two parts.
    """

    out: str
    grad: str
    x: str
    modes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSum:
    """out[row] = sum over b, t and the row's channels of x: gradient of a vector parameter."""

    out: str
    x: str
    view: ParameterView


Node = (
    Input
    | Parameter
    | Modes
    | Conv
    | Multiply
    | Add
    | Scale
    | Shift
    | Silu
    | SiluGradient
    | TapGradient
    | ModeGradient
    | ChannelSum
)
GRADIENTS = TapGradient | ModeGradient | ChannelSum  # nodes that sum over time, to a parameter


def activations(node: Node) -> tuple[str, ...]:
    """The activation values that a node uses, in the order of its text."""
    match node:
        case Input() | Parameter() | Modes():
            return ()
        case Conv(x=x) | Scale(x=x) | Shift(x=x) | Silu(x=x) | ChannelSum(x=x):
            return (x,)
        case Multiply(a=a, b=b) | Add(a=a, b=b):
            return (a, b)
        case (
            SiluGradient(grad=grad, x=x)
            | TapGradient(grad=grad, x=x)
            | ModeGradient(grad=grad, x=x)
        ):
            return (grad, x)
    assert_never(node)


def parameter(node: Node) -> str | None:
    """The parameter value that a node uses, if it uses one."""
    match node:
        case Conv(taps=name) | Scale(factor=name) | Shift(offset=name) | ModeGradient(modes=name):
            return name
        case _:
            return None


def text(node: Node) -> str:
    """One line, as `explain --stage graph` prints it."""
    match node:
        case Input():
            return f"{node.out} = input"
        case Parameter(view=view):
            return f"{node.out} = parameter {_view_text(view)}"
        case Modes(views=views):
            others = ", ".join(view.tensor for view in views[1:])
            return f"{node.out} = modes {_view_text(views[0])}, {others}"
        case Conv():
            return f"{node.out} = conv[{node.direction:+d}]({node.x}, {node.taps})"
        case Multiply():
            return f"{node.out} = {node.a} * {node.b}"
        case Add():
            return f"{node.out} = {node.a} + {node.b}"
        case Scale():
            return f"{node.out} = scale({node.x}, {node.factor})"
        case Shift():
            return f"{node.out} = shift({node.x}, {node.offset})"
        case Silu():
            return f"{node.out} = silu({node.x})"
        case SiluGradient():
            return f"{node.out} = silu_gradient({node.grad}, {node.x})"
        case TapGradient():
            return f"{node.out} = tap_gradient({node.grad}, {node.x}) -> {_view_text(node.view)}"
        case ModeGradient():
            return f"{node.out} = mode_gradient({node.grad}, {node.x}, {node.modes})"
        case ChannelSum():
            return f"{node.out} = channel_sum({node.x}) -> {_view_text(node.view)}"
    assert_never(node)


def _view_text(view: ParameterView) -> str:
    rows = f"rows of {view.width} channels" if view.width > 1 else "a row per channel"
    if view.roles > 1:
        packing = "interleaved" if view.interleaved else "in blocks"
        rows += f", role {view.role} of {view.roles} {packing}"
    if view.order is None:
        taps = f", {view.length} modes"
    else:
        taps = f", {view.length} taps {view.order.value}" if view.length else ""
    return f"{view.tensor} ({rows}{taps})"


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which every value is defined before it is used, and what leaves the
    graph.

    Attributes:
        nodes: the operator.
        outputs: names of the values that are results, in order.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Assert the SSA rules; a violation is a bug in a pass, not in the user's input."""
        kinds: dict[str, type] = {}
        for node in self.nodes:
            assert node.out not in kinds, f"{node.out} is defined twice"
            for name in activations(node):
                assert name in kinds, f"{text(node)}: {name} is used before it is defined"
                assert kinds[name] not in (Parameter, Modes, *get_args(GRADIENTS)), (
                    f"{text(node)}: {name} is no activation"
                )
            name_of_parameter = parameter(node)
            assert name_of_parameter is None or kinds.get(name_of_parameter) in (
                Parameter,
                Modes,
            ), f"{text(node)}: {name_of_parameter} is no parameter"
            kinds[node.out] = type(node)
        for name in self.outputs:
            assert name in kinds, f"output {name} is never defined"
        assert nx.is_directed_acyclic_graph(self.network())

    @cached_property
    def by_name(self) -> dict[str, Node]:
        return {node.out: node for node in self.nodes}

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(node.out for node in self.nodes if isinstance(node, Input))

    @property
    def parameters(self) -> tuple[Parameter | Modes, ...]:
        return tuple(node for node in self.nodes if isinstance(node, Parameter | Modes))

    @property
    def views(self) -> tuple[ParameterView, ...]:
        """What is read of parameter tensors, in order."""
        views: list[ParameterView] = []
        for node in self.parameters:
            views += [node.view] if isinstance(node, Parameter) else node.views
        return tuple(views)

    def view(self, name: str) -> ParameterView:
        """The view behind a parameter value."""
        node = self.by_name[name]
        assert isinstance(node, Parameter)
        return node.view

    def modes(self, name: str) -> Modes:
        """The modes behind the value of a modal filter."""
        node = self.by_name[name]
        assert isinstance(node, Modes)
        return node

    def network(self) -> nx.DiGraph[str]:
        """Values as vertices, uses as edges: for cycles, cuts and drawing."""
        graph: nx.DiGraph[str] = nx.DiGraph()
        for node in self.nodes:
            graph.add_node(node.out, label=text(node))
            name = parameter(node)
            for used in (*activations(node), *([name] if name else [])):
                graph.add_edge(used, node.out)
        return graph

    def live(self) -> Graph:
        """The same graph without nodes that no output needs."""
        network = self.network()
        needed = set(self.outputs).union(*(nx.ancestors(network, name) for name in self.outputs))
        return Graph(
            nodes=tuple(node for node in self.nodes if node.out in needed), outputs=self.outputs
        )

    def __str__(self) -> str:
        lines = [text(node) for node in self.nodes]
        return "\n".join([*lines, f"return {', '.join(self.outputs)}"])


def operator_graph(spec: OpSpec) -> Graph:
    """The forward operator of a spec (StripedHyena 2, arXiv 2503.01868, section 2 and its
    relatives).

    f(x) = featurizer conv x, or x          z = f(k) f(v), f(v) or f(x)
    pre  = h conv z + skip z + bias         y = f(q) pre, or activation(pre)
    """
    nodes: list[Node] = []

    def define(node: Node) -> str:
        nodes.append(node)
        return node.out

    def vector(tensor: str, rows: int) -> str:
        width = spec.channels // rows
        grouped = tensor == "skip" and spec.skip is Skip.GROUP
        view = ParameterView(tensor=tensor, width=width, grouped=grouped)
        return define(Parameter(out=tensor, view=view))

    features: dict[str, str] = {}
    for role, name in enumerate(spec.inputs):
        x = define(Input(out=name))
        if spec.featurizer is not None:
            view = ParameterView(
                tensor="featurizer",
                length=spec.featurizer.length,
                order=spec.featurizer.taps,
                role=role,
                roles=len(spec.inputs),
                interleaved=spec.layout.projection is Projection.INTERLEAVED,
            )
            taps = define(Parameter(out=f"featurizer_{name}", view=view))
            x = define(Conv(out=f"{name}_hat", x=x, taps=taps, direction=+1))
        features[name] = x

    z = features.get("v", features.get("x", ""))
    if spec.gates.pre:
        z = define(Multiply(out="z", a=features["k"], b=z))
    if spec.filter.kind is FilterKind.MODAL:
        names: tuple[str, ...] = ("log_poles", "residues")
        if spec.filter.pairs:
            names = ("log_poles", "frequencies", "residues_real", "residues_imag")
        trained = {}
        if spec.filter.parametrisation is Parametrisation.P_GAMMA:
            trained = {"log_poles": ("p", "gamma")}
        views = tuple(
            ParameterView(
                tensor=name,
                trained=trained.get(name, ()),
                width=spec.group_width,
                length=spec.filter.modes,
                order=None,
                grouped=True,
            )
            for name in names
        )
        taps = define(Modes(out="filter", views=views))
    else:
        taps_view = ParameterView(
            tensor="filter",
            width=spec.group_width,
            length=spec.filter.length,
            order=spec.filter.taps,
            grouped=True,
            decay=spec.filter.decay,
        )
        taps = define(Parameter(out="filter", view=taps_view))
    pre = define(Conv(out="conv", x=z, taps=taps, direction=+1))
    if spec.skip is not Skip.NONE:
        rows = spec.channels if spec.skip is Skip.CHANNEL else spec.filter.groups
        skipped = define(Scale(out="skipped", x=z, factor=vector("skip", rows)))
        pre = define(Add(out="pre_skip", a=pre, b=skipped))
    match spec.bias:
        case Bias.NONE:
            pass
        case Bias.UNGATED:
            pre = define(Shift(out="pre_bias", x=pre, offset=vector("bias", spec.channels)))
        case Bias.GATED:
            biased = define(Scale(out="biased", x=z, factor=vector("bias", spec.channels)))
            pre = define(Add(out="pre_bias", a=pre, b=biased))
    if spec.gates.post:
        y = define(Multiply(out="y", a=features["q"], b=pre))
    elif spec.activation.value == "silu":
        y = define(Silu(out="y", x=pre))
    else:
        y = pre
    return Graph(nodes=tuple(nodes), outputs=(y,))
