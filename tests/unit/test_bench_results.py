"""`bench --from`: files of results, those of several runs and those that are slightly wrong."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sh2gen.cli import main
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


DROPPED = object()
PLAIN: dict[str, Any] = json.loads(json.dumps(bench_results(LENGTHS[:2]).to_dict()))
Place = tuple[str | int, ...]


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
        (("outcomes", 0, "memory"), None, "outcomes[0].memory must be an object, not null"),
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
