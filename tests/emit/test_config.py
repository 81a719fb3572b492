"""Which config a generated file takes: of the table, or by the rules for other widths."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sh2gen.base.resources import folder
from sh2gen.emit.config import entry, width_of
from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.runtime.operator import Operator
from sh2gen.schedule.config import Schedule, schedule
from sh2gen.spec.decode import load_spec, spec_from_dict
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target, known, target
from tests.gpus import A100, H200
from tests.strategies import MODES, PAIRS, TAPS

WIDTHS = ((6, 2), (7, 7), (48, 1), (128, 128), (160, 32), (4096, 16), (4096, 256), (4096, 4096))
SPECS: dict[str, dict[str, Any]] = {
    "taps": {"filter": TAPS},
    "exact": {"filter": TAPS, "precision": "exact"},
    "float32": {"filter": TAPS, "dtype": {"io": "float32"}},
    "long": {"filter": TAPS | {"length": 200}, "gates": {"post": True}},
    "modes": {"filter": MODES | {"modes": 40}, "state": {"initial": True, "final": True}},
    "pairs": {"filter": PAIRS, "featurizer": {"length": 3}},
    "batches": {"filter": MODES, "workloads": [{"batch": 8, "length": 4096}]},
}


def make(**fields: Any) -> OpSpec:
    return spec_from_dict({"op": "probe", "channels": 6, "gates": {"pre": True}} | fields)


def of_width(spec: OpSpec, channels: int, groups: int) -> OpSpec:
    inner = dataclasses.replace(spec.filter, groups=groups)
    return dataclasses.replace(spec, channels=channels, filter=inner)


def defaults_are_those_of_schedules(spec: OpSpec, folder_: Path) -> None:
    for number, plan in enumerate(plan for plan in plans(spec) if plan.kernels):
        path = folder_ / f"file_{number}.py"
        path.write_text(emit(spec, plan, schedule(spec, plan)).text)
        file = Operator(path).namespace
        for channels, groups in WIDTHS:
            other = of_width(spec, channels, groups)
            (there,) = (p for p in plans(other) if p.name == plan.name)
            expected = entry(there, schedule(other, there))
            found = file.default_configs(channels, groups, torch.device("cpu"))
            assert found == expected, f"{plan.name}: {channels} channels in {groups} groups"


@pytest.mark.parametrize("name", SPECS)
def test_rules_are_those_of_schedules_for_every_width(name: str, tmp_path: Path) -> None:
    defaults_are_those_of_schedules(make(**SPECS[name]), tmp_path)


@pytest.mark.parametrize("op", ["hyena_se", "hyena_mr", "hyena_li"])
def test_rules_of_shipped_operators(op: str, tmp_path: Path) -> None:
    defaults_are_those_of_schedules(load_spec(folder("ops") / f"{op}.yaml"), tmp_path)


@contextmanager
def gpu_there(gpu: Target, name: str = "") -> Iterator[SimpleNamespace]:
    """What torch says of a GPU that is not there, and something on it."""
    limits = SimpleNamespace(shared_memory_per_block_optin=gpu.shared_per_block)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "get_device_name", lambda device: name or gpu.device_name)
        patch.setattr(
            torch.cuda, "get_device_capability", lambda device: divmod(gpu.capability, 10)
        )
        patch.setattr(torch.cuda, "get_device_properties", lambda device: limits)
        yield SimpleNamespace(device=torch.device("cuda", 0))


SHIPPED = sorted(path for path in folder("generated").glob("*.py"))


@pytest.mark.parametrize("gpu", known(), ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_take_on_every_gpu_what_compile_would(path: Path, gpu: Target) -> None:
    """The default for that GPU, unless a config is stated for one of its capability."""
    operator = Operator(path)
    file = operator.namespace
    for channels, groups in getattr(file, "WIDTHS", {}):
        spec = operator.spec.with_width(channels, groups)
        (plan,) = (p for p in plans(spec) if p.name == operator.plan)
        expected = entry(plan, schedule(spec, plan, target=gpu))
        if gpu.capability == H200.capability:
            expected = file.CONFIGS.get(("NVIDIA H200", channels, groups), expected)
        file.CHOSEN.clear()
        with gpu_there(gpu) as x:
            found = file.configs_of(x, channels, groups)
        file.CHOSEN.clear()
        for role, config in expected.items():
            assert found[role] == config | programs(config, file.WIDTHS[channels, groups])


def programs(config: Mapping[str, int], batch: int) -> dict[str, int]:
    """A batch of sequences runs at once."""
    wanted = config.get("PROGRAMS")
    return {} if wanted is None else {"PROGRAMS": max(1, wanted // batch)}


def test_configs_of_this_gpu_then_of_its_capability_then_the_default(tmp_path: Path) -> None:
    spec = make(**SPECS["batches"])
    (plan,) = (p for p in plans(spec) if p.algorithm == "modal")

    def wanted(number: int) -> Schedule:
        return schedule(spec, plan, {d: {"PROGRAMS": number} for d in ("forward", "backward")})

    widths = [
        width_of(spec, "NVIDIA H200", wanted(64)),
        width_of(spec, "NVIDIA B200", wanted(128)),
        width_of(spec, "unknown", wanted(32)),
        dataclasses.replace(width_of(spec.with_width(8, 2)), batch=2),
        dataclasses.replace(width_of(spec.with_width(10, 2)), gpu="", schedule=wanted(4)),
    ]
    source = emit(spec, plan, wanted(64), widths)
    path = tmp_path / "file.py"
    path.write_text(source.text)
    file = Operator(path).namespace
    before = copy.deepcopy(file.CONFIGS)
    default = 512, 256
    for gpu, name, width, both, batch in (
        (H200, "", (6, 2), (64, 64), 8),
        (target("H100"), "", (6, 2), (64, 64), 8),  # of one capability
        (target("B200"), "", (6, 2), (128, 128), 8),
        (A100, "", (6, 2), default, 8),
        (A100, "unknown", (6, 2), (32, 32), 8),
        (H200, "", (8, 2), default, 2),  # of its own batch
        (H200, "", (12, 3), default, 8),  # of that of the file
        (A100, "", (10, 2), (4, 4), 8),  # stated for every device
    ):
        file.CHOSEN.clear()
        with gpu_there(gpu, name) as x:
            found = file.configs_of(x, *width)
            assert file.configs_of(x, *width) is found, "chosen once"
        stated = dict(zip(("forward", "backward"), both, strict=True))
        assert found["decode"] == dict(schedule(spec, plan).decode)
        assert {r: found[r]["PROGRAMS"] for r in stated} == {
            role: max(1, number // batch) for role, number in stated.items()
        }
    assert before == file.CONFIGS
