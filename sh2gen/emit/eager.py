"""The plain-PyTorch path of a generated file: folds over graphs, a line a node."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, assert_never

from sh2gen.emit.text import targets
from sh2gen.graph.adjoint import adjoint
from sh2gen.graph.nodes import (
    GRADIENTS,
    Add,
    ChannelSum,
    Conv,
    Graph,
    Input,
    ModeGradient,
    Modes,
    Multiply,
    Node,
    Parameter,
    ParameterView,
    Scale,
    Shift,
    Silu,
    SiluGradient,
    TapGradient,
    operator_graph,
)
from sh2gen.plan.plan import EagerConv, Plan
from sh2gen.spec.language import Activation, Bias, GateSpec, Parametrisation, Skip, TapOrder
from sh2gen.spec.operator import OpSpec


def eager_helper_names(plan: Plan) -> set[str]:
    """The helpers that the lines of a plan's graphs call."""
    wanted, gradients = {"chunks", "channel_rows"}, {"add_rows"}
    if any(view.roles > 1 for view in plan.graph.views):
        wanted.add("role_rows")
    if plan.eager is EagerConv.MODAL:
        wanted.add("conv_modal")
        gradients.add("mode_gradient_modal")
    taps = [node for node in plan.graph.parameters if isinstance(node, Parameter)]
    if plan.eager is not EagerConv.MODAL or any(node.view.length for node in taps):
        wanted.add(f"conv_{_finite(plan.eager)}")
        gradients.add(f"tap_gradient_{_finite(plan.eager)}")
    if plan.eager is EagerConv.FFT and len(taps) < len(plan.graph.parameters):
        wanted.add("modal_taps")
        gradients.add("mode_gradient_fft")
    if any(isinstance(node, SiluGradient) for node in plan.backward_graph.nodes):
        gradients.add("silu_gradient_eager")
    return wanted | gradients


def _finite(conv: EagerConv) -> str:
    """How filters with taps are convolved where others are modes."""
    return "fft" if conv is EagerConv.FFT else "direct"


def filter_alone(spec: OpSpec, plan: Plan) -> list[dict[str, Any]]:
    """The two functions of the inner filter of an operator as one of its own, by FFT. They take
    all parameters of the operator, and give the gradients of the filter's.
    """
    alone = dataclasses.replace(
        spec,
        featurizer=None,
        gates=GateSpec(),
        skip=Skip.NONE,
        bias=Bias.NONE,
        activation=Activation.NONE,
        context=None,
        state=None,
    )
    graph = operator_graph(alone)
    own = dataclasses.replace(
        plan, graph=graph, backward_graph=adjoint(graph), eager=EagerConv.FFT
    )
    forward = eager_forward(alone, own) | {"name": "filter", "doc": "The inner filter of x."}
    backward = eager_backward(alone, own, alone=True)
    doc = "Gradients of x, then of the filter's parameters."
    return [forward, backward | {"name": "filter_backward", "doc": doc}]


def eager_forward(spec: OpSpec, plan: Plan) -> dict[str, Any]:
    stored = [plan.graph.outputs[0], *plan.saved]
    results = [f"out_{i}" for i in range(len(stored))]
    first = f"{spec.inputs[0]}_all"
    setup = [
        f"outputs = [allocate(inputs[0], inputs[0].shape[TIME]) for _ in range({len(stored)})]"
        if plan.saved
        else "outputs = [allocate(inputs[0], inputs[0].shape[TIME])]"
    ]
    setup.append(f"{targets(results)} = (canonical(x) for x in outputs)")
    setup = decayed(spec) + setup
    lines = lines_of(plan.graph, plan.eager)
    lines += [f"{out}[:, c] = {value}" for out, value in zip(results, stored, strict=True)]
    return {
        "name": "forward",
        "doc": f"[{', '.join(['y', *plan.saved])}] of the unpacked inputs.",
        "arguments": [
            "inputs: Sequence[Tensor]",
            "parameters: Sequence[Tensor]",
            *ladder(spec),
        ],
        "tensors": [f"{name}_all" for name in spec.inputs],
        "tensor_source": "inputs",
        "first": first,
        "channel_bytes": _channel_bytes(plan.graph, plan.eager),
        "setup": setup,
        "lines": lines,
        "after": [],
        "result": "outputs",
    }


