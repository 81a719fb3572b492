"""A generated file where nothing else of sh2gen is installed, and where Triton is not."""

from __future__ import annotations

import ast
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from sh2gen.graph.reference import reference_gradients

if TYPE_CHECKING:
    from tests.generated.conftest import Case

# Imports every file given, computes forward and backward on the tensors beside it, saves results.
SCRIPT = """
import importlib.util, sys

blocked = sys.argv[1].split(",")


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Refuse())
import torch

for path in sys.argv[2:]:
    for name in ("once", "twice"):  # the second import is of the same file under another name
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    if "triton" in blocked and getattr(module, "HAS_TRITON", False):
        raise SystemExit(f"{path}: HAS_TRITON is True")
    case = torch.load(path + ".in")
    inputs = [x.requires_grad_() for x in case["inputs"].values()]
    parameters = [p.requires_grad_() for p in case["parameters"].values()]
    y = getattr(module, module.OP)(*inputs, *parameters)
    gradients = torch.autograd.grad(y, [*inputs, *parameters], case["dy"])
    names = [*case["inputs"], *case["parameters"]]
    torch.save({"y": y.detach(), **dict(zip(names, gradients))}, path + ".out")
    made = getattr(module, "".join(part.capitalize() for part in module.OP.split("_")))()
    assert made(*inputs).shape == y.shape

loaded = {name.partition(".")[0] for name in sys.modules}
print("loaded:", *sorted(loaded.intersection(blocked)))
"""


@pytest.mark.parametrize("blocked", ["sh2gen,templates", "sh2gen,templates,triton"])
def test_it_computes_alone(cases: dict[str, Case], tmp_path: Path, blocked: str) -> None:
    """Loads and computes on a CPU, forward and backward, isolated from everything but torch."""
    files = {}
    for case in cases.values():
        path = tmp_path / case.path.name
        path.write_text(case.path.read_text())
        named = dict(zip(case.spec.inputs, case.inputs(), strict=True))
        tensors = {"inputs": named, "parameters": case.parameters(), "dy": case.activation()}
        torch.save(tensors, f"{path}.in")
        files[str(path)] = case, tensors
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, blocked, *files],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "loaded:\n"
    for path, (case, tensors) in files.items():
        found = torch.load(f"{path}.out")

        def canonical(x: torch.Tensor, time: int = case.time) -> torch.Tensor:
            return x if time == 2 else x.transpose(1, 2)

        inputs = {name: canonical(x) for name, x in tensors["inputs"].items()}
        y, gradients = reference_gradients(
            case.spec, inputs, tensors["parameters"], canonical(tensors["dy"])
        )
        for name, expected in {"y": y, **gradients}.items():
            value = found[name] if name in tensors["parameters"] else canonical(found[name])
            torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-4)


def test_it_imports_torch_and_triton_only(case: Case) -> None:
    """Triton only where its absence is handled; and nothing from beside the file."""
    tree = ast.parse(case.path.read_text())
    guarded = {
        node
        for attempt in ast.walk(tree)
        if isinstance(attempt, ast.Try)
        and any(
            ast.unparse(handler.type or attempt) == "ImportError" for handler in attempt.handlers
        )
        for statement in attempt.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, ast.unparse(node)
            names = [node.module or ""]
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            assert top in {"torch", "triton"} | sys.stdlib_module_names, ast.unparse(node)
            assert top != "triton" or node in guarded, ast.unparse(node)


def test_it_compiles_without_a_warning(case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile(case.path.read_text(), str(case.path), "exec")


def test_it_names_no_place_and_no_version(case: Case) -> None:
    """The same description gives the same text everywhere."""
    text = case.path.read_text()
    assert text.isascii()
    for trace in (torch.__version__, str(case.path.parent), str(Path(__file__).parents[2])):
        assert trace not in text


def test_the_same_file_can_be_loaded_again(case: Case) -> None:
    """Under ops of its own; both stay usable."""
    again = type(case.operator)(case.path)
    names = [op.namespace.LIBRARY_NAME for op in (case.operator, again)]
    assert names[1].startswith(names[0]) and names[0] != names[1]
    inputs, parameters = case.inputs(), case.parameters()
    assert torch.equal(again(*inputs, **parameters), case.operator(*inputs, **parameters))
