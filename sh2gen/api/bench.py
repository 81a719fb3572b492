"""An operator verified and timed on this GPU, beside others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import torch

from sh2gen.api.compilation import (
    Progress,
)
from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import (
    scratch,
    write_whole,
)
from sh2gen.base.versions import has_triton, no_triton, untested
from sh2gen.bench.baselines import chosen
from sh2gen.emit.emit import emit
from sh2gen.spec.decode import load_spec
from sh2gen.spec.operator import OpSpec
from sh2gen.tuning.choose import (
    Changes,
    candidates,
    passed_over,
    resized,
)
from sh2gen.tuning.tables import in_order

if TYPE_CHECKING:  # it needs Triton, which this module does without
    from sh2gen.bench.results import Results
from sh2gen.api.inputs import known_configs, resolve_target


def bench_operator(
    op: OpSpec | str | PathLike[str],
    *,
    lengths: Sequence[int] = (),
    batch: int | None = None,
    plan: str | None = None,
    changes: Changes | None = None,
    baselines: str | None = None,
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
        baselines: names of baselines with commas between them, by default all.
        tables: as for compile_operators.
        progress, warn: told what is measured next, and of lines of tables that cannot be read.

    After a KeyboardInterrupt, once timing has begun, the results are what was measured so far.

    Raises:
        Sh2genError: V003 without a CUDA device, B004 without Triton, C006 for an unknown baseline
            or without such a folder of tables; CheckFailed if a kernel is wrong. Then nothing is
            timed.
    """
    spec = op if isinstance(op, OpSpec) else load_spec(op)
    others = chosen(baselines)
    gpu = resolve_target(None)
    spec = resized(spec, lengths, batch)
    spec = dataclasses.replace(spec, workloads=in_order(spec.workloads))
    known = known_configs(tables)
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
    from sh2gen.bench.run import run

    with scratch() as folder:
        path = folder / f"{spec.op}.py"
        write_whole(path, emit(spec, best.plan, best.schedule).text)
        return run(
            path,
            best.plan,
            best.schedule,
            gpu,
            baselines=others,
            workloads=spec.workloads,
            origins=best.origins,
            not_taken=passed_over(ranked),
            progress=progress,
        )
