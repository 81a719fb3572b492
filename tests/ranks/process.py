"""One process of a group that holds operators over ranks against one process; run as a script.

    python process.py RENDEZVOUS RANK SIZE WAYS FILE...

Rank 0 draws what is tried of each generated file and tells the others. WAYS, with commas between
them, are ways of training that are tried of the first two: checkpoint, ddp, fsdp, compile; or it
is `die`, and the last rank ends before the first exchange. An error is printed, and ends this
process; the others then end by the group's timeout, or as they lose the connection.
"""

from __future__ import annotations

import datetime
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import sh2gen
from sh2gen.emit.ranks import WHOLE
from sh2gen.runtime.operator import Operator
from sh2gen.spec.language import Exchange

CASES = 3  # of every file


def drawn(operator: Operator, size: int) -> dict[str, Any]:
    """A length, and what is asked for, the same on all ranks."""
    found: list[Any] = [None]
    if dist.get_rank() == 0:
        past = (operator.spec.filter.length or 1) + operator.spec.lag
        lengths = (1, size, 2 * size * past, 2 * size * past + random.randint(1, 9))
        length = random.choice((*lengths, random.randint(1, 90)))
        exchange = operator.spec.context.exchange
        whole = exchange in WHOLE
        found = [
            {
                "length": 2 * size * length if exchange is Exchange.P2P_FFT else length,
                "begins": random.random() < 0.5 and not whole,
                "final": None if whole else random.choice((None, "last", "every")),
                "seed": random.randint(0, 999),
            }
        ]
    dist.broadcast_object_list(found)
    case: dict[str, Any] = found[0]
    return case


def random_state(operator: Operator) -> Any:
    names = operator.namespace
    state = names.initial_state(2, operator.spec.channels)
    floats = {n: torch.randn_like(x) for n, x in state._asdict().items() if n in ("tails", "z")}
    floats |= {"modes": torch.randn_like(state.modes)} if hasattr(state, "modes") else {}
    return state._replace(count=state.count + 7, done=state.done + 7, **floats)


def close(name: str, found: Tensor, wanted: Tensor) -> None:
    scale = wanted.abs().max().item() if wanted.numel() else 0.0
    torch.testing.assert_close(
        found, wanted, rtol=1e-4, atol=1e-5 * scale + 1e-7, msg=lambda text: f"{name}: {text}"
    )


def compared(operator: Operator, layer: nn.Module, alone: nn.Module, case: Any) -> None:
    """y, gradients and the last state over ranks against those of one process."""
    names, rank, size = operator.namespace, dist.get_rank(), dist.get_world_size()
    torch.manual_seed(case["seed"])
    length, channels = case["length"], operator.spec.channels
    shape = (2, channels, length) if operator.layout == "BDL" else (2, length, channels)
    whole = [torch.randn(shape) for _ in operator.spec.inputs]
    dy = torch.randn(shape)
    state = random_state(operator) if case["begins"] else None
    inputs = [x.clone().requires_grad_() for x in whole]
    alone.zero_grad()
    y, after = alone(*inputs, state=state, final="every")
    (y * dy).sum().backward()

    layer.zero_grad()
    own = [names.shard(x, rank, size).requires_grad_() for x in whole]
    given = {"state": state, "length": length, "final": case["final"]}
    found = layer(*own, **given)
    part, ended = (found, None) if case["final"] is None else found
    (part * names.shard(dy, rank, size)).sum().backward()
    close("y", part, names.shard(y, rank, size))
    for i, (x, leaf) in enumerate(zip(own, inputs, strict=True)):
        if x.numel():
            close(f"gradient of input {i}", x.grad, names.shard(leaf.grad, rank, size))
    for (name, p), other in zip(layer.named_parameters(), alone.parameters(), strict=True):
        close(f"gradient of {name}", p.grad, other.grad)
    last = names.owner(len(names.chunk_lengths(length, size)) - 1, size) == rank
    assert (ended is None) == (case["final"] is None or (case["final"] == "last" and not last))
    if ended is not None:
        rows = torch.arange(2)
        assert torch.equal(ended.count, after.count)
        for name, (lag, _) in names.RINGS.items():
            if lag:
                one, other = (
                    names.past_of(getattr(s, name), rows, s.count, lag) for s in (ended, after)
                )
                close(f"state.{name}", one, other)
        if hasattr(after, "modes"):
            close("state.modes", ended.modes, after.modes)


