"""Errors that a user can cause, and how they are shown.

An error names a code, says in one sentence what is wrong, points at the offending text when there
is one, and says what to do when that is known:

    error[S002]: unknown key `lenght` in filter
      --> ops/hyena_mr.yaml:5:26
       5 | filter: {kind: explicit, lenght: 128}
         |                          ^
    help: did you mean `length`?

Bugs of sh2gen itself are plain assertions and never one of these.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import ClassVar

# Every code with one line of meaning: S spec, L lowering, K schedule, B build, V verification,
# R records, tuned tables and lock files, C call and command line.
CODES: dict[str, str] = {
    "S001": "the operator file cannot be read",
    "S002": "unknown or duplicate key",
    "S003": "a required key is missing",
    "S004": "a value has the wrong type or is not one of the legal words",
    "S005": "a value is out of range",
    "S006": "values that exclude each other",
    "S007": "not a legal operator name",
    "S008": "not YAML, or YAML beyond plain mappings, lists and scalars",
    "L001": "an algorithm cannot compute this operator",
    "L002": "no algorithm can compute this operator",
    "L003": "unknown algorithm or plan",
    "K001": "unknown knob",
    "K002": "a knob has an illegal value",
    "K003": "a schedule violates a constraint",
    "K004": "a schedule file is malformed",
    "B001": "a kernel does not compile, or not in time",
    "B002": "a kernel does not fit the target",
    "B003": "unknown target",
    "B004": "Triton is not installed or cannot be used here",
    "B005": "a generated file cannot be loaded",
    "B006": "it failed with a version of a package that sh2gen is not tested with",
    "B007": "the file of a target is malformed",
    "V001": "a result is wrong",
    "V002": "a property of the operator does not hold",
    "V003": "the verifier, bench or tune cannot run here",
    "R001": "a lock file or a sweep cannot be read",
    "R002": "a lock file or a sweep is malformed",
    "R003": "a lock file does not pin the operator",
    "C001": "a tensor has the wrong shape",
    "C002": "a tensor has the wrong dtype",
    "C003": "a tensor is on the wrong device",
    "C004": "a tensor has the wrong layout",
    "C005": "the output cannot be written",
    "C006": "bad command-line arguments",
    "C007": "the system refuses: no space, no memory, no permission",
}

_WIDTH = 100  # a source line longer than this is shown as a window around the caret


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A place in a text: `line` and `column` count from 1, in characters; `text` is that line."""

    file: str
    line: int
    column: int
    text: str

    def render(self) -> str:
        """The arrow line, the source line, and a caret below the place."""
        before = max(0, self.column - 1)
        # One character for each, so that the caret stays below its place.
        text = "".join(
            " " if char == "\t" else char if char.isprintable() else "\ufffd" for char in self.text
        )
        if len(text) > _WIDTH:
            start = max(0, before - _WIDTH // 2)
            dots = "..." if start else ""
            after = "..." if start + _WIDTH < len(text) else ""
            text = dots + text[start : start + _WIDTH] + after
            before += len(dots) - start
        indent = " " * sum(map(_columns, text[:before]))
        number = f"{self.line:>4}"
        arrow = f"  --> {printable(self.file)}:{self.line}:{self.column}"
        source = f"{number} | {text}".rstrip()
        caret = f"{' ' * len(number)} | {indent}^"
        return "\n".join((arrow, source, caret))


class Sh2genError(Exception):
    """Base of everything caused by the user's input or environment.

    `str(error)` is the block that this module's docstring shows.
    """

    exit_code: ClassVar[int] = 2

    def __init__(
        self, code: str, message: str, *, location: Location | None = None, help: str | None = None
    ) -> None:
        super().__init__(
            code, message
        )  # what pickle passes to the constructor; the rest travels in __dict__
        self.code = code
        self.message = message
        self.location = location
        self.help = help

    def render(self) -> str:
        """The whole message: no trailing newline, no characters that a terminal would obey."""
        parts = [f"error[{self.code}]: {printable(self.message)}"]
        if self.location is not None:
            parts.append(self.location.render())
        if self.help is not None:
            parts.append(f"help: {printable(self.help)}")
        return "\n".join(parts)

    def __str__(self) -> str:
        return self.render()


class CheckFailed(Sh2genError):  # noqa: N818 (reads as what happened)
    """A verification or resource check failed: the input was fine, the result is not."""

    exit_code: ClassVar[int] = 1


def printable(text: str) -> str:
    """`text` with everything but printable characters and newlines written as an escape."""
    return "".join(
        char
        if char == "\n" or char.isprintable()
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def _columns(char: str) -> int:
    """How many terminal columns a printable character takes."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
