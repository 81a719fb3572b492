"""The tuned tables of the package, and the page that shows them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sh2gen.choose import candidates, tables
from sh2gen.lower import plans
from sh2gen.resources import folder
from sh2gen.schedule import search_space
from sh2gen.spec import Workload, load_spec
from sh2gen.tables import Decision, read_tables
from sh2gen.target import target

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
OPS = ("hyena_se", "hyena_mr", "hyena_li", "short_conv")
LENGTHS = (2048, 8192, 32768, 131072)
DIRECTIONS = ("forward", "backward")


def decided() -> dict[tuple[str, int, str], Decision]:
    """Those of one length each, by operator, length and direction."""
    decisions, damages = read_tables([folder("schedules") / "tuned"])
    assert not damages
    return {
        (d.op, d.workloads[0].length, d.key.direction): d
        for d in decisions
        if len(d.workloads) == 1
    }


DECIDED = decided()


def rows() -> list[str]:
    """Of the page's table."""
    found = []
    for op in OPS:
        for length in LENGTHS:
            cells = [op, str(length)]
            for direction in DIRECTIONS:
                d = DECIDED[op, length, direction]
                share = d.bound_us[0] / d.us[0]
                cells += [f"{d.us[0]:.1f}", f"{d.bound_us[0]:.1f}", f"{share:.2f}"]
            found.append(f"| {' | '.join(cells)} |")
    return found


def test_the_page_shows_the_tables() -> None:
    section = PAGE.read_text().split("## Tuned tables")[1].split("\n## ")[0]
    assert re.findall(r"^\| \w+ \| \d.*\|$", section, re.MULTILINE) == rows()


@pytest.mark.parametrize("op", OPS)
def test_what_was_tuned_is_legal_and_taken(op: str) -> None:
    """On the GPU that it was tuned on, for the length that it was tuned for."""
    spec = load_spec(folder("ops") / f"{op}.yaml")
    known = tables()
    for length in LENGTHS:
        for direction in DIRECTIONS:
            d = DECIDED[op, length, direction]
            assert d.workloads == (Workload(batch=1, length=length),)
            assert d.checks > 0 and 0 < d.low[0] <= d.us[0] <= d.high[0]
            assert d.us[0] <= d.start_us[0]
            (plan,) = (plan for plan in plans(spec) if plan.name == d.key.plan)
            assert d.numbers in search_space(spec, plan, direction).points
            one = replace(spec, workloads=d.workloads)
            chosen = candidates(one, target("H200"), known=known)[0]
            assert dict(chosen.schedule.numbers(direction)) == dict(d.numbers)
            assert chosen.origins[direction].startswith("tuned on NVIDIA H200")  # exactly


if __name__ == "__main__":
    print("\n".join(rows()))
