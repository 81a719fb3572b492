"""Hyena-LI at length, on this GPU: beside torch.fft, a million steps, the extremes of its poles.

    python benchmarks/long.py --json results.json

Three parts, each of kernels that have been compared with float64 in this run, before a time is
taken:

- `fft`: forward and backward of `ops/hyena_li.yaml` in bfloat16 at batch 1, beside the operator in
  PyTorch with a float32 FFT of twice the length: with the filter there already, and with the
  filter made from its modes in the call, as training needs it.
- `million`: 2^20 steps of 4096 channels, 2^32 elements a tensor. Output and gradients against
  float64 for some channels over all of time, by the verifier's tolerances; peak memory over inputs
  and outputs; time a token beside that at 131072.
- `poles`: a million steps of modes with log-poles from -50 to -1e-7, and of pairs that nearly
  cancel, at each precision: errors of the output and of every gradient over those of rounding
  once.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu import generate, named
from torch import Tensor

from sh2gen.base.files import write_whole
from sh2gen.bench.baselines import BASELINES
from sh2gen.graph.reference import reference_gradients
from sh2gen.runtime.measure import arguments, machine, time_call
from sh2gen.runtime.operator import Operator, OperatorRunner
from sh2gen.spec.language import FilterSpec, Parametrisation, Precision
from sh2gen.spec.operator import OpSpec
from sh2gen.verify.verify import verify

MILLION = 2**20


def beside_fft(operator: Operator, length: int, backward: bool) -> dict[str, Any]:
    """One row: microseconds of each way."""
    spec = operator.spec
    inputs, parameters, dy = arguments(operator, 1, length, torch.bfloat16)
    named = dict(zip([p.name for p in spec.parameters], parameters, strict=True))
    named["p"], named["gamma"] = torch.full_like(named["p"], -1.0), named["gamma"] / 4 - 3
    names = operator.namespace
    tensors = list(named.values())
    row: dict[str, Any] = {"length": length}
    row["forward_us"] = time_call(lambda: names.forward_op(*inputs, *tensors, False)).median
    acts = dict(zip(spec.inputs, inputs, strict=True))
    given, whole = (
        BASELINES[name].prepare(spec, length, torch.bfloat16) for name in ("fft_given", "fft")
    )
    with_taps, with_modes = given.convert(acts, named), whole.convert(acts, named)
    y = names.forward_op(*inputs, *tensors, False)[0]
    other = given.call(with_taps)
    row["difference"] = ((y - other).float().norm() / other.float().norm()).item()
    if row["difference"] > 0.02:
        raise SystemExit(f"by FFT something else comes out: {row['difference']:.3g}")
    del other
    row["fft_us"] = time_call(lambda: given.call(with_taps)).median
    row["fft_and_synthesis_us"] = time_call(lambda: whole.call(with_modes)).median
    saved = names.forward_op(*inputs, *tensors, True)[1]
    row["backward_us"] = time_call(lambda: names.backward_op(dy, *inputs, *tensors, saved)).median
    if backward:  # through autograd, which keeps what it needs
        leaves = {name: x.detach().requires_grad_() for name, x in with_modes.items()}
        made = whole.call(leaves)

        def differentiate() -> Any:
            return torch.autograd.grad(made, list(leaves.values()), dy, retain_graph=True)

        differentiate()
        begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
        begin.record()
        for _ in range(3):
            differentiate()
        end.record()
        torch.cuda.synchronize()
        row["fft_backward_us"] = begin.elapsed_time(end) / 3 * 1e3
    return row


def million(operator: Operator) -> dict[str, Any]:
    """A million steps, verified and then measured."""
    found: dict[str, Any] = {}
    report = verify(
        operator.spec,
        OperatorRunner(operator, "cuda"),
        dtype=torch.bfloat16,
        shapes=[(1, MILLION)],
        device="cuda",
        properties=["equality"],
    )
    found["verified"] = {"ok": report.ok, "checks": len(report.checks)}
    found["failures"] = [check.to_dict() for check in report.failures]
    if not report.ok:
        return found
    for length in (131072, MILLION):
        torch.cuda.empty_cache()
        inputs, parameters, _ = arguments(operator, 1, length, torch.bfloat16)
        tensors = parameters
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.no_grad():
            y = operator.namespace.forward_op(*inputs, *tensors, False)[0]
        torch.cuda.synchronize()
        size = sum(x.numel() * x.element_size() for x in (*inputs, y))
        grown = torch.cuda.max_memory_allocated() - before
        inputs_size = size - y.numel() * y.element_size()
        del y
        time = time_call(lambda i=inputs, t=tensors: operator.namespace.forward_op(*i, *t, False))
        found[str(length)] = {
            "forward_us": time.median,
            "ns_a_token": time.median / length * 1e3,
            "peak_over_inputs_and_outputs": (inputs_size + grown) / size,
        }
        del inputs
    return found


def over_one_rounding(
    operator: Operator, length: int, log_poles: Tensor, residues: Tensor
) -> dict[str, float]:
    """Errors of y and of every gradient in the 2-norm, over those of rounding them once."""
    spec = operator.spec
    torch.manual_seed(0)
    inputs, parameters, dy = arguments(operator, 1, length, torch.bfloat16)
    named = dict(zip([p.name for p in spec.parameters], parameters, strict=True))
    named |= {"log_poles": log_poles, "residues": residues}
    runner = OperatorRunner(operator, "cuda")
    acts = dict(zip(spec.inputs, inputs, strict=True))
    results = {"y": runner.forward(acts, named)} | runner.gradients(acts, named, dy)
    y, gradients = reference_gradients(spec, acts, named, dy)
    errors = {}
    for name, value in ({"y": y} | gradients).items():
        once = (value.to(torch.bfloat16).double() - value).norm()
        errors[name] = ((results[name].double() - value).norm() / once).item()
    return errors


def poles(where: Path) -> dict[str, Any]:
    """The extremes, at each precision; few channels, so that float64 of all is affordable."""
    base = named("hyena_li")
    wide = FilterSpec(
        kind=base.filter.kind, groups=16, modes=16, parametrisation=Parametrisation.LOG_POLES
    )
    slow = -torch.logspace(math.log10(50), -7, 16, dtype=torch.float64)
    near = torch.logspace(-1, -5, 8, dtype=torch.float64)
    pairs = -torch.stack([near, near * 1.01], 1).flatten()
    cases = {
        "from -50 to -1e-7": (slow, torch.ones(16)),
        "pairs that nearly cancel": (pairs, torch.tensor([30.0, -30.0]).repeat(8)),
    }
    found: dict[str, Any] = {}
    for precision in Precision:
        spec: OpSpec = replace(
            base, op=f"poles_{precision}", channels=16, filter=wide, precision=precision
        )
        operator = generate(spec, where)
        for name, (log_poles, residues) in cases.items():
            made = log_poles.float().cuda().expand(16, 16).contiguous()
            weights = residues.float().cuda().expand(16, 16).contiguous()
            errors = over_one_rounding(operator, MILLION, made, weights)
            found[f"{precision}, {name}"] = errors
            worst = max(errors, key=lambda n: errors[n])
            print(f"{precision}, {name}: y {errors['y']:.2f}, worst {worst} {errors[worst]:.2f}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--only", choices=("fft", "million", "poles"), action="append")
    options = parser.parse_args()
    parts = options.only or ["fft", "million", "poles"]
    results: dict[str, Any] = machine()

    def keep() -> None:
        if options.json is not None:
            write_whole(options.json, json.dumps(results, indent=1))

    with tempfile.TemporaryDirectory() as where:
        operator = generate(named("hyena_li"), Path(where))
        if "poles" in parts:
            results["poles"] = poles(Path(where))
            keep()
        if "million" in parts:
            results["million"] = million(operator)
            print(json.dumps(results["million"], indent=1), flush=True)
            keep()
        if "fft" in parts:
            report = verify(
                operator.spec,
                OperatorRunner(operator, "cuda"),
                dtype=torch.bfloat16,
                shapes=[(1, 8192), (1, 131072)],
                device="cuda",
                properties=["equality"],
            )
            report.require()
            results["fft"] = []
            for length in (2048, 8192, 32768, 131072):
                torch.cuda.empty_cache()
                row = beside_fft(operator, length, backward=length <= 32768)
                print(row, flush=True)
                results["fft"].append(row)
                keep()
    return 0 if results.get("million", {}).get("verified", {}).get("ok", True) else 1


if __name__ == "__main__":
    sys.exit(main())
