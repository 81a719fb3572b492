"""Looking numbers up: what was tuned, the nearest of it, lock files; nothing is ever measured."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from click.testing import CliRunner, Result

from sh2gen.api import driver
from sh2gen.base.errors import Sh2genError
from sh2gen.base.resources import folder
from sh2gen.cli.cli import main
from sh2gen.cost.cost import predict
from sh2gen.lower import plans
from sh2gen.plan.plan import Plan
from sh2gen.runtime.operator import Operator
from sh2gen.schedule.schedule import DIRECTIONS, Numbers, coupling, schedule, search_space
from sh2gen.spec.language import OpSpec, Workload, load_spec, spec_from_dict
from sh2gen.targets.target import Target
from sh2gen.tuning.choose import candidates, explain_misses, passed_over, tables, wanted
from sh2gen.tuning.tables import Decision, fields_of, in_order, write_decisions
from tests.fakes import SPEC, Fakes
from tests.gpus import H100, H200

MODAL = spec_from_dict(
    {
        "op": "small_modal",
        "channels": 16,
        "filter": {"kind": "modal", "modes": 2, "groups": 16, "parametrisation": "complex"},
    }
)
DATE = "2026-11-25T10:00:00Z"

ON = "tuned on NVIDIA H200 (2026-11-25)"
TIME = "10.0 us at B=1 L=8192"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder, and a package that has no tables; and a machine whose GPU, if it has
    one, nobody may touch.
    """
    monkeypatch.setenv("SH2GEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(
        "sh2gen.tuning.tables.package_folder", lambda name: tmp_path / "package" / name
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("choosing numbers needs no GPU")

    for name in ("_lazy_init", "init", "get_device_name", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, never)
    return tmp_path / "home"


def plan_of(spec: OpSpec) -> Plan:
    """The one that is taken of SPEC, also for other sizes."""
    return plans(spec)[0]


def decide(
    spec: OpSpec,
    direction: str,
    numbers: Numbers,
    target: Target = H200,
    date: str = DATE,
    plan: Plan | None = None,
    us: float = 10.0,
    **key: str,
) -> Decision:
    """As a search on this machine would have decided, but for the parts of the key given."""
    want = wanted(spec, target, plan or plan_of(spec), direction)
    times = tuple(us for _ in want.workloads)
    return Decision(
        key=dataclasses.replace(want.key, **key),
        fields=fields_of(spec),
        kernels={},
        op=spec.op,
        workloads=in_order(spec.workloads),
        numbers=numbers,
        us=times,
        low=times,
        high=times,
        bound_us=times,
        start_us=times,
        start=numbers,
        checks=21,
        effort="measure",
        date=date,
        versions={},
    )


def changed(direction: str = "forward", **knobs: int) -> Numbers:
    return schedule(SPEC, plan_of(SPEC), {direction: knobs}).numbers(direction)


TILES = dict(schedule(SPEC, plans(SPEC)[0]).forward)["TILES"]
DEFAULT = {d: schedule(SPEC, plans(SPEC)[0]).numbers(d) for d in DIRECTIONS}


def keep(home: Path, *decisions: Decision) -> None:
    for decision in decisions:
        write_decisions(home / "tuned", [decision])


def chosen(
    spec: OpSpec = SPEC,
    target: Target = H200,
    changes: Mapping[str, Mapping[str, int]] | None = None,
) -> tuple[dict[str, Numbers], Mapping[str, str]]:
    first = candidates(spec, target, changes=changes, known=tables())[0]
    return {d: first.schedule.numbers(d) for d in DIRECTIONS}, first.origins


# ---- which numbers ------------------------------------------------------------------------------


def test_without_tables_numbers_are_the_default() -> None:
    numbers, origins = chosen()
    assert numbers == DEFAULT and origins == {"forward": "default", "backward": "default"}


def test_what_was_tuned_for_exactly_this_is_taken(home: Path) -> None:
    exact, other = changed(TILES=4), changed(TILES=8)
    keep(
        home,
        decide(SPEC, "forward", other, triton="2.0"),
        decide(SPEC, "forward", exact),
    )
    numbers, origins = chosen()
    assert numbers == DEFAULT | {"forward": exact}
    assert origins == {"forward": f"{ON}; {TIME}", "backward": "default"}


def test_else_the_nearest_and_what_differs_is_said(home: Path) -> None:
    other = dataclasses.replace(SPEC, workloads=(Workload(batch=1, length=1024),))
    keep(home, decide(other, "forward", changed(TILES=4)))
    keep(home, decide(SPEC, "backward", changed("backward", TILES=8), triton="2.0"))
    numbers, origins = chosen()
    assert numbers == {
        "forward": changed(TILES=4),
        "backward": changed("backward", TILES=8),
    }
    where = "nearest: tuned on NVIDIA H200 (2026-11-25)"
    assert origins["forward"] == (
        f"{where} for B=1 L=1024, here B=1 L=8192; there 10.0 us at B=1 L=1024"
    )
    assert origins["backward"].startswith(f"{where} with Triton 2.0, here ")


def test_a_gpu_of_the_same_kind_lends_its_numbers(home: Path) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4)))
    numbers, origins = chosen(target=H100)
    assert numbers["forward"] == changed(TILES=4)
    assert origins["forward"].endswith(
        "; not measured on H100; about 14.3 us at B=1 L=8192 here by bandwidth"
    )
    own = decide(SPEC, "forward", changed(TILES=8), H100)
    keep(home, own)
    numbers, origins = chosen(target=H100)
    assert numbers["forward"] == changed(TILES=8)
    assert origins["forward"] == f"tuned on {H100.device_name} (2026-11-25); {TIME}"


