"""The command line (layer 8): flags -> driver -> text. stdout is data, stderr is talk.

Exit codes: 0 good, 1 a check failed (or tune did not tune and keep all), 2 the input is wrong, 3 a
bug in sh2gen, 130 interrupted (tune keeps what it found and bench prints it; for both, signals
that end a process count as Ctrl-C).
"""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.syntax import Syntax

from sh2gen.errors import Sh2genError
from sh2gen.files import made_folder
from sh2gen.tune_report import print_estimate, print_tuned

talk = Console(stderr=True, highlight=False, soft_wrap=True)
data = Console(highlight=False, soft_wrap=True)


class _Group(click.Group):
    """Turns errors into one message and an exit code, never into a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Sh2genError as error:
            talk.print(error.render(), markup=False)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            talk.print("interrupted")
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            ctx.exit(0)
        except Exception:
            talk.print(traceback.format_exc(), markup=False)
            talk.print("This is a bug in sh2gen, not in your input.", markup=False)
            ctx.exit(3)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sh2gen")
def main() -> None:
    """Compile descriptions of causal convolution operators into verified Triton kernels."""
    # Importing torch makes objects that stay: looking for garbage among them takes 0.5 s.
    gc.set_threshold(100_000)


_json = click.option("--json", "as_json", is_flag=True, help="Print plain data as JSON.")
_plan = click.option("--plan", help="A plan or a prefix of its name, e.g. direct/BLD.")
_set = click.option(
    "--set",
    "settings",
    multiple=True,
    help="A number of the plan that is taken: --set forward.BLOCK_T=512.",
)
_length = click.option(
    "--length",
    "lengths",
    multiple=True,
    type=click.IntRange(1),
    help="Choose for this length, not for the workloads of the file; may be given several times.",
)
_batch = click.option(
    "--batch", type=click.IntRange(1), help="Default: that of the workloads; 1 with --length."
)
_locked = click.option(
    "--locked", metavar="FILE", help="Take plans and numbers from this lock file alone."
)
_target = click.option("--target", help="H200, H100, A100 or B200; default: this GPU, or H200.")
_tables = click.option(
    "--tables", metavar="FOLDER", help="Tuned tables to take numbers from, as `tune --out` wrote."
)


def _finite(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """The value, unless it is one that a range lets through although it is no number."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no number of seconds", context, option)
    return value


def _warn(text: str) -> None:
    """A line of talk that stays, with --json too."""
    talk.print(text, markup=False)


