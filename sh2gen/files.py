"""Writing files so that nothing is lost or half-written, and reading them (layer 0)."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

from sh2gen.errors import Sh2genError

MARK = "\n\nWritten by sh2gen. "  # in every generated file
_SIGNATURE = re.compile(r"^(sha256, with zeros here: )([0-9a-f]{64})$", re.MULTILINE)


def signed(text: str) -> str:
    """The text of a generated file with its digest in the line for that, whatever stood there."""
    bare = unsigned(text)
    digest = hashlib.sha256(bare.encode()).hexdigest()
    return _SIGNATURE.sub(rf"\g<1>{digest}", bare, count=1)


def unsigned(text: str) -> str:
    """The text of a generated file with zeros for its digest."""
    return _SIGNATURE.sub(rf"\g<1>{'0' * 64}", text, count=1)


def intact(text: str) -> bool:
    """Whether the digest of a generated file is there, and of this text."""
    return _SIGNATURE.search(text) is not None and signed(text) == text


def read_generated(path: Path, *, edited: bool = False) -> str:
    """The text of a generated file: what may be executed, because sh2gen wrote all of it.

    Args:
        edited: also of one that was changed since, because whoever asks says so.

    Raises:
        Sh2genError: B005 if it cannot be read, was not written by sh2gen, or was changed since.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text"
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        raise Sh2genError("B005", f"cannot load the generated file {path}: {reason}") from None
    if MARK not in text:
        raise Sh2genError("B005", f"{path} is not a file that sh2gen wrote")
    if not edited and not intact(text):
        raise Sh2genError(
            "B005",
            f"{path} was changed after sh2gen wrote it, or written before files had a digest",
            help="compile its operator again; a file that is meant to be changed runs by a plain "
            "import, or by sh2gen.load(path, edited=True)",
        )
    return text


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
