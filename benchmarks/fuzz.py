"""Hold kernels of random operators on a GPU against float64.

    python benchmarks/fuzz.py --seconds 540 --out failures.jsonl
    python benchmarks/fuzz.py --seed 1234            # one case again, in this process

Triton's interpreter does not see what a compiler does: kernels have been right there and wrong on
a GPU (docs/decisions/012). Each seed is an operator, a plan, a schedule, shapes, a dtype and some
properties of the verifier, drawn at random: configs that a search would try, the default, or any
that is legal. Processes take one seed after another; one that crashes or hangs is replaced, and
its seed is a failure. It prints what failed and ends with 1 if anything did. By hand it goes on
for as long as it is let.

A line of --out is one seed: status (`right`, `wrong`, `error`, `crash`, `timeout`, or `unfit` for
a schedule that this GPU has no room for), what was drawn, failed checks, and `over`: results of
1,000 elements or more whose error is beyond the promise of two (`balanced`) or four (`fast`)
roundings of bfloat16 or float16, which the tolerance of norms, that allows for luck, may have let
pass. (Sums in float32 of float32 tensors are off by more than their last rounding.)
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

PROPERTIES = (
    "strides",
    "packed",
    "causality",
    "determinism",
    "batch_invariance",
    "adjoint",
    "decode",
)
LIMIT = 200.0  # seconds for a case
ELEMENTS = 3_000_000  # of an activation


def drawn(seed: int) -> dict[str, Any]:
    """What a seed stands for, in plain values but for `spec`, `plan` and `schedule`."""
    from sh2gen.base.errors import Sh2genError
    from sh2gen.lower import plans
    from sh2gen.spec.decode import spec_from_dict

    rng = random.Random(seed)
    while True:
        try:
            spec = spec_from_dict(_operator(rng))
            found = [plan for plan in plans(spec) if plan.kernels]
        except Sh2genError:  # not all that is drawn is legal, or has kernels
            continue
        if not found:
            continue
        plan = rng.choice(found)
        try:
            how, schedule = _schedule(rng, spec, plan)
        except Sh2genError:
            continue
        names = [name for name in PROPERTIES if rng.random() < 0.06]
        names += ["chunks"] * (spec.state is not None)
        return {
            "seed": seed,
            "spec": spec,
            "plan": plan,
            "schedule": schedule,
            "how": how,
            "dtype": spec.dtype.io.value,
            "shapes": _shapes(rng, spec, schedule),
            "properties": ["equality", *names],
        }


def _operator(rng: random.Random) -> dict[str, Any]:
    kind = rng.choices(("explicit", "decay", "modal"), (6, 2, 2))[0]
    width = rng.choice((1, 1, 2, 3, 5, 7, 8, 15, 16, 24, 32, 64, 100))
    groups = rng.choice((1, 2, 3, 5, 8, 13, 17, 32, 64, 100, 256))
    inner: dict[str, Any] = {"kind": kind, "groups": groups}
    if kind == "modal":
        inner["parametrisation"] = rng.choice(("log_poles", "p_gamma", "complex"))
        inner["modes"] = rng.choice((1, 2, 3, 4, 7, 8, 16, 16, 17, 24, 32))
    else:
        longest = rng.choice((4, 8, 16, 16, 16, 40, 130, 300))
        inner["length"] = rng.randint(1, longest)
        inner["taps"] = rng.choice(("lag_first", "lag_last"))
    if kind == "decay":
        inner["decay"] = {
            "preset": rng.choice(("weak", "normal", "strong")),
            "cache_length": inner["length"] + rng.choice((0, 1, 100, 8000)),
        }
    gates = {"pre": rng.random() < 0.6, "post": rng.random() < 0.6}
    featurizer = rng.choice((1, 2, 3, 3, 4))
    orders = ("lag_last", "lag_first")
    state = {"initial": True, "final": True} if rng.random() < 0.12 else "none"
    return {
        "op": "fuzzed",
        "channels": groups * width,
        "filter": inner,
        "featurizer": {"length": featurizer, "taps": rng.choice(orders)}
        if rng.random() < 0.65
        else "none",
        "gates": gates,
        "skip": rng.choice(("none", "channel", "group")),
        "bias": rng.choice(("none", "none", "gated", "ungated")),
        "activation": rng.choice(("none", "silu")) if not any(gates.values()) else "none",
        "precision": rng.choices(("balanced", "fast", "exact"), (8, 1, 1))[0],
        "dtype": {"io": rng.choices(("bfloat16", "float16", "float32"), (5, 2, 2))[0]},
        "layout": {
            "activations": rng.choice(("auto", "BLD", "BDL")),
            "projection": rng.choice(("thirds", "interleaved")),
        },
        "state": state,
    }


def _schedule(rng: random.Random, spec: Any, plan: Any) -> tuple[str, Any]:
    from sh2gen.schedule.config import DIRECTIONS, partner, schedule
    from sh2gen.schedule.space import DECODE, search_space

    how = rng.choices(("default", "searched", "legal"), (3, 5, 2))[0]
    if how == "default":
        return how, schedule(spec, plan)
    direction = rng.choice(DIRECTIONS)
    (other,) = set(DIRECTIONS) - {direction}
    if how == "searched":
        config = rng.choice(search_space(spec, plan, direction).points)
    else:
        config = _legal(rng, spec, plan, direction)
    found = {direction: config, other: partner(spec, plan, direction, config)}
    if how == "legal" and plan.step is not None:
        found[DECODE] = _legal(rng, spec, plan, DECODE)
    return how, replace(schedule(spec, plan), **found)


def _legal(rng: random.Random, spec: Any, plan: Any, direction: str) -> Any:
    """The default with some knobs at any value, if that is legal; else the default."""
    from sh2gen.base.errors import Sh2genError
    from sh2gen.schedule.space import space

    where = space(spec, plan, direction)
    knobs = dict(where.knobs)
    for _ in range(200):
        values = dict(where.default)
        for name in rng.sample(list(knobs), rng.randint(1, min(3, len(knobs)))):
            values[name] = rng.choice(knobs[name])
        try:
            return where.check(direction, values)
        except Sh2genError:
            continue
    return where.default


def _shapes(rng: random.Random, spec: Any, schedule: Any) -> list[tuple[int, int]]:
    taps = spec.filter.length or 33
    block = dict(schedule.forward)["BLOCK_T"]
    near = [1, 2, taps - 1, taps, taps + 1, block - 1, block, block + 1, 127, 128, 129, 1000]
    longest = max(64, min(6000, ELEMENTS // spec.channels))
    lengths = [rng.randint(1, longest)]
    if rng.random() < 0.4:
        lengths = [rng.choice(near)] + lengths * (rng.random() < 0.3)
    if rng.random() < 0.5:  # whole vectors, the same binaries
        lengths = [max(8, n // 8 * 8) for n in lengths]
    shapes = []
    for length in dict.fromkeys(max(1, min(n, longest)) for n in lengths):
        most = max(1, ELEMENTS // (spec.channels * length))
        shapes.append((rng.randint(1, min(3, most)), length))
    return shapes


def in_words(case: dict[str, Any]) -> dict[str, Any]:
    """A case as JSON holds it."""
    return case | {
        "spec": case["spec"].canonical(),
        "plan": case["plan"].name,
        "schedule": {
            "forward": dict(case["schedule"].forward),
            "backward": dict(case["schedule"].backward),
        },
    }


def run(seed: int, device: str = "cuda") -> dict[str, Any]:
    """Verify one case on the GPU of this process, or plain PyTorch on a CPU."""
    import torch

    from sh2gen.emit.emit import emit
    from sh2gen.runtime.operator import Operator, OperatorRunner
    from sh2gen.verify.verify import verify

    begin = time.perf_counter()
    case = drawn(seed)
    found: dict[str, Any] = {"status": "error", **in_words(case)}
    try:
        source = emit(case["spec"], case["plan"], case["schedule"])
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            path = Path(folder) / f"{case['spec'].op}.py"
            path.write_text(source.text)
            runner = OperatorRunner(Operator(path), device)
            report = verify(
                case["spec"],
                runner,
                dtype=getattr(torch, case["dtype"]),
                shapes=case["shapes"],
                device=device,
                seed=seed,
                properties=case["properties"],
            )
        found["checks"] = len(report.checks)
        found["failures"] = [check.to_dict() for check in report.failures]
        allowed = {"balanced": 2.0, "fast": 4.0}.get(case["spec"].precision.value, 1.1)
        roundings = [
            (check.name, check.size, check.measured / check.once)
            for check in report.checks
            if check.once and (check.size or 0) >= 1000 and case["dtype"] != "float32"
        ]
        found["over"] = [one for one in roundings if one[2] > allowed]
        found["worst"] = max((ratio for *_, ratio in roundings), default=0.0)
        found["status"] = "right" if report.ok else "wrong"
    except Exception as error:
        text = traceback.format_exc(limit=-6)[-2000:]
        if type(error).__name__ == "OutOfResources":
            found["status"] = "unfit"
        elif "CUDA error" in text or "illegal memory access" in text:
            found["status"] = "crash"  # every later call of this process fails too
        found["error"] = text
    found["seconds"] = round(time.perf_counter() - begin, 2)
    return found


def work(tasks: Any, results: Any) -> None:
    """One process: seeds until there are no more."""
    import torch

    torch.set_num_threads(1)
    while (seed := tasks.get()) is not None:
        results.put((os.getpid(), "begin", seed))
        found = run(seed)
        results.put((os.getpid(), "end", found))
        if found["status"] == "crash":
            return


def many(first: int, count: int, seconds: float, processes: int, out: Path | None) -> list[Any]:
    """Cases in parallel processes, until there are `count` or the time is over."""
    context = multiprocessing.get_context("spawn")
    tasks, results = context.Queue(), context.Queue()
    for seed in range(first, first + count):
        tasks.put(seed)

    def started() -> Any:
        process = context.Process(target=work, args=(tasks, results), daemon=True)
        process.start()
        return process

    team = [started() for _ in range(processes)]
    busy: dict[int, tuple[int, float]] = {}  # process -> seed, since when
    found: list[Any] = []
    end = time.monotonic() + seconds
    file = out.open("a") if out is not None else None

    def record(one: dict[str, Any]) -> None:
        found.append(one)
        if file is not None:
            print(json.dumps(one), file=file, flush=True)

    while len(found) < count and time.monotonic() < end:
        try:
            pid, what, value = results.get(timeout=1.0)
            if what == "begin":
                busy[pid] = value, time.monotonic()
            else:
                busy.pop(pid, None)
                record(value)
        except queue.Empty:
            pass
        for i, process in enumerate(team):
            seed, since = busy.get(process.pid, (None, 0.0))
            late = seed is not None and time.monotonic() - since > LIMIT
            if late:
                process.kill()
                process.join()
            if process.is_alive():
                continue
            if seed is not None:
                del busy[process.pid]
                status = "timeout" if late else "crash"
                record({"status": status, **in_words(drawn(seed)), "exit": process.exitcode})
            team[i] = started()
    for process in team:
        process.kill()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=10**6, help="seeds in all")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, help="one case, here")
    parser.add_argument("--out", type=Path, help="a line of JSON a case")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        one = run(arguments.seed)
        print(json.dumps(one, indent=1))
        return int(one["status"] not in ("right", "unfit"))
    found = many(
        arguments.first, arguments.count, arguments.seconds, arguments.processes, arguments.out
    )
    bad = [one for one in found if one["status"] not in ("right", "unfit")]
    over = [one for one in found if one.get("over")]
    for one in bad:
        first = (one.get("failures") or [{}])[0]
        text = first.get("name", "") or one.get("error", "")[-300:]
        print(f"seed {one['seed']}: {one['status']}: {one['plan']} {one['dtype']}: {text}")
    for one in over:
        print(
            f"seed {one['seed']}: over: {one['plan']} {one['dtype']} {one['how']}: {one['over']}"
        )
    print(dict(Counter(one["status"] for one in found)), "over:", len(over))
    print("checks:", sum(one.get("checks", 0) for one in found))
    print("plans:", dict(Counter(one["plan"] for one in found)))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
