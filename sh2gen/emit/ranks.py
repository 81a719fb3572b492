"""What is said of ranks in a generated file."""

from __future__ import annotations

import math
from typing import Any

from sh2gen.emit import decode, documents, eager
from sh2gen.emit.launchers import first_steps, writes_into
from sh2gen.emit.parts import texts
from sh2gen.emit.text import filled, literal
from sh2gen.graph.nodes import Modes, operator_graph
from sh2gen.plan.plan import EagerConv, Plan
from sh2gen.plan.rings import rings
from sh2gen.spec.language import Exchange, FilterKind, Sequences, Sharding
from sh2gen.spec.operator import OpSpec

# Where a filter is applied to all steps of some channels, or of some frequencies.
_BY_CHANNELS = (Exchange.ALL_TO_ALL, Exchange.ALL_TO_ALL_PIPELINED)
WHOLE = (*_BY_CHANNELS, Exchange.P2P_FFT)
_FILTER = (
    "filter", "p", "gamma", "log_poles", "frequencies", "residues", "residues_real",
    "residues_imag",
)  # fmt: skip
_OF_CHANNELS = (
    "segments_of", "own_filter", "steps_of_ranks", "rooms_of", "shapes_of", "leave_fake",
    "leave_channels", "arrive_fake", "arrive_channels",
)  # fmt: skip
_OF_TRANSFORMS = (
    "check_transform", "swapped_fake", "swapped_chunks", "reversed_bits", "turns", "twisted",
    "frequencies_of_filter", "butterflies", "convolved",
)  # fmt: skip


def constants(spec: OpSpec, plan: Plan) -> list[tuple[str, str, str]]:
    """Those of a file whose sequences may be split: name, value, and what it says."""
    if spec.context is None:
        return []
    zigzag = spec.context.sharding is Sharding.ZIGZAG
    found = [("ZIGZAG", str(zigzag), "whether rank r of W has chunks r and 2W - 1 - r")]
    exchange = exchange_of(spec, plan)
    if exchange in WHOLE:
        modal = spec.filter.kind is FilterKind.MODAL
        other = Exchange.STATE if modal else Exchange.HALO
        found.append(("EXCHANGE", literal(exchange.value, 0), ""))
        found.append(("OTHER", literal(other.value, 0), "exchange, which serves all calls"))
    if exchange in _BY_CHANNELS:
        piped = exchange is Exchange.ALL_TO_ALL_PIPELINED
        filters = sum(p.name in _FILTER for p in spec.parameters)
        found += [
            ("SEGMENTS", str(spec.context.segments if piped else 1), "of channels, at most"),
            ("FILTERS", str(filters), "parameters of the inner filter, which come first"),
            ("IN_FLIGHT: dict", "{}", "what was begun, by where its rooms lie"),
        ]
    elif by_kernels(spec, plan) and not plan.states:
        overlapped = str(exchange is Exchange.HALO_OVERLAPPED)
        what = "whether steps that need none are computed while messages travel"
        found.append(("OVERLAPPED", overlapped, what))
    return [*found, ("SIMULATED: dict", "{}", "by name, ranks that are no process group")]


def exchange_of(spec: OpSpec, plan: Plan) -> Exchange:
    """What ranks exchange by a plan: what is asked for, or of `auto` what `cost.ranks` finds the
    fastest. Without kernels that depends on how far the filter reaches, as every rank transforms
    the steps of its halo too: an eighth of a chunk costs more than to send all.
    """
    assert spec.context is not None
    asked, ranks = spec.context.exchange, spec.context.ranks
    if spec.sequences is Sequences.PACKED:
        return Exchange.HALO
    if asked is Exchange.HALO_OVERLAPPED and not by_kernels(spec, plan):
        return Exchange.HALO
    if asked is not Exchange.AUTO:
        return asked
    if spec.filter.kind is FilterKind.MODAL:
        return Exchange.STATE
    if plan.kernels:
        return Exchange.HALO_OVERLAPPED if by_kernels(spec, plan) else Exchange.HALO
    chunks = ranks * (1 + (spec.context.sharding is Sharding.ZIGZAG))
    chunk = min(w.length for w in spec.workloads) // chunks
    units = spec.channels if spec.filter.groups == 1 else spec.filter.groups
    near = 8 * (spec.filter.length or 1) <= chunk
    return Exchange.HALO if near or units % ranks else Exchange.ALL_TO_ALL_PIPELINED


