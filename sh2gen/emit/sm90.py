"""What the skeleton stream_sm90 asks for: the phases of a backward stream as text.

Inputs travel through shared memory: while a tile is computed, blocks for its later phases and for
the next tile are copied. A *slot* is the place of one input's block, of the tile or LEAD steps
earlier; as soon as the last phase that reads a slot is over, its next block is asked for. Copies
complete in the order in which they are asked for, in groups: who waits says how many groups may
still be under way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sh2gen.plan.blocks import (
    LoadToeplitz,
    Recall,
    Remember,
    StoreToeplitz,
    Toeplitz,
    ToeplitzGradient,
    ZeroToeplitz,
)
from sh2gen.plan.kernel import Kernel
from sh2gen.plan.program import Phases
from sh2gen.plan.statements import (
    Extend,
    LoadRows,
    Statement,
    StorePartial,
    StoreRows,
    ZeroTaps,
)
from sh2gen.plan.values import Pack, Rows, Scope, decay_rate, lag_last, pointer

# Where blocks are asked for, in the order of a tile: a slot that only the phase `adjoint` reads
# can take the tile's own block while the tile is computed; all others take the next tile's.
_OWN, _AHEAD, _TILE, _LATE = range(4)
# When a phase begins, in the same order: before which of these points it waits.
_PHASES = ("ahead", "own", "convolved", "adjoint")
_TIMELINE: tuple[str | int, ...] = (
    *("ahead", "own", _OWN, _AHEAD),
    *("convolved", _TILE, "adjoint", _LATE),
)

# How the statements that are the same in every kernel are printed.
Printer = Callable[[Statement, dict[str, Rows]], list[str]]


@dataclass(slots=True)
class _Slot:
    """Shared memory for a block of an input.

    Attributes:
        ahead: of the tile LEAD steps earlier.
        lag: steps before the block that someone reads.
        phases: who reads it.
    """

    tensor: str
    ahead: bool
    lag: int = 0
    phases: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.tensor}_early" if self.ahead else f"{self.tensor}_block"

    @property
    def point(self) -> int:
        """Where its next block is asked for."""
        if self.phases == ["adjoint"]:
            return _OWN
        return {"ahead": _AHEAD, "adjoint": _LATE}.get(self.phases[-1], _TILE)


def phased_kernel(kernel: Kernel, phases: Phases, printed: Printer) -> dict[str, Any]:
    """The part of the skeleton's context that its phases decide.

    Args:
        printed: the lines of a statement, given what rows values hold, which it adds to.
    """
    slots = _slots(phases)
    apart = any(a.name == "sources" for a in kernel.arguments)
    filters = [s for s in kernel.program.prologue if isinstance(s, LoadToeplitz)]
    (matrices,) = filters
    (gradient,) = [s for s in phases.products if isinstance(s, ToeplitzGradient)]
    (earlier,) = [s for s in phases.ahead if isinstance(s, Remember)]
    (newest,) = [s for s in phases.own if isinstance(s, Remember)]
    convolution = [s for s in phases.products if isinstance(s, Toeplitz) and s.direction == +1]
    (adjoint,) = [s for s in phases.products if isinstance(s, Toeplitz) and s.direction == -1]
    sums = [s for s in kernel.program.prologue if isinstance(s, ZeroTaps)]
    carried = [
        (f"{s.x.name}_after", s.count)
        for s in (*phases.convolved, *phases.adjoint)
        if isinstance(s, Extend)
    ]
    lines = {
        name: _phase(getattr(phases, name), slots, phases.products, earlier.out, apart, printed)
        for name in _PHASES
    }
    view = matrices.view
    order = f"LENGTH={view.length}, LAG_LAST={lag_last(view)}"
    rates = Pack((str(decay_rate(view, "group")),) if view.decay else ())
    taps = f"{pointer(view)}, group, {rates}, {order}"
    return {
        "prologue": [
            line
            for statement in kernel.program.prologue
            if not isinstance(statement, LoadToeplitz | ZeroToeplitz | ZeroTaps)
            for line in printed(statement, {})
        ]
        + [
            f"{matrices.out} = toeplitz_matrices({taps}, COUNT=COUNT)",
            f"{gradient.out} = zero_gradients(COUNT)",
            *(f"{s.out} = zero_lanes(COUNT={s.length})" for s in sums),
            *(f"{name} = (zero_lanes(COUNT={n}), zero_lanes(COUNT={n}))" for name, n in carried),
            *(f"{ring} = block_ring(COUNT)" for ring in (earlier.out, newest.out)),
            *(f"{slot.name} = input_slots(LAG={slot.lag})" for slot in slots.values()),
        ],
        "points": [[s for s in slots.values() if s.point == p] for p in range(4)],
        "waits": {name: _wait(list(slots.values()), name) for name in _PHASES},
        "others_under_way": len({s.point for s in slots.values()} - {_OWN, _AHEAD}),
        "phases": lines,
        "slices": any("ROWS" in line for phase in lines.values() for line in phase["lines"]),
        "earlier": earlier.out,
        "newest": newest.out,
        "matrices": matrices.out,
        "gradient": gradient.out,
        "convolution": convolution[0].out if convolution else None,
        "adjoint": adjoint.out,
        "sums": [s.out for s in sums],
        "epilogue": [
            f"store_sums(sums, {' + '.join(s.totals)}, channel, channel_mask, CHANNELS, "
            f"FIRST={s.first})"
            if isinstance(s, StorePartial)
            else f"store_diagonals(taps, {s.total}, COLUMNS, LENGTH={s.length}, COUNT=COUNT)"
            for s in kernel.program.epilogue
            if isinstance(s, StorePartial | StoreToeplitz)
        ],
        "inputs": list(kernel.program.loads),
        "outputs": list(kernel.program.stores),
    }


def helper_names(kernel: Kernel, phases: Phases) -> set[str]:
    """The helpers that the skeleton calls, beside those of statements that all kernels print."""
    names = {"toeplitz_matrices", "zero_gradients", "block_ring", "input_slots", "places", "fetch"}
    names |= {"begin_toeplitz_adjoint", "begin_toeplitz_gradient", "end_gradients"}
    names |= {"remember_block", "rows_quarter", "block_quarters", "quarter_rows", "read_rows"}
    names |= {"store_diagonals", "lane_of", "store_quarter", "visited", "channels", "anew"}
    names |= {f"{name}_layout" for name in ("row", "copy", "edge", "quarter", "product")}
    if any(isinstance(s, Toeplitz) and s.direction == +1 for s in phases.products):
        names.add("begin_toeplitz")
    if kernel.program.partial_rows:
        names |= {"zero_lanes", "renewed", "store_sums"}
    if any(view.decay for view in kernel.program.views):
        names.add("decay_rate")
    if any(a.name == "sources" for a in kernel.arguments):
        names |= {"lane_places", "located", "any_ragged"}
    if any(isinstance(s, Extend) for s in phases.body):
        names |= {"zero_lanes", "extend_rows"}
    return names


def _slots(phases: Phases) -> dict[tuple[str, bool], _Slot]:
    """The slots by input and whether they are ahead; phases in the order in which they read."""
    slots: dict[tuple[str, bool], _Slot] = {}
    for name in _PHASES:
        for s in getattr(phases, name):
            if isinstance(s, LoadRows):
                slot = slots.setdefault((s.tensor, s.ahead), _Slot(s.tensor, s.ahead))
                slot.lag = max(slot.lag, -s.rows.lo)
                if name not in slot.phases:
                    slot.phases.append(name)
    return slots


def _wait(slots: list[_Slot], phase: str) -> int | None:
    """How many groups of copies may be under way when a phase begins; None if it need not wait."""
    asked = [slot.point for slot in slots if slot.phases[0] == phase]
    points = {slot.point for slot in slots}
    groups = [at for at in _TIMELINE if at == phase or at in points]  # and where the phase begins
    begin = groups.index(phase)
    groups = [*groups[begin + 1 :], *groups[:begin]]  # since the phase began in the tile before
    return min((len(groups) - 1 - groups.index(point) for point in asked), default=None)


def _phase(
    statements: tuple[Statement, ...],
    slots: dict[tuple[str, bool], _Slot],
    products: tuple[Statement, ...],
    earlier: str,
    apart: bool,
    printed: Printer,
) -> dict[str, list[str]]:
    """Lines before the loop over quarters, in it, and after it."""
    before: list[str] = []
    lines: list[str] = []
    after: list[str] = []
    held = {s.out: s.rows for s in products if isinstance(s, Toeplitz)}
    for s in statements:
        match s:
            case LoadRows(out=out, tensor=tensor, rows=rows, ahead=ahead):
                held[out] = rows
                name = slots[tensor, ahead].name
                begin = f"t{' - LEAD' * ahead} + 32 * part + half * halfway"
                where = f", lanes, {begin}, length" * apart
                lines.append(f"{out} = read_rows({name}, part, half{where}, LAG={-rows.lo})")
            case Recall(out=out, blocks=blocks, rows=rows):
                held[out] = rows
                # Ahead, the tile's own block is the oldest of its ring.
                where = "visited(newest, COUNT - 1, COUNT)" if blocks == earlier else "newest"
                block = f"{blocks}.index({where}).load(product_layout())"
                before.append(f"{out}_quarters = block_quarters({block})")
                lines.append(f"{out} = quarter_rows({out}_quarters[2 * part + half])")
            case Extend(out=out, x=x, count=count, rows=rows):
                held[out] = rows
                carried, own = f"{x.name}_after", Scope(held=held).take(x)
                lines.append(f"{out}, {carried} = extend_rows({own}, {carried}, COUNT={count})")
            case StoreRows(tensor=tensor, x=x):
                own = Scope(held=held).take(x)
                where = f"outputs, position, {own}, stop{', ragged' * apart}"
                lines.append(f"store_quarter({tensor}_ptr, {where})")
            case Remember(out=out, x=x):
                before.append("quarters = ()")
                own = Scope(held=held).take(x)
                lines.append(f"quarters = quarters + (rows_quarter({own}),)")
                after.append(f"remember_block({out}, newest, quarters)")
            case _:
                lines += printed(s, held)
    return {"before": before, "lines": lines, "after": after}
