"""What `emit` produces and `build` consumes: a generated file's text and a list of its kernels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sh2gen.plan.kernel import Role


class Alignment(StrEnum):
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
    divisible: tuple[str, ...]  # arguments divisible by 16 in aligned calls
    unaligned_keeps: tuple[
        str, ...
    ]  # those that stay so in calls that are not: parameters, partial sums
    # constants that differ in calls that are not: such as whether bounds are whole vectors
    unaligned_constants: tuple[tuple[str, int | bool | float | str], ...] = ()
    num_warps: int
    num_stages: int
    capability: int | None = None  # of the only GPUs that run it, in calls that are aligned
    gluon: bool = False  # written in Gluon
    reduces: bool = False  # it adds partial sums
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

    def runs(self, alignment: Alignment, capability: int) -> bool:
        """Whether there is such a binary for GPUs of this capability (90 for sm_90)."""
        anywhere = self.capability is None
        return anywhere or (alignment is Alignment.ALIGNED and capability == self.capability)

    def constants_in(self, alignment: Alignment) -> dict[str, int | bool | float | str]:
        """The constexpr arguments of an alignment."""
        changed = dict(self.unaligned_constants) if alignment is Alignment.UNALIGNED else {}
        return dict(self.constants) | changed

    def divisible_in(self, alignment: Alignment) -> tuple[str, ...]:
        """The arguments that are divisible by 16 in an alignment."""
        return self.divisible if alignment is Alignment.ALIGNED else self.unaligned_keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One generated file: importable Python text, and the kernels in it."""

    op: str  # the operator's name, an identifier: messages and debug information say <op>.py
    text: str
    # the text without the configs in it, and these: by GPU, channels and groups, then by kernel
    frame: str = ""
    configs: Mapping[tuple[str, int, int], Mapping[str, Mapping[str, int]]] = field(
        default_factory=dict
    )
    kernels: tuple[KernelSource, ...]

    @property
    def digest(self) -> str:
        """sha256 of the text, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()