def test_a_folder_that_is_given_goes_before_ones_own_and_this_before_the_package(
    home: Path, tmp_path: Path
) -> None:
    """However new the others are: an update of the package takes no tuning back."""
    package, given = tmp_path / "package" / "schedules" / "tuned", tmp_path / "given"
    write_decisions(
        package, [decide(SPEC, "forward", changed(TILES=8), date="2028-01-01T00:00:00Z")]
    )
    assert chosen()[0]["forward"] == changed(TILES=8)
    keep(home, decide(SPEC, "forward", changed(TILES=4), date="2027-01-01T00:00:00Z"))
    assert chosen()[0]["forward"] == changed(TILES=4)
    write_decisions(
        given, [decide(SPEC, "forward", changed(TILES=2), date="2026-01-01T00:00:00Z")]
    )
    assert chosen()[0]["forward"] == changed(TILES=4)
    first = candidates(SPEC, H200, known=tables(given))[0]  # as tune starts, with --out
    assert first.schedule.forward == changed(TILES=2)


@pytest.mark.parametrize(
    "numbers",
    [
        (*DEFAULT["forward"], ("BLOCK_X", 1)),  # a knob that is no more
        DEFAULT["forward"][:-1],  # one that was not yet
        tuple((n, 7 if n == "TILES" else v) for n, v in DEFAULT["forward"]),
        tuple((n, 64 if n == "BLOCK_D" else v) for n, v in DEFAULT["forward"]),
    ],
)
def test_numbers_of_an_older_space_are_not_taken(home: Path, numbers: Numbers) -> None:
    keep(home, decide(SPEC, "forward", numbers))
    assert chosen() == (DEFAULT, dict.fromkeys(DIRECTIONS, "default"))
    keep(home, decide(SPEC, "forward", changed(TILES=2), triton="2.0"))
    assert chosen()[0]["forward"] == changed(TILES=2)
    want = plan_of(SPEC)
    lines = explain_misses(SPEC, H200, want, tables())["forward"]
    assert any("excluded by numbers that are not legal here" in line for line in lines)


def older(numbers: Numbers) -> Numbers:
    """Without a knob that came later and says what kernels were before."""
    return tuple(pair for pair in numbers if pair[0] != "EVICT_LAST")


def test_numbers_older_than_a_knob_that_says_what_was_before_are_taken(home: Path) -> None:
    keep(home, decide(SPEC, "forward", older(changed(TILES=2))))
    numbers, origins = chosen()
    assert numbers == DEFAULT | {"forward": changed(TILES=2)}
    assert origins["forward"] == f"{ON}; {TIME}"


def test_a_table_that_is_damaged_is_no_table(home: Path) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4)))
    (path,) = (home / "tuned").glob("*/*.jsonl")
    path.write_text(path.read_text().replace('"v": 2', '"v": 99') + "{\n")
    assert chosen() == (DEFAULT, dict.fromkeys(DIRECTIONS, "default"))


def test_numbers_given_count_more_than_tuned_ones(home: Path) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4, BLOCK_T=2048)))
    numbers, origins = chosen(changes={"forward": {"TILES": 8}})
    assert numbers == DEFAULT | {"forward": changed(TILES=8, BLOCK_T=2048)}
    assert origins["forward"] == f"{ON}, with TILES=8 as given"  # which was not timed
    _, origins = chosen(changes={"forward": {"TILES": 4}})
    assert origins["forward"] == f"{ON}; {TIME}, with TILES=4 as given"
    assert origins["backward"] == "default"
    with pytest.raises(Sh2genError) as caught:
        chosen(changes={"forward": {"BLOCK_T": 8}})
    assert caught.value.code == "K003"
    with pytest.raises(Sh2genError) as caught:
        chosen(changes={"sideways": {"BLOCK_T": 8}})
    assert caught.value.code == "K001"


def test_times_of_other_channels_are_not_said_to_be_from_here(home: Path) -> None:
    filter_ = {"kind": "explicit", "length": 3, "groups": 8}
    other = spec_from_dict(SPEC.to_dict() | {"channels": 8, "filter": filter_})
    keep(home, decide(other, "forward", changed(TILES=4)))
    assert chosen()[1]["forward"].endswith(
        f" for 8 channels, here 4; for 8 groups, here 4; there {TIME}"
    )
    # Scaled by bandwidth it would still be of other channels.
    assert chosen(target=H100)[1]["forward"].endswith(f"not measured on H100; there {TIME}")


# ---- a GPU that is no target --------------------------------------------------------------------


