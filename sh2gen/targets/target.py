"""GPUs as data: a file each beside this module, with the limits that a kernel must fit, the rates
that its time is predicted from, and the constants of that prediction.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sh2gen.base.errors import Location, Sh2genError
from sh2gen.base.files import listed, read_text
from sh2gen.targets.constants import Constants

FOLDER = Path(__file__).parent  # of the files, one a GPU
BACKENDS = ("cuda",)  # of Triton, that kernels are compiled with
# Rates that are measured: where a file takes the constants of another GPU and leaves them out,
# they are the same shares as there of the rate in the datasheet.
_SHARES = {
    "copy_bandwidth": "dram_bandwidth",
    "elementwise_bandwidth": "dram_bandwidth",
    "matmul": "bf16_tensor",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Where rates and constants of a GPU were measured: the card, when, and what tells of it."""

    card: str
    date: str
    section: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What GPUs send to each other over."""

    name: str
    ranks: int  # that it connects at most
    bandwidth: float  # bytes per second, of one GPU, each way
    latency: float  # seconds of a message, however short


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One GPU, as its file describes it.

    Units: bytes, bytes per second, FLOP per second, hertz. `copy_bandwidth` and
    `elementwise_bandwidth` are what a plain copy and a fused elementwise kernel reach, reads and
    writes together.
    """

    name: str
    device_name: str  # regular expression that the whole of torch.cuda.get_device_name() matches
    aliases: tuple[str, ...]
    default: bool = False  # the target where there is no GPU and none is asked for
    backend: str  # of Triton: one of BACKENDS
    capability: int  # compute capability times ten: 90 is sm_90
    warp_size: int
    sms: int
    lanes_per_sm: int  # threads of a multiprocessor for which an instruction is issued in a cycle
    registers_per_sm: int  # 32-bit registers; a block must find all of its registers on one SM
    registers_per_thread: int
    threads_per_block: int
    threads_per_sm: int
    blocks_per_sm: int
    shared_per_block: int  # bytes, with the opt-in that Triton's launcher makes
    shared_per_sm: int  # bytes
    shared_reserved: int  # bytes of them that each resident block takes too, for the system
    product_rows: int  # of a product instruction: 16 of one warp, 64 or more of four together
    l2: int  # bytes
    dram_bandwidth: float  # bytes per second, datasheet
    copy_bandwidth: float  # bytes per second
    elementwise_bandwidth: float  # bytes per second
    fp32: float  # FLOP per second outside the tensor cores
    bf16_tensor: float  # FLOP per second with float32 accumulation, datasheet, dense
    matmul: float  # FLOP per second of a large bf16 product
    clock: float  # hertz, highest boost
    measured: Measured | None  # None if nothing was measured on this GPU
    constants_of: str = ""  # name of the GPU whose constants these are, if they are another's
    constants: Constants
    node_link: Link | None = None  # within a node
    network: Link | None = None  # between nodes
    stands_for: str = ""  # what the driver calls a GPU without a file that this one serves for

    @property
    def sm(self) -> str:
        """The name that compilers use, such as `sm_90`."""
        return f"sm_{self.capability}"

    @property
    def caveat(self) -> str:
        """What a user must know of limits and predictions; empty if they were measured here."""
        if self.stands_for:
            return (
                f"{self.stands_for} is not known; using limits of {self.name} ({self.sm}), "
                "not measured"
            )
        if self.measured is None:
            return (
                f"{self.name} ({self.sm}): limits and rates of its datasheet, constants of "
                f"{self.constants_of}, not measured"
            )
        return ""


if TYPE_CHECKING:
    TARGETS: tuple[Target, ...]
    DEFAULT: Target
else:

    def __getattr__(name: str) -> Any:
        """TARGETS: all that are known. DEFAULT: the one where nothing says which."""
        if name == "TARGETS":
            return known()
        if name == "DEFAULT":
            return known()[0]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def known() -> tuple[Target, ...]:
    """The targets of the files in FOLDER: the default first, then by the name of their file.

    Raises:
        Sh2genError: B007 for a file that is malformed, or if files disagree.
    """
    return _read_all(FOLDER)


def target(name: str) -> Target:
    """The target called `name`: `H200`, `sm_90`, ... in any case. Raises B003 for another name."""
    gpus = known()
    names = {known.lower(): gpu for gpu in gpus for known in (gpu.name, *gpu.aliases)}
    if found := names.get(name.lower()):
        return found
    legal = [known for gpu in gpus for known in (gpu.name, *gpu.aliases)]
    near = difflib.get_close_matches(name.lower(), names, n=1)
    raise Sh2genError(
        "B003",
        f"unknown target `{name}`; known targets: {', '.join(legal)}",
        help=f"did you mean `{names[near[0]].name}`?" if near else None,
    )


