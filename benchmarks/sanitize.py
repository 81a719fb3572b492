"""Run every kernel of an operator once a case, for compute-sanitizer to watch.

    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    compute-sanitizer --tool memcheck --padding 512 python benchmarks/sanitize.py
    compute-sanitizer --tool racecheck python benchmarks/sanitize.py
    python benchmarks/sanitize.py hyena_mr my_op.yaml  # other operators

Cases are batch 2 at lengths of whole vectors, of ragged vectors and shorter than the taps, so that
every mask is used; at lengths of two and of six tiles of a variant for sm_90; and with a context
before the segment, of which dy and gradients have none. Then calls that go on from a state, of
the same operators generated for that, and their backward; and steps of decoding, of one and of
three a call, by slots of a pool and as drafts. `--state` or `--decode` runs these alone. Without
the caching allocator every tensor is an allocation of its own, with padding before the next one,
so that an access beyond either end is seen.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from gpu import generate, named

from sh2gen.runtime.measure import activation, arguments
from sh2gen.runtime.operator import Operator
from sh2gen.spec.language import StateSpec

OPS = ("hyena_se", "short_conv", "hyena_mr")
# Steps of a segment, steps of context before it, and the first step written.
CASES = (
    *((length, 0, 0) for length in (3, 37, 1000, 2568)),
    (1000, 5, 3),
    (1032, 72, 0),
    (2568, 8, 16),
)

# Of recurrences: within a tile, at its end, and of several, which few channels cut into splits.
WHOLE = (3, 1000, 2048, 2057, 20000)


def finite(operator: Operator, length: int, context: int, begin: int) -> bool:
    """Run forward and backward; whether everything written is finite."""
    module = operator.namespace
    inputs, parameters, _ = arguments(operator, 2, context + length, torch.bfloat16)
    dy = activation(operator, 2, length, torch.bfloat16)
    y, *saved = module.launch_forward(inputs, parameters, context)
    part = module.launch_forward(inputs, parameters, context, begin)
    gradients = module.launch_backward(dy, inputs, parameters, saved, context, begin)
    torch.cuda.synchronize()
    return all(bool(torch.isfinite(x).all()) for x in (y, *saved, *part, *gradients))


def steps_finite(operator: Operator, count: int, draft: bool) -> bool:
    """Decode a few calls of so many steps, one row left out; whether results are finite."""
    names, channels = operator.namespace, operator.spec.channels
    _, parameters, _ = arguments(operator, 3, count, torch.bfloat16)
    how = {"steps": count, "draft": draft, "dtype": torch.bfloat16, "device": "cuda"}
    state = names.initial_state(4, channels, **how)
    slots = torch.tensor([2, -1, 0], dtype=torch.int32, device="cuda")
    good = True
    with torch.no_grad():
        for _ in range(3):
            inputs = arguments(operator, 3, count, torch.bfloat16)[0]
            y = names.decode(inputs, parameters, state, slots)
            if draft:
                state.commit(torch.ones_like(slots), slots)
            good = good and bool(torch.isfinite(y).all())
    torch.cuda.synchronize()
    return good


def chunks_finite(operator: Operator, length: int) -> bool:
    """Two chunks of so many steps, the second after the first; whether results are finite."""
    module = operator.module(device="cuda")
    found = []
    with torch.no_grad():  # from one tape, which keeps nothing for backward
        inputs = arguments(operator, 2, length, torch.bfloat16)[0]
        y, state = module(*inputs)
        found += [y, *module(*inputs, state=state)[0:1]]
    leaves = [x.requires_grad_() for x in arguments(operator, 2, length, torch.bfloat16)[0]]
    y, state = module(*leaves, state=state)
    z, state = module(*leaves, state=state)
    past = [x for x in state if isinstance(x, torch.Tensor) and x.is_floating_point()]
    sum(x.float().square().sum() for x in (y, z, *past)).backward()
    found += [y, z, *past, *(x.grad for x in (*leaves, *module.parameters()))]
    torch.cuda.synchronize()
    return all(bool(torch.isfinite(x).all()) for x in found)


def sequences(operator: Operator) -> Iterator[tuple[str, bool]]:
    """Of whole sequences and segments: what ran, and whether its results are finite."""
    whole = operator.plan.endswith("save-states")  # these kernels take no ranges
    for length, context, begin in [(n, 0, 0) for n in WHOLE] if whole else CASES:
        case = f"L={length} context={context} begin={begin}"
        yield case, finite(operator, length, context, begin)


def chunks(operator: Operator) -> Iterator[tuple[str, bool]]:
    """The same of calls that go on from a state, of a plan of the operator that takes one."""
    spec = replace(operator.spec, state=StateSpec(initial=True, final=True))
    with tempfile.TemporaryDirectory() as name:
        carried = generate(spec, Path(name))
        for length in (1, 3, 37, 1000):
            yield f"{carried.plan} chunks of {length}", chunks_finite(carried, length)
        yield f"ran {ran(carried)}", True


def steps(operator: Operator) -> Iterator[tuple[str, bool]]:
    """The same of decoding."""
    for count, draft in ((1, False), (1, True), (3, True)):
        case = f"decode steps={count} draft={draft}"
        yield case, steps_finite(operator, count, draft)


def ran(operator: Operator) -> str:
    """The kernels that have run, which the keys of compiled ones begin with."""
    return ", ".join(sorted({key[0].__name__ for key in operator.namespace.BINARIES}))


def main() -> int:
    alone = {"--state": chunks, "--decode": steps}
    parts = [alone[word] for word in sys.argv[1:] if word in alone] or [sequences, chunks, steps]
    ops = [word for word in sys.argv[1:] if word not in alone] or OPS
    with tempfile.TemporaryDirectory() as name:
        for operator in (generate(named(op), Path(name)) for op in ops):
            title = f"{operator.spec.op} {operator.plan}"
            for part in parts:
                for case, good in part(operator):
                    print(f"{title} {case}: {'finite' if good else 'NOT FINITE'}", flush=True)
                    if not good:
                        return 1
            print(f"{title} ran {ran(operator)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
