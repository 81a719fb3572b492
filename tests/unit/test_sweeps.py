"""Sweeps: what is written is what is read, and damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sh2gen.errors import Sh2genError
from sh2gen.records import Key, Status
from sh2gen.search import Outcome
from sh2gen.spec import Workload
from sh2gen.sweeps import Header, Sweep, read_sweep, write_sweep

SHORT, LONG = Workload(batch=1, length=2048), Workload(batch=1, length=8192)
KEY = Key(
    spec="5d" * 32,
    plan="direct/BDL/recompute",
    direction="forward",
    gpu="NVIDIA H200",
    triton="3.6",
    templates="7e" * 8,
)


def numbers(block: int) -> tuple[tuple[str, int], ...]:
    return (("BLOCK_T", block), ("num_warps", 4))


SWEEP = Sweep(
    header=Header(
        key=KEY,
        op="my_conv",
        workloads=(SHORT, LONG),
        bounds=(20.0, 70.0),
        start=numbers(256),
        date="2026-11-25T10:00:00Z",
        versions={"triton": "3.6.0"},
    ),
    outcomes={
        numbers(256): Outcome(
            status=Status.OK,
            us=((20.5, 21.0, 21.5), (74.0, 75.0, 76.0)),
            stage="quick",
            built={"registers": 64},
            seconds={"build": 2.0, "verify": 0.5, "quick": 0.25},
        ),
        numbers(512): Outcome(
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
    assert at.outcomes[numbers(256)].us == ((74.0, 75.0, 76.0),)
    assert at.outcomes[numbers(256)].seconds == {"build": 2.0, "verify": 0.5, "quick": 0.125}
    assert at.outcomes[numbers(512)].us == ()
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
        name = "bounds" if at == 0 else "numbers"
        lines[at] = json.dumps(values | {name: "many"})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(Sh2genError) as caught:
        read_sweep(path)
    assert caught.value.code == "R002" and f"{path}:{where}:" in caught.value.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Sh2genError) as caught:
        read_sweep(tmp_path / "none.jsonl")
    assert caught.value.code == "R001"
