"""What hypothesis draws: operators and shapes, from the rules of the language."""

from __future__ import annotations

import dataclasses

from hypothesis import settings
from hypothesis import strategies as st

from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec

WIDTHS = (1, 2, 3, 5, 7, 15, 16)
BLOCKS = (8, 16, 32, 64)
PRIMES = (3, 5, 11, 13, 29, 37, 61, 127)


TAPS: dict[str, object] = {"kind": "explicit", "length": 4, "groups": 2}
MODES: dict[str, object] = {
    "kind": "modal", "modes": 3, "parametrisation": "log_poles", "groups": 2
}  # fmt: skip

PAIRS: dict[str, object] = MODES | {"parametrisation": "complex"}


def filter_for(algorithm: str) -> dict[str, object]:
    """A filter of two groups that an algorithm computes."""
    return MODES if algorithm == "modal" else TAPS


def register_profiles() -> None:
    """`ci`, the default, and `nightly` (pytest --hypothesis-profile=nightly)."""
    settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25)
    settings.register_profile("nightly", deadline=None, max_examples=2000)
    if settings.get_current_profile_name() == "default":
        settings.load_profile("ci")


@st.composite
def specs(
    draw: st.DrawFn,
    algorithm_max_taps: int = 16,
    *,
    kinds: tuple[str, ...] = ("explicit",),
    io: tuple[str, ...] = ("float32", "float16"),
    precision: tuple[str, ...] = ("balanced",),
    max_groups: int = 3,
    widths: tuple[int, ...] = WIDTHS,
) -> OpSpec:
    """A legal operator of few channels, which shrinks to one tap on one channel and nothing else.

    Args:
        algorithm_max_taps: the longest inner filter.
        kinds, io, precision: what to choose from.
        max_groups, widths: groups, and channels in each.
    """
    groups = draw(st.integers(1, max_groups))
    gates = {"pre": draw(st.booleans()), "post": draw(st.booleans())}
    skip = draw(st.sampled_from(("none", "channel", "group")))
    # A gated bias is a skip: the language refuses both together, and a gate with an activation.
    biases = ("none", "ungated", "gated") if skip == "none" else ("none", "ungated")
    activations = ("none",) if any(gates.values()) else ("none", "silu")
    spec = {
        "op": "drawn",
        "channels": groups * draw(st.sampled_from(widths)),
        "filter": draw(_filters(kinds, groups, algorithm_max_taps)),
        "featurizer": draw(
            st.just("none")
            | st.fixed_dictionaries({"length": st.integers(1, 4), "taps": _tap_orders()})
        ),
        "gates": gates,
        "skip": skip,
        "bias": draw(st.sampled_from(biases)),
        "activation": draw(st.sampled_from(activations)),
        "precision": draw(st.sampled_from(precision)),
        "dtype": {"io": draw(st.sampled_from(io))},
        "layout": {
            "activations": draw(st.sampled_from(("auto", "BLD", "BDL"))),
            "projection": draw(st.sampled_from(("thirds", "interleaved"))),
        },
    }
    # As of an operator of its own, or of the miniature of one with many filters.
    in_full = draw(st.sampled_from((None, 256)))
    return dataclasses.replace(spec_from_dict(spec), groups_in_full=in_full)


@st.composite
def shapes(draw: st.DrawFn, spec: OpSpec, *, longest: int = 1000) -> tuple[int, int]:
    """(B, L): lengths around the filter's and around blocks, primes, and rarely a long one."""
    taps = spec.filter.length or 8
    near = {1, 2, taps - 1, taps, taps + 1, *PRIMES, *BLOCKS}
    near |= {block + d for block in BLOCKS for d in (-1, 1)}
    # `longest` is one choice among about thirty, and the last: examples shrink away from it.
    lengths = [*sorted(n for n in near if 1 <= n < longest), longest]
    return draw(st.sampled_from((1, 3))), draw(st.sampled_from(lengths))


def _tap_orders() -> st.SearchStrategy[str]:
    return st.sampled_from(("lag_first", "lag_last"))


@st.composite
def _filters(
    draw: st.DrawFn, kinds: tuple[str, ...], groups: int, longest: int
) -> dict[str, object]:
    kind = draw(st.sampled_from(kinds))
    inner: dict[str, object] = {"kind": kind, "groups": groups}
    if kind == "modal":
        parametrisation = draw(st.sampled_from(("log_poles", "p_gamma", "complex")))
        return inner | {"modes": draw(st.integers(1, 4)), "parametrisation": parametrisation}
    taps = draw(st.integers(1, longest))
    inner |= {"length": taps, "taps": draw(_tap_orders())}
    if kind == "decay":
        inner["decay"] = {
            "preset": draw(st.sampled_from(("weak", "normal", "strong"))),
            "cache_length": taps + draw(st.sampled_from((0, 1, 100))),
            "repeats": draw(st.sampled_from([r for r in (1, 2, 3) if groups % r == 0])),
        }
    return inner
