"""What calls are given: operators, GPUs, tuned tables."""

from __future__ import annotations

import os
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import (
    listed,
)
from sh2gen.base.resources import shipped_op
from sh2gen.targets import target as targets
from sh2gen.targets.target import Target
from sh2gen.tuning.choose import (
    Tables,
    tables,
)
from sh2gen.tuning.tables import holds_tables


def known_configs(
    folder: str | PathLike[str] | None = None, locked: str | PathLike[str] | None = None
) -> Tables:
    """The tables of a folder beside the user's and the package's; or a lock file alone.

    Raises:
        Sh2genError: C006 for both, or if there is no such folder or no table in it; R001, R002 if
            the lock file cannot be read.
    """
    if folder is not None and locked is not None:
        raise Sh2genError("C006", f"{locked} pins all configs: no tables are looked at beside it")
    if folder is not None and not os.path.isdir(folder):
        raise Sh2genError("C006", f"there is no folder {folder} of tuned tables")
    if folder is not None and not holds_tables(Path(folder)):
        above = any(name.endswith(".jsonl") for name in listed(folder))  # this one is of a GPU
        raise Sh2genError(
            "C006",
            f"{folder} holds no tuned table",
            help="a folder of tables is what `tune --out` wrote: it has <gpu>/<op>.jsonl in it, "
            "such as nvidia-h200/hyena_se.jsonl" + "; give the folder above" * above,
        )
    if locked is not None:
        return tables(locked=Path(locked))
    return tables(Path(folder) if folder is not None else None)


def resolve_target(name: str | None) -> Target:
    """The target of that name; without one this machine's GPU, or what stands in for it."""
    return targets.here() if name is None else targets.target(name)


def op_files(paths: Iterable[str | PathLike[str]]) -> tuple[Path, ...]:
    """The op.yaml files that paths name; a folder stands for all of its own.

    What is the name of a shipped operator stands for that, whatever else there is of the name.
    """
    found: list[Path] = []
    for given in paths:
        path = shipped_op(given) or Path(given)
        inside = [path]
        if os.path.isdir(path):
            inside = [path / name for name in listed(path) if name.endswith(".yaml")]
        if not inside:
            raise Sh2genError("C006", f"{path} holds no .yaml file")
        found += inside
    return tuple(found)
