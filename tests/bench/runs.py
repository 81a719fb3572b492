"""Short runs of `bench` on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sh2gen.bench.baselines import chosen
from sh2gen.bench.results import Outcome
from sh2gen.bench.run import run
from sh2gen.emit.emit import emit
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import target
from sh2gen.tuning.choose import candidates

SPEC: OpSpec = spec_from_dict(
    {
        "op": "small_conv",
        "channels": 8,
        "filter": {"kind": "explicit", "length": 4, "groups": 8, "taps": "lag_last"},
    }
)
SIZES = (Workload(batch=1, length=24), Workload(batch=2, length=16))
SMALL = Workload(batch=2, length=20)


def written(path: Path, spec: OpSpec = SPEC) -> tuple[Path, Any, Any]:
    """The generated file of an operator, its plan and its schedule."""
    best = candidates(spec, target("H200"))[0]
    path = path / f"{spec.op}.py"
    path.write_text(emit(spec, best.plan, best.schedule).text)
    return path, best.plan, best.schedule


def measured(path: Path, baselines: str, **options: Any) -> Any:
    arguments = {"workloads": SIZES, "device": "cpu", "checked": SMALL} | options
    return run(*written(path), target("H200"), baselines=chosen(baselines), **arguments)


def of(results: Any, name: str) -> list[Outcome]:
    return [o for o in results.outcomes if o.baseline == name]
