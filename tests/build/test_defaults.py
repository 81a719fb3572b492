"""Every default schedule compiles ahead of time for sm_90, fits, and does not spill."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sh2gen.base.resources import folder
from sh2gen.build.build import Built, BuiltKernel, Compilers, check_fits
from sh2gen.build.build import build as build_kernels
from sh2gen.emit.emit import emit
from sh2gen.emit.kernels import StepCall, step_sources
from sh2gen.lower import plans
from sh2gen.plan.kernel import Role
from sh2gen.plan.source import Alignment
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import load_spec
from sh2gen.spec.language import FeaturizerSpec, GateSpec, Precision, Skip, StateSpec
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import target

Build = Callable[..., Built]
ALIGNED = (Alignment.ALIGNED,)
LONG = ["hyena_mr", "hyena_mr_1b", "conv_512"]  # by toeplitz
MODAL = ["hyena_li", "hyena_li_stateful", "s4d_real", "s4d", "h3"]
PLAIN = ["long_conv", "hyena"]  # by fft, without kernels
# Widths that are more of the groups, or of the channels, that 7B has: their kernels differ in the
# number of channels alone.
WIDER = ["hyena_mr_40b", "hyena_se_40b", "hyena_li_40b", "short_conv_40b"]
WIDER += ["hyena_li_1b", "short_conv_1b"]
OTHERS = [*LONG, *MODAL, *PLAIN, *WIDER]
OPS = sorted(path for path in folder("ops").glob("*.yaml") if path.stem not in OTHERS)
HYENA = load_spec(folder("ops") / "hyena_se.yaml")
H200 = target("H200")


@pytest.fixture(scope="module")
def build(compilers: Compilers) -> Build:
    return functools.partial(build_kernels, compilers=compilers)


def of_sequences(kernel: BuiltKernel) -> bool:
    """Whether it reads whole sequences, not partial sums or a few steps of each channel."""
    return not kernel.kernel.reduces and kernel.kernel.role is not Role.DECODE


def check(spec: OpSpec, name: str, build: Build, gpu: str = "sm_90") -> None:
    (plan,) = (p for p in plans(spec, "direct") if p.name == name)
    built = build(emit(spec, plan, schedule(spec, plan)), target(gpu))
    check_fits(built, target(gpu))
    assert {kernel.alignment for kernel in built.kernels} == set(Alignment)
    for kernel in built.kernels:
        assert kernel.spills == 0, kernel.label
        if kernel.alignment == "aligned" and of_sequences(kernel) and "/BDL/" in name:
            assert "ld.global.v4" in kernel.ptx or ".v4.b32" in kernel.ptx, "accesses are narrow"


@pytest.mark.parametrize("layout", ["BDL", "BLD"])
@pytest.mark.parametrize("op", OPS, ids=lambda path: path.stem)
def test_shipped_ops(op: Path, layout: str, build: Build) -> None:
    check(load_spec(op), f"direct/{layout}/recompute", build)


@pytest.mark.parametrize("layout", ["BDL", "BLD"])
def test_what_saves_the_convolution(layout: str, build: Build) -> None:
    check(HYENA, f"direct/{layout}/save-conv", build)


@pytest.mark.parametrize("hint", [0, 1])
def test_a_hint_is_on_every_load_of_activations_and_nowhere_else(hint: int, build: Build) -> None:
    (plan,) = (p for p in plans(HYENA, "direct") if p.name == "direct/BDL/recompute")
    source = emit(HYENA, plan, schedule(HYENA, plan, {"forward": {"EVICT_LAST": hint}}))
    for kernel in build(source, target("sm_90"), alignments=ALIGNED).kernels:
        wide = re.findall(r"ld\.global\S*\.v4\S*", kernel.ptx)
        hinted = [load for load in re.findall(r"ld\.global\S*", kernel.ptx) if "evict" in load]
        assert hinted == (wide if hint and kernel.kernel.role == "forward" else [])
        assert wide or not of_sequences(kernel)


@pytest.mark.parametrize("taps", [6, 7, 16])
def test_longer_filters(taps: int, build: Build) -> None:
    """On either side of where the default changes, and the longest windows that `direct` takes."""
    longer = replace(HYENA, filter=replace(HYENA.filter, length=taps), skip=Skip.CHANNEL)
    wide = FeaturizerSpec(length=4 if taps == 16 else 3)
    check(replace(longer, featurizer=wide), "direct/BDL/recompute", build)


@pytest.mark.parametrize("gpu", ["sm_80", "sm_100"])
def test_other_targets(gpu: str, build: Build) -> None:
    check(load_spec(folder("ops") / "short_conv.yaml"), "direct/BDL/recompute", build, gpu)


@pytest.mark.parametrize("layout", ["BDL", "BLD"])
@pytest.mark.parametrize("op", LONG)
def test_long_filters(op: str, layout: str, build: Build) -> None:
    """They spill in calls at odd strides and lengths: nothing else may (decision 5)."""
    spec = load_spec(folder("ops") / f"{op}.yaml")
    (plan,) = (plan for plan in plans(spec, "toeplitz") if plan.layout == layout)
    built = build(emit(spec, plan, schedule(spec, plan)), H200)
    check_fits(built, H200)
    for kernel in built.kernels:
        narrow = layout == "BLD" and spec.group_width % 8
        if kernel.alignment is Alignment.ALIGNED and not narrow:
            if of_sequences(kernel):
                assert "ld.global.b16" not in kernel.ptx, "loads are narrow"
            if kernel.kernel.role is Role.DECODE and spec.group_width % 8 == 0:
                assert "ld.global.v4" in kernel.ptx, "the ring is read in narrow loads"
                assert kernel.spills == 0, kernel.label
    variants = [kernel for kernel in built.kernels if kernel.kernel.gluon]
    assert len(variants) == (
        op != "conv_512" and layout == "BDL"
    )  # for sm_90, which long filters outgrow


@pytest.mark.parametrize("length", [2, 4])
def test_other_featurizers(length: int, build: Build) -> None:
    """A compiler of Triton 3.6 ended on sums of two products in many a backward kernel."""
    spec = load_spec(folder("ops") / "hyena_mr.yaml")
    spec = replace(spec, featurizer=FeaturizerSpec(length=length))
    (plan,) = (plan for plan in plans(spec, "toeplitz") if plan.layout == "BDL")
    source = emit(spec, plan, schedule(spec, plan))
    (kernel,) = (k for k in source.kernels if k.name == "hyena_mr_backward")
    built = build(replace(source, kernels=(kernel,)), H200, alignments=ALIGNED)
    check_fits(built, H200)


@pytest.mark.parametrize("op", MODAL)
def test_modes(op: str, build: Build) -> None:
    spec = load_spec(folder("ops") / f"{op}.yaml")
    (plan,) = plans(spec, "modal")
    built = build(emit(spec, plan, schedule(spec, plan)), H200)
    check_fits(built, H200)
    history = 3 * 2 if spec.state else 0  # numbers that are read one by one
    for kernel in built.kernels:
        if kernel.alignment is Alignment.ALIGNED and of_sequences(kernel):
            assert kernel.ptx.count("ld.global.b16") <= history, "loads are narrow"
            assert "wgmma.mma_async" in kernel.ptx


@pytest.mark.parametrize(("op", "layout"), [("hyena_se", "BLD"), ("hyena_mr", "BDL")])
def test_taps_after_a_state(op: str, layout: str, build: Build) -> None:
    """Kernels that read rings, and the one that leaves them, fit without spills; those of later
    steps are the operator's own.
    """
    spec = replace(
        load_spec(folder("ops") / f"{op}.yaml"), state=StateSpec(initial=True, final=True)
    )
    (plan, *_) = (plan for plan in plans(spec) if plan.layout == layout)
    built = build(emit(spec, plan, schedule(spec, plan)), H200)
    check_fits(built, H200)
    names = {kernel.kernel.name for kernel in built.kernels}
    assert {f"{op}_{one}" for one in ("leave", "forward_first", "backward_first")} <= names
    assert (f"{op}_backward_sm90" in names) == (op == "hyena_mr")


@pytest.mark.parametrize(
    ("op", "modes", "state"),
    [
        ("hyena_li", 16, False),
        ("hyena_li", 64, True),
        ("h3", 32, False),
        ("h3", 5, True),
        ("s4d_real", 64, False),
    ],
)
def test_modes_of_few_channels(op: str, modes: int, state: bool, build: Build) -> None:
    """Kernels that take states from other splits, and may take one from an earlier chunk."""
    wide = load_spec(folder("ops") / f"{op}.yaml")
    carried = load_spec(folder("ops") / "hyena_li_stateful.yaml").state if state else None
    wide = replace(wide, state=carried, filter=replace(wide.filter, modes=modes))
    spec = replace(wide, channels=64, filter=replace(wide.filter, groups=64 // wide.group_width))
    (plan,) = plans(spec, "modal")
    source = emit(spec, plan, schedule(spec, plan))
    split = [dict(k.constants)["SPLIT"] for k in source.kernels if "SPLIT" in dict(k.constants)]
    assert split == [True, True]
    built = build(source, H200, alignments=ALIGNED)
    check_fits(built, H200)
    joins = "join_splits" in {kernel.kernel.name for kernel in built.kernels}
    assert joins == (spec.featurizer is not None)


@pytest.mark.parametrize("modes", [8, 16])
@pytest.mark.parametrize("op", ["s4d", "h3"])
def test_fewer_pairs(op: str, modes: int, build: Build) -> None:
    """The defaults of small states; those of 32 pairs are the shipped operators'."""
    spec = load_spec(folder("ops") / f"{op}.yaml")
    spec = replace(spec, filter=replace(spec.filter, modes=modes))
    (plan,) = plans(spec, "modal")
    built = build(emit(spec, plan, schedule(spec, plan)), H200)
    check_fits(built, H200)
    for kernel in built.kernels:
        if kernel.alignment is Alignment.ALIGNED and op == "s4d":
            assert kernel.spills == 0, kernel.label


