"""Every bad operator file in this folder is refused with exactly the text beside it.

After changing a message on purpose, `python tests/errors/test_errors_on_bad_specs.py` rewrites the
expected texts; read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sh2gen.base.errors import CODES, Sh2genError
from sh2gen.spec.decode import load_spec

FOLDER = Path(__file__).parent
BAD = sorted(path.name for path in FOLDER.glob("*.yaml"))


def message(name: str) -> str:
    """What loading `name` from its own folder says."""
    try:
        spec = load_spec(name)
    except Sh2genError as error:
        assert error.exit_code == 2
        assert error.code in CODES
        return error.render() + "\n"
    raise AssertionError(f"{name} was accepted: {spec}")


@pytest.mark.parametrize("name", BAD)
def test_message(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    assert message(name) == Path(name).with_suffix(".txt").read_text(encoding="utf-8")


def test_every_text_has_its_file() -> None:
    texts = sorted(path.with_suffix(".yaml").name for path in FOLDER.glob("*.txt"))
    assert texts == BAD


if __name__ == "__main__":
    os.chdir(FOLDER)
    for bad in BAD:
        Path(bad).with_suffix(".txt").write_text(message(bad), encoding="utf-8")
