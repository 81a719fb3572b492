"""Race what a search finds on this GPU against the best of recorded sweeps.

    python benchmarks/race.py --sweeps tests/data/sweeps/nvidia-h200 --tables schedules/tuned

For each operator and direction `tune --effort measure` searches at one length from the numbers of
the schedule file, with nothing known before. What it finds is then timed beside the best few of
the sweep and what tables decided, one after another, after all of them were verified.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

from sh2gen.choose import here
from sh2gen.journal import Task
from sh2gen.lower import plans
from sh2gen.records import Status
from sh2gen.resources import folder
from sh2gen.schedule import DIRECTIONS, Numbers, schedule
from sh2gen.search import score
from sh2gen.spec import Workload, load_spec
from sh2gen.sweeps import Sweep, read_sweep
from sh2gen.tables import read_tables
from sh2gen.tuner import Session

BESIDE = 4  # of a sweep, whose brief times cannot tell the best few apart


def best(sweep: Sweep) -> list[Numbers]:
    """The fastest of a sweep, by its brief times."""
    right = [n for n, outcome in sweep.outcomes.items() if outcome.status is Status.OK]
    return sorted(right, key=lambda n: score(sweep.outcomes[n], sweep.header.bounds))[:BESIDE]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ops", nargs="*", default=["hyena_se", "hyena_mr", "hyena_li"])
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--effort", default="measure")
    parser.add_argument("--sweeps", type=Path, required=True, help="folder of sweeps")
    parser.add_argument("--tables", type=Path, required=True, help="folder of tuned tables")
    options = parser.parse_args()
    workload = Workload(batch=1, length=options.length)
    decisions, _ = read_tables([options.tables])
    print("| operator | direction | seconds | tried | found, us | best beside it, us | ratio |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with Session(say=print) as session:
        for op in options.ops:
            spec = replace(load_spec(folder("ops") / f"{op}.yaml"), workloads=(workload,))
            sweeps = {d: read_sweep(options.sweeps / f"{op}-{d}.jsonl") for d in DIRECTIONS}
            name = sweeps["forward"].header.key.plan
            (plan,) = (plan for plan in plans(spec) if plan.name == name)
            starts = {d: schedule(spec, plan).numbers(d) for d in DIRECTIONS}
            for tuned in session.tune(spec, plan, here(), starts=starts, effort=options.effort):
                if tuned.decision is None:
                    print(f"{tuned.task.title}: nothing was found", file=sys.stderr)
                    return 1
                direction, found = tuned.task.direction, tuned.decision.numbers
                decided = [
                    d.numbers
                    for d in decisions
                    if (d.op, d.key.plan, d.key.direction) == (op, name, direction)
                    and d.workloads == (workload,)
                ]
                field = [found, *best(sweeps[direction].of(workload)), *decided]
                task = Task(spec=spec, plan=plan, direction=direction)
                bench = session.bench(task, here(), {**starts, direction: found})
                (*_, outcomes) = bench.race(list(dict.fromkeys(field)), 7, "final", math.inf)
                bad = [o.detail for o in outcomes.values() if o.status is not Status.OK]
                if bad:
                    print(f"{tuned.task.title}: {bad[0]}", file=sys.stderr)
                    return 1
                times = {numbers: o.us[0][1] for numbers, o in outcomes.items()}
                least = min(times.values())
                tried = len(tuned.result.first)
                print(
                    f"| {op} | {direction} | {tuned.result.seconds:.0f} | {tried} "
                    f"of {len(tuned.problem.points)} | {times[found]:.1f} | {least:.1f} "
                    f"| {times[found] / least:.3f} |",
                    flush=True,
                )
                for numbers, outcome in outcomes.items():
                    us = ", ".join(f"{value:.1f}" for value in outcome.us[0])
                    print(f"  {dict(numbers)}: {us}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
