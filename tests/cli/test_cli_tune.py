"""`sh2gen tune`, as a command."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sh2gen.base.errors import CheckFailed, Sh2genError
from sh2gen.base.resources import folder
from sh2gen.lower import plans
from sh2gen.schedule.config import DIRECTIONS, schedule
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.tuning.decide import Tuned
from sh2gen.tuning.records import Status
from sh2gen.tuning.search import Outcome
from sh2gen.tuning.session import Session
from tests.cli.commands import run, tuned
from tests.fakes import SPEC, Fakes, forward_points
from tests.gpus import H200


def test_tuning_needs_a_gpu(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run("tune", op)
    assert result.exit_code == 2 and result.stdout == ""
    assert "error[V003]: tuning needs a GPU, and there is none here\n" in result.stderr
    assert "--effort estimate` ranks schedules by prediction, without a GPU" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_operator_without_kernels_is_refused_before_the_lack_of_a_gpu(
    op: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which is no reason to try an estimate: that would be refused too."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = str(folder("ops") / "hyena.yaml")
    results = [run("tune", path, *more) for more in ((), ("--effort=estimate",))]
    for result in results:
        assert result.exit_code == 2 and "V003" not in result.stderr
        assert result.stderr.startswith("error[L003]: hyena is computed by fft/")
        assert "which has no kernels to tune" in result.stderr
    assert results[0].stderr == results[1].stderr
    assert "help: compile writes it as it is" in results[0].stderr
    assert "help: --plan direct/BDL/recompute has some" in run("tune", op, "--plan=fft").stderr


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "0"])
def test_a_budget_is_a_number_of_seconds(op: str, tuning: Any, seconds: str) -> None:
    called = tuning(tuned())
    result = run("tune", op, f"--budget={seconds}")
    assert result.exit_code == 2 and not called
    assert "Invalid value for '--budget'" in result.stderr
    assert run("tune", op, "--budget=2.5").exit_code == 0
    assert called[0]["budget"] == 2.5


def test_tuning_is_on_this_gpu(op: str) -> None:
    result = run("tune", op, "--target=H200")
    assert result.exit_code == 2 and "error[C006]" in result.stderr


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Lets `tune_operator` come to what is given; the list gets the options of a call."""

    def comes_to(*found: Tuned) -> list[dict[str, Any]]:
        called: list[dict[str, Any]] = []

        def fake(op: str, **options: Any) -> Iterator[tuple[Tuned, Path | None]]:
            called.append(options)
            options["progress"]("a candidate")
            for one in found:
                yield one, Path("tuned/table.jsonl") if one.decision else None

        monkeypatch.setattr("sh2gen.api.tune.tune_operator", fake)
        return called

    return comes_to


def test_what_tuning_came_to_is_printed(op: str, tuning: Any) -> None:
    tuning(tuned())
    result = run("tune", op)
    assert result.exit_code == 0 and "a candidate" in result.stderr
    assert result.stdout.splitlines() == [
        "small_conv forward B=1 L=8192",
        "  tried       2 of 2 candidates in 12 s: 2 ok",
        "  config      ROWS=8 BLOCK_D=1 BLOCK_T=1024 TILES=4 num_warps=2",
        "  B=1 L=8192  80.0 us (72.0 to 88.0), 0.75 of the bound; before 100.0 us",
        "  kept in     tuned/table.jsonl",
    ]


def test_a_schedule_that_failed_is_said_to(op: str, tuning: Any) -> None:
    """It is what compile has taken so far."""
    found = tuned()
    assert found.decision is not None
    failed = Outcome(status=Status.WRONG, detail="y: too far off\nmore", stage="verify")
    found = replace(
        found,
        result=replace(found.result, tried={**found.result.tried, found.problem.start: failed}),
        decision=replace(found.decision, start_us=()),
    )
    tuning(found)
    assert run("tune", op).stdout.splitlines()[2:5] == [
        "  config      ROWS=8 BLOCK_D=1 BLOCK_T=1024 TILES=4 num_warps=2",
        "  before      ROWS=8 BLOCK_D=1 BLOCK_T=1024 TILES=1 num_warps=2, "
        "which compile takes now, failed (wrong): y: too far off",
        "  B=1 L=8192  80.0 us (72.0 to 88.0), 0.75 of the bound",
    ]
    assert json.loads(run("tune", op, "--json").stdout)[0]["start"]["detail"] == failed.detail


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (None, "nothing was compared with what compile takes now before the search ended"),
        (
            Outcome(status=Status.RUNTIME, stage="build", detail="full"),
            "what compile takes now could not be built on this machine",
        ),
    ],
)
def test_why_nothing_was_decided(op: str, tuning: Any, start: Outcome | None, words: str) -> None:
    found = replace(tuned(), decision=None)
    tried = {n: one for n, one in found.result.tried.items() if n != found.problem.start}
    tried |= {found.problem.start: start} if start else {}
    tuning(replace(found, result=replace(found.result, tried=tried)))
    result = run("tune", op)
    assert result.exit_code == 1 and f"nothing: {words}\n" in result.stdout


