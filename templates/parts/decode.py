"""What a call that decodes checks, and what it does in plain PyTorch.

Capitalised names are constants of the generated file: RINGS has the lag and the roles of every
ring of a state, which is [places, slots, roles * channels] and keeps step t in slot t % slots;
COUNTED is how many channels side by side count their steps together, MODES_SHAPE what a state
has of a channel's modes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from templates.parts.check import check_dense
from templates.parts.op import CHANNEL, INPUTS, OP, TIME, channels_of

RINGS: dict[str, tuple[int, int]] = {}
COUNTED = 16
MODES_SHAPE: tuple[int, ...] = ()


class STATE(NamedTuple):
    """Of the generated file."""

    count: Tensor
    done: Tensor
    draft: bool


def check_sizes(dtype: torch.dtype, draft: bool, **sizes: int) -> None:
    """Refuse what no state is of."""
    if not isinstance(draft, bool):
        raise TypeError(f"{OP}: draft must be True or False, not {draft!r}")
    for name, number in sizes.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{OP}: {name} must be a whole number, not {number!r}")
        if number < (name != "batch"):
            raise ValueError(f"{OP}: {name} must be at least {int(name != 'batch')}, not {number}")
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise TypeError(
            f"{OP}: a state is float32, bfloat16 or float16 (float64 on a CPU), not {dtype}"
        )


def with_state(inputs: Sequence, state) -> tuple[Sequence[Tensor], object]:
    """The inputs, and the state that may come last of them."""
    if state is None and inputs:
        *inputs, state = inputs
    if isinstance(state, Tensor):
        raise TypeError(
            f"{OP}: expected {', '.join(INPUTS)} or packed features, then a state; slots by name"
        )
    return inputs, state


def check_count(inputs: Sequence[Tensor]) -> None:
    """Refuse another number of inputs than there are."""
    known = isinstance(inputs, (tuple, list)) and len(inputs) in (1, len(INPUTS))
    if not known or not all(isinstance(x, Tensor) for x in inputs):
        several = f"{', '.join(INPUTS)} or one tensor of packed features"
        what = several if len(INPUTS) > 1 else "one input"
        raise TypeError(f"{OP}: expected {what}, as tensors in a tuple or list, and a state")


def check_decode(
    inputs: Sequence[Tensor], state, slots: Tensor | None, any_steps: bool = False
) -> None:
    """Refuse a state and slots that do not belong to inputs, which have been checked."""
    if not isinstance(state, STATE):
        raise TypeError(
            f"{OP}: state is a {type(state).__name__}, expected a {STATE.__name__}, which "
            "initial_state of the same file gives"
        )
    x, channels = inputs[0], channels_of(inputs)
    for name, tensor in zip(state._fields, state, strict=True):
        if name != "draft":
            check_dense(f"state.{name}", tensor)
            if tensor.device != x.device:
                raise ValueError(
                    f"{OP}: state.{name} is on {tensor.device}, but {INPUTS[0]} is on {x.device}"
                )
            if not tensor.is_contiguous():
                raise ValueError(f"{OP}: state.{name} is not contiguous")
            if name not in ("count", "done") and not tensor.is_floating_point():
                raise TypeError(
                    f"{OP}: state.{name} is {tensor.dtype}, "
                    "expected float32, bfloat16, float16 or float64"
                )
    steps, places = x.shape[TIME], state.count.shape[0]
    for name, shape in (("count", (places,)), ("done", (places, -(-channels // COUNTED)))):
        number = getattr(state, name)
        if number.shape != shape or number.dtype != torch.int32:
            raise ValueError(
                f"{OP}: state.{name} is {number.dtype} {tuple(number.shape)}, expected "
                f"torch.int32 {shape}"
            )
    for name, (lag, roles) in RINGS.items():
        ring = getattr(state, name)
        if ring.dim() != 3 or ring.shape[0] != places or ring.shape[2] != roles * channels:
            raise ValueError(
                f"{OP}: state.{name} has shape {tuple(ring.shape)}, expected ({places}, slots, "
                f"{roles * channels}) for {channels} channels"
            )
        if (lag or state.draft) and ring.shape[1] < lag + steps and not any_steps:
            raise ValueError(
                f"{OP}: {steps} steps in one call, but the state has room for "
                f"{ring.shape[1] - lag}: initial_state(batch, steps={steps}), or prefill"
            )
    modes = getattr(state, "modes", None)
    if modes is not None and tuple(modes.shape) != (places, channels, *MODES_SHAPE):
        raise ValueError(
            f"{OP}: state.modes has shape {tuple(modes.shape)}, expected "
            f"{(places, channels, *MODES_SHAPE)} for {channels} channels"
        )
    if slots is None:
        if places != x.shape[0]:
            raise ValueError(
                f"{OP}: {INPUTS[0]} has {x.shape[0]} rows, but the state has {places}: slots say "
                "which of them is whose"
            )
        return
    check_slots(slots, state, x.shape[0])


def check_slots(slots: Tensor, state, rows: int | None = None) -> None:
    """Refuse what are no places of a state, as far as can be seen without a wait for a GPU."""
    check_dense("slots", slots)
    places, device = state.count.shape[0], state.count.device
    known = slots.dtype == torch.int32 and slots.device == device and slots.dim() == 1
    if not known or rows not in (None, len(slots)):
        raise ValueError(
            f"{OP}: slots are {slots.dtype} {tuple(slots.shape)} on {slots.device}, expected "
            f"torch.int32 ({'B' if rows is None else rows},) on {device}"
        )
    if not is_known(slots):
        return
    if bool((slots >= places).any()):
        raise ValueError(f"{OP}: slots are beyond the {places} places of the state")
    real = slots[slots >= 0]
    if len(real.unique()) < len(real):
        raise ValueError(f"{OP}: two rows have one place of the state: {slots.tolist()}")


def state_like(state, inputs: Sequence[Tensor]):
    """The state that a call goes on from; refuses one that does not belong to these inputs."""
    names = ", ".join(STATE._fields)
    if not isinstance(state, (tuple, list)):
        raise TypeError(
            f"{OP}: state is a {type(state).__name__}, expected a {STATE.__name__} of {names}"
        )
    if len(state) != len(STATE._fields):
        raise TypeError(f"{OP}: state has {len(state)} fields, expected {names}")
    state = STATE(*state)
    check_decode(inputs, state, None, any_steps=True)
    if state.draft:
        raise ValueError(f"{OP}: a state of drafts is for decode and prefill alone")
    return state


def check_in_place(inputs: Sequence[Tensor], state) -> None:
    """Refuse what is not changed in place: modes that would be rounded, and gradients."""
    refuse_gradients(inputs)
    modes = getattr(state, "modes", state.count)
    narrow = modes.is_floating_point() and modes.dtype.itemsize < 4
    if narrow or (modes.is_cuda and modes.dtype == torch.float64):
        raise TypeError(
            f"{OP}: state.modes is {modes.dtype}, expected torch.float32 (or float64 on a CPU)"
        )


def refuse_gradients(inputs: Sequence[Tensor]) -> None:
    """Refuse inputs of which a gradient would be asked for."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        raise RuntimeError(f"{OP}: decoding has no gradients: call it under torch.no_grad()")


