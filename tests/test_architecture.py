"""The shape of the code base: who imports whom, what is never called, how long modules are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

import sh2gen

ROOT = Path(__file__).parent.parent
LAYERS = (
    (
        "errors",
        "target",
        "resources",
        "files",
        "process",
        "jsonl",
        "ranks",
        "loaded",
        "versions",
    ),
    ("spec",),
    ("ir", "reference", "memory", "twins"),
    ("plan", "passes", "schedule", "source", "contenders"),
    ("lower", "interpret", "cost"),
    (
        "emit",
        "emit_eager",
        "emit_kernels",
        "launches",
        "emit_reduce",
        "emit_recurrence",
        "emit_sm90",
        "fit",
        "build",
        "build_worker",
        "load_module",
        "operator",
    ),
    (
        "gates",
        "verify",
        "measure",
        "fences",
        "bench",
        "bench_worker",
        "records",
        "tables",
        "lockfile",
        "search",
        "sweeps",
    ),
    (
        "driver",
        "checks",
        "stages",
        "refit",
        "compilation",
        "tuner",
        "journal",
        "tune_worker",
        "choose",
        "recheck",
        "bench_table",
        "plots",
    ),
    (
        "cli",
        "report",
        "tune_report",
        "doctor",
        "terminal",
        "interrupts",
        "__init__",
    ),
    ("__main__",),
)
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
# Imports within a layer, and why. None of them may close a circle.
WITHIN = {
    ("files", "errors"): "what cannot be written is the user's error",
    ("versions", "errors"): "what is missing is the user's error",
    ("target", "errors"): "an unknown target is the user's error",
    ("schedule", "plan"): "a schedule gives numbers to the symbols of a plan",
    ("passes", "plan"): "some passes are of tile programs",
    ("emit", "emit_eager"): "the part of a file that is plain PyTorch",
    ("emit", "emit_sm90"): "one kernel's own part of a file",
    ("emit", "emit_recurrence"): "another kernel's",
    ("emit_recurrence", "emit_sm90"): "both print rows",
    ("emit", "emit_reduce"): "another kernel's",
    ("emit", "emit_kernels"): "how each kernel is launched",
    ("launches", "emit_kernels"): "of these, those that a call launches",
    ("emit_kernels", "emit_reduce"): "of the sums too",
    ("emit_kernels", "emit_eager"): "both take a featurizer's lag",
    ("emit", "fit"): "what is written fits a page",
    ("build", "load_module"): "a launch looks for what was built under the name of its module",
    ("operator", "emit"): "the name of the class that emit wrote",
    ("tables", "records"): "a decision has the key of its measurements",
    ("search", "records"): "what became of a candidate is what a record says",
    ("sweeps", "records"): "it keeps outcomes",
    ("sweeps", "search"): "of searches",
    ("process", "files"): "temporary files of a process lie in a folder that goes with it",
    ("jsonl", "files"): "only regular files are read",
    ("cli", "report"): "what was found as text",
    ("cli", "tune_report"): "what a search came to as text",
    ("cli", "doctor"): "what is here as text",
    ("cli", "terminal"): "all text goes one way",
    ("report", "terminal"): "this one too",
    ("tune_report", "terminal"): "and this",
    ("doctor", "terminal"): "and this",
    ("cli", "interrupts"): "a verb that is interrupted tidies up",
    ("driver", "tuner"): "the chain of a search",
    ("tuner", "journal"): "what a search reports is written down",
    ("recheck", "choose"): "which Triton is here",
    ("driver", "checks"): "the last of its steps",
    ("driver", "compilation"): "the steps after it",
    ("compilation", "checks"): "the last of them",
    ("stages", "checks"): "how long these take",
    ("compilation", "stages"): "how far it has come",
    ("driver", "stages"): "and a verification",
    ("compilation", "choose"): "what it is of",
    ("compilation", "refit"): "another choice, where the first does not fit",
    ("refit", "choose"): "what was chosen first",
    ("refit", "tuner"): "what is predicted of a search space",
    ("driver", "choose"): "the first of its steps",
    ("driver", "journal"): "what is to be searched",
    ("tables", "lockfile"): "whoever looks for a schedule looks in both",
    ("operator", "load_module"): "a callable is made from an imported file",
    ("verify", "gates"): "how far a result may be off",
    ("bench", "measure"): "times",
    ("bench", "bench_worker"): "what its child processes run",
    ("bench_worker", "measure"): "times and bounds",
    ("bench_worker", "verify"): "what is wrong is not timed",
}
MAX_LINES = 1000

MODULES = sorted((ROOT / "sh2gen").rglob("*.py"))
PARTS = sorted((ROOT / "templates" / "parts").glob("*.py"))
# What must not be called: a pattern over code, where it is allowed, and why.
BANNED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "block pointers": (r"make_block_ptr|\btl\.advance\b", (), "deprecated in Triton"),
    "float atomics": (r"\batomic_\w+", (), "results must not depend on timing"),
    "eval": (r"(?<![.\w])eval\(", (), "no text is evaluated"),
    "exec": (
        r"(?<![.\w])exec\(",
        ("load_module.py", "build_worker.py"),
        "only generated files are executed, in two places",
    ),
    "pickle": (r"\b(pickle|marshal|shelve)\.", (), "files must be readable and safe to open"),
    "torch.load": (r"\btorch\.load\(", (), "it unpickles"),
    "unsafe YAML": (r"\byaml\.(load|full_load|unsafe_load)\(", (), "safe_load, or compose"),
    "sympify": (r"\bsympify\(", (), "it evaluates text"),
    "environment": (
        r"\bos\.(environ|getenv)\b",
        # records.py: SH2GEN_HOME, the only one; process.py: what is handed to processes
        ("build_worker.py", "records.py", "process.py"),
        "arguments, not environment variables, say what happens",
    ),
    "shell": (r"\bshell=True\b|\bos\.system\(", (), "file names are not shell text"),
    "paths that cannot be": (
        r"(?<!os\.path)\.(exists|is_file|is_dir|is_symlink|read_text|read_bytes)\(",
        ("resources.py", "emit.py", "schedule.py"),  # of the package's own files
        "they raise for names that are too long, and wait for pipes: os.path, and sh2gen.files",
    ),
    "echo": (r"\bclick\.(s?echo|secho)\(", ("terminal.py",), "what is printed is made printable"),
    "print": (
        r"(?<![.\w])print\(",
        ("build_worker.py",),
        "terminal.py alone talks, through click",
    ),
}


def module_name(path: Path) -> str:
    """sh2gen/lower/direct.py -> lower, sh2gen/spec.py -> spec."""
    return path.relative_to(ROOT / "sh2gen").with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """The modules of sh2gen that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            source = node.module or ""
            names = [f"{source}.{a.name}" for a in node.names] if source == "sh2gen" else [source]
        for name in names:
            package, *rest = name.split(".")
            if package == "sh2gen" and rest:
                yield rest[0]


