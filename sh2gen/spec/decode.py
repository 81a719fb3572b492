"""An operator description in YAML -> `OpSpec`, with the place of what is wrong.

`load_spec`, `parse_spec` and `spec_from_dict` walk the YAML nodes by the annotations of the
dataclasses. YAML's own guesses about types (`no`, `1e-3`, `0x10`) play no part, and every refusal
points at the offending text.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, is_dataclass
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from sh2gen.base.errors import Location, Sh2genError
from sh2gen.base.files import open_regular
from sh2gen.base.resources import shipped_op
from sh2gen.spec.language import language_fields
from sh2gen.spec.operator import OpSpec
from sh2gen.spec.rules import RuleError
from sh2gen.spec.words import expected, found, nearby, nearest, show

_MAX_BYTES = 100_000  # of an operator file; they are a page long
_MAX_DEPTH = 16  # of nested YAML collections; the language has 3
# Where a value stands in the text: a yaml.Mark (line and column from 0; its stubs disagree).
_Mark = Any


def load_spec(path: str | PathLike[str]) -> OpSpec:
    """Read one operator file (UTF-8), or the shipped operator of that name.

    Everything that can be wrong with it raises Sh2genError.
    """
    path = shipped_op(path) or path
    file = str(path)
    if file.endswith(".py"):
        raise Sh2genError(
            "S001",
            f"{file} is Python, and an operator file is wanted here",
            help="`sh2gen verify` and `sh2gen.load` take generated files; all else takes the "
            "op.yaml, or the name of a shipped operator (`sh2gen ops` lists them)",
        )
    try:
        with open_regular(path) as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Sh2genError(
            "S001",
            f"cannot read {file}: {reason[0].lower()}{reason[1:]}",
            help=nearby(Path(path), error),
        ) from None
    if len(data) > _MAX_BYTES:
        raise Sh2genError(
            "S001", f"{file} is larger than {_MAX_BYTES} bytes: not an operator file"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Sh2genError(
            "S001", f"{file} is not UTF-8 text: byte {data[error.start]:#04x} in line {line}"
        ) from None
    return dataclasses.replace(parse_spec(text, file), source=file)


def parse_spec(text: str, file: str = "<string>") -> OpSpec:
    """Read one operator from YAML text; `file` is what messages call it."""
    spec = _Decoder(text, file, OpSpec).decode()
    assert isinstance(spec, OpSpec)
    return spec


def spec_from_dict(values: Mapping[str, Any]) -> OpSpec:
    """Build an operator from what `OpSpec.to_dict` returned, with the same checks as a file."""
    try:
        text = json.dumps(values, ensure_ascii=False)  # JSON is YAML
    except (TypeError, ValueError, RecursionError) as error:
        raise Sh2genError("S004", f"not a description of plain values: {error}") from None
    return parse_spec(text, "<dict>")


class _Decoder:
    """One description: the nodes of `yaml.compose` against the annotations of the dataclasses."""

    def __init__(self, text: str, file: str, language: Any) -> None:
        self.text = text
        self.file = file
        self.language = language  # the dataclass of the whole description
        self.places: dict[str, _Mark] = {}  # where every value stands, for `RuleError`

    def decode(self) -> Any:
        """The value, or the first error; rules that combine values come last."""
        root = self._compose()
        try:
            return self._value(root, self.language, "")
        except RuleError as problem:
            path = problem.path
            while path not in self.places:  # a default: point at the mapping that leaves it out
                path = path[: max(path.rfind("."), path.rfind("["), 0)]
            problem.location = self._location(self.places[path])
            raise

    def _compose(self) -> yaml.Node:
        """The nodes. Anchors, tags and deep nesting are refused before anything expands them."""
        depth = 0
        try:
            for event in yaml.parse(self.text, Loader=yaml.BaseLoader):
                if getattr(event, "anchor", None) is not None:
                    raise self._error(
                        "S008", event.start_mark, "anchors and aliases (`&`, `*`) are not allowed"
                    )
                if getattr(event, "tag", None) is not None:
                    raise self._error("S008", event.start_mark, "tags (`!`) are not allowed")
                depth += isinstance(event, yaml.CollectionStartEvent)
                depth -= isinstance(event, yaml.CollectionEndEvent)
                if depth > _MAX_DEPTH:
                    raise self._error("S008", event.start_mark, "nested too deeply")
            root = yaml.compose(self.text, Loader=yaml.BaseLoader)
        except yaml.MarkedYAMLError as error:
            mark: _Mark = error.problem_mark or error.context_mark
            assert mark is not None
            message = " ".join(filter(None, (error.context, error.problem)))
            help = None
            if mark.index < len(self.text) and self.text[mark.index] == "\t":
                message, help = "a tab where YAML wants spaces", "indent with spaces"
            raise self._error("S008", mark, f"not YAML: {message}", help) from None
        except yaml.reader.ReaderError as error:
            char = self.text[error.position]
            before = self.text[: error.position].splitlines() or [""]
            mark = types.SimpleNamespace(line=len(before) - 1, column=len(before[-1]))
            raise self._error("S008", mark, f"not YAML: the character {show(char)}") from None
        if root is None:
            example = f"for example `{self.language.EXAMPLE}`"
            raise Sh2genError("S008", f"{self.file} is empty", help=example)
        return root

    def _value(self, node: yaml.Node, kind: Any, path: str) -> Any:
        """The value of `node` as the annotation `kind` says.

        That is a dataclass, tuple[X, ...], a StrEnum, int, bool, str, or X | None.
        """
        self.places[path] = node.start_mark
        optional = isinstance(kind, types.UnionType)
        if optional:
            (kind,) = set(typing.get_args(kind)) - {types.NoneType}
            if isinstance(node, yaml.ScalarNode) and node.value == "none":
                return None
        if is_dataclass(kind) and isinstance(node, yaml.MappingNode):
            return self._mapping(node, kind, path)
        if typing.get_origin(kind) is tuple and isinstance(node, yaml.SequenceNode):
            item = typing.get_args(kind)[0]
            return tuple(self._value(n, item, f"{path}[{i}]") for i, n in enumerate(node.value))
        if isinstance(node, yaml.ScalarNode) and isinstance(kind, type):
            return self._scalar(node, kind, path, optional)
        raise self._wrong_type(node, kind, path, optional)

    def _scalar(self, node: yaml.ScalarNode, kind: type, path: str, optional: bool) -> Any:
        text, plain = str(node.value), node.style is None
        if kind is str and (text or not plain):
            return text
        if kind is bool and plain and text in ("true", "false"):
            return text == "true"
        if kind is int and plain and re.fullmatch(r"-?(0|[1-9][0-9]*)", text, re.ASCII):
            return int(text[:20])  # beyond _MAX_INT anyway; Python refuses thousands of digits
        if issubclass(kind, StrEnum):
            try:
                return kind(text)
            except ValueError:
                legal = [*kind, "none"] if optional else [*kind]
                message = f"{path} cannot be {found(node)}"
                help = nearest(text, legal, "one of")
                raise self._error("S004", node.start_mark, message, help) from None
        raise self._wrong_type(node, kind, path, optional)

    def _mapping(self, node: yaml.MappingNode, kind: Any, path: str) -> Any:
        where = f" in {path}" if path else ""
        hints = typing.get_type_hints(kind)
        legal = {f.name: f for f in language_fields(kind)}
        lines: dict[str, int] = {}
        values: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                message = f"a key must be a word, not {found(key)}"
                raise self._error("S002", key.start_mark, message)
            if key.value not in legal:
                message = f"unknown key {found(key)}{where}"
                help = self._home(key.value, path) or nearest(key.value, [*legal], "the keys are")
                raise self._error("S002", key.start_mark, message, help)
            if key.value in lines:
                message = f"`{key.value}` is given twice{where}, first in line {lines[key.value]}"
                raise self._error("S002", key.start_mark, message)
            lines[key.value] = key.start_mark.line + 1
            values[key.value] = self._value(
                value, hints[key.value], f"{path}.{key.value}".lstrip(".")
            )
        for name, f in legal.items():
            if name not in values and f.default is MISSING:
                message = f"{path or 'the description'} needs the key `{name}`"
                example = f"for example `{kind.EXAMPLE}`"
                raise self._error("S003", node.start_mark, message, example)
        return kind(**values)

    def _wrong_type(self, node: yaml.Node, kind: Any, path: str, optional: bool) -> Sh2genError:
        what, example = expected(kind)
        if optional:
            what += " or none"
        key, item, _ = path.rpartition(".")[2].partition("[")
        if item:  # shown inside its list
            example = f"[{example}]"
        help = f"for example `{key}: {example}`" if key else f"for example `{example}`"
        name = path or "the description"
        message = f"{name} must be {what}, not {found(node)}"
        return self._error("S004", node.start_mark, message, help)

    def _home(self, key: str, path: str) -> str | None:
        """Where `key` belongs, if it is a key of another mapping."""
        top = {f.name for f in language_fields(self.language)}
        if path and key in top:
            return f"`{key}` belongs to the top level"
        homes = []
        for name, hint in typing.get_type_hints(self.language).items():
            for kind in (hint, *typing.get_args(hint)):
                if is_dataclass(kind) and any(f.name == key for f in language_fields(kind)):
                    homes.append(name)
        return f"`{key}` belongs to {' or '.join(homes)}" if homes else None

    def _error(self, code: str, mark: _Mark, message: str, help: str | None = None) -> Sh2genError:
        return Sh2genError(code, message, location=self._location(mark), help=help)

    def _location(self, mark: _Mark) -> Location:
        lines = self.text.splitlines()
        text = lines[mark.line] if mark.line < len(lines) else ""
        return Location(file=self.file, line=mark.line + 1, column=mark.column + 1, text=text)
