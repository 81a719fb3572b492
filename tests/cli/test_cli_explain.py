"""`sh2gen explain`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sh2gen.base.resources import folder
from sh2gen.lower import ALGORITHMS
from tests.cli.commands import ROOT, run


@pytest.fixture
def refused(tmp_path: Path) -> str:
    """An operator of the language that no algorithm computes yet."""
    path = tmp_path / "packed_conv.yaml"
    taps = "{kind: explicit, length: 3, groups: 4}"
    fields = f"filter: {taps}\nsequences: packed\nstate: {{final: true}}\n"
    path.write_text(f"op: packed_conv\nchannels: 4\n{fields}")
    return str(path)


def test_explain_what_no_algorithm_computes(refused: str) -> None:
    result = run("explain", refused)
    assert result.exit_code == 0
    for name in ALGORITHMS:
        assert f"  {name}: no, states of packed documents have no lowering yet" in result.stdout
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
    assert lines.count("backward on sm90: BLOCK_T = 64, so 9 products a tile") == 1
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


def test_predictions_of_packed_documents_say_what_is_left_out(op: str) -> None:
    text = Path(op).read_text() + "sequences: packed\n"
    Path(op).write_text(text)
    assert "predictions are of a row as one document" in run("explain", op).stdout
    Path(op).write_text(text.replace("sequences: packed\n", ""))
    assert "as one document" not in run("explain", op).stdout


@pytest.mark.parametrize("stage", ["plan", "source", "ptx"])
def test_later_stages_of_a_refused_operator(refused: str, stage: str) -> None:
    result = run("explain", refused, "--stage", stage)
    assert result.exit_code == 2 and result.stdout == ""
    assert "error[L002]" in result.stderr
    assert all(f"  {name}: states of packed" in result.stderr for name in ALGORITHMS)


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
