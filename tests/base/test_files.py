"""Files that sh2gen writes: nothing half-written, nothing executed that was changed."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import sh2gen
from sh2gen.api.compile import compile_operator, stale
from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import (
    MARK,
    intact,
    same_program,
    scratch,
    signed,
    stated,
    unsigned,
    write_all,
    write_whole,
)
from sh2gen.base.resources import folder
from sh2gen.cli.cli import main
from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import load_spec, spec_from_dict

SPEC = spec_from_dict(
    {
        "op": "small_conv",
        "channels": 4,
        "filter": {"kind": "explicit", "length": 3, "groups": 4},
    }
)


UNVERIFIED: dict[str, Any] = {"verified": False, "built": False}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return compile_operator(SPEC, out=tmp_path / "out", verified=False, built=False).path


# ---- writing ------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, str | None]:
    """All that is in a folder: texts of files by path, None for folders."""
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else None
        for path in folder.rglob("*")
    }


def failing(
    name: str, after: int, error: BaseException, module: ModuleType = os
) -> Callable[..., Any]:
    """`os.<name>`, which fails when it is called once more than `after` times."""
    whole, calls = getattr(module, name), itertools.count()

    def call(*arguments: Any, **options: Any) -> Any:
        if next(calls) == after:
            raise error
        return whole(*arguments, **options)

    return call


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_files_are_written_all_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, after: int, error: BaseException
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old.py").write_text("old")
    before = tree(tmp_path)
    files = {
        tmp_path / "there" / "new.py": b"new",
        tmp_path / "there" / "old.py": b"newer",
        tmp_path / "made" / "deep" / "job.lock": b"{}",
    }
    with monkeypatch.context() as patched:
        patched.setattr(os, name, failing(name, after, error))
        with pytest.raises((Sh2genError, KeyboardInterrupt)) as caught:
            write_all(files)
    if isinstance(error, OSError):
        assert isinstance(caught.value, Sh2genError) and caught.value.code == "C005"
        assert caught.value.message == f"cannot write {[*files][after]}: full"
    assert tree(tmp_path) == before
    write_all(files)
    assert {path: path.read_bytes() for path in files} == files
    assert not [path for path in tree(tmp_path) if ".sh2gen" in path]


@pytest.mark.parametrize("lock", ["folder/x.lock", "file/x.lock", "n" * 300, "op.yaml", "full"])
def test_a_compilation_whose_lock_file_cannot_be_written_writes_nothing(
    tmp_path: Path, lock: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "x.lock").mkdir(parents=True)
    (tmp_path / "full").symlink_to("/dev/full")
    for name in ("one", "two"):
        text = f"op: {name}_conv\nchannels: 4\nfilter: {{kind: explicit, length: 3, groups: 4}}\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "op.yaml").write_text(text)
    arguments = [str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml"), "--no-verify"]
    arguments += ["--no-build", f"--out={tmp_path}/out", f"--lock={tmp_path}/{lock}"]
    result = CliRunner().invoke(main, ["compile", *arguments])
    assert result.exit_code == 2 and "error[C005]" in result.stderr, result.output
    assert lock in result.stderr and not (tmp_path / "out").exists()


def test_a_lock_file_is_none_of_the_generated_ones(written: Path, tmp_path: Path) -> None:
    """Nor a folder of one, nor in one."""
    new = tmp_path / "new"
    for lock in (new / written.name, new, new / written.name / "x.lock"):
        with pytest.raises(Sh2genError, match=r"it cannot be the (lock|folder)") as caught:
            compile_operator(SPEC, out=new, lock=lock)
        assert caught.value.code == "C006" and not new.exists()


def test_the_file_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its folder takes no others, although it says that it does."""
    monkeypatch.setattr(
        tempfile, "mkdtemp", failing("mkdtemp", 0, OSError(errno.ENOENT, "no"), tempfile)
    )
    with pytest.raises(Sh2genError, match=rf"cannot write {tmp_path}/b/file: no"):
        write_all({tmp_path / "b" / "file": b"", tmp_path / "a" / "file": b""})
    assert not [*tmp_path.iterdir()]


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "small_conv.py")
    with pytest.raises(Sh2genError) as caught:
        compile_operator(SPEC, out=tmp_path, verified=False, built=False)
    assert caught.value.code == "C005"
    with pytest.raises(Sh2genError, match="not a regular file"):
        write_whole(tmp_path / "small_conv.py", "text")
    assert stat.S_ISFIFO((tmp_path / "small_conv.py").stat().st_mode)


