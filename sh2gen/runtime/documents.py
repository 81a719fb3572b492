"""Where the documents of a row end, from what users have: document numbers, a padding mask."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cu_seqlens_of(numbers: Tensor, documents: int | None = None) -> Tensor:
    """The `cu_seqlens` of documents that steps tell by numbers, as `seq_idx` of other packages
    does; rows of a batch are put behind each other. It waits for no GPU.

    Args:
        numbers: (L) or (B, L) integers: a document begins where a row does and where the number
            of a step is not that of the step before, whatever these are.
        documents: how many there are at most, in all rows; absent: B L. What is computed for each
            document is computed so many times.

    Returns:
        (documents + 1) int32 on the same device, from 0 to B L, which is repeated behind the last
        document. Of more documents than that, those from the last one on are taken for one.

    Raises:
        TypeError, ValueError: of numbers that are none, or of another shape.

    Example: `cu_seqlens = sh2gen.cu_seqlens_of(seq_idx, documents=64)`
    """
    if not isinstance(numbers, Tensor) or numbers.is_floating_point() or numbers.is_complex():
        kind = numbers.dtype if isinstance(numbers, Tensor) else type(numbers).__name__
        raise TypeError(f"numbers of documents are {kind}, expected a tensor of integers")
    if numbers.dim() not in (1, 2) or not numbers.numel():
        raise ValueError(
            f"numbers of documents have shape {tuple(numbers.shape)}, expected (L) or (B, L) with "
            "B and L >= 1"
        )
    rows = numbers if numbers.dim() == 2 else numbers[None]
    begins = torch.ones_like(rows, dtype=torch.bool)
    begins[:, 1:] = rows[:, 1:] != rows[:, :-1]
    steps = begins.numel()
    most = steps if documents is None else documents
    if type(most) is not int or most < 1:
        raise ValueError(f"documents are {documents!r}, expected a whole number of at least 1")
    flat = begins.flatten()
    count = torch.cumsum(flat, 0) - 1  # of the document of each step
    found = torch.full((steps + 1,), steps, dtype=torch.int32, device=rows.device)
    step = torch.arange(steps, dtype=torch.int32, device=rows.device)
    found = found.scatter(0, torch.where(flat, count, steps), torch.where(flat, step, steps))
    found = functional.pad(found, (0, max(0, most - steps)), value=steps)[: most + 1].clone()
    found[-1] = steps
    return found


def cu_seqlens_of_mask(mask: Tensor) -> Tensor:
    """The `cu_seqlens` of rows that are padded on one side, put behind each other: what is padding
    is a document of its own, so that no step is moved. It waits for no GPU.

    Args:
        mask: (B, L), true or not 0 for steps that are no padding: in each row one run, at its
            beginning or at its end. On a CPU anything else is refused; on a GPU nobody looks.

    Returns:
        (2 B + 1) int32 on the same device, from 0 to B L.

    Raises:
        TypeError, ValueError: of what is no mask of this shape.

    Example: of rows (B, L, D), `layer(x.reshape(1, -1, D), cu_seqlens=cu_seqlens_of_mask(mask))`;
        of (B, D, L), `x.transpose(0, 1).reshape(1, D, -1)`.
    """
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"the mask is {kind}, expected a tensor of booleans or integers")
    if mask.dim() != 2 or not mask.numel():
        raise ValueError(f"the mask has shape {tuple(mask.shape)}, expected (B, L), both >= 1")
    real = mask != 0
    if mask.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = ((real[:, 1:] != real[:, :-1]).sum(1) > 1).nonzero().flatten()
        if len(wrong):
            raise ValueError(
                f"row {int(wrong[0])} of the mask has padding on both sides, or in the middle: "
                "number its runs, for cu_seqlens_of"
            )
    batch, steps = real.shape
    count = real.sum(1)
    border = torch.where(real[:, 0], count, steps - count)
    begin = torch.arange(batch, device=mask.device) * steps
    found = torch.stack([begin, begin + border], 1).flatten()
    return functional.pad(found, (0, 1), value=batch * steps).to(torch.int32)
