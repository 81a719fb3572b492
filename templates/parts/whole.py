"""Sequences over ranks whose filter reads all of their steps at once: for as long as it is applied
channels are spread over the ranks instead of time, or it is applied to Fourier transforms, of
which each chunk has those of some frequencies.

Activations are (B, D, T). As in context.py, exchanges take and give a token.

An exchange of channels is two ops, one that begins it and one that waits for it, and what is
computed between them overlaps with it. In between its rooms are not written yet, which is for
eager PyTorch alone: `now` waits at once. Each is the adjoint of the other, the other way round, so
that backward overlaps where forward does.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from templates.parts.context import (
    Travelling,
    chunks_of_rank,
    owner,
    ranks_of,
)
from templates.parts.op import OP

EXCHANGE = "all_to_all"
OTHER = "halo"
SEGMENTS = 1
FILTERS = 1
IN_FLIGHT: dict = {}


# ---- all to all: the steps of all channels, or of some channels all steps


def segments_of(channels: int, groups: int, size: int) -> int:
    """How many segments of channels, SEGMENTS at most, of as many whole groups for every rank."""
    units = channels if groups == 1 else groups
    if units % size:
        raise ValueError(
            f"{OP}: {units} {'channels' if groups == 1 else 'groups'} are not as many for each of "
            f"{size} ranks, as exchange {EXCHANGE} wants; `exchange: {OTHER}` serves any number"
        )
    return max(count for count in range(1, SEGMENTS + 1) if units % (count * size) == 0)


def own_filter(parameters: Sequence[Tensor], part: int, parts: int) -> tuple[list[Tensor], int]:
    """The parameters with those of the filter of one of so many parts of the channels alone, and
    the first of its groups.
    """
    groups = parameters[0].shape[0]
    if groups == 1:
        return list(parameters), 0
    count = groups // parts
    own = [p.narrow(0, part * count, count) for p in parameters[:FILTERS]]
    return [*own, *parameters[FILTERS:]], part * count


def steps_of_ranks(lengths: Sequence[int], size: int) -> list[int]:
    """How many steps each rank has."""
    return [sum(lengths[chunk] for chunk in chunks_of_rank(rank, size)) for rank in range(size)]


def rooms_of(rooms: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """What each rank sends: the begin of its row."""
    found = zip(rooms, shapes, strict=True)
    return [row[: math.prod(shape)].view(shape) for row, shape in found]


def shapes_of(
    sizes: list[int], lengths: Sequence[int], spread: bool, rank: int, size: int
) -> list[tuple[int, ...]]:
    """The shapes of what each rank sends, of (batch, channels of a rank) and of the steps that it
    has, or that this rank has.
    """
    steps = steps_of_ranks(lengths, size)
    return [(*sizes, n if spread else steps[rank]) for n in steps]


def leave_fake(
    tensors: list[Tensor], lengths: list[int], spread: bool, now: bool, place: list[int],
    group: str,
) -> list[Tensor]:  # fmt: skip
    """Rooms (ranks, elements) for what ranks send of x: if `spread`, of all channels of own steps
    those of each rank; else of all steps of own channels those of each rank.
    """
    x, token = tensors
    _, size = place
    channels = x.shape[1] // (size if spread else 1)
    most = max(steps_of_ranks(lengths, size))
    return [x.new_empty(size, x.shape[0] * channels * most), torch.empty_like(token)]


def leave_channels(
    tensors: list[Tensor], lengths: list[int], spread: bool, now: bool, place: list[int],
    group: str,
) -> list[Tensor]:  # fmt: skip
    """The same by messages between ranks, which are only begun but if they are wanted `now`."""
    (x, _), (rank, size) = tensors, place
    rooms, token = leave_fake(tensors, lengths, spread, now, place, group)
    if spread:
        parts = list(x.chunk(size, 1))
    else:
        chunks = x.split(lengths, 2)
        owned = [[chunks[chunk] for chunk in chunks_of_rank(peer, size)] for peer in range(size)]
        parts = [torch.cat(each, 2) if len(each) > 1 else each[0] for each in owned]
    parts = [part.contiguous() for part in parts]
    sizes = [x.shape[0], parts[0].shape[1]]
    received = rooms_of(rooms, shapes_of(sizes, lengths, spread, rank, size))
    received[rank].copy_(parts[rank])
    ranks, others = ranks_of(group), [peer for peer in range(size) if peer != rank]
    sent = [(peer, parts[peer]) for peer in others if parts[peer].numel()]
    begun = ranks.begin(sent, [(p, received[p]) for p in others if received[p].numel()])
    travelling = Travelling(ranks, begun, sent, [])
    if now or not rooms.numel():
        travelling.arrive()
    else:
        # With its rooms, which are written to whatever becomes of the call.
        IN_FLIGHT[rooms.data_ptr()] = rooms, travelling
    return [rooms, token]


def arrive_fake(
    tensors: list[Tensor], sizes: list[int], lengths: list[int], spread: bool, now: bool,
    place: list[int], group: str,
) -> list[Tensor]:  # fmt: skip
    """Of rooms, if `spread` all steps of own channels, else all channels of own steps, of so many
    rows and channels a rank. Backward asks for the rest.
    """
    rooms, token = tensors
    (batch, channels), (rank, size) = sizes, place
    if spread:
        x = rooms.new_empty(batch, channels, sum(lengths))
    else:
        x = rooms.new_empty(batch, channels * size, steps_of_ranks(lengths, size)[rank])
    return [x, torch.empty_like(token)]


def arrive_channels(
    tensors: list[Tensor], sizes: list[int], lengths: list[int], spread: bool, now: bool,
    place: list[int], group: str,
) -> list[Tensor]:  # fmt: skip
    """The same, once they have arrived."""
    (rooms, token), (rank, size) = tensors, place
    _, travelling = IN_FLIGHT.pop(rooms.data_ptr(), (None, None))
    if travelling is not None:
        travelling.arrive()
    received = rooms_of(rooms, shapes_of(sizes, lengths, spread, rank, size))
    if not spread:
        return [torch.cat(received, 1), torch.empty_like(token)]
    chunks: dict[int, Tensor] = {}
    for peer, x in enumerate(received):
        own = chunks_of_rank(peer, size)
        chunks |= zip(own, x.split([lengths[chunk] for chunk in own], 2), strict=True)
    return [torch.cat([chunks[chunk] for chunk in sorted(chunks)], 2), torch.empty_like(token)]


# ---- a Fourier transform over chunks


def check_transform(lengths: Sequence[int], size: int) -> None:
    """Refuse what has no transform over chunks."""
    chunks = len(lengths)
    if chunks & (chunks - 1) or max(lengths) > min(lengths) or not min(lengths):
        raise ValueError(
            f"{OP}: exchange {EXCHANGE} wants a power of 2 of chunks of one length, not {chunks} "
            f"of {min(lengths)} to {max(lengths)} steps; `exchange: {OTHER}` serves any"
        )


def swapped_fake(tensors: list[Tensor], half: int, place: list[int], group: str) -> list[Tensor]:
    """Of each own chunk that of the one whose number differs in the bit `half`."""
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors]


def swapped_chunks(tensors: list[Tensor], half: int, place: list[int], group: str) -> list[Tensor]:
    """The same by messages between ranks."""
    *own, token = tensors
    rank, size = place
    *found, token = swapped_fake(tensors, half, place, group)
    index = {chunk: i for i, chunk in enumerate(chunks_of_rank(rank, size))}
    sent, received = [], []
    for source in range(size * len(own)):  # in one order on both ranks
        chunk = source ^ half
        here, there = owner(source, size) == rank, owner(chunk, size) == rank
        if here and there:
            found[index[chunk]].copy_(own[index[source]])
        elif here:
            sent.append((owner(chunk, size), own[index[source]].contiguous()))
        elif there:
            received.append((owner(source, size), found[index[chunk]]))
    ranks = ranks_of(group)
    ranks.finish(ranks.begin(sent, received))
    return [*found, token]


def reversed_bits(number: int, below: int) -> int:
    """A number below a power of 2 with its bits in the other order."""
    found = 0
    while below > 1:
        found, number, below = 2 * found + number % 2, number // 2, below // 2
    return found


def turns(count: int, first: float, step: float, like: Tensor) -> Tensor:
    """exp(-2 pi i (first + step t)) for t < count, of a complex dtype."""
    part = first + step * torch.arange(count, dtype=torch.float64, device=like.device)
    angle = -2 * math.pi * (part - part.floor())
    return torch.polar(torch.ones_like(angle), angle).to(like.dtype)


def twisted(x: Tensor, begin: int, length: int, back: bool = False) -> Tensor:
    """x from step `begin` on, times exp(-i pi t / length), or back its conjugate: cyclic
    convolutions of such sequences are negacyclic ones. Half the sum of both is causal.
    """
    sign = -1 if back else 1
    return x * turns(x.shape[-1], sign * begin / (2 * length), sign / (2 * length), x)


def frequencies_of_filter(taps: Tensor, chunk: int, chunks: int, steps: int) -> Tensor:
    """(2, D, steps) of the cyclic and of the negacyclic transform of taps (D, K) those that a
    chunk has: every one of so many, from reversed_bits(chunk) on.
    """
    which, pieces = reversed_bits(chunk, chunks), -(-taps.shape[1] // steps)
    kind = torch.complex128 if taps.dtype == torch.float64 else torch.complex64
    padded = torch.nn.functional.pad(taps, (0, pieces * steps - taps.shape[1])).to(kind)
    both = torch.stack([padded, twisted(padded, 0, chunks * steps)])
    by_piece = turns(pieces, 0, which / chunks, both)
    folded = (both.unflatten(-1, (pieces, steps)) * by_piece[:, None]).sum(-2)
    return torch.fft.fft(folded * turns(steps, 0, which / (chunks * steps), both))


def butterflies(
    swap, parts: list[Tensor], own: Sequence[int], chunks: int, token: Tensor, back: bool
) -> tuple[list[Tensor], Tensor]:
    """The transform of complex numbers over chunks, whose bins are in the order of reversed bits;
    or back. `swap` exchanges own chunks.
    """
    halves = [chunks >> (stage + 1) for stage in range(chunks.bit_length() - 1)]
    for half in reversed(halves) if back else halves:
        angles = [math.pi * (chunk % half) / half for chunk in own]
        turned = [complex(math.cos(angle), -math.sin(angle)) for angle in angles]
        if back:
            pairs = zip(own, parts, turned, strict=True)
            parts = [x * turn.conjugate() if chunk & half else x for chunk, x, turn in pairs]
        sent = [torch.view_as_real(x).contiguous() for x in parts]
        *others, token = swap([*sent, token], half)
        others = [torch.view_as_complex(x) for x in others]
        each = list(zip(own, parts, others, strict=True))
        sums = [other - x if chunk & half else x + other for chunk, x, other in each]
        if back:
            parts = [0.5 * x for x in sums]
        else:
            pairs = zip(own, sums, turned, strict=True)
            parts = [x * turn if chunk & half else x for chunk, x, turn in pairs]
    return parts, token


def convolved(
    swap, zs: list[Tensor], taps: Tensor, own: Sequence[int], chunks: int, token: Tensor
) -> tuple[list[Tensor], Tensor]:
    """The causal convolution of a sequence of so many chunks, own ones of which are zs (B, D,
    steps), with taps (D, K): half the sum of a cyclic and a negacyclic one, which need no zeros
    behind it.
    """
    steps = zs[0].shape[-1]
    length = chunks * steps
    kind = torch.complex128 if taps.dtype == torch.float64 else torch.complex64
    parts = []
    for chunk, z in zip(own, zs, strict=True):
        x = z.to(kind)
        parts.append(torch.stack([x, twisted(x, chunk * steps, length)]))
    parts, token = butterflies(swap, parts, own, chunks, token, False)
    found = []
    for chunk, x in zip(own, parts, strict=True):
        turn = turns(steps, 0, reversed_bits(chunk, chunks) / length, x)
        bins = torch.fft.fft(x * turn) * frequencies_of_filter(taps, chunk, chunks, steps)[:, None]
        found.append(torch.fft.ifft(bins) * turn.conj_physical())
    parts, token = butterflies(swap, found, own, chunks, token, True)
    made = []
    for chunk, x in zip(own, parts, strict=True):
        cyclic, negacyclic = x[0], twisted(x[1], chunk * steps, length, back=True)
        made.append(0.5 * (cyclic + negacyclic).real)
    return made, token
