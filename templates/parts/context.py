"""Sequences that are split over ranks: who has which steps, and what ranks send each other.

A sequence is cut into chunks, which are numbered in the order of time. Of W ranks, rank r has
chunk r; with ZIGZAG there are 2W chunks, and it has chunks r and 2W - 1 - r, one behind the other.
What crosses is the past that chunks begin with, (B, steps, columns) in the order of time, and the
end states of modes, one a chunk.

Exchanges must come in one order on all ranks, backward too, where autograd finds its own and
leaves out what no gradient is of. So the last tensor of all that an exchange takes and gives is a
token, without elements: each takes that of the one before, and y is tied to the last.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from templates.parts.op import CHANNEL, INPUTS, OP, TIME

ZIGZAG = True
SIMULATED: dict = {}


class Processes:
    """The ranks of a process group of torch.distributed, by its name."""

    def __init__(self, name: str) -> None:
        self.group = dist.distributed_c10d._resolve_process_group(name)
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)

    def begin(
        self, sent: Sequence[tuple[int, Tensor]], received: Sequence[tuple[int, Tensor]]
    ) -> tuple[list, list[int]]:
        """Begin to send tensors to ranks and to fill tensors from ranks, all at once. Those
        between two ranks are in one order on both.
        """
        group = {"group": self.group}
        calls = [dist.P2POp(dist.isend, x, group_peer=peer, **group) for peer, x in sent]
        calls += [dist.P2POp(dist.irecv, x, group_peer=peer, **group) for peer, x in received]
        works = dist.batch_isend_irecv(calls) if calls else []
        return works, [peer for peer, _ in (*sent, *received)]

    def finish(self, begun: tuple[list, list[int]]) -> None:
        """Wait for what was begun; of a GPU, its work waits, not the host."""
        works, peers = begun
        for i, work in enumerate(works):
            try:
                work.wait()
            except RuntimeError as error:
                others = peers[i : i + 1] if len(works) == len(peers) else sorted(set(peers))
                names = ", ".join(map(str, others))
                raise RuntimeError(
                    f"{OP}: rank {self.rank} waited in vain for rank {names}: {error}"
                ) from error

    def gathered(self, x: Tensor) -> Tensor:
        """x of every rank, one behind the other along the first axis."""
        found = x.new_empty(self.size * x.shape[0], *x.shape[1:])
        dist.all_gather_into_tensor(found, x, group=self.group)
        return found

    def summed(self, x: Tensor) -> Tensor:
        """The sum over all ranks, in the place of x."""
        dist.all_reduce(x, group=self.group)
        return x


def ranks_of(group: str):
    """The ranks that a name stands for."""
    return SIMULATED[group] if group in SIMULATED else Processes(group)


@torch.compiler.assume_constant_result
def place_in(group: str) -> tuple[int, int]:
    """Which rank this is, and of how many."""
    ranks = ranks_of(group)
    return ranks.rank, ranks.size


def name_of(group) -> str:
    """The name of a process group, or of that of a DeviceMesh of one dimension."""
    if isinstance(group, str):
        return group
    if hasattr(group, "get_group") and getattr(group, "ndim", 1) == 1:
        group = group.get_group()
    if not hasattr(group, "group_name"):
        raise TypeError(
            f"{OP}: group is a {type(group).__name__}, expected a process group of "
            "torch.distributed, or a DeviceMesh of one dimension"
        )
    return group.group_name


# ---- who has which steps


def chunk_lengths(length: int, size: int) -> list[int]:
    """The steps of each chunk of a sequence over so many ranks: as many each, the first chunks one
    more where they do not divide it.
    """
    chunks = size * (1 + ZIGZAG)
    least, more = length // chunks, length % chunks  # compilers have symbols here, and no divmod
    return [least + (chunk < more) for chunk in range(chunks)]


def owner(chunk: int, size: int) -> int:
    """The rank that has a chunk."""
    return chunk if chunk < size else 2 * size - 1 - chunk


def chunks_of_rank(rank: int, size: int) -> list[int]:
    """The chunks of a rank, in the order of time."""
    return [rank, 2 * size - 1 - rank] if ZIGZAG else [rank]


def shard(x: Tensor, rank: int, size: int) -> Tensor:
    """The steps of a whole sequence that a rank of so many has, of an input or of y."""
    lengths = chunk_lengths(x.shape[TIME], size)
    begins = [0, *accumulate(lengths)]
    own = chunks_of_rank(rank, size)
    return torch.cat([x.narrow(TIME, begins[c], lengths[c]) for c in own], TIME)


def unshard(parts: Sequence[Tensor]) -> Tensor:
    """The whole sequence of the parts of all ranks, in their order."""
    size = len(parts)
    lengths = chunk_lengths(sum(x.shape[TIME] for x in parts), size)
    found = {}
    for rank, x in enumerate(parts):
        own = chunks_of_rank(rank, size)
        found |= zip(own, x.split([lengths[c] for c in own], TIME), strict=True)
    return torch.cat([found[chunk] for chunk in sorted(found)], TIME)


def check_final(final) -> None:
    """Refuse what does not say who is given the last state."""
    if final not in (None, "last", "every"):
        raise ValueError(f'{OP}: final must be "last", "every" or None, not {final!r}')


def own_lengths(x: Tensor, length: int | None, rank: int, size: int) -> list[int]:
    """The steps of all chunks, of which a rank has those of x; refuses others."""
    if length is not None and (isinstance(length, bool) or not isinstance(length, int)):
        raise TypeError(f"{OP}: length must be the steps of the whole sequence, not {length!r}")
    here = x.shape[TIME]
    lengths = chunk_lengths(here * size if length is None else length, size)
    own = sum(lengths[c] for c in chunks_of_rank(rank, size))
    if own != here:
        whole = f"of {sum(lengths)} steps over {size} ranks"
        raise ValueError(
            f"{OP}: {INPUTS[0]} has {here} steps on rank {rank}, expected {own} {whole}: "
            "chunk_lengths says how it is cut"
        )
    return lengths


# ---- the past that chunks begin with


def crossings(
    lengths: Sequence[int], steps: Sequence[int]
) -> Iterator[tuple[int, int, int, int, int]]:
    """What chunks need of those before them, in one order on all ranks: chunk, kind of past,
    source, how many of its last steps, and how many steps are between these and the chunk.
    """
    for chunk in range(len(lengths)):
        for kind, wanted in enumerate(steps):
            between, source = 0, chunk - 1
            while between < wanted and source >= 0:
                count = min(wanted - between, lengths[source])
                if count:
                    yield chunk, kind, source, count, between
                between += count
                source -= 1


class Travelling(NamedTuple):
    """Messages that were begun.

    Attributes:
        ranks: whose they are.
        begun: what they are known by.
        sent: to which rank, what; it has to live as long.
        places: tensors, and what is to be added to them.
    """

    ranks: object
    begun: object
    sent: list[tuple[int, Tensor]]
    places: list[tuple[Tensor, Tensor]]

    def arrive(self) -> None:
        """Wait for them."""
        self.ranks.finish(self.begun)
        for place, x in self.places:
            place.add_(x)


def depart(
    given: Sequence[Tensor],
    found: Sequence[Tensor],
    steps: Sequence[int],
    lengths: Sequence[int],
    group: str,
    back: bool,
) -> Travelling:
    """Begin to add to what chunks begin with the last steps of those before them; or back, to the
    last steps of chunks what came of them in others. Tensors are those of own chunks, all kinds of
    one after those of another.
    """
    ranks = ranks_of(group)
    own = chunks_of_rank(ranks.rank, ranks.size)
    index = {chunk: i * len(steps) for i, chunk in enumerate(own)}
    ends, begins = (found, given) if back else (given, found)
    sent, received, places = [], [], []
    for chunk, kind, source, count, between in crossings(lengths, steps):
        there, here = owner(chunk, ranks.size), owner(source, ranks.size)
        end = begin = None
        if here == ranks.rank:
            end = ends[index[source] + kind]
            end = end.narrow(1, end.shape[1] - count, count)
        if there == ranks.rank:
            begin = begins[index[chunk] + kind]
            begin = begin.narrow(1, begin.shape[1] - between - count, count)
        if back:
            end, begin, here, there = begin, end, there, here
        if end is not None and begin is not None:
            places.append((begin, end))
        elif end is not None:
            sent.append((there, end.contiguous()))
        elif begin is not None:
            room = torch.empty_like(begin, memory_format=torch.contiguous_format)
            received.append((here, room))
            places.append((begin, room))
    return Travelling(ranks, ranks.begin(sent, received), sent, places)


def pasts_fake(
    ends: list[Tensor], steps: list[int], lengths: list[int], group: str
) -> list[Tensor]:
    """The steps before each own chunk (B, steps, columns) of each kind, zeros before the sequence,
    of the last steps of own chunks, as many as they have of these; without values.
    """
    *ends, token = ends
    kinds = len(steps)
    found = [x.new_empty(x.shape[0], steps[i % kinds], x.shape[2]) for i, x in enumerate(ends)]
    return [*found, torch.empty_like(token)]


def pasts_of_chunks(
    ends: list[Tensor], steps: list[int], lengths: list[int], group: str
) -> list[Tensor]:
    """The same by messages between ranks."""
    found = [x.zero_() for x in pasts_fake(ends, steps, lengths, group)]
    depart(ends[:-1], found[:-1], steps, lengths, group, back=False).arrive()
    return found


def ends_fake(
    pasts: list[Tensor], steps: list[int], lengths: list[int], own: list[int], group: str
) -> list[Tensor]:
    """The gradients of the last steps of own chunks, of those of the steps before each."""
    *pasts, token = pasts
    kinds = len(steps)
    sizes = [min(steps[i % kinds], lengths[own[i // kinds]]) for i in range(len(pasts))]
    found = [x.new_empty(x.shape[0], n, x.shape[2]) for x, n in zip(pasts, sizes, strict=True)]
    return [*found, torch.empty_like(token)]


def ends_of_chunks(
    pasts: list[Tensor], steps: list[int], lengths: list[int], own: list[int], group: str
) -> list[Tensor]:
    """The same by messages between ranks."""
    found = [x.zero_() for x in ends_fake(pasts, steps, lengths, own, group)]
    depart(pasts[:-1], found[:-1], steps, lengths, group, back=True).arrive()
    return found


# ---- what all ranks have


def gathered_fake(states: list[Tensor], chunks: int, group: str) -> list[Tensor]:
    """A tensor of every chunk, (chunks, ...) in the order of time, of those of own chunks."""
    return [states[0].new_empty(chunks, *states[0].shape), torch.empty_like(states[-1])]


def in_order_of_time(x: Tensor) -> Tensor:
    """Of what ranks have of their chunks, one behind the other: that of all chunks."""
    return torch.cat([x[::2], x[1::2].flip(0)]) if ZIGZAG else x


def gathered_chunks(states: list[Tensor], chunks: int, group: str) -> list[Tensor]:
    """The same by messages between ranks."""
    ranks, token = ranks_of(group), torch.empty_like(states[-1])
    return [in_order_of_time(ranks.gathered(torch.stack(states[:-1]))), token]


def summed_fake(tensors: list[Tensor], group: str) -> list[Tensor]:
    """The sums of tensors over ranks."""
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors]


def summed_over_ranks(tensors: list[Tensor], group: str) -> list[Tensor]:
    """The same, by one message of all that have one dtype, if they have elements."""
    ranks = ranks_of(group)
    found = list(tensors)
    for dtype in dict.fromkeys(x.dtype for x in tensors if x.numel()):
        alike = [i for i, x in enumerate(tensors) if x.dtype == dtype]
        flat = ranks.summed(torch.cat([tensors[i].reshape(-1) for i in alike]))
        parts = flat.split([tensors[i].numel() for i in alike])
        for i, part in zip(alike, parts, strict=True):
            found[i] = part.view(tensors[i].shape).clone()
    return found


def decayed(states: Tensor, poles: Tensor, steps: Sequence[int]) -> Tensor:
    """The sum over chunks of states (chunks, B, D, N, ...), each so many steps later; those of
    negative numbers of steps are left out.
    """
    # A copy that waits for nothing that a GPU has still to do.
    times = torch.tensor(steps, dtype=poles.real.dtype).to(poles.device, non_blocking=True)
    times = times[:, None, None]
    weights = torch.where(times < 0, 0.0, torch.exp(poles * times.clamp(min=0)))
    modes = torch.view_as_complex(states) if poles.is_complex() else states
    found = (weights[:, None] * modes).sum(0)
    return (torch.view_as_real(found) if poles.is_complex() else found).to(states.dtype)
