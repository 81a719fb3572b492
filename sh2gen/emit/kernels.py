"""How launches of the kernels of a generated file look to the compiler: types of arguments,
constants, options.
"""

from __future__ import annotations

from sh2gen.emit import reduce as emit_reduce
from sh2gen.emit.eager import featurizer_lag, op_parameters
from sh2gen.plan.plan import KernelPlan, Plan
from sh2gen.plan.source import KernelSource, Role
from sh2gen.schedule.config import DIRECTIONS, Schedule
from sh2gen.spec.language import DType, Projection, TapOrder
from sh2gen.spec.operator import OpSpec

_TRITON = {DType.BFLOAT16: "bf16", DType.FLOAT16: "fp16", DType.FLOAT32: "fp32"}


def programs(spec: OpSpec, schedule: Schedule, direction: str) -> int:
    """How many programs are wanted for a sequence, in the batches that the operator is for."""
    wanted = dict(schedule.numbers(direction)).get("PROGRAMS", 1)
    return max(1, wanted // min(workload.batch for workload in spec.workloads))


def cuts(spec: OpSpec, schedule: Schedule) -> bool:
    """Whether a launcher may cut a sequence into spans: four or more (`walk_programs`)."""
    return any(4 * spec.channels <= programs(spec, schedule, d) for d in DIRECTIONS)


def kernel_numbers(plan: Plan, kernel: KernelPlan, schedule: Schedule) -> dict[str, int]:
    """The numbers of a kernel, without those that only say when it is launched."""
    others = {"TILES_SM90", "PROGRAMS"} | ({"PARTS"} if kernel in plan.sums else set())
    numbers = schedule.numbers(kernel.direction)
    return {name: number for name, number in numbers if name not in others}


def kernel_sources(spec: OpSpec, plan: Plan, schedule: Schedule) -> tuple[KernelSource, ...]:
    """How a launch of each kernel looks to the compiler, for separate contiguous inputs."""
    io = "*" + _TRITON[spec.dtype.io]
    sources: list[KernelSource] = []
    for kernel in (*plan.kernels, *plan.sums):
        program = kernel.program
        backward, sums_only = kernel is plan.backward, kernel in plan.sums
        activations = (*program.loads, *program.stores)
        signature: list[tuple[str, str]] = []
        for name in activations:
            signature += [(f"{name}_ptr", io), (f"{name}_batch", "i32"), (f"{name}_row", "i32")]
        kept = [f"{name}_ptr" for name in program.parameters]
        if plan.states:
            history = ["history_ptr"] if featurizer_lag(spec) else []
            edges = ["d_history_ptr", "edges_ptr"] if history and backward else []
            both = ["d_entry_ptr", "d_exit_ptr"] if backward else ["entry_ptr", "exit_ptr"]
            kept += ["states_ptr", *history, *edges]
            kept += [] if sums_only else [*both, "sums_ptr"]
        kept += ["partials_ptr"] if program.partial_rows else []
        kept += ["group_partials_ptr"] if program.partial_groups else []
        pointers = tuple(f"{name}_ptr" for name in activations)
        signature += [(name, io if name == "history_ptr" else "*fp32") for name in kept]
        scalars = ["first", "last", "end", "time_programs"]
        scalars += ["tiles"] if kernel.skeleton != "tile" else []
        signature += [(name, "i32") for name in scalars]
        numbers = kernel_numbers(plan, kernel, schedule)
        warps, stages = numbers.pop("num_warps"), numbers.pop("num_stages", 3)
        registers = numbers.pop("maxnreg", 0) or None
        constants: dict[str, int | bool | float | str] = {"CHANNELS": spec.channels, "UNIT": 1}
        constants |= {"D_UNIT": 1} if backward else {}
        constants |= {"STEP": 8, "EVEN": True}
        constants |= {"KEEP": True} if plan.states and not backward and not sums_only else {}
        constants |= {"STATEFUL": spec.state is not None} if plan.states else {}
        if plan.states and not sums_only:
            wanted = programs(spec, schedule, kernel.direction)
            constants |= {"SPLIT": 4 * spec.channels <= wanted}
        sources.append(
            KernelSource(
                name=f"{spec.op}_{kernel.name}",
                role=Role.BACKWARD if kernel.direction == "backward" else Role.FORWARD,
                signature=tuple(signature),
                constants=tuple((constants | numbers).items()),
                divisible=(*pointers, *kept),
                unaligned_keeps=tuple(kept),
                unaligned_constants=(("STEP", 1), ("EVEN", False)),
                num_warps=warps,
                num_stages=stages,
                maxnreg=registers,
            )
        )
        if numbers := schedule.twin(kernel.name):
            warps = numbers.pop("num_warps")
            sources.append(
                KernelSource(
                    name=f"{spec.op}_{kernel.name}_sm90",
                    role=Role.BACKWARD,
                    signature=tuple(signature),
                    constants=tuple(({"CHANNELS": spec.channels} | numbers).items()),
                    divisible=(*pointers, *kept),
                    unaligned_keeps=(),
                    num_warps=warps,
                    num_stages=3,
                    gluon=True,
                )
            )
    if plan.sums and featurizer_lag(spec):
        sources.append(_join_source(spec))
    if sums := emit_reduce.sections(spec, plan, schedule, op_parameters(spec)):
        sources.append(emit_reduce.kernel_source(sums))
    return tuple(sources)


def _join_source(spec: OpSpec) -> KernelSource:
    """How a launch of the kernel looks to the compiler that joins the gradients of spans."""
    assert spec.featurizer is not None
    return KernelSource(
        name="join_spans",
        role=Role.BACKWARD,
        signature=(
            ("edges_ptr", "*fp32"),
            ("featurizer_ptr", "*fp32"),
            ("d_input_ptr", "*" + _TRITON[spec.dtype.io]),
            *((name, "i32") for name in ("batch_stride", "row_stride", "spans", "steps")),
        ),
        constants=(
            ("UNIT", 1),
            ("CHANNELS", spec.channels),
            ("ROLES", len(spec.inputs)),
            ("ROLE", 0),
            ("LENGTH", featurizer_lag(spec)),
            ("INTERLEAVED", spec.layout.projection is Projection.INTERLEAVED),
            ("LAG_LAST", spec.featurizer.taps is TapOrder.LAG_LAST),
            ("BLOCK_D", 128),
        ),
        divisible=("edges_ptr", "featurizer_ptr", "d_input_ptr"),
        unaligned_keeps=("edges_ptr", "featurizer_ptr"),
        num_warps=emit_reduce.WARPS,
        num_stages=3,
    )
