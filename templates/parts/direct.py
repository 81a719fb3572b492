"""Calls that nothing but eager PyTorch sees: what a launcher did for such a call is done again.

A launcher goes by the shapes, strides, dtypes, device and alignment of tensors alone. What it
allocates and launches for one call, a tape, is therefore right for every call of the same traits,
and takes a tenth of the time to do again that it takes to find.

Capitalised names are constants of the generated file.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import itemgetter, or_
from typing import NamedTuple

import torch
import triton
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version
from torch.utils._python_dispatch import TorchDispatchMode

from templates.parts.decode import STATE
from templates.parts.launch import LAUNCHES

OP, PLAIN = "op", 0
HAS_TRITON = True
TAPES: dict = {}
RECENT: dict = {}
MOST_TAPES = 1024
SEERS: tuple[Callable, ...] = ()
DIRECT: tuple[str, ...] = ()


def forward_of(tensors: Sequence[Tensor], keep: bool, *ladder: int | None) -> list[Tensor]:
    """Of the generated file, as Direct is."""
    raise NotImplementedError


def backward_of(tensors: Sequence[Tensor], *ladder: int | None) -> list[Tensor]:
    """Of the generated file."""
    raise NotImplementedError


def decode_of(tensors: Sequence[Tensor], *facts: int | None) -> list[Tensor]:
    """Of the generated file."""
    raise NotImplementedError


def check_decoding(inputs, parameters, state, slots, *ladder) -> None:
    """Of the generated file."""


def apply_direct(tape, places: list[int], *tensors: Tensor) -> Tensor:
    """Of the generated file."""
    raise NotImplementedError


class Replay(NamedTuple):
    """One launch of a tape.

    Attributes:
        kernel: its name.
        start: launches it with arguments, on the stream that is current.
        numbers: those of its arguments that are no addresses.
        pick: gives its arguments of a tape's addresses, with these numbers behind them.
    """

    kernel: str
    start: Callable[[Sequence[int]], None]
    numbers: list[int]
    pick: Callable[[Sequence[int]], Sequence[int]]


class Tape(NamedTuple):
    """What a launcher does for tensors of some traits.

    Attributes:
        device: of all tensors.
        empty: makes a tensor there of a shape, strides and dtype, if that device is current.
        results: these of each tensor that it returns.
        scratch: bytes of what only kernels see.
        inner: addresses within tensors, as which of them, and how far from its own: of those that
            a launcher is given, then of its results, then of scratch.
        launches: in their order.
        facts: what the launcher is told beside tensors: whether to keep what gradients need, and
            where on a ladder of decays the filters are, if they decay.
        after: `recent`, the last gradients of such calls.
    """

    device: torch.device
    empty: Callable[[tuple, tuple, torch.dtype], Tensor]
    results: tuple[tuple, ...]
    scratch: int
    inner: tuple[tuple[int, int], ...]
    launches: tuple[Replay, ...]
    facts: tuple
    after: dict


class Recent(NamedTuple):
    """The last call of a kind.

    Attributes:
        guards: PyTorch's own, of compiled graphs: they tell whether other tensors have the same
            traits but for alignment, in a third of the time of traits_of.
        tape: of such calls; None if they have none.
        keep: whether gradients may be asked for.
    """

    guards: object
    tape: Tape | None
    keep: bool


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
    for sees in SEERS:
        if sees():
            return False
    hooks = triton.knobs.runtime
    return (
        forward_ad._current_level < 0
        and not hooks.launch_enter_hook.calls
        and not hooks.launch_exit_hook.calls
    )


def traits_of(tensors: Sequence[Tensor]) -> tuple[tuple, list[int]] | None:
    """All that a launcher goes by, and the addresses of tensors; None of what is no plain tensor.
    What else PyTorch's dispatcher goes by has no memory of its own, except the sign of a view that
    negates.
    """
    found, places = [], []
    try:
        for x in tensors:
            if type(x) is not nn.Parameter and type(x) is not Tensor:
                return None
            place = x.data_ptr()
            places.append(place)
            aligned = place % 16 if place else -1
            found.append((x.shape, x.stride(), x.dtype, x.get_device(), aligned, x.is_neg()))
    except RuntimeError:  # sparse, nested, or a wrapper of others
        return None
    return tuple(found), places


def tape_of(
    launcher: Callable, tensors: Sequence[Tensor], traits: tuple, *facts: object
) -> Tape | None:
    """What launcher(tensors, *facts) does, which is done once if it is not known yet; None where
    that is more than to allocate and to launch, or where PyTorch has to see it.

    Raises:
        TypeError, ValueError: as the launcher, which checks its arguments.
    """
    key = (launcher, facts, traits)
    tape = TAPES.get(key, ...)  # other threads may clear them at any time
    if tape is ...:
        if not is_plain(tensors) or capturing():
            return None
        if len(TAPES) >= MOST_TAPES:
            TAPES.clear()
            RECENT.clear()
        tape = TAPES[key] = record(launcher, tensors, *facts)[0]
    return tape


def gradients_tape(tape: Tape, tensors: Sequence[Tensor]) -> tuple[Tape | None, list[int]]:
    """The tape of the gradients of a call whose tape this is, as `tape_of` gives it, and the
    addresses of dy and of what the call has kept for them, which hooks of saved tensors may have
    made anew.
    """
    recent = tape.after.get("recent")
    if recent is not None and recent.guards.check(*tensors):
        places = [x.data_ptr() for x in tensors]
        if all_aligned(places):
            return recent.tape, places
    found = traits_of(tensors)
    if found is None:
        return None, []
    traits, places = found
    after = tape_of(backward_of, tensors, traits, *tape.facts[1:])
    if all_aligned(places) and (guards := guards_of(tensors)) is not None:
        tape.after["recent"] = Recent(guards, after, True)
    return after, places


def direct(
    inputs: Sequence[Tensor], parameters: Sequence[Tensor], *ladder: int | None
) -> Tensor | None:
    """y of a call on a GPU that nothing but eager PyTorch sees; None of any other call."""
    if not on_gpu(inputs[0]) or not seen_by_none():
        return None
    if ladder and any(type(x) is not int and x is not None for x in ladder):
        return None
    tensors = (*inputs, *parameters)
    kind = (len(inputs), torch.is_grad_enabled(), *ladder)
    recent = RECENT.get(kind)
    if recent is not None and recent.guards.check(*tensors):
        places = [x.data_ptr() for x in tensors]
        if all_aligned(places):
            _, tape, keep = recent
            return apply_direct(tape, places, *tensors) if keep else replay(tape, places)[0]
    found = traits_of(tensors)
    if found is None:
        return None
    traits, places = found
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    tape = tape_of(forward_of, tensors, traits, keep, *ladder)
    if tape is None:
        return None
    if all_aligned(places) and (guards := guards_of(tensors)) is not None:
        RECENT[kind] = Recent(guards, tape, keep)
    return apply_direct(tape, places, *tensors) if keep else replay(tape, places)[0]


def directly(
    launcher: Callable, tensors: Sequence[Tensor], *facts: object
) -> tuple[Tape, list[int]] | None:
    """The tape of a launcher that changes nothing, for a call that only eager PyTorch sees, and
    the addresses of its tensors; None where it has none.
    """
    kind = (launcher, torch.is_grad_enabled(), *facts)
    recent = RECENT.get(kind)
    if recent is not None and recent.guards.check(*tensors):
        places = [x.data_ptr() for x in tensors]
        if all_aligned(places):
            return recent.tape, places
    found = traits_of(tensors)
    if found is None:
        return None
    traits, places = found
    tape = tape_of(launcher, tensors, traits, *facts)
    if tape is None:
        return None
    if all_aligned(places) and (guards := guards_of(tensors)) is not None:
        RECENT[kind] = Recent(guards, tape, False)
    return tape, places


def directly_decoded(
    inputs: Sequence[Tensor], parameters: Sequence[Tensor], state, slots, *ladder: int | None
) -> Tensor | None:
    """y of a call of `decode` on a GPU that nothing but eager PyTorch sees; None of any other.

    A call that has no tape yet checks its arguments, and is done once: it changes the state.
    """
    if not isinstance(inputs, (tuple, list)) or not inputs:
        return None
    if not on_gpu(inputs[0]) or not seen_by_none():
        return None
    if type(state) is not STATE or (torch.is_grad_enabled() and requires_any(inputs)):
        return None  # which is refused
    if any(type(x) is not int and x is not None for x in ladder):
        return None
    given_slots = () if slots is None else (slots,)
    tensors = (*inputs, *parameters, *state[:-1], *given_slots)
    facts = (len(inputs), slots is not None, state.draft, *ladder)
    kind = ("decode", torch.is_grad_enabled(), *facts)
    recent = RECENT.get(kind)
    if recent is not None and recent.guards.check(*tensors):
        places = [x.data_ptr() for x in tensors]
        if all_aligned(places):
            return replay_decoded(recent.tape, places, state)
    found = traits_of(tensors)
    if found is None:
        return None
    traits, places = found
    tape = TAPES.get((decode_of, facts, traits), ...)
    if tape is None or (tape is ... and (capturing() or not is_plain(tensors))):
        return None
    if tape is ...:
        check_decoding(inputs, parameters, state, slots, *ladder)
        if len(TAPES) >= MOST_TAPES:
            TAPES.clear()
            RECENT.clear()
        TAPES[decode_of, facts, traits], results = record(decode_of, tensors, *facts)
        increment_version(state[:-1])
        return results[0]
    if all_aligned(places) and (guards := guards_of(tensors)) is not None:
        RECENT[kind] = Recent(guards, tape, False)
    return replay_decoded(tape, places, state)


def replay_decoded(tape: Tape, places: list[int], state) -> Tensor:
    """y of a tape of `decode`, which changes a state that gradients of calls before may need: so
    that autograd sees it.
    """
    y = replay(tape, places)[0]
    increment_version(state[:-1])
    return y


def requires_any(tensors: Sequence[Tensor]) -> bool:
    """Whether a gradient would be asked for."""
    return any(getattr(x, "requires_grad", False) for x in tensors)


def all_aligned(places: Sequence[int]) -> bool:
    """Whether memory begins at these addresses, all multiples of 16."""
    return all(places) and reduce(or_, places) % 16 == 0


def guards_of(tensors: Sequence[Tensor]) -> object | None:
    """What tells tensors of the same types, keys of dispatch, dtypes, devices, sizes, strides and
    needs of gradients, where this PyTorch has it: its name is not public.
    """
    made = getattr(torch._C._dynamo.guards, "TensorGuards", None)
    if made is None:
        return None
    return made(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)


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


def record(
    launcher: Callable, tensors: Sequence[Tensor], *facts: object
) -> tuple[Tape | None, list[Tensor]]:
    """The tape of a launch, which is done, and its results; no tape if it does more than to
    allocate and to launch.
    """
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
        return None, results
    bases = [*tensors, *results]
    scratch: dict[int, int] = {}  # where the memory of a tensor that only kernels see begins
    size = 0
    launches = []
    inner: list[tuple[int, int]] = []
    for kernel, programs, binary, arguments, constants in noted:
        start = starter(binary, tensors[0].device, programs, constants)
        if start is None:
            return None, results
        numbers, addresses = [], []
        for argument in arguments:
            if not isinstance(argument, Tensor) or argument.numel() == 0:
                numbers.append(0 if isinstance(argument, Tensor) else argument)
                addresses.append(None)
                continue
            memory = argument.untyped_storage()
            place = memory.data_ptr()
            same = [n for n, x in enumerate(bases) if x is argument]
            same = same or [
                n for n, x in enumerate(bases) if x.untyped_storage().data_ptr() == place
            ]
            if len(same) > 1:  # which of them a view is of cannot be told
                return None, results
            if not same and place not in scratch:
                scratch[place] = size
                size += -(-memory.nbytes() // 256) * 256
            base = same[0] if same else len(bases)
            start_of = bases[base].data_ptr() if same else place - scratch[place]
            addresses.append((base, argument.data_ptr() - start_of))
        launches.append((kernel.__name__, start, numbers, addresses))
        inner += [address for address in addresses if address is not None and address[1]]
    given = {x.untyped_storage().data_ptr() for x in tensors}
    places = [x.untyped_storage().data_ptr() for x in results if x.numel()]
    if given & set(places) or len(set(places)) < len(places):  # results that share memory
        return None, results
    shapes = tuple((tuple(x.shape), x.stride(), x.dtype) for x in results)
    device, count = tensors[0].device, len(bases) + bool(size)
    inner = list(dict.fromkeys(inner))
    replays = []
    for kernel, start, numbers, addresses in launches:
        where, after = [], count + len(inner)  # numbers are behind all addresses
        for address in addresses:
            if address is None:
                where.append(after)
                after += 1
            else:
                where.append(count + inner.index(address) if address[1] else address[0])
        replays.append(Replay(kernel, start, numbers, itemgetter(*where)))
    empty = empty_on(device, hasty=True)
    tape = Tape(device, empty, shapes, size, tuple(inner), tuple(replays), facts, {})
    return tape, results


def empty_on(device: torch.device, hasty: bool) -> Callable[[tuple, tuple, torch.dtype], Tensor]:
    """Makes tensors on a device that is current.

    Args:
        hasty: as PyTorch's compiled graphs do, if it has a function for that: it takes half the
            time, and leaves memory as it is where PyTorch is asked to fill it.
    """
    own = getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}", None)
    if own is not None and hasty:
        return own
    return lambda shape, strides, dtype: torch.empty_strided(
        shape, strides, dtype=dtype, device=device
    )


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


def replay(tape: Tape, places: list[int]) -> list[Tensor]:
    """What a launcher gives for tensors of the traits of those that a tape is of.

    Args:
        places: where these tensors lie.
    """
    if is_current(tape.device):
        return replay_here(tape, places)
    with torch.cuda.device(tape.device):
        return replay_here(tape, places)


def replay_here(tape: Tape, places: list[int]) -> list[Tensor]:
    """The same on the current device."""
    empty = tape.empty
    if torch.are_deterministic_algorithms_enabled():  # it may have to be filled
        empty = empty_on(tape.device, hasty=False)
    results = [empty(*traits) for traits in tape.results]
    bases = places + [x.data_ptr() for x in results]
    if tape.scratch:  # kept until all is launched: later work on the stream may then have it
        scratch = empty((tape.scratch,), (1,), torch.uint8)
        bases.append(scratch.data_ptr())
    bases += [bases[i] + within for i, within in tape.inner]
    start_all(tape, bases)
    return results


def start_all(tape: Tape, addresses: list[int]) -> None:
    """Launch what a tape launches, of tensors at addresses, and within them."""
    for kernel, start, numbers, pick in tape.launches:
        try:
            start(pick(addresses + numbers))
        except Exception as error:
            raise RuntimeError(f"{OP}: {kernel} could not be launched on {tape.device}") from error
