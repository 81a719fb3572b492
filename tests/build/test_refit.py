"""Configs that do not fit the compiler here give way to others, where they are sh2gen's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sh2gen.api.compilation import Compilation
from sh2gen.api.compile import compile_operator
from sh2gen.base.errors import CheckFailed
from sh2gen.build.build import KernelFailed
from sh2gen.spec.decode import parse_spec
from sh2gen.tuning import refit
from tests.gpus import A100

SPEC = parse_spec(
    "{op: tiny_blocks, channels: 32, filter: {kind: explicit, length: 40, groups: 4},"
    " workloads: [{batch: 1, length: 2048}]}"
)
# Where the default of forward does not fit, and others do.
SMALL = replace(A100, name="small", shared_per_block=36 * 1024)


def compiled(tmp_path: Path, **options: Any) -> Compilation:
    given = {"target": SMALL, "verified": False, "plan": "toeplitz/BDL", "out": tmp_path}
    return compile_operator(SPEC, **given | options)


def test_the_first_that_fits_is_taken_and_named(tmp_path: Path) -> None:
    said: list[str] = []
    found = compiled(tmp_path, progress=said.append)
    assert found.built is not None
    assert all(kernel.shared <= SMALL.shared_per_block for kernel in found.built.kernels)
    refitted = {d for d, text in found.chosen.origins.items() if "the first that fits" in text}
    assert refitted
    for direction in refitted:
        origin = found.chosen.origins[direction]
        assert origin.startswith(("by prediction", "default")), origin
        assert "does not (it needs" in origin and "bytes of shared memory" in origin
        assert any(f"tiny_blocks: {direction} does not fit (it needs" in text for text in said)
    assert found.source.text == found.path.read_text()
    config = dict(found.chosen.schedule.forward)
    assert f'"BLOCK_T": {config["BLOCK_T"]}' in found.source.text


def test_the_users_config_stays(tmp_path: Path) -> None:
    default = dict(compiled(tmp_path, built=False).chosen.schedule.forward)
    changes = {"forward": {"BLOCK_T": default["BLOCK_T"]}}
    with pytest.raises(CheckFailed, match="shared memory") as caught:
        compiled(tmp_path, changes=changes)
    assert caught.value.code == "B002" and "BLOCK_D" in (caught.value.help or "")


def test_tries_are_bounded_and_the_help_names_no_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(refit, "_fits", lambda *call: tried.append(call[2]) or False)
    with pytest.raises(KernelFailed, match="nor do 12 others") as caught:
        compiled(tmp_path)
    assert len(tried) == refit.TRIES == len(set(tried))
    help = caught.value.help or ""
    assert "--plan" in help and "3.6 to 3.8 are tested" in help and "BLOCK" not in help
    tried.clear()
    monkeypatch.setattr(refit, "SECONDS", 0.0)
    with pytest.raises(KernelFailed):
        compiled(tmp_path)
    assert not tried


def test_what_the_machine_lacks_is_not_mended_by_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise KernelFailed("B001", "no space", reason="it does not compile", role=None, help="dry")

    monkeypatch.setattr("sh2gen.api.compilation.check_fits", full)
    monkeypatch.setattr(refit, "_fits", lambda *_: pytest.fail("tried"))
    with pytest.raises(KernelFailed, match="no space") as caught:
        compiled(tmp_path)
    assert caught.value.help == "dry"
