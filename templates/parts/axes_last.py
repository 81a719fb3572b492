"""Where programs of channels-last tensors (B, L, D) begin: channels are contiguous, `row` is the
time stride.
"""

import triton
import triton.language as tl


@triton.jit
def locate(program, time_programs, BLOCK_D: tl.constexpr, CHANNELS: tl.constexpr):
    """(batch, first channel, time program) of one program; neighbours in channels run together."""
    channel_programs: tl.constexpr = (CHANNELS + BLOCK_D - 1) // BLOCK_D
    outer = program // channel_programs
    return outer // time_programs, program % channel_programs * BLOCK_D, outer % time_programs


@triton.jit
def advance(ptr, batch_stride, row, STEP: tl.constexpr, unit, origin):
    """The pointer to origin = (batch, channel, time), in 64-bit arithmetic, and the row stride.

    Strides come in units of STEP elements, which tells the compiler how rows are aligned.
    """
    batch, channel, time = origin
    offset = batch.to(tl.int64) * batch_stride * STEP + time.to(tl.int64) * row * STEP
    return ptr + offset + channel.to(tl.int64) * unit, row * STEP
