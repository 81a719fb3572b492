"""`sh2gen compile`: generated files, built and verified."""

from __future__ import annotations

import json

import click

from sh2gen.cli.options import (
    PLACE,
    batch_option,
    changes_of,
    json_option,
    length_option,
    locked_option,
    plan_option,
    set_option,
    tables_option,
    target_option,
)
from sh2gen.cli.verbs import Verb
from sh2gen.report.report import (
    print_compilation,
)
from sh2gen.report.terminal import progress, say, tell


@click.command("compile", cls=Verb)
@click.argument("ops", nargs=-1, required=True, metavar="OP...", type=PLACE)
@click.option(
    "--out",
    type=PLACE,
    default="generated",
    show_default=True,
    help="Folder of generated files.",
)
@plan_option
@set_option
@target_option
@click.option(
    "--no-verify", is_flag=True, help="Write the file without comparing it with float64."
)
@click.option("--no-build", is_flag=True, help="Do not compile the kernels ahead of time.")
@click.option(
    "--thorough",
    is_flag=True,
    help="Compile kernels of calls at odd strides and lengths too, which takes longer.",
)
@click.option("--check", is_flag=True, help="Write nothing; fail if a file in --out is stale.")
@locked_option
@click.option("--lock", type=PLACE, metavar="FILE", help="Write such a file of what was taken.")
@tables_option
@length_option
@batch_option
@json_option
def compile_command(
    ops: tuple[str, ...],
    out: str,
    plan: str | None,
    settings: tuple[str, ...],
    target: str | None,
    no_verify: bool,
    no_build: bool,
    thorough: bool,
    check: bool,
    locked: str | None,
    lock: str | None,
    tables: str | None,
    lengths: tuple[int, ...],
    batch: int | None,
    as_json: bool,
) -> None:
    """Write the generated file of each op.yaml (or of all in a folder), built and verified.

    Writes none of them if anything is wrong with one.

    Says which algorithm, plan and schedule were taken and why, the predicted time against the
    memory bound, what the kernels use of the GPU, and what was verified.
    """
    from sh2gen.api.compile import compile_operators, stale
    from sh2gen.api.inputs import op_files

    with progress(as_json, stages=True) as note:
        compilations = compile_operators(
            op_files(ops),
            out=out,
            plan=plan,
            changes=changes_of(settings),
            target=target,
            verified=not (no_verify or check),
            built=not (no_build or check),
            thorough=thorough,
            write=not check,
            locked=locked,
            lock=lock,
            tables=tables,
            lengths=lengths,
            batch=batch,
            progress=note,
            advance=note.advance,
            warn=tell,
        )
    outdated = [*dict.fromkeys(str(c.path) for c in compilations if stale(c))] if check else []
    if as_json:
        results = {"stale": outdated} if check else [c.to_dict() for c in compilations]
        say(json.dumps(results, indent=2))
    elif not check:
        for compilation in compilations:
            print_compilation(compilation)
    for path in outdated:
        tell(f"stale: {path}")
    if outdated:
        raise click.exceptions.Exit(1)
