"""Decoding: step by step it is the whole sequence, in plain PyTorch and by interpreted kernels."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sh2gen.build.load_module import load_module
from sh2gen.runtime.operator import OperatorRunner
from sh2gen.verify.verify import verify
from tests.generated.conftest import CASES, STATEFUL, made_in
from tests.strategies import register_profiles

if TYPE_CHECKING:
    from tests.generated.conftest import Case

register_profiles()

KERNELS = [name for name in CASES if "fft" not in name]
CLOSE = {torch.float32: 2e-6, torch.float16: 4e-3}


@pytest.fixture(params=[*CASES, *(f"{name}/state" for name in STATEFUL)])
def any_case(
    request: pytest.FixtureRequest, cases: dict[str, Case], stateful_cases: dict[str, Case]
) -> Case:
    """Each operator, those whose calls take and give states too."""
    name, _, state = request.param.partition("/")
    return (stateful_cases if state else cases)[name]


def interpreted(case: Case) -> ModuleType:
    """The operator's file, whose kernels Triton's interpreter runs."""
    return load_module(case.path, interpret=True)


def kernels(case: Case) -> Any:
    """`decode` by interpreted kernels."""
    names = interpreted(case)

    def decode(
        inputs: list[Tensor], parameters: list[Tensor], state: Any, slots: Tensor | None = None
    ) -> Tensor:
        names.check(inputs, parameters)
        ladder = (0, None) if case.spec.filter.decay is not None else ()
        y: Tensor = names.launch_decode(inputs, parameters, state, slots, *ladder)
        return y

    return decode


def steps_of(case: Case, inputs: list[Tensor], begin: int, end: int) -> list[Tensor]:
    return [x.narrow(case.time, begin, end - begin) for x in inputs]


def distance(y: Tensor, wanted: Tensor) -> float:
    """The relative 2-norm of an error."""
    return ((y.double() - wanted.double()).norm() / wanted.double().norm()).item()


def in_turn(
    decode: Any, case: Case, inputs: list[Tensor], parameters: list[Tensor], state: Any, steps: int
) -> Tensor:
    """y of a whole sequence, so many steps a call."""
    length = inputs[0].shape[case.time]
    calls = [
        decode(steps_of(case, inputs, t, min(t + steps, length)), parameters, state)
        for t in range(0, length, steps)
    ]
    return torch.cat(calls, case.time)


@pytest.mark.parametrize("steps", [1, 3])
def test_plain_pytorch_step_by_step_is_the_whole(case: Case, steps: int) -> None:
    values, inputs = case.parameters(), case.inputs(2, 50)
    names = case.operator.namespace
    state = names.initial_state(2, case.spec.channels, steps=steps)
    y = in_turn(names.decode, case, inputs, list(values.values()), state, steps)
    assert distance(y, case.reference(inputs, values)) < CLOSE[torch.float32]
    assert state.count.tolist() == [50, 50]


@pytest.mark.parametrize(("steps", "dtype"), [(1, torch.float32), (3, torch.float16)], ids=str)
@pytest.mark.parametrize("case", KERNELS, indirect=True)
def test_kernels_step_by_step_are_the_whole(case: Case, steps: int, dtype: torch.dtype) -> None:
    values, inputs = case.parameters(), case.inputs(2, 12, dtype=dtype)
    state = case.operator.namespace.initial_state(2, case.spec.channels, steps=steps, dtype=dtype)
    y = in_turn(kernels(case), case, inputs, list(values.values()), state, steps)
    assert y.dtype == dtype
    assert distance(y, case.reference(inputs, values)) < CLOSE[dtype]
    assert state.count.tolist() == [12, 12] and bool((state.done == 12).all())


@pytest.mark.parametrize("by", ["plain", "kernels"])
@pytest.mark.parametrize(
    "case", ["hyena_bdl", "blocks_bld", "decay", "modal", "pairs"], indirect=True
)
def test_a_pool_of_states(case: Case, by: str) -> None:
    """Rows find their states by slots, in any order, beside rows that are left out; and come out
    bit by bit as they do alone.
    """
    names, values = case.operator.namespace, list(case.parameters().values())
    decode = names.decode if by == "plain" else kernels(case)
    inputs, channels = case.inputs(3, 8), case.spec.channels
    alone = names.initial_state(3, channels, steps=2)
    pool = names.initial_state(5, channels, steps=2)
    for tensor in pool[:-1]:
        tensor[0] = 7  # of a sequence that no call is about
    order = torch.tensor([4, 1, 3], dtype=torch.int32)
    for t in range(0, 8, 2):
        now = steps_of(case, inputs, t, t + 2)
        wanted = decode(now, values, alone)
        other = torch.randperm(3)
        shuffled = [torch.cat([x[other], x[:1]]) for x in now]
        slots = torch.cat([order[other], torch.tensor([-1], dtype=torch.int32)])
        y = decode(shuffled, values, pool, slots)
        assert torch.equal(y[:3], wanted[other]) and not y[3].any()
    for found, tensor in zip(pool[:-1], alone[:-1], strict=True):
        assert torch.equal(found[order.long()], tensor)
        assert (found[0] == 7).all() and not found[2].any()


@pytest.mark.parametrize("by", ["plain", "kernels"])
@pytest.mark.parametrize("case", ["hyena_bld", "blocks_bdl", "modal", "pairs"], indirect=True)
def test_rejected_drafts_leave_no_trace(case: Case, by: str) -> None:
    """Of three steps a call, each row keeps as many as it likes; its next are bit by bit those of
    a sequence that was never anything else.
    """
    names, values = case.operator.namespace, list(case.parameters().values())
    decode = names.decode if by == "plain" else kernels(case)
    inputs, channels = case.inputs(2, 12), case.spec.channels
    plain = names.initial_state(2, channels)
    right = in_turn(decode, case, inputs, values, plain, 1)
    state = names.initial_state(2, channels, steps=3, draft=True)
    done = torch.zeros(2, dtype=torch.int64)
    for accepted in ([1, 3], [0, 2], [3, 1], [2, 0], [3, 3]):
        rows = [[x[b : b + 1] for x in inputs] for b in range(2)]
        now = [steps_of(case, rows[b], int(done[b]), int(done[b]) + 3) for b in range(2)]
        wrong = [torch.randn_like(x) for x in now[0]]
        both = [torch.cat(pair) for pair in zip(now[0], now[1], strict=True)]
        for b, number in enumerate(accepted):  # what is not accepted was drafted wrongly
            for x, noise in zip(both, wrong, strict=True):
                x[b].narrow(case.time - 1, number, 3 - number).copy_(
                    noise[0].narrow(case.time - 1, number, 3 - number)
                )
        y = decode(both, values, state)
        for b, number in enumerate(accepted):
            found = y[b].narrow(case.time - 1, 0, number)
            assert torch.equal(found, right[b].narrow(case.time - 1, int(done[b]), number))
        state.commit(torch.tensor(accepted, dtype=torch.int32))
        done += torch.tensor(accepted)
        assert state.count.tolist() == done.tolist()


def test_commit_of_a_pool(cases: dict[str, Case]) -> None:
    names = cases["modal"].operator.namespace
    state = names.initial_state(4, 6, steps=2, draft=True)
    slots = torch.tensor([2, -1, 0], dtype=torch.int32)
    state.commit(torch.tensor([1, 2, 2], dtype=torch.int32), slots)
    assert state.count.tolist() == [2, 0, 1, 0] and not state.done.any()


def test_modules_decode(cases: dict[str, Case]) -> None:
    """Of separate inputs or packed features, the state last or by name; parameters are trained,
    and what needs a gradient is refused.
    """
    case = cases["decay"]
    module, packed = case.module(), case.packed(2, 4)
    q, v = packed.chunk(2, 1)
    wanted = module(packed)
    for call in (
        lambda t, state: module.decode(q[..., t : t + 1], v[..., t : t + 1], state),
        lambda t, state: module.decode(packed[..., t : t + 1], state=state),
    ):
        state = module.initial_state(2)
        y = torch.cat([call(t, state) for t in range(4)], 2)
        assert not y.requires_grad and distance(y, wanted.detach()) < CLOSE[torch.float32]
    with pytest.raises(RuntimeError, match="no gradients"):
        module.decode(packed[..., :1].requires_grad_(), state=state)


def test_a_slice_of_a_ladder_decodes_as_the_whole(cases: dict[str, Case]) -> None:
    case, whole = cases["decay"], cases["decay"].module()
    part = case.operator.module(2, 1, first_group=2, groups_in_all=3)
    with torch.no_grad():
        for name, value in whole.named_parameters():
            own = value[2:] if name == "filter" else value[4:]
            getattr(part, name).copy_(own)
    inputs, state = case.inputs(1, 6), part.initial_state(1, steps=6)
    y = part.decode(*(x[:, 4:] for x in inputs), state)
    assert distance(y, whole(*inputs)[:, 4:].detach()) < CLOSE[torch.float32]


@pytest.mark.parametrize("case", ["hyena_bdl", "modal"], indirect=True)
def test_the_library_op_says_what_it_changes(case: Case) -> None:
    names = case.operator.namespace
    state = names.initial_state(2, case.spec.channels, steps=2)
    slots = torch.tensor([1, 0], dtype=torch.int32)
    arguments = (*case.inputs(2, 2), *case.parameters().values(), *state[:-1], slots, False)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(names.decode_op, arguments, test_utils=checks)


def test_decoding_is_traced_as_one_call(cases: dict[str, Case]) -> None:
    """By torch.compile as a whole, which sees that the state changes; of a pool of drafts too."""
    case = cases["modal"]
    module, inputs = case.module(), case.inputs(2, 3)
    slots = torch.tensor([2, 0], dtype=torch.int32)
    accepted = torch.ones(2, dtype=torch.int32)

    def step(*tensors: Tensor, state: Any) -> Tensor:
        y: Tensor = module.decode(*tensors, state=state, slots=slots)
        state.commit(accepted, slots)
        return y

    drafted = torch.compile(step, fullgraph=True, backend="aot_eager")
    own, other = (module.initial_state(3, draft=True) for _ in range(2))
    for t in range(3):
        now = [x[..., t : t + 1].contiguous() for x in inputs]
        assert torch.equal(drafted(*now, state=own), step(*now, state=other))
    assert own.count.tolist() == [3, 0, 3]
    assert all(torch.equal(a, b) for a, b in zip(own[:-1], other[:-1], strict=True))
    compiled = torch.compile(module.decode, fullgraph=True, backend="aot_eager")
    own, other = module.initial_state(2), module.initial_state(2)
    for t in range(3):
        now = [x[..., t : t + 1].contiguous() for x in inputs]
        assert torch.equal(compiled(*now, own), module.decode(*now, other))
    assert all(torch.equal(a, b) for a, b in zip(own[:-1], other[:-1], strict=True))


def split(case: Case, inputs: list[Tensor], parameters: list[Tensor], cuts: list[int]) -> Tensor:
    """y of a sequence by prefill up to each of the cuts, and step by step after the last."""
    names, length = case.operator.namespace, inputs[0].shape[case.time]
    state = names.initial_state(inputs[0].shape[0], case.spec.channels)
    parts = [
        names.prefill(steps_of(case, inputs, begin, end), parameters, state)
        for begin, end in itertools.pairwise([0, *cuts])
    ]
    parts += [
        names.decode(steps_of(case, inputs, t, t + 1), parameters, state)
        for t in range(cuts[-1], length)
    ]
    assert state.count.tolist() == [length] * inputs[0].shape[0]
    return torch.cat(parts, case.time)


@pytest.mark.parametrize("cuts", [[0], [1], [2, 3], [5, 50], [90, 90, 91], [97]], ids=str)
def test_steps_after_a_prompt_are_the_whole(any_case: Case, cuts: list[int]) -> None:
    """Whatever the prompt's length, shorter than the filter or none at all, and in any pieces."""
    case = any_case
    values, inputs = case.parameters(), case.inputs(2, 100)
    y = split(case, inputs, list(values.values()), cuts)
    assert distance(y, case.reference(inputs, values)) < CLOSE[torch.float32]


