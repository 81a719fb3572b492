"""Cells under each other, whatever is in them."""

from __future__ import annotations

from sh2gen.base.columns import columns


def test_words_begin_and_numbers_end_under_each_other() -> None:
    rows = [("op", "layout", "us"), ("hyena_se", "BDL", "1234.5"), ("x", "", "7")]
    assert columns(rows, words=2, indent=2) == [
        "  op        layout      us",
        "  hyena_se  BDL     1234.5",
        "  x                      7",
    ]


def test_no_line_is_broken_and_no_terminal_obeyed() -> None:
    word = "word " * 400
    assert columns([("a", word)], words=2) == [f"a  {word}".rstrip()]
    (line,) = columns([("[bold]a[/bold]", "\x1b[31mred :smile: 'quoted' 12")], words=2)
    assert "\x1b" not in line and line.startswith("[bold]a[/bold]  ")
    assert line.endswith("red :smile: 'quoted' 12")
