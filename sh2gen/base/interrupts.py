"""Signals that end a process, while the command line is at work.

Where something has to be tidied up they raise KeyboardInterrupt; before, as while torch is
imported, they end the process at once; and when all is done they come too late.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_Handler = Callable[[int, FrameType | None], Any]
_NUMBERS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")  # batch systems send the second, shells the third
    if hasattr(signal, name)  # Windows has no SIGHUP
]
_last = signal.SIGINT


def exit_code() -> int:
    """Of what the last signal ended: 130 for Ctrl-C, 143 for SIGTERM, as shells have it."""
    return 128 + _last


def end_at_once() -> None:
    """From now on signals end this process, with one word and nothing else."""

    def end(number: int, _: FrameType | None) -> None:
        with suppress(OSError):
            os.write(2, b"interrupted\n")
        os._exit(128 + number)

    _install(end)


def ignore() -> None:
    """From now on signals come too late: all is done but the end."""
    _install(signal.SIG_IGN)


@contextmanager
def raised() -> Iterator[None]:
    """Inside, signals raise KeyboardInterrupt. One that is ignored, as by nohup, stays so.

    What a library makes of it on its way, as C code does that is importing a module, leaves as
    KeyboardInterrupt all the same; click's own exit is the answer of who has seen to it.
    """
    from click.exceptions import Exit  # here: signals are heeded before anything is imported

    received = False

    def interrupt(number: int, _: FrameType | None) -> None:
        global _last
        nonlocal received
        _last, received = signal.Signals(number), True
        raise KeyboardInterrupt

    def unraisable(failed: Any) -> None:
        """A signal that arrives within a destructor, which nothing leaves, arrives again."""
        if issubclass(failed.exc_type, KeyboardInterrupt):
            threading.Timer(0.01, _thread.interrupt_main, (_last,)).start()  # not in here too
        else:
            hook(failed)

    global _last
    _last = signal.SIGINT
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    before = _install(interrupt)
    try:
        yield
    except Exception as error:
        if received and not isinstance(error, Exit):
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


def _install(handler: _Handler | signal.Handlers) -> dict[int, Any]:
    """Handle the signals that are not ignored; gives the handlers of before."""
    if threading.current_thread() is not threading.main_thread():  # only that one may
        return {}
    heeded = [n for n in _NUMBERS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    return {number: signal.signal(number, handler) for number in heeded}
