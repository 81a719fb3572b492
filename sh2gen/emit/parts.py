"""Helpers of generated files: real functions in templates/parts/, copied as they stand."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sh2gen.base.resources import folder
from sh2gen.plan import geometry

GEOMETRY = "geometry"  # the one part that sh2gen itself runs


@dataclass(frozen=True, slots=True)
class Helper:
    """A top-level function or class of a part.

    Attributes:
        uses: names in it that are not its own.
        parameters: their names, of a function.
    """

    name: str
    text: str
    uses: frozenset[str]
    parameters: tuple[str, ...]


@cache
def part(name: str) -> tuple[Helper, ...]:
    """The helpers of one part, in the order of its file."""
    assert geometry.__file__ is not None
    path = folder("templates") / "parts" / f"{name}.py"
    source = (Path(geometry.__file__) if name == GEOMETRY else path).read_text()
    lines = source.splitlines()
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            own = _own(node)
            loaded = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            names = frozenset(loaded - own)
            assert node.end_lineno is not None
            text = "\n".join(lines[first - 1 : node.end_lineno])
            arguments = node.args.args if isinstance(node, ast.FunctionDef) else []
            found.append(Helper(node.name, text, names, tuple(a.arg for a in arguments)))
    return tuple(found)


def _own(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    """The arguments and variables of a helper, which may be called as another helper is."""
    stored = (n for n in ast.walk(node) if isinstance(n, ast.Name))
    names = {n.id for n in stored if isinstance(n.ctx, ast.Store)}
    return names | {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}


def texts(name: str, without: Iterable[str] = ()) -> list[str]:
    """The text of every helper of a part, but for some."""
    return [helper.text for helper in part(name) if helper.name not in without]


def signatures(parts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The names of the parameters of each helper; the first part that defines a name wins."""
    found: dict[str, tuple[str, ...]] = {}
    for name in parts:
        for helper in part(name):
            found.setdefault(helper.name, helper.parameters)
    return found


def closure(parts: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """The text of the wanted helpers and of the helpers that they call, callees before callers.

    The first part that defines a name wins.
    """
    known: dict[str, Helper] = {}
    for name in parts:
        for helper in part(name):
            known.setdefault(helper.name, helper)
    order: list[str] = []

    def visit(name: str) -> None:
        if name in known and name not in order:
            for used in sorted(known[name].uses - {name}):
                visit(used)
            order.append(name)

    for name in sorted(wanted, key=lambda name: list(known).index(name)):
        visit(name)
    return [known[name].text for name in order]
