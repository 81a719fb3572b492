"""What the scripts of benchmarks/ draw or run over: fuzz.py, plans.py."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from sh2gen.emit.emit import emit
from tests.tuning.test_sweeps import loaded

ROOT = Path(__file__).parents[2]


def test_the_grid_of_plans_is_of_these_cells() -> None:
    plans = loaded("plans")
    axes = ("taps", "length", "channels", "width", "batch")
    lines = (ROOT / "tests" / "data" / "plans" / "nvidia-h200.jsonl").read_text().splitlines()
    found = {tuple(json.loads(line)[axis] for axis in axes) for line in lines}
    assert found == {tuple(cell.key[axis] for axis in axes) for cell in plans.cells()}
    assert len(found) <= 120


def test_a_seed_is_one_case_and_seeds_are_of_every_kind() -> None:
    fuzz = loaded("fuzz")
    seen: Counter[str] = Counter()
    for seed in range(30):
        case = fuzz.drawn(seed)
        words = json.dumps(fuzz.in_words(case))
        assert words == json.dumps(fuzz.in_words(fuzz.drawn(seed)))
        assert emit(case["spec"], case["plan"], case["schedule"]).kernels
        for batch, length in case["shapes"]:
            assert batch * length * case["spec"].channels <= fuzz.ELEMENTS
        seen.update(
            (case["plan"].algorithm, case["plan"].layout.value, case["dtype"], case["how"])
        )
    one = fuzz.run(7, "cpu")
    assert one["status"] == "right" and one["checks"] > 10, one
    kinds = {"direct", "toeplitz", "modal", "BDL", "BLD", "bfloat16", "float16", "float32"}
    assert kinds | {"default", "searched", "legal"} <= set(seen)
