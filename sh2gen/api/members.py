"""The widths of one generated file: what is compiled into it, and what it says of them."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import UNVERIFIED, intact, read_text, same_program, statement
from sh2gen.emit.emit import emit
from sh2gen.emit.page import page
from sh2gen.plan.plan import Plan
from sh2gen.plan.source import Source
from sh2gen.schedule.config import Schedule, schedule
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target
from sh2gen.tuning.choose import Candidate, gpu_name

_UNREADABLE = SyntaxError, ValueError, TypeError, RecursionError, MemoryError


@dataclass(frozen=True, slots=True)
class Member:
    """One width of a generated file.

    Attributes:
        gpu: what torch calls the GPU that the schedule was tuned on; empty if it was for none.
    """

    spec: OpSpec
    schedule: Schedule
    gpu: str

    @property
    def width(self) -> tuple[int, int]:
        """Channels and filter groups."""
        return self.spec.channels, self.spec.filter.groups


def member(spec: OpSpec, chosen: Candidate, gpu: Target) -> Member:
    """A width with the schedule that was taken for it."""
    tuned = any(not origin.startswith("default") for origin in chosen.origins.values())
    return Member(spec, chosen.schedule, gpu_name(gpu) if tuned else "")


def text_of(family: Sequence[Member], plan: Plan) -> Source:
    """The file that serves a family."""
    own, *others = family
    widths = [(m.spec, m.schedule, m.gpu) for m in others]
    return page(emit(own.spec, plan, own.schedule, own.gpu, widths))


def said(text: str) -> dict[str, Any]:
    """What the text of a generated file says of its operator, plan and configs, as far as it can
    be read; nothing of it is executed.
    """
    found: dict[str, Any] = {}
    with suppress(*_UNREADABLE):
        for statement in ast.parse(text).body:
            match statement:
                case ast.Assign([ast.Name("SPEC" | "PLAN" | "CONFIGS" as name)], value):
                    with suppress(*_UNREADABLE):
                        found[name] = ast.literal_eval(value)
    return found


def members(spec: OpSpec, plan: Plan, configs: Mapping[Any, Any]) -> list[Member]:
    """The widths of a file's table, that of the file first; none if it is no such table.

    Raises:
        Sh2genError: K codes for a config that is not legal here.
    """
    found = []
    for key, config in configs.items():
        try:
            gpu, channels, groups = key
            own = spec.with_width(channels, groups)
            found.append(Member(own, schedule(own, plan, config), gpu))
        except (TypeError, ValueError, AttributeError):
            return []
    return found if found and found[0].width == (spec.channels, spec.filter.groups) else []


def kept(path: Path, family: Sequence[Member], plan: Plan, gpu: Target) -> tuple[Member, ...]:
    """Other widths of the file that is there, and configs of other GPUs, if it was verified and
    this sh2gen writes that file for the operator of this family: what is compiled for one width
    and GPU leaves the others as they are.
    """
    try:
        text = read_text(path)
        configs = said(text).get("CONFIGS")
        there = members(family[0].spec, plan, configs) if isinstance(configs, dict) else []
    except (OSError, Sh2genError):
        return ()
    if not there or statement(text) == UNVERIFIED or not intact(text):
        return ()
    if not same_program(text, text_of(there, plan).text):
        return ()
    own = {(name, m.width) for m in family for name in ("", m.gpu, gpu_name(gpu))}
    return tuple(m for m in there if (m.gpu, m.width) not in own)


def lost(path: Path, source: Source) -> str:
    """What the file that is there serves and this one will not; nothing if that is nothing."""
    try:
        before = said(read_text(path)).get("CONFIGS")
    except (OSError, Sh2genError):
        return ""
    keys = [k for k in before if isinstance(k, tuple)] if isinstance(before, dict) else []
    served = {key[1:] for key in source.configs}
    gone = dict.fromkeys(k[1:] for k in keys if k[1:] not in served)
    return ", ".join(f"{channels} channels in {groups} groups" for channels, groups in gone)
