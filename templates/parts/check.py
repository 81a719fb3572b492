"""What calls refuse, and in which words.

Capitalised names are constants of the generated file: LEAST is how many steps a call needs, TAPS
names the parameters that may have the shape of a conv1d's weight.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from templates.parts.op import CHANNEL, INPUTS, OP, TIME, channels_of

HAS_TRITON, LEAST = True, 1
PARAMETERS: tuple[str, ...] = ()
TAPS: tuple[str, ...] = ()
SHAPE = "(B, {}, L)"


def parameter_shapes(channels: int, groups: int) -> dict[str, tuple[int, ...]]:
    raise NotImplementedError


def check_dense(name: str, tensor: Tensor) -> None:
    """Refuse what is no tensor of strides."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{OP}: {name} is a {type(tensor).__name__}, expected a tensor")
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else tensor.layout
        raise TypeError(f"{OP}: {name} is {kind}, expected a dense tensor")


def check(inputs: Sequence[Tensor], parameters: Sequence[Tensor], least: int = LEAST) -> None:
    """Refuse tensors of a wrong kind, naming the argument and what was expected of it."""
    names = INPUTS if len(inputs) == len(INPUTS) else ("features",)
    x = inputs[0]
    for name, tensor in zip((*names, *PARAMETERS), (*inputs, *parameters), strict=True):
        check_dense(name, tensor)
        if tensor.device != x.device:
            raise ValueError(
                f"{OP}: {name} is on {tensor.device}, but {names[0]} is on {x.device}"
            )
    accepted = (torch.bfloat16, torch.float16, torch.float32)
    for name, tensor in zip(names, inputs, strict=True):
        roles = len(INPUTS) // len(inputs)  # packed in one tensor
        if tensor.dim() != 3 or tensor.shape[CHANNEL] % roles or tensor.shape[TIME] < least:
            channels = f"{roles} D" if roles > 1 else "D"
            shape = SHAPE.format(channels)
            raise ValueError(
                f"{OP}: {name} has shape {tuple(tensor.shape)}, expected {shape} with L >= {least}"
            )
        if tensor.shape != x.shape:
            raise ValueError(
                f"{OP}: {name} has shape {tuple(tensor.shape)}, "
                f"but {names[0]} has {tuple(x.shape)}"
            )
        if tensor.dtype not in accepted and (tensor.dtype != torch.float64 or x.is_cuda):
            raise TypeError(
                f"{OP}: {name} is {tensor.dtype}, expected bfloat16, float16 or float32 "
                "(float64 is for CPU only)"
            )
        if tensor.dtype != x.dtype:
            raise TypeError(f"{OP}: {name} is {tensor.dtype}, but {names[0]} is {x.dtype}")
    check_parameters(channels_of(inputs), parameters)


def require_triton(x: Tensor) -> None:
    """Refuse what kernels would compute, where nothing can compile them."""
    if x.device.type == "cuda" and not HAS_TRITON:
        raise RuntimeError(f"{OP}: CUDA tensors need Triton, which is not installed")


def has_shape(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor has a shape; where some dimensions are symbols, one by one."""
    return tensor.shape == shape or (
        tensor.dim() == len(shape)
        and all(have == wanted for have, wanted in zip(tensor.shape, shape, strict=True))
    )


def check_parameters(channels: int, parameters: Sequence[Tensor]) -> None:
    """Refuse parameters that do not belong to so many channels, or to each other."""
    groups = parameters[0].shape[0] if parameters[0].dim() else 0
    if groups < 1 or channels < 1 or channels % groups:
        raise ValueError(
            f"{OP}: {PARAMETERS[0]} has shape {tuple(parameters[0].shape)}, expected a row for "
            f"each of G filter groups, where G divides {channels} channels"
        )
    shapes = parameter_shapes(channels, groups)
    accepted = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for (name, shape), tensor in zip(shapes.items(), parameters, strict=True):
        as_conv1d = (shape[0], 1, shape[-1])
        if not (has_shape(tensor, shape) or (name in TAPS and has_shape(tensor, as_conv1d))):
            raise ValueError(
                f"{OP}: {name} has shape {tuple(tensor.shape)}, expected {shape} for {channels} "
                f"channels in {groups} filter groups"
            )
        if tensor.dtype not in accepted:
            raise TypeError(
                f"{OP}: {name} is {tensor.dtype}, expected float32, bfloat16, float16 or float64"
            )
