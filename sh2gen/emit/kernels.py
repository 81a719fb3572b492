"""Kernels of a plan: their texts, and how launches of them look to the compiler."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from sh2gen.emit import documents, reduce
from sh2gen.emit.parts import signatures
from sh2gen.emit.sm90 import helper_names, phased_kernel
from sh2gen.emit.statements import carried, helpers, lines, text, together
from sh2gen.emit.words import formula
from sh2gen.plan.arguments import Argument, Of
from sh2gen.plan.geometry import (
    LEAVE_CONFIG,
    counted_together,
    may_split,
    shared_channels,
    step_config,
)
from sh2gen.plan.kernel import Kernel, Role, Variant
from sh2gen.plan.modes import Parts
from sh2gen.plan.plan import Plan
from sh2gen.plan.rings import rings
from sh2gen.plan.source import KernelSource
from sh2gen.plan.statements import Statement
from sh2gen.plan.values import Rows, Scope
from sh2gen.schedule.config import Schedule, launch_config
from sh2gen.spec.language import DType, Precision, Sequences
from sh2gen.spec.operator import OpSpec

_TRITON = {DType.BFLOAT16: "bf16", DType.FLOAT16: "fp16", DType.FLOAT32: "fp32"}
# What the skeletons themselves call.
_SKELETON_HELPERS = {"locate", "advance", "Tile"}
# What a config tells the compiler, not the kernel.
OPTIONS = ("num_warps", "num_stages", "maxnreg")
# Of the kernels that no config is for.
WARPS = 4
_CONSTEXPR = {"triton": "tl.constexpr", "gluon": "gl.constexpr"}
_WIDE = 94  # columns of a line of constants


# ------------------------------------------------------------------------------------------- texts


def texts(spec: OpSpec, plan: Plan) -> list[dict[str, Any]]:
    """What the skeletons of all kernels and variants are filled with."""
    every = (*plan.kernels, *plan.first_kernels, *plan.split_kernels)
    found = [_kernel(spec, plan, kernel) for kernel in every]
    for kernel in plan.kernels:
        found += [_variant(spec, plan, kernel, variant) for variant in kernel.variants]
    beside = (*([plan.step] if plan.step else []), *plan.past)
    return [*found, *(_step(spec, kernel) for kernel in beside)]


def helpers_of(spec: OpSpec, plan: Plan) -> list[tuple[tuple[str, ...], set[str]]]:
    """The helpers that kernels call, by the parts that define them."""
    wanted = set(_SKELETON_HELPERS)
    if plan.states:
        wanted |= {"Split", *["Ends"] * (spec.state is not None)}
    for kernel in (*plan.kernels, *plan.first_kernels, *plan.split_kernels):
        wanted |= helpers(kernel.program, _scope(spec, kernel))
    if spec.sequences is Sequences.PACKED:
        wanted |= {"find_sources", "used_steps"}
    if plan.joined:
        wanted.add("join_splits")
    found = [(plan.kernels[0].parts, wanted)]
    for kernel in plan.kernels:
        for variant in kernel.variants:
            own = helper_names(kernel, variant.phases) if variant.phases else wanted
            found.append((variant.parts, own))
    if plan.step is not None:
        wanted = helpers(plan.step.program, Scope()) | {"keep_count", "no_steps"}
        found.append((plan.step.parts, wanted))
    if plan.leave is not None:
        wanted = helpers(plan.leave.program, Scope()) | {"keep_count"}
        found.append((plan.leave.parts, wanted))
    return found


def splits_sequences(spec: OpSpec, plan: Plan, schedule: Schedule) -> bool:
    """Whether launchers split sequences that are long enough."""
    configs = (launch_config(spec, schedule, kernel.role) for kernel in plan.kernels)
    return any("PROGRAMS" in c and may_split(spec.channels, c) for c in configs)


def head(decorator: str, name: str, arguments: Sequence[Argument], constexpr: str) -> str:
    """A kernel's text from its decorator to the colon."""
    quoted = [[f'"{name}"' for name in a.unspecialised] for a in arguments]
    strides = [names for names in quoted if len(names) > 1]  # a line an activation
    others = [name for names in quoted if len(names) == 1 for name in names]
    found = [f"@{decorator}(", "    do_not_specialize=["]
    found += [f"        {', '.join(names)}," for names in (*strides, others)]
    found += ["    ]", ")  # fmt: skip", f"def {name}("]
    for a in arguments:
        if a.is_pointer:
            found.append(f"    {', '.join(a.names)}," + (f"  # {a.doc}" if a.doc else ""))
    sizes = [a.name for a in arguments if a.of is Of.SIZE]
    found.append(f"    {', '.join(sizes)},")
    line = ""
    for a in arguments:
        if a.of is Of.CONSTANT:
            one = f" {a.name}: {constexpr},"
            if len(line) + len(one) > _WIDE:
                found.append(f"   {line}")
                line = ""
            line += one
    return "\n".join([*found, f"   {line}", "):  # fmt: skip"])


