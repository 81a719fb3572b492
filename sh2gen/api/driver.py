"""The whole chain in one place: spec -> plans -> schedule -> source -> built -> verified
-> file.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sh2gen.api.compilation import (
    Advance,
    Compilation,
    Progress,
    Tests,
    one_thread,
    tested,
    written,
)
from sh2gen.base.errors import CheckFailed, Sh2genError
from sh2gen.base.files import (
    intact,
    listed,
    made_folder,
    read_generated,
    read_text,
    refuse_to_replace,
    same_program,
    scratch,
    write_all,
    write_whole,
)
from sh2gen.base.resources import shipped_op
from sh2gen.base.versions import beyond_triton, has_triton, no_triton, untested, without_triton
from sh2gen.bench.contenders import chosen
from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.plan.plan import Plan
from sh2gen.runtime.operator import Operator
from sh2gen.schedule.schedule import DIRECTIONS, schedule, search_space
from sh2gen.spec.language import OpSpec, Workload, load_spec, spec_from_dict
from sh2gen.targets import target as targets
from sh2gen.targets.target import Target
from sh2gen.tuning.choose import (
    Candidate,
    Changes,
    Tables,
    candidates,
    kernels_of,
    passed_over,
    resized,
    tables,
)
from sh2gen.tuning.journal import Task
from sh2gen.tuning.records import home, operator_digest
from sh2gen.tuning.search import Problem
from sh2gen.tuning.tables import (
    LockEntry,
    holds_tables,
    in_order,
    lock_text,
    read_tables,
    refuse_to_write,
    table_path,
    write_decisions,
)
from sh2gen.tuning.tuner import Session, Tuned, problem
from sh2gen.verify.checks import (
    EAGER_SHAPES,
    GPU_SHAPES,
    example_lengths,
    thorough_checks,
    usual_checks,
)
from sh2gen.verify.memory import require_memory
from sh2gen.verify.stages import long_ones, of_step
from sh2gen.verify.verify import Report

if TYPE_CHECKING:  # it needs Triton, which this module does without
    from sh2gen.bench.bench import Results


def compile_operators(
    ops: Iterable[OpSpec | str | PathLike[str]],
    *,
    out: str | PathLike[str] = "generated",
    plan: str | None = None,
    changes: Changes | None = None,
    target: str | Target | None = None,
    verified: bool = True,
    built: bool = True,
    thorough: bool = False,
    write: bool = True,
    locked: str | PathLike[str] | None = None,
    lock: str | PathLike[str] | None = None,
    tables: str | PathLike[str] | None = None,
    lengths: Sequence[int] = (),
    batch: int | None = None,
    progress: Progress | None = None,
    advance: Advance | None = None,
    warn: Progress | None = None,
) -> tuple[Compilation, ...]:
    """Compile operators into `out`/<op>.py. Nothing is written unless every step of all succeeds.

    Args:
        ops: specs, or paths of op.yaml files.
        out: folder of the generated files.
        plan: a plan's name or a prefix of it, instead of the cheapest.
        changes: numbers other than those that are known to be good: {"forward": {"TILES": 2}}.
        target: a GPU's name; by default the GPU of this machine, or the known one that stands in
            for it (`targets.stand_in`), and the H200 without any.
        verified: compare the files with float64 before they are written: kernels on this machine's
            GPU if there is one, else under Triton's interpreter on twins with few channels.
        built: compile the kernels ahead of time for the target and refuse what does not fit it.
        thorough: compile those for calls at odd strides and lengths too. With a GPU they always
            are, because such calls are verified.
        write: False leaves the folder alone; then no lock file is written either.
        locked: a lock file that says plans and numbers, so that all who compile agree.
        lock: where to write such a file of what was taken.
        tables: a folder of tuned tables, as `tune` writes with `out`, looked at beside the user's.
        lengths, batch: workloads instead of those of the specs (`resized`).
        progress, advance: told of what happens, and of how far it has come.
        warn: told of versions, tables and lock files that are not what they should be.

    Raises:
        Sh2genError: what is wrong with a spec, plan, schedule, lock file or folder; CheckFailed if
            a kernel does not fit or a result is wrong.
    """
    say = progress or (lambda _: None)
    if lock is not None:
        if not write:
            raise Sh2genError(
                "C006",
                f"nothing is written with --check, so no lock file {lock} either",
                help="leave out --check, or --lock",
            )
        refuse_to_write(Path(lock))
    gpu = target if isinstance(target, Target) else resolve_target(target)
    specs: list[OpSpec] = []
    origins: dict[str, list[str]] = {}
    for op in ops:
        spec = resized(op if isinstance(op, OpSpec) else load_spec(op), lengths, batch)
        specs.append(spec)
        origins.setdefault(spec.op, []).append("a spec" if isinstance(op, OpSpec) else str(op))
    for name, several in origins.items():
        if len(several) > 1:
            raise Sh2genError(
                "C006",
                f"{len(several)} operators are named `{name}`, and so is the file of each: "
                + ", ".join(several),
                help="give each a name of its own, and every file once",
            )
    known = known_numbers(tables, locked)
    warn = warn or say
    for text in (*untested(), *(f"skipped: {damage}" for damage in known.damages)):
        warn(text)
    if gpu.stands_for:
        warn(gpu.caveat)
    advance = advance or (lambda done, stages, passed, whole: None)
    chosen = [_choose(spec, gpu, plan, changes, known, Path(out), say) for spec in specs]
    for compilation in chosen:
        for text in compilation.chosen.warnings:
            warn(text)
    if write:
        for compilation in chosen:
            refuse_to_replace(compilation.path)
            if lock is not None:
                _refuse_as_lock(Path(lock), compilation)
    if verified:
        device, shapes = (
            ("cuda", GPU_SHAPES) if torch.cuda.is_available() else ("cpu", EAGER_SHAPES)
        )
        for compilation in chosen:
            require_memory(
                compilation.spec,
                shapes,
                compilation.chosen.plan.states,
                "--no-verify (verified=False) writes the file without comparing it with float64",
                device,
            )
    how = Tests(
        verified=verified,
        built=built and not beyond_triton(),
        thorough=thorough,
        free=not changes and locked is None,
    )
    total = sum(how.stages(compilation) for compilation in chosen)
    expected = []
    for compilation in chosen:
        ways, build = how.seconds(compilation)
        expected.append(max(sum(ways), build))
        for text in long_ones(compilation.spec, sum(ways)):
            warn(f"{text}; --no-verify (verified=False) leaves it out")
    finished: list[Compilation] = []
    before = 0
    for i, compilation in enumerate(chosen):

        def done(count: int, passed: float, own: float, i: int = i, before: int = before) -> None:
            earlier = sum(expected[:i])
            whole = earlier + own + sum(expected[i + 1 :])
            advance(before + count, total, earlier + passed, whole)

        finished.append(tested(compilation, how, say, done))
        before += how.stages(compilation)
    files = {c.path: c.source.text.encode() for c in finished} if write else {}
    if lock is not None:
        files[Path(lock)] = lock_text(Path(lock), [_lock_entry(c) for c in finished]).encode()
    write_all(files)
    return tuple(finished)


def _refuse_as_lock(lock: Path, compilation: Compilation) -> None:
    """Refuse a lock file that cannot be there beside a generated file."""
    one, other = Path(os.path.realpath(lock)), Path(os.path.realpath(compilation.path))
    if one == other:
        problem = f"{lock} is the file of {compilation.spec.op}: it cannot be the lock file too"
    elif one in other.parents:
        problem = f"{lock} is the folder of {compilation.path}: it cannot be the lock file too"
    elif other in one.parents:
        problem = f"{compilation.path} is a file: it cannot be the folder of {lock} too"
    else:
        return
    raise Sh2genError("C006", problem, help="give --lock another place")


def known_numbers(
    folder: str | PathLike[str] | None = None, locked: str | PathLike[str] | None = None
) -> Tables:
    """The tables of a folder beside the user's and the package's; or a lock file alone.

    Raises:
        Sh2genError: C006 for both, or if there is no such folder or no table in it; R001, R002 if
            the lock file cannot be read.
    """
    if folder is not None and locked is not None:
        raise Sh2genError("C006", f"{locked} pins all numbers: no tables are looked at beside it")
    if folder is not None and not os.path.isdir(folder):
        raise Sh2genError("C006", f"there is no folder {folder} of tuned tables")
    if folder is not None and not holds_tables(Path(folder)):
        above = any(name.endswith(".jsonl") for name in listed(folder))  # this one is of a GPU
        raise Sh2genError(
            "C006",
            f"{folder} holds no tuned table",
            help="a folder of tables is what `tune --out` wrote: it has <gpu>/<op>.jsonl in it, "
            "such as nvidia-h200/hyena_se.jsonl" + "; give the folder above" * above,
        )
    if locked is not None:
        return tables(locked=Path(locked))
    return tables(Path(folder) if folder is not None else None)


def _lock_entry(compilation: Compilation) -> LockEntry:
    chosen = compilation.chosen
    return LockEntry(
        op=compilation.spec.op,
        digest=operator_digest(compilation.spec),
        kernels=kernels_of(compilation.spec, chosen.plan),
        plan=chosen.plan.name,
        forward=chosen.schedule.forward,
        backward=chosen.schedule.backward,
    )


def compile_operator(op: OpSpec | str | PathLike[str], **options: Any) -> Compilation:
    """One operator by `compile_operators`, with its options."""
    (compilation,) = compile_operators([op], **options)
    return compilation


def _choose(
    spec: OpSpec,
    gpu: Target,
    plan: str | None,
    changes: Changes | None,
    known: Tables,
    out: Path,
    say: Progress,
) -> Compilation:
    """The generated text, neither built nor verified nor written."""
    begin = time.perf_counter()
    say(f"{spec.op}: choosing a plan")
    ranked = candidates(spec, gpu, plan, changes, known)
    compilation = written(spec, gpu, ranked, out / f"{spec.op}.py", {})
    seconds = {"choose": round(time.perf_counter() - begin, 3)}
    return dataclasses.replace(compilation, seconds=seconds)


def resolve_target(name: str | None) -> Target:
    """The target of that name; without one this machine's GPU, or what stands in for it."""
    return targets.here() if name is None else targets.target(name)


