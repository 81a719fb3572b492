"""Versions of what sh2gen stands on: which are here, which were tested, and what is said if one is
missing or another.
"""

from __future__ import annotations

import importlib.util
import platform
from importlib import import_module, metadata

from sh2gen.base.errors import Sh2genError

# Oldest and newest that were run: docs/versions.md says by which tests, where, and beside what.
TESTED = {"torch": ("2.11", "2.14"), "triton": ("3.6", "3.8"), "numpy": ("1.26", "2.4")}


def within(package: str) -> str:
    """The versions of a package that were tested, as pip takes them: "numpy>=1.26,<2.5"."""
    oldest, newest = TESTED[package]
    major, last = newest.split(".")
    return f"{package}>={oldest},<{major}.{int(last) + 1}"


TESTED_HELP = "install versions that are: " + ", ".join(map(within, TESTED))
_NAMES = {"torch": "torch", "triton": "Triton", "numpy": "numpy"}


def installed(package: str) -> str | None:
    """The version that is here, such as "3.6.0"; None if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        pass
    if importlib.util.find_spec(package) is None:
        return None
    # A build under another name than the package's, as for other systems or GPUs.
    return str(getattr(import_module(package), "__version__", "unknown"))


def minor(version: str) -> str:
    """ "3.6" of "3.6.0"."""
    return ".".join(version.split(".")[:2])


def untested() -> tuple[str, ...]:
    """A line for each package that is here in a version beyond those that were tested."""
    lines = []
    for package, (oldest, newest) in TESTED.items():
        version = installed(package)
        if version is None or _number(oldest) <= _number(version) <= _number(newest):
            continue
        lines.append(
            f"{_NAMES[package]} {version} is not among the versions that sh2gen is tested with, "
            f"{oldest} to {newest}: what it compiles is verified all the same"
        )
    return tuple(lines)


def _number(version: str) -> tuple[int, ...]:
    """(3, 6) of "3.6.0"; what is no number counts as beyond all that are."""
    parts = minor(version).split(".")
    return tuple(int(part) for part in parts) if all(map(str.isdecimal, parts)) else (10**9,)


def has_triton() -> bool:
    """Whether Triton is here."""
    return importlib.util.find_spec("triton") is not None


def beyond_triton() -> bool:
    """Whether Triton is not here because there is none for this system."""
    return not has_triton() and platform.system() != "Linux"


def no_triton(consequence: str) -> Sh2genError:
    """The error where something needs Triton, which is not here.

    Args:
        consequence: what cannot be done, a clause: "kernels cannot be compiled".
    """
    if not beyond_triton():
        return Sh2genError(
            "B004",
            f"Triton is not installed: {consequence}",
            help=f"pip install '{within('triton')}'",
        )
    return Sh2genError(
        "B004",
        f"there is no Triton for {_system()}: {consequence}",
        help="do it on Linux; here operators are compiled to files, and run by plain PyTorch",
    )


def without_triton() -> str:
    """What becomes of kernels where there is no Triton, and where they can be verified."""
    return (
        f"kernels: there is no Triton for {_system()}; `sh2gen verify` of the file verifies them "
        "on Linux, on its GPU, or without one those of a miniature by Triton's interpreter"
    )


def _system() -> str:
    return {"Darwin": "macOS"}.get(platform.system(), platform.system() or "this system")