@given(data=st.data())
def test_any_split_is_the_whole(cases: dict[str, Case], data: st.DataObject) -> None:
    case = cases[data.draw(st.sampled_from(list(CASES)))]
    length = data.draw(st.integers(1, 40))
    cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=1, max_size=4)))
    torch.manual_seed(data.draw(st.integers(0, 9)))
    values, inputs = case.parameters(), case.inputs(1, length)
    y = split(case, inputs, list(values.values()), cuts)
    assert distance(y, case.reference(inputs, values)) < CLOSE[torch.float32]


def windows(case: Case, inputs: list[Tensor], begin: Tensor, steps: int) -> list[Tensor]:
    """So many steps of each row from a step of its own on, with noise beyond the end."""
    found = []
    for x in inputs:
        shape = list(x.shape)
        shape[case.time] = steps
        longer = torch.cat([x, torch.randn(shape)], case.time)
        rows = [longer[b : b + 1].narrow(case.time, int(t), steps) for b, t in enumerate(begin)]
        found.append(torch.cat(rows))
    return found


def test_rows_of_a_padded_prompt_end_where_they_say(any_case: Case) -> None:
    """Into a pool, where some begin and some go on, beside one that is left out."""
    case = any_case
    names, values, inputs = case.operator.namespace, case.parameters(), case.inputs(4, 80)
    parameters = list(values.values())
    wanted = case.reference(inputs, values)
    pool = names.initial_state(6, case.spec.channels)
    slots = torch.tensor([5, 0, -1, 3], dtype=torch.int32)
    done = torch.zeros(4, dtype=torch.int64)

    def right(y: Tensor, lengths: Tensor) -> bool:
        found = [y[b].narrow(case.time - 1, 0, int(n)) for b, n in enumerate(lengths)]
        rows = [
            wanted[b].narrow(case.time - 1, int(done[b]), int(n)) for b, n in enumerate(lengths)
        ]
        near = (
            (a.double() - b).norm() < 1e-5 * wanted.norm()
            for a, b in zip(found, rows, strict=True)
        )
        return all(near)

    for lengths in ([4, 0, 9, 30], [70, 1, 9, 3]):
        ends = torch.tensor(lengths)
        y = names.prefill(windows(case, inputs, done, max(lengths)), parameters, pool, slots, ends)
        assert not y[2].any()
        ends[2] = 0
        assert right(y, ends)
        done += ends
    assert pool.count.tolist() == [1, 0, 0, 33, 0, 74]
    for _ in range(3):
        y = names.decode(windows(case, inputs, done, 1), parameters, pool, slots)
        assert right(y, torch.tensor([1, 1, 0, 1]))
        done += 1