def verify_operator(
    op: OpSpec | str | PathLike[str],
    *,
    device: str | None = None,
    examples: int | None = None,
    thorough: bool = False,
    seed: int = 0,
    plan: str | None = None,
    lengths: Sequence[int] = (),
    batch: int | None = None,
    progress: Progress | None = None,
    detail: Progress | None = None,
    advance: Advance | None = None,
    warn: Progress | None = None,
) -> tuple[Report, ...]:
    """The property suite on this machine, forward and gradients.

    Args:
        op: an op.yaml, a generated file, or a spec.
        device: "cpu" or "cuda"; by default cuda if there is a GPU.
        examples: how many lengths to try; by default six where that is fast or thorough, or three.
        thorough: without a GPU too all properties of kernels, and of plain PyTorch at full width,
            which takes minutes.
        seed: of all random numbers.
        plan, lengths, batch: as for compile_operators; a generated file has its own.
        progress: told before and after each way of running the operator.
        detail, advance: told before every step of it; how many of all are done, and the
            seconds that these and all of them take by prediction.
        warn: told of untested versions, of what cannot be verified here, of what takes minutes.

    Raises:
        Sh2genError: V003 without that device or memory enough of it; C006 for `plan`, `lengths`
            or `batch` of a generated file; and those of `candidates` or `load`.
        CheckFailed: V003, a generated file is not what this version writes, and there is no GPU.
    """
    complain = warn or progress or (lambda _: None)
    for text in untested():
        complain(text)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise Sh2genError("V003", "there is no CUDA device here", help="--device cpu")
    with scratch() as folder:
        if isinstance(op, OpSpec) or Path(op).suffix != ".py":
            spec = resized(op if isinstance(op, OpSpec) else load_spec(op), lengths, batch)
            chosen = candidates(spec, resolve_target(None), plan, known=tables())[0]
            path = folder / f"{spec.op}.py"
            write_whole(path, emit(spec, chosen.plan, chosen.schedule).text)
            operator, structure = Operator(path), chosen.plan
        else:
            if plan is not None or lengths or batch is not None:
                raise Sh2genError(
                    "C006",
                    "a generated file has its own plan and numbers",
                    help="leave out --plan, --length and --batch, or give the op.yaml",
                )
            spec, structure = _described(Path(op), device)
            operator = Operator(Path(op))
        if structure.kernels and beyond_triton():
            complain(f"not verified: {without_triton()}")
        lengths = example_lengths(spec, examples, device, thorough)
        say = progress or (lambda _: None)
        reports = []
        if device == "cuda" or thorough:
            found = thorough_checks(spec, structure, operator, folder, device, lengths)
        else:
            found = usual_checks(spec, structure, operator, folder, lengths)
        steps = tuple(found)
        seconds = [of_step(step, structure) for step in steps]
        whole = sum(map(sum, seconds))
        for text in long_ones(spec, whole):
            complain(text)
        for i, step in enumerate(steps):

            def inner(
                done: int, total: int, what: str, label: str = step.label, before: int = i
            ) -> None:
                if detail is not None:
                    detail(f"{label}: {what} ({done + 1} of {total})")
                if advance is not None:
                    passed = [*chain(*seconds[:before]), *seconds[before][:done]]
                    advance(len(passed), sum(map(len, seconds)), sum(passed), whole)

            advice = "verify it where there is more, or an operator of fewer taps or channels"
            require_memory(step.spec, step.shapes, structure.states, advice, step.device)
            say(f"verifying {step.label} ({i + 1} of {len(steps)})")
            with one_thread():  # tensors are small
                report = dataclasses.replace(step.run(seed, inner), label=step.label)
            failed = len(report.failures)
            say(f"{step.label}: {failed or 'none'} of {len(report.checks)} checks failed")
            reports.append(report)
    return tuple(reports)


