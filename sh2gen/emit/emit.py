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
from sh2gen.emit.config import Width
from sh2gen.emit.file import blocks
from sh2gen.emit.kernels import kernel_sources
from sh2gen.emit.words import class_name
from sh2gen.plan.plan import Plan
from sh2gen.plan.source import Source
from sh2gen.schedule.config import Schedule
from sh2gen.spec.operator import OpSpec

# Of the kernels and functions named after an operator.
_SUFFIXES = ("forward", "backward", "packed", "decode")


def emit(
    spec: OpSpec, plan: Plan, schedule: Schedule, widths: Sequence[Width] | None = None
) -> Source:
    """The generated file of one plan, and how to compile its kernels under one schedule.

    Args:
        widths: what the file is for, the width of `spec` first; absent: that with this schedule
            on every device.

    Example: `emit(spec, plan, schedule(spec, plan)).text`

    Raises:
        Sh2genError: S007 if the operator's name means something else in its file.
    """
    assert schedule.plan == plan.name
    refuse_clash(spec, plan)
    widths = widths or (config.width_of(spec, schedule=schedule),)
    before, after = _frame(spec, plan)
    configs = config.entries(plan, widths) if plan.kernels else {}
    tables = f"{config.tables(widths, configs)}\n" if plan.kernels else ""
    return Source(
        op=spec.op,
        text=signed(f"{before}\n{tables}{after}\n"),
        frame=f"{before}\n{after}\n",
        configs=configs,
        kernels=kernel_sources(spec, plan, schedule),
    )


@lru_cache(maxsize=64)  # a search writes hundreds of files of one kind
def _frame(spec: OpSpec, plan: Plan) -> tuple[str, str]:
    """A file without its tables of widths and configs: what is before them, and after them.

    Raises:
        AssertionError: two kernels, helpers or variants of the plan have one name.
    """
    before, after = blocks(spec, plan, f"{spec.op}_{_digest(spec, plan)}")
    text = "\n\n\n".join(after)
    kinds = ast.FunctionDef | ast.ClassDef
    defined = Counter(n.name for n in ast.parse(text).body if isinstance(n, kinds))
    twice = [name for name, count in defined.items() if count > 1 and name != "_"]
    if twice:
        raise AssertionError(f"{plan.name}: {', '.join(twice)} stand for several things in a file")
    return before, text


@lru_cache(maxsize=64)
def _words(spec: OpSpec, plan: Plan) -> frozenset[str]:
    """Every word of a file: what is none of them means nothing in it."""
    before, after = blocks(spec, plan, "")
    return frozenset(re.findall(r"\w+", "\n".join((before, *after))))


@lru_cache(maxsize=64)
def _names(spec: OpSpec, plan: Plan) -> frozenset[str]:
    """Every name that means something in a file."""
    taken = set()
    for node in ast.walk(ast.parse("\n".join(_frame(spec, plan)))):
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
    before, after = blocks(spec, plan, "")
    texts = (spec.digest, plan.name, before, *after)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]


def kernel_digest(spec: OpSpec, plan: Plan) -> str:
    """Of the kernels of a plan and of how they are launched, without comments, names of operators,
    configs and the number of channels: times of other text say little.

    Kernels for splits count whether or not a config splits a sequence.
    """
    plan = dataclasses.replace(plan, step=None, past=())  # they compute no whole sequences
    tree = ast.parse(_frame(dataclasses.replace(spec, op="op"), plan)[1])
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