class Block(nn.Module):
    """Two layers, as in a stack."""

    def __init__(self, operator: Operator, group: Any, again: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = operator.module(group=group), operator.module(group=group)
        self.again = again

    def forward(self, *inputs: Tensor) -> Tensor:
        z: Tensor = self.first(*inputs)
        call = partial(checkpoint, self.second, use_reentrant=False) if self.again else self.second
        y: Tensor = call(*(z for _ in inputs))
        return y


def trained(operator: Operator, group: Any, ways: list[str]) -> None:
    """Gradients under checkpointing, DDP, FSDP2 or torch.compile, of a stack over ranks."""
    names, rank, size = operator.namespace, dist.get_rank(), dist.get_world_size()
    torch.manual_seed(5)
    channels = operator.spec.channels
    alone = Block(operator, None, again=False)

    def of_length(length: int) -> tuple[list[Tensor], dict[str, Tensor | None]]:
        """Own chunks, and the gradients of one process."""
        shape = (2, channels, length) if operator.layout == "BDL" else (2, length, channels)
        whole = [torch.randn(shape) for _ in operator.spec.inputs]
        alone.zero_grad()
        alone(*whole).square().sum().backward()
        own = [names.shard(x, rank, size) for x in whole]
        return own, {name: p.grad.clone() for name, p in alone.named_parameters()}

    cases = [of_length(length) for length in (8 * size, 12 * size, 20 * size)]
    for kind in ways:
        block = Block(operator, group, again=kind == "checkpoint")
        call: Any = block
        if kind == "ddp":
            call = DistributedDataParallel(block)
        elif kind == "fsdp":
            call = fully_shard(block)
        elif kind == "compile":
            call = torch.compile(block, fullgraph=True, backend="aot_eager")
        # Of several lengths, which a compiler has symbols for; of one elsewhere.
        for own, right in cases if kind == "compile" else cases[:1]:
            block.zero_grad()
            # Each rank has the whole gradient, of which DDP and FSDP take the mean.
            call(*own).square().sum().backward()
            for name, p in block.named_parameters():
                assert p.grad is not None
                found = p.grad.full_tensor() if kind == "fsdp" else p.grad
                close(f"{kind} {name}", found, right[name])


def main() -> None:
    place, rank, size, ways, *files = sys.argv[1:]
    dist.init_process_group(
        "gloo",
        init_method=f"file://{place}",
        rank=int(rank),
        world_size=int(size),
        timeout=datetime.timedelta(seconds=40),
    )
    random.seed(int(size))
    mesh = init_device_mesh("cpu", (int(size),), mesh_dim_names=("context",))
    for i, file in enumerate(files):
        operator = sh2gen.load(Path(file))
        group = mesh["context"] if i % 2 else dist.group.WORLD
        torch.manual_seed(1)
        layer, alone = operator.module(group=group), operator.module()
        alone.load_state_dict(layer.state_dict())
        if ways == "die":
            if dist.get_rank() == int(size) - 1:
                sys.exit(9)
            layer(*(torch.zeros(1, operator.spec.channels, 40) for _ in operator.spec.inputs))
        for _ in range(CASES):
            case = drawn(operator, int(size))
            try:
                compared(operator, layer, alone, case)
            except Exception as error:
                raise AssertionError(f"{operator.spec.op} {case} on rank {rank}") from error
        if i < 2:
            trained(operator, group, [way for way in ways.split(",") if way])
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
