"""Decisions of operators that are made up, and what is wanted."""

from __future__ import annotations

import dataclasses
from typing import Any

from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target
from sh2gen.tuning.lookup import Found, Wanted, find
from sh2gen.tuning.records import Key, operator_digest
from sh2gen.tuning.tables import (
    Decision,
    fields_of,
)
from tests.gpus import H200

SHORT, LONG = Workload(batch=1, length=8192), Workload(batch=1, length=131072)


def make(channels: int = 4096, groups: int = 256, length: int = 128, **fields: Any) -> OpSpec:
    inner = {"kind": "explicit", "length": length, "groups": groups}
    return spec_from_dict({"op": "hyena_mr", "channels": channels, "filter": inner} | fields)


def key_of(spec: OpSpec, **fields: str) -> Key:
    key = Key(
        spec=operator_digest(spec),
        plan="toeplitz/BDL/recompute",
        direction="forward",
        gpu="NVIDIA H200",
        triton="3.6",
    )
    return dataclasses.replace(key, **fields)


def decide(
    spec: OpSpec | None = None,
    workloads: tuple[Workload, ...] = (SHORT,),
    date: str = "2026-11-25T10:00:00Z",
    rows: int = 32,
    **key: str,
) -> Decision:
    spec = spec or make()
    times = tuple(10.0 * w.length / SHORT.length for w in workloads)
    return Decision(
        key=key_of(spec, **key),
        fields=fields_of(spec),
        kernels={"forward": "7e" * 8},
        op=spec.op,
        workloads=workloads,
        config=(("ROWS", rows), ("BLOCK_T", 64)),
        us=times,
        low=times,
        high=times,
        bound_us=times,
        start_us=times,
        start=(("ROWS", 8), ("BLOCK_T", 64)),
        checks=40,
        effort="normal",
        date=date,
        versions={"torch": "2.11.0"},
    )


def want(
    spec: OpSpec | None = None,
    workloads: tuple[Workload, ...] = (SHORT,),
    legal: Any = lambda config: True,
    **key: str,
) -> Wanted:
    spec = spec or make()
    return Wanted(
        key=key_of(spec, **key),
        fields=fields_of(spec),
        workloads=workloads,
        config_legal=legal,
    )


def found(decisions: list[Decision], wanted: Wanted, target: Target = H200) -> Found:
    result = find(decisions, wanted, target)
    assert result is not None
    return result
