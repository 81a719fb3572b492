"""What commands are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.commands import FILTER


@pytest.fixture
def op(tmp_path: Path) -> str:
    path = tmp_path / "small_conv.yaml"
    path.write_text(f"op: small_conv\nchannels: 4\n{FILTER}\n")
    return str(path)
