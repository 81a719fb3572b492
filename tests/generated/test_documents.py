"""Calls of rows that hold several documents, as users make them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import sh2gen
from sh2gen.base.resources import folder
from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.runtime.operator import InterpreterRunner, Operator
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import load_spec
from sh2gen.spec.language import Sequences
from sh2gen.verify.case import poisoned
from tests.generated.conftest import CASES, Case
from tests.strategies import register_profiles

register_profiles()
DOCUMENTS = [name for name in CASES if name.startswith("documents")]
ENDS = [0, 7, 7, 8, 40, 41, 60]  # one of them is empty, two are of one step


def borders(*ends: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor([0, *ends], dtype=dtype)


def parts(case: Case, x: Tensor, ends: Sequence[int]) -> list[Tensor]:
    """The documents of a row that are not empty."""
    pairs = [(a, b) for a, b in itertools.pairwise((0, *ends)) if b > a]
    return [x.narrow(case.time, a, b - a) for a, b in pairs]


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in tensors]


@pytest.mark.parametrize("case", DOCUMENTS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_documents_are_as_calls_of_their_own(case: Case, dtype: torch.dtype) -> None:
    """Outputs and every gradient, also of packed features and where more borders are given than
    there are documents.
    """
    module = case.module()
    x = case.packed(1, 60) if len(case.spec.inputs) > 1 else case.activation(1, 60)
    dy = case.activation(1, 60)
    (row,) = leaves(x)
    y = module(row, cu_seqlens=borders(*ENDS, 60, 60, dtype=dtype))
    found = torch.autograd.grad(y, [row, *module.parameters()], dy)
    (alone,) = leaves(x)
    separate = torch.cat([module(part) for part in parts(case, alone, ENDS)], case.time)
    wanted = torch.autograd.grad(separate, [alone, *module.parameters()], dy)
    torch.testing.assert_close(y, separate)
    known = dict(module.named_parameters())
    exact = case.operator.reference(row, **known, cu_seqlens=borders(*ENDS))
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-5)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["documents", "documents_decay", "documents_modal"])
@given(lengths=st.lists(st.integers(0, 70), min_size=1, max_size=20))
@example(lengths=[7 + 8 * i for i in range(8)])
@example(lengths=[31, 31, 32, 31, 33, 34, 38])
def test_where_documents_lie_apart(cases: dict[str, Case], name: str, lengths: list[int]) -> None:
    """Each step once, in its order and place in a vector; what filters reach back by in between,
    and of modes no other feature in the 32 steps that a document begins in.
    """
    case, ends = cases[name], list(itertools.accumulate(lengths))
    assume(ends[-1])
    sources, _, begun = case.operator.namespace.documents_anywhere(borders(*ends), ends[-1])
    vector, bit = ((sources[:, None] >> torch.arange(8)) & 1).nonzero(as_tuple=True)
    assert (sources[vector] // 512 * 8 + bit).tolist() == list(range(ends[-1]))
    where = 8 * vector + bit
    begins = [a for a, b in itertools.pairwise((0, *ends)) if b > a]
    modal, lag = case.spec.filter.modes is not None, case.spec.lag
    reach = lag if modal else lag + case.spec.filter.length - 1
    flagged = (sources // 256 % 2).nonzero().flatten()
    assert flagged.tolist() == (where[begins] // 8).tolist()
    for begin in begins[1:]:
        assert where[begin] - where[begin - 1] > reach
        if modal:
            assert where[begin] // 8 % 4 == 0
            assert where[begin - 1] + lag < where[begin] // 32 * 32
    if modal:
        units = ((begun[:, None] >> torch.arange(8)) & 1).flatten().nonzero().flatten()
        assert units.tolist() == (flagged // 4).tolist()


@pytest.mark.parametrize("name", ["documents", "documents_decay", "documents_modal"])
@given(st.lists(st.integers(0, 70), min_size=1, max_size=60), st.integers(0, 9), st.booleans())
def test_what_finds_documents(
    cases: dict[str, Case], name: str, lengths: list[int], more: int, wide: bool
) -> None:
    """The kernel, interpreted, and plain PyTorch: also of many vectors and of repeated ends."""
    ends = [*itertools.accumulate(lengths)]
    assume(ends[-1])
    found = InterpreterRunner(cases[name].path).namespace
    kind = torch.int64 if wide else torch.int32
    cu_seqlens = borders(*ends, *[ends[-1]] * more, dtype=kind)
    (sources, ended, begun), (wanted, last, first) = (
        of(cu_seqlens, ends[-1]) for of in (found.documents_on_gpu, found.documents_anywhere)
    )
    assert torch.equal(sources, wanted) and torch.equal(ended, last)
    assert not sources[ended:].any() and sources[ended - 1] > 0
    known = -(-len(sources) // (32 if "modal" in name else 8))
    assert torch.equal(begun[:known], first[:known])


@pytest.mark.parametrize("case", DOCUMENTS, indirect=True)
def test_rows_without_borders_are_documents_each(case: Case) -> None:
    module, x = case.module(), case.inputs(3, 19)
    each = torch.cat(
        [module(*(t[i : i + 1] for t in x), cu_seqlens=borders(19)) for i in (0, 1, 2)]
    )
    torch.testing.assert_close(module(*x), each)


@pytest.mark.parametrize("case", DOCUMENTS, indirect=True)
@pytest.mark.parametrize("ends", [[1], [60], [1] * 60, list(range(1, 61)), [0, 0, 60, 60]])
def test_few_and_many_documents(case: Case, ends: list[int]) -> None:
    """Of one step each, or all of the row, or a row of one step."""
    module, inputs = case.module(), case.inputs(1, ends[-1])
    y = module(*inputs, cu_seqlens=borders(*ends))
    cut = zip(*(parts(case, x, ends) for x in inputs), strict=True)
    wanted = torch.cat([module(*some) for some in cut], case.time)
    torch.testing.assert_close(y, wanted)


@pytest.mark.parametrize("case", DOCUMENTS, indirect=True)
def test_nothing_leaks(case: Case) -> None:
    """Other values of one document, even none that are finite, change no bit of another's output,
    nor of its gradients.
    """
    module, dy = case.module(), case.activation(1, 60)
    rows = []
    for value in (1.0, -3e8, float("nan")):
        torch.manual_seed(3)
        inputs = case.inputs(1, 60)
        for x in inputs:
            x.narrow(case.time, 8, 32).mul_(value)
        own = leaves(*inputs)
        y = module(*own, cu_seqlens=borders(*ENDS))
        rows.append([y, *torch.autograd.grad(y, own, dy)])
    for steps in (slice(0, 8), slice(40, 60)):
        index = (slice(None),) * case.time + (steps,)
        for first, *others in zip(*rows, strict=True):
            assert torch.isfinite(first[index]).all()
            assert all(torch.equal(first[index], x[index]) for x in others)


def refused(case: Case, x: Tensor, **given_: Any) -> str:
    inputs = [x] * len(case.spec.inputs)
    with pytest.raises(ValueError) as error:
        case.module()(*inputs, **given_)
    return str(error.value)


@pytest.mark.parametrize("case", ["documents", "documents_fft"], indirect=True)
def test_borders_that_cannot_be(case: Case) -> None:
    x = case.activation(1, 10)
    for wrong in (borders(10).float(), borders(10)[None], borders()[:1]):
        assert "expected int32 or int64 (documents + 1,)" in refused(case, x, cu_seqlens=wrong)
    for wrong in (borders(9), borders(11), torch.tensor([1, 10])):
        assert "numbers from 0 to the 10 steps" in refused(case, x, cu_seqlens=wrong)
    assert "cu_seqlens[2] is 5, less than the 7" in refused(case, x, cu_seqlens=borders(7, 5, 10))
    two = case.activation(2, 10)
    assert "a batch of 2 rows" in refused(case, two, cu_seqlens=borders(10))
    with pytest.raises(TypeError, match="cu_seqlens is a list"):
        case.module()(*[x] * len(case.spec.inputs), cu_seqlens=[0, 10])


@pytest.mark.parametrize("case", ["documents_fft"], indirect=True)
def test_the_longest_document_may_be_told(case: Case) -> None:
    """So that nothing has to be read of a GPU; beyond it y is zero."""
    module, inputs = case.module(), case.inputs(1, 60)
    wanted = module(*inputs, cu_seqlens=borders(*ENDS))
    for longest in (32, 60, 100):
        y = module(*inputs, cu_seqlens=borders(*ENDS), max_length=longest)
        torch.testing.assert_close(y, wanted)
    cut = module(*inputs, cu_seqlens=borders(*ENDS), max_length=8)
    assert not cut.narrow(case.time, 16, 24).any()
    torch.testing.assert_close(cut.narrow(case.time, 0, 16), wanted.narrow(case.time, 0, 16))
    for wrong in (0, 2.5, True):
        with pytest.raises(ValueError, match="max_length is"):
            module(*inputs, cu_seqlens=borders(*ENDS), max_length=wrong)


@pytest.mark.parametrize("case", ["documents_fft", "documents_modal"], indirect=True)
def test_documents_in_pieces_of_a_budget(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    module, inputs = case.module(), case.inputs(1, 60)
    whole = module(*inputs, cu_seqlens=borders(*ENDS))
    monkeypatch.setitem(vars(case.operator.namespace), "BYTE_BUDGET", 4000)
    torch.testing.assert_close(module(*inputs, cu_seqlens=borders(*ENDS)), whole)
    if "fft" in case.name:
        some = module(*inputs, cu_seqlens=borders(*ENDS), max_length=32)
        torch.testing.assert_close(some, whole)


@pytest.mark.parametrize("case", DOCUMENTS, indirect=True)
def test_compiled_once_for_all_numbers_of_documents(case: Case) -> None:
    """The first number that differs makes it a symbol; no later one compiles anything."""
    module, inputs = case.module(), case.inputs(1, 60)
    numbers = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    longest = {"max_length": 60} if "fft" in case.name else {}
    compiled = torch.compile(module, backend=numbers, fullgraph=True)
    seen = []
    for count in (3, 4, 5, 7, 12, 30):
        ends = torch.linspace(0, 60, count).round().int()
        y = compiled(*inputs, cu_seqlens=ends, **longest)
        torch.testing.assert_close(y, module(*inputs, cu_seqlens=ends, **longest))
        seen.append(numbers.frame_count)
    assert seen[-1] == seen[1] <= 2


@pytest.mark.parametrize("op", ["hyena_se", "hyena_mr"])
@pytest.mark.parametrize("layout", ["BDL", "BLD"])
def test_wide_operators_of_documents_are_within_reach(
    op: str, layout: str, tmp_path: Path
) -> None:
    """Offsets within a program are of 32 bits, or of steps alone."""
    spec = replace(load_spec(folder("ops") / f"{op}.yaml"), sequences=Sequences.PACKED)
    plan = next(p for p in plans(spec) if p.layout == layout and p.kernels)
    path = tmp_path / "wide.py"
    path.write_text(emit(spec, plan, schedule(spec, plan)).text)
    names, (wide, steps) = Operator(path).namespace, (4096, 2**20)
    shape = (1, *((steps, wide) if layout == "BLD" else (wide, steps)))
    x = torch.empty_strided(shape, (wide * steps, shape[2], 1), device="meta")
    apart = 8 * names.vectors_apart(1000, steps)
    configs = names.default_configs(wide, spec.filter.groups, torch.device("cpu"))
    for kernel in plan.kernels:
        config = configs[kernel.role]
        grid = getattr(names, kernel.grid.__name__)(1, apart, wide, spec.group_width, config)
        assert names.stride_step(config, [x], grid.tiles) == 8


@given(st.lists(st.integers(0, 2), min_size=1, max_size=24), st.integers(1, 3), st.booleans())
def test_borders_of_numbered_documents(numbers: list[int], rows: int, bound: bool) -> None:
    seq_idx = torch.tensor(numbers * rows).view(rows, -1)
    wanted = [0]
    for _ in range(rows):
        for _, same in itertools.groupby(numbers):
            wanted.append(wanted[-1] + len(list(same)))
    found = sh2gen.cu_seqlens_of(seq_idx, len(wanted) + 1 if bound else None)
    assert found.dtype == torch.int32
    assert found[: len(wanted)].tolist() == wanted
    assert set(found[len(wanted) :].tolist()) <= {wanted[-1]} and found[-1] == wanted[-1]
    assert len(found) == (len(wanted) + 2 if bound else seq_idx.numel() + 1)


def test_fewer_documents_than_numbers() -> None:
    found = sh2gen.cu_seqlens_of(torch.tensor([5, 5, 1, 2, 2, 9]), 2)
    assert found.tolist() == [0, 2, 6]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.booleans())
def test_borders_of_padded_rows(lengths: list[int], left: bool) -> None:
    step = torch.arange(5)
    mask = step < torch.tensor(lengths)[:, None]
    found = sh2gen.cu_seqlens_of_mask(mask.flip(1) if left else mask).tolist()
    wanted = []
    for row, length in enumerate(lengths):
        wanted += [5 * row, 5 * row + (5 - length if left and length < 5 else length)]
    for one, other, length in zip(found[1::2], wanted[1::2], lengths, strict=True):
        assert one == other or length in (0, 5)  # nothing is padded, or all
    assert found[::2] == [*wanted[::2], 5 * len(lengths)]


@pytest.mark.parametrize("case", ["documents", "documents_modal"], indirect=True)
def test_the_longest_is_taken_where_it_is_not_needed(case: Case) -> None:
    """So that a call is the same whatever the plan is."""
    module, inputs = case.module(), case.inputs(1, 60)
    wanted = module(*inputs, cu_seqlens=borders(*ENDS))
    assert torch.equal(module(*inputs, cu_seqlens=borders(*ENDS), max_length=40), wanted)
    with pytest.raises(ValueError, match="max_length is 0"):
        module(*inputs, max_length=0)


def test_numbers_beyond_the_row_harm_nothing(cases: dict[str, Case]) -> None:
    """A GPU does not see them: kernels, here interpreted, stay within the row all the same."""
    for name in ("documents_decay", "documents_modal"):
        case = cases[name]
        runner = InterpreterRunner(case.path)
        inputs = case.inputs(1, 24)
        values = dict(zip(case.spec.inputs, inputs, strict=True)), case.parameters()
        right = runner.of_documents(borders(10, 22, 24)).forward(*values)
        for ends in ((10, 22, 40), (10, 22, 2**33)):
            kind = torch.int64 if ends[-1] > 2**31 else torch.int32
            wrong = runner.of_documents(borders(*ends, dtype=kind))
            with poisoned():
                assert torch.equal(wrong.forward(*values), right)
        falling = runner.of_documents(borders(20, 5, 24))  # which says nothing, but ends
        assert falling.forward(*values).shape == right.shape


def test_what_has_no_borders() -> None:
    with pytest.raises(TypeError, match=r"are torch\.float32"):
        sh2gen.cu_seqlens_of(torch.zeros(3))
    with pytest.raises(ValueError, match=r"\(1, 2, 3\)"):
        sh2gen.cu_seqlens_of(torch.zeros(1, 2, 3).int())
    with pytest.raises(ValueError, match="at least 1"):
        sh2gen.cu_seqlens_of(torch.zeros(3).int(), 0)
    with pytest.raises(ValueError, match=r"expected \(B, L\)"):
        sh2gen.cu_seqlens_of_mask(torch.zeros(3).int())
    with pytest.raises(TypeError, match="booleans or integers"):
        sh2gen.cu_seqlens_of_mask(torch.zeros(1, 3))
    for wrong in ([[0, 1, 1, 0]], [[1, 1, 1, 1], [1, 0, 1, 0]]):
        with pytest.raises(ValueError, match=f"row {len(wrong) - 1} of the mask"):
            sh2gen.cu_seqlens_of_mask(torch.tensor(wrong))
