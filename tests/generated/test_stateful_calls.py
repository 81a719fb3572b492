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

MODAL = ("modal", "poles", "pairs", "modes_bld")


def refused(
    kind: type[Exception], text: str, call: Callable[..., Any], *args: Any, **kw: Any
) -> None:
    """The call raises exactly this."""
    with pytest.raises(kind) as caught:
        call(*args, **kw)
    assert str(caught.value) == text
    assert type(caught.value) is kind


def begun(case: Case, dtype: torch.dtype = torch.float32) -> Any:
    """A state of some steps."""
    return case.operator(*case.inputs(dtype=dtype), **case.parameters())[1]


def changed(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A state whose numbers, but for counts of steps, are changed."""
    return type(state)(*(change(x) if is_wide(x) else x for x in state))


def is_wide(x: Any) -> bool:
    """Whether it is a tensor that is no count of steps."""
    return isinstance(x, Tensor) and x.is_floating_point()


def wide(state: Any) -> list[Tensor]:
    """The tensors of a state that are no counts of steps."""
    return [x for x in state if is_wide(x)]


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
    text = f"{op}: state has 0 fields, expected {names}"
    refused(TypeError, text, module, *inputs, state=[])


def test_what_is_no_tensor_of_a_state(stateful: Case) -> None:
    op, state = stateful.spec.op, begun(stateful)
    module, inputs = stateful.module(), stateful.inputs()
    for i, name in enumerate(kind_of_state(stateful)._fields[:-1]):

        def given(value: Any, i: int = i) -> tuple[Any, ...]:
            return (*state[:i], value, *state[i + 1 :])

        inputs_, before = stateful.spec.inputs[0], state[i]
        kinds = "expected float32, bfloat16, float16 or float64"
        if name in ("count", "done"):
            kinds = f"{tuple(before.shape)}, expected torch.int32 {tuple(before.shape)}"
        with pytest.raises(ValueError, match=rf"^{op}: state\.\w+ (has shape|is) .*, expected"):
            module(*inputs, state=given(torch.cat([before, before])))
        for value, error, words in (
            (None, TypeError, "is a NoneType, expected a tensor"),
            ((x for x in ()), TypeError, "is a generator, expected a tensor"),
            (state[i].to_sparse(), TypeError, "is torch.sparse_coo, expected a dense tensor"),
            (
                before.long(),
                TypeError if is_wide(before) else ValueError,
                f"is torch.int64{',' * is_wide(before)} {kinds}",
            ),
            (before.to("meta"), ValueError, f"is on meta, but {inputs_} is on cpu"),
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
    """As it is read; its gradient is of its own dtype, and so is the next state but for modes,
    which are float32.
    """
    state = changed(begun(stateful), lambda x: x.to(dtype).requires_grad_())
    inputs, parameters = stateful.inputs(), stateful.parameters()
    y, after = stateful.operator(*inputs, **parameters, state=state)
    same = changed(state, lambda x: x.detach().float().requires_grad_())
    expected, last = stateful.operator(*inputs, **parameters, state=same)
    assert y.dtype == torch.float32 and torch.equal(y, expected)
    for name, a, b in zip(after._fields[:-1], after, last, strict=False):
        own = torch.float32 if name == "modes" else dtype
        assert not is_wide(a) or a.dtype == own
        assert torch.equal(a, b.to(a.dtype))
    if not wide(state):
        return
    gradients = torch.autograd.grad(y.square().sum(), wide(state), allow_unused=True)
    wanted = torch.autograd.grad(expected.square().sum(), wide(same), allow_unused=True)
    for found, right, given in zip(gradients, wanted, wide(state), strict=True):
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
    kind = begun(stateful)
    state = type(kind)(*(x.new_zeros(0, *x.shape[1:]) for x in kind[:-1]), False)
    state = changed(state, lambda x: x.requires_grad_())
    for y, after in (module(*inputs), module(*inputs, state=state)):
        assert tuple(y.shape) == stateful.shape(0, 7)
        assert [tuple(x.shape) for x in after[:-1]] == [tuple(x.shape) for x in state[:-1]]
        y.sum().backward()
        for x in inputs:
            assert x.grad is not None and x.grad.shape == x.shape
        for p in module.parameters():
            assert p.grad is not None and not p.grad.any()


def test_no_steps_leave_the_state_as_it_was(stateful: Case) -> None:
    """Within a sequence and at its beginning; differentiable, of inputs and of packed features."""
    module, state = stateful.module(), begun(stateful)
    state = changed(state, lambda x: x.detach().requires_grad_())
    inputs = [x.requires_grad_() for x in stateful.inputs(2, 0)]
    y, after = module(*inputs, state=state)
    assert tuple(y.shape) == stateful.shape(2, 0)
    assert all(torch.equal(a, b) for a, b in zip(after[:-1], state[:-1], strict=True))
    assert torch.equal(module(stateful.packed(2, 0), state=state)[0], y)
    later = stateful.inputs()
    through = module(*later, state=after)[0]
    directly = module(*later, state=state)[0]
    assert torch.equal(through, directly)
    wanted = [*wide(state), *module.parameters()]
    for a, b in zip(
        torch.autograd.grad(through.sum() + y.sum(), wanted, allow_unused=True),
        torch.autograd.grad(directly.sum(), wanted, allow_unused=True),
        strict=True,
    ):
        assert (a is None and b is None) or torch.equal(a, b)
    _, beginning = module(*inputs)
    assert not any(x.any() for x in beginning[:-1])


def test_meta_tensors(stateful: Case) -> None:
    module = stateful.operator.module(device="meta")
    state = None
    for _ in range(2):
        y, state = module(*(x.to("meta") for x in stateful.inputs(3, 11)), state=state)
        assert y.device.type == "meta" and tuple(y.shape) == stateful.shape(3, 11)
        assert {x.device.type for x in state[:-1]} == {"meta"}


def test_float64_is_exact(stateful: Case) -> None:
    """With float32 parameters too."""
    inputs, parameters = stateful.inputs(dtype=torch.float64), stateful.parameters()
    y, state = stateful.operator(*inputs, **parameters)
    expected = stateful.operator.reference(*inputs, **parameters)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert {x.dtype for x in wide(state)} <= {torch.float64} and state.count.tolist()[0] > 0


# ------------------------------------------------------------------------------------- derivatives


def test_derivatives_in_forward_mode(stateful: Case) -> None:
    """Of inputs and of the state: refused where library ops would make them zero; what PyTorch
    computes itself, it differentiates.
    """
    dtype = torch.float64
    inputs, parameters = stateful.inputs(dtype=dtype), stateful.parameters()
    state = begun(stateful)

    def of_input(x: Tensor) -> Tensor:
        y: Tensor = stateful.operator(x, *inputs[1:], **parameters, state=state)[0]
        return y

    field = "modes" if "modes" in state._fields else state._fields[0]

    def of_state(part: Tensor) -> Tensor:
        before = state._replace(**{field: part})
        y: Tensor = stateful.operator(*inputs, **parameters, state=before)[0]
        return y

    functions = [(of_input, inputs[0])]
    part = getattr(state, field)
    functions += [(of_state, part.to(dtype))] * is_wide(part)
    for function, x in functions:
        tangent = torch.randn_like(x)
        if x.numel():
            y, derivative = torch.func.jvp(function, (x,), (tangent,))
            dy, leaf = torch.randn_like(y), x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(function(leaf), leaf, dy)
            torch.testing.assert_close((derivative * dy).sum(), (gradient * tangent).sum())


@pytest.mark.parametrize("given", [False, True])
def test_vmap(stateful: Case, given: bool) -> None:
    """Of y, of the state after it, and of gradients: as of one example after the other, whether
    all begin or go on from one state.
    """
    # In float64, so that no difference is of rounding.
    several = [stateful.inputs(1, 19, dtype=torch.float64) for _ in range(3)]
    rows = torch.stack([torch.stack(inputs) for inputs in several])
    values = stateful.parameters()
    first = stateful.inputs(1, 9, dtype=torch.float64)
    state = stateful.operator(*first, **values)[1] if given else None

    def call(x: Tensor) -> list[Tensor]:
        y, after = stateful.operator(*x.unbind(0), **values, state=state)
        return [y, *wide(after)]

    def loss(x: Tensor) -> Tensor:
        return sum((one * one).sum() for one in call(x)[:1]) / 2

    for found, wanted in zip(
        torch.func.vmap(call)(rows), zip(*map(call, rows), strict=True), strict=True
    ):
        torch.testing.assert_close(found, torch.stack(wanted))
    found = torch.func.vmap(torch.func.grad(loss))(rows)
    torch.testing.assert_close(found, torch.stack([torch.func.grad(loss)(x) for x in rows]))


def test_a_call_changes_nothing_of_its_state(stateful: Case) -> None:
    """Nor does what goes on from the one that it gives, after no steps too."""
    state = begun(stateful)
    before = changed(state, lambda x: x.clone())
    for steps in (0, 3):
        _, after = stateful.operator(
            *stateful.inputs(2, steps), **stateful.parameters(), state=state
        )
        with torch.no_grad():
            module = stateful.module()
            module.decode(*stateful.inputs(2, 1), after)
        for a, b in zip(state[:-1], before[:-1], strict=True):
            assert torch.equal(a, b)


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
        return changed(state, torch.randn_like)

    batch, count = torch.export.Dim("batch", max=64), torch.export.Dim("count", max=512)
    last = stateful.operator.layout == "BLD"
    state = state_of(2)
    steps = {0: batch, stateful.time: count if last else 8 * count}
    shapes = {
        "inputs": (steps,) * (1 if packed else roles),
        "state": type(state)(*({0: batch} for _ in state[:-1]), None),
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
        assert all(torch.equal(a, b) for a, b in zip(after[:-1], wanted[:-1], strict=True))
