"""Search spaces: which legal configs a search tries, and what goes together."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sh2gen.base.errors import Sh2genError
from sh2gen.base.resources import folder
from sh2gen.emit.kernels import splits_sequences
from sh2gen.lower import plans
from sh2gen.plan.plan import Plan
from sh2gen.schedule.config import DIRECTIONS, Schedule, coupling, partner, schedule
from sh2gen.schedule.facts import FACTS, facts_of
from sh2gen.schedule.knobs import read_schedules
from sh2gen.schedule.space import Config, Survey, _blocks, neighbours, search_space, space
from sh2gen.spec.decode import load_spec, spec_from_dict
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import target
from sh2gen.tuning.search import climb
from sh2gen.tuning.session import problem
from tests.strategies import MODES, PAIRS, TAPS, register_profiles, specs

register_profiles()

OPS = sorted(folder("ops").glob("*.yaml"))
MAIN = ("hyena_se", "hyena_mr", "hyena_li", "short_conv")
OTHER = {"forward": "backward", "backward": "forward"}


def op(name: str) -> OpSpec:
    return load_spec(folder("ops") / f"{name}.yaml")


def together(spec: OpSpec, plan: Plan, direction: str, config: Config) -> Schedule:
    """The schedule of a config and its partner; refused if it is not legal."""
    other = partner(spec, plan, direction, config)
    return schedule(spec, plan, {direction: dict(config), OTHER[direction]: dict(other)})


def listed(spec: OpSpec, plan: Plan, direction: str) -> int:
    """The size of the products that the schedule file lists."""
    facts = dict(space(spec, plan, direction).facts)
    blocks = _blocks(plan, direction, facts)
    return sum(math.prod(len(values) for values in block.values()) for block in blocks)


def check(spec: OpSpec, plan: Plan, direction: str) -> Survey:
    """What holds for every survey; the survey."""
    where, survey = space(spec, plan, direction), search_space(spec, plan, direction)
    assert survey.points[0] == where.default
    assert len(set(survey.points)) == len(survey.points)
    for point in survey.points:
        made = together(spec, plan, direction, point)
        assert made.config(direction) == point
        assert coupling(plan, made.forward) == coupling(plan, made.backward)
    dropped = sum(count for _, count in survey.dropped)
    assert {constraint for constraint, _ in survey.dropped} <= set(where.constraints)
    assert all(count > 0 for _, count in survey.dropped)
    rest = len(survey.points) - 1 + survey.repeated + dropped
    assert rest == listed(spec, plan, direction)
    return survey


@pytest.mark.parametrize("path", OPS, ids=lambda path: path.stem)
def test_what_is_tried_of_shipped_operators(path: Path) -> None:
    spec = load_spec(path)
    for plan in plans(spec):
        for direction in DIRECTIONS:
            start = time.process_time()  # of this process, however busy the machine is
            survey = search_space(spec, plan, direction)
            assert time.process_time() - start < 0.5
            assert check(spec, plan, direction) == survey
            if plan.kernels:
                least = 60 if spec.op in MAIN else 16
                assert least <= len(survey.points) <= 400
            else:
                assert survey == Survey(points=((),), dropped=(), repeated=0)


@given(st.data())
def test_what_is_tried_of_any_operator_is_legal(data: st.DataObject) -> None:
    io = ("bfloat16", "float32", "float16")
    drawn = specs(400, kinds=("explicit", "decay"), io=io, widths=(1, 2, 7, 16, 64, 160))
    spec = data.draw(drawn)
    for plan in plans(spec):
        for direction in DIRECTIONS:
            check(spec, plan, direction)


@given(
    filter=st.sampled_from([MODES, PAIRS]),
    modes=st.sampled_from([1, 16, 17, 32]),
    channels=st.sampled_from([2, 16, 64, 66, 128, 130, 256, 258, 4096]),
    batch=st.sampled_from([1, 4]),
    featurizer=st.sampled_from(["none", {"length": 4}]),
    state=st.sampled_from(["none", {"initial": True, "final": True}]),
    io=st.sampled_from(["bfloat16", "float32"]),
)
def test_what_is_tried_of_any_modal_operator_is_legal(
    filter: dict[str, object], channels: int, batch: int, io: str, modes: int, **fields: Any
) -> None:
    workloads = [{"batch": batch, "length": 8192}]
    base = {"op": "probe", "channels": channels, "workloads": workloads, "dtype": {"io": io}}
    spec = spec_from_dict({**base, "filter": filter | {"modes": modes}, **fields})
    (plan,) = plans(spec, "modal")
    for direction in DIRECTIONS:
        survey = check(spec, plan, direction)
        # Numbers of programs that split nothing are the same schedule: one of them is tried.
        made = [together(spec, plan, direction, point) for point in survey.points]
        programs = {
            max(value, 4 * channels * batch - 1)
            for one in made
            for name, value in one.config(direction)
            if name == "PROGRAMS"
        }
        tried = {dict(one.config(direction))["PROGRAMS"] for one in made}
        assert len(tried) == len(programs)
        split = any(splits_sequences(spec, plan, one) for one in made)
        assert split == (4 * channels * batch <= 1024)


def test_the_variant_for_sm90_is_tried_apart_from_other_knobs() -> None:
    """Those are for calls that it does not take, and their product with it would be large."""
    spec = op("hyena_mr")
    plan = plans(spec, "toeplitz")[0]
    default, *points = map(dict, search_space(spec, plan, "backward").points)
    of_variant = [point for point in points if point["TILES_SM90"]]
    assert {point["TILES_SM90"] for point in of_variant} == {16, 32, 64, 256}
    for point in of_variant:
        assert point | {"TILES_SM90": 128} == default
    assert len({point["BLOCK_T"] for point in points}) > 2


def test_programs_are_tried_where_they_change_something() -> None:
    for channels, tried in ((64, {1, 256, 512, 1024}), (4096, {512})):
        spec = spec_from_dict({"op": "probe", "channels": channels, "filter": MODES})
        (plan,) = plans(spec, "modal")
        points = search_space(spec, plan, "forward").points
        assert {dict(point)["PROGRAMS"] for point in points} == tried


# ---- what goes together -------------------------------------------------------------------------


def test_only_kept_states_couple_directions() -> None:
    spec = op("hyena_se")
    plan = plans(spec, "direct")[0]
    made = schedule(spec, plan)
    assert coupling(plan, made.forward) is None
    config = schedule(spec, plan, {"forward": {"BLOCK_T": 512}}).forward
    assert partner(spec, plan, "forward", config) == made.backward
    (plan, *_) = plans(spec, "fft")
    assert coupling(plan, ()) is None and partner(spec, plan, "forward", ()) == ()


def test_a_partner_changes_as_little_as_can_be() -> None:
    spec = op("hyena_li")
    (plan,) = plans(spec, "modal")
    default = schedule(spec, plan)
    assert partner(spec, plan, "forward", default.forward) == default.backward
    assert partner(spec, plan, "backward", default.backward) == default.forward
    half = schedule(spec, plan, {d: {"SEGMENTS": 32} for d in DIRECTIONS})
    found = partner(spec, plan, "forward", half.forward)
    changed = set(found) - set(default.backward)
    assert coupling(plan, found) == 1024 and changed in ({("SEGMENTS", 32)}, {("BLOCK_T", 16)})


def test_a_config_without_a_partner_says_why() -> None:
    spec = op("hyena_li")
    (plan,) = plans(spec, "modal")
    tiny = {d: {"SEGMENTS": 16, "BLOCK_T": 16} for d in DIRECTIONS}
    config = schedule(spec, plan, tiny).forward
    with pytest.raises(Sh2genError, match="forward has tiles of 256 steps, as no back") as caught:
        partner(spec, plan, "forward", config)
    assert caught.value.code == "K003"


def test_neighbours_differ_in_one_knob_by_the_next_value() -> None:
    def at(a: int, b: int) -> Config:
        return (("A", a), ("B", b))

    points = tuple(at(a, b) for a in (1, 2, 4, 8) for b in (0, 96, 128) if (a, b) != (4, 96))
    assert neighbours(points, at(2, 0)) == (at(1, 0), at(4, 0), at(2, 96))
    assert neighbours(points, at(2, 96)) == (at(1, 96), at(8, 96), at(2, 0), at(2, 128))
    assert neighbours(points, at(4, 96)) == (at(2, 96), at(8, 96), at(4, 0), at(4, 128))
    assert neighbours(points, at(3, 100)) == ()
    assert neighbours(points, at(3, 128)) == (at(2, 128), at(4, 128))
    assert neighbours([()], ()) == ()


@pytest.mark.parametrize("name", MAIN)
def test_neighbours_are_points_and_see_each_other(name: str) -> None:
    spec = op(name)
    plan = plans(spec)[0]
    for direction in DIRECTIONS:
        points = search_space(spec, plan, direction).points
        assert neighbours(points, points[0])
        for point in points:
            for other in neighbours(points, point):
                assert other in points and other != point
                assert point in neighbours(points, other)


@pytest.mark.parametrize("name", ["hyena_se", "short_conv"])
def test_the_hint_is_tried_beside_the_same_config_without_it(name: str) -> None:
    """A prediction knows no difference: the step from one to the other is what finds it."""
    spec = op(name)
    plan = plans(spec, "direct")[0]
    points = search_space(spec, plan, "forward").points
    with_hint = [point for point in points if dict(point)["EVICT_LAST"]]
    assert len(points) / 5 < len(with_hint) < len(points) / 3
    for point in with_hint:
        without = tuple((n, 0 if n == "EVICT_LAST" else v) for n, v in point)
        assert point in neighbours(points, without) and without in neighbours(points, point)
    where = Workload(batch=1, length=8192)
    start = points[0]
    likely = problem(spec, plan, "forward", (where,), target("H200"), start, points)
    opening = itertools.islice(climb(likely, (1.0,), {}, 30), 30)
    assert sum(dict(point)["EVICT_LAST"] for point in opening) >= 5


# ---- files --------------------------------------------------------------------------------------

FILE = """
algorithm: broken
knobs:
  A: {{one_of: [1, 2, 4, 8]}}
  B: {{one_of: [1, 2], only: [backward]}}
