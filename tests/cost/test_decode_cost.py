"""What a step of decoding moves is what its kernel reads and writes."""

from __future__ import annotations

import pytest
import torch

import sh2gen
from sh2gen.base.resources import folder
from sh2gen.cost.decode import decoding
from sh2gen.spec.decode import load_spec
from sh2gen.targets.target import target


@pytest.mark.parametrize("op", ["short_conv", "hyena_se", "hyena_mr", "hyena_li", "h3"])
def test_a_state_is_what_a_file_makes(op: str) -> None:
    """But for counts, and for the ring of drafts of a modal filter."""
    spec = load_spec(folder("ops") / f"{op}.yaml")
    names = sh2gen.load(folder("generated") / f"{op}.py").namespace
    state = names.initial_state(1, spec.channels, dtype=torch.bfloat16)
    drafts = state.z if hasattr(state, "modes") else None
    found = sum(
        x.numel() * x.element_size()
        for x in state[:-1]
        if x.is_floating_point() and x is not drafts
    )
    assert decoding(spec).state == found


def test_a_step_of_hyena_mr() -> None:
    """127 of z and 2 of each input read, one of each written, three inputs and the output, of two
    bytes a channel; and all is bound by memory.
    """
    spec, gpu = load_spec(folder("ops") / "hyena_mr.yaml"), target("H200")
    found = decoding(spec)
    assert found.step == 4096 * 2 * ((127 + 1) + 3 * (2 + 1) + 3 + 1)
    assert found.bound(64, gpu) == 64 * found.step / gpu.elementwise_bandwidth
