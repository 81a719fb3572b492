"""The tables of widths and configs of a generated file, and its rules for what these lack."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sh2gen.emit.text import literal
from sh2gen.plan.kernel import Role
from sh2gen.plan.plan import Plan
from sh2gen.schedule.config import Schedule
from sh2gen.schedule.expressions import holds, number_of
from sh2gen.schedule.facts import facts_of, tap_terms
from sh2gen.schedule.knobs import read_schedules
from sh2gen.schedule.space import file_of
from sh2gen.spec.language import DType, FilterKind, Precision
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import known

Key = tuple[str, int, int]  # what torch calls a GPU, channels, groups

# Facts that a file asks for when it is told its channels and groups: what it calls them, and how
# it finds them.
_OPEN = {
    "CHANNELS": "channels",
    "WIDTH": "width",
    "WIDTH2": "padded_width",
    "TAP_TERMS": "tap_terms(groups)",
    "SHARED": "shared",
    "PRODUCT_ROWS": "product_rows",
}
_LINES = {
    "WIDTH": "width = channels // groups",
    "WIDTH2": "padded_width = 1 << (channels // groups - 1).bit_length()",
    "SHARED": "shared = shared_memory(device)",
    "PRODUCT_ROWS": "product_rows = rows_of_products(device)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """Channels and filter groups that a generated file is for, on one GPU.

    Attributes:
        batch: the least of the calls that it is for.
        gpu: what torch calls the GPU; empty for every device.
        schedule: the config that it takes there; None for the default.
    """

    channels: int
    groups: int
    batch: int
    gpu: str = ""
    schedule: Schedule | None = None

    @property
    def width(self) -> tuple[int, int]:
        return self.channels, self.groups

    @property
    def key(self) -> Key:
        return self.gpu, self.channels, self.groups


def width_of(spec: OpSpec, gpu: str = "", schedule: Schedule | None = None) -> Width:
    """The width of an operator."""
    return Width(
        channels=spec.channels,
        groups=spec.filter.groups,
        batch=min(workload.batch for workload in spec.workloads),
        gpu=gpu,
        schedule=schedule,
    )


def configured(plan: Plan) -> tuple[Role, ...]:
    """The roles whose kernels take a config of their own."""
    return (*plan.roles, Role.DECODE) if plan.step is not None else plan.roles


def entry(plan: Plan, schedule: Schedule) -> dict[str, dict[str, int]]:
    """The config of each kernel."""
    return {role.value: dict(schedule.config(role)) for role in configured(plan)}


def entries(plan: Plan, widths: Sequence[Width]) -> dict[Key, dict[str, dict[str, int]]]:
    """The configs that a file states, by GPU, channels and groups."""
    return {w.key: entry(plan, w.schedule) for w in widths if w.schedule is not None}


def tables(widths: Sequence[Width], configs: Mapping[Key, Mapping[str, Mapping[str, int]]]) -> str:
    """The lines of a file that hold its widths and configs."""
    batches = ", ".join(f"{w}: {batch}" for w, batch in {w.width: w.batch for w in widths}.items())
    lines = [f"WIDTHS = {{{batches}}}  # least batch by channels and groups"]
    lines.append(f"CONFIGS: dict = {{{'' if configs else '}'}  # by GPU, channels and groups")
    for key, kernels in configs.items():
        lines.append(f"    {literal(key, 4)}: {{")
        lines += [f'        "{role}": {literal(one, 8, 19)},' for role, one in kernels.items()]
        lines.append("    },")
    capabilities = {gpu: found for gpu, *_ in configs if (found := capability(gpu)) is not None}
    what = "of these GPUs, whose configs serve others of the same"
    lines += ["}"] * bool(configs) + [
        f"CAPABILITIES: dict = {literal(capabilities, 0, 21)}  # {what}"
    ]
    return "\n".join(lines)


def capability(gpu: str) -> tuple[int, int] | None:
    """The compute capability of what torch calls a GPU, if it is known."""
    for one in known():
        if gpu and (gpu == one.device_name or re.fullmatch(one.device_name, gpu)):
            return divmod(one.capability, 10)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What computes the default config of each role in a file.

    Attributes:
        lines: of a function that is told channels, groups and a device.
        facts: those that it asks for.
        batched: whether configs say how many programs are wanted of a whole batch.
    """

    lines: tuple[str, ...]
    facts: frozenset[str]
    batched: bool


