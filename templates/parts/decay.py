"""The envelope of filters that decay: capitalised names are constants of the generated file."""

import math

import torch
from torch import Tensor

OP = "op"
EXPONENTS, REPEATS, CACHE_LENGTH, LAG_LAST = (-1, 2), 1, 2, False


def rungs_of(groups: int, first_group: int, groups_in_all: int | None) -> int:
    """How many groups share one ladder of decays, of those of which these are from first_group on.
    Refuses what is no part of it.
    """
    whole = groups if groups_in_all is None else groups_in_all
    for name, value in (("first_group", first_group), ("groups_in_all", whole)):
        if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
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
    return whole // REPEATS


def ladder_of(first_group: int, rungs: int) -> tuple[int, int]:
    """How fast taps of the first group here decay, in powers of two per lag, and how much faster
    those of each later one: both as log2 in units of 2 ** -48, the first plus 64, so that kernels
    never take them for numbers of 32 bits. Of several ladders, the first group's is that of group
    0 of all.
    """
    slowest, fastest = (math.log2(10) * exponent for exponent in EXPONENTS)
    step = round((fastest - slowest) / max(1, rungs - 1) * 2**48)
    first = slowest + 64 - math.log2(math.log(2) * max(1, CACHE_LENGTH - 1))
    return round(first * 2**48) + first_group * step * (REPEATS == 1), step


def decays_of(taps: Tensor, first_group: int = 0, groups_in_all: int | None = None) -> Tensor:
    """The decays exp(-alpha tau) of taps (G, K), in their dtype (arXiv 2503.01868, section 2).

    The G groups are first_group, first_group + 1, ... of groups_in_all, which share one ladder of
    alphas: so that a slice of the channels has its own rungs.
    """
    groups, steps = taps.shape
    rungs = rungs_of(groups, first_group, groups_in_all)
    ladder = torch.logspace(*EXPONENTS, rungs, dtype=torch.float64, device=taps.device)
    alpha = ladder.repeat(REPEATS)[first_group : first_group + groups]
    lag = torch.arange(steps, dtype=torch.float64, device=taps.device)
    lag = lag.flip(0) if LAG_LAST else lag
    tau = lag / max(CACHE_LENGTH - 1, 1)
    return torch.exp(-alpha[:, None] * tau).to(taps.dtype)
