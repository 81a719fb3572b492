"""Schedules: legal configs, and what a user reads about illegal ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sh2gen.base.errors import Sh2genError
from sh2gen.base.resources import folder
from sh2gen.lower import ALGORITHMS, plans
from sh2gen.plan.plan import Plan
from sh2gen.schedule.config import ROLES, Schedule, completed, schedule
from sh2gen.schedule.expressions import relation
from sh2gen.schedule.knobs import _values, read_schedules
from sh2gen.schedule.space import Constraint, Space, space
from sh2gen.spec.decode import load_spec, spec_from_dict
from sh2gen.spec.operator import OpSpec
from tests.strategies import filter_for, register_profiles, specs
from tests.strategies_schedules import schedules

register_profiles()


def make(**fields: Any) -> OpSpec:
    inner = {"kind": "explicit", "length": 4, "groups": 2}
    return spec_from_dict({"op": "probe", "channels": 6, "filter": inner} | fields)


def first(layout: str = "BDL") -> tuple[OpSpec, Plan]:
    spec = make(layout={"activations": layout})
    return spec, plans(spec, "direct")[0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_default_of_every_plan_is_legal(algorithm: str) -> None:
    spec = make(gates={"pre": True, "post": True}, filter=filter_for(algorithm))
    for plan in plans(spec, algorithm):
        made = schedule(spec, plan)
        assert made.plan == plan.name
        for direction in ROLES:
            config, where = made.config(direction), space(spec, plan, direction)
            assert config == where.default
            assert bool(config) == bool(plan.kernels)
            assert not where.violations(dict(config))
            assert all(value in dict(where.knobs)[name] for name, value in config)


@given(st.data())
def test_drawn_schedules_are_legal(data: st.DataObject) -> None:
    spec = data.draw(specs())
    plan = data.draw(st.sampled_from(plans(spec)))
    drawn = data.draw(schedules(spec, plan))
    changes = {direction: dict(drawn.config(direction)) for direction in ROLES}
    assert schedule(spec, plan, changes) == drawn
    assert hash(drawn) == hash(dataclasses.replace(drawn))


def test_a_config_is_changed_by_direction_and_printed() -> None:
    spec, plan = first()
    made = schedule(spec, plan, {"backward": {"BLOCK_T": 128, "BLOCK_D": 4}})
    assert made.forward == schedule(spec, plan).forward
    assert dict(made.backward)["BLOCK_T"] == 128
    assert str(made) == (
        "forward: ROWS=8 BLOCK_D=1 BLOCK_T=1024 TILES=1 num_warps=2; "
        "backward: ROWS=16 BLOCK_D=4 BLOCK_T=128 TILES=4 num_warps=1; "
        "decode: BLOCK_D=64 DOUBLE=131072 num_warps=1"
    )
    assert dict(schedule(spec, plan, {"decode": {"num_warps": 2}}).decode)["num_warps"] == 2
    assert "maxnreg=192" in str(schedule(spec, plan, {"forward": {"maxnreg": 192}}))
    assert str(Schedule(plan="fft/BDL/recompute")) == "no config"


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"BLOCK_L": 64}, "K001", ["unknown knob `BLOCK_L` (forward)", "did you mean `BLOCK_"]),
        ({"zebra": 64}, "K001", ["`zebra`", "one of ROWS, BLOCK_D, BLOCK_T, TILES, EVICT_LAST"]),
        ({"BLOCK_T": 100}, "K002", ["forward BLOCK_T = 100", "one of 8, 16, 32", "4096"]),
        ({"ROWS": 4}, "K002", ["forward ROWS = 4", "one of 8, 16"]),
        ({"ROWS": -8}, "K002", ["ROWS = -8"]),
        (
            {"ROWS": 16, "BLOCK_T": 8, "BLOCK_D": 256},
            "K003",
            ["violates BLOCK_T >= ROWS: a tile is at least one block", "ROWS = 16", "BLOCK_T = 8"],
        ),
        (
            {"BLOCK_T": 8},
            "K003",
            ["every thread needs a lane", "change BLOCK_D to 64 too", "num_warps = 2"],
        ),
        ({"BLOCK_D": 256}, "K003", ["runs out of registers"]),
    ],
)
def test_illegal_schedules(changes: dict[str, int], code: str, words: list[str]) -> None:
    spec, plan = first()
    with pytest.raises(Sh2genError) as caught:
        schedule(spec, plan, {"forward": changes})
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value)


def test_what_else_to_change_is_said() -> None:
    """Of products of 16 channels x 4 segments, whose rows are at least 16 together."""
    spec = load_spec(folder("ops") / "hyena_mr.yaml")
    plan = plans(spec, "toeplitz")[0]
    with pytest.raises(Sh2genError, match=r"BLOCK_D .* >= 16: a matrix product") as caught:
        schedule(spec, plan, {"forward": {"BLOCK_D": 1}})
    assert caught.value.code == "K003"
    assert str(caught.value.help).startswith("change SEGMENTS to 16 too; given ROWS = 8")
    schedule(spec, plan, {"forward": {"BLOCK_D": 1, "SEGMENTS": 16}})
    with pytest.raises(Sh2genError) as caught:  # nothing that is left would help
        schedule(spec, plan, {"forward": {"BLOCK_D": 1, "SEGMENTS": 8}})
    assert str(caught.value.help).startswith("given ROWS = 8")


def test_constraints_of_a_layout_hold_only_there() -> None:
    config = {"ROWS": 8, "BLOCK_D": 32, "BLOCK_T": 16, "num_warps": 1, "TILES": 1}
    schedule(*first("BDL"), {"forward": config})
    with pytest.raises(Sh2genError, match="BLOCK_T <= ROWS: rows of channels-last") as caught:
        schedule(*first("BLD"), {"forward": config})
    assert caught.value.code == "K003"


def test_an_algorithm_without_kernels_has_no_knobs() -> None:
    spec = make()
    plan = plans(spec, "fft")[0]
    assert schedule(spec, plan) == Schedule(plan=plan.name)
    assert list(space(spec, plan, "forward").points()) == [()]
    with pytest.raises(Sh2genError) as caught:
        schedule(spec, plan, {"forward": {"ROWS": 8}})
    assert caught.value.code == "K001"
    assert "no kernels to tune" in caught.value.message
    assert "explain" in str(caught.value.help)


def test_a_config_that_is_older_than_a_knob_is_completed() -> None:
    spec, plan = first()
    whole = schedule(spec, plan).forward
    older = tuple(pair for pair in whole if pair[0] != "EVICT_LAST")
    assert completed(plan.name, "forward", older) == whole
    given = tuple((n, 1 if n == "EVICT_LAST" else v) for n, v in whole)
    assert completed(plan.name, "forward", given) == given
    for config in (schedule(spec, plan).backward, (), (("ROWS", 8), ("EVICT_LAST", 1))):
        assert completed(plan.name, "backward", config) == config
    bld = first("BLD")[1].name  # has no such knob
    for name in (bld, "no_algorithm/BDL/recompute", "../direct/BDL/recompute", ""):
        assert completed(name, "forward", older) == older
    strange = (("BLOCK_X", 1), *older[1:])  # for others to refuse
    assert dict(completed(plan.name, "forward", strange)) == dict(strange) | {"EVICT_LAST": 0}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_stands_for_an_absent_knob_is_legal(algorithm: str) -> None:
    for kind in read_schedules(algorithm)["knobs"].values():
        assert kind.get("absent", _values(kind)[0]) in _values(kind)


def test_points_are_all_that_keeps_the_constraints() -> None:
    small = Space(
        knobs=(("A", (1, 2, 3)), ("B", (1, 2))),
        constraints=(Constraint("A * B <= LIMIT", "it is small"),),
        facts=(("LIMIT", 3),),
        default=(("A", 1), ("B", 1)),
    )
    points = [dict(point) for point in small.points()]
    pairs = [(p["A"], p["B"]) for p in points]
    assert pairs == [(1, 1), (1, 2), (2, 1), (3, 1)]
    assert all(small.check("forward", point) == tuple(point.items()) for point in points)
    assert small.violations({"A": 2, "B": 2}) == small.constraints


@pytest.mark.parametrize(
    ("text", "values", "holds"),
    [
        ("A >= B", {"A": 1, "B": 1}, True),
        ("A > B", {"A": 1, "B": 1}, False),
        ("A < 2 * B - 1", {"A": 2, "B": 2}, True),
        ("A == B + 1", {"A": 3, "B": 2}, True),
        ("A // 2 <= B", {"A": 5, "B": 2}, True),
        ("A // 2 * 2 == A", {"A": 5}, False),
        ("8 <= A", {"A": 7}, False),
    ],
)
def test_constraints_mean_what_they_say(text: str, values: dict[str, int], holds: bool) -> None:
    assert Constraint(text, "").holds(values) is holds


@pytest.mark.parametrize(
    "text",
    [
        "f(A) > 1",
        "__import__('os').system('true') == 0",
        "A.real > 1",
        "A[0] > 1",
        "(lambda: 1) == 1",
        "'text' == A",
        "1.5 < A",
        "A ** 9 ** 9 > 1",
        "A / 2 > 1",
        "A % 2 == 1",
        "-A < 1",
        "A < B < C",
        "A != B",
        "A in B",
        "A and B",
        "A",
        "A > 1; B",
        "A >",
        "",
    ],
)
def test_constraints_are_comparisons_and_nothing_else(text: str) -> None:
    with pytest.raises(SyntaxError):
        relation(text)


def test_values_of_a_knob() -> None:
    assert _values({"one_of": [3, 1]}) == (3, 1)
    assert _values({"pow2": [2, 16]}) == (2, 4, 8, 16)
    assert _values({"range": [2, 4]}) == (2, 3, 4)
    with pytest.raises(KeyError):
        _values({"any": [1, 2]})


@pytest.mark.parametrize(
    "text",
    [
        "algorithm: other\nknobs: {}\nrequire: []\ndefault: {}\n",
        "algorithm: broken\nknobs: {}\nrequire: [{that: f(A) > 1, because: x}]\ndefault: {}\n",
        "algorithm: broken\nknobs: {}\n",
        "algorithm: [",
        "",
    ],
)
def test_a_malformed_file_is_named(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    monkeypatch.setattr("sh2gen.schedule.knobs.folder", lambda _: tmp_path)
    with pytest.raises(Sh2genError, match=r"broken\.yaml is malformed") as caught:
        read_schedules.__wrapped__("broken")
    assert caught.value.code == "K004"


@pytest.mark.parametrize(
    ("taps", "io", "rows", "warps"),
    [(128, "bfloat16", 32, 4), (161, "bfloat16", 64, 8), (96, "float32", 64, 8)],
)
def test_defaults_need_every_condition(taps: int, io: str, rows: int, warps: int) -> None:
    fields = {"channels": 16, "filter": {"kind": "explicit", "length": taps, "groups": 1}}
    spec = spec_from_dict({"op": "probe", "dtype": {"io": io}} | fields)
    plan = plans(spec, "toeplitz")[0]
    config = dict(schedule(spec, plan).config("backward"))
    assert (config["BLOCK_D"] * config["SEGMENTS"], config["num_warps"]) == (rows, warps)


def test_states_are_kept_where_backward_looks_for_them() -> None:
    spec = make(filter=filter_for("modal"))
    (plan,) = plans(spec, "modal")
    with pytest.raises(Sh2genError, match="2048 and 1024 steps") as caught:
        schedule(spec, plan, {"backward": {"SEGMENTS": 32}})
    assert caught.value.code == "K003"
    both = {"SEGMENTS": 32, "BLOCK_T": 64}
    assert dict(schedule(spec, plan, {"backward": both}).backward)["BLOCK_T"] == 64