def rules(spec: OpSpec, plan: Plan) -> Rules:
    """The rules of `schedules/` for this operator, but for what is known of it."""
    facts = {name: value for name, value in facts_of(spec).items() if name not in _open(spec)}
    lines: list[str] = []
    asked: set[str] = set()
    batched = False
    for role in configured(plan):
        text = read_schedules(file_of(plan.algorithm, role.value))
        cases = text["default"][plan.layout.value][role.value]
        cases = cases if isinstance(cases, list) else [cases]
        batched |= any("PROGRAMS" in case for case in cases)
        lines += _cases(role, cases, facts, asked)
    found = [line for name, line in _LINES.items() if name in asked]
    return Rules(lines=(*found, *lines), facts=frozenset(asked), batched=batched)


def terms(spec: OpSpec) -> str:
    """How many operands of products a tap is, in terms of `groups` (`facts.tap_terms`)."""
    if spec.precision is not Precision.BALANCED:
        return "1"
    if spec.groups_in_full is not None:
        return str(tap_terms(spec))
    explicit = spec.filter.kind is FilterKind.EXPLICIT and spec.filter.length is not None
    each = max(1, spec.filter.length // 4) if explicit and spec.filter.length else 1
    if each >= 32:
        return "1"
    return f"2 if {f'{each} * ' * (each > 1)}groups < 32 else 1"


def _open(spec: OpSpec) -> set[str]:
    """The facts that are open for an operator."""
    narrow = spec.dtype.io is not DType.FLOAT32 and not terms(spec).isdigit()
    return set(_OPEN) - (set() if narrow else {"TAP_TERMS"})


def _cases(
    role: Role, cases: Sequence[Mapping[str, Any]], facts: Mapping[str, int], asked: set[str]
) -> list[str]:
    """`if` and `else` of the cases that these facts leave open; adds to the facts asked for."""
    lines: list[str] = []
    earlier: list[set[_Open]] = []
    for case in cases:
        conditions = [_relation(text, facts) for text in case.get("when", ())]
        if False in conditions:
            continue
        left = [found for found in conditions if isinstance(found, _Open)]
        if any(before <= set(left) for before in earlier):
            continue
        earlier.append(set(left))
        values = {name: _value(value, facts) for name, value in case.items() if name != "when"}
        for found in (*left, *values.values()):
            asked |= found.names if isinstance(found, _Open) else set()
        literal = ", ".join(f'"{name}": {value}' for name, value in values.items())
        assignment = f"{role} = {{{literal}}}"
        if not left and not lines:
            return [assignment]
        if not left:
            return [*lines, "else:", f"    {assignment}"]
        test = " and ".join(map(str, left))
        lines += [f"{'elif' if lines else 'if'} {test}:", f"    {assignment}"]
    return [*lines, "else:", '    raise ValueError(f"{OP}: no config for {channels} channels")']


@dataclass(frozen=True, slots=True)
class _Open:
    """An expression of facts that are open."""

    text: str
    names: frozenset[str]

    def __str__(self) -> str:
        return self.text


def _relation(text: str, facts: Mapping[str, int]) -> bool | _Open:
    """A relation, decided or in open facts."""
    left = _substituted(text, facts)
    if left is None:
        return holds(text, facts)
    if left.names != {"TAP_TERMS"}:
        return left
    one, two = (holds(text, {**facts, "TAP_TERMS": terms}) for terms in (1, 2))
    if one == two:
        return one
    return _Open(f"{_OPEN['TAP_TERMS']} == {1 if one else 2}", left.names)


def _value(value: int | str, facts: Mapping[str, int]) -> int | _Open:
    """A number, or an expression of open facts."""
    if isinstance(value, int):
        return value
    left = _substituted(value, facts)
    return number_of(value, facts) if left is None else left


def _substituted(text: str, facts: Mapping[str, int]) -> _Open | None:
    """An expression with the facts that are known in place of their names; None if all are."""
    left = []

    class Known(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            if node.id in facts:
                return ast.Constant(facts[node.id])
            if node.id in _OPEN:
                left.append(node.id)
                return ast.parse(_OPEN[node.id], mode="eval").body
            return node  # a function

    tree = Known().visit(ast.parse(text, mode="eval")).body
    return _Open(ast.unparse(tree), frozenset(left)) if left else None