def _scope(spec: OpSpec, kernel: Kernel) -> Scope:
    """How a kernel's skeleton names what statements call helpers with."""
    lanes, accumulators = kernel.lanes
    return Scope(
        strides={
            name: (unit, f"{name}_stride") if kernel.exchanged else (f"{name}_stride", unit)
            for name, unit in _units(spec, kernel).items()
        },
        lanes=lanes,
        accumulators=accumulators,
        apart=spec.sequences is Sequences.PACKED,
        hints=("EVICT_LAST",) * kernel.hinted,
        state_size=spec.filter.state_size,
        inputs=spec.inputs,
    )


def _units(spec: OpSpec, kernel: Kernel) -> dict[str, str]:
    """The constexpr that names each activation's stride along its contiguous axis."""
    units = dict.fromkeys((*kernel.program.loads, *kernel.program.stores), "1")
    units |= {name: "UNIT" for name in spec.inputs if name in units}
    return units | {f"d_{name}": "D_UNIT" for name in spec.inputs if f"d_{name}" in units}


def _kernel(spec: OpSpec, plan: Plan, kernel: Kernel) -> dict[str, Any]:
    """What the skeleton asks for."""
    program = kernel.program
    scope = _scope(spec, kernel)
    names = signatures(kernel.parts)
    zeros, loads = carried(program, scope, names)

    def printed(statements: Iterable[Statement]) -> list[str]:
        return lines(tuple(statements), dataclasses.replace(scope, held={}), names)

    doc = "Gradients of every input, and partial sums of those of parameters."
    if kernel.role is Role.FORWARD:
        doc = formula(spec).replace("\n", "; ")
    sums = kernel in plan.split_kernels
    if sums:
        doc = f"What every tile adds to the {'state' if program.time == +1 else 'adjoint state'}."
    function = f"{spec.op}_{kernel.name}"
    return {
        "skeleton": f"{kernel.skeleton}.py.j2",
        "head": head("triton.jit", function, kernel.arguments, "tl.constexpr"),
        "doc": doc,
        "activations": [*program.loads, *program.stores],
        "pointers": list(_units(spec, kernel).items()),
        "prologue": [*printed(program.prologue), *zeros],
        "carried": loads,
        "warmup": printed(program.warmup),
        "body": printed(program.body),
        "apart": scope.apart,
        "resets": printed(program.totals),
        "epilogue": printed(
            together(program.epilogue) if kernel.skeleton == "recurrence" else program.epilogue
        ),
        "backward": program.time == -1,
        "sums": sums,
        "parts": any(isinstance(s, Parts) for s in program.body),
        "length": spec.filter.length,
        "modes": spec.filter.state_size,
        "padded_modes": max(16, 1 << (max(1, spec.filter.state_size) - 1).bit_length()),
        "lag": spec.lag,
        "given": spec.state is not None,
        "past": [
            (ring.name, f"{ring.name.upper()}_SLOTS", ring.columns("CHANNELS"))
            for ring in rings(spec)
            if any(a.name == ring.name for a in kernel.arguments)
        ],
        "roles": len(spec.inputs),
        "exact": spec.precision is Precision.EXACT,
        "partial_rows": program.partial_rows,
        "partial_groups": program.partial_groups,
    }


