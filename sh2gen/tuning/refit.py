"""Other configs where those that are known do not fit the compiler at hand.

Which registers a kernel takes is Triton's decision, and every version decides anew: configs that
fit one may spill under another. Then the next that build are as good as known.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import closing

from sh2gen.base.versions import TESTED, installed
from sh2gen.build.build import Building, KernelFailed, check_fits
from sh2gen.cost.cost import score
from sh2gen.emit.emit import emit
from sh2gen.emit.launched import of_direction
from sh2gen.plan.source import Alignment
from sh2gen.schedule.config import Schedule, coupling, roles_of, schedule
from sh2gen.schedule.space import Config, search_space, space
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target
from sh2gen.tuning.choose import Candidate
from sh2gen.tuning.session import problem

TRIES = 12  # configs that are built at most, for a direction
SECONDS = 60.0  # that this may take
# How much a program does, one after another: no matter of what it holds, nor of what fits.
_WORK = {"TILES", "TILES_SM90", "PROGRAMS"}


def refit(
    spec: OpSpec,
    chosen: Candidate,
    target: Target,
    failed: KernelFailed,
    say: Callable[[str], None],
) -> Candidate:
    """The same plan with a config whose kernels build and fit, in the direction that failed: the
    default, if that was not it, else the first of the search space in the order of prediction.

    The origin of the config says which it is and why. Everything is left to be built and
    verified in full.

    Raises:
        KernelFailed: the same code, if no other config fits within bounds of number and time, or
            if the config is not what is wrong.
    """
    if failed.role is None:
        raise failed
    direction, version = failed.role.value, installed("triton")
    begin, tried = time.monotonic(), 0
    for config, what in _others(spec, chosen, target, direction):
        left = SECONDS - (time.monotonic() - begin)
        if tried == TRIES or left <= 0:
            break
        tried += 1
        say(f"{spec.op}: {direction} does not fit ({failed.reason}): building others, {tried}")
        other = _with(spec, chosen, direction, config, target)
        if _fits(spec, chosen, other, target, direction, left):
            origin = chosen.origins.get(direction, "default").partition(";")[0]
            why = f"{what}, the first that fits: under Triton {version} what is "
            why += f"{origin} does not ({failed.reason})"
            return dataclasses.replace(
                chosen,
                schedule=other,
                score=score(spec, chosen.plan, other, target),
                measured=False,
                origins={**chosen.origins, direction: why},
                decided={d: one for d, one in chosen.decided.items() if d != direction},
            )
    oldest, newest = TESTED["triton"]
    raise KernelFailed(
        failed.code,
        f"{failed.message}; nor do {tried} others that are predicted to be fast"
        if tried
        else failed.message,
        reason=failed.reason,
        role=failed.role,
        help=f"another plan (--plan; `sh2gen explain {spec.op}` lists them), or another version "
        f"of Triton: {version} is here, {oldest} to {newest} are tested",
    )


def _others(
    spec: OpSpec, chosen: Candidate, target: Target, direction: str
) -> Iterator[tuple[Config, str]]:
    """Configs to try, and what they are in words."""
    plan, now = chosen.plan, chosen.schedule.config(direction)
    agreed = coupling(plan, now)
    default = space(spec, plan, direction, target).default
    points = [
        point
        for point in search_space(spec, plan, direction, target).points
        if point != now and coupling(plan, point) == agreed
    ]
    predicted = problem(spec, plan, direction, spec.workloads, target, now, points).predicted
    points.sort(key=lambda point: (point != default, predicted[point]))
    held = {_held(now)}
    for point in points:
        if _held(point) not in held:
            held.add(_held(point))
            yield point, "default" if point == default else "by prediction"


def _held(config: Config) -> Config:
    """What decides whether a kernel fits."""
    return tuple((name, value) for name, value in config if name not in _WORK)


def _with(
    spec: OpSpec, chosen: Candidate, direction: str, config: Config, target: Target
) -> Schedule:
    every = {d: dict(chosen.schedule.config(d)) for d in roles_of(chosen.plan)}
    return schedule(spec, chosen.plan, every | {direction: dict(config)}, target)


def _fits(
    spec: OpSpec,
    chosen: Candidate,
    other: Schedule,
    target: Target,
    direction: str,
    seconds: float,
) -> bool:
    """Whether the kernels of a direction build in so many seconds, and fit."""
    source = emit(spec, chosen.plan, other)
    source = dataclasses.replace(source, kernels=of_direction(source.kernels, direction))
    alignments = (Alignment.ALIGNED,)
    with closing(Building(source, target, alignments=alignments, time_limit=seconds)) as building:
        try:
            check_fits(building.result(), target)
        except KernelFailed:
            return False
    return True
