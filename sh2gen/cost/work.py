"""What a kernel does for each token and channel: bytes, arithmetic, instructions; a fold over its
tile program.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy

from sh2gen.plan.blocks import (
    LoadToeplitz,
    Recall,
    Remember,
    StoreToeplitz,
    Toeplitz,
    ToeplitzGradient,
    ZeroToeplitz,
)
from sh2gen.plan.edges import Edge
from sh2gen.plan.kernel import Kernel
from sh2gen.plan.modes import (
    Blocks,
    EndParts,
    KeepState,
    LoadModes,
    LoadState,
    ModalConv,
    ModalGradient,
    Parts,
    StateGradient,
    States,
    StoreModes,
    ZeroModes,
    ZeroState,
)
from sh2gen.plan.statements import (
    Accumulate,
    Enter,
    Extend,
    Fir,
    LoadRows,
    LoadTaps,
    LoadVector,
    Rowwise,
    StorePartial,
    StoreRows,
    ZeroTaps,
)
from sh2gen.plan.values import Layout, Rows
from sh2gen.schedule.facts import tap_terms
from sh2gen.spec.language import DType
from sh2gen.spec.operator import OpSpec

ROWS = sympy.Symbol("ROWS", positive=True)
BLOCK_T = sympy.Symbol("BLOCK_T", positive=True)
BYTES = {DType.BFLOAT16: 2, DType.FLOAT16: 2, DType.FLOAT32: 4}
_INSTRUCTIONS = {  # a row of a rowwise function, in instructions of one thread
    "multiply": 1,
    "add": 1,
    "scale": 1,
    "shift": 1,
    "silu": 6,
    "silu_gradient": 10,
}
# Instructions for each number of a block's states: two products, powers, halving and rounding.
# Those of pairs take twice as many.
_SCAN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Work of one kernel per token and channel.

    Attributes:
        bytes: that must cross DRAM if caches serve every second read.
        flops: floating-point operations outside of matrix products, a multiply-add as two.
        tensor_flops: those of matrix products, in terms of BLOCK_T, zeros in the corners of
            Toeplitz matrices included.
        instructions: issued by a thread, in terms of ROWS: recomputed context shrinks as ROWS
            grows.
    """

    bytes: int
    flops: Any
    tensor_flops: Any
    instructions: Any


@lru_cache(maxsize=256)  # asked for again for every workload and every candidate
def work(kernel: Kernel, layout: Layout, spec: OpSpec) -> Work:
    """The fold over one tile program."""
    flops: Any = sympy.Integer(0)
    instructions: Any = sympy.Integer(0)
    products: Any = sympy.Integer(0)
    size = BYTES[spec.dtype.io]
    terms = tap_terms(spec, spec.dtype.io)
    loads = [s for s in kernel.program.prologue if isinstance(s, LoadModes)]
    modes = sum(len(load.views) // 2 * (load.views[0].length or 0) for load in loads)
    scan = _SCAN * (2 if any(len(load.views) == 4 for load in loads) else 1)
    traffic = size * len(kernel.program.loads)  # a second read of a tensor is served by a cache

    def count(rows: Rows) -> Any:
        return ROWS + rows.hi - rows.lo

    for statement in kernel.program.body:
        match statement:
            case LoadRows(rows=rows):
                # Conversion to float32; and an address and a load for each vector of 8 or each
                # row.
                access = sympy.Rational(3, 8) if layout is Layout.BDL else 3
                instructions += count(rows) * (1 + access)
            case Enter(x=x):  # an address, a mask, a load and a choice a row; next to no bytes
                instructions += 8 * max(0, -x.rows.lo)
            case StoreRows():
                traffic += size
                access = sympy.Rational(3, 8) if layout is Layout.BDL else 3
                instructions += ROWS * (1 + access)
            case Fir(length=length, rows=rows):
                flops += count(rows) * (2 * length - 1)
                instructions += count(rows) * length
            case Rowwise(function=function, rows=rows):
                flops += count(rows)
                instructions += count(rows) * _INSTRUCTIONS[function]
            case Accumulate(length=length):
                flops += ROWS * 2 * length
                instructions += ROWS * length
            case Extend(count=extended):
                instructions += 2 * extended  # a shuffle and a choice
            case Remember():
                instructions += ROWS  # rounding, and a store to shared memory
            case Recall():
                instructions += ROWS
            case Toeplitz(length=length):
                products += terms * _product_flops(length)
                instructions += 2 * ROWS  # from the layout of products to that of rows
            case ToeplitzGradient(length=length):
                products += _product_flops(length)
            case Blocks():
                instructions += ROWS
            case States():  # sums of a block for every mode, of two terms, and a scan of these
                products += 2 * 2 * modes
                instructions += ROWS * scan * modes / BLOCK_T
            case ModalConv():
                products += terms * 2 * BLOCK_T + 3 * 2 * modes
                instructions += 2 * ROWS
            case ModalGradient():
                products += 2 * BLOCK_T + 2 * 2 * 2 * modes
            case LoadState() | KeepState() | StateGradient() | Edge() | Parts() | EndParts():
                pass  # once a tile, or a sequence
            case LoadTaps() | LoadVector() | LoadToeplitz() | ZeroTaps() | ZeroToeplitz():
                pass  # once a program, not once a row
            case LoadModes() | ZeroModes() | StoreModes() | ZeroState():
                pass
            case StorePartial() | StoreToeplitz():
                pass
            case _:
                raise AssertionError(f"{statement}: no cost is known of it")
    return Work(
        bytes=traffic,
        flops=sympy.expand(flops / ROWS),
        tensor_flops=products,
        instructions=sympy.expand(instructions / ROWS),
    )


def products_a_tile(kernel: Kernel, block: int) -> int:
    """Matrix products of a tile, in blocks of so many steps."""
    statements = (s for s in kernel.program.body if isinstance(s, Toeplitz | ToeplitzGradient))
    return sum(int(matrices(s.length).subs(BLOCK_T, block)) for s in statements)


def _product_flops(length: int) -> Any:
    """Of the products of one block with all matrices that `length` taps make, per element."""
    return 2 * BLOCK_T * matrices(length)


def matrices(length: int) -> Any:
    """How many Toeplitz matrices `length` taps make, in terms of BLOCK_T."""
    return 1 + sympy.ceiling((length - 1) / BLOCK_T)
