"""What the host does for an eager call, beside nn.Linear(256, 256) in the same run.

    PYTHONPATH=. python benchmarks/host.py --json host.json

Of modules as users call them: forward without gradients, and a training step (forward, and
backward into fresh gradients). The GPU is idle before each call and not waited for after it, so a
time is that of the host alone, up to the sequence at which kernels outlast it. Of five rounds, in
which all take turns, the median; a ratio is of the medians. With `--guard` it fails if a ratio is
more than 15% above its target.

Then the same of calls that take and give a state, of operators that are generated for it and
verified before: their target is that of the call without one, and 6 us for each tensor that they
give beside y.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu import generate
from torch import nn

import sh2gen
from sh2gen.base.resources import folder
from sh2gen.runtime.measure import host_time, machine
from sh2gen.runtime.operator import OperatorRunner
from sh2gen.spec.decode import load_spec
from sh2gen.spec.language import StateSpec
from sh2gen.verify.verify import verify

ROUNDS = 5
SLACK = 1.15
LENGTH = 2048
# Of nn.Linear: forward without gradients, and a training step.
TARGETS = {
    "short_conv": (1.5, 1.3),
    "hyena_se": (1.5, 1.3),
    "hyena_mr": (1.8, 1.3),
    "hyena_li": (1.8, 1.3),
}
LINEAR = "nn.Linear(256, 256)"
AFTER = " after a state"
WHAT = ("forward", "training step")
PER_TENSOR = 6  # microseconds


def ways(
    module: nn.Module, inputs: list[torch.Tensor], after_state: bool = False
) -> tuple[Callable[[], Any], ...]:
    """Forward without gradients, and a training step; of calls that go on from a state, whose
    gradient is not asked for, and give one.
    """
    leaves = [x.detach().requires_grad_() for x in inputs]
    tensors = (*leaves, *module.parameters())
    more: dict[str, Any] = {}

    def y_of(tensors: list[torch.Tensor]) -> torch.Tensor:
        found = module(*tensors, **more)
        y: torch.Tensor = found[0] if after_state else found
        return y

    with torch.no_grad():
        dy = torch.ones_like(y_of(inputs))
        if after_state:
            more["state"] = module(*inputs)[1]

    def forward() -> None:
        with torch.no_grad():
            y_of(inputs)

    def step() -> None:
        for tensor in tensors:
            tensor.grad = None
        y_of(leaves).backward(dy)

    return forward, step


def measured(where: Path) -> dict[str, tuple[float, ...]]:
    """Microseconds of each way, by what is called; files are generated in a folder."""
    modules: dict[str, tuple[nn.Module, list[torch.Tensor]]] = {
        LINEAR: (nn.Linear(256, 256, device="cuda"), [torch.randn(256, 256, device="cuda")])
    }
    for op in TARGETS:
        operator = sh2gen.load(folder("generated") / f"{op}.py")
        spec = operator.spec
        size = (1, spec.channels, LENGTH)
        if operator.layout == "BLD":
            size = (1, LENGTH, spec.channels)
        inputs = [torch.randn(size, device="cuda").to(torch.bfloat16) for _ in spec.inputs]
        modules[op] = (operator.module(device="cuda"), inputs)
    calls = {name: ways(*made) for name, made in modules.items()}
    with tempfile.TemporaryDirectory() as folder_name:
        calls |= {f"{op}{AFTER}": after_a_state(op, Path(folder_name)) for op in TARGETS}
    rounds: dict[str, list[list[float]]] = {
        name: [[] for _ in each] for name, each in calls.items()
    }
    for _ in range(ROUNDS):
        for name, each in calls.items():
            for times, call in zip(rounds[name], each, strict=True):
                times.append(host_time(call))
    return {name: tuple(map(statistics.median, each)) for name, each in rounds.items()}


def after_a_state(op: str, where: Path) -> tuple[Callable[[], Any], ...]:
    """Calls that go on from a state, by the config of the shipped operator; verified first."""
    spec = load_spec(folder("ops") / f"{op}.yaml")
    operator = generate(replace(spec, state=StateSpec(initial=True, final=True)), where)
    report = verify(
        operator.spec,
        OperatorRunner(operator, "cuda"),
        dtype=torch.bfloat16,
        shapes=[(2, 300), (1, LENGTH)],
        device="cuda",
        properties=["equality", "chunks"],
        property_shapes=[(2, 300)],
    )
    report.require()
    print(f"{op}{AFTER}: {len(report.checks)} checks", flush=True)
    size = (1, spec.channels, LENGTH)
    if operator.layout == "BLD":
        size = (1, LENGTH, spec.channels)
    inputs = [torch.randn(size, device="cuda").to(torch.bfloat16) for _ in spec.inputs]
    return ways(operator.module(device="cuda"), inputs, after_state=True)


def given_beside(op: str) -> int:
    """How many tensors the state of an operator has."""
    names = sh2gen.load(folder("generated") / f"{op}.py").namespace
    return len(names.STATE._fields) - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the times")
    parser.add_argument("--guard", action="store_true", help="fail above the targets")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measured(Path(name))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": machine(), "us": found}, indent=1))
    linear = found.pop(LINEAR)
    print(f"{LINEAR}: forward {linear[0]:.0f} us, training step {linear[1]:.0f} us")
    above = []
    for name, times in found.items():
        if name.endswith(AFTER):
            op = name.removesuffix(AFTER)
            line = []
            for what, us, of, target in zip(WHAT, times, linear, TARGETS[op], strict=True):
                limit = target * of + PER_TENSOR * given_beside(op)
                line.append(f"{what} {us:.0f} us (target {limit:.0f})")
                if us > SLACK * limit:
                    above.append(f"{name} {what}")
            print(f"{name}: {'; '.join(line)}")
            continue
        line = []
        for what, us, of, target in zip(WHAT, times, linear, TARGETS[name], strict=True):
            ratio = us / of
            line.append(f"{what} {us:.0f} us, {ratio:.2f} of it (target {target})")
            if ratio > SLACK * target:
                above.append(f"{name} {what}")
        print(f"{name}: {'; '.join(line)}")
    if arguments.guard and above:
        print(f"above its target: {', '.join(above)}", file=sys.stderr)
    return int(arguments.guard and bool(above))


if __name__ == "__main__":
    sys.exit(main())
