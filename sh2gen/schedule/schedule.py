"""Schedules: numbers for the symbols of a plan, and the spaces they are taken from.

A space is read from `schedules/<algorithm>.yaml`: knobs, constraints written once with the reason
for each, defaults, and which of the legal numbers a search tries. The same constraints refuse a
user's schedule, prune a search and filter the schedules that tests draw.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import sympy
import yaml

from sh2gen.base.errors import Sh2genError
from sh2gen.base.resources import folder
from sh2gen.plan.plan import Plan
from sh2gen.spec.language import Bias, DType, FilterKind, OpSpec, Precision, Skip
from sh2gen.targets.target import Target, known

Numbers = tuple[tuple[str, int], ...]
Knobs = tuple[tuple[str, tuple[int, ...]], ...]
DIRECTIONS = ("forward", "backward")
# What a knob says beside its values: where there is one, for what, and what numbers mean that lack
# it because they are older.
_BESIDE = ("only", "means", "absent")
# What constraints, defaults and searches may refer to, beside knobs.
FACTS = {
    "CHANNELS": "channels of the operator",
    "WIDTH": "channels that share a filter",
    "WIDTH2": "WIDTH, rounded up to a power of two",
    "OPERAND": "bytes that products read for an element: 2 for bfloat16, else 4",
    "K": "taps of the filter; 0 for a modal one",
    "MODES": "numbers of a channel's state, two for a pair of complex modes; 0 without modes",
    "PAIRS": "1 if modes are pairs of complex ones",
    "STATEFUL": "1 if kernels take and give a state, for which they need more registers",
    "INPUTS": "activations that forward reads, 1 to 3",
    "F": "taps of the featurizer, 1 without one",
    "TAP_TERMS": "operands whose sum a tap is: 2 where few taps carry the result",
    "TERMS": "how many of skip and bias there are",
    "BATCH": "the least batch of the operator's workloads",
    "SHARED": "bytes of shared memory that a program may take on the target",
    "PRODUCT_ROWS": "rows of a product instruction of the target: 16 where a warp multiplies "
    "alone, of operands in registers, 64 or more where four warps multiply together",
}


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

    knobs: Knobs
    constraints: tuple[Constraint, ...]
    facts: tuple[tuple[str, int], ...]
    default: Numbers

    def violations(self, values: Mapping[str, int]) -> tuple[Constraint, ...]:
        """The constraints that do not hold."""
        known = dict(self.facts) | dict(values)
        return tuple(c for c in self.constraints if not c.holds(known))

    def points(self) -> Iterator[Numbers]:
        """Every legal choice of numbers, the last knob's changing fastest."""
        return _choices(self.knobs, self.constraints, self.facts, Counter())

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a search tries of one direction of one plan of one operator.

    The sizes of the products that the schedule file lists add up to the points but the default,
    what was dropped, and what was repeated.

    Attributes:
        points: legal numbers without duplicates: the default, then in the order of the file.
        dropped: constraints that listed numbers violate, and how many candidates each dropped;
            a candidate counts for the first of them that its knobs decide.
        repeated: candidates that were points already.
    """

    points: tuple[Numbers, ...]
    dropped: tuple[tuple[Constraint, int], ...]
    repeated: int


def space(spec: OpSpec, plan: Plan, direction: str, target: Target | None = None) -> Space:
    """The space of one direction of a plan on a target, by default that of `targets`; empty if it
    has no kernel there.
    """
    text = _read(plan.algorithm)
    facts = _facts(spec, target)
    here = {direction, plan.layout.value}
    rules = [rule for rule in text["require"] if here.issuperset(rule.get("only", ()))]
    knobs = _knobs(text, plan.layout.value, direction)
    default = _first(text["default"].get(plan.layout.value, {}).get(direction, {}), facts)
    return Space(
        knobs=tuple(knobs.items()),
        constraints=tuple(Constraint(rule["that"], rule["because"]) for rule in rules),
        facts=tuple(facts.items()),
        default=tuple((name, default[name]) for name in knobs) if default else (),
    )


def search_space(spec: OpSpec, plan: Plan, direction: str, target: Target | None = None) -> Survey:
    """The numbers of one direction of a plan that are worth trying, the default first.

    Without kernels, or if the schedule file lists nothing for the layout and direction, that is
    the default alone.

    Raises:
        Sh2genError: K004 if an expression of the schedule file gives an illegal number here.
    """
    where = space(spec, plan, direction, target)
    facts, default = dict(where.facts), dict(where.default)
    points = {where.default: None}
    dropped: Counter[Constraint] = Counter()
    repeated = 0
    for knobs in _blocks(plan, direction, facts):
        tried = tuple((name, knobs.get(name, (default[name],))) for name, _ in where.knobs)
        for (name, legal), (_, values) in zip(where.knobs, tried, strict=True):
            if strange := set(values) - set(legal):
                place = f"search of {plan.layout.value} {direction}: {name}"
                raise _malformed(plan.algorithm, _not_legal(place, strange.pop(), legal))
        for point in _choices(tried, where.constraints, where.facts, dropped):
            repeated += point in points
            points[point] = None
    return Survey(
        points=tuple(points),
        dropped=tuple((c, dropped[c]) for c in where.constraints if dropped[c]),
        repeated=repeated,
    )


def _blocks(
    plan: Plan, direction: str, facts: Mapping[str, int]
) -> Iterator[dict[str, tuple[int, ...]]]:
    """The values of the knobs that each block names, of blocks whose `when` holds."""
    search = _read(plan.algorithm).get("search", {})
    for block in search.get(plan.layout.value, {}).get(direction, []):
        if all(_holds(relation, facts) for relation in block.get("when", ())):
            yield {
                name: tuple(dict.fromkeys(_number(value, facts) for value in values))
                for name, values in block.items()
                if name != "when"
            }


def neighbours(points: Iterable[Numbers], numbers: Numbers) -> tuple[Numbers, ...]:
    """Of some points those that differ from `numbers` in one knob, by the next smaller or larger
    value that there is with all others equal; knob by knob, smaller first.

    `numbers` need not be one of the points.
    """
    beside: dict[str, dict[int, Numbers]] = {name: {} for name, _ in numbers}
    for point in points:
        differing = [b for a, b in zip(numbers, point, strict=True) if a != b]
        if len(differing) == 1:
            ((name, value),) = differing
            beside[name][value] = point
    found = []
    for name, at in numbers:
        smaller = max((v for v in beside[name] if v < at), default=None)
        larger = min((v for v in beside[name] if v > at), default=None)
        found += [beside[name][v] for v in (smaller, larger) if v is not None]
    return tuple(found)


def coupling(plan: Plan, numbers: Numbers) -> int | None:
    """What both directions of a plan must agree on: the steps of a tile where forward keeps
    states for backward, None otherwise.
    """
    if not plan.states:
        return None
    values = dict(numbers)
    return values["SEGMENTS"] * values["BLOCK_T"]


def partner(
    spec: OpSpec, plan: Plan, direction: str, numbers: Numbers, target: Target | None = None
) -> Numbers:
    """Numbers of the other direction that `numbers` of this one may be scheduled with.

    The other direction's default if that agrees (`coupling`), else the point of its search space
    that agrees and is nearest to the default: with the fewest knobs changed, by the fewest steps.

    Raises:
        Sh2genError: K003 if no such point agrees.
    """
    (other,) = set(DIRECTIONS) - {direction}
    where = space(spec, plan, other, target)
    wanted = coupling(plan, numbers)
    default = dict(where.default)
    if coupling(plan, where.default) == wanted:
        return where.default
    indices = {name: values.index for name, values in where.knobs}

    def distance(point: Numbers) -> tuple[int, int]:
        steps = [abs(indices[name](v) - indices[name](default[name])) for name, v in point]
        return sum(map(bool, steps)), sum(steps)

    points = search_space(spec, plan, other, target).points
    agreeing = [point for point in points if coupling(plan, point) == wanted]
    if not agreeing:
        raise Sh2genError(
            "K003",
            f"{direction} has tiles of {wanted} steps, as no {other} numbers that are searched: "
            "backward starts from the states that forward keeps before its tiles",
            help="give numbers for both directions",
        )
    return min(agreeing, key=distance)


def _choices(
    knobs: Knobs,
    constraints: Sequence[Constraint],
    facts: Numbers,
    dropped: Counter[Constraint],
) -> Iterator[Numbers]:
    """Every choice of a value for each knob that keeps the constraints.

    A constraint is checked as soon as its knobs have values, and what it rules out is never
    enumerated, only counted in `dropped`.
    """
    place = {name: at for at, (name, _) in enumerate(knobs, start=1)}
    due: list[list[tuple[Constraint, tuple[str, ...], Any]]] = [[] for _ in range(len(knobs) + 1)]
    for constraint in constraints:
        needed, holds = _compiled(constraint.that)
        due[max((place.get(name, 0) for name in needed), default=0)].append(
            (constraint, needed, holds)
        )
    values = dict(facts)

    def choose(at: int) -> Iterator[Numbers]:
        for constraint, needed, holds in due[at]:
            if not holds(*(values[name] for name in needed)):
                dropped[constraint] += math.prod(len(numbers) for _, numbers in knobs[at:])
                return
        if at == len(knobs):
            yield tuple((name, values[name]) for name, _ in knobs)
            return
        name, numbers = knobs[at]
        for number in numbers:
            values[name] = number
            yield from choose(at + 1)

    return choose(0)


def operand_bytes(spec: OpSpec) -> int:
    """Bytes of an element as matrix products read it: 2 for bfloat16 that need not be exact."""
    narrow = spec.dtype.io is DType.BFLOAT16
    return 2 if narrow and spec.precision is not Precision.EXACT else 4


def tap_terms(spec: OpSpec, io: DType | None = None) -> int:
    """How many operands of products a tap is: two where few taps may carry all that comes out,
    one else. For activations of `io`: one of float32, which products read as it is.

    The rounding error of a tap is the same at all times and for all channels of its group. Where a
    result hangs on few taps, by bad luck most are rounded by nearly half a unit of the last place,
    which alone is 2.4 times what rounding costs on average. Of 32 filters luck evens out, or of as
    many taps that decay with nothing; two terms are `balanced` for the others too
    (docs/decisions/013).
    """
    carriers = spec.groups_in_full or spec.filter.groups
    if spec.filter.kind is FilterKind.EXPLICIT and spec.filter.length is not None:
        carriers *= max(1, spec.filter.length // 4)
    few = carriers < 32 and spec.precision is Precision.BALANCED
    return 2 if few and io is not DType.FLOAT32 else 1


def _facts(spec: OpSpec, target: Target | None = None) -> dict[str, int]:
    """The FACTS of an operator on a target, by default that of `targets`."""
    target = target or known()[0]
    return {
        "CHANNELS": spec.channels,
        "WIDTH": spec.group_width,
        "WIDTH2": 1 << (spec.group_width - 1).bit_length(),
        "OPERAND": operand_bytes(spec),
        "K": spec.filter.length or 0,
        "MODES": spec.filter.state_size,
        "PAIRS": int(spec.filter.pairs),
        "STATEFUL": int(spec.state is not None),
        "INPUTS": len(spec.inputs),
        "F": spec.featurizer.length if spec.featurizer else 1,
        "TAP_TERMS": tap_terms(spec, spec.dtype.io),
        "TERMS": (spec.skip is not Skip.NONE) + (spec.bias is not Bias.NONE),
        "BATCH": min(workload.batch for workload in spec.workloads),
        "SHARED": target.shared_per_block,
        "PRODUCT_ROWS": target.product_rows,
    }


def interpreter_schedule(spec: OpSpec, plan: Plan) -> Schedule:
    """Numbers with which a small twin of the operator runs quickly under Triton's interpreter."""
    cases = _read(plan.algorithm)["interpret"].get(plan.layout.value, {})
    numbers = {direction: _first(case, _facts(spec)) for direction, case in cases.items()}
    return schedule(spec, plan, numbers)


