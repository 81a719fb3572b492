"""The package of generated files that a process has loaded: sh2gen.build.loaded.<file>_<digest>.

Pickle writes the module of an object's class and imports it when it reads. So that this leads
somewhere in another process, generated files are modules of this package, and whoever asks for one
that is not loaded is told which file to load.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType

__path__: list[str] = []  # a package without a folder: all of it is in sys.modules
_NAME = re.compile(r"(?P<text>(?P<file>.+)_(?P<digest>[0-9a-f]{16})(_interpreted)?)(_\d+)?")


def adopt(module: ModuleType) -> None:
    """Make a module, executed under a name that its text decides, one of this package.

    The second of the same text is numbered, so that each finds its own classes and globals.
    """
    executed = module.__name__
    name = unique = f"{__name__}.{executed.removeprefix('_sh2gen_')}"
    count = 1
    while unique in sys.modules:
        count += 1
        unique = f"{name}_{count}"
    module.__name__ = unique
    for value in vars(module).values():
        if isinstance(value, type | FunctionType) and value.__module__ == executed:
            value.__module__ = unique
    sys.modules[unique] = module


def text_of(name: str) -> str:
    """What modules of the same text have in common, of the name of one of them."""
    match = _NAME.fullmatch(name.removeprefix(f"{__name__}."))
    return match["text"] if match else name


class _Same(Loader):
    """Gives an earlier module of the same text."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Finder:
    """Asked for what is not there: gives an earlier load of the text, or says what to load."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith(f"{__name__}."):
            return None
        first = sys.modules.get(f"{__name__}.{text_of(name)}")
        if first is not None:
            return ModuleSpec(name, _Same(first))
        match = _NAME.fullmatch(name.removeprefix(f"{__name__}."))
        if match is None:
            return None
        raise ModuleNotFoundError(
            f"an object of the generated file {match['file']}.py, whose sha256 begins with "
            f'{match["digest"]}: call sh2gen.load(".../{match["file"]}.py") before unpickling '
            "it, or save state_dict(), which needs no class",
            name=name,
        )


sys.meta_path.append(_Finder)
