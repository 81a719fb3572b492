"""Which binaries a call of a size launches: of which kernels, with which constants.

Decided from sizes alone, as the launchers of a generated file decide it
(templates/parts/launch.py): for training on whole sequences, on tensors that lie in memory as the
operator's own outputs do.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence

from sh2gen.cost.cost import spans_of, stride_step, suits_sm90
from sh2gen.emit.kernels import cuts
from sh2gen.plan.plan import Plan
from sh2gen.plan.source import KernelSource, Role, Alignment
from sh2gen.schedule.config import DIRECTIONS, Schedule
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
    what is cut into spans there is cut here too; `SHORT` if no shorter one than it does.
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


def of_direction(kernels: Iterable[KernelSource], direction: str) -> tuple[KernelSource, ...]:
    """Those that a call of a direction launches; the sums of partial sums are of backward."""
    roles = (Role.FORWARD,) if direction == "forward" else (Role.BACKWARD, Role.REDUCE)
    return tuple(kernel for kernel in kernels if kernel.role in roles)


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
    whole = constants.get("EVEN", True) and constants.get("STEP", 8) == 8
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
    cut = {d: _is_cut(spec, plan, schedule, d, length) for d in DIRECTIONS}
    sums = {f"{spec.op}_{one.name}": one.direction for one in plan.sums}
    by_twin = suits_sm90(spec, plan, schedule, length, capability)
    constants: dict[str, int | bool] = {}
    names = {name for name, _ in kernel.constants}
    if kernel.gluon:
        wanted = by_twin
    elif kernel.name in sums:
        wanted = cut[sums[kernel.name]]
    elif kernel.name == "join_spans":
        wanted = cut["backward"]
    else:
        wanted = not (by_twin and kernel.name == f"{spec.op}_backward")
    if not wanted:
        return
    if "EVEN" in names:
        constants |= {"EVEN": length % 8 == 0, "STEP": stride_step(spec, plan)}
    if "SPLIT" in names:
        constants["SPLIT"] = cut["backward" if kernel.role == Role.BACKWARD else "forward"]
    for role in range(len(spec.inputs)) if "ROLE" in names else (None,):
        own = constants if role is None else constants | {"ROLE": role}
        yield dataclasses.replace(kernel, constants=tuple((dict(kernel.constants) | own).items()))


def _is_cut(spec: OpSpec, plan: Plan, schedule: Schedule, direction: str, length: int) -> bool:
    """Whether a launcher cuts a sequence into spans, as `walk_programs`."""
    if not plan.sums or not cuts(spec, schedule):
        return False
    return spans_of(spec, dict(schedule.numbers(direction)), length)[0] > 1
