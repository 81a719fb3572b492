"""Finding writes beyond tensors.

A kernel that writes where it should not often destroys nothing that a comparison would see. So
memory that launchers ask for is given to them between two fences, which must not change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_WIDTH = 1 << 16  # bytes of a fence; a multiple of any alignment that kernels care about
_POST = 0xA5
_FACTORIES = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
}


class _Fencing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, new tensors that are not filled lie between fences, in bytes of NaN."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fields: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func not in _FACTORIES or not made.numel():
            return made
        reach = sum((n - 1) * step for n, step in zip(made.shape, made.stride(), strict=True)) + 1
        size = -(-reach * made.element_size() // 16) * 16
        field = torch.full((size + 2 * _WIDTH,), _POST, dtype=torch.uint8, device=made.device)
        self.fields.append(field)
        within = field[_WIDTH : _WIDTH + size]
        within.fill_(0xFF)  # NaN in every type of floating point
        return within.view(made.dtype).as_strided(made.shape, made.stride())


def written_beyond(run: Callable[[], Any]) -> int:
    """How many bytes next to the tensors that `run` makes it writes to: up to 64 KiB on each side.

    `run` launches kernels directly. What custom operators make inside is not seen.
    """
    with _Fencing() as fencing:
        run()
    beyond = 0
    for field in fencing.fields:
        for fence in (field[:_WIDTH], field[-_WIDTH:]):
            beyond += int((fence != _POST).sum())
    return beyond
