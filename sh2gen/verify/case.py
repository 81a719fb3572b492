"""One operator, one way of running it, one size: drawing inputs between NaNs, and running it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sh2gen.graph.reference import (
    Method,
    reference,
)
from sh2gen.spec.language import Activation, Activations
from sh2gen.spec.operator import OpSpec
from sh2gen.verify.tolerance import ROUNDINGS, Tolerance

Tensors = dict[str, Tensor]
Shape = tuple[int, int]  # (B, L)


class Runner(Protocol):
    """One way of running one operator.

    Attributes:
        name: "eager", "interpreter", "cuda", ...
        layout: of the activations it takes and returns, "BLD" or "BDL".
        exactly_causal: whether an output is bit for bit independent of later inputs, and of other
            sequences of the batch. Not so for an FFT.
    """

    name: str
    layout: str
    exactly_causal: bool

    def forward(self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        """The output, in the layout and dtype of the inputs."""
        ...

    def gradients(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dy: Tensor
    ) -> dict[str, Tensor]:
        """Of <forward(inputs, parameters), dy> by every input and parameter, by name."""
        ...


@runtime_checkable
class PackedRunner(Protocol):
    """A runner that also takes all inputs in one tensor."""

    def forward_packed(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
    ) -> Tensor:
        """The output for {"features": (B, L, n*D) or (B, n*D, L)}."""
        ...


@runtime_checkable
class ChunkRunner(Protocol):
    """A runner that also computes a sequence in chunks, with a state between them."""

    def chunk(
        self,
        inputs: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        state: tuple[Tensor, ...] | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The output and the state after these steps, differentiable; None begins a sequence."""
        ...


@runtime_checkable
class RanksRunner(Protocol):
    """A runner that also computes sequences that are split over ranks.

    Attributes:
        ranks: how many there are; 0 for none, where it cannot.
    """

    ranks: int

    def over_ranks(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dy: Tensor
    ) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """The output of all ranks joined, and the gradients that each has: of inputs joined, of
        parameters its own.
        """
        ...


@runtime_checkable
class DocumentsRunner(Protocol):
    """A runner that also computes rows that hold several documents."""

    def of_documents(self, cu_seqlens: Tensor) -> Runner:
        """The same way of running, of one row of documents that end where `cu_seqlens` says."""
        ...


@runtime_checkable
class SliceRunner(Protocol):
    """A runner that also computes a slice of the channels of a filter that decays."""

    def sliced(self, spec: OpSpec, groups: range) -> tuple[Runner, bool]:
        """The same way of running, for tensors of these groups of an operator; and whether their
        activations are those of the whole bit for bit.
        """
        ...


@runtime_checkable
class DecodeRunner(Protocol):
    """A runner that also computes a sequence step by step, after a past that it changes in place.

    Attributes:
        prefills: whether it computes prompts too.
    """

    prefills: bool

    def initial_state(
        self, spec: OpSpec, batch: int, dtype: torch.dtype, steps: int, draft: bool
    ) -> Any:
        """The past of sequences that have not begun; a named tuple, whose `commit` says how many
        drafts of each row count.
        """
        ...

    def decode(
        self,
        inputs: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        state: Any,
        slots: Tensor | None = None,
    ) -> Tensor:
        """The output of a few steps."""
        ...

    def prefill(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], state: Any
    ) -> Tensor:
        """The output of any number of steps."""
        ...


