"""Records: lines that come back as they were, and logs that nothing can spoil."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import json
import multiprocessing
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sh2gen.base.resources import folder
from sh2gen.spec.decode import load_spec, spec_from_dict
from sh2gen.spec.language import Workload
from sh2gen.tuning.records import (
    Key,
    Log,
    Measurement,
    Status,
    home,
    log_path,
    now,
    operator_digest,
    slug,
)
from tests.strategies import register_profiles, specs

register_profiles()

KEY = Key(
    spec="5d" * 32,
    plan="toeplitz/BDL/recompute",
    direction="backward",
    gpu="NVIDIA H200",
    triton="3.6",
)
ONE = Measurement(
    key=KEY,
    text="7e" * 8,
    op="hyena_mr",
    config=(("ROWS", 32), ("BLOCK_T", 64), ("num_warps", 4)),
    workload=Workload(batch=1, length=8192),
    workloads=(Workload(batch=1, length=8192), Workload(batch=2, length=65536)),
    status=Status.OK,
    us=(10.0, 10.5, 11.25),
    stage="quick",
    detail="",
    built={"registers": {"hyena_mr_backward": 128}, "spills": 0, "seconds": 0.4},
    seconds=1.5,
    versions={"torch": "2.11.0", "triton": "3.6.0"},
    date="2026-11-25T10:00:00Z",
    seed=7,
    effort="quick",
)


def change(**fields: Any) -> Measurement:
    return dataclasses.replace(ONE, **fields)


# ---- lines --------------------------------------------------------------------------------------

finite = st.floats(0, 1e12)
times = st.floats(1e-3, 1e12)  # microseconds of a call
whole = st.integers(1 - 2**64, 2**64 - 1)
texts = st.text(max_size=20)
workloads = st.builds(Workload, batch=st.integers(1, 99), length=st.integers(1, 2**31))
measurements = st.builds(
    Measurement,
    key=st.builds(
        Key,
        spec=texts,
        plan=texts,
        direction=st.sampled_from(("forward", "backward")),
        gpu=texts,
        triton=texts,
    ),
    text=texts,
    op=texts,
    config=st.dictionaries(texts, whole).map(lambda d: tuple(d.items())),
    workload=st.none() | workloads,
    workloads=st.lists(workloads, max_size=3).map(tuple),
    status=st.sampled_from(Status),
    us=st.none() | st.tuples(times, times, times),
    stage=texts,
    detail=st.text(st.characters(), max_size=3000),  # lone surrogates too, as paths have them
    count=st.integers(1, 10**6),
    built=st.none() | st.dictionaries(texts, whole | finite | st.lists(texts)),
    seconds=finite,
    versions=st.dictionaries(texts, texts),
    date=texts,
    seed=whole,
    effort=texts,
)


@given(measurements)
def test_a_line_gives_back_what_was_written(measurement: Measurement) -> None:
    line = measurement.to_line()
    assert line.isascii() and "\n" not in line
    assert Measurement.from_line(line) == measurement


def test_a_line_is_readable() -> None:
    values = json.loads(ONE.to_line())
    assert next(iter(values)) == "v" and values["v"] == 3
    assert values["status"] == "ok" and values["workload"] == {"batch": 1, "length": 8192}
    assert values["config"] == {"ROWS": 32, "BLOCK_T": 64, "num_warps": 4}
    assert values["key"]["gpu"] == "NVIDIA H200"
    assert hash(ONE) == hash(change())


def test_a_field_with_a_default_may_be_absent() -> None:
    values = json.loads(ONE.to_line())
    del values["count"], values["built"], values["workloads"]
    found = Measurement.from_line(json.dumps(values))
    assert found == change(built=None, workloads=()) and found.count == 1


def test_a_line_that_calls_its_config_numbers_is_read() -> None:
    """As lines of version 2 do, and only they."""
    old = ONE.to_line().replace('"v": 3', '"v": 2')
    assert Measurement.from_line(old.replace('"config": {', '"numbers": {')) == ONE
    with pytest.raises(ValueError, match='unknown field "config"'):
        Measurement.from_line(old)
    with pytest.raises(ValueError, match='unknown field "numbers"'):
        Measurement.from_line(ONE.to_line().replace('"config": {', '"numbers": {'))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"v": 3', '"v": 1', "v must be 3, not 1: another version of sh2gen"),
        ('"v": 3', '"v": true', "v must be 3, not true"),
        ('"v": 3, ', "", "v must be 3, not null"),
        ('"op": "hyena_mr", ', "", "op is missing"),
        ('"gpu": "NVIDIA H200", ', "", "key.gpu is missing"),
        (
            '"direction": "backward"',
            '"direction": "up"',
            "one of forward, backward, decode, not 'up'",
        ),
        ('"op": "hyena_mr"', '"op": 5', "op must be a text, not 5"),
        ('"ok"', '"fine"', "status must be one of ok, constraint,"),
        ('"ok"', "[]", "status must be"),
        ('"seed": 7', '"seed": 7.5', "seed must be a whole number, not 7.5"),
        ('"seed": 7', '"seed": true', "seed must be a whole number, not true"),
        ('"seed": 7', '"seed": 7, "seed": 8', '"seed" is given twice'),
        ('"seed": 7', '"seed": 7, "sed": 8', 'unknown field "sed"'),
        ('"gpu"', '"cpu": "", "gpu"', 'unknown field key."cpu"'),
        ('"count": 1', '"count": 0', "count must be at least 1"),
        ("10.5", "NaN", "NaN is no number"),
        ("10.5", "1e999", "us[1] must be finite, not Infinity"),
        ("10.5", "-10.5", "us must be from 0.001 to 1e+12 microseconds, not -10.5"),
        ("10.5", "0.0", "us must be from 0.001 to 1e+12 microseconds, not 0.0"),
        ("10.5", '"10.5"', "us[1] must be a number"),
        ("10.5, ", "", "us must have 3 items, not 2"),
        ('"spills": 0', '"spills": -1e999', "built.spills must be finite"),
        ('"seconds": 1.5', f'"seconds": 1{"0" * 400}', "seconds must be less than 2**64"),
        ('"ROWS": 32', '"ROWS": "32"', "config.ROWS must be a whole number"),
        ('{"ROWS": 32, "BLOCK_T": 64, "num_warps": 4}', "[]", "config must be an object"),
        ('"batch": 1', '"batch": 0', "a workload must be at least 1 x 1, not 0 x 8192"),
        ('"torch": "2.11.0"', '"torch": 2.11', "versions.torch must be a text"),
        ("}", "", "Expecting"),
    ],
)
def test_what_is_wrong_with_a_line_is_named(old: str, new: str, words: str) -> None:
    line = ONE.to_line()
    assert old in line
    with pytest.raises(ValueError) as caught:
        Measurement.from_line(line.replace(old, new))
    assert words in str(caught.value)


@pytest.mark.parametrize("line", ["", "null", "[]", "7", '"v"', "[" * 100_000, "\x00" * 512])
def test_what_is_no_object_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        Measurement.from_line(line)


def test_the_middle_of_a_long_error_is_cut_out() -> None:
    found = change(detail="begin" + "x" * 100_000 + "end").detail
    assert found.startswith("beginx") and found.endswith("xend") and " ... " in found
    assert len(found) <= 2000


# ---- logs ---------------------------------------------------------------------------------------


def seeds(log: Log) -> list[int]:
    return [m.seed for m in log.read()[0]]


def test_a_log_begins_empty_and_grows(tmp_path: Path) -> None:
    log = Log(tmp_path / "deep" / "log.jsonl")
    assert log.read() == ((), ())
    assert log.append([]) is None
    assert log.append([ONE, change(seed=8)]) is None
    assert log.append(change(seed=s) for s in (9,)) is None
    found, damages = log.read()
    assert found == (ONE, change(seed=8), change(seed=9)) and damages == ()


def test_the_order_is_of_lines_even_if_the_clock_is_set_back(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    dates = ("2026-11-25T10:00:00Z", "1970-01-01T00:00:00Z", "2031-01-01T00:00:00Z", "never")
    for seed, date in enumerate(dates):
        log.append([change(seed=seed, date=date)])
    assert seeds(log) == [0, 1, 2, 3]


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_torn_last_line_costs_only_itself(kept: int, tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.append([ONE])
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + whole[: kept - 1 if kept < 0 else kept])
    assert seeds(log) == [7]
    (damage,) = log.read()[1]
    assert (damage.path, damage.line) == (log.path, 2) and "not JSON" in damage.reason
    assert log.append([change(seed=8), change(seed=9)]) is None
    assert seeds(log) == [7, 8, 9]
    assert [d.line for d in log.read()[1]] == [2]


def test_a_whole_line_without_its_newline_counts(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.path.write_text(ONE.to_line())
    log.append([change(seed=8)])
    assert seeds(log) == [7, 8] and not log.read()[1]


def test_garbage_in_the_middle_is_skipped_and_named(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    line = ONE.to_line().encode() + b"\n"
    newer = line.replace(b'"v": 3', b'"v": 9')
    log.path.write_bytes(line + b"\xff\xfe\n" + b"garbage\n\n" + newer + b"\0\0\0\n" + line)
    found, damages = log.read()
    assert found == (ONE, ONE)
    assert [(d.line, d.reason) for d in damages] == [
        (2, "not UTF-8 text"),
        (3, "not JSON: Expecting value in column 1"),
        (5, "v must be 3, not 9: another version of sh2gen"),
        (6, "not JSON: Expecting value in column 1"),
    ]
    assert str(damages[0]) == f"{log.path}:2: not UTF-8 text"


def append_many(path: Path, first: int) -> None:
    log = Log(path)
    for i in range(150):
        assert log.append([change(seed=first + 2 * i), change(seed=first + 2 * i + 1)]) is None


def test_two_processes_append_to_one_log(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.path.write_bytes(b'{"v": 3, "to')  # that it was torn is seen once
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=append_many, args=(log.path, n)) for n in (0, 1000)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        assert len(log.read()[1]) == 1  # a reader meets no half of a line
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    found = seeds(log)
    for first in (0, 1000):
        assert [s for s in found if s // 1000 == first // 1000] == list(range(first, first + 300))
    assert [d.line for d in log.read()[1]] == [1]


def test_a_full_disk_is_said_and_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.append([ONE])
    real, room = os.write, 100

    def write(file: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(file, data[:room])
        room -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr("sh2gen.tuning.records.os.write", write)
        reason = log.append([change(seed=8)])
    assert reason == f"cannot write {log.path}: No space left on device"
    found, (damage,) = log.read()
    assert found == (ONE,) and damage.line == 2
    assert log.append([change(seed=9)]) is None
    assert seeds(log) == [7, 9]


def test_a_line_that_is_taken_in_parts_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path / "log.jsonl")
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr("sh2gen.tuning.records.os.write", lambda file, data: real(file, data[:100]))
        assert log.append([ONE, ONE]) is None
        patch.setattr("sh2gen.tuning.records.os.write", lambda file, data: 0)
        assert "No space left" in str(log.append([ONE]))
    assert log.read() == ((ONE, ONE), ())


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_where_there_are_no_locks_lines_are_kept_and_a_warning_says_so(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    log = Log(tmp_path / "log.jsonl")
    with pytest.warns(RuntimeWarning, match="no locks"):
        assert log.append([ONE]) is None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for seed in (8, 9):
            assert log.append([change(seed=seed)]) is None
        assert seeds(log) == [7, 8, 9]
    assert len(caught) == 1


def test_a_lock_that_fails_otherwise_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.flock", flock)
    assert "Input/output error" in str(Log(tmp_path / "log.jsonl").append([ONE]))


def test_a_log_that_cannot_be_used_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in str(Log(tmp_path / "file" / "below" / "log.jsonl").append([ONE]))
    reason = str(Log(tmp_path).append([ONE]))
    assert reason == f"cannot write {tmp_path}: Is a directory"
    found, (damage,) = Log(tmp_path).read()
    assert (found, damage.line) == ((), 0)
    assert str(damage) == f"{tmp_path}: cannot be read: Is a directory"


# ---- places and digests -------------------------------------------------------------------------


def test_one_environment_variable_moves_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SH2GEN_HOME", str(tmp_path))
    assert home() == tmp_path
    path = log_path("NVIDIA H100 80GB HBM3", "hyena_mr", "0123456789abcdef")
    assert path == tmp_path / "records" / "nvidia-h100-80gb-hbm3" / "hyena_mr-01234567.jsonl"
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("SH2GEN_HOME")
        else:
            monkeypatch.setenv("SH2GEN_HOME", unset)
        assert home().is_absolute() and "sh2gen" in home().parts


def test_a_folder_for_every_gpu() -> None:
    assert slug("NVIDIA A100-SXM4-80GB") == "nvidia-a100-sxm4-80gb"
    assert slug("../..") == slug("") == "unknown"


@given(specs())
def test_the_digest_is_of_the_operator_and_not_of_its_name(spec: Any) -> None:
    other = dataclasses.replace(
        spec, op="another", workloads=(Workload(batch=3, length=5),), source="elsewhere.yaml"
    )
    assert operator_digest(other) == operator_digest(spec)
    wider = spec_from_dict(
        spec.to_dict()
        | {
            "channels": 2 * spec.channels,
            "filter": spec.to_dict()["filter"] | {"groups": 2 * spec.filter.groups},
        }
    )
    assert operator_digest(wider) != operator_digest(spec)


@pytest.mark.parametrize("path", sorted(folder("ops").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_operator_has_a_digest(path: Path) -> None:
    assert len(operator_digest(load_spec(path))) == 64


def test_a_date_is_a_label_that_sorts() -> None:
    made = datetime.datetime.fromisoformat(now())
    assert abs(datetime.datetime.now(datetime.UTC) - made) < datetime.timedelta(minutes=1)
    assert len(now()) == len(ONE.date)
