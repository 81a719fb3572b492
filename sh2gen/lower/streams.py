"""From a graph to statements of a stream: what lowerings share whose convolution is a product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

import networkx as nx

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
    Scale,
    Shift,
    Silu,
    SiluGradient,
    TapGradient,
    activations,
    parameter,
)
from sh2gen.lower.rows import FUNCTIONS, entering
from sh2gen.plan.rings import Past
from sh2gen.plan.statements import (
    Accumulate,
    Extend,
    Fir,
    LoadRows,
    LoadTaps,
    LoadVector,
    Rowwise,
    Statement,
)
from sh2gen.plan.values import BLOCK, Operand, Rows


@dataclass(slots=True)
class Stream(ABC):
    """Statements of the nodes of a graph, for a stream in one direction of time.

    Every value is held for the tile's own steps only; loads add the left context of the
    featurizer, and its adjoint extends to the right by what the stream has just computed.

    Attributes:
        time: +1 forward, -1 backward in time.
        carries: whether left context comes from the tile before, if that is earlier in time.
        pasts: what is known of values before the first step.
        prologue: what loads the parameters of the graph.
    """

    graph: Graph
    time: int
    carries: bool = False
    pasts: Mapping[str, Past] = field(default_factory=dict)
    prologue: list[Statement] = field(default_factory=list)

    def __post_init__(self) -> None:
        for node in self.graph.parameters:
            if node.out == "filter":
                self.prologue.append(self.load_filter(node))
            else:
                assert isinstance(node, Parameter)
                load = LoadTaps if node.view.length else LoadVector
                self.prologue.append(load(out=node.out, view=node.view))

    @abstractmethod
    def load_filter(self, node: Parameter | Modes) -> Statement:
        """What loads the filter."""

    @abstractmethod
    def product(self, conv: Conv) -> Statement:
        """What convolves with the filter."""

    def long(self, node: Node) -> bool:
        """Whether a node convolves with the filter, by matrix products."""
        return isinstance(node, Conv) and parameter(node) == "filter"

    def conv(self, direction: int) -> Conv:
        """The convolution with the filter in one direction."""
        for node in self.graph.nodes:
            if isinstance(node, Conv) and self.long(node) and node.direction == direction:
                return node
        raise AssertionError(f"no convolution with the filter in direction {direction}")

    def sums(self) -> list[TapGradient | ChannelSum]:
        """Gradients of parameters other than the filter."""
        return [
            node
            for node in self.graph.nodes
            if isinstance(node, TapGradient | ChannelSum) and node.view.tensor != "filter"
        ]

    def lag(self, name: str) -> int:
        """Steps of left context that a value needs: inputs of a featurizer only."""
        lengths = [
            self.graph.view(node.taps).length or 1
            for node in self.graph.nodes
            if isinstance(node, Conv) and node.x == name and node.direction == +1
            if not self.long(node)
        ]
        return max(lengths, default=1) - 1

    def before(self, names: list[str]) -> set[str]:
        """Activations that the named values depend on within a tile, and these themselves.

        A convolution with the filter reads blocks that are there already instead of its argument.
        """
        network: nx.DiGraph[str] = nx.DiGraph()
        for node in self.graph.nodes:
            network.add_node(node.out)
            if not self.long(node):
                network.add_edges_from((x, node.out) for x in activations(node))
        return set(names).union(*(nx.ancestors(network, name) for name in names))

    def statements(
        self, node: Node, suffix: str = "", ahead: bool = False, early: bool = False
    ) -> list[Statement]:
        """One node of the tile, or with a suffix of the tile that is LEAD steps earlier; that, and
        one that is called `early`, may lie before the first step.
        """
        found = self.line(node, suffix, ahead)
        if isinstance(node, Input) and self.lag(node.out):  # blocks know what is before them
            entering(found, self.pasts.get(node.out), early, ahead)
        return found

    def line(self, node: Node, suffix: str, ahead: bool) -> list[Statement]:
        """The same, as if nothing were known of what is before the first step."""

        def own(name: str) -> Operand:
            return Operand(name + suffix, BLOCK)

        out = node.out + suffix
        match node:
            case Input():
                lag = self.lag(node.out)
                carried = self.carries and bool(lag) and self.time == +1
                rows = Rows(-lag, 0)
                return [
                    LoadRows(out=out, tensor=node.out, rows=rows, carried=carried, ahead=ahead)
                ]
            case Conv() if self.long(node):
                return [self.product(node)]
            case Conv(x=x, taps=taps, direction=direction):
                length = self.graph.view(taps).length or 1
                if direction == +1:
                    source = Operand(x + suffix, Rows(1 - length, 0))
                    extension: list[Statement] = []
                elif length == 1:
                    source, extension = own(x), []
                else:
                    rows = Rows(0, length - 1)
                    source = Operand(f"{x}_on", rows)
                    extension = [Extend(out=source.name, x=own(x), count=length - 1, rows=rows)]
                fir = Fir(
                    out=out, x=source, taps=taps, length=length, direction=direction, rows=BLOCK
                )
                return [*extension, fir]
            case Multiply() | Add() | Scale() | Shift() | Silu() | SiluGradient():
                return [
                    Rowwise(
                        out=out,
                        function=FUNCTIONS[type(node)],
                        inputs=tuple(map(own, activations(node))),
                        vector=parameter(node),
                        rows=BLOCK,
                    )
                ]
            case TapGradient(grad=grad, x=x, view=view):
                assert view.length is not None
                inputs = (own(grad), Operand(x, Rows(1 - view.length, 0)))
                return [
                    Accumulate(out=out, function="tap_gradient", inputs=inputs, length=view.length)
                ]
            case ChannelSum(x=x):
                return [Accumulate(out=out, function="channel_sum", inputs=(own(x),), length=1)]
            case Parameter() | Modes():
                return []
            case ModeGradient():
                raise AssertionError("the gradient of the filter is the lowering's own")
            case _:
                assert_never(node)
