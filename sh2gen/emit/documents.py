"""Rows that hold documents in a generated file: what calls take of these, and what finds it."""

from __future__ import annotations

from typing import Any

from sh2gen.plan.geometry import BLOCK_VECTORS, DOCUMENTS_CONFIG
from sh2gen.plan.kernel import Role
from sh2gen.plan.plan import Plan
from sh2gen.plan.source import KernelSource
from sh2gen.spec.language import Sequences
from sh2gen.spec.operator import OpSpec

_TAKEN = ", cu_seqlens: Tensor | None = None, max_length: int | None = None"


TAKEN = ["sources", "ended", "begun"]  # what kernels take of documents
_FINDER = "find_sources"  # what finds it


def constants(spec: OpSpec, plan: Plan) -> dict[str, int]:
    """Constants of that kernel, vectors. Between documents is what filters with taps reach back
    by. Those of a recurrence begin with a block, before which features of the one before end.
    """
    if plan.states:
        return {"SPACE": BLOCK_VECTORS + -(-spec.lag // 8), "ALIGN": BLOCK_VECTORS}
    space = max(1, -(-(spec.lag + (spec.filter.length or 1) - 1) // 8))
    # Of streams, whose tiles are short, also 32 bytes of memory begin where they did.
    space += space % 2 if plan.algorithm == "toeplitz" else 0
    return {"SPACE": space, "ALIGN": 1}


def source(spec: OpSpec, plan: Plan) -> KernelSource:
    """How its launch looks to the compiler."""
    pointers = ("cu_seqlens_ptr", *(f"{name}_ptr" for name in TAKEN))
    sizes = ("documents", "rounds", "steps", "vectors")
    return KernelSource(
        name=_FINDER,
        role=Role.FORWARD,
        signature=(
            *zip(pointers, ("*i32", "*i32", "*i32", "*u8"), strict=True),
            *dict.fromkeys(sizes, "i32").items(),
        ),
        constants=(*constants(spec, plan).items(), ("BLOCK", DOCUMENTS_CONFIG["BLOCK"])),
        divisible=pointers,
        unaligned_keeps=pointers[1:],
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
        "device; numbers may repeat the last; absent: every row is one"
    )
    docs = [("cu_seqlens", cu_seqlens)]
    if plan.kernels:
        unused = "steps of the longest document: of no use here, for plans that need it"
        docs.append(("max_length", unused))
        return {
            "documents_taken": _TAKEN,
            "documents_given": ", cu_seqlens=cu_seqlens, max_length=max_length",
            "documents_passed": f", [{', '.join(TAKEN)}]",
            "documents_rows": ", documents_of(own[0], None)",
            "documents_arguments": "documents: Sequence[Tensor]",
            "documents_names": "documents",
            "documents_docs": docs,
            "documents_constants": constants(spec, plan),
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
    lines = [
        "if cu_seqlens is not None:",
        f"    check_documents({x}, cu_seqlens, {x}.shape[TIME])",
    ]
    if plan.kernels:
        lines += ["check_longest(max_length)", f"documents = documents_of({x}, cu_seqlens)"]
        return [*lines, f"return run_op({inputs}, {parameters}, documents{ladder})"]
    return [
        *lines,
        f"borders, longest = documents_of_call({x}, cu_seqlens, max_length)",
        f"return run_op({inputs}, {parameters}, borders, longest{ladder})",
    ]


def chunk(plan: Plan, ladder: str) -> list[str]:
    """y of a rank's chunk, behind the steps before it, whose documents end where `here` says."""
    if plan.kernels:
        found = "documents_of(chunk[0], here)"
        return ["check_longest(max_length)", f"y = run_op(chunk, parameters, {found}{ladder})"]
    return [
        "whole = None if max_length is None else max_length + chunk[0].shape[TIME] - steps",
        "known = documents_of_call(chunk[0], here, whole)",
        f"y = run_op(chunk, parameters, *known{ladder})",
    ]
