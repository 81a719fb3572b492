"""Triton's interpreter, mended: it computes what the compiler does, in a third of the time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import CodeType
from typing import Any

from sh2gen.base.versions import minor
from sh2gen.build.hasten import HASTENED, judge_overflow_in_debug


@functools.cache
def mend_interpreter() -> None:
    """Make Triton's interpreter compute what its compiler does, in any version of it that is
    served and with any numpy.

    Where a version has no need of a mending, it changes nothing there.
    """
    import triton

    _patch_once()
    _interpret_standard_library()
    _compare_to_booleans()
    _index_by_one_element()
    if minor(triton.__version__) == HASTENED:
        _keep_types()
        judge_overflow_in_debug()
        _rewrite_once()
        _take_equal_types()
        _call_directly()


def _patch_once() -> None:
    """Have `triton.language` replaced once for a launch, not for every call of a helper in it,
    which takes a quarter of the time.

    What a helper needs beyond that is replaced when it is called, and put back with all else when
    the launch ends.
    """
    from triton import language
    from triton.runtime import interpreter

    original = interpreter._patch_lang
    inner: list[Any] = []  # of the launch that is running: what to put back
    needs: list[frozenset[int]] = []  # of helpers for which all is replaced
    known: dict[int, frozenset[int]] = {}

    class Outer:
        @staticmethod
        def restore() -> None:
            while inner:
                inner.pop().restore()
            needs.clear()
            known.clear()

    class Inner:
        @staticmethod
        def restore() -> None:
            pass

    def patch(function: Any) -> type[Outer] | type[Inner]:
        names = function.__globals__
        if id(names) not in known:
            modules = (language, language.core)
            known[id(names)] = frozenset(
                id(value) for value in names.values() if any(value is one for one in modules)
            )
        outermost = not inner
        if known[id(names)] not in needs:
            inner.append(original(function))
            needs.append(known[id(names)])
        return Outer if outermost else Inner

    interpreter._patch_lang = patch


def _interpret_standard_library() -> None:
    """Let interpreted kernels call `tl.sum`, `tl.zeros` and the like.

    These are `@triton.jit` functions of Triton itself, made for compilation when Triton was
    imported. Called as Python functions they raise; only the interpreter calls them so, and from
    now on such a call is interpreted.
    """
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    interpreted = functools.cache(InterpretedFunction)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # InterpretedFunction's own call leaves triton.language patched: nothing compiles after it.
        patches = interpreter._patch_lang(self.fn)
        try:
            return interpreted(self.fn).rewrite()(*args, **kwargs)
        finally:
            patches.restore()

    JITFunction.__call__ = call


def _compare_to_booleans() -> None:
    """Have comparisons give booleans.

    The interpreter's are of the type of what they compare. Where a comparison of two numbers is
    one for a whole block, its values become integers, which Triton 3.9 refuses as a mask.
    """
    from triton import language
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def boolean(compare: Callable[..., Any]) -> Callable[..., Any]:
        def compared(self: Any, *operands: Any) -> Any:
            return TensorHandle(compare(self, *operands).data, language.int1)

        return compared

    for name, compare in list(vars(InterpreterBuilder).items()):
        if name.startswith(("create_icmp", "create_fcmp")):
            setattr(InterpreterBuilder, name, boolean(compare))


def _index_by_one_element() -> None:
    """Have numbers, which the interpreter keeps in arrays of one element, serve as bounds of a
    `range`: Triton up to 3.6 asks numpy for a conversion that numpy 2.4 refuses.
    """
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch


def _keep_types() -> None:
    """Have types and shapes of tensors made once, and types of tuples when they are asked for: the
    interpreter makes some of each for every operation.
    """
    from triton.language import core
    from triton.runtime import interpreter

    types: dict[Any, Any] = {}
    shapes: dict[tuple[int, ...], tuple[Any, Any]] = {}
    dtypes: dict[Any, Any] = {}
    block_init, of_values = core.block_type.__init__, core._type_for_tuple_values
    np_dtype = interpreter._get_np_dtype

    def block_new(cls: Any, element: Any, shape: Any, *more: Any) -> Any:
        # Every launch has types of pointers of its own; types of Gluon have a layout too.
        if cls is not core.block_type or element.is_ptr():
            return object.__new__(cls)
        key = (id(element), *(getattr(size, "value", size) for size in shape))
        return types[key] if key in types else types.setdefault(key, object.__new__(cls))

    def block_init_once(self: Any, element: Any, shape: Any) -> None:
        if "name" not in self.__dict__:
            block_init(self, element, shape)

    def tensor_init(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        sizes = tuple(type.shape.values) if type.is_block() else ()
        if sizes not in shapes:
            shape = core.tuple([core.constexpr(size) for size in sizes])
            shapes[sizes] = (shape, core.constexpr(math.prod(sizes)))
        self.shape, self.numel = shapes[sizes]

    def tuple_init(self: Any, args: Any, type: Any = None) -> None:
        self.values = list(args)
        if type is not None:
            whole = isinstance(type, core.tuple_type)
            self.__dict__["type"] = type if whole else core.tuple_type(type)

    class TypeOfValues:
        def __get__(self, value: Any, owner: Any) -> Any:
            value.__dict__["type"] = found = of_values(value.values)
            return found

    def np_dtype_once(of: Any) -> Any:
        if of.scalar.is_ptr():
            return np_dtype(of)
        if of.scalar not in dtypes:
            dtypes[of.scalar] = np_dtype(of)
        return dtypes[of.scalar]

    core.block_type.__new__ = staticmethod(block_new)
    core.block_type.__init__ = block_init_once
    core.tensor.__init__ = tensor_init
    core.tuple.__init__ = tuple_init
    core.tuple.type = TypeOfValues()
    interpreter._get_np_dtype = np_dtype_once


def _rewrite_once() -> None:
    """Have functions of one text rewritten once: files share most of their helpers.

    Tracebacks name the file of the first.
    """
    from triton.runtime import interpreter
    from triton.runtime.interpreter import FunctionRewriter

    place, transform = FunctionRewriter._get_jit_fn_file_line, FunctionRewriter._transform_ast
    codes: dict[str, CodeType] = {}

    def code_of(self: Any, source: str) -> CodeType:
        if source not in codes:
            self.filename, self.def_file_lineno = place(self)
            codes[source] = compile(transform(self, source), self.filename, "exec")
        return codes[source]

    FunctionRewriter._get_jit_fn_file_line = lambda self: ("", 0)
    FunctionRewriter._transform_ast = code_of
    interpreter.compile = lambda code, **_: code  # of what it is given, which is code already


def _take_equal_types() -> None:
    """Have operands of one type taken as they are, when they are of a type that arithmetic keeps:
    neither cast nor broadcast, which is asked in thirty steps each. Numbers take the type of the
    tensor beside them, and numpy spreads one value over a block.
    """
    from triton.language import core
    from triton.language.semantic import TritonSemantic
    from triton.runtime.interpreter import interpreter_builder

    ranges = {
        id(core.float32): None,
        id(core.float64): None,
        id(core.int32): range(-(2**31), 2**31),
        id(core.int64): range(-(2**63), 2**63),
    }
    original, broadcast = (
        TritonSemantic.binary_op_type_checking_impl,
        TritonSemantic.broadcast_impl_value,
    )

    def same(lhs: Any, rhs: Any) -> bool:
        return type(lhs) is type(rhs) is core.tensor and lhs.type is rhs.type

    def constant(self: Any, value: Any, like: Any) -> Any:
        """A number as a tensor of the type of one; None if that is not simply its value."""
        values = ranges.get(id(like.dtype), ())
        if type(value) is int:
            fits = values is None or value in values
        else:
            fits = values is None and type(value) is float
        if not fits:
            return None
        found = self.scalar_constant(value, like.dtype)
        return core.tensor(found.handle, like.type) if like.type.is_block() else found

    def check(self: Any, lhs: Any, rhs: Any, *rest: Any, **more: Any) -> Any:
        if same(lhs, rhs) and id(lhs.dtype) in ranges:
            return lhs, rhs
        if self.builder is not interpreter_builder:  # numpy does not compute this
            return original(self, lhs, rhs, *rest, **more)
        left, right = type(lhs) is core.tensor, type(rhs) is core.tensor
        if left and right and lhs.dtype is rhs.dtype and id(lhs.dtype) in ranges:
            if not rhs.type.is_block():
                return lhs, core.tensor(rhs.handle, lhs.type)
            if not lhs.type.is_block():
                return core.tensor(lhs.handle, rhs.type), rhs
        elif left != right and len(rest) <= 2 and not more:  # arithmetic, but no quotient
            like, value = (lhs, rhs) if left else (rhs, lhs)
            if (found := constant(self, value, like)) is not None:
                return (lhs, found) if left else (found, rhs)
        return original(self, lhs, rhs, *rest, **more)

    def broadcast_others(self: Any, lhs: Any, rhs: Any) -> Any:
        return (lhs, rhs) if same(lhs, rhs) else broadcast(self, lhs, rhs)

    TritonSemantic.binary_op_type_checking_impl = check
    TritonSemantic.broadcast_impl_value = broadcast_others


def _call_directly() -> None:
    """Have functions of the language called in one step instead of three, and tensors and numbers
    known for what they are at once.
    """
    from triton.language import core
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    checks = core.builtin(lambda: None).__code__  # whether it was called from a kernel
    unwrap, make = core._unwrap_if_constexpr, TritonSemantic.to_tensor
    plain = (core.tensor, int, float, bool, type(None))

    def patch(owner: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        semantic = TritonSemantic(builder)
        if getattr(member, "__code__", None) is checks:
            member = member.__wrapped__

        def called(*args: Any, **kwargs: Any) -> Any:
            kwargs["_semantic"] = semantic
            return member(*args, **kwargs)

        scope.set_attr(owner, name, called)

    def unwrap_constant(value: Any) -> Any:
        kind = type(value)
        if kind is core.constexpr:
            return value.value
        return value if kind in plain else unwrap(value)

    def to_tensor(self: Any, value: Any, *rest: Any, **more: Any) -> Any:
        return value if type(value) is core.tensor else make(self, value, *rest, **more)

    interpreter._patch_attr = patch
    core._unwrap_if_constexpr = unwrap_constant
    TritonSemantic.to_tensor = to_tensor
