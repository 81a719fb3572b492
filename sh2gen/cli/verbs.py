"""How verbs end: an error is one message and an exit code, never a traceback."""

from __future__ import annotations

import errno
import os
import traceback
from types import ModuleType
from typing import Any

import click

from sh2gen.base import interrupts
from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import temporary_files
from sh2gen.base.versions import TESTED, TESTED_HELP, untested
from sh2gen.report.terminal import tell, writing


class Verb(click.Command):
    """Imports before it works: an interrupted import has nothing to tidy up."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with writing():  # --help
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        if self.name == "ops":
            return super().invoke(ctx)
        import sh2gen.api.bench
        import sh2gen.api.compile
        import sh2gen.api.tune
        import sh2gen.api.verify  # noqa: F401 (torch comes with them)

        with interrupts.raised(), temporary_files():
            return super().invoke(ctx)


class Group(click.Group):
    """Turns errors into one message and an exit code, never into a traceback."""

    command_class = Verb
    group_class = type  # so do groups of verbs

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            code = super().main(*args, **extra | {"standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            tell(error.format_message())
            code = error.exit_code
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            help = f"`{context.command_path} --help`" if context else None
            code = _told(Sh2genError("C006", error.format_message(), help=help))
        except Sh2genError as error:
            code = _told(error)
        except click.Abort:
            code = interrupts.exit_code()
        except Exception as error:
            if reason := _of_the_system(error):
                code = _told(Sh2genError("C007", f"the system refuses: {reason}"))
            else:
                tell(traceback.format_exc())
                versions = untested()
                if versions and _of_packages(error):
                    code = _told(Sh2genError("B006", "; ".join(versions), help=TESTED_HELP))
                else:
                    tell("This is a bug in sh2gen, not in your input.")
                    for text in versions:
                        tell(text)
                    code = 3
        raise SystemExit(code or 0)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            with writing():  # --help, --version
                return super().parse_args(ctx, args)
        except BrokenPipeError:  # here and below, because click would make it a failure
            ctx.exit(0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            tell("interrupted")
            ctx.exit(interrupts.exit_code())
        except BrokenPipeError:
            ctx.exit(0)


_REFUSALS = {  # what a system says that has no space or right to give; all else is of a program
    getattr(errno, name, 0)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EACCES", "EPERM", "EMFILE", "ENFILE"),
        *("ENOMEM", "EAGAIN"),
    )
}


def _of_the_system(error: Exception) -> str:
    """What this machine or its GPU has no space, memory or right to give; nothing if it is not
    that.
    """
    if isinstance(error, OSError) and error.errno in _REFUSALS and error.strerror:
        return error.strerror + (f": {os.fsdecode(error.filename)}" if error.filename else "")
    torchs = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return str(error) or "no memory" if torchs or isinstance(error, MemoryError) else ""


def _of_packages(error: Exception) -> bool:
    """Whether an error comes out of the code of a package that sh2gen is tested with, or is of
    something that such a package lacks.
    """
    names = [
        frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    own = [i for i, name in enumerate(names) if name.lstrip("_").startswith("sh2gen")]
    names = names[own[-1] + 1 if own else 0 :]
    if isinstance(error, ImportError):
        names.append(error.name or "")
    elif isinstance(error, AttributeError):
        of = error.obj if isinstance(error.obj, ModuleType | type) else type(error.obj)
        names.append(of.__name__ if isinstance(of, ModuleType) else of.__module__)
    return any(name.split(".")[0] in TESTED for name in names)


def _told(error: Sh2genError) -> int:
    tell(error.render())
    return error.exit_code
