"""What is said of ranks in a generated file."""

from __future__ import annotations

import math
from typing import Any

from sh2gen.emit import eager
from sh2gen.emit.launchers import first_steps, writes_into
from sh2gen.emit.parts import texts
from sh2gen.emit.text import filled
from sh2gen.graph.nodes import Modes, operator_graph
from sh2gen.plan.plan import EagerConv, Plan
from sh2gen.plan.rings import rings
from sh2gen.spec.language import Exchange, FilterKind, Sharding
from sh2gen.spec.operator import OpSpec


def constants(spec: OpSpec, plan: Plan) -> list[tuple[str, str, str]]:
    """Those of a file whose sequences may be split: name, value, and what it says."""
    if spec.context is None:
        return []
    zigzag = spec.context.sharding is Sharding.ZIGZAG
    found = [("ZIGZAG", str(zigzag), "whether rank r of W has chunks r and 2W - 1 - r")]
    if by_kernels(spec, plan) and not plan.states:
        overlapped = spec.context.exchange is not Exchange.HALO
        what = "whether steps that need none are computed while messages travel"
        found.append(("OVERLAPPED", str(overlapped), what))
    return [*found, ("SIMULATED: dict", "{}", "by name, ranks that are no process group")]


def blocks(spec: OpSpec, plan: Plan, calls: dict[str, Any], modes_lines: list[str]) -> list[str]:
    """The text of calls over ranks.

    Args:
        calls: what sections say of calls.
        modes_lines: y and the modes after some steps of a state, if there are modes.
    """
    modal = spec.filter.kind is FilterKind.MODAL
    others = ["gathered_fake", "gathered_chunks", "in_order_of_time", "decayed"] * (not modal)
    found = {**calls, **_context(spec, plan, modes_lines)}
    return [*texts("context", without=others), filled("sections/context.py.j2", **found)]


def _context(spec: OpSpec, plan: Plan, modes_lines: list[str]) -> dict[str, Any]:
    """What templates/sections/context.py.j2 asks for beside what other sections do."""
    graph = operator_graph(spec)
    modes = [node for node in graph.parameters if isinstance(node, Modes)]
    poles = eager.lines_of(graph, EagerConv.MODAL, modes)
    for node in modes:
        both = f"{node.out}_modes"
        both = f"poles_and_residues({both})" if spec.filter.pairs else both
        poles.append(f"poles, _ = {both}")
    return {
        "kept_lags": [str(ring.lag) for ring in rings(spec) if ring.lag],
        # Steps after which the rings of a state with room for one step begin anew.
        "around": math.prod(ring.lag + 1 for ring in rings(spec) if ring.lag),
        "poles_lines": poles,
        "modes_lines": modes_lines,
        "by_kernels": by_kernels(spec, plan),
        "first_steps": first_steps(spec, plan) if plan.first_kernels else None,
    }


def by_kernels(spec: OpSpec, plan: Plan) -> bool:
    """Whether calls over ranks have a way that launches kernels from tapes alone."""
    served = plan.states or plan.leave is not None
    return bool(plan.kernels) and served and writes_into(spec, plan) and not spec.filter.pairs
