"""The nn.Module of a generated file: its parameters, their dtypes, training, and its accuracy."""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import signed, stated
from sh2gen.runtime.operator import Operator
from sh2gen.verify.verify import verify

if TYPE_CHECKING:
    from tests.generated.conftest import Case

LOW = (torch.bfloat16, torch.float16)


def equal(a: nn.Module, b: dict[str, Tensor]) -> bool:
    """Whether the parameters of a are those of b, bit for bit and of the same dtype."""
    mine = dict(a.named_parameters())
    return list(mine) == list(b) and all(
        p.dtype == b[name].dtype and torch.equal(p, b[name]) for name, p in mine.items()
    )


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


# ------------------------------------------------------------------------------------- parameters


def test_names_and_shapes(case: Case) -> None:
    module = case.operator.module()
    expected = {p.name: p.shape for p in case.spec.parameters}
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == expected
    assert list(module.state_dict()) == list(expected)
    assert not list(module.buffers())
    for p in module.parameters():
        assert (p.dtype, p.device.type, p.requires_grad) == (torch.float32, "cpu", True)
        assert p.is_contiguous()
    channels, groups = case.spec.channels, case.spec.filter.groups
    assert f"channels={channels}, groups={groups}" in repr(module)
    assert type(module).__name__ == "".join(part.title() for part in case.spec.op.split("_"))


def test_calling_it_is_calling_the_operator(case: Case) -> None:
    module, inputs, features = case.module(), case.inputs(), case.packed()
    parameters = parameters_of(module)
    assert torch.equal(module(*inputs), case.operator(*inputs, **parameters))
    assert torch.equal(module(features), case.operator(features, **parameters))
    expected = case.reference(inputs, parameters)
    torch.testing.assert_close(module(*inputs).double(), expected, rtol=1e-4, atol=1e-4)


def test_fresh_parameters(case: Case) -> None:
    """Uniform in +-1/sqrt(taps), or normal and small before a decay; drawn anew each time."""
    spec = case.spec
    long = spec.filter.length or spec.filter.modes
    taps = spec.featurizer.length if spec.featurizer else long
    assert taps is not None and long is not None
    modules = [case.operator.module() for _ in range(200)]
    for name, taps_of in (
        ("filter", taps),
        ("featurizer", taps),
        ("skip", long),
        ("bias", long),
    ):
        if not hasattr(modules[0], name):
            continue
        values = torch.stack([getattr(module, name).detach() for module in modules])
        assert values.unique().numel() > 0.9 * values.numel()
        if name == "filter" and spec.filter.decay:
            std = 1e-5 / math.sqrt(spec.filter.decay.cache_length)
            assert values.std().item() == pytest.approx(std, rel=0.1)
            continue
        bound = 1 / math.sqrt(taps_of)
        assert 0.95 * bound < values.abs().max().item() <= bound
        assert values.mean().abs().item() < 0.1 * bound
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("case", ["pairs"], indirect=True)
def test_fresh_pairs(case: Case) -> None:
    """Time constants as those of real modes, any frequency, residues half as large."""
    modules = [case.operator.module() for _ in range(200)]

    def drawn(name: str) -> torch.Tensor:
        return torch.stack([getattr(module, name).detach() for module in modules])

    constants = -1 / drawn("log_poles")
    assert 27 < constants.min().item() < 28 and 240 < constants.max().item() < 272
    frequencies = drawn("frequencies")
    assert 0 <= frequencies.min().item() < 0.02 and 3.1 < frequencies.max().item() <= 3.1416
    for name in ("residues_real", "residues_imag"):
        assert drawn(name).std().item() == pytest.approx(0.05 / math.sqrt(2), rel=0.1)


