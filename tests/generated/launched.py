"""Files whose calls go as those on a GPU: interpreted kernels stand for compiled ones."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from sh2gen.build.load_module import load_module

if TYPE_CHECKING:
    from tests.generated.conftest import Case

INTERPRETER = threading.RLock()  # Triton's, which is of one thread


class Interpreted:
    """Stands for a compiled kernel: launched with addresses, it is interpreted."""

    def __init__(
        self, kernel: Any, arguments: Sequence[Any], count: Callable[[str], None]
    ) -> None:
        self.kernel, self.count = kernel, count
        self.kinds = [x.dtype if isinstance(x, Tensor) else None for x in arguments]

    def start(self, programs: int, numbers: Sequence[int], constants: Sequence[Any]) -> None:
        self.count(self.kernel.__name__)
        taken = [at(x, k) if k else x for x, k in zip(numbers, self.kinds, strict=True)]
        names = self.kernel.arg_names[len(taken) :]
        with INTERPRETER:
            self.kernel[(programs,)](*taken, **dict(zip(names, constants, strict=True)))


def at(address: int, kind: torch.dtype) -> Tensor:
    """The memory at an address, as a tensor of one element."""
    if not address:
        return torch.empty(0, dtype=kind)
    memory = (ctypes.c_char * kind.itemsize).from_address(address)
    return torch.frombuffer(memory, dtype=kind)


@pytest.fixture
def launched(case: Case, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A file whose calls go as those on a GPU: `function` of it, and which kernels were launched
    from `tapes`.
    """
    module = load_module(case.path, interpret=True)
    tapes: list[str] = []
    launch = module.launch

    def noted(kernel: Any, programs: int, *arguments: Any, **named: Any) -> None:
        with _disable_current_modes(), INTERPRETER:  # it computes with tensors
            launch(kernel, programs, *arguments, **named)
        if (notes := getattr(module.LAUNCHES, "noted", None)) is not None:
            one, count, _, given, values = notes.pop()
            notes.append((one, count, Interpreted(one, given, tapes.append), given, values))

    def starter(binary: Interpreted, _: Any, programs: int, constants: Any) -> Any:
        return lambda numbers: binary.start(programs, numbers, constants)

    for name, value in {
        "launch": noted,
        "starter": starter,
        "on_gpu": lambda x: isinstance(x, Tensor),
        "is_current": lambda device: True,
        "capturing": lambda: False,
        "DIRECT": (triton.__version__,),
    }.items():
        monkeypatch.setattr(module, name, value)
    return SimpleNamespace(
        module=module,
        tapes=tapes,
        function=getattr(module, module.OP),
        packed=getattr(module, f"{module.OP}_packed", None),
    )
