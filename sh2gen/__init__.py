"""sh2gen: from a description of a causal convolution operator to verified Triton kernels.

import sh2gen

operator = sh2gen.operator("hyena_mr", channels=1920, groups=128)  # compiled once, from a cache
operator = sh2gen.compile("ops/hyena_se.yaml")  # writes generated/hyena_se.py and imports it
sh2gen.tune("ops/hyena_se.yaml")  # on a GPU: compile takes what it finds from then on
operator = sh2gen.load("generated/hyena_se.py")  # imports it again, without compiling
y = operator(q, k, v, filter=h, featurizer=w)  # differentiable; CPU, or CUDA through Triton
layer = operator.module()  # an nn.Module with its own parameters
exact = operator.reference(q, k, v, filter=h, featurizer=w)  # float64, by FFT
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # that of typing, whose import takes a while
if TYPE_CHECKING:
    from typing import Any

    from sh2gen.api.compile import compile
    from sh2gen.api.load import load
    from sh2gen.api.operator import operator
    from sh2gen.api.tune import tune
    from sh2gen.base.errors import CheckFailed, Sh2genError
    from sh2gen.runtime.documents import cu_seqlens_of, cu_seqlens_of_mask
    from sh2gen.runtime.operator import Operator
    from sh2gen.spec.decode import load_spec, parse_spec
    from sh2gen.spec.operator import OpSpec

__all__ = [
    "CheckFailed",
    "OpSpec",
    "Operator",
    "Sh2genError",
    "compile",
    "cu_seqlens_of",
    "cu_seqlens_of_mask",
    "load",
    "load_spec",
    "operator",
    "parse_spec",
    "tune",
]
__version__ = "0.1.0"

_HOMES = {  # imported when they are first asked for: torch takes two seconds
    "CheckFailed": "base.errors",
    "OpSpec": "spec.operator",
    "Operator": "runtime.operator",
    "Sh2genError": "base.errors",
    "compile": "api.compile",
    "cu_seqlens_of": "runtime.documents",
    "cu_seqlens_of_mask": "runtime.documents",
    "load": "api.load",
    "load_spec": "spec.decode",
    "operator": "api.operator",
    "parse_spec": "spec.decode",
    "tune": "api.tune",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
