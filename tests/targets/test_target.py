"""GPUs as data: the files that are there, what is refused in one, and GPUs that have none."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from sh2gen.api.bench import bench_operator
from sh2gen.api.compile import compile_operator
from sh2gen.api.tune import tune_operator
from sh2gen.base.errors import Sh2genError
from sh2gen.base.resources import folder
from sh2gen.cli.cli import main
from sh2gen.spec.decode import load_spec, spec_from_dict
from sh2gen.spec.operator import OpSpec
from sh2gen.targets import target as targets
from sh2gen.targets.target import Target, from_device, here, known, stand_in, target
from tests.gpus import A100, B200, H100, H200

SMALL = ["RTX 3090", "RTX 4090", "RTX 5090"]
FILES = ["h200", "a100", "b200", "h100", "rtx3090", "rtx4090", "rtx5090"]


@pytest.fixture(autouse=True)
def copied(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with copies of these files alone, from which targets are read: one more beside them
    changes who serves a GPU that has none, and nothing here.
    """
    place = tmp_path_factory.mktemp("targets")
    for name in FILES:
        shutil.copy(targets.FOLDER / f"{name}.yaml", place)
    monkeypatch.setattr(targets, "FOLDER", place)
    return place


# ---- the files that are there -------------------------------------------------------------------


def test_targets_are_found_by_name_and_unknown_ones_named() -> None:
    assert target("h200") is target("SM_90") is targets.DEFAULT == H200
    assert target("H100") == H100
    assert target("rtx3090") is target("RTX 3090") is target("sm_86")
    with pytest.raises(Sh2genError) as caught:
        target("H20")
    assert caught.value.code == "B003"
    assert "H200, sm_90, A100, sm_80, B200, sm_100, H100, RTX 3090" in caught.value.message
    assert caught.value.help == "did you mean `H200`?"


def test_the_default_comes_first_and_the_others_by_their_files() -> None:
    names = [gpu.name for gpu in targets.TARGETS]
    assert names == ["H200", "A100", "B200", "H100", *SMALL]


def test_what_was_not_measured_is_said() -> None:
    assert H200.measured is not None and H200.caveat == ""
    for gpu in known()[1:]:
        assert gpu.measured is None and gpu.constants == H200.constants
        assert gpu.caveat.endswith("constants of H200, not measured")
        shares = gpu.copy_bandwidth / gpu.dram_bandwidth, gpu.matmul / gpu.bf16_tensor
        assert shares == pytest.approx((4.28 / 4.8, 790 / 989))


@pytest.mark.parametrize("name", SMALL)
def test_small_ones(name: str) -> None:
    gpu = target(name)
    assert gpu.shared_per_block == 101376 and gpu.shared_per_sm == 102400
    assert gpu.product_rows == 16 and gpu.threads_per_sm == 1536


