"""What runs, in digests: for changes after which all must run as before; needs no GPU.

    git worktree add ../before COMMIT
    (cd ../before && PYTHONPATH=. python benchmarks/behaviour.py --out before.json)
    PYTHONPATH=. python benchmarks/behaviour.py --against ../before/before.json

For every shipped operator and plan, under the config that is its default and those that
`compile` takes: a digest of each kernel as the compiler makes it for sm_90 (`ptx_digest`, which
names and debug information are no part of), and of outputs and gradients of random inputs, bit by
bit: of plain PyTorch, and of the kernels of the miniature under Triton's interpreter. Kernels of
a plan are a set without names. It ends with 1, and says what, if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from sh2gen.base.resources import folder
from sh2gen.build.build import Building
from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.plan.plan import Plan
from sh2gen.runtime.operator import InterpreterRunner, Operator, OperatorRunner
from sh2gen.schedule.config import Schedule, schedule
from sh2gen.spec.decode import load_spec
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import target
from sh2gen.tuning.choose import candidates, tables
from sh2gen.verify.miniatures import miniature

H200 = target("H200")
BATCH, LENGTH = 2, 75


def cases() -> Iterator[tuple[str, OpSpec, Plan, Schedule]]:
    for path in sorted(folder("ops").glob("*.yaml")):
        spec = load_spec(path)
        for plan in plans(spec):
            yield f"{path.stem} {plan.name} default", spec, plan, schedule(spec, plan)
        best = candidates(spec, H200, known=tables())[0]
        yield f"{path.stem} {best.plan.name} taken", spec, best.plan, best.schedule


def kernels(spec: OpSpec, plan: Plan, chosen: Schedule) -> list[str]:
    """A digest of each binary."""
    with closing(Building(emit(spec, plan, chosen), H200, time_limit=300)) as building:
        return sorted(kernel.ptx_digest for kernel in building.result().kernels)


def results(spec: OpSpec, plan: Plan, chosen: Schedule, *, interpreted: bool) -> dict[str, str]:
    """A digest of the output and of each gradient."""
    rng = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as where:
        path = Path(where) / f"{spec.op}.py"
        path.write_text(emit(spec, plan, chosen).text)
        runner: Any = InterpreterRunner(path)
        if not interpreted:
            runner = OperatorRunner(Operator(path), "plain")
        shape = [BATCH, LENGTH, spec.channels]
        if runner.layout == "BDL":
            shape = [BATCH, spec.channels, LENGTH]
        inputs = {name: torch.randn(shape, generator=rng) for name in spec.inputs}
        parameters = {p.name: torch.randn(p.shape, generator=rng) / 4 for p in spec.parameters}
        parameters |= {n: -x.abs() for n, x in parameters.items() if n == "log_poles"}
        y = runner.forward(inputs, parameters)
        gradients = runner.gradients(inputs, parameters, torch.randn(shape, generator=rng))
    return {name: _bits(x) for name, x in ({"y": y} | gradients).items()}


def _bits(x: torch.Tensor) -> str:
    values = x.detach().contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(values).hexdigest()[:16]


def behaviour() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for label, spec, plan, chosen in cases():
        print(label, file=sys.stderr, flush=True)
        found[f"{label}: plain"] = results(spec, plan, chosen, interpreted=False)
        if plan.kernels:
            found[f"{label}: kernels"] = kernels(spec, plan, chosen)
            small = miniature(spec)
            (same,) = (p for p in plans(small) if p.name == plan.name)
            own = schedule(small, same)
            found[f"{label}: interpreted"] = results(small, same, own, interpreted=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write what runs here")
    parser.add_argument("--against", type=Path, help="what another commit wrote")
    arguments = parser.parse_args()
    found = behaviour()
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1))
    if arguments.against is None:
        return 0
    before = json.loads(arguments.against.read_text())
    other = [key for key in before.keys() | found.keys() if before.get(key) != found.get(key)]
    for key in sorted(other):
        print(f"differs: {key}: {before.get(key)} before, {found.get(key)} now")
    print(f"{len(before)} before, {len(found)} now, {len(other)} differ")
    return int(bool(other))


if __name__ == "__main__":
    sys.exit(main())
