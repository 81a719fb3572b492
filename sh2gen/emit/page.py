"""Generated text as a page to read: laid out by `ruff format`."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys

from sh2gen.base.files import signed
from sh2gen.emit.text import WIDTH
from sh2gen.plan.source import Source

_RUFF = (sys.executable, "-P", "-m", "ruff", "format", "--isolated", f"--line-length={WIDTH}")


def page(source: Source) -> Source:
    """The same program as people get to read it: how long a line is depends on names and sizes, so
    that templates cannot break it themselves.

    Without ruff, which there is not for every system, lines stay as long as they are.
    """
    if importlib.util.find_spec("ruff") is None:
        return source
    command = [*_RUFF, "--target-version=py311", "--stdin-filename", f"{source.op}.py", "-"]
    laid = subprocess.run(command, input=source.text, capture_output=True, encoding="utf-8")
    assert laid.returncode == 0, f"{source.op}: {laid.stderr}"
    return dataclasses.replace(source, text=signed(laid.stdout))
