"""Values as single lines of JSON, read back strictly; locks of files.

A dataclass is an object of its fields, `NUMBERS` is an object of its names in their order, a
StrEnum is its text. Reading knows what to expect from the annotations, and refuses whatever a
writer could not have written, naming the place: a line is either the value that was written or
damaged. Lines are ASCII, so that no text in them can break them.
"""

from __future__ import annotations

import errno
import json
import math
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from sh2gen.base.files import open_regular

_T = TypeVar("_T")
# What systems say that have no locks for a file: some networks, some containers.
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_LIMIT = 2**64  # of whole numbers: seeds may have 64 bits
# Annotations:
NUMBERS = tuple[tuple[str, int], ...]  # names with a number for each
READING = Annotated[float, "null where it is not finite"]  # which is read as NaN
POSITIVE = Annotated[float, "positive, or null where it is not finite"]
COUNT = Annotated[int, "positive"]

Values = dict[str, Any]  # plain ones, of an object
_NONE: Mapping[int, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A line that cannot be used: `line` counts from 1, 0 stands for the whole file."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else str(self.path)
        return f"{place}: {self.reason}"


# ---- writing ------------------------------------------------------------------------------------


def plain(value: Any, kind: Any = None) -> Any:
    """A value as JSON holds it; `kind` is its annotation."""
    if kind == NUMBERS:
        names = dict(value)
        assert len(names) == len(value), f"a name is given twice: {value}"
        return names
    if is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        return {f.name: plain(getattr(value, f.name), hints[f.name]) for f in fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def dumps(value: Any) -> str:
    """Plain values on one line of ASCII, without a newline. ValueError for NaN and infinities."""
    return json.dumps(value, allow_nan=False)


def encode(value: Any, version: int) -> str:
    """A dataclass as a line, its format's version first."""
    return dumps({"v": version} | plain(value))


# ---- reading ------------------------------------------------------------------------------------


def loads(text: str) -> Any:
    """Plain values from JSON.

    Raises:
        ValueError: not JSON, a name given twice, NaN or an infinity. (JSONDecodeError, one of
            them, knows the place.)
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def decode(
    text: str, kind: Any, version: int, older: Mapping[int, Callable[[Values], Values]] = _NONE
) -> Any:
    """The dataclass `kind` from a line of `encode`.

    Args:
        older: what makes the values of an older version, by its number, those of the next one.

    Raises:
        ValueError: what is wrong with the line, in a sentence that names the field.
    """
    values = loads(text)
    if not isinstance(values, dict):
        raise ValueError(f"must be an object, not {_show(values)}")
    found = values.pop("v", None)
    while type(found) is int and found in older:
        values, found = older[found](values), found + 1
    if type(found) is not int or found != version:
        raise ValueError(f"v must be {version}, not {_show(found)}: another version of sh2gen")
    return value_of(values, kind, "")


def renamed(old: str, new: str) -> Callable[[Values], Values]:
    """What gives a field of older lines the name that it has in those of today (`decode`)."""

    def change(values: Values) -> Values:
        if new in values:
            raise ValueError(f"unknown field {_show(new)}")
        return {new if name == old else name: value for name, value in values.items()}

    return change


def value_of(value: Any, kind: Any, path: str) -> Any:
    """A plain value as the annotation `kind` says: the inverse of `plain`.

    Raises:
        ValueError: `path` is how its message calls the value.
    """
    if isinstance(kind, types.UnionType):
        (kind,) = set(typing.get_args(kind)) - {types.NoneType}
        return None if value is None else value_of(value, kind, path)
    if kind in (READING, POSITIVE, COUNT):
        if value is None and kind != COUNT:
            return math.nan
        number = value_of(value, typing.get_args(kind)[0], path)
        if number <= 0 and kind != READING:
            raise ValueError(f"{path} must be positive, not {_show(value)}")
        return number
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind == NUMBERS or origin is Mapping:
        item = int if kind == NUMBERS else arguments[1]
        if isinstance(value, dict):
            found = {name: value_of(v, item, f"{path}.{name}") for name, v in value.items()}
            return tuple(found.items()) if kind == NUMBERS else found
    elif origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        if len(arguments) != len(value):
            raise ValueError(f"{path} must have {len(arguments)} items, not {len(value)}")
        return tuple(
            value_of(v, item, f"{path}[{i}]")
            for i, (v, item) in enumerate(zip(value, arguments, strict=True))
        )
    elif is_dataclass(kind) and isinstance(value, dict):
        return _fields_of(value, kind, path)
    elif kind is Any:
        return _finite(value, path)
    elif kind is float and type(value) in (int, float):
        return float(_finite(value, path))
    elif kind in (str, int, bool) and type(value) is kind:
        return _finite(value, path) if kind is int else value
    elif isinstance(kind, type) and issubclass(kind, StrEnum) and isinstance(value, str):
        if value in list(kind):
            return kind(value)
        raise ValueError(f"{path} must be one of {', '.join(kind)}, not {_show(value)}")
    raise ValueError(f"{path} must be {_expected(kind)}, not {_show(value)}")


def _fields_of(values: dict[str, Any], kind: Any, path: str) -> Any:
    known = {f.name: f for f in fields(kind)}
    inside = f"{path}." if path else ""
    for name in values:
        if name not in known:
            raise ValueError(f"unknown field {inside}{_show(name)}")
    for name, f in known.items():
        if name not in values and f.default is MISSING:
            raise ValueError(f"{inside}{name} is missing")
    hints = _hints(kind)
    return kind(**{k: value_of(v, hints[k], f"{inside}{k}") for k, v in values.items()})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _finite(value: Any, path: str) -> Any:
    """`value`, in which no number is too large to calculate with. (JSON reads 1e999 as infinity,
    and whole numbers of any length.)
    """
    if isinstance(value, dict):
        return {name: _finite(item, f"{path}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, int) and abs(value) >= _LIMIT:
        raise ValueError(f"{path} must be less than 2**64, not {_show(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path} must be finite, not {_show(value)}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{_show(name)} is given twice")
        found[name] = value
    return found


def _constant(text: str) -> typing.NoReturn:
    raise ValueError(f"{text} is no number")


def _expected(kind: Any) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    if kind in names:
        return names[kind]
    return "a list" if typing.get_origin(kind) is tuple and kind != NUMBERS else "an object"


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


# ---- files --------------------------------------------------------------------------------------


def read_lines(path: Path, read: Callable[[str], _T]) -> tuple[tuple[_T, ...], tuple[Damage, ...]]:
    """`read` of every line of a file that is not blank; damages where it raises ValueError."""
    found: list[_T] = []
    damages: list[Damage] = []
    try:
        # Under a lock no line is half-written.
        with open_regular(path) as file, locked(file.fileno(), shared=True):
            data = file.read()
    except FileNotFoundError:
        return (), ()
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        return (), (Damage(path=path, line=0, reason=reason),)
    for i, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append(read(line.decode("utf-8")))
        except UnicodeDecodeError:
            damages.append(Damage(path=path, line=i, reason="not UTF-8 text"))
        except json.JSONDecodeError as error:  # its own message counts lines of this line
            reason = f"not JSON: {error.msg} in column {error.colno}"
            damages.append(Damage(path=path, line=i, reason=reason))
        except ValueError as error:
            damages.append(Damage(path=path, line=i, reason=str(error)))
    return tuple(found), tuple(damages)


@contextmanager
def locked(
    descriptor: int, *, shared: bool = False, busy: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold the lock of an open file; wait for it while another process has it, after `busy`.

    The operating system frees it when a process dies, however it dies. Where there are no locks
    this goes on without one, and whoever writes is warned, once. OSError if the lock of a writer
    fails otherwise. Not by filelock: its locks are files of their own, which who reads a folder
    of others cannot make, and with which readers keep each other out.
    """
    held = True
    try:
        import fcntl  # here, because Windows lacks it

        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            busy()
            fcntl.flock(descriptor, kind)
    except (OSError, ImportError) as error:
        held = False
        if not shared:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                "this file system has no locks: let one process at a time tune into a folder",
                RuntimeWarning,
                stacklevel=1,
            )
    try:
        yield
    finally:
        if held:  # closing would not do: a forked child has it too
            fcntl.flock(descriptor, fcntl.LOCK_UN)