def test_a_search_that_built_nothing_does_not_say_that_candidates_were_wrong(
    op: str, tuning: Any
) -> None:
    found = replace(tuned(), decision=None)
    tuning(replace(found, result=replace(found.result, tried={})))
    assert "nothing: nothing was compared with what compile takes now" in run("tune", op).stdout


def test_options_of_tune_reach_the_search(op: str, tuning: Any) -> None:
    called = tuning(tuned())
    run(
        "tune", op, "--length=1024", "--length=64", "--batch=2", "--direction=backward",
        "--effort=patient", "--budget=7", "--resume", "--out=tables", "--workers=3", "--seed=5",
        "--set=forward.TILES=4", "--plan=direct",
    )  # fmt: skip
    (options,) = called
    del options["progress"], options["warn"]
    assert options == {
        "sets": [(Workload(batch=2, length=1024),), (Workload(batch=2, length=64),)],
        "plan": "direct",
        "changes": {"forward": {"TILES": 4}},
        "directions": ("backward",),
        "effort": "patient",
        "budget": 7.0,
        "seed": 5,
        "resume": True,
        "workers": 3,
        "out": "tables",
    }


@pytest.mark.parametrize(
    ("found", "code", "words"),
    [
        ([(True, False)], 0, "config"),
        ([(True, False), (False, False)], 1, "nothing: no candidate was right"),
        ([(False, False)], 1, "nothing: no candidate was right"),
        ([(True, True)], 130, "2 ok; interrupted"),
        ([(True, False), (False, True)], 130, "2 wrong; interrupted"),
    ],
)
def test_exit_codes_of_tune(
    op: str, tuning: Any, found: list[tuple[bool, bool]], code: int, words: str
) -> None:
    tuning(*(tuned(*one) for one in found))
    result = run("tune", op)
    assert result.exit_code == code and words in result.stdout
    result = run("tune", op, "--json")
    assert result.exit_code == code and result.stderr == "a candidate\n"
    data = json.loads(result.stdout)
    assert [(bool(one["decision"]), one["interrupted"]) for one in data] == found
    assert [one["table"] for one in data] == [
        "tuned/table.jsonl" if right else None for right, _ in found
    ]
    assert data[0]["points"] == 2 and data[0]["direction"] == "forward"
    assert data[-1]["tried"] == ({"ok": 2} if found[-1][0] else {"wrong": 2})