# ---- files that are refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "key", "why", "help"),
    [
        ("sms: 132", "sms: 132\nsmss: 1", "smss", "unknown key", "did you mean `sms`?"),
        ("sms: 132\n", "", "", "the key `sms` is missing", None),
        ("sms: 132", "sms: many", "sms", "not a whole number but `many`", None),
        ("sms: 132", "sms: 132.5", "sms", "not a whole number but `132.5`", None),
        ("sms: 132", "sms: 0", "sms", "0 is not above 0", None),
        ("sms: 132", "sms: 132\nsms: 1", "sms", "it is given twice", None),
        ("clock: 1.98e+9", "clock: 1.98e9", "clock", "not a number but `1.98e9`", "4.8e+12"),
        ("clock: 1.98e+9", "clock: .inf", "clock", "not a number but `.inf`", None),
        ("aliases: [sm_90]", "aliases: sm_90", "aliases", "not a list but `sm_90`", None),
        ("default: true", "default: 1", "default", "not true or false but `1`", None),
        ("backend: cuda", "backend: hip", "backend", "`hip` is not one of cuda", None),
        ("name: H200", "name: H100", "name", "H100 is a name of h100.yaml", None),
        ("device_name: NVIDIA H200", "device_name: '('", "device_name", "not a regular", None),
        ("power: 0.93", "pow: 0.93", "forward_registers.pow", "unknown key", "`power`?"),
        (", power: 0.93", "", "constants.forward_registers", "power` is missing", None),
        ("launch: 2.5e-6", "launch: -1.0", "constants.launch", "not a number but `-1.0`", None),
        ("measured: {card", "measured: null\nwas: {card", "was", "unknown key", None),
        ("constants:", "constants_of: a100\nconstants:", "constants_of", "needs either", None),
    ],
)
def test_a_malformed_file_is_refused(
    old: str, new: str, key: str, why: str, help: str | None, copied: Path
) -> None:
    path = copied / "h200.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(Sh2genError) as caught:
        known()
    error = caught.value
    assert error.code == "B007" and key in error.message and why in error.message
    named = copied / "h100.yaml" if "h100.yaml" in why else path
    assert str(path) in error.message or str(named) in error.message
    assert help is None or help in str(error.help)
    assert (error.location is None) == (key == "")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [", "malformed"),
        ("", "not a mapping but nothing"),
        ("- 1\n", "not a mapping but a list"),
        ("constants_of: a100\n", "a100.yaml has no constants"),
        ("name: X\n", "it needs either `constants` or `constants_of`"),
    ],
)
def test_what_is_no_description_is_refused(text: str, why: str, copied: Path) -> None:
    (copied / "x.yaml").write_text(text)
    with pytest.raises(Sh2genError, match=r"x\.yaml") as caught:
        known()
    assert caught.value.code == "B007" and why in caught.value.message


def test_one_file_is_the_default(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copied / "a100.yaml"
    path.write_text(path.read_text() + "default: true\n")
    with pytest.raises(Sh2genError, match=r"a100\.yaml is the default already"):
        known()
    empty = copied / "empty"
    empty.mkdir()
    monkeypatch.setattr(targets, "FOLDER", empty)
    with pytest.raises(Sh2genError, match="says `default: true`"):
        known()


def test_the_command_line_names_the_file_and_the_key(copied: Path) -> None:
    path = copied / "rtx3090.yaml"
    path.write_text(path.read_text().replace("sms: 82", "sms: eighty"))
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 2
    assert "rtx3090.yaml is malformed: sms: not a whole number but `eighty`" in result.stderr
    assert "rtx3090.yaml:" in result.stderr and "Traceback" not in result.stderr


# ---- one more GPU is one more file --------------------------------------------------------------


def test_a_new_file_is_a_new_gpu(copied: Path, tmp_path: Path) -> None:
    """Its numbers decide what fits, what is predicted, and which architecture is compiled for."""
    values = yaml.safe_load((copied / "rtx4090.yaml").read_text())
    values |= {"name": "Tiny", "device_name": "NVIDIA Tiny", "aliases": [], "sms": 1}
    (copied / "tiny.yaml").write_text(yaml.safe_dump(values))
    out = ["--out", str(tmp_path / "out"), "--no-verify", "--json"]
    slow, fast = (
        json.loads(
            CliRunner().invoke(main, ["compile", "short_conv", f"--target={t}", *out]).stdout
        )
        for t in ("tiny", "rtx 4090")
    )
    assert slow[0]["target"] == "Tiny"
    assert "Tiny (sm_89): limits" in slow[0]["target_note"]
    spec = load_spec(folder("ops") / "short_conv.yaml")
    found = compile_operator(spec, target="tiny", verified=False, write=False)
    assert found.built is not None and found.built.target == target("Tiny")
    assert all(".target sm_89" in kernel.ptx for kernel in found.built.kernels)
    times = [one[0]["predictions"][-1]["forward"]["seconds"] for one in (slow, fast)]
    assert times[0] > 2 * times[1]


def test_the_recipe_of_the_page_is_a_gpu(copied: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "architecture.md"
    found = re.search(r"```yaml\n# sh2gen/targets/(\w+)\.yaml\n(.*?)```", page.read_text(), re.S)
    assert found is not None
    (copied / f"{found[1]}.yaml").write_text(found[2])
    gpu = target(found[1])
    assert (gpu.name, gpu.sm, gpu.shared_per_block) == ("L40S", "sm_89", 99 * 1024)
    assert gpu.caveat.startswith("L40S (sm_89): ")


def test_less_shared_memory_is_a_number_in_a_file(copied: Path) -> None:
    inner = {"kind": "explicit", "length": 20, "groups": 4}
    spec = spec_from_dict({"op": "few", "channels": 64, "filter": inner})
    (copied / "h200.yaml").write_text(
        (copied / "h200.yaml")
        .read_text()
        .replace("shared_per_block: 232448", "shared_per_block: 1")
    )
    with pytest.raises(Sh2genError, match=r"does not fit H200(.|\n)*the limit is 1"):
        compile_operator(
            spec,
            target="H200",
            plan="toeplitz",
            changes={"forward": {"TILES": 8}},
            verified=False,
            write=False,
        )


# ---- the GPU of this machine --------------------------------------------------------------------


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)


@pytest.mark.parametrize(
    ("device", "found"),
    [
        ("NVIDIA H200", H200),
        ("NVIDIA H100 80GB HBM3", H100),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H200 MIG 1g.18gb", None),
        (None, None),
    ],
)
def test_the_current_device_is_recognised_by_its_whole_name(
    monkeypatch: pytest.MonkeyPatch, device: str | None, found: Target | None
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: device is not None)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: device)
    assert from_device() == found
    assert found is None or from_device() is target(found.name)


