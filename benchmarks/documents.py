"""Packed documents beside the same row as one document, and beside rows that are padded.

    PYTHONPATH=. python benchmarks/documents.py --json documents.json
    python benchmarks/documents.py --from documents.json --figure docs/figures/documents.png

Each operator is generated with `sequences: packed`, at 4096 channels and in bfloat16, and verified
on this GPU by the property `documents` before it is timed. Documents have log-normal lengths and
fill 32,768 steps. A time is the median over replays of a CUDA graph; a ratio is to the shipped
operator on the whole row. What finds the documents, once a forward, is timed by itself. Then, for
the spread of lengths from none to sigma 1.5 at a median of 1000: a forward and a backward of the
packed row, and of a batch of the same documents, each padded to the longest, by the shipped one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu import generate

import sh2gen
from sh2gen.base.resources import folder
from sh2gen.runtime.measure import calls, document_lengths, host_time, machine, time_call
from sh2gen.runtime.operator import Operator, OperatorRunner
from sh2gen.spec.decode import load_spec
from sh2gen.spec.language import Sequences
from sh2gen.verify.verify import verify

STEPS = 32768
MEDIANS = (300, 3000)
SPREADS = (0.0, 0.5, 1.0, 1.5)
OPS = ("hyena_se", "hyena_mr", "hyena_li")
DIRECTIONS = ("forward", "backward")
DTYPE = torch.bfloat16


def packed(op: str, where: Path, algorithm: str) -> Operator:
    """The shipped operator for packed sequences, by the plan that it has; verified."""
    spec = replace(load_spec(folder("ops") / f"{op}.yaml"), sequences=Sequences.PACKED)
    operator = generate(spec, where, algorithm)
    report = verify(
        spec,
        OperatorRunner(operator, "cuda"),
        dtype=DTYPE,
        shapes=[(1, 2000)],
        device="cuda",
        properties=["documents"],
        property_shapes=[(1, 37), (1, 2000), (1, 20000)],
    )
    report.require()
    print(f"{op}: {len(report.checks)} checks", flush=True)
    return operator


def finding(operator: Operator, lengths: Sequence[int]) -> float:
    """Microseconds of what finds documents."""
    ends = torch.tensor([0, *lengths]).cumsum(0).int().cuda()
    found = operator.namespace.documents_on_gpu
    return time_call(lambda: found(ends, STEPS)).median


def hosts(operator: Operator, others: Operator) -> list[float]:
    """Microseconds of the host for a forward without gradients: packed, and not."""
    x = [torch.randn(1, operator.spec.channels, 2048, device="cuda").to(DTYPE)]
    inputs = x * len(operator.spec.inputs)
    ends = torch.tensor([0, 300, 2048], dtype=torch.int32, device="cuda")
    mine, other = operator.module(device="cuda"), others.module(device="cuda")
    with torch.no_grad():
        return [
            host_time(lambda: mine(*inputs, cu_seqlens=ends)),
            host_time(lambda: other(*inputs)),
        ]


def measured(ops: Sequence[str], where: Path) -> list[dict[str, Any]]:
    rows = []
    for op in ops:
        whole = sh2gen.load(folder("generated") / f"{op}.py")
        operator = packed(op, where, whole.plan)
        row: dict[str, Any] = {"op": op, "plan": whole.plan, "us": {}, "spread": []}
        dense = calls(whole, 1, STEPS, DTYPE)
        row["us"]["dense"] = [time_call(getattr(dense, d)).median for d in DIRECTIONS]
        del dense
        for median in MEDIANS:
            lengths = document_lengths(STEPS, median)
            call = calls(operator, 1, STEPS, DTYPE, documents=lengths)
            row["us"][str(median)] = [time_call(getattr(call, d)).median for d in DIRECTIONS]
            row["finding"] = finding(operator, lengths)
            del call
        row["host"] = hosts(operator, whole)
        print(row, flush=True)
        for sigma in SPREADS:
            lengths = document_lengths(STEPS, 1000, sigma)
            both = calls(operator, 1, STEPS, DTYPE, documents=lengths).both
            mine = time_call(both).median
            padded = calls(whole, len(lengths), max(lengths), DTYPE).both
            row["spread"].append(
                [sigma, len(lengths), max(lengths), mine, time_call(padded).median]
            )
            print(op, row["spread"][-1], flush=True)
            del both, padded
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| operator | direction | one document | median 3000 | median 300 |",
        "|" + "---|" * 5,
    ]
    for row in rows:
        for i, direction in enumerate(DIRECTIONS):
            dense = row["us"]["dense"][i]
            shares = [
                f"{row['us'][m][i]:.0f} ({row['us'][m][i] / dense:.2f})" for m in ("3000", "300")
            ]
            lines.append(f"| {row['op']} | {direction} | {dense:.0f} | {' | '.join(shares)} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(rows), figsize=(10, 3))
    for axis, row in zip(axes, rows, strict=True):
        sigma = [point[0] for point in row["spread"]]
        for index, label in ((3, "packed"), (4, "padded to the longest")):
            axis.plot(sigma, [p[index] / 1e3 for p in row["spread"]], marker="o", label=label)
        axis.axhline(
            sum(row["us"]["dense"]) / 1e3, color="grey", lw=1, ls=":", label="one document"
        )
        axis.set_title(row["op"])
        axis.set_xlabel("spread of lengths (sigma)")
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("forward and backward, ms")
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", nargs="+", default=OPS, help="shipped operators")
    parser.add_argument("--json", type=Path, help="write the times")
    parser.add_argument("--from", dest="known", type=Path, help="times that were written before")
    parser.add_argument("--figure", type=Path, help="draw the times by the spread of lengths")
    arguments = parser.parse_args()
    if arguments.known is not None:
        found = json.loads(arguments.known.read_text())
    else:
        with tempfile.TemporaryDirectory() as place:
            found = {"machine": machine(), "rows": measured(arguments.ops, Path(place))}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1))
    print(table(found["rows"]))
    if arguments.figure is not None:
        draw(found["rows"], arguments.figure)


if __name__ == "__main__":
    main()
