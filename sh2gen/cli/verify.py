"""`sh2gen verify`: the property suite."""

from __future__ import annotations

import json

import click

from sh2gen.cli.options import (
    batch_option,
    json_option,
    length_option,
    op_argument,
    plan_option,
    seed_option,
)
from sh2gen.cli.verbs import Verb
from sh2gen.report.report import (
    print_reports,
)
from sh2gen.report.terminal import is_terminal, progress, say, tell


@click.command(cls=Verb)
@op_argument
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Where to run it. Default: cuda if there is one.",
)
@click.option(
    "--examples",
    type=click.IntRange(1, 1000),
    help="How many lengths to try, of those at which operators break. Default: 3; 6 with "
    "--thorough or a GPU.",
)
@click.option(
    "--thorough",
    is_flag=True,
    help="Without a GPU too all properties of kernels, and of all channels. Takes minutes.",
)
@click.option(
    "--ranks",
    type=click.IntRange(1, 64),
    help="Verify sequences over so many simulated ranks, and that alone; of an op.yaml with "
    "`context`.",
)
@seed_option
@plan_option
@length_option
@batch_option
@json_option
def verify(
    op: str,
    device: str | None,
    examples: int | None,
    thorough: bool,
    ranks: int | None,
    seed: int,
    plan: str | None,
    lengths: tuple[int, ...],
    batch: int | None,
    as_json: bool,
) -> None:
    """Run the property suite of an op.yaml or of a generated file on this machine.

    A generated file is executed, once the digest in its head says that it is as sh2gen wrote it;
    without a GPU one with kernels only if this version would write the same. The digest is no
    proof of who wrote it: verify what you would import.
    """
    from sh2gen.api.verify import verify_operator

    with progress(as_json, stages=True) as note:
        reports = verify_operator(
            op,
            device=device,
            examples=examples,
            thorough=thorough,
            seed=seed,
            plan=plan,
            lengths=lengths,
            batch=batch,
            ranks=ranks,
            progress=note,
            detail=note if is_terminal() else None,  # hundreds of messages
            advance=note.advance,
            warn=tell,
        )
    if as_json:
        say(json.dumps([report.to_dict() for report in reports], indent=2))
    else:
        print_reports(reports)
    if not all(report.ok for report in reports):
        raise click.exceptions.Exit(1)
