"""Is a way of running an operator right? The properties asked for, on fresh random inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch

from sh2gen.base.errors import Sh2genError
from sh2gen.spec.operator import OpSpec
from sh2gen.verify.case import Case, MalformedError, Runner, Shape
from sh2gen.verify.memory import affordable
from sh2gen.verify.properties import PROPERTIES
from sh2gen.verify.report import Check, Report

Progress = Callable[[int, int, str], None]  # steps done, steps in all, what comes next


def verify(
    spec: OpSpec,
    runner: Runner,
    *,
    dtype: torch.dtype,
    shapes: Sequence[Shape],
    device: torch.device | str = "cpu",
    seed: int = 0,
    properties: Literal["all"] | Iterable[str] = "all",
    property_shapes: Sequence[Shape] | None = None,
    compared: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Run `runner` on fresh random inputs and compare it with float64 and with itself.

    Args:
        spec: the operator that `runner` computes.
        dtype: of activations. Parameters are float32 (float64 for float64).
        shapes: (B, L) at which output and all gradients are compared with float64. At sizes where
            that does not fit, some whole groups are compared, over all of time; where not even one
            group fits, parts of time: see `equality`.
        seed: of all random numbers. The same call draws the same ones.
        properties: "all", or names of PROPERTIES. "equality" is one of them.
        property_shapes: (B, L) at which every other property is tried; by default the largest of
            `shapes` whose float64 reference fits whole.
        compared: elements of the groups that are compared with float64; by default as many as are
            affordable.
        progress: called before every step.

    Returns:
        A report. Whatever `runner` raises passes through; a wrong result never raises.

    Raises:
        Sh2genError: C006, an unknown property.
    """
    names = list(PROPERTIES) if properties == "all" else list(properties)
    for name in names:
        if name not in PROPERTIES:
            known = ", ".join(PROPERTIES)
            raise Sh2genError("C006", f"unknown property `{name}`", help=f"one of {known}")
    device = torch.device(device)
    if property_shapes is None:
        property_shapes = [_property_shape(spec, shapes, device)] if shapes else []
    steps = [
        (name, shape)
        for name in names
        for shape in (shapes if name == "equality" else property_shapes)
    ]
    checks: list[Check] = []
    for done, (name, (batch, length)) in enumerate(steps):
        label = f"{name} B={batch} L={length}"
        if progress is not None:
            progress(done, len(steps), label)
        case = Case(
            spec=spec,
            runner=runner,
            dtype=dtype,
            device=device,
            seed=seed,
            batch=batch,
            length=length,
            label=label,
            compared=compared,
        )
        try:
            checks.extend(PROPERTIES[name](case))
        except MalformedError as error:
            checks.append(Check(name=f"{label}: form", measured=1, bound=0, detail=str(error)))
    return Report(
        op=spec.op,
        digest=spec.digest,
        runner=runner.name,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        seed=seed,
        checks=tuple(checks),
    )


def _property_shape(spec: OpSpec, shapes: Sequence[Shape], device: torch.device) -> Shape:
    """The largest of `shapes` that is affordable whole, else one that is."""
    budget = affordable(device.type) // spec.channels
    whole = [(b, n) for b, n in shapes if b * n <= budget]
    return max(whole, key=lambda shape: shape[0] * shape[1], default=(1, max(1, budget)))
