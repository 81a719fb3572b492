"""A generated operator inside PyTorch: opcheck, gradcheck, torch.compile."""

from __future__ import annotations

import shutil
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from sh2gen.spec.language import Sequences

if TYPE_CHECKING:
    from tests.generated.conftest import Case


pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*LeafSpec")  # torch's own
# For what takes long: each algorithm, layout, packing and kind of filter at least once.
FEW = ["hyena_bdl", "short_bld", "interleaved", "fft_bdl", "decay", "poles", "pairs"]
GATED = [
    "hyena_bdl",
    "hyena_bld",
    "interleaved",
    "fft_bld",
    "decay",
    "modal",
]  # more than one input


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [x.clone().requires_grad_() for x in tensors]


def ladder(case: Case) -> list[int | None]:
    """What library ops take of a filter that decays: that all groups are those of the ladder."""
    return [0, None] if case.spec.filter.decay is not None else []


def documents(case: Case, x: Tensor) -> tuple[list[Tensor], list[int]]:
    """What library ops take of rows of documents: tensors behind parameters, and numbers."""
    names = case.operator.namespace
    if case.spec.sequences is Sequences.DENSE:
        return [], []
    if hasattr(names, "documents_of"):
        return names.documents_of(x, None), []
    return [torch.tensor([0, x.shape[names.TIME]])], [x.shape[names.TIME]]


def saved_by(case: Case, arguments: list[Tensor | None], numbers: list[int]) -> list[Tensor]:
    """What forward stores for backward beside its output."""
    keep = [True] if "states" in case.operator.plan else []
    result = case.operator.namespace.forward_op(*arguments, *ladder(case), *numbers, *keep)
    return [] if isinstance(result, Tensor) else [x.clone() for x in result[1:]]


def check_ops(case: Case, inputs: list[Tensor], parameters: list[Tensor], dy: Tensor) -> None:
    """Of packed features, the library ops take None for all inputs but the first.

    An op that keeps states for backward is told so.
    """
    absent = [None] * (len(case.spec.inputs) - len(inputs))
    keep = [True] if "states" in case.operator.plan else []
    forward, backward = case.operator.namespace.forward_op, case.operator.namespace.backward_op
    own, numbers = documents(case, inputs[0])
    tensors = (*leaves(inputs), *absent, *leaves(parameters), *own)
    torch.library.opcheck(forward, (*tensors, *ladder(case), *numbers, *keep))
    arguments = [*inputs, *absent, *parameters, *own]
    saved = saved_by(case, arguments, numbers)
    torch.library.opcheck(backward, (dy, *arguments, *saved, *ladder(case), *numbers))


@pytest.mark.parametrize("length", [1, 9])
def test_opcheck(case: Case, length: int) -> None:
    """Schema, fake tensors, autograd and tracing, of forward and of backward."""
    parameters = list(case.parameters().values())
    check_ops(case, case.inputs(2, length), parameters, case.activation(2, length))


@pytest.mark.parametrize("case", GATED, indirect=True)
def test_opcheck_of_packed_features(case: Case) -> None:
    parameters = list(case.parameters().values())
    check_ops(case, [case.packed(2, 9)], parameters, case.activation(2, 9))


@pytest.mark.parametrize("case", FEW, indirect=True)
def test_opcheck_of_tensors_that_are_not_contiguous(case: Case) -> None:
    """Transposed activations and parameters, and the expanded dy of a sum."""
    inputs = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in case.inputs(2, 16)]
    values = list(case.parameters().values())
    parameters = [p.mT.contiguous().mT if p.dim() == 2 else p for p in values]
    check_ops(case, inputs, parameters, torch.ones(()).expand(case.shape(2, 16)))


@pytest.mark.parametrize("case", FEW, indirect=True)
def test_opcheck_of_an_empty_batch(case: Case) -> None:
    parameters = list(case.parameters().values())
    check_ops(case, case.inputs(0, 5), parameters, case.activation(0, 5))


@pytest.mark.parametrize("length", [1, 7])
def test_gradcheck(case: Case, length: int) -> None:
    """Gradients of every input and parameter against finite differences, in float64."""
    names = list(case.parameters())

    def call(*tensors: Tensor) -> Tensor:
        inputs, values = tensors[: -len(names)], tensors[-len(names) :]
        return case.operator(*inputs, **dict(zip(names, values, strict=True)))

    inputs = leaves(case.inputs(2, length, dtype=torch.float64))
    parameters = leaves(list(case.parameters(torch.float64).values()))
    assert torch.autograd.gradcheck(call, (*inputs, *parameters), fast_mode=True)
    if len(inputs) > 1:
        features = leaves([case.packed(2, length, dtype=torch.float64)])
        assert torch.autograd.gradcheck(call, (*features, *parameters), fast_mode=True)


