"""How well one list of numbers orders another."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence


def ranks(values: Sequence[float]) -> list[float]:
    """From 0; equal values share the mean of theirs."""
    order = sorted(values)
    return [(bisect_left(order, v) + bisect_right(order, v) - 1) / 2 for v in values]


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's correlation, that of ranks: 1 if both agree, -1 if they are opposed, 0 if one has
    no order.
    """
    a, b = ranks(one), ranks(other)
    mean = (len(a) - 1) / 2
    both = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    own = sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)
    return float(both / own**0.5) if own else 0.0
