"""Peak memory is what launchers allocate, to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sh2gen.cost.memory import peak
from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.plan.plan import Plan
from sh2gen.runtime.operator import Operator
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from tests.gpus import A100

GATED: dict[str, Any] = {
    "channels": 48,
    "featurizer": {"length": 3},
    "gates": {"pre": True, "post": True},
    "skip": "channel",
    "dtype": {"io": "float32"},
}
MODES = {"kind": "modal", "groups": 48, "modes": 4, "parametrisation": "log_poles"}
SPECS: dict[str, dict[str, Any]] = {
    "direct/BDL/recompute": {"filter": {"kind": "explicit", "length": 7, "groups": 3}},
    "direct/BLD/save-pre_skip": {"filter": {"kind": "explicit", "length": 7, "groups": 3}},
    "toeplitz/BDL/recompute": {"filter": {"kind": "explicit", "length": 70, "groups": 3}},
    "modal/BDL/save-states": {"filter": MODES},
}


class Allocated(TorchDispatchMode):
    """How many bytes are allocated, which stay as long as this does."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if "empty" in func._schema.name:
            self.made[found.untyped_storage().data_ptr()] = found
        return found

    @property
    def bytes(self) -> int:
        return sum(x.untyped_storage().nbytes() for x in self.made.values())


def made(folder: Path, name: str) -> tuple[OpSpec, Plan, Any]:
    spec = spec_from_dict(GATED | {"op": "probe"} | SPECS[name])
    (plan,) = (p for p in plans(spec, name.split("/")[0]) if p.name == name)
    path = folder / "probe.py"
    path.write_text(emit(spec, plan, schedule(spec, plan, target=A100)).text)
    return spec, plan, Operator(path).namespace


@pytest.mark.parametrize("length", [64, 1037, 20000])
@pytest.mark.parametrize("name", SPECS)
def test_what_is_predicted_is_allocated(
    name: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, plan, module = made(tmp_path, name)
    monkeypatch.setattr(module, "launch", lambda *_, **__: None)
    taken = schedule(spec, plan, target=A100)
    monkeypatch.setattr(
        module, "configs_of", lambda *_: {r.value: dict(taken.config(r)) for r in plan.roles}
    )
    shape = (2, spec.channels, length) if module.LAYOUT == "BDL" else (2, length, spec.channels)
    inputs = [torch.empty(shape) for _ in spec.inputs]
    parameters = [torch.empty(p.shape) for p in spec.parameters]
    keep = {"keep": True} if plan.states else {}
    found = peak(spec, plan, taken, Workload(batch=2, length=length), A100)
    assert found is not None
    without = {"keep": False} if plan.states else {}
    with Allocated() as forward:
        module.launch_forward(inputs, parameters, **without)
    assert forward.bytes == found.forward
    with Allocated() as step:
        y, *saved = module.launch_forward(inputs, parameters, **keep)
        sums = {id(x) for x in step.made.values()} - {id(x) for x in (y, *saved)}
        given = sum(x.untyped_storage().nbytes() for x in step.made.values() if id(x) not in sums)
        first, step.made = step.bytes, {}
        dy = torch.empty_strided(y.shape, y.stride())
        module.launch_backward(dy, inputs, parameters, saved)
    assert found.step == max(first, given + step.bytes)
    assert found.activation == y.untyped_storage().nbytes()
    assert found.times(found.step) >= len(inputs) + 2


def test_plain_pytorch_has_no_such_prediction() -> None:
    spec = spec_from_dict(GATED | {"op": "probe"} | SPECS["direct/BDL/recompute"])
    (plan, *_) = plans(spec, "fft")
    assert peak(spec, plan, schedule(spec, plan), Workload(batch=1, length=64), A100) is None
