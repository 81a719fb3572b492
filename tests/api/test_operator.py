"""`sh2gen.operator`: any width, compiled and compared once, from a folder of the user's own."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import sh2gen
from sh2gen.api import operator as module
from sh2gen.base.errors import Sh2genError
from sh2gen.spec.decode import spec_from_dict

SPEC = spec_from_dict(
    {
        "op": "tiny_conv",
        "channels": 8,
        "filter": {"kind": "explicit", "length": 3, "groups": 2},
        "gates": {"pre": True, "post": True},
    }
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SH2GEN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def never(*arguments: object) -> None:
    raise AssertionError("it was compiled again")


@pytest.mark.parametrize(
    ("channels", "groups", "expected"),
    [(None, None, (8, 2)), (12, None, (12, 3)), (12, 4, (12, 4)), (None, 8, (8, 8))],
)
def test_a_width_is_that_of_the_operator_unless_another_is_given(
    channels: int | None, groups: int | None, expected: tuple[int, int]
) -> None:
    operator = sh2gen.operator(SPEC, channels, groups)
    layer = operator.module()
    assert (operator.spec.channels, operator.spec.filter.groups) == expected
    assert (layer.channels, layer.groups) == expected
    shape = (2, expected[0], 19) if operator.layout == "BDL" else (2, 19, expected[0])
    inputs = [torch.randn(shape) for _ in range(3)]
    wanted = operator.reference(*inputs, **dict(layer.named_parameters()))
    torch.testing.assert_close(layer(*inputs).double(), wanted, rtol=1e-4, atol=1e-5)


def test_groups_that_do_not_divide_the_channels() -> None:
    with pytest.raises(Sh2genError) as caught:
        sh2gen.operator(SPEC, 10, 4)
    assert caught.value.code == "S006"


def test_it_is_compiled_once_and_again_when_the_file_was_changed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sh2gen.operator(SPEC).path
    assert path.is_relative_to(home / "operators")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_verified", never)
        assert sh2gen.operator(SPEC).path == path
        text = path.read_text()
        path.write_text(text.replace("return x if", "return 2 * x if", 1))
        assert path.read_text() != text
        with pytest.raises(AssertionError, match="compiled again"):
            sh2gen.operator(SPEC)
    sh2gen.operator(SPEC)
    assert path.read_text() == text


def test_one_process_has_one_operator_whose_ops_have_no_number(home: Path) -> None:
    """So a program that was exported here names ops as any other process does."""
    spec = dataclasses.replace(SPEC, op="lone_conv")
    operator = sh2gen.operator(spec)
    assert sh2gen.operator(spec) is operator and sh2gen.operator(spec, 12).path != operator.path
    assert re.fullmatch(r"lone_conv_[0-9a-f]{8}", operator.namespace.LIBRARY_NAME)
    assert not list(operator.path.parent.glob("draft*"))
    x = torch.randn(1, 8, 5, requires_grad=True)
    operator.module()(x, x, x).sum().backward()
    compiled = sh2gen.compile(dataclasses.replace(spec, op="single_conv"), out=home, built=False)
    assert re.fullmatch(r"single_conv_[0-9a-f]{8}", compiled.namespace.LIBRARY_NAME)


def test_a_cache_that_cannot_be_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(lock: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    operator = sh2gen.operator(SPEC)
    monkeypatch.setattr(module.FileLock, "acquire", refused)
    assert sh2gen.operator(SPEC) is operator  # of what is there
    with pytest.raises(Sh2genError, match="Read-only file system") as caught:
        sh2gen.operator(SPEC, 12)
    assert caught.value.code == "C005" and "SH2GEN_HOME" in str(caught.value.help)


def test_what_is_wrong_is_not_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(runner: module.OperatorRunner, *inputs: object) -> torch.Tensor:
        return right(runner, *inputs) + 1

    right = module.OperatorRunner.forward
    monkeypatch.setattr(module.OperatorRunner, "forward", wrong)
    with pytest.raises(sh2gen.CheckFailed):
        sh2gen.operator(SPEC)
    assert not list((home / "operators").glob("*/tiny_conv.py"))


@pytest.mark.parametrize("mode", [0o777, 0o750])
def test_a_folder_that_others_may_use_is_refused(home: Path, mode: int) -> None:
    assert sh2gen.operator(SPEC).path.parent.stat().st_mode & 0o777 == 0o700
    (home / "operators").chmod(mode)
    with pytest.raises(Sh2genError) as caught:
        sh2gen.operator(SPEC)
    assert caught.value.code == "C005" and "is not yours alone" in caught.value.message


def asked(_: int) -> bool:
    """Whether this process compiled it."""
    torch.set_num_threads(1)
    compiled, verified = [], module._verified

    def noted(*arguments: object) -> None:
        compiled.append(os.getpid())
        verified(*arguments)  # type: ignore[arg-type]

    module._verified = noted
    sh2gen.operator(SPEC)
    return bool(compiled)


def test_of_eight_processes_that_ask_at_once_one_compiles() -> None:
    with multiprocessing.get_context("fork").Pool(8) as pool:
        assert sorted(pool.map(asked, range(8), chunksize=1)) == [False] * 7 + [True]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"channels": "12"}, "channels must be a whole number, not '12'"),
        ({"channels": 12.0}, "channels must be a whole number, not 12.0"),
        ({"groups": 2.0}, "groups must be a whole number"),
        ({"channels": 6}, "6 channels are no whole groups of 4"),
        ({"channels": 0}, "0 channels are no whole groups of 4"),
    ],
)
def test_a_width_that_is_none(given: dict[str, int], words: str) -> None:
    with pytest.raises((TypeError, Sh2genError), match=words):
        sh2gen.operator(SPEC, **given)


@pytest.mark.parametrize("width", [8, (8,), "82"])
def test_a_width_of_a_file_is_two_numbers(width: Any) -> None:
    path = sh2gen.operator(SPEC).path
    with pytest.raises(
        TypeError, match=r"width must be channels and filter groups, as \(1920, 128\)"
    ):
        sh2gen.load(path, width=width)


def test_modules_of_any_width_that_the_file_serves() -> None:
    """Groups are as wide as those of the operator, which may be wider than those of the file."""
    operator = sh2gen.operator(SPEC)
    wide = sh2gen.load(operator.path, width=(12, 2))
    for layer, width in (
        (operator.module(12), (12, 3)),
        (operator.module(12, 4), (12, 4)),
        (operator.module(groups=8), (8, 8)),
        (wide.module(), (12, 2)),
        (wide.module(24), (24, 4)),
    ):
        assert (layer.channels, layer.groups) == width and len(layer.filter) == width[1]
    for arguments, error, words in (
        (("cuda",), TypeError, "channels must be a whole number, not 'cuda'"),
        ((12, 3.0), TypeError, "groups must be a whole number, not 3.0"),
        ((6,), Sh2genError, "6 channels are no whole groups of 4"),
        ((12, 5), ValueError, "5 filter groups do not divide 12 channels"),
    ):
        with pytest.raises(error, match=words):
            operator.module(*arguments)


def test_a_slice_of_a_ladder_is_refused_where_there_is_none() -> None:
    operator = sh2gen.operator(SPEC)
    both = {"first_group": 2, "groups_in_all": 4}
    named = (
        "tiny_conv: first_group and groups_in_all said of a filter that does not decay: .* leave"
    )
    for call in (operator.module, operator, operator.reference):
        with pytest.raises(TypeError, match=named):
            call(**both)
    with pytest.raises(TypeError, match="tiny_conv: groups_in_all said of"):
        operator.module(groups_in_all=4)
    assert operator.module(first_group=0, groups_in_all=None).groups == 2


@pytest.mark.parametrize("text", ["3", "[1, 2]", "{}", "no JSON"])
def test_a_damaged_record_of_verification_is_none(text: str, home: Path) -> None:
    path = sh2gen.operator(SPEC).path
    record = path.with_name("verified.json")
    before = record.read_text()
    record.write_text(text)
    assert sh2gen.operator(SPEC).path == path and record.read_text() == before
