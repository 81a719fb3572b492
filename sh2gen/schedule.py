"""Schedules: numbers for the symbols of a plan, and the spaces they are taken from (layer 3).

A space is read from `schedules/<algorithm>.yaml`: knobs, constraints written once with the reason
for each, and defaults. The same constraints refuse a user's schedule, prune a search and filter
the schedules that tests draw.
"""

from __future__ import annotations

import ast
import difflib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import sympy
import yaml

from sh2gen.errors import Sh2genError
from sh2gen.plan import Plan
from sh2gen.resources import folder
from sh2gen.spec import Bias, DType, OpSpec, Precision, Skip

Numbers = tuple[tuple[str, int], ...]
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One point of a plan's spaces: what the generated file gets as numbers.

    Attributes:
        plan: name of the plan.
        forward: knob and value, in the order of the schedule file; empty if there is no kernel.
        backward: likewise.
    """

    plan: str
    forward: Numbers = ()
    backward: Numbers = ()

    def numbers(self, direction: str) -> Numbers:
        return self.forward if direction == "forward" else self.backward

    def twin(self, direction: str) -> dict[str, int]:
        """The numbers of a kernel's twin for sm_90: 128 rows of products, blocks of 64 steps, 8
        warps. Empty if there is none.
        """
        numbers = dict(self.numbers(direction))
        tiles = numbers.get("TILES_SM90", 0)
        if not tiles:
            return {}
        channels = numbers["BLOCK_D"]
        shape = {"BLOCK_D": channels, "SEGMENTS": 128 // channels, "BLOCK_T": 64}
        return shape | {"TILES": tiles, "num_warps": 8}

    def __str__(self) -> str:
        parts = [
            f"{direction}: "
            # A 0 is no number: it leaves the choice to the compiler.
            + " ".join(f"{name}={value}" for name, value in self.numbers(direction) if value)
            for direction in DIRECTIONS
            if self.numbers(direction)
        ]
        return "; ".join(parts) or "no numbers"


@dataclass(frozen=True, slots=True)
class Constraint:
    """A relation between knobs and facts of the operator, and why it must hold."""

    that: str
    because: str

    @property
    def relation(self) -> Any:
        return _relation(self.that)

    def holds(self, values: Mapping[str, int]) -> bool:
        return _holds(self.that, values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The legal numbers of one direction of one plan of one operator."""

    knobs: tuple[tuple[str, tuple[int, ...]], ...]
    constraints: tuple[Constraint, ...]
    facts: tuple[tuple[str, int], ...]
    default: Numbers

    def violations(self, values: Mapping[str, int]) -> tuple[Constraint, ...]:
        """The constraints that do not hold."""
        known = dict(self.facts) | dict(values)
        return tuple(c for c in self.constraints if not c.holds(known))

    def points(self) -> Iterator[Numbers]:
        """Every legal choice of numbers."""
        names = [name for name, _ in self.knobs]
        for choice in itertools.product(*(values for _, values in self.knobs)):
            if not self.violations(dict(zip(names, choice, strict=True))):
                yield tuple(zip(names, choice, strict=True))

    def repairs(self, values: Mapping[str, int], kept: Iterable[str]) -> Numbers:
        """Knobs beside the kept ones that alone make these values legal, and the nearest number
        that does.
        """
        found = []
        for name, numbers in self.knobs:
            at = numbers.index(values[name])
            nearest = sorted(numbers, key=lambda n: abs(numbers.index(n) - at))
            legal = (n for n in nearest if not self.violations({**values, name: n}))
            if name not in kept and (number := next(legal, None)) is not None:
                found.append((name, number))
        return tuple(found)

    def check(self, direction: str, changes: Mapping[str, int]) -> Numbers:
        """The default with some knobs changed.

        Raises:
            Sh2genError: K001 unknown knob, K002 illegal value, K003 violated constraint.
        """
        legal = dict(self.knobs)
        for name, value in changes.items():
            if name not in legal:
                if not legal:
                    raise Sh2genError(
                        "K001",
                        f"unknown knob `{name}` ({direction}): this plan has no kernels to tune",
                        help="leave it out, or take a plan with kernels; "
                        "`sh2gen explain` lists the plans",
                    )
                near = difflib.get_close_matches(name, legal, n=1, cutoff=0.5)
                raise Sh2genError(
                    "K001",
                    f"unknown knob `{name}` ({direction})",
                    help=f"did you mean `{near[0]}`?" if near else f"one of {', '.join(legal)}",
                )
            if value not in legal[name]:
                raise Sh2genError(
                    "K002",
                    f"{direction} {name} = {value} is not allowed",
                    help="one of " + ", ".join(map(str, legal[name])),
                )
        values = dict(self.default) | dict(changes)
        for constraint in self.violations(values):
            numbers = ", ".join(f"{k} = {v}" for k, v in values.items() if v)
            ways = " or ".join(f"{k} to {v}" for k, v in self.repairs(values, changes))
            raise Sh2genError(
                "K003",
                f"{direction} schedule violates {constraint.that}: {constraint.because}",
                help=f"change {ways} too; given {numbers}" if ways else f"given {numbers}",
            )
        return tuple(values.items())


