"""What was verified: checks, and a report of all of them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from sh2gen.base.errors import CheckFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison: it passed if `measured` <= `bound`, which NaN never is.

    `name` reads "property B=1 L=128: what". Of elements, `measured` is the largest share of
    its allowance that any element used, and `bound` 1; of a bit-for-bit check, the number of
    elements that differ, and 0. Of a norm, `once` is what one rounding to the io dtype costs,
    measured likewise, and `size` the number of elements.
    """

    name: str
    measured: float
    bound: float
    detail: str = ""
    once: float | None = None
    size: int | None = None

    @property
    def passed(self) -> bool:
        return self.measured <= self.bound

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which knows no infinity: None stands for what is not finite."""
        numbers = {"measured": self.measured, "bound": self.bound}
        finite = {key: x if math.isfinite(x) else None for key, x in numbers.items()}
        return {"name": self.name, "passed": self.passed, **finite, "detail": self.detail}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was verified and every check, in the order in which they ran."""

    op: str
    digest: str  # of the spec
    runner: str
    dtype: str
    device: str
    seed: int
    checks: tuple[Check, ...]
    label: str = ""  # what was run, and on which miniature, for a person

    @property
    def ok(self) -> bool:
        """Whether something was checked and all of it passed."""
        return bool(self.checks) and not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    def require(self) -> None:
        """Raise CheckFailed with the first failure, if any: V001 for equality, else V002."""
        if self.ok:
            return
        if not self.checks:
            raise CheckFailed("V003", f"nothing of {self.op} was verified")
        first = self.failures[0]
        code = "V001" if first.name.startswith("equality") else "V002"
        others = len(self.failures) - 1
        more = f" (and {others} more of {len(self.checks)} checks)" if others else ""
        numbers = f"{first.measured:.3g}, allowed {first.bound:.3g}"
        what = f"{self.op} by {self.runner} in {self.dtype}: {first.name}: {numbers}"
        raise CheckFailed(code, what + more, help=first.detail or None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return fields | {"ok": self.ok, "checks": [check.to_dict() for check in self.checks]}
