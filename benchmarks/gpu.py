"""Verify every shipped operator on this GPU, then measure it against the bounds of the same run.

    python benchmarks/gpu.py --json results.json  # verify and measure everything
    python benchmarks/gpu.py --ops hyena_se       # one operator
    python benchmarks/gpu.py --only verify        # or measure

An operator that fails is never timed. Verification is forward and every gradient against float64
at full width, in bfloat16, float16 and float32, at lengths 1, 7, 127, 1000, 8191, 8192, 131072 and
batches 1 and 2, and every property at one length. Times are medians over replays of a CUDA graph
with the L2 cache flushed (sh2gen.measure); a share is the time of an elementwise kernel that moves
the same tensors, timed in this run, over the operator's time. Of modes with a state, what is timed
takes a zero state and gives the one after the sequence, as every call of the operator does. Errors
are the largest relative 2-norms over all verified sizes in bfloat16: of the output, and of the
worst gradient.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from sh2gen.api.inputs import op_files, resolve_target
from sh2gen.base.files import write_whole
from sh2gen.base.resources import folder
from sh2gen.emit.emit import emit
from sh2gen.runtime.measure import bound, calls, copy, elementwise, host_time, machine, time_call
from sh2gen.runtime.operator import Operator, OperatorRunner
from sh2gen.schedule.config import DIRECTIONS
from sh2gen.spec.decode import load_spec
from sh2gen.spec.operator import OpSpec
from sh2gen.tuning.choose import candidates, tables
from sh2gen.verify.report import Report
from sh2gen.verify.verify import verify

LENGTHS = (1, 7, 127, 1000, 8191, 8192, 131072)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TIMED = (2048, 8192, 8191, 32768, 131072)


def named(op: str) -> OpSpec:
    """A shipped operator, or that of an op.yaml."""
    return load_spec(Path(op) if "." in op else folder("ops") / f"{op}.yaml")


def generate(spec: OpSpec, where: Path, plan: str | None = None) -> Operator:
    """The operator as `sh2gen compile` would write it, in `where`."""
    chosen = candidates(spec, resolve_target(None), plan, known=tables())[0]
    path = where / f"{spec.op}.py"
    write_whole(path, emit(spec, chosen.plan, chosen.schedule).text)
    return Operator(path)


def warm(job: tuple[Path, torch.dtype, str]) -> None:
    """Run small cases, so that the binaries that verification will meet are in Triton's cache."""
    path, dtype, properties = job
    operator = Operator(path)
    length = 7 if properties == "equality" else 8
    verify(
        operator.spec,
        OperatorRunner(operator, "cuda"),
        dtype=dtype,
        shapes=[(1, length)],
        device="cuda",
        properties=[properties],
    )


def verified(operator: Operator, quick: bool) -> list[dict[str, Any]]:
    """Reports in every dtype; `quick` leaves out the long lengths."""
    found = []
    for dtype in DTYPES:
        lengths = [n for n in LENGTHS if n <= 1000 or not quick]
        report = verify(
            operator.spec,
            OperatorRunner(operator, "cuda"),
            dtype=dtype,
            shapes=[(batch, length) for length in lengths for batch in (1, 2)],
            device="cuda",
            property_shapes=[(2, 127)],
        )
        found.append(
            {
                "dtype": report.dtype,
                "ok": report.ok,
                "checks": len(report.checks),
                "failures": [check.to_dict() for check in report.failures],
                "errors": worst_errors(report),
            }
        )
    return found


def worst_errors(report: Report) -> dict[str, float]:
    """The largest relative error (2-norm, against float64) of the output and of each gradient."""
    worst: dict[str, float] = {}
    for check in report.checks:
        step, _, what = check.name.partition(": ")
        if step.startswith("equality") and what.endswith(", norm"):
            tensor = what.removesuffix(", norm")
            worst[tensor] = max(worst.get(tensor, 0.0), check.measured)
    return worst


