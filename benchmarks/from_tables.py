"""What tuned tables say of the shipped operators, as `bench --json` prints results; needs no GPU.

    python benchmarks/from_tables.py --out docs/results/nvidia-h200.json
    sh2gen bench --from docs/results/nvidia-h200.json --plots figures

Times are those of the last round of the search that decided for the config, over all lengths of
the operator at once: of kernels that were compared with float64 there. Nothing else was beside
them, and a forward with its backward was not timed as one. Predictions are of today's model.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from sh2gen.base.files import write_all
from sh2gen.base.resources import folder
from sh2gen.bench.results import Outcome, Results, Size
from sh2gen.bench.run import _efforts, _predicted
from sh2gen.bench.worker import OWN
from sh2gen.cost.cost import bound_bytes
from sh2gen.runtime.measure import Timing
from sh2gen.schedule.config import DIRECTIONS
from sh2gen.spec.decode import load_spec
from sh2gen.targets.target import target
from sh2gen.tuning.choose import candidates, tables

H200 = target("H200")
OPS = ("hyena_se", "hyena_mr", "hyena_li", "short_conv")


def results(op: str) -> Results:
    """Of one operator, from the decisions for all of its workloads at once."""
    spec = load_spec(folder("ops") / f"{op}.yaml")
    chosen = candidates(spec, H200, known=tables())[0]
    decided = chosen.decided
    assert set(decided) == set(DIRECTIONS), f"{op} is not tuned for just this"
    every = tuple(decided[d] for d in DIRECTIONS)
    sizes, outcomes = [], []
    for workload in spec.workloads:
        times, bounds = {}, {}
        for direction, decision in decided.items():
            at = decision.workloads.index(workload)
            times[direction] = Timing(decision.low[at], decision.us[at], decision.high[at])
            bounds[direction] = decision.bound_us[at]
        sizes.append(
            Size(
                batch=workload.batch,
                length=workload.length,
                bounds=bounds | {"both": sum(bounds.values())},
                predicted=_predicted(spec, chosen.plan, chosen.schedule, H200, workload),
            )
        )
        outcomes.append(
            Outcome(
                baseline=OWN,
                does="the kernels of this operator",
                layout=chosen.plan.layout.value,
                batch=workload.batch,
                length=workload.length,
                times=times,
                shares={d: bounds[d] / times[d].median for d in times},
                reasons={"both": "it was not timed"},
            )
        )
    longest = max(w.length for w in spec.workloads)
    return Results(
        op=op,
        digest=spec.digest,
        channels=spec.channels,
        plan=chosen.plan.name,
        schedule=str(chosen.schedule),
        origins=dict(chosen.origins),
        not_taken=(),
        dtype=spec.dtype.io.value,
        gpu=every[0].key.gpu,
        target=H200.name,
        versions=dict(every[0].versions),
        date=max(decision.date for decision in every)[:10],
        checks=sum(decision.checks for decision in every),
        interrupted=False,
        bound_bytes={d: float(bound_bytes(spec, d)) for d in DIRECTIONS},
        sizes=tuple(sizes),
        efforts=_efforts(spec, chosen.plan, chosen.schedule, H200, longest),
        outcomes=tuple(outcomes),
    )


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(out: Path) -> None:
    """Write the results of all operators that tables have."""
    text = json.dumps([results(op).to_dict() for op in OPS], indent=1, allow_nan=False)
    write_all({out: (text + "\n").encode()})


if __name__ == "__main__":
    main()
