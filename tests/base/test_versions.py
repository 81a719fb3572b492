"""Which versions are tested, what is said of others, and what becomes of Triton's absence."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from sh2gen.api.compile import compile
from sh2gen.base import versions
from sh2gen.base.errors import Sh2genError
from sh2gen.base.versions import TESTED, TESTED_HELP, installed, no_triton, untested
from sh2gen.cli.cli import main

ROOT = Path(__file__).parent.parent.parent
SPEC = "op: one\nchannels: 2\nfilter: {kind: explicit, length: 3, groups: 2}\n"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def op(tmp_path: Path) -> str:
    path = tmp_path / "one.yaml"
    path.write_text(SPEC)
    return str(path)


def here(monkeypatch: pytest.MonkeyPatch, **packages: str | None) -> None:
    """As if these versions were installed."""
    monkeypatch.setattr(versions, "installed", lambda package: packages.get(package))


def test_what_is_pinned_is_tested() -> None:
    assert untested() == ()


def test_the_metadata_allows_what_is_tested() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for package, bounds in TESTED.items():
        (found,) = re.findall(rf'"{package}(>=[\d.]+,<[\d.]+)(?:;.*)?",', project)
        assert f"{package}{found}" in TESTED_HELP.removeprefix("install versions that are: ")
        oldest, beyond = re.findall(r"[\d.]+", found)
        assert oldest == bounds[0] and beyond > bounds[1]


@pytest.mark.parametrize("version", ["3.9.0", "3.10.0", "3.5.1", "4.0", "3.10.0+git1a2b", "main"])
def test_other_versions_are_told_with_those_that_are_tested(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch, torch="2.13.0+cpu", triton=version)
    (line,) = untested()
    assert line.startswith(f"Triton {version} is not among") and "3.6 to 3.8" in line
    here(monkeypatch, torch="2.14.1", triton="3.8.7", numpy="1.26.0")
    assert untested() == ()


def test_every_verb_that_compiles_tells(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch, triton="3.10.0")
    monkeypatch.chdir(tmp_path)
    result = run("compile", op, "--no-build", "--no-verify")
    assert result.exit_code == 0 and result.stderr.count("Triton 3.10.0 is not among") == 1
    result = run("verify", op, "--plan=fft", "--examples=1")
    assert result.exit_code == 0 and result.stderr.count("Triton 3.10.0 is not among") == 1
    with pytest.warns(UserWarning, match=r"Triton 3\.10\.0 is not among") as told:
        compile(op, verified=False, built=False)
    assert [Path(one.filename).name for one in told] == [Path(__file__).name]
    assert run("doctor").stdout.count("Triton 3.10.0 is not among") == 1


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda: torch.nn.Linear("many", 1), "TypeError"),  # type: ignore[arg-type]
        (lambda: torch.no_such_thing, "'torch' has no attribute"),
        (lambda: importlib.import_module("torch.no_such_thing"), "No module named"),
    ],
)
def test_what_an_untested_version_breaks_is_no_bug(
    op: str, monkeypatch: pytest.MonkeyPatch, broken: Callable[[], Any], words: str
) -> None:
    monkeypatch.setattr("sh2gen.api.compile.compile_operators", lambda *_, **__: broken())
    assert run("compile", op).exit_code == 3
    here(monkeypatch, triton="3.10.0")
    result = run("compile", op)
    assert result.exit_code == 2
    assert words in result.stderr and "bug in sh2gen" not in result.stderr
    assert "error[B006]: Triton 3.10.0 is not among" in result.stderr
    assert "triton>=3.6,<3.9" in result.stderr


def test_a_bug_is_one_whatever_is_installed(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not tested is named too."""
    monkeypatch.setattr("sh2gen.api.compile.compile_operators", lambda *_, **__: {}["key"])
    here(monkeypatch, triton="3.10.0")
    result = run("compile", op)
    assert result.exit_code == 3 and "Traceback" in result.stderr
    assert "This is a bug in sh2gen" in result.stderr and "B006" not in result.stderr
    assert result.stderr.count("Triton 3.10.0 is not among") == 1


def test_a_package_of_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds for other systems are installed as something else."""

    def version(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", version)
    other = ModuleType("other_triton")
    other.__spec__ = metadata.__spec__
    other.__version__ = "3.7.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "other_triton", other)
    assert installed("other_triton") == "3.7.0"
    assert installed("no_triton_at_all") is None


# ---- systems without Triton ---------------------------------------------------------------------

# As on a machine where `import triton` fails.
WITHOUT = """
import importlib.util, platform, sys
import torch  # which loads other libraries on other systems
class Nothing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(name, name=name)
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: (
    None if name.split(".")[0] == "triton" else found(name, *more)
)
sys.meta_path.insert(0, Nothing)
platform.system = lambda: sys.argv[1]
from importlib import metadata
version = metadata.version
def without(name):
    if name == "triton":
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = without
import json
from click.testing import CliRunner
from sh2gen.cli.cli import main
results = []
for arguments in json.loads(sys.argv[2]):
    result = CliRunner().invoke(main, arguments)
    results.append([result.exit_code, result.stdout, result.stderr])
print(json.dumps(results))
"""


def without_triton(system: str, folder: Path, *commands: list[str]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of commands on a system without Triton."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, system, json.dumps(commands)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=folder,
        text=True,
        capture_output=True,
        check=True,
    )
    return [tuple(one) for one in json.loads(done.stdout)]


def test_where_there_is_no_triton_plain_pytorch_is_verified_and_the_rest_is_named(
    op: str, tmp_path: Path
) -> None:
    plots = ROOT / "docs" / "results" / "nvidia-h200.json"
    compiled, checked, verified, doctor, table, tuned = without_triton(
        "Darwin",
        tmp_path,
        ["compile", op],
        ["compile", op, "--check"],
        ["verify", "generated/one.py", "--examples=1"],
        ["doctor"],
        ["tables", "check"],
        ["bench", f"--from={plots}"],
    )
    assert compiled[0] == 0, compiled[2]
    assert re.search(r"verified by eager +\d+ checks", compiled[1])
    assert re.search(r"not verified .*: there is no Triton for macOS; .* on Linux", compiled[1])
    assert "by Triton's interpreter" in re.sub(r"\s+", " ", compiled[1])
    text = (tmp_path / "generated" / "one.py").read_text()
    assert "\nVerified: by plain PyTorch alone, not the kernels.\n" in text
    assert checked[0] == 0, checked[2]
    assert verified[0] == 0 and verified[1].count("passed") == 3
    assert "not verified: kernels: there is no Triton for macOS" in verified[2]
    assert doctor[0] == 0 and "pip install" not in doctor[1]
    assert table[0] == 2 and "error[B004]: there is no Triton for macOS" in table[2]
    assert "pip install" not in table[2]
    assert tuned[0] == 0 and "hyena_mr: D = 4096" in tuned[1], tuned[2]


def test_where_there_is_one_it_is_asked_for(op: str, tmp_path: Path) -> None:
    ((code, _, told),) = without_triton("Linux", tmp_path, ["compile", op])
    assert code == 2 and "error[B004]: Triton is not installed" in told
    assert "help: pip install 'triton>=3.6,<3.9'" in told
    assert not (tmp_path / "generated").exists()


def test_what_needs_triton_says_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "has_triton", lambda: False)
    for system, help in (("Linux", "pip install 'triton>="), ("Windows", "do it on Linux")):
        monkeypatch.setattr("platform.system", lambda system=system: system)
        error = no_triton("kernels cannot run")
        assert isinstance(error, Sh2genError) and str(error.message).endswith("cannot run")
        assert (error.help or "").startswith(help)