def bench_operator(
    op: OpSpec | str | PathLike[str],
    *,
    lengths: Sequence[int] = (),
    batch: int | None = None,
    plan: str | None = None,
    changes: Changes | None = None,
    peers: str | None = None,
    tables: str | PathLike[str] | None = None,
    progress: Progress | None = None,
    warn: Progress | None = None,
) -> Results:
    """Verify and time an operator on this GPU, beside its bounds and other ways of computing it.

    Args:
        op: an op.yaml, or a spec.
        lengths: to time at, by default those of the operator's workloads.
        batch: sequences of a batch, by default those of the workloads, or 1 with `lengths`.
        plan, changes: as for compile_operators.
        peers: names of contenders with commas between them, by default all.
        tables: as for compile_operators.
        progress, warn: told what is measured next, and of lines of tables that cannot be read.

    After a KeyboardInterrupt, once timing has begun, the results are what was measured so far.

    Raises:
        Sh2genError: V003 without a CUDA device, B004 without Triton, C006 for an unknown peer or
            without such a folder of tables; CheckFailed if a kernel is wrong. Then nothing is
            timed.
    """
    spec = op if isinstance(op, OpSpec) else load_spec(op)
    contenders = chosen(peers)
    gpu = resolve_target(None)
    spec = resized(spec, lengths, batch)
    spec = dataclasses.replace(spec, workloads=in_order(spec.workloads))
    known = known_numbers(tables)
    complain = warn or progress or (lambda _: None)
    for text in (*untested(), *(f"skipped: {damage}" for damage in known.damages)):
        complain(text)
    if gpu.stands_for:
        complain(gpu.caveat)
    ranked = candidates(spec, gpu, plan, changes, known)
    best = ranked[0]
    if not torch.cuda.is_available():
        raise Sh2genError(
            "V003",
            "there is no CUDA device here, and bench times kernels on one",
            help="`sh2gen explain` predicts times without one",
        )
    if not has_triton():
        raise no_triton("kernels cannot run")
    from sh2gen.bench import bench

    with scratch() as folder:
        path = folder / f"{spec.op}.py"
        write_whole(path, emit(spec, best.plan, best.schedule).text)
        return bench.run(
            path,
            best.plan,
            best.schedule,
            gpu,
            contenders=contenders,
            workloads=spec.workloads,
            origins=best.origins,
            not_taken=passed_over(ranked),
            progress=progress,
        )


