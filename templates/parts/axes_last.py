"""Where programs of channels-last tensors (B, L, D) begin: channels are contiguous, `row` is the
time stride.
"""

import triton
import triton.language as tl


@triton.jit
def locate(program, splits, BLOCK_D: tl.constexpr, CHANNELS: tl.constexpr):
    """(batch, first channel, time program) of one program; neighbours in channels run together."""
    channel_programs: tl.constexpr = (CHANNELS + BLOCK_D - 1) // BLOCK_D
    outer = program // channel_programs
    return outer // splits, program % channel_programs * BLOCK_D, outer % splits


@triton.jit
def advance(ptr, batch_stride, stride, STRIDE_UNIT: tl.constexpr, unit, origin):
    """The pointer to origin = (batch, channel, time), in 64-bit arithmetic, and the row stride.

    Strides come in units of STRIDE_UNIT elements, which tells the compiler how rows are aligned.
    """
    batch, channel, time = origin
    offset = (
        batch.to(tl.int64) * batch_stride * STRIDE_UNIT + time.to(tl.int64) * stride * STRIDE_UNIT
    )
    return ptr + offset + channel.to(tl.int64) * unit, stride * STRIDE_UNIT
