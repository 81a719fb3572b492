"""Which plan is chosen, against the times of all plans over a grid of sizes (benchmarks/plans.py).

The plan that is cheapest by prediction must take at most 1.25 times as long as the best one that
was measured, forward and backward together, or at most 5 microseconds longer.
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sh2gen.schedule.config import DIRECTIONS
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from sh2gen.tuning.choose import candidates
from tests.gpus import H200

GRID = Path(__file__).parents[1] / "data" / "plans" / "nvidia-h200.jsonl"
AXES = ("taps", "length", "channels", "width", "batch")
RATIO, MICROSECONDS = 1.25, 5.0

Cell = tuple[int, ...]


@cache
def measured() -> dict[Cell, dict[str, dict[str, Any]]]:
    """By cell and plan."""
    found: dict[Cell, dict[str, dict[str, Any]]] = defaultdict(dict)
    for line in GRID.read_text().splitlines():
        one = json.loads(line)
        found[tuple(one[name] for name in AXES)][one["plan"]] = one
    return dict(found)


def total(one: dict[str, Any]) -> float:
    return float(sum(one["us"].values()))


def spec_of(cell: Cell) -> OpSpec:
    taps, length, channels, width, batch = cell
    inner = {"kind": "explicit", "length": taps, "groups": channels // width}
    values = {"op": "plain", "channels": channels, "filter": inner}
    return spec_from_dict(values | {"workloads": [{"batch": batch, "length": length}]})


def test_the_grid_is_whole() -> None:
    """Of every cell all plans that anyone would take; of kernels, only ones that were right."""
    cells = measured()
    assert 100 <= len(cells) <= 120
    for i, axis in enumerate(AXES):
        assert len({cell[i] for cell in cells}) > 1, axis
    for plans in cells.values():
        for one in plans.values():
            assert one["status"] in ("ok", "left out"), one
            assert one["gpu"] == H200.device_name
            if one["status"] == "ok":
                assert one["checks"] > 0 and all(one["us"][d] > 0 for d in DIRECTIONS)
            else:  # predicted to be far slower than what was measured beside it
                best = min(total(o) for o in plans.values() if o["status"] == "ok")
                assert sum(one["predicted"].values()) > 8 * best


@pytest.mark.parametrize("cell", measured(), ids=lambda cell: "-".join(map(str, cell)))
def test_the_plan_that_is_chosen_is_the_best_or_nearly(cell: Cell) -> None:
    plans = measured()[cell]
    chosen = plans[candidates(spec_of(cell), H200)[0].plan.name]
    best = min((one for one in plans.values() if one["status"] == "ok"), key=total)
    assert chosen["status"] == "ok", "chosen, and never measured"
    assert total(chosen) <= max(RATIO * total(best), total(best) + MICROSECONDS), (
        f"{chosen['plan']} took {total(chosen):.0f} us, {best['plan']} {total(best):.0f}"
    )


@pytest.mark.parametrize("cell", measured(), ids=lambda cell: "-".join(map(str, cell)))
def test_the_grid_is_of_the_configs_of_today(cell: Cell) -> None:
    """Else what was measured says nothing of what is chosen: run benchmarks/plans.py again."""
    for candidate in candidates(spec_of(cell), H200):
        one = measured()[cell][candidate.plan.name]
        for direction in DIRECTIONS:
            assert one["config"][direction] == dict(candidate.schedule.config(direction))


PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def rows() -> list[str]:
    """Of the page's table: plain filters of 4096 channels in groups of 16, one sequence."""
    found = []
    cells = measured()
    for taps in sorted({cell[0] for cell in cells if cell[2:] == (4096, 16, 1)}):
        line = [str(taps)]
        for length in (512, 8192, 131072):
            plans = cells[taps, length, 4096, 16, 1]
            chosen = plans[candidates(spec_of((taps, length, 4096, 16, 1)), H200)[0].plan.name]
            best = min((one for one in plans.values() if one["status"] == "ok"), key=total)
            us = " + ".join(f"{chosen['us'][d]:.0f}" for d in DIRECTIONS)
            ratio = total(chosen) / total(best)
            line.append(f"{chosen['plan'].split('/')[0]} {us} ({ratio:.2f})")
        found.append(f"| {' | '.join(line)} |")
    return found


def test_the_page_shows_the_grid() -> None:
    section = PAGE.read_text().split("## Which plan is chosen")[1].split("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("| ")][1:] == rows()
    worst = max(
        total(plans[candidates(spec_of(cell), H200)[0].plan.name])
        / min(total(one) for one in plans.values() if one["status"] == "ok")
        for cell, plans in measured().items()
        if total(min((o for o in plans.values() if "us" in o), key=total)) > 4 * MICROSECONDS
    )
    assert f"at most {worst:.2f} times the best" in section


if __name__ == "__main__":
    print("\n".join(rows()))
