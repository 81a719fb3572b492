"""Compile the kernels of a generated file ahead of time, for a named GPU that need not be here."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from sh2gen.base.errors import CheckFailed
from sh2gen.base.process import Worker
from sh2gen.base.versions import has_triton, no_triton
from sh2gen.build.load_module import module_name
from sh2gen.plan.kernel import Role
from sh2gen.plan.source import Alignment, KernelSource, Source
from sh2gen.targets.target import Target

# Called with the number of kernels compiled, the number in all, and the one just compiled.
Progress = Callable[[int, int, str], None]
_JUDGED = Alignment.ALIGNED  # which binaries must not spill


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltKernel:
    """One binary: a kernel in one alignment."""

    kernel: KernelSource
    alignment: Alignment
    registers: int  # per thread
    stack: int  # bytes per thread
    # Instructions that load from or store to the stack, in loops if it has any, and all of them
    # there; 0 without a stack, None where they are not judged: at odd strides and lengths.
    spills: int | None
    instructions: int | None
    shared: int  # bytes per block
    code: str  # digest of its instructions: equal ones run the same, however they were asked for
    seconds: float  # to compile; close to 0 when Triton's cache had it
    triton: str  # version of the compiler
    ptx: str
    ptx_digest: str  # of `worker.normalised_ptx`
    cubin: bytes

    @property
    def label(self) -> str:
        """The kernel and the alignment, as messages name them."""
        return _label(self.kernel, self.alignment)


class KernelFailed(CheckFailed):
    """A kernel for which there is no binary, or one that does not fit.

    Attributes:
        reason: what is wrong with it, a clause.
        role: which part of the operator it computes; None if it is the machine that failed.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        reason: str = "",
        role: Role | None = None,
        help: str | None = None,
    ) -> None:
        super().__init__(code, message, help=help)
        self.reason, self.role = reason, role


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """All binaries of one source for one target."""

    source: str  # digest of the source
    target: Target
    kernels: tuple[BuiltKernel, ...]  # ordered as in the source, then as the alignments asked for

    def kernel(self, name: str, alignment: Alignment = Alignment.ALIGNED) -> BuiltKernel:
        """The binary of the kernel `name` in `alignment`; KeyError when it was not built."""
        for built in self.kernels:
            if built.kernel.name == name and built.alignment == alignment:
                return built
        raise KeyError((name, alignment))

    def of_launch(self, kernel: KernelSource, alignment: Alignment) -> BuiltKernel | None:
        """The binary that a launch of `kernel` with its constants runs, if it was built."""
        for built in self.kernels:
            known = built.kernel.name, built.alignment, built.kernel.constants_in(built.alignment)
            if known == (kernel.name, alignment, dict(kernel.constants)):
                return built
        return None


def build(
    source: Source,
    target: Target,
    *,
    alignments: Sequence[Alignment | str] = tuple(Alignment),
    compilers: Compilers | None = None,
    workers: int | None = None,
    time_limit: float = 60.0,
    progress: Progress | None = None,
) -> Built:
    """Compile every kernel of `source` in every alignment, and wait for them: see `Building`."""
    building = Building(
        source,
        target,
        alignments=alignments,
        compilers=compilers,
        workers=workers,
        time_limit=time_limit,
    )
    with contextlib.closing(building):
        return building.result(progress)


