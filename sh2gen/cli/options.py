"""Arguments and options that several verbs take, and what some of them mean."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from sh2gen.base.errors import Sh2genError
from sh2gen.report.terminal import tell


class _Place(click.types.StringParamType):
    """The path of a file or folder, or the name of an operator."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = super().convert(value, param, ctx)
        if not text:  # which `Path` takes for the folder that one is in
            self.fail("it is empty: no file or folder has that name", param, ctx)
        return text


PLACE = _Place()
op_argument = click.argument("op", metavar="OP", type=PLACE)
json_option = click.option("--json", "as_json", is_flag=True, help="Print plain data as JSON.")
plan_option = click.option("--plan", help="A plan or a prefix of its name, e.g. direct/BLD.")
set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="DIRECTION.KNOB=INTEGER",
    help="A number of the plan that is taken, such as forward.TILES=2; may be given several "
    "times. `sh2gen explain OP --stage config` lists all with their legal values.",
)
length_option = click.option(
    "--length",
    "lengths",
    multiple=True,
    type=click.IntRange(1),
    help="Choose for this length, not for the workloads of the file; may be given several times.",
)
batch_option = click.option(
    "--batch",
    type=click.IntRange(1),
    help="Sequences of a batch. Default: that of the workloads; 1 with --length.",
)
seed_option = click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**63 - 1),
    help="Of the random inputs and parameters that results are compared on.",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    help="Processes that compile. Default: about as many as there are cores.",
)
locked_option = click.option(
    "--locked",
    type=PLACE,
    metavar="FILE",
    help="Take plans and configs from this lock file alone.",
)
target_option = click.option(
    "--target", help="A GPU that doctor lists, such as H200 or sm_86; default: this one."
)
tables_option = click.option(
    "--tables",
    type=PLACE,
    metavar="FOLDER",
    help="Tuned tables to take configs from, beside your own, as `tune --out` wrote them.",
)


def name_damages(damages: Iterable[object]) -> None:
    for damage in damages:
        tell(f"skipped: {damage}")


def changes_of(settings: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """--set forward.TILES=2 -> {"forward": {"TILES": 2}}."""
    from sh2gen.schedule.config import ROLES

    changes: dict[str, dict[str, int]] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        direction, _, knob = name.partition(".")
        number = value.strip().isdecimal() and len(value) <= 20  # Python refuses thousands
        if direction not in ROLES or not knob or not number:
            shown = setting if len(setting) <= 40 else f"{setting[:37]}..."
            raise Sh2genError(
                "C006",
                f"--set takes DIRECTION.KNOB=INTEGER, not `{shown}`",
                help="for example --set forward.TILES=2; `sh2gen explain OP --stage config` "
                "lists directions, knobs and their legal values",
            )
        changes.setdefault(direction, {})[knob] = int(value)
    return changes
