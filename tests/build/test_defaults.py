"""Every default schedule compiles ahead of time for sm_90, fits, and does not spill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sh2gen.build import build, check_fits
from sh2gen.emit import emit
from sh2gen.lower import plans
from sh2gen.resources import folder
from sh2gen.schedule import schedule
from sh2gen.source import Variant
from sh2gen.spec import FeaturizerSpec, OpSpec, Skip, load_spec
from sh2gen.target import target

LONG = ["hyena_mr", "hyena_mr_1b", "hyena_mr_40b", "conv_512"]  # by toeplitz
OPS = sorted(path for path in folder("ops").glob("*.yaml") if path.stem not in LONG)
HYENA = load_spec(folder("ops") / "hyena_se.yaml")


def check(spec: OpSpec, name: str, gpu: str = "sm_90") -> None:
    (plan,) = (p for p in plans(spec, "direct") if p.name == name)
    built = build(emit(spec, plan, schedule(spec, plan)), target(gpu))
    check_fits(built, target(gpu))
    assert {kernel.variant.value for kernel in built.kernels} == {"aligned", "unaligned"}
    for kernel in built.kernels:
        assert kernel.spills == 0, kernel.label
        if kernel.variant == "aligned" and kernel.kernel.role != "reduce" and "/BDL/" in name:
            assert "ld.global.v4" in kernel.ptx or ".v4.b32" in kernel.ptx, "accesses are narrow"


@pytest.mark.parametrize("layout", ["BDL", "BLD"])
@pytest.mark.parametrize("op", OPS, ids=lambda path: path.stem)
def test_shipped_ops(op: Path, layout: str) -> None:
    check(load_spec(op), f"direct/{layout}/recompute")


@pytest.mark.parametrize("layout", ["BDL", "BLD"])
def test_what_saves_the_convolution(layout: str) -> None:
    check(HYENA, f"direct/{layout}/save-conv")


@pytest.mark.parametrize("taps", [6, 7, 16])
def test_longer_filters(taps: int) -> None:
    """On either side of where the default changes, and the longest windows that `direct` takes."""
    longer = replace(HYENA, filter=replace(HYENA.filter, length=taps), skip=Skip.CHANNEL)
    wide = FeaturizerSpec(length=4 if taps == 16 else 3)
    check(replace(longer, featurizer=wide), "direct/BDL/recompute")


@pytest.mark.parametrize("gpu", ["sm_80", "sm_100"])
def test_other_targets(gpu: str) -> None:
    check(load_spec(folder("ops") / "short_conv.yaml"), "direct/BDL/recompute", gpu)


@pytest.mark.parametrize("op", LONG)
def test_long_filters(op: str) -> None:
    """They spill in calls at odd strides and lengths: nothing else may (decision 5)."""
    spec = load_spec(folder("ops") / f"{op}.yaml")
    (plan,) = plans(spec, "toeplitz")
    gpu = target("H200")
    built = build(emit(spec, plan, schedule(spec, plan)), gpu)
    check_fits(built, gpu)
    for kernel in built.kernels:
        assert kernel.spills == 0 or kernel.variant is Variant.UNALIGNED, kernel.label
