"""One generated file, loaded for a GPU and under the interpreter in the same process."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import sys
from pathlib import Path

import pytest
import torch

from sh2gen.base.errors import Sh2genError
from sh2gen.build.load_module import load_module

TEXT = """
import torch
import triton
import triton.language as tl


@triton.jit
def twice(x):
    return x + tl.zeros_like(x) + x


@triton.jit
def standard(x_ptr, y_ptr, N: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, N))
    half = tl.sigmoid(tl.zeros((N,), tl.float32))
    y = tl.flip(tl.cumsum(x, axis=0), 0) + tl.max(x, axis=0) * half
    tl.store(y_ptr + tl.arange(0, N), y)


@triton.jit
def kernel(x_ptr, y_ptr, length, BLOCK: tl.constexpr):
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + t, mask=t < length, other=0.0)
    tl.store(y_ptr + t, twice(x) + tl.cdiv(length, BLOCK) + tl.sum(x, axis=0), mask=t < length)


def launch(x):
    y = torch.full_like(x, float("nan"))
    kernel[(triton.cdiv(len(x), 64),)](x, y, len(x), BLOCK=64)
    return y


class Box:
    pass
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "toy.py"
    file.write_text(TEXT)
    return file


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_interpreted_kernels_run_on_the_cpu(path: Path, dtype: torch.dtype) -> None:
    x = torch.arange(50, dtype=dtype)
    torch.testing.assert_close(load_module(path, interpret=True).launch(x), 2 * x + 1 + x.sum())


COMPARED = """
import triton
import triton.language as tl

SEEN = []


@triton.jit
def count(out, limit, inside, BLOCK: tl.constexpr):
    where = tl.arange(0, BLOCK)
    there = (where >= 0) & (inside < 1)  # of a block, and of two numbers
    SEEN.append(there.handle.data.dtype)
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(0, limit):
        total += 1.0
    tl.store(out + where, total, mask=there)


def launch(out, limit, inside):
    count[(1,)](out, limit, inside, BLOCK=4)
"""


@pytest.mark.filterwarnings("error::DeprecationWarning")  # of numpy before 2.4, then an error
def test_numbers_of_interpreted_kernels_are_masks_and_bounds(tmp_path: Path) -> None:
    """Triton's interpreter, left to itself, makes integers of some masks, which 3.9 refuses, and
    asks numpy to convert arrays, which 2.4 refuses.
    """
    path = tmp_path / "compared.py"
    path.write_text(COMPARED)
    module = load_module(path, interpret=True)
    for inside, expected in ((0, 3.0), (1, -1.0)):
        out = torch.full((4,), -1.0)
        module.launch(out, 3, inside)
        assert out.tolist() == [expected] * 4
    assert [bool, bool] == module.SEEN


def test_a_launch_replaces_the_language_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for every helper that it calls, which takes a quarter of the time; and puts it back."""
    import triton.language as tl
    from triton.runtime import interpreter

    module = load_module(path, interpret=True)
    module.launch(torch.zeros(3))  # the first one of a process replaces more
    before, replaced = tl.arange, []
    original = interpreter._patch_builtin
    monkeypatch.setattr(
        interpreter, "_patch_builtin", lambda *of: replaced.append(of[0]) or original(*of)
    )
    module.launch(torch.zeros(3))  # a program, which calls tl.sum
    once = len(replaced)
    module.launch(torch.zeros(50))  # more of them
    assert len(replaced) == 2 * once <= 20
    assert tl.arange is before


def test_both_ways_in_one_process(path: Path) -> None:
    from triton import knobs
    from triton.runtime.jit import JITFunction

    interpreted = load_module(path, interpret=True)
    compiled = load_module(path, interpret=False)
    assert not isinstance(interpreted.kernel, JITFunction)
    assert isinstance(compiled.kernel, JITFunction)
    assert not knobs.runtime.interpret
    x = torch.ones(3)
    torch.testing.assert_close(interpreted.launch(x), 2 * x + 1 + 3)


def test_tritons_own_functions_are_interpreted_and_still_compile(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    x = torch.randn(8)
    y = torch.full_like(x, float("nan"))
    load_module(path, interpret=True).standard[(1,)](x, y, 8)
    torch.testing.assert_close(y, x.cumsum(0).flip(0) + x.max() / 2)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    ast = ASTSource(
        load_module(path, interpret=False).standard,
        {"x_ptr": "*fp32", "y_ptr": "*fp32", "N": "constexpr"},
        {"N": 8},
    )
    assert "cubin" in triton.compile(ast, target=GPUTarget("cuda", 90, 32)).asm


def test_the_users_choice_of_interpretation_is_restored(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    from triton import knobs
    from triton.runtime.jit import JITFunction

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert isinstance(load_module(path, interpret=False).kernel, JITFunction)
    assert knobs.runtime.interpret
    assert os.environ["TRITON_INTERPRET"] == "1"


def test_every_load_is_fresh_and_leaves_no_cache_file(path: Path) -> None:
    first = load_module(path, interpret=False)
    path.write_text(TEXT.replace("64", "32"))  # the same size
    second = load_module(path, interpret=True)
    assert second is not first
    x = torch.ones(40)
    assert second.launch(x)[39] == 2 + 2 + 8  # two programs; the last one sums eight ones
    assert [file.name for file in path.parent.iterdir()] == ["toy.py"]


def test_objects_of_a_loaded_module_pickle(path: Path) -> None:
    module = load_module(path, interpret=False)
    assert isinstance(pickle.loads(pickle.dumps(module.Box())), module.Box)


def test_the_same_file_loaded_twice_is_two_modules(path: Path) -> None:
    """Objects of each pickle as its own, and where there is one only, as of that."""
    path.write_text(TEXT + "# no other test's\n")
    modules = [load_module(path, interpret=False) for _ in range(2)]
    boxes = [module.Box() for module in modules]
    for module, box in zip(modules, boxes, strict=True):
        assert type(pickle.loads(pickle.dumps(box))) is type(copy.deepcopy(box)) is module.Box
        assert pickle.loads(pickle.dumps(module.launch)) is module.launch
    second = pickle.dumps(boxes[1])
    del sys.modules[modules[1].__name__]
    assert type(pickle.loads(second)) is modules[0].Box
    for name in [name for name, module in sys.modules.items() if module in modules]:
        del sys.modules[name]
    with pytest.raises(ModuleNotFoundError, match=r"call sh2gen.load\(\"\.\.\./toy.py\"\) before"):
        pickle.loads(second)


def test_a_bad_file_is_one_clear_error(path: Path) -> None:
    path.write_text("def f(:\n")
    before = set(sys.modules)
    with pytest.raises(Sh2genError, match=r"cannot load .*toy\.py: SyntaxError: invalid syntax"):
        load_module(path, interpret=False)
    with pytest.raises(Sh2genError, match=r"missing\.py: No such file or directory") as caught:
        load_module(path.with_name("missing.py"), interpret=False)
    assert caught.value.code == "B005"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(Sh2genError, match="it is not UTF-8 text"):
        load_module(path, interpret=False)
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("missing", "words"), [("triton", "Triton is not installed"), ("numpy", "needs numpy")]
)
def test_the_interpreter_names_what_it_lacks(
    path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, words: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else found(name)
    )
    with pytest.raises(Sh2genError, match=words) as caught:
        load_module(path, interpret=True)
    assert caught.value.code == "B004"
    assert (caught.value.help or "").startswith(f"pip install '{missing}>=")  # not the newest
    path.write_text("value = 7\n")
    assert load_module(path, interpret=False).value == 7
