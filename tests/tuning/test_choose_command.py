"""Tuned configs in `sh2gen compile` and `sh2gen explain`."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from click.testing import Result

from sh2gen.base.resources import folder
from sh2gen.runtime.operator import Operator
from sh2gen.schedule.config import DIRECTIONS, schedule
from sh2gen.spec.decode import load_spec, spec_from_dict
from sh2gen.spec.language import Workload
from sh2gen.tuning.choose import candidates, passed_over, tables
from sh2gen.tuning.tables import Decision, write_decisions
from tests.fakes import SPEC, Fakes
from tests.gpus import H100, H200
from tests.tuning.decisions import (
    DEFAULT,
    NAMES,
    ON,
    SECOND,
    TIME,
    changed,
    compiled,
    decide,
    keep,
    run,
    tune,
)

pytestmark = pytest.mark.usefixtures("home")


def test_compile_writes_a_tuned_config_and_says_where_it_is_from(
    home: Path, op: str, tmp_path: Path
) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4)))
    out = tmp_path / "out"
    result = compiled(op, out)
    assert result.exit_code == 0, result.output
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"config forward: {ON}; {TIME}" in rows
    assert "config backward and decode: default" in rows
    ((key, config),) = Operator(out / "small_conv.py").namespace.CONFIGS.items()
    assert key[1:] == (4, 4)
    assert config.pop("decode") == dict(changed("decode"))
    assert config == {"forward": dict(changed(TILES=4)), "backward": dict(DEFAULT["backward"])}
    (data,) = json.loads(compiled(op, out, "--json").stdout)
    assert data["origins"]["forward"].startswith("tuned on ")
    assert data["schedule"]["forward"] == dict(changed(TILES=4))


def test_compile_and_explain_say_what_was_tuned_and_is_not_taken(
    home: Path, op: str, tmp_path: Path
) -> None:
    tune(home, SECOND, 1.5)
    words = f"1.50x the cost, measured (of {NAMES[0]}: predicted); --plan {NAMES[1]} takes it"
    result = compiled(op, tmp_path / "out")
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"not taken tuned config of {NAMES[1]}: {words}" in rows
    assert f"not taken: tuned config of {NAMES[1]}: {words}" in run("explain", op).stdout
    (data,) = json.loads(compiled(op, tmp_path / "out", "--json").stdout)
    assert data["not_taken"] == [f"tuned config of {NAMES[1]}: {words}"]
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
    assert f"forward config: {ON}" in run("explain", op, "--tables", str(folder)).stdout
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


FOUR = tuple(Workload(batch=1, length=n) for n in (2048, 8192, 32768, 131072))
SIZED = dataclasses.replace(SPEC, workloads=FOUR)
ALONE = dataclasses.replace(SPEC, workloads=FOUR[1:2])
ELSEWHERE = dataclasses.replace(SPEC, workloads=(Workload(batch=1, length=64),))


@pytest.fixture
def four(tmp_path: Path) -> str:
    """A file of four workloads, for which together the package has configs."""
    path = tmp_path / "small_conv.yaml"
    path.write_text(SIZED.to_yaml())
    package = tmp_path / "package" / "schedules" / "tuned"
    write_decisions(
        package, [decide(SIZED, "forward", changed(TILES=8), date="2028-01-01T00:00:00Z")]
    )
    return str(path)


def test_a_config_of_ones_own_that_is_not_taken_is_named_with_what_takes_it(
    home: Path, four: str, tmp_path: Path
) -> None:
    words = (
        f"forward config of your own, {ON} for B=1 L=8192, here B=1 L=2048, 8192, 32768, 131072; "
        "--length 8192 takes it"
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
        (decide(ALONE, "forward", changed(TILES=8)), ""),  # the same config
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
def test_which_configs_of_ones_own_are_named(
    home: Path, four: str, own: Decision, words: str
) -> None:
    keep(home, own)
    (*lines,) = passed_over(candidates(SIZED, H200, known=tables()))
    assert [line.endswith(words) for line in lines] == [True] * bool(words)


def test_a_config_of_ones_own_for_all_workloads_leaves_nothing_to_say(
    home: Path, four: str
) -> None:
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
    with mock.patch("sh2gen.api.verify.candidates", wraps=candidates) as choice:
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
    """Its two commands, where the package has configs for the workloads of the file together."""
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
        d: [schedule(spec, plan, {d: {"TILES": n}}).config(d) for n in (2, 64)] for d in DIRECTIONS
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
    default = {"decode": dict(schedule(spec, plan).decode)}
    assert data["schedule"] == default | {d: dict(best) for d, (_, best) in points.items()}
    assert all("50.0 us at B=1 L=8192" in data["origins"][d] for d in DIRECTIONS)
    assert data["not_taken"] == []
    (data,) = json.loads(run("compile", "ops/hyena_se.yaml", *out).stdout)
    assert [text.endswith("; --length 8192 takes it") for text in data["not_taken"]] == [True] * 2


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


def test_explain_names_what_differs(home: Path, op: str) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4), triton="2.0"))
    other = dataclasses.replace(SPEC, op="other", workloads=(Workload(batch=4, length=99),))
    keep(home, decide(other, "forward", changed(TILES=2)))
    result = run("explain", op, "--miss", "--target=H200")
    assert result.exit_code == 0
    first, nearest, next_, last, nothing, *steps = result.stdout.splitlines()
    assert first.startswith("direct/BDL/recompute forward: nearest: tuned on NVIDIA H200")
    assert nearest == (
        "  other on NVIDIA H200 (2026-11-25): "
        "nearest: differs in workloads: B=1 L=8192 here, B=4 L=99 there"
    )
    assert "triton: " in next_ and "2.0 there" in next_
    assert last == "direct/BDL/recompute backward: default"
    assert nothing == "  nothing was tuned for this direction"
    assert steps == ["direct/BDL/recompute decode: default", nothing]
    data = json.loads(run("explain", op, "--miss", "--target=H200", "--json").stdout)
    assert data["directions"]["backward"] == {"origin": "default", "tuned": []}
    assert len(data["directions"]["forward"]["tuned"]) == 2


def test_who_asks_for_the_default_gets_it(home: Path) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4)))
    assert candidates(SPEC, H200)[0].schedule.forward == DEFAULT["forward"]
