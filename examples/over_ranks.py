"""Train two layers on one sequence that is split over processes, on CPUs or GPUs.

    torchrun --nproc-per-node 2 examples/over_ranks.py
    python examples/over_ranks.py  # one process, the same losses

Each rank has its steps of the sequence and of what is predicted; parameters are the same on all.
"""

from __future__ import annotations

import os
import tempfile

import torch
import torch.distributed as dist
from torch import nn

import sh2gen

CHANNELS, LENGTH, STEPS = 32, 500, 41
OP = """
op: mixer_over_ranks
channels: 32
filter: {kind: explicit, length: 7, groups: 8}
featurizer: {length: 3}
gates: {pre: true, post: true}
skip: channel
dtype: {io: float32}
context: {ranks: 2, sharding: zigzag}
"""


def main() -> None:
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    with tempfile.TemporaryDirectory() as folder:
        # `sh2gen verify mixer.yaml --ranks 2` holds it against float64.
        operator = sh2gen.compile(sh2gen.parse_spec(OP), out=folder, verified=False, built=False)
    names = operator.namespace

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.mixer = (
                nn.Linear(CHANNELS, 3 * CHANNELS),
                operator.module(group=dist.group.WORLD if size > 1 else None),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, D, L)
            q, k, v = self.project(x.transpose(1, 2)).transpose(1, 2).chunk(3, 1)
            time_last = operator.layout == "BDL"
            inputs = [z if time_last else z.transpose(1, 2) for z in (q, k, v)]
            y = self.mixer(*(z.contiguous() for z in inputs), length=LENGTH)
            return x + (y if time_last else y.transpose(1, 2))

    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block()).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.randn(1, CHANNELS, LENGTH)
    wanted = torch.nn.functional.avg_pool1d(torch.nn.functional.pad(x, (3, 0)), 4, 1)
    if size > 1:
        axis = names.TIME
        x, wanted = (
            names.shard(z.movedim(2, axis), rank, size).movedim(axis, 2) for z in (x, wanted)
        )
    x, wanted = x.to(device), wanted.to(device)
    for step in range(STEPS):
        loss = (model(x) - wanted).square().sum() / (CHANNELS * LENGTH)  # this rank's share
        optimizer.zero_grad()
        loss.backward()
        if size > 1:
            dist.all_reduce(loss.detach())
            for name, p in model.named_parameters():
                if ".mixer." not in name:  # those of the mixer are summed over ranks already
                    dist.all_reduce(p.grad)
        optimizer.step()
        if rank == 0 and step % 10 == 0:
            print(f"step {step:2}: loss {loss.item():.5f}")
    if size > 1:
        dist.barrier()  # nobody leaves while another is at its last exchange
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
