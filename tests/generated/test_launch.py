"""How a generated file launches kernels, on a stand-in for one: no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from sh2gen.build import build
from sh2gen.emit import emit
from sh2gen.load_module import load_module
from sh2gen.lower import plans
from sh2gen.resources import folder
from sh2gen.schedule import schedule
from sh2gen.spec import load_spec
from sh2gen.target import H200

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


class Driver:
    """Says that there is an H200, without one."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.mark.parametrize("op", ["hyena_se", "hyena_li"])
def test_a_launch_finds_what_was_built_ahead_of_time(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is compiled by launches on a GPU after `compile` on the same machine."""
    spec = load_spec(folder("ops") / f"{op}.yaml")
    (plan, *_) = plans(spec, {"hyena_se": "direct", "hyena_li": "modal"}[op])
    source = emit(spec, plan, schedule(spec, plan))
    cache = tmp_path / "cache"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    monkeypatch.setattr(triton.knobs.cache, "dir", str(cache))
    build(source, H200, variants=("aligned",))
    built = {path.name for path in cache.iterdir()}
    (tmp_path / f"{op}.py").write_text(source.text)
    module = load_module(tmp_path / f"{op}.py", interpret=False)
    launched = []

    def launch(kernel: Any, grid: int, *arguments: Any, options: Any, **constants: int) -> None:
        kernel.warmup(*arguments, grid=(grid,), **constants, **options)
        launched.append(kernel.__name__)

    monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    inputs = [torch.zeros(1, spec.channels, 2048, dtype=torch.bfloat16) for _ in spec.inputs]
    parameters = [torch.zeros(shape) for shape in module.PARAMETERS.values()]
    if hasattr(module, "effective"):  # poles of what is trained
        parameters = module.effective(*parameters)
    y, *saved = module.launch_forward(inputs, parameters)
    module.launch_backward(y, inputs, parameters, saved)
    assert {f"{op}_forward", f"{op}_backward", "sum_partials"} <= set(launched)
    assert {path.name for path in cache.iterdir()} == built
