"""What hints about eviction from the L2 cache gain, for each kind of access of generated kernels.

    python benchmarks/hints.py --ops hyena_se hyena_li

The files are those that compile writes, with the hint put into the loads or stores of activations.
Each is verified in bfloat16 before it is timed; all of an operator are timed one after another,
several times over.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from gpu import generate, named

from sh2gen.base.files import signed, write_whole
from sh2gen.runtime.measure import calls, time_call
from sh2gen.runtime.operator import Operator, OperatorRunner
from sh2gen.schedule.config import DIRECTIONS
from sh2gen.verify.verify import verify

HINTS = {
    "none": ("", ""),
    "loads evict_last": ("load", ', eviction_policy="evict_last"'),
    "loads evict_first": ("load", ', eviction_policy="evict_first"'),
    "stores evict_first": ("store", ', eviction_policy="evict_first"'),
    "stores .cs": ("store", ', cache_modifier=".cs"'),
}
OPS = ("hyena_se", "hyena_mr", "hyena_li", "short_conv")


def unhinted(text: str) -> str:
    """A generated file without the hint that its own config may ask for."""
    return text.replace(", eviction_policy=EVICT)", ")")


def hinted(text: str, access: str, hint: str) -> str:
    """A generated file with a hint in every load or store of `load_steps` or `store_steps`."""

    def inside(function: re.Match[str]) -> str:
        return re.sub(rf"(tl\.{access}\(where[^\n]*)\)$", rf"\1{hint})", function[0], flags=re.M)

    return re.sub(rf"^def {access}_steps\(.*?(?=^(?:@|def ))", inside, text, flags=re.M | re.S)


def failures(path: Path) -> list[str]:
    """Of the checks of a file in bfloat16, at a short, a ragged and a long length."""
    operator = Operator(path)
    runner = OperatorRunner(operator, "cuda")
    report = verify(
        operator.spec,
        runner,
        dtype=torch.bfloat16,
        shapes=[(2, 1000), (1, 8191), (1, 8192)],
        device="cuda",
        properties=["equality"],
    )
    assert report.checks
    return [str(check) for check in report.failures]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ops", nargs="*", default=list(OPS))
    parser.add_argument("--lengths", nargs="*", type=int, default=[8192, 131072])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        files: dict[tuple[str, str], Path] = {}
        for op in options.ops:
            text = unhinted(generate(named(op), Path(name)).path.read_text())
            for i, (hint, (access, what)) in enumerate(HINTS.items()):
                changed = hinted(text, access, what) if access else text
                if access and changed == text:
                    print(f"{op}: no {access} to put a hint into", file=sys.stderr)
                    return 1
                files[op, hint] = Path(name) / str(i) / f"{op}.py"
                write_whole(files[op, hint], signed(changed))
        # Three at a time: references in float64 take 30 GiB each.
        with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
            found = dict(zip(files, pool.map(failures, files.values()), strict=True))
        if wrong := {key: bad for key, bad in found.items() if bad}:
            print(f"wrong: {wrong}", file=sys.stderr)
            return 1
        print("| operator | direction | L | " + " | ".join(HINTS) + " |")
        print("|---|---|---|" + "---|" * len(HINTS), flush=True)
        for op in options.ops:
            operators = {hint: Operator(files[op, hint]) for hint in HINTS}
            for length in options.lengths:
                for direction in DIRECTIONS:
                    times: dict[str, list[float]] = {hint: [] for hint in HINTS}
                    for _ in range(options.rounds):
                        for hint, seen in times.items():
                            made = calls(operators[hint], 1, length, torch.bfloat16)
                            seen.append(time_call(getattr(made, direction), 10, 40).median)
                    least = {hint: median(seen) for hint, seen in times.items()}
                    cells = [f"{us:.1f} ({us / least['none']:.3f})" for us in least.values()]
                    row = " | ".join([op, direction, str(length), *cells])
                    print(f"| {row} |", flush=True)
                    torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