def from_device() -> Target | None:
    """The GPU that torch would use now; None without one, or with one that has no file."""
    import torch  # here, because naming a target needs no torch

    if not torch.cuda.is_available():
        return None
    device_name = torch.cuda.get_device_name()
    return next((gpu for gpu in known() if re.fullmatch(gpu.device_name, device_name)), None)


def stand_in(device_name: str, capability: int) -> Target:
    """The target whose limits serve for a GPU that has no file, under the name of that GPU.

    Of those of its compute capability the first with the least shared memory a block; if there is
    none, of those of a lower one; and if there is none of these either, of all.

    Args:
        device_name: what the driver calls it.
        capability: its compute capability times ten.
    """
    gpus = known()
    same = [gpu for gpu in gpus if gpu.capability == capability]
    lower = [gpu for gpu in gpus if gpu.capability < capability]
    # Of as little shared memory the nearest capability: the compiler for it does the most alike.
    found = min(same or lower or gpus, key=lambda g: (g.shared_per_block, -g.capability))
    return replace(found, device_name=device_name, stands_for=device_name)


def here() -> Target:
    """This machine's GPU, or what stands in for one that has no file; without one the default."""
    import torch

    if (found := from_device()) is not None:
        return found
    if not torch.cuda.is_available():
        return known()[0]
    major, minor = torch.cuda.get_device_capability()
    return stand_in(torch.cuda.get_device_name(), 10 * major + minor)


# ---- files --------------------------------------------------------------------------------------


@cache
def _read_all(folder: Path) -> tuple[Target, ...]:
    paths = [folder / name for name in listed(folder) if name.endswith(".yaml")]
    texts = {path.stem: _File(path) for path in paths}
    found: dict[str, Target] = {}
    for stem, text in texts.items():
        found[stem] = text.target(texts)
    _check_names(found, texts)
    return tuple(sorted(found.values(), key=lambda gpu: not gpu.default))


def _check_names(found: Mapping[str, Target], texts: Mapping[str, _File]) -> None:
    """Raise B007 if a name means two GPUs, or not one of them is the default."""
    owners: dict[str, str] = {}
    for stem, gpu in found.items():
        for name in (gpu.name, *gpu.aliases):
            if owners.setdefault(name.lower(), stem) != stem:
                key = "name" if name == gpu.name else "aliases"
                raise texts[stem].error(key, f"{name} is a name of {owners[name.lower()]}.yaml")
    defaults = [stem for stem, gpu in found.items() if gpu.default]
    if len(defaults) > 1:
        raise texts[defaults[1]].error("default", f"{defaults[0]}.yaml is the default already")
    if not defaults:
        raise Sh2genError("B007", f"no file of {FOLDER} says `default: true`")