def all_rows(state) -> tuple[Tensor, Tensor]:
    """The places of a state, and how many steps there were in each."""
    return torch.arange(state.count.shape[0], device=state.count.device), state.count


def is_known(numbers: Tensor) -> bool:
    """Whether to look at numbers costs no wait for a GPU, and no compiler the whole of a graph."""
    return numbers.device.type == "cpu" and not torch.compiler.is_compiling()


def commit_drafts(state, accepted: Tensor, slots: Tensor | None) -> None:
    """What `commit` of a state does."""
    if not state.draft:
        raise ValueError(f"{OP}: this state moves on by itself: initial_state(..., draft=True)")
    if slots is not None:
        check_slots(slots, state)
    rows = state.count.shape if slots is None else slots.shape
    kinds = (torch.int32, torch.int64)
    if not isinstance(accepted, Tensor) or accepted.dtype not in kinds or accepted.shape != rows:
        raise TypeError(f"{OP}: accepted must be an int32 tensor {tuple(rows)}, not {accepted!r}")
    there = None if slots is None else has_place(slots, state)
    real = accepted if there is None else torch.where(there, accepted, 0)
    for name, (lag, _) in RINGS.items():
        room = getattr(state, name).shape[1] - lag
        if is_known(real) and bool(((real < 0) | (real > room)).any()):
            raise ValueError(f"{OP}: accepted are not all between 0 and {room} steps")
    if there is None:
        state.count.add_(real)
        return
    places = torch.where(there, slots, 0).long()
    state.count.index_add_(0, places, real.to(torch.int32))


