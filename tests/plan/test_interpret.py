"""The eager meaning of graphs and tile programs: formulas written out, mistakes noticed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from sh2gen.graph.evaluate import evaluate
from sh2gen.graph.nodes import Add, Conv, Graph, Input, Parameter, ParameterView, operator_graph
from sh2gen.lower import plans
from sh2gen.plan.interpret import interpret, reduce_partials, run
from sh2gen.plan.kernel import Reduction, Role
from sh2gen.plan.plan import Plan
from sh2gen.plan.program import TileProgram
from sh2gen.plan.statements import Fir, LoadRows, Statement
from sh2gen.plan.values import Operand, Rows
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.language import TapOrder
from sh2gen.spec.operator import OpSpec
from tests.strategies_schedules import assert_close, random_tensors


def make(**fields: Any) -> OpSpec:
    inner = {"kind": "explicit", "length": 4, "groups": 2}
    gates = {"pre": True, "post": True}
    base = {"op": "probe", "channels": 6, "filter": inner, "gates": gates}
    return spec_from_dict(base | fields)


def plan_of(spec: OpSpec, layout: str = "BDL", saved: bool = False) -> Plan:
    return next(p for p in plans(spec, "direct") if p.layout == layout and bool(p.saved) == saved)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", list(TapOrder))
def test_causal_convolution_and_its_adjoint_written_out(order: TapOrder) -> None:
    spec = make(channels=2, filter={"kind": "explicit", "length": 3, "groups": 2})
    view = ParameterView(tensor="filter", length=3, order=order)
    taps = Parameter(out="h", view=view)
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 0.0]]], dtype=torch.float64)
    h = torch.tensor([[1.0, 10.0, 100.0], [2.0, 3.0, 4.0]], dtype=torch.float64)
    stored = h if order is TapOrder.LAG_FIRST else h.flip(1)

    def conv(direction: int) -> Tensor:
        node = Conv(out="y", x="x", taps="h", direction=direction)
        graph = Graph(nodes=(Input(out="x"), taps, node), outputs=("y",))
        return evaluate(graph, spec, {"x": x}, {"filter": stored})["y"]

    close(conv(+1)[0], torch.tensor([[1.0, 12.0, 123.0, 234.0], [2, 3, 4, 0]]).double())
    close(conv(-1)[0], torch.tensor([[321.0, 432.0, 43.0, 4.0], [2, 0, 0, 0]]).double())


def test_outputs_keep_their_order_and_may_be_inputs() -> None:
    nodes = (Input(out="a"), Input(out="b"), Add(out="s", a="a", b="b"))
    values = {name: torch.randn(1, 6, 5) for name in "ab"}
    result = evaluate(Graph(nodes=nodes, outputs=("s", "b")), make(), values, {})
    assert list(result) == ["s", "b"]
    assert result["s"].dtype == torch.float64
    close(result["b"], values["b"].double())


@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_taps_beyond_the_sequence_play_no_part(length: int) -> None:
    spec = make(filter={"kind": "explicit", "length": 16, "groups": 3})
    inputs, parameters, dy = random_tensors(spec, 1, length)
    for plan in plans(spec):
        y, gradients = interpret(plan, spec, inputs, parameters, dy)
        assert_close(spec, inputs, parameters, dy, y, gradients)
        assert not gradients["filter"][:, length:].any()


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 16, 64])
def test_any_number_of_rows_gives_the_same_result(rows: int) -> None:
    spec = make(featurizer={"length": 3}, skip="channel", bias="ungated")
    inputs, parameters, dy = random_tensors(spec, 2, 19)
    y, gradients = interpret(plan_of(spec), spec, inputs, parameters, dy, rows=rows)
    assert_close(spec, inputs, parameters, dy, y, gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arithmetic_is_in_the_dtype_asked_for(dtype: torch.dtype) -> None:
    spec = make()
    inputs, parameters, dy = random_tensors(spec, 1, 9)
    y, gradients = interpret(plan_of(spec), spec, inputs, parameters, dy, dtype=dtype)
    assert {t.dtype for t in (y, *gradients.values())} == {dtype}


def test_gradients_of_a_packed_parameter_reach_their_rows() -> None:
    spec = make(channels=2, filter={"kind": "explicit", "length": 1, "groups": 1})
    spec = dataclasses.replace(spec, featurizer=make(featurizer={"length": 2}).featurizer)
    partials = torch.arange(12.0).reshape(6, 2).double()  # role, lag by channel
    view = ParameterView(tensor="featurizer", length=2, order=TapOrder.LAG_LAST, roles=3)
    blocks = reduce_partials(Reduction(tensor="featurizer", first=0, view=view), spec, partials)
    expected = [[2.0, 0], [3, 1], [6, 4], [7, 5], [10, 8], [11, 9]]  # q, q, k, k, v, v
    assert blocks.tolist() == expected
    view = dataclasses.replace(view, interleaved=True)
    mixed = reduce_partials(Reduction(tensor="featurizer", first=0, view=view), spec, partials)
    assert mixed.tolist() == [expected[i] for i in (0, 2, 4, 1, 3, 5)]


def test_partial_sums_add_the_channels_of_a_group() -> None:
    spec = make(channels=4, skip="group")
    partials = torch.tensor([[1.0, 2, 3, 4]]).double()
    view = ParameterView(tensor="skip", width=2)
    found = reduce_partials(Reduction(tensor="skip", first=0, view=view), spec, partials)
    assert found.tolist() == [3, 7]


# --------------------------------------------------------------------------------- wrong programs


def changed(program: TileProgram, old: Statement, new: Statement) -> TileProgram:
    return dataclasses.replace(program, body=tuple(new if s is old else s for s in program.body))


def loads(program: TileProgram) -> list[LoadRows]:
    return [s for s in program.body if isinstance(s, LoadRows)]


@pytest.mark.parametrize("role", [Role.FORWARD, Role.BACKWARD])
def test_one_row_of_context_too_few_is_noticed(role: Role) -> None:
    spec = make(featurizer={"length": 3})
    kernel = plan_of(spec).kernel(role)
    assert kernel is not None
    inputs, parameters, dy = random_tensors(spec, 1, 21)
    tensors = inputs | {"dy": dy}
    for load in loads(kernel.program):
        for narrower in (Rows(load.rows.lo + 1, load.rows.hi), Rows(load.rows.lo, -1)):
            less = dataclasses.replace(load, rows=narrower)
            with pytest.raises(AssertionError, match=f"{load.out}.*holds"):
                run(changed(kernel.program, load, less), spec, tensors, parameters)


def test_a_filter_that_does_not_fit_its_rows_is_noticed() -> None:
    spec = make()
    program = plan_of(spec).kernel(Role.FORWARD).program  # type: ignore[union-attr]
    (fir,) = [s for s in program.body if isinstance(s, Fir)]
    x = Operand(fir.x.name, Rows(fir.x.rows.lo + 1, 0))
    inputs, parameters, _ = random_tensors(spec, 1, 21)
    with pytest.raises(AssertionError, match="rows; the plan says"):
        run(changed(program, fir, dataclasses.replace(fir, x=x)), spec, inputs, parameters)


def test_unknown_functions_have_no_meaning() -> None:
    spec = make()
    program = plan_of(spec).kernel(Role.FORWARD).program  # type: ignore[union-attr]
    inputs, parameters, _ = random_tensors(spec, 1, 8)
    gate = program.body[-2]
    strange = dataclasses.replace(gate, function="divide")  # type: ignore[type-var]
    with pytest.raises(AssertionError, match="no meaning"):
        run(changed(program, gate, strange), spec, inputs, parameters)


def test_the_forward_graph_is_the_operator() -> None:
    spec = make(channels=1, filter={"kind": "explicit", "length": 2, "groups": 1}, skip="channel")
    tensors = {n: torch.randn(1, 1, 3, dtype=torch.float64) for n in ("q", "k", "v")}
    h, d = torch.tensor([[2.0, 3.0]]).double(), torch.tensor([5.0]).double()
    y = evaluate(operator_graph(spec), spec, tensors, {"filter": h, "skip": d})["y"][0, 0]
    q, z = tensors["q"][0, 0], (tensors["k"] * tensors["v"])[0, 0]
    previous = torch.cat((torch.zeros(1).double(), z[:-1]))
    close(y, q * (2 * z + 3 * previous + 5 * z))
