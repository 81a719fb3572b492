"""Writing files so that nothing of the user's is lost or half-written (layer 0)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from sh2gen.errors import Sh2genError


def write_whole(path: Path, text: str) -> None:
    """Write a file under a temporary name beside its place, then rename it into place.

    Raises:
        Sh2genError: C005 if the folder cannot be made or written; the old file is then untouched.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise Sh2genError(
            "C005",
            f"cannot write {path}: {error.strerror or error}",
            help="choose another folder with --out",
        ) from error
