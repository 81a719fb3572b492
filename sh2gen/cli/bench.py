"""`sh2gen bench`: an operator timed beside others, and what was found earlier."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from sh2gen.base import interrupts
from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import made_folder, require_writable
from sh2gen.cli.options import (
    PLACE,
    changes_of,
    json_option,
    plan_option,
    set_option,
    tables_option,
)
from sh2gen.cli.verbs import Verb
from sh2gen.report.terminal import progress, say, tell


@click.command(cls=Verb)
@click.argument("op", required=False, metavar="[OP]", type=PLACE)
@click.option(
    "--length",
    "lengths",
    multiple=True,
    type=click.IntRange(1),
    help="Time at this length; may be repeated. Default: the lengths of the workloads.",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    help="Sequences of a batch. Default: that of the workloads; 1 with --length.",
)
@click.option(
    "--baselines", help="Compare with these only: names with commas between, or nothing."
)
@click.option(
    "--plots", type=PLACE, metavar="DIR", help="Write figures into this folder; needs matplotlib."
)
@click.option(
    "--from",
    "saved",
    multiple=True,
    type=PLACE,
    metavar="FILE",
    help="Show what --json printed into this file, and measure nothing; may be repeated.",
)
@plan_option
@set_option
@tables_option
@json_option
def bench(
    op: str | None,
    lengths: tuple[int, ...],
    batch: int | None,
    baselines: str | None,
    plots: str | None,
    saved: tuple[str, ...],
    plan: str | None,
    settings: tuple[str, ...],
    tables: str | None,
    as_json: bool,
) -> None:
    """Time an op.yaml on this GPU against its bounds, PyTorch, FFTs and installed packages.

    Its kernels are verified first; if they are wrong nothing is timed. Every baseline is compared
    with float64 before it is timed, and runs in a process of its own. Ctrl-C ends it with what was
    measured until then.
    """
    if saved and (op or lengths or batch or baselines is not None or plan or settings or tables):
        raise Sh2genError("C006", "--from measures nothing: only --plots and --json go with it")
    if not saved and op is None:
        raise Sh2genError("C006", "bench takes an op.yaml, or --from with a file of results")
    folder = None if plots is None else _figure_folder(Path(plots))
    if op is None:
        found = _read_results(saved, folder is not None)
    else:
        from sh2gen.api.bench import bench_operator

        with progress(as_json) as note:
            results = bench_operator(
                op,
                lengths=lengths,
                batch=batch,
                plan=plan,
                changes=changes_of(settings),
                baselines=baselines,
                tables=tables,
                progress=note,
                warn=tell,
            )
        found = [results]
    from sh2gen.bench.table import table

    # Before figures, which may fail.
    if as_json:
        plain = [results.to_dict() for results in found]
        say(json.dumps(plain if len(plain) > 1 else plain[0], indent=2))
    else:
        say("\n\n".join(table(results) for results in found))
    interrupted = op is not None and found[0].interrupted
    if interrupted:
        tell("interrupted: the results are what was measured until then")
    if folder is not None:
        try:
            _draw(found, folder)
        except Sh2genError as error:
            if not interrupted:
                raise
            tell(error.render())
    if interrupted:
        raise click.exceptions.Exit(interrupts.exit_code())


def _read_results(files: Iterable[str], drawn: bool) -> list[Any]:
    """What earlier runs found."""
    from sh2gen.bench.results import read_results

    by_op: dict[str, list[str]] = {}
    found = []
    for file in files:
        for results in read_results(Path(file)):
            found.append(results)
            by_op.setdefault(results.op, []).append(file)
    for op, several in by_op.items():
        if drawn and len(several) > 1:
            raise Sh2genError(
                "C006",
                f"{len(several)} results are of {op} ({', '.join(dict.fromkeys(several))}), and "
                "so is the name of their figures",
                help="draw one at a time, each into a folder of its own",
            )
    return found


_PLOT_HELP = "pip install 'sh2gen[plot]', or leave out --plots"


def _figure_folder(folder: Path) -> Path:
    """The folder, which is not made yet.

    Raises:
        Sh2genError: C005 if it cannot be made or written, C006 if nothing can draw: better now
            than after measuring.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise Sh2genError("C006", "--plots needs matplotlib, which is not here", help=_PLOT_HELP)
    require_writable(folder / "figure.png", "the figure ")
    return folder


def _draw(found: Iterable[Any], folder: Path) -> None:
    """Figures of results that are printed already."""
    try:
        from sh2gen.bench.plots import figures

        for results in found:
            for path in figures(results, made_folder(folder)):
                tell(f"wrote {path}")
    except ImportError as error:
        problem = f"no figures: matplotlib cannot be imported: {error}"
        raise Sh2genError("C006", problem, help=_PLOT_HELP) from error
