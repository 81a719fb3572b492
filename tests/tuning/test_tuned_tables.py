"""The tuned tables of the package, and the page that shows them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from sh2gen.base.resources import folder
from sh2gen.bench.results import read_results
from sh2gen.lower import plans
from sh2gen.schedule.space import search_space
from sh2gen.spec.decode import load_spec
from sh2gen.spec.language import Workload
from sh2gen.targets.target import target
from sh2gen.tuning.choose import candidates, tables
from sh2gen.tuning.tables import Decision, read_tables

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
ROOT = Path(__file__).parent.parent.parent
OPS = ("hyena_se", "hyena_mr", "hyena_li", "short_conv")
LENGTHS = (2048, 8192, 32768, 131072)
DIRECTIONS = ("forward", "backward")


def decided() -> dict[tuple[str, str, tuple[int, ...]], Decision]:
    """By operator, direction and lengths."""
    decisions, damages = read_tables([folder("schedules") / "tuned"])
    assert not damages
    lengths = {d: tuple(workload.length for workload in d.workloads) for d in decisions}
    return {(d.op, d.key.direction, lengths[d]): d for d in decisions}


DECIDED = decided()


def rows() -> list[str]:
    """Of the page's table of single lengths."""
    found = []
    for op in OPS:
        for length in LENGTHS:
            cells = [op, str(length)]
            for direction in DIRECTIONS:
                d = DECIDED[op, direction, (length,)]
                share = d.bound_us[0] / d.us[0]
                cells += [f"{d.us[0]:.1f}", f"{d.bound_us[0]:.1f}", f"{share:.2f}"]
            found.append(f"| {' | '.join(cells)} |")
    return found


def rows_together() -> list[str]:
    """Of the page's table of all lengths at once."""
    found = []
    for op in OPS:
        for direction in DIRECTIONS:
            d = DECIDED[op, direction, LENGTHS]
            pairs = zip(d.us, d.bound_us, strict=True)
            cells = [op, direction, *(f"{us:.1f} ({bound / us:.2f})" for us, bound in pairs)]
            found.append(f"| {' | '.join(cells)} |")
    return found


def test_the_page_shows_the_tables() -> None:
    section = PAGE.read_text().split("## Tuned tables")[1].split("\n#")[0]
    assert re.findall(r"^\| \w+ \| \d.*\|$", section, re.MULTILINE) == rows()
    together = re.findall(r"^\| \w+ \| (?:for|back)ward \|.*\|$", section, re.MULTILINE)
    assert together == rows_together()


@pytest.mark.parametrize("op", OPS)
def test_what_was_tuned_is_legal_and_taken(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the GPU that it was tuned on, for the lengths that it was tuned for."""
    spec = load_spec(folder("ops") / f"{op}.yaml")
    known = tables()
    (version,) = {decision.key.triton for decision in known.decisions}
    monkeypatch.setattr(
        "sh2gen.tuning.choose.triton_version", lambda: version
    )  # whichever is here
    for lengths in (*((length,) for length in LENGTHS), LENGTHS):
        for direction in DIRECTIONS:
            d = DECIDED[op, direction, lengths]
            assert d.workloads == tuple(Workload(batch=1, length=length) for length in lengths)
            assert d.checks > 0
            for low, us, high in zip(d.low, d.us, d.high, strict=True):
                assert 0 < low <= us <= high
            assert cost(d.us, d) <= cost(d.start_us, d)
            (plan,) = (plan for plan in plans(spec) if plan.name == d.key.plan)
            assert d.config in search_space(spec, plan, direction).points
            one = replace(spec, workloads=d.workloads)
            chosen = candidates(one, target("H200"), known=known)[0]
            assert dict(chosen.schedule.config(direction)) == dict(d.config)
            assert chosen.origins[direction].startswith("tuned on NVIDIA H200")  # exactly


def test_the_results_that_are_shipped_are_what_was_decided() -> None:
    """`python benchmarks/from_tables.py --out docs/results/nvidia-h200.json` writes them."""
    found = read_results(ROOT / "docs" / "results" / "nvidia-h200.json")
    assert [one.op for one in found] == ["hyena_se", "hyena_mr", "hyena_li", "short_conv"]
    for one in found:
        assert one.digest == load_spec(folder("ops") / f"{one.op}.yaml").digest
        for direction in DIRECTIONS:
            d = DECIDED[one.op, direction, LENGTHS]
            assert [o.times[direction].median for o in one.outcomes] == list(d.us)
            assert [size.bounds[direction] for size in one.sizes] == list(d.bound_us)


def cost(times: Sequence[float], decision: Decision) -> float:
    """What the search made small: the mean of times over bounds."""
    return fmean(us / bound for us, bound in zip(times, decision.bound_us, strict=True))


if __name__ == "__main__":
    print("\n".join([*rows(), "", *rows_together()]))
