"""What verification would take is said before it is taken."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from sh2gen.api import compilation
from sh2gen.api.compile import compile_operator, compile_operators
from sh2gen.api.verify import verify_operator
from sh2gen.base.errors import Sh2genError
from sh2gen.base.resources import folder
from sh2gen.cli.cli import main
from sh2gen.lower import plans
from sh2gen.spec.decode import load_spec, parse_spec
from sh2gen.verify import memory
from sh2gen.verify.checks import EAGER_SHAPES

HUGE = "{op: huge_conv, channels: 64, filter: {kind: %s, length: 2147483647, groups: %d}}"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.parametrize(("kind", "groups"), [("explicit", 1), ("freeform", 64)])
def test_an_operator_that_cannot_be_verified_here_is_refused_at_once(
    kind: str, groups: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 64 * 10**9)
    (tmp_path / "op.yaml").write_text(HUGE % (kind, groups))
    arguments = ["compile", str(tmp_path / "op.yaml"), f"--out={tmp_path}/out"]
    begin = time.monotonic()
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert "would take about" in result.stderr and "there are 64.0 GB" in result.stderr
    assert "help: --no-verify " in result.stderr
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "op.yaml")])
    assert result.exit_code == 2 and "error[V003]" in result.stderr
    assert time.monotonic() - begin < 10
    assert CliRunner().invoke(main, [*arguments, "--no-verify"]).exit_code == 0


@pytest.mark.parametrize("path", sorted(folder("ops").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_operators_are_verified_on_small_machines(path: Path) -> None:
    """The estimate is no reason to refuse what works."""
    spec = load_spec(path)
    needed = memory.verification_bytes(spec, EAGER_SHAPES, plans(spec)[0].states)
    assert 10**5 < needed < 8 * 10**9


# What the process holds, and the most that it held since it was last asked.
PEAKS = """
import ctypes, gc, pathlib, re, sys, tempfile
from sh2gen.api.compile import compile_operator
from sh2gen.spec.decode import parse_spec

def held(name):
    text = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(name + r":\\s+(\\d+)", text)[1])

with tempfile.TemporaryDirectory() as folder:
    for text in sys.argv[1:]:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = held("VmRSS")
        compile_operator(parse_spec(text), out=folder, built=False)
        print(held("VmHWM") - before)
"""
OF_SEVERAL_KINDS = [
    "{op: taps_conv, channels: 32768, filter: {kind: explicit, length: 3, groups: 32768}}",
    "{op: long_conv, channels: 32, filter: {kind: freeform, length: 65536, groups: 32}}",
    "{op: pairs_conv, channels: 32, filter: {kind: modal, groups: 32, modes: 2048, "
    "parametrisation: complex}}",
]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel what was held")
def test_what_is_predicted_is_about_what_is_taken() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, *OF_SEVERAL_KINDS],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    for text, taken in zip(OF_SEVERAL_KINDS, map(int, done.stdout.split()), strict=True):
        spec = parse_spec(text)
        needed = memory.verification_bytes(spec, EAGER_SHAPES, plans(spec)[0].states)
        assert needed / 2 < taken < 2 * needed, f"{text}: {needed:,} predicted, {taken:,} taken"


def test_what_is_compared_is_what_is_afforded() -> None:
    """The estimate is no reason to refuse what works: calls of 64 GB of activations, of which
    some groups are compared.
    """
    spec = load_spec("hyena_se")
    needed = memory.verification_bytes(spec, [(2, 2**17)], device="cuda")
    assert 32 * 10**9 < needed < 100 * 10**9


def test_a_gpu_has_a_memory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60 * 10**9, 150 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 5 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 10**9)
    monkeypatch.setattr(memory, "available", lambda: None)
    spec, told = (
        parse_spec(HUGE % ("explicit", 1)),
        r"of memory on the GPU, and there are 64\.0 GB",
    )
    with pytest.raises(Sh2genError, match=told):
        compile_operator(spec, out=tmp_path)
    with pytest.raises(Sh2genError, match=told):
        verify_operator(spec)


def test_a_container_may_have_less_than_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = memory.available()
    assert there is None or there > 10**6
    monkeypatch.setattr(memory, "_V2", str(tmp_path))
    for name, text in (
        ("memory.max", "3000000\n"),
        ("memory.current", "2500000\n"),
        ("memory.stat", "anon 7\ninactive_file 500000\n"),
    ):
        (tmp_path / name).write_text(text)
    assert memory.available() == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() != 1_000_000


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "/tmp/x"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"),
    ],
)
def test_what_a_machine_has_not_is_no_bug(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("sh2gen.api.compile.compile_operators", fails)
    result = CliRunner().invoke(main, ["compile", "hyena_se"])
    assert result.exit_code == 2 and "error[C007]: the system refuses: " in result.stderr
    assert "Traceback" not in result.stderr and "Errno" not in result.stderr


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError(),
        FileNotFoundError(2, "No such file or directory", "x"),
        OSError("libx.so: cannot open shared object file"),
    ],
)
def test_what_is_wrong_with_a_program_is_not_the_machines(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("sh2gen.api.compile.compile_operators", fails)
    result = CliRunner().invoke(main, ["compile", "hyena_se"])
    assert result.exit_code == 3 and "Traceback" in result.stderr


def test_workloads_by_the_thousand_take_no_longer_than_a_thousandth_each(tmp_path: Path) -> None:
    sizes = ", ".join(f"{{batch: 1, length: {n}}}" for n in range(1, 1001))
    taps = "filter: {kind: explicit, length: 4, groups: 64}"
    spec = parse_spec(f"{{op: many_conv, channels: 64, {taps}, workloads: [{sizes}]}}")
    begin = time.process_time()
    compile_operator(spec, out=tmp_path, verified=False, built=False)
    assert time.process_time() - begin < 3  # 0.6 on a machine that has nothing else to do
    few = dataclasses.replace(spec, workloads=spec.workloads[:9])
    (tmp_path / "few.yaml").write_text(few.to_yaml())
    for verb in (("compile", "--no-verify", "--no-build", f"--out={tmp_path}"), ("explain",)):
        result = CliRunner().invoke(main, [*verb, f"{tmp_path}/few.yaml", "--plan=fft/BDL"])
        assert result.stdout.count("predicted B=1") == 8 and "and 1 more" in result.stdout


def test_memory_is_asked_for_before_any_operator_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    monkeypatch.setattr(compilation, "Building", None)  # nobody calls it
    specs = [load_spec("short_conv_3"), parse_spec(HUGE % ("explicit", 1))]
    with pytest.raises(Sh2genError, match="would take about 206"):
        compile_operators(specs, out=tmp_path)