def has_place(slots: Tensor, state) -> Tensor:
    """Which rows have a place of the state."""
    return (slots >= 0) & (slots < state.count.shape[0])


def reset_places(state, slots: Tensor | None) -> None:
    """What `reset` of a state does."""
    places = slice(None)
    if slots is not None:
        check_slots(slots, state)
        places = slots[has_place(slots, state)].long()
    for tensor in state[:-1]:
        tensor[places] = 0


def strided(x: Tensor) -> tuple[Tensor, int, int, int]:
    """What a kernel takes for steps: data, and strides of batch, channel and time."""
    return x, x.stride(0) if x.shape[0] > 1 else 0, x.stride(CHANNEL), x.stride(TIME)


def live_rows(slots: Tensor | None, state) -> tuple[Tensor, Tensor]:
    """Rows of a batch that are computed, and the places of their states."""
    if slots is None:
        rows, _ = all_rows(state)
        return rows, rows
    rows = has_place(slots, state).nonzero().flatten()
    return rows, slots[rows].long()


def ring_slots(ring: Tensor, count: Tensor, steps: int, begin: int) -> Tensor:
    """The slots of so many steps of each row from `begin` after step `count` on, (B, steps)."""
    step = torch.arange(begin, begin + steps, device=ring.device)
    return (count[:, None] + step) % ring.shape[1]


def past_of(ring: Tensor, places: Tensor, count: Tensor, lag: int) -> Tensor:
    """The `lag` steps before step `count`, (B, columns, lag)."""
    return ring[places[:, None], ring_slots(ring, count, lag, -lag)].transpose(1, 2)


def keep_in_ring(ring: Tensor, x: Tensor, places: Tensor, count: Tensor) -> None:
    """Write x (B, columns, T) to the ring, from step `count` on."""
    steps = x.transpose(1, 2).to(ring.dtype)
    ring[places[:, None], ring_slots(ring, count, x.shape[2], 0)] = steps


def in_ring(ring: Tensor, x: Tensor, places: Tensor, count: Tensor) -> Tensor:
    """`keep_in_ring` of a copy."""
    where = (places[:, None], ring_slots(ring, count, x.shape[2], 0))
    return ring.index_put(where, x.transpose(1, 2).to(ring.dtype))


def move_to(state, places: Tensor, count: Tensor) -> None:
    """Let sequences have had so many steps."""
    state.count[places] = count.to(torch.int32)
    state.done[places] = state.count[places, None]


def where_later(x: Tensor, past: Tensor, end: Tensor | int) -> Tensor:
    """The last T steps before an end, of each row or of all: of x (B, C, T) from step 0 on, and
    before that of the past, the T steps before step 0.
    """
    steps = x.shape[2]
    if isinstance(end, int):
        missing = max(0, steps - end)
        known = past[..., steps - missing :].to(x.dtype)
        return torch.cat([known, x[..., missing:]], 2) if missing else x
    time = end[:, None] - steps + torch.arange(steps, device=x.device)
    time = time[:, None].expand(-1, x.shape[1], -1)
    index = torch.where(time < 0, time + steps, 0)
    return torch.where(time < 0, past.to(x.dtype).gather(2, index), x)


