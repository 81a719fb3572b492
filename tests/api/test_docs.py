"""What documents say is true: their code runs, links lead somewhere, options exist.

Run as a script it rewrites docs/errors.md and docs/schedules/.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import typing
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from sh2gen.api.compile import compile_operator
from sh2gen.base.errors import CODES
from sh2gen.bench.results import read_results
from sh2gen.cli import cli
from sh2gen.emit.emit import emit
from sh2gen.emit.page import page as page_of
from sh2gen.lower import ALGORITHMS, plans
from sh2gen.schedule.config import DIRECTIONS
from sh2gen.schedule.facts import FACTS
from sh2gen.schedule.knobs import _values, read_schedules
from sh2gen.schedule.space import DECODE, search_space
from sh2gen.spec.decode import load_spec
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import target
from sh2gen.tuning.choose import candidates

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
KERNELS, LANGUAGE, PYTHON = (
    ROOT / "docs" / f"{name}.md" for name in ("kernels", "language", "python")
)
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FAMILIES = {
    "S": "the operator file",
    "L": "lowering",
    "K": "schedules",
    "B": "building and loading",
    "V": "verification",
    "R": "records, tuned tables and lock files",
    "C": "calls and the command line",
}


def blocks(path: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def named(path: Path) -> dict[str, str]:
    """Fenced blocks whose first line is a comment with a file name."""
    found = {}
    for _, text in blocks(path):
        first = re.match(r"# ([\w./]+\.(?:py|yaml))\n", text)
        if first:
            found[first[1]] = text
    return found


def prose(path: Path) -> str:
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


# ---- README -------------------------------------------------------------------------------------


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "ops", tmp_path / "ops")
    for name, text in named(README).items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    compile_operator("ops/hyena_se.yaml", verified=False, built=False)
    namespace: dict[str, Any] = {}
    pages = (README, PYTHON)
    snippets = [text for page in pages for language, text in blocks(page) if language == "python"]
    assert len(snippets) >= 5
    for text in snippets:
        exec(compile(text, "README.md", "exec"), namespace)


@pytest.mark.parametrize(("word", "op"), [("toeplitz(", "hyena_mr"), ("modal(", "hyena_li")])
def test_the_blocks_of_the_page_are_the_generated_ones(word: str, op: str) -> None:
    (shown,) = (text for _, text in blocks(KERNELS) if f" = {word}" in text)
    assert textwrap.indent(shown, "    ") in (ROOT / "generated" / f"{op}.py").read_text()


def test_the_derivation_of_modes_computes_what_it_says() -> None:
    page = ROOT / "docs" / "modal.md"
    snippets = [text for language, text in blocks(page) if language == "python"]
    assert len(snippets) == 5 and sum(text.count("assert") for text in snippets) >= 4
    exec(compile("".join(snippets), "modal.md", "exec"), {})


def test_the_kernel_of_the_page_is_the_generated_one() -> None:
    spec = load_spec(ROOT / "ops" / "hyena_se.yaml")
    chosen = candidates(spec, target("H200"))[0]
    text = page_of(emit(spec, chosen.plan, chosen.schedule)).text
    (shown,) = (text for _, text in blocks(KERNELS) if "load_taps(" in text)
    assert textwrap.indent(shown, "    ") in text, "copy the body from generated/hyena_se.py"


def test_the_language_names_every_field_and_every_value() -> None:
    table = LANGUAGE.read_text()

    def words(kind: Any) -> typing.Iterator[str]:
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if field.metadata.get("internal"):
                continue
            yield field.name
            for hint in (hints[field.name], *typing.get_args(hints[field.name])):
                if dataclasses.is_dataclass(hint):
                    yield from words(hint)
                elif isinstance(hint, type) and issubclass(hint, StrEnum):
                    yield from map(str, hint)

    missing = {w for w in words(OpSpec) if not re.search(rf"[`.{{ ]{w}[`.,}} ]", table)}
    assert not missing


def test_the_language_says_what_is_refused() -> None:
    """The column `today` of fields that no lowering serves, against the lowerings themselves."""
    from sh2gen.lower.verdict import later_fields
    from sh2gen.spec.decode import spec_from_dict

    base: dict[str, Any] = {"op": "probe", "channels": 4}
    taps = {"filter": {"kind": "explicit", "length": 3, "groups": 4}}
    for refused in (
        taps | {"state": {"final": True, "width": "K"}},
        taps | {"state": {"final": True, "dtype": "bfloat16"}},
        taps | {"sequences": "packed", "state": {"final": True}},
        taps | {"sequences": "packed", "context": {"ranks": 2, "exchange": "all_to_all"}},
        taps | {"context": {"ranks": 2, "exchange": "all_to_all"}},
    ):
        assert list(later_fields(spec_from_dict(base | refused)))
    fields: tuple[dict[str, Any], ...] = (
        {"state": {"final": True}},
        {"context": {"ranks": 2}},
        {"sequences": "packed"},
        {"sequences": "packed", "context": {"ranks": 2}},
    )
    for served in (taps, *(taps | field for field in fields)):
        assert not list(later_fields(spec_from_dict(base | served)))
    for field in ("state", "packed", "context"):
        rows = LANGUAGE.read_text().splitlines()
        (row, *_) = (r for r in rows if f"`{field}`" in r and "|" in r)
        assert "refused" in row


def test_the_speeds_of_the_readme_are_those_that_were_measured() -> None:
    found = read_results(ROOT / "docs" / "results" / "nvidia-h200.json")
    for one in found:
        (row,) = (r for r in README.read_text().splitlines() if r.startswith(f"| `{one.op}` |"))
        times = [
            f"{outcome.times[direction].median:.1f} ({outcome.shares[direction]:.2f})"
            for outcome in one.outcomes
            if outcome.length in (8192, 131072)
            for direction in ("forward", "backward")
        ]
        assert row.split(" | ")[1:-1] == times
    for op, forward, backward in re.findall(
        r"^\| `(\w+)` \| \d.* \| ([\d.]+)x, ([\d.]+)x \|$", README.read_text(), re.M
    ):
        page = (ROOT / "docs" / "performance.md").read_text()
        (row,) = re.findall(rf"^\| {op} \| 8192 \| .*[\d.]+x.*$", page, re.M)
        assert f"{forward}x" in row and f"{backward}x" in row


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_lines_fit_a_page(page: Path) -> None:
    """Rows of tables, which cannot be broken, apart."""
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        assert len(line) <= 110 or line.startswith("|"), f"{page.name}:{number}: {line}"


# ---- commands and links -------------------------------------------------------------------------


def commands() -> list[tuple[str, str]]:
    """Everything in code, fenced or not, that starts with sh2gen and a verb: (page, command)."""
    found = []
    for page in PAGES:
        fenced = [
            line
            for language, text in blocks(page)
            if language in ("bash", "")
            for part in text.splitlines()
            for line in re.split(r"&&|\|\||;|\|", part)
        ]
        inline = re.findall(r"`([^`\n]+)`", prose(page))
        for text in (*fenced, *inline):
            match = re.match(r"(?:\$ )?(?:\.venv/bin/)?sh2gen +([a-z].*)", text.strip())
            if match:
                found.append((page.name, match[1]))
    return found


def test_commands_in_documents_exist() -> None:
    found = commands()
    assert len(found) > 8
    verbs = set()
    for page, text in found:
        verb, *rest = shlex.split(text)
        assert verb in cli.main.commands, f"{page}: sh2gen {text}"
        verbs.add(verb)
        known = {o for p in cli.main.commands[verb].params for o in p.opts}
        for word in rest:
            if word.startswith("-"):
                assert word.split("=")[0] in known, f"{page}: sh2gen {text}"
    assert verbs == set(cli.main.commands), "a verb that no document mentions"


def test_the_table_of_verbs_names_every_option() -> None:
    for verb, command in cli.main.commands.items():
        (row,) = (r for r in README.read_text().splitlines() if f"| `sh2gen {verb}" in r)
        inner = getattr(command, "commands", {}).values()  # of a group
        params = [p for one in (command, *inner) for p in one.params]
        known = {o for p in params if isinstance(p, click.Option) for o in p.opts}
        for option in re.findall(r"--[a-z-]+", row):
            assert option in known, f"{verb} has no {option}"


def test_every_option_says_what_it_does() -> None:
    verbs = dict(cli.main.commands)
    for command in cli.main.commands.values():
        verbs |= command.commands if isinstance(command, click.Group) else {}
    for verb, command in verbs.items():
        assert command.help, verb
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{verb} {option.opts}"


def test_the_example_of_set_is_legal_for_the_first_operator_of_the_readme() -> None:
    (op, *_) = re.findall(r"sh2gen compile (\w+)", README.read_text())
    helps = [command.get_help(click.Context(command)) for command in cli.main.commands.values()]
    pages = [README.read_text(), *helps]
    shown = {s for page in pages for s in re.findall(r"((?:for|back)ward\.[A-Z_]+=\d+)", page)}
    assert shown == {"forward.TILES=2"}
    result = CliRunner().invoke(cli.main, ["explain", op, "--set", *shown])
    assert result.exit_code == 0 and "with TILES=2 as given" in result.stdout
    wrong = CliRunner().invoke(cli.main, ["explain", op, "--set", "TILES"])
    assert wrong.exit_code == 2 and "--stage config" in wrong.stderr
    legal = CliRunner().invoke(cli.main, ["explain", op, "--stage", "config"])
    assert re.search(r"^forward.TILES=\d+  one of 1, 2, 4, ", legal.stdout, re.M)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as they are made on the web."""
    headings = re.findall(r"^#+ (.*)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        goal = (page.parent / name).resolve() if name else page
        assert goal.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(goal), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_name_no_machine(page: Path) -> None:
    assert not re.search(r"/(home|tmp|work|root)/|pypi\.|localhost", page.read_text())


def test_the_first_command_installs_what_the_constraints_pin() -> None:
    first = next(text for language, text in blocks(README) if language == "bash")
    assert first.count("\n") == 1 and "-c constraints.txt ." in first
    pinned = set(re.findall(r"^([\w-]+)[=<>]", (ROOT / "constraints.txt").read_text(), re.M))
    project = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|test) = \[\n(.*?)^\]", project, re.M | re.S)
    wanted = set(re.findall(r'^\s+"([\w-]+)', "".join(lists), re.M))
    assert len(lists) == 2 and wanted <= pinned, wanted - pinned


