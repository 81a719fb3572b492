"""Rows that hold documents in a generated file: what calls take of these, and what finds it."""

from __future__ import annotations

from typing import Any

from sh2gen.plan.geometry import DOCUMENTS_CONFIG
from sh2gen.plan.kernel import Role
from sh2gen.plan.plan import Plan
from sh2gen.plan.source import KernelSource
from sh2gen.spec.language import Sequences
from sh2gen.spec.operator import OpSpec

_TAKEN = ", cu_seqlens: Tensor | None = None, max_length: int | None = None"


def taken(plan: Plan) -> list[str]:
    """What kernels take of documents, by name."""
    return ["position"] if plan.states else ["remaining", "counted"]


def finder(plan: Plan) -> str:
    """What finds what kernels take of documents."""
    return "find_positions" if plan.states else "find_heads"


def constants(spec: OpSpec, plan: Plan) -> dict[str, int]:
    """Constants of that kernel."""
    reach = {} if plan.states else {"REACH": spec.lag + (spec.filter.length or 1) - 1}
    return reach | {"BLOCK": DOCUMENTS_CONFIG["BLOCK"]}


def source(spec: OpSpec, plan: Plan) -> KernelSource:
    """How its launch looks to the compiler."""
    found = {"position_ptr": "*i16"}
    if not plan.states:
        found = {"remaining_ptr": "*i16", "counted_ptr": "*u8"}
    sizes = dict.fromkeys(("documents", "rounds", "steps"), "i32")
    return KernelSource(
        name=finder(plan),
        role=Role.FORWARD,
        signature=tuple({"cu_seqlens_ptr": "*i32", **found, **sizes}.items()),
        constants=tuple(constants(spec, plan).items()),
        divisible=("cu_seqlens_ptr", *found),
        unaligned_keeps=tuple(found),
        unaligned_constants=(),
        num_warps=DOCUMENTS_CONFIG["num_warps"],
        num_stages=3,
        maxnreg=None,
    )


def context(spec: OpSpec, plan: Plan) -> dict[str, Any]:
    """What sections say of rows that hold documents: what calls take, and pass on."""
    if spec.sequences is Sequences.DENSE:
        given = ("documents_taken", "documents_given", "documents_passed", "documents_rows")
        return dict.fromkeys(given, "") | {"documents_docs": []}
    cu_seqlens = (
        "(documents + 1) int32 or int64, 0 and where each document of the one row ends, on its "
        "device; as many numbers as you like may repeat the last; absent: every row is one"
    )
    docs = [("cu_seqlens", cu_seqlens)]
    if plan.kernels:
        unused = "steps of the longest document: of no use here, for plans that need it"
        docs.append(("max_length", unused))
        names = taken(plan)
        known = constants(spec, plan)
        return {
            "documents_taken": _TAKEN,
            "documents_given": ", cu_seqlens=cu_seqlens, max_length=max_length",
            "documents_passed": f", [{', '.join(names)}]",
            "documents_rows": ", documents_of(own[0], None)",
            "documents_arguments": "documents: Sequence[Tensor]",
            "documents_names": "documents",
            "documents_docs": docs,
            "documents_kernel": finder(plan),
            "documents_constants": {n: v for n, v in known.items() if n != "BLOCK"},
            "heads": not plan.states,
        }
    longest = (
        "steps of the longest document, or more; absent: it is read from cu_seqlens, for which a "
        "GPU is waited for; of longer ones y is 0 beyond"
    )
    return {
        "documents_taken": _TAKEN,
        "documents_given": ", cu_seqlens=cu_seqlens, max_length=max_length",
        "documents_passed": ", cu_seqlens, max_length",
        "documents_rows": ", *documents_of_call(own[0], None, None)",
        "documents_arguments": "cu_seqlens: Tensor, max_length: int",
        "documents_names": "cu_seqlens, max_length",
        "documents_docs": [*docs, ("max_length", longest)],
    }


def call(plan: Plan, x: str, inputs: str, parameters: str, ladder: str) -> list[str]:
    """What a call of rows that hold documents does."""
    lines = ["if cu_seqlens is not None:", f"    check_documents({x}, cu_seqlens)"]
    if plan.kernels:
        lines += ["check_longest(max_length)", f"documents = documents_of({x}, cu_seqlens)"]
        return [*lines, f"return run_op({inputs}, {parameters}, documents{ladder})"]
    return [
        *lines,
        f"borders, longest = documents_of_call({x}, cu_seqlens, max_length)",
        f"return run_op({inputs}, {parameters}, borders, longest{ladder})",
    ]
