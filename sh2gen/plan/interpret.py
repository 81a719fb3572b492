"""The eager meaning of graphs and plans: what they say, in torch, without kernels.

`evaluate` runs a graph on whole sequences. `interpret` runs a plan's tile programs: every value
holds only the rows that the plan gives it, for all blocks of time at once, so that a plan which
asks for too little context fails here too.

B batch, D channels, L time steps, N blocks of ROWS steps, K taps of a row of a parameter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from sh2gen.graph.evaluate import (
    channel_taps,
    delayed,
    evaluate,
    long_gradient,
    modal_filter,
    mode_sums,
    parameter_gradients,
    silu_slope,
    view_rows,
    view_slice,
)
from sh2gen.graph.nodes import (
    Modes,
)
from sh2gen.graph.reference import decayed_filter
from sh2gen.plan.actions import (
    Allocate,
    Eager,
    Give,
    Join,
    Launch,
    Recompute,
    Reduce,
    When,
)
from sh2gen.plan.blocks import (
    LoadToeplitz,
    Recall,
    Remember,
    StoreToeplitz,
    Toeplitz,
    ToeplitzGradient,
    ZeroToeplitz,
)
from sh2gen.plan.edges import Edge
from sh2gen.plan.kernel import Reduction, Role
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
from sh2gen.plan.plan import Plan
from sh2gen.plan.program import TileProgram
from sh2gen.plan.statements import (
    Accumulate,
    Enter,
    Extend,
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
from sh2gen.plan.values import Operand, Rows
from sh2gen.spec.language import FilterKind, Parametrisation
from sh2gen.spec.operator import OpSpec

Tensors = Mapping[str, Tensor]


def interpret(
    plan: Plan,
    spec: OpSpec,
    inputs: Tensors,
    parameters: Tensors,
    dy: Tensor,
    *,
    rows: int = 8,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The output of a plan, and the gradients of <y, dy> by the name of each input and parameter.

    Args:
        inputs: every name of `spec.inputs` -> (B, D, L), whatever the plan's layout; and, of a
            plan for documents, position -> (L), how many steps of its document are before each.
        parameters: every name of `spec.parameters` -> its shape; a filter without its decay.
        dy: (B, D, L).
        rows: the ROWS of the plan's kernels; plays no part in a plan without kernels.
        dtype: of all arithmetic.

    Returns:
        y (B, D, L), and name -> gradient in the shape of that input or parameter.
    """
    weights = {name: p.to(dtype) for name, p in parameters.items()}
    if spec.filter.kind is FilterKind.DECAY:
        weights["filter"] = decayed_filter(spec, weights["filter"])
    if spec.filter.parametrisation is Parametrisation.P_GAMMA:
        weights["log_poles"] = -torch.exp(weights["p"] + weights["gamma"])

    where = None
    if "position" in inputs:
        where, position = apart(spec, plan, inputs["position"])
        inputs = {name: laid_apart(inputs[name], where) for name in spec.inputs}
        inputs |= {"position": position} if plan.states else {}
        dy = laid_apart(dy, where)
    made = call(plan, Role.FORWARD, spec, inputs, weights, rows=rows, dtype=dtype)
    given = {**inputs, **{name: made[name] for name in plan.saved}, "dy": dy}
    found = call(plan, Role.BACKWARD, spec, given, weights, rows=rows, dtype=dtype)
    gradients = {name.removeprefix("d_"): gradient for name, gradient in found.items()}
    if where is not None:
        made["y"] = made["y"][..., where]
        gradients |= {name: gradients[name][..., where] for name in spec.inputs}

    if spec.filter.parametrisation is Parametrisation.P_GAMMA:  # both make the same difference
        gradients["p"] = gradients.pop("log_poles") * weights["log_poles"]
        gradients["gamma"] = gradients["p"]
    if spec.filter.kind is FilterKind.DECAY:  # linear and diagonal: it is its own adjoint
        gradients["filter"] = decayed_filter(spec, gradients["filter"])
    return made["y"], gradients


def apart(spec: OpSpec, plan: Plan, position: Tensor) -> tuple[Tensor, Tensor]:
    """Where the steps of a row are once its documents lie as far apart as taps reach back, and how
    many steps each step of that row is behind the first of a document.
    """
    reach = spec.lag + (0 if plan.states else (spec.filter.length or 1) - 1)
    begun = (position == 0).long()
    where = torch.arange(len(position), device=position.device) + reach * (begun.cumsum(0) - 1)
    step = torch.arange(int(where[-1]) + 1, device=position.device)
    begins = where[begun.bool()]
    return where, step - begins[torch.searchsorted(begins, step, right=True) - 1]


