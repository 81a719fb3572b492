"""Import one generated file as a fresh module, for a GPU or under Triton's interpreter."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import UNVERIFIED, read_text, stated
from sh2gen.base.versions import has_triton, no_triton, within
from sh2gen.build.interpreter import mend_interpreter
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


def forget_ops(module: ModuleType) -> None:
    """Free the names of the library ops of a loaded file, for the next that loads it: those are
    not to be called again.

    A program that was exported names ops as they are where it is read: there the file is loaded
    once, and its ops have no number.
    """
    module.LIBRARY._destroy()


def forget(module: ModuleType) -> None:
    """The same, and free its own name, which pickles hold: it is not to be used again."""
    forget_ops(module)
    if sys.modules.get(module.__name__) is module:
        del sys.modules[module.__name__]


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
        mend_interpreter()
    elif knobs.runtime.interpret:
        # Triton's library is interpreted in this process, which Gluon asserts it is not when it is
        # first imported for compilation.
        with suppress(ImportError):
            importlib.import_module("triton.experimental.gluon.language.nvidia.hopper")
    with knobs.runtime.scope():
        knobs.runtime.interpret = interpret
        yield
