"""Calls that nothing but eager PyTorch sees, from their tapes: interpreted kernels, which are
handed addresses, stand for compiled ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import triton
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sh2gen.runtime.operator import InterpreterRunner
from sh2gen.verify.case import poisoned

if TYPE_CHECKING:
    from tests.generated.conftest import Case

# Of kept activations, streams, states; of decays.
OF_STATE = ("state", "all")
KERNELS = ["hyena_bdl", "interleaved", "blocks_bdl", "pairs", "decay", "modal"]


def differentiated(function: Any, inputs: Any, parameters: Any, dy: Tensor) -> list[Tensor]:
    """y and all gradients."""
    leaves = [x.detach().requires_grad_() for x in (*inputs, *parameters)]
    with poisoned():
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    pairs = zip(found, wanted, strict=True)
    return all(torch.equal(a, b) and a.stride() == b.stride() for a, b in pairs)


@pytest.mark.parametrize("case", KERNELS, indirect=True)
def test_the_second_call_does_what_launchers_do(case: Case, launched: SimpleNamespace) -> None:
    runner = InterpreterRunner(case.path)
    seen = []
    for _ in range(2):
        inputs, parameters = case.inputs(1, 9), case.parameters()
        dy = case.activation(1, 9)
        found = differentiated(launched.function, inputs, parameters.values(), dy)
        named = dict(zip(case.spec.inputs, inputs, strict=True))
        with poisoned():
            wanted = runner.gradients(named, parameters, dy)
            y = runner.forward(named, parameters)
        assert same(found, [y, *(wanted[name] for name in (*named, *parameters))])
        with poisoned(), torch.no_grad():
            assert torch.equal(launched.function(*inputs, *parameters.values()), y)
        seen.append(len(launched.tapes))
    assert seen[0] == seen[1] - seen[0] > 0
    assert None not in launched.module.TAPES.values()


@pytest.mark.parametrize("case", ["hyena_bdl", "decay"], indirect=True)
def test_calls_that_look_alike_in_turns(case: Case, launched: SimpleNamespace) -> None:
    """Each is compared with the launchers: what differs from the call before it is seen."""
    runner = InterpreterRunner(case.path)
    inputs, parameters = case.inputs(1, 16), list(case.parameters().values())
    memory = torch.zeros(inputs[0].numel() + 1)
    unaligned = memory[1:].view_as(inputs[0]).copy_(inputs[0])
    pairs = torch.view_as_complex(torch.stack([inputs[0], inputs[0]], -1))
    shorter = [x.narrow(case.operator.namespace.TIME, 0, 9) for x in inputs]
    others: list[tuple[Sequence[Tensor], list[Tensor], dict[str, Any]]] = [
        (inputs, parameters, {}),
        ([unaligned, *inputs[1:]], parameters, {}),
        ([pairs.conj().imag, *inputs[1:]], parameters, {}),
        (shorter, parameters, {}),
        ([x.half() for x in inputs], parameters, {}),
        (inputs, [p.bfloat16() for p in parameters], {}),
        ([x.clone() for x in inputs], [torch.nn.Parameter(p) for p in parameters], {}),
    ]
    if case.spec.filter.decay is not None:
        whole = 2 * case.spec.filter.groups
        others.append((inputs, parameters, {"first_group": 1, "groups_in_all": whole}))
    for tensors, weights, ladder in [*others, *others]:
        runner._ladder = ladder
        named = dict(zip(case.spec.inputs, (x.resolve_neg() for x in tensors), strict=True))
        values = dict(zip(case.parameters(), weights, strict=True))
        wanted = runner.forward(named, values)
        for grad in (True, False):
            with torch.set_grad_enabled(grad), poisoned():
                found = launched.function(*tensors, *weights, **ladder)
            if tensors[0].is_neg():  # which the dispatcher resolves, for plain PyTorch here
                torch.testing.assert_close(found, wanted)
            else:
                assert torch.equal(found, wanted)
            assert found.requires_grad == (grad and any(p.requires_grad for p in weights))
    assert launched.tapes and None not in launched.module.TAPES.values()


@pytest.mark.parametrize("case", ["documents_decay", "documents_modal"], indirect=True)
def test_documents(case: Case, launched: SimpleNamespace) -> None:
    """Of other numbers at each call: after the first, one launch finds them, and tapes are those
    of the row.
    """
    runner = InterpreterRunner(case.path)
    tapes = []
    for kind, ends in ((torch.int32, [20]), (torch.int32, [3, 3, 20]), (torch.int64, [9, 20])):
        cu_seqlens = torch.tensor([0, *ends], dtype=kind)
        inputs, parameters, dy = case.inputs(1, 20), case.parameters(), case.activation(1, 20)

        def function(*tensors: Tensor, ends: Tensor = cu_seqlens) -> Tensor:
            y: Tensor = launched.function(*tensors, cu_seqlens=ends)
            return y

        found = differentiated(function, inputs, parameters.values(), dy)
        named = dict(zip(case.spec.inputs, inputs, strict=True))
        alone = runner.of_documents(cu_seqlens)
        with poisoned():
            wanted = alone.gradients(named, parameters, dy)
            y = alone.forward(named, parameters)
        assert same(found, [y, *(wanted[name] for name in (*named, *parameters))])
        tapes.append(len(launched.module.TAPES))
    assert tapes[0] == tapes[-1] and None not in launched.module.TAPES.values()
    assert len(launched.module.STARTERS) == 2
    assert launched.tapes.count("find_sources") == 1


@pytest.mark.parametrize("case", ["interleaved", "blocks_bdl"], indirect=True)
def test_packed_features(case: Case, launched: SimpleNamespace) -> None:
    runner = InterpreterRunner(case.path)
    for _ in range(2):
        features, parameters, dy = case.packed(1, 9), case.parameters(), case.activation(1, 9)
        found = differentiated(launched.packed, [features], parameters.values(), dy)
        wanted = runner.gradients({"features": features}, parameters, dy)
        y = runner.forward_packed({"features": features}, parameters)
        assert same(found, [y, *(wanted[name] for name in ("features", *parameters))])
    assert len(launched.tapes) % 2 == 0 and launched.tapes


@pytest.mark.parametrize("case", ["hyena_bdl"], indirect=True)
def test_views_of_one_tensor_are_told_apart(case: Case, launched: SimpleNamespace) -> None:
    named = case.parameters()
    for first in range(2):
        rows = torch.randn(2, 20, 24)
        q, k, v = (rows[:, n : n + 6, first : first + 19] for n in (first, 7, 14))
        found = launched.function(q, k, v, *named.values())
        wanted = case.operator(q, k, v, **named)
        torch.testing.assert_close(found, wanted)
    assert len(launched.module.TAPES) == 2  # another alignment is another tape


@pytest.mark.parametrize("case", ["hyena_bdl"], indirect=True)
def test_one_tensor_given_twice_is_two_arguments(case: Case, launched: SimpleNamespace) -> None:
    named = case.parameters()
    (x,) = case.inputs()[:1]
    for inputs in ([x, x, x], case.inputs()):
        found = launched.function(*inputs, *named.values())
        torch.testing.assert_close(found, case.operator(*inputs, **named))
    assert len(launched.tapes) == 2 and None not in launched.module.TAPES.values()


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))


@contextmanager
def hooked(module: ModuleType) -> Iterator[None]:
    calls = triton.knobs.runtime.launch_enter_hook.calls
    calls.append(lambda metadata: None)
    try:
        yield
    finally:
        calls.pop()


@contextmanager
def plain(module: ModuleType) -> Iterator[None]:
    module.PLAIN += 1  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.PLAIN -= 1  # type: ignore[attr-defined]


SEERS: dict[str, Callable[[Any], Any]] = {
    "dispatch": lambda module: FlopCounterMode(display=False),
    "function": lambda module: Functions(),
    "profiler": lambda module: torch.profiler.profile(),
    "dual": lambda module: forward_ad.dual_level(),
    "hook": hooked,
    "plain": plain,
}


@pytest.mark.parametrize("seer", SEERS)
@pytest.mark.parametrize("case", ["short_bdl"], indirect=True)
def test_what_something_else_sees_goes_through_the_dispatcher(
    case: Case, seer: str, launched: SimpleNamespace
) -> None:
    inputs, parameters = case.inputs(), list(case.parameters().values())
    leaves = [x.requires_grad_() for x in (*inputs, *parameters)]
    for outside in (False, True, False):
        before = len(launched.tapes)
        with SEERS[seer](launched.module) if outside else ExitStack():
            y = launched.function(*leaves)
        assert (len(launched.tapes) == before) == outside
        with SEERS[seer](launched.module) if not outside else ExitStack():
            assert torch.autograd.grad(y.sum(), leaves)[0].shape == inputs[0].shape


@pytest.mark.parametrize("case", ["short_bdl"], indirect=True)
def test_tensors_that_are_more_than_their_memory(case: Case, launched: SimpleNamespace) -> None:
    """Each beside a plain one of the same traits, whose tape there is already."""
    (x,), parameters = case.inputs(), list(case.parameters().values())
    y = launched.function(x, *parameters)
    negated = torch._neg_view(x.clone().neg())
    torch.testing.assert_close(launched.function(negated, *parameters), y)
    several = torch.stack([x, -x])
    mapped = torch.vmap(launched.function, (0, *[None] * len(parameters)))(several, *parameters)
    torch.testing.assert_close(mapped[0], y)
    with torch.inference_mode():
        torch.testing.assert_close(launched.function(x.clone(), *parameters), y)


class Subclass(Tensor):
    """A tensor of another class."""


@pytest.mark.parametrize("case", ["short_bdl"], indirect=True)
def test_compilers_tracers_transforms_and_other_classes(
    case: Case, launched: SimpleNamespace
) -> None:
    """Each beside a call of the same traits, whose tape there is already."""
    (x,), parameters = case.inputs(), list(case.parameters().values())

    def function(x: Tensor) -> Any:
        return launched.function(x, *parameters)

    y, before = function(x), len(launched.tapes)
    assert before == 1
    compiled = torch.compile(function, backend="aot_eager")
    gradient = torch.func.grad(lambda x: function(x).sum())
    for found in (
        compiled(x),
        torch.jit.trace(function, (x,), check_trace=False)(x),
        torch.func.vjp(function, x)[0],
        torch.func.jvp(function, (x,), (x,))[0],
        function(x.as_subclass(Subclass)),
    ):
        torch.testing.assert_close(found.as_subclass(Tensor), y)
    assert gradient(x).shape == x.shape and len(launched.tapes) == before


@pytest.mark.parametrize("case", ["short_bdl"], indirect=True)
def test_no_tape_is_made_while_a_graph_is_captured(
    case: Case, launched: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernels would be in the graph twice. One that is there serves."""
    arguments = (*case.inputs(), *case.parameters().values())
    with monkeypatch.context() as patch:
        patch.setattr(launched.module, "capturing", lambda: True)
        y = launched.function(*arguments)
        assert not launched.tapes and not launched.module.TAPES
    torch.testing.assert_close(launched.function(*arguments), y)
    monkeypatch.setattr(launched.module, "capturing", lambda: True)
    torch.testing.assert_close(launched.function(*arguments), y)
    assert len(launched.tapes) == 2


