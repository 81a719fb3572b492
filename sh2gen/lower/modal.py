"""`modal`: filters that are sums of exponentials, as a recurrence computed block by block.

With h[j] = sum_n R_n exp(a_n j), the convolution is y[t] = sum_n R_n s_n[t] where
s_n[t] = exp(a_n) s_n[t - 1] + z[t] (Hyena-LI, arXiv 2503.01868, section 2). Time is cut into
blocks of BLOCK_T steps: within a block y is a product with the Toeplitz matrix of h, and what came
before reaches it through the N states alone. So neither a filter of the sequence's length nor an
FFT is needed. The rows of a product are consecutive blocks of one channel (skeleton `recurrence`):
the states between them are found by a scan, and one state is carried from tile to tile.

Backward walks backward in time with the states of the adjoint. The states before its tiles are
those that forward has stored, 1/64 of the size of an activation in bfloat16 at 16 modes and tiles
of 2048 steps; the convolution itself is computed again. Poles and residues get their gradients
from products of steps and states that are summed in registers.

Pairs of complex modes have states of two numbers each, real and imaginary parts, which products
read as rows of their own; helpers that multiply states are others then (parts `modal_pairs*`).
"""

from __future__ import annotations

import dataclasses

from sh2gen.graph.adjoint import adjoint
from sh2gen.graph.nodes import Conv, Graph, ModeGradient, Modes, Parameter, operator_graph
from sh2gen.lower.actions import gradients_doc, partials
from sh2gen.lower.leave import past_kernels
from sh2gen.lower.rows import partial_sums
from sh2gen.lower.step import step_kernel
from sh2gen.lower.streams import Stream
from sh2gen.lower.verdict import Verdict, later_fields
from sh2gen.plan.actions import (
    Action,
    Allocate,
    Give,
    Join,
    Launch,
    Recompute,
    Reduce,
    Room,
    When,
)
from sh2gen.plan.arguments import join_arguments, walk_arguments
from sh2gen.plan.blocks import Recall
from sh2gen.plan.edges import (
    Edge,
    EnterGradient,
    FirstRows,
    HistoryGradient,
    LeaveAdjoint,
    LeaveGradient,
    LeaveRows,
    LeaveState,
)
from sh2gen.plan.geometry import row_grid, walk_grid
from sh2gen.plan.kernel import Kernel, Reduction, Role
from sh2gen.plan.modes import (
    Blocks,
    EndParts,
    KeepState,
    LoadModes,
    LoadState,
    ModalConv,
    ModalGradient,
    Parts,
    StateGradient,
    States,
    StoreModes,
    ZeroModes,
    ZeroState,
)
from sh2gen.plan.phases import phases
from sh2gen.plan.plan import EagerConv, Plan
from sh2gen.plan.program import TileProgram
from sh2gen.plan.statements import (
    Extend,
    Fir,
    LoadRows,
    LoadTaps,
    LoadVector,
    Rowwise,
    Statement,
    StoreRows,
)
from sh2gen.plan.values import BLOCK, Layout, Operand
from sh2gen.schedule.facts import tap_terms
from sh2gen.spec.language import Activation, Activations, FilterKind, Sequences
from sh2gen.spec.operator import OpSpec

MAX_STATE = 64  # numbers, of which tables and accumulators live in shared memory and registers
MAX_FEATURIZER = 4  # its context is kept in registers, and compile time grows with it


def applies(spec: OpSpec) -> Verdict:
    """Whether this operator can be computed by `modal`, and why (not)."""
    reasons = list(later_fields(spec))
    if spec.filter.kind is not FilterKind.MODAL:
        reasons.append(f"the filter is {spec.filter.kind.value}; modal needs sums of exponentials")
    elif spec.filter.state_size > MAX_STATE and spec.filter.pairs:
        reasons.append(f"{spec.filter.modes} pairs of complex modes; at most {MAX_STATE // 2}")
    elif spec.filter.state_size > MAX_STATE:
        reasons.append(f"{spec.filter.modes} modes; at most {MAX_STATE}")
    if spec.featurizer is not None and spec.featurizer.length > MAX_FEATURIZER:
        reasons.append(f"a featurizer of {spec.featurizer.length} taps; at most {MAX_FEATURIZER}")
    if spec.activation is not Activation.NONE:
        reasons.append("an activation: its gradient needs the convolution before its adjoint")
    if spec.layout.activations is Activations.BLD:
        reasons.append("the layout is BLD; modal reads long rows of one channel")
    if reasons:
        return Verdict.no(*reasons)
    return Verdict.yes(
        f"{spec.filter.modes} {'pairs of complex modes' if spec.filter.pairs else 'modes'} "
        f"as a recurrence over blocks of time, of any length: "
        f"one kernel reads {len(spec.inputs)} and writes 1 activation"
    )


