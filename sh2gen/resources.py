"""Where the files live that people write and the package reads: templates/, schedules/, ops/
(layer 0).
"""

from __future__ import annotations

from pathlib import Path


def folder(name: str) -> Path:
    """The folder `name`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    for candidate in (package / name, package.parent / name):
        if candidate.is_dir():
            return candidate
    raise AssertionError(f"the installation lacks {name}/")
