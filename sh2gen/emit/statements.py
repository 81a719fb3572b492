"""Tile programs as text: each statement is the calls that it declares, a line each."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from sh2gen.plan.modes import Blocks, EndParts, Parts
from sh2gen.plan.program import TileProgram
from sh2gen.plan.statements import LoadRows, Statement, StorePartial
from sh2gen.plan.values import Call, Carried, Pack, Scope

_LITERAL = re.compile(r"-?\d+|True|False")

Signatures = Mapping[str, tuple[str, ...]]  # the names of what each helper takes


def text(call: str | Call | Pack, signatures: Signatures) -> str:
    """A call as a line of kernel text, whose arguments have their names from the first literal
    on.
    """
    match call:
        case str():
            return call
        case Pack(items=items):
            return str(Pack(tuple(text(item, signatures) for item in items)))
        case Call(helper=helper, arguments=arguments, outs=outs):
            found: list[str] = []
            named = False
            assert len(arguments) <= len(signatures[helper]), f"{helper} takes fewer arguments"
            for name, argument in zip(signatures[helper], arguments, strict=False):
                value = text(argument, signatures)
                named |= _LITERAL.fullmatch(value) is not None
                plain = not named or value.startswith(f"{name}=")
                found.append(value if plain else f"{name}={value}")
            return str(Call(helper, tuple(found), outs))


def lines(statements: Sequence[Statement], scope: Scope, signatures: Signatures) -> list[str]:
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
                sources = ", sources_ptr" * scope.apart
                order = "PARTS" if time == +1 else "PARTS - 1, -1, -1"
                indent = "    "
                found += [
                    f"for part in tl.static_range({order}):",
                    f"{indent}s = t + part * (H * BLOCK_T)",
                    f"{indent}last_block = s + (H - 1) * BLOCK_T",
                    f"{indent}rows = (segment + s, s, last_block)",
                    f"{indent}bounds = (read_begin, read_end, write_end{sources})",
                    f"{indent}tile = Tile(offset, channel_mask, *rows, *bounds)",
                ]
            case EndParts():
                indent = ""
                found += [text(blocks.whole(blocks.out), signatures) for blocks in pieces]
                pieces = []
            case Blocks(out=out) if indent:
                piece = text(Pack((statement.piece(scope),)), signatures)
                found.append(f"{indent}{out} = {out} + {piece}")
            case _:
                calls = (text(call, signatures) for call in statement.calls(scope))
                found += [indent + call for call in calls]
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


def carried(
    program: TileProgram, scope: Scope, signatures: Signatures
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """What a program carries from tile to tile: lines that make it before the first, and lines
    that load it, by the time at which a tile begins.
    """
    early = frozenset(s.out for s in program.warmup if isinstance(s, LoadRows))
    scope = dataclasses.replace(scope, loaded_before=early)
    made: list[str] = []
    loaded: dict[str, list[str]] = {}
    for one in _carried(program, scope):
        if one.time is None:
            made.append(text(one.call, signatures))
        else:
            loaded.setdefault(one.time, []).append(text(one.call, signatures))
    return list(dict.fromkeys(made)), list(loaded.items())


def _carried(program: TileProgram, scope: Scope) -> list[Carried]:
    return [one for statement in program.body for one in statement.carries(scope)]


def helpers(program: TileProgram, scope: Scope) -> set[str]:
    """The helpers that a program's statements call."""
    scope = dataclasses.replace(scope, held={})
    calls: list[Call] = [one.call for one in _carried(program, scope)]
    calls += [
        call
        for statement in (*program, *program.warmup)
        if not isinstance(statement, Parts | EndParts)
        for call in statement.calls(scope)
    ]
    return {name for call in calls for name in call.helpers}
