"""Decoding in a generated file: the state, plain PyTorch, and how the kernel is launched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sh2gen.emit import eager
from sh2gen.emit.text import targets
from sh2gen.graph.nodes import (
    Conv,
    Graph,
    Input,
    Modes,
    Node,
    Parameter,
    activations,
    operator_graph,
    parameter,
)
from sh2gen.plan.arguments import Of
from sh2gen.plan.geometry import counted_together
from sh2gen.plan.kernel import Kernel
from sh2gen.plan.plan import EagerConv, Plan
from sh2gen.plan.rings import rings
from sh2gen.spec.language import FilterKind, TapOrder
from sh2gen.spec.operator import OpSpec

MOST_DIRECT = 512  # taps by which a window is not convolved by FFT
# Constants of the kernel whose values a launcher finds.
_FOUND = {
    "CHANNELS": "channels",
    "WIDTH": "width",
    "SHARE": "shared_channels(width, config)",
    "STEPS": "steps",
    "SLOTTED": "slots is not None",
    "DRAFT": "state.draft",
}


def ring_table(spec: OpSpec) -> dict[str, tuple[int, int]]:
    """The lag and the roles of every ring of a state."""
    return {ring.name: (ring.lag, ring.roles) for ring in rings(spec)}


def tensors(spec: OpSpec) -> dict[str, tuple[str, str]]:
    """The tensors of a state: what each is in words, and how it is made."""
    found = {}
    for ring in rings(spec):
        columns = ring.columns("channels")
        slots = f"{ring.lag} + steps" if ring.lag else "steps"
        dtype = "dtype" if ring.io else "wide"
        shape = f"(batch, {slots}, {columns})"
        made = f"torch.zeros({shape}, dtype={dtype}, device=device)"
        found[ring.name] = (f"{shape}: {ring.meaning}", made)
    modal = spec.filter.kind is FilterKind.MODAL
    if modal:
        shape = f"(batch, channels, {spec.filter.modes}{', 2' * spec.filter.pairs})"
        numbers = ", real and imaginary parts" * spec.filter.pairs
        made = f"torch.zeros({shape}, dtype=wide, device=device)"
        found["modes"] = (f"{shape} float32: the state of the modes{numbers}", made)
    found["count"] = ("(batch,) int32: steps of each sequence so far", "index")
    each = counted_together(spec.filter.modes or 0)
    what = f"of each {each} channels: " if each > 1 else "of each channel: "
    what += "count" + ", without the steps that modes do not know of yet" * modal
    made = f"index.new_zeros(batch, -(-channels // {each}))"
    found["done"] = (f"(batch, channels / {each}) int32, {what}", made)
    return found


def context(spec: OpSpec, plan: Plan) -> dict[str, Any]:
    """What templates/sections/decode.py.j2 asks for."""
    made = tensors(spec)
    graph = operator_graph(spec)
    ladder = eager.ladder(spec)
    split = split_lines(spec, plan)
    modal = spec.filter.kind is FilterKind.MODAL
    inputs, x = list(spec.inputs), spec.inputs[0]
    names = [p.name for p in spec.parameters]
    kept = [ring.name for ring in rings(spec) if ring.lag]
    each = [f"{name}.shape[1]" for name in kept]
    return {
        "tensors": list(made),
        "state_docs": [(name, what) for name, (what, _) in made.items()],
        "after": [_after(name, spec) for name in made],
        "initial": [how for _, how in made.values()],
        "tails": [f"{name}_tail" for name in inputs] * bool(spec.lag),
        "joint": _joint(spec),
        "lag": spec.lag,
        "reach": 0 if modal else (spec.filter.length or 1) - 1,
        "recurrence": modal,
        "op_parameters": list(spec.kernel_parameters),
        "eager_setup": eager.decayed(spec),
        "transforms": not modal and _method(spec.filter.length or 1, plan) == "fft",
        "before_filter": split.before,
        "after_filter": [*split.filter, *split.after],
        "filtered": split.read,
        "output": graph.outputs[0],
        "ladder_lines": [
            "rungs = rungs_of(groups, first_group, groups_in_all)",
            "first_rate, rung_step = ladder_of(first_group, rungs)",
        ]
        * bool(ladder),
        "ladder_defaults": ["first_group: int = 0", "groups_in_all: int | None = None"]
        * bool(ladder),
        "modes_count": spec.filter.modes or 0,
        "launch_arguments": _launch_arguments(plan.step) if plan.step else [],
        "leave": plan.leave is not None,
        "history": plan.history is not None,
        "chunks": takes_chunks(spec, plan),
        "leave_arguments": _leave_arguments(plan.leave) if plan.leave else [],
        "leave_parameters": plan.leave.program.parameters if plan.leave else (),
        "kept": kept,
        # y, modes, rings, count, done
        "given_by_chunk": 3 + modal + len(kept),
        "longest_ring": f"max({', '.join(each)})" if len(each) > 1 else "".join(each),
        "decode_arguments": [
            f"{x}: Tensor",
            *(f"{name}: Tensor | None" for name in inputs[1:]),
            *(f"{name}: Tensor" for name in (*names, *made)),
            "slots: Tensor | None",
            "draft: bool",
            *ladder,
        ],
        "input_names": ", ".join(inputs),
        "needs": [
            *([f"require_triton({'inputs[0]'})"] * (plan.step is not None)),
            *(["rungs_of(parameters[0].shape[0], first_group, groups_in_all)"] * bool(ladder)),
        ],
    }


def _after(name: str, spec: OpSpec) -> str:
    """A tensor of the state after some steps: what `state_after` has found, or as it was."""
    same = name == "z" and spec.filter.kind is FilterKind.MODAL
    return f"state.{name}" if same else name


def helper_names(spec: OpSpec, plan: Plan) -> set[str]:
    """The plain-PyTorch helpers that decoding calls beside those of parts/decode.py."""
    graph = operator_graph(spec)
    found = {"channel_rows"}
    modal = spec.filter.kind is FilterKind.MODAL
    if any(view.roles > 1 for view in graph.views) and (modal or not _joint(spec)):
        found.add("role_rows")
    lengths = [graph.view(n.taps).length or 0 for n in _convolved(graph) if n.taps in _taps(graph)]
    found |= {f"conv_{_method(length, plan)}" for length in lengths}
    if modal:
        found |= {
            "chunks",
            "conv_modal",
            "leave_modes",
            *["conv_direct"] * (spec.featurizer is not None),
        }
    if spec.filter.pairs:
        found.add("poles_and_residues")
    return found


def _convolved(graph: Graph) -> list[Conv]:
    return [n for n in graph.nodes if isinstance(n, Conv)]


def _taps(graph: Graph) -> set[str]:
    """Values of the graph that are taps, not modes."""
    modes = {n.out for n in graph.nodes if isinstance(n, Modes)}
    return {n.taps for n in _convolved(graph)} - modes


def _joint(spec: OpSpec) -> bool:
    """Whether the featurizers of all inputs are one convolution: rows of its taps are those of the
    inputs, one behind the other.
    """
    return spec.featurizer is not None and len(spec.inputs) > 1 and not spec.interleaved


def _method(length: int, plan: Plan) -> str:
    """How plain PyTorch convolves with so many taps: never by FFT, in which later steps round
    earlier ones, in a file that does not say so.
    """
    few = length <= MOST_DIRECT or plan.eager is not EagerConv.FFT
    return "within" if few else "fft"


@dataclass(frozen=True, slots=True)
class SplitLines:
    """The lines of an operator (B, D, T) in plain PyTorch, a line or two a node.

    Attributes:
        before: those that make what the filter reads, and all else that needs no result of it.
        filter: the inner filter, on what it reads and its past.
        after: those that need its result.
        read, made: the names of what the filter reads and of its result.
        kept: the names of values that are found before the filter and needed after it.
        before_names, after_names: lines that name what lines with parameters speak of.
    """

    before: list[str]
    filter: list[str]
    after: list[str]
    read: str
    made: str
    kept: list[str]
    before_names: list[str]
    after_names: list[str]


def split_lines(spec: OpSpec, plan: Plan) -> SplitLines:
    """The lines of an operator, split at its inner filter."""
    graph = operator_graph(spec)
    featurizers = _featurizers(graph)
    (inner,) = [conv for conv in _convolved(graph) if conv not in featurizers]
    later = {inner.out}  # results of the filter, and of these
    for node in graph.nodes:
        if later & set(activations(node)):
            later.add(node.out)
    needed = [node for node in graph.nodes if node.out in later and node is not inner]
    given = {name for node in needed for name in activations(node)} - later
    # Parameters that nothing else needs stand beside what needs them.
    vectors = {parameter(node) for node in needed}
    vectors -= {parameter(n) for n in graph.nodes if n.out not in later}
    before = _joint_lines(spec, graph, featurizers) if _joint(spec) else []
    own: list[str] = []
    after: list[str] = []
    for node in graph.nodes:
        of_filter = node is inner or node.out == inner.taps
        lines = own if of_filter else after if node.out in later | vectors else before
        match node:
            case Input():
                pass
            case Parameter(view=view) if _joint(spec) and view.tensor == "featurizer":
                pass
            case Conv() if _joint(spec) and node in featurizers:
                pass
            case Conv(out=out, x=x, taps=taps) if taps in _taps(graph):
                view = graph.view(taps)
                assert view.length is not None
                source, lag = x, view.length - 1
                if lag:
                    source, past = f"{x}_rows", "past" if of_filter else f"{x}_tail"
                    lines.append(f"{source} = torch.cat([{past}, {x}], 2)")
                if _method(view.length, plan) == "within":
                    lines.append(f"{out} = conv_within({source}, {taps}_c)")
                else:
                    lines.append(f"{out} = conv_fft({source}, {taps}_c, +1)[..., {lag}:]")
            case Conv(out=out, x=x, taps=taps):
                both = f"{taps}_modes"
                both = f"poles_and_residues({both})" if spec.filter.pairs else both
                lines.append(f"poles, residues = {both}")
                lines.append(f"{out} = decode_modes({x}, poles, residues, state, places, count)")
            case Modes():
                lines += eager.lines_of(graph, EagerConv.MODAL, [node])
            case _:
                lines += eager.lines_of(graph, EagerConv.DIRECT, [node])
    kept = [node.out for node in graph.nodes if node.out in given]
    others = [n for n in graph.nodes if n.out not in later and n.out != inner.taps]
    named = [_names(spec, graph, nodes) for nodes in (others, needed)]
    return SplitLines(before, own, after, inner.x, inner.out, kept, *named)


def _names(spec: OpSpec, graph: Graph, nodes: Iterable[Node]) -> list[str]:
    """What the lines of nodes speak of beside their values."""
    views = [graph.view(name) for node in nodes if (name := parameter(node)) is not None]
    if not views:
        return []
    first, *_ = names = spec.kernel_parameters
    found = [f"{targets(names)} = effective(*parameters, dtype)"]
    if any(not (view.tensor == "featurizer" and _joint(spec)) for view in views):
        found.append("c = slice(0, channels)")
    if any(view.grouped for view in views):
        found.append(f"width = channels // {first}.shape[0]")
    return found


def _featurizers(graph: Graph) -> list[Conv]:
    taps = _taps(graph)
    found = [n for n in _convolved(graph) if n.taps in taps]
    return [n for n in found if graph.view(n.taps).tensor == "featurizer"]


def _joint_lines(spec: OpSpec, graph: Graph, convs: list[Conv]) -> list[str]:
    """The featurizers of all inputs in one."""
    outs = {graph.view(conv.taps).role: conv.out for conv in convs}
    flip = ".flip(1)" * (graph.view(convs[0].taps).order is TapOrder.LAG_LAST)
    rows = f"torch.cat([{', '.join(spec.inputs)}], 1)"
    rows = f"torch.cat([tails, {rows}], 2)" if spec.lag else rows
    names = ", ".join(outs[role] for role in sorted(outs))
    return [f"{names} = conv_within({rows}, featurizer{flip}).chunk({len(outs)}, 1)"]


def takes_chunks(spec: OpSpec, plan: Plan) -> bool:
    """Whether calls take and give a state by kernels alone."""
    both = spec.state is not None and spec.state.initial and spec.state.final
    return both and plan.leave is not None


def _leave_arguments(kernel: Kernel) -> list[str]:
    """What the launch of the kernel is given that gives the past after some steps."""
    found = []
    for a in kernel.arguments:
        match a.of:
            case Of.STEPS:
                found.append(f"*strided({a.name})")
            case Of.STATE | Of.INDEX if a.name == "ends":
                found.append("count if ends is None else ends")
            case Of.PARAMETER | Of.SIZE | Of.STATE | Of.INDEX:
                found.append(a.name)
            case _:
                pass
    found.append("config=LEAVE")
    known = {"CHANNELS": "channels", "ENDS": "ends is not None", "PARTS": "parts"}
    for a in kernel.arguments:
        if a.of is Of.CONSTANT and a.value is not None:
            ring = a.name.removesuffix("_SLOTS").lower()
            found.append(f"{a.name}={known.get(a.name, f'{ring}.shape[1]')}")
    return found


def _launch_arguments(kernel: Kernel) -> list[str]:
    """What the launch of the kernel is given."""
    found = []
    for a in kernel.arguments:
        match a.of:
            case Of.STEPS:
                found.append(f"*strided({a.name})")
            case Of.STATE | Of.INDEX if a.name == "slots":
                found.append("state.count if slots is None else slots")
            case Of.STATE | Of.INDEX:
                found.append(f"state.{a.name}")
            case Of.PARAMETER | Of.SIZE:
                found.append(a.name)
            case _:
                pass
    found.append("config=config")
    for a in kernel.arguments:
        if a.of is Of.CONSTANT and a.value is not None:
            name = a.name.removesuffix("_SLOTS").lower()
            value = f"state.{name}.shape[1]" if a.name.endswith("_SLOTS") else _FOUND[a.name]
            found.append(f"{a.name}={value}")
    return found
