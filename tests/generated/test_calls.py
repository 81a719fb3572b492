"""Wrong calls of a generated operator: one line that names the argument and what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

if TYPE_CHECKING:
    from tests.generated.conftest import Case

GATED = ["hyena_bdl", "hyena_bld", "interleaved", "fft_bld", "decay"]  # more than one input
FLOATS = "expected bfloat16, float16 or float32 (float64 is for CPU only)"


def refused(kind: type[Exception], text: str, call: Any, *args: Any, **kwargs: Any) -> None:
    """The call raises exactly this, on one line."""
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert str(caught.value) == text
    assert type(caught.value) is kind


def expected(case: Case, roles: int = 1) -> str:
    channels = f"{roles} D" if roles > 1 else "D"
    shape = f"(B, L, {channels})" if case.operator.layout == "BLD" else f"(B, {channels}, L)"
    return f"expected {shape} with L >= 1"


def wrong_shape(case: Case, x: Tensor) -> None:
    """As the last input, and as all of them: through the operator and the module."""
    first, last, op = case.spec.inputs[0], case.spec.inputs[-1], case.spec.op
    text = f"has shape {tuple(x.shape)}, {expected(case)}"
    parameters, inputs = case.parameters(), case.inputs()
    everywhere = [x] * len(inputs)
    refused(ValueError, f"{op}: {first} {text}", case.operator, *everywhere, **parameters)
    refused(ValueError, f"{op}: {first} {text}", case.operator.module(), *everywhere)
    inputs[-1] = x
    refused(ValueError, f"{op}: {last} {text}", case.operator, *inputs, **parameters)


def misfit(case: Case, channels: int, parameters: Mapping[str, Tensor]) -> str | None:
    """What a call of so many channels says of parameters that do not belong to it."""
    op, first = case.spec.op, case.spec.parameters[0].name
    shape = tuple(parameters[first].shape)
    groups = shape[0] if shape else 0
    if groups < 1 or channels < 1 or channels % groups:
        rows = f"a row for each of G filter groups, where G divides {channels} channels"
        return f"{op}: {first} has shape {shape}, expected {rows}"
    for p in case.spec.parameters:
        shape = tuple(parameters[p.name].shape)
        right = tuple(eval(d, {"channels": channels, "groups": groups}) for d in p.dims)
        taps = p.name in ("filter", "featurizer") and shape == (right[0], 1, right[-1])
        if shape != right and not taps:
            width = f"{channels} channels in {groups} filter groups"
            return f"{op}: {p.name} has shape {shape}, expected {right} for {width}"
    return None


def another_width(case: Case, x: Tensor) -> None:
    """As all inputs, and beside others: refused if parameters do not belong to it."""
    op, inputs, parameters = case.spec.op, case.inputs(), case.parameters()
    everywhere = [x] * len(inputs)
    text = misfit(case, x.shape[3 - case.time], parameters)
    for call, given in ((case.operator, parameters), (case.module(), {})):
        if text is None:
            assert call(*everywhere, **given).shape == x.shape
        else:
            refused(ValueError, text, call, *everywhere, **given)
    if len(inputs) > 1:
        inputs[-1] = x
        first, last = case.spec.inputs[0], case.spec.inputs[-1]
        text = f"{op}: {last} has shape {tuple(x.shape)}, but {first} has {case.shape()}"
        refused(ValueError, text, case.operator, *inputs, **parameters)


# ----------------------------------------------------------------------------------------- shapes


def test_rank(case: Case) -> None:
    for shape in ((), (case.spec.channels,), (2, case.spec.channels), (1, *case.shape())):
        wrong_shape(case, torch.zeros(shape))


def test_channels(case: Case) -> None:
    for more in (-case.spec.channels, -1, 1, case.spec.filter.groups, case.spec.channels):
        channels = case.spec.channels + more
        bld = case.operator.layout == "BLD"
        another_width(case, torch.zeros((2, 19, channels) if bld else (2, channels, 19)))


def test_the_other_layout(case: Case) -> None:
    another_width(case, case.activation().transpose(1, 2))


def test_no_steps(case: Case) -> None:
    wrong_shape(case, torch.zeros(case.shape(2, 0)))


def test_an_empty_batch_is_an_empty_result(case: Case) -> None:
    """Not a mistake: the last batch of a sharded data set may be empty."""
    inputs = [x.requires_grad_() for x in case.inputs(0, 7)]
    module = case.module()
    y = module(*inputs)
    assert tuple(y.shape) == case.shape(0, 7)
    y.sum().backward()
    for x in inputs:
        assert x.grad is not None and x.grad.shape == x.shape
    for p in module.parameters():
        assert p.grad is not None and not p.grad.any()


def test_one_step(case: Case) -> None:
    inputs, parameters = case.inputs(1, 1), case.parameters()
    y = case.operator(*inputs, **parameters)
    torch.testing.assert_close(
        y.double(), case.reference(inputs, parameters), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("case", GATED, indirect=True)
@pytest.mark.parametrize("batch, length", [(2, 18), (2, 1), (1, 19), (3, 19), (0, 19)])
def test_lengths_and_batches_that_differ(case: Case, batch: int, length: int) -> None:
    """Also where broadcasting would give a plausible answer."""
    inputs = case.inputs(2, 19)
    inputs[-1] = case.activation(batch, length)
    first, last = case.spec.inputs[0], case.spec.inputs[-1]
    found, other = case.shape(batch, length), case.shape(2, 19)
    text = f"{case.spec.op}: {last} has shape {found}, but {first} has {other}"
    refused(ValueError, text, case.operator, *inputs, **case.parameters())
    refused(ValueError, text, case.operator.module(), *inputs)


@pytest.mark.parametrize("case", GATED, indirect=True)
def test_packed_features(case: Case) -> None:
    roles, op, parameters = len(case.spec.inputs), case.spec.op, case.parameters()
    for x in (case.activation(), case.packed().flatten(1), case.packed(2, 0)):
        channels = x.shape[3 - case.time] if x.dim() == 3 and x.numel() else 1
        text = misfit(case, channels // roles, parameters) if channels % roles == 0 else None
        text = text or f"{op}: features has shape {tuple(x.shape)}, {expected(case, roles)}"
        refused(ValueError, text, case.operator, x, **case.parameters())
        refused(ValueError, text, case.operator.module(), x)
    x = case.packed().long()
    text = f"{op}: features is torch.int64, {FLOATS}"
    refused(TypeError, text, case.operator.module(), x)


def test_shapes_of_parameters(case: Case) -> None:
    inputs = case.inputs()
    for parameter in case.spec.parameters:
        right = torch.zeros(parameter.shape)
        for wrong in (right.new_zeros(()), right[:-1], right.unsqueeze(0), right[None, None]):
            parameters = case.parameters() | {parameter.name: wrong}
            text = misfit(case, case.spec.channels, parameters)
            if text is not None:
                refused(ValueError, text, case.operator, *inputs, **parameters)
                continue
            # Fewer groups that divide the channels, where nothing else is by group.
            assert parameter.dims[0] == "groups" and len(wrong) == len(right) - 1
            y, exact = (f(*inputs, **parameters) for f in (case.operator, case.operator.reference))
            torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", GATED, indirect=True)
def test_taps_in_the_shape_of_conv1d(case: Case) -> None:
    """(G, 1, K) is (G, K): in calls, their gradients, and the reference."""
    inputs, parameters = case.inputs(), case.parameters()
    names = [name for name in parameters if name in ("filter", "featurizer")]
    given = parameters | {n: parameters[n].unsqueeze(1).requires_grad_() for n in names}
    expected = {n: p.clone().requires_grad_() for n, p in parameters.items()}
    y, right = case.operator(*inputs, **given), case.operator(*inputs, **expected)
    assert torch.equal(y, right)
    assert torch.equal(case.reference(inputs, given), case.reference(inputs, parameters))
    found = torch.autograd.grad(y.sum(), [given[n] for n in names])
    wanted = torch.autograd.grad(right.sum(), [expected[n] for n in names])
    assert all(torch.equal(a, b.unsqueeze(1)) for a, b in zip(found, wanted, strict=True))


# ----------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize(
    "dtype",
    [torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn],
    ids=str,
)
def test_dtypes_that_are_not_computed(case: Case, dtype: torch.dtype) -> None:
    """The message names the first that is wrong, not one that differs from it."""
    op, first, last = case.spec.op, case.spec.inputs[0], case.spec.inputs[-1]
    wrong = torch.zeros(case.shape()).to(dtype)
    for position, name in ((0, first), (-1, last)):
        inputs = case.inputs()
        inputs[position] = wrong
        text = f"{op}: {name} is {dtype}, {FLOATS}"
        refused(TypeError, text, case.operator, *inputs, **case.parameters())
        refused(TypeError, text, case.operator.module(), *inputs)


@pytest.mark.parametrize("case", GATED, indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes_that_are_mixed(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs()
    inputs[-1] = inputs[-1].to(dtype)
    first, last = case.spec.inputs[0], case.spec.inputs[-1]
    text = f"{case.spec.op}: {last} is {dtype}, but {first} is torch.float32"
    refused(TypeError, text, case.operator, *inputs, **case.parameters())


def test_dtypes_of_parameters(case: Case) -> None:
    for name, parameter in case.parameters().items():
        for dtype in (torch.int32, torch.complex64, torch.float8_e4m3fn):
            words = "expected float32, bfloat16, float16 or float64"
            text = f"{case.spec.op}: {name} is {dtype}, {words}"
            parameters = case.parameters() | {name: parameter.to(dtype)}
            refused(TypeError, text, case.operator, *case.inputs(), **parameters)


def test_float64_is_for_cpu(case: Case) -> None:
    """Tested with tensors that only say that they are on a GPU."""
    function = getattr(case.operator.namespace, case.spec.op)
    with FakeTensorMode():
        for device, accepted in (("cpu", True), ("cuda", False)):
            inputs, parameters = (
                [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
                for shapes, dtype in (
                    ([case.shape()] * len(case.spec.inputs), torch.float64),
                    ([p.shape for p in case.spec.parameters], torch.float32),
                )
            )
            if accepted:
                assert function(*inputs, *parameters).dtype == torch.float64
                continue
            text = f"{case.spec.op}: {case.spec.inputs[0]} is torch.float64, {FLOATS}"
            refused(TypeError, text, function, *inputs, *parameters)


# ---------------------------------------------------------------------- what is no dense tensor


@pytest.mark.parametrize("value", [None, 1.0, [[1.0]], "x"], ids=str)
def test_what_is_no_tensor(case: Case, value: object) -> None:
    op, kind = case.spec.op, type(value).__name__
    for position in range(len(case.spec.inputs)):
        inputs: list[Any] = case.inputs()
        inputs[position] = value
        text = f"{op}: {case.spec.inputs[position]} is a {kind}, expected a tensor"
        refused(TypeError, text, case.operator, *inputs, **case.parameters())
        refused(TypeError, text, case.operator.module(), *inputs)
    for name in case.parameters():
        text = f"{op}: {name} is a {kind}, expected a tensor"
        parameters = case.parameters() | {name: value}  # type: ignore[dict-item]
        refused(TypeError, text, case.operator, *case.inputs(), **parameters)


def test_arrays_of_numpy(case: Case) -> None:
    numpy = pytest.importorskip("numpy")
    inputs = [numpy.zeros(case.shape(), numpy.float32)] * len(case.spec.inputs)
    text = f"{case.spec.op}: {case.spec.inputs[0]} is a ndarray, expected a tensor"
    refused(TypeError, text, case.operator, *inputs, **case.parameters())


def others_than_dense(x: Tensor) -> list[tuple[Any, str]]:
    """What is no dense tensor, made of one, and what a message calls it."""
    return [
        (x.to_sparse(), "torch.sparse_coo"),
        (x.to_mkldnn(), "torch._mkldnn"),
        (torch.nested.as_nested_tensor([x, x], layout=torch.strided), "nested"),
        (torch.nested.as_nested_tensor([x, x], layout=torch.jagged), "nested"),
    ]


@pytest.mark.parametrize("case", GATED, indirect=True)
def test_tensors_that_are_not_dense(case: Case) -> None:
    """As the first input, as a later one, as packed features, and as every parameter."""
    op, parameters = case.spec.op, case.parameters()
    for i, name in enumerate(case.spec.inputs):
        for value, kind in others_than_dense(case.activation()):
            inputs = [*case.inputs()[:i], value, *case.inputs()[i + 1 :]]
            text = f"{op}: {name} is {kind}, expected a dense tensor"
            refused(TypeError, text, case.operator, *inputs, **parameters)
            refused(TypeError, text, case.operator.module(), *inputs)
    for value, kind in others_than_dense(case.packed()):
        text = f"{op}: features is {kind}, expected a dense tensor"
        refused(TypeError, text, case.operator, value, **parameters)
    for name, parameter in parameters.items():
        for value, kind in others_than_dense(parameter):
            text = f"{op}: {name} is {kind}, expected a dense tensor"
            given = parameters | {name: value}
            refused(TypeError, text, case.operator, *case.inputs(), **given)


@pytest.mark.parametrize("case", GATED, indirect=True)
def test_generators(case: Case) -> None:
    op, parameters = case.spec.op, case.parameters()
    none = (x for x in ())
    text = f"{op}: features is a generator, expected a tensor"
    refused(TypeError, text, case.operator, none, **parameters)
    refused(TypeError, text, case.operator.module(), none)
    for name in parameters:
        text = f"{op}: {name} is a generator, expected a tensor"
        given: dict[str, Any] = parameters | {name: none}
        refused(TypeError, text, case.operator, *case.inputs(), **given)


def test_any_strides_are_right(case: Case) -> None:
    """Layout in memory is no part of the contract: only the order of the axes is."""
    parameters, inputs = case.parameters(), case.inputs()
    y = case.operator(*inputs, **parameters)
    for form in (
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: x.flip(0).contiguous().flip(0),
    ):
        others = [form(x) for x in inputs]
        torch.testing.assert_close(case.operator(*others, **parameters), y)
    expanded = [x[:1].expand(case.shape(4, 19)) for x in inputs]
    torch.testing.assert_close(case.operator(*expanded, **parameters)[3], y[0])


# ---------------------------------------------------------------------------------------- devices


def test_devices_that_differ(case: Case) -> None:
    op, first, last = case.spec.op, case.spec.inputs[0], case.spec.inputs[-1]
    parameters = case.parameters()
    meta = [x.to("meta") for x in case.inputs()]
    name = next(iter(parameters))
    text = f"{op}: {name} is on cpu, but {first} is on meta"
    refused(ValueError, text, case.operator, *meta, **parameters)
    refused(ValueError, text, case.operator.module(), *meta)
    for name in parameters:
        text = f"{op}: {name} is on meta, but {first} is on cpu"
        moved = parameters | {name: parameters[name].to("meta")}
        refused(ValueError, text, case.operator, *case.inputs(), **moved)
    if first != last:
        text = f"{op}: {last} is on meta, but {first} is on cpu"
        refused(ValueError, text, case.operator, *case.inputs()[:-1], meta[-1], **parameters)


# ---------------------------------------------------------------------------- numbers of arguments


def test_number_of_inputs(case: Case) -> None:
    op, names = case.spec.op, case.spec.inputs
    for given in {0, 2, 4} - {len(names)}:
        inputs = [case.activation()] * given
        several = f"{len(names)} inputs or 1 of packed features"
        wanted = several if len(names) > 1 else "1 input"
        text = f"{op}: expected {wanted}, got {given}"
        refused(TypeError, text, case.operator.module(), *inputs)
        packed = " or one tensor of packed features" if len(names) > 1 else ""
        text = f"{op}: expected {', '.join(names)}{packed}, got {given} inputs"
        refused(TypeError, text, case.operator, *inputs, **case.parameters())
    function = getattr(case.operator.namespace, op)
    with pytest.raises(TypeError, match=rf"{op}\(\) missing .* required positional arguments"):
        function(case.activation())


def test_names_of_parameters(case: Case) -> None:
    op, parameters, inputs = case.spec.op, case.parameters(), case.inputs()
    wanted = f"{op}: expected parameters {', '.join(parameters)}"
    refused(TypeError, f"{wanted}, got none", case.operator, *inputs)
    refused(TypeError, f"{wanted}, got weight", case.operator, *inputs, weight=inputs[0])
    more = parameters | {"weight": inputs[0]}
    given = ", ".join(more)
    refused(TypeError, f"{wanted}, got {given}", case.operator, *inputs, **more)


def test_the_reference_refuses_what_a_call_refuses(case: Case) -> None:
    parameters, inputs = case.parameters(), case.inputs()
    first = next(iter(parameters))
    for wrong, others in (
        ([], parameters),
        ([*inputs, *inputs], parameters),
        (inputs, {}),
        (inputs, parameters | {"weight": inputs[0]}),
        (inputs, parameters | {first: None}),
        (inputs, parameters | {first: torch.zeros(1)}),
        ([1.0, *inputs[1:]], parameters),
        ([x.long() for x in inputs], parameters),
        ([*inputs[:-1], inputs[-1].flatten(1)], parameters),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            case.operator(*wrong, **others)  # type: ignore[arg-type]
        refused(type(caught.value), str(caught.value), case.operator.reference, *wrong, **others)


@pytest.mark.parametrize("case", ["hyena_bdl", "short_bld", "fft_bld"], indirect=True)
def test_wrong_calls_are_refused_under_compile(case: Case) -> None:
    """Not turned into something else while tracing."""
    torch._dynamo.reset()
    compiled = torch.compile(case.operator.module(), backend="eager")
    inputs = case.inputs()
    first, last = case.spec.inputs[0], case.spec.inputs[-1]
    for wrong in (case.activation().transpose(1, 2), torch.zeros(case.shape(2, 0))):
        inputs[-1] = wrong
        text = f"{case.spec.op}: {last} has shape {tuple(wrong.shape)}, "
        text += f"but {first} has {case.shape()}" if wrong.numel() else expected(case)
        if wrong.numel() and first == last:
            text = misfit(case, wrong.shape[3 - case.time], case.parameters()) or ""
        refused(ValueError, text, compiled, *inputs)


def test_nothing_is_refused_after_a_refusal(case: Case) -> None:
    module, inputs = case.module(), case.inputs()
    y = module(*inputs)
    with pytest.raises(TypeError):
        module(*(x.long() for x in inputs))
    assert torch.equal(module(*inputs), y)