class MalformedError(Exception):
    """A runner returned something of the wrong shape, dtype or name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One operator, one way of running it, one size: what a property is tried on."""

    spec: OpSpec
    runner: Runner
    dtype: torch.dtype
    device: torch.device
    seed: int
    batch: int
    length: int
    label: str  # "equality B=1 L=128"
    compared: int | None = None  # elements compared with float64; None: what is affordable
    parts: int = 1  # of what is compared, which torch has added in the io dtype
    ends: tuple[int, ...] | None = None  # behind the documents of a row, which else is one

    @property
    def value_input(self) -> str:
        """The input that every term of the result has as a factor: "v" or "x"."""
        return self.spec.inputs[-1]

    @property
    def linear(self) -> bool:
        """Whether the operator is linear (with an ungated bias: affine) in each single input."""
        return self.spec.activation is Activation.NONE

    @property
    def channel_dim(self) -> int:
        return 2 if self.runner.layout == Activations.BLD else 1

    @property
    def time_dim(self) -> int:
        return 3 - self.channel_dim

    @property
    def method(self) -> Method:
        """Of the reference: a direct sum is right in every element, an FFT is for long filters."""
        taps = min(self.spec.filter.length or self.length, self.length)
        return "direct" if taps <= 256 else "fft"

    @property
    def tolerance(self) -> Tolerance:
        info = torch.finfo(self.dtype)
        return Tolerance(
            roundings=_of_sum(ROUNDINGS[self.spec.precision], self.parts),
            unit=info.eps / 2,
            arithmetic=min(2.0**-24, info.eps / 2),
            underflow=info.smallest_normal * info.eps / 2,
            rowwise=not self.runner.exactly_causal,
            oracle=2.0**-46 if self.method == "fft" else 0.0,
        )

    def generator(self) -> torch.Generator:
        """Its own random numbers for every case, the same in every run."""
        seed = zlib.crc32(f"{self.seed} {self.label}".encode())
        return torch.Generator(self.device).manual_seed(seed)

    def canonical(self, tensor: Tensor) -> Tensor:
        """An activation in the runner's layout as a view (B, D, L), or back."""
        return tensor.transpose(1, 2) if self.channel_dim == 2 else tensor

    def place(self, values: Tensor) -> Tensor:
        """`values`, rounded to the io dtype, in memory with NaNs before and after it.

        A kernel that reads outside of its tensors gets NaN, and passes it on unless it masks it.
        """
        size = values.numel()
        memory = torch.full((size + 2 * _GUARD,), math.nan, dtype=self.dtype, device=self.device)
        return memory[_GUARD : _GUARD + size].view(values.shape).copy_(values)

    def activation(self, rng: torch.Generator, *, batch: int | None = None) -> Tensor:
        """N(0, 1) of the case's size, in the runner's layout."""
        length, channels = self.length, self.spec.channels
        shape = (length, channels) if self.channel_dim == 2 else (channels, length)
        batch = self.batch if batch is None else batch
        return self.place(torch.randn(batch, *shape, generator=rng, device=self.device))

    def inputs(self, rng: torch.Generator, *, batch: int | None = None) -> Tensors:
        return {name: self.activation(rng, batch=batch) for name in self.spec.inputs}

    def parameters(self, rng: torch.Generator) -> Tensors:
        """Random parameters for results of order one; initial ones may be too small to matter."""
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32

        def draw(name: str, shape: tuple[int, ...]) -> Tensor:
            normal = torch.randn(shape, generator=rng, device=self.device)
            uniform = torch.rand(shape, generator=rng, device=self.device)
            if name == "p":
                return normal / 8 - 1
            if name == "gamma":
                return torch.log(0.01 + 0.09 * uniform)
            if name == "frequencies":  # the last ones beyond half a turn
                return 4 * uniform
            if name == "log_poles":
                return -math.exp(-1) * (0.01 + 0.09 * uniform)
            # Vectors are weights of one term, matrices of as many as they have columns.
            return normal / math.sqrt(shape[1]) if len(shape) == 2 else normal

        return {p.name: draw(p.name, p.shape).to(dtype) for p in self.spec.parameters}

    def forward(self, inputs: Tensors, parameters: Tensors) -> Tensor:
        """The runner's output as a view (B, D, L)."""
        with poisoned():
            y = self.runner.forward(inputs, parameters)
        require_like("the output", y, inputs[self.value_input])
        return self.canonical(y)

    def gradients(self, inputs: Tensors, parameters: Tensors, dy: Tensor) -> Tensors:
        """The runner's gradients; those of inputs as views (B, D, L)."""
        with poisoned():
            grads = self.runner.gradients(inputs, parameters, dy)
        leaves = inputs | parameters
        if set(grads) != set(leaves):
            raise MalformedError(f"gradients of {sorted(grads)}, expected {sorted(leaves)}")
        for name, leaf in leaves.items():
            require_like(f"the gradient of {name}", grads[name], leaf)
        return {n: self.canonical(grads[n]) if n in inputs else grads[n] for n in leaves}

    def output_tolerance(self, inputs: Tensors, parameters: Tensors) -> Tensor:
        """The tolerance of each element of the output: (B, D, L)."""
        acts = {name: self.canonical(x) for name, x in inputs.items()}
        return self.tolerance.elements(
            reference(
                self.spec, acts, parameters, method=self.method, absolute=True, ends=self.ends
            )
        )


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, torch fills memory that it hands out uninitialised with NaN."""
    memory: Any = torch.utils.deterministic
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


_GUARD = 1 << 16  # elements of NaN on each side of an activation; keeps its alignment


def require_like(what: str, tensor: Tensor, like: Tensor) -> None:
    found = (tuple(tensor.shape), tensor.dtype, tensor.device)
    expected = (tuple(like.shape), like.dtype, like.device)
    if found != expected:
        raise MalformedError(f"{what} is {found}, expected {expected}")


def _of_sum(roundings: int, parts: int) -> int:
    """How many roundings a sum of parts may have of which each may have `roundings`."""
    return roundings if parts == 1 else 2 * roundings + parts - 1
