"""Files that sh2gen writes: nothing half-written, nothing executed that was changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import sh2gen
from sh2gen.cli import main
from sh2gen.driver import compile_operator
from sh2gen.emit import emit
from sh2gen.errors import Sh2genError
from sh2gen.files import MARK, intact, signed, unsigned
from sh2gen.lower import plans
from sh2gen.resources import folder
from sh2gen.schedule import schedule
from sh2gen.spec import load_spec, spec_from_dict
from sh2gen.tuner import settings

SPEC = spec_from_dict(
    {
        "op": "small_conv",
        "channels": 4,
        "filter": {"kind": "explicit", "length": 3, "groups": 4},
    }
)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return compile_operator(SPEC, out=tmp_path / "out", verified=False, built=False).path


# ---- the digest of generated files --------------------------------------------------------------


def executing(written: Path, head: str) -> Path:
    """A file that leaves another one behind when it is executed."""
    path = written.with_name("trap.py")
    path.write_text(f"{head}\nopen({str(written.with_name('executed'))!r}, 'w')\n")
    return path


@pytest.mark.parametrize("way", ["load", "verify"])
@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("", "is not a file that sh2gen wrote"),
        (f'"""A file.{MARK}Or so it says.\n"""', "was changed after sh2gen wrote it"),
        ("whole", "was changed after sh2gen wrote it"),
    ],
    ids=["no mark", "mark alone", "appended to"],
)
def test_what_sh2gen_did_not_write_is_not_executed(
    written: Path, way: str, head: str, words: str
) -> None:
    path = executing(written, written.read_text() if head == "whole" else head)
    if way == "load":
        with pytest.raises(Sh2genError, match=words) as caught:
            sh2gen.load(path)
        assert caught.value.code == "B005"
    else:
        result = CliRunner().invoke(main, ["verify", str(path), "--device=cpu"])
        assert result.exit_code == 2 and "error[B005]" in result.stderr
        assert words in result.stderr and "Traceback" not in result.stderr
    assert not written.with_name("executed").exists()


def test_whoever_changed_a_file_may_load_it(written: Path) -> None:
    text = written.read_text()
    written.write_text(text + "\nANSWER = 42\n")
    with pytest.raises(Sh2genError, match=r"edited=True"):
        sh2gen.load(written)
    assert sh2gen.load(written, edited=True).namespace.ANSWER == 42
    written.write_text("ANSWER = 42\n")
    with pytest.raises(Sh2genError, match="not a file that sh2gen wrote"):
        sh2gen.load(written, edited=True)
    written.write_text(text.replace("PLAN = ", "PLANE = "))
    with pytest.raises(Sh2genError, match="lacks what a generated file has: PLAN"):
        sh2gen.load(written, edited=True)


def test_a_checkout_with_other_line_ends_is_the_same_file(written: Path) -> None:
    written.write_bytes(written.read_bytes().replace(b"\n", b"\r\n"))
    assert sh2gen.load(written).spec == SPEC


@given(st.data())
def test_any_change_of_a_file_is_noticed(data: st.DataObject) -> None:
    plan = plans(SPEC)[0]
    text = emit(SPEC, plan, schedule(SPEC, plan)).text
    assert intact(text) and signed(unsigned(text)) == text
    at = data.draw(st.integers(0, len(text) - 1))
    put = data.draw(st.text(max_size=3))
    changed = text[:at] + put + text[data.draw(st.integers(at, at + 3)) :]
    assert intact(changed) == (changed == text)


def test_a_digest_is_of_the_text_alone(tmp_path: Path) -> None:
    """Not of when, where and by which packages: two compilations give one file."""
    first, second = (
        compile_operator(SPEC, out=tmp_path / name, verified=False, built=False).path
        for name in ("one", "two")
    )
    assert first.read_bytes() == second.read_bytes()


def test_files_that_differ_in_numbers_alone_are_one_to_a_search() -> None:
    """Their digests differ too, and are no part of what is searched."""
    spec = load_spec(folder("ops") / "hyena_se.yaml")
    plan = plans(spec)[0]
    texts = [
        emit(spec, plan, schedule(spec, plan, {"forward": {"TILES": tiles}})).text
        for tiles in (1, 2)
    ]
    assert texts[0] != texts[1] and settings(texts[0])[0] == settings(texts[1])[0]


def test_help_says_that_a_file_is_executed() -> None:
    assert "is executed" in CliRunner().invoke(main, ["verify", "--help"]).stdout
