"""The shape of the code base: who imports whom, what is never called, how long modules are."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import networkx as nx
import pytest

import sh2gen

ROOT = Path(__file__).parent.parent
# A folder imports only folders above it.
FOLDERS = (
    *("base", "spec", "graph", "targets", "plan", "schedule", "lower", "cost", "emit", "build"),
    *("runtime", "verify", "tuning", "bench", "report", "api", "cli"),
)
MAX_LINES = 520

MODULES = sorted((ROOT / "sh2gen").rglob("*.py"))
PARTS = sorted((ROOT / "templates" / "parts").glob("*.py"))
# What must not be called: a pattern over code, where it is allowed, and why.
BANNED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "block pointers": (r"make_block_ptr|\btl\.advance\b", (), "deprecated in Triton"),
    "float atomics": (
        r"\batomic_\w+",
        (),
        "results must not depend on timing",
    ),
    "eval": (r"(?<![.\w])eval\(", (), "no text is evaluated"),
    "exec": (
        r"(?<![.\w])exec\(",
        ("build/load_module.py", "build/worker.py"),
        "only generated files are executed, in two places",
    ),
    "pickle": (r"\b(pickle|marshal|shelve)\.", (), "files must be readable and safe to open"),
    "torch.load": (r"\btorch\.load\(", (), "it unpickles"),
    "unsafe YAML": (r"\byaml\.(load|full_load|unsafe_load)\(", (), "safe_load, or compose"),
    "sympify": (r"\bsympify\(", (), "it evaluates text"),
    "environment": (
        r"\bos\.(environ|getenv)\b",
        # records.py: SH2GEN_HOME, the only one; process.py: what is handed to processes
        ("build/worker.py", "tuning/records.py", "base/process.py"),
        "arguments, not environment variables, say what happens",
    ),
    "shell": (r"\bshell=True\b|\bos\.system\(", (), "file names are not shell text"),
    "paths that cannot be": (
        r"(?<!os\.path)\.(exists|is_file|is_dir|is_symlink|read_text|read_bytes)\(",
        (
            "base/resources.py",
            "emit/parts.py",
            "emit/text.py",
            "schedule/knobs.py",
        ),  # of the package's own files
        "they raise for names that are too long, and wait for pipes: os.path, and base/files.py",
    ),
    "echo": (
        r"\bclick\.(s?echo|secho)\(",
        ("report/terminal.py",),
        "what is printed is made printable",
    ),
    "print": (
        r"(?<![.\w])print\(",
        ("build/worker.py",),
        "terminal.py alone talks, through click",
    ),
}


def module_name(path: Path) -> str:
    """sh2gen/lower/direct.py -> lower.direct, sh2gen/lower/__init__.py -> lower."""
    parts = path.relative_to(ROOT / "sh2gen").with_suffix("").parts
    return ".".join(parts if parts[-1] != "__init__" or len(parts) == 1 else parts[:-1])


def folder(module: str) -> str:
    return module.split(".")[0]


NAMES = {module_name(path) for path in MODULES}


def imports(path: Path) -> Iterator[str]:
    """The modules of sh2gen that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            source = node.module or ""
            names = [f"{source}.{alias.name}" for alias in node.names]
        for name in names:
            package, *rest = name.split(".")
            if package == "sh2gen":
                whole, parent = ".".join(rest), ".".join(rest[:-1])
                yield whole if whole in NAMES else parent


@functools.cache
def code(path: Path) -> str:
    """The source without comments and without what is in strings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.unparse(tree)


def test_every_folder_of_tests_is_collected(pytestconfig: pytest.Config) -> None:
    """pytest leaves out `build` and others by default."""
    patterns = pytestconfig.getini("norecursedirs")
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")} - {ROOT / "tests"}
    assert not [f for f in folders if any(fnmatch(f.name, pattern) for pattern in patterns)]


def test_every_folder_has_its_place() -> None:
    assert {folder(name) for name in NAMES} == {*FOLDERS, "__init__", "__main__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_folder_imports_only_folders_above_it(path: Path) -> None:
    me = folder(module_name(path))
    if me in FOLDERS:
        above = FOLDERS[: FOLDERS.index(me) + 1]
        for other in imports(path):
            assert folder(other) in above, f"{path.relative_to(ROOT)} imports sh2gen.{other}"


def test_no_import_is_circular() -> None:
    edges = {(module_name(path), other) for path in MODULES for other in imports(path)}
    graph = nx.DiGraph((a, b) for a, b in edges if a != b)
    assert nx.is_directed_acyclic_graph(graph), nx.find_cycle(graph)


def test_no_module_is_hidden_by_a_name_that_the_package_exports() -> None:
    """`import sh2gen.load` would give the function `sh2gen.load`, not a module of that name."""
    assert not set(sh2gen.__all__) & {path.stem for path in (ROOT / "sh2gen").iterdir()}


def test_a_worker_imports_nothing_of_the_package() -> None:
    for name in ("worker", "hasten"):
        assert not list(imports(ROOT / "sh2gen" / "build" / f"{name}.py"))


@pytest.mark.parametrize("what", BANNED)
def test_banned_calls(what: str) -> None:
    pattern, allowed, reason = BANNED[what]
    for path in (*MODULES, *PARTS):
        if "/".join(path.parts[-2:]) not in allowed:
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
    """They are copied into files that import nothing else, as is the geometry of launches."""
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
                assert name == "sh2gen.plan.geometry" or name.split(".")[0] in {
                    "math",
                    "operator",
                    "functools",
                    "itertools",
                    "torch",
                    "typing",
                    "triton",
                    "collections",
                    "contextlib",
                    "threading",
                    "templates",  # another part, whose functions are copied too
                }, f"{path.name} imports {name}"
