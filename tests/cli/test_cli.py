"""The command line: what all verbs have in common, and the small ones."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sh2gen.base.files import same_program
from sh2gen.base.resources import folder
from sh2gen.targets.target import Target
from tests.cli.commands import ROOT, run
from tests.gpus import H200


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
    places = (tmp_path / "generated", ROOT / "generated")
    assert same_program(*((place / "short_conv_3.py").read_text() for place in places))
    # The file of the package is for other widths too.
    widths = re.compile(r"^WIDTHS = (\{.*\})", re.MULTILINE)
    found = [widths.search((place / "hyena_se.py").read_text()) for place in places]
    assert [len(ast.literal_eval(one[1])) for one in found if one] == [1, 3]
    assert run("explain", "hyena_se", "--stage=spec").exit_code == 0
    assert run("tune", "hyena_se", "--effort=estimate", "--length=64").exit_code == 0


@pytest.mark.parametrize("verb", ["compile", "tune", "bench", "explain"])
def test_whoever_gives_a_generated_file_is_told_which_verb_takes_it(verb: str) -> None:
    result = run(verb, "generated/hyena_se.py")
    assert result.exit_code == 2 and "error[S001]" in result.stderr
    assert "`sh2gen verify` and `sh2gen.load` take generated files" in result.stderr
