"""The process that verifies and times, on a CPU: plain PyTorch stands for kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.compiler.errors import CompilationError, CompileTimeAssertionFailure
from triton.runtime.errors import OutOfResources, PTXASError

from sh2gen.api.compile import compile_operator
from sh2gen.base.files import MARK, signed
from sh2gen.base.resources import folder
from sh2gen.lower import plans
from sh2gen.runtime.measure import activation
from sh2gen.runtime.operator import Operator
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import load_spec
from sh2gen.spec.language import StateSpec
from sh2gen.tuning import worker as tune_worker
from sh2gen.tuning.worker import GUARD, Bench, Training, failed
from sh2gen.verify.verify import verify
from tests.fakes import SPEC

ROOT = Path(__file__).parent.parent.parent


def job(path: Path, **fields: Any) -> dict[str, Any]:
    return {
        "do": "verify",
        "file": str(path),
        "config": {},
        "direction": "forward",
        "workloads": [[1, 64], [2, 40]],
        "seed": 3,
        "short": [2, 1032],
    } | fields


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated")
    return compile_operator(SPEC, out=out, verified=False, built=False).path


def test_a_right_file_passes(written: Path) -> None:
    answer = Bench("cpu").answer(job(written))
    assert set(answer) == {"status", "checks"}
    assert answer["status"] == "ok" and answer["checks"] >= 10


@pytest.mark.parametrize(
    ("factor", "detail"),
    [
        ("-1", "equality B=2 L=1032: y, norm: 2, allowed 0.00"),
        ("float('nan')", "equality B=2 L=1032: y, finite: 8.26e+03, allowed 0; 8256 of 8256"),
    ],
)
def test_a_changed_filter_is_wrong_and_the_answer_says_in_what(
    written: Path, tmp_path: Path, factor: str, detail: str
) -> None:
    text, taps = written.read_text(), "functional.pad(x, (reach, 0)), taps.flip(1)"
    assert text.count(taps) == 1
    doctored = tmp_path / written.name
    doctored.write_text(signed(text.replace(taps, f"{taps} * {factor}")))
    answer = Bench("cpu").answer(job(doctored))
    assert answer["status"] == "wrong"
    assert answer["detail"].startswith(detail)
    assert json.loads(json.dumps(answer)) == answer


def test_every_workload_is_verified_and_the_short_case_is(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float64 at all, fences and determinism at the short one."""
    reports = []

    def noted(*args: Any, **options: Any) -> Any:
        reports.append(verify(*args, **options))
        return reports[-1]

    monkeypatch.setattr(tune_worker, "verify", noted)
    assert Bench("cpu").answer(job(written, short=[2, 41]))["status"] == "ok"
    (report,) = reports
    names = {check.name.split(":")[0] for check in report.checks}
    assert names == {f"equality {at}" for at in ("B=2 L=41", "B=1 L=64", "B=2 L=40")} | {
        "determinism B=2 L=41"
    }


@pytest.mark.parametrize("op", ["short_conv", "hyena_se", "hyena_li_stateful"])
@pytest.mark.parametrize("length", [16, 13])
def test_what_is_verified_lies_in_memory_as_what_is_timed(
    op: str, length: int, tmp_path: Path
) -> None:
    spec = load_spec(folder("ops") / f"{op}.yaml")
    groups = 8 * spec.filter.groups // spec.channels or 1
    spec = replace(spec, channels=8, filter=replace(spec.filter, groups=groups))
    operator = Operator(compile_operator(spec, out=tmp_path, verified=False, built=False).path)
    training = Training(operator, "cpu")
    timed = activation(operator, 2, length, torch.bfloat16, "cpu")
    given = timed.contiguous()
    found = training._laid_out(given)
    assert found.stride() == timed.stride() and torch.equal(found, given)
    if length == 16:
        assert found is given
    elif operator.layout == "BDL":  # between NaNs, and rows too
        around = found.as_strided((16,), (1,), found.storage_offset())
        assert around[13:].isnan().all() and found.storage_offset() == GUARD
        assert found.data_ptr() % 16 == 0


