"""What the hastened compiler comes to is what Triton's comes to."""

from __future__ import annotations

from typing import Any

import pytest
import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend

from sh2gen.base.versions import minor
from sh2gen.build import worker

hasten = worker._by_place("build", "hasten")
pytestmark = pytest.mark.skipif(
    minor(triton.__version__) != hasten.HASTENED, reason="nothing is replaced"
)


@triton.jit
def sums(x_ptr, y_ptr, z_ptr, steps):
    """Two pointers of three are aligned: loads of the third take the layout of the others."""
    lane = tl.arange(0, 256)
    total = tl.zeros((256,), tl.float32)
    for i in range(steps):
        x = tl.load(x_ptr + lane + i * 256).to(tl.float32)
        y = tl.load(y_ptr + lane + i * 256, mask=lane < steps, other=0.0)
        bits = (x * y).to(tl.int32, bitcast=True)
        total += tl.where(x > y, bits.to(tl.float32, bitcast=True), y) * tl.sum(x * y)
        tl.store(y_ptr + lane + i * 256, total)
    tl.store(z_ptr + lane, total.to(tl.bfloat16))


@triton.jit
def by_float(x_ptr, y_ptr, z_ptr, steps):
    """What is known of an undefined value would be known of an address."""
    lane = tl.arange(0, 64)
    x = tl.load(x_ptr + lane).to(tl.float32)
    tl.store(y_ptr + (x * x).to(tl.int32, bitcast=True), x)


@triton.jit
def by_float_from_a_loop(x_ptr, y_ptr, z_ptr, steps):
    lane = tl.arange(0, 64)
    at = lane
    for _ in range(steps):
        x = tl.load(x_ptr + at, mask=lane < steps).to(tl.float32)
        at = (x * x).to(tl.int32, bitcast=True)
    tl.store(y_ptr + lane, at.to(tl.float32), mask=lane < steps)


@triton.jit
def apart(x_ptr, y_ptr, z_ptr, steps):
    """Arithmetic alone connects what is loaded with what is stored."""
    total = tl.sum(tl.load(x_ptr + tl.arange(0, 64)).to(tl.float32))
    tl.store(y_ptr + tl.arange(0, 128), tl.broadcast_to(tl.exp(total) * 2, (128,)))


@triton.jit(noinline=True)
def doubled(x):
    return x * 2


@triton.jit
def called(x_ptr, y_ptr, z_ptr, steps):
    x = tl.load(x_ptr + tl.arange(0, 64)).to(tl.float32)
    tl.store(y_ptr + tl.arange(0, 64), doubled(steps) * x)


def lowered(kernel: Any, aligned: str, debug: bool = False) -> str:
    """A kernel after the stage in which the pass is, where these pointers are aligned."""
    hasten.hasten_compiler()
    target = GPUTarget("cuda", 90, 32)
    backend = make_backend(target)
    names = dict.fromkeys(("x_ptr", "z_ptr"), "*bf16") | {"y_ptr": "*fp32", "steps": "i32"}
    attributes = {
        (kernel.arg_names.index(f"{name}_ptr"),): [["tt.divisibility", 16]] for name in aligned
    }
    source = ASTSource(kernel, {name: names[name] for name in kernel.arg_names}, attrs=attributes)
    options = backend.parse_options({"num_warps": 1, "debug": debug})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(options)
    module = source.make_ir(target, options, functions, backend.get_module_map(), context)
    module = backend.make_ttir(module, {}, options, 90)
    return str(CUDABackend.make_ttgir(module, {}, options, 90))


@pytest.mark.parametrize("kernel", [sums, by_float, by_float_from_a_loop, apart, called])
def test_a_kernel_is_the_same_and_nothing_is_cut_where_it_could_be_another(
    kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, some = hasten.cut, kernel is sums
    found: list[Any] = []
    for aligned in ("xyz", "xz", "") if some else ("xyz",):
        monkeypatch.setattr(hasten, "cut", lambda module: found.append(cut(module)) or found[-1])
        hastened = lowered(kernel, aligned)
        monkeypatch.setattr(hasten, "cut", lambda module: [])
        assert lowered(kernel, aligned) == hastened
    assert all(bool(replaced) == some for replaced in found) and found


def test_undefined_values_stand_in_only_while_the_pass_runs() -> None:
    text = lowered(sums, "xz")
    assert "poison" not in text and "sizePerThread = [8]" in text


def test_overflow_is_judged_in_debug_mode_alone() -> None:
    assert "overflow" not in lowered(sums, "xz")
    assert "overflow detected" in lowered(sums, "xz", debug=True)
