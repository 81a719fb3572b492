"""Which config a generated file takes: of the table, or by the rules for other widths."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from sh2gen.base.files import signed
from sh2gen.base.resources import folder
from sh2gen.emit.config import entry
from sh2gen.emit.emit import emit, table
from sh2gen.emit.file import CONFIGS
from sh2gen.lower import plans
from sh2gen.runtime.operator import Operator
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import load_spec, spec_from_dict
from sh2gen.spec.operator import OpSpec
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


def test_the_table_is_asked_first_and_rather_for_this_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make(**SPECS["batches"])
    (plan,) = (p for p in plans(spec) if p.algorithm == "modal")
    source = emit(spec, plan, schedule(spec, plan))
    (config,) = source.configs.values()

    def programs(number: int) -> dict[str, dict[str, int]]:
        return {role: dict(one) | {"PROGRAMS": number} for role, one in config.items()}

    keys = {("A", 6, 2): 64, ("B", 6, 2): 128, ("A", 8, 2): 4}
    configs = table({key: programs(number) for key, number in keys.items()})
    path = tmp_path / "file.py"
    path.write_text(signed(source.frame.replace(f"\n{CONFIGS}\n", f"\n{configs}\n")))
    file = Operator(path).namespace
    x = torch.zeros(1, 6, 8)
    for gpu, channels, groups, wanted in (
        ("A", 6, 2, 64),
        ("B", 6, 2, 128),
        ("C", 6, 2, 64),  # better than none
        ("B", 8, 2, 4),
        ("A", 9, 3, None),
    ):
        monkeypatch.setattr(file, "gpu_name", lambda device, gpu=gpu: gpu)
        file.CHOSEN.clear()
        found = file.configs_of(x, channels, groups)
        default = file.default_configs(channels, groups, x.device)
        for role in ("forward", "backward"):
            expected = default[role] if wanted is None else programs(wanted)[role]
            # A batch of eight sequences runs at once.
            assert found[role] == expected | {"PROGRAMS": max(1, expected["PROGRAMS"] // 8)}
        assert file.configs_of(x, channels, groups) is found
    assert {one["PROGRAMS"] for one in file.CONFIGS["A", 6, 2].values()} == {64}, "untouched"