def eager_stateful(spec: OpSpec, plan: Plan) -> dict[str, Any]:
    """The forward of a modal operator between two states. It has no backward of its own: PyTorch
    differentiates it.
    """
    (conv,) = [n for n in plan.graph.nodes if isinstance(n, Conv) and n.taps == "filter"]
    lag = spec.lag
    past = [f"{name}_past" for name in spec.inputs]
    setup = [
        "result = allocate(inputs[0], inputs[0].shape[TIME])",
        "out, leaving = canonical(result), []",
    ]
    setup += [f"{targets(past)} = canonical(history).chunk({len(past)}, 1)"] if lag else []
    lines: list[str] = []
    for node in plan.graph.nodes:
        (text,) = lines_of(plan.graph, EagerConv.MODAL, [node])
        match node:
            case Input(out=name) if lag:
                text = f"{name} = torch.cat([{name}_past[:, c], {name}_all[:, c]], 2).to(dtype)"
            case Conv(out=name) if node is conv:
                text = text.removesuffix(")") + ", state[:, c].to(dtype))"
            case Conv() if lag:
                text += f"[..., {lag}:]"
            case _:
                pass
        lines.append(text)
    lines += [
        f"out[:, c] = {plan.graph.outputs[0]}",
        f"leaving.append(leave_modes({conv.x}, filter_modes, state[:, c].to(dtype), ends))",
    ]
    return {
        "name": "stateful",
        "doc": "[y, state after the last step] of the unpacked inputs, their history and the "
        "state before the first step; or after the steps that each row has, if `ends` says so.",
        "arguments": [
            "inputs: Sequence[Tensor]",
            "parameters: Sequence[Tensor]",
            "history: Tensor",
            "state: Tensor",
            "ends: Tensor | None = None",
        ],
        "tensors": [f"{name}_all" for name in spec.inputs],
        "tensor_source": "inputs",
        "first": f"{spec.inputs[0]}_all",
        # Nothing is in need of no gradient because it is empty: never no chunk at all.
        "channel_bytes": f"max(1, {_channel_bytes(plan.graph, plan.eager)})",
        "setup": setup,
        "lines": lines,
        "after": [],
        "result": "[result, torch.cat(leaving, 1).to(state.dtype)]",
    }


def eager_backward(spec: OpSpec, plan: Plan, alone: bool = False) -> dict[str, Any]:
    """The gradients of an operator; or of a part of one that has inputs in one tensor and more
    parameters, if it stands `alone`.
    """
    graph = plan.backward_graph
    names = [f"d_{name}_all" for name in spec.inputs]
    parameters = list(spec.kernel_parameters)
    unpacked = "{}" if alone else "unpack({})"
    own = f"parameters[:{len(spec.parameters)}]" if alone else "parameters"
    setup = [
        *decayed(spec),
        "d_inputs = [allocate(x, x.shape[TIME]) for x in inputs]",
        f"{targets(names)} = (canonical(x) for x in {unpacked.format('d_inputs')})",
        *(f"d_{name}_all = torch.zeros_like({name}, dtype=dtype)" for name in parameters),
    ]
    lines = lines_of(graph, plan.eager)
    for name, value in zip(names, graph.outputs, strict=False):
        lines.append(f"{name}[:, c] = {value}")
    gradients = ", ".join(_trained(spec, name) for name in parameters)
    cast = f"*(d.to(p.dtype).view(p.shape) for d, p in zip(gradients, {own}, strict=True))"
    return {
        "name": "backward",
        "doc": "Gradients of the inputs, packed if they are, then of the parameters.",
        "arguments": [
            "dy: Tensor",
            "inputs: Sequence[Tensor]",
            "parameters: Sequence[Tensor]",
            "saved: Sequence[Tensor]",
            *ladder(spec),
        ],
        "tensors": ["dy_all", *(f"{name}_all" for name in (*spec.inputs, *plan.saved))],
        "tensor_source": f"(dy, *{unpacked.format('inputs')}, *saved)",
        "first": "dy_all",
        "channel_bytes": _channel_bytes(graph, plan.eager),
        "setup": setup,
        "lines": lines,
        "after": [f"gradients = [{gradients}]"],
        "result": f"[*d_inputs, {cast}]",
    }


def decayed(spec: OpSpec) -> list[str]:
    """Lines that give taps their decays, if they have some."""
    lines = [
        "decays = decays_of(filter, first_group, groups_in_all)",
        "filter = filter * decays",
    ]
    return lines * (spec.filter.decay is not None)


def ladder(spec: OpSpec) -> list[str]:
    """What functions take beside tensors, if filters decay."""
    return ["first_group: int", "groups_in_all: int | None"] * (spec.filter.decay is not None)


