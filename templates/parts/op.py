"""What calls have in common, on kernels and in plain PyTorch.

INPUTS, TIME and CHANNEL are constants of the generated file.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad

OP, PLAIN = "op", 0
INPUTS, TIME, CHANNEL = ("x",), 2, 1


def channels_of(inputs: Sequence[Tensor]) -> int:
    """D of all inputs, or of packed features alone."""
    return inputs[0].shape[CHANNEL] * len(inputs) // len(INPUTS)


def given(*inputs: Tensor | None) -> list[Tensor]:
    """The inputs that are there: all, or only the first, which is then packed features."""
    return [x for x in inputs if x is not None]


def without_autocast(x: Tensor):
    """A context in which PyTorch computes in the dtypes that it is given, on the device of x."""
    kind = x.device.type  # tensors of shapes alone have no autocast
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def refuse_symbols(x: Tensor) -> None:
    """Refuse to export for every length what takes steps that depend on it: where an exporter
    forgets what was asked about a length, the program would be wrong for others.
    """
    compiler = torch.compiler
    if compiler.is_exporting():
        unknown = compiler.is_dynamo_compiling()  # numbers look like symbols to it
        if PLAIN if unknown else type(x.shape[TIME]) is not int:
            raise ValueError(
                f"{OP}: plain PyTorch of this filter is exported for one length, with strict=False"
            )


def refuse_second(ctx, *gradients):
    """Refuse derivatives of gradients, which library ops here lack."""
    raise NotImplementedError(
        f"{OP}: no second derivatives: compute them of plain PyTorch, within operator.plain()"
    )


def refuse_batched(dy: Tensor) -> None:
    """Refuse what batches gradients in PyTorch's old way, for which no op can have a rule."""
    if torch._C._functorch.is_legacy_batchedtensor(dy):
        raise NotImplementedError(
            f"{OP}: no batched gradients by is_grads_batched or vectorize=True: use torch.vmap of "
            "torch.autograd.grad, or plain PyTorch, within operator.plain()"
        )


def in_turn(op):
    """A batching rule: one after another, of a tensor that the op gives or of each of several."""

    def batched(info, dims, *arguments):
        pairs = list(zip(arguments, dims, strict=True))
        results = [
            op(*(x if dim is None else x.select(dim, i) for x, dim in pairs))
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        several = type(results[0])
        return several(stacked), several([0] * len(stacked))

    return batched


def two_axes(taps: Tensor) -> Tensor:
    """Taps (G, K), of those or of the weight (G, 1, K) of a conv1d."""
    return taps.squeeze(1) if taps.dim() == 3 else taps


def transformed(tensors: Sequence[Tensor]) -> bool:
    """Whether a call is differentiated in a way that library ops lack, and plain PyTorch has: in
    forward mode, for which PyTorch would silently take zero, or by torch.func.
    """
    functorch = torch._C._functorch
    if torch.compiler.is_compiling():  # which tensors have tangents is not seen there
        return forward_ad._current_level >= 0
    if functorch.maybe_current_level() is not None:
        kinds = {i.level(): i.key() for i in functorch.get_interpreter_stack()}
        jvp, vmap = functorch.TransformType.Jvp, functorch.TransformType.Vmap
        innermost = max((n for n, kind in kinds.items() if kind != vmap), default=0)
        for x in tensors:
            while functorch.is_functorch_wrapped_tensor(x):
                if functorch.is_gradtrackingtensor(x):
                    if x.requires_grad and torch.is_grad_enabled():
                        return True
                    level = functorch.maybe_get_level(x)
                    if kinds.get(level) == jvp:  # whose tangents are seen from there alone
                        dual = forward_ad.unpack_dual(x)
                        if level != innermost or dual.tangent is not None:
                            return True
                x = functorch.get_unwrapped(x)
            if forward_ad.unpack_dual(x).tangent is not None:
                return True
        return False
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def spread(inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """The inputs, of which the first has every dimension that torch.vmap has added to any tensor:
    plain PyTorch writes into what is allocated like it.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is None:
        return list(inputs)
    nothing = sum(torch.zeros_like(x).sum() for x in (*inputs[1:], *parameters))
    return [inputs[0] + nothing.to(inputs[0].dtype), *inputs[1:]]


def differentiates(*tensors: Tensor) -> bool:
    """Whether a gradient will be asked for, as far as can be known."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