@pytest.mark.parametrize("case", ["short_bdl", "poles"], indirect=True)
def test_hooks_of_saved_tensors_and_checkpoints(case: Case, launched: SimpleNamespace) -> None:
    inputs, parameters, dy = case.inputs(), list(case.parameters().values()), case.activation()
    wanted = differentiated(launched.function, inputs, parameters, dy)
    for _ in range(2):
        with saved_tensors_hooks(lambda x: x.clone(), lambda x: torch.cat([x, x])[: len(x)]):
            assert same(differentiated(launched.function, inputs, parameters, dy), wanted)

        def again(*tensors: Tensor) -> Any:
            return checkpoint(launched.function, *tensors, use_reentrant=False)

        assert same(differentiated(again, inputs, parameters, dy), wanted)


@pytest.mark.parametrize("case", ["short_bdl", "decay"], indirect=True)
def test_hooks_that_give_other_strides_at_the_same_address(
    case: Case, launched: SimpleNamespace
) -> None:
    """As the allocator may, where rows had gaps that a copy on another device does not have."""

    def gaps(x: Tensor) -> Tensor:
        return torch.cat([x, x], -1)[..., : x.shape[-1]] if x.dim() == 3 else x

    def dense(kept: tuple[Tensor, Tensor]) -> Tensor:
        place, values = kept
        strides = values.contiguous().stride()
        return place.as_strided(values.shape, strides).copy_(values)

    parameters, dy = list(case.parameters().values()), case.activation()
    for hooked in (False, True, True):
        inputs = [gaps(x) for x in case.inputs()]
        wanted = differentiated(
            launched.function, [x.contiguous() for x in inputs], parameters, dy
        )
        pack = (lambda x: (x.detach(), x.detach().clone())) if hooked else (lambda x: x)
        with saved_tensors_hooks(pack, dense if hooked else lambda x: x):
            found = differentiated(launched.function, inputs, parameters, dy)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("case", ["short_bdl"], indirect=True)