def test_numbers_for_a_gpu_that_is_no_target_are_not_called_exact(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(home, *(decide(SPEC, d, DEFAULT[d]) for d in DIRECTIONS))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 PCIe")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    first = candidates(SPEC, driver.resolve_target(None), known=tables())[0]
    assert set(first.origins.values()) == {
        f"nearest: {ON}; not measured on NVIDIA H100 PCIe; there {TIME}"
    }
    assert not first.measured
    # Who names a target compiles for that one.
    first = candidates(SPEC, driver.resolve_target("H200"), known=tables())[0]
    assert set(first.origins.values()) == {f"{ON}; {TIME}"}


# ---- which plan ---------------------------------------------------------------------------------

RANKED = candidates(SPEC, H200)
CHEAPEST, SECOND = RANKED[0].plan, RANKED[1].plan
NAMES = [c.plan.name for c in RANKED]


def us_of(direction: str) -> float:
    """Microseconds that are predicted of the cheapest plan."""
    (workload,) = SPEC.workloads
    found = predict(SPEC, CHEAPEST, RANKED[0].schedule, direction, workload, H200)
    return found.seconds * 1e6


def tune(home: Path, plan: Plan, share: float, **options: Any) -> None:
    """Keep numbers of both directions that took this share of what is predicted of the cheapest
    plan.
    """
    for d in DIRECTIONS:
        numbers = schedule(SPEC, plan).numbers(d)
        keep(home, decide(SPEC, d, numbers, plan=plan, us=share * us_of(d), **options))


def ranked() -> list[tuple[str, str]]:
    return [(c.plan.name, c.basis) for c in candidates(SPEC, H200, known=tables())]


def test_a_plan_that_was_tuned_and_is_faster_is_taken(home: Path) -> None:
    tune(home, SECOND, 0.9)
    assert ranked()[:2] == [(NAMES[1], "measured"), (NAMES[0], "predicted")]
    first, second, *_ = found = candidates(SPEC, H200, known=tables())
    assert first.score == pytest.approx(0.9 * second.score)
    assert all(text.startswith(ON) for text in first.origins.values())
    assert passed_over(found) == ()


def test_a_plan_that_was_tuned_and_is_slower_is_named_with_what_takes_it(home: Path) -> None:
    tune(home, SECOND, 1.5)
    found = candidates(SPEC, H200, known=tables())
    assert found[0].plan == CHEAPEST and not found[0].measured
    assert passed_over(found) == (
        f"tuned numbers of {NAMES[1]}: 1.50x the cost, measured (of {NAMES[0]}: predicted); "
        f"--plan {NAMES[1]} takes them",
    )
    taken = candidates(SPEC, H200, NAMES[1], known=tables())
    assert taken[0].plan == SECOND and passed_over(taken) == ()


def test_who_tunes_the_cheapest_plan_keeps_it(home: Path) -> None:
    """However slow it was: what is predicted of others is no better founded."""
    tune(home, CHEAPEST, 1.5)
    assert ranked()[0] == (NAMES[0], "measured")
    assert [name for name, _ in ranked()] == NAMES
    tune(home, RANKED[2].plan, 1.7)
    assert ranked()[0] == (NAMES[0], "measured")
    tune(home, SECOND, 1.2)  # what was measured is
    assert ranked()[0] == (NAMES[1], "measured")


def test_only_what_was_measured_for_exactly_this_counts(home: Path) -> None:
    tune(home, SECOND, 0.5, triton="2.0")
    assert ranked()[0] == (NAMES[0], "predicted")
    (line,) = passed_over(candidates(SPEC, H200, known=tables()))
    said = re.match(rf"tuned numbers of {NAMES[1]}: ([\d.]+)x the cost, predicted ", line)
    first, second, *_ = RANKED
    assert said is not None and said[1] == f"{second.score / first.score:.2f}"
    numbers = schedule(SPEC, SECOND).forward
    keep(home, decide(SPEC, "forward", numbers, plan=SECOND, us=0.1))  # of one direction
    assert ranked()[0] == (NAMES[0], "predicted")


def test_plans_that_were_tuned_for_others_are_not_named(home: Path) -> None:
    filter_ = {"kind": "explicit", "length": 3, "groups": 8}
    other = spec_from_dict(SPEC.to_dict() | {"channels": 8, "filter": filter_})
    for d in DIRECTIONS:
        keep(home, decide(other, d, schedule(other, SECOND).numbers(d), plan=SECOND))
        keep(home, decide(SPEC, d, schedule(SPEC, SECOND).numbers(d), H100, plan=SECOND))
    assert passed_over(candidates(SPEC, H200, known=tables())) == ()


def test_numbers_given_are_predicted(home: Path) -> None:
    tune(home, CHEAPEST, 0.5)
    first = candidates(SPEC, H200, changes={"forward": {"TILES": 4}}, known=tables())[0]
    assert first.plan == CHEAPEST and not first.measured


# ---- directions that must agree -----------------------------------------------------------------


def tiles(direction: str, steps: int) -> Numbers:
    plan = plan_of(MODAL)
    points = search_space(MODAL, plan, direction).points
    return next(point for point in points[1:] if coupling(plan, point) == steps)


def agreed(numbers: Mapping[str, Numbers]) -> int | None:
    """The steps of a tile; the schedule is legal."""
    plan = plan_of(MODAL)
    schedule(MODAL, plan, {d: dict(found) for d, found in numbers.items()})
    return coupling(plan, numbers["forward"])


def test_pairs_that_were_tuned_together_are_taken_as_they_are(home: Path) -> None:
    pair = {d: tiles(d, 1024) for d in DIRECTIONS}
    keep(home, *(decide(MODAL, d, numbers) for d, numbers in pair.items()))
    numbers, origins = chosen(MODAL)
    assert numbers == pair and set(origins.values()) == {f"{ON}; {TIME}"}


def test_numbers_that_do_not_go_together_are_made_to(home: Path) -> None:
    """By those of backward, which takes longer."""
    keep(home, decide(MODAL, "forward", tiles("forward", 512)))
    keep(home, decide(MODAL, "backward", tiles("backward", 1024)))
    numbers, origins = chosen(MODAL)
    assert numbers["backward"] == tiles("backward", 1024) and agreed(numbers) == 1024
    assert origins["backward"] == f"{ON}; {TIME}"
    assert origins["forward"] == "goes with the tiles of backward"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_one_tuned_direction_decides_for_both(home: Path, direction: str) -> None:
    keep(home, decide(MODAL, direction, tiles(direction, 1024)))
    numbers, origins = chosen(MODAL)
    assert numbers[direction] == tiles(direction, 1024) and agreed(numbers) == 1024
    (other,) = set(DIRECTIONS) - {direction}
    assert origins[other] == f"goes with the tiles of {direction}"


# ---- the command line ---------------------------------------------------------------------------


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def op(tmp_path: Path) -> str:
    path = tmp_path / "small_conv.yaml"
    path.write_text(SPEC.to_yaml())
    return str(path)


def compiled(op: str, out: Path, *arguments: str) -> Result:
    return run(
        "compile", op, "--out", str(out), "--no-verify", "--no-build", "--target=H200", *arguments
    )


def test_compile_writes_tuned_numbers_and_says_where_they_are_from(
    home: Path, op: str, tmp_path: Path
) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4)))
    out = tmp_path / "out"
    result = compiled(op, out)
    assert result.exit_code == 0, result.output
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"numbers forward: {ON}; {TIME}" in rows
    assert "numbers backward: default" in rows
    space: dict[str, Any] = {}
    text = (out / "small_conv.py").read_text()
    block = text[text.index("NUMBERS = ") :].partition("}  # the schedule")[0] + "}"
    exec(block, space)  # of a file that was written a line above
    assert space["NUMBERS"]["forward"] == dict(changed(TILES=4))
    assert space["NUMBERS"]["backward"] == dict(DEFAULT["backward"])
    (data,) = json.loads(compiled(op, out, "--json").stdout)
    assert data["origins"]["forward"].startswith("tuned on ")
    assert data["schedule"]["forward"] == dict(changed(TILES=4))


