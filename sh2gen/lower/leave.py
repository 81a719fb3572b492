"""The past that later steps read, after some steps: one launch, whatever computes these.

Of every convolution with taps the last steps of what it convolves, from the graph alone, as in
`lower.step`. A state of modes is given by the kernels that compute with it.
"""

from __future__ import annotations

from sh2gen.graph.nodes import (
    Conv,
    Input,
    Modes,
    Parameter,
    activations,
    operator_graph,
    parameter,
)
from sh2gen.lower.rows import FUNCTIONS, kept
from sh2gen.plan.arguments import history_arguments, leave_arguments
from sh2gen.plan.geometry import step_grid
from sh2gen.plan.kernel import Kernel, Role
from sh2gen.plan.program import TileProgram
from sh2gen.plan.statements import Fir, LoadTaps, LoadVector, Rowwise, Statement
from sh2gen.plan.step import MOST_LOADED, LeaveSteps, LoadAt
from sh2gen.plan.values import BLOCK, Operand, Rows
from sh2gen.spec.language import FilterKind
from sh2gen.spec.operator import OpSpec


def past_kernels(spec: OpSpec) -> tuple[Kernel, ...]:
    """Of calls that take or give a state, what stands between it and the kernels of calls."""
    if spec.state is None or (leave := leave_kernel(spec)) is None:
        return ()
    if spec.filter.kind is not FilterKind.MODAL:  # whose kernels read rings themselves
        return (leave,)
    history = Kernel(
        name="history",
        role=Role.DECODE,
        skeleton="history",
        parts=(),
        program=TileProgram(prologue=(), body=()),
        arguments=history_arguments(spec),
        grid=step_grid,
    )
    return leave, history


def leave_kernel(spec: OpSpec) -> Kernel | None:
    """The kernel that gives the rings of a state; None where there are none, or where what they
    keep takes more taps than a lane holds.
    """
    graph = operator_graph(spec)
    pasts = kept(graph)
    if not pasts:
        return None
    prologue: list[Statement] = []
    body: list[Statement] = []
    left: list[Statement] = []
    for node in graph.nodes:
        out = node.out
        past = pasts.get(out)
        match node:
            case Input():
                tails = past if past is not None and past.ring.field == "tails" else None
                body.append(LoadAt(out=out, past=tails))
            case Modes():
                continue
            case Parameter(view=view):
                if view.tensor == "filter":
                    continue
                if (view.length or 0) > MOST_LOADED:
                    return None
                load = LoadTaps if view.length else LoadVector
                prologue.append(load(out=out, view=view))
            case Conv(x=x, taps=taps) if taps == "filter":
                break  # nothing after it is kept
            case Conv(x=x, taps=taps):
                length = graph.view(taps).length or 1
                source = Operand(x, Rows(1 - length, 0))
                body.append(
                    Fir(out=out, x=source, taps=taps, length=length, direction=+1, rows=BLOCK)
                )
            case _:
                body.append(
                    Rowwise(
                        out=out,
                        function=FUNCTIONS[type(node)],
                        inputs=tuple(Operand(x, BLOCK) for x in activations(node)),
                        vector=parameter(node),
                        rows=BLOCK,
                    )
                )
        if past is not None:
            known = isinstance(node, Input) and past.ring.field == "tails"
            left.append(LeaveSteps(x=out, past=past, known=known))
    body = _read(body, left)
    read = {name.name for statement in body for name in statement.reads}
    loaded = [s for s in prologue if s.makes is not None and s.makes.name in read]
    program = TileProgram(prologue=tuple(loaded), body=(*body, *left))
    return Kernel(
        name="leave",
        role=Role.DECODE,
        skeleton="leave",
        parts=("step", "rows", "trained"),
        program=program,
        arguments=leave_arguments(spec, program),
        grid=step_grid,
    )


def _read(body: list[Statement], left: list[Statement]) -> list[Statement]:
    """The statements whose results are read, by others or by what is left."""
    needed: set[str] = set()
    found: list[Statement] = []
    for statement in (*reversed(left), *reversed(body)):
        made = statement.makes
        if made is None or made.name in needed:
            needed |= {operand.name for operand in statement.operands}
            found.append(statement)
    return [s for s in reversed(found) if s not in left]
