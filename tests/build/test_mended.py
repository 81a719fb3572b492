"""What is replaced in Triton's interpreter to save time gives what it replaces."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import triton
import triton.language as tl
from triton.experimental.gluon import language as gl
from triton.language.semantic import IncompatibleTypeErrorImpl, TritonSemantic
from triton.runtime.interpreter import TensorHandle, _get_np_dtype, interpreter_builder

from sh2gen.base.versions import minor
from sh2gen.build import hasten, interpreter

pytestmark = pytest.mark.skipif(
    minor(triton.__version__) != hasten.HASTENED, reason="nothing is replaced"
)


@pytest.fixture(autouse=True)
def mended() -> None:
    interpreter.mend_interpreter()


def test_types_of_blocks_are_made_once() -> None:
    made = tl.block_type(tl.float32, [4, 8])
    assert made is tl.block_type(tl.float32, tl.tuple([tl.constexpr(4), 8]))
    assert (made.shape.values, made.numel, str(made)) == ([4, 8], 32, "<['4', '8'], fp32>")
    others = tl.block_type(tl.float32, [8, 4]), made.with_element_ty(tl.int32)
    assert made not in others and others[1].shape == made.shape
    pointers = [tl.block_type(tl.pointer_type(tl.float32), [4]) for _ in range(2)]
    assert pointers[0] == pointers[1] != tl.block_type(tl.pointer_type(tl.int8), [4])


def test_wrong_shapes_are_refused_every_time() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="must be a power of 2"):
            tl.block_type(tl.float32, [3])


def test_tensors_have_the_shape_of_their_type() -> None:
    for kind, shape, size in ((tl.float32, [], 1), (tl.block_type(tl.int32, [2, 4]), [2, 4], 8)):
        for _ in range(2):
            tensor = tl.tensor(None, kind)
            assert [s.value for s in tensor.shape] == shape and tensor.numel.value == size
            assert tensor.dtype == kind.scalar


def test_tuples_know_the_types_of_their_values() -> None:
    inner = tl.tuple([tl.constexpr(1), tl.tensor(None, tl.float32)])
    assert inner.type == tl.tuple_type([tl.constexpr_type(1), tl.float32])
    named = tl.tuple(inner.values, tl.tuple_type(inner.type.types, ["one", "other"]))
    assert named.other is inner.values[1] and named.type.fields == ["one", "other"]
    assert tl.tuple([2], [tl.constexpr_type(2)]).type == tl.tuple_type([tl.constexpr_type(2)])
    with pytest.raises(ValueError, match="is not in list"):
        _ = named.third


@pytest.mark.parametrize("division", [False, True])
def test_operands_of_one_type_come_to_what_is_computed_in(division: bool) -> None:
    semantic = TritonSemantic(interpreter_builder)
    kinds = (tl.int1, tl.int8, tl.uint8, tl.int32, tl.uint32, tl.int64, tl.uint64)
    for kind in (*kinds, tl.float16, tl.bfloat16, tl.float32, tl.float64):
        zeros = TensorHandle(np.zeros(4, _get_np_dtype(kind)), kind)
        one, other = (tl.tensor(zeros, tl.block_type(kind, [4])) for _ in range(2))
        wanted = semantic.computation_type_impl(kind, False, kind, False, division)
        found = semantic.binary_op_type_checking_impl(one, other, div_or_mod=division)
        assert [x.type for x in found] == [tl.block_type(wanted, [4])] * 2
        assert wanted != kind or found == (one, other)
    pointer = tl.tensor(None, tl.pointer_type(tl.float32))
    with pytest.raises(IncompatibleTypeErrorImpl):
        semantic.binary_op_type_checking_impl(pointer, pointer)


OTHERS = (0, 3, -1, 2**31, -(2**31) - 1, 2**63 - 1, 0.0, -0.0, 0.5, 1e-45, 1e40, math.nan, True)
OPERATIONS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "minimum", "less_than", "and_")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_numbers_and_single_values_beside_a_tensor(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits, type and shape of the result, or the error, are those of Triton's own arithmetic."""
    semantic = TritonSemantic(interpreter_builder)
    mended = TritonSemantic.binary_op_type_checking_impl
    original = inspect.getclosurevars(mended).nonlocals["original"]
    rest = {"add": (False,), "sub": (False,), "mul": (False,)}.get(operation, ())
    if operation == "minimum":
        rest = (tl.PropagateNan.NONE,)

    def computed(impl: Callable[..., Any], *operands: Any) -> Any:
        monkeypatch.setattr(TritonSemantic, "binary_op_type_checking_impl", impl)
        try:
            with np.errstate(all="ignore"):
                found = getattr(semantic, operation)(*operands, *rest)
        except Exception as error:
            return type(error), str(error)
        return found.type, found.handle.dtype, found.handle.data.shape, found.handle.data.tobytes()

    seen = 0
    for kind in (tl.int1, tl.int32, tl.uint32, tl.int64, tl.float16, tl.float32, tl.float64):
        of = _get_np_dtype(kind)
        block = tl.tensor(
            TensorHandle(np.array([[1, 2], [0, 1]], of), kind), tl.block_type(kind, [2, 2])
        )
        single = tl.tensor(TensorHandle(np.array([1], of), kind), kind)
        pairs = [
            (a, b)
            for tensor in (block, single)
            for x in OTHERS
            for a, b in ((tensor, x), (x, tensor))
        ]
        for pair in (*pairs, (block, single), (single, block)):
            wanted = computed(original, *pair)
            assert computed(mended, *pair) == wanted, (str(kind), pair)
            seen += wanted[0] is not ValueError
    assert seen > 100


def test_types_of_gluon_are_left_alone() -> None:
    layouts = [gl.BlockedLayout([1], [32], [warps], [0]) for warps in (1, 4)]
    kinds = [gl.distributed_type(gl.float32, [64], layout) for layout in layouts]
    assert [kind.layout for kind in kinds] == layouts and kinds[0].shape == kinds[1].shape