def test_compile_and_explain_say_what_was_tuned_and_is_not_taken(
    home: Path, op: str, tmp_path: Path
) -> None:
    tune(home, SECOND, 1.5)
    words = f"1.50x the cost, measured (of {NAMES[0]}: predicted); --plan {NAMES[1]} takes them"
    result = compiled(op, tmp_path / "out")
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"not taken tuned numbers of {NAMES[1]}: {words}" in rows
    assert f"not taken: tuned numbers of {NAMES[1]}: {words}" in run("explain", op).stdout
    (data,) = json.loads(compiled(op, tmp_path / "out", "--json").stdout)
    assert data["not_taken"] == [f"tuned numbers of {NAMES[1]}: {words}"]
    assert {c["plan"]: c["basis"] for c in data["candidates"]}[NAMES[1]] == "measured"
    result = compiled(op, tmp_path / "out", "--plan", NAMES[1])
    assert f"{ON}; " in result.stdout and "not taken" not in result.stdout
    tune(home, SECOND, 0.5)
    (row,) = (r for r in compiled(op, tmp_path / "out").stdout.splitlines() if " plan " in r)
    assert f"{NAMES[1]} (measured; cost of others: {NAMES[0]} 2.00x predicted, " in row


def test_tables_in_a_folder_of_their_own_are_read(op: str, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    write_decisions(folder, [decide(SPEC, "forward", changed(TILES=4))])
    assert "default" in compiled(op, tmp_path / "out").stdout
    result = compiled(op, tmp_path / "out", "--tables", str(folder))
    assert f"forward: {ON}; {TIME}" in result.stdout
    assert f"forward numbers: {ON}" in run("explain", op, "--tables", str(folder)).stdout
    assert f"{ON}" in run("explain", op, "--miss", "--tables", str(folder)).stdout
    for verb in ("compile", "explain"):
        result = run(verb, op, "--tables", str(tmp_path / "none"))
        assert result.exit_code == 2 and "error[C006]: there is no folder " in result.stderr
    lock = str(tmp_path / "job.lock")
    assert compiled(op, tmp_path / "out", "--lock", lock).exit_code == 0
    result = compiled(op, tmp_path / "out", "--locked", lock, "--tables", str(folder))
    assert result.exit_code == 2 and "error[C006]" in result.stderr


def test_a_folder_without_any_table_is_refused(op: str, tmp_path: Path) -> None:
    """Also the folder of a GPU, which is one too deep; one without a table of this operator is
    not.
    """
    given, empty = tmp_path / "tables", tmp_path / "empty"
    empty.mkdir()
    other = spec_from_dict(SPEC.to_dict() | {"op": "other_conv", "activation": "silu"})
    path = write_decisions(given, [decide(other, "forward", changed(TILES=4))])
    for verb in (("compile", "--no-verify", "--no-build", f"--out={tmp_path}/out"), ("explain",)):
        for place, deep in ((empty, False), (path.parent, True)):
            result = run(verb[0], op, *verb[1:], "--tables", str(place))
            assert result.exit_code == 2 and result.stdout == ""
            assert f"error[C006]: {place} holds no tuned table\n" in result.stderr
            assert "it has <gpu>/<op>.jsonl in it, such as nvidia-h200/" in result.stderr
            assert ("give the folder above" in result.stderr) == deep
        result = run(verb[0], op, *verb[1:], "--tables", str(given))
        assert result.exit_code == 0, result.output
        assert "default" in result.stdout


@pytest.mark.parametrize("arguments", [(), ("--miss",), ("--stage=plan",), ("--json",)])
def test_damaged_lines_of_tables_are_named(
    home: Path, op: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4)))
    (path,) = (home / "tuned").glob("*/*.jsonl")
    path.write_text(path.read_text() + "{\n")
    for result in (
        run("explain", op, *arguments),
        compiled(op, tmp_path / "out", "--json"),
        run("tune", op, "--effort=estimate"),
        run("tune", op),  # and then that there is no GPU
    ):
        assert result.stderr.startswith(f"skipped: {path}:2: not JSON")


