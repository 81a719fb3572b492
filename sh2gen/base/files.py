"""Writing files so that nothing is lost or half-written, and reading them."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from sh2gen.base.errors import Sh2genError

LARGEST = 2**28  # bytes of a file that is read whole

MARK = "\n\nWritten by sh2gen. "  # in every generated file
_SCRATCH = ".sh2gen-scratch-"  # how names of temporary folders begin
_LONGEST = 255  # bytes of a name, on all common file systems
_HELP = "choose another place for it"
UNVERIFIED = "not yet."  # as files say it
# In a docstring: what could end it, or is no plain text, makes it another program.
_VERIFIED = re.compile(r"^(Verified: )([ !#-\[\]-~]+)$", re.MULTILINE)
_SIGNATURE = re.compile(r"^(sha256, with zeros here: )([0-9a-f]{64})$", re.MULTILINE)


# ---- reading ------------------------------------------------------------------------------------


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A file opened for reading, unless opening or reading could wait for ever or never end.

    Raises:
        OSError: with a `strerror` for a person, also for what is no regular file and for paths
            that cannot be.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe waits for its writer

    try:
        file = open(path, "rb", opener=opener)  # noqa: SIM115 (the caller closes it)
    except ValueError as error:  # a NUL, or characters that no name can have
        raise OSError(errno.EINVAL, str(error)) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file")
    return file


def read_regular(path: str | os.PathLike[str], limit: int = LARGEST) -> bytes:
    """All that is in a file of at most `limit` bytes. OSError as of `open_regular`."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit:,} bytes")
    return data


def read_text(path: str | os.PathLike[str], limit: int = LARGEST) -> str:
    """The same as text, with newlines between lines. OSError if it is not UTF-8 too."""
    try:
        text = read_regular(path, limit).decode("utf-8")
    except UnicodeDecodeError:
        raise OSError(errno.EILSEQ, "it is not UTF-8 text") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def listed(folder: str | os.PathLike[str]) -> list[str]:
    """The names in a folder, sorted; none if it is not there or cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):
        return []


# ---- generated files ----------------------------------------------------------------------------


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


def stated(text: str, how: str) -> str:
    """The text of a generated file with `how` in the line that says how it was verified."""
    plain = re.sub(r"[^ !#-\[\]-~]", "?", how)
    return signed(_VERIFIED.sub(lambda line: line[1] + plain, text, count=1))


def statement(text: str) -> str:
    """What the text of a generated file says of how it was verified."""
    found = _VERIFIED.search(text)
    return found[2] if found else UNVERIFIED


def same_program(one: str, other: str) -> bool:
    """Whether two texts of generated files differ at most in how they were verified, which depends
    on the machine.
    """
    return stated(one, UNVERIFIED) == stated(other, UNVERIFIED)


def read_generated(path: Path, *, edited: bool = False) -> str:
    """The text of a generated file: what may be executed, because sh2gen wrote all of it.

    Args:
        edited: also of one that was changed since, because whoever asks says so.

    Raises:
        Sh2genError: B005 if it cannot be read, was not written by sh2gen, or was changed since.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise Sh2genError("B005", f"cannot load {path}: {error.strerror}") from None
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
    """Refuse to write where a file stands that sh2gen did not write or that was changed since, or
    where none can be written.

    Raises:
        Sh2genError: C005.
    """
    require_writable(path)
    if not os.path.lexists(path):
        return
    try:
        text = read_text(path)
    except OSError:
        text = ""
    if MARK not in text:
        problem = "sh2gen did not write it"
    elif _SIGNATURE.search(text) is not None and not intact(text):
        problem = "was changed after sh2gen wrote it"
    else:
        return
    raise Sh2genError(
        "C005",
        f"{path} is there already and {problem}",
        help="move it, choose another folder with --out, or give the operator another name",
    )


# ---- writing ------------------------------------------------------------------------------------


