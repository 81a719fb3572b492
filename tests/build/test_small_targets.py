"""Defaults fit GPUs with little shared memory: small operators, one an algorithm.

`python benchmarks/fits.py --target sm_86` compiles every shipped operator under every plan.
"""

from __future__ import annotations

import pytest

from sh2gen.build.build import Compilers, build, check_fits
from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.plan.source import Alignment
from sh2gen.schedule.config import schedule
from sh2gen.schedule.space import space
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target, known, target
from sh2gen.tuning.choose import candidates
from tests.gpus import A100, H200

SMALL = [gpu for gpu in known() if gpu.shared_per_block <= 99 * 1024]
GATED = {"channels": 64, "gates": {"pre": True, "post": True}}


def operator(op: str, **filter: object) -> OpSpec:
    return spec_from_dict({"op": op, "channels": 64, "filter": {"groups": 4, **filter}})


SPECS = {
    "direct": operator("few", kind="explicit", length=4),
    "toeplitz": operator("many", kind="explicit", length=48),
    "modal": operator("few_modes", kind="modal", modes=4, parametrisation="log_poles"),
}


def test_which_targets_are_small() -> None:
    assert {gpu.sm for gpu in SMALL} >= {"sm_86", "sm_89", "sm_120"}


@pytest.mark.parametrize("gpu", SMALL, ids=lambda gpu: gpu.sm)
@pytest.mark.parametrize("algorithm", SPECS)
def test_a_default_fits(algorithm: str, gpu: Target, compilers: Compilers) -> None:
    spec = SPECS[algorithm]
    plan = next(p for p in plans(spec, algorithm) if p.layout.value == "BDL")
    source = emit(spec, plan, schedule(spec, plan, target=gpu))
    built = build(source, gpu, alignments=[Alignment.ALIGNED], compilers=compilers)
    check_fits(built, gpu)
    assert built.kernels
    if algorithm == "toeplitz":  # the file has a kernel for sm_90, which is not built for others
        assert any(kernel.gluon for kernel in source.kernels)
    for kernel in built.kernels:
        assert kernel.shared <= gpu.shared_per_block, kernel.label
        assert f".target {gpu.sm}" in kernel.ptx
        assert not kernel.kernel.gluon, "a kernel for sm_90 was built for another GPU"


@pytest.mark.parametrize("fields", [{}, GATED | {"channels": 4096}], ids=["plain", "gated"])
def test_taps_that_do_not_fit_are_left_to_another_plan(fields: dict[str, object]) -> None:
    """1024 taps are 17 matrices of 64 steps by 64, on whatever GPU."""
    groups = 256 if fields else 4096
    of_taps = {"kind": "explicit", "length": 1024, "groups": groups}
    spec = spec_from_dict({"op": "long", "channels": 4096, **fields, "filter": of_taps})
    (first, *others), (large, *_) = (candidates(spec, gpu) for gpu in (SMALL[0], H200))
    assert first.plan.name.startswith("fft/")
    assert first.untaken == (
        "toeplitz/BDL/recompute: its taps take 139,264 bytes of shared memory, and RTX 3090 has "
        "101,376 a block",
    )
    assert min(others, key=lambda c: c.score).score < first.score
    assert not large.untaken
    (asked, *_) = candidates(spec, SMALL[0], plan="toeplitz")  # whoever asks for it may have it
    assert asked.plan.name == "toeplitz/BDL/recompute"


def test_rows_of_products_follow_shared_memory() -> None:
    """64 rows of three inputs in float32 take 147,456 bytes on any target."""
    spec = spec_from_dict(
        {"op": "wide", **GATED, "dtype": {"io": "float32"}}
        | {"filter": {"kind": "explicit", "length": 64, "groups": 4}}
    )
    (plan, *_) = plans(spec, "toeplitz")

    def rows(name: str) -> int:
        config = dict(space(spec, plan, "forward", target(name)).default)
        return config["BLOCK_D"] * config["SEGMENTS"]

    assert rows("H200") == rows("A100") == 64
    assert {rows(gpu.name) for gpu in SMALL} == {32}
    assert space(spec, plan, "forward").default == space(spec, plan, "forward", H200).default


def test_blocks_of_many_modes_follow_the_rows_of_products() -> None:
    spec = spec_from_dict(
        {"op": "many_modes", **GATED}
        | {"filter": {"kind": "modal", "modes": 32, "groups": 64, "parametrisation": "complex"}}
    )
    (plan,) = plans(spec, "modal")
    steps = {
        gpu.name: [
            dict(schedule(spec, plan, target=gpu).config(d))["BLOCK_T"]
            for d in ("forward", "backward")
        ]
        for gpu in (H200, A100, *SMALL)
    }
    assert steps.pop("H200") == [32, 32] and set(map(tuple, steps.values())) == {(16, 16)}
