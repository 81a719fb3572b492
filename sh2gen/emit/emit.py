"""From a plan and a schedule to one readable Python file.

`emit` is a fold over tile programs (for kernels), over actions (for launchers) and over graphs
(for plain PyTorch). Helpers are real functions in `templates/parts/`, copied verbatim when used;
skeletons are Jinja files that never look into a tile program.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import keyword
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import signed
from sh2gen.emit import config
from sh2gen.emit.file import CONFIGS, blocks
from sh2gen.emit.kernels import kernel_sources
from sh2gen.emit.text import literal
from sh2gen.emit.words import class_name
from sh2gen.plan.plan import Plan
from sh2gen.plan.source import Source
from sh2gen.schedule.config import Schedule
from sh2gen.spec.operator import OpSpec

# Of the kernels and functions named after an operator.
_SUFFIXES = ("forward", "backward", "packed")


def emit(
    spec: OpSpec,
    plan: Plan,
    schedule: Schedule,
    gpu: str = "",
    others: Sequence[tuple[OpSpec, Schedule, str]] = (),
) -> Source:
    """The generated file of one plan under one schedule, and how to compile its kernels.

    Args:
        gpu: what torch calls the GPU that the schedule was decided for, if it was for one.
        others: schedules of the same kind of operator at other widths, each with its GPU.

    Example: `emit(spec, plan, schedule(spec, plan)).text`

    Raises:
        Sh2genError: S007 if the operator's name means something else in its file.
    """
    assert schedule.plan == plan.name
    refuse_clash(spec, plan)
    frame = _frame(spec, plan)
    configs = {
        (name, one.channels, one.filter.groups): config.entry(plan, chosen)
        for one, chosen, name in ((spec, schedule, gpu), *others)
    }
    text = frame.replace(f"\n{CONFIGS}\n", f"\n{table(configs)}\n", 1)
    return Source(
        op=spec.op,
        text=signed(text),
        frame=frame,
        configs=configs if plan.kernels else {},
        kernels=kernel_sources(spec, plan, schedule),
    )


def table(configs: dict[tuple[str, int, int], dict[str, dict[str, int]]]) -> str:
    """The lines of a file that hold its configs."""
    lines = ["CONFIGS = {  # by GPU, channels and groups"]
    for key, kernels in configs.items():
        lines.append(f"    {literal(key, 4)}: {{")
        lines += [f'        "{role}": {literal(one, 8, 19)},' for role, one in kernels.items()]
        lines.append("    },")
    return "\n".join([*lines, "}"])


@lru_cache(maxsize=64)  # a search writes hundreds of files of one kind
def _frame(spec: OpSpec, plan: Plan) -> str:
    """A file without its configs."""
    library = f"{spec.op}_{_digest(spec, plan)}"
    text = "\n\n\n".join(blocks(spec, plan, library)) + "\n"
    kinds = ast.FunctionDef | ast.ClassDef
    defined = Counter(n.name for n in ast.parse(text).body if isinstance(n, kinds))
    twice = [name for name, count in defined.items() if count > 1 and name != "_"]
    assert not twice, f"{plan.name}: {', '.join(twice)} stand for several things in one file"
    return text


@lru_cache(maxsize=64)
def _words(spec: OpSpec, plan: Plan) -> frozenset[str]:
    """Every word of a file: what is none of them means nothing in it."""
    return frozenset(re.findall(r"\w+", "\n".join(blocks(spec, plan, ""))))


@lru_cache(maxsize=64)
def _names(spec: OpSpec, plan: Plan) -> frozenset[str]:
    """Every name that means something in a file."""
    taken = set()
    for node in ast.walk(ast.parse(_frame(spec, plan))):
        match node:
            case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                taken.add(name)
            case ast.arg(arg=name) | ast.alias(name=name):
                taken.add(name.split(".")[0])
    return frozenset(taken)


def refuse_clash(spec: OpSpec, plan: Plan) -> None:
    """The names that a file takes from its operator must not stand for anything else in it:
    S007.
    """
    neutral = dataclasses.replace(spec, op="operator_by_no_other_name")
    own = (spec.op, class_name(spec.op), *(f"{spec.op}_{n}" for n in _SUFFIXES))
    for name in own:
        # Few are a word of it, and words are found in a tenth of the time that names take.
        taken = name in _words(neutral, plan) and name in _names(neutral, plan)
        if taken or keyword.iskeyword(name):
            raise Sh2genError(
                "S007",
                f"`{spec.op}` cannot name an operator: `{name}` has a meaning in its file",
                help=f"try `{spec.op}_conv`",
            )


def _digest(spec: OpSpec, plan: Plan) -> str:
    """Names the library ops, so that two files for one operator can be loaded side by side."""
    texts = (spec.digest, plan.name, *blocks(spec, plan, ""))
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]


def kernel_digest(spec: OpSpec, plan: Plan) -> str:
    """Of the kernels of a plan and of how they are launched, without comments, names of operators,
    configs and the number of channels: times of other text say little.

    Kernels for splits count whether or not a config splits a sequence.
    """
    tree = ast.parse(_frame(dataclasses.replace(spec, op="op"), plan))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            marks = [ast.unparse(mark) for mark in node.decorator_list]
            is_kernel = any("triton" in m or "gluon" in m for m in marks)
            if node.name.startswith("launch") or node.name.endswith("_grid") or is_kernel:
                if ast.get_docstring(node) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
                found.append(node)
    text = "\n".join(map(ast.unparse, found))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
