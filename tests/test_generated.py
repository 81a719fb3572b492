"""generated/ is what the shipped operators compile to, and stands on its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sh2gen.cli.cli import main
from sh2gen.runtime.operator import Operator
from sh2gen.spec.decode import load_spec

ROOT = Path(__file__).parent.parent
GENERATED = ROOT / "generated"
FILES = sorted(GENERATED.glob("*.py"))


def test_generated_files_are_up_to_date() -> None:
    """What is written was built and verified as it was written, and nothing else is."""
    arguments = ["compile", str(ROOT / "ops"), "--out", str(GENERATED), "--check"]
    arguments += ["--no-verify", "--no-build"]
    result = CliRunner().invoke(main, arguments)
    again = "run: sh2gen compile ops --out generated"
    assert result.exit_code == 0, f"{result.stderr}{again}"


def test_every_shipped_operator_has_its_file_and_no_file_is_left_over() -> None:
    names = {load_spec(path).op for path in (ROOT / "ops").glob("*.yaml")}
    assert names == {path.stem for path in FILES}
    assert {path.name for path in GENERATED.iterdir()} - {"__pycache__"} == {
        path.name for path in FILES
    }


def test_an_operator_is_named_after_its_file_or_its_file_is_a_width_of_it() -> None:
    for path in (ROOT / "ops").glob("*.yaml"):
        spec = load_spec(path)
        if spec.op != path.stem:
            own = load_spec(ROOT / "ops" / f"{spec.op}.yaml")
            assert path.stem.startswith(f"{spec.op}_") and spec.kind == own.kind


def test_a_stale_file_is_noticed(tmp_path: Path) -> None:
    (path,) = (p for p in FILES if p.stem == "short_conv_3")
    (tmp_path / path.name).write_text(path.read_text() + "\n")
    op = str(ROOT / "ops" / "short_conv_3.yaml")
    result = CliRunner().invoke(main, ["compile", op, "--out", str(tmp_path), "--check"])
    assert result.exit_code == 1
    assert f"stale: {tmp_path / path.name}" in result.stderr.replace("\n", "")
    assert (tmp_path / path.name).read_text().endswith("\n\n"), "--check writes nothing"


@pytest.mark.parametrize("arguments", [("format", "--check"), ("check", "--select=F,E7")])
def test_generated_files_are_clean(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "ruff", *arguments, "--isolated", "--no-cache"]
    command += ["--line-length=99", "--target-version=py311", str(GENERATED)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-300:]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_generated_files_import_only_torch_and_triton(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module or ""]
        for name in names:
            package = name.split(".")[0]
            assert package in {"torch", "triton"} or package in sys.stdlib_module_names, name


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_generated_files_name_no_place_and_no_version(path: Path) -> None:
    text = path.read_text()
    for word in ("/home/", "/tmp/", "/work/", "site-packages", "torch==", "triton=="):
        assert word not in text


# What a name is for that its own file does not read: people, sh2gen and PyTorch do. And functions
# whose arguments are those that others of their kind have.
WAYS = ("forward", "backward", "stateful", "stateful_backward", "decode")
SAID = {"SPEC", "PLAN", "LAYOUT", "WIDTHS"}
ALIKE = {"_", "save", "differentiate_stateful", "refuse_second"}
ALIKE |= {f"{way}_{how}" for way in WAYS for how in ("anywhere", "on_gpu", "fake")}
ALIKE |= {"tile_grid", "walk_grid", "step_grid", "eager_stateful", "eager_window", "eager_rings"}
ALIKE |= {"state_after", "launch_leave"}
ALIKE |= {"default_configs", "rows_reached", "parameter_shapes"}
ALIKE |= {"launch_backward", "__torch_dispatch__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_nothing_in_a_generated_file_is_unread(path: Path) -> None:
    tree = ast.parse(path.read_text())
    read = {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
    }
    public = SAID | {n.name for n in tree.body if isinstance(n, ast.ClassDef)} | {path.stem, "_"}
    unread = []
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                unread += [name] * (name not in read | public)
            case ast.Assign(targets=[target]) | ast.AnnAssign(target=target):
                names = [n.id for n in ast.walk(target) if isinstance(n, ast.Name)]
                unread += [name for name in names if name not in read | public]
            case _:
                pass
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name not in ALIKE:
            inside = {
                n.id for part in node.body for n in ast.walk(part) if isinstance(n, ast.Name)
            }
            arguments = {a.arg for a in (*node.args.args, *node.args.kwonlyargs)} - {"self"}
            unread += [f"{node.name}({name})" for name in sorted(arguments - inside)]
    assert not unread


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_and_a_copy_of_it_are_loaded_side_by_side(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    copy.write_text(path.read_text())
    one, other = (Operator(file).namespace for file in (path, copy))
    assert other.LIBRARY_NAME != one.LIBRARY_NAME and other.LIBRARY_NAME[:-2] in one.LIBRARY_NAME
