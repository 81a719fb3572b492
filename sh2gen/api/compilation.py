"""One operator on its way into a file: the text, how it is built and verified before it
is written, and everything that was found.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sh2gen.api.members import member, text_of
from sh2gen.base.files import (
    intact,
    read_text,
    same_program,
    scratch,
    stated,
    statement,
    write_whole,
)
from sh2gen.build.build import Building, Built, KernelFailed, check_fits
from sh2gen.build.load_module import forget
from sh2gen.cost.cost import Prediction, predictions
from sh2gen.emit.config import Width
from sh2gen.emit.kernels import kernel_sources
from sh2gen.emit.launched import alignment_of, kernel_digests, launched, of_direction
from sh2gen.lower import verdicts
from sh2gen.lower.verdict import Verdict
from sh2gen.plan.source import Alignment, Source
from sh2gen.runtime.operator import Operator
from sh2gen.schedule.config import ROLES, roles_of
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target
from sh2gen.tuning.choose import Candidate, passed_over
from sh2gen.tuning.refit import refit
from sh2gen.verify import checks, stages
from sh2gen.verify.checks import quick_checks, quick_count
from sh2gen.verify.report import Report

Progress = Callable[[str], None]  # what happens next, or has happened
# How many stages are done, and how many there are; what these and all take (s), by prediction.
Advance = Callable[[int, int, float, float], None]
Done = Callable[[int, float, float], None]  # of one operator: stages that are done; these times


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """Everything that was decided, found and written for one operator.

    Attributes:
        spec: the operator.
        family: its width and others of its kind, which share a file: that of the file's own
            operator first; those that were there before last.
        own: the file's own operator.
        verdicts: every algorithm's answer.
        candidates: every plan; the first is the one that was taken, the others cheapest first.
        predictions: by workload and direction.
        source: the generated text.
        built: resources of every kernel, or None if it was not built.
        reports: of verification, one a way of running.
        path: the generated file.
        seconds: by stage.
    """

    spec: OpSpec
    family: tuple[Width, ...]
    own: OpSpec
    target: Target
    verdicts: dict[str, Verdict]
    candidates: tuple[Candidate, ...]
    predictions: tuple[tuple[Workload, dict[str, Prediction]], ...]
    source: Source
    built: Built | None
    reports: tuple[Report, ...]
    path: Path
    seconds: dict[str, float]

    @property
    def chosen(self) -> Candidate:
        return self.candidates[0]

    @property
    def width(self) -> tuple[int, int]:
        """Channels and filter groups."""
        return self.spec.channels, self.spec.filter.groups

    @property
    def label(self) -> str:
        """What messages call it: its width too, if others share its file."""
        if len({w.width for w in self.family}) == 1:
            return self.spec.op
        return f"{self.spec.op} of {self.width[0]} channels"

    @property
    def verified(self) -> str:
        """How it was verified, as the file says it."""
        return statement(self.source.text)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for --json."""
        kernels = self.built.kernels if self.built else ()
        return {
            "op": self.spec.op,
            "channels": self.spec.channels,
            "groups": self.spec.filter.groups,
            "digest": self.spec.digest,
            "path": str(self.path),
            "target": self.target.name,
            "target_note": self.target.caveat,
            "algorithm": self.chosen.plan.algorithm,
            "plan": self.chosen.plan.name,
            "layout": self.chosen.plan.layout.value,
            "schedule": {
                role: dict(self.chosen.schedule.config(role))
                for role in roles_of(self.chosen.plan)
            },
            "origins": dict(self.chosen.origins),
            "verdicts": {
                name: {"applies": v.applies, "reasons": list(v.reasons)}
                for name, v in self.verdicts.items()
            },
            "candidates": [
                {"plan": c.plan.name, "score": c.score, "basis": c.basis} for c in self.candidates
            ],
            "not_taken": list(passed_over(self.candidates)),
            "predictions": [
                {
                    "batch": workload.batch,
                    "length": workload.length,
                    **{
                        direction: dataclasses.asdict(p) | {"share_of_bound": p.share}
                        for direction, p in found.items()
                    },
                }
                for workload, found in self.predictions
            ],
            "kernels": [
                {
                    "name": k.kernel.name,
                    "alignment": k.alignment.value,
                    "registers": k.registers,
                    "stack": k.stack,
                    "spills": k.spills,
                    "shared": k.shared,
                }
                for k in kernels
            ],
            "verification": [
                {
                    "runner": r.runner,
                    "label": r.label,
                    "dtype": r.dtype,
                    "device": r.device,
                    "ok": r.ok,
                    "checks": len(r.checks),
                    "failures": [c.to_dict() for c in r.failures],
                }
                for r in self.reports
            ],
            "verified": self.verified,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Tests:
    """What is done to a text before it is written: see `compile_operators`.

    Attributes:
        free: the config is sh2gen's to choose.
    """

    verified: bool
    built: bool
    thorough: bool
    free: bool

    @property
    def alignments(self) -> tuple[Alignment, ...]:
        """Of kernels, that are compiled."""
        every = self.thorough or torch.cuda.is_available()  # verification runs them
        return tuple(Alignment) if every else (Alignment.ALIGNED,)

    def stages(self, compilation: Compilation) -> int:
        """How many there are."""
        chosen = compilation.chosen
        building = self.built and bool(compilation.source.kernels)
        return building + self.verified * quick_count(chosen.plan, chosen.schedule)

    def seconds(self, compilation: Compilation) -> tuple[tuple[float, ...], float]:
        """About what every way of running it takes, and its build meanwhile."""
        chosen, kernels = compilation.chosen, compilation.source.kernels * self.built
        ways = stages.of_quick_checks(compilation.spec, chosen.plan, chosen.schedule)
        build = stages.of_builds(kernels * len(self.alignments), chosen.plan, os.cpu_count() or 1)
        return ways * self.verified, build


def written(
    spec: OpSpec,
    gpu: Target,
    ranked: tuple[Candidate, ...],
    family: tuple[Width, ...],
    own: OpSpec,
    path: Path,
    seconds: dict[str, float],
) -> Compilation:
    """The text of the first candidate. If it is the file's that is there, it says of itself what
    that says of how it was verified.
    """
    chosen = ranked[0]
    source = text_of(own, chosen.plan, chosen.schedule, family, gpu)
    if spec is not own:
        kernels = kernel_sources(spec, chosen.plan, chosen.schedule)
        source = dataclasses.replace(source, kernels=kernels)
    with suppress(OSError):
        before = read_text(path)
        if intact(before) and same_program(before, source.text):
            source = dataclasses.replace(source, text=stated(source.text, statement(before)))
    return Compilation(
        spec=spec,
        family=family,
        own=own,
        target=gpu,
        verdicts=verdicts(spec),
        candidates=ranked,
        predictions=tuple(
            (w, predictions(spec, chosen.plan, chosen.schedule, w, gpu)) for w in spec.workloads
        ),
        source=source,
        built=None,
        reports=(),
        path=path,
        seconds=seconds,
    )


def _stated(compilation: Compilation) -> Compilation:
    """The same, with a text that says how it is verified here, or was before if that says more.

    It is said before it is done, because the text is part of what Triton's cache knows a kernel
    by, and nothing is written if it comes to nothing.
    """
    source = compilation.source
    how = checks.stronger(checks.statement(compilation.chosen.plan), statement(source.text))
    source = dataclasses.replace(source, text=stated(source.text, how))
    return dataclasses.replace(compilation, source=source)


def tested(compilation: Compilation, how: Tests, say: Progress, done: Done) -> Compilation:
    """The same, built and verified as asked for; raises CheckFailed if anything is wrong.

    Configs that are free and whose kernels do not fit the compiler here are replaced by others
    that do, once for each direction and for decoding.

    Args:
        done: told how far it has come.
    """
    for _ in ROLES if how.free else ():
        try:
            return _once(compilation, how, say, done)
        except KernelFailed as failed:
            spec, gpu = compilation.spec, compilation.target
            first = refit(spec, compilation.chosen, gpu, failed, say)
            ranked = (first, *compilation.candidates[1:])
            now = member(spec, first, gpu)
            compilation = written(
                spec,
                gpu,
                ranked,
                tuple(now if w.key == now.key else w for w in compilation.family),
                compilation.own,
                compilation.path,
                compilation.seconds,
            )
    return _once(compilation, how, say, done)


def _once(compilation: Compilation, how: Tests, say: Progress, done: Done) -> Compilation:
    """`tested` of the config that is given."""
    ways, build = how.seconds(compilation)
    first = build * torch.cuda.is_available()  # verification runs what is built, else meanwhile

    def told(count: int, verified: float, left: float = 1.0) -> None:
        """Ways that are done, seconds of verification, and the share of the build that is left."""
        wait = max(0.0, build - sum(ways)) if left and not first else 0.0
        waited = wait * (1 - left) if count == len(ways) else 0.0
        done(count, first + verified + waited, first + sum(ways) + wait)

    told(0, -first)
    if how.verified:
        compilation = _stated(compilation)
    spec, gpu, source = compilation.spec, compilation.target, compilation.source
    seconds = dict(compilation.seconds)
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage] = round(now - clock, 3)
        clock = now

    reports: list[Report] = []
    compiled: Built | None = None
    # Compilers run in processes of their own, so that this one verifies meanwhile.
    with ExitStack() as stack:
        pending: Building | None = None
        if how.built and source.kernels:
            count = sum(k.runs(Alignment.ALIGNED, gpu.capability) for k in source.kernels)
            say(f"{compilation.label}: compiling {count} kernels for {gpu.sm}")
            building = Building(source, gpu, alignments=how.alignments)
            pending = stack.enter_context(closing(building))
            if torch.cuda.is_available():  # verification will run them: they must fit
                check_fits(pending.result(), gpu)
                told(0, 0.0)
        if how.verified:
            with one_thread(), scratch() as folder:
                draft = folder / compilation.path.name
                write_whole(draft, source.text)
                chosen = compilation.chosen
                operator = Operator(draft, width=compilation.width)
                stack.callback(forget, operator.namespace)
                for check in quick_checks(spec, chosen.plan, chosen.schedule, operator, folder):
                    say(f"{compilation.label}: verifying {check.label}")
                    before, this = sum(ways[: len(reports)]), ways[len(reports)]

                    def inner(
                        n: int, total: int, _: str, before: float = before, this: float = this
                    ) -> None:
                        told(len(reports), before + this * n / total, _left(pending))

                    report = check.run(progress=inner)
                    reports.append(dataclasses.replace(report, label=check.label))
                    reports[-1].require()
                    told(len(reports), before + this, _left(pending))
            lap("verify")
        if pending is not None:
            say(f"{compilation.label}: waiting for the compilers")
            compiled = pending.result(
                lambda n, total, _: told(len(ways), sum(ways), 1 - n / total)
            )
            check_fits(compiled, gpu)
            compilation = _labelled(compilation, compiled)
            lap("build")
    done(how.stages(compilation), first + sum(ways), first + sum(ways))
    return dataclasses.replace(
        compilation, built=compiled, reports=tuple(reports), seconds=seconds
    )