def test_second_derivatives_are_refused(case: Case, launched: SimpleNamespace) -> None:
    leaves = [x.requires_grad_() for x in (*case.inputs(), *case.parameters().values())]
    y = launched.function(*leaves)
    (first,) = torch.autograd.grad(y.square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        first.sum().backward()
    y = launched.function(*leaves)
    batched = torch.eye(2)[..., None, None, None] * torch.ones_like(y)
    with pytest.raises(NotImplementedError, match="no batched gradients"):
        torch.autograd.grad(y, leaves[:1], batched[:, 0], is_grads_batched=True)


@pytest.mark.parametrize("case", ["hyena_bdl"], indirect=True)
def test_what_takes_more_than_launches_has_no_tape(case: Case, launched: SimpleNamespace) -> None:
    """A copy of an input that is not dense; rows of dy, as gradients of sums are."""
    inputs, parameters = case.inputs(), list(case.parameters().values())
    wide = [torch.stack([x, x], -1)[..., 0] for x in inputs]
    for _ in range(2):
        found = launched.function(*wide, *parameters)
        torch.testing.assert_close(found, launched.function(*inputs, *parameters))
    assert [tape is None for tape in launched.module.TAPES.values()].count(True) == 1
    for _ in range(2):
        leaves = [x.detach().requires_grad_() for x in inputs]
        launched.function(*leaves, *parameters).sum().backward()
        assert all(x.grad is not None for x in leaves)


@pytest.mark.parametrize("case", ["short_bdl"], indirect=True)
def test_arguments_are_checked_as_ever(case: Case, launched: SimpleNamespace) -> None:
    (x,), parameters = case.inputs(), list(case.parameters().values())
    launched.function(x, *parameters)
    for wrong, error, words in (
        (x[:, :5], ValueError, "filter has shape"),
        (x.to(torch.int32), TypeError, "x is torch.int32"),
        (x.to_sparse(), TypeError, "x is torch.sparse_coo"),
        ("x", TypeError, "x is a str"),
    ):
        with pytest.raises(error, match=words):
            launched.function(wrong, *parameters)


@pytest.mark.parametrize("case", ["short_bdl"], indirect=True)
def test_memory_that_no_kernel_writes_is_filled_if_pytorch_is_asked_to(
    case: Case, launched: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By which the verifier finds what is not written."""
    monkeypatch.setattr(launched.module, "starter", lambda *_: lambda _: None)
    tensors = [*case.inputs(1, 9), *case.parameters().values()]
    launched.function(*tensors)
    with poisoned():
        assert launched.function(*tensors).isnan().all()
        leaves = [x.requires_grad_() for x in tensors]
        for _ in range(2):
            y = launched.function(*leaves)
            gradients = torch.autograd.grad(y, leaves, torch.ones_like(y))
        assert all(x.isnan().all() for x in (y, *gradients))


@pytest.mark.parametrize("case", ["short_bdl"], indirect=True)
def test_tapes_are_kept_within_bounds_and_forgotten_with_a_config(
    case: Case, launched: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launched.module, "MOST_TAPES", 2)
    parameters = list(case.parameters().values())
    for length in (3, 4, 5):
        launched.function(case.activation(1, length), *parameters)
        assert len(launched.module.TAPES) <= 2
    operator = case.operator
    operator.namespace.TAPES["any"] = operator.namespace.RECENT["any"] = None
    operator.use(operator.namespace.configs_of(torch.zeros(1), 6, 6))
    assert not operator.namespace.TAPES and not operator.namespace.RECENT
    operator.namespace.CONFIGS.clear()


@pytest.mark.parametrize("case", ["short_bdl"], indirect=True)
def test_a_launch_that_fails_says_of_what(
    case: Case, launched: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(numbers: Any) -> None:
        raise RuntimeError("out of resources")

    monkeypatch.setattr(launched.module, "starter", lambda *_: fail)
    arguments = (*case.inputs(), *case.parameters().values())
    with pytest.raises(RuntimeError, match="tiny_short: tiny_short_forward could not be launched"):
        launched.function(*arguments)


@pytest.mark.parametrize("case", ["short_bdl"], indirect=True)
def test_what_is_not_launched_directly(case: Case) -> None:
    """What is interpreted, and what needs memory that Triton's launcher allocates."""
    module = case.operator.namespace
    run = SimpleNamespace(launch=None, global_scratch_size=8, profile_scratch_size=0)
    for binary in (None, SimpleNamespace(run=run)):
        assert module.starter(binary, torch.device("cpu"), 1, ()) is None


@pytest.mark.parametrize("slotted", [False, True])
@pytest.mark.parametrize("case", ["hyena_bdl", "blocks_bdl", "modal", "decay"], indirect=True)
def test_steps_from_tapes(case: Case, launched: SimpleNamespace, slotted: bool) -> None:
    """Each is launched once, the first too, and leaves the state that a launcher leaves; drafts
    and gradients are other calls.
    """
    module, values = launched.module, list(case.parameters().values())
    channels = case.spec.channels
    ladder = (0, None) if case.spec.filter.decay is not None else ()
    slots = torch.tensor([1, 0], dtype=torch.int32) if slotted else None
    for draft in (False, True):
        state, other = (module.initial_state(2, channels, steps=2, draft=draft) for _ in range(2))
        for call in range(4):
            inputs = case.inputs(2, 2)
            before = len(launched.tapes)
            with torch.no_grad(), poisoned():
                y = module.decode(inputs, values, state, slots)
            wanted = module.launch_decode(inputs, values, other, slots, *ladder)
            assert torch.equal(y, wanted)
            assert all(torch.equal(a, b) for a, b in zip(state[:-1], other[:-1], strict=True))
            assert len(launched.tapes) - before == (call > 0)
            if draft:
                for one in (state, other):
                    one.commit(torch.tensor([call % 3, 1], dtype=torch.int32), slots)
    with pytest.raises(RuntimeError, match="no gradients"):
        module.decode([x.requires_grad_() for x in inputs], values, state, slots)
    with pytest.raises(ValueError, match="room for 2"):
        module.decode(case.inputs(2, 3), values, state, slots)
    with pytest.raises(TypeError, match="expected a Tiny"):
        module.decode(case.inputs(2, 2), values, tuple(state), slots)


@pytest.mark.parametrize(
    ("case", "graded"),
    [
        *(("stateful_taps_bdl", graded) for graded in ("nothing", "inputs", "state", "all")),
        *(("stateful_taps_bld", graded) for graded in ("nothing", "all")),
        *(("stateful_modal", graded) for graded in ("nothing", "inputs", "all")),
        *((f"stateful_{name}", "all") for name in ("poles", "pairs")),
    ],
    indirect=["case"],
)
def test_calls_after_a_state_from_tapes(
    case: Case, launched: SimpleNamespace, graded: str
) -> None:
    """y, the state after it and gradients by kernels are launched from tapes; all gradients are
    those of plain PyTorch, whatever of the call they come from.
    """
    module, parameters = launched.module, list(case.parameters().values())
    plain = case.operator
    state = plain(*case.inputs(2, 30), **case.parameters())[1]
    for call in range(4):
        length = (13, 13, 3, 3)[call]
        inputs, weight = case.inputs(2, length), case.activation(2, length)
        results = []
        for function in (launched.function, getattr(plain.namespace, module.OP)):
            begun = [
                x.detach().clone().requires_grad_(x.is_floating_point() and graded in OF_STATE)
                for x in state[:-1]
            ]
            wanted = graded in ("inputs", "all")
            leaves = [x.detach().clone().requires_grad_(wanted) for x in (*inputs, *parameters)]
            before = len(launched.tapes)
            with poisoned(), torch.set_grad_enabled(graded != "nothing"):
                y, after = function(*leaves, state=module.STATE(*begun, False))
            rings = rings_of(module, after)
            modes = [after.modes] if hasattr(after, "modes") else []
            found = [y, *rings, after.count, after.done, *modes]
            if function is launched.function and rings:
                assert launched.tapes[before:][-1].endswith("_leave")
                assert module.chunk_of in {kind[0] for kind in module.RECENT}
            asked = [x for x in (*leaves, *begun) if x.requires_grad]
            if asked:
                # Of y alone, of the state after it alone, and of both.
                loss = [(y * weight).sum()] * (call != 1)
                loss += [(x * x).sum() for x in rings] * (call != 0)
                # Modes are large, and squares of sums of many steps.
                loss += [(x / x.detach().abs().max()).square().sum() for x in modes] * (call != 0)
                forward = len(launched.tapes)
                found += [
                    torch.zeros_like(x) if d is None else d
                    for x, d in zip(
                        asked,
                        torch.autograd.grad(sum(loss), asked, allow_unused=True),
                        strict=True,
                    )
                ]
                if function is launched.function and rings and call != 1:
                    assert f"{module.OP}_backward" in " ".join(launched.tapes[forward:])
            results.append(found)
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)
        state = after


@pytest.mark.parametrize("case", ["stateful_taps_bdl", "stateful_modal"], indirect=True)
def test_a_first_call_is_launched_from_tapes_too(case: Case, launched: SimpleNamespace) -> None:
    values = case.parameters()
    for _ in range(2):
        inputs = case.inputs(2, 13)
        leaves = [x.requires_grad_() for x in (*inputs, *values.values())]
        before = len(launched.tapes)
        y, after = launched.function(*leaves)
        wanted, other = case.operator(*inputs, **values)
        found = torch.autograd.grad(y.mean(), leaves, retain_graph=True)
        meant = torch.autograd.grad(wanted.mean(), leaves)
    assert len(launched.tapes) > before
    pairs = ((y, wanted), *zip(after[:-1], other[:-1], strict=True))
    for a, b in (*pairs, *zip(found, meant, strict=True)):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("case", ["stateful_taps_bdl", "stateful_modal"], indirect=True)
def test_narrow_inputs_have_tapes_too(case: Case, launched: SimpleNamespace) -> None:
    """Forward and backward: nothing is cast beside kernels."""
    leaves = [x.requires_grad_() for x in case.inputs(2, 13, dtype=torch.float16)]
    y, _ = launched.function(*leaves, *case.parameters().values())
    torch.autograd.grad(y, leaves, torch.ones_like(y))
    assert len(launched.module.TAPES) == 2 and None not in launched.module.TAPES.values()


@pytest.mark.parametrize("case", ["stateful_modal"], indirect=True)
def test_modes_that_are_learned_after_a_layer_that_is_not(
    case: Case, launched: SimpleNamespace
) -> None:
    """No gradient is asked for of what the rings that a later chunk reads come from."""
    values, chunks = case.parameters(), [case.inputs(2, 13) for _ in range(2)]
    found = []
    for function in (launched.function, getattr(case.operator.namespace, launched.module.OP)):
        state = case.operator.namespace.initial_state(2, case.spec.channels)
        modes = torch.ones_like(state.modes).requires_grad_()
        state = launched.module.STATE(*state._replace(modes=modes))
        _, after = function(*chunks[0], *values.values(), state=state)
        y, _ = function(*chunks[1], *values.values(), state=after)
        found += torch.autograd.grad(y.square().mean(), modes)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["stateful_taps_bdl"], indirect=True)
