"""`sh2gen ops`: the shipped operators."""

from __future__ import annotations

import json

import click

from sh2gen.base.columns import columns
from sh2gen.base.resources import shipped_ops
from sh2gen.cli.options import json_option
from sh2gen.cli.verbs import Verb
from sh2gen.report.terminal import say


@click.command(cls=Verb)
@json_option
def ops(as_json: bool) -> None:
    """List the operators that sh2gen ships, which every verb takes by name."""
    shipped = shipped_ops()
    if as_json:
        say(json.dumps([{"op": op, "about": about} for op, about in shipped.items()], indent=2))
        return
    for line in columns(list(shipped.items()), words=2):
        say(line)
