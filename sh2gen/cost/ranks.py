"""What ranks send each other, by strategy: bytes, messages and predicted time of a call.

Of L steps over W ranks, W chunks or with zigzag 2W. Bytes are those that one rank sends, passes
activations (B, D, L / W) that are read or written beyond those of the operator alone. Rates of
links are those of target files, which were not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sh2gen.cost.work import BYTES
from sh2gen.plan.rings import rings
from sh2gen.spec.language import ContextSpec, Exchange, FilterKind, Sharding, Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Link, Target

# A filter by FFT in plain PyTorch, forward: 2.2 ms of an H100 for 8,192 steps of 4,096 channels.
_FFT_PASSES = 100
_MODE, _COMPLEX = 4, 8  # bytes of a number of modes, and of a number of an FFT


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """What a strategy adds to the operator on a rank's own steps.

    Attributes:
        bytes: that a rank sends, forward; backward sends as many.
        messages: that a rank sends.
        waits: rounds of messages, one after another.
        passes: over activations, forward.
        hidden: share of the time of messages that lies behind arithmetic.
        link: which messages go over.
        seconds: predicted, of messages that are not hidden and of passes; forward.
    """

    strategy: Exchange
    bytes: int
    messages: int
    waits: int
    passes: int
    hidden: float
    link: str
    seconds: float


def link_of(target: Target, ranks: int) -> Link | None:
    """What so many ranks send over; None where the file of a GPU does not say."""
    links = (target.node_link, target.network)
    return next((link for link in links if link is not None and ranks <= link.ranks), None)


def exchanges(
    spec: OpSpec,
    workload: Workload,
    target: Target,
    ranks: int,
    sharding: Sharding,
    by_kernels: bool = True,
    kernels: bool = True,
) -> tuple[Exchanged, ...]:
    """Every strategy that can serve an operator, the one of the least predicted time first.

    Args:
        workload: of the whole sequence.
        by_kernels: whether chunks are computed by kernels that write into one y, and while
            messages travel, if each chunk reaches but the one before it.
        kernels: whether the operator itself is computed by kernels, not by FFT in plain PyTorch.
    """
    link = link_of(target, ranks)
    if link is None or ranks < 2:
        return ()
    found = []
    activation = BYTES[spec.dtype.io] * workload.batch * spec.channels * workload.length / ranks
    for strategy, sent, messages, waits, passes, hidden in _strategies(
        spec, workload, ranks, sharding, by_kernels and kernels, kernels
    ):
        wire = waits * link.latency + sent / link.bandwidth
        seconds = (1 - hidden) * wire + passes * activation / target.elementwise_bandwidth
        found.append(
            Exchanged(
                strategy=strategy,
                bytes=round(sent),
                messages=messages,
                waits=waits,
                passes=passes,
                hidden=hidden,
                link=link.name,
                seconds=seconds,
            )
        )
    return tuple(sorted(found, key=lambda one: one.seconds))


Row = tuple[Exchange, float, int, int, int, float]  # bytes, messages, waits, passes, hidden


def _strategies(
    spec: OpSpec,
    workload: Workload,
    ranks: int,
    sharding: Sharding,
    by_kernels: bool,
    kernels: bool,
) -> Iterator[Row]:
    io, batch, width = BYTES[spec.dtype.io], workload.batch, spec.channels
    own = 1 + (sharding is Sharding.ZIGZAG)  # chunks of a rank
    chunks = own * ranks
    chunk = max(1, workload.length // chunks)
    inputs = len(spec.inputs)
    lags = {ring.name: ring.lag for ring in rings(spec) if ring.lag}
    # A step of the past of a chunk: inputs in their dtype, what the filter reads in float32.
    each = {"tails": batch * width * io * inputs, "z": batch * width * 4}
    border, pieces = _most_sent(chunks, ranks, chunk, [(lags[n], each[n]) for n in lags])
    rounds = len(lags) if len(lags) > 1 and chunk < sum(lags.values()) else min(1, len(lags))
    by_kernels = by_kernels and chunk >= sum(lags.values())
    joined = 0 if by_kernels else 2 * (own - 1)  # y of two chunks is put together
    if spec.filter.kind is FilterKind.MODAL:
        state = _MODE * batch * width * spec.filter.state_size
        gathered = own * (ranks - 1) * state
        messages = pieces + ranks - 1
        # What the filter reads is read once more; of pairs by a call whose y nobody reads.
        again = 1 + spec.gates.pre if by_kernels else inputs + 1 + joined
        yield Exchange.STATE, border + gathered, messages, rounds + 1, again, 0.0
    else:
        # Without kernels the steps of a halo are transformed as all others are.
        again = 0 if kernels else math.ceil(_FFT_PASSES * lags.get("z", 0) / chunk)
        yield Exchange.HALO, border, pieces, rounds, joined + again, 0.0
        if by_kernels:
            yield Exchange.HALO_OVERLAPPED, border, pieces, rounds, 0, 1.0
    # z there and what is convolved back. Beside the operator's own passes: what it reads of z,
    # writes of it, and reads and writes again where it packs and unpacks; its other gate is apart.
    # The filter is applied by FFT.
    moved = 2 * (ranks - 1) / ranks * io * batch * width * workload.length / ranks
    passes = 6 + 3 * spec.gates.post + _FFT_PASSES * kernels
    most = spec.context.segments if spec.context is not None else ContextSpec(ranks=ranks).segments
    units = width if spec.filter.groups == 1 else spec.filter.groups
    if units % ranks == 0:
        yield Exchange.ALL_TO_ALL, moved, 2 * (ranks - 1), 2, passes, 0.0
        segments = max(n for n in range(1, most + 1) if units % (n * ranks) == 0)
        messages = 2 * segments * (ranks - 1)
        hidden = 1 - 1 / segments
        yield Exchange.ALL_TO_ALL_PIPELINED, moved, messages, 2 * segments, passes, hidden
    # Two transforms of the length of the sequence, cyclic and negacyclic, there and back.
    if chunks & (chunks - 1) == 0 and workload.length % chunks == 0:
        rounds = 2 * int(math.log2(chunks))
        sent = 2 * rounds * _COMPLEX * batch * width * workload.length / ranks
        passes = 2 * (rounds + 2) * 2 * _COMPLEX // io
        yield Exchange.P2P_FFT, sent, 2 * rounds, rounds, passes, 0.0


def _most_sent(
    chunks: int, ranks: int, steps: int, kinds: list[tuple[int, int]]
) -> tuple[int, int]:
    """The most bytes, and messages, that a rank sends of the pasts of others' chunks: of each kind
    how many steps, and bytes of one.
    """
    sent, messages = [0] * ranks, [0] * ranks
    for lag, size in kinds:
        for chunk in range(chunks):
            for back in range(1, min(chunk, -(-lag // steps)) + 1):
                here, there = (_owner(c, ranks) for c in (chunk - back, chunk))
                if here != there:
                    sent[here] += size * min(steps, lag - (back - 1) * steps)
                    messages[here] += 1
    return max(sent), max(messages)


def _owner(chunk: int, ranks: int) -> int:
    return chunk if chunk < ranks else 2 * ranks - 1 - chunk
