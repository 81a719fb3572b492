"""Plans and tile programs: how they print, what they refuse."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sh2gen.graph.nodes import ParameterView
from sh2gen.lower import plans
from sh2gen.plan.geometry import tile_grid
from sh2gen.plan.kernel import Kernel, Role
from sh2gen.plan.plan import Plan
from sh2gen.plan.program import TileProgram
from sh2gen.plan.statements import (
    Accumulate,
    Fir,
    LoadRows,
    LoadTaps,
    Rowwise,
    Statement,
    StorePartial,
    StoreRows,
    ZeroTaps,
)
from sh2gen.plan.values import BLOCK, Operand, Rows
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from tests.strategies import register_profiles, specs

register_profiles()


def make(**fields: Any) -> OpSpec:
    inner = {"kind": "explicit", "length": 4, "groups": 2}
    base = {"op": "probe", "channels": 6, "filter": inner, "layout": {"activations": "BDL"}}
    return spec_from_dict(base | fields)


PLAN = """\
plan direct/BDL/save-conv
forward kernel (tile):
    filter = load_taps(filter, 4)
    for each tile:
        q = load_steps(q, [0 : ROWS])
        v = load_steps(v, [-3 : ROWS])
        conv = fir(v[-3 : ROWS], filter)
        store_steps(conv, conv[0 : ROWS])
        y = multiply(q[0 : ROWS], conv[0 : ROWS])
        store_steps(y, y[0 : ROWS])
backward kernel (tile):
    filter = load_taps(filter, 4)
    d_filter = zero_taps(4)
    for each tile:
        q = load_steps(q, [0 : ROWS+3])
        v = load_steps(v, [-3 : ROWS])
        conv = load_steps(conv, [0 : ROWS])
        dy = load_steps(dy, [0 : ROWS+3])
        d_q = multiply(dy[0 : ROWS], conv[0 : ROWS])
        store_steps(d_q, d_q[0 : ROWS])
        d_conv = multiply(dy[0 : ROWS+3], q[0 : ROWS+3])
        d_v = fir_adjoint(d_conv[0 : ROWS+3], filter)
        store_steps(d_v, d_v[0 : ROWS])
        d_filter += tap_gradient(d_conv[0 : ROWS], v[-3 : ROWS])
    store_partial(0, d_filter)
