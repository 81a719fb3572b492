"""The table of configs of a generated file, and its rules for widths that the table lacks."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from sh2gen.plan.plan import Plan, Role
from sh2gen.schedule.config import Schedule
from sh2gen.schedule.expressions import holds, number_of
from sh2gen.schedule.facts import facts_of, tap_terms
from sh2gen.schedule.knobs import read_schedules
from sh2gen.spec.language import DType, FilterKind, Precision
from sh2gen.spec.operator import OpSpec

# Facts that a file asks for when it is told its channels and groups, and what it calls them.
_OPEN = {
    "CHANNELS": "channels",
    "WIDTH": "width",
    "WIDTH2": "padded_width",
    "TAP_TERMS": "tap_terms(groups)",
    "SHARED": "shared",
    "PRODUCT_ROWS": "product_rows",
}
_LINES = {
    "width": "width = channels // groups",
    "padded_width": "padded_width = 1 << (width - 1).bit_length()",
    "shared": "shared, product_rows = limits_of(device)",
}


def entry(plan: Plan, schedule: Schedule) -> dict[str, dict[str, int]]:
    """The config of each kernel."""
    return {kernel.role.value: dict(schedule.config(kernel.role)) for kernel in plan.kernels}


def rules(spec: OpSpec, plan: Plan) -> list[str]:
    """Lines of a function that computes the default config of each role from facts that are open:
    those of `schedules/` for this operator.
    """
    facts = {name: value for name, value in facts_of(spec).items() if name not in _open(spec)}
    defaults = read_schedules(plan.algorithm)["default"].get(plan.layout.value, {})
    lines: list[str] = []
    for kernel in plan.kernels:
        cases = defaults[kernel.role.value]
        lines += _cases(kernel.role, cases if isinstance(cases, list) else [cases], facts)
    names = {
        node.id for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.Name)
    }
    names |= {"width"} if "padded_width" in names else set()
    names |= {"shared"} if "product_rows" in names else set()
    return [line for name, line in _LINES.items() if name in names] + lines


def terms(spec: OpSpec) -> str:
    """How many operands of products a tap is, in terms of `groups` (`facts.tap_terms`)."""
    if spec.precision is not Precision.BALANCED:
        return "1"
    if spec.groups_in_full is not None:
        return str(tap_terms(spec))
    explicit = spec.filter.kind is FilterKind.EXPLICIT and spec.filter.length is not None
    each = max(1, spec.filter.length // 4) if explicit and spec.filter.length else 1
    return f"2 if {f'{each} * ' * (each > 1)}groups < 32 else 1"


def _open(spec: OpSpec) -> set[str]:
    """The facts that are open for an operator."""
    narrow = spec.dtype.io is not DType.FLOAT32 and not terms(spec).isdigit()
    return set(_OPEN) - (set() if narrow else {"TAP_TERMS"})


def _cases(role: Role, cases: Sequence[Mapping[str, Any]], facts: Mapping[str, int]) -> list[str]:
    """`if` and `else` of the cases that these facts leave open."""
    lines: list[str] = []
    for case in cases:
        conditions = [_relation(text, facts) for text in case.get("when", ())]
        if False in conditions:
            continue
        left = [text for text in conditions if isinstance(text, str)]
        values = {name: _value(value, facts) for name, value in case.items() if name != "when"}
        literal = ", ".join(f'"{name}": {value}' for name, value in values.items())
        assignment = f"{role} = {{{literal}}}"
        if not left and not lines:
            return [assignment]
        if not left:
            return [*lines, "else:", f"    {assignment}"]
        lines += [f"{'elif' if lines else 'if'} {' and '.join(left)}:", f"    {assignment}"]
    return [*lines, "else:", '    raise ValueError(f"{OP}: no config for {channels} channels")']


def _relation(text: str, facts: Mapping[str, int]) -> bool | str:
    """A relation, decided or as text in open facts."""
    left = _substituted(text, facts)
    return holds(text, facts) if left is None else left


def _value(value: int | str, facts: Mapping[str, int]) -> int | str:
    """A number, or text in open facts."""
    if isinstance(value, int):
        return value
    left = _substituted(value, facts)
    return number_of(value, facts) if left is None else left


def _substituted(text: str, facts: Mapping[str, int]) -> str | None:
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
    return ast.unparse(tree) if left else None