@pytest.mark.parametrize("case", ["hyena_bdl", "blocks_bld", "modal", "pairs"], indirect=True)
def test_a_prompt_after_drafts(case: Case) -> None:
    """It follows what was accepted; and what it gives has no drafts left."""
    names, values = case.operator.namespace, case.parameters()
    inputs, parameters = case.inputs(1, 30), list(values.values())
    state = names.initial_state(1, case.spec.channels, steps=3, draft=True)
    names.prefill(steps_of(case, inputs, 0, 9), parameters, state)
    names.decode(steps_of(case, inputs, 9, 12), parameters, state)
    state.commit(torch.tensor([2], dtype=torch.int32))
    y = names.prefill(steps_of(case, inputs, 11, 30), parameters, state)
    wanted = case.reference(inputs, values).narrow(case.time, 11, 19)
    assert distance(y, wanted) < CLOSE[torch.float32] and state.count.tolist() == [30]


def test_a_place_begins_anew(any_case: Case) -> None:
    case = any_case
    names, parameters = case.operator.namespace, list(case.parameters().values())
    state = names.initial_state(3, case.spec.channels)
    inputs = case.inputs(3, 20)
    fresh = names.prefill(inputs, parameters, state)
    state.reset(torch.tensor([1, -1], dtype=torch.int32))
    assert state.count.tolist() == [20, 0, 20]
    one = torch.tensor([1], dtype=torch.int32)
    y = names.prefill([x[1:2] for x in inputs], parameters, state, one)
    assert distance(y, fresh[1:2]) < CLOSE[torch.float32]
    state.reset()
    assert not any(tensor.any() for tensor in state[:-1])