d_filter = sum of partials 0 .. 3
decode kernel (step):
    filter = load_taps(filter, 4)
    for each sequence:
        q = read_steps(q)
        v = read_steps(v)
        v_rows = after_ring(v, z, 3)
        conv = fir(v_rows[-3 : ROWS], filter)
        y = multiply(q[0 : ROWS], conv[0 : ROWS])
        write_steps(y, y[0 : ROWS])
        keep_steps(v, z)"""


def test_a_plan_prints_as_its_kernels() -> None:
    _, saving = plans(make(gates={"pre": False, "post": True}), "direct")
    assert str(saving) == PLAN


def test_a_plan_without_kernels_prints_its_graphs() -> None:
    (plan,) = plans(make(), "fft")
    lines = str(plan).splitlines()
    assert lines[:2] == [
        "plan fft/BDL/recompute",
        "forward: plain PyTorch, convolution by fft, in chunks of channels",
    ]
    assert "backward: plain PyTorch, convolution by fft, in chunks of channels" in lines
    assert plan.kernels == ()


@given(specs())
def test_plans_are_distinct_printable_and_hashable(spec: OpSpec) -> None:
    found = plans(spec)
    assert len({plan.name for plan in found}) == len(found) == len(set(found))
    assert plans(spec) == found
    for plan in found:
        assert str(plan).startswith(f"plan {plan.name}\n")
        for kernel in plan.kernels:
            kernel.program.validate()
            assert len(set(kernel.program.stores)) == len(kernel.program.stores)
        if backward := plan.kernel(Role.BACKWARD):
            program = backward.program
            rows = [
                i
                for r in plan.reductions
                if not r.by_group
                for i in range(r.first, r.first + r.rows)
            ]
            assert sorted(rows) == list(range(program.partial_rows)), "each is used once"
            assert sorted(r.tensor for r in plan.reductions) == sorted(
                p.name for p in spec.parameters
            )


@given(st.integers(-9, 0), st.integers(0, 9), st.integers(-9, 0), st.integers(0, 9))
def test_joined_rows_hold_both(a: int, b: int, c: int, d: int) -> None:
    one, other = Rows(a, b), Rows(c, d)
    both = one.join(other)
    assert both == other.join(one)
    assert both.join(one) == both.join(other) == both
    assert both in {Rows(lo, hi) for lo in (a, c) for hi in (b, d)}


def test_rows_print_like_slices() -> None:
    assert str(BLOCK) == "[0 : ROWS]"
    assert str(Operand("z", Rows(-6, 2))) == "z[-6 : ROWS+2]"


def test_reach_is_what_any_load_needs() -> None:
    plan = plans(make(featurizer={"length": 3}, gates={"pre": True, "post": True}), "direct")[0]
    reaches = [kernel.program.reach for kernel in plan.kernels]
    assert reaches == [Rows(-5, 0), Rows(-5, 5)]


# ---- programs that break the rules --------------------------------------------------------------

VIEW = ParameterView(tensor="filter", length=3)
HISTORY = Rows(-2, 0)
LOAD = LoadRows(out="x", tensor="x", rows=HISTORY)
TAPS = LoadTaps(out="h", view=VIEW)
ZERO = ZeroTaps(out="d_h", length=3)
FIR = Fir(out="y", x=Operand("x", HISTORY), taps="h", length=3, direction=+1, rows=BLOCK)
STORE = StoreRows(tensor="y", x=Operand("y", BLOCK))
SUM = Accumulate(
    out="d_h",
    function="tap_gradient",
    inputs=(Operand("y", BLOCK), Operand("x", HISTORY)),
    length=3,
)


def program(*body: Statement, prologue: tuple[Statement, ...] = (TAPS, ZERO)) -> TileProgram:
    return TileProgram(
        prologue=prologue, body=body, epilogue=(StorePartial(totals=("d_h",), first=0),)
    )


def test_a_program_that_keeps_the_rules() -> None:
    good = program(LOAD, FIR, SUM, STORE)
    good.validate()
    assert (good.loads, good.stores, good.parameters) == (("x",), ("y",), ("filter",))
    assert good.partial_rows == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ((dataclasses.replace(LOAD, rows=Rows(-1, 0)), FIR, STORE), r"x holds \[-1 : ROWS\]"),
        ((dataclasses.replace(LOAD, rows=Rows(-3, -1)), FIR), "x holds"),
        ((FIR, LOAD), "x is not defined"),
        ((LOAD, LOAD), "x is defined twice"),
        ((LOAD, dataclasses.replace(FIR, x=Operand("x", BLOCK))), "needs"),
        ((LOAD, dataclasses.replace(FIR, direction=-1)), "needs"),
        ((LOAD, dataclasses.replace(FIR, taps="g")), "g is not loaded"),
        ((LOAD, FIR, dataclasses.replace(SUM, out="d_g")), "d_g is not zeroed"),
        ((LOAD, StoreRows(tensor="y", x=Operand("x", HISTORY))), "own rows only"),
        (
            (LOAD, Rowwise(out="y", function="silu", inputs=(FIR.x,), rows=BLOCK)),
            "rows differ",
        ),
        (
            (
                LOAD,
                Rowwise(out="y", function="scale", inputs=(FIR.x,), vector="d", rows=HISTORY),
            ),
            "d is not loaded",
        ),
    ],
)
def test_programs_that_break_the_rules(body: tuple[Statement, ...], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        program(*body).validate()


def test_a_sum_needs_its_operands_rows() -> None:
    body = (dataclasses.replace(LOAD, rows=HISTORY), FIR)
    wide = dataclasses.replace(SUM, inputs=(Operand("y", BLOCK), Operand("x", Rows(-3, 0))))
    with pytest.raises(AssertionError, match="x holds"):
        program(*body, wide).validate()


def test_a_kernel_is_validated_when_it_is_made() -> None:
    with pytest.raises(AssertionError):
        Kernel(
            name="forward",
            role=Role.FORWARD,
            skeleton="tile",
            parts=(),
            program=program(FIR),
            arguments=(),
            grid=tile_grid,
        )


def test_plans_are_frozen() -> None:
    plan: Plan = plans(make())[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.saved = ("z",)  # type: ignore[misc]