def steps_before(x: Tensor, past: Tensor, end: Tensor | int, steps: int) -> Tensor:
    """The steps of x (B, C, L) before an end, of each row or of all; those before x are of the
    `past`, as far as it goes.
    """
    if isinstance(end, int):
        before = past[..., max(0, past.shape[2] - max(0, steps - end)) :].to(x.dtype)
        found = torch.cat([before, x[..., max(0, end - steps) : end]], 2)
        return functional.pad(found, (steps - found.shape[2], 0))
    index = end[:, None] - steps + torch.arange(steps, device=x.device)
    index, before = index[:, None].expand(-1, x.shape[1], -1), past.shape[2]
    # Not by clamp, whose constants inductor of PyTorch 2.11 folds into indices that fail.
    later = x.gather(2, torch.where(index < 0, 0, index))
    if not before:
        return later
    own = (index < 0) & (index >= -before)
    earlier = past.to(x.dtype).gather(2, torch.where(own, index + before, 0))
    return torch.where(index < 0, earlier, later)


def end_of_all(count: Tensor, steps: int) -> Tensor | int:
    """Where all rows end: a number, but for compilers, which would hold that one for all calls."""
    known = type(steps) is int and not torch.compiler.is_compiling()
    return steps if known else torch.full_like(count, steps)


def ends_of(lengths: Tensor | None, rows: Tensor, steps: int, x: Tensor) -> Tensor:
    """Where each row that is computed ends."""
    if lengths is None:
        return torch.full_like(rows, steps)
    check_dense("lengths", lengths)
    kinds = (torch.int32, torch.int64)
    if lengths.shape != x.shape[:1] or lengths.dtype not in kinds or lengths.device != x.device:
        raise ValueError(
            f"{OP}: lengths are {lengths.dtype} {tuple(lengths.shape)} on {lengths.device}, "
            f"expected int32 or int64 ({x.shape[0]},) on {x.device}"
        )
    own = lengths[rows].long()
    if is_known(own) and bool(((own < 0) | (own > steps)).any()):
        raise ValueError(f"{OP}: lengths are not all between 0 and {steps} steps")
    return own.clamp(0, steps)


def decode_modes(
    x: Tensor, poles: Tensor, residues: Tensor, state, places: Tensor, count: Tensor
) -> Tensor:
    """Sums of modes (C, N) after every step of x (B, C, T); their state moves on, or that of
    drafts to what was accepted of those before.
    """
    modes = state.modes[places].to(x.dtype)
    modes = torch.view_as_complex(modes) if poles.is_complex() else modes
    if poles.is_complex():
        lost, residues = (torch.exp(poles) - 1).to(modes.dtype), residues.to(modes.dtype)
    else:
        lost = torch.expm1(poles)  # not exp, which would drift where a pole is small

    def after(modes: Tensor, step: Tensor) -> Tensor:
        return modes + (lost * modes + step[..., None])

    def keep(modes: Tensor) -> None:
        real = torch.view_as_real(modes) if poles.is_complex() else modes
        state.modes[places] = real.to(state.modes.dtype)

    if state.draft:
        replay = count - state.done[places, 0]
        for i in range(int(replay.max()) if len(replay) else 0):
            step = state.z[places, (count - replay + i) % state.z.shape[1]].to(x.dtype)
            modes = torch.where((i < replay)[:, None, None], after(modes, step), modes)
        keep(modes)
        state.done[places] = count[:, None]
        keep_in_ring(state.z, x, places, count)
    y = []
    for step in x.unbind(2):
        modes = after(modes, step)
        y.append((residues * modes).sum(-1).real)
    if not state.draft:
        keep(modes)
    return torch.stack(y, 2) if y else x
