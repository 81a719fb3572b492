"""Lowerings: verdicts in words, the plans they propose, the rows that these ask for."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given

from sh2gen.base.errors import Sh2genError
from sh2gen.graph.adjoint import adjoint
from sh2gen.graph.nodes import operator_graph
from sh2gen.lower import ALGORITHMS, plans, verdicts
from sh2gen.lower.rows import demanded_rows, tile_program
from sh2gen.plan.kernel import Role
from sh2gen.plan.plan import EagerConv, Plan
from sh2gen.plan.statements import LoadRows, StoreRows
from sh2gen.plan.values import BLOCK, Layout, Rows
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from tests.strategies import filter_for, register_profiles, specs

register_profiles()


def make(length: int | None = 4, kind: str = "explicit", **fields: Any) -> OpSpec:
    inner: dict[str, Any] = {"kind": kind, "groups": 2}
    inner |= {"length": length} if length else {}
    inner |= {"modes": 2, "parametrisation": "log_poles"} if kind == "modal" else {}
    return spec_from_dict({"op": "probe", "channels": 6, "filter": inner} | fields)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_says_why(algorithm: str) -> None:
    for spec in (make(), make(length=1000), make(length=None, kind="modal")):
        verdict = verdicts(spec)[algorithm]
        assert len(str(verdict).split()) >= 4
        assert bool(plans_or_none(spec, algorithm)) == verdict.applies


def plans_or_none(spec: OpSpec, algorithm: str) -> tuple[Plan, ...]:
    try:
        return plans(spec, algorithm)
    except Sh2genError as error:
        assert error.code == "L001"
        return ()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (make(length=17), "17 taps; windows of more than 16"),
        (make(kind="freeform", length=8), "freeform; direct needs explicit taps"),
        (make(featurizer={"length": 17}), "a featurizer of 17 taps; at most 4"),
        (make(sequences="packed", state={"initial": True}), "leave `state` out"),
        (make(state={"initial": True, "width": "K"}), "leave `state.width` out"),
        (make(state={"initial": True, "dtype": "bfloat16"}), "leave `state.dtype` out"),
        (make(context={"ranks": 2, "exchange": "p2p_fft"}), "write `exchange: auto`"),
    ],
)
def test_why_direct_does_not_apply(spec: OpSpec, reason: str) -> None:
    with pytest.raises(Sh2genError, match=re.escape(reason)) as caught:
        plans(spec, "direct")
    assert caught.value.code == "L001"


@pytest.mark.parametrize(
    ("parametrisation", "modes", "reason"),
    [
        ("log_poles", 65, "65 modes; at most 64"),
        ("complex", 33, "33 pairs of complex modes; at most 32"),
    ],
)
def test_states_of_up_to_64_numbers(parametrisation: str, modes: int, reason: str) -> None:
    inner = {"kind": "modal", "groups": 2, "parametrisation": parametrisation}
    spec = make(filter=inner | {"modes": modes})
    with pytest.raises(Sh2genError, match=re.escape(reason)):
        plans(spec, "modal")
    assert [plan.algorithm for plan in plans(spec)] == ["fft", "fft"]
    assert plans(make(filter=inner | {"modes": modes - 1}), "modal")


@pytest.mark.parametrize("parametrisation", ["log_poles", "complex"])
def test_states_of_modes_are_served_as_modes_without_one_are(parametrisation: str) -> None:
    """In every layout, and of any number: by kernels, or else by plain PyTorch, which passes modes
    on from block to block.
    """
    inner = {"kind": "modal", "groups": 2, "parametrisation": parametrisation, "modes": 2}
    for modes in (2, 80):
        alone, carried = (
            plans(make(filter=inner | {"modes": modes}, state=state))
            for state in ("none", {"initial": True, "final": True})
        )
        assert [plan.name for plan in alone] == [plan.name for plan in carried]
        assert {plan.layout for plan in carried} == set(Layout)
        assert {plan.eager for plan in carried if not plan.kernels} == {EagerConv.MODAL}


def test_every_reason_is_given() -> None:
    state = {"initial": True, "final": True}
    spec = make(length=17, featurizer={"length": 17}, sequences="packed", state=state)
    assert len(verdicts(spec)["direct"].reasons) == 3


def test_no_algorithm_at_all_names_them_all() -> None:
    with pytest.raises(Sh2genError) as caught:
        plans(make(sequences="packed", state={"final": True}))
    assert caught.value.code == "L002"
    assert all(f"\n  {name}: " in str(caught.value) for name in ALGORITHMS)


def test_an_unknown_algorithm() -> None:
    with pytest.raises(Sh2genError, match=", ".join(ALGORITHMS)) as caught:
        plans(make(), "winograd")
    assert caught.value.code == "L003"


@given(specs(algorithm_max_taps=40, kinds=("explicit", "decay", "modal", "freeform")))
def test_some_algorithm_always_applies(spec: OpSpec) -> None:
    found = plans(spec)
    assert {plan.algorithm for plan in found} <= set(ALGORITHMS)
    assert any(plan.algorithm == "fft" for plan in found)


@pytest.mark.parametrize(
    ("activations", "layouts"), [("auto", ["BDL", "BLD"]), ("BLD", ["BLD"]), ("BDL", ["BDL"])]
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_layout_of_the_spec_is_kept(
    algorithm: str, activations: str, layouts: list[str]
) -> None:
    spec = make(layout={"activations": activations}, filter=filter_for(algorithm))
    if algorithm == "modal":  # channels first only
        layouts = [layout for layout in layouts if layout == "BDL"]
    found = plans_or_none(spec, algorithm)
    assert list(dict.fromkeys(plan.layout.value for plan in found)) == layouts


def test_only_channels_first_streams_have_phases() -> None:
    """What runs in phases copies rows of steps."""
    first, last = plans(make(), "toeplitz")
    assert [[v.name for v in kernel.variants] for kernel in first.kernels] == [[], ["sm90"]]
    assert not any(kernel.variants for kernel in last.kernels)


def test_a_gate_may_save_what_it_multiplies() -> None:
    gated = make(gates={"pre": True, "post": True}, skip="channel", bias="ungated")
    assert [p.saved for p in plans(gated, "direct")[:2]] == [(), ("pre_bias",)]
    assert all(not p.saved for p in plans(make(), "direct"))


@given(specs(algorithm_max_taps=16))
def test_a_kernel_reads_each_input_and_writes_each_output_once(spec: OpSpec) -> None:
    for plan in plans(spec, "direct"):
        forward, backward = (kernel.program for kernel in plan.kernels)
        assert sorted(forward.loads) == sorted(spec.inputs)
        assert sorted(forward.stores) == sorted(("y", *plan.saved))
        assert set(backward.loads) <= {*spec.inputs, *plan.saved, "dy"}
        assert len(set(backward.loads)) == len(backward.loads)
        assert sorted(backward.stores) == sorted(f"d_{name}" for name in spec.inputs)


@given(specs(algorithm_max_taps=16))
def test_context_is_what_filters_reach(spec: OpSpec) -> None:
    """K - 1 steps for the inner filter and F - 1 for the featurizer, on one side each."""
    lag = (spec.filter.length or 1) - 1
    lag += spec.featurizer.length - 1 if spec.featurizer else 0
    for plan in plans(spec, "direct"):
        forward, backward = (kernel.program for kernel in plan.kernels)
        assert forward.reach == Rows(-lag, 0)
        reach = backward.reach
        assert -lag <= reach.lo and reach.hi <= lag
        for load in backward.body:
            # Only history of inputs is ever read: a segment has no dy and no saved values there.
            if isinstance(load, LoadRows) and load.tensor not in spec.inputs:
                assert load.rows.lo == 0


@given(specs(algorithm_max_taps=40, kinds=("explicit", "decay")))
def test_streams_read_no_context_of_what_has_none(spec: OpSpec) -> None:
    """As above: dy is read from a tile's own first step on, by the variant's phases too."""
    for plan in plans(spec, "toeplitz") if verdicts(spec)["toeplitz"].applies else ():
        backward = plan.kernel(Role.BACKWARD)
        assert backward is not None
        phases = [s for variant in backward.variants for s in variant.phases.body]
        for load in (*backward.program.body, *phases):
            if isinstance(load, LoadRows) and load.tensor not in spec.inputs:
                assert load.tensor == "dy" and load.rows.lo == 0 and not load.ahead


def test_rows_asked_of_a_chain_of_convolutions() -> None:
    spec = make(length=4, featurizer={"length": 3}, gates={"pre": True, "post": True})
    forward = demanded_rows(operator_graph(spec), ("y",))
    assert (forward["z"], forward["k"], forward["q"]) == (Rows(-3, 0), Rows(-5, 0), Rows(-2, 0))
    graph = adjoint(operator_graph(spec))
    backward = demanded_rows(graph, graph.outputs[:3])
    assert backward["dy"] == Rows(0, 5)
    assert backward["d_z"] == Rows(0, 2)
    assert backward["d_q"] == BLOCK


def test_a_value_is_stored_as_soon_as_it_exists() -> None:
    spec = make(gates={"pre": False, "post": True})
    program, _ = tile_program(operator_graph(spec), {"y": "y", "kept": "conv"})
    names = [s.tensor if isinstance(s, StoreRows) else s.out for s in program.body]  # type: ignore[union-attr]
    assert names == ["q", "v", "conv", "kept", "y", "y"]


@given(specs(40, kinds=("explicit", "decay"), precision=("exact",), io=("bfloat16", "float32")))
def test_exact_plans_save_nothing_that_is_rounded(spec: OpSpec) -> None:
    """What forward saves is in the dtype of activations: backward would read rounded values."""
    assert all(not plan.saved for plan in plans(spec))