@pytest.mark.parametrize("case", ["hyena_bdl", "modal"], indirect=True)
def test_narrow_states(case: Case) -> None:
    """In the inputs' dtype a ring is rounded once, which the output shows little of."""
    names, values = case.operator.namespace, case.parameters()
    inputs = case.inputs(2, 40, dtype=torch.bfloat16)
    state = names.initial_state(2, case.spec.channels, dtype=torch.bfloat16)
    parameters = list(values.values())
    parts = [names.prefill(steps_of(case, inputs, 0, 30), parameters, state)]
    parts += [
        names.decode(steps_of(case, inputs, t, t + 1), parameters, state) for t in range(30, 40)
    ]
    y = torch.cat(parts, case.time)
    assert y.dtype == torch.bfloat16 and state.tails.dtype == torch.bfloat16
    assert distance(y, case.reference(inputs, values)) < 8e-3


def test_more_steps_than_taps(tmp_path: Path) -> None:
    """Taps that are read in blocks, in both orders, of the last group too."""
    for taps in ("lag_first", "lag_last"):
        inner = {"kind": "explicit", "length": 17, "groups": 2, "taps": taps}
        fields = {"op": "tiny_short_taps", "channels": 4, "filter": inner}
        folder = tmp_path / taps
        folder.mkdir()
        made = made_in(folder, {"one": (fields, "toeplitz/BDL/recompute")})["one"]
        values, (x,) = made.parameters(), made.inputs(1, 20)
        state = made.operator.namespace.initial_state(1, 4, steps=20)
        y = kernels(made)([x], list(values.values()), state)
        assert distance(y, made.reference([x], values)) < CLOSE[torch.float32]


