"""What a plan costs before anything runs: bytes, arithmetic and a predicted time.

A fold over the tile program gives, per token and channel, how much memory traffic a kernel cannot
avoid and how many instructions a thread issues; both are sympy expressions in the plan's symbols,
so `explain` can print them. The prediction puts them beside a target's rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache, reduce

from sh2gen.cost.eager import eager_work
from sh2gen.cost.programs import (
    AtWork,
    Running,
    issued_rate,
    kind_of,
    product_rate,
    recurrence_seconds,
    running,
    stream_seconds,
    tile_seconds,
    variant_seconds,
)
from sh2gen.cost.work import BLOCK_T, BYTES, ROWS, Work, work
from sh2gen.plan.actions import Eager, Launch, Reduce, When
from sh2gen.plan.kernel import Kernel, Role, Variant
from sh2gen.plan.plan import Plan
from sh2gen.plan.values import Layout
from sh2gen.schedule.config import DIRECTIONS, Schedule, launch_config
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Predicted seconds of one direction of a plan at one workload, and the bounds behind it.

    Attributes:
        seconds: predicted time, launches included.
        memory: seconds that the traffic alone takes at the elementwise rate.
        tensor: seconds that matrix products alone take at the rate of large ones.
        issue: seconds that the instructions alone take, products included; 0 for streams, where
            they are part of what a tile takes.
        waves: seconds that programs take one wave after another, each of as many as run at once;
            of recurrences and of the variant for sm_90, what programs wait on top of traffic and
            instructions.
        fixed: seconds of launches, and of programs that begin and end, whatever the size.
        bound: seconds of an elementwise kernel that reads and writes what the operator must.
        splits: of a sequence, each by a program of its own, if it is cut.
        running: what runs at once on a multiprocessor; None without kernels.
    """

    seconds: float
    memory: float
    tensor: float
    issue: float
    waves: float = 0.0
    fixed: float
    bound: float
    splits: int = 1
    running: Running | None = None

    @property
    def share(self) -> float:
        """Of the bound: 1 is as fast as reading the inputs and writing the output can be."""
        return self.bound / self.seconds


def variant_of_call(
    spec: OpSpec, plan: Plan, kernel: Kernel, config: dict[str, int], length: int, capability: int
) -> Variant | None:
    """The variant of a kernel that runs in its place on a GPU, for whole sequences of so many
    steps that lie in memory as the operator's own outputs do: as launchers decide it.
    """
    bounds = (0, length, length)
    for variant in kernel.variants:
        own = variant.config(config)
        if (
            own
            and capability == variant.capability
            and spec.dtype.io is variant.io
            and stride_step(spec, plan) == 8
            and variant.sizes(length, length, bounds, own)
        ):
            return variant
    return None


def config_on(
    target: Target, spec: OpSpec, plan: Plan, kernel: Kernel, schedule: Schedule, length: int
) -> dict[str, int]:
    """The config of a kernel, or of the variant that runs on this target at this length."""
    config = launch_config(spec, schedule, kernel.role)
    variant = variant_of_call(spec, plan, kernel, config, length, target.capability)
    return variant.config(config) if variant else config


def moved(spec: OpSpec, direction: str) -> tuple[int, int]:
    """How many activations the elementwise bound reads and writes: forward every input and y;
    backward dy and every input, and every input's gradient.
    """
    n = len(spec.inputs)
    return (n, 1) if direction == "forward" else (n + 1, n)


def bound_bytes(spec: OpSpec, direction: str) -> int:
    """Bytes per token and channel of the elementwise bound."""
    return sum(moved(spec, direction)) * BYTES[spec.dtype.io]


def predict(
    spec: OpSpec,
    plan: Plan,
    schedule: Schedule,
    direction: str,
    workload: Workload,
    target: Target,
) -> Prediction:
    """Predicted time of one direction on a target that runs nothing else."""
    elements = workload.batch * workload.length * spec.channels
    once, launch = target.constants.once, target.constants.launch
    bound = elements * bound_bytes(spec, direction) / target.elementwise_bandwidth + once
    found: list[Prediction] = []
    launches, splitting = 0, 0
    for action in plan.actions[Role(direction)]:
        match action:
            case Launch(kernel=kernel, when=When.ALWAYS):
                at = at_work(spec, plan, kernel, schedule, workload, target)
                found.append(_kernel_alone(at, bound, once))
                launches += 1
            case Launch():
                splitting += 1
            case Reduce():  # of all parameters at once
                launches += 1
            case Eager(graph=graph):
                moved, count = eager_work(graph, plan, workload, spec, target.constants.eager)
                memory = moved / target.elementwise_bandwidth
                found.append(_eager_alone(memory, bound))
                launches += count
            case _:
                pass  # tensors; and edges of splits, which are few
    one = reduce(_one_after_another, found)
    fixed = launch * (launches + splitting * (one.splits > 1)) + one.fixed
    return replace(one, seconds=one.seconds + fixed, fixed=fixed)


