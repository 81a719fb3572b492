"""What Triton's compiler does in vain or over and over, left out: half of its time.

The pass that decides in which layouts memory is read and written asks for each load and store
which others it is connected with by values. It walks from every operation that it meets through
all that this one depends on, and all that depends on it, and begins anew for the next load. Only
addresses decide what comes of it. So while the pass runs each result of arithmetic in floats is
cut off from what reads it, which reads an undefined value instead: no walk is long then, and the
pass decides the same.

worker.py runs this file by its place: it imports nothing of sh2gen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

# The version whose inner parts are replaced to save time; another takes the time that it takes.
HASTENED = "3.6"
_FLOATS = re.compile(r"(?:tensor<(?:\d+x)+)?b?f(?:16|32|64)\b")
# Operations of which no other than those below are something to the pass.
_KNOWN = re.compile(
    r"(?:arith|math|scf)\.\w+|ttg\.convert_layout|gpu\.barrier|builtin\.module"
    r"|tt\.(?!call$|descriptor|make_tensor_(?:ptr|descriptor)|advance)\w+(?:\.return)?"
)
_MEMORY = ("tt.load", "tt.store", "tt.atomic_rmw", "tt.atomic_cas")


@dataclass(slots=True)
class _Operation:
    name: str
    operation: Any
    operands: list[Any]
    results: list[Any]  # values that may be replaced
    floats: bool  # all results are floats, or tensors of them


def hasten_compiler() -> None:
    """Have kernels compiled to what they are compiled to in a half of the time, in the version of
    Triton whose inner parts are known. Does nothing when called again.
    """
    import triton

    if triton.__version__.startswith(f"{HASTENED}."):
        _walk_along_addresses()
        judge_overflow_in_debug()


def judge_overflow_in_debug() -> None:
    """Have sums and products of integers not judged for overflow, by six operations each, where
    nothing is done with the verdict: outside debug mode.
    """
    from triton.language.semantic import TritonSemantic

    original = TritonSemantic.binary_op_sanitize_overflow_impl
    if getattr(original, "hastened", False):
        return

    def judge(self: Any, lhs: Any, rhs: Any, operation: Any) -> None:
        if self.builder.options.debug:
            original(self, lhs, rhs, operation)

    judge.hastened = True  # type: ignore[attr-defined]
    TritonSemantic.binary_op_sanitize_overflow_impl = judge


def _walk_along_addresses() -> None:
    from triton._C.libtriton import ir, passes
    from triton.backends.nvidia.compiler import CUDABackend

    original = CUDABackend.make_ttgir
    if getattr(original, "hastened", False):
        return
    convert, coalesce = passes.ttir.add_convert_to_ttgpuir, passes.ttgpuir.add_coalesce

    def run(module: Any, add: Callable[..., None], *arguments: Any) -> None:
        manager = ir.pass_manager(module.context)
        manager.enable_debug()
        add(manager, *arguments)
        manager.run(module, add.__name__)

    def make_ttgir(module: Any, metadata: Any, options: Any, capability: int) -> Any:
        """The first two passes apart, then the others; only Triton's own language has these."""
        threads = (options.num_warps, 32, options.num_ctas)
        run(module, convert, f"cuda:{capability}", *threads)
        replaced = cut(module)
        run(module, coalesce)
        for value, undefined in replaced:
            undefined.replace_all_uses_with(value)
        passes.ttir.add_convert_to_ttgpuir = passes.ttgpuir.add_coalesce = lambda *_: None
        try:
            return original(module, metadata, options, capability)
        finally:
            passes.ttir.add_convert_to_ttgpuir = convert
            passes.ttgpuir.add_coalesce = coalesce

    make_ttgir.hastened = True  # type: ignore[attr-defined]
    CUDABackend.make_ttgir = staticmethod(make_ttgir)


def cut(module: Any) -> list[tuple[Any, Any]]:
    """Have what reads arithmetic in floats read undefined values, and return both: the value, and
    what stands for it.

    Replaces nothing where the pass could come to something else: an operation is not known, or an
    address depends on such a value, or loads and stores would no more be connected. What these
    read stays, as the pass replaces it; so uses are afterwards in the order that they had.
    """
    from triton._C.libtriton import ir

    operations: list[_Operation] = []
    module.walk(lambda operation: operations.append(_described(operation)))
    kept = {v.id() for o in operations if o.name in _MEMORY for v in o.operands}
    chosen = {
        value.id(): (o.operation, value)
        for o in operations
        if o.floats and o.name not in (*_MEMORY, "arith.constant")
        for value in o.results
        if value.id() not in kept
    }
    known = all(_KNOWN.fullmatch(o.name) for o in operations)
    if not known or _of_addresses(operations) & set(chosen) or not _connected(operations, chosen):
        return []
    builder = ir.builder(module.context)
    replaced = []
    for operation, value in chosen.values():
        builder.set_insertion_point_after(operation)
        replaced.append((value, builder.create_poison(value.get_type())))
    for value, undefined in replaced:
        value.replace_all_uses_with(undefined)
    return replaced


def _described(operation: Any) -> _Operation:
    results = [operation.get_result(i) for i in range(operation.get_num_results())]
    return _Operation(
        name=operation.get_name(),
        operation=operation,
        operands=[operation.get_operand(i) for i in range(operation.get_num_operands())],
        results=results,
        floats=all(_FLOATS.match(str(value.get_type())) for value in results),
    )


def _of_addresses(operations: list[_Operation]) -> set[int]:
    """Values that addresses depend on, and perhaps a few more: what loops and branches are given
    and give, except floats, is taken for one.
    """
    maker = {value.id(): o for o in operations for value in o.results}
    handed = [
        value
        for o in operations
        if o.name.startswith("scf.")
        for value in o.operands
        if not _FLOATS.match(str(value.get_type()))
    ]
    left = [o.operands[0] for o in operations if o.name in _MEMORY]
    found: set[int] = set()
    while left:
        value = left.pop()
        if value.id() not in found:
            found.add(value.id())
            o = maker.get(value.id())  # none makes what a loop hands to its body
            left += handed if o is None or o.name.startswith("scf.") else o.operands
    return found


def _connected(operations: list[_Operation], chosen: Collection[int]) -> bool:
    """Whether loads and stores of tensors are connected by values although those chosen are cut:
    their readers are connected, but not with what makes them.
    """
    parent: dict[Any, Any] = {}

    def root(x: Any) -> Any:
        while (above := parent.setdefault(x, x)) != x:
            parent[x] = parent[above]
            x = above
        return x

    made = {value.id() for o in operations for value in o.results}
    roots = []
    for i, o in enumerate(operations):
        ids = [v.id() for v in o.operands if v.id() in made]
        ids += [v.id() for v in o.results if v.id() not in chosen]
        for value in ids:
            parent[root(value)] = root(("operation", i))
        if o.name in _MEMORY and str(o.operands[0].get_type()).startswith("tensor<"):
            roots.append(("operation", i))
    return len({root(x) for x in roots}) <= 1
