"""Passes: pure functions Graph -> Graph (layer 3). Each can be printed before and after."""

from sh2gen.passes.adjoint import adjoint

__all__ = ["adjoint"]