def laid_apart(x: Tensor, where: Tensor) -> Tensor:
    """The steps of a row there, and zeros between its documents."""
    found = x.new_zeros((*x.shape[:-1], int(where[-1]) + 1))
    found[..., where] = x
    return found


def call(
    plan: Plan,
    role: str,
    spec: OpSpec,
    tensors: Tensors,
    parameters: Tensors,
    *,
    rows: int = 8,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """What the actions of a role make: activations (B, D, L) by name, and gradients of parameters
    as d_name. A sequence is not cut into splits, and nothing is made of states.

    Args:
        tensors: every activation that the role is given -> (B, D, L).
        parameters: every tensor that kernels read, a decay filter with its decay applied.
    """
    made: dict[str, Tensor] = {}
    partials = groups = None
    for action in plan.actions[role]:
        match action:
            case Launch(kernel=kernel, when=When.ALWAYS):
                stored, partials, groups = run(
                    kernel.program, spec, {**tensors, **made}, parameters, rows=rows, dtype=dtype
                )
                made |= stored
            case Reduce(reductions=reductions):
                assert partials is not None and groups is not None
                for r in reductions:
                    of = groups if r.by_group else partials
                    made[f"d_{r.tensor}"] = reduce_partials(r, spec, of)
            case Eager(graph=graph):
                found = evaluate(graph, spec, tensors, parameters, dtype=dtype)
                if role == Role.FORWARD:
                    made |= found | {"y": found[graph.outputs[0]]}
                else:
                    made |= zip((f"d_{n}" for n in spec.inputs), found.values(), strict=False)
                    sums = parameter_gradients(graph, spec, found)
                    made |= {f"d_{name}": gradient for name, gradient in sums.items()}
            case Launch() | Join() | Allocate() | Recompute() | Give():
                pass  # of splits, tensors and states
    return made


# ----------------------------------------------------------------------------------- tile programs


def run(
    program: TileProgram,
    spec: OpSpec,
    tensors: Tensors,
    parameters: Tensors,
    *,
    rows: int = 8,
    dtype: torch.dtype = torch.float64,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What one launch of a kernel writes: {tensor: (B, D, L)}, partial sums (P, D), and those of
    taps, (K, D), where only the first channel of a group is not zero.

    Args:
        tensors: every activation that the program loads -> (B, D, L).
        parameters: every tensor that it reads, a decay filter with its decay applied.
        rows: ROWS, the steps of a block.
        dtype: of all arithmetic.
    """
    like = tensors[program.loads[0]].to(dtype)
    partials = like.new_zeros(program.partial_rows, spec.channels)
    group_partials = like.new_zeros(spec.filter.length or 0, spec.channels)
    position = tensors.get("position")
    launch = _Launch(spec, rows, like, partials, group_partials, position=position)
    for statement in program:
        launch.execute(statement, tensors, parameters)
    return launch.stored, launch.partials, launch.group_partials


def reduce_partials(reduction: Reduction, spec: OpSpec, partials: Tensor) -> Tensor:
    """The gradient of one parameter tensor, in its shape, from partial sums (P, D)."""
    length = reduction.view.length or 1
    shapes = {p.name: p.shape for p in spec.parameters}
    # Log-poles have the shape of residues, also where they are trained as something else.
    shape = shapes.get(reduction.tensor, shapes.get("residues"))
    assert shape is not None
    gradient = partials.new_zeros(shape)
    for role in range(reduction.view.roles):
        view = dataclasses.replace(reduction.view, role=role)
        first = reduction.first + role * length
        lags = partials[first : first + length]  # (K, D)
        gradient[view_slice(spec, view)] = view_rows(spec, view, lags)
    return gradient


@dataclass(frozen=True, slots=True)
class _Held:
    """A value of a tile program for all blocks, (rows, B, D, N), and which rows these are."""

    tensor: Tensor
    rows: Rows


@dataclass(slots=True)
class _Launch:
    """All programs of a launch, one statement at a time."""

    spec: OpSpec
    block: int  # ROWS
    like: Tensor  # (B, D, L): shape, dtype and device of every activation
    partials: Tensor  # (P, D)
    group_partials: Tensor  # (K, D)
    blocks: dict[str, Tensor] = field(default_factory=dict)  # remembered (B, D, L), whole
    held: dict[str, _Held] = field(default_factory=dict)
    taps: dict[str, Tensor] = field(default_factory=dict)  # (K, 1, D, 1), lag 0 first
    totals: dict[str, Tensor] = field(default_factory=dict)  # (K, B, D, N)
    modes: Modes | None = None
    parameters: Tensors = field(default_factory=dict)
    stored: dict[str, Tensor] = field(default_factory=dict)  # (B, D, L)
    position: Tensor | None = None  # (L), of each step in its document

    def execute(self, statement: Statement, tensors: Tensors, parameters: Tensors) -> None:
        match statement:
            case (
                LoadTaps(out=out, view=view)
                | LoadVector(out=out, view=view)
                | LoadToeplitz(out=out, view=view)
            ):
                taps = channel_taps(self.spec, view, parameters[view.tensor].to(self.like))
                self.taps[out] = taps.T[:, None, :, None]
            case LoadModes(views=views):
                self.modes = Modes(out="filter", views=views)
                self.parameters = parameters
            case Blocks(out=out, x=x):
                self.blocks[out] = self.store(self.take(x))
            case ModalConv(out=out, blocks=blocks, direction=direction):
                assert self.modes is not None
                whole = self.blocks[blocks]
                h = modal_filter(self.spec, self.modes, self.parameters, whole)  # (D, L)
                # Blocks and states in one.
                self.blocks[out] = _long_conv(whole, h.T[..., None], direction, self.position)
            case ModalGradient(out=out, grad=grad, blocks=blocks):
                self.totals[out] = self.long_gradient(grad, blocks, self.like.shape[2])  # (L, D)
            case StoreModes(total=total, first=first, length=length):
                assert self.modes is not None
                lags = self.totals[total]
                sums = mode_sums(self.spec, self.modes, self.parameters, lags)  # (2 or 4, D, N)
                count = len(sums) * length
                self.partials[first : first + count] = sums.transpose(1, 2).flatten(0, 1)
            case ZeroModes() | LoadState() | KeepState() | States() | StateGradient() | Edge():
                pass  # nothing is cut into tiles here
            case Parts() | EndParts() | ZeroState():
                pass  # nothing is cut into tiles here
            case ZeroTaps(out=out, length=length):
                batch, channels, steps = self.like.shape
                count = -(-steps // self.block)
                self.totals[out] = self.like.new_zeros(length, batch, channels, count)
            case LoadRows(out=out, tensor=name, rows=rows):
                self.hold(out, self.load(tensors[name].to(self.like), rows), rows)
            case Enter(out=out, x=x):  # a sequence that begins has had nothing but zeros
                self.hold(out, self.take(x), x.rows)
            case Extend(out=out, x=x, rows=rows):
                # Lane after lane, the rows of all blocks are the whole sequence.
                self.hold(out, self.load(self.store(self.take(x), whole=True), rows), rows)
            case Remember(out=out, x=x):
                self.blocks[out] = self.store(self.take(x))
            case Recall(out=out, blocks=blocks, rows=rows):
                self.hold(out, self.load(self.blocks[blocks], rows), rows)
            case Toeplitz(out=out, blocks=blocks, taps=name, direction=direction, rows=rows):
                taps = self.taps[name][:, 0]  # (K, D, 1)
                y = _long_conv(self.blocks[blocks], taps, direction)
                self.hold(out, self.load(y, rows), rows)
            case ToeplitzGradient(out=out, grad=grad, blocks=blocks, length=length):
                lags = long_gradient(self.blocks[grad], self.blocks[blocks], length)
                self.totals[out] = lags  # (K, D)
            case ZeroToeplitz():
                pass
            case StoreToeplitz(total=total):
                width = self.spec.group_width
                sums = self.totals[total].reshape(len(self.group_partials), -1, width).sum(2)
                self.group_partials[:, ::width] = sums
            case Fir(out=out, x=x, taps=name, direction=direction, rows=rows):
                self.hold(out, _fir(self.take(x), self.taps[name], direction), rows)
            case Rowwise(out=out, rows=rows):
                self.hold(out, self.rowwise(statement), rows)
            case Accumulate(out=out, function="tap_gradient", inputs=(grad, x)):
                self.totals[out] += _tap_gradient(self.take(grad), self.take(x))
            case Accumulate(out=out, function="channel_sum", inputs=(x,)):
                self.totals[out] += self.take(x).sum(0, keepdim=True)
            case Accumulate(function=function):
                raise AssertionError(f"{statement}: no meaning is known for {function}")
            case StoreRows(tensor=name, x=x):
                self.stored[name] = self.store(self.take(x))
            case StorePartial(totals=totals, first=first):
                for total in totals:
                    sums = self.totals[total].sum((1, 3))  # over batch and blocks: (K, D)
                    self.partials[first : first + len(sums)] = sums
                    first += len(sums)
            case _:
                raise AssertionError(f"{statement}: no meaning is known of it")

    def long_gradient(self, grad: str, x: str, length: int) -> Tensor:
        """sum over b, t of grad[t] x[t - j], j < length: (length, D)."""
        if self.position is None:
            return long_gradient(self.blocks[grad], self.blocks[x], length)
        lags = []
        for lag in range(length):
            own = self.blocks[grad] * (self.position >= lag)
            lags.append((own * delayed(self.blocks[x], lag)).sum((0, 2)))
        return torch.stack(lags)

    def hold(self, name: str, tensor: Tensor, rows: Rows) -> None:
        expected = self.block + rows.hi - rows.lo
        assert len(tensor) == expected, f"{name} has {len(tensor)} rows; the plan says {rows}"
        self.held[name] = _Held(tensor, rows)

    def take(self, operand: Operand) -> Tensor:
        have, want = self.held[operand.name].rows, operand.rows
        assert have.lo <= want.lo and want.hi <= have.hi, f"{operand}: holds {have}"
        start = want.lo - have.lo
        return self.held[operand.name].tensor[start : start + self.block + want.hi - want.lo]

    def load(self, x: Tensor, rows: Rows) -> Tensor:
        """Rows of every block, zero outside the sequence."""
        steps = x.shape[2]
        step = torch.arange(rows.lo, self.block + rows.hi, device=x.device)
        time = torch.arange(0, steps, self.block, device=x.device) + step[:, None]  # (rows, N)
        loaded = x[..., time.clamp(0, steps - 1)] * ((time >= 0) & (time < steps))
        return loaded.permute(2, 0, 1, 3)

    def store(self, x: Tensor, whole: bool = False) -> Tensor:
        """The inverse of load for the block's own rows: (B, D, L), or up to the end of the last
        block.
        """
        steps = x.permute(1, 2, 3, 0).flatten(2)
        return steps if whole else steps[..., : self.like.shape[2]]

    def rowwise(self, statement: Rowwise) -> Tensor:
        values = [self.take(operand) for operand in statement.inputs]
        if statement.vector is not None:
            values.append(self.taps[statement.vector])
        match statement.function, values:
            case ("multiply" | "scale", [a, b]):
                return a * b
            case ("add" | "shift", [a, b]):
                return a + b
            case "silu", [x]:
                return functional.silu(x)
            case "silu_gradient", [grad, x]:
                return grad * silu_slope(x)
        raise AssertionError(f"{statement}: no meaning is known for {statement.function}")


def _long_conv(x: Tensor, taps: Tensor, direction: int, position: Tensor | None = None) -> Tensor:
    """The convolution of whole sequences (B, D, L) with taps (K, D, 1), or its adjoint; within
    documents, if positions are given.
    """
    y = torch.zeros_like(x)
    for lag in range(min(len(taps), x.shape[2])):
        if position is None:
            y += taps[lag] * delayed(x, direction * lag)
        elif direction == +1:
            y += taps[lag] * delayed(x, lag) * (position >= lag)
        else:
            y += taps[lag] * delayed(x * (position >= lag), -lag)
    return y


def _fir(x: Tensor, taps: Tensor, direction: int) -> Tensor:
    """Every row that all taps can reach: len(x) - len(taps) + 1 rows."""
    reach = len(taps) - 1
    rows = len(x) - reach
    # Row r of the result meets lag j in row r + reach - j of x, or r + j for the adjoint.
    starts = [reach - lag if direction == +1 else lag for lag in range(len(taps))]
    return torch.stack(
        [tap * x[start : start + rows] for tap, start in zip(taps, starts, strict=True)]
    ).sum(0)


def _tap_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """sum over rows of grad[t] x[t - j], for every lag j that x reaches back to: (K, B, D, N)."""
    reach = len(x) - len(grad)
    return torch.stack(
        [(grad * x[reach - lag : reach - lag + len(grad)]).sum(0) for lag in range(reach + 1)]
    )
