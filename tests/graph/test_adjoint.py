"""The backward graph of an operator; tests/equivalence compares its values with the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sh2gen.graph.adjoint import adjoint
from sh2gen.graph.evaluate import evaluate
from sh2gen.graph.nodes import Conv, Input, operator_graph
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from tests.strategies import register_profiles, specs
from tests.strategies_schedules import random_tensors

register_profiles()


def make(**fields: Any) -> OpSpec:
    inner = {"kind": "explicit", "length": 4, "groups": 2}
    return spec_from_dict({"op": "probe", "channels": 6, "filter": inner} | fields)


GATED = """\
q = input
k = input
v = input
z = k * v
filter = parameter filter (rows of 3 channels, 4 taps lag_first)
conv = conv[+1](z, filter)
dy = input
d_q = dy * conv
d_conv = dy * q
d_z = conv[-1](d_conv, filter)
d_filter = tap_gradient(d_conv, z) -> filter (rows of 3 channels, 4 taps lag_first)
d_k = d_z * v
d_v = d_z * k
return d_q, d_k, d_v, d_filter"""


def test_the_gradient_of_a_gated_convolution() -> None:
    graph = operator_graph(make(gates={"pre": True, "post": True}))
    assert str(adjoint(graph)) == GATED
    saved = str(adjoint(graph, ("conv",)))
    assert saved == GATED.replace("conv = conv[+1](z, filter)", "conv = input")


def test_a_value_used_twice_collects_two_terms() -> None:
    lines = str(adjoint(operator_graph(make(skip="channel")))).splitlines()
    assert "d_x_1 = scale(dy, skip)" in lines
    assert "d_x_2 = conv[-1](dy, filter)" in lines
    assert "d_x = d_x_1 + d_x_2" in lines


def test_the_same_graph_gives_the_same_gradient() -> None:
    spec = make(gates={"pre": True, "post": True}, featurizer={"length": 2})
    graph = adjoint(operator_graph(spec))
    assert str(graph) == str(adjoint(operator_graph(spec)))


def test_what_backward_does_not_need_is_not_recomputed() -> None:
    graph = adjoint(operator_graph(make()))
    assert graph.inputs == ("x", "dy")
    assert sum(isinstance(node, Conv) for node in graph.nodes) == 1
    bias = adjoint(operator_graph(make(bias="ungated")))
    assert "bias" not in bias.by_name, "the gradient of a bias does not depend on it"


@given(st.data())
def test_every_cut_is_a_valid_graph_of_every_gradient(data: st.DataObject) -> None:
    spec = data.draw(specs())
    graph = operator_graph(spec)
    values = [n.out for n in graph.nodes if n not in graph.parameters]
    saved = tuple(data.draw(st.lists(st.sampled_from(values), unique=True)))
    backward = adjoint(graph, saved)
    backward.validate()
    assert backward.live() == backward
    assert backward.outputs[len(spec.inputs) :] == tuple(f"d_{p.out}" for p in graph.parameters)
    assert len(set(backward.outputs)) == len(backward.outputs)
    assert set(backward.inputs) <= {*spec.inputs, *saved, "dy"}
    assert all(isinstance(backward.by_name.get(s, Input(out=s)), Input) for s in saved)


@pytest.mark.parametrize("skip", ["none", "channel", "group"])
@pytest.mark.parametrize("featurizer", ["none", {"length": 3}])
def test_backward_is_the_adjoint_of_forward(skip: str, featurizer: object) -> None:
    """<A x, dy> = <x, A^T dy>: an operator without gates and bias is linear in x."""
    spec = make(skip=skip, featurizer=featurizer)
    inputs, parameters, dy = random_tensors(spec, 2, 23)
    graph = operator_graph(spec)
    (y,) = evaluate(graph, spec, inputs, parameters).values()
    d_x, *_ = evaluate(adjoint(graph), spec, {**inputs, "dy": dy}, parameters).values()
    torch.testing.assert_close((y * dy).sum(), (inputs["x"] * d_x).sum(), rtol=1e-10, atol=1e-10)


def test_a_backward_graph_is_not_differentiated_again() -> None:
    backward = adjoint(operator_graph(make()))
    with pytest.raises((AssertionError, ValueError)):
        adjoint(backward)
