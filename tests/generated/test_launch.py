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


@pytest.mark.parametrize("twin", [True, False])
@pytest.mark.parametrize("case", ["blocks_bdl"], indirect=True)
def test_a_twin_is_launched_with_its_own_numbers(
    case: Case, twin: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 channels of 32 segments to a program of the twin, of 8 segments to one of the other."""
    module = case.operator.namespace
    launches: list[tuple[Any, int, tuple[Any, ...], dict[str, Any]]] = []

    def launch(kernel: Any, grid: int, *arguments: Any, **constants: Any) -> None:
        launches.append((kernel, grid, arguments, constants))

    monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(module, "suits_sm90", lambda *call: twin)
    length = 4096
    inputs = [torch.zeros(2, 8, length, dtype=torch.bfloat16) for _ in range(3)]
    parameters = [torch.zeros(shape) for shape in module.PARAMETERS.values()]
    module.launch_backward(inputs[0], inputs, parameters, [])
    kernel, grid, arguments, constants = launches[0]
    numbers = module.SCHEDULE["backward_sm90" if twin else "backward"]
    assert kernel is (module.tiny_blocks_backward_sm90 if twin else module.tiny_blocks_backward)
    assert constants["options"] == module.OPTIONS["backward_sm90" if twin else "backward"]
    assert numbers.items() <= constants.items() and ("EVEN" in constants) != twin
    segments, block = (32, 64) if twin else (8, 32)
    assert (numbers["SEGMENTS"], numbers["BLOCK_T"]) == (segments, block)
    tiles, along_time = arguments[-1], arguments[-2]
    assert along_time * tiles * segments * block >= length
    assert grid == 2 * along_time * 2  # batch, and groups
    partials, by_group = arguments[-7], arguments[-6]
    # The twin sums the two halves of its rows.
    assert len(partials) == 2 * along_time * (segments // 2 if twin else segments)
    assert by_group.shape == (2 * along_time, 20, 2)