def code(path: Path) -> str:
    """The source without comments and without what is in strings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.unparse(tree)


def test_every_module_has_a_layer() -> None:
    assert {module_name(path) for path in MODULES} == set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_from_lower_layers(path: Path) -> None:
    me = module_name(path)
    for other in imports(path):
        assert other in LEVEL, f"{path.name} imports sh2gen.{other}, which has no layer"
        if other == me or (me, other) in WITHIN:
            continue
        assert LEVEL[other] < LEVEL[me], (
            f"{path.name} (layer {LEVEL[me]}) imports sh2gen.{other} (layer {LEVEL[other]})"
        )


def test_exceptions_are_used_and_no_import_is_circular() -> None:
    edges = {(module_name(path), other) for path in MODULES for other in imports(path)}
    assert set(WITHIN) <= edges, "an exception that nothing needs"
    assert all(LEVEL[a] == LEVEL[b] for a, b in WITHIN)
    graph = nx.DiGraph((a, b) for a, b in edges if a != b)
    assert nx.is_directed_acyclic_graph(graph), nx.find_cycle(graph)


def test_no_module_is_hidden_by_a_name_that_the_package_exports() -> None:
    """`import sh2gen.load` would give the function `sh2gen.load`, not a module of that name."""
    assert not set(sh2gen.__all__) & {path.stem for path in (ROOT / "sh2gen").iterdir()}


def test_a_worker_imports_nothing_of_the_package() -> None:
    assert not list(imports(ROOT / "sh2gen" / "build_worker.py"))


@pytest.mark.parametrize("what", BANNED)
def test_banned_calls(what: str) -> None:
    pattern, allowed, reason = BANNED[what]
    for path in (*MODULES, *PARTS):
        if path.name not in allowed:
            found = re.search(pattern, code(path))
            assert found is None, f"{path.relative_to(ROOT)}: {found} ({what}: {reason})"


def test_bans_find_what_they_ban(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        '"""eval("not this")"""\n# eval(x)\nname = "print(x)"\nmodel.eval()\n'
        "eval(x); exec(x); print(x); pickle.loads(x); torch.load(x); os.environ[x]\n"
        "tl.atomic_add(x); tl.advance(x); yaml.load(x); sympify(x); run(x, shell=True)\n"
        "there.is_dir(); click.echo(x)\n"
    )
    for what, (pattern, _, _) in BANNED.items():
        assert re.search(pattern, code(bad)), what
    assert code(bad).count("eval(") == 2 and code(bad).count("print(") == 1


@pytest.mark.parametrize("path", (*MODULES, *PARTS), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: split it"


def test_parts_import_only_triton_and_torch() -> None:
    """They are copied into files that import nothing else."""
    for path in PARTS:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            match node:
                case ast.Import(names=names):
                    found = [alias.name for alias in names]
                case ast.ImportFrom(module=module):
                    found = [module or ""]
                case _:
                    continue
            for name in found:
                assert name.split(".")[0] in {
                    "torch",
                    "triton",
                    "collections",
                    "contextlib",
                    "templates",  # another part, whose functions are copied too
                }, f"{path.name} imports {name}"
