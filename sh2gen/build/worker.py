"""Compile kernels in a process of its own: a JSON job per line in, a JSON answer per line out.

`build` runs this file as a script and it imports nothing of sh2gen but two files by their place,
so that a worker starts in 0.3 s: neither the caller's `__main__` nor torch (2 s) is imported, and
a crash or a hang of the compiler harms no one else.

A job holds `file`, `module`, `text`, `name`, `gluon` (whether that is its language), `signature`,
`constants`, `divisible`, `options`, `backend`, `capability`, `warp_size` and `judged` (whether its
spills are); its answer holds `registers` (per thread), `stack` (bytes per thread), `spills` and
`instructions` (of them, in loops if there are any; None if it is not judged and has a stack),
`code` (a digest of these), `shared` (bytes per block), `ptx`, `ptx_digest` (`ptx_digest` of it),
`cubin` (base64), `triton` (its version) and `seconds`, or `error`: why the kernel does not
compile; then `help`, if it is not the kernel's fault but this machine's, says what may be done.
"""

from __future__ import annotations

import ast
import base64
import errno
import functools
import hashlib
import importlib.util
import inspect
import linecache
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

# In disassembled code: an instruction and its address, perhaps behind a predicate.
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?(\w+)(.*)", re.MULTILINE)


@functools.lru_cache(maxsize=1)  # the kernels of a file come one after another
def triton_part(file: str, text: str, module: str) -> dict[str, Any]:
    """The names that a generated file defines for Triton, by executing only that part of it.

    That part is: imports of triton, typing and from __future__, functions that Triton or Gluon
    decorates, named tuples of what these compute with (their fields are of type object), and
    constants (`NAME = tl.constexpr(8)`), at the top level or under an `if` or `try`. Triton reads
    the source of a function through linecache, so `file` need not exist; debug information and
    messages name it. `module` is what the functions say that they are from, which Triton's cache
    takes for a part of what they are.
    """
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    chosen = [statement for statement in _flat(ast.parse(text).body) if _for_triton(statement)]
    names: dict[str, Any] = {"__name__": module}
    exec(compile(ast.Module(chosen, type_ignores=[]), file, "exec", dont_inherit=True), names)
    return names


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, ast.If | ast.Try):
            yield from _flat(statement.body)
            yield from _flat(statement.orelse)
        else:
            yield statement


def _for_triton(statement: ast.stmt) -> bool:
    match statement:
        case ast.Import(names=names):
            return all(alias.name.split(".")[0] == "triton" for alias in names)
        case ast.ImportFrom(module=module):
            return (module or "").split(".")[0] in ("triton", "typing", "__future__")
        case ast.FunctionDef(decorator_list=decorators):
            prefixes = ("triton.", "gluon.")
            return any(ast.unparse(decorator).startswith(prefixes) for decorator in decorators)
        case ast.ClassDef(bases=[ast.Name("NamedTuple")], body=body):
            fields = [s.annotation for s in body if isinstance(s, ast.AnnAssign)]
            return all(ast.unparse(kind) == "object" for kind in fields)
        case ast.Assign(value=ast.Call(func=function)):
            return ast.unparse(function) == "tl.constexpr"
    return False


_NAMES: dict[Any, Any] = {}  # of helpers in the kernel that is being compiled


@dataclass(frozen=True)
class _Constant:
    text: str


@dataclass(frozen=True)
class _Tuple:
    kind: str  # the name of its class: tuples of other fields are other things
    items: tuple[Any, ...]


def _structure(value: Any) -> Any:
    """What decides how a helper reads an argument, all but the values that a launch decides."""
    from triton import language as tl

    if isinstance(value, tuple | list | tl.tuple):
        return _Tuple(type(value).__name__, tuple(_structure(item) for item in value))
    kind = getattr(value, "type", None)
    if kind is None or isinstance(value, tl.constexpr):
        return _Constant(repr(value))
    return kind.mangle()


def _leaves(shape: Any, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Any]]:
    items = shape.items if isinstance(shape, _Tuple) else shape
    if isinstance(items, tuple):
        for i, item in enumerate(items):
            yield from _leaves(item, (*path, i))
    else:
        yield path, shape


