"""A schedule file as data, checked: knobs and their values, constraints, defaults, searches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sh2gen.base.errors import Sh2genError
from sh2gen.base.resources import folder
from sh2gen.schedule.expressions import compiled, compiled_number, relation
from sh2gen.schedule.facts import FACTS

# What a knob says beside its values: where there is one, for what, and what a config means that
# lacks it because it is older.
_BESIDE = ("only", "means", "absent")


@cache
def read_schedules(algorithm: str) -> dict[str, Any]:
    try:
        text = yaml.safe_load(_path(algorithm).read_text())
        assert text["algorithm"] == algorithm
        for rule in text["require"]:
            relation(rule["that"])
        _check_search(text)
    except (OSError, yaml.YAMLError, KeyError, TypeError, AssertionError, SyntaxError) as error:
        raise malformed(algorithm, repr(error)) from error
    except ValueError as error:
        raise malformed(algorithm, str(error)) from error
    return dict(text)


def _path(algorithm: str) -> Path:
    return folder("schedules") / f"{algorithm}.yaml"


def malformed(algorithm: str, why: str) -> Sh2genError:
    return Sh2genError("K004", f"{_path(algorithm)} is malformed: {why}")


def not_legal(place: str, value: Any, legal: Iterable[int]) -> str:
    return f"{place} = {value} is not one of {', '.join(map(str, legal))}"


def _check_search(text: Mapping[str, Any]) -> None:
    """Raise ValueError, naming layout, direction and knob, if `search` is not of legal values."""
    search = text.get("search", {})
    if not isinstance(search, dict) or not all(isinstance(v, dict) for v in search.values()):
        raise ValueError("search: not lists of blocks by layout and direction")
    for layout, directions in search.items():
        for direction, blocks in directions.items():
            where = f"search of {layout} {direction}"
            if direction not in text["default"].get(layout, {}):
                raise ValueError(f"{where}: there is no such layout or direction")
            if not isinstance(blocks, list):
                raise ValueError(f"{where}: not a list of blocks")
            for block in blocks:
                _check_block(where, block, knobs_of(text, layout, direction))


def _check_block(where: str, block: Any, knobs: Mapping[str, tuple[int, ...]]) -> None:
    if not isinstance(block, dict):
        raise ValueError(f"{where}: not a block but {block!r}")
    for name, values in block.items():
        place = f"{where}: {name}"
        if not isinstance(values, list) or not values:
            raise ValueError(f"{place}: not a list of values but {values!r}")
        if name != "when" and name not in knobs:
            raise ValueError(f"{place}: no such knob; one of {', '.join(knobs)}")
        for value in values:
            if isinstance(value, str):
                try:
                    names, _ = (compiled if name == "when" else compiled_number)(value)
                except SyntaxError as error:
                    raise ValueError(f"{place}: {error.msg}") from error
                if strange := set(names) - set(FACTS):
                    raise ValueError(f"{place}: `{strange.pop()}` in `{value}` is no fact")
            elif name == "when":
                raise ValueError(f"{place}: {value!r} is not a relation")
            elif type(value) is not int or value not in knobs[name]:
                raise ValueError(not_legal(place, value, knobs[name]))


def knobs_of(text: Mapping[str, Any], layout: str, direction: str) -> dict[str, tuple[int, ...]]:
    """The knobs that one layout and direction has, with their legal values."""
    return {
        name: _values(kind)
        for name, kind in text["knobs"].items()
        if {direction, layout}.issuperset(kind.get("only", ()))
    }


def _values(kind: Mapping[str, list[int]]) -> tuple[int, ...]:
    """The values of a knob: {one_of: [...]}, {pow2: [low, high]} or {range: [low, high]}."""
    ((name, values),) = ((how, given) for how, given in kind.items() if how not in _BESIDE)
    if name == "one_of":
        return tuple(values)
    low, high = values
    if name == "range":
        return tuple(range(low, high + 1))
    if name == "pow2":
        return tuple(1 << e for e in range(low.bit_length() - 1, high.bit_length()))
    raise KeyError(name)
