"""Heads of documents (heads.py) in channels-last tensors, which are read step by step."""

import triton
import triton.language as tl


@triton.jit
def load_counted(
    ptr, counted_ptr, tile, stride, unit,
    LO: tl.constexpr, HI: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`load_steps`, zero in heads."""
    rows = ()
    block = tl.arange(0, N)[None, :] * ROWS
    for r in tl.static_range(LO, HI):
        time = tile.begin + r + block
        there = (time >= tile.read_begin) & (time < tile.read_end)
        bits = tl.load(counted_ptr + time // 8, mask=there, other=0).to(tl.int32)
        counts = tile.channel_mask & there & (((bits >> (time % 8)) & 1) > 0)
        x = tl.load(ptr + tile.offset * unit + time * stride, mask=counts, other=0.0)
        rows = rows + (x.to(tl.float32),)
    return rows


@triton.jit
def load_own(
    ptr, tile, stride, unit,
    LO: tl.constexpr, HI: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`load_steps` of documents that begin and end anywhere."""
    rows = ()
    block = tl.arange(0, N)[None, :] * ROWS
    for r in tl.static_range(LO, HI):
        time = tile.begin + r + block
        there = tile.channel_mask & (time >= tile.read_begin) & (time < tile.read_end)
        x = tl.load(ptr + tile.offset * unit + time * stride, mask=there, other=0.0)
        rows = rows + (x.to(tl.float32),)
    return rows


@triton.jit
def store_own(ptr, tile, rows, stride, unit, BLOCK_D: tl.constexpr, N: tl.constexpr):
    """`store_steps` of documents that begin anywhere."""
    block = tl.arange(0, N)[None, :] * len(rows)
    for r in tl.static_range(len(rows)):
        time = tile.begin + r + block
        there = tile.channel_mask & (time >= tile.read_begin) & (time < tile.write_end)
        where = ptr + tile.offset * unit + time * stride
        tl.store(where, rows[r].to(ptr.dtype.element_ty), mask=there)
