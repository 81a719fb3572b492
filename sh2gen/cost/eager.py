"""What plain PyTorch moves, and how many kernels it launches."""

from __future__ import annotations

import math

from sh2gen.graph.nodes import (
    Conv,
    Graph,
    Input,
    ModeGradient,
    Modes,
    Parameter,
    TapGradient,
    activations,
)
from sh2gen.plan.plan import Plan
from sh2gen.plan.values import Layout
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.constants import Eager


def eager_work(
    graph: Graph, plan: Plan, workload: Workload, spec: OpSpec, constants: Eager
) -> tuple[float, int]:
    """Bytes that plain PyTorch moves in a direction, and how many kernels it launches. Every
    elementwise node reads and writes float32.
    """
    elements = workload.batch * workload.length * spec.channels
    ends = sum(isinstance(node, Input) for node in graph.nodes) + len(graph.outputs)
    total = constants.channels_last * ends * elements * (plan.layout is Layout.BLD)
    launches = 0
    for node in graph.nodes:
        if isinstance(node, Parameter | Modes):
            continue
        if not isinstance(node, Conv | TapGradient | ModeGradient):
            total += 4 * (len(activations(node)) + 1) * elements
            launches += 2
            continue
        taps = workload.length  # of modes, as many as there are steps
        if isinstance(node, Conv) and isinstance(graph.by_name[node.taps], Parameter):
            taps = graph.view(node.taps).length or taps
        elif isinstance(node, TapGradient):
            taps = node.view.length or taps
        kept = min(taps, workload.length)
        size = fft_size(workload.length + kept - 1)
        transforms = constants.conv if isinstance(node, Conv) else constants.gradient
        each = transforms.number + transforms.octave * max(0.0, math.log2(size / 256))
        each *= constants.power_of_two if size & (size - 1) == 0 else 1.0
        padded = each * size * workload.batch * spec.channels
        total += padded + constants.taps * taps * spec.channels
        launches += transforms.launches
    return total, launches


def fft_size(length: int) -> int:
    """As that of templates/parts/eager.py: the next size of factors 2, 3 and 5 alone."""
    best = 1 << (length - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            best = min(best, three << max(0, (-(-length // three) - 1).bit_length()))
            three *= 3
        five *= 5
    return best
