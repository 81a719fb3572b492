"""Writing files so that nothing of the user's is lost or half-written (layer 0)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from sh2gen.errors import Sh2genError

MARK = "\n\nWritten by sh2gen. "  # in every generated file


def refuse_to_replace(path: Path) -> None:
    """Refuse to write where a file stands that sh2gen did not write, or where none can be written.

    Raises:
        Sh2genError: C005.
    """
    folder = next(p for p in path.absolute().parents if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise Sh2genError(
            "C005", f"cannot write {path}: {folder} is not a folder that can be written"
        )
    try:
        foreign = path.is_file() and MARK not in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        foreign = True
    if foreign:
        raise Sh2genError(
            "C005",
            f"{path} is there already and sh2gen did not write it",
            help="move it, choose another folder with --out, or give the operator another name",
        )


def made_folder(path: Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        Sh2genError: C005 if it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Sh2genError(
            "C005", f"cannot make the folder {path}: {error.strerror or error}"
        ) from error
    if not os.access(path, os.W_OK):
        raise Sh2genError("C005", f"cannot write into {path}")
    return path


def write_whole(path: Path, text: str, errors: str = "strict") -> None:
    """Write a file under a temporary name beside its place, then rename it into place.

    Args:
        path: its place.
        text: its content.
        errors: "surrogateescape" writes back bytes that are not UTF-8 and were so read.

    Raises:
        Sh2genError: C005 if the folder cannot be made or written; the old file is then untouched.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8", errors=errors) as file:
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