def _name_damages(damages: Iterable[object]) -> None:
    for damage in damages:
        _warn(f"skipped: {damage}")


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Signals that end a process raise KeyboardInterrupt: batch systems send them. One that is
    ignored, as by nohup, stays so.
    """
    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _changes(settings: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """--set forward.BLOCK_T=512 -> {"forward": {"BLOCK_T": 512}}."""
    changes: dict[str, dict[str, int]] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        direction, _, knob = name.partition(".")
        if direction not in ("forward", "backward") or not knob or not value.strip().isdecimal():
            raise Sh2genError(
                "C006",
                f"--set takes DIRECTION.KNOB=INTEGER, not `{setting}`",
                help="for example --set forward.BLOCK_T=512",
            )
        changes.setdefault(direction, {})[knob] = int(value)
    return changes


@contextmanager
def _progress(quiet: bool, every: float = 0.0) -> Iterator[Callable[[str], None]]:
    """A status line on a terminal, a line a message in a pipe, nothing for JSON.

    Args:
        every: seconds between lines in a pipe; messages between them are left out.
    """
    if quiet:
        yield lambda _: None
    elif talk.is_terminal:
        with talk.status("") as status:
            yield status.update
    else:
        said = float("-inf")

        def say(text: str) -> None:
            nonlocal said
            if time.monotonic() - said >= every:
                said = time.monotonic()
                talk.print(text, markup=False)

        yield say


@main.command("compile")
@click.argument("ops", nargs=-1, required=True)
@click.option("--out", default="generated", show_default=True, help="Folder of generated files.")
@_plan
@_set
@_target
@click.option(
    "--no-verify", is_flag=True, help="Write the file without comparing it with float64."
)
@click.option("--no-build", is_flag=True, help="Do not compile the kernels ahead of time.")
@click.option("--check", is_flag=True, help="Write nothing; fail if a file in --out is stale.")
@_locked
@click.option("--lock", metavar="FILE", help="Write such a file of what was taken.")
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
    from sh2gen import driver

    with _progress(as_json) as say:
        compilations = driver.compile_operators(
            driver.op_files(ops),
            out=out,
            plan=plan,
            changes=_changes(settings),
            target=target,
            verified=not (no_verify or check),
            built=not (no_build or check),
            write=not check,
            locked=locked,
            lock=lock,
            tables=tables,
            lengths=lengths,
            batch=batch,
            progress=say,
            warn=_warn,
        )
    outdated = [str(c.path) for c in compilations if driver.stale(c)] if check else []
    if as_json:
        results = {"stale": outdated} if check else [c.to_dict() for c in compilations]
        click.echo(json.dumps(results, indent=2))
    elif not check:
        for compilation in compilations:
            _print_compilation(compilation)
    for path in outdated:
        talk.print(f"stale: {path}", markup=False)
    if outdated:
        raise click.exceptions.Exit(1)


def _print_compilation(c: Any) -> None:
    """What was chosen and why, for a person."""
    from sh2gen.choose import passed_over

    plan = c.chosen.plan
    rows: list[tuple[str, str]] = [("file", str(c.path))]
    rows.append(("algorithm", f"{plan.algorithm}: {c.verdicts[plan.algorithm]}"))
    if not plan.kernels:
        rows += [(f"not {n}", str(v)) for n, v in c.verdicts.items() if not v.applies]
    shown = c.candidates[1:4]
    mixed = any(candidate.measured for candidate in (c.chosen, *shown))
    basis = "" if mixed else "predicted "
    others = ", ".join(
        f"{other.plan.name} {other.score / c.chosen.score:.2f}x" + f" {other.basis}" * mixed
        for other in shown
    )
    own = f"{c.chosen.basis}; " * mixed
    rows.append(("plan", plan.name + (f" ({own}{basis}cost of others: {others})" * bool(others))))
    rows += [("not taken", text) for text in passed_over(c.candidates)]
    rows.append(
        ("call with", f"activations {'(B, D, L)' if plan.layout == 'BDL' else '(B, L, D)'}")
    )
    rows.append(("schedule", f"{c.chosen.schedule}"))
    for origin in dict.fromkeys(c.chosen.origins.values()):
        whose = [d for d, text in c.chosen.origins.items() if text == origin]
        rows.append(("numbers", origin if len(whose) > 1 else f"{whose[0]}: {origin}"))
    for workload, found in c.predictions:
        text = ", ".join(
            f"{direction} {p.seconds * 1e6:.0f} us ({p.share:.2f} of the memory bound"
            + (f", in {p.spans} spans)" if p.spans > 1 else ")")
            for direction, p in found.items()
        )
        rows.append(
            (f"predicted B={workload.batch} L={workload.length}", f"{text} on {c.target.name}")
        )
    if c.built:
        for k in c.built.kernels:
            rows.append(
                (
                    f"{k.kernel.name.removeprefix(c.spec.op + '_')} ({k.variant.value})",
                    f"{k.registers} registers, {k.spills} spills, {k.shared} B shared memory",
                )
            )
    for report in c.reports:
        worst = max(
            (check.measured / check.bound for check in report.checks if check.bound), default=0.0
        )
        rows.append(
            (
                f"verified by {report.runner}",
                f"{len(report.checks)} checks in {report.dtype} against float64, "
                f"closest at {worst:.2f} of its bound",
            )
        )
    if not c.reports:
        rows.append(("verified", "no (--no-verify)"))
    rows.append(("seconds", ", ".join(f"{stage} {s:.1f}" for stage, s in c.seconds.items())))
    width = max(len(name) for name, _ in rows)
    click.echo(f"{c.spec.op}")
    for name, text in rows:
        click.echo(f"  {name.ljust(width)}  {text}")


@main.command()
@click.argument("op")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda if there is one."
)
@click.option("--examples", default=6, show_default=True, type=click.IntRange(1, 1000))
@click.option("--ranks", default=1, show_default=True, type=click.IntRange(1, 4096))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@_plan
@_length
@_batch
@_json
def verify(
    op: str,
    device: str | None,
    examples: int,
    ranks: int,
    seed: int,
    plan: str | None,
    lengths: tuple[int, ...],
    batch: int | None,
    as_json: bool,
) -> None:
    """Run the property suite of an op.yaml or of a generated file on this machine.

    A generated file is executed, once the digest in its head says that it is as sh2gen wrote it.
    The digest is no proof of who wrote it: verify what you would import.
    """
    from sh2gen import driver

    if ranks > 1:
        raise Sh2genError(
            "V003", "a context split over ranks has no lowering yet", help="leave --ranks out"
        )
    with _progress(as_json) as say:
        reports = driver.verify_operator(
            op,
            device=device,
            examples=examples,
            seed=seed,
            plan=plan,
            lengths=lengths,
            batch=batch,
            progress=say,
            detail=say if talk.is_terminal else None,  # hundreds of messages
        )
    if as_json:
        click.echo(json.dumps([report.to_dict() for report in reports], indent=2))
    else:
        for report in reports:
            verdict = "passed" if report.ok else f"FAILED {len(report.failures)} of"
            click.echo(
                f"{report.op} by {report.runner} on {report.device} in {report.dtype}: "
                f"{verdict} {len(report.checks)} checks"
            )
            for failure in report.failures[:20]:
                click.echo(
                    f"  {failure.name}: {failure.measured:.3g}, allowed {failure.bound:.3g}"
                    + (f"; {failure.detail}" if failure.detail else "")
                )
    if not all(report.ok for report in reports):
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("op")
@click.option(
    "--length",
    "lengths",
    multiple=True,
    type=click.IntRange(1),
    help="Tune for this length alone; may be given several times.",
)
@click.option("--batch", type=click.IntRange(1), help="With --length; default: 1.")
@click.option("--direction", type=click.Choice(["forward", "backward"]), help="Default: both.")
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
    help="Seconds for a direction and length.",
)
@click.option("--resume", is_flag=True, help="Go on with what an earlier search recorded.")
@click.option("--out", help="Folder of tuned tables; default: your own, where compile looks.")
@click.option("--workers", type=click.IntRange(1), help="Processes that compile.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
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
    from sh2gen import driver
    from sh2gen.choose import tables
    from sh2gen.spec import Workload, load_spec

    if Path(op).is_dir():
        inside = ", ".join(path.name for path in sorted(Path(op).glob("*.yaml")))
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
    with _signals_interrupt(), _progress(False, every=5.0) as say:
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
                progress=say,
                warn=_warn,
            ):
                found.append(tuned.to_dict() | {"table": str(path) if path else None})
                if not as_json:
                    print_tuned(tuned, path, out, own)
        except KeyboardInterrupt:  # before the first search, or between two
            interrupted = True
            _warn(
                "interrupted before a search began: nothing was tuned"
                if not found
                else "interrupted before the next search began"
            )
        except Sh2genError as error:  # not before what was found until then is printed
            failed = error
    if as_json and (found or failed is None):
        click.echo(json.dumps(found, indent=2))
    if failed is not None:
        raise failed
    if interrupted or any(one["interrupted"] for one in found):
        raise click.exceptions.Exit(130)
    if not all(one["table"] for one in found):  # not decided, or not written
        raise click.exceptions.Exit(1)


_STAGES = ["spec", "graph", "plan", "source", "ptx"]


@main.command()
@click.argument("op")
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
    from sh2gen import cost, driver
    from sh2gen.build import build
    from sh2gen.choose import explain_misses, resized
    from sh2gen.emit import emit
    from sh2gen.ir import operator_graph
    from sh2gen.lower import verdicts
    from sh2gen.passes import adjoint
    from sh2gen.spec import load_spec

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
    if applies or plan is not None or settings or miss or stage in ("plan", "source", "ptx"):
        ranked = driver.candidates(spec, gpu, plan, _changes(settings), known)
        for warning in ranked[0].warnings:
            _warn(warning)
    elif stage is not None:  # spec and graph need no plan; here is why there is none
        for name, answer in answers.items():
            talk.print(f"{name}: no, {answer}", markup=False)
    if miss:
        _print_misses(ranked[0], explain_misses(spec, gpu, ranked[0].plan, known), as_json)
    elif stage is None:
        _print_explanation(spec, gpu, answers, ranked, cost, as_json)
    elif stage == "spec":
        _show(as_json, stage, json.dumps(spec.to_dict(), indent=2) if as_json else spec.to_yaml())
    elif stage == "graph":
        graph = ranked[0].plan.graph if ranked else operator_graph(spec)
        backward = adjoint(graph, ranked[0].plan.saved if ranked else ())
        _show(as_json, stage, f"forward:\n{graph}\n\nbackward:\n{backward}")
    elif stage == "plan":
        _show(as_json, stage, "\n\n".join(_plan_text(c) for c in ranked))
    else:
        best = ranked[0]
        source = emit(spec, best.plan, best.schedule)
        if stage == "source":
            _show(as_json, stage, source.text, "python")
            return
        if not source.kernels:
            raise Sh2genError("C006", f"{best.plan.name} has no kernels, so no PTX")
        with _progress(as_json) as say:
            say(f"compiling for {gpu.sm}")
            built = build(source, gpu, variants=("aligned",))
        _show(as_json, stage, "\n".join(k.ptx for k in built.kernels))


def _print_misses(chosen: Any, found: Any, as_json: bool) -> None:
    """Where numbers come from, and in what each tuned decision differs."""
    if as_json:
        result = {
            d: {"origin": chosen.origins.get(d, "default"), "tuned": list(lines)}
            for d, lines in found.items()
        }
        click.echo(json.dumps({"plan": chosen.plan.name, "directions": result}, indent=2))
        return
    for direction, lines in found.items():
        click.echo(f"{chosen.plan.name} {direction}: {chosen.origins.get(direction, 'default')}")
        for line in lines or ("nothing was tuned for this direction",):
            click.echo(f"  {line}")


def _show(as_json: bool, stage: str, text: str, language: str | None = None) -> None:
    if as_json:
        click.echo(json.dumps({"stage": stage, "text": text}))
    elif language and data.is_terminal:
        data.print(Syntax(text, language))
    else:
        click.echo(text)


def _plan_text(candidate: Any) -> str:
    """The plan, and how many matrix products a tile takes under the numbers of its schedule."""
    from sh2gen import cost

    lines = [str(candidate.plan)]
    for kernel in candidate.plan.kernels:
        for name, numbers in (
            (kernel.name, dict(candidate.schedule.numbers(kernel.name))),
            (f"{kernel.name} on sm_90", candidate.schedule.twin(kernel.name)),
        ):
            steps = numbers.get("BLOCK_T", 1)
            if numbers and (count := cost.products_a_tile(kernel, steps)):
                lines.append(f"{name}: BLOCK_T = {steps}, so {count} products a tile")
    return "\n".join(lines)


def _made_of(predicted: dict[str, Any]) -> str:
    """The parts of a prediction, in a few words."""
    parts = [f"{predicted['traffic_us']:.0f} us of traffic"]
    for name, what in (("instructions_us", "instructions"), ("waves_us", "waiting")):
        if predicted[name]:
            parts.append(f"{predicted[name]:.0f} of {what}")
    overlap = ", which overlap" * (len(parts) > 1)
    return f"{', '.join(parts)}{overlap}, and {predicted['fixed_us']:.0f} whatever the size"


def _print_explanation(
    spec: Any, gpu: Any, answers: Any, ranked: Any, cost: Any, as_json: bool
) -> None:
    from sh2gen.choose import passed_over

    plans = []
    not_taken = passed_over(ranked)
    longest = max(workload.length for workload in spec.workloads)
    for candidate in ranked:
        entry: dict[str, Any] = {
            "plan": candidate.plan.name,
            "score": candidate.score,
            "basis": candidate.basis,
            "schedule": str(candidate.schedule),
            "origins": dict(candidate.origins),
            "predictions": [],
        }
        for kernel in candidate.plan.kernels:
            effort = cost.work(kernel, candidate.plan.layout, spec.dtype.io)
            block = cost.numbers_on(
                gpu, spec, candidate.plan, candidate.schedule, kernel.name, longest
            )["BLOCK_T"]
            entry[kernel.name] = {
                "bytes": effort.bytes,
                "flops": str(effort.flops),
                "product_flops": int(effort.tensor_flops.subs(cost.BLOCK_T, block)),
                "instructions": str(effort.instructions),
            }
        for workload in spec.workloads:
            found = cost.predictions(spec, candidate.plan, candidate.schedule, workload, gpu)
            for direction, p in found.items():
                if p.running is not None:
                    entry[direction]["running"] = asdict(p.running)
            entry["predictions"].append(
                {"batch": workload.batch, "length": workload.length}
                | {
                    d: {
                        "us": p.seconds * 1e6,
                        "share": p.share,
                        "bound_us": p.bound * 1e6,
                        "traffic_us": p.memory * 1e6,
                        "instructions_us": p.issue * 1e6,
                        "waves_us": p.waves * 1e6,
                        "fixed_us": p.fixed * 1e6,
                        "products_us": p.tensor * 1e6,
                        "spans": p.spans,
                    }
                    for d, p in found.items()
                }
            )
        plans.append(entry)
    verdicts = {n: {"applies": v.applies, "reasons": list(v.reasons)} for n, v in answers.items()}
    if as_json:
        click.echo(
            json.dumps(
                {
                    "op": spec.op,
                    "target": gpu.name,
                    "verdicts": verdicts,
                    "plans": plans,
                    "not_taken": list(not_taken),
                },
                indent=2,
            )
        )
        return
    click.echo(f"{spec.op} on {gpu.name}")
    for name, answer in answers.items():
        click.echo(f"  {name}: {'yes' if answer.applies else 'no'}, {answer}")
    if not plans:
        click.echo("no plan; --stage spec and --stage graph show what it is")
        return
    for text in not_taken:
        click.echo(f"not taken: {text}")
    click.echo("per token and channel (bytes of memory traffic, flops, instructions of a thread):")
    for entry in plans:
        click.echo(f"  {entry['plan']}  {entry['schedule']}")
        for direction, origin in entry["origins"].items():
            click.echo(f"    {direction} numbers: {origin}")
        for direction in ("forward", "backward"):
            if direction in entry:
                e = entry[direction]
                click.echo(
                    f"    {direction}: {e['bytes']} B; {e['flops']} flops"
                    + f" and {e['product_flops']} of matrix products" * (e["product_flops"] > 0)
                    + f"; {e['instructions']} instructions"
                )
                if r := e.get("running"):
                    click.echo(
                        f"      {r['programs']} programs, {r['warps']} warps on a multiprocessor, "
                        f"with {r['registers']} registers a thread"
                        + f" and {r['spilled']} spilled" * (r["spilled"] > 0)
                        + ", by estimate"
                    )
        for p in entry["predictions"]:
            times = ", ".join(
                f"{d} {p[d]['us']:.0f} us = {p[d]['share']:.2f} of the bound"
                for d in ("forward", "backward")
            )
            click.echo(f"    predicted B={p['batch']} L={p['length']}: {times}")
            parts = "; ".join(f"{d} {_made_of(p[d])}" for d in ("forward", "backward"))
            click.echo(f"      made of {parts}")
            if any(p[d]["products_us"] for d in ("forward", "backward")):
                floors = ", ".join(
                    f"{d} {p[d]['bound_us']:.0f} us of memory and {p[d]['products_us']:.0f} us "
                    "of products"
                    for d in ("forward", "backward")
                )
                click.echo(f"      at least {floors}")


@main.command()
@click.argument("op", required=False)
@click.option(
    "--length",
    "lengths",
    multiple=True,
    type=click.IntRange(1),
    help="Time at this length; may be repeated. Default: the lengths of the workloads.",
)
@click.option(
    "--batch", type=click.IntRange(1), help="Default: that of the workloads; 1 with --length."
)
@click.option("--peers", help="Compare with these only: names with commas between, or nothing.")
@click.option("--plots", metavar="DIR", help="Write figures into this folder; needs matplotlib.")
@click.option(
    "--from",
    "saved",
    multiple=True,
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
        from sh2gen import driver

        with _signals_interrupt(), _progress(as_json) as say:
            results = driver.bench_operator(
                op,
                lengths=lengths,
                batch=batch,
                plan=plan,
                changes=_changes(settings),
                peers=peers,
                tables=tables,
                progress=say,
                warn=_warn,
            )
        found = [results]
    from sh2gen.bench_table import table

    # Before figures, which may fail.
    if as_json:
        plain = [results.to_dict() for results in found]
        click.echo(json.dumps(plain if len(plain) > 1 else plain[0], indent=2))
    else:
        click.echo("\n\n".join(table(results) for results in found))
    interrupted = op is not None and found[0].interrupted
    if interrupted:
        _warn("interrupted: the results are what was measured until then")
    if folder is not None:
        _draw(found, folder)
    if interrupted:
        raise click.exceptions.Exit(130)


def _read_results(files: Iterable[str], drawn: bool) -> list[Any]:
    """What earlier runs found."""
    if importlib.util.find_spec("triton") is None:
        raise Sh2genError("B004", "Triton is not installed: results cannot be read")
    from sh2gen.bench import read_results

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


def _figure_folder(folder: Path) -> Path | None:
    """The folder, which is not made yet; None if there cannot be figures.

    Raises:
        Sh2genError: C005 if it cannot be made or written: better now than after measuring.
    """
    if importlib.util.find_spec("matplotlib") is None:
        talk.print("no figures: matplotlib is not installed (the extra `plot` has it)")
        return None
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise Sh2genError(
            "C005",
            f"cannot write figures into {folder}: {there} is not a folder that can be written",
            help="choose another folder with --plots",
        )
    return folder


def _draw(found: Iterable[Any], folder: Path) -> None:
    """Figures of results that are printed already."""
    try:
        from sh2gen.plots import figures

        for results in found:
            for path in figures(results, made_folder(folder)):
                talk.print(f"wrote {path}", markup=False)
    except ImportError as error:
        _warn(f"no figures: matplotlib cannot be imported: {error}")


@main.command()
@_json
def doctor(as_json: bool) -> None:
    """Versions, GPU, folders, and what would work here."""
    import torch

    from sh2gen import target as targets
    from sh2gen.records import home
    from sh2gen.resources import folder
    from sh2gen.tables import table_folders

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    packages: tuple[str, ...] = ("sh2gen", "torch", "triton", "numpy", "jinja2", "sympy")
    packages += ("networkx", "hypothesis", "matplotlib")
    found = {name: version(name) for name in packages}
    cuda = torch.cuda.is_available()
    known = targets.from_device()
    triton = found["triton"]
    numpy = found["numpy"]
    broken = (
        triton is not None
        and numpy is not None
        and tuple(map(int, triton.split(".")[:2])) < (3, 9)
        and tuple(map(int, numpy.split(".")[:2])) >= (2, 4)
    )
    interpreter = (
        "no: needs triton and numpy"
        if triton is None or numpy is None
        else f"no: Triton {triton}'s interpreter breaks with numpy {numpy}; install numpy < 2.4"
        if broken
        else "yes"
    )
    works = {
        "compile to a file": "yes",
        "build kernels ahead of time": "yes" if triton else "no: needs triton",
        "verify kernels under the interpreter": interpreter,
        "run kernels": "yes" if cuda and triton else "no: needs a CUDA device and triton",
        "time kernels (bench)": "yes" if cuda and triton else "no: needs a CUDA device and triton",
        "tune for this GPU (tune)": "yes"
        if known and triton
        else f"no: needs triton and one of {', '.join(gpu.name for gpu in targets.TARGETS)}",
        "rank schedules by prediction (tune --effort estimate)": "yes",
        "draw figures (bench --plots)": "yes" if found["matplotlib"] else "no: needs matplotlib",
        "run plain PyTorch on the CPU": "yes",
    }
    report = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": found,
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "target": known.name if known else None,
        "ops": str(folder("ops")),
        "records": str(home() / "records"),
        "tables": [str(place) for place in table_folders()],
        "works": works,
    }
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    rows = [("python", platform.python_version())]
    rows += [(name, number or "not installed") for name, number in found.items()]
    rows.append(("gpu", str(report["gpu"] or "none")))
    rows.append(
        ("target", str(report["target"] or "H200 (default: this GPU is none that is known)"))
    )
    rows += [("shipped ops", str(report["ops"])), ("records", str(report["records"]))]
    for whose, place in zip(("your", "shipped"), table_folders(), strict=True):
        rows.append((f"{whose} tuned tables", f"{place}{' (none yet)' * (not place.exists())}"))
    rows += works.items()
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        click.echo(f"{name.ljust(width)}  {text}")


if __name__ == "__main__":
    sys.exit(main())