class Building:
    """Kernels that are being compiled, in processes of their own; needs Triton but no GPU.

    Equal binaries are compiled once, and what Triton's own cache holds is not compiled again. Does
    not judge whether the result fits: `check_fits` does. `close` ends compilers at once, whatever
    they are at; those that were given only begin nothing more of this.

    Args:
        compilers: what compiles, with its own limit of time; by default compilers that end with
            this.
        workers: processes that compile at the same time, by default one per core.
        time_limit: seconds that a kernel may take.

    Raises:
        Sh2genError: B004 without Triton.
    """

    def __init__(
        self,
        source: Source,
        target: Target,
        *,
        alignments: Sequence[Alignment | str] = tuple(Alignment),
        compilers: Compilers | None = None,
        workers: int | None = None,
        time_limit: float = 60.0,
    ) -> None:
        if not has_triton():
            raise no_triton("kernels cannot be compiled")
        self._source, self._target = source, target
        wanted = [
            (kernel, Alignment(alignment))
            for kernel in source.kernels
            for alignment in alignments
            if kernel.runs(Alignment(alignment), target.capability)
        ]
        self._jobs = {pair: kernel_job(source, target, *pair) for pair in wanted}
        self._first: dict[str, tuple[KernelSource, Alignment]] = {}  # that asks for a job
        for pair, job in self._jobs.items():
            self._first.setdefault(job, pair)
        backward = {job for (k, _), job in self._jobs.items() if k.role == Role.BACKWARD}
        # Backward kernels take longest: started last, one would run on alone.
        order = sorted(self._first, key=lambda job: job not in backward)
        count = max(1, min(len(order), workers or os.cpu_count() or 1))
        self._owned = compilers is None
        self._compilers = compilers or Compilers(count, time_limit)
        self._pending = {job: self._compilers.submit(job) for job in order}

    @property
    def left(self) -> float:
        """Which share of the jobs is not done yet."""
        done = [future.done() for future in self._pending.values()]
        return done.count(False) / max(1, len(done))

    def result(self, progress: Progress | None = None, *, role: Role | None = None) -> Built:
        """All binaries, or those of a role, once they are there.

        Raises:
            KernelFailed: B001 for the first kernel that does not compile, or not in time.
        """
        answers: dict[str, dict[str, Any]] = {}
        wanted = {p: job for p, job in self._jobs.items() if role is None or p[0].role is role}
        # In the order of the jobs, so that the first error is the same every time.
        for job, future in self._pending.items():
            kernel, alignment = self._first[job]
            if job not in wanted.values():
                continue
            label = _label(kernel, alignment)
            answers[job] = answer = future.result()
            if problem := failure(answer, label, self._target, self._compilers.time_limit):
                advice = answer.get("help")
                if "gave_up" in answer:
                    advice = (
                        "make its blocks smaller with --set (`sh2gen explain` lists the knobs), "
                        "or leave the build out: --no-build"
                    )
                raise KernelFailed(
                    "B001",
                    problem,
                    reason="it compiles too slowly"
                    if "gave_up" in answer
                    else "it does not compile",
                    role=None if "help" in answer or kernel.reduces else kernel.role,
                    help=advice,
                )
            if progress is not None:
                progress(len(answers), len(self._pending), label)
        return Built(
            source=self._source.digest,
            target=self._target,
            kernels=tuple(built_kernel(*pair, answers[job]) for pair, job in wanted.items()),
        )

    def close(self) -> None:
        """End the compilers, or have them begin nothing more of this."""
        if self._owned:
            self._compilers.close()
        for future in self._pending.values():
            future.cancel()


def failure(answer: dict[str, Any], label: str, target: Target, time_limit: float) -> str | None:
    """Why there is no binary, or None if the answer holds one."""
    if "gave_up" in answer:
        return (
            f"kernel {label} was still compiling for {target.sm} after {time_limit:g} s, "
            "the time limit"
        )
    problem = answer.get("error") or answer.get("died")
    if "help" in answer:
        return f"kernel {label} could not be compiled on this machine\n{problem}"
    if problem:
        return f"kernel {label} does not compile for {target.sm}\n{problem}"
    return None


def check_fits(built: Built, target: Target) -> None:
    """Raise B002 unless every kernel can run on `target`, without spilling registers if aligned.

    Calls at odd strides and lengths may spill: they are rare, right, and slow in any case. So may
    one instruction of twenty: fewer registers let more programs run at once, which can gain more
    than some values cost that are written to the stack and read back (docs/decisions/007).
    The message names the kernel and alignment, the resource, its limit and what to change, for the
    first that fails.
    """
    for kernel in built.kernels:
        if problem := misfit(kernel, target):
            message, advice = problem
            raise KernelFailed(
                "B002",
                f"kernel {kernel.label} does not fit {target.name}: {message}",
                reason=message,
                role=None if kernel.kernel.reduces else kernel.kernel.role,
                help=advice,
            )


