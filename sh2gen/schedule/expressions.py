"""Relations and expressions of schedule files, from text that is never evaluated."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from typing import Any

import sympy


def first_case(cases: Any, facts: Mapping[str, int]) -> dict[str, int]:
    """The values of one case, or of the first of several whose `when` holds for the operator."""
    for case in cases if isinstance(cases, list) else [cases]:
        if all(holds(relation, facts) for relation in case.get("when", ())):
            return {
                name: number_of(value, facts) for name, value in case.items() if name != "when"
            }
    raise KeyError("no default applies")


def number_of(value: int | str, facts: Mapping[str, int]) -> int:
    """A number, or the value of an expression in facts of the operator."""
    if isinstance(value, int):
        return value
    names, function = compiled_number(value)
    return int(function(*(facts[name] for name in names)))


def holds(text: str, values: Mapping[str, int]) -> bool:
    names, function = compiled(text)
    return bool(function(*(values[name] for name in names)))


@cache
def compiled(text: str) -> tuple[tuple[str, ...], Any]:
    """A relation as a function of plain integers: sympy's own substitution is a thousand times
    slower.
    """
    symbols = sorted(relation(text).free_symbols, key=str)
    return tuple(map(str, symbols)), sympy.lambdify(symbols, relation(text), "math")


@cache
def compiled_number(text: str) -> tuple[tuple[str, ...], Any]:
    """An expression as a function of plain integers."""
    expression = _expression(ast.parse(text, mode="eval").body)
    symbols = sorted(expression.free_symbols, key=str)
    return tuple(map(str, symbols)), sympy.lambdify(symbols, expression, "math")


_RELATIONS = {
    ast.LtE: sympy.Le,
    ast.GtE: sympy.Ge,
    ast.Lt: sympy.Lt,
    ast.Gt: sympy.Gt,
    ast.Eq: sympy.Eq,
}


@cache
def relation(text: str) -> Any:
    """A comparison such as `BLOCK_T >= ROWS` as a sympy relation, without evaluating any text."""
    tree = ast.parse(text, mode="eval").body
    if not isinstance(tree, ast.Compare) or len(tree.ops) != 1:
        raise SyntaxError(f"`{text}` is not one comparison")
    relation = _RELATIONS.get(type(tree.ops[0]))
    if relation is None:
        raise SyntaxError(f"`{text}` compares with something other than <, <=, ==, >=, >")
    return relation(_expression(tree.left), _expression(tree.comparators[0]))


def _expression(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int(value)):
            return sympy.Integer(value)
        case ast.Name(id=name):
            return sympy.Symbol(name)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _expression(left) + _expression(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _expression(left) - _expression(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _expression(left) * _expression(right)
        case ast.BinOp(left=left, op=ast.FloorDiv(), right=right):
            return sympy.floor(_expression(left) / _expression(right))
        case ast.Call(func=ast.Name(id="min"), args=[left, right], keywords=[]):
            return sympy.Min(_expression(left), _expression(right))
    raise SyntaxError(f"`{ast.unparse(node)}` is not made of names, integers, +, -, *, // and min")
