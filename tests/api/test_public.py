"""What users import: its names and parameters, and that asking for them costs little."""

from __future__ import annotations

import inspect
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import sh2gen
from sh2gen.api.compile import compile_operators
from sh2gen.api.tune import tune_operator
from sh2gen.base.resources import folder
from sh2gen.runtime.operator import Operator

SECONDS = 0.4  # of a processor; 0.3 is promised, 0.1 is what an idle machine takes
HEAVY = {"torch", "sympy", "networkx", "triton", "numpy", "jinja2", "rich", "yaml"}


def parameters(function: Callable[..., Any]) -> str:
    return ", ".join(
        ("*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else "") + name
        for name, p in inspect.signature(function).parameters.items()
    )


def test_the_names_of_the_package_and_their_parameters() -> None:
    """A change here is one of what users wrote: it belongs in the changelog."""
    found = {name: parameters(getattr(sh2gen, name)) for name in sh2gen.__all__}
    assert found == {
        "CheckFailed": "code, message, location, help",
        "OpSpec": (
            "op, channels, filter, featurizer, gates, skip, bias, activation, precision, dtype, "
            "layout, state, sequences, context, workloads, source, groups_in_full"
        ),
        "Operator": "path, edited, width",
        "Sh2genError": "code, message, location, help",
        "compile": "op, **options",
        "cu_seqlens_of": "numbers, documents",
        "cu_seqlens_of_mask": "mask",
        "load": "path, edited, width",
        "load_spec": "path",
        "operator": "op, channels, groups, target",
        "parse_spec": "text, file",
        "tune": "op, **options",
    }
    assert parameters(compile_operators) == (  # the options of compile
        "ops, out, plan, changes, target, verified, built, thorough, write, locked, lock, tables, "
        "lengths, batch, progress, advance, warn"
    )
    assert parameters(tune_operator) == (
        "op, sets, plan, changes, directions, effort, budget, seed, resume, workers, out, sweep, "
        "session, progress, warn"
    )
    public = [name for name in vars(Operator) if not name.startswith("_")]
    assert public == ["plain", "use", "module", "reference"]


def test_names_are_listed_and_others_are_refused() -> None:
    assert set(sh2gen.__all__) | {"__version__"} <= set(dir(sh2gen))
    with pytest.raises(AttributeError, match="module 'sh2gen' has no attribute 'compyle'"):
        _ = sh2gen.compyle  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import sh2gen", set()),
        ("import sh2gen; dir(sh2gen); sh2gen.Sh2genError", set()),
        ("import sh2gen; sh2gen.load_spec('hyena_se')", {"yaml"}),
        ("main(['--help'])", set()),
        ("main(['compile', '--help'])", set()),
        ("main(['--version'])", set()),
        ("main(['ops'])", {"rich"}),
        ("main(['compile'])", set()),  # what is wrong with a call
    ],
)
def test_nothing_is_imported_that_is_not_needed(code: str, allowed: set[str]) -> None:
    if code.startswith("main"):
        code = f"from sh2gen.cli.cli import main\ntry:\n    {code}\nexcept SystemExit: pass"
    code += "\nimport sys; print(); print(*sys.modules)"
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if taken[-1] < SECONDS:
            break
    assert min(taken) < SECONDS
    assert set(result.stdout.splitlines()[-1].split()) & HEAVY == allowed


def test_a_generated_file_is_loaded_without_the_compiler() -> None:
    code = "import sys, sh2gen; sh2gen.load('generated/short_conv.py'); print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder("ops").parent,
    )
    loaded = set(result.stdout.splitlines()[-1].split())
    assert not loaded & {"sympy", "networkx", "jinja2", "rich", "sh2gen.lower"}
