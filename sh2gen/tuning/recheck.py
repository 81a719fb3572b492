"""Which tuned decisions are still of the kernels that they were made for.

Kernels change and their decisions stay: whatever is as it was, to the compiler, needs no timing
again. This compiles the kernels of every decision, which takes minutes, and needs no GPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sh2gen.base.errors import Sh2genError
from sh2gen.base.versions import no_triton
from sh2gen.build.build import Compilers, failure, kernel_job
from sh2gen.emit.emit import emit
from sh2gen.emit.launched import alignment_of, kernel_digests, launched_by
from sh2gen.lower import plans
from sh2gen.plan.source import KernelSource, Source
from sh2gen.schedule.config import DIRECTIONS, ROLES, Schedule, partner
from sh2gen.schedule.config import schedule as default
from sh2gen.schedule.space import DECODE
from sh2gen.targets import target as targets
from sh2gen.targets.target import Target
from sh2gen.tuning.choose import size_options, triton_version
from sh2gen.tuning.lookup import gpu_called
from sh2gen.tuning.tables import Decision

_TIME_LIMIT = 120.0  # seconds to compile a kernel


class Verdict(StrEnum):
    """What became of the kernels of a decision.

    SAME       they compile to what they were
    CHANGED    some do not: time them again
    UNKNOWN    the decision does not say what they were: time them again
    GONE       this version has no such kernels, or they do not compile: tune again
    ELSEWHERE  of another Triton, or a GPU that is not known: compare there
    """

    SAME = "same"
    CHANGED = "changed"
    UNKNOWN = "unknown"
    GONE = "gone"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A decision and what became of its kernels.

    Attributes:
        detail: which kernels, or why there are none.
        kernels: digests of today, as in `Decision.kernels`; empty if they were not compiled.
    """

    decision: Decision
    verdict: Verdict
    detail: str = ""
    kernels: dict[str, str]

    @property
    def stale(self) -> bool:
        """Whether it has to be timed again."""
        return self.verdict in (Verdict.CHANGED, Verdict.UNKNOWN, Verdict.GONE)

    @property
    def command(self) -> str:
        """What times it again, on a GPU of its kind. Only the workloads of a file are timed
        together: --length times each alone.
        """
        d = self.decision
        words = ["sh2gen tune", f"{d.op}.yaml"]
        decodes = d.key.direction == DECODE
        words += [size_options(d.workloads)] * (len(d.workloads) == 1 and not decodes)
        command = " ".join((*words, f"--direction {d.key.direction} --plan {d.key.plan}"))
        if len(d.workloads) > 1 and not decodes:
            listed = ", ".join(f"{{batch: {w.batch}, length: {w.length}}}" for w in d.workloads)
            command += f", with `workloads: [{listed}]` in the file"
        return command

    def to_dict(self) -> dict[str, Any]:
        """Plain values for --json."""
        d = self.decision
        return {
            "op": d.op,
            "plan": d.key.plan,
            "direction": d.key.direction,
            "gpu": d.key.gpu,
            "triton": d.key.triton,
            "workloads": [{"batch": w.batch, "length": w.length} for w in d.workloads],
            "date": d.date,
            "verdict": str(self.verdict),
            "detail": self.detail,
            "kernels": self.kernels,
            "again": self.command if self.stale else None,
        }


def recheck(
    decisions: Sequence[Decision],
    *,
    workers: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Checked]:
    """What became of the kernels of each decision, in order.

    Args:
        workers: processes that compile; by default one a core.
        progress: told which is next.

    Raises:
        Sh2genError: B004 without Triton.
    """
    if triton_version() == "none":
        raise no_triton("kernels cannot be compiled")
    with contextlib.closing(Compilers(workers or os.cpu_count() or 1, _TIME_LIMIT)) as compilers:
        for i, decision in enumerate(decisions):
            title = f"{decision.op} {decision.key.direction}"
            progress(f"compiling kernels of decision {i + 1} of {len(decisions)}: {title}")
            yield _checked(decision, compilers)


def _checked(decision: Decision, compilers: Compilers) -> Checked:
    def found(verdict: Verdict, detail: str, kernels: dict[str, str] | None = None) -> Checked:
        return Checked(decision=decision, verdict=verdict, detail=detail, kernels=kernels or {})

    here, target = triton_version(), _target_of(decision)
    if decision.key.triton != here:
        return found(Verdict.ELSEWHERE, f"tuned with Triton {decision.key.triton}, here {here}")
    if target is None:
        return found(Verdict.ELSEWHERE, f"no target is called {decision.key.gpu}")
    try:
        source, kernels = kernels_of_decision(decision)
    except Sh2genError as error:
        return found(Verdict.GONE, error.message)
    kernels = tuple(k for k in kernels if k.runs(alignment_of(k), target.capability))
    jobs = [(k, compilers.submit(kernel_job(source, target, k, alignment_of(k)))) for k in kernels]
    binaries = []
    for kernel, future in jobs:
        answer = future.result()
        if problem := failure(answer, kernel.name, target, _TIME_LIMIT):
            return found(Verdict.GONE, problem.splitlines()[0])
        binaries.append((kernel, answer["ptx_digest"]))
    now, before = kernel_digests(decision.op, binaries), decision.kernels
    if not before:
        return found(Verdict.UNKNOWN, "it does not say what its kernels were", now)
    differ = sorted(n for n in {*now, *before} if now.get(n) != before.get(n))
    return found(Verdict.CHANGED if differ else Verdict.SAME, ", ".join(differ), now)


def _target_of(decision: Decision) -> Target | None:
    """The GPU of a decision: one that has a file, or this machine's, whatever stands in for it."""
    if (found := gpu_called(decision.key.gpu)) is not None:
        return found
    mine = targets.here()
    return mine if mine.stands_for == decision.key.gpu else None


def kernels_of_decision(decision: Decision) -> tuple[Source, tuple[KernelSource, ...]]:
    """The file under the config of a decision, and what its direction launches there at its
    workloads. That of the other direction is any that goes with it.

    Raises:
        Sh2genError: this version knows no such operator, plan or config.
    """
    spec, direction = decision.spec, decision.key.direction
    named = [p for p in plans(spec) if p.name == decision.key.plan]
    if not named:
        raise Sh2genError("L003", f"{spec.op} has no plan `{decision.key.plan}`")
    (plan,) = named
    target = _target_of(decision)
    assert target is not None
    configs = {d: default(spec, plan, target=target).config(d) for d in ROLES}
    configs[direction] = decision.config
    if direction in DIRECTIONS:
        (other,) = set(DIRECTIONS) - {direction}
        configs[other] = partner(spec, plan, direction, decision.config, target)
    schedule = Schedule(plan=plan.name, **configs)
    source = emit(spec, plan, schedule)
    shapes = [(w.batch, w.length) for w in decision.workloads]
    of = (spec, plan, schedule, source.kernels, shapes, target.capability)
    return source, launched_by(*of, direction)