@pytest.mark.parametrize("case", ["hyena_bdl", "interleaved"], indirect=True)
def test_gradcheck_of_every_element(case: Case) -> None:
    names = list(case.parameters())

    def call(features: Tensor, *values: Tensor) -> Tensor:
        return case.operator(features, **dict(zip(names, values, strict=True)))

    features = leaves([case.packed(1, 4, dtype=torch.float64)])
    parameters = leaves(list(case.parameters(torch.float64).values()))
    assert torch.autograd.gradcheck(call, (*features, *parameters))


def test_packed_and_separate_inputs_agree(case: Case) -> None:
    """Bit for bit, forward and backward, views of one tensor or not."""
    features = case.packed().requires_grad_()
    views = case.operator.namespace.unpack([features])
    inputs = leaves([x.detach() for x in views])
    parameters = case.parameters()
    dy = case.activation()
    together, apart = case.operator(features, **parameters), case.operator(*inputs, **parameters)
    assert torch.equal(together, apart)
    assert torch.equal(together, case.operator(*views, **parameters))
    (packed_gradient,) = torch.autograd.grad(together, features, dy)
    for view, gradient in zip(
        case.operator.namespace.unpack([packed_gradient]),
        torch.autograd.grad(apart, inputs, dy),
        strict=True,
    ):
        assert torch.equal(view, gradient)


@pytest.mark.parametrize("case", ["hyena_bdl", "short_bld", "fft_bld"], indirect=True)
def test_only_what_needs_a_gradient_gets_one(case: Case) -> None:
    inputs, parameters = case.inputs(), case.parameters()
    assert not case.operator(*inputs, **parameters).requires_grad
    parameters["filter"].requires_grad_()
    y = case.operator(*inputs, **parameters)
    y.sum().backward()
    assert parameters["filter"].grad is not None
    assert all(x.grad is None for x in inputs)
    with torch.inference_mode():
        assert torch.equal(case.operator(*inputs, **parameters), y)


@pytest.mark.parametrize("case", ["hyena_bdl", "short_bld", "fft_bld"], indirect=True)
def test_second_derivatives_are_refused(case: Case) -> None:
    inputs = leaves(case.inputs())
    y = case.operator(*inputs, **case.parameters())
    (first,) = torch.autograd.grad(y.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives: compute them of plain"):
        first.sum().backward()


def check_transforms(case: Case, function: Any, x: Tensor) -> None:
    """Every derivative of the function at x that PyTorch has, by those of backward()."""
    from torch.autograd import forward_ad

    func, one, t = torch.func, torch.ones((), dtype=x.dtype), torch.randn_like(x)
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    dy = torch.randn_like(y)

    def total(x: Tensor) -> Tensor:
        return (function(x) * dy).sum()

    def along(s: Tensor) -> Tensor:
        return total(x + s * t)

    (gradient,) = torch.autograd.grad(y, leaf, dy)
    for found in (
        func.grad(total)(x),
        func.vjp(function, x)[1](dy)[0],
        func.jacrev(total)(x),
        func.jacfwd(total)(x),
        func.vmap(func.grad(total))(x[None])[0],
        func.grad(lambda x: func.vmap(total)(x[None]).sum())(x),
    ):
        torch.testing.assert_close(found, gradient)
    derivative = (gradient * t).sum()
    for found in (
        func.jvp(total, (x,), (t,))[1],
        func.linearize(total, x)[1](t),
        func.jvp(lambda x: func.vmap(total)(x[None]), (x,), (t,))[1][0],
        # As a constant of another derivative, whose level hides the tangent.
        func.jvp(lambda x: func.grad(lambda z: z * total(x))(one), (x,), (t,))[1],
    ):
        torch.testing.assert_close(found, derivative)
    for made in (x, leaf):
        with forward_ad.dual_level():
            dual = total(forward_ad.make_dual(made, t))
            torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, derivative)
    with case.operator.plain():
        s = (0 * one).requires_grad_()
        (first,) = torch.autograd.grad(along(s), s, create_graph=True)
        second = torch.zeros_like(s)
        if first.requires_grad:
            (second,) = torch.autograd.grad(first, s, materialize_grads=True)
    torch.testing.assert_close(func.hessian(along)(0 * one), second)


def test_transforms_of_torch_func_and_forward_mode(case: Case) -> None:
    """Of an input, of packed features and of a parameter."""
    wide = torch.float64
    inputs, parameters = case.inputs(2, 9, dtype=wide), case.parameters(wide)
    last = list(parameters)[-1]
    check_transforms(case, lambda x: case.operator(x, *inputs[1:], **parameters), inputs[0])
    check_transforms(
        case, lambda p: case.operator(*inputs, **parameters | {last: p}), parameters[last]
    )
    features = case.packed(2, 9, dtype=wide)
    check_transforms(case, lambda x: case.operator(x, **parameters), features)


