"""`bench --from`: files of results, those of several runs and those that are slightly wrong."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from sh2gen.bench.results import read_results
from sh2gen.bench.table import table
from sh2gen.cli.cli import main
from sh2gen.runtime.measure import Timing
from tests.synthetic import LENGTHS, bench_results


def command(*arguments: str) -> Any:
    return CliRunner().invoke(main, ("bench", *arguments))


def test_what_json_printed_of_several_files_is_read_back(tmp_path: Path) -> None:
    one, two, both = (tmp_path / f"{name}.json" for name in ("one", "two", "both"))
    one.write_text(json.dumps(bench_results().to_dict()))
    two.write_text(json.dumps(replace(bench_results((8191,)), op="other").to_dict()))
    files = (f"--from={one}", f"--from={two}")
    both.write_text(command(*files, "--json").stdout)
    assert command(f"--from={both}").stdout == command(*files).stdout
    assert command(f"--from={both}", "--json").stdout == both.read_text()
    three = json.loads(command(f"--from={both}", f"--from={one}", "--json").stdout)
    assert [found["op"] for found in three] == ["invented", "other", "invented"]
    result = command(f"--from={both}", f"--from={one}", f"--plots={tmp_path}/figures")
    assert result.exit_code == 2 and f"2 results are of invented ({both}, {one})" in result.stderr


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """It called a baseline a contender, had other numbers for memory, no wall times, and did not
    decode.
    """
    path = tmp_path / "then.json"
    plain = bench_results().to_dict()
    for entry in plain["outcomes"]:
        entry["contender"], entry["memory"] = entry.pop("baseline"), {"forward": 1.5}
        del entry["peak"], entry["step"]
    for size in plain["sizes"]:
        del size["peak"]
    del plain["steps"]
    path.write_text(json.dumps(plain))
    (found,) = read_results(path)
    now = bench_results()
    assert found == replace(
        now,
        outcomes=tuple(replace(o, peak={}, step=None) for o in now.outcomes),
        sizes=tuple(replace(s, peak={}) for s in now.sizes),
        steps=(),
    )
    assert "activations" not in table(found).split("+- half")[0]


DROPPED = object()
PLAIN: dict[str, Any] = json.loads(json.dumps(bench_results(LENGTHS[:2]).to_dict()))
Place = tuple[str | int, ...]


def places(plain: Any, place: Place = ()) -> Iterator[Place]:
    """Of every value that is inside of another."""
    inside = plain.items() if isinstance(plain, dict) else enumerate(plain)
    for key, value in inside:
        yield (*place, key)
        if isinstance(value, dict | list):
            yield from places(value, (*place, key))


# One of each kind: of items of a list the first that has it.
PLACES = tuple(
    {
        tuple("[]" if isinstance(k, int) else k for k in p): p for p in reversed([*places(PLAIN)])
    }.values()
)


def changed(place: Place, value: Any, path: Path) -> Path:
    """A file of results in which one value is another, or dropped."""
    plain = copy.deepcopy(PLAIN)
    inside: Any = plain
    for key in place[:-1]:
        inside = inside[key]
    if value is DROPPED:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    path.write_text(json.dumps(plain))
    return path


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("versions",), None, "versions must be an object, not null"),
        (("origins",), None, "origins must be an object, not null"),
        (("gpu",), None, "gpu must be a text, not null"),
        (("checks",), DROPPED, "checks is missing"),
        (("nonsense",), 1, 'unknown field "nonsense"'),
        (("op",), "../x", 'op must be the name of an operator, not "../x"'),
        (("channels",), None, "channels must be a whole number, not null"),
        (("channels",), 0, "channels must be positive, not 0"),
        (("bound_bytes",), {}, "bound_bytes.forward is missing"),
        (("sizes",), [], "sizes must not be empty"),
        (("sizes",), [{"batch": 1}], "sizes[0].length is missing"),
        (("sizes", 0, "batch"), 7, "outcomes[0] must have batch and length of one of sizes, not"),
        (("sizes", 1, "bounds"), {}, "sizes[1].bounds.forward is missing"),
        (
            ("sizes", 1, "bounds", "forward"),
            "x",
            'sizes[1].bounds.forward must be a number, not "',
        ),
        (("sizes", 1, "bounds", "both"), 0, "sizes[1].bounds.both must be positive, not 0"),
        (("efforts", "forward", "bytes"), 0, "efforts.forward.bytes must be positive, not 0"),
        (("efforts", "forward", "flops"), DROPPED, "efforts.forward.flops is missing"),
        (("outcomes", 0), 3, "outcomes[0] must be an object, not 3"),
        (("outcomes", 0, "shares"), {}, "outcomes[0].shares.forward is missing"),
        (("outcomes", 1, "captured"), DROPPED, "outcomes[1].captured is missing"),
        (("outcomes", 0, "batch"), "q", 'outcomes[0].batch must be a whole number, not "q"'),
        (("outcomes", 0, "batch"), None, "outcomes[0] must have batch and length of one of sizes"),
        (("outcomes", 0, "error"), "q", 'outcomes[0].error must be a number, not "q"'),
        (("outcomes", 0, "peak"), None, "outcomes[0].peak must be an object, not null"),
        *(
            (
                ("outcomes", 0, "times", "forward", "median"),
                us,
                f"outcomes[0].times.forward.median must be positive, not {us}",
            )
            for us in (0, -1.5)
        ),
    ],
)
def test_what_is_wrong_with_a_file_of_results_is_named(
    place: Place, value: Any, words: str, tmp_path: Path
) -> None:
    path = changed(place, value, tmp_path / "results.json")
    result = command(f"--from={path}")
    assert result.exit_code == 2 and result.stdout == ""
    assert f"error[C006]: {path} is not what `bench --json` prints: {words}" in result.stderr


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        (("sizes", 0, "bounds", "forward"), "bounds in us: forward -, backward 33.4, both 54.8;"),
        (("sizes", 0, "predicted", "backward"), "predicted for H200: forward 23.5, backward -"),
        (("outcomes", 2, "times", "forward", "median"), "eager BDL - 0.06 - 735.8 +-3% 0.05"),
        (("outcomes", 2, "times", "forward", "low"), "eager BDL 342.1 0.06 12.31 735.8 +-3% 0.05"),
        (("outcomes", 0, "times", "forward", "median"), "eager BDL 342.1 +-2% 0.06 735.8 +-3%"),
        (("outcomes", 2, "shares", "forward"), "eager BDL 342.1 +-2% - 12.31 735.8 +-3% 0.05"),
        (("outcomes", 2, "peak", "forward"), "2.3e-03 2.6e-03 - / 5.10"),
        (("outcomes", 2, "error"), "0.05 11.00 1617 11.00 2.6e-03 1.00 / 5.10"),
    ],
)
def test_a_number_that_is_null_is_shown_as_missing(
    place: Place, shown: str, tmp_path: Path
) -> None:
    """And is null again in what --json prints."""
    path = changed(place, None, tmp_path / "results.json")
    result = command(f"--from={path}")
    assert result.exit_code == 0, result.stderr
    assert shown in " ".join(result.stdout.split())
    found = json.loads(command(f"--from={path}", "--json").stdout)
    for key in place:
        found = found[key]
    assert found is None


def test_numbers_that_are_not_finite_are_shown_like_null(tmp_path: Path) -> None:
    """Those of a run that was just measured: what was read back is shown the same."""
    own, *others = bench_results().outcomes
    endless = Timing(low=math.inf, median=math.inf, high=math.inf)
    results = replace(
        bench_results(),
        outcomes=(replace(own, times={**own.times, "forward": endless}), *others),
        sizes=tuple(
            replace(s, predicted={"forward": math.inf, "backward": math.nan})
            for s in bench_results().sizes
        ),
    )
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results.to_dict(), allow_nan=False))
    (found,) = read_results(path)
    assert table(found) == table(results) and "inf" not in table(results).split()
    assert found.to_dict() == results.to_dict()


VALUES = (DROPPED, None, True, 0, -1, 1, 0.5, 10**400, "", "x", [], ["x"], [None], {}, {"x": 1})


@given(place=st.sampled_from(PLACES), value=st.sampled_from(VALUES))
def test_whatever_one_value_is_results_are_shown_or_refused(place: Place, value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = changed(place, value, Path(folder) / "results.json")
        for options in ((), ("--json",)):
            result = command(f"--from={path}", *options)
            assert result.exit_code in (0, 2), result.stderr
            assert (result.stdout == "") == (result.exit_code == 2)
            assert result.exit_code == 0 or f"error[C006]: {path} is not what" in result.stderr


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("efforts", "forward"), {"bytes": 8, "flops": 0, "product_flops": 0}),
        (("sizes", 0, "bounds", "forward"), None),
        (("sizes", 0, "predicted", "forward"), None),
        (("outcomes", 0, "times"), {}),
        (("outcomes", 0, "times", "forward", "median"), None),
        (("outcomes", 0, "shares", "forward"), None),
    ],
)
def test_figures_of_what_is_left(place: Place, value: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = changed(place, value, tmp_path / "results.json")
    result = command(f"--from={path}", f"--plots={tmp_path}")
    assert result.exit_code == 0, result.stderr
    assert len(list(tmp_path.glob("*.png"))) == 4


def test_figures_of_no_finite_number(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    def without_numbers(plain: Any) -> Any:
        if isinstance(plain, dict):
            return {k: without_numbers(v) for k, v in plain.items()}
        if isinstance(plain, list):
            return [without_numbers(x) for x in plain]
        return None if isinstance(plain, float) else plain

    path = tmp_path / "results.json"
    path.write_text(json.dumps(without_numbers(PLAIN)))
    result = command(f"--from={path}", f"--plots={tmp_path}")
    assert result.exit_code == 0, result.stderr
    assert len(list(tmp_path.glob("*.png"))) == 4
