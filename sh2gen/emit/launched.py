"""Which binaries a call of a size launches: of which kernels, with which constants.

Decided from sizes alone, as the launchers of a generated file decide it
(templates/parts/launch.py): for training on whole sequences, on tensors that lie in memory as the
operator's own outputs do.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sh2gen.cost.cost import stride_step, variant_of_call
from sh2gen.emit.kernels import StepCall, step_sources
from sh2gen.plan.kernel import Kernel, Role
from sh2gen.plan.plan import Plan
from sh2gen.plan.source import Alignment, KernelSource
from sh2gen.schedule.config import Schedule, launch_config
from sh2gen.spec.operator import OpSpec

Shape = tuple[int, int]  # (B, L)

# Two sequences, of several tiles of most schedules.
SHORT: Shape = (2, 1032)


def launched(
    spec: OpSpec,
    plan: Plan,
    schedule: Schedule,
    kernels: Sequence[KernelSource],
    shapes: Sequence[Shape],
    capability: int,
) -> tuple[KernelSource, ...]:
    """Distinct kernels, with the constants that forward and backward launch them with.

    Args:
        kernels: of the generated file.
        shapes: (B, L) of calls.
        capability: of the GPU, 90 for sm_90.

    Returns:
        in the order of `kernels`; those that none of the calls launches are missing.
    """
    return tuple(
        dict.fromkeys(
            one
            for kernel in kernels
            for _, length in shapes
            for one in _launches(spec, plan, schedule, kernel, length, capability)
        )
    )


def short_shape(
    spec: OpSpec,
    plan: Plan,
    schedule: Schedule,
    kernels: Sequence[KernelSource],
    workloads: Sequence[Shape],
    capability: int,
) -> Shape:
    """The shortest of some sizes that launches all that the largest workload launches, so that
    what is cut into splits there is cut here too; `SHORT` if no shorter one than it does.
    """
    _, longest = max(workloads, key=lambda shape: shape[0] * shape[1])
    wanted = set(launched(spec, plan, schedule, kernels, [(1, longest)], capability))
    batch, least = SHORT
    steps = least
    while steps <= max(least, longest):
        length = steps + longest % 8
        if wanted <= set(launched(spec, plan, schedule, kernels, [(batch, length)], capability)):
            return batch, length
        steps += max(8, steps // 64 * 8)
    return batch, least + longest % 8


def launched_by(
    spec: OpSpec,
    plan: Plan,
    schedule: Schedule,
    kernels: Sequence[KernelSource],
    shapes: Sequence[Shape],
    capability: int,
    direction: str,
) -> tuple[KernelSource, ...]:
    """What calls of a direction launch, as of `launched`; of decoding, calls of one step of slots
    of a pool.
    """
    if direction == Role.DECODE:
        calls = [StepCall(batch=batch, slotted=True) for batch, _ in shapes]
        return step_sources(spec, plan, schedule, calls)
    every = launched(spec, plan, schedule, kernels, shapes, capability)
    return of_direction(every, direction)


def of_direction(kernels: Iterable[KernelSource], direction: str) -> tuple[KernelSource, ...]:
    """Those that a call of a direction launches; the sums of partial sums are of backward."""
    return tuple(kernel for kernel in kernels if kernel.role == direction)


def kernel_digests(op: str, binaries: Iterable[tuple[KernelSource, str]]) -> dict[str, str]:
    """By the name of a kernel, without its operator's, a digest of all binaries of that name.

    Args:
        binaries: each with `build.worker.ptx_digest` of it.
    """
    found: dict[str, set[str]] = {}
    for kernel, digest in binaries:
        found.setdefault(kernel.name.removeprefix(f"{op}_"), set()).add(digest)
    return {
        name: hashlib.sha256(" ".join(sorted(digests)).encode()).hexdigest()[:16]
        for name, digests in sorted(found.items())
    }


def alignment_of(kernel: KernelSource) -> Alignment:
    """Whether its accesses are whole vectors of 16 bytes."""
    constants = dict(kernel.constants)
    whole = constants.get("EVEN", True) and constants.get("STRIDE_UNIT", 8) == 8
    return Alignment.ALIGNED if whole else Alignment.UNALIGNED


def _launches(
    spec: OpSpec,
    plan: Plan,
    schedule: Schedule,
    kernel: KernelSource,
    length: int,
    capability: int,
) -> Iterator[KernelSource]:
    """A kernel with the constants of its launches for sequences of so many steps."""
    constants: dict[str, int | bool] = {}
    names = {name for name, _ in kernel.constants}
    split = {one.role: _splits(spec, one, schedule, length) > 1 for one in plan.kernels}
    if kernel.role is Role.DECODE:  # calls are of whole sequences here
        return
    if not _is_launched(spec, plan, schedule, kernel, length, capability, split):
        return
    if "EVEN" in names:
        constants |= {"EVEN": length % 8 == 0, "STRIDE_UNIT": stride_step(spec, plan)}
    if "SPLIT" in names:
        constants["SPLIT"] = split[kernel.role]
    for role in range(len(spec.inputs)) if "ROLE" in names else (None,):
        own = constants if role is None else constants | {"ROLE": role}
        yield dataclasses.replace(kernel, constants=tuple((dict(kernel.constants) | own).items()))


def _is_launched(
    spec: OpSpec,
    plan: Plan,
    schedule: Schedule,
    source: KernelSource,
    length: int,
    capability: int,
    split: Mapping[Role, bool],
) -> bool:
    """Whether a call launches a kernel, or a variant of it instead."""
    name = source.name.removeprefix(f"{spec.op}_")
    if source.name == "join_splits" or name in {one.name for one in plan.split_kernels}:
        return split[source.role]
    for kernel in plan.kernels:
        texts = {kernel.name: None} | {f"{kernel.name}_{v.name}": v for v in kernel.variants}
        if name in texts:
            config = launch_config(spec, schedule, kernel.role)
            runs = variant_of_call(spec, plan, kernel, config, length, capability)
            return texts[name] is runs
    return True


def _splits(spec: OpSpec, kernel: Kernel, schedule: Schedule, length: int) -> int:
    """Into how many parts a launcher splits a sequence of which the later need the earlier."""
    if "PROGRAMS" not in (config := launch_config(spec, schedule, kernel.role)):
        return 1
    return kernel.grid(1, length, spec.channels, spec.group_width, config).splits