@pytest.mark.parametrize("name", ["us", "bound_us", "start_us", "date"])
def test_a_decision_whose_times_mean_nothing_is_skipped_by_name(
    home: Path, op: str, tmp_path: Path, name: str
) -> None:
    """Shares of the bound are divided by them; a date that is none would go before all others."""
    keep(home, *(decide(SPEC, d, DEFAULT[d]) for d in DIRECTIONS))
    (path,) = (home / "tuned").glob("*/*.jsonl")
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    first[name] = "9999" if name == "date" else [0.0]
    path.write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    for result in (compiled(op, tmp_path / "out"), run("explain", op, "--target=H200")):
        assert result.exit_code == 0, result.output
        assert f"skipped: {path}:1: {name} must be " in result.stderr
        assert result.stdout.count(f"{ON}; {TIME}") == 1


# ---- sizes that are not those of the file ------------------------------------------------------

FOUR = tuple(Workload(batch=1, length=n) for n in (2048, 8192, 32768, 131072))
SIZED = dataclasses.replace(SPEC, workloads=FOUR)
ALONE = dataclasses.replace(SPEC, workloads=FOUR[1:2])
ELSEWHERE = dataclasses.replace(SPEC, workloads=(Workload(batch=1, length=64),))


@pytest.fixture
def four(tmp_path: Path) -> str:
    """A file of four workloads, for which together the package has numbers."""
    path = tmp_path / "small_conv.yaml"
    path.write_text(SIZED.to_yaml())
    package = tmp_path / "package" / "schedules" / "tuned"
    write_decisions(
        package, [decide(SIZED, "forward", changed(TILES=8), date="2028-01-01T00:00:00Z")]
    )
    return str(path)


def test_numbers_of_ones_own_that_are_not_taken_are_named_with_what_takes_them(
    home: Path, four: str, tmp_path: Path
) -> None:
    words = (
        f"forward numbers of your own, {ON} for B=1 L=8192, here B=1 L=2048, 8192, 32768, 131072; "
        "--length 8192 takes them"
    )
    assert "of your own" not in compiled(four, tmp_path / "out").stdout
    keep(home, decide(ALONE, "forward", changed(TILES=4)))
    result = compiled(four, tmp_path / "out")
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"not taken {words}" in rows and "TILES=8" in result.stdout
    assert f"not taken: {words}" in run("explain", four, "--target=H200").stdout
    (data,) = json.loads(compiled(four, tmp_path / "out", "--json").stdout)
    assert data["not_taken"] == [words]
    result = compiled(four, tmp_path / "out", "--length=8192")
    assert f"forward: {ON}; {TIME}" in result.stdout and "of your own" not in result.stdout
    assert "'length': 8192}" in str(Operator(tmp_path / "out" / "small_conv.py").spec.to_dict())


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (decide(ELSEWHERE, "forward", changed(TILES=4)), ""),  # of no size that is wanted
        (decide(ALONE, "forward", changed(TILES=8)), ""),  # the same numbers
        (decide(ALONE, "forward", changed(TILES=4), H100), ""),
        (
            decide(SIZED, "forward", changed(TILES=4), triton="2.0"),
            "; tune again to take such",
        ),
        (
            decide(
                dataclasses.replace(SPEC, workloads=(*FOUR[:2], Workload(batch=4, length=2048))),
                "forward",
                changed(TILES=4),
            ),
            " for B=1 L=2048, 8192, B=4 L=2048, here B=1 L=2048, 8192, 32768, 131072",
        ),
    ],
    ids=["elsewhere", "same", "gpu", "triton", "batches"],
)
def test_which_numbers_of_ones_own_are_named(
    home: Path, four: str, own: Decision, words: str
) -> None:
    keep(home, own)
    (*lines,) = passed_over(candidates(SIZED, H200, known=tables()))
    assert [line.endswith(words) for line in lines] == [True] * bool(words)


