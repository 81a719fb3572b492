"""What verification takes of this machine's memory, and what there is.

A description of ten lines may ask for terabytes: better to say so than to find out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import read_text
from sh2gen.spec.language import FilterKind
from sh2gen.spec.operator import OpSpec

# Bytes that comparing with float64 was seen to take at most, gradients included:
_BASE = 100 * 2**20  # of any operator
_PARAMETER = 96  # of a parameter's element
_MODE = 192  # of one of a modal filter
_ACTIVATION = 16  # of an element of the inputs and the output
_COMPARED = 48  # of one that is compared, beside it
_STATE = (
    4608  # of a number of a channel's state, which plain PyTorch has for every step of a block
)
_V2, _V1 = "/sys/fs/cgroup", "/sys/fs/cgroup/memory"


def affordable(device: str) -> int:
    """Elements (B, D, L) of which a float64 reference with gradients is affordable.

    It holds about 30 float64 values an element, 16 GB on a GPU; on a CPU it is time that counts, a
    few seconds.
    """
    return 1 << (20 if device == "cpu" else 26)


def verification_bytes(
    spec: OpSpec, shapes: Sequence[tuple[int, int]], states: bool = False, device: str = "cpu"
) -> int:
    """About what verifying an operator takes at most, of (batch, length) in `shapes`.

    Args:
        states: whether its plan is one of recurrences (`Plan.states`).
        device: "cpu" or "cuda", whose memory is meant.
    """
    modal = spec.filter.kind is FilterKind.MODAL
    each = _MODE if modal else _PARAMETER
    parameters = each * sum(math.prod(p.shape) for p in spec.parameters)
    steps = max(batch * length for batch, length in shapes)
    elements, tensors = spec.channels * steps, len(spec.inputs) + 1
    compared = min(elements, max(affordable(device), spec.group_width * steps))  # a whole group
    activations = tensors * (_ACTIVATION * elements + _COMPARED * compared)
    # On a GPU kernels run, which have no states of every step.
    carried = spec.channels * spec.filter.state_size * (states and device == "cpu")
    return _BASE + parameters + activations + _STATE * carried


def require_memory(
    spec: OpSpec,
    shapes: Sequence[tuple[int, int]],
    states: bool,
    advice: str,
    device: str = "cpu",
) -> None:
    """Refuse to verify an operator on a device that has no memory for it.

    Args:
        states, device: as of `verification_bytes`.
        advice: what to do instead.

    Raises:
        Sh2genError: V003.
    """
    needed = verification_bytes(spec, shapes, states, device)
    free = available() if device == "cpu" else available_on_gpu()
    if free is not None and needed > free:
        where = "" if device == "cpu" else " on the GPU"
        raise Sh2genError(
            "V003",
            f"verifying {spec.op} would take about {_gigabytes(needed)} of memory{where}, and "
            f"there are {_gigabytes(free)}",
            help=advice,
        )


def available_on_gpu() -> int:
    """Bytes that this process could still have on the GPU: what is free, and what PyTorch holds
    for it and does not use.
    """
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return torch.cuda.mem_get_info()[0] + unused


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
