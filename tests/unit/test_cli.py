"""The command line: what it prints where, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sh2gen.cli import main
from sh2gen.lower import ALGORITHMS
from sh2gen.resources import folder

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
    assert result.stdout.count("passed") == 2
    ways = [f"plain PyTorch in {dtype}" for dtype in ("float32", "bfloat16")]
    for way, first, last in zip(
        ways, result.stderr.splitlines()[::2], result.stderr.splitlines()[1::2], strict=True
    ):
        assert first == f"verifying {way}"
        assert last.startswith(f"{way}: none of ") and last.endswith(" checks failed")


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
