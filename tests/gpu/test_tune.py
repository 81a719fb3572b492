"""Tuning on a GPU, and candidates that are broken in every way. Run by hand, with tests/gpu."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sh2gen.api.compile import compile_operator
from sh2gen.api.tune import tune_operator
from sh2gen.base.files import signed
from sh2gen.base.process import Worker
from sh2gen.base.resources import folder
from sh2gen.emit.emit import emit
from sh2gen.emit.launched import SHORT
from sh2gen.lower import plans
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import load_spec, spec_from_dict
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.tuning.lab import ask, measuring_worker
from sh2gen.tuning.worker import Bench

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SPEC: OpSpec = spec_from_dict(
    {
        "op": "gpu_tuned",
        "channels": 256,
        "filter": {"kind": "explicit", "length": 4, "groups": 256},
        "workloads": [{"batch": 1, "length": 8192}],
    }
)
STORE = (
    "        store_steps(y_ptr, tile, conv, y_stride, unit=1, EVEN=EVEN, BLOCK_D=BLOCK_D, N=N)\n"
)
NAN = '        conv = (conv[0] * float("nan"),) + conv[1:]\n'
BEYOND = "        if tl.program_id(0) == 0:\n            tl.store(y_ptr - 64, 1.0)\n"
FAULT = "        tl.store(y_ptr + tl.full((), 1 << 40, tl.int64), 1.0)\n"
HANG = (
    "        spin = tl.load(x_ptr, volatile=True).to(tl.float32)\n"
    "        while spin == spin:\n"
    "            spin = tl.load(x_ptr, volatile=True).to(tl.float32)\n"
)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    one = measuring_worker()
    yield one
    one.close()


def test_the_process_tells_its_gpu_from_others_of_its_kind(worker: Worker) -> None:
    answer = ask(worker, {"do": "machine"}, 120)
    assert answer["gpu"] == torch.cuda.get_device_name()
    assert uuid.UUID(answer["uuid"]).int


def job(folder: Path, do: str, before: str = "", length: int = 8192) -> dict[str, object]:
    """A job on the default schedule, with something before forward's store."""
    plan = plans(SPEC, "direct")[0]
    source = emit(SPEC, plan, schedule(SPEC, plan))
    (config,), text = source.configs.values(), source.text
    assert text.count(STORE) == 1
    path = folder / "gpu_tuned.py"
    path.write_text(signed(text.replace(STORE, before + STORE)))
    return {
        "do": do,
        "file": str(path),
        "config": config,
        "direction": "forward",
        "workloads": [[1, length]],
        "seed": 1,
        "short": list(SHORT),
        "warmup_ms": 2,
        "repeat_ms": 10,
    }


@pytest.mark.parametrize(
    ("before", "length", "status", "words"),
    [
        (NAN, 8192, "wrong", ""),
        (BEYOND, 8192, "wrong", "beyond tensors"),
        ("        conv = no_such_thing\n", 8192, "compile", "no_such_thing"),
        (FAULT, 8192, "runtime", "illegal memory access"),
        (HANG, 8192, "timeout", "after 20 s"),
        ("", 1 << 36, "memory", "out of memory"),
    ],
    ids=["nan", "beyond", "compile", "fault", "hang", "memory"],
)
def test_a_broken_candidate_is_named_and_the_next_is_timed(
    before: str, length: int, status: str, words: str, worker: Worker, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    broken = job(tmp_path / "broken", "verify", before, length)
    assert ask(worker, job(tmp_path, "verify"), 120)["status"] == "ok"
    answer = ask(worker, broken, 20)
    assert answer["status"] == status, answer
    assert words in answer["detail"].lower()
    for do in ("verify", "time"):
        answer = ask(worker, job(tmp_path, do), 120)
        assert answer["status"] == "ok", answer
    ((low, median, high),) = answer["us"]
    assert 0 < low <= median <= high < 1000


# Few channels: long sequences are cut into splits.
LI = load_spec(folder("ops") / "hyena_li_stateful.yaml")
STATEFUL = dataclasses.replace(LI, channels=64, filter=dataclasses.replace(LI.filter, groups=64))
LEAVE = (
    "            tl.store(ends.leaving_ptr + mode, passed_on(before, decay_by(a, left), added))\n"
)


def stateful_job(where: Path, sizes: list[list[int]], after: str = "") -> dict[str, Any]:
    """A job on the default schedule, with something after forward has stored the state."""
    plan = plans(STATEFUL, "modal")[0]
    source = emit(STATEFUL, plan, schedule(STATEFUL, plan))
    (config,), text = source.configs.values(), source.text
    assert text.count(LEAVE) == 1
    path = where / f"{STATEFUL.op}.py"
    path.write_text(signed(text.replace(LEAVE, LEAVE + after)))
    return {
        "file": str(path),
        "config": config,
        "direction": "forward",
        "workloads": sizes,
        "seed": 1,
        "short": [2, 8200],
        "warmup_ms": 2,
        "repeat_ms": 10,
    }


@pytest.mark.parametrize("sizes", [[[1, 8192]], [[1, 8192], [2, 1001]], [[1, 100_000]]])
def test_modes_with_a_state_are_verified_and_timed_with_it(
    sizes: list[list[int]], worker: Worker, tmp_path: Path
) -> None:
    made = stateful_job(tmp_path, sizes)
    answer = ask(worker, made | {"do": "verify"}, 120)
    assert answer["status"] == "ok", answer
    for direction in ("forward", "backward"):
        answer = ask(worker, made | {"do": "time", "direction": direction}, 120)
        assert answer["status"] == "ok", answer
        assert len(answer["us"]) == len(sizes)


def test_the_state_after_a_sequence_lies_between_fences(tmp_path: Path) -> None:
    """It has 2048 elements, and a fence 16384 of them."""
    beyond = "            tl.store(ends.leaving_ptr + mode - 4096, 1.0)\n"
    found = []
    for name, after in (("right", ""), ("wrong", beyond)):
        (tmp_path / name).mkdir()
        bench = Bench()
        operator = bench._operator(stateful_job(tmp_path / name, [[1, 8192]], after))
        found.append(bench._beyond(operator, 2, 1032))
    assert found[0] == 0 < found[1]


def test_a_tuned_config_is_taken_by_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SH2GEN_HOME", str(tmp_path))
    found = [tuned for tuned, _ in tune_operator(SPEC, effort="measure", budget=20)]
    assert [tuned.task.direction for tuned in found] == ["forward", "backward"]
    decisions = [tuned.decision for tuned in found]
    assert all(d is not None and 0 < d.us[0] <= 1.02 * d.start_us[0] for d in decisions)
    compilation = compile_operator(SPEC, out=tmp_path / "out")
    assert all("tuned on" in text for text in compilation.chosen.origins.values())
    assert [d.config for d in decisions if d] == [
        compilation.chosen.schedule.forward,
        compilation.chosen.schedule.backward,
    ]
    other = dataclasses.replace(SPEC, workloads=(Workload(batch=1, length=65536),))
    near = compile_operator(other, out=tmp_path / "near", verified=False, built=False)
    assert all("nearest" in text for text in near.chosen.origins.values())
    # going on where it ended tries nothing again
    again = [tuned for tuned, _ in tune_operator(SPEC, budget=20, resume=True)]
    assert [len(t.result.tried) for t in again] >= [len(t.result.tried) for t in found]
