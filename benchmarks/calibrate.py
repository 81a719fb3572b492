"""Fit the constants of the cost model to recorded sweeps, without a GPU.

    python benchmarks/calibrate.py --sweeps tests/data/sweeps/nvidia-h200

It prints them as sh2gen/targets/h200.yaml has them, from which it starts. Kernels of tiles are
fitted to hyena_se and short_conv, those that stream to hyena_mr, at 8192 and 131072 steps; other
lengths and other operators judge what comes out (tests/tuning/ test_recorded_sweeps.py). What is
minimised is, over operators and lengths, the mean error of the logarithm of times, a fifth of what
Spearman's correlation lacks to 1, and a little of how much slower the model's first choice is than
the best.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import yaml

from sh2gen.base.resources import folder
from sh2gen.cost import cost, programs
from sh2gen.cost.programs import AtWork
from sh2gen.lower import plans
from sh2gen.schedule.config import DIRECTIONS, Schedule
from sh2gen.spec.decode import load_spec
from sh2gen.spec.language import Workload
from sh2gen.targets.constants import Streams, Tiles
from sh2gen.targets.target import target
from sh2gen.tuning.ranks import spearman
from sh2gen.tuning.records import Status
from sh2gen.tuning.sweeps import read_sweep

LENGTHS = (8192, 131072)
SPREADS, TRIES = (0.5, 0.2, 0.08, 0.03), 800
TIED = 0.002  # what a constant pays for going away from where it was, squared logarithm
# Not fitted: what products take, which is from a table of many taps, where a sweep of 128 taps
# would fit one number of taps alone; and what one tile takes, which decides where programs are
# few, as in no sweep.
KEPT = ("product", "few", "tile")
C = TypeVar("C", Tiles, Streams)
Case = list[tuple[AtWork, float]]  # candidates of an operator at a length, and what they took


def cases(sweeps: Path, op: str, direction: str) -> list[Case]:
    """All right candidates of a sweep but those of the variant, whose constants are others."""
    sweep = read_sweep(sweeps / f"{op}-{direction}.jsonl")
    spec = load_spec(folder("ops") / f"{op}.yaml")
    (plan,) = (plan for plan in plans(spec) if plan.name == sweep.header.key.plan)
    kernel = plan.kernel(direction)
    assert kernel is not None
    found: list[Case] = []
    for length in LENGTHS:
        workload = Workload(batch=1, length=length)
        case: Case = []
        for config, outcome in sweep.of(workload).outcomes.items():
            if outcome.status is Status.OK:
                one = Schedule(plan=plan.name, **{direction: config})
                at = cost.at_work(spec, plan, kernel, one, workload, target("H200"))
                if at.running is not None:
                    constants = at.target.constants
                    launches = 1 + (direction == "backward")
                    fixed = launches * constants.launch + constants.once
                    case.append((at, outcome.us[0][1] / 1e6 - fixed))
        found.append(case)
    return found


def loss(found: Sequence[Case], constants: Tiles | Streams) -> float:
    """How far predictions are from what was measured."""
    total = 0.0
    for case in found:
        if isinstance(constants, Tiles):
            predicted = [programs.tile_seconds(at, constants)[0] for at, _ in case]
        else:
            predicted = [programs.stream_seconds(at, constants)[0] for at, _ in case]
        took = [seconds for _, seconds in case]
        errors = [abs(math.log(p / s)) for p, s in zip(predicted, took, strict=True)]
        first = took[predicted.index(min(predicted))] / min(took)
        total += fmean(errors) + 0.2 * (1 - spearman(predicted, took)) + 0.05 * math.log(first)
    return total / len(found)


def legal(constants: Tiles | Streams) -> bool:
    """Whether they can mean what they are called: a tile of warm-up stores nothing."""
    warm_up = constants.warm_up if isinstance(constants, Streams) else 0.0
    return constants.overlap >= 1 and warm_up <= 1


def fitted(found: Sequence[Case], constants: C) -> C:
    """Better constants, found by an evolution strategy of one parent and one child: all are
    multiplied by random factors, whose spread shrinks; those that are zero stay so.
    """
    chance = random.Random(0)
    first = asdict(constants)
    best = loss(found, constants)
    for spread in SPREADS:
        for _ in range(TRIES):
            factors = {
                name: chance.lognormvariate(0.0, spread)
                if chance.random() < 0.4 and name not in KEPT
                else 1.0
                for name in asdict(constants)
            }
            values = {
                name: float(f"{v * factors[name]:.3g}") for name, v in asdict(constants).items()
            }
            tried = type(constants)(**values)
            far = sum(math.log(v / first[n]) ** 2 for n, v in values.items() if v)
            if legal(tried) and (here := loss(found, tried) + TIED * far) < best:
                constants, best = tried, here
    print(f"loss {best:.3f}")
    return constants


def show(name: str, constants: Tiles | Streams) -> None:
    """Print constants as the file of a target has them."""
    given = {name: value for name, value in asdict(constants).items() if value}
    text = yaml.safe_dump(given, default_flow_style=True, sort_keys=False, width=100)
    print(f"{name}:\n{text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sweeps", type=Path, required=True)
    options = parser.parse_args()
    constants = target("H200").constants
    for direction in DIRECTIONS:
        found = [
            c for op in ("hyena_se", "short_conv") for c in cases(options.sweeps, op, direction)
        ]
        show(f"{direction} tiles", fitted(found, constants.way(direction).tiles))
    for direction in DIRECTIONS:
        found = cases(options.sweeps, "hyena_mr", direction)
        show(f"{direction} streams", fitted(found, constants.way(direction).streams))


if __name__ == "__main__":
    main()
