"""Calls that nothing but eager PyTorch sees: what a launcher did for such a call is done again.

A launcher goes by the shapes, strides, dtypes, device and alignment of tensors alone. What it
allocates and launches for one call, a tape, is therefore right for every call of the same traits,
and takes a tenth of the time to do again that it takes to find.

Capitalised names are constants of the generated file.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from templates.parts.launch import LAUNCHES

OP, PLAIN = "op", 0
HAS_TRITON = True
TAPES: dict = {}
MOST_TAPES = 1024
DIRECT: tuple[str, ...] = ()


def forward_of(tensors: Sequence[Tensor], keep: bool) -> list[Tensor]:
    """Of the generated file, as Direct is."""
    raise NotImplementedError


def backward_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Of the generated file."""
    raise NotImplementedError


def apply_direct(tape, *tensors: Tensor) -> Tensor:
    """Of the generated file."""
    raise NotImplementedError


class Replay(NamedTuple):
    """One launch of a tape.

    Attributes:
        kernel: its name.
        start: launches it with arguments, on the stream that is current.
        arguments: numbers; for an address, how far it is from that of a tensor.
        addresses: (which argument, of which tensor) for each: of those that a launcher is given,
            then of its results, then of what only kernels see.
    """

    kernel: str
    start: Callable[[Sequence[int]], None]
    arguments: tuple[int, ...]
    addresses: tuple[tuple[int, int], ...]


class Tape(NamedTuple):
    """What a launcher does for tensors of some traits.

    Attributes:
        device: of all tensors.
        results: shape, strides and dtype of each tensor that it returns.
        scratch: bytes of what only kernels see.
        launches: in their order.
        after: tapes of the gradients of such a call, by the traits of dy.
    """

    device: torch.device
    results: tuple[tuple, ...]
    scratch: int
    launches: tuple[Replay, ...]
    after: dict


class Noticed(TorchDispatchMode):
    """Notes whether PyTorch does nothing meanwhile but to allocate tensors and to make views."""

    def __init__(self) -> None:
        super().__init__()
        self.simple = True

    def __torch_dispatch__(self, func, _, args=(), kwargs=None):
        schema = func._schema
        writes = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
        views = all(r.alias_info is not None for r in schema.returns) and not writes
        self.simple &= views or "empty" in schema.name
        return func(*args, **(kwargs or {}))


def on_gpu(x: Tensor) -> bool:
    """Whether a first argument, which may be anything, is a tensor that kernels compute with."""
    return getattr(x, "is_cuda", False)


def seen_by_none() -> bool:
    """Whether only eager PyTorch sees a call: no compiler, mode, transform, tracer or profiler,
    and no hook of Triton's.
    """
    if torch.compiler.is_compiling() or PLAIN or not HAS_TRITON:
        return False
    if triton.__version__ not in DIRECT:
        return False
    hooks = triton.knobs.runtime
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and torch._C._get_tracing_state() is None
        and not torch.autograd._profiler_enabled()
        and not hooks.launch_enter_hook.calls
        and not hooks.launch_exit_hook.calls
    )


def traits_of(tensors: Sequence[Tensor]) -> tuple | None:
    """All that a launcher goes by; None of what is no plain tensor. What else PyTorch's dispatcher
    goes by has no memory of its own, except the sign of a view that negates.
    """
    found = []
    try:
        for x in tensors:
            if type(x) is not nn.Parameter and type(x) is not Tensor:
                return None
            place = x.data_ptr()
            aligned = place % 16 if place else -1
            found.append((x.shape, x.stride(), x.dtype, x.get_device(), aligned, x.is_neg()))
    except RuntimeError:  # sparse, nested, or a wrapper of others
        return None
    return tuple(found)


def tape_of(launcher: Callable, tensors: Sequence[Tensor], *facts: object) -> Tape | None:
    """What launcher(tensors, *facts) does, which is done once if it is not known yet; None where
    that is more than to allocate and to launch, or where PyTorch has to see it.

    Raises:
        TypeError, ValueError: as the launcher, which checks its arguments.
    """
    traits = traits_of(tensors)
    if traits is None:
        return None
    key = (launcher, facts, traits)
    tape = TAPES.get(key, ...)  # other threads may clear them at any time
    if tape is ...:
        if not is_plain(tensors) or capturing():
            return None
        if len(TAPES) >= MOST_TAPES:
            TAPES.clear()
        tape = TAPES[key] = record(launcher, tensors, *facts)
    return tape


def gradients_tape(tape: Tape, dy: Tensor, kept: Sequence[Tensor], where: Sequence[int]):
    """The tape of the gradients of a call whose tape this is, as `tape_of` gives it.

    Args:
        kept: what the call has kept for them.
        where: addresses of that when it was kept; it is looked at anew if they are others, as
            hooks of saved tensors move it.
    """
    try:
        traits = traits_of((dy,)) if [x.data_ptr() for x in kept] == where else None
    except RuntimeError:
        traits = None
    tape_after = tape.after.get(traits)
    if tape_after is None:
        tape_after = tape_of(backward_of, (dy, *kept))
        if tape_after is not None and traits is not None:
            tape.after[traits] = tape_after
    return tape_after


