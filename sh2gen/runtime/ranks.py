"""Ranks that are threads of one process: what is sent from one to another, without a network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import Empty, Queue
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
_PATIENCE = 60.0  # seconds that a rank waits for another


class SimulatedRank:
    """One of them, as `Processes` of a generated file (templates/parts/context.py)."""

    def __init__(self, rank: int, size: int, wires: dict[tuple[int, int], Queue[Any]]) -> None:
        self.rank, self.size, self._wires = rank, size, wires
        # By rank, how many tensors were begun to be received and how many came, and those that
        # came before others were waited for.
        self._begun, self._came = [0] * size, [0] * size
        self._early: dict[tuple[int, int], Tensor] = {}

    def begin(
        self, sent: Sequence[tuple[int, Tensor]], received: Sequence[tuple[int, Tensor]]
    ) -> list[tuple[int, int, Tensor]]:
        for peer, x in sent:
            self._wires[self.rank, peer].put(x.detach().clone())
        return [(peer, self._next(peer), room) for peer, room in received]

    def finish(self, begun: Sequence[tuple[int, int, Tensor]]) -> None:
        for peer, number, room in begun:
            found = self._get(peer, number)
            assert found.shape == room.shape and found.dtype == room.dtype, "one order on both"
            room.copy_(found)

    def gathered(self, x: Tensor) -> Tensor:
        return torch.cat(self._of_all(x))

    def _of_all(self, x: Tensor) -> list[Tensor]:
        for peer in range(self.size):
            self._wires[self.rank, peer].put(x.detach().clone())
        return [self._get(peer, self._next(peer)) for peer in range(self.size)]

    def summed(self, x: Tensor) -> Tensor:
        first, *others = self._of_all(x)
        for other in others:
            first += other
        return x.copy_(first)

    def _next(self, peer: int) -> int:
        self._begun[peer] += 1
        return self._begun[peer] - 1

    def _get(self, peer: int, number: int) -> Tensor:
        while self._came[peer] <= number:
            try:
                found = self._wires[peer, self.rank].get(timeout=_PATIENCE)
            except Empty:
                raise TimeoutError(f"rank {self.rank} waits for rank {peer}") from None
            self._early[peer, self._came[peer]] = found
            self._came[peer] += 1
        return self._early.pop((peer, number))


def simulated(
    namespace: Any,
    size: int,
    run: Callable[[int, str], Result],
    kind: type[SimulatedRank] = SimulatedRank,
) -> list[Result]:
    """What every rank of so many gives, each in a thread.

    Args:
        namespace: of a generated file whose operator is split over ranks.
        run: is told the rank, and the name of the group that it is one of.
        kind: of the ranks.

    Raises:
        whatever a rank raises, the first that did.
    """
    wires: dict[tuple[int, int], Queue[Any]] = {
        (a, b): Queue() for a in range(size) for b in range(size)
    }
    names = [f"simulated {rank} of {size}" for rank in range(size)]
    found: dict[int, Result] = {}
    raised: list[tuple[int, BaseException]] = []

    def one(rank: int) -> None:
        try:
            found[rank] = run(rank, names[rank])
        except BaseException as error:
            raised.append((rank, error))

    for rank, name in enumerate(names):
        namespace.SIMULATED[name] = kind(rank, size, wires)
    try:
        threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for name in names:
            del namespace.SIMULATED[name]
    if raised:
        raise raised[0][1]
    return [found[rank] for rank in range(size)]
