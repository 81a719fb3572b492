"""What `compile`, `verify` and `explain` found, for a person."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from sh2gen.base.columns import columns
from sh2gen.report.terminal import say

_PREDICTIONS = 8  # of as many workloads they are printed
_OF_ONE = "of a row as one document: what several take comes on top"


def print_compilation(c: Any) -> None:
    """What was chosen and why, for a person."""
    from sh2gen.base.versions import beyond_triton, without_triton
    from sh2gen.spec.language import Sequences
    from sh2gen.tuning.choose import passed_over

    plan = c.chosen.plan
    rows: list[tuple[str, str]] = [("file", str(c.path))]
    rows.append(("algorithm", f"{plan.algorithm}: {c.verdicts[plan.algorithm]}"))
    if not plan.kernels:
        rows += [(f"not {n}", str(v)) for n, v in c.verdicts.items() if not v.applies]
    shown = c.candidates[1:4]
    mixed = any(candidate.measured for candidate in (c.chosen, *shown))
    basis = "" if mixed else "predicted "
    others = ", ".join(
        f"{other.plan.name} {other.score / c.chosen.score:.2f}x" + f" {other.basis}" * mixed
        for other in shown
    )
    own = f"{c.chosen.basis}; " * mixed
    rows.append(("plan", plan.name + (f" ({own}{basis}cost of others: {others})" * bool(others))))
    rows += [("not taken", text) for text in passed_over(c.candidates)]
    rows.append(
        ("call with", f"activations {'(B, D, L)' if plan.layout == 'BDL' else '(B, L, D)'}")
    )
    if c.target.caveat:
        rows.append(("target", c.target.caveat))
    rows.append(("schedule", f"{c.chosen.schedule}"))
    for origin in dict.fromkeys(c.chosen.origins.values()):
        whose = [d for d, text in c.chosen.origins.items() if text == origin]
        some = f"{' and '.join(whose)}: " if len(whose) < len(c.chosen.origins) else ""
        rows.append(("config", some + origin))
    for workload, found in c.predictions[:_PREDICTIONS]:
        text = ", ".join(
            f"{direction} {p.seconds * 1e6:.0f} us ({p.share:.2f} of the memory bound"
            + (f", in {p.splits} splits)" if p.splits > 1 else ")")
            for direction, p in found.items()
        )
        rows.append(
            (f"predicted B={workload.batch} L={workload.length}", f"{text} on {c.target.name}")
        )
    if c.spec.sequences is Sequences.PACKED:
        rows.append(("", _OF_ONE))
    if more := len(c.predictions[_PREDICTIONS:]):
        rows.append(("", f"and {more} more; --json has all"))
    if c.built:
        for k in c.built.kernels:
            rows.append(
                (
                    f"{k.kernel.name.removeprefix(c.spec.op + '_')} ({k.alignment.value})",
                    f"{k.registers} registers, "
                    + (f"{k.stack} B stack" if k.spills is None else f"{k.spills} spills")
                    + f", {k.shared} B shared memory",
                )
            )
    for report in c.reports:
        worst = max(
            (check.measured / check.bound for check in report.checks if check.bound), default=0.0
        )
        rows.append(
            (
                f"verified by {report.runner}",
                f"{len(report.checks)} checks in {report.dtype} against float64, "
                f"closest at {worst:.2f} of its bound ({report.label})",
            )
        )
    if not c.reports:
        rows.append(("verified", "no (--no-verify)"))
    elif not c.verified.startswith("on "):
        rows.append(("verified", c.verified))
    if plan.kernels and beyond_triton():
        rows.append(("not verified", without_triton()))
    rows.append(("seconds", ", ".join(f"{stage} {s:.1f}" for stage, s in c.seconds.items())))
    say(c.label)
    for line in columns(rows, words=2, indent=2):
        say(line)


def print_reports(reports: Any) -> None:
    """What was verified, and what failed."""
    for report in reports:
        verdict = "passed" if report.ok else f"FAILED {len(report.failures)} of"
        say(
            f"{report.op} by {report.runner} on {report.device} in {report.dtype}: "
            f"{verdict} {len(report.checks)} checks ({report.label})"
        )
        for failure in report.failures[:20]:
            say(
                f"  {failure.name}: {failure.measured:.3g}, allowed {failure.bound:.3g}"
                + (f"; {failure.detail}" if failure.detail else "")
            )


def print_misses(chosen: Any, found: Any, as_json: bool) -> None:
    """Where configs come from, and in what each tuned decision differs."""
    if as_json:
        result = {
            d: {"origin": chosen.origins.get(d, "default"), "tuned": list(lines)}
            for d, lines in found.items()
        }
        say(json.dumps({"plan": chosen.plan.name, "directions": result}, indent=2))
        return
    for direction, lines in found.items():
        say(f"{chosen.plan.name} {direction}: {chosen.origins.get(direction, 'default')}")
        for line in lines or ("nothing was tuned for this direction",):
            say(f"  {line}")


def plan_text(candidate: Any) -> str:
    """The plan, and how many matrix products a tile takes under its schedule."""
    from sh2gen.cost import work

    lines = [str(candidate.plan)]
    for kernel in candidate.plan.kernels:
        own = dict(candidate.schedule.config(kernel.role))
        texts = {kernel.name: own}
        texts |= {f"{kernel.name} on {v.name}": v.config(own) for v in kernel.variants}
        for name, config in texts.items():
            steps = config.get("BLOCK_T", 1)
            if config and (count := work.products_a_tile(kernel, steps)):
                lines.append(f"{name}: BLOCK_T = {steps}, so {count} products a tile")
    return "\n".join(lines)


def config_text(spec: Any, candidate: Any, target: Any = None) -> str:
    """What --set takes for a plan: every knob by direction, its value and the legal ones."""
    from sh2gen.schedule.config import roles_of
    from sh2gen.schedule.space import space

    lines = [f"{candidate.plan.name}: --set DIRECTION.KNOB=INTEGER"]
    for direction in roles_of(candidate.plan):
        config = dict(candidate.schedule.config(direction))
        for knob, legal in space(spec, candidate.plan, direction, target).knobs:
            values = ", ".join(map(str, legal))
            lines.append(f"{direction}.{knob}={config[knob]}  one of {values}")
    if len(lines) == 1:
        lines.append("it has no kernels of its own and so no config")
    return "\n".join(lines)


def _made_of(predicted: dict[str, Any]) -> str:
    """The parts of a prediction, in a few words."""
    parts = [f"{predicted['traffic_us']:.0f} us of traffic"]
    for name, what in (("instructions_us", "instructions"), ("waves_us", "waiting")):
        if predicted[name]:
            parts.append(f"{predicted[name]:.0f} of {what}")
    overlap = ", which overlap" * (len(parts) > 1)
    return f"{', '.join(parts)}{overlap}, and {predicted['fixed_us']:.0f} whatever the size"


def _in_activations(memory: dict[str, int]) -> str:
    """Peak memory in a few words."""
    texts = (
        f"{what} {memory[of] / 1e6:,.1f} MB ({memory[of] / memory['activation']:.2f} activations)"
        for of, what in (("forward", "forward"), ("step", "training step"))
    )
    return f"peak memory beside inputs and parameters: {', '.join(texts)}"


def _over_ranks(spec: Any, plan: Any, gpu: Any) -> list[dict[str, Any]]:
    """What each way to split sequences over ranks sends and takes by a plan, the fastest first, of
    the longest workload; empty of an operator that is whole.
    """
    from sh2gen.cost.ranks import exchanges
    from sh2gen.emit.ranks import by_kernels, exchange_of
    from sh2gen.lower import plans
    from sh2gen.spec.language import ContextSpec

    if spec.context is None or plan is None:
        return []
    longest = max(spec.workloads, key=lambda w: w.length)
    context = spec.context
    # Each with the plan that it has: some exchanges are not for kernels.
    auto = ContextSpec(ranks=context.ranks, sharding=context.sharding)
    other = replace(spec, context=auto)
    served = next((p for p in plans(other) if p.kernels), plan)
    by, kernels = by_kernels(other, served), bool(served.kernels)
    found = exchanges(spec, longest, gpu, context.ranks, context.sharding, by, kernels)
    own = exchange_of(spec, plan)
    size = {"batch": longest.batch, "length": longest.length}
    return [size | asdict(one) | {"taken": one.strategy is own} for one in found]


def _ranks_text(spec: Any, over: list[dict[str, Any]]) -> list[str]:
    """The same for a person."""
    if spec.context is None:
        return []
    context = spec.context
    title = f"over {context.ranks} ranks, {context.sharding}"
    if not over:
        return [f"{title}: the file of this GPU does not say what links so many"]
    first = over[0]
    rows = [
        (
            f"{one['strategy']}",
            f"{one['bytes'] / 1e6:,.2f} MB in {one['messages']:,} messages, "
            f"{one['waits']} after another; {one['passes']} passes more over activations: "
            f"{one['seconds'] * 1e6:,.0f} us" + " (taken)" * one["taken"],
        )
        for one in over
    ]
    return [
        f"{title}, of B={first['batch']} L={first['length']} in all: what each rank sends "
        f"forward, over {first['link']}, and the time that it adds, predicted from rates that "
        "nobody measured",
        *columns(rows, words=2, indent=2),
    ]


def print_explanation(spec: Any, gpu: Any, answers: Any, ranked: Any, as_json: bool) -> None:
    from sh2gen.cost import cost, work
    from sh2gen.cost.decode import BATCHES, decoding
    from sh2gen.cost.memory import peak
    from sh2gen.spec.language import Sequences
    from sh2gen.tuning.choose import passed_over

    plans = []
    not_taken = passed_over(ranked)
    longest = max(workload.length for workload in spec.workloads)
    for candidate in ranked:
        entry: dict[str, Any] = {
            "plan": candidate.plan.name,
            "score": candidate.score,
            "basis": candidate.basis,
            "schedule": str(candidate.schedule),
            "origins": dict(candidate.origins),
            "predictions": [],
        }
        for kernel in candidate.plan.kernels:
            effort = work.work(kernel, candidate.plan.layout, spec)
            config = cost.config_on(gpu, spec, candidate.plan, kernel, candidate.schedule, longest)
            block = config["BLOCK_T"]
            entry[kernel.name] = {
                "bytes": effort.bytes,
                "flops": str(effort.flops),
                "product_flops": int(effort.tensor_flops.subs(work.BLOCK_T, block)),
                "instructions": str(effort.instructions),
            }
        for workload in spec.workloads:
            found = cost.predictions(spec, candidate.plan, candidate.schedule, workload, gpu)
            for direction, p in found.items():
                if p.running is not None:
                    entry[direction]["running"] = asdict(p.running)
            most = peak(spec, candidate.plan, candidate.schedule, workload, gpu)
            entry["predictions"].append(
                {"batch": workload.batch, "length": workload.length}
                | {"memory": asdict(most) if most is not None else None}
                | {
                    d: {
                        "us": p.seconds * 1e6,
                        "share": p.share,
                        "bound_us": p.bound * 1e6,
                        "traffic_us": p.memory * 1e6,
                        "instructions_us": p.issue * 1e6,
                        "waves_us": p.waves * 1e6,
                        "fixed_us": p.fixed * 1e6,
                        "products_us": p.tensor * 1e6,
                        "splits": p.splits,
                    }
                    for d, p in found.items()
                }
            )
        plans.append(entry)
    over = _over_ranks(spec, ranked[0].plan if ranked else None, gpu)
    steps = decoding(spec)
    bounds = {batch: steps.bound(batch, gpu) * 1e6 for batch in BATCHES}
    verdicts = {n: {"applies": v.applies, "reasons": list(v.reasons)} for n, v in answers.items()}
    if as_json:
        say(
            json.dumps(
                {
                    "op": spec.op,
                    "target": gpu.name,
                    "target_note": gpu.caveat,
                    "verdicts": verdicts,
                    "decoding": asdict(steps) | {"bound_us": bounds},
                    "ranks": over,
                    "plans": plans,
                    "not_taken": list(not_taken),
                },
                indent=2,
            )
        )
        return
    say(f"{spec.op} on {gpu.name}")
    if gpu.caveat:
        say(f"  {gpu.caveat}")
    for name, answer in answers.items():
        say(f"  {name}: {'yes' if answer.applies else 'no'}, {answer}")
    if not plans:
        say("no plan; --stage spec and --stage graph show what it is")
        return
    for text in not_taken:
        say(f"not taken: {text}")
    times = ", ".join(f"{us:.1f} us at batch {batch}" for batch, us in bounds.items())
    say(
        f"decoding: a state of {steps.state / 1e3:,.1f} kB a sequence; a step moves "
        f"{steps.step / 1e3:,.1f} kB of it, of inputs and of outputs, which take {times}"
    )
    for text in _ranks_text(spec, over):
        say(text)
    if spec.sequences is Sequences.PACKED:
        say(f"predictions are {_OF_ONE}")
    say("per token and channel (bytes of memory traffic, flops, instructions of a thread):")
    for entry in plans:
        say(f"  {entry['plan']}  {entry['schedule']}")
        for direction, origin in entry["origins"].items():
            say(f"    {direction} config: {origin}")
        for direction in ("forward", "backward"):
            if direction in entry:
                e = entry[direction]
                say(
                    f"    {direction}: {e['bytes']} B; {e['flops']} flops"
                    + f" and {e['product_flops']} of matrix products" * (e["product_flops"] > 0)
                    + f"; {e['instructions']} instructions"
                )
                if r := e.get("running"):
                    say(
                        f"      {r['programs']} programs, {r['warps']} warps on a multiprocessor, "
                        f"with {r['registers']} registers a thread"
                        + f" and {r['spilled']} spilled" * (r["spilled"] > 0)
                        + ", by estimate"
                    )
        for p in entry["predictions"][:_PREDICTIONS]:
            times = ", ".join(
                f"{d} {p[d]['us']:.0f} us = {p[d]['share']:.2f} of the bound"
                for d in ("forward", "backward")
            )
            say(f"    predicted B={p['batch']} L={p['length']}: {times}")
            parts = "; ".join(f"{d} {_made_of(p[d])}" for d in ("forward", "backward"))
            say(f"      made of {parts}")
            if any(p[d]["products_us"] for d in ("forward", "backward")):
                floors = ", ".join(
                    f"{d} {p[d]['bound_us']:.0f} us of memory and {p[d]['products_us']:.0f} us "
                    "of products"
                    for d in ("forward", "backward")
                )
                say(f"      at least {floors}")
            if p["memory"]:
                say(f"      {_in_activations(p['memory'])}")
        if more := len(entry["predictions"][_PREDICTIONS:]):
            say(f"    and {more} more; --json has all")