def _trained(spec: OpSpec, name: str) -> str:
    """Gradients of what is trained, from that of what is computed of it."""
    if name == "filter" and spec.filter.decay is not None:
        return "d_filter_all * decays"
    if name == "log_poles" and spec.filter.parametrisation is Parametrisation.P_GAMMA:
        return "d_log_poles_all * log_poles, d_log_poles_all * log_poles"  # of p, and of gamma
    return f"d_{name}_all"


def _channel_bytes(graph: Graph, conv: EagerConv) -> str:
    """Of the temporaries of one channel."""
    return f"{_temporaries(graph, conv)} * batch * length * dtype.itemsize"


def _width(view: ParameterView) -> str:
    """How many channels share a row of a parameter, in the text of a function."""
    return "width" if view.grouped else "1"


def _temporaries(graph: Graph, conv: EagerConv) -> int:
    """Activations alive at once, at most: every value of the graph, and what an FFT needs."""
    values = sum(not isinstance(n, Parameter | Modes | GRADIENTS) for n in graph.nodes)
    if any(isinstance(node, Modes) and node.pairs for node in graph.nodes):
        values += 8  # complex blocks and their products, or complex128 of a mode
    return values + (
        12 if conv is EagerConv.FFT else 2
    )  # spectra of twice the length, and padding


def lines_of(graph: Graph, conv: EagerConv, nodes: Iterable[Node] | None = None) -> list[str]:
    """Each node as one line on the channels `c`; taps have lag 0 first.

    Args:
        nodes: those to print; absent: all.
    """

    def rows(tensor: str, view: ParameterView) -> str:
        if view.roles == 1:
            return tensor
        return f"role_rows({tensor}, {view.role}, {view.roles}, {view.interleaved})"

    def line(node: Node) -> str:
        match node:
            case Input(out=out):
                return f"{out} = {out}_all[:, c].to(dtype)"
            case Parameter(out=out, view=view):
                flip = ".flip(1)" if view.length and view.order is TapOrder.LAG_LAST else ""
                column = "" if view.length else "[:, None]"
                source = rows(view.tensor, view)
                return f"{out}_c = channel_rows({source}, c, {_width(view)}, dtype){flip}{column}"
            case Modes(out=out, views=views):
                both = ", ".join(
                    f"channel_rows({view.tensor}, c, {_width(view)}, dtype)" for view in views
                )
                line = f"{out}_modes = {both}"
                if conv is EagerConv.FFT:
                    line += f"\n{out}_c = modal_taps({out}_modes, length)"
                return line
            case Conv(out=out, x=x, taps=taps, direction=direction):
                if conv is EagerConv.MODAL and isinstance(graph.by_name[taps], Modes):
                    return f"{out} = conv_modal({x}, {taps}_modes, {direction:+d})"
                return f"{out} = conv_{_finite(conv)}({x}, {taps}_c, {direction:+d})"
            case ModeGradient(out=out, grad=grad, x=x, modes=modes):
                lines = [f"{out} = mode_gradient_{conv.value}({grad}, {x}, {modes}_modes)"]
                lines += [
                    f"add_rows(d_{view.tensor}_all, c, {out}[{i}], {_width(view)})"
                    for i, view in enumerate(graph.modes(modes).views)
                ]
                return "\n".join(lines)
            case Multiply(out=out, a=a, b=b):
                return f"{out} = {a} * {b}"
            case Add(out=out, a=a, b=b):
                return f"{out} = {a} + {b}"
            case Scale(out=out, x=x, factor=factor):
                return f"{out} = {x} * {factor}_c"
            case Shift(out=out, x=x, offset=offset):
                return f"{out} = {x} + {offset}_c"
            case Silu(out=out, x=x):
                return f"{out} = functional.silu({x})"
            case SiluGradient(out=out, grad=grad, x=x):
                return f"{out} = silu_gradient_eager({grad}, {x})"
            case TapGradient(out=out, grad=grad, x=x, view=view):
                flip = ".flip(1)" if view.order is TapOrder.LAG_LAST else ""
                return (
                    f"{out} = tap_gradient_{_finite(conv)}({grad}, {x}, {view.length}){flip}\n"
                    f"add_rows({rows(f'd_{view.tensor}_all', view)}, c, {out}, {_width(view)})"
                )
            case ChannelSum(out=out, x=x, view=view):
                return (
                    f"{out} = {x}.sum((0, 2))\n"
                    f"add_rows(d_{view.tensor}_all, c, {out}, {_width(view)})"
                )
        assert_never(node)

    printed = graph.nodes if nodes is None else nodes
    return [text for node in printed for text in line(node).split("\n")]