def require_writable(path: Path, what: str = "") -> None:
    """Refuse a file that could not be written, before any work is done for it.

    Args:
        what: it is, for the message: "the lock file ".

    Raises:
        Sh2genError: C005.
    """
    try:
        place = Path(os.path.realpath(path))
        folder = next((p for p in place.parents if os.path.exists(p)), place)
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
            raise OSError(errno.EACCES, f"{folder} is not a folder that can be written")
        if any(len(os.fsencode(part)) > _LONGEST for part in place.relative_to(folder).parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with suppress(FileNotFoundError):
            os.lstat(place)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Sh2genError("C005", f"cannot write {what}{path}: {reason}", help=_HELP) from None


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
    """`write_all` of one text.

    Args:
        errors: "surrogateescape" writes back bytes that are not UTF-8 and were so read.
    """
    write_all({path: text.encode("utf-8", errors)})


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write files so that all of them are there afterwards, or what was there before.

    Each is written in a `scratch` folder beside it, and renamed when all of them are. What is
    replaced keeps its mode, and a link to it stays one.

    Raises:
        Sh2genError: C005 if one cannot be written, or its folder cannot be made; after this and
            whatever else ends it, files and folders are as they were before.
    """
    made: list[Path] = []
    before: dict[Path, bytes | None] = {}
    drafts: dict[Path, Path] = {}
    beside: dict[Path, Path] = {}
    real = {path: Path(os.path.realpath(path)) for path in files}
    owners = dict(zip(real.values(), real, strict=True))
    for path in files:
        if (other := owners[real[path]]) != path:
            raise Sh2genError("C005", f"{path} and {other} are one file", help=_HELP)
    at = Path()
    with ExitStack() as stack:
        try:
            for at in files:
                made += _make(at.parent)
            for at in files:
                if real[at].parent not in beside:
                    beside[real[at].parent] = stack.enter_context(scratch(real[at].parent))
            for at, content in files.items():
                if os.path.lexists(at) and not os.path.isfile(at):
                    raise OSError(errno.EINVAL, "what is there is not a regular file")
                drafts[at] = beside[real[at].parent] / str(len(drafts))
                _write(drafts[at], content, real[at])
            for at, draft in drafts.items():
                if len(drafts) > 1:  # else it is the last to be renamed
                    before[at] = read_regular(at) if os.path.exists(at) else None
                os.replace(draft, real[at])
        except BaseException as error:
            for path, old in before.items():
                with suppress(OSError):
                    _restore(real[path], old, drafts[path])
            stack.close()
            for folder in reversed(made):
                with suppress(OSError):
                    folder.rmdir()
            if isinstance(error, OSError | ValueError):
                reason = getattr(error, "strerror", None) or str(error)
                raise Sh2genError("C005", f"cannot write {at}: {reason}", help=_HELP) from error
            raise


def _make(folder: Path) -> list[Path]:
    """The folders that had to be made for this one to be there, the outermost first."""
    missing = [p for p in (folder, *folder.parents) if not os.path.exists(p)]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _write(path: Path, content: bytes, like: Path) -> None:
    """Write a new file, with the mode of another if that is there."""
    with path.open("wb") as file:
        with suppress(FileNotFoundError):
            os.chmod(path, stat.S_IMODE(os.stat(like).st_mode))
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _restore(path: Path, old: bytes | None, draft: Path) -> None:
    if old is None:
        path.unlink()
    else:
        _write(draft, old, path)
        os.replace(draft, path)


# ---- temporary folders --------------------------------------------------------------------------


@contextmanager
def scratch(place: Path | None = None) -> Iterator[Path]:
    """A temporary folder, gone afterwards; and so are those of processes that were killed.

    Whoever has one holds a lock on it, which the system frees however a process ends.

    Args:
        place: the folder to make it in, by default that for temporary files.
    """
    try:
        parent = Path(tempfile.gettempdir()) if place is None else place
    except FileNotFoundError:  # of all that there may be
        raise OSError(errno.EACCES, "no folder for temporary files can be written") from None
    for name in listed(parent):
        if name.startswith(_SCRATCH):
            with suppress(OSError), _held(parent / name, wait=False):
                shutil.rmtree(parent / name, ignore_errors=True)
    with ExitStack() as stack:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=parent))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            with suppress(OSError):  # without locks nobody takes it for abandoned either
                stack.enter_context(_held(folder, wait=True))
            if os.path.isdir(folder):  # else it was removed before it was held
                break
        yield folder


@contextmanager
def temporary_files() -> Iterator[None]:
    """Inside, temporary files of this process lie in a `scratch` folder, those of libraries too:
    Triton forgets its own when it is interrupted. Where there can be no such folder, none is made.
    """
    before = tempfile.tempdir
    with ExitStack() as stack:
        with suppress(OSError):
            tempfile.tempdir = str(stack.enter_context(scratch()))
        try:
            yield
        finally:
            tempfile.tempdir = before


@contextmanager
def _held(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of a folder. OSError if someone else does, or there are no locks."""
    handle = os.open(folder, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        try:
            import fcntl  # here, because Windows lacks it
        except ImportError as error:
            raise OSError(errno.ENOSYS, "no locks") from error
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)
