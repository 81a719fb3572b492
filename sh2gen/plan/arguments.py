"""What a kernel takes: one tuple of arguments, from which follow the `def` line in a generated
file, what Triton specialises on, the launch, and what `build` compiles.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum

from sh2gen.plan.program import TileProgram
from sh2gen.plan.rings import RingField, rings
from sh2gen.plan.statements import Statement
from sh2gen.plan.step import RingConv
from sh2gen.plan.values import ladder
from sh2gen.spec.language import FilterKind, Sequences, TapOrder
from sh2gen.spec.operator import OpSpec


class Of(StrEnum):
    """What kind of thing an argument is."""

    ACTIVATION = "activation"  # data, and the strides of batch and rows
    STEPS = "steps"  # data of a few steps, and the strides of batch, channel and time
    PARAMETER = "parameter"
    STATE = "state"  # of modes, a history or rings; float32 unless it is of inputs
    INDEX = "index"  # int32
    BITS = "bits"  # uint8
    PARTIAL = "partial"  # sums that a later kernel adds
    SIZE = "size"
    CONSTANT = "constant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One argument of a kernel.

    Attributes:
        name: of the tensor, size or constant; pointers are called name_ptr.
        of: what it is.
        doc: shape and dtype in words.
        io: whether it has the dtype of activations; data of all others are float32.
        wide: whether a size has 64 bits, in every call.
        value: of a constant in a usual call; None if a config gives it.
        unaligned: of a constant in a call that is not aligned to 16 bytes, if that differs.
    """

    name: str
    of: Of
    doc: str = ""
    io: bool = False
    wide: bool = False
    value: int | bool | None = None
    unaligned: int | bool | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the kernel's text."""
        match self.of:
            case Of.ACTIVATION:
                return f"{self.name}_ptr", f"{self.name}_batch", f"{self.name}_stride"
            case Of.STEPS:
                return tuple(f"{self.name}_{what}" for what in ("ptr", "batch", "channel", "time"))
            case Of.PARAMETER | Of.STATE | Of.INDEX | Of.BITS | Of.PARTIAL:
                return (f"{self.name}_ptr",)
            case Of.SIZE | Of.CONSTANT:
                return (self.name,)

    @property
    def is_pointer(self) -> bool:
        return self.of not in (Of.SIZE, Of.CONSTANT)

    @property
    def unspecialised(self) -> tuple[str, ...]:
        """The names for whose values Triton does not compile anew."""
        if self.of in (Of.ACTIVATION, Of.STEPS):
            return self.names[1:]
        return self.names if self.of is Of.SIZE else ()


def sizes(*names: str) -> tuple[Argument, ...]:
    return tuple(Argument(name=name, of=Of.SIZE) for name in names)


def knobs(*names: str) -> tuple[Argument, ...]:
    """Constants that a config gives."""
    return tuple(Argument(name=name, of=Of.CONSTANT) for name in names)


def constant(name: str, value: int | bool, unaligned: int | bool | None = None) -> Argument:
    return Argument(name=name, of=Of.CONSTANT, value=value, unaligned=unaligned)


def data(spec: OpSpec, program: TileProgram) -> tuple[Argument, ...]:
    """Activations that a tile program reads, those that it writes, and its parameters."""
    shapes = {p.name: ", ".join(p.dims) for p in spec.parameters}
    activations = (*program.loads, *program.stores)
    return (
        *(Argument(name=name, of=Of.ACTIVATION, io=True) for name in activations),
        *(
            Argument(name=name, of=Of.PARAMETER, doc=f"[{shapes[name]}]")
            for name in program.parameters
        ),
    )


def ladder_sizes(program: TileProgram) -> tuple[Argument, ...]:
    """What says where on a ladder of decays its groups are, of a tile program that asks."""
    found = {name: kind for view in program.views for name, kind in ladder(view).items()}
    return tuple(Argument(name=n, of=Of.SIZE, wide=kind == "i64") for n, kind in found.items())


