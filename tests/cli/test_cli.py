"""The command line: what it prints where, and with which exit code."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from click.testing import CliRunner, Result

from sh2gen.api import driver
from sh2gen.base.errors import CheckFailed, Sh2genError
from sh2gen.base.files import same_program
from sh2gen.base.resources import folder
from sh2gen.cli.cli import main
from sh2gen.lower import ALGORITHMS, plans
from sh2gen.schedule.schedule import DIRECTIONS, Constraint, Survey, schedule, search_space
from sh2gen.spec.language import OpSpec, Workload
from sh2gen.targets.target import Target
from sh2gen.tuning.journal import Task
from sh2gen.tuning.records import Key, Status
from sh2gen.tuning.search import Outcome, Problem
from sh2gen.tuning.search import Result as Found
from sh2gen.tuning.sweeps import Header, Sweep
from sh2gen.tuning.tables import Decision, fields_of, write_decisions
from sh2gen.tuning.tuner import Session, Tuned
from tests.fakes import SPEC, Fakes, forward_points
from tests.gpus import H200

ROOT = Path(__file__).parent.parent.parent
FILTER = "filter: {kind: explicit, length: 3, groups: 4}"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def op(tmp_path: Path) -> str:
    path = tmp_path / "small_conv.yaml"
    path.write_text(f"op: small_conv\nchannels: 4\n{FILTER}\n")
    return str(path)


def test_verify_in_a_pipe_says_little(op: str) -> None:
    """A line before and one after each way of running; checks go by the hundred."""
    result = run("verify", op, "--plan=fft", "--device=cpu", "--examples=2")
    assert result.exit_code == 0
    assert result.stdout.count("passed") == 3
    assert len({*result.stdout.splitlines()}) == 3  # of whom each line is
    lines = result.stderr.splitlines()
    few = ", 2 channels"
    ways = ["float32", f"float32{few}", f"bfloat16{few}"]
    for i, (way, first, last) in enumerate(zip(ways, lines[::2], lines[1::2], strict=True)):
        assert first == f"verifying plain PyTorch in {way} ({i + 1} of 3)"
        assert last.startswith(f"plain PyTorch in {way}: none of ")
        assert last.endswith(" checks failed")


@pytest.mark.parametrize(
    "arguments",
    [
        *(f"{verb} ''" for verb in ("compile", "verify", "tune", "explain", "bench")),
        *(f"compile x {option}=''" for option in ("--out", "--lock", "--locked", "--tables")),
        "tune x --out=''",
        *(f"explain x {option}=''" for option in ("--locked", "--tables")),
        *(f"bench {option}=''" for option in ("--from", "--plots", "--tables")),
        "tables check --tables=''",
    ],
)
def test_no_path_is_empty(arguments: str) -> None:
    """pathlib takes it for the folder that one is in."""
    result = run(*shlex.split(arguments))
    assert result.exit_code == 2 and result.stdout == ""
    assert "error[C006]: Invalid value for " in result.stderr and "it is empty" in result.stderr


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "sh2gen", "--version"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("python -m sh2gen, version ")


def test_doctor_says_where_records_and_tables_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SH2GEN_HOME", str(tmp_path))
    data = json.loads(run("doctor", "--json").stdout)
    assert data["records"] == str(tmp_path / "records")
    shipped = str(folder("schedules") / "tuned")
    assert data["tables"] == [str(tmp_path / "tuned"), shipped]
    lines = [line.partition("  ") for line in run("doctor").stdout.splitlines()]
    rows = {name: text.strip() for name, _, text in lines}
    assert rows["records"] == f"{tmp_path}/records"
    assert rows["your tuned tables"] == f"{tmp_path}/tuned (none yet)"
    assert rows["shipped tuned tables"] == shipped


@pytest.mark.parametrize(
    ("gpu", "answer"),
    [(H200, "yes"), (None, "no: needs a CUDA device and triton")],
)
def test_doctor_says_whether_tune_would_work(
    gpu: Target | None, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sh2gen.targets.target.from_device", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    works = json.loads(run("doctor", "--json").stdout)["works"]
    assert works["tune for this GPU (tune)"] == answer
    assert works["rank schedules by prediction (tune --effort estimate)"] == "yes"


# ---- explain ------------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path: Path) -> str:
    """An operator of the language that no algorithm computes yet."""
    path = tmp_path / "packed_conv.yaml"
    taps = "{kind: explicit, length: 3, groups: 4}"
    path.write_text(f"op: packed_conv\nchannels: 4\nfilter: {taps}\nsequences: packed\n")
    return str(path)


def test_explain_what_no_algorithm_computes(refused: str) -> None:
    result = run("explain", refused)
    assert result.exit_code == 0
    for name in ALGORITHMS:
        assert f"  {name}: no, packed sequences have no lowering yet" in result.stdout
    assert "no plan" in result.stdout and "per token" not in result.stdout
    data = json.loads(run("explain", refused, "--json").stdout)
    assert data["plans"] == [] and set(data["verdicts"]) == set(ALGORITHMS)


@pytest.mark.parametrize(
    ("stage", "words"), [("spec", "sequences: packed"), ("graph", "backward:\n")]
)
def test_stages_before_any_plan_are_shown_of_any_operator(
    refused: str, op: str, stage: str, words: str
) -> None:
    result = run("explain", refused, "--stage", stage)
    assert result.exit_code == 0 and words in result.stdout
    reasons = [line.split(":")[0] for line in result.stderr.splitlines()]
    assert reasons == list(ALGORITHMS)
    assert run("explain", op, "--stage", stage).stderr == ""


def test_explain_shows_the_statements_of_a_stream() -> None:
    result = run("explain", str(folder("ops") / "hyena_mr.yaml"), "--stage", "plan")
    assert result.exit_code == 0
    for words in (
        "filter = load_toeplitz(filter, 128)",
        "for each tile of the LEAD steps before the first:",
        "for each tile, the last in time first:",
        " = remember(",
        " = look_ahead(",
        " = toeplitz(",
        " = toeplitz_adjoint(",
        " += toeplitz_gradient(",
        "store_toeplitz(",
    ):
        assert words in result.stdout, words
    lines = result.stdout.splitlines()
    assert lines.count("forward: BLOCK_T = 64, so 3 products a tile") == 2  # in both layouts
    assert lines.count("backward: BLOCK_T = 32, so 15 products a tile") == 2
    assert lines.count("backward on sm_90: BLOCK_T = 64, so 9 products a tile") == 1
    products = [line for line in lines if re.search(r" toeplitz(_adjoint|_gradient)?\(", line)]
    assert products and all("# 1 + ceil(127 / BLOCK_T) products" in line for line in products)


def test_explain_counts_products_of_matrices() -> None:
    """Their flops, and the time that they take at least: 64 steps x 9 matrices of 512 taps."""
    path = str(folder("ops") / "conv_512.yaml")
    text = run("explain", path, "--target=H200").stdout
    assert "forward: 4 B; 0 flops and 1152 of matrix products; " in text
    plans = json.loads(run("explain", path, "--target=H200", "--json").stdout)["plans"]
    assert plans[0]["forward"]["product_flops"] == 2 * 64 * 9
    (at_8k,) = (p for p in plans[0]["predictions"] if p["length"] == 8192)
    floor = 4096 * 8192 * 1152 / 790e12 * 1e6
    assert at_8k["forward"]["products_us"] == pytest.approx(floor)
    assert at_8k["forward"]["bound_us"] < floor
    memory = at_8k["forward"]["bound_us"]
    expected = f"forward {memory:.0f} us of memory and {floor:.0f} us of products, backward"
    assert f"at least {expected}" in text
    traffic, waves = at_8k["forward"]["traffic_us"], at_8k["forward"]["waves_us"]
    fixed = at_8k["forward"]["fixed_us"]
    assert traffic < waves < at_8k["forward"]["us"] - fixed < traffic + waves
    parts = f"{traffic:.0f} us of traffic, {waves:.0f} of waiting, which overlap"
    assert f"made of forward {parts}, and {fixed:.0f} whatever the size; backward " in text
    (fft, *_) = (p for p in plans if p["plan"].startswith("fft"))
    assert fft["predictions"][0]["forward"]["products_us"] == 0.0


@pytest.mark.parametrize("name", ["hyena_se", "hyena_mr", "hyena_li"])
def test_explain_says_what_every_prediction_of_kernels_is_made_of(name: str) -> None:
    path = f"{ROOT}/ops/{name}.yaml"
    assert run("explain", path, "--target=H200").stdout.count("whatever the size; backward") >= 8
    text = run("explain", path, "--target=H200", "--json").stdout
    for plan in json.loads(text)["plans"]:
        for at in plan["predictions"]:
            for one in (at["forward"], at["backward"]):
                parts = one["traffic_us"], one["instructions_us"], one["waves_us"]
                assert 0 < one["fixed_us"] < one["us"]
                assert 0.9 * max(parts) < one["us"] <= 1.001 * (sum(parts) + one["fixed_us"])
                if not plan["plan"].startswith("fft"):
                    assert sum(part > 0 for part in parts) >= 2


def test_explain_speaks_of_products_where_there_are_some(op: str) -> None:
    text = run("explain", op, "--plan=direct").stdout
    assert "matrix products" not in text and "at least" not in text
    assert "products" not in run("explain", op, "--plan=direct", "--stage=plan").stdout


@pytest.mark.parametrize("stage", ["plan", "source", "ptx"])
def test_later_stages_of_a_refused_operator(refused: str, stage: str) -> None:
    result = run("explain", refused, "--stage", stage)
    assert result.exit_code == 2 and result.stdout == ""
    assert "error[L002]" in result.stderr
    assert all(f"  {name}: packed" in result.stderr for name in ALGORITHMS)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--plan=nonsense",), "L003"),
        (("--plan=direct/BDL/nonsense",), "L003"),
        (("--set=forward.ROWS=7",), "K002"),
        (("--plan=fft", "--set=forward.ROWS=8"), "K001"),
    ],
)
@pytest.mark.parametrize("stage", ["spec", "graph", "plan"])
def test_options_are_checked_whatever_the_stage(
    op: str, arguments: tuple[str, ...], code: str, stage: str
) -> None:
    result = run("explain", op, "--stage", stage, *arguments)
    assert result.exit_code == 2 and f"error[{code}]" in result.stderr


# ---- tune ---------------------------------------------------------------------------------------


def test_estimates_need_no_gpu(op: str) -> None:
    arguments = ("tune", op, "--effort=estimate", "--target=H200")
    result = run(*arguments)
    assert result.exit_code == 0
    blocks = re.split(r"^(?=\w)", result.stdout, flags=re.M)[1:]
    data = json.loads(run(*arguments, "--json").stdout)
    assert [found["direction"] for found in data] == ["forward", "backward"]
    for block, found in zip(blocks, data, strict=True):
        first, *lines, last = block.splitlines()
        dropped = sum(found["dropped"].values())
        assert first == (
            f"small_conv {found['direction']} B=1 L=8192: "
            f"the best of {found['points']} by prediction"
            + f"; constraints dropped {dropped}"
            * (dropped > 0)
        )
        entries = found["best"]
        assert 1 < len(lines) == len(entries) <= 10
        shares = [entry["share"] for entry in entries]
        assert shares == sorted(set(shares), reverse=True)
        for line, entry in zip(lines, entries, strict=True):
            assert line.startswith(f"  {entry['share']:.2f} of the bound  ROWS=")
            numbers = line.split("  ")[2].split(" ")
            assert numbers == [f"{n}={v}" for n, v in entry["numbers"].items() if v]
            assert line.endswith("  (start)") == (entry == found["start"])
        assert last.startswith(f"  the start: {found['start']['share']:.2f} of the bound, rank ")


def test_an_estimate_says_where_the_start_is_and_what_is_alike(op: str) -> None:
    """Numbers that a prediction does not depend on share a line."""
    data = json.loads(run("tune", op, "--effort=estimate", "--target=H200", "--json").stdout)
    estimates = driver.estimate_operator(op, target="H200")
    for problem, found in zip(estimates, data, strict=True):
        predicted = problem.problem.predicted
        start = predicted[problem.problem.start]
        assert found["start"]["numbers"] == dict(problem.problem.start)
        assert found["start"]["share"] == pytest.approx(1 / start)
        assert found["start"]["rank"] == 1 + sum(
            p < start * (1 - 1e-9) for p in predicted.values()
        )
        for before, after in pairwise(found["best"]):
            assert after["rank"] == before["rank"] + before["tied"] + 1
            assert bool(before["tied"]) == bool(before["free"])
    text = run("tune", op, "--effort=estimate", "--target=H200").stdout
    assert re.search(r"\(and \d+ with other \w+", text)


def test_an_estimate_starts_where_a_search_into_that_folder_would(op: str, tmp_path: Path) -> None:
    decision = tuned().decision
    assert decision is not None
    write_decisions(tmp_path / "tables", [decision])
    arguments = ("tune", op, "--effort=estimate", "--target=H200", "--json")
    starts = [
        json.loads(run(*arguments, *more).stdout)[0]["start"]["numbers"]["TILES"]
        for more in ((), (f"--out={tmp_path}/tables",))
    ]
    assert starts == [1, 4]


def test_an_estimate_counts_what_constraints_drop() -> None:
    path = str(folder("ops") / "hyena_li.yaml")
    with mock.patch.object(driver, "search_space", few):
        text = run("tune", path, "--effort=estimate", "--target=H200").stdout
        data = json.loads(run("tune", path, "--effort=estimate", "--target=H200", "--json").stdout)
    assert "131072: the best of 2 by prediction; constraints dropped 7\n" in text
    assert data[0]["dropped"] == {"A <= B": 7}


def few(spec: Any, plan: Any, direction: str, target: Any) -> Survey:
    points = search_space(spec, plan, direction).points[:2]
    return Survey(points=points, dropped=((Constraint("A <= B", "so"), 7),), repeated=0)


def test_estimates_are_for_each_length_alone_as_searches_are(op: str) -> None:
    def found(*arguments: str) -> list[dict[str, Any]]:
        return list(
            json.loads(run("tune", op, "--effort=estimate", "--target=H200", *arguments).stdout)
        )

    lengths = ("--length=1024", "--length=1000000", "--length=1024")
    both = found("--json", "--batch=4", *lengths)
    assert both == [
        *found("--json", "--batch=4", "--length=1024"),
        *found("--json", "--batch=4", "--length=1000000"),
    ]
    assert [(one["direction"], one["workloads"]) for one in both] == [
        (direction, [{"batch": 4, "length": length}])
        for length in (1024, 1000000)
        for direction in ("forward", "backward")
    ]
    short, long = (max(entry["share"] for entry in both[i]["best"]) for i in (0, 2))
    assert short < long
    text = run("tune", op, "--effort=estimate", "--target=H200", "--batch=4", *lengths).stdout
    assert re.findall(r"^small_conv (.*): the best", text, re.M) == [
        f"{direction} B=4 L={length}"
        for length in (1024, 1000000)
        for direction in ("forward", "backward")
    ]


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


def tuned(right: bool = True, interrupted: bool = False) -> Tuned:
    """What a search of SPEC came to: two candidates, the second is the faster."""
    plan = plans(SPEC)[0]
    task = Task(spec=SPEC, plan=plan, direction="forward")
    start, best = forward_points({"TILES": 4})
    slow, fast = (
        Outcome(status=Status.OK, us=((0.9 * us, us, 1.1 * us),)) for us in (100.0, 80.0)
    )
    tried = {start: slow, best: fast}
    if not right:
        tried = dict.fromkeys(tried, Outcome(status=Status.WRONG, detail="y"))
    key = Key(
        spec="5d" * 32,
        plan=plan.name,
        direction="forward",
        gpu="NVIDIA H200",
        triton="3.6",
    )
    decision = Decision(
        key=key,
        fields=fields_of(SPEC),
        kernels={},
        op=SPEC.op,
        workloads=SPEC.workloads,
        numbers=best,
        us=(80.0,),
        low=(72.0,),
        high=(88.0,),
        bound_us=(60.0,),
        start_us=(100.0,),
        start=start,
        checks=21,
        effort="measure",
        date="2026-11-25T10:00:00Z",
        versions={},
    )
    return Tuned(
        task=task,
        problem=Problem(points=(start, best), start=start, predicted=dict.fromkeys(tried, 1.0)),
        result=Found(
            winner=best if right else start,
            first=tried,
            tried=tried,
            final=tried,
            raced=True,
            field=tried,
            seconds=12.3,
            interrupted=interrupted,
        ),
        sweep=Sweep(
            header=Header(
                key=key,
                op=SPEC.op,
                workloads=SPEC.workloads,
                bounds=(60.0,),
                start=start,
                date="2026-11-25T10:00:00Z",
                versions={},
            ),
            outcomes=tried,
        ),
        decision=decision if right else None,
    )


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Lets `driver.tune_operator` come to what is given; the list gets the options of a call."""

    def comes_to(*found: Tuned) -> list[dict[str, Any]]:
        called: list[dict[str, Any]] = []

        def fake(op: str, **options: Any) -> Iterator[tuple[Tuned, Path | None]]:
            called.append(options)
            options["progress"]("a candidate")
            for one in found:
                yield one, Path("tuned/table.jsonl") if one.decision else None

        monkeypatch.setattr(driver, "tune_operator", fake)
        return called

    return comes_to


