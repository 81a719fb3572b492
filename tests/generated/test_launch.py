"""How a generated file launches kernels, on a stand-in for one: no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from tests.generated.conftest import Case


class Kernel:
    """Remembers its launches; the first of them gives a binary, which remembers its own."""

    def __init__(self) -> None:
        self.arg_names = ["x_ptr", "end", "ROWS", "TILES"]
        self.compiled: list[tuple[tuple[Any, ...], dict[str, int]]] = []
        self.direct: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Binary]:
        def run(*arguments: Any, **constants: int) -> Binary:
            self.compiled.append((arguments, constants))
            return Binary(self)

        return run


class Binary:
    """What Triton returns from the first launch of a kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments: self.kernel.direct.append(arguments)


@pytest.mark.parametrize("case", ["hyena_bdl"], indirect=True)
def test_a_remembered_binary_takes_constants_in_the_order_of_the_kernel(case: Case) -> None:
    launch, kernel, x = case.operator.namespace.launch, Kernel(), torch.zeros(16)
    options = {"num_warps": 1}
    for end in (5, 6):
        launch(kernel, 3, x, end, options=options, ROWS=8, TILES=2)
    assert kernel.compiled == [((x, 5), {"ROWS": 8, "TILES": 2, "num_warps": 1})]
    assert kernel.direct == [(x, 6, 8, 2)]
    for constants in ({"TILES": 2, "ROWS": 8}, {"ROWS": 8}):
        with pytest.raises(AssertionError, match="order"):
            launch(Kernel(), 3, x, 5, options=options, **constants)
