"""The property of rows that hold documents: each is computed as if it were alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from sh2gen.spec.language import Sequences
from sh2gen.verify.case import Case, DocumentsRunner
from sh2gen.verify.compare import against_float64, identical
from sh2gen.verify.report import Check


def documents(case: Case) -> Iterator[Check]:
    """Several documents in one row give what each gives alone, forward and backward; and other
    values of one leave all others as they are, to the last bit, but for the rounding of an FFT; if
    the operator is of packed sequences.
    """
    if case.spec.sequences is not Sequences.PACKED or not isinstance(case.runner, DocumentsRunner):
        return
    rng = case.generator()
    row = row_of_documents(case, rng)
    ends = row.ends
    assert ends is not None
    inputs, parameters = row.inputs(rng), row.parameters(rng)
    dy = row.activation(rng)
    y, grads = row.forward(inputs, parameters), row.gradients(inputs, parameters, dy)
    yield from against_float64(row, rng, (inputs, parameters, dy), y, grads)
    # What is changed is the last document but one that has steps, or the only one.
    begin = max(e for e in (0, *ends) if e < case.length)
    begin = max((e for e in (0, *ends) if e < begin), default=begin)
    end = min(e for e in ends if e > begin)
    changed = {n: _other(row, x, begin, end, rng) for n, x in inputs.items()}
    above = _other(row, dy, begin, end, rng)
    found = {"y": row.forward(changed, parameters)}
    found |= row.gradients(changed, parameters, above)
    for name, wanted in ({"y": y} | grads).items():
        if name in parameters:
            continue
        for title, steps in (("before", slice(0, begin)), ("behind", slice(end, None))):
            name_of = f"{name if name == 'y' else f'gradient of {name}'} {title} another document"
            before, after = wanted[..., steps], found[name][..., steps]
            if before.numel():
                yield identical(row, name_of, after, before)


def row_of_documents(case: Case, rng: torch.Generator) -> Case:
    """A row of as many steps that holds documents: one of one step and some of none among them,
    where it has room for it.
    """
    assert isinstance(case.runner, DocumentsRunner)

    def drawn(most: int, count: int) -> list[int]:
        return torch.randint(most, (count,), generator=rng, device=case.device).tolist()

    middle, *others = sorted(drawn(case.length + 1, 4))
    borders = [0, middle, min(middle + 1, case.length), *others, others[-1]]
    ends = (*sorted(borders), case.length)
    dtype = (torch.int32, torch.int64)[drawn(2, 1)[0]]
    cu_seqlens = torch.tensor([0, *ends], dtype=dtype, device=case.device)
    runner = case.runner.of_documents(cu_seqlens)
    return dataclasses.replace(case, runner=runner, batch=1, ends=ends)


def _other(case: Case, x: Tensor, begin: int, end: int, rng: torch.Generator) -> Tensor:
    """The same with other values in some steps, among them large ones."""
    made = case.place(x)
    values = 64 * case.activation(rng, batch=1).narrow(case.time_dim, begin, end - begin)
    made.narrow(case.time_dim, begin, end - begin).copy_(values)
    return made
