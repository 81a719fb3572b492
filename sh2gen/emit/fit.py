"""Generated text on a page: lines broken as `ruff format` breaks them."""

from __future__ import annotations

import ast
import io
import itertools
import re
import textwrap
import tokenize

_WIDTH = 99  # columns
# Strings, and comments, which may hold quotes. To tokenize the text would take ten times as long.
_TOKEN = re.compile(
    r'''"""(?:[^\\]|\\.)*?"""|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|\#[^\n]*''', re.DOTALL
)


def fitted(text: str) -> str:
    """The text with no line longer than 99 columns, broken as `ruff format` breaks it.

    How long a line is depends on names and sizes, so that templates cannot break it themselves.
    """
    lines = text.split("\n")
    strings: set[int] = set()  # lines of strings that span several: docstrings
    begin, at = 0, 0
    for found in _TOKEN.finditer(text):
        if found[0].startswith('"""'):
            begin, at = begin + text.count("\n", at, found.start()), found.start()
            strings.update(range(begin, begin + found[0].count("\n") + 1))
    fitted: list[str] = []
    for number, line in enumerate(lines):
        if len(line) <= _WIDTH or "fmt: skip" in line:
            fitted.append(line)
        elif number in strings:
            fitted += _broken_words(line)
        else:
            fitted += _broken_code(line)
    return "\n".join(fitted)


def _broken_words(line: str) -> list[str]:
    """A line of a docstring as several; those of an argument's description hang."""
    indent = line[: len(line) - len(line.lstrip())]
    hang = "    " if re.match(r"\s+\w+: ", line) else ""
    closed = line.endswith('"""') and line.count('"""') == 2
    words = line.removesuffix('"""') if closed else line
    broken = textwrap.wrap(words, _WIDTH, subsequent_indent=indent + hang, break_on_hyphens=False)
    return [*broken, indent + '"""'] if closed else broken


def _broken_code(line: str) -> list[str]:
    """A line of code broken within its last pair of brackets, or that of a function's parameters,
    at every comma if need be.
    """
    indent = line[: len(line) - len(line.lstrip())]
    if len(line) <= _WIDTH:
        return [line]
    line = _bracketed(line)
    pairs, commas = _brackets(line)
    if not pairs:
        return [line]
    # An index of a call's result stays with it.
    indexed = len(pairs) > 1 and line[pairs[-1][0] - 1 : pairs[-1][0] + 1] == ")["
    begin, end = pairs[-2] if indexed else pairs[-1]
    if line.lstrip().startswith("def "):
        begin, end = pairs[0]
    inner = indent + "    "
    body = line[begin + 1 : end]
    lines = [line[: begin + 1]]
    cuts = [begin, *(c for c in commas if begin < c < end), end]
    literal = not re.search(r"[\w)\]]$", line[:begin]) or line[begin] == "{"
    if len(cuts) == 2 or (len(inner + body) <= _WIDTH and not literal):
        lines += _broken_code(inner + body)
    else:
        for first, last in itertools.pairwise(cuts):
            lines += _broken_code(inner + line[first + 1 : last].strip() + ",")
    return [*lines, indent + line[end:]]


def _bracketed(line: str) -> str:
    """The line with brackets around a tuple that is assigned without any."""
    try:
        body = ast.parse(line.strip()).body
    except SyntaxError:  # part of a statement that is broken already
        return line
    match body:
        case [ast.Assign(value=ast.Tuple(col_offset=column))]:
            begin = len(line) - len(line.lstrip()) + column
            whole = line[begin] == "(" and line.endswith(")")
            return line if whole else f"{line[:begin]}({line[begin:]})"
    return line


def _brackets(line: str) -> tuple[list[tuple[int, int]], list[int]]:
    """The outermost pairs of brackets that hold something, and the commas directly within them."""
    pairs: list[tuple[int, int]] = []
    commas: list[int] = []
    opened: list[int] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(line.strip()).readline):
            column = token.start[1] + len(line) - len(line.lstrip())
            if token.type != tokenize.OP:
                continue
            if token.string in "([{":
                opened.append(column)
            elif token.string in ")]}":
                begin = opened.pop()
                if not opened and column > begin + 1:
                    pairs.append((begin, column))
            elif token.string == "," and len(opened) == 1:
                commas.append(column)
    except (tokenize.TokenError, IndexError):  # part of a statement that is broken already
        return [], []
    return pairs, commas
