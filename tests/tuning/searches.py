"""Searches among a dozen candidates, and in a process of their own."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

from sh2gen.schedule.space import Config
from sh2gen.spec.decode import spec_from_dict
from sh2gen.tuning.records import Measurement
from tests.fakes import Fakes, forward_points

ROOT = Path(__file__).parent.parent.parent
MANY = [
    {"BLOCK_T": block, "TILES": tiles}
    for block, tiles in itertools.product((512, 1024, 2048), (1, 2, 4, 8))
    if (block, tiles) != (1024, 1)
]


def many(folder: Path) -> Fakes:
    """Twelve candidates that are right: 100 us, 88 us, 86 us, ..., of which the last is best."""
    points = forward_points(*MANY)
    fakes = Fakes(folder, {"forward": points})
    for i, config in enumerate(points):
        fakes.rule("forward", config, us=[100.0 if i == 0 else 90.0 - 2 * i])
    return fakes


def of(lines: list[Measurement], config: Config) -> list[Measurement]:
    return [line for line in lines if line.config == config]


def start_tuning(folder: Path, home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.fakes", str(folder)]
    environment = os.environ | {"SH2GEN_HOME": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment)


MODAL = spec_from_dict(
    {
        "op": "small_modal",
        "channels": 16,
        "filter": {"kind": "modal", "modes": 2, "groups": 16, "parametrisation": "complex"},
    }
)
