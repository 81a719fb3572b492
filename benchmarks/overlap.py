"""Whether messages travel while ranks compute: two ranks on one device, linked by a slow link.

    PYTHONPATH=. python benchmarks/overlap.py --json overlap.json --figure overlap.png

The ranks are threads of one process. What a rank sends takes bytes / rate on its link, one message
after another, begun when its values are there: on a GPU by a stream of the link's own, which
spins; on a CPU by waiting. Of each exchange the time of a forward without gradients and of a
training step, with a link that takes no time and with one that takes half as long as the call;
the share of the link's time by which the call is longer is exposed, the rest hidden. y with the
slow link has to be bit for bit that without it. The figure shows when a forward computes and when
its messages travel.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sh2gen
from sh2gen.api.inputs import resolve_target
from sh2gen.base.resources import folder
from sh2gen.emit.emit import emit
from sh2gen.runtime.measure import machine
from sh2gen.runtime.operator import Operator
from sh2gen.runtime.ranks import SimulatedRank, simulated
from sh2gen.spec.decode import load_spec
from sh2gen.spec.language import ContextSpec, Exchange, Sharding, Workload
from sh2gen.tuning.choose import candidates, tables

RANKS, ROUNDS = 2, 5
CASES = (
    ("hyena_se", Exchange.HALO),
    ("hyena_se", Exchange.HALO_OVERLAPPED),
    ("long_conv", Exchange.ALL_TO_ALL),
    ("long_conv", Exchange.ALL_TO_ALL_PIPELINED),
)


class Clock:
    """Moments of one device, on which all ranks compute."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.begin = self.now()

    def now(self) -> Any:
        """This moment of the current stream."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, moment: Any) -> float:
        """Since the clock began; waits for the moment."""
        if not self.cuda:
            return float(moment - self.begin)
        moment.synchronize()
        return float(self.begin.elapsed_time(moment)) / 1e3


class Link:
    """What all ranks of a run share: the rate of their links, and what has been noted.

    Attributes:
        seconds_a_byte: of each rank's link.
        cycles: of the GPU in a second.
        noted: rank, what, and the moments of begin and end.
    """

    seconds_a_byte = 0.0
    cycles = 0.0
    clock: Clock
    noted: list[tuple[int, str, Any, Any]]


class SlowRank(SimulatedRank):
    """A rank whose messages take their time."""

    def __init__(self, *place: Any) -> None:
        super().__init__(*place)
        self.free = 0.0  # when the link of this rank has sent all before
        self.stream = torch.cuda.Stream() if Link.clock.cuda else None
        self.sent_bytes = 0

    def begin(
        self, sent: Sequence[tuple[int, Tensor]], received: Sequence[tuple[int, Tensor]]
    ) -> list[Any]:
        count = sum(x.numel() * x.element_size() for _, x in sent)
        self.sent_bytes += count
        took = count * Link.seconds_a_byte
        if self.stream is None:
            begin = max(time.perf_counter(), self.free)
            self.free = begin + took
            begun: list[Any] = super().begin(sent, received)
            Link.noted.append((self.rank, "message", begin, self.free))
            return [(one, self.free) for one in begun]
        copies = [(peer, x.detach().clone()) for peer, x in sent]
        ready = torch.cuda.Event()
        ready.record()
        self.stream.wait_event(ready)
        with torch.cuda.stream(self.stream):
            begin = Link.clock.now()
            if took:
                torch.cuda._sleep(int(took * Link.cycles))
            end = Link.clock.now()
        for _, x in copies:
            x.record_stream(self.stream)
        Link.noted.append((self.rank, "message", begin, end))
        for peer, x in copies:
            self._wires[self.rank, peer].put((x, end))
        return [((peer, self._next(peer), room), 0.0) for peer, room in received]

    def finish(self, begun: Sequence[Any]) -> None:
        for (peer, number, room), due in begun:
            found = self._get(peer, number)
            if self.stream is None:
                time.sleep(max(0.0, due - time.perf_counter()))
                room.copy_(found)
                continue
            x, end = found
            torch.cuda.current_stream().wait_event(end)
            x.record_stream(torch.cuda.current_stream())
            room.copy_(x)

    def _of_all(self, x: Tensor) -> list[Tensor]:
        """Sums of gradients of parameters take no time of the link."""
        if self.stream is None:
            return super()._of_all(x)
        torch.cuda.current_stream().synchronize()
        return super()._of_all(x)


def written(op: str, exchange: Exchange, channels: int, length: int, place: Path) -> Operator:
    spec = load_spec(folder("ops") / f"{op}.yaml").with_width(channels, None)
    context = ContextSpec(ranks=RANKS, sharding=Sharding.CONTIGUOUS, exchange=exchange)
    workload = Workload(batch=1, length=length)
    spec = dataclasses.replace(spec, context=context, workloads=(workload,))
    chosen = candidates(spec, resolve_target(None), None, known=tables())
    best = next(c for c in chosen if c.plan.layout.value == "BDL")
    path = place / exchange.value / f"{op}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(emit(spec, best.plan, best.schedule).text)
    return sh2gen.load(path, edited=True)


def note_computing(names: Any) -> None:
    """Note when the kernels, or the filter, of a rank compute."""

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **options: Any) -> Any:
            begin = Link.clock.now()
            found = function(*arguments, **options)
            rank = int(threading.current_thread().name.removeprefix("rank "))
            Link.noted.append((rank, "compute", begin, Link.clock.now()))
            return found

        return noted

    for name in ("done", "eager_filter", "eager_filter_backward"):
        if hasattr(names, name):
            setattr(names, name, noting(getattr(names, name)))


def once(
    operator: Operator, parameters: list[Tensor], inputs: list[Tensor], dy: Tensor | None
) -> tuple[float, list[Tensor], int]:
    """Seconds of a call over both ranks (a training step if there is dy), y, and bytes sent."""
    names = operator.namespace
    cuda = inputs[0].is_cuda
    weights = [p.detach().requires_grad_(dy is not None) for p in parameters]
    function = getattr(names, f"{operator.spec.op}_over_ranks")
    gate = threading.Barrier(RANKS)
    times, sent = [0.0] * RANKS, [0] * RANKS

    def run(rank: int, group: str) -> Tensor:
        threading.current_thread().name = f"rank {rank}"
        own = [names.shard(x, rank, RANKS).contiguous() for x in inputs]
        own = [x.requires_grad_(dy is not None) for x in own]
        above = None if dy is None else names.shard(dy, rank, RANKS).contiguous()
        stream = torch.cuda.Stream() if cuda else None
        if cuda:
            torch.cuda.synchronize()
        gate.wait()
        begin = time.perf_counter()
        # Backward in this thread: one for both ranks would wait for itself.
        alone = torch.autograd.set_multithreading_enabled(False)
        with alone, torch.cuda.stream(stream), torch.set_grad_enabled(dy is not None):
            y, _ = function(own, weights, group)
            if above is not None:
                y.backward(above)
            if stream is not None:
                stream.synchronize()
        times[rank] = time.perf_counter() - begin
        sent[rank] = names.SIMULATED[group].sent_bytes
        found: Tensor = y.detach()
        return found

    ys = simulated(names, RANKS, run, SlowRank)
    return max(times), ys, max(sent)


def measured(
    operator: Operator,
    parameters: list[Tensor],
    inputs: list[Tensor],
    dy: Tensor | None,
    link_seconds: float,
) -> dict[str, float]:
    """Milliseconds with a link that takes no time, and with one that takes so long in all."""
    found = {}
    ys: dict[str, list[Tensor]] = {}
    for name in ("free", "slow"):
        Link.seconds_a_byte = 0.0
        if name == "slow":
            _, _, sent = once(operator, parameters, inputs, dy)
            Link.seconds_a_byte = link_seconds / sent
        times = []
        for _ in range(ROUNDS + 1):
            Link.noted = []
            took, ys[name], _ = once(operator, parameters, inputs, dy)
            times.append(took)
        found[name] = 1e3 * statistics.median(times[1:])
    assert all(map(torch.equal, ys["free"], ys["slow"])), "a slow link changes y"
    found["link"] = 1e3 * link_seconds
    found["hidden"] = 1 - (found["slow"] - found["free"]) / found["link"]
    return found


def draw(timelines: dict[str, list[tuple[int, str, float, float]]], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(timelines), 1, figsize=(9, 1.5 * len(timelines) + 0.6), squeeze=False
    )
    colours = {"compute": "#00798c", "message": "#d1495b"}
    for (axis,), (title, events) in zip(axes, timelines.items(), strict=True):
        first = min(begin for _, _, begin, _ in events)
        for rank, what, begin, end in events:
            lane = 2 * rank + (what == "message")
            axis.barh(
                -lane, 1e3 * (end - begin), left=1e3 * (begin - first), color=colours[what],
                edgecolor="white", linewidth=0.4,
            )  # fmt: skip
        lanes = [f"rank {rank}, {what}" for rank in range(RANKS) for what in ("kernels", "link")]
        axis.set_yticks([-lane for lane in range(2 * RANKS)], lanes, fontsize=7)
        axis.set_title(title, fontsize=9)
        axis.tick_params(axis="x", labelsize=7)
    axes[-1][0].set_xlabel("ms since the first of both ranks began", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", nargs="+", default=sorted({op for op, _ in CASES}))
    parser.add_argument("--channels", type=int, help="default: 4096, or 64 without a GPU")
    parser.add_argument("--length", type=int, help="in all; default: 262144, 65536 without a GPU")
    parser.add_argument("--json", type=Path, help="write the times")
    parser.add_argument("--figure", type=Path, help="draw a forward of each, with matplotlib")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    torch.set_num_threads(1)
    channels = arguments.channels or (4096 if cuda else 64)
    length = arguments.length or (262144 if cuda else 65536)
    Link.clock = Clock(device)
    if cuda:
        begin = Link.clock.now()
        torch.cuda._sleep(100_000_000)
        end = Link.clock.now()
        Link.cycles = 1e8 / (Link.clock.seconds(end) - Link.clock.seconds(begin))
    dtype = torch.bfloat16 if cuda else torch.float32
    rows, timelines, links = [], {}, {}
    with tempfile.TemporaryDirectory() as place:
        for op, exchange in (case for case in CASES if case[0] in arguments.ops):
            operator = written(op, exchange, channels, length, Path(place))
            names = operator.namespace
            if not cuda and exchange in (Exchange.HALO, Exchange.HALO_OVERLAPPED):
                continue  # overlapped by launches of kernels
            torch.manual_seed(0)
            layer = operator.module(device=device)
            parameters: list[Tensor] = list(layer.parameters())
            shape = (1, channels, length)
            inputs = [torch.randn(shape, device=device).to(dtype) for _ in names.INPUTS]
            dy = torch.randn_like(inputs[0])
            note_computing(names)
            for what, above in (("forward", None), ("step", dy)):
                Link.noted, Link.seconds_a_byte = [], 0.0
                once(operator, parameters, inputs, above)  # compiles
                if (op, what) not in links:  # the same link for both ways
                    links[op, what] = once(operator, parameters, inputs, above)[0] / 2
                times = measured(operator, parameters, inputs, above, links[op, what])
                if above is None:
                    seconds = Link.clock.seconds
                    timelines[f"{op}, {exchange.value}"] = [
                        (rank, kind, seconds(a), seconds(b)) for rank, kind, a, b in Link.noted
                    ]
                row = {"op": op, "exchange": exchange.value, "what": what, "ms": times}
                rows.append(row)
                print(
                    f"{op} {exchange.value} {what}: {times['free']:.2f} ms, with a link that "
                    f"takes {times['link']:.2f} ms {times['slow']:.2f}: "
                    f"{times['hidden']:.0%} of it hidden",
                    flush=True,
                )
    if arguments.json is not None:
        found = {"machine": machine() if cuda else {"gpu": "CPU"}, "rows": rows}
        found |= {"length": length, "channels": channels, "timelines": timelines}
        arguments.json.write_text(json.dumps(found, indent=1))
    if arguments.figure is not None:
        draw(timelines, arguments.figure)


if __name__ == "__main__":
    main()
