"""Calls with a state, as users make them: what is taken, what is refused, empty ones, derivatives.

Chunks of every split and algorithm are in tests/equivalence/test_state.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from tests.generated.conftest import Case

MODAL = ("modal", "poles", "pairs")


def refused(
    kind: type[Exception], text: str, call: Callable[..., Any], *args: Any, **kw: Any
) -> None:
    """The call raises exactly this."""
    with pytest.raises(kind) as caught:
        call(*args, **kw)
    assert str(caught.value) == text
    assert type(caught.value) is kind


def begun(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """A state of some steps."""
    _, state = case.operator(*case.inputs(dtype=dtype), **case.parameters())
    return tuple(state)


def kind_of_state(case: Case) -> Any:
    """The named tuple of the file."""
    return case.operator.namespace.STATE


# --------------------------------------------------------------------------------- what is refused


def test_what_is_no_state(stateful: Case) -> None:
    """In the function, the operator and the module, of inputs and of packed features."""
    op, kind = stateful.spec.op, kind_of_state(stateful)
    names = ", ".join(kind._fields)
    module, parameters, inputs = stateful.module(), stateful.parameters(), stateful.inputs()
    for value in (5, torch.zeros(2), (x for x in ()), {"history": 1}, "history", set()):
        text = f"{op}: state is a {type(value).__name__}, expected a {kind.__name__} of {names}"
        refused(TypeError, text, stateful.operator, *inputs, **parameters, state=value)
        refused(TypeError, text, module, *inputs, state=value)
        refused(TypeError, text, module, stateful.packed(), state=value)
    text = f"{op}: state has 0 tensors, expected {names}"
    refused(TypeError, text, module, *inputs, state=[])


def test_what_is_no_tensor_of_a_state(stateful: Case) -> None:
    op, state = stateful.spec.op, begun(stateful)
    module, inputs = stateful.module(), stateful.inputs()
    for i, name in enumerate(kind_of_state(stateful)._fields):

        def given(value: Any, i: int = i) -> tuple[Any, ...]:
            return (*state[:i], value, *state[i + 1 :])

        shape = tuple(state[i].shape)
        longer = torch.cat([state[i], state[i]])
        wide = tuple(longer.shape)
        for value, error, words in (
            (None, TypeError, "is a NoneType, expected a tensor"),
            ((x for x in ()), TypeError, "is a generator, expected a tensor"),
            (state[i].to_sparse(), TypeError, "is torch.sparse_coo, expected a dense tensor"),
            (longer, ValueError, f"has shape {wide}, expected {shape}"),
            (
                state[i].long(),
                TypeError,
                "is torch.int64, expected float32, bfloat16, float16 or float64",
            ),
            (
                state[i].to("meta"),
                ValueError,
                f"is on meta, but {stateful.spec.inputs[0]} is on cpu",
            ),
        ):
            text = f"{op}: state.{name} {words}"
            refused(error, text, module, *inputs, state=given(value))


def test_a_sequence_of_less_than_no_axis(stateful: Case) -> None:
    x = torch.zeros(2, stateful.spec.channels)
    wanted = "(B, L, {})" if stateful.operator.layout == "BLD" else "(B, {}, L)"
    text = (
        f"{stateful.spec.op}: {stateful.spec.inputs[0]} has shape {tuple(x.shape)}, "
        f"expected {wanted.format('D')} with L >= 0"
    )
    refused(ValueError, text, stateful.module(), *[x] * len(stateful.spec.inputs))


# ----------------------------------------------------------------------------------- what is taken


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_state_of_another_dtype_is_cast(stateful: Case, dtype: torch.dtype) -> None:
    """As it is read; its gradient is of its own dtype, the next state of that of the inputs."""
    state = [x.to(dtype).requires_grad_() for x in begun(stateful)]
    inputs, parameters = stateful.inputs(), stateful.parameters()
    y, after = stateful.operator(*inputs, **parameters, state=state)
    same = [x.detach().float().requires_grad_() for x in state]
    expected, last = stateful.operator(*inputs, **parameters, state=same)
    assert y.dtype == torch.float32 and torch.equal(y, expected)
    for a, b in zip(after, last, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)
    gradients = torch.autograd.grad(y.square().sum(), state, allow_unused=True)
    wanted = torch.autograd.grad(expected.square().sum(), same, allow_unused=True)
    for found, right, given in zip(gradients, wanted, state, strict=True):
        assert (found is None) == (right is None)
        if found is not None:
            assert found.dtype == given.dtype and torch.equal(found, right.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_gradients_of_parameters_are_rounded_once(stateful: Case, dtype: torch.dtype) -> None:
    """They are those of the same numbers in float32, in the dtype of each parameter."""
    inputs, dy = stateful.inputs(2, 64), stateful.activation(2, 64)
    found = []
    given = {n: p.to(dtype).float() for n, p in stateful.parameters().items()}
    for wanted in (dtype, torch.float32):
        parameters = {n: p.to(wanted).requires_grad_() for n, p in given.items()}
        y, _ = stateful.operator(*inputs, **parameters)
        found.append((y, *torch.autograd.grad(y, list(parameters.values()), dy)))
    (y, *gradients), (expected, *right) = found
    assert torch.equal(y, expected)
    for a, b in zip(gradients, right, strict=True):
        assert a.dtype == dtype and torch.equal(a, b.to(dtype))


def test_an_empty_batch_is_an_empty_result(stateful: Case) -> None:
    inputs = [x.requires_grad_() for x in stateful.inputs(0, 7)]
    module = stateful.module()
    state = [torch.zeros(0, *x.shape[1:]).requires_grad_() for x in begun(stateful)]
    for y, after in (module(*inputs), module(*inputs, state=state)):
        assert tuple(y.shape) == stateful.shape(0, 7)
        assert [tuple(x.shape) for x in after] == [tuple(x.shape) for x in state]
        y.sum().backward()
        for x in inputs:
            assert x.grad is not None and x.grad.shape == x.shape
        for p in module.parameters():
            assert p.grad is not None and not p.grad.any()


def test_no_steps_leave_the_state_as_it_was(stateful: Case) -> None:
    """Within a sequence and at its beginning; differentiable, of inputs and of packed features."""
    module, state = stateful.module(), begun(stateful)
    state = tuple(x.detach().requires_grad_() for x in state)
    inputs = [x.requires_grad_() for x in stateful.inputs(2, 0)]
    y, after = module(*inputs, state=state)
    assert tuple(y.shape) == stateful.shape(2, 0)
    assert all(torch.equal(a, b) for a, b in zip(after, state, strict=True))
    assert torch.equal(module(stateful.packed(2, 0), state=state)[0], y)
    later = stateful.inputs()
    through = module(*later, state=after)[0]
    directly = module(*later, state=state)[0]
    assert torch.equal(through, directly)
    wanted = [*state, *module.parameters()]
    for a, b in zip(
        torch.autograd.grad(through.sum() + y.sum(), wanted, allow_unused=True),
        torch.autograd.grad(directly.sum(), wanted, allow_unused=True),
        strict=True,
    ):
        assert (a is None and b is None) or torch.equal(a, b)
    _, beginning = module(*inputs)
    assert not any(x.any() for x in beginning)


def test_meta_tensors(stateful: Case) -> None:
    module = stateful.operator.module(device="meta")
    state = None
    for _ in range(2):
        y, state = module(*(x.to("meta") for x in stateful.inputs(3, 11)), state=state)
        assert y.device.type == "meta" and tuple(y.shape) == stateful.shape(3, 11)
        assert {x.device.type for x in state} == {"meta"}


def test_float64_is_exact(stateful: Case) -> None:
    """With float32 parameters too."""
    inputs, parameters = stateful.inputs(dtype=torch.float64), stateful.parameters()
    y, state = stateful.operator(*inputs, **parameters)
    expected = stateful.operator.reference(*inputs, **parameters)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert {x.dtype for x in state} == {torch.float64}


# ------------------------------------------------------------------------------------- derivatives


def test_derivatives_in_forward_mode(stateful: Case) -> None:
    """Of inputs and of the state: refused where library ops would make them zero; what PyTorch
    computes itself, it differentiates.
    """
    wide = torch.float64
    inputs, parameters, state = stateful.inputs(dtype=wide), stateful.parameters(), begun(stateful)

    def of_input(x: Tensor) -> Tensor:
        y: Tensor = stateful.operator(x, *inputs[1:], **parameters, state=state)[0]
        return y

    def of_state(history: Tensor) -> Tensor:
        y: Tensor = stateful.operator(*inputs, **parameters, state=(history, *state[1:]))[0]
        return y

    for function, x in ((of_input, inputs[0]), (of_state, state[0].to(wide))):
        tangent = torch.randn_like(x)
        if x.numel():
            y, derivative = torch.func.jvp(function, (x,), (tangent,))
            dy, leaf = torch.randn_like(y), x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(function(leaf), leaf, dy)
            torch.testing.assert_close((derivative * dy).sum(), (gradient * tangent).sum())


# ------------------------------------------------------------------------------------------ export


@pytest.mark.parametrize("packed", [False, True], ids=["separate", "packed"])
def test_export(stateful: Case, packed: bool) -> None:
    """One program for all lengths, shorter ones than the history too: any with channels last,
    multiples of 8 with channels first. What PyTorch computes in blocks of its own has one length.
    """
    module, roles = stateful.module(), len(stateful.spec.inputs)

    def given(batch: int, length: int) -> tuple[Tensor, ...]:
        if packed:
            return (stateful.packed(batch, length),)
        return tuple(stateful.inputs(batch, length))

    def state_of(batch: int) -> Any:
        _, state = module(*given(batch, 24))
        return type(state)(*(torch.randn_like(x) for x in state))

    batch, count = torch.export.Dim("batch", max=64), torch.export.Dim("count", max=512)
    last = stateful.operator.layout == "BLD"
    state = state_of(2)
    steps = {0: batch, stateful.time: count if last else 8 * count}
    shapes = {
        "inputs": (steps,) * (1 if packed else roles),
        "state": type(state)(*({0: batch} for _ in state)),
    }

    def export(shapes: Any) -> Any:
        arguments = (module, given(2, 64), {"state": state})
        return torch.export.export(*arguments, dynamic_shapes=shapes, strict=False)

    if stateful.name in MODAL:
        with pytest.raises(ValueError, match="exported for one length"):
            export(shapes)
        program, sizes = export(None), [(2, 64)]
    else:
        program, sizes = export(shapes), [(3, 8), (2, 48), (5, 264)]
        sizes += [(1, 1), (2, 3), (3, 61)] if last else []
    for batch_, length in sizes:
        inputs, before = given(batch_, length), state_of(batch_)
        y, after = program.module()(*inputs, state=before)
        expected, wanted = module(*inputs, state=before)
        torch.testing.assert_close(y, expected)
        assert all(torch.equal(a, b) for a, b in zip(after, wanted, strict=True))
