"""Writes beyond tensors are found, by kernels as they are and by one that is broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sh2gen.build.load_module import load_module
from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.schedule.config import interpreter_schedule
from sh2gen.spec.decode import spec_from_dict
from sh2gen.verify.fences import written_beyond


def made(how: str, like: Tensor) -> Tensor:
    """A tensor of 3 x 5 numbers, in one of the ways that launchers make them."""
    ways = {
        "new_empty": lambda: like.new_empty((3, 5)),
        "new_empty_strided": lambda: like.new_empty_strided((3, 5), (8, 1)),
        "empty_like": lambda: torch.empty_like(torch.ones(3, 5)),
        "empty": lambda: torch.empty((3, 5)),
    }
    tensor: Tensor = ways[how]()
    return tensor


@pytest.mark.parametrize("how", ["new_empty", "new_empty_strided", "empty_like", "empty"])
@pytest.mark.parametrize("at", [-3, 0, 12])
def test_what_is_written_beyond_is_counted(how: str, at: int) -> None:
    """By a write of 12 numbers that begins so many before, at, or after the first."""

    def run() -> None:
        tensor = made(how, torch.ones(1))
        assert tensor.isnan().all()
        tensor.fill_(1.0)
        size = tensor.untyped_storage().size() // 4
        flat = tensor.as_strided((size,), (1,), 0)
        begin = tensor.storage_offset() + at
        flat[begin : begin + 12] = 2.0

    reach = 15 if how != "new_empty_strided" else 21
    inside = -(-4 * reach // 16) * 16
    expected = max(0, -4 * at) + max(0, 4 * (at + 12) - inside)
    # A float32 of 2.0 has a byte that could be a fence's: none is.
    assert written_beyond(run) == expected


def test_kernels_stay_within_their_tensors(tmp_path: Path) -> None:
    spec = spec_from_dict(
        {"op": "fenced", "channels": 4, "filter": {"kind": "explicit", "length": 4, "groups": 4}}
    )
    plan = plans(spec, "direct")[0]
    text = emit(spec, plan, interpreter_schedule(spec, plan)).text

    def beyond(name: str, text: str) -> int:
        (tmp_path / name).mkdir()
        (tmp_path / name / "fenced.py").write_text(text)
        module: Any = load_module(tmp_path / name / "fenced.py", interpret=True)
        x, taps = torch.randn(2, 4, 24), torch.randn(4, 4)

        def run() -> None:
            y, *saved = module.launch_forward([x], [taps])
            module.launch_backward(torch.ones_like(y), [x], [taps], saved)

        return written_beyond(run)

    assert beyond("right", text) == 0
    broken = text.replace("tl.store(", "unmasked_store(").replace(
        "@triton.jit\n",
        "@triton.jit\ndef unmasked_store(pointer, value, mask=None):\n"
        "    tl.store(pointer, value)\n\n\n@triton.jit\n",
        1,
    )
    assert beyond("broken", broken) > 0
