"""Streams take segments as tiles do: history before them, and a range of steps to write."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sh2gen.lower import plans
from sh2gen.runtime.operator import InterpreterRunner
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import spec_from_dict
from tests.strategies_schedules import (
    assert_close,
    canonical,
    interpreted,
    random_tensors,
    transposed,
)

LENGTH = 101
TILE = 16  # BLOCK_T, of forward and backward
WALKED = 4 * TILE  # BLOCK_T * SEGMENTS: sums of backward end with whole segments
REACH = (19 - 1) + (3 - 1)  # steps of history that matter: inner filter and featurizer
NEAR = {"rtol": 1e-5, "atol": 1e-5}  # sums are in another order where blocks begin elsewhere


class Whole:
    """One operator on one sequence, in one launch of each kernel."""

    def __init__(self, layout: str, folder: Path) -> None:
        self.layout = layout
        self.spec = spec_from_dict(
            {
                "op": "segmented",
                "channels": 4,
                "filter": {"kind": "explicit", "length": 19, "groups": 1},
                "featurizer": {"length": 3},
                "gates": {"pre": True, "post": True},
                "skip": "channel",
                "bias": "ungated",
            }
        )
        plan = next(p for p in plans(self.spec, "toeplitz") if p.layout == layout)
        config = {"BLOCK_D": 4, "SEGMENTS": 4, "BLOCK_T": TILE, "TILES": 1, "PREFETCH": 1}
        config |= {"num_warps": 4}
        made = schedule(self.spec, plan, {"forward": config, "backward": config})
        self.runner: InterpreterRunner = interpreted(self.spec, plan, made, folder)
        self.inputs, self.named, self.dy = random_tensors(
            self.spec, 1, LENGTH, dtype=torch.float32
        )
        self.parameters = list(self.named.values())
        self.y = self.forward(0, LENGTH)
        self.gradients = self.backward(self.dy, 0, LENGTH)

    def tensors(self, start: int, stop: int) -> list[Tensor]:
        return [transposed(x[..., start:stop], self.layout) for x in self.inputs.values()]

    def forward(self, start: int, stop: int, **segment: Any) -> Tensor:
        """launch_forward on the steps start .. stop - 1 of x: (B, D, L)."""
        module = self.runner.namespace
        (y,) = module.launch_forward(self.tensors(start, stop), self.parameters, **segment)
        return canonical(y, self.layout)

    def backward(self, dy: Tensor, start: int, stop: int, **segment: Any) -> dict[str, Tensor]:
        found = self.runner.namespace.launch_backward(
            transposed(dy, self.layout),
            self.tensors(start, stop),
            self.parameters,
            [],
            **segment,
        )
        names = (*self.spec.inputs, *self.named)
        return {
            name: canonical(x, self.layout) if name in self.inputs else x
            for name, x in zip(names, found, strict=True)
        }


@pytest.fixture(scope="module", params=["BDL", "BLD"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(str(request.param), tmp_path_factory.mktemp("segments"))


def test_the_whole_is_right(whole: Whole) -> None:
    assert_close(
        whole.spec,
        whole.inputs,
        whole.named,
        whole.dy,
        whole.y,
        whole.gradients,
        unit=2.0**-24,
    )


@pytest.mark.parametrize("context", [REACH, REACH + 6, None], ids=["just enough", "more", "all"])
def test_chunks_with_their_history_equal_the_whole(whole: Whole, context: int | None) -> None:
    for begin, end in pairwise([0, 1, 9, 40, LENGTH]):
        past = begin if context is None else min(begin, context)
        found = whole.forward(begin - past, end, context=past)
        torch.testing.assert_close(found, whole.y[..., begin:end], **NEAR)


def test_too_little_history_does_not(whole: Whole) -> None:
    found = whole.forward(40 - REACH + 1, 50, context=REACH - 1)
    assert not torch.allclose(found, whole.y[..., 40:50], **NEAR)


@pytest.mark.parametrize(
    ("begin", "end"), [(0, TILE), (5, 5 + TILE), (TILE, None), (LENGTH - 1, None), (7, 7)]
)
def test_ranges_of_a_segment_equal_the_whole(whole: Whole, begin: int, end: int | None) -> None:
    found = whole.forward(0, LENGTH, begin=begin, end=end)
    torch.testing.assert_close(found, whole.y[..., begin:end], **NEAR)


def test_a_range_of_a_segment_with_history(whole: Whole) -> None:
    begin = REACH + 1  # of x: one step is out of sight
    found = whole.forward(1, LENGTH, context=REACH - 2, begin=2, end=2 + TILE)
    torch.testing.assert_close(found, whole.y[..., begin : begin + TILE], **NEAR)


@pytest.mark.parametrize(
    "cuts",
    [[0, WALKED, LENGTH], [5, 5 + WALKED, LENGTH]],
    ids=["aligned", "unaligned"],
)
def test_gradients_over_ranges_add_up(whole: Whole, cuts: list[int]) -> None:
    parts = [
        whole.backward(whole.dy, 0, LENGTH, begin=begin, end=end) for begin, end in pairwise(cuts)
    ]
    rest = whole.backward(whole.dy, 0, LENGTH, begin=cuts[0])
    for name, expected in whole.gradients.items():
        if name in whole.inputs:
            found = torch.cat([p[name] for p in parts], -1)
            torch.testing.assert_close(found, expected[..., cuts[0] :], **NEAR)
        else:
            total = sum(p[name].double() for p in parts)
            torch.testing.assert_close(total, rest[name].double(), rtol=1e-5, atol=1e-4)


def test_parameters_have_the_gradients_of_a_range(whole: Whole) -> None:
    """Of the steps of the range alone: those of dy that is zero elsewhere, seen locally."""
    begin, end = 0, WALKED
    found = whole.backward(whole.dy, 0, LENGTH, begin=begin, end=end)
    dy = torch.zeros_like(whole.dy)
    dy[..., begin:end] = whole.dy[..., begin:end]
    alone = whole.backward(dy, 0, LENGTH)
    for name in ("filter", "skip", "bias"):
        torch.testing.assert_close(found[name], alone[name], rtol=1e-5, atol=1e-4)


def test_gradients_of_a_segment_with_history(whole: Whole) -> None:
    """History is read and gets no gradient; sums are over the steps of the segment."""
    past = 27
    found = whole.backward(whole.dy[..., past:], 0, LENGTH, context=past)
    expected = whole.backward(whole.dy, 0, LENGTH, begin=past)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
        if name in whole.inputs:
            torch.testing.assert_close(value, whole.gradients[name][..., past:], **NEAR)


def test_an_empty_range_has_no_gradients(whole: Whole) -> None:
    found = whole.backward(whole.dy, 0, LENGTH, begin=5, end=5)
    for name, value in found.items():
        assert value.shape[-1] == 0 if name in whole.inputs else not value.any()


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ({"begin": 5, "end": 4}, "not within a segment"),
        ({"end": LENGTH + 1}, "not within a segment"),
        ({"context": LENGTH + 1}, "not within a segment"),
        ({"end": 7}, "no multiple of the tile"),
    ],
)
def test_impossible_ranges_are_refused(
    whole: Whole, segment: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        whole.forward(0, LENGTH, **segment)