def misfit(kernel: BuiltKernel, target: Target) -> tuple[str, str] | None:
    """What of `target` the kernel exceeds and what to change, or None when it fits."""
    smaller = "BLOCK_D, BLOCK_T or ROWS"
    threads = target.warp_size * kernel.kernel.num_warps
    if kernel.shared > target.shared_per_block:
        return (
            f"it needs {kernel.shared:,} bytes of shared memory per block, "
            f"the limit is {target.shared_per_block:,}",
            f"make {smaller} smaller, or lower num_stages (now {kernel.kernel.num_stages})",
        )
    if kernel.spills and kernel.instructions and kernel.spills * 20 > kernel.instructions:
        limit = min(target.registers_per_thread, target.registers_per_sm // threads)
        if kernel.kernel.maxnreg is not None and kernel.kernel.maxnreg < limit:
            limit = kernel.kernel.maxnreg
            or_else = f", or raise maxnreg (now {limit})"
        elif limit == target.registers_per_thread:
            or_else = f", or raise num_warps (now {kernel.kernel.num_warps})"
        else:  # more threads would leave each with fewer registers
            or_else = ""
        return (
            f"it spills registers to memory: {kernel.spills} instructions, {kernel.stack} bytes "
            f"per thread; the limit is {limit} registers per thread",
            f"make {smaller} smaller{or_else}",
        )
    if threads > target.threads_per_block or threads * kernel.registers > target.registers_per_sm:
        return (
            f"a block needs {threads} threads of {kernel.registers} registers, the limits are "
            f"{target.threads_per_block} threads and {target.registers_per_sm:,} registers in all",
            f"lower num_warps (now {kernel.kernel.num_warps})",
        )
    return None


def _label(kernel: KernelSource, alignment: Alignment) -> str:
    return f"{kernel.name} ({alignment})"


def kernel_job(source: Source, target: Target, kernel: KernelSource, alignment: Alignment) -> str:
    """The job for a worker as one line; equal lines mean equal binaries.

    The module is named as when the file is imported: then a launch finds in Triton's cache what
    was compiled here.
    """
    options = {
        "num_warps": kernel.num_warps,
        "num_stages": kernel.num_stages,
        "enable_fp_fusion": True,
    }
    if kernel.maxnreg is not None:
        options["maxnreg"] = kernel.maxnreg
    traits = [(kernel.constants_in(a), kernel.divisible_in(a)) for a in (alignment, _JUDGED)]
    return json.dumps(
        {
            "file": f"{source.op}.py",
            "module": module_name(source.op, source.text),
            "text": source.text,
            "name": kernel.name,
            "gluon": kernel.gluon,
            "signature": dict(kernel.signature),
            "constants": kernel.constants_in(alignment),
            "divisible": sorted(kernel.divisible_in(alignment)),
            "options": options,
            "backend": target.backend,
            "capability": target.capability,
            "warp_size": target.warp_size,
            "judged": traits[0] == traits[1],
        }
    )


def built_kernel(
    kernel: KernelSource, alignment: Alignment, answer: dict[str, Any]
) -> BuiltKernel:
    """The binary that an answer holds."""
    return BuiltKernel(
        kernel=kernel,
        alignment=alignment,
        **{**answer, "cubin": base64.b64decode(answer["cubin"])},
    )


class Compilers:
    """Processes that compile kernels: jobs wait in line, the first in is the first out.

    A job is a line that `kernel_job` made, an answer what worker.py says, with `gave_up` if
    it took more than `time_limit` seconds. Processes start with their first jobs and die with
    `close`, whatever they are at.

    Attributes:
        workers: how many processes there are.
        time_limit: seconds that a job may take.
    """

    def __init__(self, workers: int, time_limit: float) -> None:
        self.workers = workers
        self.time_limit = time_limit
        # -P: this package's folder must not be on sys.path, a module there could hide another's.
        command = (sys.executable, "-P", str(Path(__file__).with_name("worker.py")))
        self._pool = [Worker(command, "the compiler") for _ in range(workers)]
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._pool:
            self._idle.put(worker)
        self._executor = ThreadPoolExecutor(workers)

    def submit(self, job: str) -> Future[dict[str, Any]]:
        return self._executor.submit(self._run, job)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        for worker in self._pool:
            worker.end()
        self._executor.shutdown()
        for worker in self._pool:
            worker.close()

    def _run(self, job: str) -> dict[str, Any]:
        worker = self._idle.get()
        try:
            return worker.run(job, self.time_limit)
        finally:
            self._idle.put(worker)
