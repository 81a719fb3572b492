"""Configs that a search tries compile ahead of time: a point of each direction, not all.

A search builds them all, and drops what does not fit with the reason.
"""

from __future__ import annotations

import dataclasses
import random

import pytest

from sh2gen.base.resources import folder
from sh2gen.build.build import Compilers, build, misfit
from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.plan.source import Alignment
from sh2gen.schedule.config import DIRECTIONS, partner, schedule
from sh2gen.schedule.space import search_space
from sh2gen.spec.decode import load_spec
from sh2gen.targets.target import target


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", ["hyena_se", "hyena_mr", "hyena_li", "short_conv"])
def test_a_point_compiles(name: str, direction: str, compilers: Compilers) -> None:
    spec, gpu = load_spec(folder("ops") / f"{name}.yaml"), target("sm_90")
    plan = plans(spec)[0]
    point = random.Random(name).choice(search_space(spec, plan, direction).points[1:])
    (other,) = set(DIRECTIONS) - {direction}
    beside = partner(spec, plan, direction, point)
    source = emit(spec, plan, schedule(spec, plan, {direction: dict(point), other: dict(beside)}))
    kernels = tuple(kernel for kernel in source.kernels if kernel.role == direction)
    source = dataclasses.replace(source, kernels=kernels)
    built = build(source, gpu, alignments=[Alignment.ALIGNED], compilers=compilers)
    assert built.kernels
    for kernel in built.kernels:
        problem = misfit(kernel, gpu)
        assert problem is None or "spills" in problem[0] or "shared memory" in problem[0]
