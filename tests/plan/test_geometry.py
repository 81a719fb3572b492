"""Grids: every step is computed once, and the rules by which launches are cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sh2gen.plan import geometry
from sh2gen.plan.geometry import (
    Grid,
    may_split,
    sm90_config,
    sm90_grid,
    sm90_suits,
    stream_grid,
    tile_grid,
    walk_grid,
)

GRIDS = (tile_grid, stream_grid, walk_grid, sm90_grid)
POWERS = st.sampled_from([2**n for n in range(8)])


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes and a config of any kernel."""
    width, groups = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    names = ("BLOCK_D", "BLOCK_T", "SEGMENTS", "TILES")
    config = {name: draw(POWERS) for name in names} | {"PROGRAMS": draw(st.integers(1, 4096))}
    return {
        "batch": draw(st.integers(0, 5)),
        "steps": draw(st.integers(0, 70_000) | st.integers(0, 2**30)),
        "channels": width * groups,
        "width": width,
        "config": config,
    }


def steps_of_split(grid: Callable[..., Grid], found: Grid, config: dict[str, int]) -> int:
    """How many steps a program of a grid computes."""
    segments = 1 if grid is tile_grid else config["SEGMENTS"]
    return found.tiles * segments * config["BLOCK_T"]


@pytest.mark.parametrize("grid", GRIDS)
@given(call=calls())
def test_programs_are_those_of_every_sequence_split_and_column(
    grid: Callable[..., Grid], call: dict[str, Any]
) -> None:
    found = grid(**call)
    assert found.programs == call["batch"] * found.splits * found.columns
    assert grid(**call | {"batch": 1})._replace(programs=0) == found._replace(programs=0)


@pytest.mark.parametrize("grid", GRIDS)
@given(call=calls())
def test_all_steps_are_covered_and_no_split_is_empty(
    grid: Callable[..., Grid], call: dict[str, Any]
) -> None:
    found, steps = grid(**call), call["steps"]
    each = steps_of_split(grid, found, call["config"])
    assert found.splits * each >= steps > (found.splits - 1) * each or steps == found.splits == 0


@given(call=calls())
def test_all_channels_are_covered(call: dict[str, Any]) -> None:
    channels, width, block = call["channels"], call["width"], call["config"]["BLOCK_D"]
    columns = tile_grid(**call).columns
    assert columns * block >= channels > (columns - 1) * block
    assert walk_grid(**call).columns == channels
    sharers = geometry.sharers(width, call["config"])
    assert sharers * block >= width > (sharers - 1) * block, "no program has two groups"
    assert stream_grid(**call).columns == sm90_grid(**call).columns == sharers * channels // width


@given(call=calls())
def test_segments_of_streams_are_as_long_as_wanted_but_for_few_or_many_steps(
    call: dict[str, Any],
) -> None:
    wanted, found = call["config"]["TILES"], stream_grid(**call)
    assert found.sums == call["config"]["SEGMENTS"]
    assert found.tiles >= 1 and found.splits <= 32
    tiles = -(-call["steps"] // (call["config"]["BLOCK_T"] * call["config"]["SEGMENTS"]))
    if found.tiles > wanted:
        assert tiles > 32 * (found.tiles - 1), "no longer than 32 splits need"
    if found.tiles < wanted:
        assert found.splits <= 1, "one split has all tiles"


@given(call=calls())
def test_whole_segments_end_with_the_tiles(call: dict[str, Any]) -> None:
    config = call["config"]
    found = stream_grid(**call, whole=True)
    assert found.tiles <= stream_grid(**call).tiles
    in_all = -(-call["steps"] // (config["BLOCK_T"] * config["SEGMENTS"]))
    assert found.splits * found.tiles == in_all or call["steps"] == 0


@given(call=calls())
def test_walks_are_split_into_four_or_more_of_two_tiles_or_more_or_not_at_all(
    call: dict[str, Any],
) -> None:
    config, channels = call["config"], call["channels"]
    in_all = -(-call["steps"] // (config["BLOCK_T"] * config["SEGMENTS"]))
    found = walk_grid(**call)
    if found.splits > 1:
        assert found.splits >= 4 and found.tiles >= 2
        assert found.splits * channels <= config["PROGRAMS"], "no more programs than are wanted"
        assert may_split(channels, config)
    else:
        assert found.tiles == in_all and found.splits == min(1, in_all)


@given(call=calls())
def test_long_walks_are_split_wherever_they_may_be(call: dict[str, Any]) -> None:
    config = call["config"]
    assume(may_split(call["channels"], config))
    # So many tiles that no rounding leaves fewer than four splits.
    steps = 2 * config["PROGRAMS"] ** 2 * config["BLOCK_T"] * config["SEGMENTS"]
    assert walk_grid(**call | {"steps": steps}).splits >= 4


@given(call=calls(), tiles=st.integers(0, 64), block=st.sampled_from((16, 32, 64, 128)))
def test_the_variant_for_sm_90_has_128_rows_and_two_segments_a_sum(
    call: dict[str, Any], tiles: int, block: int
) -> None:
    own = sm90_config(call["config"] | {"TILES_SM90": tiles, "BLOCK_D": block})
    assert bool(own) == bool(tiles)
    if own:
        assert own["BLOCK_D"] * own["SEGMENTS"] == 128 and own["TILES"] == tiles
        found, usual = (grid(**call | {"config": own}) for grid in (sm90_grid, stream_grid))
        assert found == usual._replace(sums=own["SEGMENTS"] // 2)
    assert sm90_config({"BLOCK_D": block}) == {}


@given(bounds=st.tuples(*[st.integers(-64, 4096)] * 3), steps=st.integers(0, 4096))
def test_what_suits_sm_90(bounds: tuple[int, int, int], steps: int) -> None:
    config = {"BLOCK_T": 64, "SEGMENTS": 8}
    suits = sm90_suits(steps, steps, bounds, config)
    assert suits == (steps > 896 and not any(bound % 8 for bound in bounds))
    assert not sm90_suits(2**29, 4096, (0, 4096, 4096), config)