require:
  - {{that: A * WIDTH <= 64, because: it is small}}
default: {{BDL: {{forward: {{A: 1}}, backward: {{A: 1, B: 1}}}}}}
search: {search}
"""


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ("{BDL: {forward: [{A: [3]}]}}", "search of BDL forward: A = 3 is not one of 1, 2, 4, 8"),
        ("{BDL: {forward: [{A: [true]}]}}", "BDL forward: A = True is not one of"),
        ("{BDL: {forward: [{A: [1.0]}]}}", "BDL forward: A = 1.0 is not one of"),
        ("{BDL: {forward: [{A: 2}]}}", "BDL forward: A: not a list of values but 2"),
        ("{BDL: {forward: [{A: []}]}}", "BDL forward: A: not a list of values"),
        ("{BDL: {forward: [{B: [1]}]}}", "BDL forward: B: no such knob; one of A"),
        ("{BDL: {backward: [{B: [1], C: [1]}]}}", "BDL backward: C: no such knob; one of A, B"),
        ("{BDL: {forward: [{A: ['2 * A']}]}}", "BDL forward: A: `A` in `2 * A` is no fact"),
        ("{BDL: {forward: [{A: ['f(K)']}]}}", "BDL forward: A: `f(K)` is not made of"),
        ("{BDL: {forward: [{A: ['K +']}]}}", "BDL forward: A: invalid syntax"),
        ("{BDL: {forward: [{when: [1], A: [1]}]}}", "BDL forward: when: 1 is not a relation"),
        ("{BDL: {forward: [{when: [A > 1], A: [1]}]}}", "when: `A` in `A > 1` is no fact"),
        ("{BDL: {forward: [{when: [K], A: [1]}]}}", "when: `K` is not one comparison"),
        ("{BDL: {forward: {A: [1]}}}", "BDL forward: not a list of blocks"),
        ("{BDL: {forward: [A]}}", "BDL forward: not a block but 'A'"),
        ("{BDL: {sideways: []}}", "BDL sideways: there is no such layout or direction"),
        ("{BLD: {forward: []}}", "BLD forward: there is no such layout or direction"),
        ("{BDL: [{A: [1]}]}", "search: not lists of blocks"),
        ("", "search: not lists of blocks"),
    ],
)
def test_a_malformed_search_is_refused_with_its_place(
    search: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken.yaml").write_text(FILE.format(search=search))
    monkeypatch.setattr("sh2gen.schedule.knobs.folder", lambda _: tmp_path)
    with pytest.raises(Sh2genError, match=r"broken\.yaml is malformed: ") as caught:
        read_schedules.__wrapped__("broken")
    assert caught.value.code == "K004" and words in caught.value.message


def read(search: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[OpSpec, Plan]:
    """An operator of groups of 16 channels and a plan whose schedule file is FILE."""
    (tmp_path / "direct.yaml").write_text(FILE.format(search=search).replace("broken", "direct"))
    spec = spec_from_dict({"op": "probe", "channels": 32, "filter": TAPS})
    plan = plans(spec, "direct")[0]
    text = read_schedules.__wrapped__
    monkeypatch.setattr("sh2gen.schedule.knobs.folder", lambda _: tmp_path)
    monkeypatch.setattr("sh2gen.schedule.space.read_schedules", text)
    return spec, plan


def test_blocks_are_joined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    search = (
        "{BDL: {backward: [{A: [8, 4, 2], B: [1, 2]}, {when: [K > 4], A: [1]}, "
        '{when: [K <= 4], A: ["min(2, WIDTH)", "WIDTH // 4"]}, {A: [1]}]}}'
    )
    spec, plan = read(search, monkeypatch, tmp_path)
    survey = search_space(spec, plan, "backward")
    pairs = [(dict(point)["A"], dict(point)["B"]) for point in survey.points]
    assert pairs == [(1, 1), (4, 1), (4, 2), (2, 1), (2, 2)]
    assert [(c.that, count) for c, count in survey.dropped] == [("A * WIDTH <= 64", 2)]
    assert survey.repeated == 3  # 2 and 4 of the second that holds, and the default
    assert search_space(spec, plan, "forward").points == ((("A", 1),),)


def test_an_expression_must_give_a_legal_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec, plan = read("{BDL: {forward: [{A: [WIDTH]}]}}", monkeypatch, tmp_path)
    words = r"direct\.yaml is malformed: search of BDL forward: A = 16 is not one of 1, 2, 4, 8"
    with pytest.raises(Sh2genError, match=words) as caught:
        search_space(spec, plan, "forward")
    assert caught.value.code == "K004"


def test_facts_are_those_that_have_a_meaning() -> None:
    assert set(facts_of(op("hyena_se"))) == set(FACTS)
