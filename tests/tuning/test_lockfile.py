"""Lock files: what is pinned is read back, and nothing else is believed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sh2gen.base.errors import Sh2genError
from sh2gen.tuning.lockfile import (
    LockEntry,
    lock_error,
    lock_text,
    locked_entry,
    read_lock,
    refuse_to_write,
)
from tests.strategies import register_profiles

register_profiles()

MR = LockEntry(
    op="hyena_mr",
    digest="5d" * 32,
    kernels="7e" * 8,
    plan="toeplitz/BDL/recompute",
    forward=(("ROWS", 32), ("num_warps", 4)),
    backward=(("ROWS", 16), ("num_warps", 8)),
    decode=(("BLOCK_D", 32),),
)
FFT = LockEntry(
    op="hyena", digest="e5" * 32, kernels="00" * 8, plan="fft/BDL", forward=(), backward=()
)
WORDS = ("ROWS", "TILES", "num_warps")

config = st.dictionaries(st.sampled_from(WORDS), st.integers(0, 9)).map(lambda d: tuple(d.items()))
entries = st.lists(
    st.builds(
        LockEntry,
        op=st.sampled_from(("a", "b", "c")),
        digest=st.sampled_from(("1e5", "00", "ff")),
        kernels=st.sampled_from(("1e5", "00")),
        plan=st.text(max_size=9),
        forward=config,
        backward=config,
        decode=config,
    ),
    max_size=5,
    unique_by=lambda e: (e.op, e.digest),
)


def code(path: Path) -> tuple[str, str]:
    with pytest.raises(Sh2genError) as caught:
        read_lock(path)
    return caught.value.code, str(caught.value)


def write_lock(path: Path, pinned: Sequence[LockEntry]) -> None:
    path.write_text(lock_text(path, pinned))


@given(entries)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, found: list) -> None:
    path = tmp_path_factory.mktemp("lock") / "job.lock"
    write_lock(path, found)
    text = path.read_text()
    assert read_lock(path) == tuple(sorted(found, key=lambda e: (e.op, e.digest)))
    write_lock(path, found[::-1])
    assert path.read_text() == text


def test_a_lock_file_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "job.lock"
    write_lock(path, [MR, FFT])
    assert path.read_text() == (
        '{"v": 2, "schedules": [\n'
        f'  {{"op": "hyena", "digest": "{FFT.digest}", "kernels": "{FFT.kernels}", '
        '"plan": "fft/BDL", '
        '"forward": {}, "backward": {}, "decode": {}},\n'
        f'  {{"op": "hyena_mr", "digest": "{MR.digest}", "kernels": "{MR.kernels}", '
        '"plan": "toeplitz/BDL/recompute", '
        '"forward": {"ROWS": 32, "num_warps": 4}, "backward": {"ROWS": 16, "num_warps": 8}, '
        '"decode": {"BLOCK_D": 32}}\n'
        "]}\n"
    )


def test_the_entry_of_an_operator_is_found(tmp_path: Path) -> None:
    path = tmp_path / "job.lock"
    pinned = (FFT, MR)
    assert locked_entry(path, pinned, "hyena_mr", MR.digest) == MR
    assert locked_entry(path, pinned, "mine", MR.digest) == MR
    other = dataclasses.replace(MR, op="mine", forward=(("ROWS", 64),))
    assert locked_entry(path, (MR, other), "mine", MR.digest) == other
    assert locked_entry(path, (MR, other), "hyena_mr", MR.digest) == MR
    assert MR.config("forward") == MR.forward and MR.config("backward") == MR.backward


def test_an_operator_that_is_not_pinned_is_named(tmp_path: Path) -> None:
    path = tmp_path / "job.lock"
    with pytest.raises(Sh2genError) as caught:
        locked_entry(path, (MR,), "hyena_se", "00" * 32)
    assert caught.value.code == "R003"
    assert caught.value.message == f"{path} does not pin `hyena_se`"
    with pytest.raises(Sh2genError, match="it pins another operator of that name") as caught:
        locked_entry(path, (MR,), "hyena_mr", "00" * 32)
    assert "has changed" in str(caught.value.help)


def test_an_error_of_an_entry_names_the_file_and_points_at_the_entry(tmp_path: Path) -> None:
    path = tmp_path / "job.lock"
    write_lock(path, [MR, FFT])
    error = lock_error(path, MR, Sh2genError("K002", "ROWS = 7", help="8"), "forward")
    assert (error.code, error.message, error.help) == ("K002", f"{path}: ROWS = 7", "8")
    assert error.location is not None and error.location.line == 3
    assert error.location.text[error.location.column - 1 :].startswith('"forward": {"ROWS"')
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))  # no line has it all
    error = lock_error(path, MR, Sh2genError("K002", "ROWS = 7"))
    assert error.location is None and str(path) in error.message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"v": 2', '"v": 1', "v must be 2, not 1"),
        ('"schedules"', '"schedule"', 'unknown field "schedule"'),
        ('"plan"', '"plans"', 'unknown field schedules[0]."plans"'),
        (f'"kernels": "{FFT.kernels}", ', "", "schedules[0].kernels is missing"),
        ('"forward": {}, ', "", "schedules[0].forward is missing"),
        ('"ROWS": 32', '"ROWS": "32"', "schedules[1].forward.ROWS must be a whole number"),
        ('"ROWS": 32', '"ROWS": 32, "ROWS": 64', '"ROWS" is given twice'),
        ('"op": "hyena",', '"op": "hyena", "op": "x",', '"op" is given twice'),
        ("[", "{", "Expecting"),
        ("]}", "", "Expecting"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(
    old: str, new: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "job.lock"
    write_lock(path, [FFT, MR])
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    number, text = code(path)
    assert number == "R002" and words in text and "job.lock" in text


def test_a_slip_of_the_pen_is_pointed_at(tmp_path: Path) -> None:
    path = tmp_path / "job.lock"
    path.write_text('{"v": 1,\n "schedules": [}\n')
    assert code(path)[1] == (
        "error[R002]: not JSON: Expecting value\n"
        f'  --> {path}:2:16\n   2 |  "schedules": [}}\n     |                ^'
    )
    for text in ("", "null", "[]", "[" * 100_000):
        path.write_text(text)
        assert code(path)[0] == "R002"


def test_duplicates_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.lock"
    with pytest.raises(Sh2genError, match=r"`hyena_mr` .* is given twice") as caught:
        lock_text(path, [MR, MR])
    assert caught.value.code == "R002"
    values = {"v": 2, "schedules": [json.loads(json.dumps(dataclasses.asdict(FFT)))] * 2}
    for entry in values["schedules"]:
        entry |= {"forward": {}, "backward": {}}
    path.write_text(json.dumps(values))
    assert code(path)[0] == "R002"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert code(tmp_path / "none.lock")[0] == "R001"
    assert "No such file" in code(tmp_path / "none.lock")[1]
    assert code(tmp_path)[0] == "R001"
    (tmp_path / "job.lock").write_bytes(b"\xff\xfe")
    assert "it is not UTF-8 text" in code(tmp_path / "job.lock")[1]


def test_a_lock_file_that_cannot_be_written_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "job.lock", tmp_path / "file" / "deep" / "job.lock"):
        with pytest.raises(Sh2genError, match="cannot write the lock file") as caught:
            refuse_to_write(path)
        assert caught.value.code == "C005"
    refuse_to_write(tmp_path / "new" / "job.lock")
    assert not (tmp_path / "new").exists()  # only looked at


def test_a_file_of_the_users_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "op.yaml"
    path.write_text("op: mine\n")
    with pytest.raises(Sh2genError, match="is no lock file") as caught:
        refuse_to_write(path)
    assert caught.value.code == "C005"
    assert path.read_text() == "op: mine\n"
