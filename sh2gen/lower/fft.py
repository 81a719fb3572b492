"""`fft`: any filter by torch.fft in float32, in chunks of channels under a byte budget; always
works. Modes between two states are passed on from block to block instead, in plain PyTorch too.
"""

from __future__ import annotations

from sh2gen.graph.adjoint import adjoint
from sh2gen.graph.nodes import operator_graph
from sh2gen.lower.rows import layouts
from sh2gen.lower.verdict import Verdict, later_fields
from sh2gen.plan.actions import Eager
from sh2gen.plan.kernel import Role
from sh2gen.plan.plan import EagerConv, Plan
from sh2gen.spec.language import FilterKind
from sh2gen.spec.operator import OpSpec


def applies(spec: OpSpec) -> Verdict:
    """Whether this operator can be computed by `fft`, and why (not)."""
    reasons = list(later_fields(spec, by_fft=True))
    if reasons:
        return Verdict.no(*reasons)
    if _passes_modes_on(spec):
        return Verdict.yes("any number of modes, block by block, at several passes over memory")
    return Verdict.yes("any number of taps and any length, at several passes over memory")


def _passes_modes_on(spec: OpSpec) -> bool:
    return spec.state is not None and spec.filter.kind is FilterKind.MODAL


def lower(spec: OpSpec) -> tuple[Plan, ...]:
    """One plan a layout; nothing is saved for backward."""
    graph = operator_graph(spec)
    return tuple(
        Plan(
            algorithm="fft",
            layout=layout,
            graph=graph,
            backward_graph=adjoint(graph),
            actions={
                Role.FORWARD: (Eager(graph=graph),),
                Role.BACKWARD: (Eager(graph=adjoint(graph)),),
            },
            eager=EagerConv.MODAL if _passes_modes_on(spec) else EagerConv.FFT,
        )
        for layout in layouts(spec)
    )
