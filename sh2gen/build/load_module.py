"""Import one generated file as a fresh module, for a GPU or under Triton's interpreter."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import UNVERIFIED, read_text, stated
from sh2gen.base.versions import has_triton, no_triton, within
from sh2gen.build.loaded import adopt


def load_module(path: Path, *, interpret: bool, text: str | None = None) -> ModuleType:
    """A new module made from the generated file `path`, or of its text where that was read.

    With `interpret` its kernels run on CPU tensors under Triton's interpreter, otherwise they
    compile for the GPU. Every call gives a module of its own, so the same file can be loaded
    both ways in one process. The interpreter computes bfloat16 wrongly (on bit patterns): callers
    refuse it. Raises B004 when the interpreter cannot run here, B005 when the file cannot be
    imported.
    """
    name = f"_sh2gen_{path.stem}"
    with _interpretation(interpret):
        try:
            # Not by an import of the file: that trusts a .pyc of the same size and second, and
            # writes one beside it.
            if text is None:
                text = read_text(path)
            name = module_name(path.stem, text) + ("_interpreted" if interpret else "")
            module = ModuleType(name)
            module.__file__ = str(path)
            sys.modules[name] = module
            exec(compile(text, str(path), "exec", dont_inherit=True), module.__dict__)
            adopt(module)
        except Exception as error:
            sys.modules.pop(name, None)
            reason = (
                error.strerror
                if isinstance(error, OSError)
                else f"{type(error).__name__}: {error}"
            )
            raise Sh2genError(
                "B005", f"cannot load the generated file {path}: {reason}"
            ) from error
    return module


def module_name(stem: str, text: str) -> str:
    """What a file of this text is called while it is executed.

    The program alone decides it, and not how it was verified: the name is part of the key under
    which Triton keeps compiled kernels on disk, and pickles hold it.
    """
    program = hashlib.sha256(stated(text, UNVERIFIED).encode()).hexdigest()
    return f"_sh2gen_{stem}_{program[:16]}"


@contextmanager
def _interpretation(interpret: bool) -> Iterator[None]:
    """Triton decides at `@triton.jit`, while a file is imported, whether to interpret a kernel."""
    if interpret:
        if not has_triton():
            raise no_triton("its interpreter cannot run kernels")
        if importlib.util.find_spec("numpy") is None:
            raise Sh2genError(
                "B004",
                "Triton's interpreter needs numpy, which is not installed",
                help=f"pip install '{within('numpy')}'",
            )
    elif not has_triton():
        yield  # the file loads without Triton: only its plain PyTorch path can run then
        return
    from triton import knobs

    if interpret:
        _mend_interpreter()
    elif knobs.runtime.interpret:
        # Triton's library is interpreted in this process, which Gluon asserts it is not when it is
        # first imported for compilation.
        with suppress(ImportError):
            importlib.import_module("triton.experimental.gluon.language.nvidia.hopper")
    with knobs.runtime.scope():
        knobs.runtime.interpret = interpret
        yield


@functools.cache
def _mend_interpreter() -> None:
    """Make Triton's interpreter compute what its compiler does, in any version of it that is
    served and with any numpy.

    Where a version has no need of a mending, it changes nothing there.
    """
    _patch_once()
    _interpret_standard_library()
    _compare_to_booleans()
    _index_by_one_element()


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
