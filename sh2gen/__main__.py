"""`sh2gen` and `python -m sh2gen`: the command line as a process of its own."""

import os
import sys
from contextlib import suppress

from sh2gen.base import interrupts


def run() -> None:
    """Run a command and end the process with its exit code."""
    interrupts.end_at_once()
    from sh2gen.cli.cli import main  # not before signals are heeded

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names may hold what a terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    finally:
        interrupts.ignore()
        # What could not be written is known by now: leave nothing for Python to complain of.
        with suppress(AttributeError, OSError, ValueError):
            try:
                sys.stdout.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    run()
