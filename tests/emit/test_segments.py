"""Every kernel takes segments: history before it, and a range of steps to write."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from sh2gen.lower import plans
from sh2gen.runtime.operator import InterpreterRunner
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from tests.strategies_schedules import (
    assert_close,
    canonical,
    interpreted,
    random_tensors,
    transposed,
)

LENGTH = 45
TILE = {"BDL": 32, "BLD": 8}  # BLOCK_T, of forward and backward
REACH = (4 - 1) + (3 - 1)  # steps of history that matter: inner filter and featurizer


def spec_of() -> OpSpec:
    return spec_from_dict(
        {
            "op": "segmented",
            "channels": 4,
            "filter": {"kind": "explicit", "length": 4, "groups": 2},
            "featurizer": {"length": 3},
            "gates": {"pre": True, "post": True},
            "skip": "channel",
            "bias": "ungated",
        }
    )


class Whole:
    """One operator on one sequence, in one launch of each kernel."""

    def __init__(self, layout: str, saved: bool, folder: Path) -> None:
        self.spec, self.layout = spec_of(), layout
        plan = next(
            p for p in plans(self.spec, "direct") if p.layout == layout and bool(p.saved) == saved
        )
        block_d = 16 if layout == "BDL" else 64
        config = {"ROWS": 8, "BLOCK_D": block_d, "BLOCK_T": TILE[layout]}
        config |= {"TILES": 1, "num_warps": 1}
        made = schedule(self.spec, plan, {"forward": config, "backward": config})
        self.runner: InterpreterRunner = interpreted(self.spec, plan, made, folder)
        self.inputs, self.named, self.dy = random_tensors(
            self.spec, 1, LENGTH, dtype=torch.float32
        )
        self.parameters = list(self.named.values())
        self.stored = self.forward(0, LENGTH)
        self.gradients = self.backward(self.dy, 0, LENGTH, [s.clone() for s in self.stored[1:]])

    @property
    def module(self) -> ModuleType:
        return self.runner.namespace

    def tensors(self, start: int, stop: int) -> list[Tensor]:
        return [transposed(x[..., start:stop], self.layout) for x in self.inputs.values()]

    def forward(self, start: int, stop: int, **segment: Any) -> list[Tensor]:
        """launch_forward on the steps start .. stop - 1 of x: (B, D, L) each."""
        found = self.module.launch_forward(self.tensors(start, stop), self.parameters, **segment)
        return [canonical(x, self.layout) for x in found]

    def backward(
        self, dy: Tensor, start: int, stop: int, saved: list[Tensor], **segment: Any
    ) -> dict[str, Tensor]:
        found = self.module.launch_backward(
            transposed(dy, self.layout),
            self.tensors(start, stop),
            self.parameters,
            [transposed(x, self.layout) for x in saved],
            **segment,
        )
        names = (*self.spec.inputs, *self.named)
        return {
            name: canonical(x, self.layout) if name in self.inputs else x
            for name, x in zip(names, found, strict=True)
        }


@pytest.fixture(scope="module", params=["BDL", "BLD"])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[False, True], ids=["recompute", "save"])
def whole(
    layout: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Whole]:
    yield Whole(layout, bool(request.param), tmp_path_factory.mktemp("segments"))


def test_the_whole_is_right(whole: Whole) -> None:
    gradients = whole.gradients
    assert_close(
        whole.spec,
        whole.inputs,
        whole.named,
        whole.dy,
        whole.stored[0],
        gradients,
        unit=2.0**-24,
    )


@pytest.mark.parametrize("context", [REACH, REACH + 6, None], ids=["just enough", "more", "all"])
def test_chunks_with_their_history_equal_the_whole(whole: Whole, context: int | None) -> None:
    cuts = [0, 1, 9, 30, LENGTH]
    for begin, end in pairwise(cuts):
        past = begin if context is None else min(begin, context)
        found = whole.forward(begin - past, end, context=past)
        for value, expected in zip(found, whole.stored, strict=True):
            assert torch.equal(value, expected[..., begin:end]), f"{begin} .. {end}"


def test_too_little_history_does_not(whole: Whole) -> None:
    found = whole.forward(20 - REACH + 1, 30, context=REACH - 1)
    assert not torch.equal(found[0], whole.stored[0][..., 20:30])


def test_ranges_of_a_segment_equal_the_whole(whole: Whole) -> None:
    tile = TILE[whole.layout]
    for begin, end in [(0, tile), (5, 5 + tile), (tile, None), (LENGTH - 1, None), (7, 7)]:
        found = whole.forward(0, LENGTH, begin=begin, end=end)
        for value, expected in zip(found, whole.stored, strict=True):
            assert torch.equal(value, expected[..., begin:end])


def test_a_range_of_a_segment_with_history(whole: Whole) -> None:
    tile = TILE[whole.layout]
    found = whole.forward(3, LENGTH, context=4, begin=2, end=2 + tile)
    # Three steps are out of sight, but the history of four and two more hides that.
    assert torch.equal(found[0], whole.stored[0][..., 9 : 9 + tile])


def test_gradients_over_ranges_add_up(whole: Whole) -> None:
    tile = TILE[whole.layout]
    cuts = [0, tile, LENGTH] if whole.layout == "BDL" else [0, tile, 4 * tile, LENGTH]
    saved = whole.stored[1:]
    parts = [
        whole.backward(whole.dy, 0, LENGTH, saved, begin=begin, end=end)
        for begin, end in pairwise(cuts)
    ]
    for name, expected in whole.gradients.items():
        if name in whole.inputs:
            assert torch.equal(torch.cat([p[name] for p in parts], -1), expected), name
        else:
            total = sum(p[name].double() for p in parts)
            torch.testing.assert_close(total, expected.double(), rtol=1e-5, atol=1e-5)


def test_gradients_of_a_segment_with_history(whole: Whole) -> None:
    """History is read and gets no gradient; sums are over the steps of the segment."""
    past = 11
    saved = [x[..., past:] for x in whole.stored[1:]]
    found = whole.backward(whole.dy[..., past:], 0, LENGTH, saved, context=past)
    expected = whole.backward(whole.dy, 0, LENGTH, whole.stored[1:], begin=past)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
        if name in whole.inputs:
            assert torch.equal(value, whole.gradients[name][..., past:]), name


def test_an_empty_range_has_no_gradients(whole: Whole) -> None:
    found = whole.backward(whole.dy, 0, LENGTH, whole.stored[1:], begin=5, end=5)
    for name, value in found.items():
        assert value.shape[-1] == 0 if name in whole.inputs else not value.any()


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ({"begin": 5, "end": 4}, "not within a segment"),
        ({"begin": -1}, "not within a segment"),
        ({"end": LENGTH + 1}, "not within a segment"),
        ({"context": LENGTH + 1}, "not within a segment"),
        ({"context": -1}, "not within a segment"),
        ({"context": 40, "end": 8}, "not within a segment"),
        ({"end": 7}, "no multiple of the tile"),
    ],
)
def test_impossible_ranges_are_refused(
    whole: Whole, segment: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        whole.forward(0, LENGTH, **segment)
