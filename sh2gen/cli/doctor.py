"""`sh2gen doctor`: what is here, and what would work."""

from __future__ import annotations

import json

import click

from sh2gen.cli.options import json_option
from sh2gen.cli.verbs import Verb
from sh2gen.report.terminal import say


@click.command(cls=Verb)
@json_option
def doctor(as_json: bool) -> None:
    """Say versions, GPU, folders, and what would work here."""
    from sh2gen.report.doctor import examined, print_examined

    found = examined()
    if as_json:
        say(json.dumps(found, indent=2))
    else:
        print_examined(found)
