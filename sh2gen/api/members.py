"""The widths of one generated file: what is compiled into it, and what it says of them."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import UNVERIFIED, intact, read_text, same_program, statement
from sh2gen.emit.config import Width, capability, width_of
from sh2gen.emit.emit import emit
from sh2gen.emit.page import page
from sh2gen.lower import plans
from sh2gen.plan.plan import Plan
from sh2gen.plan.source import Source
from sh2gen.schedule.config import Schedule, schedule
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target
from sh2gen.tuning.choose import Candidate, gpu_name

_UNREADABLE = SyntaxError, ValueError, TypeError, RecursionError, MemoryError


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a generated file is, by its own text.

    Attributes:
        spec: its own operator.
        widths: what it is for, its own first.
    """

    spec: OpSpec
    plan: Plan
    widths: tuple[Width, ...]


def member(spec: OpSpec, chosen: Candidate, gpu: Target) -> Width:
    """The width of an operator with what was taken for it: a config of its own, or the default,
    which a file computes.
    """
    default = chosen.schedule == schedule(spec, chosen.plan, target=gpu)
    return width_of(spec, gpu_name(gpu), None if default else chosen.schedule)


def text_of(
    spec: OpSpec,
    plan: Plan,
    chosen: Schedule,
    family: Sequence[Width],
    gpu: Target | None = None,
) -> Source:
    """The file that serves a family, and how to compile kernels under the schedule of `spec`.

    Args:
        gpu: whose default stands in the file where that of another GPU would be taken instead.
    """
    if gpu is not None:
        family = [_settled(w, spec, plan, family, gpu) for w in family]
    first = {w.width: i for i, w in reversed([*enumerate(family)])}
    family = sorted(family, key=lambda w: first[w.width])  # as they are read again
    return page(emit(spec, plan, chosen, family))


def _settled(one: Width, spec: OpSpec, plan: Plan, family: Sequence[Width], gpu: Target) -> Width:
    """A width of this GPU with its default as a config, if another GPU's would be taken else."""
    others = {w.gpu for w in family if w.width == one.width and w.schedule is not None}
    here = gpu_name(gpu)
    alike = any(capability(name) == capability(here) for name in others - {here})
    if one.schedule is not None or one.gpu != here or not alike:
        return one
    return replace(one, schedule=schedule(spec.with_width(*one.width), plan, target=gpu))


def said(text: str) -> dict[str, Any]:
    """What the text of a generated file says of its operator, plan, widths and configs, as far as
    it can be read; nothing of it is executed.
    """
    found: dict[str, Any] = {}
    with suppress(*_UNREADABLE):
        for statement in ast.parse(text).body:
            match statement:
                case ast.Assign(
                    [ast.Name("SPEC" | "PLAN" | "WIDTHS" as name)], value
                ) | ast.AnnAssign(ast.Name("CONFIGS" as name), value=ast.expr() as value):
                    with suppress(*_UNREADABLE):
                        found[name] = ast.literal_eval(value)
    return found


def described(text: str, path: Path) -> Served:
    """What a generated file is, by what its text says; nothing of it is executed.

    Raises:
        Sh2genError: B005 if it lacks what says so, L003 for a plan that is unknown here.
    """
    facts = said(text)

    def stated(name: str, kind: type) -> Any:
        if not isinstance(facts.get(name), kind):
            raise Sh2genError("B005", f"{path} lacks what a generated file has: {name}")
        return facts[name]

    spec, name = spec_from_dict(stated("SPEC", dict)), stated("PLAN", str)
    found = [p for p in plans(spec, name.split("/")[0]) if p.name == name]
    if not found:
        raise Sh2genError("L003", f"{path} has a plan unknown here: {name}")
    widths = [width_of(spec)]
    if found[0].kernels:
        tables = stated("WIDTHS", dict), stated("CONFIGS", dict)
        try:
            widths = _widths(spec, found[0], *tables)
        except (Sh2genError, TypeError, ValueError, AttributeError):
            raise Sh2genError(
                "B005", f"{path} lacks what a generated file has: legal WIDTHS and CONFIGS"
            ) from None
    return Served(spec=spec, plan=found[0], widths=tuple(widths))


