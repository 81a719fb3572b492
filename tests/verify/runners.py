"""Runners in plain PyTorch, right ones, and the operators that they are tried with."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from sh2gen.graph.reference import decayed_filter
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.language import Bias, FilterKind, Projection, TapOrder
from sh2gen.spec.operator import OpSpec
from sh2gen.verify.case import Runner
from sh2gen.verify.report import Report
from sh2gen.verify.verify import verify


class TorchRunner:
    """The operator in torch, float32 from inputs to output, one rounding at the end.

    The convolution adds shifted copies tap by tap, so that it is causal bit for bit.
    """

    name = "eager"
    exactly_causal = True

    def __init__(self, spec: OpSpec, layout: str = "BLD") -> None:
        self.spec = spec
        self.layout = layout
        self.first_group = 0

    def sliced(self, spec: OpSpec, groups: range) -> tuple[Self, bool]:
        part = copy(self)
        part.first_group = groups.start
        return part, self.exactly_causal

    def forward(self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        first = inputs[self.spec.inputs[0]]
        y = self.operator({n: self.load(x) for n, x in inputs.items()}, dict(parameters))
        out = torch.empty(first.shape, dtype=first.dtype, device=first.device)
        self.store(self.swap(y).to(first.dtype), out)
        return out

    def forward_packed(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
    ) -> Tensor:
        features = self.swap(inputs["features"])  # (B, n*D, L)
        roles, names = len(self.spec.inputs), self.spec.inputs
        if self.spec.layout.projection is Projection.THIRDS:
            parts = features.chunk(roles, 1)
        else:
            parts = tuple(features[:, role::roles] for role in range(roles))
        return self.forward(
            {n: self.swap(x) for n, x in zip(names, parts, strict=True)}, parameters
        )

    def gradients(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dy: Tensor
    ) -> dict[str, Tensor]:
        acts = {n: self.load(x).detach().requires_grad_() for n, x in inputs.items()}
        params = {n: p.detach().clone().requires_grad_() for n, p in parameters.items()}
        y = self.operator(acts, params)
        leaves = acts | params
        above = self.load(dy)
        found = torch.autograd.grad(y, list(leaves.values()), above, materialize_grads=True)
        grads = dict(zip(leaves, found, strict=True))
        return {n: self.swap(g).to(dy.dtype) if n in acts else g for n, g in grads.items()}

    def load(self, x: Tensor) -> Tensor:
        """(B, D, L) in the type of sums."""
        return self.swap(x).to(torch.promote_types(x.dtype, torch.float32))

    def swap(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2) if self.layout == "BLD" else x

    def store(self, y: Tensor, out: Tensor) -> None:
        out.copy_(y)

    def operator(self, acts: dict[str, Tensor], params: dict[str, Tensor]) -> Tensor:
        spec = self.spec
        if spec.featurizer is not None:
            rows = params["featurizer"].unflatten(0, self.packing())
            rows = rows if spec.layout.projection is Projection.THIRDS else rows.transpose(0, 1)
            order = spec.featurizer.taps
            for i, name in enumerate(spec.inputs):
                acts = acts | {name: self.convolve(acts[name], self.lags(rows[i], order))}
        z = acts["k"] * acts["v"] if spec.gates.pre else acts[spec.inputs[-1]]
        z = self.intermediate(z)
        pre = self.convolution(z, self.filter(params, z.shape[-1]))
        if "skip" in params:
            pre = pre + self.skip(params["skip"], z)
        if "bias" in params:
            bias = params["bias"][:, None]
            pre = pre + (bias * z if spec.bias is Bias.GATED else bias)
        if spec.gates.post:
            return acts["q"] * pre
        return functional.silu(pre) if spec.activation == "silu" else pre

    def packing(self) -> tuple[int, int]:
        roles = len(self.spec.inputs)
        thirds = self.spec.layout.projection is Projection.THIRDS
        return (roles, -1) if thirds else (-1, roles)

    def filter(self, params: dict[str, Tensor], length: int) -> Tensor:
        if self.spec.filter.kind is FilterKind.MODAL:
            time = torch.arange(length, dtype=torch.float32)
            if "log_poles" in params:
                poles = params["log_poles"]
            else:
                poles = -(params["p"] + params["gamma"]).exp()
            size = (poles[..., None] * time).exp()
            if "frequencies" in params:  # angles of many steps are no float32
                angle = params["frequencies"].double()[..., None] * time
                real, imag = (params[f"residues_{part}"][..., None] for part in ("real", "imag"))
                h = (2 * size * (real * angle.cos() - imag * angle.sin()).float()).sum(1)
            else:
                h = (params["residues"][..., None] * size).sum(1)
        else:
            h = params["filter"]
            if self.spec.filter.kind is FilterKind.DECAY:
                groups = range(self.first_group, self.first_group + len(h))
                h = h * decayed_filter(self.spec, torch.ones_like(h), groups=groups)
            h = self.lags(h, self.spec.filter.taps)
        return h.repeat_interleave(self.spec.group_width, 0)

    def skip(self, weight: Tensor, z: Tensor) -> Tensor:
        return weight.repeat_interleave(z.shape[1] // len(weight))[:, None] * z

    def intermediate(self, z: Tensor) -> Tensor:
        return z

    def lags(self, rows: Tensor, order: TapOrder) -> Tensor:
        return rows.flip(-1) if order is TapOrder.LAG_LAST else rows

    def convolution(self, z: Tensor, rows: Tensor) -> Tensor:
        """The inner one, of `operator`."""
        return self.convolve(z, rows)

    def convolve(self, z: Tensor, rows: Tensor) -> Tensor:
        """z (B, D, L), rows (D, K) lag first."""
        y = torch.zeros_like(z)
        for lag in range(min(rows.shape[1], z.shape[-1])):
            late = functional.pad(z[..., : z.shape[-1] - lag], (lag, 0))
            y = y + rows[:, lag, None] * late
        return y


class FftRunner(TorchRunner):
    """The same by float32 FFT: right, but not causal bit for bit."""

    name = "fft"
    exactly_causal = False

    def convolve(self, z: Tensor, rows: Tensor) -> Tensor:
        length = z.shape[-1]
        size = 2 * length
        spectrum = torch.fft.rfft(z, size) * torch.fft.rfft(rows[:, :length], size)
        return torch.fft.irfft(spectrum, size)[..., :length]


class TensorCoreRunner(TorchRunner):
    """Operands of the inner convolution and of its gradients in the io dtype."""

    def filter(self, params: dict[str, Tensor], length: int) -> Tensor:
        return Rounded.apply(super().filter(params, length), self.io(), None)

    def intermediate(self, z: Tensor) -> Tensor:
        return Rounded.apply(z, self.io(), None)

    def convolution(self, z: Tensor, rows: Tensor) -> Tensor:
        return Rounded.apply(super().convolution(z, rows), None, self.io())

    def io(self) -> torch.dtype:
        return IO[self.spec.dtype.io]


class Rounded(torch.autograd.Function):
    """x rounded to one dtype and its gradient to another (None: not at all)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dtype: torch.dtype | None, gradient: torch.dtype | None
    ) -> Tensor:
        ctx.gradient = gradient
        return x.clone() if dtype is None else x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        rounded = grad if ctx.gradient is None else grad.to(ctx.gradient).to(grad.dtype)
        return rounded, None, None


def make(**fields: Any) -> OpSpec:
    inner = {"kind": "explicit", "length": 7, "groups": 2}
    base = {"op": "probe", "channels": 6, "filter": inner, "dtype": {"io": "float32"}}
    return spec_from_dict(base | fields)


HYENA = make(
    featurizer={"length": 3}, gates={"pre": True, "post": True}, skip="channel", bias="ungated"
)
PLAIN = make(skip="group")
SHAPES = ((1, 1), (3, 6), (1, 7), (2, 33))
IO = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def run(spec: OpSpec, runner: Runner, dtype: str = "float32", **options: Any) -> Report:
    options.setdefault("shapes", SHAPES)
    return verify(spec, runner, dtype=IO[dtype], **options)


def failed(report: Report) -> set[str]:
    """Names of the properties that failed."""
    return {check.name.split()[0] for check in report.failures}


class MissingSkip(TorchRunner):
    def skip(self, weight: Tensor, z: Tensor) -> Tensor:
        return 0 * super().skip(weight, z)
