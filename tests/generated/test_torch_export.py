"""torch.export of generated operators."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

if TYPE_CHECKING:
    from tests.generated.conftest import Case

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*LeafSpec")  # torch's own
# Each algorithm, layout, packing and kind of filter at least once.
FEW = ["hyena_bdl", "short_bld", "interleaved", "fft_bdl", "decay", "poles", "pairs"]


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def exported(case: Case, module: nn.Module, inputs: list[Tensor], **options: Any) -> Any:
    program = torch.export.export(module, tuple(inputs), **options)
    names = [node.target.name() for node in program.graph.nodes if node.op == "call_function"
             and hasattr(node.target, "name")]  # fmt: skip
    assert f"sh2gen::{case.operator.namespace.LIBRARY_NAME}" in names
    return program


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non_strict"])
@pytest.mark.parametrize("case", FEW, indirect=True)
def test_export(case: Case, strict: bool) -> None:
    """With any batch, and any length that is a multiple of 8 (see below)."""
    module = case.module()
    batch, blocks = torch.export.Dim("batch", max=64), torch.export.Dim("blocks", max=512)
    dynamic = {0: batch, case.time: 8 * blocks}
    program = exported(
        case,
        module,
        case.inputs(2, 24),
        strict=strict,
        dynamic_shapes=((dynamic,) * len(case.spec.inputs),),
    )
    inputs = case.inputs(3, 48)
    assert torch.equal(program.module()(*inputs), module(*inputs))
    assert torch.equal(program.run_decompositions().module()(*inputs), module(*inputs))


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non_strict"])
@pytest.mark.parametrize("case", ["hyena_bld", "short_bld", "fft_bld"], indirect=True)
def test_export_for_any_length(case: Case, strict: bool) -> None:
    """Channels-last only: whether a channels-first output is contiguous depends on its length."""
    module = case.module()
    dynamic = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=4096)}
    shapes = ((dynamic,) * len(case.spec.inputs),)
    program = exported(case, module, case.inputs(), strict=strict, dynamic_shapes=shapes)
    for batch, length in ((2, 19), (1, 1), (3, 32), (5, 61)):
        inputs = case.inputs(batch, length)
        assert torch.equal(program.module()(*inputs), module(*inputs))


@pytest.mark.parametrize("case", ["hyena_bdl", "blocks_bdl", "fft_bdl", "modal"], indirect=True)
def test_export_of_tensors_on_a_gpu(case: Case) -> None:
    """Which only say that they are: of any batch, and any length that is a multiple of 8."""
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
        module = case.operator.module(device="meta")
        for name, shape in {p.name: p.shape for p in case.spec.parameters}.items():
            values = torch.empty(shape, device="cuda")
            setattr(module, name, nn.Parameter(values, requires_grad=False))
        inputs = tuple(torch.empty(case.shape(2, 24), device="cuda") for _ in case.spec.inputs)
    batch, blocks = torch.export.Dim("batch", max=64), torch.export.Dim("blocks", max=512)
    shapes = (({0: batch, 2: 8 * blocks},) * len(inputs),)
    program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    assert {str(range) for range in program.range_constraints.values()} == {
        "VR[0, 64]",
        "VR[0, 4096]",
        "VR[2, 512]",
    }
    length = torch.export.Dim("length", max=4096)
    with pytest.raises(torch._dynamo.exc.UserError, match="Constraints violated"):
        shapes = (({0: batch, 2: length},) * len(inputs),)
        torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)


@pytest.mark.parametrize("case", FEW, indirect=True)
def test_export_saved_and_loaded(case: Case) -> None:
    """An odd length, fixed; and packed features where there are several inputs."""
    module = case.module()
    for inputs in (case.inputs(), [case.packed()]):
        stream = io.BytesIO()
        torch.export.save(exported(case, module, inputs), stream)
        stream.seek(0)
        loaded = torch.export.load(stream)
        assert torch.equal(loaded.module()(*inputs), module(*inputs))
        assert list(loaded.state_dict) == list(module.state_dict())


@pytest.mark.parametrize("case", ["poles"], indirect=True)
def test_ahead_of_time_inductor(case: Case, tmp_path: Path) -> None:
    """A package that calls library ops of this process."""
    module, inputs = case.module(), case.inputs(1, 24)
    program = exported(case, module, inputs)
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "operator.pt2")
    )
    with torch.no_grad():
        again = torch._inductor.aoti_load_package(package)(*inputs)
        torch.testing.assert_close(again, module(*inputs))
