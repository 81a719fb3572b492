"""Tile programs as text: each statement is the calls that it declares, a line each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from sh2gen.plan.modes import Blocks, EndParts, Parts
from sh2gen.plan.program import TileProgram
from sh2gen.plan.statements import LoadRows, Statement, StorePartial
from sh2gen.plan.values import Call, Carried, Pack, Scope


def lines(statements: Sequence[Statement], scope: Scope) -> list[str]:
    """Statements as lines of kernel text; those in parts in a loop, which gathers their blocks
    piece by piece.
    """
    found: list[str] = []
    indent = ""
    pieces: list[Blocks] = []
    for statement in statements:
        match statement:
            case Parts(time=time):
                if time == -1:
                    found.append("tl.debug_barrier()  # what follows loads again what it needs")
                else:
                    pieces = [s for s in statements if isinstance(s, Blocks)]
                    found += [f"{blocks.out} = ()" for blocks in pieces]
                order = "PARTS" if time == +1 else "PARTS - 1, -1, -1"
                indent = "    "
                found += [
                    f"for part in tl.static_range({order}):",
                    f"{indent}s = t + part * (H * BLOCK_T)",
                    f"{indent}last_block = s + (H - 1) * BLOCK_T",
                    f"{indent}rows = (segment + s, s, last_block)",
                    f"{indent}bounds = (read_begin, read_end, write_end)",
                    f"{indent}tile = Tile(offset, channel_mask, *rows, *bounds)",
                ]
            case EndParts():
                indent = ""
                found += [str(blocks.whole(blocks.out)) for blocks in pieces]
                pieces = []
            case Blocks(out=out) if indent:
                found.append(f"{indent}{out} = {out} + {Pack((statement.piece(scope),))}")
            case _:
                found += [f"{indent}{call}" for call in statement.calls(scope)]
    return found


def together(epilogue: Iterable[Statement]) -> tuple[Statement, ...]:
    """Partial sums that lie side by side written at once, which takes fewer exchanges."""
    out: list[Statement] = []
    for statement in epilogue:
        match statement:
            case StorePartial(totals=totals) if out and isinstance(out[-1], StorePartial):
                out[-1] = dataclasses.replace(out[-1], totals=(*out[-1].totals, *totals))
            case _:
                out.append(statement)
    return tuple(out)


def carried(program: TileProgram, scope: Scope) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """What a program carries from tile to tile: lines that make it before the first, and lines
    that load it, by the time at which a tile begins.
    """
    early = frozenset(s.out for s in program.warmup if isinstance(s, LoadRows))
    scope = dataclasses.replace(scope, loaded_before=early)
    made: list[str] = []
    loaded: dict[str, list[str]] = {}
    for one in _carried(program, scope):
        if one.time is None:
            made.append(str(one.call))
        else:
            loaded.setdefault(one.time, []).append(str(one.call))
    return list(dict.fromkeys(made)), list(loaded.items())


def _carried(program: TileProgram, scope: Scope) -> list[Carried]:
    return [one for statement in program.body for one in statement.carries(scope)]


def helpers(program: TileProgram, scope: Scope) -> set[str]:
    """The helpers that a program's statements call."""
    scope = dataclasses.replace(scope, held={})
    calls: list[Call] = [one.call for one in _carried(program, scope)]
    calls += [
        call
        for statement in program
        if not isinstance(statement, Parts | EndParts)
        for call in statement.calls(scope)
    ]
    return {name for call in calls for name in call.helpers}