def test_what_a_commit_refuses(cases: dict[str, Case]) -> None:
    state = cases["modal"].operator.namespace.initial_state(2, 6, steps=2, draft=True)
    for value, error, words in (
        ([1, 1], TypeError, "accepted must be an int32 tensor \\(2,\\), not"),
        (torch.ones(2), TypeError, "accepted must be an int32 tensor"),
        (torch.ones(3, dtype=torch.int32), TypeError, "accepted must be an int32 tensor"),
        (torch.tensor([0, 3]), ValueError, "accepted are not all between 0 and 2 steps"),
        (torch.tensor([0, -1]), ValueError, "accepted are not all between 0 and 2 steps"),
    ):
        with pytest.raises(error, match=words):
            state.commit(value)
    assert not state.count.any() and not state.done.any()


def test_what_slots_are_refused(cases: dict[str, Case]) -> None:
    """By steps, prompts, commits and resets alike; of rows that are left out nothing is asked."""
    module = cases["modal"].module()
    state = module.initial_state(3, steps=2, draft=True)
    inputs = cases["modal"].inputs(2, 1)
    ones = torch.ones(2, dtype=torch.int32)

    def numbers(*given: int) -> Tensor:
        return torch.tensor(given, dtype=torch.int32)

    calls: list[Any] = [
        lambda slots: module.decode(*inputs, state, slots=slots),
        lambda slots: module.prefill(*inputs, state, slots=slots),
        lambda slots: state.commit(ones, slots),
        state.reset,
    ]
    with torch.no_grad():
        for call in calls:
            for slots, error, words in (
                (numbers(0, 3), ValueError, "slots are beyond the 3 places"),
                (numbers(1, 1), ValueError, "two rows have one place"),
                (numbers(0, 1).float(), ValueError, "expected torch.int32"),
                ([0, 1], TypeError, "slots is a list, expected a tensor"),
            ):
                with pytest.raises(error, match=words):
                    call(slots)
        state.commit(torch.tensor([1, 9]), numbers(0, -1))
        module.prefill(*inputs, state, slots=numbers(0, -1), lengths=torch.tensor([1, 9]))
    assert state.count.tolist() == [2, 0, 0]


