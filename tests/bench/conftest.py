"""What runs take of a machine."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """For every process: tests run side by side."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
