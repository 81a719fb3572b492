"""The property of decoding: steps after a prompt are the whole sequence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sh2gen.verify.case import Case, DecodeRunner, Tensors, poisoned
from sh2gen.verify.compare import identical, within
from sh2gen.verify.report import Check

_STEPS = 7  # that are decoded


def decode(case: Case) -> Iterator[Check]:
    """A prompt and then steps, one or two a call, give what the whole gives, and so do drafts.
    Rows find their past in any place, and drafts that are rejected leave no trace: bit by bit.

    Of a dtype of two bytes also as servers decode: one step a call, in places of a pool whose past
    is in that dtype, which rounds what the filter reads once more.
    """
    runner = case.runner
    if not isinstance(runner, DecodeRunner):
        return
    rng = case.generator()
    inputs, parameters = case.inputs(rng), case.parameters(rng)
    noise, batch, end = case.inputs(rng), case.batch, min(case.length, _STEPS)
    begin = case.length - end if runner.prefills else 0
    calls = [(t, min(2 - t % 2, begin + end - t)) for t in _alternating(begin, begin + end)]

    def steps(tensors: Tensors, t: int, count: int) -> dict[str, Tensor]:
        return {name: x.narrow(case.time_dim, t, count) for name, x in tensors.items()}

    wide = torch.promote_types(case.dtype, torch.float32)

    def room(batch: int, draft: bool, dtype: torch.dtype = wide, most: int = 2) -> Any:
        return runner.initial_state(case.spec, batch, dtype, most, draft)

    def begun(**how: Any) -> Any:
        state = room(batch, draft=False, **how)
        first = [runner.prefill(steps(inputs, 0, begin), parameters, state)] if begin else []
        return state, first

    def placed(pool: Any, slots: Tensor, **how: Any) -> Any:
        """The pool, in which sequences have begun."""
        for tensor, one in zip(pool, begun(**how)[0], strict=True):
            if isinstance(tensor, Tensor):
                tensor[slots.long()] = one
        return pool

    with poisoned(), torch.no_grad():
        state, parts = begun()
        parts += [runner.decode(steps(inputs, t, n), parameters, state) for t, n in calls]
        found = torch.cat(parts, case.time_dim)
    y = case.forward(inputs, parameters)
    allowed = 2 * case.output_tolerance(inputs, parameters)
    own = found.shape[case.time_dim]
    title = "y, step by step" + " after a prompt" * bool(begin)
    yield within(case, title, case.canonical(found), y[..., :own], allowed[..., :own])

    places = torch.arange(batch, dtype=torch.int32, device=case.device)

    def drafted(slots: Tensor, *, rejected: bool) -> Tensor:
        """y of the same steps, each a draft; after others that were rejected."""
        parts = []
        with poisoned(), torch.no_grad():
            pool = placed(room(batch + 1, draft=True), slots)
            for t, n in calls:
                if rejected:
                    runner.decode(steps(noise, t, n), parameters, pool, slots)
                parts.append(runner.decode(steps(inputs, t, n), parameters, pool, slots))
                pool.commit(torch.full_like(places, n), slots)
        return torch.cat(parts, case.time_dim)

    alone = drafted(places, rejected=False)
    later = slice(begin, begin + end)
    yield within(case, "y of drafts", case.canonical(alone), y[..., later], allowed[..., later])
    found = drafted(batch - places, rejected=True)  # places 1 .. batch, the last first
    yield identical(case, "y after rejected drafts, in other places", found, alone)
    if case.dtype == wide:
        return
    with poisoned(), torch.no_grad():
        how: dict[str, Any] = {"dtype": case.dtype, "most": 1}
        slots = batch - places
        pool = placed(room(batch + 1, draft=False, **how), slots, **how)
        found = torch.cat(
            [
                runner.decode(steps(inputs, t, 1), parameters, pool, slots)
                for t in range(begin, begin + end)
            ],
            case.time_dim,
        )
    found = case.canonical(found)
    yield within(case, "y of a narrow past", found, y[..., later], allowed[..., later])


def _alternating(begin: int, end: int) -> Iterator[int]:
    """Where calls of one step and of two begin in turn."""
    t = begin
    while t < end:
        yield t
        t += 2 - t % 2