def test_numbers_of_ones_own_for_all_workloads_leave_nothing_to_say(home: Path, four: str) -> None:
    keep(home, decide(ALONE, "forward", changed(TILES=4)))
    keep(home, decide(SIZED, "forward", changed(TILES=2)))
    first, *_ = found = candidates(SIZED, H200, known=tables())
    assert first.schedule.forward == changed(TILES=2) and passed_over(found) == ()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), [(1, 2048), (1, 8192), (1, 32768), (1, 131072)]),
        (("--length=64",), [(1, 64)]),
        (("--length=64", "--length=8", "--length=64", "--batch=3"), [(3, 8), (3, 64)]),
        (("--batch=2",), [(2, 2048), (2, 8192), (2, 32768), (2, 131072)]),
    ],
)
def test_sizes_given_replace_those_of_the_file(
    four: str, tmp_path: Path, options: tuple[str, ...], expected: list[tuple[int, int]]
) -> None:
    def sizes(result: Result) -> list[tuple[int, int]]:
        data = json.loads(result.stdout)
        found = (data if isinstance(data, list) else data["plans"])[0]["predictions"]
        return [(one["batch"], one["length"]) for one in found]

    assert sizes(compiled(four, tmp_path / "out", "--json", *options)) == expected
    assert sizes(run("explain", four, "--target=H200", "--json", *options)) == expected
    with mock.patch.object(driver, "candidates", wraps=driver.candidates) as choice:
        run("verify", four, "--plan=fft", "--device=cpu", "--examples=1", *options)
    (spec,) = (call.args[0] for call in choice.call_args_list)
    assert [(w.batch, w.length) for w in spec.workloads] == expected


def test_sizes_beyond_all_bounds_are_an_error_of_the_input(op: str, tmp_path: Path) -> None:
    for verb in ("compile", "explain", "verify"):
        result = run(verb, op, f"--length=1{400 * '0'}")
        assert result.exit_code == 2 and "error[S00" in result.stderr


def test_a_generated_file_has_its_own_sizes(op: str, tmp_path: Path) -> None:
    assert compiled(op, tmp_path / "out").exit_code == 0
    result = run("verify", str(tmp_path / "out" / "small_conv.py"), "--length=64")
    assert result.exit_code == 2 and "error[C006]: a generated file has its own" in result.stderr