@pytest.mark.parametrize("case", ["modal", "poles"], indirect=True)
def test_fresh_modes(case: Case) -> None:
    """Time constants of 27 to 272 steps; residues of variance 1/100 over their number."""
    spec = case.spec
    modules = [case.operator.module() for _ in range(200)]
    if spec.filter.parametrisation == "p_gamma":
        found = [case.operator.namespace.poles(module.p, module.gamma) for module in modules]
    else:
        found = [module.log_poles for module in modules]
    constants = -1 / torch.stack(found).detach()
    assert 27 < constants.min().item() < 28 and 240 < constants.max().item() < 272
    residues = torch.stack([module.residues.detach() for module in modules])
    assert spec.filter.modes is not None
    assert residues.std().item() == pytest.approx(0.1 / math.sqrt(spec.filter.modes), rel=0.1)


def test_fresh_parameters_follow_the_seed(case: Case) -> None:
    torch.manual_seed(3)
    module = case.operator.module()
    torch.manual_seed(3)
    assert equal(case.operator.module(), parameters_of(module))
    before = parameters_of(module)
    module.reset_parameters()
    drawn = [name for name in before if name != "p"]  # which is -1
    assert not any(torch.equal(getattr(module, name), before[name]) for name in drawn)


# ----------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("how", ["to", "method", "type", "parent", "with device"])
def test_low_precision_leaves_parameters_alone(case: Case, dtype: torch.dtype, how: str) -> None:
    """They stay float32, with every bit: not rounded to the low dtype and back."""
    module = case.module()
    before = parameters_of(module)
    module(*case.inputs()).sum().backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters()}  # type: ignore[union-attr]
    match how:
        case "to":
            module.to(dtype)
        case "method":
            module.half() if dtype == torch.float16 else module.bfloat16()
        case "type":
            module.type(dtype)
        case "with device":
            module.to("cpu", dtype)
        case _:
            parent = nn.Sequential(nn.Linear(3, 3), module).to(dtype)
            assert parent[0].weight.dtype == dtype
    assert equal(module, before)
    assert all(torch.equal(p.grad, gradients[name]) for name, p in module.named_parameters())
    assert module(*case.inputs(dtype=dtype)).dtype == dtype
    assert equal(module.float(), before)


