"""Tuned tables: what is kept, and how."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sh2gen.base.errors import Sh2genError
from sh2gen.base.resources import folder
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.tuning.tables import (
    Decision,
    in_order,
    read_tables,
    table_folders,
    write_decisions,
)
from tests.strategies import register_profiles, specs
from tests.tuning.wanted import LONG, SHORT, decide

register_profiles()
workload_sets = st.lists(
    st.builds(Workload, batch=st.integers(1, 64), length=st.integers(1, 2**20)),
    min_size=1,
    max_size=4,
).map(in_order)


@given(specs(), workload_sets, st.integers(1 - 2**64, 2**64 - 1), st.text(max_size=20))
def test_a_line_gives_back_what_was_written(
    spec: OpSpec, workloads: tuple[Workload, ...], rows: int, gpu: str
) -> None:
    decision = decide(spec, workloads, rows=rows, gpu=gpu)
    line = decision.to_line()
    assert line.isascii() and "\n" not in line
    assert Decision.from_line(line) == decision
    assert hash(Decision.from_line(line)) == hash(decision)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"v": 3', '"v": 4', "v must be 3, not 4"),
        ('"op": "hyena_mr"', '"op": "../evil"', "op must be an operator's name"),
        ('"channels": 4096', '"channels": "many"', "`channels` and `filter.groups`"),
        ('"groups": 256', '"groups": 0', "`channels` and `filter.groups`"),
        ('"us": [10.0]', '"us": [10.0, 11.0]', "us must have a time for each workload"),
        ('"bound_us": [10.0]', '"bound_us": [NaN]', "NaN is no number"),
        ('"us": [10.0]', '"us": [0.0]', "us must be from 0.001 to 1e+12 microseconds, not 0.0"),
        ('"low": [10.0]', '"low": [-1.0]', "low must be from 0.001 to 1e+12 microseconds"),
        ('"bound_us": [10.0]', '"bound_us": [0]', "bound_us must be from 0.001 to 1e+12"),
        ('"start_us": [10.0]', '"start_us": [1e-320]', "start_us must be from 0.001 to 1e+12"),
        ('"us": [10.0]', '"us": [1e300]', "us must be from 0.001 to 1e+12 microseconds"),
        ("2026-11-25T10:00:00Z", "9999", "date must be like 2026-11-25T10:00:00Z, not '9999'"),
        ("2026-11-25T10:00:00Z", "2026-11-25", "date must be like"),
        ("2026-11-25T10:00:00Z", "2026-13-25T10:00:00Z", "date must be like"),
        ("2026-11-25T10:00:00Z", "2026-11-25T9:00:00Z", "date must be like"),
        ('"workloads": [{"batch": 1, "length": 8192}]', '"workloads": []', "at least one"),
        ('"checks": 40', '"checks": "all"', "checks must be a whole number"),
        ('"length": 8192', '"length": 1' + 400 * "0", "workloads[0].length must be less than"),
        ('"channels": 4096', '"channels": 1' + 400 * "0", "fields.channels must be less than"),
        ('"BLOCK_T": 64', '"BLOCK_T": 18446744073709551616', ".BLOCK_T must be less than 2**64"),
        ('"checks": 40, ', "", "checks is missing"),
    ],
)
def test_what_is_wrong_with_a_line_is_named(old: str, new: str, words: str) -> None:
    line = decide().to_line()
    assert old in line
    with pytest.raises(ValueError) as caught:
        Decision.from_line(line.replace(old, new))
    assert words in str(caught.value)


def test_workloads_are_a_sorted_set() -> None:
    with pytest.raises(ValueError, match="sorted"):
        decide(workloads=(LONG, SHORT))
    with pytest.raises(ValueError, match="each once"):
        decide(workloads=(SHORT, SHORT))
    assert in_order([LONG, SHORT, LONG]) == (SHORT, LONG)


def test_tables_are_written_and_read(tmp_path: Path) -> None:
    first, second = decide(), decide(direction="backward")
    path = write_decisions(tmp_path / "tuned", [first, second])
    assert path == tmp_path / "tuned" / "nvidia-h200" / "hyena_mr.jsonl"
    assert read_tables([tmp_path / "none", tmp_path / "tuned"]) == ((first, second), ())
    assert [json.loads(line)["v"] for line in path.read_text().splitlines()] == [3, 3]


def test_lines_that_call_a_config_numbers_are_read_and_replaced(tmp_path: Path) -> None:
    """As those of version 2 do: a search that says otherwise takes their place."""
    path = write_decisions(tmp_path, [decide(), decide(direction="backward")])
    text = path.read_text().replace('"v": 3', '"v": 2').replace('"config": {', '"numbers": {')
    path.write_text(text)
    assert read_tables([tmp_path]) == ((decide(), decide(direction="backward")), ())
    write_decisions(tmp_path, [decide(rows=64)])
    assert read_tables([tmp_path]) == ((decide(rows=64), decide(direction="backward")), ())
    replaced, kept = path.read_text().splitlines()
    assert replaced == decide(rows=64).to_line() and kept == text.splitlines()[1]


def test_a_decision_replaces_its_own_kind_and_nothing_else(tmp_path: Path) -> None:
    old = [decide(), decide(direction="backward"), decide(workloads=(SHORT, LONG))]
    path = write_decisions(tmp_path, old)
    new = [decide(rows=64), decide(triton="3.7")]
    write_decisions(tmp_path, new)
    assert read_tables([tmp_path]) == ((new[0], old[1], old[2], new[1]), ())
    before = path.read_bytes()
    write_decisions(tmp_path, new)  # again: nothing changes
    assert path.read_bytes() == before


def test_lines_that_are_no_decisions_stay_as_they_are(tmp_path: Path) -> None:
    path = write_decisions(tmp_path, [decide()])
    newer = decide().to_line().replace('"v": 3', '"v": 9').encode()
    torn = b"\xff\xfe\n\n# a note\r\n" + newer + b'\n{"v": 1, "key'
    path.write_bytes(path.read_bytes() + torn)
    write_decisions(tmp_path, [decide(rows=64), decide(triton="3.7")])
    lines = path.read_bytes().split(b"\n")
    assert lines[0] == decide(rows=64).to_line().encode()
    assert b"\n".join(lines[1:6]) == torn
    assert lines[6:] == [decide(triton="3.7").to_line().encode(), b""]
    decisions, damages = read_tables([tmp_path])
    assert len(decisions) == 2
    assert [d.line for d in damages] == [2, 4, 5, 6]


def test_one_table_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_decisions(tmp_path, [decide(), decide(gpu="NVIDIA B200")])
    assert not list(tmp_path.iterdir())


def test_a_table_that_cannot_be_written_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "nvidia-h200").write_text("in the way")
    with pytest.raises(Sh2genError, match="cannot write") as caught:
        write_decisions(tmp_path, [decide()])
    assert caught.value.code == "C005"
    (tmp_path / "nvidia-h200").unlink()
    (tmp_path / "nvidia-h200" / "hyena_mr.jsonl").mkdir(parents=True)
    with pytest.raises(Sh2genError, match="cannot write") as caught:
        write_decisions(tmp_path, [decide()])
    assert caught.value.code == "C005"


def write_many(place: Path, triton: str) -> None:
    for i in range(20):
        write_decisions(place, [decide(triton=f"{triton}.{i}")])


def test_two_processes_write_one_table(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write_many, args=(tmp_path, n)) for n in ("3", "4")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    decisions, damages = read_tables([tmp_path])
    assert len(decisions) == 40 and not damages


def test_tables_are_written_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(RuntimeWarning, match="no locks"):
        write_decisions(tmp_path, [decide()])
    with pytest.warns(RuntimeWarning, match="no locks"):
        write_decisions(tmp_path, [decide(triton="3.7")])
    assert read_tables([tmp_path]) == ((decide(), decide(triton="3.7")), ())


def test_the_users_own_tables_come_before_those_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SH2GEN_HOME", str(tmp_path))
    own, packaged = table_folders()
    assert (own, packaged) == (tmp_path / "tuned", folder("schedules") / "tuned")
    assert table_folders(tmp_path / "extra") == (tmp_path / "extra", own, packaged)
