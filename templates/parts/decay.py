"""The envelope of filters that decay: capitalised names are constants of the generated file."""

import torch
from torch import Tensor

OP = "op"
EXPONENTS, REPEATS, CACHE_LENGTH, LAG_LAST = (-1, 2), 1, 2, False


def groups_of_ladder(groups: int, first_group: int, groups_in_all: int | None) -> int:
    """How many groups share the ladder of decays, of which these are from first_group on. Refuses
    what is no part of it.
    """
    whole = groups if groups_in_all is None else groups_in_all
    for name, value in (("first_group", first_group), ("groups_in_all", whole)):
        if not isinstance(value, (int, torch.SymInt)):
            raise TypeError(f"{OP}: {name} must be a whole number, not {value!r}")
    if not 0 <= first_group <= whole - groups:
        raise ValueError(
            f"{OP}: {groups} filter groups from {first_group} on are not among {whole}: "
            f"first_group must be at least 0, and groups_in_all at least first_group + {groups}"
        )
    if whole % REPEATS:
        raise ValueError(
            f"{OP}: {groups} filter groups from {first_group} on are not of whole ladders of "
            f"decays: groups_in_all must be a multiple of {REPEATS}, not {whole}"
        )
    return whole


def decayed(taps: Tensor, first_group: int = 0, groups_in_all: int | None = None) -> Tensor:
    """Taps (G, K) times the decay exp(-alpha tau) of their group (arXiv 2503.01868, section 2).

    The G groups are first_group, first_group + 1, ... of groups_in_all, which share one ladder of
    alphas: so that a slice of the channels has its own rungs.
    """
    groups, steps = taps.shape
    whole = groups_of_ladder(groups, first_group, groups_in_all)
    ladder = torch.logspace(*EXPONENTS, whole // REPEATS, dtype=torch.float64, device=taps.device)
    alpha = ladder.repeat(REPEATS)[first_group : first_group + groups]
    lag = torch.arange(steps, dtype=torch.float64, device=taps.device)
    lag = lag.flip(0) if LAG_LAST else lag
    tau = lag / max(CACHE_LENGTH - 1, 1)
    return taps * torch.exp(-alpha[:, None] * tau).to(taps.dtype)