def _in_words(names: Sequence[str], shape: tuple[Any, ...]) -> str:
    """The sizes of the arguments that are tuples: x of 17, taps of 4."""

    def size(part: Any) -> str:
        inner = [size(item) for item in part.items if isinstance(item, _Tuple)]
        return f"{len(part.items)}" + f" ({', '.join(inner)})" * bool(inner)

    pairs = zip(names, shape, strict=True)
    return ", ".join(f"{name} of {size(part)}" for name, part in pairs if isinstance(part, _Tuple))


class SharedNameError(Exception):
    """Two calls of a helper whose bodies differ share the name that Triton compiles it under."""


def refuse_shared_names() -> None:
    """Have the compiler refuse a kernel in which two calls of one helper differ in structure, but
    neither in their flattened types nor in their constants.

    Triton up to 3.6 names the body that it compiles for a helper by these: the tuples of rows and
    taps of `fir(17 rows, 4 taps)` and of `fir(14 rows, 7 taps)` come to the same 21 types, and the
    second call would silently get the body of the first. (The interpreter has no such names.) A
    later Triton names them apart; what is refused does not depend on which one is here.
    """
    from triton.compiler.code_generator import CodeGenerator

    original = CodeGenerator.call_JitFunction
    if getattr(original, "refuses_shared_names", False):
        return

    def call(self: Any, fn: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        bound = inspect.getcallargs(fn.fn, *args, **kwargs)
        shape = tuple(_structure(bound[name]) for name in fn.arg_names)
        values, constants = [], []
        for path, leaf in _leaves(shape):
            if isinstance(leaf, _Constant):
                constants.append((path, leaf.text))
            else:
                values.append(leaf)
        name = (fn.__module__, fn.__name__, tuple(values), tuple(constants))
        before = _NAMES.setdefault(name, shape)
        if before != shape:
            one, other = (_in_words(fn.arg_names, each) for each in (before, shape))
            raise SharedNameError(
                f"`{fn.__name__}` is called with {one}, and with {other}. Flattened, their types "
                "are the same, and Triton up to 3.6 compiles one body for both: give the function "
                "the sizes that decide its body as constexpr arguments"
            )
        return original(self, fn, args, kwargs, *rest, **more)

    call.refuses_shared_names = True  # type: ignore[attr-defined]
    CodeGenerator.call_JitFunction = call


def compile_kernel(job: dict[str, Any]) -> dict[str, Any]:
    """The answer to one job."""
    start = time.perf_counter()
    try:
        answer = _compile(job)
    except Exception as error:
        found = {"error": _explain(error)}
        return found | ({"help": advice} if (advice := _of_machine(error)) else {})
    return {**answer, "seconds": time.perf_counter() - start}


def _chain(error: BaseException) -> list[BaseException]:
    """An error, what it was raised from, and so on."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return chain


def _of_machine(error: BaseException) -> str:
    """What to do about an error that says nothing of the kernel; nothing for one that does."""
    for one in _chain(error):
        if isinstance(one, MemoryError) or getattr(one, "errno", None) == errno.ENOMEM:
            return "free memory; `sh2gen tune --workers` compiles in fewer processes"
        if isinstance(one, OSError) and one.errno is not None:  # Triton raises some without
            return (
                "make room and a right to write, in the folder for temporary files, which TMPDIR "
                "moves, and in Triton's cache, which TRITON_CACHE_DIR moves"
            )
    return ""


def _explain(error: BaseException) -> str:
    """The part of a chain of errors that says most.

    Triton wraps an error once for each helper around it; the innermost wrapper shows the offending
    line and the reason.
    """
    from triton.compiler.errors import CompilationError

    chain = _chain(error)
    best = next((one for one in reversed(chain) if isinstance(one, CompilationError)), chain[-1])
    return f"{type(best).__name__}: {best}"


def _compile(job: dict[str, Any]) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler.compiler import make_backend
    from triton.experimental.gluon._runtime import GluonASTSource

    refuse_shared_names()
    _by_place("build", "hasten").hasten_compiler()
    _NAMES.clear()
    language = GluonASTSource if job["gluon"] else ASTSource
    function = triton_part(job["file"], job["text"], job["module"])[job["name"]]
    names = function.arg_names
    given = {**job["signature"], **dict.fromkeys(job["constants"], "constexpr")}
    assert set(given) == set(names), (
        f"arguments described: {sorted(given)}; of the kernel: {sorted(names)}"
    )
    target = GPUTarget(job["backend"], job["capability"], job["warp_size"])
    source = language(function, **_as_launched(function, job, make_backend(target)))
    if job.get("names_only"):
        _front_end(source, target, job["options"])
        return {}
    compiled = triton.compile(source, target=target, options=job["options"])
    cubin = compiled.asm["cubin"]
    return {
        **resources(cubin, judged=job["judged"]),
        "shared": compiled.metadata.shared,
        "ptx": compiled.asm["ptx"],
        "ptx_digest": ptx_digest(compiled.asm["ptx"]),
        "cubin": base64.b64encode(cubin).decode("ascii"),
        "triton": triton.__version__,
    }


def _as_launched(function: Any, job: dict[str, Any], backend: Any) -> dict[str, Any]:
    """What a launch hands to the compiler of its arguments: all of it is part of the key in
    Triton's cache, and Triton's launcher writes it down otherwise from version to version. So it
    is asked.
    """
    constants, signature = job["constants"], job["signature"]
    specialised = [
        ("constexpr", constants[name])
        if name in constants
        else (signature[name], "D" if name in job["divisible"] else None)
        for name in function.arg_names
    ]
    bound = {name: constants.get(name) for name in function.arg_names}
    _, types, values, attributes = function._pack_args(backend, {}, bound, specialised, {})
    return {"signature": types, "constexprs": values, "attrs": attributes}


def _front_end(source: Any, target: Any, options: dict[str, Any]) -> None:
    """The first stage of `triton.compile`, in which helpers get their names."""
    from triton._C.libtriton import ir
    from triton.compiler.compiler import make_backend

    backend = make_backend(target)
    parsed = backend.parse_options(dict(options))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(parsed)
    source.make_ir(target, parsed, functions, backend.get_module_map(), context)


def resources(cubin: bytes, *, judged: bool = True) -> dict[str, Any]:
    """Registers and stack bytes per thread of a one-kernel binary, and how many instructions it
    has, how many of them spill registers, and a digest of them.

    Of a kernel with loops only those in loops count: others run once. They are not counted where
    nothing judges it: disassembly takes half a second.
    """
    from triton import knobs

    cuobjdump = knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def dump(option: str) -> str:
            return subprocess.run(
                [cuobjdump, option, file.name], check=True, capture_output=True, text=True
            ).stdout

        usage = dump("-res-usage")
        numbers = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        assert numbers is not None, f"cuobjdump printed no usage: {usage}"
        stack = int(numbers[2])
        # Spilled values live on the stack: without one there is nothing to find.
        spills, instructions = (0, 0) if not stack else (None, None)
        if stack and judged:
            spills, instructions = _spills(dump("-sass"))
    return {
        "registers": int(numbers[1]),
        "stack": stack,
        "spills": spills,
        "instructions": instructions,
        "code": code_digest(cubin),
    }


def normalised_ptx(ptx: str) -> str:
    """PTX of one kernel without what says nothing of how it runs: the names of the kernel, of
    labels and of parameters, parameters that it does not read, where in a block it reads others,
    debug information, comments.

    Labels and parameters are numbered in the order in which the code first names them; parameters
    are read where a block begins: the compiler puts these reads elsewhere where there are more
    parameters. So a helper may be renamed or moved, a comment written and an argument added that
    this kernel does not read, and the text stays.
    """
    # Debug sections are at the end, and sections end with the kernel's last brace before them.
    code = re.sub(r"^\s*\.section\s+\.debug.*", "", ptx, flags=re.MULTILINE | re.DOTALL)
    code = re.sub(r"//[^\n]*|^\s*\.(?:loc|file)\b[^\n]*", "", code, flags=re.MULTILINE)
    entry = re.search(r"\.entry\s+([\w$]+)\s*\((.*?)\)", code, re.DOTALL)
    assert entry is not None, "PTX of a kernel"
    kinds = {
        name: " ".join(declaration.split()[:-1])
        for declaration in entry[2].split(",")
        if declaration.strip()
        for name in declaration.split()[-1:]
    }
    body = code[: entry.start()] + ".entry kernel" + code[entry.end() :]
    body = re.sub(r"^\s*\$L__(?:tmp|func_begin|func_end)\d+:", "", body, flags=re.MULTILINE)
    body = _parameters_first(body, list(kinds))
    names: dict[str, str] = {}

    def number(found: re.Match[str]) -> str:
        word = found[0]
        kind = "parameter" if word in kinds else "label"
        if kind == "label" and not word.startswith("$"):
            return word
        return names.setdefault(word, f"{kind}{sum(n.startswith(kind) for n in names.values())}")

    body = re.sub(r"\$?[A-Za-z_][\w$]*", number, body)
    used = [kinds[word] for word in names if word in kinds]
    lines = (" ".join(line.split()) for line in body.splitlines())
    return "\n".join((*used, *(line for line in lines if line)))


def _parameters_first(body: str, names: list[str]) -> str:
    """PTX whose blocks read parameters, of these names, before all else and in this order."""
    found: list[str] = []
    block: list[str] = []
    reads: list[tuple[int, str]] = []

    def close() -> None:
        found.extend(line for _, line in sorted(reads))
        found.extend(block)
        reads.clear()
        block.clear()

    for line in body.splitlines():
        read = re.match(r"\s*ld\.param\.\S+\s+[^,]+,\s*\[([\w$]+)", line)
        if read is not None and read[1] in names:
            reads.append((names.index(read[1]), line))
        elif re.match(r"\s*(?:@!?%\w+\s+)?(?:bra|ret|[{}]|\$?[\w$]+:)", line):
            close()
            found.append(line)
        else:
            block.append(line)
    close()
    return "\n".join(found)


def ptx_digest(ptx: str) -> str:
    """Digest of `normalised_ptx`: equal ones are one kernel, whatever its text was called."""
    return hashlib.sha256(normalised_ptx(ptx).encode()).hexdigest()[:16]


def code_digest(cubin: bytes) -> str:
    """Digest of the instructions in a binary: of the sections of code in this 64-bit ELF file.

    Two binaries may differ in what they say of how they were made and be the same code.
    """
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names_at = struct.unpack_from("<3H", cubin, 0x3A)
    headers = [struct.unpack_from("<2I4Q", cubin, table + i * size) for i in range(count)]
    names = headers[names_at][4]
    found = hashlib.sha256()
    for name, _, _, _, offset, length in headers:
        if cubin.startswith(b".text.", names + name):
            found.update(cubin[offset : offset + length])
    return found.hexdigest()[:16]


def _spills(code: str) -> tuple[int, int]:
    """Loads from and stores to local memory, and all instructions: in loops, or everywhere where
    there is no loop.
    """
    found = [(int(at, 16), name, rest) for at, name, rest in _INSTRUCTION.findall(code)]
    targets = [
        (at, re.search(r"0x([0-9a-f]+)", rest)) for at, name, rest in found if name == "BRA"
    ]
    # A branch to itself ends a kernel: no loop.
    loops = [(int(t[1], 16), at) for at, t in targets if t is not None and int(t[1], 16) < at]
    loops = loops or [(0, found[-1][0])]
    inner = [name for at, name, _ in found if any(begin <= at <= end for begin, end in loops)]
    return sum(name in ("LDL", "STL") for name in inner), len(inner)


@functools.cache
def _by_place(folder: str, name: str) -> ModuleType:
    """A file of the package, without the package."""
    place = Path(__file__).parents[1] / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", place)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Answer jobs, as `process.serve` does."""
    # Compile, whatever the user's shell says; Triton's own library is interpreted or not from its
    # import on.
    os.environ.pop("TRITON_INTERPRET", None)
    _by_place("base", "process").serve(compile_kernel)


if __name__ == "__main__":
    main()