def direct(inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor | None:
    """y of a call on a GPU that nothing but eager PyTorch sees; None of any other call."""
    if not on_gpu(inputs[0]) or not seen_by_none():
        return None
    tensors = (*inputs, *parameters)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    tape = tape_of(forward_of, tensors, keep)
    if tape is None:
        return None
    return apply_direct(tape, *tensors) if keep else replay(tape, tensors)[0]


def capturing() -> bool:
    """Whether launches go into a CUDA graph, which is to hold those of a call once."""
    return torch.cuda.is_current_stream_capturing()


def is_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether PyTorch's dispatcher would do nothing with tensors but to differentiate."""
    device = tensors[0].device
    with torch.inference_mode():
        inference = torch._C._dispatch_keys(torch.empty(0, device=device)).raw_repr()
    with torch.inference_mode(False):
        usual = torch._C._dispatch_keys(torch.empty(0, device=device)).raw_repr()
    return all(torch._C._dispatch_keys(x).raw_repr() in (usual, inference) for x in tensors)


def record(launcher: Callable, tensors: Sequence[Tensor], *facts: object) -> Tape | None:
    """The tape of a launch, which is done; None if it does more than to allocate and to launch."""
    # Objects of their own, by which arguments are told apart: one tensor may be given twice.
    tensors = [x.detach() for x in tensors]
    LAUNCHES.noted = []
    try:
        with torch.no_grad(), Noticed() as noticed:
            results = launcher(tensors, *facts)
        noted = LAUNCHES.noted
    finally:
        LAUNCHES.noted = None
    if not noticed.simple:
        return None
    bases = [*tensors, *results]
    scratch: dict[int, int] = {}  # where the memory of a tensor that only kernels see begins
    size = 0
    launches = []
    for kernel, programs, binary, arguments, constants in noted:
        start = starter(binary, tensors[0].device, programs, constants)
        if start is None:
            return None
        numbers, addresses = [], []
        for i, argument in enumerate(arguments):
            if not isinstance(argument, Tensor) or argument.numel() == 0:
                numbers.append(0 if isinstance(argument, Tensor) else argument)
                continue
            memory = argument.untyped_storage()
            place = memory.data_ptr()
            same = [n for n, x in enumerate(bases) if x is argument]
            same = same or [
                n for n, x in enumerate(bases) if x.untyped_storage().data_ptr() == place
            ]
            if len(same) > 1:  # which of them a view is of cannot be told
                return None
            if not same and place not in scratch:
                scratch[place] = size
                size += -(-memory.nbytes() // 256) * 256
            base = same[0] if same else len(bases)
            start_of = bases[base].data_ptr() if same else place - scratch[place]
            numbers.append(argument.data_ptr() - start_of)
            addresses.append((i, base))
        launches.append(Replay(kernel.__name__, start, tuple(numbers), tuple(addresses)))
    given = {x.untyped_storage().data_ptr() for x in tensors}
    places = [x.untyped_storage().data_ptr() for x in results if x.numel()]
    if given & set(places) or len(set(places)) < len(places):  # results that share memory
        return None
    shapes = tuple((tuple(x.shape), x.stride(), x.dtype) for x in results)
    return Tape(tensors[0].device, shapes, size, tuple(launches), {})


def starter(
    binary, device: torch.device, programs: int, constants: Sequence[object]
) -> Callable | None:
    """Launches a compiled kernel without Triton's own launcher, which looks at every argument
    anew; None of what cannot be launched so.
    """
    run = getattr(binary, "run", None)
    if not hasattr(run, "launch"):  # interpreted
        return None
    if run.global_scratch_size or run.profile_scratch_size:
        return None
    enqueue, function, packed = run.launch, binary.function, binary.packed_metadata
    cooperative, dependent = run.launch_cooperative_grid, run.launch_pdl
    stream_of, index = torch._C._cuda_getCurrentRawStream, device.index

    def start(arguments: Sequence[int]) -> None:
        enqueue(
            programs, 1, 1, stream_of(index), function, cooperative, dependent, None, None, packed,
            None, None, None, *arguments, *constants,
        )  # fmt: skip

    return start


def is_current(device: torch.device) -> bool:
    """Whether work goes to this GPU unless another is named."""
    return torch._C._cuda_getDevice() == device.index


def replay(tape: Tape, tensors: Sequence[Tensor]) -> list[Tensor]:
    """What a launcher gives for tensors of the traits of those that a tape is of."""
    device = tape.device
    results = [
        torch.empty_strided(shape, strides, dtype=dtype, device=device)
        for shape, strides, dtype in tape.results
    ]
    bases = [x.data_ptr() for x in tensors]
    bases += [x.data_ptr() for x in results]
    if tape.scratch:  # kept until all is launched: later work on the stream may then have it
        scratch = torch.empty(tape.scratch, dtype=torch.uint8, device=device)
        bases.append(scratch.data_ptr())
    if is_current(device):
        start_all(tape, bases)
    else:
        with torch.cuda.device(device):
            start_all(tape, bases)
    return results


def start_all(tape: Tape, bases: Sequence[int]) -> None:
    """Launch what a tape launches, of tensors at these addresses."""
    for kernel, start, numbers, addresses in tape.launches:
        arguments = list(numbers)
        for i, base in addresses:
            arguments[i] += bases[base]
        try:
            start(arguments)
        except Exception as error:
            raise RuntimeError(f"{OP}: {kernel} could not be launched on {tape.device}") from error
