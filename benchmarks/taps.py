"""Which algorithm wins at how many taps: gated operators of 4 to 512 taps, by every algorithm.

    python benchmarks/taps.py --json taps.json
    python benchmarks/taps.py --taps 7 16 --algorithms direct toeplitz

Each operator is the shipped hyena_mr without its decay: 4096 channels in groups of 16, featurizer
of 3 taps, both gates, skip. It is verified in bfloat16 at lengths up to 1000, batches 1 and 2, and
only then timed, as benchmarks/gpu.py does it. An algorithm that does not apply has no row.
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
from gpu import generate, measured, title, warm, worst_errors

from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import write_whole
from sh2gen.lower import plans
from sh2gen.runtime.measure import machine
from sh2gen.runtime.operator import OperatorRunner
from sh2gen.spec.decode import parse_spec
from sh2gen.verify.verify import verify

SHAPES = [(batch, length) for length in (1, 7, 127, 1000) for batch in (1, 2)]
TEXT = """\
op: taps_{taps}_{algorithm}
channels: 4096
filter: {{kind: explicit, length: {taps}, groups: 256}}
featurizer: {{length: 3, taps: lag_last}}
gates: {{pre: true, post: true}}
skip: channel
layout: {{activations: BDL, projection: thirds}}
"""


def table(results: dict[str, Any], lengths: list[int]) -> str:
    """A row for each operator; times in us and, in brackets, shares of the bound."""
    head = [f"{way} {n}" for way in ("forward", "backward") for n in lengths]
    lines = [
        f"| taps | algorithm | {' | '.join(head)} | error y | error gradients |",
        "|---|---|" + "---|" * (len(head) + 2),
    ]
    for result in results["ops"]:
        cells = [
            f"{row[f'{way}_us']:.1f} ({row[f'{way}_share']:.2f})"
            for way in ("forward", "backward")
            for row in result["times"]
        ]
        errors = dict(result["errors"])
        y = errors.pop("y")
        lines.append(
            f"| {result['taps']} | {result['algorithm']} | {' | '.join(cells)} "
            f"| {y:.1e} | {max(errors.values()):.1e} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--taps", nargs="*", type=int, default=[4, 8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--algorithms", nargs="*", default=["direct", "toeplitz", "fft"])
    parser.add_argument("--lengths", nargs="*", type=int, default=[2048, 8192, 32768, 131072])
    parser.add_argument("--json", type=Path, help="write all results here")
    parser.add_argument(
        "--workers", type=int, default=16, help="processes that compile beforehand"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("this script needs a CUDA device", file=sys.stderr)
        return 2
    results: dict[str, Any] = {
        **machine(),
        "date": time.strftime("%Y-%m-%d"),
        "ops": [],
    }
    failed = False
    with tempfile.TemporaryDirectory() as name:
        made = []
        for taps in options.taps:
            for algorithm in options.algorithms:
                try:
                    spec = parse_spec(TEXT.format(taps=taps, algorithm=algorithm))
                    plans(spec, algorithm)
                except Sh2genError as reason:
                    print(reason, file=sys.stderr)
                    continue
                made.append((taps, algorithm, generate(spec, Path(name), algorithm)))
        jobs = [
            (operator.path, torch.bfloat16, case)
            for _, algorithm, operator in made
            for case in ("equality", "causality")
            if algorithm != "fft"
        ]
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(warm, jobs))
        for taps, algorithm, operator in made:
            report = verify(
                operator.spec,
                OperatorRunner(operator, "cuda"),
                dtype=torch.bfloat16,
                shapes=SHAPES,
                device="cuda",
                property_shapes=[(2, 127)],
            )
            torch.cuda.empty_cache()
            print(
                f"{taps} taps, {operator.plan}: {len(report.checks)} checks, "
                f"{len(report.failures)} failed",
                file=sys.stderr,
                flush=True,
            )
            if not report.ok:
                failed = True
                for failure in report.failures[:3]:
                    print(f"  {failure.to_dict()}", file=sys.stderr)
                continue
            results["ops"].append(
                {
                    "taps": taps,
                    "algorithm": algorithm,
                    "plan": operator.plan,
                    "errors": worst_errors(report),
                    "times": measured(operator, tuple(options.lengths)),
                }
            )
            if options.json:
                write_whole(options.json, json.dumps(results, indent=1))
    print(title(results))
    print(table(results, options.lengths))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
