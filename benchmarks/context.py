"""Operators over ranks: time of sh2gen's way to split a sequence, of an all-to-all, and of one
device.

    torchrun --nproc-per-node 2 benchmarks/context.py --lengths 16384 131072 --json context.json
    torchrun --nproc-per-node 2 benchmarks/context.py --channels 64 --lengths 512  # on a CPU
    torchrun --nproc-per-node 2 benchmarks/context.py --ops long_conv --exchanges auto p2p_fft halo

Lengths are of the whole sequence. Before anything is timed, y and all gradients over ranks are
compared with those of one device at the first length, in the dtype of the run (bfloat16 on a GPU,
float32 on a CPU). A time is that of a call among ten, one behind the other as layers are: the
median of rounds, of the rank that took longest; forward without gradients, and a training step.
*Alone* is the operator of one device, which knows of no state, on a rank's own steps; what a way
takes longer is exposed. *Whole* is that on all steps, where they fit; the ideal is its time over
the number of ranks. `everything` is an all-to-all of q, k, v and y, as savanna has it: each rank
computes a slice of the channels of the whole sequence. `--exchanges` names those of op.yaml that
are timed; one that an operator cannot have is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import sh2gen
from sh2gen.api.inputs import resolve_target
from sh2gen.base.errors import Sh2genError
from sh2gen.base.resources import folder
from sh2gen.emit.emit import emit
from sh2gen.runtime.measure import machine
from sh2gen.runtime.operator import Operator
from sh2gen.spec.decode import load_spec
from sh2gen.spec.language import ContextSpec, Exchange, Sharding, Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.tuning.choose import candidates, tables

OPS = ("hyena_se", "hyena_mr", "hyena_li")
ROUNDS, CALLS = 7, 10
WRONG = 0.02  # relative 2-norm; rounding once to bfloat16 costs 0.0017


class Everything(torch.autograd.Function):
    """(B, D, L / W) of own steps to (B, D / W, L) of own channels, or back; contiguous chunks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to_channels: bool) -> Tensor:
        ctx.to_channels = to_channels
        return exchanged(x, to_channels)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return exchanged(dy, not ctx.to_channels), None


def exchanged(x: Tensor, to_channels: bool) -> Tensor:
    size = dist.get_world_size()
    parts = x.chunk(size, 1 if to_channels else 2)
    found = torch.empty_like(torch.stack(parts))
    dist.all_to_all_single(found, torch.stack(parts))
    return torch.cat(list(found), 2 if to_channels else 1)


