"""Compile every plan of every shipped operator under its default config for a GPU, which need not
be here, and say what does not fit it.

    python benchmarks/fits.py --target sm_86
    python benchmarks/fits.py --target sm_120 --ops h3 conv_512

A line a kernel: registers of a thread, instructions that spill and all, bytes of shared memory,
and what does not fit. Ends with exit code 1 if any does not. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing

from sh2gen.base.errors import Sh2genError
from sh2gen.base.resources import folder, shipped_ops
from sh2gen.build.build import Building, misfit
from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.plan.plan import Plan
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import load_spec
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target, target


def unfit(spec: OpSpec, plan: Plan, gpu: Target, workers: int | None) -> int:
    """How many kernels of a plan do not compile or fit; what they need is printed."""
    source = emit(spec, plan, schedule(spec, plan, target=gpu))
    limit = 600.0
    count = 0
    with closing(Building(source, gpu, workers=workers, time_limit=limit)) as building:
        try:
            built = building.result()
        except Sh2genError as error:
            print(f"{spec.op} {plan.name}: {error.message}", flush=True)
            return 1
    for kernel in built.kernels:
        problem = misfit(kernel, gpu)
        count += problem is not None
        used = f"{kernel.registers} registers, {kernel.spills} of {kernel.instructions} spill, "
        used += f"{kernel.shared} B" + (f": {problem[0]}" if problem else "")
        print(f"{spec.op} {plan.name} {kernel.label}: {used}", flush=True)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--target", required=True)
    parser.add_argument("--ops", nargs="*", default=list(shipped_ops()))
    parser.add_argument("--workers", type=int, help="processes that compile; default: all cores")
    options = parser.parse_args()
    gpu, count, plans_tried = target(options.target), 0, 0
    for name in options.ops:
        spec = load_spec(folder("ops") / f"{name}.yaml")
        for plan in plans(spec):
            if plan.kernels:
                plans_tried += 1
                count += unfit(spec, plan, gpu, options.workers)
    print(f"{plans_tried} plans for {gpu.name} ({gpu.sm}, {gpu.shared_per_block} B a block)")
    print(f"{count} kernels do not fit" if count else "all kernels fit")
    sys.exit(count > 0)


if __name__ == "__main__":
    main()