def _variant(spec: OpSpec, plan: Plan, kernel: Kernel, variant: Variant) -> dict[str, Any]:
    """What the skeleton of a variant asks for."""
    scope, names = _scope(spec, kernel), signatures(variant.parts)

    def printed(statement: Statement, held: dict[str, Rows]) -> list[str]:
        calls = statement.calls(dataclasses.replace(scope, held=held))
        return [text(call, names) for call in calls]

    function = f"{spec.op}_{kernel.name}_{variant.name}"
    phased = phased_kernel(kernel, variant.phases, printed) if variant.phases else {}
    return _kernel(spec, plan, kernel) | {
        "skeleton": f"{variant.skeleton}.py.j2",
        "head": head(
            f"{variant.language}.jit", function, variant.arguments, _CONSTEXPR[variant.language]
        ),
        **phased,
    }


def _step(spec: OpSpec, kernel: Kernel) -> dict[str, Any]:
    """What the skeleton of a kernel that decodes asks for."""
    program, names = kernel.program, signatures(kernel.parts)
    modes = spec.filter.modes or 0
    scope = Scope()
    return {
        "skeleton": f"{kernel.skeleton}.py.j2",
        "head": head("triton.jit", f"{spec.op}_{kernel.name}", kernel.arguments, "tl.constexpr"),
        "doc": formula(spec).replace("\n", "; "),
        "prologue": lines(program.prologue, scope, names),
        "body": lines(program.body, scope, names),
        "rings": [
            (ring.name, f"{ring.name.upper()}_SLOTS", ring.columns("CHANNELS"))
            for ring in rings(spec)
            if any(a.name == ring.name for a in kernel.arguments)
        ],
        "modes": modes,
        "padded_modes": 1 << (max(1, modes) - 1).bit_length(),
        "channel_state": spec.filter.state_size,
        "counted": counted_together(spec.filter.modes or 0),
        "lag": spec.lag,
        "blocks": any(a.name == "SHARE" for a in kernel.arguments),
    }


# ---------------------------------------------------------------------------------------- launches


def kernel_sources(spec: OpSpec, plan: Plan, schedule: Schedule) -> tuple[KernelSource, ...]:
    """How a launch of each kernel looks to the compiler, for separate contiguous inputs."""
    found = []
    for kernel in (*plan.kernels, *plan.first_kernels, *plan.split_kernels):
        config = launch_config(spec, schedule, kernel.role)
        if kernel.narrowed is not None:
            config = kernel.narrowed(config, spec.lag + (spec.filter.length or 1) - 1)
        if kernel in plan.split_kernels and not may_split(spec.channels, config):
            continue
        found.append(_source(spec, kernel.name, kernel.role, kernel.arguments, config))
        for variant in kernel.variants:
            if own := variant.config(config):
                name = f"{kernel.name}_{variant.name}"
                source = _source(spec, name, kernel.role, variant.arguments, own)
                found.append(
                    dataclasses.replace(
                        source,
                        capability=variant.capability,
                        gluon=variant.language == "gluon",
                        unaligned_keeps=(),
                    )
                )
    config = launch_config(spec, schedule, Role.BACKWARD)
    if plan.joined and may_split(spec.channels, config):
        join = _source(spec, "", Role.BACKWARD, plan.joined, {"num_warps": WARPS})
        found.append(dataclasses.replace(join, name="join_splits"))
    if plan.reductions:
        found.append(reduce.kernel_source(spec, plan, config))
    if plan.step is not None:
        columns = spec.channels * max(workload.batch for workload in spec.workloads)
        config = step_config(dict(schedule.decode), columns, 1)
        found.append(_source(spec, plan.step.name, Role.DECODE, plan.step.arguments, config))
    for kernel in plan.past:
        found.append(_source(spec, kernel.name, Role.DECODE, kernel.arguments, LEAVE_CONFIG))
    if spec.sequences is Sequences.PACKED and plan.kernels:
        found.append(documents.source(spec, plan))
    return tuple(found)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepCall:
    """A call that decodes: of so many rows and steps, of slots of a pool, of drafts. `room` is how
    many steps a call may have, as its state was made for; `wide`: the past is in float32.
    """

    batch: int
    steps: int = 1
    room: int = 1
    wide: bool = False
    slotted: bool = False
    draft: bool = False


