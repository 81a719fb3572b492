"""What was found of an operator and of baselines beside it; to JSON and back.

A share is the time of an elementwise kernel of this run that reads and writes the same activations
over the baseline's time. Times are medians with the 20th and 80th percentiles, of the GPU alone
where a call can be captured in a CUDA graph (`runtime.measure`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sh2gen.base import jsonl
from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import read_text
from sh2gen.base.jsonl import COUNT, POSITIVE, READING
from sh2gen.bench.worker import OWN, one_line
from sh2gen.runtime.measure import Timing
from sh2gen.schedule.config import DIRECTIONS

TIMED = ("forward", "backward", "both")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was found of one baseline, at one size or (batch and length None) at all of them.

    Attributes:
        baseline, does, layout: as in the table of baselines.
        without: steps of the operator that it leaves out; none: it computes the whole.
        reason: why it was not timed; empty if it was.
        times: microseconds, by direction.
        shares: of the bound of what it computes, by direction.
        reasons: why a direction has no time.
        error: of y at this size, relative to float64 in the 2-norm.
        gradient_error: the largest of any gradient, at the size CHECKED.
        step: microseconds of wall time that a training step takes in eager mode, where the host
            counts: `runtime.measure.wall_time`.
        peak: memory beside inputs and parameters, at the most, in activations, by direction
            (forward, both).
        captured: whether every time is of a CUDA graph; otherwise the host may count.
    """

    baseline: str
    does: str
    layout: str
    without: tuple[str, ...] = ()
    batch: int | None = None
    length: int | None = None
    reason: str = ""
    times: Mapping[str, Timing] = field(default_factory=dict)
    shares: Mapping[str, READING] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    error: float | None = None
    gradient_error: float | None = None
    step: Timing | None = None
    peak: Mapping[str, READING] = field(default_factory=dict)
    captured: bool = True

    @property
    def size(self) -> tuple[int | None, int | None]:
        return self.batch, self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Bounds and predictions of the whole operator at one size, in microseconds by direction, and
    the predicted peak of memory as of `Outcome`.
    """

    batch: COUNT
    length: COUNT
    bounds: Mapping[str, POSITIVE]
    predicted: Mapping[str, POSITIVE]
    peak: Mapping[str, READING] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        return self.batch, self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What sh2gen takes to decode one step of so many sequences, whose states are in no cache.

    Attributes:
        us: of the GPU; without one, of the call.
        bound: microseconds of a copy of the bytes that a step must read and write.
        host: microseconds that the host takes for the call.
    """

    batch: COUNT
    us: Timing
    bound: POSITIVE
    host: POSITIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Work of one kernel of sh2gen per token and channel, for the roofline."""

    bytes: POSITIVE
    flops: READING  # outside of matrix products
    product_flops: READING

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return (self.flops + self.product_flops) / self.bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything that `run` found.

    Attributes:
        op, digest, channels, plan, schedule, dtype: what was measured.
        origins: by direction, where the config of the schedule comes from, in words.
        not_taken: a line for each other plan of which a config was tuned.
        gpu, target: the device's name, and the target whose rates predictions take.
        versions: of Python, CUDA and packages.
        date: of the run.
        checks: comparisons that sh2gen's kernels passed before they were timed.
        interrupted: whether the run ended before everything was measured.
        bound_bytes: per token and channel, what the elementwise bound moves, by direction.
        sizes: in the order in which they were measured.
        steps: of decoding; none if it runs without kernels.
        efforts: of sh2gen's kernels by direction; none if it runs without kernels.
        outcomes: of all baselines, sh2gen first.
    """

    op: str
    digest: str
    channels: COUNT
    plan: str
    schedule: str
    origins: Mapping[str, str]
    not_taken: tuple[str, ...]
    dtype: str
    gpu: str
    target: str
    versions: Mapping[str, str]
    date: str
    checks: int
    interrupted: bool
    bound_bytes: Mapping[str, POSITIVE]
    sizes: tuple[Size, ...]
    steps: tuple[Steps, ...]
    efforts: Mapping[str, Effort]
    outcomes: tuple[Outcome, ...]

    def at(self, size: tuple[int, int]) -> tuple[Outcome, ...]:
        """What was found at one size."""
        return tuple(o for o in self.outcomes if o.size == size)

    def own(self, size: tuple[int, int], direction: str) -> float | None:
        """Microseconds of sh2gen; None where there are none or they are not finite."""
        for outcome in self.at(size):
            if outcome.baseline == OWN and direction in outcome.times:
                us = outcome.times[direction].median
                return us if math.isfinite(us) else None
        return None

    def ratio(self, outcome: Outcome, direction: str) -> float | None:
        """How many times as long as sh2gen a baseline takes; None where either has no time."""
        if outcome.batch is None or outcome.length is None or direction not in outcome.times:
            return None
        own = self.own((outcome.batch, outcome.length), direction)
        return None if own is None else outcome.times[direction].median / own

    def step_ratio(self, outcome: Outcome) -> float | None:
        """The same of a training step's wall time."""
        for other in self.outcomes:
            if (other.baseline, other.size) == (OWN, outcome.size) and other.step is not None:
                return None if outcome.step is None else outcome.step.median / other.step.median
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which knows no infinity: None stands for what is not finite."""
        plain: dict[str, Any] = _finite(asdict(self))
        for outcome, entry in zip(self.outcomes, plain["outcomes"], strict=True):
            entry["whole"] = not outcome.without
            ratios = {d: self.ratio(outcome, d) for d in outcome.times}
            entry["over_sh2gen"] = _finite(ratios)
        return plain

    @classmethod
    def from_dict(cls, plain: Any) -> Results:
        """What `to_dict` was of, with NaN for measured numbers that are None.

        Raises:
            ValueError: it is of nothing; names the field.
        """
        values = jsonl.value_of(plain, Mapping[str, Any], "it")
        values = {"steps": [], **values}  # of earlier versions, which timed none
        if isinstance(values.get("outcomes"), list):
            values["outcomes"] = [_own_fields(x, i) for i, x in enumerate(values["outcomes"])]
        if isinstance(values.get("sizes"), list):  # files of earlier versions have no peak
            sizes = values["sizes"]
            values["sizes"] = [{"peak": {}, **x} if isinstance(x, dict) else x for x in sizes]
        found: Results = jsonl.value_of(values, cls, "")
        if problem := next(_misfits(found), None):
            raise ValueError(problem)
        return found


def _own_fields(entry: Any, i: int) -> Any:
    """An outcome without what `to_dict` adds; it writes all fields, those with a default too."""
    if not isinstance(entry, dict):
        return entry
    if "contender" in entry:  # as files of earlier versions call it
        entry = {"baseline": entry["contender"], **entry}
        del entry["contender"]
    if "memory" in entry:  # likewise, over what a call takes and gives; they have no wall time
        entry = {"step": None, "peak": {}, **entry}
        del entry["memory"]
    for name in (one.name for one in fields(Outcome)):
        if name not in entry:
            raise ValueError(f"outcomes[{i}].{name} is missing")
    return {k: v for k, v in entry.items() if k not in ("whole", "over_sh2gen")}


def _misfits(results: Results) -> Iterator[str]:
    """What its annotations do not say of results and holds of all that `run` finds."""
    if not results.op.isidentifier():  # files are named after it
        yield f"op must be the name of an operator, not {json.dumps(results.op)}"
    if not results.sizes:
        yield "sizes must not be empty"
    needed: list[tuple[str, Mapping[str, float], Iterable[str]]] = [
        ("bound_bytes", results.bound_bytes, DIRECTIONS),
        *((f"sizes[{i}].bounds", s.bounds, TIMED) for i, s in enumerate(results.sizes)),
        *((f"outcomes[{i}].shares", o.shares, o.times) for i, o in enumerate(results.outcomes)),
    ]
    for path, values, directions in needed:
        yield from (f"{path}.{d} is missing" for d in directions if d not in values)
    sizes = {s.size for s in results.sizes}
    for i, o in enumerate(results.outcomes):
        if o.size not in sizes and (o.times or o.size != (None, None)):
            found = f"batch {json.dumps(o.batch)} and length {json.dumps(o.length)}"
            yield f"outcomes[{i}] must have batch and length of one of sizes, not {found}"


def read_results(path: Path) -> tuple[Results, ...]:
    """Results from a file of what `bench --json` printed: of one run, or a list of several.

    Raises:
        Sh2genError: C006 if it cannot be read or is something else.
    """
    place, found = "", []
    try:
        plain = jsonl.loads(read_text(path))
        if plain == []:
            raise ValueError("its list is empty")
        for i, one in enumerate(plain if isinstance(plain, list) else [plain]):
            place = f"[{i}]: " if isinstance(plain, list) else ""
            found.append(Results.from_dict(one))
    except OSError as error:
        raise Sh2genError("C006", f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise Sh2genError(
            "C006",
            f"{path} is not what `bench --json` prints: {place}{one_line(str(error))}",
            help="`sh2gen bench OP --json > FILE`, by the same version, writes such a file",
        ) from error
    return tuple(found)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
