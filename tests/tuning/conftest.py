"""Where searches and choices keep what they find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes import SPEC


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SH2GEN_HOME", str(tmp_path / "home"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder, and a package that has no tables; and a machine whose GPU, if it has
    one, nobody may touch.
    """
    monkeypatch.setenv("SH2GEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(
        "sh2gen.tuning.tables.package_folder", lambda name: tmp_path / "package" / name
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("choosing a config needs no GPU")

    for name in ("_lazy_init", "init", "get_device_name", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, never)
    return tmp_path / "home"


@pytest.fixture
def op(tmp_path: Path) -> str:
    path = tmp_path / "small_conv.yaml"
    path.write_text(SPEC.to_yaml())
    return str(path)