@pytest.mark.parametrize(
    ("name", "capability", "served_by"),
    [
        ("NVIDIA GH200 480GB", (9, 0), "H200"),  # of two alike the first
        ("NVIDIA L4", (8, 9), "RTX 4090"),
        ("NVIDIA A40", (8, 6), "RTX 3090"),
        ("NVIDIA B300", (10, 3), "RTX 4090"),  # none alike: the least memory, the nearest of these
        ("NVIDIA Thor", (11, 0), "RTX 4090"),
        ("NVIDIA Spark", (12, 1), "RTX 5090"),
        ("Tesla T4", (7, 5), "RTX 5090"),  # none below: the least memory of all
    ],
)
def test_a_gpu_without_a_file_is_served_by_another(
    name: str, capability: tuple[int, int], served_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, name, capability)
    gpu, other = here(), target(served_by)
    assert gpu == dataclasses.replace(other, device_name=name, stands_for=name)
    assert gpu == stand_in(name, 10 * capability[0] + capability[1])
    assert gpu.caveat == (
        f"{name} is not known; using limits of {served_by} ({other.sm}), not measured"
    )
    assert from_device() is None


def test_the_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert here() is target("H200") == H200
    for gpu in (H100, A100, B200):
        pretend(monkeypatch, gpu.device_name, divmod(gpu.capability, 10))
        assert here() is target(gpu.name) == gpu


L4 = "NVIDIA L4 is not known; using limits of RTX 4090 (sm_89), not measured"


def test_commands_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, "NVIDIA L4", (8, 9))

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    assert f"RTX 4090 ({L4})" in run("doctor")
    assert json.loads(run("doctor", "--json"))["target_note"] == L4
    place = f"--out={tmp_path / 'out'}"
    assert run("compile", "short_conv", "--no-verify", "--no-build", place).count(L4) == 2
    assert L4 in run("explain", "short_conv")
    assert L4 in run("tune", "short_conv", "--effort=estimate", "--length=1024")


def test_tune_and_bench_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before they need the GPU for anything."""

    class EnoughError(Exception):
        pass

    def enough(*_: object, **__: object) -> None:
        raise EnoughError

    pretend(monkeypatch, "NVIDIA L4", (8, 9))
    spec: OpSpec = load_spec(folder("ops") / "short_conv.yaml")
    said: list[str] = []
    monkeypatch.setattr("sh2gen.api.tune.Session", enough)
    with pytest.raises(EnoughError):
        list(tune_operator(spec, out=tmp_path, warn=said.append))
    assert said.count(L4) == 1
    monkeypatch.setattr("sh2gen.api.bench.emit", enough)
    with pytest.raises(EnoughError):
        bench_operator(spec, warn=said.append)
    assert said.count(L4) == 2