def test_an_operator_with_rings_alone_is_verified_as_it_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On as many steps as are given, whatever it keeps of the past."""
    spec = load_spec(folder("ops") / "hyena_se.yaml")
    inner = replace(spec.filter, groups=4)
    spec = replace(spec, channels=8, filter=inner, state=StateSpec(initial=True, final=True))
    path = compile_operator(spec, out=tmp_path, verified=False, built=False).path
    bench = Bench("cpu")
    namespace = bench._operator(job(path)).namespace
    assert not hasattr(namespace, "stateful_op")
    lengths = []
    eager = namespace.eager_after

    def noted(inputs: Any, parameters: Any, state: Any) -> Any:
        lengths.append(inputs[0].shape[namespace.TIME])
        return eager(inputs, parameters, state)

    monkeypatch.setattr(namespace, "eager_after", noted)
    assert bench.answer(job(path))["status"] == "ok"
    assert set(lengths) == {1032, 64, 40}


def test_a_config_stands_for_those_of_the_file(written: Path) -> None:
    """For that of an earlier job, too; an empty one is none."""
    bench = Bench("cpu")
    assert bench.answer(job(written))["status"] == "ok"
    own = bench._operators[str(written)].namespace.configs_of(torch.zeros(1, 4, 8), 4, 4)
    assert own["forward"] == dict(schedule(SPEC, plans(SPEC)[0]).forward)
    for steps in (8, 16):
        config = {role: {"BLOCK_T": steps} for role in ("forward", "backward")}
        assert bench.answer(job(written, config=config))["status"] == "ok"
        file = bench._operators[str(written)].namespace
        assert file.configs_of(torch.zeros(1, 4, 8), 4, 4) == config
    assert list(bench._operators) == [str(written)]


def test_a_job_that_makes_no_sense_is_answered() -> None:
    answer = Bench("cpu").answer({"do": "dance"})
    assert answer["status"] == "runtime" and "dance" in answer["detail"]
    answer = Bench("cpu").answer(job(Path("nowhere.py")))
    assert answer["status"] == "runtime" and "nowhere.py" in answer["detail"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "memory"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "memory"),
        (CompilationError("x = 1", None, "why"), "compile"),
        (CompileTimeAssertionFailure("x = 1", None, "why"), "compile"),
        (PTXASError("ptxas"), "compile"),
        (OutOfResources(300_000, 232_448, "shared memory"), "resources"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "runtime"),
        (ValueError("a shape"), "runtime"),
    ],
)
def test_what_an_exception_means(error: Exception, status: str) -> None:
    answer = failed(error)
    assert answer["status"] == status and "broken" not in answer
    assert answer["detail"].startswith(f"{type(error).__name__}: ")
    assert str(error)[:30] in answer["detail"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA"), "runtime"),
        (OutOfResources(2, 1, "registers"), "resources"),
    ],
)
def test_a_context_that_is_of_no_use_any_more_is_said(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: str
) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    answer = failed(error)
    assert answer["broken"] is True and answer["status"] == status


def test_every_job_has_a_line_whatever_is_printed(tmp_path: Path) -> None:
    noisy = tmp_path / "noisy.py"
    head = f'"""A file.{MARK}\nsha256, with zeros here: {"0" * 64}\n"""'
    noisy.write_text(signed(f'{head}\nprint("noise")\nraise RuntimeError("on purpose")\n'))
    jobs = [job(noisy), {"do": "dance"}, job(noisy, do="time", warmup_ms=1, repeat_ms=1)]
    done = subprocess.run(
        [sys.executable, "-c", "from sh2gen.tuning.worker import main; main()"],
        cwd=ROOT,
        input="".join(json.dumps(one) + "\n" for one in jobs),
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["status"] for answer in answers] == ["runtime"] * 3
    assert "on purpose" in answers[0]["detail"] and "dance" in answers[1]["detail"]
    assert done.stderr.count("noise") == 2


def test_decoding_is_verified_by_its_property(written: Path, tmp_path: Path) -> None:
    """After a prompt in few rows, and in as many rows as it is timed for."""
    asked = {"direction": "decode", "workloads": [[1, 1], [5, 1]], "short": [2, 20]}
    answer = Bench("cpu").answer(job(written, **asked))
    assert answer["status"] == "ok" and answer["checks"] == 8  # two shapes
    text, kept = written.read_text(), "ring_slots(ring, count, x.shape[2], 0)] = steps"
    assert text.count(kept) == 1
    doctored = tmp_path / written.name
    doctored.write_text(signed(text.replace(kept, kept.replace("= steps", "= -steps"))))
    answer = Bench("cpu").answer(job(doctored, **asked))
    assert answer["status"] == "wrong"
    assert answer["detail"].startswith("decode B=2 L=20: y, step by step after a prompt")
