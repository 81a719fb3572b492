"""Sweep whole search spaces on this GPU, then decide for each length: data and tuned tables.

    python benchmarks/sweeps.py --out sweeps --tables schedules/tuned

For each operator and direction every candidate is built, verified and timed at all lengths (batch
1, bfloat16), which gives a sweep (`sh2gen.sweeps`): what strategies are replayed on and the cost
model is fitted to. Then the finalists of each length are timed again, one beside the other, and
decided. A run that was cut off goes on where it was, from the records of the machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from sh2gen.api.tune import tune_operator
from sh2gen.base.resources import folder
from sh2gen.report.tuning import print_tuned
from sh2gen.spec.decode import load_spec
from sh2gen.spec.language import Workload
from sh2gen.tuning.session import Session
from sh2gen.tuning.sweeps import write_sweep

OPS = ("hyena_se", "hyena_mr", "hyena_li", "short_conv")
LENGTHS = (2048, 8192, 32768, 131072)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ops", nargs="*", default=list(OPS))
    parser.add_argument("--lengths", nargs="*", type=int, default=list(LENGTHS))
    parser.add_argument("--directions", nargs="*", default=["forward", "backward"])
    parser.add_argument("--out", type=Path, required=True, help="folder of sweeps")
    parser.add_argument("--tables", type=Path, help="folder of tuned tables; by default none")
    options = parser.parse_args()
    workloads = [Workload(batch=1, length=length) for length in options.lengths]
    with Session(say=print) as session:
        for op in options.ops:
            path = folder("ops") / f"{op}.yaml" if "." not in op else Path(op)
            begin = time.monotonic()

            def tuned(sets: list[tuple[Workload, ...]], sweep: bool, path: Path = path) -> bool:
                """Print and keep what was found; whether to go on."""
                for found, table in tune_operator(
                    path,
                    sets=sets,
                    directions=options.directions,
                    effort="exhaustive",
                    resume=True,
                    out=options.tables or options.out,
                    sweep=sweep,
                    session=session,
                ):
                    if sweep:
                        name = f"{found.task.spec.op}-{found.task.direction}.jsonl"
                        write_sweep(options.out / name, found.sweep)
                    else:
                        print_tuned(found, table)
                    if found.result.interrupted:
                        return False
                return True

            if not tuned([tuple(workloads)], True):
                return 130
            print(f"{op} swept: {time.monotonic() - begin:.0f} s", flush=True)
            if options.tables:
                own = load_spec(path).workloads
                if not tuned([*((workload,) for workload in workloads), own], False):
                    return 130
                print(f"{op} decided: {time.monotonic() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
