"""Race what a search finds on this GPU against the best of recorded sweeps.

    python benchmarks/race.py --sweeps tests/data/sweeps/nvidia-h200 --tables schedules/tuned

For each operator and direction `tune --effort measure` searches at one length with nothing known
before: from the default of the schedule file, or with `--start` from the slowest candidate of the
sweep or the one in the middle, since a search that begins near the best says little. What it
finds is then timed beside the best few of the sweep and what tables decided, one after another,
after all of them were verified.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sh2gen.base.resources import folder
from sh2gen.lower import plans
from sh2gen.plan.plan import Plan
from sh2gen.schedule.config import DIRECTIONS, ROLES, coupling, schedule
from sh2gen.schedule.space import Config
from sh2gen.spec.decode import load_spec
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import here
from sh2gen.tuning.journal import Task
from sh2gen.tuning.records import Status
from sh2gen.tuning.search import score
from sh2gen.tuning.session import Session
from sh2gen.tuning.sweeps import Sweep, read_sweep
from sh2gen.tuning.tables import read_tables

BESIDE = 4  # of a sweep, whose brief times cannot tell the best few apart


def ordered(sweep: Sweep) -> list[Config]:
    """The candidates of a sweep that are right, the fastest by its brief times first."""
    right = [n for n, outcome in sweep.outcomes.items() if outcome.status is Status.OK]
    return sorted(right, key=lambda n: score(sweep.outcomes[n], sweep.header.bounds))


def starts(spec: OpSpec, plan: Plan, sweeps: Mapping[str, Sweep], which: str) -> dict[str, Config]:
    """By direction: the default, the median or the worst of those that are right. Backward's is
    one that shares the tiles of forward's, where directions must. How to decode is the default.
    """
    default = {d: schedule(spec, plan).config(d) for d in ROLES}
    if which == "default":
        return default

    def pick(right: list[Config]) -> Config:
        return right[-1] if which == "worst" else right[len(right) // 2]

    forward = pick(ordered(sweeps["forward"]))
    tiles = coupling(plan, forward)
    backward = pick([n for n in ordered(sweeps["backward"]) if coupling(plan, n) == tiles])
    return default | {"forward": forward, "backward": backward}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ops", nargs="*", default=["hyena_se", "hyena_mr", "hyena_li"])
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--effort", default="measure")
    parser.add_argument("--start", choices=("default", "median", "worst"), default="default")
    parser.add_argument("--sweeps", type=Path, required=True, help="folder of sweeps")
    parser.add_argument("--tables", type=Path, required=True, help="folder of tuned tables")
    options = parser.parse_args()
    workload = Workload(batch=1, length=options.length)
    decisions, _ = read_tables([options.tables])
    columns = ("operator", "direction", "start, us", "seconds", "tried", "found, us")
    columns += ("best beside it, us", "ratio")
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|", flush=True)
    with Session(say=lambda text: print(text, file=sys.stderr)) as session:
        for op in options.ops:
            spec = replace(load_spec(folder("ops") / f"{op}.yaml"), workloads=(workload,))
            paths = {d: options.sweeps / f"{op}-{d}.jsonl" for d in DIRECTIONS}
            sweeps = {d: read_sweep(path).of(workload) for d, path in paths.items()}
            name = sweeps["forward"].header.key.plan
            (plan,) = (plan for plan in plans(spec) if plan.name == name)
            begin = starts(spec, plan, sweeps, options.start)
            for tuned in session.tune(spec, plan, here(), starts=begin, effort=options.effort):
                if tuned.decision is None:
                    print(f"{tuned.task.title}: nothing was found", file=sys.stderr)
                    return 1
                direction, found = tuned.task.direction, tuned.decision.config
                decided = [
                    d.config
                    for d in decisions
                    if (d.op, d.key.plan, d.key.direction) == (op, name, direction)
                    and d.workloads == (workload,)
                ]
                field = [found, *ordered(sweeps[direction])[:BESIDE], *decided]
                task = Task(spec=spec, plan=plan, direction=direction)
                bench = session.bench(task, here(), {**begin, direction: found})
                (*_, outcomes) = bench.race(list(dict.fromkeys(field)), 7, "final", math.inf)
                bad = [o.detail for o in outcomes.values() if o.status is not Status.OK]
                if bad:
                    print(f"{tuned.task.title}: {bad[0]}", file=sys.stderr)
                    return 1
                times = {config: o.us[0][1] for config, o in outcomes.items()}
                least = min(times.values())
                tried = len(tuned.result.first)
                start_us = "".join(f"{us:.1f}" for us in tuned.decision.start_us)
                print(
                    f"| {op} | {direction} | {start_us} | {tuned.result.seconds:.0f} | {tried} "
                    f"of {len(tuned.problem.points)} | {times[found]:.1f} | {least:.1f} "
                    f"| {times[found] / least:.3f} |",
                    flush=True,
                )
                for config, outcome in outcomes.items():
                    us = ", ".join(f"{value:.1f}" for value in outcome.us[0])
                    print(f"  {dict(config)}: {us}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
