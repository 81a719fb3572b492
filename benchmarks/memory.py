"""Peak memory of a call and of a training step on this GPU, beside what `explain` predicts.

    PYTHONPATH=. python benchmarks/memory.py

Of modules as users call them, batch 1: what is allocated at the most beside inputs and parameters,
in activations. Fails if a prediction is more than 5% off.
"""

from __future__ import annotations

import sys

import torch

import sh2gen
from sh2gen.api.inputs import resolve_target
from sh2gen.base.resources import folder
from sh2gen.cost.memory import peak
from sh2gen.lower import plans
from sh2gen.schedule.config import schedule
from sh2gen.spec.language import Workload

OPS = ("short_conv", "hyena_se", "hyena_mr", "hyena_li", "s4d")
LENGTHS = (2048, 8192, 131072)
SLACK = 0.05


def measured(module: torch.nn.Module, inputs: list[torch.Tensor]) -> tuple[int, int]:
    """Bytes of a call without gradients, and of a training step."""

    def of(step: bool) -> int:
        for tensor in (*inputs, *module.parameters()):
            tensor.grad = None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.set_grad_enabled(step):
            y = module(*inputs)
        if step:
            y.backward(torch.empty_like(y))
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    of(False), of(True)  # the first calls run kernels twice
    return of(False), of(True)


def main() -> int:
    gpu, worst = resolve_target(None), 0.0
    print(f"{torch.cuda.get_device_name()}: peak memory in activations, measured (predicted)")
    for op in OPS:
        operator = sh2gen.load(folder("generated") / f"{op}.py")
        spec, names = operator.spec, operator.namespace
        (plan,) = (p for p in plans(spec, operator.plan.split("/")[0]) if p.name == operator.plan)
        module = operator.module(device="cuda")
        for length in LENGTHS:
            size = (1, spec.channels, length)
            if operator.layout == "BLD":
                size = (1, length, spec.channels)
            inputs = [
                torch.randn(size, device="cuda").to(torch.bfloat16).requires_grad_()
                for _ in spec.inputs
            ]
            configs = names.configs_of(inputs[0], spec.channels, spec.filter.groups)
            taken = schedule(spec, plan, {role: configs[role] for role in plan.roles})
            predicted = peak(spec, plan, taken, Workload(batch=1, length=length), gpu)
            assert predicted is not None
            pairs = zip(measured(module, inputs), (predicted.forward, predicted.step), strict=True)
            texts = []
            for what, (found, expected) in zip(("forward", "step"), pairs, strict=True):
                worst = max(worst, abs(expected / found - 1))
                texts.append(
                    f"{what} {predicted.times(found):.3f} ({predicted.times(expected):.3f})"
                )
            print(f"{op} L={length}: {', '.join(texts)}", flush=True)
    print(f"worst: {100 * worst:.1f}% off")
    return int(worst > SLACK)


if __name__ == "__main__":
    sys.exit(main())
