"""Parameters as kernels read them, by interpreted kernels: of other dtypes, and of the shape of a
conv1d's weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from sh2gen.runtime.operator import InterpreterRunner

if TYPE_CHECKING:
    from tests.generated.conftest import Case

# With taps, with taps that decay, with log-poles, with p and gamma, and with pairs.
KINDS = ["hyena_bdl", "decay", "modal", "poles", "pairs"]


def results(case: Case, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """y and all gradients."""
    torch.manual_seed(0)
    inputs = dict(zip(case.spec.inputs, case.inputs(1, 19), strict=True))
    runner = InterpreterRunner(case.path)
    found = runner.gradients(inputs, parameters, case.activation(1, 19))
    return {"y": runner.forward(inputs, parameters), **found}


# Triton's interpreter reads bfloat16 wrongly; on a GPU all are compared.
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("case", KINDS, indirect=True)
def test_kernels_compute_in_float32_and_round_gradients_once(
    case: Case, dtype: torch.dtype
) -> None:
    narrow = {name: p.to(dtype) for name, p in case.parameters().items()}
    found = results(case, narrow)
    wanted = results(case, {name: p.float() for name, p in narrow.items()})
    for name, value in wanted.items():
        kind = dtype if name in narrow else value.dtype
        assert found[name].dtype == kind
        assert torch.equal(found[name], value.to(kind))


@pytest.mark.parametrize("case", ["hyena_bdl", "decay"], indirect=True)
def test_gradients_have_the_shape_of_a_weight_of_conv1d(case: Case) -> None:
    given = case.parameters()
    weights = {n: p[:, None] if n in ("filter", "featurizer") else p for n, p in given.items()}
    found, wanted = results(case, weights), results(case, given)
    for name, value in wanted.items():
        shape = weights[name].shape if name in weights else value.shape
        assert torch.equal(found[name], value.view(shape))