@pytest.mark.parametrize("op", ["hyena_mr", "hyena_li"])
def test_exact_products_are_of_float32(op: str, build: Build) -> None:
    spec = replace(load_spec(folder("ops") / f"{op}.yaml"), precision=Precision.EXACT)
    plan = plans(spec)[0]
    built = build(emit(spec, plan, schedule(spec, plan)), H200)
    check_fits(built, H200)
    assert all("mma" not in kernel.ptx for kernel in built.kernels)


@pytest.mark.parametrize("taps", [1, 65, 129])
@pytest.mark.parametrize("featurizer", [None, 4], ids=["plain", "featurizer"])
def test_variants_for_sm90(taps: int, featurizer: int | None, build: Build) -> None:
    """From one block of taps to the most that fit, of the least operator and of the largest."""
    spec = replace(
        load_spec(folder("ops") / "hyena_mr_1b.yaml"),
        filter=replace(HYENA.filter, length=taps, groups=128),
        featurizer=FeaturizerSpec(length=featurizer) if featurizer else None,
        gates=GateSpec(pre=bool(featurizer), post=bool(featurizer)),
    )
    plan = plans(spec, "toeplitz")[0]
    source = emit(spec, plan, schedule(spec, plan))
    built = build(replace(source, kernels=tuple(k for k in source.kernels if k.gluon)), H200)
    (variant,) = built.kernels
    check_fits(built, H200)
    assert variant.alignment is Alignment.ALIGNED
    assert "wgmma.mma_async" in variant.ptx
    copies = re.findall(
        r"cp\.async\.\w+\.shared\.global\S* \[.*?\], \[.*?\], 0x(\w+)", variant.ptx
    )
    assert set(copies) == {"10"}, "copies are not 16 bytes wide"


