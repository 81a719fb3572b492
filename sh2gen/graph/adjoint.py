"""Reverse-mode differentiation of an operator graph, a rule a node (docs/math.md, section 2)."""

from __future__ import annotations

from collections import Counter
from typing import assert_never

from sh2gen.graph.nodes import (
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
    Scale,
    Shift,
    Silu,
    SiluGradient,
    TapGradient,
    activations,
)


def adjoint(graph: Graph, saved: tuple[str, ...] = ()) -> Graph:
    """The backward graph: gradients of every input and parameter view of `graph`.

    Before: `y = f(inputs, parameters)`. After: `dy`, the inputs and the saved values are inputs;
    the forward values that gradients need are recomputed from them; outputs are the gradients of
    the inputs, then of the parameter views, in the order of `graph`.

        z = k * v                     dy = input
        y = conv[+1](z, filter)       d_z = conv[-1](dy, filter)
                                ->    d_filter = tap_gradient(dy, z)
                                      d_k = d_z * v;  d_v = d_z * k

    Args:
        graph: a forward graph with one output.
        saved: forward values kept by the forward pass instead of recomputed: the cut.
    """
    (output,) = graph.outputs
    uses = Counter(name for node in graph.nodes for name in activations(node))
    forward: list[Node] = [
        Input(out=node.out) if node.out in saved else node for node in graph.nodes
    ]
    backward: list[Node] = [Input(out="dy")]
    terms: dict[str, list[str]] = {output: ["dy"]}

    def define(node: Node) -> str:
        backward.append(node)
        return node.out

    def name_of_term(value: str) -> str:
        return f"d_{value}" if uses[value] == 1 else f"d_{value}_{len(terms.get(value, [])) + 1}"

    def contribute(value: str, term: str) -> None:
        terms.setdefault(value, []).append(term)

    def total(value: str) -> str:
        """The gradient of a value: the sum of its terms, in the order in which they arose."""
        first, *others = terms[value]
        for count, other in enumerate(others, start=1):
            last = count == len(others)
            out = f"d_{value}" if last else f"d_{value}_sum_{count}"
            first = define(Add(out=out, a=first, b=other))
        terms[value] = [first]
        return first

    for node in reversed(graph.nodes):
        if isinstance(node, Parameter | Modes):
            continue
        grad = total(node.out)
        match node:
            case Input():
                pass
            case Conv(x=x, taps=taps, direction=direction):
                assert direction == +1, "only causal operators are differentiated"
                contribute(x, define(Conv(out=name_of_term(x), x=grad, taps=taps, direction=-1)))
                if isinstance(graph.by_name[taps], Modes):
                    define(ModeGradient(out=f"d_{taps}", grad=grad, x=x, modes=taps))
                else:
                    define(TapGradient(out=f"d_{taps}", grad=grad, x=x, view=graph.view(taps)))
            case Multiply(a=a, b=b):
                contribute(a, define(Multiply(out=name_of_term(a), a=grad, b=b)))
                contribute(b, define(Multiply(out=name_of_term(b), a=grad, b=a)))
            case Add(a=a, b=b):
                contribute(a, grad)
                contribute(b, grad)
            case Scale(x=x, factor=factor):
                contribute(x, define(Scale(out=name_of_term(x), x=grad, factor=factor)))
                product = define(Multiply(out=f"{node.out}_product", a=grad, b=x))
                define(ChannelSum(out=f"d_{factor}", x=product, view=graph.view(factor)))
            case Shift(x=x, offset=offset):
                contribute(x, grad)
                define(ChannelSum(out=f"d_{offset}", x=grad, view=graph.view(offset)))
            case Silu(x=x):
                contribute(x, define(SiluGradient(out=name_of_term(x), grad=grad, x=x)))
            case SiluGradient() | TapGradient() | ModeGradient() | ChannelSum():
                raise AssertionError("a backward graph is not differentiated again")
            case _:
                assert_never(node)

    outputs = [total(name) for name in graph.inputs]
    outputs += [f"d_{node.out}" for node in graph.parameters]
    return Graph(nodes=(*forward, *backward), outputs=tuple(outputs)).live()