@pytest.mark.parametrize("case", ["hyena_bdl", "fft_bld", "modal"], indirect=True)
def test_an_operator_that_no_derivative_passes_through_is_a_constant(case: Case) -> None:
    """An operator that they do not pass through is a constant of them; and vmap is none."""
    from torch.autograd import forward_ad

    inputs, parameters = case.inputs(2, 9), case.parameters()
    y = case.operator(*inputs, **parameters)

    def constant(scale: Tensor) -> Tensor:
        made = [x * torch.ones(()) for x in inputs]  # seen by the transform, without a tangent
        return scale * case.operator(*made, **parameters)

    one = torch.ones(())
    for found in (
        torch.func.jvp(constant, (one,), (one,))[1],
        torch.func.jacfwd(constant)(one),
        torch.func.jacrev(lambda scale: constant(scale).flatten())(one).reshape(y.shape),
    ):
        torch.testing.assert_close(found, y)
    with forward_ad.dual_level():
        assert torch.equal(case.operator(*inputs, **parameters), y)

    def detached(x: Tensor) -> Tensor:
        with torch.no_grad():
            return case.operator(x, *inputs[1:], **parameters)

    zero = torch.func.grad(lambda x: (0 * x + detached(x)).sum())(inputs[0])
    assert not zero.any()
    many = torch.func.vmap(lambda x: case.operator(x, *inputs[1:], **parameters))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has a rule: no fallback of PyTorch's
        assert torch.equal(many(inputs[0][None])[0], y)