def test_what_else_states_refuse(cases: dict[str, Case]) -> None:
    case = cases["modal"]
    module, inputs = case.module(), case.inputs(1, 1)
    with pytest.raises(TypeError, match="draft must be True or False, not 'no'"):
        module.initial_state(1, draft="no")
    state = module.initial_state(1)
    for name in ("decode", "prefill"):
        with torch.no_grad():
            with pytest.raises(ValueError, match="modes has shape"):
                getattr(module, name)(*inputs, state._replace(modes=state.modes[..., :1].clone()))
            with pytest.raises(TypeError, match=r"modes is torch\.bfloat16, expected"):
                getattr(module, name)(*inputs, state._replace(modes=state.modes.bfloat16()))
    empty = case.inputs(1, 0)
    with pytest.raises(ValueError, match="lengths are not all between 0 and 0"):
        module.prefill(*empty, state, lengths=torch.tensor([1]))
    with pytest.raises(ValueError, match="has shape"):
        module.prefill(empty[0], empty[1][:, :2], empty[2], state)


REFUSED = [
    ({"state": ()}, TypeError, "state is a tuple, expected a TinyModalState"),
    ({"batch": 3}, ValueError, "q has 2 rows, but the state has 3: slots say which"),
    ({"channels": 12}, ValueError, "state.tails has shape .* expected \\(2, slots, 18\\)"),
    ({"length": 2}, ValueError, "2 steps in one call, but the state has room for 1"),
    ({"slots": torch.tensor([0, 1])}, ValueError, "slots are torch.int64 \\(2,\\)"),
    ({"slots": torch.zeros(3, dtype=torch.int32)}, ValueError, "expected torch.int32 \\(2,\\)"),
    ({"slots": torch.tensor([0, 2], dtype=torch.int32)}, ValueError, "beyond the 2 places"),
]


@pytest.mark.parametrize(("change", "error", "words"), REFUSED)
def test_refusals(
    cases: dict[str, Case], change: dict[str, Any], error: type[Exception], words: str
) -> None:
    case = cases["modal"]
    names = case.operator.namespace
    made = names.initial_state(change.get("batch", 2), change.get("channels", 6))
    state = change.get("state", made)
    inputs, values = case.inputs(2, change.get("length", 1)), list(case.parameters().values())
    with pytest.raises(error, match=words):
        names.decode(inputs, values, state, change.get("slots"))


def test_a_state_without_drafts_has_nothing_to_commit(cases: dict[str, Case]) -> None:
    state = cases["modal"].module().initial_state(1)
    with pytest.raises(ValueError, match="draft=True"):
        state.commit(torch.ones(1, dtype=torch.int32))


@pytest.mark.parametrize("number", [True, 1.5])
def test_sizes_of_a_state_are_whole_numbers(cases: dict[str, Case], number: object) -> None:
    module = cases["modal"].module()
    with pytest.raises(TypeError, match="batch must be a whole number"):
        module.initial_state(number)
    with pytest.raises(ValueError, match="batch must be at least 0, not -1"):
        module.initial_state(-1)
    with pytest.raises(ValueError, match="steps must be at least 1, not 0"):
        module.initial_state(1, steps=0)
    with pytest.raises(TypeError, match=r"a state is float32, .* not torch.int32"):
        module.initial_state(1, dtype=torch.int32)


