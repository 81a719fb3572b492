"""`sh2gen tune`: a search on this GPU, or what one would try."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import click

from sh2gen.base import interrupts
from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import listed
from sh2gen.base.resources import shipped_op
from sh2gen.cli.options import (
    PLACE,
    changes_of,
    json_option,
    name_damages,
    op_argument,
    plan_option,
    seed_option,
    set_option,
    target_option,
    workers_option,
)
from sh2gen.cli.verbs import Verb
from sh2gen.report.terminal import progress, say, tell
from sh2gen.report.tuning import print_estimate, print_tuned


def _finite(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """The value, unless it is one that a range lets through although it is no number."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no number of seconds", context, option)
    return value


@click.command(cls=Verb)
@op_argument
@click.option(
    "--length",
    "lengths",
    multiple=True,
    type=click.IntRange(1),
    help="Tune for this length alone; may be given several times.",
)
@click.option(
    "--batch", type=click.IntRange(1), help="Sequences of a batch, with --length. Default: 1."
)
@click.option(
    "--direction",
    type=click.Choice(["forward", "backward", "decode"]),
    help="Tune one of them alone: decode for 1, 64 and 256 sequences of a step. Default: the "
    "first two.",
)
@click.option(
    "--effort",
    type=click.Choice(["estimate", "measure", "patient", "exhaustive"]),
    default="measure",
    show_default=True,
    help="estimate ranks by prediction and needs no GPU; exhaustive tries all there is.",
)
@click.option(
    "--budget",
    type=click.FloatRange(1),
    callback=_finite,
    help="Seconds for a direction and length. Default: what the effort takes.",
)
@click.option("--resume", is_flag=True, help="Go on with what an earlier search recorded.")
@click.option(
    "--out", type=PLACE, help="Folder of tuned tables; default: your own, where compile looks."
)
@workers_option
@seed_option
@plan_option
@set_option
@target_option
@json_option
def tune(
    op: str,
    lengths: tuple[int, ...],
    batch: int | None,
    direction: str | None,
    effort: str,
    budget: float | None,
    resume: bool,
    out: str | None,
    workers: int | None,
    seed: int,
    plan: str | None,
    settings: tuple[str, ...],
    target: str | None,
    as_json: bool,
) -> None:
    """Search for the fastest config of an op.yaml on this GPU; compile takes it from then on.

    Every candidate is built ahead of time, compared with float64 and only then timed, in a process
    that may crash or hang. What happened to each is appended to a log as it happens; Ctrl-C keeps
    the best so far, and --resume goes on.

    Without --length the workloads of the file are tuned for at once. With it each length is tuned
    for by itself, one after another; --effort estimate does the same. --set gives values to try
    first.
    """
    from sh2gen.api.tune import estimate_operator, tune_operator
    from sh2gen.spec.decode import load_spec
    from sh2gen.spec.language import Workload
    from sh2gen.tuning.choose import tables

    if shipped_op(op) is None and os.path.isdir(op):
        inside = ", ".join(name for name in listed(op) if name.endswith(".yaml"))
        raise Sh2genError(
            "C006",
            f"tune takes one operator, and {op} is a folder",
            help=f"one of {inside}" if inside else None,
        )
    if direction == "decode" and (lengths or batch is not None):
        raise Sh2genError(
            "C006",
            "--length and --batch are for forward and backward",
            help="decode is tuned for one step of 1, 64 and 256 sequences at once",
        )
    if batch is not None and not lengths:
        raise Sh2genError("C006", "--batch goes with --length", help="give a length too")
    sets = [(Workload(batch=batch or 1, length=length),) for length in dict.fromkeys(lengths)]
    directions = (direction,) if direction else ("forward", "backward")
    if effort == "estimate":
        if resume or budget or workers:
            raise Sh2genError(
                "C006", "--resume, --budget and --workers are for a search, not an estimate"
            )
        name_damages(tables(Path(out) if out else None).damages)
        estimates = estimate_operator(
            op,
            sets=sets,
            plan=plan,
            changes=changes_of(settings),
            directions=directions,
            target=target,
            out=out,
        )
        print_estimate(estimates, as_json)
        return
    if target is not None:
        raise Sh2genError("C006", "--target is for --effort estimate: tuning measures on this GPU")
    name_damages(tables(Path(out) if out else None).damages)
    own = load_spec(op).workloads
    found: list[dict[str, Any]] = []
    interrupted = False
    failed: Sh2genError | None = None
    with progress(False, every=5.0) as note:
        try:
            for tuned, path in tune_operator(
                op,
                sets=sets,
                plan=plan,
                changes=changes_of(settings),
                directions=directions,
                effort=effort,
                budget=budget,
                seed=seed,
                resume=resume,
                workers=workers,
                out=out,
                progress=note,
                warn=tell,
            ):
                found.append(tuned.to_dict() | {"table": str(path) if path else None})
                if not as_json:
                    print_tuned(tuned, path, out, own)
        except KeyboardInterrupt:  # before the first search, or between two
            interrupted = True
            tell(
                "interrupted before a search began: nothing was tuned"
                if not found
                else "interrupted before the next search began"
            )
        except Sh2genError as error:  # not before what was found until then is printed
            failed = error
    if as_json and (found or failed is None):
        say(json.dumps(found, indent=2))
    if failed is not None:
        raise failed
    if interrupted or any(one["interrupted"] for one in found):
        raise click.exceptions.Exit(interrupts.exit_code())
    if not all(one["table"] for one in found):  # not decided, or not written
        raise click.exceptions.Exit(1)
