"""Modules under PyTorch's data parallelism: two processes, half of a batch each, on gloo; on NCCL
from tests/gpu.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from tests.generated.conftest import Case

RANK = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import sh2gen

path, place, device, rank = *sys.argv[1:4], int(sys.argv[4])
if device == "cuda":
    torch.cuda.set_device(rank)
backend = "nccl" if device == "cuda" else "gloo"
dist.init_process_group(backend, init_method=f"file://{place}", rank=rank, world_size=2)
operator = sh2gen.load(path)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mixer = operator.module(device=device)
        self.scale = nn.Parameter(torch.ones(1, device=device))

    def forward(self, *inputs):
        return self.mixer(*inputs) * self.scale


channels = operator.spec.channels
shape = (4, channels, 11) if operator.layout == "BDL" else (4, 11, channels)
torch.manual_seed(1)
inputs = [torch.randn(shape, device=device) for _ in operator.spec.inputs]
half = [x.chunk(2)[rank] for x in inputs]
alone = Block()
alone(*inputs).square().mean().backward()
right = {name: p.grad for name, p in alone.named_parameters()}
for kind in ("ddp", "fsdp"):
    block = Block()
    if kind == "ddp":
        whole = DistributedDataParallel(block)
    else:
        fully_shard(block.mixer)
        whole = fully_shard(block)
    for _ in range(2):  # FSDP prefetches what it has seen
        whole.zero_grad()
        whole(*half).square().mean().backward()
    for name, p in block.named_parameters():
        found = p.grad.full_tensor() if kind == "fsdp" else p.grad
        torch.testing.assert_close(found, right[name], msg=lambda text: f"{kind} {name}: {text}")
dist.destroy_process_group()
"""


def check_halves(path: Path, place: Path, device: Literal["cpu", "cuda"]) -> None:
    """Gradients of an operator of halves of a batch are those of the whole."""
    script = place / "rank.py"
    script.write_text(RANK)
    ranks = [
        subprocess.Popen(
            [sys.executable, script, path, place / "rendezvous", device, str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)


@pytest.mark.parametrize("case", ["poles"], indirect=True)
def test_gradients_of_halves_of_a_batch_are_those_of_the_whole(case: Case, tmp_path: Path) -> None:
    check_halves(case.path, tmp_path, "cpu")
