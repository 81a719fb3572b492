"""Graphs: what a spec becomes, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import networkx as nx
import pytest
from hypothesis import given

from sh2gen.graph.nodes import (
    Add,
    ChannelSum,
    Conv,
    Graph,
    Input,
    Multiply,
    Node,
    Parameter,
    ParameterView,
    TapGradient,
    activations,
    operator_graph,
    parameter,
    text,
)
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.language import TapOrder
from sh2gen.spec.operator import OpSpec
from tests.strategies import register_profiles, specs

register_profiles()
X, TAPS = Input(out="x"), Parameter(out="h", view=ParameterView(tensor="filter", length=2))


def make(**fields: Any) -> OpSpec:
    inner = {"kind": "explicit", "length": 4, "groups": 2}
    return spec_from_dict({"op": "probe", "channels": 6, "filter": inner} | fields)


HYENA = """\
q = input
featurizer_q = parameter featurizer (a row per channel, role 0 of 3 in blocks, 3 taps lag_last)
q_hat = conv[+1](q, featurizer_q)
k = input
featurizer_k = parameter featurizer (a row per channel, role 1 of 3 in blocks, 3 taps lag_last)
k_hat = conv[+1](k, featurizer_k)
v = input
featurizer_v = parameter featurizer (a row per channel, role 2 of 3 in blocks, 3 taps lag_last)
v_hat = conv[+1](v, featurizer_v)
z = k_hat * v_hat
filter = parameter filter (rows of 3 channels, 4 taps lag_first)
conv = conv[+1](z, filter)
skip = parameter skip (a row per channel)
skipped = scale(z, skip)
pre_skip = conv + skipped
y = q_hat * pre_skip
return y"""


def test_a_hyena_operator_prints_as_the_formula_that_it_is() -> None:
    gates = {"pre": True, "post": True}
    spec = make(featurizer={"length": 3}, gates=gates, skip="channel")
    assert str(operator_graph(spec)) == HYENA


def test_a_short_convolution_with_bias_and_silu() -> None:
    graph = operator_graph(make(bias="ungated", activation="silu"))
    lines = str(graph).splitlines()
    assert lines[-4:] == [
        "bias = parameter bias (a row per channel)",
        "pre_bias = shift(conv, bias)",
        "y = silu(pre_bias)",
        "return y",
    ]
    assert graph.inputs == ("x",)
    assert [p.out for p in graph.parameters] == ["filter", "bias"]


def test_a_bare_convolution_is_its_own_output() -> None:
    assert operator_graph(make()).outputs == ("conv",)


@given(specs())
def test_every_operator_has_a_valid_graph(spec: OpSpec) -> None:
    graph = operator_graph(spec)
    assert graph.inputs == spec.inputs
    used = list(dict.fromkeys(node.view.tensor for node in graph.parameters))
    assert sorted(used) == sorted(p.name for p in spec.parameters)
    assert graph.live() == graph, "every node is needed"
    assert len(str(graph).splitlines()) == len(graph.nodes) + 1
    network = graph.network()
    assert nx.is_directed_acyclic_graph(network)
    order = {node.out: i for i, node in enumerate(graph.nodes)}
    assert all(order[used] < order[out] for used, out in network.edges)


@given(specs())
def test_equal_specs_make_equal_graphs(spec: OpSpec) -> None:
    again = spec_from_dict(spec.to_dict())
    assert operator_graph(again) == operator_graph(spec)
    assert hash(operator_graph(again)) == hash(operator_graph(spec))


def test_live_drops_what_no_output_needs() -> None:
    waste = Multiply(out="waste", a="x", b="x")
    conv = Conv(out="y", x="x", taps="h", direction=+1)
    graph = Graph(nodes=(X, TAPS, waste, conv), outputs=("y",))
    assert graph.live() == Graph(nodes=(X, TAPS, conv), outputs=("y",))


@pytest.mark.parametrize(
    ("nodes", "outputs", "message"),
    [
        ((X, X), ("x",), "x is defined twice"),
        ((Add(out="y", a="x", b="x"), X), ("y",), "x is used before it is defined"),
        ((X,), ("y",), "output y is never defined"),
        ((X, Conv(out="y", x="x", taps="x", direction=1)), ("y",), "x is no parameter"),
        ((X, Conv(out="y", x="x", taps="h", direction=1), TAPS), ("y",), "h is no parameter"),
        ((X, TAPS, Multiply(out="y", a="x", b="h")), ("y",), "h is no activation"),
        (
            (X, ChannelSum(out="s", x="x", view=TAPS.view), Add(out="y", a="x", b="s")),
            ("y",),
            "s is no activation",
        ),
        (
            (X, TapGradient(out="g", grad="x", x="x", view=TAPS.view), Add(out="y", a="g", b="x")),
            ("y",),
            "g is no activation",
        ),
    ],
)
def test_graphs_that_break_the_rules(
    nodes: tuple[Node, ...], outputs: tuple[str, ...], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        Graph(nodes=nodes, outputs=outputs)


def test_values_are_frozen() -> None:
    for value in (X, TAPS, TAPS.view, Graph(nodes=(X,), outputs=("x",))):
        name = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, "other")


def test_what_a_node_uses() -> None:
    conv = Conv(out="y", x="x", taps="h", direction=-1)
    assert (activations(conv), parameter(conv)) == (("x",), "h")
    assert text(conv) == "y = conv[-1](x, h)"
    gate = Multiply(out="y", a="q", b="k")
    assert (activations(gate), parameter(gate)) == (("q", "k"), None)


def test_the_view_of_a_parameter_is_all_that_a_node_knows_of_it() -> None:
    spec = make(
        featurizer={"length": 3, "taps": "lag_first"},
        gates={"pre": True, "post": False},
        layout={"projection": "interleaved"},
    )
    view = operator_graph(spec).view("featurizer_v")
    assert view == ParameterView(
        tensor="featurizer",
        length=3,
        order=TapOrder.LAG_FIRST,
        role=1,
        roles=2,
        interleaved=True,
    )
