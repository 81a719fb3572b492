"""`sh2gen tune --effort estimate`, and what tuning refuses without looking at a GPU."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from sh2gen.api.tune import estimate_operator
from sh2gen.base.resources import folder
from sh2gen.schedule.space import Constraint, Survey, search_space
from sh2gen.tuning.tables import write_decisions
from tests.cli.commands import run, tuned


def test_estimates_need_no_gpu(op: str) -> None:
    arguments = ("tune", op, "--effort=estimate", "--target=H200")
    result = run(*arguments)
    assert result.exit_code == 0
    blocks = re.split(r"^(?=\w)", result.stdout, flags=re.M)[1:]
    data = json.loads(run(*arguments, "--json").stdout)
    assert [found["direction"] for found in data] == ["forward", "backward"]
    for block, found in zip(blocks, data, strict=True):
        first, *lines, last = block.splitlines()
        dropped = sum(found["dropped"].values())
        assert first == (
            f"small_conv {found['direction']} B=1 L=8192: "
            f"the best of {found['points']} by prediction"
            + f"; constraints dropped {dropped}"
            * (dropped > 0)
        )
        entries = found["best"]
        assert 1 < len(lines) == len(entries) <= 10
        shares = [entry["share"] for entry in entries]
        assert shares == sorted(set(shares), reverse=True)
        for line, entry in zip(lines, entries, strict=True):
            assert line.startswith(f"  {entry['share']:.2f} of the bound  ROWS=")
            config = line.split("  ")[2].split(" ")
            assert config == [f"{n}={v}" for n, v in entry["config"].items() if v]
            assert line.endswith("  (start)") == (entry == found["start"])
        assert last.startswith(f"  the start: {found['start']['share']:.2f} of the bound, rank ")


def test_an_estimate_says_where_the_start_is_and_what_is_alike(op: str) -> None:
    """Configs that differ in what a prediction does not depend on share a line."""
    data = json.loads(run("tune", op, "--effort=estimate", "--target=H200", "--json").stdout)
    estimates = estimate_operator(op, target="H200")
    for problem, found in zip(estimates, data, strict=True):
        predicted = problem.problem.predicted
        start = predicted[problem.problem.start]
        assert found["start"]["config"] == dict(problem.problem.start)
        assert found["start"]["share"] == pytest.approx(1 / start)
        assert found["start"]["rank"] == 1 + sum(
            p < start * (1 - 1e-9) for p in predicted.values()
        )
        for before, after in pairwise(found["best"]):
            assert after["rank"] == before["rank"] + before["tied"] + 1
            assert bool(before["tied"]) == bool(before["free"])
    text = run("tune", op, "--effort=estimate", "--target=H200").stdout
    assert re.search(r"\(and \d+ with other \w+", text)


def test_an_estimate_starts_where_a_search_into_that_folder_would(op: str, tmp_path: Path) -> None:
    decision = tuned().decision
    assert decision is not None
    write_decisions(tmp_path / "tables", [decision])
    arguments = ("tune", op, "--effort=estimate", "--target=H200", "--json")
    starts = [
        json.loads(run(*arguments, *more).stdout)[0]["start"]["config"]["TILES"]
        for more in ((), (f"--out={tmp_path}/tables",))
    ]
    assert starts == [1, 4]


def test_an_estimate_counts_what_constraints_drop() -> None:
    path = str(folder("ops") / "hyena_li.yaml")
    with mock.patch("sh2gen.api.tune.search_space", few):
        text = run("tune", path, "--effort=estimate", "--target=H200").stdout
        data = json.loads(run("tune", path, "--effort=estimate", "--target=H200", "--json").stdout)
    assert "131072: the best of 2 by prediction; constraints dropped 7\n" in text
    assert data[0]["dropped"] == {"A <= B": 7}


def few(spec: Any, plan: Any, direction: str, target: Any) -> Survey:
    points = search_space(spec, plan, direction).points[:2]
    return Survey(points=points, dropped=((Constraint("A <= B", "so"), 7),), repeated=0)


def test_estimates_are_for_each_length_alone_as_searches_are(op: str) -> None:
    def found(*arguments: str) -> list[dict[str, Any]]:
        return list(
            json.loads(run("tune", op, "--effort=estimate", "--target=H200", *arguments).stdout)
        )

    lengths = ("--length=1024", "--length=1000000", "--length=1024")
    both = found("--json", "--batch=4", *lengths)
    assert both == [
        *found("--json", "--batch=4", "--length=1024"),
        *found("--json", "--batch=4", "--length=1000000"),
    ]
    assert [(one["direction"], one["workloads"]) for one in both] == [
        (direction, [{"batch": 4, "length": length}])
        for length in (1024, 1000000)
        for direction in ("forward", "backward")
    ]
    short, long = (max(entry["share"] for entry in both[i]["best"]) for i in (0, 2))
    assert short < long
    text = run("tune", op, "--effort=estimate", "--target=H200", "--batch=4", *lengths).stdout
    assert re.findall(r"^small_conv (.*): the best", text, re.M) == [
        f"{direction} B=4 L={length}"
        for length in (1024, 1000000)
        for direction in ("forward", "backward")
    ]


def test_what_an_estimate_does_not_take_is_refused(op: str) -> None:
    for options in (("--resume",), ("--budget=3",), ("--workers=2",)):
        result = run("tune", op, "--effort=estimate", *options)
        assert result.exit_code == 2 and "for a search" in result.stderr
    result = run("tune", op, "--batch=2")
    assert result.exit_code == 2 and "--batch goes with --length" in result.stderr
