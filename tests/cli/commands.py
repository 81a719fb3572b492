"""Commands, as tests give them, and what a search came to."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from sh2gen.cli.cli import main
from sh2gen.lower import plans
from sh2gen.tuning.decide import Tuned
from sh2gen.tuning.journal import Task
from sh2gen.tuning.records import Key, Status
from sh2gen.tuning.search import Outcome, Problem
from sh2gen.tuning.search import Result as Found
from sh2gen.tuning.sweeps import Header, Sweep
from sh2gen.tuning.tables import Decision, fields_of
from tests.fakes import SPEC, forward_points

ROOT = Path(__file__).parent.parent.parent


FILTER = "filter: {kind: explicit, length: 3, groups: 4}"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def tuned(right: bool = True, interrupted: bool = False) -> Tuned:
    """What a search of SPEC came to: two candidates, the second is the faster."""
    plan = plans(SPEC)[0]
    task = Task(spec=SPEC, plan=plan, direction="forward")
    start, best = forward_points({"TILES": 4})
    slow, fast = (
        Outcome(status=Status.OK, us=((0.9 * us, us, 1.1 * us),)) for us in (100.0, 80.0)
    )
    tried = {start: slow, best: fast}
    if not right:
        tried = dict.fromkeys(tried, Outcome(status=Status.WRONG, detail="y"))
    key = Key(
        spec="5d" * 32,
        plan=plan.name,
        direction="forward",
        gpu="NVIDIA H200",
        triton="3.6",
    )
    decision = Decision(
        key=key,
        fields=fields_of(SPEC),
        kernels={},
        op=SPEC.op,
        workloads=SPEC.workloads,
        config=best,
        us=(80.0,),
        low=(72.0,),
        high=(88.0,),
        bound_us=(60.0,),
        start_us=(100.0,),
        start=start,
        checks=21,
        effort="measure",
        date="2026-11-25T10:00:00Z",
        versions={},
    )
    return Tuned(
        task=task,
        problem=Problem(points=(start, best), start=start, predicted=dict.fromkeys(tried, 1.0)),
        result=Found(
            winner=best if right else start,
            first=tried,
            tried=tried,
            final=tried,
            raced=True,
            field=tried,
            seconds=12.3,
            interrupted=interrupted,
        ),
        sweep=Sweep(
            header=Header(
                key=key,
                op=SPEC.op,
                workloads=SPEC.workloads,
                bounds=(60.0,),
                start=start,
                date="2026-11-25T10:00:00Z",
                versions={},
            ),
            outcomes=tried,
        ),
        decision=decision if right else None,
    )
