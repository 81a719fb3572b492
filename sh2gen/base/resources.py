"""Where the files live that people write and the package reads: templates/, schedules/, ops/."""

from __future__ import annotations

import os
import re
from pathlib import Path


def folder(name: str) -> Path:
    """The folder `name`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    for candidate in (package / name, package.parent / name):
        if candidate.is_dir():
            return candidate
    raise AssertionError(f"the installation lacks {name}/")


def shipped_op(name: str | os.PathLike[str]) -> Path | None:
    """The file of a shipped operator; None unless this is the name of one, and not a path."""
    if re.fullmatch(r"[a-z][a-z0-9_]*", text := str(name)) is None:
        return None
    path = folder("ops") / f"{text}.yaml"
    return path if os.path.isfile(path) else None


def shipped_ops() -> dict[str, str]:
    """Names of the shipped operators, and about each how the comment in its file begins."""
    found = {}
    for path in sorted(folder("ops").glob("*.yaml")):
        comment = re.match(r"(?:# \S.*\n)+", path.read_text(encoding="utf-8"))
        text = " ".join(comment[0].replace("\n# ", "\n")[2:].split()) if comment else ""
        found[path.stem] = text.partition(". ")[0].rstrip(".:")
    return found
