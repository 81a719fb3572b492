"""The targets that tests name."""

from __future__ import annotations

from sh2gen.targets.target import target

H200, H100, A100, B200 = map(target, ("H200", "H100", "A100", "B200"))
