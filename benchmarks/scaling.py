"""What splitting a sequence over ranks would add, by prediction: a table and a figure.

    python benchmarks/scaling.py --figure docs/figures/ranks.png

For each operator, whole length and number of ranks: the time of the operator on a rank's own steps
(`cost.predict`), and what every strategy adds to it (`cost.ranks`), by the rates of the target
file, of which those of links are of datasheets. It ends with where one strategy gives way to
another as ranks grow.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sh2gen.base.resources import folder
from sh2gen.cost.cost import predict
from sh2gen.cost.ranks import exchanges
from sh2gen.spec.decode import load_spec
from sh2gen.spec.language import Exchange, Sharding, Workload
from sh2gen.targets.target import target
from sh2gen.tuning.choose import candidates

OPS = ("hyena_se", "hyena_mr", "hyena_li")
LENGTHS = (2**20, 10 * 2**20, 100 * 2**20)
RANKS = (2, 8, 32, 128, 512, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One operator at one size: seconds of its own forward, and what strategies add."""

    op: str
    length: int
    ranks: int
    own: float
    added: dict[Exchange, float]


def points(gpu: str) -> Iterator[Point]:
    machine = target(gpu)
    for op in OPS:
        spec = load_spec(folder("ops") / f"{op}.yaml")
        best = candidates(spec, machine)[0]
        for length in LENGTHS:
            for ranks in RANKS:
                local = Workload(batch=1, length=length // ranks)
                one = predict(spec, best.plan, best.schedule, "forward", local, machine)
                whole = Workload(batch=1, length=length)
                found = exchanges(spec, whole, machine, ranks, Sharding.ZIGZAG)
                added = {way.strategy: way.seconds for way in found}
                yield Point(op=op, length=length, ranks=ranks, own=one.seconds, added=added)


def table(found: list[Point]) -> list[str]:
    names = [way for way in Exchange if any(way in p.added for p in found)]
    lines = ["| op | steps | ranks | own us | " + " | ".join(names) + " |"]
    lines.append("|---" * (4 + len(names)) + "|")
    for p in found:
        cells = (f"{1e6 * p.added[n]:.0f}" if n in p.added else "" for n in names)
        size = f"{p.length // 2**20}M"
        lines.append(f"| {p.op} | {size} | {p.ranks} | {1e6 * p.own:.0f} | {' | '.join(cells)} |")
    return lines


def crossings(found: list[Point]) -> Iterator[str]:
    """Where the least of the strategies changes as ranks grow, each operator and length."""
    for op in OPS:
        for length in LENGTHS:
            own = [p for p in found if (p.op, p.length) == (op, length)]
            best = [min(p.added, key=lambda way: p.added[way]) for p in own]
            for before, after, p in zip(best, best[1:], own[1:], strict=False):
                if before != after:
                    yield f"{op}, {length // 2**20}M steps: {after} from {p.ranks} ranks on"


def draw(found: list[Point], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(OPS), figsize=(12, 3.6), sharey=True)
    for axis, op in zip(axes, OPS, strict=True):
        own = [p for p in found if p.op == op and p.length == LENGTHS[1]]
        ranks = [p.ranks for p in own]
        axis.loglog(ranks, [1e6 * p.own for p in own], "k:", label="operator itself")
        for way in Exchange:
            there = [(p.ranks, 1e6 * p.added[way]) for p in own if way in p.added]
            if there:
                colour = f"C{list(Exchange).index(way)}"
                label = {"marker": "o", "markersize": 3, "color": colour, "label": way.value}
                axis.loglog(*zip(*there, strict=True), **label)
        axis.set_title(f"{op}, {LENGTHS[1] // 2**20}M steps", fontsize=10)
        axis.set_xlabel("ranks")
        axis.legend(fontsize=6)
    axes[0].set_ylabel("us, predicted")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="H100")
    parser.add_argument("--figure", type=Path, help="write the figure, with matplotlib")
    arguments = parser.parse_args()
    found = list(points(arguments.target))
    print("\n".join([*table(found), "", *crossings(found)]))
    if arguments.figure is not None:
        draw(found, arguments.figure)


if __name__ == "__main__":
    main()
