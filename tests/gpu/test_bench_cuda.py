"""`sh2gen bench` on a GPU, for what needs no other package. Run by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sh2gen.api.bench import bench_operator
from sh2gen.base.resources import folder
from sh2gen.bench.results import TIMED
from sh2gen.bench.table import table
from sh2gen.bench.worker import OWN

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("op", ["short_conv", "hyena_mr", "hyena_li"])
def test_pytorch_beside_the_kernels(op: str, tmp_path: Path) -> None:
    names = "eager,compile,fft,fft_given"
    results = bench_operator(folder("ops") / f"{op}.yaml", lengths=[1000, 2048], baselines=names)
    assert results.checks > 0 and "sh2gen" in table(results)
    timed = {o.baseline for o in results.outcomes if o.times}
    modal = op == "hyena_li"
    assert timed == {OWN, "compile", "fft", "fft_given" if modal else "eager"}
    for outcome in results.outcomes:
        if outcome.times:
            assert set(outcome.times) == set(TIMED), outcome.reasons
            assert outcome.captured, f"{outcome.baseline} was not captured in a CUDA graph"
            assert outcome.error is not None and outcome.error < 0.02
            assert outcome.peak["forward"] >= 1.0, outcome
            assert outcome.peak["both"] >= 3.0, outcome
            assert outcome.step is not None and outcome.step.median > outcome.times["both"].low / 2
    for size in results.sizes:  # predicted for H200
        (own,) = (o for o in results.at(size.size) if o.baseline == OWN)
        for direction, predicted in size.peak.items():
            assert own.peak[direction] == pytest.approx(predicted, rel=0.05)