# ---- pages that are made, recipes that are followed ---------------------------------------------


def errors_page() -> str:
    """docs/errors.md, from errors.CODES."""
    lines = [
        "# Error codes",
        "",
        "A message names a code, the place in the file if there is one, and what to do if that",
        "is known. Codes that begin with V, B001 and B002 mean that the input was fine and the",
        "result is not: `CheckFailed`, exit code 1. (V003 also says that `verify` or `bench`",
        "cannot run here, with exit code 2.) All others are `Sh2genError`, exit code 2. Calls of",
        "an operator raise `TypeError` and `ValueError` instead, as PyTorch does.",
        "",
        "This page is made from `sh2gen/base/errors.py` by `python tests/api/test_docs.py`.",
    ]
    for letter, family in FAMILIES.items():
        lines += ["", f"## {letter}: {family}", "", "| code | meaning |", "|---|---|"]
        lines += [f"| {code} | {text} |" for code, text in CODES.items() if code[0] == letter]
    return "\n".join(lines) + "\n"


def test_the_page_of_errors_is_up_to_date() -> None:
    assert {code[0] for code in CODES} == set(FAMILIES)
    assert (ROOT / "docs" / "errors.md").read_text() == errors_page(), (
        "run: python tests/api/test_docs.py"
    )


def table(*rows: Iterable[str]) -> list[str]:
    """Lines of a table, the first row its head."""
    head, *others = ["| " + " | ".join(row) + " |" for row in rows]
    return ["", head, "|" + "---|" * (head.count(" | ") + 1), *others]


