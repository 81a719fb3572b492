"""Plain PyTorch of a generated file as an ONNX program, by onnxruntime."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tests.generated.conftest import Case

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter's own calls


def exported(case: Case, module: nn.Module, arguments: tuple[Any, ...], shapes: Any) -> Any:
    """A session of onnxruntime."""
    stream = io.BytesIO()
    with case.operator.plain():
        options = {"dynamic_shapes": shapes, "dynamo": True, "verbose": False}
        torch.onnx.export(module, arguments, stream, **options)
    return onnxruntime.InferenceSession(stream.getvalue(), providers=["CPUExecutionProvider"])


def run(session: Any, tensors: list[Tensor]) -> list[Tensor]:
    names = [given.name for given in session.get_inputs()]
    feeds = {name: x.numpy() for name, x in zip(names, tensors, strict=True)}
    return [torch.from_numpy(found) for found in session.run(None, feeds)]


def dims(case: Case) -> dict[int, Any]:
    """Any batch, and any length with channels last, of multiples of 8 with channels first."""
    count = torch.export.Dim("count", max=512)
    length = count if case.operator.layout == "BLD" else 8 * count
    return {0: torch.export.Dim("batch", max=64), case.time: length}


@pytest.mark.parametrize("case", ["short_bld", "hyena_bdl"], indirect=True)
def test_any_length(case: Case) -> None:
    module = case.module()
    shapes = ((dims(case),) * len(case.spec.inputs),)
    session = exported(case, module, tuple(case.inputs(2, 24)), shapes)
    for batch, length in ((2, 24), (3, 48), (1, 512)):
        inputs = case.inputs(batch, length)
        torch.testing.assert_close(run(session, inputs), [module(*inputs)], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["fft_bdl", "modal"], indirect=True)
def test_one_length(case: Case) -> None:
    """Where the steps of plain PyTorch depend on the length, another is refused, not wrong."""
    module, inputs = case.module(), case.inputs(2, 21)
    session = exported(case, module, tuple(inputs), None)
    torch.testing.assert_close(run(session, inputs), [module(*inputs)], rtol=1e-3, atol=1e-3)
    with pytest.raises(torch.onnx.OnnxExporterError):
        exported(case, module, tuple(inputs), ((dims(case),) * len(inputs),))


def test_chunks(stateful_cases: dict[str, Case]) -> None:
    """A state is taken and given as tensors."""
    case = stateful_cases["modal"]
    module, inputs = case.module(), case.inputs(2, 24)
    _, state = module(*inputs)

    class Chunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.operator = module

        def forward(self, inputs: list[Tensor], state: list[Tensor]) -> tuple[Tensor, ...]:
            y, after = self.operator(*inputs, state=[*state, False])
            return y, *after[:-1]

    before = [x.detach() for x in state[:-1]]
    session = exported(case, Chunk(), (inputs, before), None)
    y, after = module(*inputs, state=[*before, False])
    found = run(session, [*inputs, *before])
    torch.testing.assert_close(found, [y, *after[:-1]], rtol=1e-4, atol=1e-4)
