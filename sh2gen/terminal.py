"""What a person reads (layer 8): stdout is data, stderr is talk.

Whatever comes from a file or is a name is printed as errors are: no character of it reaches a
terminal that would obey it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import click

from sh2gen.errors import Sh2genError, printable


def say(text: str, *, verbatim: bool = False) -> None:
    """Lines of data.

    Args:
        verbatim: as it is, because sh2gen made it: sources have tabs.

    Raises:
        Sh2genError: C005 if stdout takes no more. BrokenPipeError if nobody reads it.
    """
    try:
        click.echo(text if verbatim else printable(text))
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise Sh2genError("C005", f"cannot write to stdout: {reason}") from None


def tell(text: str) -> None:
    """A line of talk that stays, with --json too."""
    with suppress(OSError):  # whom else to tell?
        click.echo(printable(text), err=True)


@contextmanager
def progress(quiet: bool, every: float = 0.0) -> Iterator[Callable[[str], None]]:
    """A status line on a terminal, a line a message in a pipe, nothing for JSON.

    Args:
        every: seconds between lines in a pipe; messages between them are left out.
    """
    if quiet:
        yield lambda _: None
    elif is_terminal():
        from rich.console import Console
        from rich.text import Text

        with Console(stderr=True).status("") as status:
            yield lambda text: status.update(Text(printable(text)))
    else:
        said = float("-inf")

        def talk(text: str) -> None:
            nonlocal said
            if time.monotonic() - said >= every:
                said = time.monotonic()
                tell(text)

        yield talk


def is_terminal() -> bool:
    """Whether talk is read as it comes."""
    return sys.stderr is not None and sys.stderr.isatty()


def show_source(text: str, language: str) -> None:
    """A source as data; on a terminal with colours."""
    if sys.stdout is not None and sys.stdout.isatty():
        from rich.console import Console
        from rich.syntax import Syntax

        Console(soft_wrap=True).print(Syntax(text, language))
    else:
        say(text, verbatim=True)