class _File:
    """The nodes of one file, and what they say."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, Any] = {}  # where a key stands
        try:
            self._text = read_text(path)
            self._root = yaml.compose(self._text, Loader=yaml.SafeLoader)
        except OSError as error:
            raise Sh2genError("B007", f"{path} cannot be read: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise Sh2genError("B007", f"{path} is malformed: {error}") from None

    def error(self, key: str, why: str, help: str | None = None) -> Sh2genError:
        """What is wrong with the value of a key, by the place in the file."""
        mark, location = self._places.get(key), None
        if mark is not None:
            line = self._text.splitlines()[mark.line]
            location = Location(
                file=str(self._path), line=mark.line + 1, column=mark.column + 1, text=line
            )
        message = f"{self._path} is malformed: {f'{key}: ' if key else ''}{why}"
        return Sh2genError("B007", message, location=location, help=help)

    def target(self, others: Mapping[str, _File]) -> Target:
        """The GPU, with constants and shares of rates of another file if this one says so."""
        keys = dict(self._pairs(self._root, ""))
        if ("constants" in keys) == ("constants_of" in keys):
            key = "constants_of" if "constants" in keys else ""
            raise self.error(key, "it needs either `constants` or `constants_of`")
        given: dict[str, Any] = {"stands_for": ""}
        if "constants_of" in keys:
            other = self._value(keys.pop("constants_of"), str, "constants_of")
            if other not in others or "constants" not in dict(others[other]._pairs_of_root()):
                names = [n for n, o in others.items() if "constants" in dict(o._pairs_of_root())]
                raise self.error(
                    "constants_of", f"{other}.yaml has no constants", f"one of {', '.join(names)}"
                )
            whose = others[other].target(others)
            given |= {"constants": whose.constants, "constants_of": whose.name}
            for name, sheet in _SHARES.items():
                if name not in keys and sheet in keys:
                    rate = self._value(keys[sheet], float, sheet)
                    given[name] = rate * getattr(whose, name) / getattr(whose, sheet)
        found: Target = self._filled(keys, Target, "", given)
        if found.measured is None and not found.constants_of:
            raise self.error("measured", "own constants were measured somewhere: say where")
        for name, value in ((f.name, getattr(found, f.name)) for f in fields(Target)):
            if type(value) in (int, float) and value <= 0:
                raise self.error(name, f"{value} is not above 0")
        if found.backend not in BACKENDS:
            raise self.error("backend", f"`{found.backend}` is not one of {', '.join(BACKENDS)}")
        try:
            re.compile(found.device_name)
        except re.error as error:
            raise self.error("device_name", f"not a regular expression: {error}") from None
        return found

    def _pairs_of_root(self) -> Iterator[tuple[str, yaml.Node]]:
        return self._pairs(self._root, "")

    def _pairs(self, node: yaml.Node | None, path: str) -> Iterator[tuple[str, yaml.Node]]:
        """Keys and values of a mapping."""
        if not isinstance(node, yaml.MappingNode):
            raise self.error(path, f"not a mapping but {_shown(node)}")
        seen = set()
        for key, value in node.value:
            name = str(key.value)
            whole = f"{path}.{name}" if path else name
            self._places[whole] = key.start_mark
            if name in seen:
                raise self.error(whole, "it is given twice")
            seen.add(name)
            yield name, value

    def _filled(
        self, nodes: Mapping[str, yaml.Node], kind: Any, path: str, given: Mapping[str, Any]
    ) -> Any:
        """A dataclass of the values of these nodes, and of some that are given."""
        hints = typing.get_type_hints(kind)
        legal = [f.name for f in fields(kind) if f.name not in given or f.name in _SHARES]
        before = f"{path}." if path else ""
        for name in nodes:
            if name not in legal:
                near = difflib.get_close_matches(name, legal, n=1)
                raise self.error(
                    f"{before}{name}",
                    "unknown key",
                    f"did you mean `{near[0]}`?" if near else f"one of {', '.join(legal)}",
                )
        values = dict(given) | {
            name: self._value(node, hints[name], f"{before}{name}") for name, node in nodes.items()
        }
        for f in fields(kind):
            if f.name not in values and f.default is MISSING:
                raise self.error(path, f"the key `{before}{f.name}` is missing")
        return kind(**values)

    def _value(self, node: yaml.Node, kind: Any, path: str) -> Any:
        """The value of a node as the annotation says: a dataclass, tuple[str, ...], str, bool,
        int, float, or one of them or null.
        """
        tag = node.tag.rpartition(":")[2]
        if isinstance(kind, types.UnionType):
            if tag == "null":
                return None
            (kind,) = set(typing.get_args(kind)) - {types.NoneType}
        if is_dataclass(kind):
            return self._filled(dict(self._pairs(node, path)), kind, path, {})
        if kind == tuple[str, ...]:
            if not isinstance(node, yaml.SequenceNode):
                raise self.error(path, f"not a list but {_shown(node)}")
            return tuple(self._value(item, str, path) for item in node.value)
        if kind is str and tag == "str" and node.value:
            return node.value
        if kind is bool and tag == "bool":
            return node.value.lower() == "true"
        if kind is int and tag == "int" and re.fullmatch(r"0|[1-9]\d*", node.value):
            return int(node.value)
        if kind is float and tag in ("int", "float"):
            with suppress(ValueError):  # .inf, .nan, 1:30, which are numbers for YAML
                if (number := float(node.value)) >= 0:
                    return number
        words = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
        number_like = kind is float and re.fullmatch(r"[\d.]+e\d+", str(node.value).lower())
        raise self.error(
            path,
            f"not {words[kind]} but {_shown(node)}",
            "YAML wants a sign in exponents, and a point: 4.8e+12" if number_like else None,
        )


def _shown(node: yaml.Node | None) -> str:
    """A node for a message."""
    if node is None:
        return "nothing"
    if isinstance(node, yaml.ScalarNode):
        return f"`{node.value}`"
    return "a mapping" if isinstance(node, yaml.MappingNode) else "a list"
