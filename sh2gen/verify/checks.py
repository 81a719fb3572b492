"""What is verified of an operator, and by which ways of running it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sh2gen.base.files import UNVERIFIED, write_whole
from sh2gen.base.versions import beyond_triton
from sh2gen.emit.emit import emit
from sh2gen.emit.kernels import splits_sequences
from sh2gen.emit.ranks import WHOLE, exchange_of
from sh2gen.lower import plans
from sh2gen.plan.plan import Plan
from sh2gen.runtime.operator import InterpreterRunner, Operator, OperatorRunner
from sh2gen.schedule.config import Schedule, interpreter_schedule, schedule
from sh2gen.spec.language import Exchange, Sequences, Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.verify.case import Runner
from sh2gen.verify.miniatures import miniature
from sh2gen.verify.properties import PROPERTIES
from sh2gen.verify.report import Report
from sh2gen.verify.verify import verify


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationStep:
    """One way of running an operator, ready to be verified."""

    label: str
    spec: OpSpec
    runner: Runner
    dtype: torch.dtype
    device: str
    shapes: tuple[tuple[int, int], ...]
    properties: tuple[str, ...] | None = None  # None: all

    @property
    def stages(self) -> int:
        """How many it has, as `verify` counts them."""
        names = self.properties or tuple(PROPERTIES)
        return sum(len(self.shapes) if name == "equality" else 1 for name in names)

    def run(self, seed: int = 0, progress: Any = None) -> Report:
        return verify(
            self.spec,
            self.runner,
            dtype=self.dtype,
            shapes=self.shapes,
            device=self.device,
            seed=seed,
            properties=self.properties or "all",
            progress=progress,
        )


_ON_GPU = "on "
PLAIN_ALONE = "by plain PyTorch alone, not the kernels."
EAGER_SHAPES = ((2, 19),)  # batch, length
GPU_SHAPES = ((2, 37), (1, 1000))


def quick_checks(
    spec: OpSpec, plan: Plan, scheduled: Schedule, operator: Operator, folder: Path
) -> Iterator[VerificationStep]:
    """What `compile` verifies on this machine: output and every gradient."""
    if torch.cuda.is_available():
        dtype = getattr(torch, spec.dtype.io.value)
        yield VerificationStep(
            label=f"kernels on the GPU in {spec.dtype.io.value}",
            spec=spec,
            runner=OperatorRunner(operator, "cuda"),
            dtype=dtype,
            device="cuda",
            shapes=GPU_SHAPES,
            properties=("equality", "causality", "determinism", *_documents(spec), "decode"),
        )
        return
    yield VerificationStep(
        label="plain PyTorch",
        spec=spec,
        runner=OperatorRunner(operator, "eager"),
        dtype=torch.float32,
        device="cpu",
        shapes=EAGER_SHAPES,
        properties=("equality", *_documents(spec)),
    )
    if plan.kernels and not beyond_triton():
        # A ragged length, and one of whole vectors: they take different masks.
        shapes = ((2, 11), (1, _whole_vectors(plan, cut=splits_sequences(spec, plan, scheduled))))
        own = ("equality", *_documents(spec), "decode")
        yield _interpreted(spec, plan, folder, torch.float32, shapes, own)
        if _scalar_tiles(plan, scheduled):  # as scheduled, on a few channels
            yield _interpreted(
                spec, plan, folder, torch.float32, ((1, 11), (1, 24)), ("equality",), scheduled
            )


def _documents(spec: OpSpec) -> tuple[str, ...]:
    """The property of rows that hold documents, of operators of such rows."""
    return ("documents",) * (spec.sequences is Sequences.PACKED)


def quick_count(plan: Plan, scheduled: Schedule) -> int:
    """How many ways of running `quick_checks` tries."""
    if torch.cuda.is_available() or not plan.kernels or beyond_triton():
        return 1
    return 2 + _scalar_tiles(plan, scheduled)


def _scalar_tiles(plan: Plan, scheduled: Schedule) -> bool:
    """Whether tiles are of one channel, and so of scalars where others hold columns."""
    tiles = any(kernel.skeleton == "tile" for kernel in plan.kernels)
    return tiles and ("BLOCK_D", 1) in (*scheduled.forward, *scheduled.backward)


def statement(plan: Plan) -> str:
    """What a generated file says of how it was verified, once `quick_checks` have passed."""
    if torch.cuda.is_available():
        return f"{_ON_GPU}{torch.cuda.get_device_name()}."
    if not plan.kernels:
        return "by plain PyTorch, which is all of it, not yet run on a GPU."
    if not beyond_triton():
        return "by Triton's interpreter, not yet run on a GPU."
    return PLAIN_ALONE


def stronger(one: str, other: str) -> str:
    """Of two such statements of the same file the one that says more; the first if neither."""

    def strength(text: str) -> int:
        return 3 if text.startswith(_ON_GPU) else {UNVERIFIED: 0, PLAIN_ALONE: 1}.get(text, 2)

    return max(one, other, key=strength)


# What kernels can get wrong although outputs and gradients of whole tensors are right. All other
# properties follow from equality, within its bounds.
_OWN_OF_KERNELS = ("causality", "packed", "strides", "chunks", "decode")
# They are of how kernels read and write, for which a walk over a few blocks of taps is enough.
_FEW_TAPS = 64


def usual_checks(
    spec: OpSpec, plan: Plan, operator: Operator, folder: Path, lengths: Sequence[int]
) -> Iterator[VerificationStep]:
    """What `verify` verifies without a GPU, in half a minute: equality at full width, every
    property of a miniature with few channels, and of its kernels equality with all taps, and with
    few those properties that are their own.
    """
    yield VerificationStep(
        label="plain PyTorch in float32",
        spec=spec,
        runner=OperatorRunner(operator, "eager"),
        dtype=torch.float32,
        device="cpu",
        shapes=EAGER_SHAPES,
        properties=("equality",),
    )
    shapes = tuple((2 if i == 0 else 1, length) for i, length in enumerate(lengths))
    small, path = _miniature_file(spec, plan, folder)
    # To the last bit that depends on the shapes of products, which few channels change.
    others = tuple(name for name in PROPERTIES if name != "batch_invariance")
    for dtype, properties in ((torch.float32, others), (torch.bfloat16, ("equality",))):
        yield VerificationStep(
            label=f"plain PyTorch in {_name(dtype)}, {small.channels} channels",
            spec=small,
            runner=OperatorRunner(Operator(path), "eager"),
            dtype=dtype,
            device="cpu",
            shapes=shapes,
            properties=properties,
        )
    if plan.kernels and not beyond_triton():
        yield _interpreted(spec, plan, folder, torch.float32, shapes, ("equality",))
        own, once = (*_OWN_OF_KERNELS, *_documents(spec)), ((1, 19),)
        yield _interpreted(spec, plan, folder, torch.float32, once, own, max_taps=_FEW_TAPS)
        yield _interpreted(spec, plan, folder, torch.float16, once, ("equality",))
        if (length := _whole_vectors(plan, cut=True)) > max(lengths):
            yield _interpreted(spec, plan, folder, torch.float32, ((1, length),), ("equality",))


def thorough_checks(
    spec: OpSpec, plan: Plan, operator: Operator, folder: Path, device: str, lengths: Sequence[int]
) -> Iterator[VerificationStep]:
    """What `verify` verifies on a GPU, and where it may take minutes: every property at full width
    and of kernels, in every dtype that the device can check.
    """
    if device == "cuda":
        shapes = tuple((1 + (i % 2), length) for i, length in enumerate(lengths))
        for name in ("bfloat16", "float16", "float32"):
            yield VerificationStep(
                label=f"kernels on the GPU in {name}",
                spec=spec,
                runner=OperatorRunner(operator, "cuda"),
                dtype=getattr(torch, name),
                device="cuda",
                shapes=shapes,
            )
        return
    small = tuple((1 + 2 * (i % 2), length) for i, length in enumerate(lengths))
    for dtype in (torch.float32, torch.bfloat16):
        yield VerificationStep(
            label=f"plain PyTorch in {_name(dtype)}",
            spec=spec,
            runner=OperatorRunner(operator, "eager"),
            dtype=dtype,
            device="cpu",
            shapes=small[:4],
        )
    if plan.kernels and not beyond_triton():
        yield _interpreted(spec, plan, folder, torch.float32, small, None)
        yield _interpreted(spec, plan, folder, torch.float16, small[:2], ("equality",))
        if (length := _whole_vectors(plan, cut=True)) > max(lengths):
            shapes = ((1, length),)
            yield _interpreted(spec, plan, folder, torch.float32, shapes, ("equality",))


def ranks_check(spec: OpSpec, plan: Plan, folder: Path, ranks: int) -> VerificationStep:
    """Sequences over so many simulated ranks, by plain PyTorch of a miniature: of fewer steps than
    the past that a chunk needs, of no whole chunks but where there have to be, and of whole ones.

    Raises:
        Sh2genError: S006 where the operator's exchange is not for so many ranks.
    """
    assert spec.context is not None
    past = (spec.filter.length or 1) + spec.lag
    lengths = (ranks, 2 * ranks * past + 1, 4 * ranks * past)
    context = dataclasses.replace(spec.context, ranks=ranks)
    workloads = spec.workloads
    if context.exchange is Exchange.P2P_FFT:  # whole chunks
        lengths = (2 * ranks, 2 * ranks * (past + 1), 4 * ranks * past)
        workloads = tuple(Workload(batch=1, length=length) for length in lengths)
    spec = dataclasses.replace(spec, context=context, workloads=workloads)
    exchange = exchange_of(spec, plan)
    groups = context.segments * ranks if exchange in WHOLE else 2
    if exchange in WHOLE:  # of a miniature too
        spec = dataclasses.replace(spec, context=dataclasses.replace(context, exchange=exchange))
    small, path = _miniature_file(spec, plan, folder, groups=groups)
    return VerificationStep(
        label=f"plain PyTorch over {ranks} ranks, {small.channels} channels",
        spec=small,
        runner=OperatorRunner(Operator(path), "eager", ranks),
        dtype=torch.float32,
        device="cpu",
        shapes=tuple((2, length) for length in lengths),
        properties=("ranks",),
    )


def _whole_vectors(plan: Plan, *, cut: bool) -> int:
    """A length of whole vectors. If a state is carried from tile to tile, of several tiles; or of
    so many that they are cut into splits.
    """
    if any(kernel.skeleton == "recurrence" for kernel in plan.kernels):
        return 1800 if cut else 520
    return 24


def _interpreted(
    spec: OpSpec,
    plan: Plan,
    folder: Path,
    dtype: torch.dtype,
    shapes: tuple[tuple[int, int], ...],
    properties: tuple[str, ...] | None,
    scheduled: Schedule | None = None,
    max_taps: int | None = None,
) -> VerificationStep:
    """The same plan for a miniature, its kernels under Triton's interpreter."""
    small, path = _miniature_file(spec, plan, folder, scheduled, max_taps)
    return VerificationStep(
        label=f"kernels under the interpreter in {_name(dtype)}, {small.channels} channels"
        + (f", {small.filter.length} taps" if small.filter.length != spec.filter.length else "")
        + (", config as scheduled" if scheduled else ""),
        spec=small,
        runner=InterpreterRunner(path),
        dtype=dtype,
        device="cpu",
        shapes=shapes,
        properties=properties,
    )


