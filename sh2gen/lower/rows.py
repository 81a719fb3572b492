"""From a graph to a tile program over rows: shared by lowerings whose convolutions are short."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import assert_never

from sh2gen.graph.nodes import (
    Add,
    ChannelSum,
    Conv,
    Graph,
    Input,
    ModeGradient,
    Modes,
    Multiply,
    Node,
    Parameter,
    ParameterView,
    Scale,
    Shift,
    Silu,
    SiluGradient,
    TapGradient,
    activations,
    parameter,
)
from sh2gen.plan.kernel import Reduction
from sh2gen.plan.program import TileProgram
from sh2gen.plan.rings import Past, Ring
from sh2gen.plan.statements import (
    Accumulate,
    Enter,
    Fir,
    LoadRows,
    LoadTaps,
    LoadVector,
    Rowwise,
    Statement,
    StorePartial,
    StoreRows,
    ZeroTaps,
)
from sh2gen.plan.values import BLOCK, Layout, Operand, Rows
from sh2gen.spec.language import Activations, FilterKind
from sh2gen.spec.operator import OpSpec

FUNCTIONS: dict[type[Node], str] = {
    Multiply: "multiply",
    Add: "add",
    Scale: "scale",
    Shift: "shift",
    Silu: "silu",
    SiluGradient: "silu_gradient",
}
_NOTHING: Mapping[str, Past] = {}


def demanded_rows(graph: Graph, stored: tuple[str, ...]) -> dict[str, Rows]:
    """Which rows of every activation a block needs so that it can store `stored` and its sums.

    A causal convolution of K taps needs K - 1 rows more on the left, its adjoint on the right; a
    gradient of taps sums over the block's own rows of the gradient and looks K - 1 rows back in
    the signal.
    """
    rows = dict.fromkeys(stored, BLOCK)

    def demand(name: str, wanted: Rows) -> None:
        rows[name] = rows[name].join(wanted) if name in rows else wanted

    for node in reversed(graph.nodes):
        match node:
            case TapGradient(grad=grad, x=x, view=view):
                assert view.length is not None
                demand(grad, BLOCK)
                demand(x, Rows(1 - view.length, 0))
            case ChannelSum(x=x):
                demand(x, BLOCK)
            case Conv(x=x):
                demand(x, _source_rows(graph, node, rows[node.out]))
            case Input() | Parameter():
                pass
            case Modes() | ModeGradient():
                raise AssertionError("modes have no taps to reach back by")
            case Multiply() | Add() | Scale() | Shift() | Silu() | SiluGradient():
                for name in activations(node):
                    demand(name, rows[node.out])
            case _:
                assert_never(node)
    return rows


def _source_rows(graph: Graph, conv: Conv, rows: Rows) -> Rows:
    lag = _length(graph, conv.taps) - 1
    return Rows(rows.lo - lag, rows.hi) if conv.direction == +1 else Rows(rows.lo, rows.hi + lag)


def _length(graph: Graph, taps: str) -> int:
    length = graph.view(taps).length
    assert length is not None
    return length


def pasts(spec: OpSpec, graph: Graph) -> dict[str, Past]:
    """What calls are given of the past, by the value whose it is: what a convolution with taps
    reads, if there is a state to take.
    """
    if spec.state is None or spec.filter.kind is FilterKind.MODAL:
        return {}
    return kept(graph)


def kept(graph: Graph) -> dict[str, Past]:
    """What a state keeps of the past in rings, by the value whose it is."""
    found: dict[str, Past] = {}
    for node in graph.nodes:
        if (
            isinstance(node, Conv)
            and node.direction == +1
            and isinstance(graph.by_name[node.taps], Parameter)
        ):
            view = graph.view(node.taps)
            if (lag := (view.length or 1) - 1) > 0:
                ring = Ring("z")
                if view.tensor == "featurizer":
                    ring = Ring("tails", view.role, view.roles)
                found[node.x] = Past(ring, lag)
    return found


def entering(
    statements: list[Statement], past: Past | None, early: bool = False, ahead: bool = False
) -> None:
    """Let what the last of these statements makes begin with a past, if it has one.

    Args:
        early: the tile itself may lie before the first step.
        ahead: of the tile that a stream backward in time reaches LEAD steps later, likewise.
    """
    if past is None:
        return
    made = statements[-1]
    match made:
        case LoadRows():
            assert made.ahead == ahead
            statements[-1] = dataclasses.replace(made, past=past, early=early)
        case Rowwise(out=out, rows=rows) | Fir(out=out, rows=rows):
            own = f"{out}_own"
            statements[-1] = dataclasses.replace(made, out=own)
            statements.append(Enter(out=out, x=Operand(own, rows), past=past))
        case _:
            raise AssertionError(f"{made} has no past")


def tile_program(
    graph: Graph, stores: dict[str, str], before: Mapping[str, Past] = _NOTHING
) -> tuple[TileProgram, tuple[Reduction, ...]]:
    """The graph as statements over rows, and how its partial sums become parameter gradients.

    Args:
        graph: forward or backward graph.
        stores: tensor name -> value, for every activation that leaves the kernel.
        before: what is known of values before the first step.
    """
    rows = demanded_rows(graph, tuple(stores.values()))
    prologue: list[Statement] = []
    body: list[Statement] = []
    gradients: list[TapGradient | ChannelSum] = []
    left = dict(stores)

    for node in graph.nodes:
        match node:
            case Input(out=out):
                body.append(LoadRows(out=out, tensor=out, rows=rows[out]))
            case Modes() | ModeGradient():
                raise AssertionError("modes have no taps to multiply by")
            case Parameter(out=out, view=view):
                load = LoadTaps if view.length else LoadVector
                prologue.append(load(out=out, view=view))
            case Conv(out=out, x=x, taps=taps, direction=direction):
                source = Operand(x, _source_rows(graph, node, rows[out]))
                body.append(
                    Fir(
                        out=out,
                        x=source,
                        taps=taps,
                        length=_length(graph, taps),
                        direction=direction,
                        rows=rows[out],
                    )
                )
            case TapGradient(out=out, grad=grad, x=x, view=view):
                assert view.length is not None
                inputs = (Operand(grad, BLOCK), Operand(x, Rows(1 - view.length, 0)))
                body.append(
                    Accumulate(out=out, function="tap_gradient", inputs=inputs, length=view.length)
                )
                gradients.append(node)
            case ChannelSum(out=out, x=x):
                body.append(
                    Accumulate(
                        out=out,
                        function="channel_sum",
                        inputs=(Operand(x, BLOCK),),
                        length=1,
                    )
                )
                gradients.append(node)
            case Multiply() | Add() | Scale() | Shift() | Silu() | SiluGradient():
                body.append(
                    Rowwise(
                        out=node.out,
                        function=FUNCTIONS[type(node)],
                        inputs=tuple(Operand(x, rows[node.out]) for x in activations(node)),
                        vector=parameter(node),
                        rows=rows[node.out],
                    )
                )
            case _:
                assert_never(node)
        entering(body, before.get(node.out))
        # A value is stored as soon as it exists, so that its registers can be reused.
        for tensor in [tensor for tensor, value in left.items() if value == node.out]:
            body.append(StoreRows(tensor=tensor, x=Operand(left.pop(tensor), BLOCK)))

    zeros, partials, reductions = partial_sums(graph, gradients)
    program = TileProgram(prologue=(*prologue, *zeros), body=tuple(body), epilogue=tuple(partials))
    return program, reductions


def partial_sums(
    graph: Graph, gradients: Sequence[TapGradient | ChannelSum]
) -> tuple[list[ZeroTaps], list[StorePartial], tuple[Reduction, ...]]:
    """Accumulators of parameter gradients, where their sums are written, and what adds these."""
    zeros: list[ZeroTaps] = []
    partials: list[StorePartial] = []
    reductions: list[Reduction] = []
    first = 0
    for node in sorted(gradients, key=lambda node: _reduction_key(graph, node.view)):
        if node.view.role == 0:
            reductions.append(Reduction(tensor=node.view.tensor, first=first, view=node.view))
        zeros.append(ZeroTaps(out=node.out, length=node.view.length or 1))
        partials.append(StorePartial(totals=(node.out,), first=first))
        first += node.view.length or 1
    return zeros, partials, tuple(reductions)


def _reduction_key(graph: Graph, view: ParameterView) -> tuple[int, int]:
    """Parameter tensors in the order of the graph, the roles of a packed one side by side."""
    tensors = list(dict.fromkeys(view.tensor for view in graph.views))
    # A bias is a parameter of the forward graph only: it comes after those that backward reads.
    position = tensors.index(view.tensor) if view.tensor in tensors else len(tensors)
    return position, view.role


def layouts(spec: OpSpec) -> tuple[Layout, ...]:
    """The layouts that the spec allows, the one that is faster for narrow tiles first."""
    match spec.layout.activations:
        case Activations.AUTO:
            return (Layout.BDL, Layout.BLD)
        case chosen:
            return (Layout(chosen.value),)
