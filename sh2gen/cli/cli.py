"""The command line: flags -> driver -> text. stdout is data, stderr is talk.

Exit codes: 0 good, 1 a check failed (or tune did not tune and keep all), 2 the input is wrong, 3 a
bug in sh2gen, 130 interrupted by Ctrl-C, 143 by SIGTERM (tune keeps what it found and bench prints
it). Nothing that takes long to import is imported before a verb runs.
"""

from __future__ import annotations

import errno
import gc
import importlib.util
import json
import math
import os
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from sh2gen.base import interrupts
from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import listed, made_folder, require_writable, temporary_files
from sh2gen.base.resources import shipped_op, shipped_ops
from sh2gen.base.versions import TESTED, TESTED_HELP, untested
from sh2gen.report.report import (
    numbers_text,
    plan_text,
    print_compilation,
    print_explanation,
    print_misses,
    print_reports,
)
from sh2gen.report.terminal import is_terminal, progress, say, show_source, tell, writing
from sh2gen.report.tuning import print_checked, print_estimate, print_tuned


class _Verb(click.Command):
    """Imports before it works: an interrupted import has nothing to tidy up."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with writing():  # --help
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        if self.name == "ops":
            return super().invoke(ctx)
        import sh2gen.api.driver  # noqa: F401 (torch comes with it)

        with interrupts.raised(), temporary_files():
            return super().invoke(ctx)


class _Group(click.Group):
    """Turns errors into one message and an exit code, never into a traceback."""

    command_class = _Verb
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


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sh2gen")
def main() -> None:
    """Compile descriptions of causal convolution operators into verified Triton kernels."""
    # Importing torch makes objects that stay: looking for garbage among them takes 0.5 s.
    gc.set_threshold(100_000)


class _Place(click.types.StringParamType):
    """The path of a file or folder, or the name of an operator."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = super().convert(value, param, ctx)
        if not text:  # which `Path` takes for the folder that one is in
            self.fail("it is empty: no file or folder has that name", param, ctx)
        return text


_PLACE = _Place()
_op = click.argument("op", metavar="OP", type=_PLACE)
_json = click.option("--json", "as_json", is_flag=True, help="Print plain data as JSON.")
_plan = click.option("--plan", help="A plan or a prefix of its name, e.g. direct/BLD.")
_set = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="DIRECTION.KNOB=INTEGER",
    help="A number of the plan that is taken, such as forward.TILES=2; may be given several "
    "times. `sh2gen explain OP --stage numbers` lists all with their legal values.",
)
_length = click.option(
    "--length",
    "lengths",
    multiple=True,
    type=click.IntRange(1),
    help="Choose for this length, not for the workloads of the file; may be given several times.",
)
_batch = click.option(
    "--batch",
    type=click.IntRange(1),
    help="Sequences of a batch. Default: that of the workloads; 1 with --length.",
)
_seed = click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**63 - 1),
    help="Of the random inputs and parameters that results are compared on.",
)
_workers = click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    help="Processes that compile. Default: about as many as there are cores.",
)
_locked = click.option(
    "--locked",
    type=_PLACE,
    metavar="FILE",
    help="Take plans and numbers from this lock file alone.",
)
_target = click.option(
    "--target", help="A GPU that doctor lists, such as H200 or sm_86; default: this one."
)
_tables = click.option(
    "--tables",
    type=_PLACE,
    metavar="FOLDER",
    help="Tuned tables to take numbers from, beside your own, as `tune --out` wrote them.",
)


