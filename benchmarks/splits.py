"""Few channels on this GPU: one program a channel, or several that share its sequence as splits.

    python benchmarks/splits.py --json splits.json

Hyena-LI of few channels is verified, then timed, in bfloat16 for several numbers of programs that
a launcher may be told to want: with the least of these it is one a channel. Cut as by default it
is verified in float16 and float32 too: forward and every gradient against float64, and every
property.
Times and bounds are those of benchmarks/gpu.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from gpu import DTYPES, generate, named

from sh2gen.base.files import write_whole
from sh2gen.runtime.measure import arguments, bound, time_call
from sh2gen.runtime.operator import Operator, OperatorRunner
from sh2gen.schedule.config import DIRECTIONS
from sh2gen.spec.operator import OpSpec
from sh2gen.verify.verify import verify

CHANNELS = (16, 64, 128)  # forward of more is never cut
LENGTHS = (8192, 32768, 131072)
VERIFIED = (1, 8192, 14337, 16383, 16384, 131072)  # uncut, then of eight tiles and of many
WANTED = (1, 256, 512, 1024, 2048)


def narrowed(op: str, channels: int) -> OpSpec:
    """A shipped operator, of fewer channels."""
    spec = named(op)
    width = spec.channels // spec.filter.groups
    inner = dataclasses.replace(spec.filter, groups=channels // width)
    return dataclasses.replace(spec, op=f"{op}_{channels}", channels=channels, filter=inner)


def wanting(operator: Operator, programs: int) -> dict[str, dict[str, int]]:
    """The config of a file for so many programs a sequence."""
    (config,) = operator.namespace.CONFIGS.values()
    wanted = programs * operator.namespace.BATCH
    return {role: {**one, "PROGRAMS": wanted} for role, one in config.items()}


def checked(
    path: Path, dtype: torch.dtype, wanted: int | None, lengths: tuple[int, ...] = VERIFIED
) -> tuple[int, list[str]]:
    """How many checks of a file in one dtype there were, cut as it is by default or for so many
    programs, and what failed: of forward, of every gradient, of every property.
    """
    operator = Operator(path)
    if wanted:
        operator.use(wanting(operator, wanted))
    report = verify(
        operator.spec,
        OperatorRunner(operator, "cuda"),
        dtype=dtype,
        shapes=[(1 + i % 2, length) for i, length in enumerate(lengths)],
        device="cuda",
        property_shapes=[(1, 16390)],
    )
    name = f"{operator.spec.op} {report.dtype} for {wanted or 'default'} programs"
    return len(report.checks), [f"{name}: {failure.to_dict()}" for failure in report.failures]


def warm(job: tuple[Path, torch.dtype]) -> None:
    """Check short sequences, so that the binaries of all are in Triton's cache."""
    checked(*job, WANTED[-1], tuple(n for n in VERIFIED if n <= 16384))
    torch.cuda.empty_cache()


def measured(operator: Operator, length: int) -> dict[str, Any]:
    """Microseconds of forward, as for training, and backward, by programs wanted."""
    n, dtype = operator.namespace, torch.bfloat16
    inputs, parameters, dy = arguments(operator, 1, length, dtype)
    row: dict[str, Any] = {"channels": operator.spec.channels, "length": length, "us": {}}
    for direction in DIRECTIONS:
        row[f"{direction}_bound"] = bound(operator.spec, 1, length, dtype, direction).median
    (default,) = n.CONFIGS.values()
    row["default"] = {role: config["PROGRAMS"] for role, config in default.items()}
    for wanted in WANTED:
        operator.use(wanting(operator, wanted))
        saved = n.forward_op(*inputs, *parameters, True)[1:]
        row["us"][wanted] = [
            time_call(lambda: n.forward_op(*inputs, *parameters, True)).median,
            time_call(lambda kept=saved: n.backward_op(dy, *inputs, *parameters, *kept)).median,
        ]
    operator.use(default)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op", default="hyena_li")
    parser.add_argument("--channels", nargs="*", type=int, default=list(CHANNELS))
    parser.add_argument("--lengths", nargs="*", type=int, default=list(LENGTHS))
    parser.add_argument("--json", type=Path, help="write all results here")
    parser.add_argument("--workers", type=int, default=15, help="processes that verify")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("this script needs a CUDA device", file=sys.stderr)
        return 2
    rows, wrong = [], []
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}"
    )
    wanted = " | ".join(f"{n}" for n in WANTED)
    print("us, by the number of programs wanted, forward and then backward:")
    print(f"| D | L | {wanted} | bound | {wanted} | bound |")
    print("|---|---|" + "---|" * (2 * len(WANTED) + 2))
    with tempfile.TemporaryDirectory() as name:
        specs = [narrowed(options.op, channels) for channels in options.channels]
        operators = [generate(spec, Path(name), "modal") for spec in specs]
        jobs = [(operator.path, dtype) for operator in operators for dtype in DTYPES]
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(warm, jobs))
        for operator in operators:
            cases = [(dtype, None) for dtype in DTYPES]
            cases += [(torch.bfloat16, wanted) for wanted in WANTED]
            found = [checked(operator.path, *case) for case in cases]
            torch.cuda.empty_cache()
            problems = [problem for _, some in found for problem in some]
            checks = sum(count for count, _ in found)
            print(f"{operator.spec.op}: {checks} checks, {len(problems)} failed", file=sys.stderr)
            print("\n".join(problems[:10]), file=sys.stderr)
            wrong += problems
            for length in options.lengths if not problems else ():
                row = measured(operator, length)
                rows.append(row)
                cells = [
                    " | ".join(f"{row['us'][n][i]:.1f}" for n in WANTED)
                    + f" | {row[f'{which}_bound']:.1f}"
                    for i, which in enumerate(DIRECTIONS)
                ]
                print(f"| {operator.spec.channels} | {length} | {' | '.join(cells)} |", flush=True)
                if options.json:
                    write_whole(options.json, json.dumps(rows, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
