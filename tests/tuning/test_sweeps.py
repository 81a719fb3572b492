"""Sweeps: what is written is what is read, and damage is named."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from sh2gen.base.errors import Sh2genError
from sh2gen.lower import plans
from sh2gen.schedule.config import schedule
from sh2gen.spec.language import Workload
from sh2gen.tuning.records import Key, Status
from sh2gen.tuning.search import Outcome
from sh2gen.tuning.sweeps import Header, Sweep, read_sweep, write_sweep
from sh2gen.tuning.tables import read_tables
from tests.fakes import SPEC, Fakes, forward_points, named
from tests.gpus import H200

SHORT, LONG = Workload(batch=1, length=2048), Workload(batch=1, length=8192)
KEY = Key(
    spec="5d" * 32,
    plan="direct/BDL/recompute",
    direction="forward",
    gpu="NVIDIA H200",
    triton="3.6",
)


def config(block: int) -> tuple[tuple[str, int], ...]:
    return (("BLOCK_T", block), ("num_warps", 4))


SWEEP = Sweep(
    header=Header(
        key=KEY,
        op="my_conv",
        workloads=(SHORT, LONG),
        bounds=(20.0, 70.0),
        start=config(256),
        date="2026-11-25T10:00:00Z",
        versions={"triton": "3.6.0"},
    ),
    outcomes={
        config(256): Outcome(
            status=Status.OK,
            us=((20.5, 21.0, 21.5), (74.0, 75.0, 76.0)),
            stage="quick",
            built={"registers": 64},
            seconds={"build": 2.0, "verify": 0.5, "quick": 0.25},
        ),
        config(512): Outcome(
            status=Status.RESOURCES, stage="build", detail="it spills", seconds={"build": 3.0}
        ),
    },
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep.jsonl", SWEEP)
    assert read_sweep(tmp_path / "sweep.jsonl") == SWEEP


def test_a_sweep_at_one_of_its_workloads() -> None:
    at = SWEEP.of(LONG)
    assert at.header.workloads == (LONG,) and at.header.bounds == (70.0,)
    assert at.outcomes[config(256)].us == ((74.0, 75.0, 76.0),)
    assert at.outcomes[config(256)].seconds == {"build": 2.0, "verify": 0.5, "quick": 0.125}
    assert at.outcomes[config(512)].us == ()
    with pytest.raises(ValueError, match="not in"):
        SWEEP.of(Workload(batch=2, length=2048))


@pytest.mark.parametrize(("at", "where"), [(0, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("damage", ["cut", "field", "number"])
def test_damage_is_named_with_its_line(at: int, where: int, damage: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    write_sweep(path, SWEEP)
    lines = path.read_text().splitlines()
    values = json.loads(lines[at])
    if damage == "cut":
        lines[at] = lines[at][:-9]
    elif damage == "field":
        lines[at] = json.dumps(values | {"more": 1})
    else:
        name = "bounds" if at == 0 else "config"
        lines[at] = json.dumps(values | {name: "many"})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(Sh2genError) as caught:
        read_sweep(path)
    assert caught.value.code == "R002" and f"{path}:{where}:" in caught.value.message


def test_a_sweep_that_calls_configs_numbers_is_read(tmp_path: Path) -> None:
    """As those of version 1 do."""
    path = tmp_path / "sweep.jsonl"
    write_sweep(path, SWEEP)
    text = path.read_text()
    assert text.count('"v": 2') == text.count('"config": [') + 1 == len(SWEEP.outcomes) + 1
    path.write_text(text.replace('"v": 2', '"v": 1').replace('"config": [', '"numbers": ['))
    assert read_sweep(path) == SWEEP


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Sh2genError) as caught:
        read_sweep(tmp_path / "none.jsonl")
    assert caught.value.code == "R001"


def loaded(name: str) -> ModuleType:
    """A script of benchmarks/."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    found = importlib.util.spec_from_file_location(f"{name}_script", path)
    assert found is not None and found.loader is not None
    script = importlib.util.module_from_spec(found)
    sys.modules[found.name] = script  # dataclasses look there
    found.loader.exec_module(script)
    return script


