"""Run every kernel of an operator once a case, for compute-sanitizer to watch.

    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    compute-sanitizer --tool memcheck python benchmarks/sanitize.py
    compute-sanitizer --tool racecheck python benchmarks/sanitize.py

Cases are batch 2 at lengths of whole vectors, of ragged vectors and shorter than the taps, so that
every mask is used. Without the caching allocator every tensor is an allocation of its own, so that
an access beyond it is seen.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from gpu import arguments, generate

from sh2gen.resources import folder

LENGTHS = (3, 37, 1000)


def main() -> int:
    ops = sys.argv[1:] or ["hyena_se", "short_conv"]
    with tempfile.TemporaryDirectory() as name:
        for op in ops:
            operator = generate(folder("ops") / f"{op}.yaml", Path(name), None)
            for length in LENGTHS:
                inputs, parameters, dy = arguments(operator, 2, length, torch.bfloat16)
                y = operator.namespace.forward_op(*inputs, *parameters)
                gradients = operator.namespace.backward_op(dy, *inputs, *parameters)
                torch.cuda.synchronize()
                finite = all(bool(torch.isfinite(x).all()) for x in (y, *gradients))
                print(f"{op} {operator.plan} L={length}: {'finite' if finite else 'NOT FINITE'}")
                if not finite:
                    return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
