"""Text of generated files: plain data as Python, and templates filled."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import jinja2

from sh2gen.base.resources import folder

WIDTH = 99  # columns of a page
_NOTHING = "\0"  # in place of a block without lines; removed with its line


def targets(names: Sequence[str]) -> str:
    """Names to unpack a sequence into."""
    return f"({names[0]},)" if len(names) == 1 else ", ".join(names)


def filled(template: str, **context: Any) -> str:
    """A template of templates/ with its values, without line breaks around it."""
    text = _environment().get_template(template).render(context)
    return text.replace(f"{_NOTHING}\n", "").strip("\n")


def kernel(template: str, values: Any) -> str:
    """The macro `kernel` of a skeleton, filled."""
    module = _environment().get_template(template).module
    text: str = module.kernel(values)  # type: ignore[attr-defined]
    return text.replace(f"{_NOTHING}\n", "").strip("\n")


def signature(name: str, arguments: Sequence[str], result: str) -> str:
    """The first lines of a function, an argument a line."""
    return "\n".join([f"def {name}(", *(f"    {a}," for a in arguments), f") -> {result}:"])


def folded(text: str) -> str:
    """Lines of a docstring, those that are longer than a page broken between words; of an
    argument's description the later ones hang.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        if len(line) <= WIDTH:
            lines.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        hang = "    " if re.match(r"\s+\w+: ", line) else ""
        closed = line.endswith('"""') and line.count('"""') == 2
        words = line.removesuffix('"""') if closed else line
        width = WIDTH - 3 * closed  # of one line ruff would close the quotes in that line
        lines += textwrap.wrap(
            words, width, subsequent_indent=indent + hang, break_on_hyphens=False
        )
        lines += [indent + '"""'] * closed
    return "\n".join(lines)


def literal(value: Any, indent: int, taken: int = 10) -> str:
    """Plain data as Python text: on one line where it fits in 99 columns, else an item a line."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if not isinstance(value, dict | list | tuple) or not value:
        return repr(value)
    inner = indent + 4
    if isinstance(value, dict):
        brackets = "{}"
        items = [
            f"{literal(k, 0)}: {literal(v, inner, inner + len(k) + 5)}" for k, v in value.items()
        ]
    else:
        brackets = "[]" if isinstance(value, list) else "()"
        items = [literal(v, inner, inner + 1) for v in value]
    comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
    line = brackets[0] + ", ".join(items) + comma + brackets[1]
    if "\n" not in line and taken + len(line) <= WIDTH:
        return line
    lines = "".join(f"{' ' * inner}{item},\n" for item in items)
    return f"{brackets[0]}\n{lines}{' ' * indent}{brackets[1]}"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters["targets"] = targets
    environment.filters["block"] = _block
    environment.filters["folded"] = folded
    environment.globals["signature"] = signature
    return environment


def _template(name: str) -> str:
    """A template, its lines `#% ...` as blocks: Jinja's line statements eat blank lines."""
    text = (folder("templates") / name).read_text()
    return re.sub(r"^[ \t]*#% ?(.*)$", r"{% \1 %}", text, flags=re.MULTILINE)


def _block(text: str, indent: int) -> str:
    """What a macro printed as lines of a block, without its last line break."""
    return textwrap.indent(text.strip("\n"), " " * indent) or _NOTHING


def call(function: str, arguments: Iterable[str], result: str = "") -> list[str]:
    """A call, an argument a line."""
    left = f"{result} = " if result else ""
    return [f"{left}{function}(", *(f"    {a}," for a in arguments), ")"]


def when(condition: str, lines: Iterable[str]) -> list[str]:
    """Lines under a condition."""
    return [f"if {condition}:", *(f"    {line}" for line in lines)]


def loop(what: str, lines: Iterable[str]) -> list[str]:
    """Lines in a loop."""
    return [f"for {what}:", *(f"    {line}" for line in lines)]