def test_a_name_may_be_as_long_as_names_may_be(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_whole(path, "text")
    assert tree(tmp_path) == {path.name: "text"}
    with pytest.raises(Sh2genError, match="name too long") as caught:
        write_whole(tmp_path / ("n" * 256), "text")
    assert caught.value.code == "C005"


def test_the_mode_of_a_file_is_as_the_user_wants_it(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_what_is_replaced_keeps_its_mode_and_its_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    file, link = tmp_path / "real" / "file", tmp_path / "link"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to("real/file")
    with monkeypatch.context() as patched:  # what is put back does too
        patched.setattr(os, "replace", failing("replace", 1, OSError(errno.ENOSPC, "full")))
        with pytest.raises(Sh2genError, match="other: full"):
            write_all({link: b"new", tmp_path / "other": b""})
    for text in ("old", "new"):
        assert link.is_symlink() and file.read_text() == text
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
        write_whole(link, "new")
    assert sorted(tree(tmp_path)) == ["link", "real", "real/file"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    """Neither what one that lives is writing, nor files of others."""
    begin = "import time; from pathlib import Path; from sh2gen.base.files import scratch\n"
    begin += f"with scratch(Path({str(tmp_path)!r})) as folder:\n"
    begin += "    (folder / '0').write_text('half')\n    print(folder, flush=True)\n"
    begin += "    time.sleep(60)"
    processes = [
        subprocess.Popen([sys.executable, "-c", begin], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        left, held = (Path(str(p.stdout and p.stdout.readline()).strip()) for p in processes)
        (tmp_path / ".sh2gen-mine").mkdir()
        processes[0].kill()
        processes[0].wait()
        assert left.is_dir() and held.is_dir()
        write_whole(tmp_path / "file", "text")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            [".sh2gen-mine", held.name, "file"]
        )
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_folder_that_is_removed_before_it_is_held_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = tempfile.mkdtemp, []

    def removed(**options: Any) -> str:
        made.append(make(**options))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", removed)
    with scratch(tmp_path) as folder:
        assert str(folder) == made[1] and folder.is_dir()
    assert not list(tmp_path.iterdir())


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


def test_what_a_file_says_of_its_verification_is_text_and_no_code(written: Path) -> None:
    """Signed as sh2gen signs, it is not the same program; and `compile` does not copy it."""
    text, trap = written.read_text(), written.with_name("executed")
    for what in (f'x."""; open({str(trap)!r}, "w"); """', "on a GPU\\", "on\ta GPU", "on a GPÜ"):
        words = text.replace("Verified: not yet.", f"Verified: {what}")
        written.write_text(signed(words))
        assert words != text and intact(signed(words)) and not same_program(words, text)
        assert stale(compile_operator(SPEC, out=written.parent, write=False, **UNVERIFIED))
        result = CliRunner().invoke(main, ["verify", str(written), "--device=cpu"])
        assert result.exit_code == 1 and "error[V003]" in result.stderr, result.stderr
        compile_operator(SPEC, out=written.parent, **UNVERIFIED)
        assert written.read_text() == text
    assert not trap.exists()
    assert same_program(stated(text, 'a "GPU"\n'), text)
    # What was changed and not signed is stale too, whatever was changed.
    written.write_text(text.replace("Verified: not yet.", "Verified: on another GPU."))
    assert stale(compile_operator(SPEC, out=written.parent, write=False, **UNVERIFIED))


def test_two_names_of_one_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("before")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(Sh2genError, match=r"two are one file|one are one file") as caught:
        write_all({tmp_path / "one": b"1", tmp_path / "two": b"2"})
    assert caught.value.code == "C005" and (tmp_path / "one").read_text() == "before"


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


def test_files_that_differ_in_configs_alone_are_one_to_a_search() -> None:
    """Their digests differ too, and are no part of what is searched."""
    spec = load_spec(folder("ops") / "hyena_se.yaml")
    plan = plans(spec)[0]
    one, other = (
        emit(spec, plan, schedule(spec, plan, {"forward": {"TILES": tiles}})) for tiles in (1, 2)
    )
    assert one.text != other.text and one.frame == other.frame


def test_help_says_that_a_file_is_executed() -> None:
    assert "is executed" in CliRunner().invoke(main, ["verify", "--help"]).stdout
