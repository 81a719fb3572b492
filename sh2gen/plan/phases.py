"""The body of a stream backward in time, split into phases between products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import networkx as nx

from sh2gen.plan.blocks import Recall, Remember, Toeplitz
from sh2gen.plan.modes import Blocks, ModalConv
from sh2gen.plan.program import Phases, TileProgram
from sh2gen.plan.statements import (
    Accumulate,
    Extend,
    Fir,
    LoadRows,
    Rowwise,
    Statement,
    StoreRows,
)
from sh2gen.plan.values import BLOCK, Operand


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
    for statement in rest:
        if isinstance(statement, LoadRows | Fir | Rowwise | Extend | Toeplitz | ModalConv):
            network.add_node(statement.out)
            network.add_edges_from((x.name, statement.out) for x in statement.operands)
    convolved: list[Statement] = []
    adjoint: list[Statement] = []
    for statement in rest:
        if isinstance(statement, Accumulate | StoreRows):
            names = {x.name for x in statement.operands}
            reached = names.union(*(nx.ancestors(network, name) for name in names))
            directions = {sums[name] for name in reached & sums.keys()}
            if directions == {+1, -1}:
                return None
            (convolved if directions == {+1} else adjoint).append(statement)
    own = [s for s in rest if isinstance(s, Remember | Blocks)]
    remembered = {
        s.x.name.removesuffix("_ahead"): s.out for s in body if isinstance(s, Remember | Blocks)
    }
    return Phases(
        ahead=tuple(body[:ahead_end]),
        own=_phase(rest, own, sums, {}, "_a"),
        products=products,
        convolved=_phase(rest, convolved, sums, remembered, "_b"),
        adjoint=_phase(rest, adjoint, sums, remembered, "_c"),
    )


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
    makers = {s.out: s for s in body if isinstance(s, LoadRows | Fir | Rowwise | Extend)}

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
        whole = isinstance(maker, LoadRows) and maker.rows != BLOCK  # its context is needed too
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
    for s in body:
        match s:
            case LoadRows(out=out) if out in names - recalled:
                statements.append(replace(s, out=out + suffix))
            case Fir(out=out, x=x) | Extend(out=out, x=x) if out in names - recalled:
                statements.append(replace(s, out=out + suffix, x=renamed(x)))
            case Rowwise(out=out, inputs=values) if out in names - recalled:
                renamed_inputs = tuple(map(renamed, values))
                statements.append(replace(s, out=out + suffix, inputs=renamed_inputs))
            case Accumulate(inputs=values) if s in sinks:
                statements.append(replace(s, inputs=tuple(map(renamed, values))))
            case StoreRows(x=x) | Remember(x=x) | Blocks(x=x) if s in sinks:
                statements.append(replace(s, x=renamed(x)))
            case _:
                pass
    return tuple(statements)
