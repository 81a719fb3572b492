"""The body of a stream backward in time, split into phases between products."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import networkx as nx

from sh2gen.plan.blocks import Recall, Remember, Toeplitz
from sh2gen.plan.modes import ModalConv
from sh2gen.plan.program import Phases, TileProgram
from sh2gen.plan.statements import Statement
from sh2gen.plan.values import BLOCK, Kind, Operand


def phases(program: TileProgram) -> Phases | None:
    """The body in phases, or None if some of it needs both products that convolve at once.

    What is remembered is recalled where it is needed, unless a phase has its operands anyway: then
    it is computed again, and is not rounded.
    """
    body = list(program.body)
    ahead_end = 1 + max(
        (i for i, s in enumerate(body) if isinstance(s, Remember) and s.ahead), default=-1
    )
    rest = body[ahead_end:]
    products = tuple(s for s in rest if s.is_product)
    sums = {s.out: s.direction for s in products if isinstance(s, Toeplitz | ModalConv)}
    network: nx.DiGraph[str] = nx.DiGraph()
    network.add_nodes_from(sums)
    for statement in rest:
        if name := _made(statement, Kind.ROWS):
            network.add_node(name)
            network.add_edges_from((x.name, name) for x in statement.operands)
    convolved: list[Statement] = []
    adjoint: list[Statement] = []
    for statement in rest:
        if statement.operands and statement.makes is None:
            names = {x.name for x in statement.operands}
            reached = names.union(*(nx.ancestors(network, name) for name in names))
            directions = {sums[name] for name in reached & sums.keys()}
            if directions == {+1, -1}:
                return None
            (convolved if directions == {+1} else adjoint).append(statement)
    own = [s for s in rest if s.operands and _made(s, Kind.BLOCKS)]
    remembered = {
        x.name.removesuffix("_ahead"): blocks
        for s in body
        if (blocks := _made(s, Kind.BLOCKS))
        for x in s.operands
    }
    return Phases(
        ahead=tuple(body[:ahead_end]),
        own=_phase(rest, own, sums, {}, "_a"),
        products=products,
        convolved=_phase(rest, convolved, sums, remembered, "_b"),
        adjoint=_phase(rest, adjoint, sums, remembered, "_c"),
    )


def _made(statement: Statement, kind: Kind) -> str:
    """The name of what a statement makes, if that is of a kind."""
    made = statement.makes
    return made.name if made is not None and made.kind is kind else ""


def _renamed(
    statement: Statement, operand: Callable[[Operand], Operand], suffix: str
) -> Statement:
    """The same of other operands, with a suffix on the rows that it makes, which are its `out`."""
    one: Any = statement
    changes: dict[str, Any] = {"out": name + suffix} if (name := _made(one, Kind.ROWS)) else {}
    for field in fields(one):
        match getattr(one, field.name):
            case Operand() as x:
                changes[field.name] = operand(x)
            case (Operand(), *_) as several:
                changes[field.name] = tuple(map(operand, several))
    renamed: Statement = replace(one, **changes)
    return renamed


def _phase(
    body: Iterable[Statement],
    sinks: Sequence[Statement],
    sums: dict[str, int],
    remembered: dict[str, str],
    suffix: str,
) -> tuple[Statement, ...]:
    """The sinks and what they need, with a suffix on every value.

    Args:
        sums: values that products have computed.
        remembered: value -> its blocks.
    """
    body = list(body)
    makers = {n: s for s in body if (n := _made(s, Kind.ROWS)) and not s.is_product}

    def needed(recalled: set[str]) -> set[str]:
        """Values to compute or recall, if these are recalled."""
        names: set[str] = set()
        open_ends = [x.name for sink in sinks for x in sink.operands]
        while open_ends:
            name = open_ends.pop()
            if name not in names and name not in sums:
                names.add(name)
                if name not in recalled:
                    open_ends += [x.name for x in makers[name].operands]
        return names

    recalled = set()
    for name in remembered:
        maker = makers.get(name)
        inputs = {x.name for x in maker.operands} if maker is not None else set()
        rows = maker.makes.rows if maker is not None and maker.makes is not None else BLOCK
        whole = not inputs and rows != BLOCK  # loaded with a context, which is needed too
        if not whole and not (inputs and inputs <= needed(set(remembered))):
            recalled.add(name)
    names = needed(recalled)

    def renamed(operand: Operand) -> Operand:
        return operand if operand.name in sums else replace(operand, name=operand.name + suffix)

    statements: list[Statement] = [
        Recall(out=name + suffix, blocks=blocks)
        for name, blocks in remembered.items()
        if name in names & recalled
    ]
    made = names - recalled
    return (
        *statements,
        *(_renamed(s, renamed, suffix) for s in body if s in sinks or _made(s, Kind.ROWS) in made),
    )
