"""What the skeleton recurrence computes part by part, and writes at once, as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from sh2gen.emit.sm90 import rows_of
from sh2gen.plan.plan import Blocks, EndParts, Parts, Rows, Statement, StorePartial


def in_parts(
    statements: list[Statement], line: Callable[[Statement], str], held: dict[str, Rows]
) -> list[str]:
    """Statements as lines, those in parts in a loop, which gathers their blocks piece by piece."""
    lines: list[str] = []
    indent = ""
    pieces: list[str] = []
    for statement in statements:
        match statement:
            case Parts(time=time):
                if time == -1:
                    lines.append("tl.debug_barrier()  # what follows loads again what it needs")
                else:
                    pieces = [s.out for s in statements if isinstance(s, Blocks)]
                    lines += [f"{name} = ()" for name in pieces]
                order = "PARTS" if time == +1 else "PARTS - 1, -1, -1"
                indent = "    "
                lines += [
                    f"for part in tl.static_range({order}):",
                    f"{indent}s = t + part * (H * BLOCK_T)",
                    f"{indent}last_block = s + (H - 1) * BLOCK_T",
                    f"{indent}where = (segment + s, s, last_block)",
                    f"{indent}tile = (channel, inside) + where + (first, last, end)",
                ]
            case EndParts():
                indent = ""
                lines += [f"{name} = block_of({name}, M, N, PRECISION)" for name in pieces]
                pieces = []
            case Blocks(out=out, x=x) if indent:
                piece = f"piece_of({rows_of(x, held)}, H, N, OPERAND)"
                lines.append(f"{indent}{out} = {out} + ({piece},)")
            case _:
                lines += [indent + text for text in line(statement).split("\n")]
    return lines


def together(epilogue: tuple[Statement, ...]) -> tuple[Statement, ...]:
    """Partial sums that lie side by side written at once, which takes fewer exchanges."""
    out: list[Statement] = []
    for statement in epilogue:
        match statement:
            case StorePartial(total=total) if out and isinstance(out[-1], StorePartial):
                out[-1] = dataclasses.replace(out[-1], total=f"{out[-1].total} + {total}")
            case _:
                out.append(statement)
    return tuple(out)
