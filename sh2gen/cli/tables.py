"""`sh2gen tables`: what has been decided on which GPU."""

from __future__ import annotations

from pathlib import Path

import click

from sh2gen.cli.options import PLACE, json_option, name_damages, workers_option
from sh2gen.cli.verbs import Group
from sh2gen.report.terminal import progress
from sh2gen.report.tuning import print_checked


@click.group("tables", cls=Group)
def tables_group() -> None:
    """Tuned tables: what has been decided on which GPU."""


@tables_group.command("check")
@click.option(
    "--tables",
    type=PLACE,
    metavar="FOLDER",
    help="Check the tables of this folder alone; default: your own and those that sh2gen ships.",
)
@workers_option
@json_option
def tables_check(tables: str | None, workers: int | None, as_json: bool) -> None:
    """Compile the kernels of every tuned decision, and list those to time again.

    A decision stays when kernels change, and serves on. This says of which decisions the kernels
    compile to other code than when they were timed. It takes minutes and needs no GPU. The exit
    code is 1 if there is any.
    """
    from sh2gen.api.inputs import known_configs
    from sh2gen.tuning.recheck import recheck
    from sh2gen.tuning.tables import read_tables

    if tables is None:
        known = known_configs(None)
        decisions, damages = known.decisions, known.damages
    else:
        known_configs(tables)  # says what is wrong with the folder
        decisions, damages = read_tables([Path(tables)])
    name_damages(damages)
    with progress(as_json, every=5.0) as note:
        found = tuple(recheck(decisions, workers=workers, progress=note))
    print_checked(found, as_json)
    if any(one.stale for one in found):
        raise click.exceptions.Exit(1)
