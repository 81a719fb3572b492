"""The command line: what it prints where, and with which exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sh2gen.cli import main

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
