"""What hypothesis draws beside operators: schedules and tensors; how results are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from hypothesis import strategies as st
from torch import Tensor

from sh2gen.emit.emit import emit
from sh2gen.graph.reference import reference_gradients
from sh2gen.lower import plans
from sh2gen.plan.plan import Plan
from sh2gen.runtime.operator import InterpreterRunner
from sh2gen.schedule.config import Schedule, roles_of
from sh2gen.schedule.space import Config, Constraint, Knobs, Space, space
from sh2gen.spec.operator import OpSpec
from tests.strategies import specs

Tensors = dict[str, Tensor]
MAX_TILES = 4  # one tile costs the interpreter a quarter of a second, forward and backward


@st.composite
def schedules(
    draw: st.DrawFn, spec: OpSpec, plan: Plan, *, largest: int = 64, warps: int = 2
) -> Schedule:
    """A legal schedule of small tiles, each direction and decoding drawn apart.

    Args:
        largest: of every block size.
        warps: the most per program.
    """
    return Schedule(
        plan=plan.name,
        **{
            direction: draw(st.sampled_from(_small_points(spec, plan, direction, largest, warps)))
            for direction in roles_of(plan)
            if plan.kernels
        },
    )


def _small_points(
    spec: OpSpec, plan: Plan, direction: str, largest: int, warps: int
) -> tuple[Config, ...]:
    where = space(spec, plan, direction)
    fewest = min(dict(where.knobs)["num_warps"])
    limits = {"num_warps": max(warps, fewest), "TILES": 4, "DOUBLE": 1 << 20}
    knobs = tuple(
        (name, tuple(v for v in values if v <= limits.get(name, largest)))
        for name, values in where.knobs
    )
    used = {str(symbol) for c in where.constraints for symbol in c.relation.free_symbols}
    facts = tuple((name, value) for name, value in where.facts if name in used)
    return _legal(knobs, where.constraints, facts)


@cache
def _legal(
    knobs: Knobs,
    constraints: tuple[Constraint, ...],
    facts: tuple[tuple[str, int], ...],
) -> tuple[Config, ...]:
    small = Space(knobs=knobs, constraints=constraints, facts=facts, default=())
    return tuple(small.points())


@dataclass(frozen=True, slots=True)
class Case:
    """An operator, one way to compute it and a shape at which the interpreter needs a second."""

    spec: OpSpec
    plan: Plan
    schedule: Schedule
    batch: int
    length: int


@st.composite
def kernel_cases(draw: st.DrawFn) -> Case:
    """Operators with kernels, over all plans, at lengths around taps, rows and tiles."""
    spec = draw(specs(9, kinds=("explicit", "decay"), max_groups=2, widths=(1, 2, 3, 7)))
    plan = draw(st.sampled_from([plan for plan in plans(spec) if plan.kernels]))
    schedule = draw(schedules(spec, plan))
    taps = spec.filter.length or 1
    forward, backward = dict(schedule.forward), dict(schedule.backward)
    lengths = {1, 2, taps - 1, taps, taps + 1, 13, 29, 61}
    lengths |= {config["BLOCK_T"] + d for config in (forward, backward) for d in (-1, 0, 1)}

    def tiles(batch: int, length: int) -> int:
        return batch * sum(
            -(-length // config["BLOCK_T"]) * -(-spec.channels // config["BLOCK_D"])
            for config in (forward, backward)
        )

    shapes = [
        (batch, length)
        for batch in (1, 2)
        for length in sorted(lengths)
        if length >= 1 and tiles(batch, length) <= 2 * MAX_TILES
    ]
    batch, length = draw(st.sampled_from(shapes or [(1, 1)]))
    return Case(spec, plan, schedule, batch, length)


def random_tensors(
    spec: OpSpec, batch: int, length: int, *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensors, Tensors, Tensor]:
    """Inputs (B, D, L), parameters (float32, or float64 as the inputs), and dy (B, D, L)."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)

    def parameter(name: str, shape: tuple[int, ...]) -> Tensor:
        x = normal(*shape, dtype=wide)
        match name:
            case "log_poles":  # modes that grow are of no use to anyone
                return -x.abs() / 8
            case "p" | "gamma":
                return x / 4 - 1
        return x

    shape = (batch, spec.channels, length)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (
        {name: normal(*shape, dtype=dtype) for name in spec.inputs},
        {p.name: parameter(p.name, p.shape) for p in spec.parameters},
        normal(*shape, dtype=dtype),
    )


def transposed(x: Tensor, layout: str) -> Tensor:
    """(B, D, L) in the memory of a layout, as its own tensor; and back again as a view."""
    return x if layout == "BDL" else x.transpose(1, 2).contiguous()


def canonical(x: Tensor, layout: str) -> Tensor:
    return x if layout == "BDL" else x.transpose(1, 2)


def pack(spec: OpSpec, inputs: Mapping[str, Tensor]) -> Tensor:
    """All inputs (B, D, L) as packed features (B, n D, L)."""
    stacked = torch.stack(list(inputs.values()), dim=1)  # (B, n, D, L)
    if spec.layout.projection.value == "interleaved":
        stacked = stacked.transpose(1, 2)
    return stacked.flatten(1, 2).contiguous()


def written(spec: OpSpec, plan: Plan, schedule: Schedule, folder: Path) -> Path:
    """The generated file."""
    path = folder / f"{spec.op}.py"
    path.write_text(emit(spec, plan, schedule).text)
    return path


def interpreted(
    spec: OpSpec, plan: Plan, schedule: Schedule, folder: Path, *, layout: str | None = None
) -> InterpreterRunner:
    """The generated kernels under Triton's interpreter."""
    runner = InterpreterRunner(written(spec, plan, schedule, folder))
    assert runner.layout == (layout or plan.layout.value)
    return runner


def assert_close(
    spec: OpSpec,
    inputs: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    dy: Tensor,
    y: Tensor,
    gradients: Mapping[str, Tensor],
    *,
    roundings: float = 0.0,
    unit: float = 2.0**-53,
) -> None:
    """Each element within its rounding errors of the float64 reference.

    Args:
        inputs, parameters, dy: (B, D, L), what y and gradients are of.
        roundings: how often operands and results were rounded to float16.
        unit: u of the arithmetic.
    """
    expected_y, expected = reference_gradients(spec, inputs, parameters, dy, method="direct")
    bound_y, bounds = reference_gradients(
        spec, inputs, parameters, dy, method="direct", absolute=True
    )
    assert set(gradients) == set(expected)
    results = {"y": (y, expected_y, bound_y)}
    results |= {name: (gradients[name], expected[name], bounds[name]) for name in expected}
    for name, (got, wanted, bound) in results.items():
        assert got.shape == wanted.shape, name
        tiny = max(roundings * 2.0**-24, 2.0**-126)  # what underflows float16, float32
        allowed = (roundings * 2.0**-11 + 64 * unit) * bound + tiny * max(1.0, bound.max().item())
        wrong = ~((got.double() - wanted).abs() <= allowed)
        assert not wrong.any(), (
            f"{name}: {int(wrong.sum())} of {wrong.numel()} elements, first at "
            f"{wrong.nonzero()[0].tolist()}: {got[wrong][0].item()} for {wanted[wrong][0].item()}"
        )