def test_double_is_double(case: Case) -> None:
    module = case.module().double()
    assert {p.dtype for p in module.parameters()} == {torch.float64}
    inputs = case.inputs(dtype=torch.float64)
    y = module(*inputs)
    assert y.dtype == torch.float64
    expected = case.reference(inputs, parameters_of(module))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("io", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(case: Case, dtype: torch.dtype, io: torch.dtype) -> None:
    """Neither outputs nor gradients: the operator's own arithmetic is float32, also on a CPU."""
    module = case.module()
    inputs = [x.requires_grad_() for x in case.inputs(dtype=io)]
    wanted, dy = [*inputs, *module.parameters()], case.activation(dtype=io)
    y = module(*inputs)
    gradients = torch.autograd.grad(y, wanted, dy)
    with torch.autocast("cpu", dtype):
        cast = module(*inputs)
        inside = torch.autograd.grad(cast, wanted, dy, retain_graph=True)
    assert cast.dtype == io
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    torch.testing.assert_close(cast, y, rtol=0.0, atol=0.0)
    for results in (inside, torch.autograd.grad(cast, wanted, dy)):
        for found, right in zip(results, gradients, strict=True):
            torch.testing.assert_close(found, right, rtol=0.0, atol=0.0)


def test_default_dtype_of_torch_does_not_matter(case: Case) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        module = case.operator.module()
        y = module(*(x.float() for x in case.inputs()))
    finally:
        torch.set_default_dtype(before)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert y.dtype == torch.float32


@pytest.mark.parametrize("dtype", [*LOW, torch.float32, torch.float64], ids=str)
def test_accuracy(case: Case, dtype: torch.dtype) -> None:
    """Output and all gradients against float64, within the bound of `balanced`."""
    verify(
        case.spec,
        case.runner,
        dtype=dtype,
        shapes=[(2, 1), (1, 6), (3, 41)],
        properties=("equality", "causality", "strides", "packed"),
        property_shapes=[(2, 19)],
    ).require()


@pytest.mark.parametrize("dtype", [*LOW, torch.float64], ids=str)
def test_parameters_of_another_dtype(case: Case, dtype: torch.dtype) -> None:
    """Are used as they are, and get gradients of their own dtype, rounded to it once: those that
    the same numbers get in float32.
    """
    inputs, dy = case.inputs(), case.activation()
    given = {name: p.to(dtype).float() for name, p in case.parameters().items()}
    found = []
    for wanted in (dtype, torch.float32):
        parameters = {name: p.to(wanted).requires_grad_() for name, p in given.items()}
        y = case.operator(*inputs, **parameters)
        found.append((y, *torch.autograd.grad(y, list(parameters.values()), dy)))
    (y, *gradients), (same, *right) = found
    assert torch.equal(y, same) and y.dtype == torch.float32
    for a, b in zip(gradients, right, strict=True):
        assert a.dtype == dtype and torch.equal(a, b.to(dtype))
    torch.testing.assert_close(y.double(), case.reference(inputs, given), rtol=1e-4, atol=1e-4)


def test_float64_is_exact_with_float32_parameters(case: Case) -> None:
    """Nothing that is made of them is float32 on the way: decays, poles."""
    inputs, parameters = case.inputs(dtype=torch.float64), case.parameters()
    leaves = {name: p.requires_grad_() for name, p in parameters.items()}
    wide = {name: p.detach().double().requires_grad_() for name, p in parameters.items()}
    y, right = case.operator(*inputs, **leaves), case.operator(*inputs, **wide)
    torch.testing.assert_close(y, case.reference(inputs, parameters), rtol=1e-12, atol=1e-12)
    dy = torch.randn_like(y)
    for a, b in zip(
        torch.autograd.grad(y, list(leaves.values()), dy),
        torch.autograd.grad(right, list(wide.values()), dy),
        strict=True,
    ):
        assert torch.equal(a, b.float())


# ------------------------------------------------------------------------------ saving and copying


def test_state_dict_round_trip(case: Case) -> None:
    module = case.module()
    stream = io.BytesIO()
    torch.save(module.state_dict(), stream)
    stream.seek(0)
    other = case.operator.module()
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert equal(other, parameters_of(module))
    assert equal(other, pickle.loads(pickle.dumps(module.state_dict())))


def test_a_checkpoint_in_bfloat16_loads_into_float32(case: Case) -> None:
    module = case.operator.module()
    module.load_state_dict(case.parameters(torch.bfloat16))
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_a_checkpoint_of_another_shape_is_refused(case: Case) -> None:
    name = next(iter(case.parameters()))
    wrong = case.parameters() | {name: torch.zeros(1, 1)}
    with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
        case.operator.module().load_state_dict(wrong)


def test_deepcopy(case: Case) -> None:
    module = case.module()
    other = copy.deepcopy(module)
    before = parameters_of(module)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert equal(module, before)
    assert not other(*case.inputs()).any()


def test_pickle(case: Case) -> None:
    module = case.module()
    assert equal(pickle.loads(pickle.dumps(module)), parameters_of(module))


def test_operators_pickle_and_copy(case: Case, tmp_path: Path) -> None:
    """Within a process they share the module; elsewhere their file is loaded, if unchanged."""
    inputs, parameters = case.inputs(), case.parameters()
    y = case.operator(*inputs, **parameters)
    model = nn.Sequential(case.module())
    model.operator = case.operator
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.operator.namespace is case.operator.namespace
        assert torch.equal(other.operator(*inputs, **parameters), y)
    path = tmp_path / case.path.name
    path.write_text(signed(case.path.read_text() + "# another\n"))
    moved = Operator(path)
    data = pickle.dumps(moved)
    del sys.modules[moved.namespace.__name__]
    again = pickle.loads(data)
    assert again.namespace is not moved.namespace
    assert torch.equal(again(*inputs, **parameters), y)
    # Verified since, on a GPU say: the same program.
    for name in (again.namespace.__name__, moved.namespace.__name__):
        sys.modules.pop(name, None)
    path.write_text(stated(path.read_text(), "on a GPU."))
    verified = pickle.loads(data)
    assert verified.namespace is not again.namespace
    for name in (verified.namespace.__name__, moved.namespace.__name__):
        sys.modules.pop(name, None)
    path.write_text(case.path.read_text())
    with pytest.raises(Sh2genError, match="has changed since an operator of it was pickled"):
        pickle.loads(data)
    path.unlink()
    with pytest.raises(Sh2genError, match="No such file"):
        pickle.loads(data)


# In a process that debugs kernels of its own, whose Triton is interpreted from the start.
ELSEWHERE = """
import pickle, sys

layer, operator = (open(name, "rb").read() for name in sys.argv[1:])
try:
    pickle.loads(layer)
except ModuleNotFoundError as error:
    print(error)
operator, layer = pickle.loads(operator), pickle.loads(layer)
print(type(layer).__module__ == operator.namespace.__name__, operator.namespace.HAS_GLUON)
import torch

y = layer(torch.ones(1, 24, 30))
print(torch.equal(y, operator(torch.ones(1, 24, 30), **dict(layer.named_parameters()))))
"""


@pytest.mark.parametrize("case", ["blocks_bdl"], indirect=True)
def test_another_process_is_told_what_to_load(case: Case, tmp_path: Path) -> None:
    """Of a file with a variant for sm_90, whose import of Gluon is no easy one."""
    for name, thing in (("layer", case.module()), ("operator", case.operator)):
        (tmp_path / name).write_bytes(pickle.dumps(thing))
    found = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path / "layer", tmp_path / "operator"],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert found.returncode == 0, found.stderr
    told, *rest = found.stdout.splitlines()
    assert f'call sh2gen.load(".../{case.path.name}") before unpickling it' in told
    assert rest == ["True True", "True"]