def schedule(
    spec: OpSpec,
    plan: Plan,
    changes: Mapping[str, Mapping[str, int]] | None = None,
    target: Target | None = None,
) -> Schedule:
    """The default schedule of a plan on a target, by default that of `targets`, with some numbers
    changed by direction.

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
        direction: space(spec, plan, direction, target).check(
            direction, changes.get(direction, {})
        )
        for direction in DIRECTIONS
    }
    tiles = {direction: coupling(plan, found) for direction, found in numbers.items()}
    if tiles["forward"] != tiles["backward"]:
        raise Sh2genError(
            "K003",
            "forward and backward have tiles of different length, "
            f"{tiles['forward']} and {tiles['backward']} steps: backward starts from the "
            "states that forward keeps before its tiles",
            help="make SEGMENTS * BLOCK_T the same in both directions",
        )
    return Schedule(plan=plan.name, **numbers)


def completed(plan: str, direction: str, numbers: Numbers) -> Numbers:
    """Numbers that were written down for a plan, with the knobs that have come since then at the
    values under which kernels are what they were (`absent` in the schedule file).

    What else they lack, or have too much, stays so: it is for others to refuse.
    """
    algorithm, _, rest = plan.partition("/")
    if not numbers or algorithm not in {path.stem for path in folder("schedules").glob("*.yaml")}:
        return numbers
    text, given = _read(algorithm), dict(numbers)
    names = list(_knobs(text, rest.partition("/")[0], direction))
    since = {
        name: text["knobs"][name]["absent"]
        for name in names
        if name not in given and "absent" in text["knobs"][name]
    }
    if not since:
        return numbers
    whole = given | since
    return tuple((name, whole.pop(name)) for name in names if name in whole) + tuple(whole.items())


def _first(cases: Any, facts: Mapping[str, int]) -> dict[str, int]:
    """The numbers of one case, or of the first of several whose `when` holds for the operator."""
    for case in cases if isinstance(cases, list) else [cases]:
        if all(_holds(relation, facts) for relation in case.get("when", ())):
            return {name: _number(value, facts) for name, value in case.items() if name != "when"}
    raise KeyError("no default applies")


def _number(value: int | str, facts: Mapping[str, int]) -> int:
    """A number, or the value of an expression in facts of the operator."""
    if isinstance(value, int):
        return value
    names, function = _compiled_number(value)
    return int(function(*(facts[name] for name in names)))


@cache
def _read(algorithm: str) -> dict[str, Any]:
    try:
        text = yaml.safe_load(_path(algorithm).read_text())
        assert text["algorithm"] == algorithm
        for rule in text["require"]:
            _relation(rule["that"])
        _check_search(text)
    except (OSError, yaml.YAMLError, KeyError, TypeError, AssertionError, SyntaxError) as error:
        raise _malformed(algorithm, repr(error)) from error
    except ValueError as error:
        raise _malformed(algorithm, str(error)) from error
    return dict(text)


def _path(algorithm: str) -> Path:
    return folder("schedules") / f"{algorithm}.yaml"


def _malformed(algorithm: str, why: str) -> Sh2genError:
    return Sh2genError("K004", f"{_path(algorithm)} is malformed: {why}")


def _not_legal(place: str, value: Any, legal: Iterable[int]) -> str:
    return f"{place} = {value} is not one of {', '.join(map(str, legal))}"


def _check_search(text: Mapping[str, Any]) -> None:
    """Raise ValueError, naming layout, direction and knob, if `search` is not of legal values."""
    search = text.get("search", {})
    if not isinstance(search, dict) or not all(isinstance(v, dict) for v in search.values()):
        raise ValueError("search: not lists of blocks by layout and direction")
    for layout, directions in search.items():
        for direction, blocks in directions.items():
            where = f"search of {layout} {direction}"
            if direction not in text["default"].get(layout, {}):
                raise ValueError(f"{where}: there is no such layout or direction")
            if not isinstance(blocks, list):
                raise ValueError(f"{where}: not a list of blocks")
            for block in blocks:
                _check_block(where, block, _knobs(text, layout, direction))


def _check_block(where: str, block: Any, knobs: Mapping[str, tuple[int, ...]]) -> None:
    if not isinstance(block, dict):
        raise ValueError(f"{where}: not a block but {block!r}")
    for name, values in block.items():
        place = f"{where}: {name}"
        if not isinstance(values, list) or not values:
            raise ValueError(f"{place}: not a list of values but {values!r}")
        if name != "when" and name not in knobs:
            raise ValueError(f"{place}: no such knob; one of {', '.join(knobs)}")
        for value in values:
            if isinstance(value, str):
                try:
                    names, _ = (_compiled if name == "when" else _compiled_number)(value)
                except SyntaxError as error:
                    raise ValueError(f"{place}: {error.msg}") from error
                if strange := set(names) - set(FACTS):
                    raise ValueError(f"{place}: `{strange.pop()}` in `{value}` is no fact")
            elif name == "when":
                raise ValueError(f"{place}: {value!r} is not a relation")
            elif type(value) is not int or value not in knobs[name]:
                raise ValueError(_not_legal(place, value, knobs[name]))


def _knobs(text: Mapping[str, Any], layout: str, direction: str) -> dict[str, tuple[int, ...]]:
    """The knobs that one layout and direction has, with their legal values."""
    return {
        name: _values(kind)
        for name, kind in text["knobs"].items()
        if {direction, layout}.issuperset(kind.get("only", ()))
    }


def _values(kind: Mapping[str, list[int]]) -> tuple[int, ...]:
    """The values of a knob: {one_of: [...]}, {pow2: [low, high]} or {range: [low, high]}."""
    ((name, numbers),) = ((how, given) for how, given in kind.items() if how not in _BESIDE)
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


@cache
def _compiled_number(text: str) -> tuple[tuple[str, ...], Any]:
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
