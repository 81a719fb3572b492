"""The command line: what it prints where, and with which exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sh2gen.cli import main
from sh2gen.lower import ALGORITHMS
from sh2gen.resources import folder

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
    assert result.stdout.count("passed") == 2
    ways = [f"plain PyTorch in {dtype}" for dtype in ("float32", "bfloat16")]
    for way, first, last in zip(
        ways, result.stderr.splitlines()[::2], result.stderr.splitlines()[1::2], strict=True
    ):
        assert first == f"verifying {way}"
        assert last.startswith(f"{way}: none of ") and last.endswith(" checks failed")


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "sh2gen", "--version"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("python -m sh2gen, version ")


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
    assert f"at least forward 34 us of memory and {floor:.0f} us of products, backward" in text
    (fft, *_) = (p for p in plans if p["plan"].startswith("fft"))
    assert fft["predictions"][0]["forward"]["products_us"] == 0.0


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