def test_what_the_page_tunes_is_what_it_compiles(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its two commands, where the package has numbers for the workloads of the file together."""
    shutil.copytree(folder("schedules") / "tuned", tmp_path / "package" / "schedules" / "tuned")
    text = (folder("ops").parent / "docs" / "tuning.md").read_text()
    commands = re.findall(r"^sh2gen ((?:tune|compile) ops/hyena_se\S* --length 8192)$", text, re.M)
    tuning, compiling = commands
    spec = load_spec(folder("ops") / "hyena_se.yaml")
    monkeypatch.chdir(folder("ops").parent)
    monkeypatch.setattr("sh2gen.targets.target.from_device", lambda: H200)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr("sh2gen.tuning.choose.triton_version", lambda: "3.6")
    plan = candidates(spec, H200)[0].plan
    points = {
        d: [schedule(spec, plan, {d: {"TILES": n}}).numbers(d) for n in (2, 64)]
        for d in DIRECTIONS
    }
    fakes = Fakes(tmp_path / "fakes", points, spec=spec)
    for direction, (_, best) in points.items():
        fakes.rule(direction, best, us=[50.0])
    with fakes.installed():
        result = run(*tuning.split(), "--effort=exhaustive")
    assert result.exit_code == 0, result.output
    assert "jsonl; compile and explain take it with --length 8192\n" in result.stdout
    out = ("--out", str(tmp_path / "out"), "--no-verify", "--no-build", "--json")
    (data,) = json.loads(run(*compiling.split(), *out).stdout)
    assert data["schedule"] == {d: dict(best) for d, (_, best) in points.items()}
    assert all("50.0 us at B=1 L=8192" in text for text in data["origins"].values())
    assert data["not_taken"] == []
    (data,) = json.loads(run("compile", "ops/hyena_se.yaml", *out).stdout)
    assert [text.endswith("; --length 8192 takes them") for text in data["not_taken"]] == [
        True
    ] * 2


@pytest.mark.parametrize("digits", [30, 400, 5000])
def test_a_line_of_sizes_beyond_all_bounds_is_skipped_by_name(
    home: Path, op: str, tmp_path: Path, digits: int
) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4)))
    (path,) = (home / "tuned").glob("*/*.jsonl")
    line = path.read_text()
    path.write_text(line.replace('"length": 8192', f'"length": 1{digits * "0"}') + line)
    for result in (compiled(op, tmp_path / "out"), run("explain", op)):
        assert result.exit_code == 0 and f"skipped: {path}:1: " in result.stderr
        assert f"{ON}; {TIME}" in result.stdout


def test_a_lock_file_keeps_files_as_they_are_whatever_was_tuned_since(
    home: Path, op: str, tmp_path: Path
) -> None:
    lock, out, path = str(tmp_path / "job.lock"), tmp_path / "out", tmp_path / "out/small_conv.py"
    keep(home, decide(SPEC, "forward", changed(TILES=4)))
    assert compiled(op, out, "--lock", lock).exit_code == 0
    before = path.read_bytes()
    keep(home, decide(SPEC, "forward", changed(TILES=16), date="2027-01-01T00:00:00Z"))
    assert compiled(op, out).exit_code == 0
    assert path.read_bytes() != before
    result = compiled(op, out, "--locked", lock)
    assert result.exit_code == 0 and f"pinned by {lock}" in result.stdout
    assert path.read_bytes() == before
    again = str(tmp_path / "again.lock")
    assert compiled(op, out, "--locked", lock, "--lock", again).exit_code == 0
    assert Path(again).read_bytes() == Path(lock).read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"filter": {"kind": "explicit", "length": 4, "groups": 4}}, "pins another operator"),
        ({"op": "new_conv", "channels": 8}, "does not pin `new_conv`"),
    ],
)
def test_an_operator_that_a_lock_file_does_not_pin(
    op: str, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    lock, out = str(tmp_path / "job.lock"), tmp_path / "out"
    assert compiled(op, out, "--lock", lock).exit_code == 0
    other = tmp_path / "other.yaml"
    other.write_text(spec_from_dict(SPEC.to_dict() | changes).to_yaml())
    result = compiled(str(other), tmp_path / "none", "--locked", lock)
    assert result.exit_code == 2 and "error[R003]" in result.stderr and words in result.stderr
    assert not (tmp_path / "none").exists()


def test_a_lock_file_pins_an_operator_whatever_it_is_called(op: str, tmp_path: Path) -> None:
    lock, out = str(tmp_path / "job.lock"), tmp_path / "out"
    assert compiled(op, out, "--lock", lock, "--set=forward.TILES=4").exit_code == 0
    other = tmp_path / "other.yaml"
    other.write_text(dataclasses.replace(SPEC, op="other_conv").to_yaml())
    (data,) = json.loads(compiled(str(other), out, "--locked", lock, "--json").stdout)
    assert data["schedule"]["forward"] == dict(changed(TILES=4))
    result = compiled(op, out, "--locked", lock, "--plan=fft")
    assert result.exit_code == 2 and "error[R003]" in result.stderr


def test_a_check_writes_no_lock_file(op: str, tmp_path: Path) -> None:
    assert compiled(op, tmp_path / "out").exit_code == 0
    lock = tmp_path / "job.lock"
    result = compiled(op, tmp_path / "out", "--check", "--lock", str(lock))
    assert result.exit_code == 2 and not lock.exists()
    assert "error[C006]: nothing is written with --check" in result.stderr
    assert "help: leave out --check, or --lock" in result.stderr


@pytest.mark.parametrize("name", ["op.yaml", "op.yaml/job.lock"])
def test_a_lock_file_that_cannot_be_written_is_said_before_any_work(
    op: str, tmp_path: Path, name: str
) -> None:
    (tmp_path / "op.yaml").write_text("op: mine\n")
    result = compiled(op, tmp_path / "out", "--lock", str(tmp_path / name))
    assert result.exit_code == 2 and "error[C005]" in result.stderr
    assert "choosing a plan" not in result.stderr and not (tmp_path / "out").exists()
    assert "lock file" in result.stderr and "--out" not in result.stderr
    assert (tmp_path / "op.yaml").read_text() == "op: mine\n"


@pytest.fixture
def locked(op: str, tmp_path: Path) -> Path:
    path = tmp_path / "job.lock"
    assert compiled(op, tmp_path / "out", "--lock", str(path)).exit_code == 0
    return path


def test_no_numbers_are_given_beside_a_lock_file(op: str, tmp_path: Path, locked: Path) -> None:
    result = compiled(op, tmp_path / "none", "--locked", str(locked), "--set=forward.TILES=4")
    assert result.exit_code == 2 and f"error[C006]: {locked} pins the numbers" in result.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            f'"TILES": {TILES}, ',
            "",
            "R002: forward of small_conv lacks `TILES`, a knob of direct/",
        ),
        ('"TILES"', '"TILE": 4, "TILES"', "R002: forward of small_conv has `TILE`, which is no"),
        (f'"TILES": {TILES}', '"TILES": 17', "K002: forward TILES = 17 is not allowed"),
        ('"BLOCK_T": 1024', '"BLOCK_T": 8', "K003: forward schedule violates "),
        ("direct/BDL/recompute", "direct/BDL", "L003: small_conv has no plan `direct/BDL`"),
        ("direct/BDL/recompute", "magic/BDL", "L003: unknown algorithm `magic`"),
        ("direct/BDL/recompute", "modal/BDL", "L001: `modal` cannot compute small_conv"),
    ],
)
def test_a_lock_file_must_say_all_and_is_named_if_it_is_wrong(
    op: str, tmp_path: Path, locked: Path, old: str, new: str, words: str
) -> None:
    text = locked.read_text()
    assert old in text
    locked.write_text(text.replace(old, new, 1))
    result = compiled(op, tmp_path / "none", "--locked", str(locked))
    code, _, message = words.partition(": ")
    assert result.exit_code == 2 and not (tmp_path / "none").exists()
    assert f"error[{code}]: {locked}: {message}" in result.stderr
    assert f"  --> {locked}:2:" in result.stderr


def test_a_lock_file_older_than_a_knob_that_says_what_was_before_is_taken(
    op: str, tmp_path: Path, locked: Path
) -> None:
    assert compiled(op, tmp_path / "out", "--locked", str(locked)).exit_code == 0
    before = (tmp_path / "out" / "small_conv.py").read_bytes()
    text = locked.read_text()
    assert '"EVICT_LAST": 0, ' in text
    locked.write_text(text.replace('"EVICT_LAST": 0, ', ""))
    assert compiled(op, tmp_path / "out", "--locked", str(locked)).exit_code == 0
    assert (tmp_path / "out" / "small_conv.py").read_bytes() == before


def test_kernels_of_other_text_than_was_pinned_are_said(
    op: str, tmp_path: Path, locked: Path
) -> None:
    result = compiled(op, tmp_path / "out", "--locked", str(locked))
    assert "other text" not in result.stdout + result.stderr
    digest = json.loads(locked.read_text())["schedules"][0]["kernels"]
    locked.write_text(locked.read_text().replace(digest, "00" * 8))
    for arguments in ((), ("--json",)):
        result = compiled(op, tmp_path / "out", "--locked", str(locked), *arguments)
        assert result.exit_code == 0
        assert f"pinned by {locked}, for kernels of other text" in result.stdout
        assert f"{locked} was written for kernels of small_conv of other text" in result.stderr
    again = tmp_path / "again.lock"
    assert compiled(op, tmp_path / "out", "--locked", str(locked), "--lock", str(again))
    assert json.loads(again.read_text())["schedules"][0]["kernels"] == digest


def test_explain_of_a_job_that_is_pinned(home: Path, op: str, tmp_path: Path) -> None:
    lock = str(tmp_path / "job.lock")
    assert compiled(op, tmp_path / "out", "--lock", lock, "--set=forward.TILES=4").exit_code == 0
    keep(home, decide(SPEC, "forward", changed(TILES=16)))
    result = run("explain", op, "--locked", lock)
    assert result.exit_code == 0 and result.stderr == ""
    assert f"forward numbers: pinned by {lock}" in result.stdout and "TILES=4" in result.stdout
    digest = json.loads(Path(lock).read_text())["schedules"][0]["kernels"]
    Path(lock).write_text(Path(lock).read_text().replace(digest, "00" * 8))
    assert "of other text: numbers are as pinned" in run("explain", op, "--locked", lock).stderr
    for other in ("--miss", "--set=forward.TILES=8", f"--tables={tmp_path}"):
        result = run("explain", op, "--locked", lock, other)
        assert result.exit_code == 2 and "error[C006]" in result.stderr


def test_explain_names_what_differs(home: Path, op: str) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4), triton="2.0"))
    other = dataclasses.replace(SPEC, op="other", workloads=(Workload(batch=4, length=99),))
    keep(home, decide(other, "forward", changed(TILES=2)))
    result = run("explain", op, "--miss", "--target=H200")
    assert result.exit_code == 0
    first, nearest, next_, last, nothing = result.stdout.splitlines()
    assert first.startswith("direct/BDL/recompute forward: nearest: tuned on NVIDIA H200")
    assert nearest == (
        "  other on NVIDIA H200 (2026-11-25): "
        "nearest: differs in workloads: B=1 L=8192 here, B=4 L=99 there"
    )
    assert "triton: " in next_ and "2.0 there" in next_
    assert last == "direct/BDL/recompute backward: default"
    assert nothing == "  nothing was tuned for this direction"
    data = json.loads(run("explain", op, "--miss", "--target=H200", "--json").stdout)
    assert data["directions"]["backward"] == {"origin": "default", "tuned": []}
    assert len(data["directions"]["forward"]["tuned"]) == 2


def test_who_asks_for_the_default_gets_it(home: Path) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4)))
    assert candidates(SPEC, H200)[0].schedule.forward == DEFAULT["forward"]