def test_autograd_sees_that_a_taped_step_changes_a_state(
    case: Case, launched: SimpleNamespace
) -> None:
    module, values = launched.module, list(case.parameters().values())
    leaves = [p.requires_grad_() for p in values]
    state = module.initial_state(2, case.spec.channels)
    for _ in range(2):  # the second from a tape
        with torch.no_grad():
            module.decode(case.inputs(2, 1), values, state)
    y, _ = launched.function(*case.inputs(2, 5), *leaves, state=state)
    with torch.no_grad():
        module.decode(case.inputs(2, 1), values, state)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), leaves)


def rings_of(module: ModuleType, state: Any) -> list[Tensor]:
    """What rings have of the past, in order of time."""
    rows = torch.arange(2)
    return [
        module.past_of(getattr(state, name), rows, state.count, lag)
        for name, (lag, _) in module.RINGS.items()
        if lag
    ]


@pytest.mark.parametrize("case", ["stateful_taps_bdl"], indirect=True)
def test_second_derivatives_through_a_state_are_refused(
    case: Case, launched: SimpleNamespace
) -> None:
    module, parameters = launched.module, list(case.parameters().values())
    state = case.operator(*case.inputs(2, 30), **case.parameters())[1]
    for of in ("y", "z"):
        before = state.z.clone().requires_grad_()
        y, after = launched.function(
            *case.inputs(2, 3), *parameters, state=module.STATE(*state._replace(z=before))
        )
        result = y if of == "y" else after.z
        with pytest.raises(NotImplementedError, match="no second derivatives"):
            torch.autograd.grad(result.square().sum(), before, create_graph=True)


@pytest.mark.parametrize("case", ["stateful_modal"], indirect=True)
def test_modes_of_another_dtype_are_cast(case: Case, launched: SimpleNamespace) -> None:
    """As without tapes: what goes on is float32."""
    values, inputs = case.parameters(), case.inputs(2, 13)
    state = case.operator(*case.inputs(2, 30), **values)[1]
    narrow = state._replace(modes=state.modes.bfloat16())
    with torch.no_grad():
        y, modes, *_ = launched.module.chunk_of((*inputs, *values.values(), *narrow[:-1]), False)
        wanted, after = case.operator(*inputs, **values, state=narrow)
    assert modes.dtype == torch.float32
    torch.testing.assert_close(y, wanted, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(modes, after.modes, rtol=2e-5, atol=2e-5)