class Slices(nn.Module):
    """An operator by an all-to-all of everything that it reads and writes."""

    def __init__(self, operator: Operator, whole: nn.Module, channels: int, groups: int) -> None:
        super().__init__()
        rank, size = dist.get_rank(), dist.get_world_size()
        ladder = {}
        if operator.spec.filter.decay is not None:
            ladder = {"first_group": rank * groups // size, "groups_in_all": groups}
        own = next(whole.parameters()).device
        self.mixer = operator.module(channels // size, groups // size, **ladder, device=own)
        for p, other in zip(self.mixer.parameters(), whole.parameters(), strict=True):
            p.data.copy_(other.data.chunk(size, 0)[rank])
        featurizer = getattr(self.mixer, "featurizer", None)
        if featurizer is not None:  # its rows are those of q, then of k, then of v
            roles = whole.featurizer.data.chunk(len(operator.spec.inputs), 0)
            featurizer.data.copy_(torch.cat([x.chunk(size, 0)[rank] for x in roles]))

    def forward(self, *inputs: Tensor) -> Tensor:
        y = self.mixer(*(Everything.apply(x, True) for x in inputs))
        found: Tensor = Everything.apply(y, False)
        return found


def generated(
    op: str,
    channels: int | None,
    sharding: Sharding,
    exchanges: list[Exchange],
    workload: Workload,
    place: Path,
) -> tuple[dict[str, Operator], Operator]:
    """The operator over ranks by every exchange, channels first, and the one that has no state;
    made by rank 0.
    """
    size = dist.get_world_size()
    spec = load_spec(folder("ops") / f"{op}.yaml")
    spec = dataclasses.replace(spec, workloads=(workload,))
    if channels is not None:
        spec = spec.with_width(channels, None)
    ways: dict[str, OpSpec] = {}
    for exchange in exchanges:
        context = ContextSpec(ranks=size, sharding=sharding, exchange=exchange)
        with suppress(Sh2genError):  # of a modal filter, or of one that is none
            ways[exchange.value] = dataclasses.replace(spec, context=context)
    found: dict[str, Operator] = {}
    for name, one in (ways | {"whole": spec}).items():
        path = place / name / f"{op}.py"
        if dist.get_rank() == 0:
            chosen = candidates(one, resolve_target(None), None, known=tables())
            best = next(c for c in chosen if c.plan.layout.value == "BDL")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(emit(one, best.plan, best.schedule).text)
        dist.barrier()
        found[name] = sh2gen.load(path, edited=True)
    return found, found.pop("whole")


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Microseconds: the median over rounds of the rank that took longest."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    times = []
    for i in range(ROUNDS + 2):
        wait()
        dist.barrier()
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        wait()
        each = (time.perf_counter() - begin) / CALLS
        took = torch.tensor([each], dtype=torch.float64, device=device)
        dist.all_reduce(took, op=dist.ReduceOp.MAX)
        if i >= 2:
            times.append(1e6 * took.item())
    return statistics.median(times)


def calls(module: nn.Module, inputs: list[Tensor]) -> dict[str, Callable[[], Any]]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    dy = torch.randn_like(inputs[0])

    def forward() -> None:
        with torch.no_grad():
            module(*inputs)

    def step() -> None:
        for tensor in (*leaves, *module.parameters()):
            tensor.grad = None
        module(*leaves).backward(dy)

    return {"forward": forward, "step": step}


def error(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach(), wanted.detach()
    difference = (found.double() - wanted.double()).square().sum()
    norms = torch.stack([difference, wanted.double().square().sum()])
    return float((norms[0] / norms[1].clamp(min=1e-30)).sqrt())


def compared(
    names: Any, layer: nn.Module, alone: nn.Module, whole: list[Tensor], zigzag: bool
) -> float:
    """The largest error of y and of any gradient over ranks."""
    rank, size = dist.get_rank(), dist.get_world_size()

    def own(x: Tensor) -> Tensor:
        part: Tensor = names.shard(x, rank, size) if zigzag else x.chunk(size, 2)[rank]
        return part.contiguous()

    leaves = [x.detach().requires_grad_() for x in whole]
    dy = torch.randn_like(whole[0])
    dist.broadcast(dy, 0)
    y = alone(*leaves)
    wanted = torch.autograd.grad(y, [*leaves, *alone.parameters()], dy)
    parts = [own(x).requires_grad_() for x in whole]
    z = layer(*parts)
    found = torch.autograd.grad(z, [*parts, *layer.parameters()], own(dy))
    errors = [error(z, own(y))]
    errors += [error(a, own(b)) for a, b in zip(found, wanted[: len(parts)], strict=False)]
    if isinstance(layer, Slices):  # its parameters are of its own channels
        return max(errors)
    pairs = zip(found[len(parts) :], wanted[len(parts) :], strict=True)
    return max(errors + [error(a, b) for a, b in pairs])


def measured(arguments: argparse.Namespace, place: Path, device: torch.device) -> list[Any]:
    rank, size = dist.get_rank(), dist.get_world_size()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = []
    for op in arguments.ops:
        over, slices = generated(
            op,
            arguments.channels,
            arguments.sharding,
            arguments.exchanges,
            Workload(batch=1, length=arguments.lengths[0]),
            place / op,
        )
        names, channels = next(iter(over.values())).namespace, slices.spec.channels
        torch.manual_seed(0)
        alone = slices.module(device=device)
        groups = slices.spec.filter.groups
        ways: dict[str, tuple[nn.Module, bool]] = {}
        for exchange, operator in over.items():
            layer = operator.module(group=dist.group.WORLD, device=device)
            layer.load_state_dict(alone.state_dict())
            ways[exchange] = (layer, True)
        if groups % size == 0:
            ways["everything"] = (Slices(slices, alone, channels, groups), False)
        for i, length in enumerate(arguments.lengths):
            torch.manual_seed(1)  # the same on all ranks
            whole = [
                torch.randn(1, channels, length, device=device).to(dtype) for _ in names.INPUTS
            ]
            local = [x[..., : length // size].contiguous() for x in whole]
            for way, (module, zigzag) in ways.items():
                if i == 0:
                    worst = torch.tensor([compared(names, module, alone, whole, zigzag)])
                    worst = worst.to(device)
                    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
                    assert worst.item() < WRONG, f"{op} {way}: error {worst.item():.3g}"
                    if rank == 0:
                        print(f"{op} {way}: error {worst.item():.2g} at {length}", flush=True)
            fits = length <= arguments.whole
            modes = {"alone": (alone, local)} | {w: (m, local) for w, (m, _) in ways.items()}
            modes |= {"whole": (alone, whole)} if fits else {}
            times = {
                name: {k: timed(call, device) for k, call in calls(module, inputs).items()}
                for name, (module, inputs) in modes.items()
            }
            row = {"op": op, "length": length, "ranks": size, "us": times}
            rows.append(row | {"sharding": arguments.sharding.value})
            if rank == 0:
                for name, us in times.items():
                    text = f"{op} L={length} {name}: forward {us['forward']:.0f} us"
                    text += f", step {us['step']:.0f} us"
                    if name in ways:
                        text += f"; exposed {us['forward'] - times['alone']['forward']:.0f}, "
                        text += f"{us['step'] - times['alone']['step']:.0f}"
                    if name in ways and fits:
                        ideal = {k: t / size for k, t in times["whole"].items()}
                        shares = [ideal[k] / us[k] for k in ("forward", "step")]
                        text += "; of ideal {:.2f}, {:.2f}".format(*shares)
                    print(text, flush=True)
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Times over the whole length, an operator a column: forward above, a training step below."""
    from matplotlib import pyplot

    ops = list(dict.fromkeys(row["op"] for row in rows))
    figure, axes = pyplot.subplots(
        2, len(ops), figsize=(3.6 * len(ops), 6), sharex=True, squeeze=False
    )
    styles = {
        "auto": ("o-", "#d1495b"),
        "halo": ("v-", "#edae49"),
        "all_to_all": ("D-", "#8d96a3"),
        "all_to_all_pipelined": ("d-", "#66a182"),
        "p2p_fft": ("x-", "#2e4057"),
        "everything": ("s-", "#00798c"),
        "alone": ("^--", "#777777"),
        "ideal": (":", "#222222"),
    }
    for column, op in enumerate(ops):
        own = [row for row in rows if row["op"] == op]
        for line, what in enumerate(("forward", "step")):
            axis = axes[line][column]
            for name, (style, colour) in styles.items():
                whole = name == "ideal"
                points = [
                    (row["length"], row["us"]["whole" if whole else name][what] / scale / 1e3)
                    for row in own
                    for scale in [row["ranks"] if whole else 1]
                    if ("whole" if whole else name) in row["us"]
                ]
                if points:
                    axis.plot(*zip(*points, strict=True), style, color=colour, label=name)
            axis.set(xscale="log", yscale="log", title=f"{op}, {what}")
            axis.grid(color="#dddddd")
        axes[1][column].set_xlabel("steps in all")
    for line in axes:
        line[0].set_ylabel("ms")
    axes[0][-1].legend()
    figure.suptitle(f"{rows[0]['ranks']} ranks, {rows[0]['sharding']}")
    figure.tight_layout()
    written = path.with_name(f"{path.stem}.part{path.suffix}")
    figure.savefig(written, dpi=110)
    written.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", nargs="+", default=list(OPS))
    parser.add_argument("--lengths", nargs="+", type=int, default=[16384, 131072])
    parser.add_argument("--channels", type=int, help="instead of the operator's own")
    parser.add_argument("--sharding", type=Sharding, default=Sharding.CONTIGUOUS)
    parser.add_argument("--exchanges", nargs="+", type=Exchange, default=[Exchange.AUTO])
    parser.add_argument("--whole", type=int, default=262144, help="most steps on one device")
    parser.add_argument("--json", type=Path, help="write the times")
    parser.add_argument("--figure", type=Path, help="draw them, with matplotlib")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    with tempfile.TemporaryDirectory() as made:
        place: list[Any] = [made]
        dist.broadcast_object_list(place)
        rows = measured(arguments, Path(place[0]), device)
        dist.barrier()
    if dist.get_rank() == 0 and arguments.json is not None:
        found = {"machine": machine() if cuda else {"gpu": "CPU"}, "rows": rows}
        arguments.json.write_text(json.dumps(found, indent=1))
    if dist.get_rank() == 0 and arguments.figure is not None:
        draw(rows, arguments.figure)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