def test_plain_pytorch(case: Case) -> None:
    """The same numbers, with every derivative of PyTorch's; only within `plain`, and after it as
    before.
    """
    inputs, parameters = case.inputs(2, 9, dtype=torch.float64), case.parameters()
    given = {name: p.bfloat16().requires_grad_() for name, p in parameters.items()}
    dy = case.activation(2, 9, dtype=torch.float64)

    def call(x: Tensor) -> Tensor:
        return case.operator(x, *inputs[1:], **given)

    leaf = inputs[0].clone().requires_grad_()
    wanted = [leaf, *given.values()]
    expected = call(leaf)
    gradients = torch.autograd.grad(expected, wanted, dy)
    with case.operator.plain():
        y = call(leaf)
        found = torch.autograd.grad(y, wanted, dy, create_graph=True)
        assert case.operator(case.packed(2, 9), **given).isfinite().all()
        _, tangent = torch.func.jvp(call, (inputs[0],), (dy.clone(),))
        by_func = torch.func.grad(lambda x: (call(x) * dy).sum())(inputs[0])
        (second,) = torch.autograd.grad(found[0].square().sum(), given[next(iter(given))])
    assert torch.equal(y, expected) and second.isfinite().all()
    for a, b in zip(found, gradients, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(by_func, gradients[0])
    transposed = torch.autograd.grad(call(leaf), leaf, dy)[0]
    torch.testing.assert_close((tangent * dy).sum(), (transposed * dy).sum())
    with pytest.raises(KeyError), case.operator.plain():
        raise KeyError
    one, other = case.operator.plain(), case.operator.plain()
    one.__enter__(), other.__enter__(), one.__exit__(None, None, None)
    assert call(leaf).grad_fn.name() != expected.grad_fn.name()  # the other still wants it
    other.__exit__(None, None, None)
    assert call(leaf).grad_fn.name() == expected.grad_fn.name()


def test_gradients_of_a_batch_of_outputs(case: Case) -> None:
    """By `torch.vmap` they are those of one after another; PyTorch's older way is refused."""
    given = case.parameters()
    leaves = [x.requires_grad_() for x in (*case.inputs(2, 9), *given.values())]
    roles = len(case.spec.inputs)
    y = case.operator(*leaves[:roles], **dict(zip(given, leaves[roles:], strict=True)))
    dy = torch.randn(3, *y.shape)

    def gradients(dy: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, leaves, dy, retain_graph=True)

    together = torch.vmap(gradients)(dy)
    with pytest.raises(NotImplementedError, match="no batched gradients by is_grads_batched"):
        torch.autograd.grad(y, leaves, dy, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        apart = gradients(dy[i])
        for a, b in zip(together, apart, strict=True):
            assert torch.equal(a[i], b)


@pytest.mark.parametrize("case", ["hyena_bdl", "fft_bld"], indirect=True)
def test_forward_mode_under_compile(case: Case) -> None:
    from torch.autograd import forward_ad

    inputs, module = case.inputs(2, 9), case.module()
    x, t = inputs[0], torch.randn_like(inputs[0])

    def function(x: Tensor) -> Any:
        return module(x, *inputs[1:])

    _, wanted = torch.func.jvp(function, (x,), (t,))
    compiled = torch.compile(function, backend="aot_eager")
    y = compiled(x)
    with (  # what torch.compile makes has no such rule, and says so
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="jvp"),
    ):
        compiled(forward_ad.make_dual(x, t))
    assert torch.equal(compiled(x), y)
    inner = torch.compile(lambda x: torch.func.jvp(function, (x,), (t,)), backend="aot_eager")
    torch.testing.assert_close(inner(x)[1], wanted)


@pytest.mark.parametrize("case", ["hyena_bdl", "short_bld", "fft_bld"], indirect=True)
def test_inputs_changed_between_forward_and_backward_are_noticed(case: Case) -> None:
    inputs = [x * 1 for x in leaves(case.inputs())]
    y = case.operator(*inputs, **case.parameters())
    inputs[-1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_checkpointing(case: Case) -> None:
    from torch.utils.checkpoint import checkpoint

    module, inputs = case.module(), leaves(case.inputs())
    wanted = [*inputs, *module.parameters()]
    dy = case.activation()
    kept = torch.autograd.grad(module(*inputs), wanted, dy)
    again = torch.autograd.grad(checkpoint(module, *inputs, use_reentrant=False), wanted, dy)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_deterministic_algorithms_are_enough(case: Case) -> None:
    inputs = leaves(case.inputs())
    parameters = {name: p.requires_grad_() for name, p in case.parameters().items()}
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        y = case.operator(*inputs, **parameters)
        torch.autograd.grad(y, [*inputs, *parameters.values()], torch.ones_like(y))
    finally:
        torch.use_deterministic_algorithms(before)


def same_as_eager(compiled: Any, module: nn.Module, inputs: list[Tensor]) -> None:
    """Output, strides and every gradient, in training and in inference."""
    wanted = [*inputs, *module.parameters()]
    y, expected = compiled(*inputs), module(*inputs)
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()
    gradients = torch.autograd.grad(y.square().sum(), wanted)
    for found, right in zip(
        gradients, torch.autograd.grad(expected.square().sum(), wanted), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(compiled(*inputs), expected)


@pytest.mark.parametrize("case", FEW, indirect=True)
def test_compile(case: Case) -> None:
    """Without a graph break, and for any batch and length after the first call."""
    counter = CompileCounterWithBackend("aot_eager")
    module = case.module()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for batch, length in ((2, 19), (3, 43)):
        same_as_eager(compiled, module, leaves(case.inputs(batch, length)))
    assert counter.frame_count == 2  # training, inference
    for batch, length in ((2, 24), (1, 1)):
        same_as_eager(compiled, module, leaves(case.inputs(batch, length)))


@pytest.mark.parametrize("case", ["hyena_bdl", "short_bld", "fft_bld"], indirect=True)
def test_compile_for_one_shape(case: Case) -> None:
    """Of a function, and of the operator as `sh2gen.load` returns it, with static shapes."""
    inputs, parameters = case.inputs(), case.parameters()
    expected = case.operator(*inputs, **parameters)
    function = getattr(case.operator.namespace, case.spec.op)
    for call in (
        lambda: function(*inputs, *parameters.values()),
        lambda: case.operator(*inputs, **parameters),
    ):
        compiled = torch.compile(call, fullgraph=True, dynamic=False, backend="aot_eager")
        assert torch.equal(compiled(), expected)


@pytest.mark.parametrize("case", ["hyena_bdl", "fft_bld"], indirect=True)
def test_compile_by_inductor(case: Case, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("inductor needs a C++ compiler on a CPU")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    module = case.module()
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for batch, length in ((2, 19), (3, 43)):
        same_as_eager(compiled, module, leaves(case.inputs(batch, length)))


@pytest.mark.parametrize("case", ["hyena_bdl", "short_bld", "fft_bld"], indirect=True)
def test_backward_op_in_a_compiled_graph(case: Case) -> None:
    """Views that torch resolves lazily are not resolved there: none may be left."""
    arguments: list[Tensor | None] = [*case.inputs(), *case.parameters().values()]
    backward, dy = case.operator.namespace.backward_op, case.activation()
    saved = saved_by(case, arguments, [])
    compiled = torch.compile(lambda *a: backward(*a), fullgraph=True, backend="aot_eager")
    for found, right in zip(
        compiled(dy, *arguments, *saved),
        backward(dy, *arguments, *saved),
        strict=True,
    ):
        assert torch.equal(found, right)