def _described(path: Path, device: str) -> tuple[OpSpec, Plan]:
    """The operator and the plan of a generated file, none of which is executed.

    Without a GPU its kernels cannot run at full width: a twin written by this sh2gen is verified,
    which speaks for the file only if this sh2gen writes the same file.

    Raises:
        Sh2genError: B005 as `read_generated`, or if it lacks what says so; L003 for a plan that is
            unknown here. CheckFailed: V003 if this sh2gen writes another file.
    """
    text = read_generated(path)
    said: dict[str, Any] = {}
    unreadable = SyntaxError, ValueError, TypeError, RecursionError, MemoryError
    with suppress(*unreadable):
        for statement in ast.parse(text).body:
            match statement:
                case ast.Assign([ast.Name("SPEC" | "PLAN" | "NUMBERS" as name)], value):
                    with suppress(*unreadable):
                        said[name] = ast.literal_eval(value)

    def stated(name: str, kind: type) -> Any:
        if not isinstance(said.get(name), kind):
            raise Sh2genError("B005", f"{path} lacks what a generated file has: {name}")
        return said[name]

    spec, name = spec_from_dict(stated("SPEC", dict)), stated("PLAN", str)
    found = [p for p in plans(spec, name.split("/")[0]) if p.name == name]
    if not found:
        raise Sh2genError("L003", f"{path} has a plan unknown here: {name}")
    if device == "cpu" and found[0].kernels:
        said |= (directions := stated("NUMBERS", dict))
        numbers = schedule(spec, found[0], {name: stated(name, dict) for name in directions})
        if not same_program(text, emit(spec, found[0], numbers).text):
            raise CheckFailed(
                "V003",
                f"{path} is not what this version writes, so its kernels need a GPU",
                help="compile it again, or verify it with --device cuda",
            )
    return spec, found[0]


