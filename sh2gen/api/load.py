"""`sh2gen.load`: a generated file that is there, without the compiler."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from sh2gen.runtime.operator import Operator


def load(
    path: str | PathLike[str], *, edited: bool = False, width: tuple[int, int] | None = None
) -> Operator:
    """Import a generated file that is already there, which executes it.

    The digest in its head says that nothing of it was changed by accident or by hand. It is no
    proof of who wrote it: load what you would import.

    Args:
        edited: take one that was changed after sh2gen wrote it. What it computes is then yours to
            check, `Operator.reference` is still what its description says.
        width: channels and filter groups, instead of those that the file names.

    Raises:
        Sh2genError: B005 if it cannot be read, or is not as sh2gen wrote it.
    """
    return Operator(Path(path), edited=edited, width=width)
