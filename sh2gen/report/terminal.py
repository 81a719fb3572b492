"""What a person reads: stdout is data, stderr is talk.

Whatever comes from a file or is a name is printed as errors are: no character of it reaches a
terminal that would obey it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import click

from sh2gen.base.errors import Sh2genError, printable


def say(text: str, *, verbatim: bool = False) -> None:
    """Lines of data.

    Args:
        verbatim: as it is, because sh2gen made it: sources have tabs.

    Raises:
        Sh2genError: C005 if stdout takes no more. BrokenPipeError if nobody reads it.
    """
    with writing():
        click.echo(text if verbatim else printable(text))


@contextmanager
def writing() -> Iterator[None]:
    """Inside, errors of the system are of writing to stdout.

    Raises:
        Sh2genError, BrokenPipeError: as `say`.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise Sh2genError("C005", f"cannot write to stdout: {reason}") from None


def tell(text: str) -> None:
    """A line of talk that stays, with --json too."""
    with suppress(OSError):  # whom else to tell?
        click.echo(printable(text), err=True)


@dataclass(frozen=True, slots=True)
class Note:
    """What `progress` gives: called with what happens, told how far it has come."""

    say: Callable[[str], None]
    # Stages done, and how many there are; what these and all of them take (s), by prediction.
    advance: Callable[[int, int, float, float], None]

    def __call__(self, text: str) -> None:
        self.say(text)


@contextmanager
def progress(quiet: bool, every: float = 0.0, stages: bool = False) -> Iterator[Note]:
    """A status line on a terminal, a line a message in a pipe, nothing for JSON.

    Args:
        every: seconds between lines in a pipe; messages between them are left out.
        stages: the work says how many it has (`Note.advance`): on a terminal there is a bar, and
            how long is left.
    """
    if quiet:
        yield Note(lambda _: None, lambda done, total, passed, whole: None)
    elif is_terminal() and stages:
        with _bar() as note:
            yield note
    elif is_terminal():
        from rich.console import Console
        from rich.text import Text

        with Console(stderr=True).status("") as status:
            yield Note(
                lambda text: status.update(Text(printable(text))),
                lambda done, total, passed, whole: None,
            )
    else:
        said = float("-inf")

        def talk(text: str) -> None:
            nonlocal said
            if time.monotonic() - said >= every:
                said = time.monotonic()
                tell(text)

        yield Note(talk, lambda done, total, passed, whole: None)


class Estimate:
    """How much longer something takes that is told from time to time how far it has come, by
    prediction: the longer it has run, the more it counts how right that was.
    """

    _TRUST = 5.0  # seconds that a prediction counts for

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin = clock()
        self._end: float | None = None

    def advance(self, passed: float, whole: float) -> None:
        """What has been done was predicted to take `passed` seconds, and all `whole`."""
        now = self._clock()
        slower = (now - self._begin + self._TRUST) / (passed + self._TRUST)
        self._end = now + slower * (whole - passed)

    @property
    def left(self) -> float | None:
        """Seconds; None before anything is known."""
        return None if self._end is None else max(0.0, self._end - self._clock())

    @property
    def text(self) -> str:
        """What has passed and what is left, "0:07, 0:12 left"."""
        passed, left = _minutes(self._clock() - self._begin), self.left
        return passed if left is None else f"{passed}, {_minutes(left)} left"


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"


@contextmanager
def _bar() -> Iterator[Note]:
    """A line with a bar, which goes away at the end."""
    from rich import progress as bars
    from rich.console import Console
    from rich.table import Column
    from rich.text import Text

    estimate = Estimate()

    class Times(bars.ProgressColumn):
        max_refresh = 0.5

        def render(self, task: bars.Task) -> Text:
            return Text(estimate.text, style="progress.remaining")

    columns = (
        bars.SpinnerColumn(),
        bars.TextColumn("{task.fields[stages]}", table_column=Column(no_wrap=True, min_width=5)),
        Times(Column(no_wrap=True, min_width=15)),  # others are cut where a line is narrow
        bars.BarColumn(bar_width=20),
        bars.TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
        ),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
        task = bar.add_task("", total=None, stages="")

        def advance(done: int, total: int, passed: float, whole: float) -> None:
            estimate.advance(passed, whole)
            bar.update(task, completed=passed, total=whole, stages=f"{done}/{total}")

        yield Note(lambda text: bar.update(task, description=printable(text)), advance)


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