def _one_after_another(one: Prediction, other: Prediction) -> Prediction:
    """Of two kernels of a call, which share the bound."""
    added = ("seconds", "memory", "tensor", "issue", "waves", "fixed")
    return replace(
        one,
        **{name: getattr(one, name) + getattr(other, name) for name in added},
        splits=max(one.splits, other.splits),
    )


def _eager_alone(memory: float, bound: float) -> Prediction:
    """Of plain PyTorch, whose launches apart its traffic is all."""
    return Prediction(seconds=memory, memory=memory, tensor=0.0, issue=0.0, fixed=0.0, bound=bound)


def _kernel_alone(at: AtWork, bound: float, once: float) -> Prediction:
    """Of the launch of one kernel, what the launch itself takes apart; `fixed` is not in it."""
    kind, splits, issue, waves = kind_of(at.kernel), 1, at.issue + at.tensor, 0.0
    if at.running is None:
        seconds = variant_seconds(at)
    elif kind == "tile":
        seconds, issue, waves = tile_seconds(at)
    elif kind == "stream":
        (seconds, waves), issue = stream_seconds(at), 0.0
    else:
        seconds, issue, splits = recurrence_seconds(at)
    if at.running is None or kind == "recurrence":
        waves = max(0.0, seconds - math.hypot(at.memory, issue))
    return Prediction(
        seconds=max(seconds, at.memory, at.tensor),
        memory=at.memory,
        tensor=at.tensor,
        issue=issue,
        waves=waves,
        fixed=0.0 if kind == "recurrence" else once,  # its programs all begin at once
        bound=bound,
        splits=splits,
        running=at.running,
    )


def at_work(
    spec: OpSpec,
    plan: Plan,
    kernel: Kernel,
    schedule: Schedule,
    workload: Workload,
    target: Target,
) -> AtWork:
    """What `predict` puts a time on, of one kernel of a plan."""
    elements = workload.batch * workload.length * spec.channels
    effort = work(kernel, plan.layout, spec)
    config = launch_config(spec, schedule, kernel.role)
    variant = variant_of_call(spec, plan, kernel, config, workload.length, target.capability)
    config = variant.config(config) if variant else config
    grid = (variant or kernel).grid(
        workload.batch, workload.length, spec.channels, spec.group_width, config
    )
    memory = elements * effort.bytes / target.elementwise_bandwidth
    if kernel.role == Role.BACKWARD and kind_of(kernel) != "recurrence":
        splits = workload.batch * grid.splits * grid.sums
        partials = splits * kernel.program.partial_rows * spec.channels * 4
        memory += 2 * partials / target.elementwise_bandwidth  # written, and read to be summed
    rows, block = config.get("ROWS", 8), config.get("BLOCK_T", 64)
    per_element, products = _counted(effort, rows, block)
    return AtWork(
        spec=spec,
        kernel=kernel,
        config=config,
        workload=workload,
        target=target,
        memory=memory,
        products=products,
        issue=elements * per_element / issued_rate(target),
        tensor=elements * products / product_rate(spec, target),
        by_rows=target.constants.way(kernel.role).by_rows if plan.layout is Layout.BLD else 0.0,
        grid=grid,
        running=None if variant and variant.phases else running(kernel, config, spec, target),
    )


@lru_cache(maxsize=4096)
def _counted(effort: Work, rows: int, block: int) -> tuple[float, float]:
    """Instructions and flops of matrix products, per token and channel, of these tiles."""
    sizes = {ROWS: rows, BLOCK_T: block}
    return float(effort.instructions.subs(sizes)), float(effort.tensor_flops.subs(sizes))


def stride_step(spec: OpSpec, plan: Plan) -> int:
    """As that of templates/parts/launch.py: rows of channels-first activations are padded to whole
    vectors.
    """
    return 8 if plan.layout is Layout.BDL or spec.channels % 8 == 0 else 1


def predictions(
    spec: OpSpec, plan: Plan, schedule: Schedule, workload: Workload, target: Target
) -> dict[str, Prediction]:
    """Both directions at one workload."""
    return {
        direction: predict(spec, plan, schedule, direction, workload, target)
        for direction in DIRECTIONS
    }


def score(spec: OpSpec, plan: Plan, schedule: Schedule, target: Target) -> float:
    """What plans are chosen by, less is better: predicted time over its bound, summed over
    directions and workloads."""
    total = 0.0
    for workload in spec.workloads:
        for prediction in predictions(spec, plan, schedule, workload, target).values():
            total += prediction.seconds / prediction.bound
    return total
