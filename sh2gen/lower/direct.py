"""`direct`: the sum over taps as multiply-adds on registers, everything fused into one kernel.

Each lane holds a short window of consecutive time steps in registers, so that every lag of
featurizer and inner filter is a choice of registers. Context rows are read again by the
neighbouring block (from cache) and what depends on them is recomputed: for short filters that
costs less than passing it on.
"""

from __future__ import annotations

from sh2gen.graph.adjoint import adjoint
from sh2gen.graph.nodes import operator_graph
from sh2gen.lower.actions import whole
from sh2gen.lower.leave import past_kernels
from sh2gen.lower.rows import layouts, pasts, tile_program
from sh2gen.lower.step import step_kernel
from sh2gen.lower.verdict import Verdict, later_fields
from sh2gen.plan.arguments import tile_arguments
from sh2gen.plan.geometry import first_config, tile_grid
from sh2gen.plan.kernel import Kernel, Role
from sh2gen.plan.plan import EagerConv, Plan
from sh2gen.plan.program import TileProgram
from sh2gen.plan.values import Layout
from sh2gen.spec.language import FilterKind, Precision, Sequences
from sh2gen.spec.operator import OpSpec

MAX_TAPS = 16  # beyond this the windows of backward no longer fit into 255 registers a thread
MAX_FEATURIZER = 4  # its window adds to that of the filter, in registers and in compile time


def applies(spec: OpSpec) -> Verdict:
    """Whether this operator can be computed by `direct`, and why (not)."""
    reasons = list(later_fields(spec))
    if spec.filter.kind not in (FilterKind.EXPLICIT, FilterKind.DECAY):
        reasons.append(f"the filter is {spec.filter.kind.value}; direct needs explicit taps")
    elif spec.filter.length is not None and spec.filter.length > MAX_TAPS:
        reasons.append(
            f"{spec.filter.length} taps; windows of more than {MAX_TAPS} do not fit in registers"
        )
    if spec.featurizer is not None and spec.featurizer.length > MAX_FEATURIZER:
        reasons.append(f"a featurizer of {spec.featurizer.length} taps; at most {MAX_FEATURIZER}")
    if reasons:
        return Verdict.no(*reasons)
    return Verdict.yes(
        f"{spec.filter.length} taps fit in registers: "
        f"one kernel reads {len(spec.inputs)} and writes 1 activation"
    )


def lower(spec: OpSpec) -> tuple[Plan, ...]:
    """Every plan: layouts x (recompute the convolution in backward | save it). What is saved is
    rounded to the dtype of activations, which `exact` does not allow.
    """
    graph = operator_graph(spec)
    gated = spec.gates.post and spec.precision is not Precision.EXACT
    before_gate = (
        next(n.b for n in graph.nodes if n.out == "y" and hasattr(n, "b")) if gated else ""
    )
    cuts: tuple[tuple[str, ...], ...] = ((), (before_gate,)) if gated else ((),)
    return tuple(_plan(spec, layout, saved) for layout in layouts(spec) for saved in cuts)


def _plan(spec: OpSpec, layout: Layout, saved: tuple[str, ...]) -> Plan:
    graph = operator_graph(spec)
    backward_graph = adjoint(graph, saved)
    parts: tuple[str, ...] = ("rows", "tiles_first", "channels_first", "trained")
    if layout is Layout.BLD:
        parts = ("rows", "channels_last", "axes_last", "trained")
    before = pasts(spec, graph)
    parts += ("past_last" if layout is Layout.BLD else "past",) * bool(before)
    if spec.sequences is Sequences.PACKED:
        parts = (*["apart_last"] * (layout is Layout.BLD), "apart", *parts)
    results = {"y": graph.outputs[0], **{name: name for name in saved}}
    forward, _ = tile_program(graph, results)
    gradients = dict(
        zip((f"d_{name}" for name in spec.inputs), backward_graph.outputs, strict=False)
    )
    backward, reductions = tile_program(backward_graph, gradients)

    def kernel(role: Role, program: TileProgram, first: bool = False) -> Kernel:
        hinted = role is Role.FORWARD and layout is Layout.BDL
        return Kernel(
            name=role.value + "_first" * first,
            role=role,
            skeleton="tile",
            parts=parts,
            program=program,
            arguments=tile_arguments(spec, program, backward=role is Role.BACKWARD, hinted=hinted),
            grid=tile_grid,
            hinted=hinted,
            narrowed=first_config if first else None,
        )

    first = {}
    if before:
        first[Role.FORWARD] = kernel(
            Role.FORWARD, tile_program(graph, results, before)[0], first=True
        )
        first[Role.BACKWARD] = kernel(
            Role.BACKWARD, tile_program(backward_graph, gradients, before)[0], first=True
        )
    return Plan(
        algorithm="direct",
        layout=layout,
        saved=saved,
        graph=graph,
        backward_graph=backward_graph,
        actions=whole(
            spec,
            kernel(Role.FORWARD, forward),
            kernel(Role.BACKWARD, backward),
            saved,
            reductions,
            first,
        ),
        eager=EagerConv.DIRECT,
        step=step_kernel(spec),
        past=past_kernels(spec),
    )
