"""What verification takes of this machine's memory, and what there is (layer 2).

A description of ten lines may ask for terabytes: better to say so than to find out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sh2gen.errors import Sh2genError
from sh2gen.files import read_text
from sh2gen.spec import OpSpec

# Bytes that comparing plain PyTorch with float64 was seen to take at most, gradients included:
_PARAMETER = 96  # of a parameter's element
_ACTIVATION = 64  # of an element of the inputs and the output
_STATE = (
    4608  # of a number of a channel's state, which plain PyTorch has for every step of a block
)
_V2, _V1 = "/sys/fs/cgroup", "/sys/fs/cgroup/memory"


def verification_bytes(
    spec: OpSpec, shapes: Sequence[tuple[int, int]], states: bool = False
) -> int:
    """About what verifying an operator on a CPU takes at most, of (batch, length) in `shapes`.

    Args:
        states: whether its plan is one of recurrences (`Plan.states`).
    """
    parameters = sum(math.prod(p.shape) for p in spec.parameters)
    steps = max(batch * length for batch, length in shapes)
    activations = steps * spec.channels * (len(spec.inputs) + 1)
    carried = spec.channels * spec.filter.state_size * states
    return _PARAMETER * parameters + _ACTIVATION * activations + _STATE * carried


def require_memory(
    spec: OpSpec, shapes: Sequence[tuple[int, int]], states: bool, advice: str
) -> None:
    """Refuse to verify an operator on this CPU for which there is no memory.

    Args:
        states: as of `verification_bytes`.
        advice: what to do instead.

    Raises:
        Sh2genError: V003.
    """
    needed, free = verification_bytes(spec, shapes, states), available()
    if free is not None and needed > free:
        raise Sh2genError(
            "V003",
            f"verifying {spec.op} would take about {_gigabytes(needed)} of memory, and there are "
            f"{_gigabytes(free)}",
            help=advice,
        )


def available() -> int | None:
    """Bytes that a process could still have here: what the system has, and the container that this
    one is in allows. None where nothing says so.
    """
    free = []
    try:
        text = read_text("/proc/meminfo")
        free += [1024 * int(n) for n in _numbers(text, "MemAvailable:")]
    except OSError:
        pass
    for limit, used, statistics, cache in (
        (f"{_V2}/memory.max", f"{_V2}/memory.current", f"{_V2}/memory.stat", "inactive_file"),
        (
            f"{_V1}/memory.limit_in_bytes",
            f"{_V1}/memory.usage_in_bytes",
            f"{_V1}/memory.stat",
            "total_inactive_file",
        ),
    ):
        try:
            taken = int(read_text(used)) - sum(_numbers(read_text(statistics), cache))
            free.append(max(0, int(read_text(limit)) - taken))
        except (OSError, ValueError):  # no such files, or "max"
            continue
    return min(free, default=None)


def _numbers(text: str, name: str) -> list[int]:
    lines = (line.split() for line in text.splitlines())
    return [int(words[1]) for words in lines if words and words[0] == name]


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
