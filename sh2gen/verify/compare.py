"""Comparison with float64 by both tolerances, and of results with each other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sh2gen.graph.reference import (
    POLES,
    filter_taps,
    reference_gradients,
    sample_groups,
)
from sh2gen.verify.case import Case, Tensors
from sh2gen.verify.memory import affordable
from sh2gen.verify.report import Check
from sh2gen.verify.tolerance import carriers, norm, round_once

_MOST = 1 << 26  # elements (B, D, L) whose float64 reference may fit in memory: 16 GB


def _compare(
    case: Case,
    name: str,
    result: Tensor,
    value: Tensor,
    absolute: Tensor,
    squares: Tensor,
    taps: float,
) -> Iterator[Check]:
    """Both tolerances for one tensor against its float64 value."""
    tolerance = case.tolerance
    scale = norm(value) or 1.0
    error = norm(result.to(torch.float64) - value)
    bound = tolerance.norm(value, absolute, squares, taps)
    once = norm(round_once(value, tolerance.unit) - value)
    yield Check(
        name=f"{case.label}: {name}, norm",
        measured=error / scale,
        bound=bound / scale,
        detail=f"relative 2-norm; rounding once to {case.dtype} costs {once / scale:.3g}",
        once=once / scale,
        size=value.numel(),
    )
    yield within(case, f"{name}, elements", result, value, tolerance.elements(absolute))


def within(case: Case, name: str, result: Tensor, value: Tensor, allowed: Tensor) -> Check:
    """|result - value| <= allowed in every element."""
    error = (result.to(torch.float64) - value).abs()
    share = torch.where(error == 0, 0.0, error / allowed).nan_to_num(nan=math.inf, posinf=math.inf)
    worst = int(share.argmax().item())
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), share.shape))
    outside = int((share > 1).sum().item())
    return Check(
        name=f"{case.label}: {name}",
        measured=share.flatten()[worst].item(),
        bound=1.0,
        detail=f"{outside} of {share.numel()} outside; worst at {place}: "
        f"{result[place].item():.8g}, expected {value[place].item():.8g}",
    )


def identical(case: Case, name: str, first: Tensor, second: Tensor) -> Check:
    """The same bits (NaN too, so that two wrong results are still seen as deterministic)."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[first.element_size()]
    differ = first.contiguous().view(bits) != second.contiguous().view(bits)
    count = int(differ.sum().item())
    where = f"first at {tuple(differ.nonzero()[0].tolist())}" if count else ""
    return Check(name=f"{case.label}: {name}", measured=count, bound=0, detail=where)


def _finite(case: Case, name: str, tensor: Tensor) -> Check:
    """Neither NaN nor infinite anywhere: also where no reference is compared."""
    count = tensor.numel() - int(torch.isfinite(tensor).sum().item())
    detail = f"{count} of {tensor.numel()} are not finite" if count else ""
    return Check(name=f"{case.label}: {name}, finite", measured=count, bound=0, detail=detail)


def affordable_steps(case: Case) -> int:
    """How many steps of one group can be compared; at least one. More than what is affordable, if
    nothing else is asked for: a group is left whole as long as there may be memory for it.
    """
    each = case.batch * case.spec.group_width
    return max(1, min(case.length, (case.compared or _MOST) // each))


def _compared_groups(case: Case, rng: torch.Generator) -> tuple[int, ...]:
    """All groups if affordable, else the first, the last and random ones; at least one."""
    total = case.spec.filter.groups
    each = case.batch * case.length * case.spec.group_width
    count = max(1, (case.compared or affordable(case.device.type)) // each)
    if count >= total:
        return tuple(range(total))
    drawn = torch.randperm(total, generator=rng, device=case.device).tolist()
    chosen = list(dict.fromkeys((0, total - 1, *drawn)))[:count]
    return tuple(sorted(chosen))


def all_finite(case: Case, y: Tensor, grads: Tensors) -> Iterator[Check]:
    yield _finite(case, "y", y)
    for name, grad in grads.items():
        yield _finite(case, f"gradient of {name}", grad)


def against_float64(
    case: Case,
    rng: torch.Generator,
    drawn: tuple[Tensors, Tensors, Tensor],
    y: Tensor,
    grads: Tensors,
    parts: int = 1,
) -> Iterator[Check]:
    """The output and the gradients for drawn inputs, parameters and dy, by both tolerances.
    Gradients of inputs are sums of so many `parts`.
    """
    spec = case.spec
    inputs, parameters, dy = drawn
    results = {"y": y}
    yield from all_finite(case, y, grads)
    groups = _compared_groups(case, rng)
    acts = {name: case.canonical(x) for name, x in inputs.items()}
    acts = in_float64(sample_groups(spec, acts, groups))
    params = in_float64(sample_groups(spec, parameters, groups))
    above = in_float64(sample_groups(spec, {"dy": case.canonical(dy)}, groups))["dy"]
    results = sample_groups(spec, results | grads, groups)

    def float64(acts: Tensors, params: Tensors, above: Tensor, absolute: bool) -> Tensors:
        y, grads = reference_gradients(
            spec,
            acts,
            params,
            above,
            method=case.method,
            absolute=absolute,
            groups=groups,
            ends=case.ends,
        )
        return {"y": y} | grads

    value = float64(acts, params, above, absolute=False)
    absolute = float64(acts, params, above, absolute=True)
    taps = carriers(filter_taps(spec, params, case.length, groups=groups).square())
    acts = {name: x.square() for name, x in acts.items()}
    params = {n: p if n in POLES else p.square() for n, p in params.items()}
    squares = float64(acts, params, above.square(), absolute=True)
    # A gradient by poles weighs with lags d, whose squares this is not: it has the sum of d x for
    # that of d^2 x, which is at least the square of the former over the sum of x.
    own = sum(params[n] * squares[n] for n in params if n.startswith("residues"))
    squares |= {n: squares[n].square() / own for n in POLES & squares.keys()}
    for n, result in results.items():
        title = "y" if n == "y" else f"gradient of {n}"
        few = taps
        if n in POLES or n.startswith("residues"):  # modes of a filter share all that is rounded
            few = min(taps, carriers(squares[n].flatten(1).sum(1)))
        judged = dataclasses.replace(case, parts=parts) if n in inputs else case
        yield from _compare(judged, title, result, value[n], absolute[n], squares[n], few)


def in_float64(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.to(torch.float64).contiguous() for name, tensor in tensors.items()}