def partials(program: TileProgram, splits: str = "batch and splits") -> tuple[Argument, ...]:
    """The partial sums that a tile program writes."""
    found = []
    if rows := program.partial_rows:
        doc = f"[{splits}, {rows}, CHANNELS] float32"
        found.append(Argument(name="partials", of=Of.PARTIAL, doc=doc))
    if rows := program.partial_groups:
        doc = f"[batch and splits, {rows}, programs along channels] float32"
        found.append(Argument(name="group_partials", of=Of.PARTIAL, doc=doc))
    return tuple(found)


def shape_constants(
    spec: OpSpec, program: TileProgram, *, backward: bool, grouped: bool = False
) -> tuple[Argument, ...]:
    """Constants that say what the tensors of a call are like.

    Args:
        grouped: whether programs are those of a group, whatever they load.
    """
    grouped = grouped or any(view.grouped for view in program.views)
    return (
        Argument(name="CHANNELS", of=Of.CONSTANT, value=0),
        *((Argument(name="WIDTH", of=Of.CONSTANT, value=0),) if grouped else ()),
        *((constant("UNIT", 1),) if {*program.loads} & {*spec.inputs} else ()),
        *((constant("D_UNIT", 1),) if backward else ()),
        constant("STRIDE_UNIT", 8, unaligned=1),
        constant("EVEN", True, unaligned=False),
    )


def past(spec: OpSpec, program: TileProgram) -> tuple[tuple[Argument, ...], tuple[Argument, ...]]:
    """What a tile program reads of the past, and how many slots its rings have."""
    read = {name for s in program.body for name in _rings_of(s)}
    read |= {name for s in program.warmup for name in _rings_of(s)}
    kept = [ring for ring in rings(spec) if ring.name in read]
    if not kept:
        return (), ()
    found = [ring_argument(ring, "batch") for ring in kept]
    found.append(Argument(name="count", of=Of.INDEX, doc="[batch] int32: steps before these"))
    return tuple(found), tuple(slots(ring) for ring in kept)


def _rings_of(statement: Statement) -> list[str]:
    before = getattr(statement, "past", None)
    return [before.ring.field] if before is not None else []


def ring_argument(ring: RingField, places: str, *, io: bool = False) -> Argument:
    """A ring of a state with so many places."""
    doc = f"[{places}, {ring.name.upper()}_SLOTS, {ring.columns('CHANNELS')}]"
    return Argument(name=ring.name, of=Of.STATE, io=io, doc=doc)


def slots(ring: RingField) -> Argument:
    """How many it has."""
    return constant(f"{ring.name.upper()}_SLOTS", ring.lag + 1)


def documents(spec: OpSpec, *, begun: bool = False) -> tuple[Argument, ...]:
    """What kernels take of the documents of a row; those with states also where each begins."""
    if spec.sequences is Sequences.DENSE:
        return ()
    doc = "[vectors] int32: where they lie, and which steps they have"
    where = "[vectors / 32] uint8: in which documents begin, a bit for four"
    found = (
        Argument(name="sources", of=Of.INDEX, doc=doc),
        Argument(name="ended", of=Of.INDEX, doc="[1] int32: how many there are to the last step"),
    )
    return (*found, Argument(name="begun", of=Of.BITS, doc=where)) if begun else found


BOUNDS = sizes("read_begin", "read_end", "write_end", "splits")


def tile_arguments(
    spec: OpSpec, program: TileProgram, *, backward: bool, hinted: bool
) -> tuple[Argument, ...]:
    """Of the skeleton `tile`."""
    names = ("ROWS", "BLOCK_D", "BLOCK_T", "TILES", *(("EVICT_LAST",) if hinted else ()))
    before, counts = past(spec, program)
    return (
        *data(spec, program),
        *documents(spec),
        *before,
        *partials(program),
        *BOUNDS,
        *ladder_sizes(program),
        *shape_constants(spec, program, backward=backward),
        *counts,
        *knobs(*names),
    )