def code(words: Iterable[object]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def listed(values: Iterable[object]) -> str:
    return ", ".join(f"`{value}`" if isinstance(value, str) else str(value) for value in values)


def schedule_page(algorithm: str) -> str:
    """docs/schedules/<algorithm>.md, from schedules/<algorithm>.yaml."""
    text = read_schedules(algorithm)
    lines = [
        f"# Configs of `{algorithm}`",
        "",
        f"This page is made from [its file](../../schedules/{algorithm}.yaml) by",
        "`python tests/api/test_docs.py`.",
        "",
    ]
    if not text["knobs"]:
        return "\n".join([*lines, "It has no kernels of its own and so no config."]) + "\n"
    first = next(iter(text["default"]["BDL"]))
    lines += [
        f"A config is set by direction, `--set {first}.KNOB=VALUE`. A relation or an expression",
        "is made of knobs and of these facts of the operator:",
    ]
    source = repr(text)
    used = [(f"`{name}`", FACTS[name]) for name in FACTS if re.search(rf"\b{name}\b", source)]
    lines += table(("fact", "means"), *used)

    def only(thing: dict[str, Any]) -> str:
        return " ".join(thing.get("only", ()))

    rows = [
        (f"`{name}`", kind["means"], listed(_values(kind)), only(kind))
        for name, kind in text["knobs"].items()
    ]
    lines += ["", "## Knobs", *table(("knob", "means", "legal values", "only"), *rows)]
    rules = [(f"`{rule['that']}`", rule["because"], only(rule)) for rule in text["require"]]
    lines += ["", "## Constraints", *table(("must hold", "because", "only"), *rules)]
    lines += ["", "## Defaults", "", "The first row whose `when` holds for the operator."]
    for layout, directions in text["default"].items():
        for direction, cases in directions.items():
            cases = cases if isinstance(cases, list) else [cases]
            names = [name for name in text["knobs"] if name in cases[0]]
            rows = [
                (code(case.get("when", ())), *(listed([case[name]]) for name in names))
                for case in cases
            ]
            lines += ["", f"### {layout} {direction}", *table(("when", *names), *rows)]
    lines += [
        "",
        "## What a search tries",
        "",
        "The default, and of every row whose `when` holds for the operator all combinations that",
        "keep the constraints; knobs that a row does not name stay at the default.",
    ]
    for layout, directions in text.get("search", {}).items():
        for direction, blocks in directions.items():
            names = [name for name in text["knobs"] if any(name in block for block in blocks)]
            rows = [
                (code(block.get("when", ())), *(listed(block.get(name, ())) for name in names))
                for block in blocks
            ]
            lines += ["", f"### Tried: {layout} {direction}", *table(("when", *names), *rows)]
    lines += ["", "### Points", "", "So many configs are tried for the shipped operators."]
    roles = (DECODE,) if algorithm == DECODE else DIRECTIONS
    rows = points_of(algorithm, roles)
    return "\n".join([*lines, *table(("op", "plan", *roles), *rows)]) + "\n"


def points_of(algorithm: str, roles: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Operator, plan, and the sizes of its search spaces, for the shipped operators."""
    for path in sorted((ROOT / "ops").glob("*.yaml")):
        spec = load_spec(path)
        if algorithm == DECODE:  # whatever computes whole sequences
            found = [plan for plan in plans(spec) if plan.step is not None][:1]
        else:
            found = [plan for plan in plans(spec) if plan.algorithm == algorithm]
        for plan in found:
            counts = (len(search_space(spec, plan, d).points) for d in roles)
            yield (spec.op, f"`{plan.name}`", *map(str, counts))


@pytest.mark.parametrize("algorithm", (*ALGORITHMS, DECODE))
def test_the_pages_of_schedules_are_up_to_date(algorithm: str) -> None:
    page = ROOT / "docs" / "schedules" / f"{algorithm}.md"
    assert page.read_text() == schedule_page(algorithm), "run: python tests/api/test_docs.py"


def test_no_page_of_schedules_is_left_over() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "schedules").iterdir()}
    assert pages == {*ALGORITHMS, DECODE}


def test_every_code_that_is_raised_is_listed() -> None:
    for path in (ROOT / "sh2gen").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and re.fullmatch(r"[SLKBVRC]0\d\d", text):
                assert text in CODES, f"{path.name}: {text}"


def test_the_recipes_for_an_algorithm_and_a_statement_work(tmp_path: Path) -> None:
    """Follow docs/architecture.md in a copy of the sources; compile and verify its kernels."""
    page = ROOT / "docs" / "architecture.md"
    for folder in ("sh2gen", "templates", "schedules", "ops"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    files = named(page)
    assert {Path(name).parent.as_posix() for name in files} == {
        "sh2gen/lower",
        "sh2gen/plan",
        "sh2gen/targets",  # the recipe for a GPU
        "templates/parts",
        "schedules",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    shutil.copyfile(ROOT / "templates" / "tile.py.j2", tmp_path / "templates" / "paired.py.j2")
    (line,) = (t for _, t in blocks(page) if "Algorithm(" in t)
    table = tmp_path / "sh2gen" / "lower" / "__init__.py"
    text = table.read_text()
    changed = text.replace("import direct, fft", "import direct, fft, paired")
    changed = changed.replace('    "fft": Algorithm', f'{line}    "fft": Algorithm')
    assert changed.count("paired") == 4
    table.write_text(changed)
    meaning, cost = (t for _, t in blocks(page) if t.lstrip().startswith("case FirPair("))
    for name, case in (("plan/interpret.py", meaning), ("cost/work.py", cost)):
        path = tmp_path / "sh2gen" / name
        text = path.read_text()
        first = "            case LoadRows("
        assert text.count(first) == 1
        changed = text.replace(first, f"{case}{first}").replace(
            "from sh2gen.plan.kernel import",
            "from sh2gen.plan.paired import FirPair\nfrom sh2gen.plan.kernel import",
            1,
        )
        path.write_text(changed)
    (tmp_path / "my_conv.yaml").write_text(named(README)["my_conv.yaml"])
    command = [sys.executable, "-m", "sh2gen", "compile", "my_conv.yaml", "--plan=paired"]
    result = subprocess.run(
        [*command, "--no-build"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "paired/BLD" in result.stdout and "verified by interpreter" in result.stdout
    text = (tmp_path / "generated" / "my_conv.py").read_text()
    assert "odd = tl.zeros_like(even)" in text and " = fir_pair(" in text


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_run(path: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout
    assert not list(tmp_path.iterdir()), "an example leaves files behind"


if __name__ == "__main__":
    (ROOT / "docs" / "errors.md").write_text(errors_page())
    for name in (*ALGORITHMS, DECODE):
        (ROOT / "docs" / "schedules" / f"{name}.md").write_text(schedule_page(name))
