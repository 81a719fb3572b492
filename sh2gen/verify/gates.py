"""How far results may be off: the gates that the docstring of verify.py derives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sh2gen.spec.language import Precision

ROUNDINGS = {Precision.EXACT: 1, Precision.BALANCED: 4, Precision.FAST: 16}
_NORM_FLOOR = 8.0
_ELEMENT_FLOOR = 32.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """The gates of verify.py's docstring."""

    roundings: int  # c
    unit: float  # u
    arithmetic: float  # e
    underflow: float  # half the smallest subnormal of the io dtype
    rowwise: bool  # float32 errors are relative to the largest value of a row
    oracle: float  # error of the reference relative to the largest value of a row

    def elements(self, absolute: Tensor) -> Tensor:
        """How far each element may be off."""
        row = absolute.amax(-1, keepdim=True) if absolute.ndim > 1 else absolute
        floor = _ELEMENT_FLOOR * self.arithmetic * (row if self.rowwise else absolute)
        rounding = self.roundings * self.unit * absolute
        return rounding + floor + self.oracle * row + self._tiny(absolute)

    def norm(self, value: Tensor, absolute: Tensor, squares: Tensor, taps: float) -> float:
        """How far the whole tensor may be off, in the 2-norm; `taps` carry the filter."""
        rounding = norm(round_once(value, self.unit) - value)
        luck = 0.0
        if self.roundings > 1:
            independent = max(1.0, min(taps, carriers(squares)))
            luck = self.unit * math.sqrt(squares.sum().item() / independent)
        floor = (_NORM_FLOOR * self.arithmetic + self.oracle) * norm(absolute)
        tiny = self._tiny(absolute) * math.sqrt(value.numel())
        return math.sqrt(self.roundings) * (rounding + luck) + floor + tiny

    def _tiny(self, absolute: Tensor) -> float:
        return self.roundings * self.underflow * max(1.0, absolute.max().item())


def round_once(value: Tensor, unit: float) -> Tensor:
    """float64 `value` to the precision of unit roundoff `unit`, ties to even, of any exponent."""
    mantissa, exponent = torch.frexp(value)  # 0.5 <= |mantissa| < 1
    return torch.ldexp(torch.round(mantissa / unit) * unit, exponent)


def carriers(squares: Tensor) -> float:
    """How many elements of a tensor carry its norm: N if all are of a size, 1 if one dominates."""
    total = squares.sum().item()
    return total * total / squares.square().sum().item() if total else 1.0


def norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor).item())
