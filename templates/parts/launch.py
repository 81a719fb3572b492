"""What launchers need: strides, bounds, grids, and the sum of partial gradients.

Capitalised names are constants of the generated file.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from templates.parts.op import CHANNELS, INPUTS, LAYOUT, TIME, allocate

OP = "op"
BINARIES: dict = {}
OPTIONS: dict[str, dict] = {}
SCHEDULE: dict[str, dict] = {}
HAS_GLUON = False


def dense(x: Tensor) -> Tensor:
    """x itself if its last axis is contiguous, else a copy for which it is."""
    return x if x.stride(2) == 1 else allocate(x, x.shape[TIME]).copy_(x)


def common_unit(tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], int]:
    """The tensors and the stride of their last axis, which kernels take as a constant.

    Views of interleaved features keep their stride; anything wider, or mixed, is copied first.
    """
    units = {x.stride(2) for x in tensors}
    widest = 1 if LAYOUT == "BDL" else len(INPUTS)
    if len(units) == 1 and min(units) in range(1, widest + 1):
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


def even(bounds: tuple[int, int, int]) -> bool:
    """Whether a vector of 8 steps lies within or without the bounds as a whole."""
    return all(bound % 8 == 0 for bound in bounds)


def programs(batch: int, steps: int, schedule: dict[str, int]) -> tuple[int, int]:
    """How many programs lie along time, and how many there are in all."""
    along_time = -(-steps // (schedule["BLOCK_T"] * schedule["TILES"]))
    return along_time, batch * along_time * -(-CHANNELS // schedule["BLOCK_D"])


def stream_programs(
    batch: int, steps: int, schedule: dict[str, int], width: int, whole: bool
) -> tuple[int, int, int]:
    """As `programs` for programs that stream along segments of a group of `width` channels:
    programs along time, tiles of a segment, programs in all.

    A segment has TILES tiles, fewer if the steps are few, and more if they are so many that the
    partial sums of more than 32 programs along time would weigh something. `whole` asks for
    segments that end with the steps, so that no sum goes beyond them.
    """
    tiles_in_all = -(-steps // (schedule["BLOCK_T"] * schedule["SEGMENTS"]))
    tiles = max(1, min(schedule["TILES"], tiles_in_all), -(-tiles_in_all // 32))
    while whole and tiles_in_all % tiles:
        tiles -= 1
    along_time = -(-tiles_in_all // tiles)
    along_channels = CHANNELS // width * -(-width // schedule["BLOCK_D"])
    return along_time, tiles, batch * along_time * along_channels


def walk_programs(
    batch: int, steps: int, schedule: dict[str, int], wanted: int
) -> tuple[int, int, int]:
    """As `programs` for programs that walk along all of time, or along spans of it: spans, tiles
    of a span, programs in all.

    A sequence is cut where its channels are fewer programs than are wanted, into spans of two
    tiles or more, and into four or more of these, since fewer gain too little. The batch has no
    say, so that it changes no bit of a sequence.
    """
    tiles_in_all = -(-steps // (schedule["BLOCK_T"] * schedule["SEGMENTS"]))
    spans = min(tiles_in_all // 2, wanted // CHANNELS)
    tiles = -(-tiles_in_all // spans) if spans >= 4 else tiles_in_all
    if -(-tiles_in_all // tiles) < 4:
        tiles = tiles_in_all
    time_programs = -(-tiles_in_all // tiles)
    return time_programs, tiles, batch * time_programs * CHANNELS


def allocate_states(like: Tensor, steps: int, modes: int, keep: bool) -> Tensor:
    """Room for the states before all tiles of so many steps, or none: [batch, tiles, CHANNELS,
    modes] float32.
    """
    schedule = SCHEDULE["forward"]
    tiles = -(-steps // (schedule["BLOCK_T"] * schedule["SEGMENTS"])) if keep else 0
    if tiles * CHANNELS * modes >= 2**31:
        raise ValueError(f"{OP}: {steps} steps have too many states; compute them in chunks")
    return like.new_empty((like.shape[0], tiles, CHANNELS, modes), dtype=torch.float32)


def whole_state(
    state: Sequence[Tensor] | None, x: Tensor, states: Tensor, context: int, steps: int
) -> tuple[Tensor, Tensor]:
    """The history and the modes' state before a sequence, as kernels read them; if there is none,
    stand-ins that they do not read. Refuses ranges: what is before them would be forgotten.
    """
    if context or steps != x.shape[TIME]:
        raise ValueError(
            f"{OP}: kernels with states compute whole sequences, not a range or what follows a "
            "context; give the state before the first step instead"
        )
    if state is None:
        return x, states
    history, modes = state
    return history.contiguous(), modes.contiguous()


def stride_step(schedule: dict[str, int], tensors: Sequence[Tensor], tiles: int) -> int:
    """8 if all strides are multiples of 8 elements, so that accesses are 16 bytes wide; else 1.

    Refuses row strides that the 32-bit offsets within a program of so many tiles cannot hold;
    those of the program itself are 64-bit.
    """
    rows = schedule.get("BLOCK_D", 1)
    if LAYOUT == "BLD":  # and the steps that it looks back and ahead
        rows = schedule["BLOCK_T"] * schedule.get("SEGMENTS", 1) * tiles + 4096
    step = 8
    for x in tensors:
        batch_stride, row_stride, _ = x.stride()
        if rows * row_stride >= 2**31:
            raise ValueError(f"{OP}: a row stride of {row_stride} elements is too large")
        if row_stride % 8 or (batch_stride % 8 and x.shape[0] > 1):
            step = 1
    return step


def suits_sm90(
    tensors: Sequence[Tensor],
    inputs: int,
    unit: int,
    step: int,
    begin: int,
    bounds: tuple[int, int, int],
    schedule: dict[str, int],
) -> bool:
    """Whether a call can run the kernel for sm_90, and is long enough to gain by it: for nearly
    two tiles.

    The tensors are so many inputs, which share a row stride as do the gradients at the end, and
    between them those that are read from step `begin` on.
    """
    tile = schedule["BLOCK_T"] * schedule["SEGMENTS"]
    x = tensors[0]
    return (
        HAS_GLUON
        and x.device.type == "cuda"
        and x.dtype == torch.bfloat16
        and torch.cuda.get_device_capability(x.device) == (9, 0)
        and (unit, step) == (1, 8)
        and even(bounds)
        and begin % 8 == 0
        and 4 * bounds[2] > 7 * tile
        and bounds[1] - bounds[0] < 2**29
        and (bounds[1] == bounds[2] or bounds[2] % tile == 0)
        and all(tensor.data_ptr() % 16 == 0 for tensor in tensors)
        and len({tensor.stride(1) for tensor in tensors[:inputs]}) == 1
        and len({tensor.stride(1) for tensor in tensors[inputs + 1 :]}) == 1
    )


def trait(argument: Tensor | int) -> tuple[object, ...]:
    """What Triton compiles another binary for: dtype and alignment, or 64 bits."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    return (argument >= 2**31,)


