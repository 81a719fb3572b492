"""Graphs and plans mean what the reference says: float64, forward and every gradient."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sh2gen.graph.adjoint import adjoint
from sh2gen.graph.evaluate import evaluate, parameter_gradients
from sh2gen.graph.nodes import Conv, Multiply, operator_graph
from sh2gen.lower import ALGORITHMS, plans, verdicts
from sh2gen.lower.rows import tile_program
from sh2gen.plan.interpret import interpret, reduce_partials, run
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from tests.strategies import MODES, PAIRS, TAPS, register_profiles, shapes, specs
from tests.strategies_schedules import assert_close, random_tensors

register_profiles()
KINDS = ("explicit", "decay", "modal", "freeform")


@given(st.data())
@settings(max_examples=settings().max_examples * 2)
def test_every_plan_equals_the_reference(data: st.DataObject) -> None:
    spec = data.draw(specs(kinds=KINDS))
    batch, length = data.draw(shapes(spec, longest=200))
    rows = data.draw(st.sampled_from((8, 16)))
    inputs, parameters, dy = random_tensors(spec, batch, length)
    for plan in plans(spec):
        y, gradients = interpret(plan, spec, inputs, parameters, dy, rows=rows)
        assert_close(spec, inputs, parameters, dy, y, gradients)


@given(st.data())
def test_every_cut_of_the_graph_gives_the_same_gradients(data: st.DataObject) -> None:
    spec = data.draw(specs())
    batch, length = data.draw(shapes(spec, longest=70))
    inputs, parameters, dy = random_tensors(spec, batch, length)
    graph = operator_graph(spec)
    values = [n.out for n in graph.nodes if isinstance(n, Conv | Multiply)]
    saved = tuple(data.draw(st.lists(st.sampled_from(values), unique=True)))
    keeping = dataclasses.replace(graph, outputs=(graph.outputs[0], *saved))
    forward = evaluate(keeping, spec, inputs, parameters)
    backward = adjoint(graph, saved)

    found = evaluate(backward, spec, {**inputs, **forward, "dy": dy}, parameters)
    gradients = dict(zip(spec.inputs, found.values(), strict=False))
    gradients |= parameter_gradients(backward, spec, found)
    y = forward[graph.outputs[0]]
    assert_close(spec, inputs, parameters, dy, y, gradients)

    # And as rows: a saved value may be needed with context on either side.
    stores = {f"d_{name}": value for name, value in zip(spec.inputs, found, strict=False)}
    program, reductions = tile_program(backward, stores)
    program.validate()
    stored, partials, _ = run(program, spec, {**inputs, **forward, "dy": dy}, parameters)
    gradients = {name: stored[f"d_{name}"] for name in spec.inputs}
    gradients |= {r.tensor: reduce_partials(r, spec, partials) for r in reductions}
    assert_close(spec, inputs, parameters, dy, y, gradients)


def structures() -> list[OpSpec]:
    """Every combination of gates, featurizer, skip, bias, activation and packing."""
    found = []
    for inner, pre, post, featurizer, skip, bias, activation, packing in itertools.product(
        (TAPS, MODES, PAIRS),
        (False, True),
        (False, True),
        ("none", {"length": 2}),
        ("none", "channel", "group"),
        ("none", "ungated", "gated"),
        ("none", "silu"),
        ("thirds", "interleaved"),
    ):
        if (bias == "gated" and skip != "none") or (activation == "silu" and (pre or post)):
            continue
        if packing == "interleaved" and not ((pre or post) and featurizer != "none"):
            continue  # nothing is packed
        found.append(
            spec_from_dict(
                {
                    "op": "combined",
                    "channels": 4,
                    "filter": inner,
                    "featurizer": featurizer,
                    "gates": {"pre": pre, "post": post},
                    "skip": skip,
                    "bias": bias,
                    "activation": activation,
                    "layout": {"projection": packing},
                }
            )
        )
    return found


def test_every_structure_equals_the_reference() -> None:
    assert len(structures()) >= 140
    for spec in structures():
        inputs, parameters, dy = random_tensors(spec, 1, 11)
        for plan in plans(spec):
            y, gradients = interpret(plan, spec, inputs, parameters, dy)
            assert_close(spec, inputs, parameters, dy, y, gradients)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_is_tried(algorithm: str) -> None:
    assert any(verdicts(spec)[algorithm].applies for spec in structures())
