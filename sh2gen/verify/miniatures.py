"""Small operators that stand for large ones, where kernels run slowly."""

from __future__ import annotations

import dataclasses
import math

from sh2gen.spec.operator import OpSpec


def miniature(
    spec: OpSpec, *, max_channels: int = 128, max_taps: int | None = None, max_groups: int = 2
) -> OpSpec:
    """A small operator that exercises all that a kernel of `spec` does, for slow ways of running.

    The same filter, featurizer, gates, packing and group width, and two groups, so that there is a
    border between them, if no more are asked for. A group wider than 64 (or than half of
    `max_channels`) is narrowed to the widest below that with the same remainder by 16, so that
    masks cut its blocks in the same way; and so is a filter of more than `max_taps`, if there is
    such a bound.
    """
    widest = min(64, max(1, max_channels // 2))
    width = _narrowed(spec.group_width, widest)
    groups = min(max_groups, spec.filter.groups)
    inner = dataclasses.replace(spec.filter, groups=groups)
    if max_taps is not None and inner.length is not None:
        inner = dataclasses.replace(inner, length=_narrowed(inner.length, max_taps))
    if inner.decay is not None:
        repeats = math.gcd(inner.decay.repeats, groups)
        inner = dataclasses.replace(inner, decay=dataclasses.replace(inner.decay, repeats=repeats))
    context = spec.context
    if context is not None:  # for how many ranks plans are made, which few groups are no part of
        context = dataclasses.replace(context, ranks=1)
    return dataclasses.replace(
        spec,
        context=context,
        channels=groups * width,
        filter=inner,
        groups_in_full=spec.groups_in_full or spec.filter.groups,
    )


def _narrowed(size: int, most: int) -> int:
    """The size, or the largest up to `most` that leaves as much beside blocks of 16."""
    if size <= most:
        return size
    return next((n for n in range(most, 0, -1) if (n - size) % 16 == 0), most)