def lower(spec: OpSpec) -> tuple[Plan, ...]:
    """One plan: channels first, states before tiles stored for backward."""
    graph = operator_graph(spec)
    backward_graph = adjoint(graph)
    given = spec.state is not None  # a call takes and gives the state at the ends
    own = ("modal_pairs", "modal_pairs_ends", "modal") if spec.filter.pairs else ("modal",)
    apart = spec.sequences is Sequences.PACKED
    if apart:
        own = ("apart", *("modal_pairs_apart",) * spec.filter.pairs, "modal_apart", *own)
    parts = (*own, "modal_rows", "modal_ends", "rows", "toeplitz", "channels_first", "trained")
    names = (f"d_{name}" for name in spec.inputs)
    backward, reductions = _backward(
        backward_graph, dict(zip(names, backward_graph.outputs, strict=False)), given
    )

    def kernel(role: Role, program: TileProgram, *, sums: bool = False) -> Kernel:
        if apart:
            program = _apart(program)
        return Kernel(
            name=f"{role}_sums" if sums else role.value,
            role=role,
            skeleton="recurrence",
            parts=parts,
            program=program,
            arguments=walk_arguments(
                spec,
                program,
                backward=role is Role.BACKWARD,
                sums=sums,
                parts=any(isinstance(s, Parts) for s in program.body),
                terms=tap_terms(spec),
            ),
            grid=row_grid if apart else walk_grid,
            lanes=("H", "M // 2"),
        )

    backward_kernel = kernel(Role.BACKWARD, backward)

    def sums(graph: Graph, role: Role, time: int) -> tuple[Action, ...]:
        """What finds, where a sequence is split, what every tile adds to the state."""
        room = Allocate(names=("split_sums",), room=Room.STATES, when=When.SPLIT)
        if apart:  # rows of documents are not split
            return (room,)
        found = kernel(role, _sums(graph, time, given), sums=True)
        return (
            room,
            Launch(kernel=found, when=When.SPLIT),
        )

    inputs, lag = spec.inputs, spec.lag
    shape = (("batch",), ("splits",), (len(inputs),), ("channels",), (2,), (lag,))
    edges = Allocate(names=("edges",), room=Room.FLOAT32, shape=shape, when=When.SPLIT)
    leaving = Allocate(names=("leaving",), room=Room.LIKE, like="entry", io=True)
    entering = [Allocate(names=("d_entry",), room=Room.LIKE, like="entry", io=True)]
    entering += [Allocate(names=("d_history",), room=Room.LIKE, like="history")]
    stated = " `state` is the history and the modes' state before the first step."
    actions: dict[str, tuple[Action, ...]] = {
        Role.FORWARD: (
            Allocate(names=("y",), room=Room.ACTIVATION),
            Allocate(names=("states",), room=Room.STATES, when=When.KEPT),
            *[leaving] * given,
            *sums(graph, Role.FORWARD, +1),
            Launch(kernel=kernel(Role.FORWARD, _forward(graph, given))),
            Give(
                names=("y", "states", *["leaving"] * given),
                doc="[y, states before tiles"
                + (f", the modes' state after the last step].{stated}" if given else "]."),
            ),
        ),
        Role.BACKWARD: (
            Recompute(name="states", role=Role.FORWARD),
            Allocate(names=tuple(f"d_{name}" for name in inputs), room=Room.GRADIENTS),
            *entering * given,
            *[edges] * bool(lag),
            *partials(backward_kernel),
            *sums(backward_graph, Role.BACKWARD, -1),
            Launch(kernel=backward_kernel),
            *([Join(arguments=join_arguments(spec))] if lag and not apart else []),
            Reduce(reductions=reductions),
            Give(
                names=("gradients", *["d_history", "d_entry"] * given),
                doc=gradients_doc(spec)
                + ("\n\nAlso of `state`, as in `launch_forward`, in float32." if given else ""),
            ),
        ),
    }
    return (
        Plan(
            algorithm="modal",
            layout=Layout.BDL,
            states=True,
            graph=graph,
            backward_graph=backward_graph,
            actions=actions,
            eager=EagerConv.MODAL,
            step=step_kernel(spec),
            past=past_kernels(spec),
        ),
    )


