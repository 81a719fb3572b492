"""What launchers need: strides, bounds, grids, and the sum of partial gradients.

Capitalised names are constants of the generated file.
"""

import threading
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from sh2gen.plan.geometry import even, sm90_suits
from templates.parts.layout_bdl import allocate, rows_reached
from templates.parts.op import INPUTS, TIME

OP = "op"
BINARIES: dict = {}
HAS_GLUON = False
WIDEST = 1
TOLD: tuple[str, ...] = ()
SUMS: dict[str, int] = {}
LAUNCHES = threading.local()


def dense(x: Tensor) -> Tensor:
    """x itself if its last axis is contiguous, else a copy for which it is."""
    return x if x.stride(2) == 1 else allocate(x, x.shape[TIME]).copy_(x)


def common_unit(tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], int]:
    """The tensors and the stride of their last axis, which kernels take as a constant.

    Views of interleaved features may keep theirs, up to WIDEST; anything wider, or mixed, is
    copied first.
    """
    units = {x.stride(2) for x in tensors}
    if len(units) == 1 and min(units) in range(1, WIDEST + 1):
        return tuple(tensors), units.pop()
    return tuple(dense(x) for x in tensors), 1


def operand(x: Tensor, begin: int, step: int) -> tuple[Tensor, int, int]:
    """What a kernel takes for an activation: data from `begin` on, and strides over `step`."""
    batch_stride, row_stride, _ = x.stride()
    data = x.narrow(TIME, begin, x.shape[TIME] - begin) if begin else x
    return data, batch_stride // step if x.shape[0] > 1 else 0, row_stride // step


def segment(
    x: Tensor, context: int, begin: int, end: int | None, tile: int
) -> tuple[int, int, tuple[int, int, int]]:
    """Bounds of a launch: first step in x, number of steps, and the kernel's (first, last, end).

    A segment is x without its `context` leading steps, which are history: read, never written.
    Outputs are the steps begin .. end - 1 of the segment; a range that ends inside it is whole
    tiles.
    """
    length = x.shape[TIME] - context
    end = length if end is None else end
    if not (context >= 0 and 0 <= begin <= end <= length):
        raise ValueError(
            f"{OP}: steps {begin} .. {end} are not within a segment of {length} steps"
        )
    if end != length and (end - begin) % tile:
        raise ValueError(f"{OP}: {end - begin} steps are no multiple of the tile of {tile} steps")
    return context + begin, end - begin, (-(context + begin), length - begin, end - begin)


def allocate_states(
    like: Tensor, channels: int, steps: int, config: dict[str, int], modes: int, keep: bool
) -> Tensor:
    """Room for the states before all tiles of so many steps, or none: [batch, tiles, channels,
    modes] float32.
    """
    tiles = -(-steps // (config["BLOCK_T"] * config["SEGMENTS"])) if keep else 0
    if tiles * channels * modes >= 2**31:
        raise ValueError(f"{OP}: {steps} steps have too many states; compute them in chunks")
    return like.new_empty((like.shape[0], tiles, channels, modes), dtype=torch.float32)


def stride_step(config: dict[str, int], tensors: Sequence[Tensor], tiles: int) -> int:
    """8 if all strides are multiples of 8 elements, so that accesses are 16 bytes wide; else 1.

    Refuses row strides that the 32-bit offsets within a program of so many tiles cannot hold;
    those of the program itself are 64-bit.
    """
    rows, step = rows_reached(config, tiles), 8
    for x in tensors:
        batch_stride, row_stride, _ = x.stride()
        if rows * row_stride >= 2**31:
            raise ValueError(f"{OP}: a row stride of {row_stride} elements is too large")
        if row_stride % 8 or (batch_stride % 8 and x.shape[0] > 1):
            step = 1
    return step


def aligned(tensors: Sequence[Tensor]) -> bool:
    """Whether 16 bytes begin where each tensor does."""
    return all(x.data_ptr() % 16 == 0 for x in tensors)


def suits_sm90(
    tensors: Sequence[Tensor],
    unit: int,
    step: int,
    begin: int,
    bounds: tuple[int, int, int],
    config: dict[str, int],
) -> bool:
    """Whether a call can run the variant for sm_90, and is long enough to gain by it.

    The tensors are the inputs, which share a row stride as do their gradients at the end, and
    between them those that are read from step `begin` on.
    """
    tile = config["BLOCK_T"] * config["SEGMENTS"]
    x, roles = tensors[0], len(INPUTS)
    return (
        HAS_GLUON
        and x.device.type == "cuda"
        and x.dtype == torch.bfloat16
        and torch.cuda.get_device_capability(x.device) == (9, 0)
        and (unit, step) == (1, 8)
        and begin % 8 == 0
        and sm90_suits(bounds[1] - bounds[0], bounds[2], bounds, config)
        and (bounds[1] == bounds[2] or bounds[2] % tile == 0)
        and aligned(tensors)
        and len({tensor.stride(1) for tensor in tensors[:roles]}) == 1
        and len({tensor.stride(1) for tensor in tensors[-roles:]}) == 1
    )


def trait(argument: Tensor | int) -> tuple[object, ...]:
    """What Triton compiles another binary for: dtype and alignment, or 64 bits."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    return (argument >= 2**31,)


def launch(
    kernel, programs: int, *arguments: Tensor | int, config: dict[str, int], **constants: int
):
    """Run a kernel on the device of its first argument.

    The config gives the constants that are left, and what the compiler is told. Binding arguments
    anew for each launch takes the host longer than a short kernel takes the GPU, so the binary for
    arguments of these traits is remembered and launched directly. It takes the constants by
    position, after the arguments.
    """
    device = arguments[0].device
    given = len(arguments) + len(constants)
    values = (*constants.values(), *(config[name] for name in kernel.arg_names[given:]))
    options = {name: config[name] for name in TOLD if config.get(name)}
    key = (kernel, device, *map(trait, arguments), *values, *options.values())
    binary = BINARIES.get(key)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if binary is None:
            names = kernel.arg_names[len(arguments) :]
            assert names[: len(constants)] == list(constants), "in the kernel's order"
            named = dict(zip(names, values, strict=True))
            # Fusion is stated, because Triton's default changes between versions.
            binary = BINARIES[key] = kernel[(programs,)](
                *arguments, **named, **options, enable_fp_fusion=True
            )
        else:
            binary[(programs, 1, 1)](*arguments, *values)
    if (noted := getattr(LAUNCHES, "noted", None)) is not None:
        noted.append((kernel, programs, binary, arguments, values))


def reduce_partials(
    kernel,
    programs: int,
    partials: Sequence[Tensor],
    parameters: Sequence[Tensor],
    sizes: Sequence[int],
    **constants: int,
) -> list[Tensor]:
    """Gradients of parameter tensors, in their shapes and dtypes, from partial sums
    [splits, rows, columns], by one launch of all sections of the kernel that sums these.

    Args:
        sizes: the kernel's numbers beside how many partial sums there are.
    """
    sums = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in parameters]
    counts = (p.shape[0] for p in partials)
    launch(kernel, programs, *partials, *sums, *counts, *sizes, config=SUMS, **constants)
    return sums
