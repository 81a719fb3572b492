"""Passes: pure functions of graphs and tile programs (layer 3). Each can be printed before and
after.
"""

from sh2gen.passes.adjoint import adjoint
from sh2gen.passes.phases import phases

__all__ = ["adjoint", "phases"]
