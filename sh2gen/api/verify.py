"""An operator, or a generated file, verified on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import chain
from os import PathLike
from pathlib import Path

import torch

from sh2gen.api.compilation import Advance, Progress, one_thread
from sh2gen.api.inputs import resolve_target
from sh2gen.api.members import as_written, described
from sh2gen.base.errors import CheckFailed, Sh2genError
from sh2gen.base.files import (
    read_generated,
    scratch,
    write_whole,
)
from sh2gen.base.versions import beyond_triton, untested, without_triton
from sh2gen.emit.emit import emit
from sh2gen.plan.plan import Plan
from sh2gen.runtime.operator import Operator
from sh2gen.spec.decode import load_spec
from sh2gen.spec.language import FilterKind
from sh2gen.spec.operator import OpSpec
from sh2gen.tuning.choose import (
    candidates,
    resized,
    tables,
)
from sh2gen.verify.checks import (
    VerificationStep,
    example_lengths,
    ranks_check,
    thorough_checks,
    usual_checks,
)
from sh2gen.verify.memory import require_memory
from sh2gen.verify.report import Report
from sh2gen.verify.stages import long_ones, of_step


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
    ranks: int | None = None,
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
        ranks: simulate so many of an operator that is split over ranks, and verify that alone.
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
                    "a generated file has its own plan and config",
                    help="leave out --plan, --length and --batch, or give the op.yaml",
                )
            spec, structure = _described(Path(op), device)
            operator = Operator(Path(op))
        if structure.kernels and beyond_triton():
            complain(f"not verified: {without_triton()}")
        lengths = example_lengths(spec, examples, device, thorough)
        say = progress or (lambda _: None)
        reports = []
        if ranks is not None:
            found = iter((_over_ranks(spec, structure, folder, ranks),))
        elif device == "cuda" or thorough:
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
            modal = spec.filter.kind is FilterKind.MODAL  # decoding has states whatever the plan
            require_memory(step.spec, step.shapes, modal, advice, step.device)
            say(f"verifying {step.label} ({i + 1} of {len(steps)})")
            with one_thread():  # tensors are small
                report = dataclasses.replace(step.run(seed, inner), label=step.label)
            failed = len(report.failures)
            say(f"{step.label}: {failed or 'none'} of {len(report.checks)} checks failed")
            reports.append(report)
    return tuple(reports)


def _over_ranks(spec: OpSpec, plan: Plan, folder: Path, ranks: int) -> VerificationStep:
    """What `--ranks` verifies; raises C006 of an operator that is not split over ranks."""
    if spec.context is None:
        raise Sh2genError(
            "C006",
            f"{spec.op} is not split over ranks",
            help=f"write `context: {{ranks: {ranks}}}` in its op.yaml",
        )
    return ranks_check(spec, plan, folder, ranks)


def _described(path: Path, device: str) -> tuple[OpSpec, Plan]:
    """The operator and the plan of a generated file, none of which is executed.

    Without a GPU its kernels cannot run at full width: a miniature written by this sh2gen is
    verified, which speaks for the file only if this sh2gen writes the same file.

    Raises:
        Sh2genError: B005 as `read_generated`, or if it lacks what says so; L003 for a plan that is
            unknown here. CheckFailed: V003 if this sh2gen writes another file.
    """
    text = read_generated(path)
    there = described(text, path)
    if device == "cpu" and there.plan.kernels and not as_written(text, there):
        raise CheckFailed(
            "V003",
            f"{path} is not what this version writes, so its kernels need a GPU",
            help="compile it again, or verify it with --device cuda",
        )
    return there.spec, there.plan
