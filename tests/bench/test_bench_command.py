"""`sh2gen bench`, as a command."""

from __future__ import annotations

import importlib.util
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from sh2gen.api.bench import bench_operator
from sh2gen.base.resources import folder
from sh2gen.bench.baselines import BASELINES
from sh2gen.bench.table import table
from sh2gen.bench.worker import OWN
from sh2gen.cli.cli import main
from sh2gen.schedule.config import schedule
from sh2gen.spec.language import Workload
from sh2gen.targets.target import target
from sh2gen.tuning.choose import candidates, wanted
from sh2gen.tuning.tables import Decision, fields_of, write_decisions
from tests.bench.runs import SPEC
from tests.synthetic import bench_results


def command(*arguments: str) -> Any:
    return CliRunner().invoke(main, ("bench", *arguments))


@pytest.fixture
def op(tmp_path: Path) -> str:
    path = tmp_path / "small_conv.yaml"
    path.write_text(SPEC.to_yaml())
    return str(path)


def test_without_a_gpu(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = command(op)
    assert result.exit_code == 2 and result.stdout == ""
    assert "error[V003]: there is no CUDA device here" in result.stderr
    for arguments, code in (
        (("--baselines=nobody",), "C006"),
        (("--plan=nonsense",), "L003"),
        (("--set=forward.ROWS=7",), "K002"),
    ):
        result = command(op, *arguments)
        assert result.exit_code == 2 and f"error[{code}]" in result.stderr
    assert command(op, "--length=0").exit_code == 2


def test_the_command(op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def stub(op: str, **options: Any) -> Any:
        asked.update(options)
        return bench_results()

    monkeypatch.setattr("sh2gen.api.bench.bench_operator", stub)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "matplotlib" else found(name, *rest),
    )
    result = command(op, f"--plots={tmp_path}/new")
    assert result.exit_code == 2 and not asked and not (tmp_path / "new").exists()
    assert "error[C006]: --plots needs matplotlib, which is not here" in result.stderr
    result = command(op, "--length=64", "--length=128", "--batch=2", "--baselines=fft")
    assert result.exit_code == 0
    assert result.stdout == table(bench_results()) + "\n"
    assert asked["lengths"] == (64, 128) and asked["batch"] == 2 and asked["baselines"] == "fft"
    data = json.loads(command(op, "--json", "--tables=mine").stdout)
    assert data == json.loads(json.dumps(bench_results().to_dict()))
    assert data["origins"]["backward"] == "default" and asked["tables"] == "mine"


def test_the_command_writes_figures(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("sh2gen.api.bench.bench_operator", lambda op, **_: bench_results())
    result = command(op, "--json", f"--plots={tmp_path}/a/b")
    assert result.exit_code == 0 and json.loads(result.stdout)["op"] == "invented"
    paths = [line.removeprefix("wrote ") for line in result.stderr.splitlines()]
    assert len(paths) == 4 and all(Path(path).is_file() for path in paths)


def test_figures_that_cannot_be_written_come_after_results(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leave no file, neither empty nor of another name."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("sh2gen.api.bench.bench_operator", lambda op, **_: bench_results())
    (tmp_path / "figures" / "invented_share.png").mkdir(parents=True)
    for arguments in ((), ("--json",)):
        result = command(op, f"--plots={tmp_path}/figures", *arguments)
        assert result.exit_code == 2
        assert f"error[C005]: cannot write {tmp_path}/figures/invented_share.png" in result.stderr
        whole = json.dumps(bench_results().to_dict(), indent=2) if arguments else None
        assert result.stdout == (whole or table(bench_results())) + "\n"
        there = sorted(path.name for path in (tmp_path / "figures").iterdir())
        assert there == ["invented_share.png"]


def test_a_folder_that_cannot_be_written_is_refused_before_measuring(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it is too early to measure")

    with monkeypatch.context() as patched:
        patched.setattr("sh2gen.api.bench.bench_operator", never)
        (tmp_path / "file").write_text("")
        for place in ("file", "file/figures"):
            result = command(op, f"--plots={tmp_path}/{place}")
            assert result.exit_code == 2 and "error[C005]" in result.stderr
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "error[V003]" in command(op, f"--plots={tmp_path}/new").stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_command_prints_what_there_is(
    op: str, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")

    def stub(*_: Any, **__: Any) -> Any:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            return replace(bench_results(), interrupted=True)

    monkeypatch.setattr("sh2gen.api.bench.bench_operator", stub)
    before = signal.getsignal(number)
    result = command(op, f"--plots={tmp_path}")
    assert result.exit_code == 128 + number and "interrupted: here is what was" in result.stdout
    assert result.stderr.startswith("interrupted: the results are what was measured until then\n")
    assert (tmp_path / "invented_time.png").is_file()
    assert json.loads(command(op, "--json").stdout)["interrupted"] is True
    assert signal.getsignal(number) == before


def test_results_of_earlier_runs_are_shown(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    other = replace(bench_results((8191,)), op="other", interrupted=True)
    one.write_text(json.dumps(bench_results().to_dict()))
    two.write_text(json.dumps(other.to_dict()))
    result = command(f"--from={one}", f"--from={two}", f"--plots={tmp_path}/figures")
    assert result.exit_code == 0
    assert result.stdout == f"{table(bench_results())}\n\n{table(other)}\n"
    assert len(list((tmp_path / "figures").glob("*.png"))) == 8
    assert json.loads(command(f"--from={one}", "--json").stdout)["op"] == "invented"
    both = json.loads(command(f"--from={one}", f"--from={two}", "--json").stdout)
    assert [found["op"] for found in both] == ["invented", "other"]
    result = command(f"--from={one}", f"--from={one}", f"--plots={tmp_path}/more")
    assert result.exit_code == 2 and "error[C006]" in result.stderr
    assert f"2 results are of invented ({one}), and so is" in result.stderr


def test_what_does_not_go_with_results_of_earlier_runs(op: str) -> None:
    result = command()
    assert result.exit_code == 2 and "bench takes an op.yaml, or --from" in result.stderr
    for arguments in ((op,), ("--length=8",), ("--baselines=",), ("--tables=mine",)):
        result = command("--from=results.json", *arguments)
        assert result.exit_code == 2 and "--from measures nothing" in result.stderr


def test_configs_of_a_folder_of_tables_are_measured_and_named(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `compile` takes and names them, for the sizes that are measured."""
    monkeypatch.setenv("SH2GEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sh2gen.api.bench.resolve_target", lambda _: target("H200"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    spec = replace(SPEC, workloads=(Workload(batch=1, length=64),))
    plan = candidates(spec, target("H200"))[0].plan
    config = schedule(spec, plan, {"forward": {"TILES": 4}}).config("forward")
    us = (7.5,)
    decision = Decision(
        key=wanted(spec, target("H200"), plan, "forward").key,
        fields=fields_of(spec),
        kernels={},
        op=spec.op,
        workloads=spec.workloads,
        config=config,
        us=us,
        low=us,
        high=us,
        bound_us=us,
        start_us=us,
        start=config,
        checks=1,
        effort="measure",
        date="2026-11-25T10:00:00Z",
        versions={},
    )
    table_ = write_decisions(tmp_path / "mine", [decision])
    with table_.open("a") as file:
        file.write("a line that was cut off")
    taken: list[Any] = []

    def stub(path: Path, plan: Any, schedule: Any, *_: Any, **options: Any) -> Any:
        taken.append((dict(schedule.forward)["TILES"], options["origins"]))
        return bench_results()

    monkeypatch.setattr("sh2gen.bench.run.run", stub)
    result = command(op, "--length=64", f"--tables={tmp_path}/mine")
    assert result.exit_code == 0, result.stderr
    ((tiles, origins),) = taken
    assert tiles == 4
    assert origins["forward"] == "tuned on NVIDIA H200 (2026-11-25); 7.5 us at B=1 L=64"
    assert "skipped: " in result.stderr
    result = command(op, f"--tables={tmp_path}/none")
    assert result.exit_code == 2 and "error[C006]: there is no folder" in result.stderr


def test_sizes_that_are_measured(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the workloads, or those asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr("sh2gen.api.bench.resolve_target", lambda _: target("H200"))
    taken: list[Any] = []

    def stub(*_: Any, **options: Any) -> Any:
        taken.append([(w.batch, w.length) for w in options["workloads"]])
        return bench_results()

    monkeypatch.setattr("sh2gen.bench.run.run", stub)
    mr = folder("ops") / "hyena_mr.yaml"
    for options in ({}, {"batch": 2}, {"lengths": (8, 16, 8)}, {"lengths": (8,), "batch": 4}):
        bench_operator(mr, **options)
    assert taken == [
        [(1, 2048), (1, 8192), (1, 32768), (1, 131072)],
        [(2, 2048), (2, 8192), (2, 32768), (2, 131072)],
        [(1, 8), (1, 16)],
        [(4, 8)],
    ]


def test_names_of_baselines_are_theirs() -> None:
    assert all(name == baseline.name for name, baseline in BASELINES.items())
    assert OWN not in BASELINES