def helper_names(spec: OpSpec, plan: Plan) -> set[str]:
    """The plain-PyTorch helpers of an operator that ranks apply whole to some channels."""
    if not is_whole(spec, plan):
        return set()
    found = {"channel_rows"}
    if spec.filter.kind is FilterKind.MODAL:
        found |= {"modal_taps", *["poles_and_residues"] * spec.filter.pairs}
    if exchange_of(spec, plan) in _BY_CHANNELS:
        found |= {"chunks", "add_rows", "conv_fft", "tap_gradient_fft"}
        found |= {"mode_gradient_fft"} if spec.filter.kind is FilterKind.MODAL else set()
    return found


def functions(spec: OpSpec, plan: Plan) -> list[dict[str, Any]]:
    """The functions in plain PyTorch that are printed beside those of the operator."""
    by_channels = is_whole(spec, plan) and exchange_of(spec, plan) in _BY_CHANNELS
    return eager.filter_alone(spec, plan) if by_channels else []


def is_whole(spec: OpSpec, plan: Plan) -> bool:
    """Whether ranks apply the filter to whole sequences."""
    return spec.context is not None and exchange_of(spec, plan) in WHOLE


def blocks(spec: OpSpec, plan: Plan, calls: dict[str, Any], modes_lines: list[str]) -> list[str]:
    """The text of calls over ranks.

    Args:
        calls: what sections say of calls.
        modes_lines: y and the modes after some steps of a state, if there are modes.
    """
    exchange = exchange_of(spec, plan)
    states = spec.filter.kind is FilterKind.MODAL and exchange not in WHOLE
    others = ["gathered_fake", "gathered_chunks", "in_order_of_time", "decayed"] * (not states)
    assert spec.context is not None
    # What `auto` takes may not serve every call.
    either = spec.context.exchange is Exchange.AUTO and exchange in WHOLE
    found = {**calls, **_context(spec, plan, modes_lines), "gathers": states, "either": either}
    packed = spec.sequences is Sequences.PACKED
    others += ["check_final"] * packed
    head = [*texts("context", without=others), filled("sections/context_ops.py.j2", **found)]
    if packed:
        found["documents_of_chunk"] = documents.chunk(plan, calls["ladder_names"])
        return [*head, filled("sections/context_documents.py.j2", **found)]
    if exchange not in WHOLE:
        return [*head, filled("sections/context.py.j2", **found)]
    spectral = exchange not in _BY_CHANNELS
    unused = _OF_CHANNELS if spectral else _OF_TRANSFORMS
    split = decode.split_lines(spec, plan)
    graph = operator_graph(spec)
    taps = [n for n in graph.parameters if n.out == "filter"]
    found |= {
        "spectral": spectral,
        "whole": split,
        "taps_lines": eager.lines_of(graph, EagerConv.FFT, taps),
    }
    texts_of_whole = [filled("sections/context_whole.py.j2", **found)]
    if found["either"]:
        texts_of_whole.append(filled("sections/context.py.j2", **found))
    return [*head[:-1], *texts("whole", without=unused), head[-1], *texts_of_whole]


def _context(spec: OpSpec, plan: Plan, modes_lines: list[str]) -> dict[str, Any]:
    """What the templates of these sections ask for beside what other sections do."""
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
    served &= spec.sequences is Sequences.DENSE
    return bool(plan.kernels) and served and writes_into(spec, plan) and not spec.filter.pairs
