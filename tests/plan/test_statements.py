"""Every statement has a meaning and a cost, and what is none has neither."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from sh2gen.cost.work import work
from sh2gen.lower import plans
from sh2gen.plan import blocks, edges, modes, statements
from sh2gen.plan.interpret import run
from sh2gen.plan.program import TileProgram
from sh2gen.plan.statements import Statement
from sh2gen.plan.values import Layout
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from tests.strategies import MODES, PAIRS, TAPS
from tests.strategies_schedules import random_tensors


def classes(module: Any) -> Iterator[type[Statement]]:
    """The statements that a module defines."""
    for found in vars(module).values():
        own = inspect.isclass(found) and found.__module__ == module.__name__
        if own and issubclass(found, Statement) and found not in (Statement, edges.Edge):
            yield found


CLASSES = [kind for module in (statements, blocks, modes, edges) for kind in classes(module)]
STATE = {"initial": True, "final": True}


def make(**fields: Any) -> OpSpec:
    gates = {"pre": True, "post": True}
    base = {"op": "probe", "channels": 4, "featurizer": {"length": 3}, "gates": gates}
    return spec_from_dict(base | {"filter": TAPS, "skip": "channel"} | fields)


@cache
def programs() -> tuple[tuple[OpSpec, TileProgram], ...]:
    """The tile programs of all plans of a few operators, also in phases."""
    found: list[tuple[OpSpec, TileProgram]] = []
    for spec in (
        make(),
        make(state=STATE),
        make(filter=MODES, state=STATE),
        make(filter=PAIRS, state=STATE),
    ):
        for plan in plans(spec):
            for kernel in (*plan.kernels, *plan.first_kernels, *plan.split_kernels):
                found.append((spec, kernel.program))
                found += [(spec, kernel.phased(variant)) for variant in kernel.variants]
    return tuple(found)


def holding(kind: type[Statement]) -> Iterator[tuple[OpSpec, TileProgram, Statement]]:
    for spec, program in programs():
        for statement in program:
            if type(statement) is kind:
                yield spec, program, statement
                break


def mean(spec: OpSpec, program: TileProgram) -> Any:
    """What the fold of meanings makes of a program."""
    inputs, parameters, dy = random_tensors(spec, 1, 21)
    return run(program, spec, dict.fromkeys(program.loads, dy) | inputs, parameters)


def cost(spec: OpSpec, program: TileProgram, *body: Statement) -> Any:
    """What the fold of costs makes of a body."""
    kernel = SimpleNamespace(program=dataclasses.replace(program, body=body))
    return work.__wrapped__(kernel, Layout.BDL, spec)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_statement_has_a_meaning_and_a_cost(kind: type[Statement]) -> None:
    found = list(holding(kind))
    assert found, "no plan has one"
    for spec, program, statement in found:
        mean(spec, program)
        cost(spec, program, statement)


@dataclasses.dataclass(frozen=True, slots=True)
class Unknown(Statement):
    def __str__(self) -> str:
        return "y = mystery(x)"


def test_an_unknown_statement_has_none() -> None:
    spec, program = programs()[0]
    mean(spec, program)
    strange = dataclasses.replace(program, body=(*program.body, Unknown()))
    with pytest.raises(AssertionError, match=r"y = mystery\(x\): no meaning"):
        mean(spec, strange)
    with pytest.raises(AssertionError, match=r"y = mystery\(x\): no cost"):
        cost(spec, program, *strange.body)