def measured(operator: Operator, lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Forward, backward and both together, beside their bounds, in bfloat16 at batch 1."""
    found = [measured_at(operator, length) for length in lengths]
    torch.cuda.empty_cache()
    return found


def measured_at(operator: Operator, length: int) -> dict[str, Any]:
    """One row of the table."""
    spec, dtype = operator.spec, torch.bfloat16
    made = calls(operator, 1, length, dtype)
    bounds = {d: bound(spec, 1, length, dtype, d).median for d in DIRECTIONS}
    # PyTorch's copy_ is far slower than an elementwise kernel at some sizes; a copy is the faster
    shape = (length * spec.channels,)
    copies = (copy(shape, dtype).median, elementwise(shape, dtype, 1, 1).median)
    row: dict[str, Any] = {"length": length, "copy_us": min(copies)}
    for name in ("forward", "backward", "both"):
        timing = time_call(getattr(made, name))
        least = bounds.get(name, sum(bounds.values()))
        row[f"{name}_us"] = timing.median
        row[f"{name}_spread"] = [timing.low, timing.high]
        row[f"{name}_bound_us"] = least
        row[f"{name}_share"] = least / timing.median
    row["forward_host_us"] = host_time(made.forward)
    row["backward_host_us"] = host_time(made.backward)
    return row


def title(results: dict[str, Any]) -> str:
    """On what, with which versions, and when."""
    versions = (f"{name} {results['versions'][name]}" for name in ("torch", "triton"))
    return ", ".join([results["gpu"], *versions, results["date"]])


def table(results: dict[str, Any]) -> str:
    lines = [
        "| op | D | L | forward us | bound us | share | backward us | bound us | share "
        "| both / elementwise both | forward / copy | error y | error gradients |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results["ops"].items():
        errors = next(r["errors"] for r in result["verified"] if r["dtype"] == "bfloat16")
        gradients = max(error for tensor, error in errors.items() if tensor != "y")
        for row in result.get("times", []):
            lines.append(
                f"| {name} | {result['channels']} | {row['length']} "
                f"| {row['forward_us']:.1f} | {row['forward_bound_us']:.1f} "
                f"| {row['forward_share']:.2f} "
                f"| {row['backward_us']:.1f} | {row['backward_bound_us']:.1f} "
                f"| {row['backward_share']:.2f} | {row['both_us'] / row['both_bound_us']:.2f} "
                f"| {row['forward_us'] / row['copy_us']:.2f} "
                f"| {errors['y']:.1e} | {gradients:.1e} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--ops", nargs="*", default=[], help="names of shipped ops, or op.yaml files"
    )
    parser.add_argument("--only", choices=["verify", "measure"])
    parser.add_argument("--plan", help="a plan or a prefix of its name")
    parser.add_argument("--lengths", nargs="*", type=int, default=list(TIMED))
    parser.add_argument("--json", type=Path, help="write all results here")
    parser.add_argument(
        "--workers", type=int, default=16, help="processes that compile beforehand"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("this script needs a CUDA device", file=sys.stderr)
        return 2
    specs = [named(op) for op in options.ops or [str(p) for p in op_files([folder("ops")])]]
    results: dict[str, Any] = {
        **machine(),
        "date": time.strftime("%Y-%m-%d"),
        "ops": {},
    }
    failed = False
    with tempfile.TemporaryDirectory() as name:
        made = [generate(spec, Path(name), options.plan) for spec in specs]
        begin = time.perf_counter()
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            cases = ("equality", "strides", "causality")  # ragged, unaligned, whole vectors
            list(pool.map(warm, [(o.path, d, c) for c in cases for d in DTYPES for o in made]))
        print(f"compiled in {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
        for operator in made:
            spec: OpSpec = operator.spec
            result: dict[str, Any] = {
                "plan": operator.plan,
                "channels": spec.channels,
                "schedule": next(iter(getattr(operator.namespace, "CONFIGS", {}).values()), {}),
            }
            results["ops"][spec.op] = result
            begin = time.perf_counter()
            result["verified"] = verified(operator, quick=options.only == "measure")
            torch.cuda.empty_cache()
            ok = all(report["ok"] for report in result["verified"])
            failed |= not ok
            checks = sum(report["checks"] for report in result["verified"])
            print(
                f"{spec.op} {operator.plan}: {'verified' if ok else 'WRONG'}, {checks} checks, "
                f"{time.perf_counter() - begin:.0f} s",
                file=sys.stderr,
                flush=True,
            )
            for report in result["verified"]:
                for failure in report["failures"][:5]:
                    print(f"  {report['dtype']}: {failure}", file=sys.stderr)
            if ok and options.only != "verify":
                result["times"] = measured(operator, tuple(options.lengths))
                begin = time.perf_counter()
            if options.json:
                write_whole(options.json, json.dumps(results, indent=1))
    print(title(results))
    if options.only != "verify":
        print(table(results))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
