"""Lowerings: from a spec to the plans that compute it. One file an algorithm.

To add an algorithm: `lower/<name>.py` with `applies` and `lower`, `templates/parts/<name>.py` with
its helpers, `schedules/<name>.yaml` with its knobs, and one line in `ALGORITHMS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sh2gen.base.errors import Sh2genError
from sh2gen.lower import direct, fft, modal, toeplitz
from sh2gen.lower.verdict import Verdict
from sh2gen.plan.plan import Plan
from sh2gen.spec.operator import OpSpec


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A lowering: a verdict in words, and the plans if it applies."""

    applies: Callable[[OpSpec], Verdict]
    lower: Callable[[OpSpec], tuple[Plan, ...]]


# The order is the order of preference among plans of equal cost.
ALGORITHMS: dict[str, Algorithm] = {
    "direct": Algorithm(direct.applies, direct.lower),
    "toeplitz": Algorithm(toeplitz.applies, toeplitz.lower),
    "modal": Algorithm(modal.applies, modal.lower),
    "fft": Algorithm(fft.applies, fft.lower),
}


def verdicts(spec: OpSpec) -> dict[str, Verdict]:
    """Every algorithm's verdict, in order of preference."""
    return {name: algorithm.applies(spec) for name, algorithm in ALGORITHMS.items()}


def plans(spec: OpSpec, algorithm: str | None = None) -> tuple[Plan, ...]:
    """All plans of the algorithms that apply, or of one algorithm.

    Raises:
        Sh2genError: L002 if no algorithm applies, L001 if the one asked for does not, L003 if
            unknown.
    """
    if algorithm is not None and algorithm not in ALGORITHMS:
        raise Sh2genError(
            "L003", f"unknown algorithm `{algorithm}`", help=f"one of {', '.join(ALGORITHMS)}"
        )
    answers = verdicts(spec)
    chosen = [algorithm] if algorithm else list(ALGORITHMS)
    found = tuple(
        plan for name in chosen if answers[name].applies for plan in ALGORITHMS[name].lower(spec)
    )
    if not found:
        lines = "".join(f"\n  {name}: {answers[name]}" for name in chosen)
        if algorithm:
            raise Sh2genError("L001", f"`{algorithm}` cannot compute {spec.op}:{lines}")
        raise Sh2genError("L002", f"no algorithm can compute {spec.op}:{lines}")
    return found
