"""What must hold of a way of running an operator, with float64 and without an oracle."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from sh2gen.graph.reference import (
    POLES,
    SILU_SLOPE,
    filter_taps,
    reference_gradients,
    sample_groups,
)
from sh2gen.spec.language import Activation, Projection, Sequences, TapOrder
from sh2gen.verify.case import (
    Case,
    ChunkRunner,
    PackedRunner,
    RanksRunner,
    SliceRunner,
    Tensors,
    poisoned,
    require_like,
)
from sh2gen.verify.compare import (
    affordable_steps,
    against_float64,
    all_finite,
    identical,
    in_float64,
    within,
)
from sh2gen.verify.decoding import decode
from sh2gen.verify.documents import documents, row_of_documents
from sh2gen.verify.report import Check
from sh2gen.verify.tolerance import norm


def equality(case: Case) -> Iterator[Check]:
    """Output and every gradient equal float64, by both tolerances, and are finite everywhere.

    Where a single group is more than can be compared, everything must be finite, and the whole
    length is run again with inputs and dy that are zero but for some steps: the first ones, some
    in the middle, the last ones. An operator is causal and begins with zeros, so within these
    steps the output and the gradients are those of a sequence of these steps alone, and so are the
    gradients of parameters, to which the rest adds nothing. The checks name the steps.
    """
    rng = case.generator()
    inputs, parameters, dy = case.inputs(rng), case.parameters(rng), case.activation(rng)
    y, grads = case.forward(inputs, parameters), case.gradients(inputs, parameters, dy)
    if (steps := affordable_steps(case)) >= case.length:
        yield from against_float64(case, rng, (inputs, parameters, dy), y, grads)
        return
    yield from all_finite(case, y, grads)
    middle = int(torch.randint(case.length - steps + 1, (), generator=rng, device=case.device))
    del y, grads
    for begin in sorted({0, middle, case.length - steps}):
        yield from _equality_within(case, rng, (inputs, parameters, dy), begin, steps)


def _equality_within(
    case: Case,
    rng: torch.Generator,
    drawn: tuple[Tensors, Tensors, Tensor],
    begin: int,
    steps: int,
) -> Iterator[Check]:
    """Some steps of a run in which all other steps of the inputs and of dy are zero."""
    inputs, parameters, dy = drawn

    def alone(x: Tensor) -> Tensor:
        made = case.place(torch.zeros_like(x))
        made.narrow(case.time_dim, begin, steps).copy_(x.narrow(case.time_dim, begin, steps))
        return made

    def part(x: Tensor) -> Tensor:
        return x.narrow(case.time_dim, begin, steps)

    few = {name: alone(x) for name, x in inputs.items()}
    above = alone(dy)
    y, grads = case.forward(few, parameters), case.gradients(few, parameters, above)
    grads = {n: g[..., begin : begin + steps] if n in inputs else g for n, g in grads.items()}
    label = f"{case.label}, steps {begin} .. {begin + steps - 1}"
    within = dataclasses.replace(case, length=steps, label=label)
    few = {name: part(x) for name, x in few.items()}
    y = y[..., begin : begin + steps]
    yield from against_float64(within, rng, (few, parameters, part(above)), y, grads)


def linear_in_input(case: Case) -> Iterator[Check]:
    """op(v + w) - op(v) - op(w) + op(0) = 0, for the input v that is convolved."""
    if not case.linear:
        return
    rng, name = case.generator(), case.value_input
    inputs, parameters = case.inputs(rng), case.parameters(rng)
    v, w = (_short(case.activation(rng)) for _ in range(2))
    yield _additive(
        case,
        [(inputs | {name: case.place(x)}, parameters) for x in (v + w, v, w, 0 * v)],
        (inputs | {name: v.abs() + w.abs()}, parameters),
    )


def linear_in_filter(case: Case) -> Iterator[Check]:
    """op(h + g) - op(h) - op(g) + op(0) = 0, for the filter h (the residues of a modal one)."""
    if not case.linear:
        return
    rng = case.generator()
    inputs, parameters = case.inputs(rng), case.parameters(rng)
    linear = ("filter", "residues", "residues_real", "residues_imag")

    def drawn() -> Tensors:
        return {
            name: _short(torch.randn(p.shape, generator=rng, device=case.device)).to(p.dtype)
            for name, p in parameters.items()
            if name in linear
        }

    h, g = drawn(), drawn()
    both = {name: h[name] + g[name] for name in h}
    none = {name: 0 * x for name, x in h.items()}
    sizes = {name: h[name].abs() + g[name].abs() for name in h}
    yield _additive(
        case, [(inputs, parameters | x) for x in (both, h, g, none)], (inputs, parameters | sizes)
    )


def impulse(case: Case) -> Iterator[Check]:
    """A unit impulse gives the filter: at the start, where the filter just fits, and at the end.

    Gates are one, the featurizer is the identity, skip and bias are zero. Every tap stands alone:
    even one far below the others must be right, and everything else exactly zero.
    """
    spec, rng = case.spec, case.generator()
    parameters = case.parameters(rng)
    for name in ("skip", "bias", "featurizer"):
        if name in parameters:
            parameters[name] = torch.zeros_like(parameters[name])
    if spec.featurizer is not None:
        current = 0 if spec.featurizer.taps is TapOrder.LAG_FIRST else -1
        parameters["featurizer"][:, current] = 1
    doubles = in_float64(parameters)
    taps = filter_taps(spec, doubles, case.length)
    sizes = filter_taps(spec, doubles, case.length, absolute=True)
    if spec.activation is Activation.SILU:
        taps, sizes = functional.silu(taps), SILU_SLOPE * sizes
    count, length = taps.shape[1], case.length
    rows = (case.batch, spec.channels)
    for start in sorted({0, length - count, length - 1}):
        unit = torch.zeros(*rows, length, device=case.device)
        unit[..., start] = 1
        values = {n: unit if n == case.value_input else torch.ones_like(unit) for n in spec.inputs}
        # A copy in the runner's layout.
        inputs = {n: case.place(case.canonical(x).contiguous()) for n, x in values.items()}
        y = case.forward(inputs, parameters)
        # Past the end too: an FFT's error is relative to the whole filter.
        expected = taps.new_zeros(*rows, start + max(count, length - start))
        absolute = torch.zeros_like(expected)
        for whole, part in ((expected, taps), (absolute, sizes)):
            per_channel = part.repeat_interleave(spec.group_width, dim=0)
            whole[..., start : start + count] = per_channel
        allowed = case.tolerance.elements(absolute)[..., :length]
        yield within(case, f"at {start}", y, expected[..., :length], allowed)


def time_shift(case: Case) -> Iterator[Check]:
    """Inputs s samples later give the outputs s samples later."""
    shift = max(1, case.length // 3)
    if shift >= case.length:
        return
    rng = case.generator()
    inputs, parameters = case.inputs(rng), case.parameters(rng)
    later = {}
    for name, x in inputs.items():
        moved = torch.zeros_like(x)
        kept = case.length - shift
        moved.narrow(case.time_dim, shift, kept).copy_(x.narrow(case.time_dim, 0, kept))
        later[name] = case.place(moved)
    y, moved = case.forward(inputs, parameters), case.forward(later, parameters)
    allowed = 2 * case.output_tolerance(inputs, parameters)  # both have errors
    yield within(case, f"by {shift}", moved[..., shift:], y[..., :-shift], allowed[..., :-shift])


def causality(case: Case) -> Iterator[Check]:
    """Other values in the future change no bit of the past; for gradients, the other way round."""
    if not case.runner.exactly_causal or case.length == 1:
        return
    rng = case.generator()
    inputs, parameters, dy = case.inputs(rng), case.parameters(rng), case.activation(rng)
    y = case.forward(inputs, parameters)
    for cut in sorted({1, case.length // 2, case.length - 1}):
        other = {n: _after(case, cut, x, case.activation(rng)) for n, x in inputs.items()}
        changed = case.forward(other, parameters)
        yield identical(case, f"y before {cut}", changed[..., :cut], y[..., :cut])
    # An input acts on later outputs only: its gradient does not see what came from earlier ones.
    cut = case.length // 2
    grads = case.gradients(inputs, parameters, dy)
    changed_grads = case.gradients(inputs, parameters, _after(case, cut, case.activation(rng), dy))
    for n in inputs:
        later, earlier = changed_grads[n][..., cut:], grads[n][..., cut:]
        yield identical(case, f"gradient of {n} from {cut}", later, earlier)


def determinism(case: Case) -> Iterator[Check]:
    """Twice the same call, twice the same bits, of output and gradients."""
    rng = case.generator()
    inputs, parameters, dy = case.inputs(rng), case.parameters(rng), case.activation(rng)
    first, second = (case.forward(inputs, parameters) for _ in range(2))
    yield identical(case, "y", first, second)
    before, after = (case.gradients(inputs, parameters, dy) for _ in range(2))
    for name, grad in before.items():
        yield identical(case, f"gradient of {name}", grad, after[name])


def batch_invariance(case: Case) -> Iterator[Check]:
    """A sequence gives the same bits alone and among others (of an FFT, within its error)."""
    rng = case.generator()
    inputs, dy = case.inputs(rng, batch=3), case.activation(rng, batch=3)
    parameters = case.parameters(rng)
    y = case.forward(inputs, parameters)
    grads = case.gradients(inputs, parameters, dy)
    # On a CPU, torch's exponential differs in the last bit with the place of a number in memory.
    exact = case.runner.exactly_causal and (case.linear or case.device.type != "cpu")
    for b in range(3):
        one = {name: case.place(x[b : b + 1]) for name, x in inputs.items()}
        alone, title = case.forward(one, parameters), f"sequence {b}"
        if not exact:
            allowed = 2 * case.output_tolerance(one, parameters)
            yield within(case, f"y of {title}", alone, y[b : b + 1], allowed)
            continue
        yield identical(case, f"y of {title}", alone, y[b : b + 1])
        own = case.gradients(one, parameters, case.place(dy[b : b + 1]))
        for n in inputs:
            yield identical(case, f"gradient of {n} of {title}", own[n], grads[n][b : b + 1])


def adjoint(case: Case) -> Iterator[Check]:
    """<op(a) - op(a = 0), w> = <a, gradient of <op, w> by a>, for every a in which op is affine.

    That is each input, the filter, skip and bias; the featurizer follows from the inputs, because
    scaling its rows for one input is scaling that input. w is the output itself, so that the left
    side is large and a gradient that is off by a constant factor shows; scaled to at most one, so
    that no gradient leaves the range of float16. The allowance is that of
    the norm on both sides (Cauchy-Schwarz), with a generous floor in place of |abs| / |ref|.
    """
    if not case.linear:
        return
    rng = case.generator()
    inputs, parameters = case.inputs(rng), case.parameters(rng)
    y = case.forward(inputs, parameters)
    largest = y.abs().max().item()
    above = y * 2.0 ** -max(0, math.frexp(largest)[1]) if math.isfinite(largest) else y
    grads = case.gradients(inputs, parameters, case.place(case.canonical(above).contiguous()))
    value, w = y.to(torch.float64), above.to(torch.float64)
    tolerance = case.tolerance
    share = math.sqrt(tolerance.roundings) * tolerance.unit * (1 + 1 / math.sqrt(w.numel()))
    share += 64 * tolerance.arithmetic
    leaves = {n: case.canonical(x) for n, x in inputs.items()} | parameters
    products = {n: _pairing(leaf, grads[n]) for n, leaf in leaves.items()}
    for name in leaves:
        if name in inputs:
            zeroed = inputs | {name: case.place(torch.zeros_like(inputs[name]))}
            without = case.forward(zeroed, parameters)
        elif name not in POLES and name != "featurizer":
            zero = torch.zeros_like(parameters[name])
            without = case.forward(inputs, parameters | {name: zero})
        else:
            continue
        before = without.to(torch.float64)
        left = ((value - before) * w).sum().item()
        sizes = (norm(value) + norm(before)) * norm(w)
        right, size = products[name]
        yield _balance(case, name, left, right, share * (sizes + size))
    if "featurizer" in leaves:
        total = sum(products[n][0] for n in inputs)
        sizes = sum(products[n][1] for n in inputs)
        own, size = products["featurizer"]
        yield _balance(case, "featurizer", total, own, share * (sizes + size))


def packed(case: Case) -> Iterator[Check]:
    """All inputs in one tensor give what they give apart, if the runner takes one tensor."""
    if not isinstance(case.runner, PackedRunner):
        return
    rng = case.generator()
    inputs, parameters = case.inputs(rng), case.parameters(rng)
    parts, dim = [inputs[name] for name in case.spec.inputs], case.channel_dim
    if case.spec.layout.projection is Projection.THIRDS:
        features = torch.cat(parts, dim)
    else:
        features = torch.stack(parts, dim + 1).flatten(dim, dim + 1)
    y = case.forward(inputs, parameters)
    with poisoned():
        together = case.runner.forward_packed({"features": case.place(features)}, parameters)
    require_like("the packed output", together, parts[0])
    allowed = 2 * case.output_tolerance(inputs, parameters)
    yield within(case, "y", case.canonical(together), y, allowed)


def strides(case: Case) -> Iterator[Check]:
    """Inputs that are not contiguous, or not aligned, give what contiguous ones give."""
    rng = case.generator()
    inputs, parameters, dy = case.inputs(rng), case.parameters(rng), case.activation(rng)
    y, grads = case.forward(inputs, parameters), case.gradients(inputs, parameters, dy)
    acts = {name: case.canonical(x) for name, x in inputs.items()}
    absolute_y, absolute = reference_gradients(
        case.spec, acts, parameters, case.canonical(dy), method=case.method, absolute=True
    )
    elements = case.tolerance.elements
    for title, form in (("slice of a larger tensor", _slice), ("transposed", _transposed)):
        others = {name: form(x) for name, x in inputs.items()}
        result = case.forward(others, parameters)
        yield within(case, f"y, {title}", result, y, 2 * elements(absolute_y))
        results = case.gradients(others, parameters, form(dy))
        for name, grad in grads.items():
            allowed = 2 * elements(absolute[name])
            yield within(case, f"gradient of {name}, {title}", results[name], grad, allowed)


def chunks(case: Case) -> Iterator[Check]:
    """A sequence in chunks, each after the state that the one before has left, gives what it gives
    whole, forward and backward through the states; if the operator takes and gives states.

    An input that two chunks read has two gradients, and torch adds them in the io dtype.
    """
    state_spec, runner = case.spec.state, case.runner
    if state_spec is None or not (state_spec.initial and state_spec.final):
        return
    if not isinstance(runner, ChunkRunner):
        return
    rng = case.generator()
    inputs, parameters, dy = case.inputs(rng), case.parameters(rng), case.activation(rng)
    drawn = torch.randint(0, case.length + 1, (2,), generator=rng, device=case.device).tolist()
    cuts = sorted({0, 1, *drawn, case.length})
    leaves, weights = (
        {n: x.clone().requires_grad_() for n, x in t.items()} for t in (inputs, parameters)
    )
    parts: list[Tensor] = []
    state: tuple[Tensor, ...] | None = None
    with poisoned(), torch.enable_grad():
        for begin, end in itertools.pairwise(cuts):
            steps = {n: x.narrow(case.time_dim, begin, end - begin) for n, x in leaves.items()}
            y, state = runner.chunk(steps, weights, state)
            parts.append(y)
        whole = torch.cat(parts, case.time_dim)
        named = leaves | weights
        found = torch.autograd.grad(whole, list(named.values()), dy)
    require_like("the output in chunks", whole, dy)
    grads = {
        name: case.canonical(grad) if name in leaves else grad
        for name, grad in zip(named, found, strict=True)
    }
    y = case.canonical(whole.detach())
    arguments = (inputs, parameters, dy)
    yield from against_float64(case, rng, arguments, y, grads, parts=len(cuts) - 1)


def ranks(case: Case) -> Iterator[Check]:
    """A sequence over ranks gives what it gives whole, forward and backward, and every rank has
    the same gradients of parameters; if the operator is split over ranks.
    """
    runner = case.runner
    if case.spec.context is None or not isinstance(runner, RanksRunner) or not runner.ranks:
        return
    rng = case.generator()
    if case.spec.sequences is Sequences.PACKED:
        case = row_of_documents(case, rng)
        runner = case.runner
        assert isinstance(runner, RanksRunner)
    inputs, parameters, dy = case.inputs(rng), case.parameters(rng), case.activation(rng)
    with poisoned(), torch.enable_grad():
        whole, found = runner.over_ranks(inputs, parameters, dy)
    require_like("the output over ranks", whole, dy)
    grads = {n: case.canonical(x) if n in inputs else x for n, x in found[0].items()}
    y, arguments = case.canonical(whole), (inputs, parameters, dy)
    yield from against_float64(case, rng, arguments, y, grads, parts=2 * runner.ranks)
    for rank, own in enumerate(found[1:], 1):
        for name in parameters:
            title = f"gradient of {name} on ranks 0 and {rank}"
            yield identical(case, title, own[name], found[0][name])


def slices(case: Case) -> Iterator[Check]:
    """Some groups alone, from the middle of a ladder of decays, give what they give among all: the
    same bits of activations, if the runner says so.
    """
    spec, runner, total = case.spec, case.runner, case.spec.filter.groups
    if spec.filter.decay is None or total == 1 or not isinstance(runner, SliceRunner):
        return
    rng, count = case.generator(), total // 2
    first = (total - count + 1) // 2  # never 0, where a ladder of its own would begin too
    groups = range(first, first + count)
    inputs, parameters, dy = case.inputs(rng), case.parameters(rng), case.activation(rng)
    y, grads = case.forward(inputs, parameters), case.gradients(inputs, parameters, dy)
    acts = {name: case.canonical(x) for name, x in (inputs | {"dy": dy}).items()}
    acts, own, wanted = (
        sample_groups(spec, tensors, groups) for tensors in (acts, parameters, {"y": y} | grads)
    )
    above = acts.pop("dy")
    absolute_y, absolute = reference_gradients(
        spec, acts, own, above, method=case.method, absolute=True, groups=groups
    )

    def placed(x: Tensor) -> Tensor:
        return case.place(case.canonical(x).contiguous())

    sliced, same_bits = runner.sliced(spec, groups)
    part = dataclasses.replace(case, runner=sliced)
    few = {name: placed(x) for name, x in acts.items()}
    found = {"y": part.forward(few, own)} | part.gradients(few, own, placed(above))
    # As in `batch_invariance`, of what has no exponential. How gradients of parameters are added
    # up may follow from the number of channels.
    exact = same_bits and case.linear
    for name, size in ({"y": absolute_y} | absolute).items():
        title = f"{'' if name == 'y' else 'gradient of '}{name} of groups {first} .. {groups[-1]}"
        if exact and name not in own:
            yield identical(case, title, found[name], wanted[name])
        else:
            allowed = 2 * case.tolerance.elements(size)  # both have errors
            yield within(case, title, found[name], wanted[name], allowed)


Property = Callable[[Case], Iterator[Check]]
# In the order in which they are tried: what explains most comes first.
PROPERTIES: dict[str, Property] = {
    "equality": equality,
    "impulse": impulse,
    "causality": causality,
    "linear_in_input": linear_in_input,
    "linear_in_filter": linear_in_filter,
    "time_shift": time_shift,
    "adjoint": adjoint,
    "determinism": determinism,
    "batch_invariance": batch_invariance,
    "packed": packed,
    "strides": strides,
    "chunks": chunks,
    "ranks": ranks,
    "documents": documents,
    "slices": slices,
    "decode": decode,
}


def _short(values: Tensor) -> Tensor:
    """`values` to multiples of 1/8 below 2: the sum of two is exact in every io dtype."""
    return (values * 8).round().clamp(-15, 15) / 8


def _additive(
    case: Case, four: list[tuple[Tensors, Tensors]], magnitude: tuple[Tensors, Tensors]
) -> Check:
    """op(first) - op(second) - op(third) + op(fourth) = 0, up to the errors of four outputs."""
    whole, left, right, none = (case.forward(*one).to(torch.float64) for one in four)
    allowed = 4 * case.output_tolerance(*magnitude)
    return within(case, "y", whole - left, right - none, allowed)


def _after(case: Case, cut: int, before: Tensor, after: Tensor) -> Tensor:
    """`before` up to time `cut`, `after` from then on; both in the runner's layout."""
    early = before.narrow(case.time_dim, 0, cut)
    late = after.narrow(case.time_dim, cut, case.length - cut)
    return case.place(torch.cat((early, late), case.time_dim))


def _pairing(a: Tensor, b: Tensor) -> tuple[float, float]:
    """<a, b> and |a| |b|, in float64."""
    a, b = a.to(torch.float64), b.to(torch.float64)
    return (a * b).sum().item(), norm(a) * norm(b)


def _balance(case: Case, name: str, left: float, right: float, allowed: float) -> Check:
    size = max(abs(left), abs(right)) or 1.0
    detail = f"<op, w> = {left:.8g}, <{name}, gradient> = {right:.8g}"
    measured, bound = abs(left - right) / size, allowed / size
    return Check(name=f"{case.label}: {name}", measured=measured, bound=bound, detail=detail)


def _slice(tensor: Tensor) -> Tensor:
    """The same values inside a larger tensor of NaN, misaligned."""
    batch, rows, columns = tensor.shape
    larger = tensor.new_full((batch, rows + 2, columns + 3), math.nan)
    return larger[:, 1:-1, 1:-2].copy_(tensor)


def _transposed(tensor: Tensor) -> Tensor:
    """The same values in the other memory order."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)