def test_a_folder_of_tables_that_compile_does_not_know_is_named_with_its_option(
    op: str, tuning: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SH2GEN_HOME", str(tmp_path))
    tuning(tuned())
    kept = "  kept in     tuned/table.jsonl"
    assert f"{kept}\n" in run("tune", op).stdout
    assert f"{kept}\n" in run("tune", op, f"--out={tmp_path}/tuned").stdout
    text = run("tune", op, "--out=mine").stdout
    assert f"{kept}; compile and explain take it with --tables mine\n" in text
    text = run("tune", op, "--out=my tables").stdout
    assert f"{kept}; compile and explain take it with --tables 'my tables'\n" in text


def test_a_length_given_twice_is_searched_once(op: str, tuning: Any) -> None:
    called = tuning(tuned())
    run("tune", op, "--length=64", "--length=32", "--length=64")
    assert [w.length for (w,) in called[0]["sets"]] == [64, 32]


def test_tune_takes_one_operator(op: str, tmp_path: Path) -> None:
    result = run("tune", str(tmp_path))
    assert result.exit_code == 2 and "error[C006]: tune takes one operator" in result.stderr
    assert "help: one of small_conv.yaml" in result.stderr


@pytest.mark.parametrize("before", [0, 1])
def test_an_interrupt_outside_of_a_search_is_one_line_and_exit_code_130(
    op: str, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(*_: Any, **__: Any) -> Iterator[tuple[Tuned, Path | None]]:
        for _ in range(before):
            yield tuned(), Path("table.jsonl")
        raise KeyboardInterrupt

    monkeypatch.setattr("sh2gen.api.tune.tune_operator", fake)
    result = run("tune", op)
    assert result.exit_code == 130
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("interrupted before ")
    result = run("tune", op, "--json")
    assert result.exit_code == 130 and len(json.loads(result.stdout)) == before


def test_an_interrupt_of_any_command_is_one_line_and_exit_code_130(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sh2gen.api.compile.compile_operators", interrupted)
    result = run("compile", op)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end_a_process_interrupt_a_verb(
    op: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(*_: Any, **__: Any) -> Iterator[tuple[Tuned, Path | None]]:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            yield tuned(interrupted=True), Path("table.jsonl")

    monkeypatch.setattr("sh2gen.api.tune.tune_operator", fake)
    before = signal.getsignal(number)
    assert run("tune", op).exit_code == 128 + number
    assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_stays_so(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup."""

    def fake(*_: Any, **__: Any) -> Iterator[tuple[Tuned, Path | None]]:
        signal.raise_signal(signal.SIGHUP)
        yield tuned(), Path("table.jsonl")

    monkeypatch.setattr("sh2gen.api.tune.tune_operator", fake)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("tune", op).exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """A GPU and compilers for SPEC, two candidates forward and one backward."""
    monkeypatch.setenv("SH2GEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sh2gen.targets.target.from_device", lambda: H200)
    monkeypatch.setattr("sh2gen.tuning.choose.gpu_name", lambda target: "NVIDIA H200")
    backward = [schedule(SPEC, plans(SPEC)[0]).backward]
    return Fakes(
        tmp_path / "fakes", {"forward": forward_points({"TILES": 4}), "backward": backward}
    )


@pytest.mark.parametrize("lengths", [(), (64, 32)])
def test_a_gpu_that_goes_between_directions_is_exit_code_1(
    op: str, fakes: Fakes, lengths: tuple[int, ...]
) -> None:
    """What was tuned before is printed and kept, and what was not is named."""
    gone = {"status": "runtime", "detail": "CUDA error: device lost", "broken": True}
    fakes.rule("backward", fakes.points["backward"][0], bounds=gone)
    options = ("--effort=exhaustive", *(f"--length={length}" for length in lengths))
    with fakes.installed():
        result = run("tune", op, *options)
        plain = run("tune", op, *options, "--json")
    first = lengths[0] if lengths else 8192
    assert result.exit_code == plain.exit_code == 1
    assert result.stdout.startswith(f"small_conv forward B=1 L={first}\n")
    (found,) = json.loads(plain.stdout)
    assert found["direction"] == "forward" and Path(found["table"]).is_file()
    named = "; ".join(
        [f"small_conv backward B=1 L={first}"]
        + [f"small_conv {d} B=1 L={n}" for n in lengths[1:] for d in ("forward", "backward")]
    )
    for text in (result.stderr, plain.stderr):
        assert "device lost" in text and "--resume goes on" in text
        assert f"error[V003]: not tuned, because the GPU could not be used: {named}\n" in text


def test_a_gpu_that_goes_between_lengths_is_exit_code_1(
    op: str, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No search of the second begins."""
    whole = Session.tune

    def lost(self: Session, spec: OpSpec, *rest: Any, **options: Any) -> Iterator[Tuned]:
        if spec.workloads[0].length != 64:
            raise CheckFailed("V003", "the GPU cannot be used: device lost")
        yield from whole(self, spec, *rest, **options)

    monkeypatch.setattr(Session, "tune", lost)
    with fakes.installed():
        result = run("tune", op, "--effort=exhaustive", *(f"--length={n}" for n in (64, 32, 16)))
    assert result.exit_code == 1 and result.stdout.startswith("small_conv forward B=1 L=64\n")
    named = "; ".join(f"small_conv {d} B=1 L={n}" for n in (32, 16) for d in DIRECTIONS)
    assert "device lost" in result.stderr and "--resume goes on" in result.stderr
    assert f"not tuned, because the GPU could not be used: {named}\n" in result.stderr


def test_a_gpu_that_cannot_be_used_at_all_leaves_nothing_to_print(op: str, fakes: Fakes) -> None:
    gone = {"status": "runtime", "detail": "CUDA error: device lost", "broken": True}
    fakes.rule("forward", fakes.points["forward"][0], bounds=gone)
    with fakes.installed():
        result = run("tune", op, "--effort=exhaustive", "--json")
    assert (result.exit_code, result.stdout) == (1, "") and "device lost" in result.stderr


def test_a_decision_that_cannot_be_kept_is_exit_code_1(
    op: str, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Path:
        raise Sh2genError("C005", "cannot write the table: No space left on device")

    monkeypatch.setattr("sh2gen.api.tune.write_decisions", full)
    with fakes.installed():
        result = run("tune", op, "--effort=exhaustive")
        plain = run("tune", op, "--effort=exhaustive", "--json")
    assert result.exit_code == plain.exit_code == 1
    assert "No space left" in result.stderr and "No space left" in plain.stderr
    assert result.stdout.count("no table: stderr says why") == 2
    found = json.loads(plain.stdout)
    assert [(bool(one["decision"]), one["table"]) for one in found] == [(True, None)] * 2