def launch(kernel, grid: int, *arguments: Tensor | int, options: dict[str, int], **constants: int):
    """Run a kernel on the device of its first argument.

    Binding arguments anew for each launch takes the host longer than a short kernel takes the GPU,
    so the binary for arguments of these traits is remembered and launched directly. It takes the
    constants by position, after the arguments.
    """
    device = arguments[0].device
    key = (kernel, device, *map(trait, arguments), *constants.values(), *options.values())
    binary = BINARIES.get(key)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if binary is None:
            assert kernel.arg_names[len(arguments) :] == list(constants), "in the kernel's order"
            BINARIES[key] = kernel[(grid,)](*arguments, **constants, **options)
        else:
            binary[(grid, 1, 1)](*arguments, *constants.values())


def reduce_partials(
    kernel, grid: int, partials: Sequence[Tensor], parameters: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients of parameter tensors, in their shapes and dtypes, from partial sums
    [splits, rows, columns], by one launch of all sections of the kernel that sums these.
    """
    sums = [
        torch.empty_like(p, dtype=torch.float32, memory_format=torch.contiguous_format)
        for p in parameters
    ]
    launch(
        kernel, grid, *partials, *sums, *(p.shape[0] for p in partials), options=OPTIONS["reduce"]
    )
    return [total.to(p.dtype) for total, p in zip(sums, parameters, strict=True)]
