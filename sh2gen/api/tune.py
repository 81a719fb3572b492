"""A search for the config of an operator, whose decisions are kept; what a search would try."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from sh2gen.api.compilation import (
    Progress,
)
from sh2gen.api.inputs import resolve_target
from sh2gen.base.errors import CheckFailed, Sh2genError
from sh2gen.base.files import (
    made_folder,
)
from sh2gen.base.versions import untested
from sh2gen.cost.decode import STEPS
from sh2gen.lower import plans
from sh2gen.plan.plan import Plan
from sh2gen.schedule.config import DIRECTIONS, ROLES
from sh2gen.schedule.space import DECODE, search_space
from sh2gen.spec.decode import load_spec
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets import target as targets
from sh2gen.targets.target import Target
from sh2gen.tuning.choose import (
    Changes,
    candidates,
    tables,
)
from sh2gen.tuning.decide import Tuned
from sh2gen.tuning.journal import Task
from sh2gen.tuning.records import home
from sh2gen.tuning.search import Problem
from sh2gen.tuning.session import Session, problem
from sh2gen.tuning.tables import in_order, read_tables, table_path, write_decisions


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
    """Search for the config of an operator on this machine's GPU, and keep what was found.

    Args:
        sets: workloads that share a config, a search each; by default the spec's own, as one.
        plan: a plan's name or a prefix of it, instead of the cheapest by prediction.
        changes: a config to try first, beside the best known.
        directions: which are searched, of forward, backward and decode; others keep the best
            config known. How to decode is chosen for calls of one step of 1, 64 and 256 sequences
            at once, whatever the sets.
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
    if not directions or set(directions) - set(ROLES):
        raise ValueError(
            f"directions must be of {', '.join(ROLES)}, at least one, not {directions!r}"
        )
    spec = op if isinstance(op, OpSpec) else load_spec(op)
    tasks = _tasks(spec, sets, directions)
    gpu = targets.here()
    for sized, _ in tasks:  # what cannot be tuned needs no GPU to say so
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
        for i, (sized, wanted) in enumerate(tasks):
            # What is known to be good stays unless it is beaten, by what is asked for too.
            known = tables(folder)
            best = candidates(sized, gpu, plan, None, known)[0]
            asked = candidates(sized, gpu, plan, changes, known)[0]
            left, interrupted = list(wanted), False
            searches = session.tune(
                _task_spec(sized, wanted),
                best.plan,
                gpu,
                directions=wanted,
                starts={d: best.schedule.config(d) for d in ROLES},
                also={d: asked.schedule.config(d) for d in changes or ()},
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
                missing = [(_task_spec(sized, wanted), d) for d in left]
                missing += [(_task_spec(s, ds), d) for s, ds in tasks[i + 1 :] for d in ds]
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
        if one.config == decision.config:
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
        sets: workloads that share a config, by default the spec's own, as one.
        target: a GPU's name; by default the one that is here.
        out: folder of tuned tables, of which a search would start from the best.

    Raises:
        Sh2genError: as `tune_operator`, but for the GPU.
    """
    if DECODE in directions:
        raise Sh2genError(
            "C006",
            "there is no estimate of decode: nothing predicts which config is the faster",
            help="`--direction forward` or backward; or tune on a GPU",
        )
    spec = op if isinstance(op, OpSpec) else load_spec(op)
    gpu = resolve_target(target)
    known = tables(Path(out) if out is not None else None)
    found = []
    for sized, wanted in _tasks(spec, sets, directions):
        chosen = candidates(sized, gpu, plan, changes, known)[0]
        _require_kernels(sized, chosen.plan)
        for d in wanted:
            survey, start = search_space(sized, chosen.plan, d, gpu), chosen.schedule.config(d)
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


def _tasks(
    spec: OpSpec, sets: Sequence[Sequence[Workload]], directions: Sequence[str]
) -> list[tuple[OpSpec, Sequence[str]]]:
    """The operator for each set of workloads, by default for its own, and what is searched for
    these at once. How to decode does not depend on them: it is searched once, at the end.
    """
    training = [d for d in directions if d != DECODE]
    found: list[tuple[OpSpec, Sequence[str]]] = [
        (dataclasses.replace(spec, workloads=in_order(workloads)), training)
        for workloads in sets or (spec.workloads,)
        if training
    ]
    return found + [(spec, (DECODE,))] * (DECODE in directions)


def _task_spec(spec: OpSpec, directions: Sequence[str]) -> OpSpec:
    """The operator for the workloads of a search: the plan is that of its own, of decoding too."""
    return dataclasses.replace(spec, workloads=STEPS) if DECODE in directions else spec


def _require_kernels(spec: OpSpec, plan: Plan) -> None:
    if plan.kernels:
        return
    others = [other.name for other in plans(spec) if other.kernels]
    raise Sh2genError(
        "L003",
        f"{spec.op} is computed by {plan.name}, which has no kernels to tune",
        help=f"--plan {others[0]} has some"
        if others
        else "compile writes it as it is: plain PyTorch has no config",
    )
