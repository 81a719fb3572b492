"""Decoding: a few steps in time after a past that is kept, one launch for all of a batch.

What is kept follows from the graph alone, whatever computes whole sequences: of every convolution
with K taps the last K - 1 steps of what it convolves, in a ring; of modes their state.
"""

from __future__ import annotations

from typing import assert_never

from sh2gen.graph.nodes import (
    Add,
    ChannelSum,
    Conv,
    Input,
    ModeGradient,
    Modes,
    Multiply,
    Parameter,
    ParameterView,
    Scale,
    Shift,
    Silu,
    SiluGradient,
    TapGradient,
    activations,
    operator_graph,
    parameter,
)
from sh2gen.lower.rows import FUNCTIONS
from sh2gen.plan.arguments import step_arguments
from sh2gen.plan.geometry import step_grid
from sh2gen.plan.kernel import Kernel, Role
from sh2gen.plan.program import TileProgram
from sh2gen.plan.rings import Ring
from sh2gen.plan.statements import Fir, LoadTaps, LoadVector, Rowwise, Statement
from sh2gen.plan.step import (
    MOST_LOADED,
    AfterRing,
    KeepSteps,
    LoadPoles,
    LoadSteps,
    RingConv,
    StepModes,
    StoreSteps,
)
from sh2gen.plan.values import BLOCK, Operand, Rows
from sh2gen.spec.operator import OpSpec


def step_kernel(spec: OpSpec) -> Kernel:
    """The kernel that decodes."""
    graph = operator_graph(spec)
    views: dict[str, ParameterView] = {}
    prologue: list[Statement] = []
    body: list[Statement] = []
    kept: list[Statement] = []
    for node in graph.nodes:
        match node:
            case Input(out=out):
                body.append(LoadSteps(out=out))
            case Modes(out=out, views=poles):
                prologue.append(LoadPoles(out=out, views=poles))
            case Parameter(out=out, view=view):
                views[out] = view
                if (view.length or 0) <= MOST_LOADED:
                    load = LoadTaps if view.length else LoadVector
                    prologue.append(load(out=out, view=view))
            case Conv(out=out, x=x, taps=taps):
                if taps not in views:
                    count = spec.filter.modes
                    assert count is not None
                    ring = Ring("z")
                    body.append(StepModes(out=out, x=x, modes=taps, ring=ring, count=count))
                    continue
                view = views[taps]
                ring = Ring("z")
                if view.tensor == "featurizer":
                    ring = Ring("tails", view.role, view.roles)
                assert view.length is not None
                if view.length > MOST_LOADED:
                    body.append(RingConv(out=out, x=x, ring=ring, view=view))
                    kept.append(KeepSteps(x=x, ring=ring))
                    continue
                source, lag = x, view.length - 1
                if lag:
                    source = f"{x}_rows"
                    body.append(AfterRing(out=source, x=x, ring=ring, lag=lag))
                    kept.append(KeepSteps(x=x, ring=ring))
                body.append(
                    Fir(
                        out=out,
                        x=Operand(source, Rows(-lag, 0)),
                        taps=taps,
                        length=view.length,
                        direction=+1,
                        rows=BLOCK,
                    )
                )
            case Multiply() | Add() | Scale() | Shift() | Silu():
                body.append(
                    Rowwise(
                        out=node.out,
                        function=FUNCTIONS[type(node)],
                        inputs=tuple(Operand(x, BLOCK) for x in activations(node)),
                        vector=parameter(node),
                        rows=BLOCK,
                    )
                )
            case ModeGradient() | TapGradient() | ChannelSum() | SiluGradient():
                raise AssertionError("decoding has no gradients")
            case _:
                assert_never(node)
    body.append(StoreSteps(tensor="y", x=Operand(graph.outputs[0], BLOCK)))
    program = TileProgram(prologue=tuple(prologue), body=(*body, *kept))
    pairs = ("step_pairs", "step", "modal_pairs") if spec.filter.pairs else ("step", "modal")
    return Kernel(
        name="decode",
        role=Role.DECODE,
        skeleton="step",
        parts=(*pairs, "rows", "trained"),
        program=program,
        arguments=step_arguments(spec, program),
        grid=step_grid,
    )
