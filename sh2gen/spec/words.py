"""Words for messages on descriptions: what was found, what is legal, what was probably meant."""

from __future__ import annotations

import difflib
import json
import typing
from pathlib import Path
from typing import Any

import yaml

from sh2gen.base.files import listed
from sh2gen.base.resources import shipped_ops


def expected(kind: Any) -> tuple[str, str]:
    """What a value of `kind` is, in words and as an example."""
    if kind is int:
        return "a whole number in decimal digits", "128"
    if kind is bool:
        return "true or false", "true"
    if kind is str:
        return "a word", "hyena_se"
    if hasattr(kind, "EXAMPLE"):
        return "a mapping", kind.EXAMPLE
    if typing.get_origin(kind) is tuple:
        return "a list", f"[{expected(typing.get_args(kind)[0])[1]}]"
    return "a word", str(next(iter(kind)))


def found(node: yaml.Node) -> str:
    """What stands at `node`, in words."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if getattr(node, "style", None) is None:
        return show(node.value) if node.value else "empty"
    return f"the string {show(json.dumps(node.value, ensure_ascii=False))}"


def show(text: str) -> str:
    """`text` in backticks, on one line, shortened."""
    text = text.replace("\n", "\\n")
    return f"`{text if len(text) <= 40 else text[:37] + '...'}`"


def nearest(word: str, legal: list[str], introduction: str) -> str:
    """The legal spelling that was probably meant, or all of them."""
    lower = {str(choice).lower(): str(choice) for choice in legal}
    close = difflib.get_close_matches(word.lower(), lower, n=1)
    if close:
        return f"did you mean `{lower[close[0]]}`?"
    return f"{introduction} {', '.join(lower.values())}"


def nearby(path: Path, error: OSError) -> str | None:
    """Operator files in a folder that was given for one, or one beside it with a similar name."""
    if not isinstance(error, FileNotFoundError | IsADirectoryError):
        return None
    if inside := [name for name in listed(path) if name.endswith(".yaml")]:
        return f"one of {', '.join(inside)} in it"
    beside = {name for name in listed(path.parent) if name.endswith(".yaml")}
    names = {name: str(path.with_name(name)) for name in beside - {path.name}}
    if str(path) == path.name and path.suffix in ("", ".yaml"):  # perhaps a shipped operator
        names |= {name + path.suffix: name for name in shipped_ops()}
    if close := difflib.get_close_matches(path.name, names, n=1):
        return f"did you mean `{names[close[0]]}`?"
    return "`sh2gen ops` lists the shipped operators" if str(path) == path.stem else None
