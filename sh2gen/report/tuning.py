"""What `sh2gen tune` came to, for a person."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from sh2gen.base.columns import columns
from sh2gen.report.terminal import say


def print_estimate(estimates: Any, as_json: bool) -> None:
    """The ten best predictions of each search, each with one schedule of those that share it; and
    where the start is.
    """
    result: list[dict[str, Any]] = []
    for estimate in estimates:
        space = estimate.problem
        groups: dict[str, list[Any]] = {}
        for point in sorted(space.points, key=lambda point: space.predicted[point]):
            groups.setdefault(f"{space.predicted[point]:.9g}", []).append(point)
        entries, rank = [], 1
        for points in groups.values():
            first = space.start if space.start in points else points[0]
            entry = {
                "config": dict(first),
                "share": 1 / space.predicted[first],
                "rank": rank,
                "tied": len(points) - 1,
                "free": [  # knobs that the prediction does not depend on
                    name for i, (name, _) in enumerate(first) if len({p[i] for p in points}) > 1
                ],
            }
            rank += len(points)
            entries.append(entry)
            if first == space.start:
                start = entry
        task = estimate.task
        result.append(
            {
                "op": task.spec.op,
                "plan": task.plan.name,
                "direction": task.direction,
                "target": estimate.target.name,
                "target_note": estimate.target.caveat,
                "workloads": [{"batch": w.batch, "length": w.length} for w in task.workloads],
                "points": len(space.points),
                "dropped": dict(estimate.dropped),
                "start": start,
                "best": entries[:10],
            }
        )
    if as_json:
        say(json.dumps(result, indent=2))
        return
    for note in dict.fromkeys(found["target_note"] for found in result if found["target_note"]):
        say(note)
    for estimate, found in zip(estimates, result, strict=True):
        dropped = sum(found["dropped"].values())
        say(
            f"{estimate.task.title}: the best of {found['points']} by prediction"
            + f"; constraints dropped {dropped}" * (dropped > 0)
        )
        start = found["start"]
        for entry in found["best"]:
            text = " ".join(f"{name}={value}" for name, value in entry["config"].items() if value)
            tied = f"  (and {entry['tied']} with other {', '.join(entry['free'])})"
            mark = "  (start)" * (entry is start)
            say(f"  {entry['share']:.2f} of the bound  {text}" + tied * bool(entry["tied"]) + mark)
        place = f"{start['rank']} of {found['points']}" + f", {start['tied'] + 1} alike" * bool(
            start["tied"]
        )
        say(f"  the start: {start['share']:.2f} of the bound, rank {place}")


def print_tuned(tuned: Any, path: Any, out: str | None = None, own: Iterable[Any] = ()) -> None:
    """What a search came to, for a person.

    Args:
        path: the table that keeps it.
        out: the folder of tables that was asked for.
        own: the workloads of the operator's file, if not only these can have been tuned for.
    """
    from sh2gen.tuning.choose import size_options

    result, decision = tuned.result, tuned.decision
    counts = ", ".join(f"{n} {status}" for status, n in tuned.to_dict()["tried"].items())
    rows = [
        (
            "tried",
            f"{len(result.tried)} of {len(tuned.problem.points)} candidates in "
            f"{result.seconds:.0f} s: {counts}" + ("; interrupted" * result.interrupted),
        )
    ]
    start = result.tried.get(tuned.problem.start)
    failed = start is not None and start.status != "ok"
    if decision is None:
        rows.append(("decided", f"nothing: {_why_nothing(tuned)}"))
    else:
        config = _config_text(decision.config)
        rows.append(("config", config + " (as before)" * (decision.config == decision.start)))
    if failed:
        what = start.detail.splitlines()[0] if start.detail else start.stage
        rows.append(
            (
                "before",
                f"{_config_text(tuned.problem.start)}, which compile takes now, "
                f"failed ({start.status}): {what}",
            )
        )
    if decision is not None:
        for i, workload in enumerate(decision.workloads):
            us, bound = decision.us[i], decision.bound_us[i]
            before = "" if failed else f"; before {decision.start_us[i]:.1f} us"
            rows.append(
                (
                    f"B={workload.batch} L={workload.length}",
                    f"{us:.1f} us ({decision.low[i]:.1f} to {decision.high[i]:.1f}), "
                    f"{bound / us:.2f} of the bound{before}",
                )
            )
        other = own and set(own) != set(decision.workloads)
        options = [size_options(decision.workloads)] if other else []
        options += [] if _is_home(out) else [f"--tables {quote(str(out))}"]
        how = f"; compile and explain take it with {' '.join(options)}" if options else ""
        rows.append(("kept in", f"{path}{how}" if path else "no table: stderr says why"))
    say(tuned.task.title)
    for line in columns(rows, words=2, indent=2):
        say(line)


def _config_text(config: Any) -> str:
    return " ".join(f"{name}={value}" for name, value in config if value)


def _why_nothing(tuned: Any) -> str:
    """Why a search decided nothing."""
    found = tuned.result.tried
    start = found.get(tuned.problem.start)
    if start is not None and not any(outcome.status == "ok" for outcome in found.values()):
        return "no candidate was right"
    if start is not None and start.no_verdict:
        return "what compile takes now could not be built on this machine"
    return "nothing was compared with what compile takes now before the search ended"


def _is_home(out: str | None) -> bool:
    """Whether compile looks into this folder of tables by itself."""
    from sh2gen.tuning.records import home

    return out is None or Path(out).resolve() == (home() / "tuned").resolve()


def print_checked(found: Sequence[Any], as_json: bool) -> None:
    """What became of the kernels of tuned decisions, and what times again those that changed."""
    if as_json:
        say(json.dumps([one.to_dict() for one in found], indent=2))
        return
    for one in found:
        if one.verdict == "same":
            continue
        d = one.decision
        sizes = ", ".join(f"B={w.batch} L={w.length}" for w in d.workloads)
        where = f"{d.op} {d.key.direction} {sizes} on {d.key.gpu} ({d.date[:10]})"
        say(f"{one.verdict}: {where}: {one.detail}")
        if one.stale:
            say(f"    {one.command}")
    same = sum(one.verdict == "same" for one in found)
    say(f"{same} of {len(found)} decisions are of the kernels of today")
