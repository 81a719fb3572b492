"""`sh2gen compile --lock` and `--locked`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sh2gen.runtime.operator import Operator
from sh2gen.spec.decode import spec_from_dict
from tests.fakes import SPEC
from tests.tuning.decisions import TILES, changed, compiled, decide, keep, run

pytestmark = pytest.mark.usefixtures("home")


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


def test_no_config_is_given_beside_a_lock_file(op: str, tmp_path: Path, locked: Path) -> None:
    result = compiled(op, tmp_path / "none", "--locked", str(locked), "--set=forward.TILES=4")
    assert result.exit_code == 2 and f"error[C006]: {locked} pins the configs" in result.stderr
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


def test_a_lock_file_older_than_decoding_leaves_it_at_the_default_and_says_so(
    op: str, tmp_path: Path, locked: Path
) -> None:
    (entry,) = json.loads(locked.read_text())["schedules"]
    decode = entry["decode"]
    locked.write_text(locked.read_text().replace(f', "decode": {json.dumps(decode)}', ""))
    assert "decode" not in locked.read_text()
    (data,) = json.loads(compiled(op, tmp_path / "out", "--locked", str(locked), "--json").stdout)
    assert data["schedule"]["decode"] == decode
    assert data["origins"]["decode"] == f"default: {locked} is older than it"
    assert data["origins"]["forward"] == f"pinned by {locked}"


def test_a_config_of_decoding_is_set_and_pinned(op: str, tmp_path: Path) -> None:
    path = tmp_path / "job.lock"
    setting = "--set=decode.BLOCK_D=32"
    assert compiled(op, tmp_path / "out", "--lock", str(path), setting).exit_code == 0
    (entry,) = json.loads(path.read_text())["schedules"]
    assert entry["decode"]["BLOCK_D"] == 32
    (config,) = Operator(tmp_path / "out" / "small_conv.py").namespace.CONFIGS.values()
    assert config["decode"] == entry["decode"]
    (data,) = json.loads(compiled(op, tmp_path / "again", "--locked", str(path), "--json").stdout)
    assert data["schedule"]["decode"] == entry["decode"]


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
    assert f"forward config: pinned by {lock}" in result.stdout and "TILES=4" in result.stdout
    digest = json.loads(Path(lock).read_text())["schedules"][0]["kernels"]
    Path(lock).write_text(Path(lock).read_text().replace(digest, "00" * 8))
    assert "of other text: configs are as pinned" in run("explain", op, "--locked", lock).stderr
    for other in ("--miss", "--set=forward.TILES=8", f"--tables={tmp_path}"):
        result = run("explain", op, "--locked", lock, other)
        assert result.exit_code == 2 and "error[C006]" in result.stderr