def stand_in(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """What a machine with a GPU says."""
    monkeypatch.setenv("SH2GEN_HOME", str(home / "home"))
    monkeypatch.setattr("sh2gen.targets.target.from_device", lambda: H200)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")


def test_the_script_sweeps_and_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six candidates all are swept at both lengths at once, and each length is decided by its
    own best; a second run has nothing left to build.
    """
    script = loaded("sweeps")
    stand_in(monkeypatch, tmp_path)
    points = forward_points(*({"TILES": tiles} for tiles in (2, 4, 8, 16, 32)))
    fakes = Fakes(tmp_path / "gpu", {"forward": points})
    fakes.rule("forward", points[1], us={"64": 80.0, "512": 300.0})
    fakes.rule("forward", points[2], us={"64": 200.0, "512": 90.0})
    (tmp_path / "small_conv.yaml").write_text(SPEC.to_yaml())
    arguments = ["sweeps.py", "--ops", str(tmp_path / "small_conv.yaml"), "--lengths", "64", "512"]
    arguments += ["--directions", "forward", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--tables", str(tmp_path / "tables")])
    with fakes.installed():
        assert script.main() == 0
    sweep = read_sweep(tmp_path / "out" / "small_conv-forward.jsonl")
    assert set(sweep.outcomes) == set(points)
    assert [w.length for w in sweep.header.workloads] == [64, 512]
    assert sweep.outcomes[points[1]].us[0][1] == 80.0 and sweep.header.bounds == (50.0, 50.0)
    decisions, damages = read_tables([tmp_path / "tables"])
    assert not damages
    found = {tuple(w.length for w in d.workloads): d.config for d in decisions}
    assert set(found) == {(64,), (512,), tuple(w.length for w in SPEC.workloads)}
    assert found[(64,)] == points[1] and found[(512,)] == points[2]
    fakes.forget()
    with fakes.installed():
        assert script.main() == 0
    finalists = {job["config"] for job in fakes.jobs("verify")}
    assert finalists <= {named(p) for p in points}
    again = read_sweep(tmp_path / "out" / "small_conv-forward.jsonl")
    for config, outcome in sweep.outcomes.items():  # the last word counts: it may be of a final
        medians = [us[1] for us in again.outcomes[config].us]
        assert medians == [us[1] for us in outcome.us]


@pytest.mark.parametrize(("start", "at"), [("default", 0), ("median", 1), ("worst", 2)])
def test_the_script_races_from_the_start_that_it_is_told(
    start: str,
    at: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = loaded("race")
    stand_in(monkeypatch, tmp_path)
    monkeypatch.setattr(script, "folder", lambda name: tmp_path)
    (tmp_path / "small_conv.yaml").write_text(SPEC.to_yaml())
    points = {
        "forward": forward_points({"TILES": 2}, {"TILES": 4}),
        "backward": [schedule(SPEC, plans(SPEC)[0]).backward],
    }
    for direction, candidates in points.items():
        swept = {
            config: Outcome(status=Status.OK, us=((us, us, us), (us, us, us)))
            for config, us in zip(candidates, (100.0, 110.0, 120.0), strict=False)
        }
        sweep = Sweep(header=replace(SWEEP.header, start=candidates[0]), outcomes=swept)
        write_sweep(tmp_path / f"small_conv-{direction}.jsonl", sweep)
    fakes = Fakes(tmp_path / "gpu", points)
    now = (120.0, 80.0, 100.0)
    for config, us in zip(points["forward"], now, strict=True):
        fakes.rule("forward", config, us={"8192": us})
    arguments = ["--ops", "small_conv", "--effort", "exhaustive", "--start", start]
    arguments += ["--sweeps", str(tmp_path), "--tables", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["race.py", *arguments])
    with fakes.installed():
        assert script.main() == 0
    assert fakes.jobs("verify")[0]["config"] == named(points["forward"][at])
    row = next(line for line in capsys.readouterr().out.splitlines() if "| forward |" in line)
    assert row.split(" | ")[2] == str(now[at])
    assert row.endswith("| 3 of 3 | 80.0 | 80.0 | 1.000 |")