def _finite(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """The value, unless it is one that a range lets through although it is no number."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no number of seconds", context, option)
    return value


def _name_damages(damages: Iterable[object]) -> None:
    for damage in damages:
        tell(f"skipped: {damage}")


def _changes(settings: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """--set forward.TILES=2 -> {"forward": {"TILES": 2}}."""
    changes: dict[str, dict[str, int]] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        direction, _, knob = name.partition(".")
        number = value.strip().isdecimal() and len(value) <= 20  # Python refuses thousands
        if direction not in ("forward", "backward") or not knob or not number:
            shown = setting if len(setting) <= 40 else f"{setting[:37]}..."
            raise Sh2genError(
                "C006",
                f"--set takes DIRECTION.KNOB=INTEGER, not `{shown}`",
                help="for example --set forward.TILES=2; `sh2gen explain OP --stage numbers` "
                "lists directions, knobs and their legal values",
            )
        changes.setdefault(direction, {})[knob] = int(value)
    return changes


@main.command("compile")
@click.argument("ops", nargs=-1, required=True, metavar="OP...", type=_PLACE)
@click.option(
    "--out",
    type=_PLACE,
    default="generated",
    show_default=True,
    help="Folder of generated files.",
)
@_plan
@_set
@_target
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
@_locked
@click.option("--lock", type=_PLACE, metavar="FILE", help="Write such a file of what was taken.")
@_tables
@_length
@_batch
@_json
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
    from sh2gen.api import driver

    with progress(as_json, stages=True) as note:
        compilations = driver.compile_operators(
            driver.op_files(ops),
            out=out,
            plan=plan,
            changes=_changes(settings),
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
    outdated = [str(c.path) for c in compilations if driver.stale(c)] if check else []
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


@main.command()
@_op
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
@_seed
@_plan
@_length
@_batch
@_json
def verify(
    op: str,
    device: str | None,
    examples: int | None,
    thorough: bool,
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
    from sh2gen.api import driver

    with progress(as_json, stages=True) as note:
        reports = driver.verify_operator(
            op,
            device=device,
            examples=examples,
            thorough=thorough,
            seed=seed,
            plan=plan,
            lengths=lengths,
            batch=batch,
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


@main.command()
@_op
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
    type=click.Choice(["forward", "backward"]),
    help="Tune one of them alone. Default: both.",
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
    "--out", type=_PLACE, help="Folder of tuned tables; default: your own, where compile looks."
)
@_workers
@_seed
@_plan
@_set
@_target
@_json
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
    """Search for the fastest numbers of an op.yaml on this GPU; compile takes them from then on.

    Every candidate is built ahead of time, compared with float64 and only then timed, in a process
    that may crash or hang. What happened to each is appended to a log as it happens; Ctrl-C keeps
    the best so far, and --resume goes on.

    Without --length the workloads of the file are tuned for at once. With it each length is tuned
    for by itself, one after another; --effort estimate does the same. --set gives numbers to try
    first.
    """
    from sh2gen.api import driver
    from sh2gen.spec.language import Workload, load_spec
    from sh2gen.tuning.choose import tables

    if shipped_op(op) is None and os.path.isdir(op):
        inside = ", ".join(name for name in listed(op) if name.endswith(".yaml"))
        raise Sh2genError(
            "C006",
            f"tune takes one operator, and {op} is a folder",
            help=f"one of {inside}" if inside else None,
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
        _name_damages(tables(Path(out) if out else None).damages)
        estimates = driver.estimate_operator(
            op,
            sets=sets,
            plan=plan,
            changes=_changes(settings),
            directions=directions,
            target=target,
            out=out,
        )
        print_estimate(estimates, as_json)
        return
    if target is not None:
        raise Sh2genError("C006", "--target is for --effort estimate: tuning measures on this GPU")
    _name_damages(tables(Path(out) if out else None).damages)
    own = load_spec(op).workloads
    found: list[dict[str, Any]] = []
    interrupted = False
    failed: Sh2genError | None = None
    with progress(False, every=5.0) as note:
        try:
            for tuned, path in driver.tune_operator(
                op,
                sets=sets,
                plan=plan,
                changes=_changes(settings),
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


_STAGES = ["spec", "graph", "plan", "numbers", "source", "ptx"]


@main.command()
@_op
@click.option(
    "--stage", type=click.Choice(_STAGES), help="Print one stage instead of the summary."
)
@click.option(
    "--miss", is_flag=True, help="Say in what each tuned schedule differs from what is wanted."
)
@_plan
@_set
@_target
@_tables
@_locked
@_length
@_batch
@_json
def explain(
    op: str,
    stage: str | None,
    miss: bool,
    plan: str | None,
    settings: tuple[str, ...],
    target: str | None,
    tables: str | None,
    locked: str | None,
    lengths: tuple[int, ...],
    batch: int | None,
    as_json: bool,
) -> None:
    """Show how an op.yaml is lowered: verdicts, plans and predicted cost, or any one stage."""
    from sh2gen.api import driver
    from sh2gen.build.build import build
    from sh2gen.cost import cost
    from sh2gen.emit.emit import emit
    from sh2gen.graph.adjoint import adjoint
    from sh2gen.graph.nodes import operator_graph
    from sh2gen.lower import verdicts
    from sh2gen.spec.language import load_spec
    from sh2gen.tuning.choose import explain_misses, resized

    if miss and locked:
        raise Sh2genError(
            "C006",
            "--miss is of tables, and with --locked none are looked at",
            help="leave out one",
        )
    spec = resized(load_spec(op), lengths, batch)
    gpu = driver.resolve_target(target)
    answers = verdicts(spec)
    applies = any(answer.applies for answer in answers.values())
    known = driver.known_numbers(tables, locked)
    _name_damages(known.damages)
    ranked: tuple[driver.Candidate, ...] = ()
    if applies or plan is not None or settings or miss or stage in _STAGES[2:]:
        ranked = driver.candidates(spec, gpu, plan, _changes(settings), known)
        for warning in ranked[0].warnings:
            tell(warning)
    elif stage is not None:  # spec and graph need no plan; here is why there is none
        for name, answer in answers.items():
            tell(f"{name}: no, {answer}")
    if miss:
        print_misses(ranked[0], explain_misses(spec, gpu, ranked[0].plan, known), as_json)
    elif stage is None:
        print_explanation(spec, gpu, answers, ranked, cost, as_json)
    elif stage == "spec":
        _show(as_json, stage, json.dumps(spec.to_dict(), indent=2) if as_json else spec.to_yaml())
    elif stage == "graph":
        graph = ranked[0].plan.graph if ranked else operator_graph(spec)
        backward = adjoint(graph, ranked[0].plan.saved if ranked else ())
        _show(as_json, stage, f"forward:\n{graph}\n\nbackward:\n{backward}")
    elif stage == "plan":
        _show(as_json, stage, "\n\n".join(plan_text(c) for c in ranked))
    elif stage == "numbers":
        _show(as_json, stage, numbers_text(spec, ranked[0], gpu))
    else:
        best = ranked[0]
        source = emit(spec, best.plan, best.schedule)
        if stage == "source":
            _show(as_json, stage, source.text, "python")
            return
        if not source.kernels:
            raise Sh2genError("C006", f"{best.plan.name} has no kernels, so no PTX")
        with progress(as_json) as note:
            note(f"compiling for {gpu.sm}")
            built = build(source, gpu, variants=("aligned",))
        _show(as_json, stage, "\n".join(k.ptx for k in built.kernels))


def _show(as_json: bool, stage: str, text: str, language: str | None = None) -> None:
    if as_json:
        say(json.dumps({"stage": stage, "text": text}))
    elif language:
        show_source(text, language)
    else:
        say(text, verbatim=True)


@main.command()
@click.argument("op", required=False, metavar="[OP]", type=_PLACE)
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
@click.option("--peers", help="Compare with these only: names with commas between, or nothing.")
@click.option(
    "--plots", type=_PLACE, metavar="DIR", help="Write figures into this folder; needs matplotlib."
)
@click.option(
    "--from",
    "saved",
    multiple=True,
    type=_PLACE,
    metavar="FILE",
    help="Show what --json printed into this file, and measure nothing; may be repeated.",
)
@_plan
@_set
@_tables
@_json
def bench(
    op: str | None,
    lengths: tuple[int, ...],
    batch: int | None,
    peers: str | None,
    plots: str | None,
    saved: tuple[str, ...],
    plan: str | None,
    settings: tuple[str, ...],
    tables: str | None,
    as_json: bool,
) -> None:
    """Time an op.yaml on this GPU against its bounds, PyTorch, FFTs and installed packages.

    Its kernels are verified first; if they are wrong nothing is timed. Every contender is compared
    with float64 before it is timed, and runs in a process of its own. Ctrl-C ends it with what was
    measured until then.
    """
    if saved and (op or lengths or batch or peers is not None or plan or settings or tables):
        raise Sh2genError("C006", "--from measures nothing: only --plots and --json go with it")
    if not saved and op is None:
        raise Sh2genError("C006", "bench takes an op.yaml, or --from with a file of results")
    folder = None if plots is None else _figure_folder(Path(plots))
    if op is None:
        found = _read_results(saved, folder is not None)
    else:
        from sh2gen.api import driver

        with progress(as_json) as note:
            results = driver.bench_operator(
                op,
                lengths=lengths,
                batch=batch,
                plan=plan,
                changes=_changes(settings),
                peers=peers,
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
    from sh2gen.bench.bench import read_results

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


@main.command()
@_json
def ops(as_json: bool) -> None:
    """List the operators that sh2gen ships, which every verb takes by name."""
    shipped = shipped_ops()
    if as_json:
        say(json.dumps([{"op": op, "about": about} for op, about in shipped.items()], indent=2))
        return
    width = max(map(len, shipped))
    for op, about in shipped.items():
        say(f"{op.ljust(width)}  {about}")


@main.group("tables")
def tables_group() -> None:
    """Tuned tables: what has been decided on which GPU."""


@tables_group.command("check")
@click.option(
    "--tables",
    type=_PLACE,
    metavar="FOLDER",
    help="Check the tables of this folder alone; default: your own and those that sh2gen ships.",
)
@_workers
@_json
def tables_check(tables: str | None, workers: int | None, as_json: bool) -> None:
    """Compile the kernels of every tuned decision, and list those to time again.

    A decision stays when kernels change, and serves on. This says of which decisions the kernels
    compile to other code than when they were timed. It takes minutes and needs no GPU. The exit
    code is 1 if there is any.
    """
    from sh2gen.api import driver
    from sh2gen.tuning.recheck import recheck
    from sh2gen.tuning.tables import read_tables

    if tables is None:
        known = driver.known_numbers(None)
        decisions, damages = known.decisions, known.damages
    else:
        driver.known_numbers(tables)  # says what is wrong with the folder
        decisions, damages = read_tables([Path(tables)])
    _name_damages(damages)
    with progress(as_json, every=5.0) as note:
        found = tuple(recheck(decisions, workers=workers, progress=note))
    print_checked(found, as_json)
    if any(one.stale for one in found):
        raise click.exceptions.Exit(1)


@main.command()
@_json
def doctor(as_json: bool) -> None:
    """Say versions, GPU, folders, and what would work here."""
    from sh2gen.report.doctor import examined, print_examined

    found = examined()
    if as_json:
        say(json.dumps(found, indent=2))
    else:
        print_examined(found)