def stream_arguments(
    spec: OpSpec, program: TileProgram, *, backward: bool, terms: int
) -> tuple[Argument, ...]:
    """Of the skeleton `stream`."""
    before, counts = past(spec, program)
    return (
        *data(spec, program),
        *documents(spec),
        *before,
        *partials(program, "batch, splits and SEGMENTS"),
        *BOUNDS,
        *sizes("tiles"),
        *ladder_sizes(program),
        *shape_constants(spec, program, backward=backward, grouped=True),
        *counts,
        constant("TERMS", terms),
        *knobs("ROWS", "BLOCK_D", "SEGMENTS", "BLOCK_T", "PREFETCH"),
    )


def sm90_arguments(spec: OpSpec, program: TileProgram) -> tuple[Argument, ...]:
    """Of the skeleton `stream_sm90`, which takes what `stream` takes but for constants."""
    return (
        *data(spec, program),
        *documents(spec),
        *partials(program, "batch, splits and SEGMENTS / 2"),
        *BOUNDS,
        *sizes("tiles"),
        *ladder_sizes(program),
        Argument(name="CHANNELS", of=Of.CONSTANT, value=0),
        Argument(name="WIDTH", of=Of.CONSTANT, value=0),
        *knobs("BLOCK_D", "SEGMENTS", "BLOCK_T"),
    )


def walk_arguments(
    spec: OpSpec, program: TileProgram, *, backward: bool, sums: bool, parts: bool, terms: int
) -> tuple[Argument, ...]:
    """Of the skeleton `recurrence`.

    Args:
        sums: of the kernel that only finds what every tile adds to the state.
        parts: whether tiles are computed part by part.
    """
    size, lag, roles = spec.filter.state_size, spec.lag, len(spec.inputs)
    given = spec.state is not None

    def state(name: str, doc: str, *, io: bool = False) -> Argument:
        return Argument(name=name, of=Of.STATE, doc=doc, io=io)

    what = "what every tile adds" if sums else "before every tile"
    found = [state("states", f"[batch, tiles, CHANNELS, {size}] float32: {what}")]
    if given and lag:
        shape = f"[batch, {roles}, CHANNELS, {lag}]"
        found.append(state("history", f"{shape}: the inputs' steps before the first", io=True))
    if not sums:
        whose = f"[batch, CHANNELS, {size}] float32"
        if backward and given and lag:
            found.append(state("d_history", "the same in float32"))
        if backward and lag:
            edges = f"[batch, splits, {roles}, CHANNELS, 2, {lag}] float32"
            found.append(state("edges", f"{edges}: rows where splits meet"))
        if given:
            before = "state before the first step"
            before = f"gradient of the {before}" if backward else before
            names = ("d_entry", "d_leaving") if backward else ("entry", "leaving")
            found.append(state(names[0], f"{whose}: {before}"))
            found.append(state(names[1], "the same after the last step"))
        found.append(state("split_sums", "as states_ptr: what every tile adds to the state"))
    return (
        *data(spec, program),
        *documents(spec, begun=True),
        *found,
        *partials(program),
        *BOUNDS,
        *sizes("tiles", *["first"] * (given and sums and backward)),
        *shape_constants(spec, program, backward=backward and not sums),
        constant("TERMS", terms),
        *(() if sums or backward else (constant("KEEP", True),)),
        *(() if sums else (constant("SPLIT", False),)),
        *knobs("ROWS", "SEGMENTS", "BLOCK_T", "PREFETCH", *(("PARTS",) if parts else ())),
    )


def join_arguments(spec: OpSpec) -> tuple[Argument, ...]:
    """Of the kernel that joins the gradients of an input where splits meet."""
    assert spec.featurizer is not None
    return (
        Argument(name="edges", of=Of.STATE),
        Argument(name="featurizer", of=Of.PARAMETER),
        Argument(name="d_input", of=Of.ACTIVATION, io=True),
        *sizes("splits", "steps"),
        constant("UNIT", 1),
        Argument(name="CHANNELS", of=Of.CONSTANT, value=0),
        constant("ROLES", len(spec.inputs)),
        constant("ROLE", 0),
        constant("LENGTH", spec.lag),
        constant("INTERLEAVED", spec.interleaved),
        constant("LAG_LAST", spec.featurizer.taps is TapOrder.LAG_LAST),
        constant("BLOCK_D", 128),
    )