def tune_operator(
    op: OpSpec | str | PathLike[str],
    *,
    sets: Sequence[Sequence[Workload]] = (),
    plan: str | None = None,
    changes: Changes | None = None,
    directions: Sequence[str] = DIRECTIONS,
    effort: str = "measure",
    budget: float | None = None,
    seed: int = 0,
    resume: bool = False,
    workers: int | None = None,
    out: str | PathLike[str] | None = None,
    sweep: bool = False,
    session: Session | None = None,
    progress: Progress | None = None,
    warn: Progress | None = None,
) -> Iterator[tuple[Tuned, Path | None]]:
    """Search for the numbers of an operator on this machine's GPU, and keep what was found.

    Args:
        sets: workloads that share their numbers, a search each; by default the spec's own, as one.
        plan: a plan's name or a prefix of it, instead of the cheapest by prediction.
        changes: numbers to try first, beside the best known.
        directions: which are searched; the other keeps the best numbers known.
        effort: "measure", "patient" or "exhaustive" (`search.EFFORTS`).
        budget: seconds for a direction of a set, instead of the effort's.
        seed: of the inputs that candidates are verified with.
        resume: go on with what an earlier search of this recorded.
        workers: processes that compile; by default one less than there are cores.
        out: folder of tuned tables; by default the user's own, where `compile` looks.
        sweep: try every candidate and decide nothing.
        session: processes of other searches, which stay; by default there are some for this one.
        progress, warn: told of progress, and of records that cannot be read or written.

    Yields:
        what a search came to, and the table that keeps it; None if not one candidate was right.

    Raises:
        Sh2genError: V003 without a GPU, L003 if there is nothing to tune, and those
            of `candidates`.
        CheckFailed: V003, the GPU cannot be used, or not any more: some of what was asked for was
            not tuned. What was tuned before has been yielded and kept.
        ValueError: no direction is searched, or one that there is not.
    """
    if not directions or set(directions) - set(DIRECTIONS):
        raise ValueError(
            f"directions must be of {', '.join(DIRECTIONS)}, at least one, not {directions!r}"
        )
    spec = op if isinstance(op, OpSpec) else load_spec(op)
    sizes = _sized(spec, sets)
    gpu = targets.here()
    for sized in sizes:  # what cannot be tuned needs no GPU to say so
        _require_kernels(spec, candidates(sized, gpu, plan, changes)[0].plan)
    if targets.from_device() is None and not torch.cuda.is_available():
        raise Sh2genError(
            "V003",
            "tuning needs a GPU, and there is none here",
            help="`sh2gen tune --effort estimate` ranks schedules by prediction, without a GPU",
        )
    folder = made_folder(Path(out) if out is not None else home() / "tuned")
    say, complain = progress or (lambda _: None), warn or progress or (lambda _: None)
    for text in untested():
        complain(text)
    if gpu.stands_for:
        complain(gpu.caveat)
    with ExitStack() as stack:
        if session is None:
            session = stack.enter_context(Session(workers, progress or warn, warn or progress))
        for i, sized in enumerate(sizes):
            # What is known to be good stays unless it is beaten, by what is asked for too.
            known = tables(folder)
            best = candidates(sized, gpu, plan, None, known)[0]
            asked = candidates(sized, gpu, plan, changes, known)[0]
            left, interrupted = list(directions), False
            searches = session.tune(
                sized,
                best.plan,
                gpu,
                directions=directions,
                starts={d: best.schedule.numbers(d) for d in DIRECTIONS},
                also={d: asked.schedule.numbers(d) for d in changes or ()},
                effort="exhaustive" if sweep else effort,
                budget=budget,
                decide=not sweep,
                seed=seed,
                resume=resume,
                say=say,
                warn=complain,
            )
            try:
                for tuned in searches:
                    yield tuned, _kept(folder, tuned, complain)
                    left.remove(tuned.task.direction)
                    interrupted = tuned.result.interrupted
            except CheckFailed as error:
                if not i:  # nothing was tuned
                    raise
                complain(error.render())
            if interrupted:
                return
            if left:  # the GPU has gone, and why is told already
                missing = [(sized, d) for d in left]
                missing += [(later, d) for later in sizes[i + 1 :] for d in directions]
                titles = [Task(spec=s, plan=best.plan, direction=d).title for s, d in missing]
                raise CheckFailed(
                    "V003",
                    f"not tuned, because the GPU could not be used: {'; '.join(titles)}",
                    help="tune again once it can; --resume goes on from what was recorded",
                )


