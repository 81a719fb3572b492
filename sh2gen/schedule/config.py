"""Schedules: values for the symbols of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sh2gen.base.errors import Sh2genError
from sh2gen.base.resources import folder
from sh2gen.plan.plan import Plan
from sh2gen.schedule.expressions import first_case
from sh2gen.schedule.facts import facts_of
from sh2gen.schedule.knobs import knobs_of, read_schedules
from sh2gen.schedule.space import DECODE, Config, file_of, search_space, space
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target

DIRECTIONS = ("forward", "backward")
ROLES = (*DIRECTIONS, DECODE)  # those that have a config


def roles_of(plan: Plan) -> tuple[str, ...]:
    """Those that a plan has kernels for, or would have beside plain PyTorch."""
    return ROLES if plan.step is not None else DIRECTIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One point of a plan's spaces: what the generated file gets as its config.

    Attributes:
        plan: name of the plan.
        forward: knob and value, in the order of the schedule file; empty if there is no kernel.
        backward, decode: likewise.
    """

    plan: str
    forward: Config = ()
    backward: Config = ()
    decode: Config = ()

    def config(self, role: str) -> Config:
        return {"forward": self.forward, "backward": self.backward, DECODE: self.decode}[role]

    def __str__(self) -> str:
        parts = [
            f"{role}: "
            # A 0 is no number: it leaves the choice to the compiler.
            + " ".join(f"{name}={value}" for name, value in self.config(role) if value)
            for role in ROLES
            if self.config(role)
        ]
        return "; ".join(parts) or "no config"


def launch_config(spec: OpSpec, schedule: Schedule, role: str) -> dict[str, int]:
    """The config of a role as launches take them: PROGRAMS is what is wanted of a sequence, in
    the least batch that the operator is for.
    """
    config = dict(schedule.config(role))
    if "PROGRAMS" in config:
        least = min(workload.batch for workload in spec.workloads)
        config["PROGRAMS"] = max(1, config["PROGRAMS"] // least)
    return config


def coupling(plan: Plan, config: Config) -> int | None:
    """What both directions of a plan must agree on: the steps of a tile where forward keeps
    states for backward, None otherwise, as of decoding.
    """
    values = dict(config)
    if not plan.states or "SEGMENTS" not in values:
        return None
    return values["SEGMENTS"] * values["BLOCK_T"]


def partner(
    spec: OpSpec, plan: Plan, direction: str, config: Config, target: Target | None = None
) -> Config:
    """A config of the other direction that `config` of this one may be scheduled with.

    The other direction's default if that agrees (`coupling`), else the point of its search space
    that agrees and is nearest to the default: with the fewest knobs changed, by the fewest steps.

    Raises:
        Sh2genError: K003 if no such point agrees.
    """
    (other,) = set(DIRECTIONS) - {direction}
    where = space(spec, plan, other, target)
    wanted = coupling(plan, config)
    default = dict(where.default)
    if coupling(plan, where.default) == wanted:
        return where.default
    indices = {name: values.index for name, values in where.knobs}

    def distance(point: Config) -> tuple[int, int]:
        steps = [abs(indices[name](v) - indices[name](default[name])) for name, v in point]
        return sum(map(bool, steps)), sum(steps)

    points = search_space(spec, plan, other, target).points
    agreeing = [point for point in points if coupling(plan, point) == wanted]
    if not agreeing:
        raise Sh2genError(
            "K003",
            f"{direction} has tiles of {wanted} steps, as no {other} config that is searched: "
            "backward starts from the states that forward keeps before its tiles",
            help="give configs for both directions",
        )
    return min(agreeing, key=distance)


def interpreter_schedule(spec: OpSpec, plan: Plan) -> Schedule:
    """Configs with which a miniature of the operator runs quickly under Triton's interpreter."""
    cases = read_schedules(plan.algorithm)["interpret"].get(plan.layout.value, {})
    configs = {direction: first_case(case, facts_of(spec)) for direction, case in cases.items()}
    return schedule(spec, plan, configs)


def schedule(
    spec: OpSpec,
    plan: Plan,
    changes: Mapping[str, Mapping[str, int]] | None = None,
    target: Target | None = None,
) -> Schedule:
    """The default schedule of a plan on a target, by default that of `targets`, with some knobs
    changed by direction.

    Raises:
        Sh2genError: K001, K002, K003 for an unknown knob, an illegal value, a violated constraint.
    """
    changes = changes or {}
    for direction in changes:
        if direction not in ROLES:
            raise Sh2genError(
                "K001", f"unknown direction `{direction}`", help="forward, backward or decode"
            )
    configs = {
        direction: space(spec, plan, direction, target).check(
            direction, changes.get(direction, {})
        )
        for direction in ROLES
    }
    tiles = {direction: coupling(plan, found) for direction, found in configs.items()}
    if tiles["forward"] != tiles["backward"]:
        raise Sh2genError(
            "K003",
            "forward and backward have tiles of different length, "
            f"{tiles['forward']} and {tiles['backward']} steps: backward starts from the "
            "states that forward keeps before its tiles",
            help="make SEGMENTS * BLOCK_T the same in both directions",
        )
    return Schedule(plan=plan.name, **configs)


def completed(plan: str, direction: str, config: Config) -> Config:
    """A config that was written down for a plan, with the knobs that have come since then at the
    values under which kernels are what they were (`absent` in the schedule file).

    What else it lacks, or has too much, stays so: it is for others to refuse.
    """
    algorithm, _, rest = plan.partition("/")
    if not config or algorithm not in {path.stem for path in folder("schedules").glob("*.yaml")}:
        return config
    text, given = read_schedules(file_of(algorithm, direction)), dict(config)
    names = list(knobs_of(text, rest.partition("/")[0], direction))
    since = {
        name: text["knobs"][name]["absent"]
        for name in names
        if name not in given and "absent" in text["knobs"][name]
    }
    if not since:
        return config
    whole = given | since
    return tuple((name, whole.pop(name)) for name in names if name in whole) + tuple(whole.items())