def history_arguments(spec: OpSpec) -> tuple[Argument, ...]:
    """Of the skeleton `history`."""
    (tails,) = (ring for ring in rings(spec) if ring.lag)
    doc = f"[batch, {tails.roles}, CHANNELS, {tails.lag}]: the inputs' steps before the first"
    return (
        ring_argument(tails, "batch"),
        Argument(name="history", of=Of.STATE, io=True, doc=doc),
        Argument(name="count", of=Of.INDEX, doc="[batch] int32: steps before these"),
        *sizes("batch"),
        Argument(name="CHANNELS", of=Of.CONSTANT, value=0),
        slots(tails),
        *knobs("BLOCK_D"),
    )


def leave_arguments(spec: OpSpec, program: TileProgram) -> tuple[Argument, ...]:
    """Of the skeleton `leave`."""
    shapes = {p.name: ", ".join(p.dims) for p in spec.parameters}
    kept = [ring for ring in rings(spec) if ring.lag]
    after = [
        dataclasses.replace(ring_argument(ring, "batch"), name=f"{ring.name}_after")
        for ring in kept
    ]
    index = {
        "count": "[batch] int32: steps before these",
        "ends": "[batch] int32: how many of these each sequence has",
        "count_after": "[batch] int32",
        "done_after": "[batch, CHANNELS / BLOCK] int32: the same of each block of channels",
    }
    return (
        *(Argument(name=name, of=Of.STEPS, io=True) for name in spec.inputs),
        *(
            Argument(name=name, of=Of.PARAMETER, doc=f"[{shapes[name]}]")
            for name in program.parameters
        ),
        *(ring_argument(ring, "batch") for ring in kept),
        *after,
        *(Argument(name=name, of=Of.INDEX, doc=doc) for name, doc in index.items()),
        *sizes("steps"),
        Argument(name="CHANNELS", of=Of.CONSTANT, value=0),
        constant("ENDS", False),
        constant("PARTS", 1),
        *map(slots, kept),
        *knobs("BLOCK_D", "STEPS"),
    )


def step_arguments(spec: OpSpec, program: TileProgram) -> tuple[Argument, ...]:
    """Of the skeleton `step`."""
    shapes = {p.name: ", ".join(p.dims) for p in spec.parameters}
    kept, modes = rings(spec), spec.filter.kind is FilterKind.MODAL
    blocks = any(isinstance(s, RingConv) for s in program.body)
    state = [ring_argument(ring, "places", io=ring.io) for ring in kept]
    if modes:
        doc = f"[places, CHANNELS, {spec.filter.state_size}] float32"
        state.append(Argument(name="modes", of=Of.STATE, doc=doc))
    index = {
        "count": "[places] int32: steps before these",
        "done": "[places, CHANNELS / BLOCK] int32: the same of each block of channels",
        "slots": "[batch] int32: places",
    }
    return (
        *(Argument(name=name, of=Of.STEPS, io=True) for name in (*spec.inputs, "y")),
        *(
            Argument(name=name, of=Of.PARAMETER, doc=f"[{shapes[name]}]")
            for name in program.parameters
        ),
        *state,
        *(Argument(name=name, of=Of.INDEX, doc=doc) for name, doc in index.items()),
        *sizes("places"),
        *ladder_sizes(program),
        Argument(name="CHANNELS", of=Of.CONSTANT, value=0),
        *(
            (Argument(name="WIDTH", of=Of.CONSTANT, value=0),)
            if any(view.grouped for view in program.views)
            else ()
        ),
        *((Argument(name="SHARE", of=Of.CONSTANT, value=0),) if blocks else ()),
        constant("STEPS", 1),
        *map(slots, kept),
        constant("SLOTTED", True),
        constant("DRAFT", False),
        *knobs("BLOCK_D", *(("CHUNK",) if blocks else ())),
    )