def test_fields_of_a_state_belong_together(cases: dict[str, Case]) -> None:
    case = cases["modal"]
    names, values = case.operator.namespace, list(case.parameters().values())
    made, inputs = names.initial_state(2, 6), case.inputs(2, 1)
    for field, value, words in (
        ("done", made.done[:0], "state.done is torch.int32 \\(0, 1\\), expected"),
        ("count", made.count.long(), "state.count is torch.int64 \\(2,\\)"),
        ("modes", made.modes[:, :3].contiguous(), "state.modes has shape \\(2, 3, 3\\)"),
        ("tails", made.tails.transpose(1, 2), "state.tails is not contiguous"),
    ):
        for call in (names.decode, names.prefill):
            with pytest.raises(ValueError, match=words):
                call(inputs, values, made._replace(**{field: value}))


def test_calls_with_other_arguments(cases: dict[str, Case]) -> None:
    case = cases["modal"]
    names, values, module = (
        case.operator.namespace,
        list(case.parameters().values()),
        case.module(),
    )
    state, (q, k, v) = names.initial_state(1, 6), case.inputs(1, 1)
    slots = torch.zeros(1, dtype=torch.int32)
    for inputs in ([], [q, k], q, [q, k, None]):
        for call in (names.decode, names.prefill):
            with pytest.raises(TypeError, match="expected q, k, v or one tensor of packed"):
                call(inputs, values, state)
    with pytest.raises(TypeError, match="then a state; slots by name"):
        module.decode(q, k, v, state, slots)
    with pytest.raises(TypeError, match="then a state; slots by name"):
        module.decode(q, k, v)
    with pytest.raises(TypeError, match="state is a str"):
        module.prefill(q[..., :0], k[..., :0], v[..., :0], "past")


def test_an_operator_with_no_past(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One tap: a state counts steps, and has room for any number."""
    fields = {
        "op": "tiny_one",
        "channels": 2,
        "filter": {"kind": "explicit", "length": 1, "groups": 2},
    }
    made = made_in(tmp_path_factory.mktemp("one"), {"one": (fields, "direct/BDL/recompute")})[
        "one"
    ]
    values, (x,) = made.parameters(), made.inputs(1, 5)
    for decode in (made.operator.namespace.decode, kernels(made)):
        state = made.operator.namespace.initial_state(1, 2)
        y = decode([x], list(values.values()), state)
        assert distance(y, made.reference([x], values)) < CLOSE[torch.float32]
        assert state._fields == ("count", "done", "draft") and state.count.tolist() == [5]


class Forgetful(OperatorRunner):
    """Begins anew with every call."""

    def decode(self, inputs: Any, parameters: Any, state: Any, slots: Any = None) -> Tensor:
        state.reset(slots)
        return super().decode(inputs, parameters, state, slots)


class Hasty(OperatorRunner):
    """Takes every draft for accepted."""

    def decode(self, inputs: Any, parameters: Any, state: Any, slots: Any = None) -> Tensor:
        y = super().decode(inputs, parameters, state, slots)
        if state.draft:
            (x, *_) = inputs.values()
            steps = x.shape[self.operator.namespace.TIME]
            state.commit(torch.full((len(x),), steps, dtype=torch.int32), slots)
        return y


@pytest.mark.parametrize("case", ["hyena_bdl", "modal"], indirect=True)
def test_the_verifier_notices_a_past_that_is_lost_and_drafts_that_stay(case: Case) -> None:
    def failures(kind: type[OperatorRunner]) -> list[str]:
        options: dict[str, Any] = {"shapes": [(2, 19)], "properties": ["decode"]}
        runner = kind(case.operator, "eager")
        report = verify(case.spec, runner, dtype=torch.float32, **options)
        return [check.name.partition(": ")[2] for check in report.failures]

    assert failures(OperatorRunner) == []
    assert "y, step by step after a prompt" in failures(Forgetful)
    assert failures(Hasty) == ["y of drafts", "y after rejected drafts, in other places"]
