"""Time tuned configs again whose kernels have changed, without a search.

    PYTHONPATH=. python benchmarks/retime.py --out schedules/tuned

Of every shipped decision for this GPU whose kernels have changed, or of all of some operators
(`--ops hyena_mr`): those of its config, and of the schedule that its search started from, are
compared with float64 and then timed in turns at its workloads. These times and digests of the
kernels of today take the place of what the tables in the folder say. A config stays unless its
start is no slower any more, which then takes its place as in a search; where another may have
become the fastest, search again: `sh2gen tune`.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from sh2gen.base.files import write_whole
from sh2gen.base.resources import folder
from sh2gen.runtime.measure import Timing, calls, io_dtype, machine, time_call
from sh2gen.runtime.operator import Operator, OperatorRunner
from sh2gen.runtime.steps import steps, time_steps
from sh2gen.schedule.space import DECODE
from sh2gen.spec.language import Workload
from sh2gen.tuning import records
from sh2gen.tuning.recheck import kernels_of_decision, recheck
from sh2gen.tuning.tables import Decision, read_tables, write_decisions
from sh2gen.verify.verify import verify

ROUNDS = 3
SHORT = (2, 1032)


def operator_of(decision: Decision, place: Path) -> Operator:
    """Its file, under its config."""
    source, _ = kernels_of_decision(decision)
    write_whole(place, source.text)
    return Operator(place, edited=True)


def ready(operator: Operator, workload: Workload, direction: str) -> Callable[[], Timing]:
    """What times a direction at a size."""
    if direction == DECODE:
        return partial(time_steps, steps(operator, workload.batch))
    made = calls(operator, workload.batch, workload.length, io_dtype(operator.spec))
    return partial(time_call, getattr(made, direction))


def again(decision: Decision, place: Path) -> Decision:
    """The decision with times of today."""
    ways = {"config": decision}
    if decision.start_us and dict(decision.start) != dict(decision.config):
        ways["start"] = dataclasses.replace(decision, config=decision.start)
    made = {name: operator_of(one, place / f"{name}.py") for name, one in ways.items()}
    spec, checks = decision.spec, 0
    for operator in made.values():
        report = verify(
            spec,
            OperatorRunner(operator, "cuda"),
            dtype=io_dtype(spec),
            shapes=[SHORT, *((w.batch, w.length) for w in decision.workloads[:1])],
            device="cuda",
            properties=["decode" if decision.key.direction == DECODE else "equality"],
        )
        report.require()
        checks += len(report.checks)
    timings: dict[str, list[list[float]]] = {name: [] for name in made}
    for w in decision.workloads:
        rounds: dict[str, list[tuple[float, ...]]] = {name: [] for name in made}
        done = {n: ready(o, w, decision.key.direction) for n, o in made.items()}
        for _ in range(ROUNDS):
            for name, timed in done.items():
                rounds[name].append(dataclasses.astuple(timed()))
        for name, found in rounds.items():
            timings[name].append([statistics.median(x) for x in zip(*found, strict=True)])
        torch.cuda.empty_cache()
    costs = {
        name: sum(us / b for (_, us, _), b in zip(found, decision.bound_us, strict=True))
        for name, found in timings.items()
    }
    best = min(costs, key=lambda name: costs[name])
    low, us, high = (tuple(x) for x in zip(*timings[best], strict=True))
    before = timings.get("start", timings["config"])
    return dataclasses.replace(
        ways[best],
        us=us,
        low=low,
        high=high,
        start_us=tuple(us for _, us, _ in before) if decision.start_us else (),
        checks=checks,
        date=records.now(),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the new tables")
    parser.add_argument("--ops", nargs="+", default=[], help="of these all, changed or not")
    arguments = parser.parse_args()
    decisions, damages = read_tables([folder("schedules") / "tuned"])
    assert not damages, damages
    ops = arguments.ops
    mine = [d for d in decisions if d.key.gpu == machine()["gpu"] and (not ops or d.op in ops)]
    found: dict[str, list[Decision]] = {}
    with tempfile.TemporaryDirectory() as place:
        for checked in recheck(mine):
            before = checked.decision
            if checked.kernels and (checked.stale or ops):
                timed = again(before, Path(place))
                (current,) = recheck([timed])  # its config may be another
                now = dataclasses.replace(timed, kernels=current.kernels)
                found.setdefault(now.op, []).append(now)
                pairs = zip(now.us, before.us, strict=True)
                ratios = " ".join(f"{a:.1f}/{b:.1f}={a / b:.3f}" for a, b in pairs)
                print(f"{now.op} {now.key.direction}: {ratios}", flush=True)
    for several in found.values():
        write_decisions(arguments.out, several)
    return 0


if __name__ == "__main__":
    sys.exit(main())
