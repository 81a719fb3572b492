"""Other ways of computing an operator, which `bench` times beside its kernels.

A module a package: what it has in its tuple BASELINES is found by being there. `base` says what a
baseline is.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from sh2gen.base.errors import Sh2genError
from sh2gen.bench.baselines.base import Baseline


def _found() -> Iterator[Baseline]:
    """Those of all modules of this folder, which stand in the order of their names."""
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        module = importlib.import_module(f"{__name__}.{name}")
        yield from getattr(module, "BASELINES", ())


# Those of PyTorch, which need no package, come first.
BASELINES: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in sorted(_found(), key=lambda baseline: baseline.package is not None)
}


def chosen(baselines: str | None) -> tuple[Baseline, ...]:
    """The baselines of a list of names, all by default; a package stands for all of its own.

    Raises:
        Sh2genError: C006, a name that none has.
    """
    if baselines is None:
        return tuple(BASELINES.values())
    found: list[Baseline] = []
    for name in filter(None, (word.strip() for word in baselines.split(","))):
        known = [c for c in BASELINES.values() if name in (c.name, c.package)]
        if not known:
            raise Sh2genError(
                "C006", f"unknown baseline `{name}`", help=f"one of {', '.join(BASELINES)}"
            )
        found += [c for c in known if c not in found]
    return tuple(found)
