"""How errors look, and that they survive the trip between processes."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

from sh2gen.base.errors import CODES, CheckFailed, Location, Sh2genError, printable

PACKAGE = Path(__file__).parents[2] / "sh2gen"


def caret_column(location: Location) -> tuple[str, int]:
    """The shown source line and the position of the caret below it."""
    _, source, caret = location.render().split("\n")
    return source, caret.index("^")


def test_render_is_the_block_of_the_docstring() -> None:
    text = "filter: {kind: explicit, lenght: 128}"
    error = Sh2genError(
        "S002",
        "unknown key `lenght` in filter",
        location=Location(file="ops/hyena_mr.yaml", line=5, column=26, text=text),
        help="did you mean `length`?",
    )
    assert str(error) == (
        "error[S002]: unknown key `lenght` in filter\n"
        "  --> ops/hyena_mr.yaml:5:26\n"
        "   5 | filter: {kind: explicit, lenght: 128}\n"
        "     |                          ^\n"
        "help: did you mean `length`?"
    )


def test_render_without_location_or_help() -> None:
    assert Sh2genError("C005", "cannot write x").render() == "error[C005]: cannot write x"


def test_exit_codes() -> None:
    assert Sh2genError("S001", "x").exit_code == 2
    assert CheckFailed("V001", "x").exit_code == 1
    assert issubclass(CheckFailed, Sh2genError)


def test_caret_stands_below_its_place() -> None:
    for text in ("abcX", "\tb X", "\x1b[0X", "a" * 500 + "X" + "b" * 500, "a" * 500 + "X"):
        column = text.index("X") + 1
        source, caret = caret_column(Location(file="f", line=7, column=column, text=text))
        assert source[caret] == "X"
        assert len(source) < 120


def test_caret_counts_wide_characters_twice() -> None:
    source, caret = caret_column(Location(file="f", line=7, column=3, text="名前X"))
    assert caret == source.index("X") + 2


def test_nothing_reaches_the_terminal_that_it_would_obey() -> None:
    hostile = "\x1b[2J\r\x07\u202e\ud800"
    error = Sh2genError(
        "S001", hostile, location=Location(file=hostile, line=1, column=1, text=hostile)
    )
    assert all(char == "\n" or char.isprintable() for char in error.render())
    assert printable("a\nb\x1bc") == "a\nb\\x1bc"


def test_pickle_keeps_everything() -> None:
    error = CheckFailed(
        "B002",
        "too many registers",
        location=Location(file="f", line=1, column=1, text="x"),
        help="a smaller BLOCK_D",
    )
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is CheckFailed
    assert copy.render() == error.render()


def test_every_code_of_the_package_is_in_the_table() -> None:
    for path in PACKAGE.rglob("*.py"):
        used = set(re.findall(r'(?:Error|Failed)\(\s*"(\w+)"', path.read_text(encoding="utf-8")))
        assert used <= set(CODES), f"{path} uses {used - set(CODES)}"


def test_codes_are_well_formed() -> None:
    assert all(re.fullmatch(r"[SLKBVRC]\d{3}", code) for code in CODES)
    assert list(CODES) == sorted(CODES, key=lambda code: ("SLKBVRC".index(code[0]), code))
