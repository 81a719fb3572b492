"""What `emit` produces and `build` consumes: a generated file's text and a list of its kernels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a kernel is for."""

    FORWARD = "forward"
    BACKWARD = "backward"
    REDUCE = "reduce"


class Variant(StrEnum):
    """One of the binaries that Triton makes of a kernel, by which arguments are divisible by 16.

    Triton loads 16 bytes at a time only from pointers and strides that it knows to be divisible by
    16, so an odd stride or a tensor that starts at an odd element runs another binary, with other
    registers.
    """

    ALIGNED = "aligned"
    UNALIGNED = "unaligned"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSource:
    """How to compile one kernel of a generated file."""

    name: str  # the @triton.jit function in the file
    role: Role
    signature: tuple[
        tuple[str, str], ...
    ]  # each argument that is no constexpr: ("q_ptr", "*bf16"), ("length", "i32")
    constants: tuple[tuple[str, int | bool | float | str], ...]  # the constexpr arguments
    divisible: tuple[str, ...]  # arguments divisible by 16 in the aligned variant
    unaligned_keeps: tuple[
        str, ...
    ]  # those that stay so in the unaligned variant: parameters, partial sums
    # constants that differ in the unaligned variant: such as whether bounds are whole vectors
    unaligned_constants: tuple[tuple[str, int | bool | float | str], ...] = ()
    num_warps: int
    num_stages: int
    gluon: bool = False  # written in Gluon: for sm_90 only, and only for calls that are aligned
    maxnreg: int | None = (
        None  # registers per thread that the compiler may use; None leaves it free
    )

    def __post_init__(self) -> None:
        arguments = {name for name, _ in self.signature}
        constants = {name for name, _ in self.constants}
        assert len(arguments) == len(self.signature), f"{self.name}: an argument is given twice"
        assert set(dict(self.unaligned_constants)) <= constants, f"{self.name}: unknown constant"
        assert not arguments & constants, f"{self.name}: {arguments & constants} are constants too"
        assert set(self.divisible) <= arguments, f"{self.name}: divisible names no argument"
        assert set(self.unaligned_keeps) <= set(self.divisible), (
            f"{self.name}: keeps what is not divisible"
        )

    def runs(self, variant: Variant, capability: int) -> bool:
        """Whether there is such a binary for GPUs of this capability (90 for sm_90)."""
        return not self.gluon or (variant is Variant.ALIGNED and capability == 90)

    def constants_in(self, variant: Variant) -> dict[str, int | bool | float | str]:
        """The constexpr arguments of `variant`."""
        changed = dict(self.unaligned_constants) if variant is Variant.UNALIGNED else {}
        return dict(self.constants) | changed

    def divisible_in(self, variant: Variant) -> tuple[str, ...]:
        """The arguments that are divisible by 16 in `variant`."""
        return self.divisible if variant is Variant.ALIGNED else self.unaligned_keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One generated file: importable Python text, and the kernels in it."""

    op: str  # the operator's name, an identifier: messages and debug information say <op>.py
    text: str
    kernels: tuple[KernelSource, ...]

    @property
    def digest(self) -> str:
        """sha256 of the text, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()
