"""Ahead-of-time builds of a small hand-written file: what fits, what is refused and why."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sh2gen.base.errors import CheckFailed, Sh2genError
from sh2gen.base.resources import folder
from sh2gen.build import worker as build_worker
from sh2gen.build.build import Building, Built, Compilers, check_fits
from sh2gen.build.build import build as build_alone
from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.plan.kernel import Role
from sh2gen.plan.source import Alignment, KernelSource, Source
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import load_spec
from sh2gen.targets.target import Target, target
from tests.gpus import A100, B200, H200

TEXT = '''
"""A file in the shape of a generated one: a guarded Triton and a part that only torch needs."""
from __future__ import annotations

import a_module_that_only_the_caller_needs

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:
    triton = None

SCALE = tl.constexpr(2)
OFFSET = tl.constexpr(1)


@triton.jit
def affine(x):
    return x * SCALE + OFFSET


@triton.jit
def scale(x_ptr, y_ptr, length, BLOCK: tl.constexpr):
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + t, mask=t < length, other=0.0).to(tl.float32)
    tl.store(y_ptr + t, affine(x), mask=t < length)


@triton.jit
def wide(x_ptr, y_ptr, length, N: tl.constexpr):
    """Carries N float32 values through a loop: N / 32 registers per thread in one warp."""
    t = tl.arange(0, N)
    acc = tl.load(x_ptr + t).to(tl.float32)
    for i in range(length):
        acc = acc * acc + i
    tl.store(y_ptr + t, acc)


@triton.jit
def matmul(x_ptr, y_ptr, length, M: tl.constexpr):
    m = tl.arange(0, M)
    tile = m[:, None] * M + m[None, :]
    acc = tl.zeros((M, M), tl.float32)
    for i in tl.range(0, length, num_stages=4):
        x = tl.load(x_ptr + i * M * M + tile)
        acc = tl.dot(x, x, acc)
    tl.store(y_ptr + tile, acc)


@triton.jit
def broken(x_ptr, y_ptr, length):
    tl.store(y_ptr + tl.arange(0, 16), tl.arange(0, 32))


@triton.jit
def outer(x_ptr, y_ptr, length):
    broken(x_ptr, y_ptr, length)


if triton is not None:
    raise RuntimeError("the build must not run this")
'''


def kernel(name: str, num_warps: int = 4, **constants: int) -> KernelSource:
    return KernelSource(
        name=name,
        role=Role.FORWARD,
        signature=(("x_ptr", "*bf16"), ("y_ptr", "*bf16"), ("length", "i32")),
        constants=tuple(constants.items()),
        divisible=("x_ptr", "y_ptr", "length"),
        unaligned_keeps=(),
        num_warps=num_warps,
        num_stages=2,
    )


def source(*kernels: KernelSource) -> Source:
    return Source(op="toy", text=TEXT, kernels=kernels)


SCALE = kernel("scale", BLOCK=1024)


@pytest.fixture(scope="module", autouse=True)
def cold_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def build(cold_cache: None) -> Iterator[Callable[..., Built]]:
    """By one process for all tests that are not about processes: each hashes Triton first."""
    with closing(Compilers(1, 60.0)) as compilers:
        yield functools.partial(build_alone, compilers=compilers)


@pytest.fixture(scope="module")
def scaled(build: Callable[..., Built]) -> Built:
    return build(source(SCALE), H200)


def test_a_small_kernel_fits(scaled: Built) -> None:
    check_fits(scaled, H200)
    aligned = scaled.kernel("scale")
    assert 0 < aligned.registers <= 255
    assert (aligned.spills, aligned.stack, aligned.shared) == (0, 0, 0)
    assert aligned.cubin.startswith(b"\x7fELF")
    assert ".target sm_90a" in aligned.ptx
    assert scaled.source == source(SCALE).digest
    assert [built.alignment for built in scaled.kernels] == list(Alignment)
    with pytest.raises(KeyError):
        scaled.kernel("other")


def test_the_variants_differ_in_the_width_of_their_loads(scaled: Built) -> None:
    assert "ld.global.v4" in scaled.kernel("scale").ptx
    unaligned = scaled.kernel("scale", Alignment.UNALIGNED).ptx
    assert "ld.global.b16" in unaligned
    assert "ld.global.v" not in unaligned


def test_a_kept_alignment_gives_one_binary(build: Callable[..., Built]) -> None:
    seen: list[tuple[int, int, str]] = []
    same = dataclasses.replace(SCALE, unaligned_keeps=SCALE.divisible)
    built = build(source(same), H200, progress=lambda *step: seen.append(step))
    assert seen == [(1, 1, "scale (aligned)")]
    assert built.kernels[0].cubin == built.kernels[1].cubin


def test_debug_information_names_the_operator_and_no_temporary_file(scaled: Built) -> None:
    (line,) = [line for line in scaled.kernel("scale").ptx.splitlines() if ".file\t" in line]
    assert line.endswith('toy.py"')
    assert "tmp" not in line


@pytest.mark.parametrize("gpu", [A100, B200])
def test_other_capabilities_compile(gpu: Target, build: Callable[..., Built]) -> None:
    built = build(source(SCALE), gpu, alignments=["aligned"])
    check_fits(built, gpu)
    assert f".target sm_{gpu.capability}" in built.kernel("scale").ptx


def test_a_spilling_schedule_is_refused(build: Callable[..., Built]) -> None:
    built = build(source(kernel("wide", num_warps=1, N=8192)), H200, alignments=["aligned"])
    assert built.kernels[0].spills > 0
    with pytest.raises(CheckFailed) as caught:
        check_fits(built, H200)
    error = caught.value
    assert (error.code, error.exit_code) == ("B002", 1)
    assert "wide (aligned) does not fit H200: it spills registers" in error.message
    assert "255 registers" in error.message
    assert error.help is not None and "ROWS smaller, or raise num_warps (now 1)" in error.help


def test_a_register_cap_that_spills_is_named(build: Callable[..., Built]) -> None:
    capped = dataclasses.replace(kernel("wide", num_warps=1, N=4096), maxnreg=64)
    built = build(source(capped), H200, alignments=["aligned"])
    with pytest.raises(
        CheckFailed, match=r"64 registers per thread(.|\n)*raise maxnreg \(now 64\)"
    ):
        check_fits(built, H200)


def test_too_much_shared_memory_is_refused(build: Callable[..., Built]) -> None:
    built = build(source(kernel("matmul", num_warps=8, M=256)), H200, alignments=["aligned"])
    assert built.kernels[0].shared > H200.shared_per_block
    with pytest.raises(CheckFailed) as caught:
        check_fits(dataclasses.replace(built, kernels=built.kernels[:1]), H200)
    assert "bytes of shared memory per block, the limit is 232,448" in caught.value.message
    assert "num_stages" in str(caught.value.help)


def test_a_kernel_that_does_not_compile_says_why(build: Callable[..., Built]) -> None:
    for name in ("broken", "outer"):
        with pytest.raises(CheckFailed) as caught:
            build(source(SCALE, kernel(name)), H200)
        message = caught.value.message
        assert caught.value.code == "B001"
        assert f"kernel {name} (aligned) does not compile for sm_90" in message
        assert "tl.store(y_ptr + tl.arange(0, 16), tl.arange(0, 32))" in message
        assert "incompatible" in message.lower()
        assert "Traceback" not in message


def test_a_slow_kernel_is_given_up() -> None:
    start = time.monotonic()
    with pytest.raises(CheckFailed) as caught:
        build_alone(source(kernel("wide", num_warps=1, N=65536)), H200, time_limit=0.5)
    assert time.monotonic() - start < 5
    assert caught.value.code == "B001"
    assert "wide (aligned) was still compiling for sm_90 after 0.5 s" in caught.value.message
    assert "does not compile" not in caught.value.message
    assert "--set" in str(caught.value.help) and "--no-build" in str(caught.value.help)


@pytest.mark.parametrize("after", [0.0, 0.05, 1.0])
def test_compilers_end_at_once_whatever_they_are_at(
    after: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    spec = load_spec(folder("ops") / "hyena_mr.yaml")
    plan = plans(spec, "toeplitz")[0]
    building = Building(emit(spec, plan, schedule(spec, plan)), target("H200"))
    time.sleep(after)
    begin = time.monotonic()
    building.close()
    assert time.monotonic() - begin < 1.0


def test_a_dead_compiler_is_an_error_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CheckFailed, match="the compiler died with status 1"):
        build_alone(source(SCALE), H200)


def test_a_cache_that_cannot_be_written_is_not_the_kernels_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(CheckFailed) as caught:
        build_alone(source(SCALE), H200)
    message = caught.value.message
    assert message.startswith("kernel scale (aligned) could not be compiled on this machine\n")
    assert "NotADirectoryError" in message and "does not compile" not in message
    assert "TRITON_CACHE_DIR" in str(caught.value.help)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "make room"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "free memory"),
        (MemoryError(), "free memory"),
        (OSError("could not get source code"), None),
        (ValueError("arange's arguments must be constants"), None),
    ],
)
def test_errors_of_the_machine_come_with_what_to_do(
    error: Exception, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(job: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("as a wrapper says it") from error

    monkeypatch.setattr(build_worker, "_compile", failing)
    answer = build_worker.compile_kernel({})
    assert str(error) in answer["error"] and type(error).__name__ in answer["error"]
    assert ("help" in answer) == (words is not None)
    assert (words or "") in answer.get("help", "")


def test_a_file_without_kernels_builds_to_nothing() -> None:
    assert build_alone(source(), H200).kernels == ()


def test_without_triton_the_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Sh2genError, match="Triton is not installed") as caught:
        build_alone(source(SCALE), H200)
    assert caught.value.code == "B004"


def test_a_script_without_a_main_guard_can_build(tmp_path: Path) -> None:
    """A worker must not run the caller again, nor interpret kernels because the shell says so."""
    script = tmp_path / "script.py"
    script.write_text(
        "from sh2gen.build.build import build\n"
        "from sh2gen.plan.plan import Role\n"
        "from sh2gen.plan.source import KernelSource, Source\n"
        "from sh2gen.targets.target import target\n"
        f"kernel = KernelSource(name='scale', role=Role.FORWARD, signature={SCALE.signature},"
        f" constants={SCALE.constants}, divisible=(), unaligned_keeps=(), num_warps=4,"
        " num_stages=2)\n"
        f"built = build(Source(op='toy', text={TEXT!r}, kernels=(kernel,)), target('H200'))\n"
        "print('built', len(built.kernels))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("built 2\n", "")


def test_equal_code_has_equal_digests_however_it_was_asked_for(
    build: Callable[..., Built],
) -> None:
    """A limit on registers that nothing meets changes the binary, not its instructions."""
    kernels = [
        SCALE,
        dataclasses.replace(SCALE, maxnreg=128),
        dataclasses.replace(SCALE, num_warps=8),
    ]
    plain, limited, wider = (
        build(source(SCALE, one), H200, alignments=("aligned",)).kernels[-1] for one in kernels
    )
    assert plain.code == limited.code
    assert plain.code != wider.code