def test_what_tuning_came_to_is_printed(op: str, tuning: Any) -> None:
    tuning(tuned())
    result = run("tune", op)
    assert result.exit_code == 0 and "a candidate" in result.stderr
    assert result.stdout.splitlines() == [
        "small_conv forward B=1 L=8192",
        "  tried       2 of 2 candidates in 12 s: 2 ok",
        "  numbers     ROWS=8 BLOCK_D=1 BLOCK_T=1024 TILES=4 num_warps=2",
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
        "  numbers     ROWS=8 BLOCK_D=1 BLOCK_T=1024 TILES=4 num_warps=2",
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
        ([(True, False)], 0, "numbers"),
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

    monkeypatch.setattr(driver, "tune_operator", fake)
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

    monkeypatch.setattr(driver, "compile_operators", interrupted)
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

    monkeypatch.setattr(driver, "tune_operator", fake)
    before = signal.getsignal(number)
    assert run("tune", op).exit_code == 128 + number
    assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_stays_so(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup."""

    def fake(*_: Any, **__: Any) -> Iterator[tuple[Tuned, Path | None]]:
        signal.raise_signal(signal.SIGHUP)
        yield tuned(), Path("table.jsonl")

    monkeypatch.setattr(driver, "tune_operator", fake)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("tune", op).exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_an_estimate_does_not_take_is_refused(op: str) -> None:
    for options in (("--resume",), ("--budget=3",), ("--workers=2",)):
        result = run("tune", op, "--effort=estimate", *options)
        assert result.exit_code == 2 and "for a search" in result.stderr
    result = run("tune", op, "--batch=2")
    assert result.exit_code == 2 and "--batch goes with --length" in result.stderr


# ---- what was asked for and did not come to be --------------------------------------------------


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

    monkeypatch.setattr(driver, "write_decisions", full)
    with fakes.installed():
        result = run("tune", op, "--effort=exhaustive")
        plain = run("tune", op, "--effort=exhaustive", "--json")
    assert result.exit_code == plain.exit_code == 1
    assert "No space left" in result.stderr and "No space left" in plain.stderr
    assert result.stdout.count("no table: stderr says why") == 2
    found = json.loads(plain.stdout)
    assert [(bool(one["decision"]), one["table"]) for one in found] == [(True, None)] * 2


# ---- shipped operators by name ------------------------------------------------------------------


def test_shipped_operators_are_listed() -> None:
    names = sorted(path.stem for path in folder("ops").glob("*.yaml"))
    lines = run("ops").stdout.splitlines()
    assert [line.split()[0] for line in lines] == names
    data = json.loads(run("ops", "--json").stdout)
    assert [one["op"] for one in data] == names
    abouts = [one["about"] for one in data]
    assert len({*abouts}) == len(names) and all(20 < len(about) < 220 for about in abouts)


def test_a_shipped_operator_compiles_by_its_name_into_the_folder_one_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hyena_se").mkdir()  # it is not that
    result = run("compile", "hyena_se", "short_conv_3", "--no-verify", "--no-build")
    assert result.exit_code == 0
    shipped = ROOT / "generated"
    for name in ("hyena_se.py", "short_conv_3.py"):
        texts = [(place / name).read_text() for place in (tmp_path / "generated", shipped)]
        assert same_program(*texts)
    assert run("explain", "hyena_se", "--stage=spec").exit_code == 0
    assert run("tune", "hyena_se", "--effort=estimate", "--length=64").exit_code == 0


@pytest.mark.parametrize("verb", ["compile", "tune", "bench", "explain"])
def test_whoever_gives_a_generated_file_is_told_which_verb_takes_it(verb: str) -> None:
    result = run(verb, "generated/hyena_se.py")
    assert result.exit_code == 2 and "error[S001]" in result.stderr
    assert "`sh2gen verify` and `sh2gen.load` take generated files" in result.stderr