def step_sources(
    spec: OpSpec, plan: Plan, schedule: Schedule, calls: Iterable[StepCall]
) -> tuple[KernelSource, ...]:
    """The kernel that decodes as calls launch it; what looks alike once."""
    if plan.step is None:
        return ()
    found = []
    for call in calls:
        config = step_config(dict(schedule.decode), call.batch * spec.channels, call.steps)
        arguments = plan.step.arguments
        if call.wide:
            arguments = tuple(
                dataclasses.replace(a, io=a.io and a.of is not Of.STATE) for a in arguments
            )
        source = _source(spec, plan.step.name, Role.DECODE, arguments, config)
        own = {"STEPS": call.steps, "SLOTTED": call.slotted, "DRAFT": call.draft}
        more = call.room - 1
        own |= {n: int(v) + more for n, v in source.constants if n.endswith("_SLOTS")}
        constants = {name: own.get(name, value) for name, value in source.constants}
        found.append(dataclasses.replace(source, constants=tuple(constants.items())))
    return tuple(dict.fromkeys(found))


def _source(
    spec: OpSpec,
    name: str,
    role: Role,
    arguments: Sequence[Argument],
    config: dict[str, int],
) -> KernelSource:
    """How a launch of a kernel looks to the compiler under a config."""
    io = "*" + _TRITON[spec.dtype.io]
    known = {"CHANNELS": spec.channels, "WIDTH": spec.group_width}
    if "BLOCK_D" in config:
        known["SHARE"] = shared_channels(spec.group_width, config)
    if "PROGRAMS" in config and spec.sequences is Sequences.DENSE:
        known["SPLIT"] = may_split(spec.channels, config)
    signature: list[tuple[str, str]] = []
    for a in arguments:
        kind = io if a.io else "*fp32"
        kind = {Of.INDEX: "*i32", Of.BITS: "*u8"}.get(a.of, kind)
        for n in a.names if a.of is not Of.CONSTANT else ():
            signature.append((n, kind if n.endswith("_ptr") else "i64" if a.wide else "i32"))
    constants = {
        a.name: known.get(a.name, config[a.name] if a.value is None else a.value)
        for a in arguments
        if a.of is Of.CONSTANT
    }
    moving = (Of.ACTIVATION, Of.STEPS)
    kept = tuple(a.names[0] for a in arguments if a.is_pointer and a.of not in moving)
    changed = [(a.name, a.unaligned) for a in arguments if a.unaligned is not None]
    return KernelSource(
        name=f"{spec.op}_{name}",
        role=role,
        signature=tuple(signature),
        constants=tuple(constants.items()),
        divisible=tuple(a.names[0] for a in arguments if a.is_pointer),
        unaligned_keeps=kept,
        unaligned_constants=tuple((name, value) for name, value in changed if value is not None),
        num_warps=config["num_warps"],
        num_stages=config.get("num_stages", 3),
        maxnreg=config.get("maxnreg") or None,
    )
