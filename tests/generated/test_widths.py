"""A generated file at other widths than its own, and slices of the channels of a decay filter."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import torch
from torch import Tensor

from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.runtime.operator import InterpreterRunner, Operator, OperatorRunner
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from sh2gen.verify.verify import verify
from tests.strategies_schedules import assert_close, canonical, pack, random_tensors, transposed

if TYPE_CHECKING:
    from tests.generated.conftest import Case

WIDTHS = [(5, 5), (12, 3), (10, 1)]
KERNELS = ["hyena_bdl", "hyena_bld", "interleaved", "decay", "blocks_bdl", "blocks_bld"]
KERNELS += ["modal", "poles", "pairs"]


def of_width(spec: OpSpec, channels: int, groups: int) -> OpSpec:
    """What the file of an operator computes at another width."""
    inner = dataclasses.replace(spec.filter, groups=groups)
    return dataclasses.replace(spec, channels=channels, filter=inner)


@pytest.mark.parametrize(("channels", "groups"), WIDTHS)
def test_plain_pytorch(case: Case, channels: int, groups: int) -> None:
    """Of a function and of a module: outputs and gradients, also of packed features."""
    spec, layout = of_width(case.spec, channels, groups), case.operator.layout
    inputs, parameters, dy = random_tensors(spec, 2, 19)
    given = {name: transposed(x, layout) for name, x in inputs.items()}
    y = case.runner.forward(given, parameters)
    gradients = case.runner.gradients(given, parameters, transposed(dy, layout))
    found = {n: canonical(g, layout) if n in inputs else g for n, g in gradients.items()}
    expected = case.reference(list(given.values()), parameters)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    fft = case.operator.plan.startswith("fft/")  # which rounds by the largest element
    unit = 2.0**-40 if fft else 2.0**-53
    assert_close(spec, inputs, parameters, dy, canonical(y, layout), found, unit=unit)
    module = module_of(case, channels, groups).double()
    module.load_state_dict(parameters)
    assert torch.equal(module(*given.values()), y)
    if len(inputs) > 1:
        assert torch.equal(module(transposed(pack(spec, inputs), layout)), y)


@pytest.mark.parametrize("case", KERNELS, indirect=True)
@pytest.mark.parametrize(("channels", "groups"), WIDTHS)
def test_kernels(case: Case, channels: int, groups: int) -> None:
    """Under the interpreter, by the default configs of the width."""
    spec, layout = of_width(case.spec, channels, groups), case.operator.layout
    runner = InterpreterRunner(case.path)
    inputs, parameters, dy = random_tensors(spec, 1, 19, dtype=torch.float32)
    given = {name: transposed(x, layout) for name, x in inputs.items()}
    y = runner.forward(given, parameters)
    gradients = runner.gradients(given, parameters, transposed(dy, layout))
    found = {n: canonical(g, layout) if n in inputs else g for n, g in gradients.items()}
    unit = 2.0**-24 if case.spec.filter.kind != "modal" else 2.0**-21
    assert_close(spec, inputs, parameters, dy, canonical(y, layout), found, unit=unit)
    assert [key[1:] for key in runner.namespace.CHOSEN] == [(channels, groups)]


def module_of(case: Case, *arguments: Any, **slices: int) -> Any:
    names = vars(case.operator.namespace)
    name = type(case.operator.module()).__name__
    return names[name](*arguments, **slices)


def test_a_module_is_as_wide_as_the_file_unless_it_is_told(case: Case) -> None:
    own, channels = case.spec.filter.groups, case.spec.channels
    for arguments, wanted in (
        ((), (channels, own)),
        ((2 * channels,), (2 * channels, 2 * own)),
        ((12, 3), (12, 3)),
    ):
        module = module_of(case, *arguments)
        assert (module.channels, module.groups) == wanted
        shapes = {p.name: p.shape for p in of_width(case.spec, *wanted).parameters}
        assert {name: tuple(p.shape) for name, p in module.named_parameters()} == shapes
        assert f"channels={wanted[0]}, groups={wanted[1]}" in repr(module)
    text = f"{case.spec.op}: 5 filter groups do not divide 12 channels"
    with pytest.raises(ValueError, match=text):
        module_of(case, 12, 5)
    for arguments, name in ((("cuda",), "channels"), ((12, 3.0), "groups")):
        with pytest.raises(
            TypeError, match=f"{name} must be a whole number, not {arguments[-1]!r}"
        ):
            module_of(case, *arguments)


# -------------------------------------------------------------------------- slices of the channels

GATED = {"gates": {"pre": True, "post": True}, "featurizer": {"length": 3}, "skip": "group"}


def decaying(folder: Path, repeats: int, **fields: Any) -> Operator:
    decay = {"preset": "normal", "cache_length": 9, "repeats": repeats}
    inner = {"kind": "decay", "length": 5, "groups": 4, "decay": decay}
    spec = spec_from_dict({"op": "sliced", "channels": 8, "filter": inner, **fields})
    plan = plans(spec)[0]
    path = folder / "sliced.py"
    path.write_text(emit(spec, plan, schedule(spec, plan)).text)
    return Operator(path)


def rows(x: Tensor, dims: tuple[str, ...], first: int, last: int) -> Tensor:
    """A parameter's rows of the groups first .. last - 1 of four, of two channels each."""
    roles = 3 if dims[0].startswith("3 ") else 1
    each = 1 if dims[0] == "groups" else 2
    return x.unflatten(0, (roles, -1))[:, each * first : each * last].flatten(0, 1)


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("fields", [{}, GATED], ids=["plain", "gated"])
def test_slices_of_a_decay_operator_are_the_whole_bit_by_bit(
    fields: dict[str, Any], repeats: int, tmp_path: Path
) -> None:
    """As ranks of a cluster compute them: a function and a module, outputs and gradients."""
    operator = decaying(tmp_path, repeats, **fields)
    names, spec = operator.namespace, operator.spec
    inputs, parameters, dy = random_tensors(spec, 2, 19, dtype=torch.float32)
    dims = {p.name: p.dims for p in spec.parameters}

    def taken(first: int, last: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
        part = slice(2 * first, 2 * last)
        xs = [transposed(x[:, part], operator.layout).requires_grad_() for x in inputs.values()]
        own = [rows(p, dims[n], first, last).requires_grad_() for n, p in parameters.items()]
        return xs, own, transposed(dy[:, part], operator.layout)

    def results(xs: list[Tensor], own: list[Tensor], dy: Tensor, y: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(y, [*xs, *own], dy)
        activations = [canonical(x, operator.layout) for x in (y, *found[: len(xs)])]
        return [*activations, *found[len(xs) :]]

    xs, own, above = taken(0, 4)
    whole = results(xs, own, above, names.sliced(*xs, *own))
    for first, last in ((0, 1), (1, 4), (2, 4), (3, 4)):
        xs, own, above = taken(first, last)
        ladder = {"first_group": first, "groups_in_all": 4}
        by_call = results(xs, own, above, names.sliced(*xs, *own, **ladder))
        module = operator.module(2 * (last - first), last - first, **ladder)
        named = dict(zip(parameters, own, strict=True))
        module.load_state_dict(named)
        assert torch.equal(module(*xs), names.sliced(*xs, *own, **ladder))
        assert torch.equal(operator(*xs, **named, **ladder), module(*xs))
        part = slice(2 * first, 2 * last)
        count = 1 + len(xs)
        expected = [x[:, part] for x in whole[:count]]
        totals = zip(dims.values(), whole[count:], strict=True)
        expected += [rows(g, shape, first, last) for shape, g in totals]
        for found, wanted in zip(by_call, expected, strict=True):
            assert torch.equal(found, wanted)
        if first:  # the first rungs of a ladder of its own are others
            alone = names.sliced(*xs, *own) if repeats == 1 or (last - first) % 2 == 0 else None
            assert alone is None or not torch.equal(alone, names.sliced(*xs, *own, **ladder))


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_reference_of_a_slice_is_that_of_the_whole(repeats: int, tmp_path: Path) -> None:
    """In float64, also of packed features and of taps in the shape of a conv1d's weight."""
    operator = decaying(tmp_path, repeats, **GATED)
    layout, dims = operator.layout, {p.name: p.dims for p in operator.spec.parameters}
    inputs, parameters, _ = random_tensors(operator.spec, 2, 19)
    acts = [transposed(x, layout) for x in inputs.values()]
    whole = canonical(operator.reference(*acts, **parameters), layout)
    torch.testing.assert_close(canonical(operator(*acts, **parameters), layout), whole)
    for first, last in ((0, 1), (1, 4), (2, 4), (3, 4)):
        ladder: dict[str, Any] = {"first_group": first, "groups_in_all": 4}
        part = slice(2 * first, 2 * last)
        few = {n: x[:, part] for n, x in inputs.items()}
        own = {n: rows(p, dims[n], first, last) for n, p in parameters.items()}
        own["filter"] = own["filter"].unsqueeze(1)
        packed = transposed(pack(operator.spec, few), layout)
        for xs in ([transposed(x, layout) for x in few.values()], [packed]):
            y = operator.reference(*xs, **own, **ladder)
            torch.testing.assert_close(canonical(y, layout), whole[:, part], rtol=0, atol=1e-14)
            torch.testing.assert_close(operator(*xs, **own, **ladder), y)


def test_the_verifier_sees_a_slice_on_other_rungs(tmp_path: Path) -> None:
    """`slices` fails for a runner that forgets which groups it has, and only then; kernels give
    every bit of the whole.
    """
    operator = decaying(tmp_path, 1, **GATED)
    kernels = InterpreterRunner(operator.path)

    class Forgetful(OperatorRunner):
        def sliced(self, spec: OpSpec, groups: range) -> tuple[Self, bool]:
            return self, False

    for runner, ok in (
        (OperatorRunner(operator, "eager"), True),
        (kernels, True),
        (Forgetful(operator, "forgetful"), False),
    ):
        options = {"dtype": torch.float32, "shapes": [(1, 19)], "properties": ["slices"]}
        report = verify(operator.spec, runner, **options)
        assert len(report.checks) == 7 and report.ok is ok
        exact = [check for check in report.checks if check.bound == 0]
        assert len(exact) == 4 * (runner is kernels)  # y, and the gradients of q, k and v


def test_bits_are_promised_of_taps_with_as_many_operands(tmp_path: Path) -> None:
    """Of 40 groups a tap is one operand of products, of 20 it is two."""
    decay = {"preset": "normal", "cache_length": 80}
    inner = {"kind": "decay", "length": 65, "groups": 40, "decay": decay}
    spec = spec_from_dict({"op": "sliced", "channels": 80, "filter": inner})
    plan = plans(spec, "toeplitz")[0]
    path = tmp_path / "sliced.py"
    path.write_text(emit(spec, plan, schedule(spec, plan)).text)
    runner = InterpreterRunner(path)
    assert runner.sliced(spec, range(4, 36))[1] and not runner.sliced(spec, range(10, 30))[1]


def test_slices_that_are_not_of_the_ladder_are_refused(tmp_path: Path) -> None:
    """By functions and, before any call, by modules: in the same words."""
    operator = decaying(tmp_path, 2)
    names = operator.namespace
    x = torch.zeros(1, 8, 4) if operator.layout == "BDL" else torch.zeros(1, 4, 8)
    for groups, first, whole, error, words in (
        (2, 3, 4, ValueError, "not among 4: .* and groups_in_all at least first_group . 2"),
        (2, -1, 4, ValueError, "not among 4: first_group must be at least 0"),
        (4, 0, 2, ValueError, "not among 2"),
        (1, 0, 3, ValueError, "not of whole ladders .* a multiple of 2, not 3"),
        (1, 0, None, ValueError, "not of whole ladders .* a multiple of 2, not 1"),
        (2, 1.0, 4, TypeError, "sliced: first_group must be a whole number, not 1.0"),
        (2, True, 4, TypeError, "sliced: first_group must be a whole number, not True"),
        (2, 0, "4", TypeError, "sliced: groups_in_all must be a whole number, not '4'"),
    ):
        if error is ValueError:
            words = f"sliced: {groups} filter groups from {first} on are {words}"
        ladder: dict[str, Any] = {"first_group": first, "groups_in_all": whole}
        taps = torch.zeros(groups, 5)
        for call in (
            lambda: names.sliced(x, taps, **ladder),  # noqa: B023
            lambda: names.Sliced(8, groups, **ladder),  # noqa: B023
            lambda: operator.module(8, groups, **ladder),  # noqa: B023
            lambda: operator.reference(x, filter=taps, **ladder),  # noqa: B023
        ):
            with pytest.raises(error, match=words):
                call()


def test_a_module_of_a_slice_says_so_and_draws_what_any_of_its_width_draws(
    tmp_path: Path,
) -> None:
    """The decay is no parameter: what is drawn does not depend on the groups, here or in all."""
    operator = decaying(tmp_path, 1, **GATED)
    made = []
    for ladder, words in (
        ({}, ""),
        ({"first_group": 0, "groups_in_all": 256}, ", groups_in_all=256"),
        ({"first_group": 2, "groups_in_all": 4}, ", first_group=2, groups_in_all=4"),
    ):
        torch.manual_seed(5)
        made.append(operator.module(4, 2, **ladder))
        assert repr(made[-1]) == f"Sliced(channels=4, groups=2{words})"
        for name, p in made[-1].named_parameters():
            assert torch.equal(p, dict(made[0].named_parameters())[name])
    std = 1e-5 / 3  # over the square root of the cache's length
    for groups in (500, 2000):
        layer = operator.module(groups, groups, groups_in_all=4000)
        assert layer.filter.std().item() == pytest.approx(std, rel=0.1)