def _miniature_file(
    spec: OpSpec,
    plan: Plan,
    folder: Path,
    scheduled: Schedule | None = None,
    max_taps: int | None = None,
    groups: int = 2,
) -> tuple[OpSpec, Path]:
    """A miniature with few channels, and perhaps taps, and its file: with the schedule given on at
    most two channels, else with one that suits the interpreter.
    """
    few = 2 if scheduled else 128
    small = miniature(spec, max_channels=few, max_taps=max_taps, max_groups=groups)
    (same,) = (p for p in plans(small, plan.algorithm) if p.name == plan.name)
    # The interpreter reads a file again when a kernel of it first runs: other taps, another file.
    path = folder / f"{spec.op}_miniature_{small.filter.length or 0}.py"
    if scheduled is None:
        scheduled = interpreter_schedule(small, same) if plan.kernels else schedule(small, same)
    write_whole(path, emit(small, same, scheduled).text)
    return small, path


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def example_lengths(
    spec: OpSpec, examples: int | None, device: str, thorough: bool = False
) -> tuple[int, ...]:
    """The lengths at which operators break: 1, 2, around the taps and around blocks, primes, then
    longer. By default six where that is fast or asked for, else three, or two of many taps.
    """
    taps = spec.filter.length or 1
    first = [37, 1, 2, taps - 1, taps, taps + 1, 15, 16, 17, 31, 33, 67, 101]
    more = [1000, 8191, 8192, 127, 4099, 16384, 131072] if device == "cuda" else [64, 65, 97, 127]
    if device == "cpu" and not thorough:
        first = [37, taps + 1, *first]
    lengths = [length for length in dict.fromkeys(first + more) if length >= 1]
    few = 3 if taps <= 256 else 2
    return tuple(lengths[: examples or (6 if thorough or device == "cuda" else few)])
