"""The log-poles of Hyena-LI, of what is trained."""

import torch
from torch import Tensor


def poles(p: Tensor, gamma: Tensor) -> Tensor:
    """The log-poles (G, N) of Hyena-LI from what is trained (arXiv 2503.01868, section 2)."""
    return -torch.exp(p) * torch.exp(gamma)
