"""subquadratic-ops."""

from __future__ import annotations

from sh2gen.bench.baselines.back_to_back import back_to_back, back_to_back_computes
from sh2gen.bench.baselines.base import Baseline

BASELINES: tuple[Baseline, ...] = (
    Baseline(
        name="subquadratic_ops",
        does="b2b_causal_conv1d of subquadratic-ops",
        layout="BDL, interleaved",
        computes=back_to_back_computes,
        prepare=back_to_back("subquadratic_ops_torch.b2b_causal_conv1d"),
        package="subquadratic_ops_torch",
    ),
)
