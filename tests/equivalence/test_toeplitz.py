"""Streams of Toeplitz products, under Triton's interpreter, compute what the reference says.

Few programs each: segments side by side, tiles along time, parts of groups and ragged ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sh2gen.lower import plans
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from tests.equivalence.test_interpreter import FLOAT32, check, results
from tests.strategies import register_profiles
from tests.strategies_schedules import (
    Case,
    assert_close,
    canonical,
    interpreted,
    pack,
    random_tensors,
    transposed,
)

register_profiles()
BLOCK = 16
LAYOUTS = pytest.mark.parametrize("layout", ["BDL", "BLD"])
BOTH = {"pre": True, "post": True}


def make(taps: int = 7, groups: int = 1, width: int = 3, **fields: Any) -> OpSpec:
    """Only the convolution, unless fields say more."""
    inner: dict[str, Any] = {"kind": "explicit", "length": taps, "groups": groups}
    inner |= fields.pop("filter", {})
    return spec_from_dict({"op": "probe", "channels": groups * width, "filter": inner} | fields)


def small_case(spec: OpSpec, layout: str, length: int, *, batch: int = 1, **config: int) -> Case:
    """Sixteen rows to a product; a width that they do not divide takes several parts."""
    plan = next(p for p in plans(spec, "toeplitz") if p.layout == layout)
    rows = config.get("BLOCK_D", min(4, 1 << (spec.group_width - 1).bit_length()))
    given = {"ROWS": 8, "BLOCK_D": rows, "SEGMENTS": max(1, 16 // rows), "BLOCK_T": BLOCK}
    given |= {"TILES": 2, "PREFETCH": 1, "num_warps": 4, "maxnreg": 0} | config
    return Case(
        spec, plan, schedule(spec, plan, {"forward": given, "backward": given}), batch, length
    )


# ---- whatever is drawn, first because it takes longest ------------------------------------------

NIGHTLY = settings.get_current_profile_name() == "nightly"
WIDTHS = (1, 3, 4, 9, 15, 16, *([64] if NIGHTLY else []))
MOST_TAPS = 600 if NIGHTLY else 150
MOST_VISITS = 200 if NIGHTLY else 16  # of tiles, by all programs


@st.composite
def cases(draw: st.DrawFn, layout: str) -> Case:
    """Operators, schedules and shapes of a handful of programs."""
    width, groups = draw(st.sampled_from(WIDTHS)), draw(st.sampled_from((1, 2)))
    block = draw(st.sampled_from((16, 32, 64)))
    near = st.sampled_from((1, 2, block - 1, block, block + 1, 2 * block + 1))
    taps = draw(near | st.integers(1, MOST_TAPS))
    gates = {"pre": draw(st.booleans()), "post": draw(st.booleans())}
    featurizer = draw(st.sampled_from(("none", {"length": 2}, {"length": 4, "taps": "lag_last"})))
    skip = draw(st.sampled_from(("none", "channel", "group")))
    bias = draw(st.sampled_from(("none", "ungated")))
    order = draw(st.sampled_from(("lag_first", "lag_last")))
    fields = {"gates": gates, "featurizer": featurizer, "skip": skip, "bias": bias}
    spec = make(taps, groups, width, filter={"taps": order}, **fields)
    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < 2 * width and 4 * n >= width]
    rows = draw(st.sampled_from(sizes))
    segments = max(1, 16 // rows)
    tiles = draw(st.sampled_from((1, 2)))

    def visits(batch: int, length: int) -> int:
        programs = batch * groups * -(-width // rows) * -(-length // (block * segments * tiles))
        return programs * (tiles + 1 + -(-(taps - 1) // block))

    lengths = (1, 8, block + 3, block * segments, block * segments + 9, taps + block + 5)
    shapes = [(b, n) for b in (1, 2, 3) for n in lengths if visits(b, n) <= MOST_VISITS]
    batch, length = draw(st.sampled_from(shapes or [(1, 1)]))
    config = {"BLOCK_D": rows, "SEGMENTS": segments, "BLOCK_T": block, "TILES": tiles}
    return small_case(spec, layout, length, batch=batch, **config)


@LAYOUTS
@given(data=st.data(), dtype=st.sampled_from((torch.float32, torch.float16)))
@settings(
    max_examples=max(7, settings().max_examples // 20),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes minutes here
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_what_is_drawn(
    tmp_path: Path, layout: str, data: st.DataObject, dtype: torch.dtype
) -> None:
    check(data.draw(cases(layout)), tmp_path, dtype)


# ---- taps and lengths ---------------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize("taps", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 1, 128])
def test_every_number_of_taps(taps: int, layout: str, tmp_path: Path) -> None:
    spec = make(taps, gates={"pre": False, "post": True}, skip="channel")
    check(small_case(spec, layout, 70), tmp_path, torch.float32)


@pytest.mark.parametrize("taps", [1, 17, 32, 33])
def test_taps_around_longer_blocks(taps: int, tmp_path: Path) -> None:
    check(small_case(make(taps), "BDL", 75, BLOCK_T=32), tmp_path, torch.float32)


def test_many_taps(tmp_path: Path) -> None:
    """More than the sequence has steps before its last quarter."""
    check(small_case(make(600), "BDL", 800, BLOCK_T=64, TILES=4), tmp_path, torch.float32)


LENGTHS = [1, 2, 7, 8, 15, 16, 17, 64, 127, 128, 129]


@pytest.mark.parametrize(
    ("layout", "length"), [("BDL", n) for n in LENGTHS] + [("BLD", n) for n in LENGTHS[::2]]
)
def test_every_length(length: int, layout: str, tmp_path: Path) -> None:
    """Of a tile, of segments, and of a program, which has 128 steps; 40 taps exceed many."""
    check(small_case(make(40), layout, length), tmp_path, torch.float32)


@pytest.mark.parametrize("taps", [1, 2, 40])
@pytest.mark.parametrize("length", [1, 33])
def test_featurizers_at_short_lengths(taps: int, length: int, tmp_path: Path) -> None:
    spec = make(taps, featurizer={"length": 3}, gates=BOTH, skip="group")
    check(small_case(spec, "BDL", length), tmp_path, torch.float32)


# ---- structures ---------------------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize("width", [1, 3, 15, 16, 40])
def test_every_width(width: int, layout: str, tmp_path: Path) -> None:
    """One channel, parts of a group, and parts that a group does not fill."""
    groups = 2 if width < 15 else 1
    spec = make(19, groups, width, gates={"pre": True, "post": False})
    rows = min(32, 1 << (width - 1).bit_length())
    config = {"BLOCK_D": rows, "SEGMENTS": max(1, 16 // rows)}
    check(small_case(spec, layout, 45, **config), tmp_path, torch.float32)


STRUCTURES: list[dict[str, Any]] = [
    {},
    {"gates": {"pre": True, "post": False}},
    {"gates": {"pre": False, "post": True}, "bias": "gated"},
    {"gates": BOTH, "skip": "group", "bias": "ungated"},
    {"featurizer": {"length": 1}, "gates": {"pre": True, "post": False}},
    {"featurizer": {"length": 2}, "skip": "channel"},
    {"featurizer": {"length": 4, "taps": "lag_last"}, "gates": BOTH, "skip": "channel"},
    {"featurizer": {"length": 3}, "gates": BOTH, "bias": "gated"},
    {"filter": {"taps": "lag_last"}, "bias": "ungated"},
    {
        "filter": {"kind": "decay", "decay": {"preset": "strong", "cache_length": 90}},
        "gates": BOTH,
        "skip": "group",
    },
    {
        "filter": {
            "kind": "decay",
            "taps": "lag_last",
            "decay": {"preset": "weak", "cache_length": 18},
        },
        "featurizer": {"length": 3},
    },
]


@pytest.mark.parametrize("number", range(len(STRUCTURES)))
def test_every_structure(number: int, tmp_path: Path) -> None:
    """In one layout each: helpers of layouts know nothing of structures."""
    spec = make(18, **STRUCTURES[number])
    check(small_case(spec, ["BDL", "BLD"][number % 2], 75), tmp_path, torch.float32)


@LAYOUTS
def test_float16(layout: str, tmp_path: Path) -> None:
    spec = make(21, featurizer={"length": 3}, gates=BOTH, skip="channel")
    check(small_case(spec, layout, 41), tmp_path, torch.float16)


@LAYOUTS
@pytest.mark.parametrize("projection", ["thirds", "interleaved"])
def test_packed_features(projection: str, layout: str, tmp_path: Path) -> None:
    fields = {"featurizer": {"length": 3}, "gates": BOTH, "layout": {"projection": projection}}
    spec = make(20, **fields)
    case = small_case(spec, layout, 43, batch=2)
    runner = interpreted(spec, case.plan, case.schedule, tmp_path)
    inputs, parameters, dy = random_tensors(spec, 2, 43, dtype=torch.float32)
    features = {"features": transposed(pack(spec, inputs), layout)}
    y = canonical(runner.forward_packed(features, parameters), layout)
    gradients = runner.gradients(features, parameters, transposed(dy, layout))
    unpacked = runner.namespace.unpack([gradients.pop("features")])
    gradients |= {
        name: canonical(g, layout) for name, g in zip(spec.inputs, unpacked, strict=True)
    }
    assert_close(spec, inputs, parameters, dy, y, gradients, unit=FLOAT32)


# ---- schedules ----------------------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize(("segments", "block"), [(1, 32), (2, 16), (4, 16)])
def test_everything_at_once(segments: int, block: int, layout: str, tmp_path: Path) -> None:
    """Two sequences, and programs, segments and tiles along time, the last of each ragged."""
    rows = 16 // segments
    length = 2 * block * segments + block * (segments + 1) // 2 + 5
    spec = make(block + 9, 1, rows - 1, featurizer={"length": 3}, gates=BOTH, skip="channel")
    case = small_case(
        spec, layout, length, batch=2, BLOCK_D=rows, SEGMENTS=segments, BLOCK_T=block
    )
    check(case, tmp_path, torch.float32)


CHOICES: list[dict[str, int]] = [
    {"BLOCK_D": 16, "SEGMENTS": 1, "TILES": 8},
    {"BLOCK_D": 8, "SEGMENTS": 2, "TILES": 1},
    {"BLOCK_D": 4, "SEGMENTS": 4, "BLOCK_T": 32, "TILES": 2},
    {"BLOCK_D": 2, "SEGMENTS": 16, "PREFETCH": 3, "num_warps": 8},
    {"BLOCK_D": 1, "SEGMENTS": 16, "BLOCK_T": 64},
]


@LAYOUTS
def test_block_sizes_do_not_matter(layout: str, tmp_path: Path) -> None:
    spec = make(35, width=9, skip="channel", featurizer={"length": 2})
    length = 101
    inputs, parameters, dy = random_tensors(spec, 1, length, dtype=torch.float32)
    laid_out = {name: transposed(x, layout) for name, x in inputs.items()}
    for config in CHOICES if layout == "BDL" else CHOICES[::2]:
        case = small_case(spec, layout, length, **config)
        runner = interpreted(spec, case.plan, case.schedule, tmp_path)
        y, gradients = results(runner, laid_out, parameters, transposed(dy, layout), layout)
        assert_close(spec, inputs, parameters, dy, y, gradients, unit=FLOAT32)


def test_the_same_call_gives_the_same_bits(tmp_path: Path) -> None:
    spec = make(20, gates=BOTH)
    case = small_case(spec, "BDL", 150)
    runner = interpreted(spec, case.plan, case.schedule, tmp_path)
    inputs, parameters, dy = random_tensors(spec, 1, 150, dtype=torch.float32)
    (y, first), (again, second) = (
        results(runner, inputs, parameters, dy, "BDL") for _ in range(2)
    )
    assert torch.equal(y, again)
    assert all(torch.equal(first[name], second[name]) for name in first)
