"""`toeplitz`: overlap-add blocks as products with Toeplitz matrices, on the tensor cores.

Time is cut into blocks of BLOCK_T steps. With z_n a block as a row vector and T_s the matrix
T_s[j, i] = h[s BLOCK_T + i - j], the convolution is y_n = sum_s z_{n-s} T_s with
s = 0 .. ceil((K - 1) / BLOCK_T) (arXiv 2503.01868, section 3). The channels of a group share the
matrices, and so do several segments of the sequence: all of them together are the rows of one
product. A program walks along its segments block by block (skeleton `stream`), so the earlier
blocks are the ones that it has just computed.

Backward walks backward in time: gradients d_z_n = sum_s e_{n+s} T_s^T look at blocks that it has
just computed, the recomputed convolution looks ahead, and the gradient of the taps sums products
e_n^T z_{n-s} in registers over the whole walk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from sh2gen.graph.adjoint import adjoint
from sh2gen.graph.nodes import (
    Conv,
    Graph,
    Modes,
    Parameter,
    TapGradient,
    activations,
    operator_graph,
)
from sh2gen.lower.actions import whole
from sh2gen.lower.leave import past_kernels
from sh2gen.lower.rows import layouts, partial_sums, pasts
from sh2gen.lower.step import step_kernel
from sh2gen.lower.streams import Stream
from sh2gen.lower.verdict import Verdict, later_fields
from sh2gen.plan.arguments import sm90_arguments, stream_arguments
from sh2gen.plan.blocks import (
    LoadToeplitz,
    Remember,
    StoreToeplitz,
    Toeplitz,
    ToeplitzGradient,
    ZeroToeplitz,
)
from sh2gen.plan.geometry import (
    even_grid,
    even_sm90_grid,
    sm90_config,
    sm90_grid,
    sm90_suits,
    stream_grid,
)
from sh2gen.plan.kernel import Kernel, Reduction, Role, Variant
from sh2gen.plan.phases import phases
from sh2gen.plan.plan import EagerConv, Plan
from sh2gen.plan.program import TileProgram
from sh2gen.plan.rings import Past
from sh2gen.plan.statements import Statement, StoreRows
from sh2gen.plan.values import BLOCK, Layout, Operand
from sh2gen.schedule.facts import tap_terms
from sh2gen.spec.language import Activation, DType, FilterKind, Sequences
from sh2gen.spec.operator import OpSpec

MAX_TAPS = 1024  # every BLOCK_T taps more are one more matrix to keep in shared memory
MAX_TAPS_OF_TWO_TERMS = 160  # of which each is two
MAX_FEATURIZER = 4  # its context is kept in registers, and compile time grows with it


def applies(spec: OpSpec) -> Verdict:
    """Whether this operator can be computed by `toeplitz`, and why (not)."""
    reasons = list(later_fields(spec))
    if spec.filter.kind not in (FilterKind.EXPLICIT, FilterKind.DECAY):
        reasons.append(f"the filter is {spec.filter.kind.value}; toeplitz needs explicit taps")
    elif spec.filter.length is not None and spec.filter.length > MAX_TAPS:
        reasons.append(f"{spec.filter.length} taps; at most {MAX_TAPS}")
    elif tap_terms(spec) > 1 and (spec.filter.length or 0) > MAX_TAPS_OF_TWO_TERMS:
        reasons.append(
            f"{spec.filter.length} taps of {spec.filter.groups} filters that decay, sums of two "
            f"operands each; at most {MAX_TAPS_OF_TWO_TERMS}"
        )
    if spec.featurizer is not None and spec.featurizer.length > MAX_FEATURIZER:
        reasons.append(f"a featurizer of {spec.featurizer.length} taps; at most {MAX_FEATURIZER}")
    if spec.activation is not Activation.NONE:
        reasons.append("an activation: its gradient needs the convolution of blocks not yet read")
    if reasons:
        return Verdict.no(*reasons)
    return Verdict.yes(
        f"{spec.filter.length} taps as products of blocks of time with Toeplitz matrices: "
        f"one kernel reads {len(spec.inputs)} and writes 1 activation"
    )


def lower(spec: OpSpec) -> tuple[Plan, ...]:
    """A plan for each layout; backward recomputes the convolution."""
    return tuple(_plan(spec, layout) for layout in layouts(spec))


def _plan(spec: OpSpec, layout: Layout) -> Plan:
    graph = operator_graph(spec)
    backward_graph = adjoint(graph)
    # Channels last, tiles are loaded as they are channels first, with the strides exchanged.
    parts: tuple[str, ...] = ("toeplitz", "rows", "channels_first", "trained")
    if layout is Layout.BLD:
        parts = ("toeplitz", "rows", "axes_last", "channels_first", "trained")
    before = pasts(spec, graph)
    parts += ("past",) * bool(before)
    packed = spec.sequences is Sequences.PACKED
    if packed:
        parts = (*["apart_exchanged"] * (layout is Layout.BLD), "apart", *parts)
    names = (f"d_{name}" for name in spec.inputs)
    gradients = dict(zip(names, backward_graph.outputs, strict=False))
    backward, reductions = _backward(backward_graph, gradients, {})
    variants: tuple[Variant, ...] = ()
    if layout is Layout.BDL and (split := phases(backward)) is not None:
        variants = (
            Variant(
                name="sm90",
                skeleton="stream_sm90",
                parts=(*["sm90_apart"] * packed, "sm90", "rows", "channels_first", "trained"),
                phases=split,
                arguments=sm90_arguments(spec, backward),
                language="gluon",
                capability=90,
                io=DType.BFLOAT16,
                config=sm90_config,
                grid=even_sm90_grid if packed else sm90_grid,
                sizes=sm90_suits,
                suits="suits_sm90",
            ),
        )

    def kernel(
        role: Role,
        program: TileProgram,
        variants: tuple[Variant, ...] = (),
        first: bool = False,
    ) -> Kernel:
        return Kernel(
            name=role.value + "_first" * first,
            role=role,
            skeleton="stream",
            parts=parts,
            program=program,
            arguments=stream_arguments(
                spec, program, backward=role is Role.BACKWARD, terms=tap_terms(spec)
            ),
            grid=even_grid if packed else stream_grid,
            variants=variants,
            lanes=("M", "M"),
            exchanged=layout is Layout.BLD,
        )

    first = {}
    if before:
        first[Role.FORWARD] = kernel(Role.FORWARD, _forward(graph, before), first=True)
        entered, _ = _backward(backward_graph, gradients, before)
        first[Role.BACKWARD] = kernel(Role.BACKWARD, entered, first=True)
    return Plan(
        algorithm="toeplitz",
        layout=layout,
        graph=graph,
        backward_graph=backward_graph,
        actions=whole(
            spec,
            kernel(Role.FORWARD, _forward(graph, {})),
            kernel(Role.BACKWARD, backward, variants),
            (),
            reductions,
            first,
        ),
        eager=EagerConv.DIRECT,
        step=step_kernel(spec),
        past=past_kernels(spec),
    )


class _Stream(Stream):
    """Convolutions read remembered blocks."""

    def load_filter(self, node: Parameter | Modes) -> Statement:
        assert isinstance(node, Parameter)
        return LoadToeplitz(out=node.out, view=node.view)

    def product(self, conv: Conv) -> Statement:
        return Toeplitz(
            out=conv.out,
            blocks=f"{conv.x}_blocks",
            taps=conv.taps,
            length=self.graph.view(conv.taps).length or 1,
            direction=conv.direction,
        )


def _forward(graph: Graph, before: Mapping[str, Past]) -> TileProgram:
    """A stream forward in time."""
    builder = _Stream(graph, time=+1, carries=True, pasts=before)
    conv = builder.conv(+1)
    length = graph.view(conv.taps).length or 1
    remembered = builder.before([conv.x])
    remember = Remember(out=f"{conv.x}_blocks", x=Operand(conv.x, BLOCK), length=length)
    early = dataclasses.replace(remember, past=before.get(conv.x))
    warmup: list[Statement] = []
    body: list[Statement] = []
    for node in graph.nodes:
        if node.out in remembered:
            warmup += builder.statements(node, early=True)
            warmup += [early] if node.out == conv.x else []
        body += builder.statements(node)
        body += [remember] if node.out == conv.x else []
    body.append(StoreRows(tensor="y", x=Operand(graph.outputs[0], BLOCK)))
    return TileProgram(prologue=tuple(builder.prologue), body=tuple(body), warmup=tuple(warmup))


def _backward(
    graph: Graph, stores: dict[str, str], before: Mapping[str, Past]
) -> tuple[TileProgram, tuple[Reduction, ...]]:
    """A stream backward in time.

    Args:
        graph: the backward graph.
        stores: tensor name -> value, for the gradients of inputs.
        before: what is known of values before the first step.
    """
    builder = _Stream(graph, time=-1, pasts=before)
    conv = builder.conv(-1)
    (taps,) = [n for n in graph.nodes if isinstance(n, TapGradient) and n.view.tensor == "filter"]
    assert taps.grad == conv.x
    length = taps.view.length or 1
    sums = builder.sums()
    ahead: list[Statement] = []
    for name in _ordered(graph, builder.before([taps.x])):
        ahead += builder.statements(graph.by_name[name], suffix="_ahead", ahead=True)
    ahead.append(
        Remember(
            out=f"{taps.x}_blocks",
            x=Operand(f"{taps.x}_ahead", BLOCK),
            length=length,
            ahead=True,
            past=before.get(taps.x),
        )
    )
    remembered = builder.before([conv.x])
    wanted = [x for node in sums for x in activations(node)]
    needed = builder.before([*stores.values(), *wanted, conv.x])
    remember = Remember(out=f"{conv.x}_blocks", x=Operand(conv.x, BLOCK), length=length)
    warmup: list[Statement] = list(ahead)
    body: list[Statement] = list(ahead)
    left = dict(stores)
    for node in graph.nodes:
        if node is taps:
            body.append(
                ToeplitzGradient(
                    out=node.out,
                    grad=f"{taps.grad}_blocks",
                    blocks=f"{taps.x}_blocks",
                    length=length,
                )
            )
        elif node.out in needed or node in sums:
            lines = builder.statements(node)
            lines += [remember] if node.out == conv.x else []
            warmup += lines if node.out in remembered else []
            body += lines
        for tensor in [tensor for tensor, value in left.items() if value == node.out]:
            body.append(StoreRows(tensor=tensor, x=Operand(left.pop(tensor), BLOCK)))
    zeros, partials, reductions = partial_sums(graph, sums)
    by_group = Reduction(tensor="filter", first=0, view=taps.view, by_group=True)
    program = TileProgram(
        prologue=(*builder.prologue, *zeros, ZeroToeplitz(out=taps.out, length=length)),
        body=tuple(body),
        epilogue=(*partials, StoreToeplitz(total=taps.out, length=length)),
        warmup=tuple(warmup),
        time=-1,
    )
    return program, (*reductions, by_group)


def _ordered(graph: Graph, names: set[str]) -> list[str]:
    return [node.out for node in graph.nodes if node.out in names]
