"""Is a way of running an operator right? Gates against float64, and properties without an oracle.

Notation: B batch, L length, D channels, G filter groups, K taps, N elements of a tensor; u is the
unit roundoff of the io dtype (2^-8 bfloat16, 2^-11 float16, 2^-24 float32), e that of float32.

**The scale of errors.** An output is a sum of products of inputs and parameters. Let `ref` be its
float64 value, `abs` the sum of the absolute values of those products (the same operator on
absolute values), `sqr` the sum of their squares. Arithmetic that rounds each product c times to
the io dtype and adds in float32 is off by at most (c u + O(K) e) abs, whatever the signs (Higham,
Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1). Where terms cancel, more is
not to be had; where they do not, more is not accepted.

**Roundings allowed.** c = 1 (exact), 4 (balanced), 16 (fast): c independent roundings exceed one
by sqrt(c) = 1, 2, 4 in root-mean-square. So `exact` means float32 arithmetic throughout and one
rounding at the end: sqrt(2) = 1.41, a single operand in the io dtype, already fails it. `balanced`
leaves room for the operands of a tensor core and the final rounding (sqrt(3) = 1.73).

**Norm gate**, for the output and for every gradient:

    |result - ref|_2  <=  sqrt(c) (|round(ref) - ref|_2 + s) + 8 e |abs|_2 + tiny

- round() rounds once to the precision of the io dtype, of unlimited exponent: parameter gradients
  are float32 and may exceed float16. They are held to the io dtype all the same.
- s = u sqrt(sum(sqr) / n): the root-mean-square of n roundings is a statistic, and by luck a few
  of them are small in one place and large in another. n = sum(sqr)^2 / sum(sqr^2) is how many
  elements carry the norm, or how many taps carry the filter if they are fewer (the rounding of a
  tap is shared by all of time); of gradients of modes, how many filters do. At full size s is a
  tenth of the rest or less, on a twin more.
  For exact, s = 0: an error d before the one rounding adds at most 2 d to it, whatever n.
- 8 e: about 24 float32 roundings in a row (4 taps, gate, 16 taps, skip, bias, gate), each at most
  e times a partial sum, have a root-mean-square near 2 e abs; float32 FFTs are not far from that.

Where torch adds n > 1 parts in the io dtype (the gradients of inputs that n chunks read), c is
2 c + n - 1: each part is held to its own size, the sizes of parts that cancel have about twice the
squares of their sum, and each addition rounds.

**Element gate**, for every element:

    |result - ref|  <=  c u abs + 32 e abs + tiny

32 e is the worst case of 30 float32 roundings in a row, and typical of sums of a thousand terms,
whose errors grow like the square root of their length. An FFT spreads its error evenly over a row:
for runners that are not exactly causal the term in e takes the largest `abs` of the row. Where the
reference itself is by FFT (K > 256), its own error, 2^-46 of that largest value, is added.

tiny = c max(1, max abs) / 2 times the smallest subnormal of the io dtype: for what underflows.
Everything must be finite, and nothing that torch allocates may stay unwritten: torch.empty gives
NaN while a runner runs, and inputs lie between NaNs.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from sh2gen.base.errors import CheckFailed, Sh2genError
from sh2gen.graph.reference import (
    POLES,
    SILU_SLOPE,
    Method,
    filter_taps,
    reference,
    reference_gradients,
    sample_groups,
)
from sh2gen.spec.language import Activation, Activations, Projection, TapOrder
from sh2gen.spec.operator import OpSpec
from sh2gen.verify.gates import ROUNDINGS, Tolerance, carriers, norm, round_once
from sh2gen.verify.memory import affordable

Tensors = dict[str, Tensor]
Shape = tuple[int, int]  # (B, L)
Progress = Callable[[int, int, str], None]  # steps done, steps in all, what comes next


class Runner(Protocol):
    """One way of running one operator.

    Attributes:
        name: "eager", "interpreter", "cuda", ...
        layout: of the activations it takes and returns, "BLD" or "BDL".
        exactly_causal: whether an output is bit for bit independent of later inputs, and of other
            sequences of the batch. Not so for an FFT.
    """

    name: str
    layout: str
    exactly_causal: bool

    def forward(self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        """The output, in the layout and dtype of the inputs."""
        ...

    def gradients(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dy: Tensor
    ) -> dict[str, Tensor]:
        """Of <forward(inputs, parameters), dy> by every input and parameter, by name."""
        ...


@runtime_checkable
class PackedRunner(Protocol):
    """A runner that also takes all inputs in one tensor."""

    def forward_packed(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
    ) -> Tensor:
        """The output for {"features": (B, L, n*D) or (B, n*D, L)}."""
        ...


@runtime_checkable
class ChunkRunner(Protocol):
    """A runner that also computes a sequence in chunks, with a state between them."""

    def chunk(
        self,
        inputs: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        state: tuple[Tensor, ...] | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The output and the state after these steps, differentiable; None begins a sequence."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison: it passed if `measured` <= `bound`, which NaN never is.

    `name` reads "property B=1 L=128: what". Of an element gate, `measured` is the largest share of
    its allowance that any element used, and `bound` 1; of a bit-for-bit check, the number of
    elements that differ, and 0. Of a norm gate, `once` is what one rounding to the io dtype costs,
    measured likewise, and `size` the number of elements.
    """

    name: str
    measured: float
    bound: float
    detail: str = ""
    once: float | None = None
    size: int | None = None

    @property
    def passed(self) -> bool:
        return self.measured <= self.bound

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which knows no infinity: None stands for what is not finite."""
        numbers = {"measured": self.measured, "bound": self.bound}
        finite = {key: x if math.isfinite(x) else None for key, x in numbers.items()}
        return {"name": self.name, "passed": self.passed, **finite, "detail": self.detail}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was verified and every check, in the order in which they ran."""

    op: str
    digest: str  # of the spec
    runner: str
    dtype: str
    device: str
    seed: int
    checks: tuple[Check, ...]
    label: str = ""  # what was run, and on which twin, for a person

    @property
    def ok(self) -> bool:
        """Whether something was checked and all of it passed."""
        return bool(self.checks) and not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    def require(self) -> None:
        """Raise CheckFailed with the first failure, if any: V001 for equality, else V002."""
        if self.ok:
            return
        if not self.checks:
            raise CheckFailed("V003", f"nothing of {self.op} was verified")
        first = self.failures[0]
        code = "V001" if first.name.startswith("equality") else "V002"
        others = len(self.failures) - 1
        more = f" (and {others} more of {len(self.checks)} checks)" if others else ""
        numbers = f"{first.measured:.3g}, allowed {first.bound:.3g}"
        what = f"{self.op} by {self.runner} in {self.dtype}: {first.name}: {numbers}"
        raise CheckFailed(code, what + more, help=first.detail or None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return fields | {"ok": self.ok, "checks": [check.to_dict() for check in self.checks]}


def verify(
    spec: OpSpec,
    runner: Runner,
    *,
    dtype: torch.dtype,
    shapes: Sequence[Shape],
    device: torch.device | str = "cpu",
    seed: int = 0,
    properties: Literal["all"] | Iterable[str] = "all",
    property_shapes: Sequence[Shape] | None = None,
    compared: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Run `runner` on fresh random inputs and compare it with float64 and with itself.

    Args:
        spec: the operator that `runner` computes.
        dtype: of activations. Parameters are float32 (float64 for float64).
        shapes: (B, L) at which output and all gradients are compared with float64. At sizes where
            that does not fit, some whole groups are compared, over all of time; where not even one
            group fits, parts of time: see `equality`.
        seed: of all random numbers. The same call draws the same ones.
        properties: "all", or names of PROPERTIES. "equality" is one of them.
        property_shapes: (B, L) at which every other property is tried; by default the largest of
            `shapes` whose float64 reference fits whole.
        compared: elements of the groups that are compared with float64; by default as many as are
            affordable.
        progress: called before every step.

    Returns:
        A report. Whatever `runner` raises passes through; a wrong result never raises.

    Raises:
        Sh2genError: C006, an unknown property.
    """
    names = list(PROPERTIES) if properties == "all" else list(properties)
    for name in names:
        if name not in PROPERTIES:
            known = ", ".join(PROPERTIES)
            raise Sh2genError("C006", f"unknown property `{name}`", help=f"one of {known}")
    device = torch.device(device)
    if property_shapes is None:
        property_shapes = [_property_shape(spec, shapes, device)] if shapes else []
    steps = [
        (name, shape)
        for name in names
        for shape in (shapes if name == "equality" else property_shapes)
    ]
    checks: list[Check] = []
    for done, (name, (batch, length)) in enumerate(steps):
        label = f"{name} B={batch} L={length}"
        if progress is not None:
            progress(done, len(steps), label)
        case = Case(
            spec=spec,
            runner=runner,
            dtype=dtype,
            device=device,
            seed=seed,
            batch=batch,
            length=length,
            label=label,
            compared=compared,
        )
        try:
            checks.extend(PROPERTIES[name](case))
        except _MalformedError as error:
            checks.append(Check(name=f"{label}: form", measured=1, bound=0, detail=str(error)))
    return Report(
        op=spec.op,
        digest=spec.digest,
        runner=runner.name,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        seed=seed,
        checks=tuple(checks),
    )


# ---- one case: drawing inputs and running -------------------------------------------------------


class _MalformedError(Exception):
    """A runner returned something of the wrong shape, dtype or name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One operator, one way of running it, one size: what a property is tried on."""

    spec: OpSpec
    runner: Runner
    dtype: torch.dtype
    device: torch.device
    seed: int
    batch: int
    length: int
    label: str  # "equality B=1 L=128"
    compared: int | None = None  # elements compared with float64; None: what is affordable
    parts: int = 1  # of what is compared, which torch has added in the io dtype

    @property
    def value_input(self) -> str:
        """The input that every term of the result has as a factor: "v" or "x"."""
        return self.spec.inputs[-1]

    @property
    def linear(self) -> bool:
        """Whether the operator is linear (with an ungated bias: affine) in each single input."""
        return self.spec.activation is Activation.NONE

    @property
    def channel_dim(self) -> int:
        return 2 if self.runner.layout == Activations.BLD else 1

    @property
    def time_dim(self) -> int:
        return 3 - self.channel_dim

    @property
    def method(self) -> Method:
        """Of the reference: a direct sum is right in every element, an FFT is for long filters."""
        taps = min(self.spec.filter.length or self.length, self.length)
        return "direct" if taps <= 256 else "fft"

    @property
    def tolerance(self) -> Tolerance:
        info = torch.finfo(self.dtype)
        return Tolerance(
            roundings=_of_sum(ROUNDINGS[self.spec.precision], self.parts),
            unit=info.eps / 2,
            arithmetic=min(2.0**-24, info.eps / 2),
            underflow=info.smallest_normal * info.eps / 2,
            rowwise=not self.runner.exactly_causal,
            oracle=2.0**-46 if self.method == "fft" else 0.0,
        )

    def generator(self) -> torch.Generator:
        """Its own random numbers for every case, the same in every run."""
        seed = zlib.crc32(f"{self.seed} {self.label}".encode())
        return torch.Generator(self.device).manual_seed(seed)

    def canonical(self, tensor: Tensor) -> Tensor:
        """An activation in the runner's layout as a view (B, D, L), or back."""
        return tensor.transpose(1, 2) if self.channel_dim == 2 else tensor

    def place(self, values: Tensor) -> Tensor:
        """`values`, rounded to the io dtype, in memory with NaNs before and after it.

        A kernel that reads outside of its tensors gets NaN, and passes it on unless it masks it.
        """
        size = values.numel()
        memory = torch.full((size + 2 * _GUARD,), math.nan, dtype=self.dtype, device=self.device)
        return memory[_GUARD : _GUARD + size].view(values.shape).copy_(values)

    def activation(self, rng: torch.Generator, *, batch: int | None = None) -> Tensor:
        """N(0, 1) of the case's size, in the runner's layout."""
        length, channels = self.length, self.spec.channels
        shape = (length, channels) if self.channel_dim == 2 else (channels, length)
        batch = self.batch if batch is None else batch
        return self.place(torch.randn(batch, *shape, generator=rng, device=self.device))

    def inputs(self, rng: torch.Generator, *, batch: int | None = None) -> Tensors:
        return {name: self.activation(rng, batch=batch) for name in self.spec.inputs}

    def parameters(self, rng: torch.Generator) -> Tensors:
        """Random parameters for results of order one; initial ones may be too small to matter."""
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32

        def draw(name: str, shape: tuple[int, ...]) -> Tensor:
            normal = torch.randn(shape, generator=rng, device=self.device)
            uniform = torch.rand(shape, generator=rng, device=self.device)
            if name == "p":
                return normal / 8 - 1
            if name == "gamma":
                return torch.log(0.01 + 0.09 * uniform)
            if name == "frequencies":  # the last ones beyond half a turn
                return 4 * uniform
            if name == "log_poles":
                return -math.exp(-1) * (0.01 + 0.09 * uniform)
            # Vectors are weights of one term, matrices of as many as they have columns.
            return normal / math.sqrt(shape[1]) if len(shape) == 2 else normal

        return {p.name: draw(p.name, p.shape).to(dtype) for p in self.spec.parameters}

    def forward(self, inputs: Tensors, parameters: Tensors) -> Tensor:
        """The runner's output as a view (B, D, L)."""
        with poisoned():
            y = self.runner.forward(inputs, parameters)
        _require_like("the output", y, inputs[self.value_input])
        return self.canonical(y)

    def gradients(self, inputs: Tensors, parameters: Tensors, dy: Tensor) -> Tensors:
        """The runner's gradients; those of inputs as views (B, D, L)."""
        with poisoned():
            grads = self.runner.gradients(inputs, parameters, dy)
        leaves = inputs | parameters
        if set(grads) != set(leaves):
            raise _MalformedError(f"gradients of {sorted(grads)}, expected {sorted(leaves)}")
        for name, leaf in leaves.items():
            _require_like(f"the gradient of {name}", grads[name], leaf)
        return {n: self.canonical(grads[n]) if n in inputs else grads[n] for n in leaves}

    def output_tolerance(self, inputs: Tensors, parameters: Tensors) -> Tensor:
        """The element gate of the output: (B, D, L)."""
        acts = {name: self.canonical(x) for name, x in inputs.items()}
        return self.tolerance.elements(
            reference(self.spec, acts, parameters, method=self.method, absolute=True)
        )


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, torch fills memory that it hands out uninitialised with NaN."""
    memory: Any = torch.utils.deterministic
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


# ---- gates --------------------------------------------------------------------------------------

_MOST = 1 << 26  # elements (B, D, L) whose float64 reference may fit in memory: 16 GB
_GUARD = 1 << 16  # elements of NaN on each side of an activation; keeps its alignment


def _compare(
    case: Case,
    name: str,
    result: Tensor,
    value: Tensor,
    absolute: Tensor,
    squares: Tensor,
    taps: float,
) -> Iterator[Check]:
    """Both gates for one tensor against its float64 value."""
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
    yield _within(case, f"{name}, elements", result, value, tolerance.elements(absolute))


def _within(case: Case, name: str, result: Tensor, value: Tensor, allowed: Tensor) -> Check:
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


def _identical(case: Case, name: str, first: Tensor, second: Tensor) -> Check:
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


def _require_like(what: str, tensor: Tensor, like: Tensor) -> None:
    found = (tuple(tensor.shape), tensor.dtype, tensor.device)
    expected = (tuple(like.shape), like.dtype, like.device)
    if found != expected:
        raise _MalformedError(f"{what} is {found}, expected {expected}")


# ---- which part of a large case is compared -----------------------------------------------------


def _affordable_steps(case: Case) -> int:
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


def _property_shape(spec: OpSpec, shapes: Sequence[Shape], device: torch.device) -> Shape:
    """The largest of `shapes` that is affordable whole, else one that is."""
    budget = affordable(device.type) // spec.channels
    whole = [(b, n) for b, n in shapes if b * n <= budget]
    return max(whole, key=lambda shape: shape[0] * shape[1], default=(1, max(1, budget)))


# ---- properties ---------------------------------------------------------------------------------


def equality(case: Case) -> Iterator[Check]:
    """Output and every gradient equal float64, by both gates, and are finite everywhere.

    Where a single group is more than can be compared, everything must be finite, and the whole
    length is run again with inputs and dy that are zero but for some steps: the first ones, some
    in the middle, the last ones. An operator is causal and begins with zeros, so within these
    steps the output and the gradients are those of a sequence of these steps alone, and so are the
    gradients of parameters, to which the rest adds nothing. The checks name the steps.
    """
    rng = case.generator()
    inputs, parameters, dy = case.inputs(rng), case.parameters(rng), case.activation(rng)
    y, grads = case.forward(inputs, parameters), case.gradients(inputs, parameters, dy)
    if (steps := _affordable_steps(case)) >= case.length:
        yield from _against_float64(case, rng, (inputs, parameters, dy), y, grads)
        return
    yield from _all_finite(case, y, grads)
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
    yield from _against_float64(within, rng, (few, parameters, part(above)), y, grads)


def _all_finite(case: Case, y: Tensor, grads: Tensors) -> Iterator[Check]:
    yield _finite(case, "y", y)
    for name, grad in grads.items():
        yield _finite(case, f"gradient of {name}", grad)


def _against_float64(
    case: Case,
    rng: torch.Generator,
    drawn: tuple[Tensors, Tensors, Tensor],
    y: Tensor,
    grads: Tensors,
    parts: int = 1,
) -> Iterator[Check]:
    """The output and the gradients for drawn inputs, parameters and dy, by both gates. Gradients
    of inputs are sums of so many `parts`.
    """
    spec = case.spec
    inputs, parameters, dy = drawn
    results = {"y": y}
    yield from _all_finite(case, y, grads)
    groups = _compared_groups(case, rng)
    acts = {name: case.canonical(x) for name, x in inputs.items()}
    acts = _doubles(sample_groups(spec, acts, groups))
    params = _doubles(sample_groups(spec, parameters, groups))
    above = _doubles(sample_groups(spec, {"dy": case.canonical(dy)}, groups))["dy"]
    results = sample_groups(spec, results | grads, groups)

    def float64(acts: Tensors, params: Tensors, above: Tensor, absolute: bool) -> Tensors:
        y, grads = reference_gradients(
            spec, acts, params, above, method=case.method, absolute=absolute, groups=groups
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
    doubles = _doubles(parameters)
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
        yield _within(case, f"at {start}", y, expected[..., :length], allowed)


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
    yield _within(case, f"by {shift}", moved[..., shift:], y[..., :-shift], allowed[..., :-shift])


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
        yield _identical(case, f"y before {cut}", changed[..., :cut], y[..., :cut])
    # An input acts on later outputs only: its gradient does not see what came from earlier ones.
    cut = case.length // 2
    grads = case.gradients(inputs, parameters, dy)
    changed_grads = case.gradients(inputs, parameters, _after(case, cut, case.activation(rng), dy))
    for n in inputs:
        later, earlier = changed_grads[n][..., cut:], grads[n][..., cut:]
        yield _identical(case, f"gradient of {n} from {cut}", later, earlier)


def determinism(case: Case) -> Iterator[Check]:
    """Twice the same call, twice the same bits, of output and gradients."""
    rng = case.generator()
    inputs, parameters, dy = case.inputs(rng), case.parameters(rng), case.activation(rng)
    first, second = (case.forward(inputs, parameters) for _ in range(2))
    yield _identical(case, "y", first, second)
    before, after = (case.gradients(inputs, parameters, dy) for _ in range(2))
    for name, grad in before.items():
        yield _identical(case, f"gradient of {name}", grad, after[name])


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
            yield _within(case, f"y of {title}", alone, y[b : b + 1], allowed)
            continue
        yield _identical(case, f"y of {title}", alone, y[b : b + 1])
        own = case.gradients(one, parameters, case.place(dy[b : b + 1]))
        for n in inputs:
            yield _identical(case, f"gradient of {n} of {title}", own[n], grads[n][b : b + 1])


def adjoint(case: Case) -> Iterator[Check]:
    """<op(a) - op(a = 0), w> = <a, gradient of <op, w> by a>, for every a in which op is affine.

    That is each input, the filter, skip and bias; the featurizer follows from the inputs, because
    scaling its rows for one input is scaling that input. w is the output itself, so that the left
    side is large and a gradient that is off by a constant factor shows; scaled to at most one, so
    that no gradient leaves the range of float16. The allowance is that of
    the norm gate on both sides (Cauchy-Schwarz), with a generous floor in place of |abs| / |ref|.
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
    _require_like("the packed output", together, parts[0])
    allowed = 2 * case.output_tolerance(inputs, parameters)
    yield _within(case, "y", case.canonical(together), y, allowed)


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
        yield _within(case, f"y, {title}", result, y, 2 * elements(absolute_y))
        results = case.gradients(others, parameters, form(dy))
        for name, grad in grads.items():
            allowed = 2 * elements(absolute[name])
            yield _within(case, f"gradient of {name}, {title}", results[name], grad, allowed)


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
    _require_like("the output in chunks", whole, dy)
    grads = {
        name: case.canonical(grad) if name in leaves else grad
        for name, grad in zip(named, found, strict=True)
    }
    y = case.canonical(whole.detach())
    arguments = (inputs, parameters, dy)
    yield from _against_float64(case, rng, arguments, y, grads, parts=len(cuts) - 1)


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
}


# ---- small parts of properties ------------------------------------------------------------------


def _of_sum(roundings: int, parts: int) -> int:
    """How many roundings a sum of parts may have of which each may have `roundings`."""
    return roundings if parts == 1 else 2 * roundings + parts - 1


def _doubles(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.to(torch.float64).contiguous() for name, tensor in tensors.items()}


def _short(values: Tensor) -> Tensor:
    """`values` to multiples of 1/8 below 2: the sum of two is exact in every io dtype."""
    return (values * 8).round().clamp(-15, 15) / 8


def _additive(
    case: Case, four: list[tuple[Tensors, Tensors]], magnitude: tuple[Tensors, Tensors]
) -> Check:
    """op(first) - op(second) - op(third) + op(fourth) = 0, up to the errors of four outputs."""
    whole, left, right, none = (case.forward(*one).to(torch.float64) for one in four)
    allowed = 4 * case.output_tolerance(*magnitude)
    return _within(case, "y", whole - left, right - none, allowed)


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