def as_written(text: str, there: Served) -> bool:
    """Whether this sh2gen writes the same file for what a text says."""
    chosen = schedule(there.spec, there.plan)
    return same_program(text, text_of(there.spec, there.plan, chosen, there.widths).text)


def served(text: str) -> Served | None:
    """What a file is, if this sh2gen writes the same for what it says of itself."""
    try:
        there = described(text, Path())
        return there if as_written(text, there) else None
    except Sh2genError:
        return None


def _widths(
    spec: OpSpec, plan: Plan, batches: Mapping[Any, Any], configs: Mapping[Any, Any]
) -> list[Width]:
    """The widths of a file's tables. Errors of many kinds if these are no such tables."""
    if any(tuple(width) not in batches for _, *width in configs):
        raise ValueError("a config of no width")
    found = []
    for (channels, groups), batch in batches.items():
        own = replace(width_of(spec.with_width(channels, groups)), batch=batch)
        stated = {
            gpu: config for (gpu, *width), config in configs.items() if (*width,) == own.width
        }
        if not stated:
            found.append(own)
        for gpu, config in stated.items():
            made = schedule(spec.with_width(channels, groups), plan, config)
            found.append(replace(own, gpu=gpu, schedule=made))
    return found


def joined(
    path: Path,
    family: Sequence[Width],
    specs: Sequence[OpSpec],
    plan: Plan,
    gpu: Target,
    own: bool,
) -> tuple[OpSpec, tuple[Width, ...]]:
    """The operator that a file is named after, and all that it is for: a family, and other widths
    of the file that is there and configs of other GPUs, if it was verified and this sh2gen writes
    that file for operators of this kind. What is compiled for one width and GPU leaves the others
    as they are, and the width that the file names.

    Args:
        own: whether the first of the family is the file's own, whatever stands in it.
    """
    there = None
    with suppress(OSError):
        text = read_text(path)
        if statement(text) != UNVERIFIED and intact(text):
            there = served(text)
    if there is None or there.spec.kind != specs[0].kind or there.plan.name != plan.name:
        return specs[0], tuple(family)
    names = {(name, w.width) for w in family for name in ("", w.gpu, gpu_name(gpu))}
    whole = (*family, *(w for w in there.widths if (w.gpu, w.width) not in names))
    if own:
        return specs[0], whole
    width = there.spec.channels, there.spec.filter.groups
    compiled = {(spec.channels, spec.filter.groups): spec for spec in specs}
    first = compiled.get(width, there.spec)
    return first, tuple(sorted(whole, key=lambda w: w.width != width))


def lost(path: Path, family: Sequence[Width]) -> str:
    """What the file that is there serves and a family does not; nothing if that is nothing."""
    try:
        before = said(read_text(path))
    except OSError:
        return ""

    def keys(name: str, length: int) -> list[tuple[Any, ...]]:
        table = before.get(name)
        there = table if isinstance(table, dict) else {}
        return [k for k in there if isinstance(k, tuple) and len(k) == length]

    now = {w.width for w in family}
    gone = [f"{c} channels in {g} groups" for c, g in keys("WIDTHS", 2) if (c, g) not in now]
    stated = {w.key for w in family if w.schedule is not None}
    mine = {(w.gpu, w.width) for w in family}
    gone += [
        f"the config of {gpu} for {c} channels"
        for gpu, c, g in keys("CONFIGS", 3)
        if (c, g) in now and (gpu, c, g) not in stated and (gpu, (c, g)) not in mine
    ]
    return ", ".join(gone)


def serves(text: str, spec: OpSpec, plan: Plan, own: Width) -> bool:
    """Whether a file is for this width too, as it would be compiled now."""
    there = served(text)
    if there is None or there.spec.kind != spec.kind or there.plan.name != plan.name:
        return False
    here = [w for w in there.widths if (w.width, w.batch) == (own.width, own.batch)]
    if own.schedule is None:
        gpus = {w.gpu for w in here if w.schedule is not None}
        return bool(here) and not any(
            not gpu or capability(gpu) == capability(own.gpu) for gpu in gpus
        )
    return own in here