def _left(building: Building | None) -> float:
    """Which share of the kernels is not compiled yet."""
    return building.left if building is not None else 0.0


def _labelled(compilation: Compilation, built: Built) -> Compilation:
    """The same; of a tuned config whose kernels compile to other code than when they were tuned,
    the origin says so. Nothing more is compiled for that: what a call launches and this did not
    build is not compared.
    """
    chosen, spec, source = compilation.chosen, compilation.spec, compilation.source
    origins = dict(chosen.origins)
    shapes = [(w.batch, w.length) for w in spec.workloads]
    of = (spec, chosen.plan, chosen.schedule, source.kernels, shapes, built.target.capability)
    for direction, decision in chosen.decided.items():
        binaries = [
            (kernel, built.of_launch(kernel, alignment_of(kernel)))
            for kernel in of_direction(launched(*of), direction)
        ]
        missing = {kernel.name for kernel, binary in binaries if binary is None}
        now = kernel_digests(
            spec.op,
            ((k, b.ptx_digest) for k, b in binaries if b is not None and k.name not in missing),
        )
        if any(decision.kernels.get(name, digest) != digest for name, digest in now.items()):
            origins[direction] += "; kernel changed since (`sh2gen tables check`)"
    first = dataclasses.replace(chosen, origins=origins)
    return dataclasses.replace(compilation, candidates=(first, *compilation.candidates[1:]))


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: several spin while they wait for a core that a compiler has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
