"""Decisions that are made up, and what is chosen by them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from sh2gen.cli.cli import main
from sh2gen.cost.cost import predict
from sh2gen.lower import plans
from sh2gen.plan.plan import Plan
from sh2gen.schedule.config import DIRECTIONS, schedule
from sh2gen.schedule.space import Config
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target
from sh2gen.tuning.choose import candidates, tables, wanted
from sh2gen.tuning.tables import Decision, fields_of, in_order, write_decisions
from tests.fakes import SPEC
from tests.gpus import H200

MODAL = spec_from_dict(
    {
        "op": "small_modal",
        "channels": 16,
        "filter": {"kind": "modal", "modes": 2, "groups": 16, "parametrisation": "complex"},
    }
)
DATE = "2026-11-25T10:00:00Z"
ON = "tuned on NVIDIA H200 (2026-11-25)"
TIME = "10.0 us at B=1 L=8192"


def plan_of(spec: OpSpec) -> Plan:
    """The one that is taken of SPEC, also for other sizes."""
    return plans(spec)[0]


def decide(
    spec: OpSpec,
    direction: str,
    config: Config,
    target: Target = H200,
    date: str = DATE,
    plan: Plan | None = None,
    us: float = 10.0,
    **key: str,
) -> Decision:
    """As a search on this machine would have decided, but for the parts of the key given."""
    want = wanted(spec, target, plan or plan_of(spec), direction)
    times = tuple(us for _ in want.workloads)
    return Decision(
        key=dataclasses.replace(want.key, **key),
        fields=fields_of(spec),
        kernels={},
        op=spec.op,
        workloads=in_order(spec.workloads),
        config=config,
        us=times,
        low=times,
        high=times,
        bound_us=times,
        start_us=times,
        start=config,
        checks=21,
        effort="measure",
        date=date,
        versions={},
    )


def changed(direction: str = "forward", **knobs: int) -> Config:
    return schedule(SPEC, plan_of(SPEC), {direction: knobs}).config(direction)


TILES = dict(schedule(SPEC, plans(SPEC)[0]).forward)["TILES"]
DEFAULT = {d: schedule(SPEC, plans(SPEC)[0]).config(d) for d in DIRECTIONS}


def keep(home: Path, *decisions: Decision) -> None:
    for decision in decisions:
        write_decisions(home / "tuned", [decision])


def chosen(
    spec: OpSpec = SPEC,
    target: Target = H200,
    changes: Mapping[str, Mapping[str, int]] | None = None,
) -> tuple[dict[str, Config], Mapping[str, str]]:
    first = candidates(spec, target, changes=changes, known=tables())[0]
    return {d: first.schedule.config(d) for d in DIRECTIONS}, first.origins


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def compiled(op: str, out: Path, *arguments: str) -> Result:
    return run(
        "compile", op, "--out", str(out), "--no-verify", "--no-build", "--target=H200", *arguments
    )


RANKED = candidates(SPEC, H200)
CHEAPEST, SECOND = RANKED[0].plan, RANKED[1].plan
NAMES = [c.plan.name for c in RANKED]


def us_of(direction: str) -> float:
    """Microseconds that are predicted of the cheapest plan."""
    (workload,) = SPEC.workloads
    found = predict(SPEC, CHEAPEST, RANKED[0].schedule, direction, workload, H200)
    return found.seconds * 1e6


def tune(home: Path, plan: Plan, share: float, **options: Any) -> None:
    """Keep configs of both directions that took this share of what is predicted of the cheapest
    plan.
    """
    for d in DIRECTIONS:
        config = schedule(SPEC, plan).config(d)
        keep(home, decide(SPEC, d, config, plan=plan, us=share * us_of(d), **options))