def _kept(folder: Path, tuned: Tuned, warn: Progress) -> Path | None:
    """The table that holds a decision; None if there is none or it cannot be written.

    An interrupted search leaves alone what a table says, which was more thorough, unless it came
    so far that it raced its winner with it.
    """
    decision, result = tuned.decision, tuned.result
    if decision is None:
        return None
    before, _ = read_tables([folder]) if result.interrupted else ((), ())
    for one in before:
        if one.identity != decision.identity:
            continue
        if one.numbers == decision.numbers:
            return table_path(folder, one)
        if not result.raced and not one.effort.endswith("interrupted"):
            warn(f"the decision of {one.date[:10]} stays: this search was interrupted too early")
            return None
    try:
        return write_decisions(folder, [decision])
    except Sh2genError as error:  # an hour of search is not lost for that: it is told
        warn(error.render())
        return None


def tune(op: OpSpec | str | PathLike[str], **options: Any) -> tuple[Tuned, ...]:
    """Tune an operator on this machine's GPU; takes the options of `tune_operator`.

    sh2gen.tune("ops/hyena_se.yaml", budget=30)
    operator = sh2gen.compile("ops/hyena_se.yaml")  # takes what was found
    """
    return tuple(tuned for tuned, _ in tune_operator(op, **options))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a search of one direction of one set of workloads would try.

    Attributes:
        dropped: constraints and how many candidates each drops.
        target: whose rates and constants predict.
    """

    target: Target
    task: Task
    problem: Problem
    dropped: tuple[tuple[str, int], ...]


def estimate_operator(
    op: OpSpec | str | PathLike[str],
    *,
    sets: Sequence[Sequence[Workload]] = (),
    plan: str | None = None,
    changes: Changes | None = None,
    directions: Sequence[str] = DIRECTIONS,
    target: str | None = None,
    out: str | PathLike[str] | None = None,
) -> tuple[Estimate, ...]:
    """For each search of `tune_operator`, what it would try and what each candidate is predicted
    to cost; needs no GPU.

    Args:
        sets: workloads that share their numbers, by default the spec's own, as one.
        target: a GPU's name; by default the one that is here.
        out: folder of tuned tables, of which a search would start from the best.

    Raises:
        Sh2genError: as `tune_operator`, but for the GPU.
    """
    spec = op if isinstance(op, OpSpec) else load_spec(op)
    gpu = resolve_target(target)
    known = tables(Path(out) if out is not None else None)
    found = []
    for sized in _sized(spec, sets):
        chosen = candidates(sized, gpu, plan, changes, known)[0]
        _require_kernels(sized, chosen.plan)
        for d in directions:
            survey, start = search_space(sized, chosen.plan, d, gpu), chosen.schedule.numbers(d)
            points = survey.points
            found.append(
                Estimate(
                    target=gpu,
                    task=Task(spec=sized, plan=chosen.plan, direction=d),
                    problem=problem(sized, chosen.plan, d, sized.workloads, gpu, start, points),
                    dropped=tuple((constraint.that, n) for constraint, n in survey.dropped),
                )
            )
    return tuple(found)


def _sized(spec: OpSpec, sets: Sequence[Sequence[Workload]]) -> list[OpSpec]:
    """The operator for each set of workloads, by default for its own."""
    return [
        dataclasses.replace(spec, workloads=in_order(workloads))
        for workloads in sets or (spec.workloads,)
    ]


def _require_kernels(spec: OpSpec, plan: Plan) -> None:
    if plan.kernels:
        return
    others = [other.name for other in plans(spec) if other.kernels]
    raise Sh2genError(
        "L003",
        f"{spec.op} is computed by {plan.name}, which has no kernels to tune",
        help=f"--plan {others[0]} has some"
        if others
        else "compile writes it as it is: plain PyTorch has no numbers",
    )


def stale(compilation: Compilation) -> bool:
    """Whether the file on disk differs from what was just compiled, in more than it says of how
    it was verified, or was changed since.
    """
    try:
        text = read_text(compilation.path)
    except OSError:
        return True
    return not intact(text) or not same_program(text, compilation.source.text)


def compile(op: OpSpec | str | PathLike[str], **options: Any) -> Operator:
    """Compile an operator and import it; takes the options of `compile_operators`.

    operator = sh2gen.compile("ops/hyena_se.yaml")
    y = operator(q, k, v, filter=h, featurizer=w)
    """
    if not options.get("write", True):
        raise TypeError("compile imports what it writes; compile_operator(write=False) does not")
    options.setdefault("warn", lambda text: warnings.warn(text, stacklevel=5))
    return Operator(compile_operator(op, **options).path)


def load(path: str | PathLike[str], *, edited: bool = False) -> Operator:
    """Import a generated file that is already there, which executes it.

    The digest in its head says that nothing of it was changed by accident or by hand. It is no
    proof of who wrote it: load what you would import.

    Args:
        edited: take one that was changed after sh2gen wrote it. What it computes is then yours to
            check, `Operator.reference` is still what its description says.

    Raises:
        Sh2genError: B005 if it cannot be read, or is not as sh2gen wrote it.
    """
    return Operator(Path(path), edited=edited)


def op_files(paths: Iterable[str | PathLike[str]]) -> tuple[Path, ...]:
    """The op.yaml files that paths name; a folder stands for all of its own.

    What is the name of a shipped operator stands for that, whatever else there is of the name.
    """
    found: list[Path] = []
    for given in paths:
        path = shipped_op(given) or Path(given)
        inside = [path]
        if os.path.isdir(path):
            inside = [path / name for name in listed(path) if name.endswith(".yaml")]
        if not inside:
            raise Sh2genError("C006", f"{path} holds no .yaml file")
        found += inside
    return tuple(found)


__all__ = [
    "Candidate",
    "Compilation",
    "Estimate",
    "bench_operator",
    "candidates",
    "compile",
    "compile_operator",
    "compile_operators",
    "estimate_operator",
    "load",
    "op_files",
    "stale",
    "tune",
    "tune_operator",
    "verify_operator",
]
