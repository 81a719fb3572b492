"""Time the plans of every algorithm over a grid of sizes, to judge which one is chosen.

    python benchmarks/plans.py --out tests/data/plans/nvidia-h200.jsonl

A cell is a filter of so many taps, in groups of so many channels, for a batch of so many
sequences of a length. Each plan runs under the config that `compile` would take, or its default.
It is verified, then forward and backward are timed apart, each as a captured graph. A line of the
file is one plan of one cell; a run that was cut off goes on where it was. Plans come cheapest
first by prediction; one that is predicted to take more than PATIENCE times the best that was
measured in its cell is left out, with a line that says so. `tests/tuning/test_choice_of_plans.py`
replays the file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sh2gen.base.files import write_whole
from sh2gen.build.build import Compilers, kernel_job
from sh2gen.cost.cost import predictions
from sh2gen.emit.emit import emit
from sh2gen.emit.launched import SHORT, alignment_of, launched
from sh2gen.plan.plan import Plan
from sh2gen.schedule.config import DIRECTIONS, Schedule, schedule
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import here
from sh2gen.tuning.choose import candidates, tables
from sh2gen.tuning.lab import ask, measuring_worker

PATIENCE = 8.0
TAPS = (2, 4, 8, 16, 17, 32, 64, 128, 129, 160, 200, 256, 384, 512, 768, 1024, 2048)
FEW = (4, 16, 32, 64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True, slots=True)
class Cell:
    """A plain filter at one size."""

    taps: int
    length: int
    channels: int = 4096
    width: int = 16
    batch: int = 1

    @property
    def spec(self) -> OpSpec:
        inner = {"kind": "explicit", "length": self.taps, "groups": self.channels // self.width}
        size = {"batch": self.batch, "length": self.length}
        values = {"op": "plain", "channels": self.channels, "filter": inner, "workloads": [size]}
        return spec_from_dict(values)

    @property
    def key(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def cells() -> tuple[Cell, ...]:
    """Which sizes: every number of taps at three lengths, and every other axis at a few."""
    found = [Cell(taps, length) for length in (512, 8192, 131072) for taps in TAPS]
    found += [Cell(taps, length, width=1) for length in (2048, 8192) for taps in FEW]
    some = (2, 16, 64, 128, 200, 512, 1024)
    found += [Cell(taps, 1024, batch=8) for taps in some]
    found += [Cell(taps, 128, batch=64) for taps in some]
    found += [Cell(taps, length, 70_000) for length in (4, 512) for taps in (2, 16, 64, 200, 512)]
    found += [Cell(taps, length, 256) for length in (8192, 131072) for taps in (4, 64, 256, 1024)]
    found += [Cell(taps, 4) for taps in (2, 16, 64)]
    found += [Cell(taps, 1000, 64) for taps in (4, 64, 512)]
    found += [Cell(taps, 8192, 1920, 15) for taps in (7, 32, 128, 200, 512)]
    return tuple(dict.fromkeys(found))


def ways(cell: Cell) -> Iterator[tuple[Plan, Schedule, dict[str, float]]]:
    """The plans of a cell with their schedules and predictions (microseconds), cheapest first."""
    spec, gpu = cell.spec, here()
    found = []
    for i, candidate in enumerate(candidates(spec, gpu, known=tables())):
        chosen = candidate.schedule if i == 0 else schedule(spec, candidate.plan)
        (workload,) = spec.workloads
        predicted = predictions(spec, candidate.plan, chosen, workload, gpu)
        times = {d: predicted[d].seconds * 1e6 for d in DIRECTIONS}
        found.append((candidate.plan, chosen, times))
    yield from sorted(found, key=lambda one: sum(one[2].values()))


def line(cell: Cell, plan: Plan, chosen: Schedule, **more: Any) -> dict[str, Any]:
    return {
        **cell.key,
        "plan": plan.name,
        "config": {d: dict(chosen.config(d)) for d in DIRECTIONS},
        **more,
    }


def identity(one: dict[str, Any]) -> str:
    names = (*Cell.__dataclass_fields__, "plan", "config")
    return json.dumps({name: one[name] for name in names}, sort_keys=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--seconds", type=float, default=1e9)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = options.out.read_text() if options.out.exists() else ""
    known = {identity(one): one for one in map(json.loads, text.splitlines())}
    gpu, end = here(), time.monotonic() + options.seconds
    todo = [(cell, list(ways(cell))) for cell in cells()]
    with (
        closing(Compilers(options.workers, 120.0)) as compilers,
        closing(measuring_worker()) as worker,
        tempfile.TemporaryDirectory(prefix="sh2gen-") as folder,
        options.out.open("a") as out,
    ):
        machine = ask(worker, {"do": "machine"}, 120.0)
        print(machine, flush=True)
        assert machine["gpu"] == gpu.device_name, f"{machine['gpu']} is not {gpu.name}"
        pending, sources = {}, {}
        for cell, found in todo:  # all are built at once, in the order in which they are timed
            for plan, chosen, _ in found:
                if not plan.kernels or identity(line(cell, plan, chosen)) in known:
                    continue
                source = emit(cell.spec, plan, chosen)
                sources[cell, plan.name] = source
                of = (cell.spec, plan, chosen, source.kernels)
                shapes = [SHORT, (cell.batch, cell.length)]
                for kernel in launched(*of, shapes, gpu.capability):
                    job = kernel_job(source, gpu, kernel, alignment_of(kernel))
                    if job not in pending:
                        pending[job] = compilers.submit(job)
                    pending[cell, plan.name, kernel] = pending[job]
        for cell, found in todo:
            best = float("inf")
            for number, (plan, chosen, predicted) in enumerate(found):
                if time.monotonic() > end:
                    print("out of time")
                    return 0
                one = line(cell, plan, chosen, predicted=predicted)
                old = known.get(identity(one))
                if old is not None:
                    best = min(best, sum((old.get("us") or {"": best}).values()))
                    continue
                if sum(predicted.values()) > PATIENCE * best:
                    one["status"] = "left out"
                else:
                    futures = [f for key, f in pending.items() if key[:2] == (cell, plan.name)]
                    one |= measured(cell, plan, chosen, sources, futures, worker, Path(folder))
                    if one["status"] == "ok":
                        best = min(best, sum(one["us"].values()))
                if number == 0:
                    one["chosen"] = True
                one["gpu"], one["versions"] = machine["gpu"], machine["versions"]
                print(json.dumps(one), file=out, flush=True)
                times = {d: round(us, 1) for d, us in one.get("us", {}).items()}
                print(*cell.key.values(), plan.name, one["status"], times, flush=True)
    return 0


def measured(
    cell: Cell,
    plan: Plan,
    chosen: Schedule,
    sources: dict[Any, Any],
    futures: list[Any],
    worker: Any,
    folder: Path,
) -> dict[str, Any]:
    """What became of a plan: status, and microseconds by direction if it is right."""
    for future in futures:
        answer = future.result()
        if "cubin" not in answer:
            return {"status": "compile", "detail": str(answer.get("error", answer))[-500:]}
    source = sources.get((cell, plan.name)) or emit(cell.spec, plan, chosen)
    name = "-".join(map(str, (*cell.key.values(), plan.name.replace("/", "-"))))
    path = folder / name / "plain.py"
    write_whole(path, source.text)
    job = {"file": str(path), "config": {}, "workloads": [[cell.batch, cell.length]]}
    job |= {"short": list(SHORT), "seed": 0, "warmup_ms": 5, "repeat_ms": 25}
    if cell.channels * cell.length * cell.batch > 1 << 22 or not plan.kernels:
        # Of the same binaries: a float64 FFT of all that would take longer than all else.
        verified = ask(worker, job | {"do": "verify", "workloads": [], "direction": "both"}, 120.0)
    else:
        verified = ask(worker, job | {"do": "verify", "direction": "both"}, 120.0)
    if verified["status"] != "ok":
        return {"status": verified["status"], "detail": verified["detail"]}
    us = {}
    for direction in DIRECTIONS:
        found = ask(worker, job | {"do": "time", "direction": direction}, 120.0)
        if found["status"] != "ok":
            return {"status": found["status"], "detail": found["detail"]}
        us[direction] = found["us"][0][1]
    return {"status": "ok", "us": us, "checks": verified["checks"]}


if __name__ == "__main__":
    sys.exit(main())