def test_a_variant_is_built_for_its_gpu_only(build: Build) -> None:
    spec = load_spec(folder("ops") / "hyena_mr_1b.yaml")
    plan = plans(spec, "toeplitz")[0]
    kernels = [k for k in emit(spec, plan, schedule(spec, plan)).kernels if k.gluon]
    assert [k.runs(Alignment.ALIGNED, 90) for k in kernels] == [True]
    assert not kernels[0].runs(Alignment.ALIGNED, 100) and not kernels[0].runs(
        Alignment.UNALIGNED, 90
    )


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("op", ["hyena_se", "hyena_mr", "hyena_mr_1b", "hyena_li", "h3"])
def test_several_steps_a_call(op: str, draft: bool, build: Build) -> None:
    """Of few rows and of many: four steps, as of drafts, do not spill either."""
    spec = load_spec(folder("ops") / f"{op}.yaml")
    plan = plans(spec)[0]
    default = schedule(spec, plan)
    source = emit(spec, plan, default)
    for batch in (1, 256):
        call = StepCall(batch=batch, steps=4, room=4, draft=draft)
        (one,) = step_sources(spec, plan, default, [call])
        built = build(replace(source, kernels=(one,)), H200, alignments=ALIGNED)
        check_fits(built, H200)
        assert built.kernels[0].spills == 0
