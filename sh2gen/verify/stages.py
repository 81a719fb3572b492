"""About how long the stages of `compile` and `verify` take, by which bars weigh them.

Seconds as they were seen on a machine of two cores.
"""

from __future__ import annotations

from collections.abc import Iterable

from sh2gen.plan.kernel import Role
from sh2gen.plan.plan import Plan
from sh2gen.plan.source import KernelSource
from sh2gen.schedule.config import Schedule
from sh2gen.spec.language import Sequences
from sh2gen.spec.operator import OpSpec
from sh2gen.verify.checks import EAGER_SHAPES, VerificationStep, quick_count
from sh2gen.verify.miniatures import miniature
from sh2gen.verify.properties import PROPERTIES

# Of what the equality of output and gradients takes at the same size; all others half of it.
_OF_EQUALITY = {
    "equality": 1.0,
    "causality": 2.4,
    "strides": 3.1,
    "packed": 0.4,
    "determinism": 1.0,
}
_TILE = {"tile": 32, "stream": 64, "recurrence": 256}  # steps, under the interpreter
_FORWARD = {"tile": 1.5, "stream": 2.5, "recurrence": 2.5}  # to compile; backward takes twice that
_DECODE = 0.15
_LONG = 45.0  # what is told of beforehand
_BEGIN = 2.0  # what libraries take for their first calls, while compilers start


def of_step(step: VerificationStep, plan: Plan) -> tuple[float, ...]:
    """Of every stage of a way of running an operator, in the order of `verify`."""
    others = (max(step.shapes, key=lambda shape: shape[0] * shape[1]),)
    found = []
    for name in step.properties or tuple(PROPERTIES):
        if name == "decode":  # of a few steps, whatever the length
            found.append(_DECODE if step.runner.name == "interpreter" else _DECODE / 5)
            continue
        share = _OF_EQUALITY.get(name, 0.5)
        if name == "chunks":
            share = 3.0 * (step.spec.state is not None)
        if name == "documents":
            share = 3.0 * (step.spec.sequences is Sequences.PACKED)
        if name == "slices":
            share = 1.5 * (step.spec.filter.decay is not None)
        for shape in step.shapes if name == "equality" else others:
            found.append(share * _equality(step.spec, plan, step.runner.name, shape))
    return tuple(found)


def of_quick_checks(spec: OpSpec, plan: Plan, schedule: Schedule) -> tuple[float, ...]:
    """Of every way of running an operator that `checks.quick_checks` tries."""
    steps = 1800 if _skeleton(plan) == "recurrence" else 24
    first = _BEGIN + sum(_equality(spec, plan, "eager", shape) for shape in EAGER_SHAPES)
    small, shapes = miniature(spec), ((2, 11), (1, steps))
    second = sum(_equality(small, plan, "interpreter", shape) for shape in shapes)
    if spec.sequences is Sequences.PACKED:
        second *= 2.5
    return (first, second + _DECODE, second / 2)[: quick_count(plan, schedule)]


def of_builds(kernels: Iterable[KernelSource], plan: Plan, workers: int) -> float:
    """Until all of these are compiled, as many at a time as there are processes."""
    forward = _FORWARD.get(_skeleton(plan), 1.0)
    each = {Role.FORWARD: forward, Role.BACKWARD: 2 * forward, Role.DECODE: 1.0}
    found = [0.5 if kernel.reduces else each[kernel.role] for kernel in kernels]
    return max(max(found, default=0.0), sum(found) / workers)


def long_ones(spec: OpSpec, seconds: float) -> tuple[str, ...]:
    """What to tell beforehand of a verification that takes so long by prediction: the interpreter
    computes one block after the other, and plain PyTorch by FFT one mode.
    """
    if seconds < _LONG:
        return ()
    return (f"verifying {spec.op} takes about {max(1, round(seconds / 60))} min here",)


def _skeleton(plan: Plan) -> str:
    return plan.kernels[0].skeleton if plan.kernels else ""


def _equality(spec: OpSpec, plan: Plan, runner: str, shape: tuple[int, int]) -> float:
    batch, length = shape
    if runner == "eager":
        modes = 0 if plan.states else 5e-5 * spec.filter.state_size  # one after the other
        return 0.01 + modes + (8e-6 if plan.states else 4e-6) * batch * length * spec.channels
    skeleton = _skeleton(plan)
    if runner == "cuda":
        return 0.5
    inputs, taps = len(spec.inputs), spec.filter.length or 1
    steps = _TILE.get(skeleton, 64) * (4 if skeleton == "stream" and taps > 256 else 1)
    program = {
        "tile": 0.13 * inputs,
        "stream": (0.4 + 0.0025 * taps) * inputs,
        "recurrence": max(1.0, spec.channels / 32),
    }.get(skeleton, 1.0)
    return program * batch * (1 + length / steps)