def space(spec: OpSpec, plan: Plan, direction: str) -> Space:
    """The space of one direction of a plan; empty if it has no kernel there."""
    text = _read(plan.algorithm)
    facts = _facts(spec)
    here = {direction, plan.layout.value}
    rules = [rule for rule in text["require"] if here.issuperset(rule.get("only", ()))]
    knobs = {
        name: {how: values for how, values in kind.items() if how != "only"}
        for name, kind in text["knobs"].items()
        if here.issuperset(kind.get("only", ()))
    }
    default = _first(text["default"].get(plan.layout.value, {}).get(direction, {}), facts)
    return Space(
        knobs=tuple((name, _values(kind)) for name, kind in knobs.items()),
        constraints=tuple(Constraint(rule["that"], rule["because"]) for rule in rules),
        facts=tuple(facts.items()),
        default=tuple((name, default[name]) for name in knobs) if default else (),
    )


def _facts(spec: OpSpec) -> dict[str, int]:
    """What constraints and defaults may refer to, beside knobs."""
    narrow = spec.dtype.io is DType.BFLOAT16
    return {
        "CHANNELS": spec.channels,
        "WIDTH": spec.group_width,
        "WIDTH2": 1 << (spec.group_width - 1).bit_length(),
        "OPERAND": 2 if narrow and spec.precision is not Precision.EXACT else 4,
        "K": spec.filter.length or 0,
        "MODES": spec.filter.state_size,
        "PAIRS": int(spec.filter.pairs),
        "STATEFUL": int(spec.state is not None),
        "INPUTS": len(spec.inputs),
        "F": spec.featurizer.length if spec.featurizer else 1,
        "TERMS": (spec.skip is not Skip.NONE) + (spec.bias is not Bias.NONE),
    }


def interpreter_schedule(spec: OpSpec, plan: Plan) -> Schedule:
    """Numbers with which a small twin of the operator runs quickly under Triton's interpreter."""
    cases = _read(plan.algorithm)["interpret"].get(plan.layout.value, {})
    numbers = {direction: _first(case, _facts(spec)) for direction, case in cases.items()}
    return schedule(spec, plan, numbers)


def schedule(
    spec: OpSpec, plan: Plan, changes: Mapping[str, Mapping[str, int]] | None = None
) -> Schedule:
    """The default schedule of a plan, with some numbers changed by direction.

    Raises:
        Sh2genError: K001, K002, K003 for an unknown knob, an illegal value, a violated constraint.
    """
    changes = changes or {}
    for direction in changes:
        if direction not in DIRECTIONS:
            raise Sh2genError(
                "K001", f"unknown direction `{direction}`", help="forward or backward"
            )
    numbers = {
        direction: space(spec, plan, direction).check(direction, changes.get(direction, {}))
        for direction in DIRECTIONS
    }
    if plan.states:
        tiles = {
            direction: values["SEGMENTS"] * values["BLOCK_T"]
            for direction, values in ((name, dict(found)) for name, found in numbers.items())
        }
        if len(set(tiles.values())) > 1:
            raise Sh2genError(
                "K003",
                "forward and backward have tiles of different length, "
                f"{tiles['forward']} and {tiles['backward']} steps: backward starts from the "
                "states that forward keeps before its tiles",
                help="make SEGMENTS * BLOCK_T the same in both directions",
            )
    return Schedule(plan=plan.name, **numbers)


def _first(cases: Any, facts: Mapping[str, int]) -> dict[str, int]:
    """The numbers of one case, or of the first of several whose `when` holds for the operator."""
    for case in cases if isinstance(cases, list) else [cases]:
        if all(_holds(relation, facts) for relation in case.get("when", ())):
            return {name: _number(value, facts) for name, value in case.items() if name != "when"}
    raise KeyError("no default applies")


def _number(value: int | str, facts: Mapping[str, int]) -> int:
    """A default: a number, or an expression in facts of the operator."""
    if isinstance(value, int):
        return value
    expression = _expression(ast.parse(value, mode="eval").body)
    return int(expression.subs(facts))


@cache
def _read(algorithm: str) -> dict[str, Any]:
    path = folder("schedules") / f"{algorithm}.yaml"
    try:
        text = yaml.safe_load(path.read_text())
        assert text["algorithm"] == algorithm
        for rule in text["require"]:
            _relation(rule["that"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, AssertionError, SyntaxError) as error:
        raise Sh2genError("K004", f"{path} is malformed: {error!r}") from error
    return dict(text)


def _values(kind: Mapping[str, list[int]]) -> tuple[int, ...]:
    """The values of a knob: {one_of: [...]}, {pow2: [low, high]} or {range: [low, high]}."""
    ((name, numbers),) = kind.items()
    if name == "one_of":
        return tuple(numbers)
    low, high = numbers
    if name == "range":
        return tuple(range(low, high + 1))
    if name == "pow2":
        return tuple(1 << e for e in range(low.bit_length() - 1, high.bit_length()))
    raise KeyError(name)


def _holds(text: str, values: Mapping[str, int]) -> bool:
    names, function = _compiled(text)
    return bool(function(*(values[name] for name in names)))


@cache
def _compiled(text: str) -> tuple[tuple[str, ...], Any]:
    """A relation as a function of plain integers: sympy's own substitution is a thousand times
    slower.
    """
    symbols = sorted(_relation(text).free_symbols, key=str)
    return tuple(map(str, symbols)), sympy.lambdify(symbols, _relation(text), "math")


_RELATIONS = {
    ast.LtE: sympy.Le,
    ast.GtE: sympy.Ge,
    ast.Lt: sympy.Lt,
    ast.Gt: sympy.Gt,
    ast.Eq: sympy.Eq,
}


@cache
def _relation(text: str) -> Any:
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