def test_meta_device(case: Case) -> None:
    """Large models are made without memory, then filled."""
    module = case.operator.module(device="meta")
    with torch.device("meta"):
        also = case.operator.module()
    for made in (module, also):
        assert {p.device.type for p in made.parameters()} == {"meta"}
    y = module(*(x.to("meta") for x in case.inputs(3, 11)))
    assert y.device.type == "meta"
    parameters = case.parameters()
    filled = copy.deepcopy(module).to_empty(device="cpu")
    filled.load_state_dict(parameters)
    module.load_state_dict(parameters, assign=True)
    inputs = case.inputs(3, 11)
    assert torch.equal(filled(*inputs), module(*inputs))
    assert filled(*inputs).stride() == y.stride()


# --------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    "case", ["hyena_bdl", "short_bld", "interleaved", "fft_bld"], indirect=True
)
def test_it_learns(case: Case, compiled: bool) -> None:
    """Another operator of its kind, from examples."""
    teacher, module = case.module(), case.operator.module()
    features = case.packed(4, 24)
    target = teacher(features).detach()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    call = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
    losses = []
    for _ in range(60):
        loss = functional.mse_loss(call(features), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_it_learns_inside_a_model(cases: dict[str, Case]) -> None:
    """Between projections, in bfloat16 with float32 filters."""
    case = cases["hyena_bld"]
    width, steps = case.spec.channels, 16

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(width, 3 * width)
            self.operator = case.operator.module()
            self.out = nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.operator(self.project(x)))

    x = torch.randn(8, steps, width)
    target = functional.pad(x, (0, 0, 2, 0))[:, :steps]  # what came two steps before
    mixer = Mixer().to(torch.bfloat16)
    optimizer = torch.optim.Adam(mixer.parameters(), lr=0.01)
    losses = []
    for _ in range(80):
        loss = functional.mse_loss(mixer(x.bfloat16()).float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert {p.dtype for p in mixer.operator.parameters()} == {torch.float32}
