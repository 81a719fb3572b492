"""How far results may be off: two tolerances against float64.

Notation: B batch, L length, D channels, G filter groups, K taps, N elements of a tensor; u is the
unit roundoff of the io dtype (2^-8 bfloat16, 2^-11 float16, 2^-24 float32), e that of float32.

**The scale of errors.** An output is a sum of products of inputs and parameters. Let `ref` be its
float64 value, `abs` the sum of the absolute values of those products (the same operator on
absolute values), `sqr` the sum of their squares. Arithmetic that rounds each product c times to
the io dtype and adds in float32 is off by at most (c u + O(K) e) abs, whatever the signs (Higham,
Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1). Where terms cancel, more is
not to be had; where they do not, more is not accepted.

**Roundings allowed.** c = 1 (exact), 4 (balanced), 16 (fast): c independent roundings exceed one
by sqrt(c) = 1, 2, 4 in root-mean-square. So `exact` means float32 arithmetic throughout and one
rounding at the end: sqrt(2) = 1.41, a single operand in the io dtype, already fails it. `balanced`
leaves room for the operands of a tensor core and the final rounding (sqrt(3) = 1.73).

**Norm**, for the output and for every gradient:

    |result - ref|_2  <=  sqrt(c) (|round(ref) - ref|_2 + s) + 8 e |abs|_2 + tiny

- round() rounds once to the precision of the io dtype, of unlimited exponent: parameter gradients
  are float32 and may exceed float16. They are held to the io dtype all the same.
- s = u sqrt(sum(sqr) / n): the root-mean-square of n roundings is a statistic, and by luck a few
  of them are small in one place and large in another. n = sum(sqr)^2 / sum(sqr^2) is how many
  elements carry the norm, or how many taps carry the filter if they are fewer (the rounding of a
  tap is shared by all of time); of gradients of modes, how many filters do. At full size s is a
  tenth of the rest or less, on a miniature more.
  For exact, s = 0: an error d before the one rounding adds at most 2 d to it, whatever n.
- 8 e: about 24 float32 roundings in a row (4 taps, gate, 16 taps, skip, bias, gate), each at most
  e times a partial sum, have a root-mean-square near 2 e abs; float32 FFTs are not far from that.

Where torch adds n > 1 parts in the io dtype (the gradients of inputs that n chunks read), c is
2 c + n - 1: each part is held to its own size, the sizes of parts that cancel have about twice the
squares of their sum, and each addition rounds.

**Elements**, for every element:

    |result - ref|  <=  c u abs + 32 e abs + tiny

32 e is the worst case of 30 float32 roundings in a row, and typical of sums of a thousand terms,
whose errors grow like the square root of their length. An FFT spreads its error evenly over a row:
for runners that are not exactly causal the term in e takes the largest `abs` of the row. Where the
reference itself is by FFT (K > 256), its own error, 2^-46 of that largest value, is added.

tiny = c max(1, max abs) / 2 times the smallest subnormal of the io dtype: for what underflows.
Everything must be finite, and nothing that torch allocates may stay unwritten: torch.empty gives
NaN while a runner runs, and inputs lie between NaNs.
"""

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
    """The two tolerances of this module's docstring."""

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