class _Stream(Stream):
    """Convolutions read blocks and the states around them."""

    def load_filter(self, node: Parameter | Modes) -> Statement:
        assert isinstance(node, Modes)
        return LoadModes(out=node.out, views=node.views)

    def product(self, conv: Conv) -> Statement:
        return ModalConv(
            out=conv.out,
            blocks=f"{conv.x}_block",
            states=f"{conv.x}_states",
            modes=conv.taps,
            direction=conv.direction,
        )


def _states(
    x: str, modes: str, direction: int, *, entered: bool = False, given: bool = False
) -> list[Statement]:
    """The block of x and the states around it, of which the first may be that of a sequence."""
    return [
        Blocks(out=f"{x}_block", x=Operand(x, BLOCK)),
        States(
            out=f"{x}_states",
            blocks=f"{x}_block",
            modes=modes,
            state=f"{x}_state",
            direction=direction,
            entered=entered,
            given=given,
        ),
    ]


def _forward(graph: Graph, given: bool) -> TileProgram:
    """A stream forward in time, which writes the last state if the first is given."""
    stream = _Stream(graph, time=+1)
    conv = stream.conv(+1)
    body: list[Statement] = []
    for node in graph.nodes:
        body += stream.statements(node)
        if node.out == conv.x:
            states = _states(conv.x, conv.taps, +1, entered=True, given=given)
            x = Operand(conv.x, BLOCK)
            leave = LeaveState(states=f"{conv.x}_states", x=x, modes=conv.taps)
            body += [KeepState(state=f"{conv.x}_state"), *states, *[leave] * given]
    body.append(StoreRows(tensor="y", x=Operand(graph.outputs[0], BLOCK)))
    body = [s for statement in body for s in _recalled(statement)]
    return TileProgram(prologue=tuple(stream.prologue), body=_lagged(body, given))


def _sums(graph: Graph, time: int, given: bool) -> TileProgram:
    """What every tile of a stream adds to the state: all that the state depends on."""
    stream = _Stream(graph, time=time)
    conv = stream.conv(time)
    needed = stream.before([conv.x])
    rows = [s for node in graph.nodes if node.out in needed for s in stream.statements(node)]
    state = f"{conv.x}_state"
    states = _states(conv.x, conv.taps, time)
    body = [*rows, ZeroState(out=state), *states, KeepState(state=state)]
    used = {conv.taps}
    for s in rows:
        match s:
            case Fir(taps=taps):
                used.add(taps)
            case Rowwise(vector=str(vector)):
                used.add(vector)
            case _:
                pass
    loads = [s for s in stream.prologue if isinstance(s, LoadTaps | LoadVector | LoadModes)]
    return TileProgram(
        prologue=tuple(load for load in loads if load.out in used),
        body=_lagged(body, given),
        time=time,
    )


def _recalled(statement: Statement) -> list[Statement]:
    """A convolution makes blocks, of which rows are then read."""
    if not isinstance(statement, ModalConv):
        return [statement]
    out = statement.out
    blocks = f"{out}_block"
    return [dataclasses.replace(statement, out=blocks), Recall(out=out, blocks=blocks)]


def _lagged(body: list[Statement], given: bool) -> tuple[Statement, ...]:
    """The body with its context loaded by itself; that before the first step may be given."""
    return tuple(
        dataclasses.replace(s, history=given, lagged=True)
        if isinstance(s, LoadRows) and s.rows.lo
        else s
        for s in body
    )


def _apart(program: TileProgram) -> TileProgram:
    """The same of documents that lie apart."""
    body = [
        dataclasses.replace(s, apart=True) if isinstance(s, States) else s for s in program.body
    ]
    return dataclasses.replace(program, body=tuple(body))


def _in_phases(body: list[Statement]) -> list[Statement]:
    """The body so that few values are alive at once: inputs are loaded for blocks and states,
    and again for the gradients that each of the two convolutions makes, part of a tile by part.
    Gradients of modes come last: their operands are in shared memory, and would wait in registers
    if they came earlier. The state before the tile is asked for first.
    """
    # Only the shape of a program is asked for here: parameters have been loaded, totals zeroed.
    split = phases(TileProgram(prologue=(), body=tuple(body)))
    assert split is not None, "an activation is refused"
    convs = {s.direction: s for s in split.products if isinstance(s, ModalConv)}
    states = [s for s in split.products if isinstance(s, LoadState)]
    ordered: list[Statement] = [*states, Parts(time=+1), *split.own, EndParts()]
    gradients: list[Statement] = []
    for s in split.products:
        match s:
            case ModalConv() | LoadState():
                pass
            case ModalGradient(out=out, grad_states=after, states=before):
                ordered.append(StateGradient(out=out, grad_states=after, states=before))
                gradients.append(s)
            case _:
                ordered.append(s)
    for direction, phase in ((+1, split.convolved), (-1, split.adjoint)):
        if phase:
            conv, rows = _recalled(convs[direction])
            ordered += [conv, Parts(time=-1), rows, *phase, EndParts()]
    return [*ordered, *gradients]


