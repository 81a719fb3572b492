"""The envelope of filters that decay: capitalised names are constants of the generated file."""

import torch
from torch import Tensor

OP = "op"
EXPONENTS, REPEATS, CACHE_LENGTH, LAG_LAST = (-1, 2), 1, 2, False


def decayed(taps: Tensor, first_group: int = 0, groups_in_all: int | None = None) -> Tensor:
    """Taps (G, K) times the decay exp(-alpha tau) of their group (arXiv 2503.01868, section 2).

    The G groups are first_group, first_group + 1, ... of groups_in_all, which share one ladder of
    alphas: so that a slice of the channels has its own rungs.
    """
    groups, steps = taps.shape
    whole = groups if groups_in_all is None else groups_in_all
    if whole % REPEATS or not 0 <= first_group <= whole - groups:
        raise ValueError(
            f"{OP}: {groups} filter groups from {first_group} on are not of {whole}, or these are "
            f"no {REPEATS} ladders of decays"
        )
    ladder = torch.logspace(*EXPONENTS, whole // REPEATS, dtype=torch.float64, device=taps.device)
    alpha = ladder.repeat(REPEATS)[first_group : first_group + groups]
    lag = torch.arange(steps, dtype=torch.float64, device=taps.device)
    lag = lag.flip(0) if LAG_LAST else lag
    tau = lag / max(CACHE_LENGTH - 1, 1)
    return taps * torch.exp(-alpha[:, None] * tau).to(taps.dtype)