def _with_edges(
    body: list[Statement], total: str, inputs: list[str], given: bool
) -> tuple[list[Statement], list[Edge]]:
    """The body with what later steps take from its rows, and what writes rows for earlier steps
    once the stream has come to the first step. If the first state is given, also what the gradient
    of the last adds, and what writes those of the first state and of the history.

    Args:
        total: the accumulators of modes.
        inputs: in order.
    """
    found: list[Statement] = []
    after: list[Edge] = []
    (x,) = [s.x for s in body if isinstance(s, Blocks) and s.out == _blocks(body, +1)]
    (adjoint,) = [s for s in body if isinstance(s, States) and s.direction == -1]
    (conv,) = [s for s in body if isinstance(s, ModalConv) and s.direction == -1]
    for statement in body:
        match statement:
            case States(direction=1, out=states, modes=modes) if given:
                leaving = LeaveGradient(total=total, states=states, x=x, modes=modes)
                found += [statement, leaving]
            case Recall(out=out, blocks=blocks) if given and blocks == conv.out:
                found += [statement, LeaveAdjoint(rows=out, modes=conv.modes)]
            case Extend(out=out, x=extended):
                (fir,) = [s for s in body if isinstance(s, Fir) and s.x.name == out]
                (store,) = [s for s in body if isinstance(s, StoreRows) and s.x.name == fir.out]
                role = inputs.index(store.tensor.removeprefix("d_"))
                rows, length = statement.after, fir.length - 1
                after += [HistoryGradient(rows=rows, taps=fir.taps, role=role)] * given
                after.append(FirstRows(rows=rows, role=role))
                leave = LeaveRows(x=extended, role=role, length=length)
                found += [statement, leave]
            case _:
                found.append(statement)
    enter = EnterGradient(state=adjoint.state, modes=adjoint.modes)
    return found, [*([enter] * given), *after]


def _blocks(body: list[Statement], direction: int) -> str:
    """The blocks of which the states in one direction are."""
    (states,) = [s for s in body if isinstance(s, States) and s.direction == direction]
    return states.blocks


def _backward(
    graph: Graph, stores: dict[str, str], given: bool
) -> tuple[TileProgram, tuple[Reduction, ...]]:
    """A stream backward in time.

    Args:
        graph: the backward graph.
        stores: tensor name -> value, for the gradients of inputs.
        given: whether a call gives the gradient of the last state.
    """
    stream = _Stream(graph, time=-1)
    (gradient,) = [node for node in graph.nodes if isinstance(node, ModeGradient)]
    modes = graph.modes(gradient.modes)
    body: list[Statement] = []
    left = dict(stores)
    for node in graph.nodes:
        if isinstance(node, ModeGradient):
            body.append(
                ModalGradient(
                    out=node.out,
                    grad=f"{node.grad}_block",
                    grad_states=f"{node.grad}_states",
                    blocks=f"{node.x}_block",
                    states=f"{node.x}_states",
                )
            )
        else:
            body += stream.statements(node)
        if node.out == gradient.x:
            state: list[Statement] = [LoadState(out=f"{node.out}_state")]
            body += [*state, *_states(node.out, gradient.modes, +1)]
        if node.out == gradient.grad:
            body += _states(node.out, gradient.modes, -1, entered=True, given=given)
        for tensor in [tensor for tensor, value in left.items() if value == node.out]:
            body.append(StoreRows(tensor=tensor, x=Operand(left.pop(tensor), BLOCK)))
    zeros, partials, reductions = partial_sums(graph, stream.sums())
    inputs = [tensor.removeprefix("d_") for tensor in stores]
    body, edges = _with_edges(_in_phases(body), gradient.out, inputs, given)
    first = sum(zero.length for zero in zeros)
    count = modes.count
    store = StoreModes(total=gradient.out, views=modes.views, first=first, length=count)
    size = len(modes.views) // 2 * count  # of a state
    program = TileProgram(
        prologue=(*stream.prologue, *zeros, ZeroModes(out=gradient.out, length=size, last=given)),
        body=_lagged(body, given),
        epilogue=(*partials, store, *edges),
        time=-1,
    )
    own = (
        Reduction(tensor=view.tensor, first=first + i * count, view=view)
        for i, view in enumerate(modes.views)
    )
    return program, (*reductions, *own)
