"""hyena: 8192-tap freeform causal convolution, featurizer of 3 taps, pre and post gates

    z = (featurizer * k) . (featurizer * v)
    y = (featurizer * q) . (filter * z + skip . z)

Activations are (B, D, L) with B batch, L time steps, D channels; G filter groups of D / G channels
each, K = 8192 taps. Plan fft/BDL/recompute.

Written by sh2gen. Imports torch and, where there is one, triton; nothing else.
Verified: by plain PyTorch, which is all of it, not yet run on a GPU.
sha256, with zeros here: e7f48feabc45f4cfe66741acfdabe625123c8d4f3406481424eaa3467b09c418
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional


OP = "hyena"
PLAN = "fft/BDL/recompute"
LAYOUT = "BDL"
INPUTS = ("q", "k", "v")
PARAMETERS = ("filter", "featurizer", "skip")
TAPS = ("filter", "featurizer")  # also in the shape of a conv1d's weight
CHANNELS, GROUPS = 768, 768  # unless others are given
SHAPE = "(B, {}, L)"  # of an activation
TIME, CHANNEL = 2, 1  # axes of an activation
LEAST = 1  # steps of a call
BYTE_BUDGET = 2**30  # of the temporaries of plain PyTorch
PLAIN = 0  # how many want plain PyTorch on every device, instead of library ops
RINGS = {"tails": (2, 3), "z": (8191, 1)}  # of a state that decodes: lag and roles
COUNTED = 16  # channels that it counts as one
MODES_SHAPE = ()  # of a channel, if a state has modes
SPEC = {
    "op": "hyena",
    "channels": 768,
    "filter": {
        "kind": "freeform",
        "length": 8192,
        "groups": 768,
        "taps": "lag_first",
        "decay": "none",
        "modes": "none",
        "parametrisation": "none",
    },
    "featurizer": {"length": 3, "taps": "lag_last"},
    "gates": {"pre": True, "post": True},
    "skip": "channel",
    "bias": "none",
    "activation": "none",
    "precision": "balanced",
    "dtype": {"io": "bfloat16", "accumulate": "float32"},
    "layout": {"activations": "auto", "projection": "thirds"},
    "state": "none",
    "sequences": "dense",
    "context": "none",
    "workloads": [{"batch": 1, "length": 8192}],
}


def parameter_shapes(channels: int, groups: int) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter."""
    return {"filter": (groups, 8192), "featurizer": (3 * channels, 3), "skip": (channels,)}


# -----------------------------------------------------------------------------------------------
# Plain PyTorch: the algorithm of this file on every device
# -----------------------------------------------------------------------------------------------


def allocate(like: Tensor, steps: int, channels: int | None = None) -> Tensor:
    """An activation of `steps` steps, not yet written, with the batch and dtype of `like`, and its
    channels if no others are given.

    Rows are padded to a multiple of 8 elements, so that accesses stay 16 bytes wide whatever the
    length.
    """
    batch = like.shape[0]
    channels = like.shape[CHANNEL] if channels is None else channels
    row = (steps + 7) // 8 * 8
    return like.new_empty_strided((batch, channels, steps), (channels * row, row, 1))


def unpack(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inputs themselves, or their views of one tensor of packed features."""
    if len(inputs) == len(INPUTS):
        return tuple(inputs)
    (features,) = inputs
    return features.chunk(len(INPUTS), CHANNEL)


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


def chunks(channels: int, width: int, bytes_per_channel: int, budget: int) -> Iterator[slice]:
    """Slices of channels whose temporaries stay below `budget` bytes, at least one channel each.

    A slice is whole groups of `width` channels, or lies within one group. An empty batch has none.
    """
    if bytes_per_channel == 0:
        return
    if channels * bytes_per_channel <= budget:  # exporters want numbers for slices, no symbols
        yield slice(0, channels)
        return
    size = max(1, min(channels, budget // bytes_per_channel))
    size = size // width * width if size > width else size
    group = channels if size > width else width
    for first in range(0, channels, group):
        for begin in range(first, first + group, size):
            yield slice(begin, min(first + group, begin + size))


def role_rows(parameter: Tensor, role: int, roles: int, interleaved: bool) -> Tensor:
    """The rows of one input in a parameter that several inputs share, as a view."""
    return parameter[role::roles] if interleaved else parameter.chunk(roles)[role]


def channel_rows(parameter: Tensor, c: slice, width: int, dtype: torch.dtype) -> Tensor:
    """The row of each channel of a slice; `width` consecutive channels share one."""
    if width == 1:
        return parameter[c].to(dtype)
    index = torch.arange(c.start, c.stop, device=parameter.device) // width
    return parameter[index].to(dtype)


def add_rows(total: Tensor, c: slice, rows: Tensor, width: int) -> None:
    """The adjoint of channel_rows: add one row a channel to the rows that the channels share."""
    first, groups = c.start // width, max(1, (c.stop - c.start) // width)
    total[first : first + groups] += rows.unflatten(0, (groups, -1)).sum(1)


def conv_within(x: Tensor, taps: Tensor) -> Tensor:
    """conv_direct of the steps of x that have all of their past in it."""
    if x.shape[2] < taps.shape[1]:  # none has
        return x[..., :0]
    return functional.conv1d(x, taps.flip(1).unsqueeze(1), groups=taps.shape[0])


def fft_size(length: int) -> int:
    """The smallest size >= length whose only prime factors are 2, 3 and 5: never far away."""
    best = 1 << (length - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            size = three << max(0, (-(-length // three) - 1).bit_length())
            best = min(best, size)
            three *= 3
        five *= 5
    return best


def conv_fft(x: Tensor, taps: Tensor, direction: int) -> Tensor:
    """conv_direct by FFT; taps beyond the sequence play no part."""
    steps = x.shape[2]
    taps = taps[:, :steps]
    size = fft_size(steps + taps.shape[1] - 1)
    spectrum = torch.fft.rfft(taps, size)
    if direction < 0:
        spectrum = spectrum.conj_physical()  # a lazy conj() is lost inside compiled graphs
    return torch.fft.irfft(torch.fft.rfft(x, size) * spectrum, size)[..., :steps]


def tap_gradient_fft(grad: Tensor, x: Tensor, length: int) -> Tensor:
    """tap_gradient_direct by FFT; zero for taps beyond the sequence."""
    steps = x.shape[2]
    kept = min(length, steps)
    size = fft_size(steps + kept - 1)
    spectrum = (torch.fft.rfft(grad, size) * torch.fft.rfft(x, size).conj_physical()).sum(0)
    return functional.pad(torch.fft.irfft(spectrum, size)[..., :kept], (0, length - kept))


def canonical(x: Tensor) -> Tensor:
    """An activation as (B, D, L), without a copy."""
    return x


def effective(
    filter: Tensor, featurizer: Tensor, skip: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """The parameters as plain PyTorch computes with them, in `dtype`: where it differentiates,
    it sums gradients of rows that are spread over channels, which are rounded to a narrow dtype
    once.
    """
    filter = two_axes(filter).to(dtype)
    featurizer = two_axes(featurizer).to(dtype)
    skip = skip.to(dtype)
    return [filter, featurizer, skip]


def eager_forward(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
) -> list[Tensor]:
    """[y] of the unpacked inputs."""
    q_all, k_all, v_all = (canonical(x) for x in inputs)
    dtype = torch.float64 if q_all.dtype == torch.float64 else torch.float32
    filter, featurizer, skip = effective(*parameters, dtype)
    outputs = [allocate(inputs[0], inputs[0].shape[TIME])]
    (out_0,) = (canonical(x) for x in outputs)
    batch, channels, length = q_all.shape
    width = channels // filter.shape[0]
    channel_bytes = 23 * batch * length * dtype.itemsize
    for c in chunks(channels, width, channel_bytes, BYTE_BUDGET):
        q = q_all[:, c].to(dtype)
        featurizer_q_c = channel_rows(role_rows(featurizer, 0, 3, False), c, 1, dtype).flip(1)
        q_hat = conv_fft(q, featurizer_q_c, +1)
        k = k_all[:, c].to(dtype)
        featurizer_k_c = channel_rows(role_rows(featurizer, 1, 3, False), c, 1, dtype).flip(1)
        k_hat = conv_fft(k, featurizer_k_c, +1)
        v = v_all[:, c].to(dtype)
        featurizer_v_c = channel_rows(role_rows(featurizer, 2, 3, False), c, 1, dtype).flip(1)
        v_hat = conv_fft(v, featurizer_v_c, +1)
        z = k_hat * v_hat
        filter_c = channel_rows(filter, c, width, dtype)
        conv = conv_fft(z, filter_c, +1)
        skip_c = channel_rows(skip, c, 1, dtype)[:, None]
        skipped = z * skip_c
        pre_skip = conv + skipped
        y = q_hat * pre_skip
        out_0[:, c] = y
    return outputs


def eager_backward(
    dy: Tensor,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    saved: Sequence[Tensor],
) -> list[Tensor]:
    """Gradients of the inputs, packed if they are, then of the parameters."""
    dy_all, q_all, k_all, v_all = (canonical(x) for x in (dy, *unpack(inputs), *saved))
    dtype = torch.float64 if dy_all.dtype == torch.float64 else torch.float32
    filter, featurizer, skip = effective(*parameters, dtype)
    d_inputs = [allocate(x, x.shape[TIME]) for x in inputs]
    d_q_all, d_k_all, d_v_all = (canonical(x) for x in unpack(d_inputs))
    d_filter_all = torch.zeros_like(filter, dtype=dtype)
    d_featurizer_all = torch.zeros_like(featurizer, dtype=dtype)
    d_skip_all = torch.zeros_like(skip, dtype=dtype)
    batch, channels, length = dy_all.shape
    width = channels // filter.shape[0]
    channel_bytes = 34 * batch * length * dtype.itemsize
    for c in chunks(channels, width, channel_bytes, BYTE_BUDGET):
        q = q_all[:, c].to(dtype)
        featurizer_q_c = channel_rows(role_rows(featurizer, 0, 3, False), c, 1, dtype).flip(1)
        q_hat = conv_fft(q, featurizer_q_c, +1)
        k = k_all[:, c].to(dtype)
        featurizer_k_c = channel_rows(role_rows(featurizer, 1, 3, False), c, 1, dtype).flip(1)
        k_hat = conv_fft(k, featurizer_k_c, +1)
        v = v_all[:, c].to(dtype)
        featurizer_v_c = channel_rows(role_rows(featurizer, 2, 3, False), c, 1, dtype).flip(1)
        v_hat = conv_fft(v, featurizer_v_c, +1)
        z = k_hat * v_hat
        filter_c = channel_rows(filter, c, width, dtype)
        conv = conv_fft(z, filter_c, +1)
        skip_c = channel_rows(skip, c, 1, dtype)[:, None]
        skipped = z * skip_c
        pre_skip = conv + skipped
        dy = dy_all[:, c].to(dtype)
        d_q_hat = dy * pre_skip
        d_pre_skip = dy * q_hat
        d_z_1 = d_pre_skip * skip_c
        skipped_product = d_pre_skip * z
        d_skip = skipped_product.sum((0, 2))
        add_rows(d_skip_all, c, d_skip, 1)
        d_z_2 = conv_fft(d_pre_skip, filter_c, -1)
        d_filter = tap_gradient_fft(d_pre_skip, z, 8192)
        add_rows(d_filter_all, c, d_filter, width)
        d_z = d_z_1 + d_z_2
        d_k_hat = d_z * v_hat
        d_v_hat = d_z * k_hat
        d_v = conv_fft(d_v_hat, featurizer_v_c, -1)
        d_featurizer_v = tap_gradient_fft(d_v_hat, v, 3).flip(1)
        add_rows(role_rows(d_featurizer_all, 2, 3, False), c, d_featurizer_v, 1)
        d_k = conv_fft(d_k_hat, featurizer_k_c, -1)
        d_featurizer_k = tap_gradient_fft(d_k_hat, k, 3).flip(1)
        add_rows(role_rows(d_featurizer_all, 1, 3, False), c, d_featurizer_k, 1)
        d_q = conv_fft(d_q_hat, featurizer_q_c, -1)
        d_featurizer_q = tap_gradient_fft(d_q_hat, q, 3).flip(1)
        add_rows(role_rows(d_featurizer_all, 0, 3, False), c, d_featurizer_q, 1)
        d_q_all[:, c] = d_q
        d_k_all[:, c] = d_k
        d_v_all[:, c] = d_v
    gradients = [d_filter_all, d_featurizer_all, d_skip_all]
    return [
        *d_inputs,
        *(d.to(p.dtype).view(p.shape) for d, p in zip(gradients, parameters, strict=True)),
    ]


# -----------------------------------------------------------------------------------------------
# The operator: torch.library ops, autograd, checks, functions and module
# -----------------------------------------------------------------------------------------------


def library_name() -> str:
    """The ops' name in torch.ops.sh2gen; numbered if this file is imported more than once."""
    name = unique = "hyena_b9210068"
    count = 1
    while hasattr(torch.ops.sh2gen, f"{unique}_decode"):
        count += 1
        unique = f"{name}_{count}"
    return unique


LIBRARY_NAME = library_name()
LIBRARY = torch.library.Library("sh2gen", "FRAGMENT")


def library_op(
    name: str,
    fake: Callable,
    anywhere: Callable | None,
    on_gpu: Callable | None,
    changes: Sequence[str] = (),
):
    """An op of torch.ops.sh2gen whose schema is that of its fake implementation, of tensors
    without values.

    Args:
        changes: the arguments that it writes to.
    """
    schema = torch.library.infer_schema(fake, mutates_args=changes)
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    if anywhere is not None:
        LIBRARY.impl(name, anywhere, "CompositeExplicitAutograd")
    if on_gpu is not None:
        LIBRARY.impl(name, on_gpu, "CUDA")
    torch.library.register_fake(f"sh2gen::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.sh2gen, name).default


def differentiable(op, backward: Callable, setup_context: Callable | None = None) -> None:
    """Give an op its gradients, and a batching rule: one call after another."""
    torch.library.register_autograd(op, backward, setup_context=setup_context, lib=LIBRARY)
    torch.library.register_vmap(op, in_turn(op), lib=LIBRARY)


def forward_anywhere(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    filter: Tensor,
    featurizer: Tensor,
    skip: Tensor,
) -> Tensor:
    """y; of packed features if the later inputs are None."""
    inputs = given(q, k, v)
    with torch.autocast(q.device.type, enabled=False):
        (y,) = eager_forward(unpack(inputs), [filter, featurizer, skip])
    return y


def backward_anywhere(
    dy: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    filter: Tensor,
    featurizer: Tensor,
    skip: Tensor,
) -> list[Tensor]:
    """Gradients of the inputs that are given, then of the parameters."""
    inputs, parameters = given(q, k, v), [filter, featurizer, skip]
    with torch.autocast(dy.device.type, enabled=False):
        contiguous = [p.contiguous() for p in parameters]
        return eager_backward(dy, inputs, contiguous, [])


def forward_fake(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    filter: Tensor,
    featurizer: Tensor,
    skip: Tensor,
) -> Tensor:
    """The same without values."""
    inputs = given(q, k, v)
    steps, channels = q.shape[TIME], channels_of(inputs)
    return allocate(q, steps, channels)


def backward_fake(
    dy: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    filter: Tensor,
    featurizer: Tensor,
    skip: Tensor,
) -> list[Tensor]:
    """The same without values."""
    inputs, parameters = given(q, k, v), [filter, featurizer, skip]
    contiguous = torch.contiguous_format
    d_parameters = [torch.empty_like(p, memory_format=contiguous) for p in parameters]
    return [*(allocate(x, x.shape[TIME]) for x in inputs), *d_parameters]


def save(ctx, inputs, output) -> None:
    """What backward needs: every argument."""
    ctx.save_for_backward(*inputs)


def differentiate(ctx, dy):
    """Gradients of every argument of forward_op."""
    refuse_batched(dy)
    gradients = backward_op(dy, *ctx.saved_tensors)
    given_inputs = len(gradients) - 3
    absent = [None] * (len(INPUTS) - given_inputs)
    return *gradients[:given_inputs], *absent, *gradients[given_inputs:]


forward_op = library_op(LIBRARY_NAME, forward_fake, forward_anywhere, None)
backward_op = library_op(f"{LIBRARY_NAME}_backward", backward_fake, backward_anywhere, None)
differentiable(forward_op, differentiate, save)
differentiable(backward_op, refuse_second)


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


# -----------------------------------------------------------------------------------------------
# The past of sequences
# -----------------------------------------------------------------------------------------------


def check_sizes(dtype: torch.dtype, draft: bool, **sizes: int) -> None:
    """Refuse what no state is of."""
    if not isinstance(draft, bool):
        raise TypeError(f"{OP}: draft must be True or False, not {draft!r}")
    for name, number in sizes.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{OP}: {name} must be a whole number, not {number!r}")
        if number < (name != "batch"):
            raise ValueError(f"{OP}: {name} must be at least {int(name != 'batch')}, not {number}")
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise TypeError(
            f"{OP}: a state is float32, bfloat16 or float16 (float64 on a CPU), not {dtype}"
        )


def with_state(inputs: Sequence, state) -> tuple[Sequence[Tensor], object]:
    """The inputs, and the state that may come last of them."""
    if state is None and inputs:
        *inputs, state = inputs
    if isinstance(state, Tensor):
        raise TypeError(
            f"{OP}: expected {', '.join(INPUTS)} or packed features, then a state; slots by name"
        )
    return inputs, state


def check_count(inputs: Sequence[Tensor]) -> None:
    """Refuse another number of inputs than there are."""
    known = isinstance(inputs, (tuple, list)) and len(inputs) in (1, len(INPUTS))
    if not known or not all(isinstance(x, Tensor) for x in inputs):
        several = f"{', '.join(INPUTS)} or one tensor of packed features"
        what = several if len(INPUTS) > 1 else "one input"
        raise TypeError(f"{OP}: expected {what}, as tensors in a tuple or list, and a state")


def check_decode(
    inputs: Sequence[Tensor], state, slots: Tensor | None, any_steps: bool = False
) -> None:
    """Refuse a state and slots that do not belong to inputs, which have been checked."""
    if not isinstance(state, STATE):
        raise TypeError(
            f"{OP}: state is a {type(state).__name__}, expected a {STATE.__name__}, which "
            "initial_state of the same file gives"
        )
    x, channels = inputs[0], channels_of(inputs)
    for name, tensor in zip(state._fields, state, strict=True):
        if name != "draft":
            check_dense(f"state.{name}", tensor)
            if tensor.device != x.device:
                raise ValueError(
                    f"{OP}: state.{name} is on {tensor.device}, but {INPUTS[0]} is on {x.device}"
                )
            if not tensor.is_contiguous():
                raise ValueError(f"{OP}: state.{name} is not contiguous")
            if name not in ("count", "done") and not tensor.is_floating_point():
                raise TypeError(
                    f"{OP}: state.{name} is {tensor.dtype}, "
                    "expected float32, bfloat16, float16 or float64"
                )
    steps, places = x.shape[TIME], state.count.shape[0]
    for name, shape in (("count", (places,)), ("done", (places, -(-channels // COUNTED)))):
        number = getattr(state, name)
        if number.shape != shape or number.dtype != torch.int32:
            raise ValueError(
                f"{OP}: state.{name} is {number.dtype} {tuple(number.shape)}, expected "
                f"torch.int32 {shape}"
            )
    for name, (lag, roles) in RINGS.items():
        ring = getattr(state, name)
        if ring.dim() != 3 or ring.shape[0] != places or ring.shape[2] != roles * channels:
            raise ValueError(
                f"{OP}: state.{name} has shape {tuple(ring.shape)}, expected ({places}, slots, "
                f"{roles * channels}) for {channels} channels"
            )
        if (lag or state.draft) and ring.shape[1] < lag + steps and not any_steps:
            raise ValueError(
                f"{OP}: {steps} steps in one call, but the state has room for "
                f"{ring.shape[1] - lag}: initial_state(batch, steps={steps}), or prefill"
            )
    modes = getattr(state, "modes", None)
    if modes is not None and tuple(modes.shape) != (places, channels, *MODES_SHAPE):
        raise ValueError(
            f"{OP}: state.modes has shape {tuple(modes.shape)}, expected "
            f"{(places, channels, *MODES_SHAPE)} for {channels} channels"
        )
    if slots is None:
        if places != x.shape[0]:
            raise ValueError(
                f"{OP}: {INPUTS[0]} has {x.shape[0]} rows, but the state has {places}: slots say "
                "which of them is whose"
            )
        return
    check_slots(slots, state, x.shape[0])


def check_slots(slots: Tensor, state, rows: int | None = None) -> None:
    """Refuse what are no places of a state, as far as can be seen without a wait for a GPU."""
    check_dense("slots", slots)
    places, device = state.count.shape[0], state.count.device
    known = slots.dtype == torch.int32 and slots.device == device and slots.dim() == 1
    if not known or rows not in (None, len(slots)):
        raise ValueError(
            f"{OP}: slots are {slots.dtype} {tuple(slots.shape)} on {slots.device}, expected "
            f"torch.int32 ({'B' if rows is None else rows},) on {device}"
        )
    if not is_known(slots):
        return
    if bool((slots >= places).any()):
        raise ValueError(f"{OP}: slots are beyond the {places} places of the state")
    real = slots[slots >= 0]
    if len(real.unique()) < len(real):
        raise ValueError(f"{OP}: two rows have one place of the state: {slots.tolist()}")


def check_in_place(inputs: Sequence[Tensor], state) -> None:
    """Refuse what is not changed in place: modes that would be rounded, and gradients."""
    refuse_gradients(inputs)
    modes = getattr(state, "modes", state.count)
    narrow = modes.is_floating_point() and modes.dtype.itemsize < 4
    if narrow or (modes.is_cuda and modes.dtype == torch.float64):
        raise TypeError(
            f"{OP}: state.modes is {modes.dtype}, expected torch.float32 (or float64 on a CPU)"
        )


def refuse_gradients(inputs: Sequence[Tensor]) -> None:
    """Refuse inputs of which a gradient would be asked for."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        raise RuntimeError(f"{OP}: decoding has no gradients: call it under torch.no_grad()")


def all_rows(state) -> tuple[Tensor, Tensor]:
    """The places of a state, and how many steps there were in each."""
    return torch.arange(state.count.shape[0], device=state.count.device), state.count


def is_known(numbers: Tensor) -> bool:
    """Whether to look at numbers costs no wait for a GPU, and no compiler the whole of a graph."""
    return numbers.device.type == "cpu" and not torch.compiler.is_compiling()


def commit_drafts(state, accepted: Tensor, slots: Tensor | None) -> None:
    """What `commit` of a state does."""
    if not state.draft:
        raise ValueError(f"{OP}: this state moves on by itself: initial_state(..., draft=True)")
    if slots is not None:
        check_slots(slots, state)
    rows = state.count.shape if slots is None else slots.shape
    kinds = (torch.int32, torch.int64)
    if not isinstance(accepted, Tensor) or accepted.dtype not in kinds or accepted.shape != rows:
        raise TypeError(f"{OP}: accepted must be an int32 tensor {tuple(rows)}, not {accepted!r}")
    there = None if slots is None else has_place(slots, state)
    real = accepted if there is None else torch.where(there, accepted, 0)
    for name, (lag, _) in RINGS.items():
        room = getattr(state, name).shape[1] - lag
        if is_known(real) and bool(((real < 0) | (real > room)).any()):
            raise ValueError(f"{OP}: accepted are not all between 0 and {room} steps")
    if there is None:
        state.count.add_(real)
        return
    places = torch.where(there, slots, 0).long()
    state.count.index_add_(0, places, real.to(torch.int32))


def has_place(slots: Tensor, state) -> Tensor:
    """Which rows have a place of the state."""
    return (slots >= 0) & (slots < state.count.shape[0])


def reset_places(state, slots: Tensor | None) -> None:
    """What `reset` of a state does."""
    places = slice(None)
    if slots is not None:
        check_slots(slots, state)
        places = slots[has_place(slots, state)].long()
    for tensor in state[:-1]:
        tensor[places] = 0


def live_rows(slots: Tensor | None, state) -> tuple[Tensor, Tensor]:
    """Rows of a batch that are computed, and the places of their states."""
    if slots is None:
        rows, _ = all_rows(state)
        return rows, rows
    rows = has_place(slots, state).nonzero().flatten()
    return rows, slots[rows].long()


def ring_slots(ring: Tensor, count: Tensor, steps: int, begin: int) -> Tensor:
    """The slots of so many steps of each row from `begin` after step `count` on, (B, steps)."""
    step = torch.arange(begin, begin + steps, device=ring.device)
    return (count[:, None] + step) % ring.shape[1]


def past_of(ring: Tensor, places: Tensor, count: Tensor, lag: int) -> Tensor:
    """The `lag` steps before step `count`, (B, columns, lag)."""
    return ring[places[:, None], ring_slots(ring, count, lag, -lag)].transpose(1, 2)


def keep_in_ring(ring: Tensor, x: Tensor, places: Tensor, count: Tensor) -> None:
    """Write x (B, columns, T) to the ring, from step `count` on."""
    steps = x.transpose(1, 2).to(ring.dtype)
    ring[places[:, None], ring_slots(ring, count, x.shape[2], 0)] = steps


def in_ring(ring: Tensor, x: Tensor, places: Tensor, count: Tensor) -> Tensor:
    """`keep_in_ring` of a copy."""
    where = (places[:, None], ring_slots(ring, count, x.shape[2], 0))
    return ring.index_put(where, x.transpose(1, 2).to(ring.dtype))


def move_to(state, places: Tensor, count: Tensor) -> None:
    """Let sequences have had so many steps."""
    state.count[places] = count.to(torch.int32)
    state.done[places] = state.count[places, None]


def where_later(x: Tensor, past: Tensor, end: Tensor | int) -> Tensor:
    """The last T steps before an end, of each row or of all: of x (B, C, T) from step 0 on, and
    before that of the past, the T steps before step 0.
    """
    steps = x.shape[2]
    if isinstance(end, int):
        missing = max(0, steps - end)
        known = past[..., steps - missing :].to(x.dtype)
        return torch.cat([known, x[..., missing:]], 2) if missing else x
    time = end[:, None] - steps + torch.arange(steps, device=x.device)
    time = time[:, None].expand(-1, x.shape[1], -1)
    index = torch.where(time < 0, time + steps, 0)
    return torch.where(time < 0, past.to(x.dtype).gather(2, index), x)


def steps_before(x: Tensor, past: Tensor, end: Tensor | int, steps: int) -> Tensor:
    """The steps of x (B, C, L) before an end, of each row or of all; those before x are of the
    `past`, as far as it goes.
    """
    if isinstance(end, int):
        before = past[..., max(0, past.shape[2] - max(0, steps - end)) :].to(x.dtype)
        found = torch.cat([before, x[..., max(0, end - steps) : end]], 2)
        return functional.pad(found, (steps - found.shape[2], 0))
    index = end[:, None] - steps + torch.arange(steps, device=x.device)
    index, before = index[:, None].expand(-1, x.shape[1], -1), past.shape[2]
    # Not by clamp, whose constants inductor of PyTorch 2.11 folds into indices that fail.
    later = x.gather(2, torch.where(index < 0, 0, index))
    if not before:
        return later
    own = (index < 0) & (index >= -before)
    earlier = past.to(x.dtype).gather(2, torch.where(own, index + before, 0))
    return torch.where(index < 0, earlier, later)


def end_of_all(count: Tensor, steps: int) -> Tensor | int:
    """Where all rows end: a number, but for compilers, which would hold that one for all calls."""
    known = type(steps) is int and not torch.compiler.is_compiling()
    return steps if known else torch.full_like(count, steps)


def ends_of(lengths: Tensor | None, rows: Tensor, steps: int, x: Tensor) -> Tensor:
    """Where each row that is computed ends."""
    if lengths is None:
        return torch.full_like(rows, steps)
    check_dense("lengths", lengths)
    kinds = (torch.int32, torch.int64)
    if lengths.shape != x.shape[:1] or lengths.dtype not in kinds or lengths.device != x.device:
        raise ValueError(
            f"{OP}: lengths are {lengths.dtype} {tuple(lengths.shape)} on {lengths.device}, "
            f"expected int32 or int64 ({x.shape[0]},) on {x.device}"
        )
    own = lengths[rows].long()
    if is_known(own) and bool(((own < 0) | (own > steps)).any()):
        raise ValueError(f"{OP}: lengths are not all between 0 and {steps} steps")
    return own.clamp(0, steps)


class HyenaState(NamedTuple):
    """The past of sequences, in a place each. `decode` and `prefill` change it.

    A ring keeps step t, counted from the first of its sequence, in slot t % slots.

    tails (batch, 2 + steps, 3 * channels): the last inputs, blocks of D channels, q, k, v in this
    order
    z (batch, 8191 + steps, channels): the last values that the filter reads
    count (batch,) int32: steps of each sequence so far
    done (batch, channels / 16) int32, of each 16 channels: count
    """

    tails: Tensor
    z: Tensor
    count: Tensor
    done: Tensor
    draft: bool

    def commit(self, accepted: Tensor, slots: Tensor | None = None) -> None:
        """Say how many steps of the last `decode` count, of a state of drafts: the others leave no
        trace. Those of `prefill` count at once.

        Args:
            accepted: int32, a number a row of that call, at most its steps. That is yours to see
                to: on a CPU it is compared with the room of the state, on a GPU with nothing.
            slots: as of that call.
        """
        commit_drafts(self, accepted, slots)

    def reset(self, slots: Tensor | None = None) -> None:
        """Let new sequences begin in places, or in all; negative slots are none. With slots it
        waits for a GPU.
        """
        reset_places(self, slots)


STATE = HyenaState


def initial_state(
    batch: int,
    channels: int = CHANNELS,
    *,
    steps: int = 1,
    draft: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> HyenaState:
    """The state of sequences that have not begun.

    Args:
        batch: how many places for a sequence it has.
        channels: D.
        steps: the most that one call computes.
        draft: whether steps count only once `commit` has said so.
        dtype: of the past of inputs and of what the filter reads, float32 or that of the inputs,
            which halves what a step reads and rounds what the filter reads once; modes are
            float32.
    """
    check_sizes(dtype, draft, batch=batch, channels=channels, steps=steps)
    index = torch.zeros((batch,), dtype=torch.int32, device=device)
    return HyenaState(
        torch.zeros((batch, 2 + steps, 3 * channels), dtype=dtype, device=device),
        torch.zeros((batch, 8191 + steps, channels), dtype=dtype, device=device),
        index,
        index.new_zeros(batch, -(-channels // 16)),
        draft,
    )


# -----------------------------------------------------------------------------------------------
# Calls
# -----------------------------------------------------------------------------------------------


def run_op(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
) -> Tensor:
    """y of all inputs, or of packed features alone."""
    if PLAIN or transformed([*inputs, *parameters]):
        refuse_symbols(inputs[0])
        with without_autocast(inputs[0]):
            return eager_forward(unpack(spread(inputs, parameters)), parameters)[0]
    absent = [None] * (len(INPUTS) - len(inputs))
    return forward_op(*inputs, *absent, *parameters)


def hyena(
    q: Tensor, k: Tensor, v: Tensor, filter: Tensor, featurizer: Tensor, skip: Tensor
) -> Tensor:
    """hyena: 8192-tap freeform causal convolution, featurizer of 3 taps, pre and post gates

    Args:
        q: (B, D, L), bfloat16, float16 or float32
        k: (B, D, L), bfloat16, float16 or float32
        v: (B, D, L), bfloat16, float16 or float32
        filter: (groups, 8192), float32; tap 0 multiplies the current sample
        featurizer: (3 * channels, 3), float32; the last tap multiplies the current sample; blocks
            of D channels, q, k, v in this order
        skip: (channels), float32; times z, added to the convolution

    Returns:
        y (B, D, L) in the dtype of the inputs, differentiable in every argument.

    Raises:
        TypeError, ValueError: naming the argument and the shape, dtype or device expected.
    """
    check([q, k, v], [filter, featurizer, skip])
    return run_op([q, k, v], [filter, featurizer, skip])


def hyena_packed(features: Tensor, filter: Tensor, featurizer: Tensor, skip: Tensor) -> Tensor:
    """hyena of packed features (B, 3 D, L): blocks of D channels, q, k, v in this order."""
    check([features], [filter, featurizer, skip])
    return run_op([features], [filter, featurizer, skip])


# -----------------------------------------------------------------------------------------------
# Decoding: a few steps in time after a past that is kept
# -----------------------------------------------------------------------------------------------


def eager_window(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    tails: Tensor | None,
    past: Tensor | None,
) -> tuple[Tensor | None, Tensor]:
    """y of a few steps (B, D, T) after the `tails` of inputs and the `past` of what the filter
    reads, and what it reads of these steps; that alone without a past.
    """
    q, k, v = inputs
    dtype, channels = q.dtype, q.shape[1]
    filter, featurizer, skip = effective(*parameters, dtype)
    c, width = slice(0, channels), channels // filter.shape[0]
    tails = tails.to(dtype)
    q_hat, k_hat, v_hat = conv_within(
        torch.cat([tails, torch.cat([q, k, v], 1)], 2), featurizer.flip(1)
    ).chunk(3, 1)
    z = k_hat * v_hat
    skip_c = channel_rows(skip, c, 1, dtype)[:, None]
    skipped = z * skip_c
    if past is None:
        return None, z
    past = past.to(dtype)
    filter_c = channel_rows(filter, c, width, dtype)
    z_rows = torch.cat([past, z], 2)
    conv = conv_fft(z_rows, filter_c, +1)[..., 8191:]
    pre_skip = conv + skipped
    y = q_hat * pre_skip
    return y, z


def eager_after(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: HyenaState,
) -> Tensor:
    """y of some steps after a state in plain PyTorch, which differentiates it."""
    dtype = torch.promote_types(inputs[0].dtype, torch.float32)
    y = allocate(inputs[0], inputs[0].shape[TIME])
    known = [canonical(x).to(dtype) for x in inputs]
    rows, count = all_rows(state)
    tails = past_of(state.tails, rows, count, 2)
    past = past_of(state.z, rows, count, 8191)
    canonical(y)[:] = eager_window(known, parameters, tails, past)[0]
    return y


def state_after(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: HyenaState,
    end: Tensor | None,
) -> HyenaState:
    """The state after the first `end` steps of each row, or all, of that before them, which
    stays as it is.
    """
    end = end_of_all(state.count, inputs[0].shape[TIME]) if end is None else end
    past = [
        state.tails,
        state.z,
    ]
    tails, z = eager_rings(inputs, parameters, past, state.count, end)
    count = (state.count + end).to(torch.int32)
    done = count[:, None].repeat(1, state.done.shape[1])
    return STATE(tails, z, count, done, state.draft)


def eager_rings(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    past: Sequence[Tensor],
    count: Tensor,
    end: Tensor | int,
) -> list[Tensor]:
    """The rings after the first `end` steps of each row or of all, of those before, in plain
    PyTorch.
    """
    tails, z = past
    rows = torch.arange(count.shape[0], device=count.device)
    known = [canonical(x) for x in inputs]
    tail = past_of(tails, rows, count, 2)
    pasts = tail.chunk(len(known), 1)
    dtype = torch.promote_types(known[0].dtype, torch.float32)
    last = [
        steps_before(x, tail, end, 8193).to(dtype) for x, tail in zip(known, pasts, strict=True)
    ]
    before = torch.cat([x[..., :2] for x in last], 1)
    after = [x[..., 2:] for x in last]
    _, later = eager_window(after, parameters, before, None)
    later = where_later(later, past_of(z, rows, count, 8191), end)
    z = in_ring(z, later, rows, count + end - 8191)
    last = [steps_before(x, tail, end, 2) for x, tail in zip(known, pasts, strict=True)]
    tails = in_ring(tails, torch.cat(last, 1), rows, count + end - 2)
    return [tails, z]


def eager_decode(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: HyenaState,
    slots: Tensor | None,
) -> Tensor:
    """y of a few steps in plain PyTorch; the state moves on."""
    sequences = [canonical(x) for x in unpack(inputs)]
    batch, channels, steps = sequences[0].shape
    dtype = torch.float64 if sequences[0].dtype == torch.float64 else torch.float32
    result = allocate(inputs[0], steps, channels).zero_()
    rows, places = live_rows(slots, state)
    count = state.count[places]
    q, k, v = (x[rows].to(dtype) for x in sequences)
    given_rows = [q, k, v]
    tails = past_of(state.tails, places, count, 2)
    past = past_of(state.z, places, count, 8191)
    y, z = eager_window(given_rows, parameters, tails, past)
    keep_in_ring(state.z, z, places, count)
    keep_in_ring(state.tails, torch.cat([q, k, v], 1), places, count)
    canonical(result)[rows] = y.to(result.dtype)
    if not state.draft:
        move_to(state, places, count + steps)
    return result


def decode_anywhere(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    filter: Tensor,
    featurizer: Tensor,
    skip: Tensor,
    tails: Tensor,
    z: Tensor,
    count: Tensor,
    done: Tensor,
    slots: Tensor | None,
    draft: bool,
) -> Tensor:
    """y of a few steps; of packed features if the later inputs are None."""
    state = STATE(tails, z, count, done, draft)
    with torch.autocast(q.device.type, enabled=False):
        return eager_decode(given(q, k, v), [filter, featurizer, skip], state, slots)


def decode_fake(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    filter: Tensor,
    featurizer: Tensor,
    skip: Tensor,
    tails: Tensor,
    z: Tensor,
    count: Tensor,
    done: Tensor,
    slots: Tensor | None,
    draft: bool,
) -> Tensor:
    """The same without values."""
    inputs = given(q, k, v)
    return allocate(q, q.shape[TIME], channels_of(inputs))


def check_decoding(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: HyenaState,
    slots: Tensor | None,
) -> None:
    """Refuse what `decode` cannot compute."""
    check_count(inputs)
    check(inputs, parameters)
    check_decode(inputs, state, slots)
    check_in_place(inputs, state)


decode_op = library_op(
    f"{LIBRARY_NAME}_decode",
    decode_fake,
    decode_anywhere,
    None,
    changes=(
        "tails",
        "z",
        "count",
        "done",
    ),
)


def decode(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: HyenaState,
    slots: Tensor | None = None,
) -> Tensor:
    """y of one step or a few after a state, which moves on in place. For inference: it has no
    gradients.

    Args:
        inputs: q, k, v (B, D, L) with L steps, or one tensor of packed features (B, 3 D, L).
        parameters: filter, featurizer, skip.
        state: of `initial_state`, for at least L steps.
        slots: (B) int32, which place of the state a row's sequence has; of rows that are negative
            nothing is computed, and y is 0. A GPU does not see where they are wrong: beyond all
            places they are as negative ones, and two rows with one place leave a state of no use
            until it is reset. Absent: row i has place i.

    Returns:
        y (B, D, L) in the dtype of the inputs.

    Raises:
        TypeError, ValueError: naming the argument and the shape, dtype or device expected.
        RuntimeError: a gradient would be asked for.
    """
    check_decoding(inputs, parameters, state, slots)
    absent = [None] * (len(INPUTS) - len(inputs))
    function = decode_anywhere if PLAIN else decode_op
    with torch.no_grad():
        return function(*inputs, *absent, *parameters, *state[:-1], slots, state.draft)


def prefill(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    state: HyenaState,
    slots: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """y of any number of steps after a state, which moves on in place, as `decode` of one after
    the other; of drafts too, without `commit`. For inference: it has no gradients.

    Args:
        inputs, parameters, state, slots: as of `decode`, but for any number of steps.
        lengths: (B) whole numbers, how many of a row's steps are its own, of rows that are padded
            on the right: a state is that after these, and y is of no meaning beyond, where inputs
            must be finite. Absent: all.

    Returns:
        y (B, D, L) in the dtype of the inputs.

    Raises:
        TypeError, ValueError, RuntimeError: as `decode`.
    """
    check_count(inputs)
    check(inputs, parameters, least=0)
    steps = inputs[0].shape[TIME]
    check_decode(inputs, state, slots, any_steps=True)
    check_in_place(inputs, state)
    if not steps:
        ends_of(lengths, live_rows(slots, state)[0], steps, inputs[0])
        return allocate(inputs[0], 0, channels_of(inputs))
    with torch.no_grad(), without_autocast(inputs[0]):
        sequences = unpack(inputs)
        rows, places = live_rows(slots, state)
        end = ends_of(lengths, rows, steps, sequences[0])
        own, before = sequences, state
        if slots is not None:
            own = [x[rows] for x in sequences]
            before = STATE(*(tensor[places] for tensor in state[:-1]), state.draft)
        y = run_op(own, parameters)
        # What the past adds to: the first steps again.
        first = [x.narrow(TIME, 0, min(8193, steps)) for x in own]
        begun = eager_after(first, parameters, before)
        y.narrow(TIME, 0, begun.shape[TIME]).copy_(begun)
        after = state_after(own, parameters, before, end)
        for tensor, made in zip(state[:-1], after[:-1], strict=True):
            if made is not tensor:
                tensor[places] = made.to(tensor.dtype)
        if slots is None:
            return y
        result = allocate(inputs[0], steps, channels_of(inputs)).zero_()
        result[rows] = y
        return result


class Hyena(nn.Module):
    """The operator with its parameters: filter (groups, 8192), featurizer (3 * channels, 3), skip
    (channels).

    They are float32 and stay so under `.to(torch.bfloat16)`, `.half()` and autocast: they are few,
    and rounding them would cost more accuracy than the whole computation.

    Args:
        channels: D.
        groups: G, which divides D; as wide as those of 768 channels in 768 if absent.
    """

    def __init__(
        self,
        channels: int = CHANNELS,
        groups: int | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("channels", channels), ("groups", groups)):
            if not isinstance(size, int | None):
                raise TypeError(f"{OP}: {name} must be a whole number, not {size!r}")
        if groups is None:
            width = CHANNELS // GROUPS
            if channels % width:
                raise ValueError(f"{OP}: {channels} channels are no whole groups of {width}")
            groups = channels // width
        if channels < 1 or groups < 1 or channels % groups:
            raise ValueError(f"{OP}: {groups} filter groups do not divide {channels} channels")
        self.channels, self.groups = channels, groups
        for name, shape in parameter_shapes(channels, groups).items():
            values = torch.empty(shape, dtype=torch.float32, device=device)
            self.register_parameter(name, nn.Parameter(values))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh parameters."""
        with torch.no_grad():
            self.filter.uniform_(-0.0110485, 0.0110485)
            self.featurizer.uniform_(-0.57735, 0.57735)
            self.skip.uniform_(-0.0110485, 0.0110485)

    def _apply(self, fn, recurse: bool = True):
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype in (torch.bfloat16, torch.float16):
                return tensor.to(moved.device)
            return moved

        return super()._apply(keep_float32, recurse)

    def forward(self, *inputs: Tensor) -> Tensor:
        """y (B, D, L) of q, k, v (B, D, L), or of packed features (B, 3 D, L)."""
        own = self._parameters  # which nn.Module searches slowly; parametrised ones are not there
        parameters = [own[n] if n in own else getattr(self, n) for n in PARAMETERS]
        if len(inputs) == len(INPUTS):
            return hyena(*inputs, *parameters)
        if len(inputs) == 1:
            return hyena_packed(*inputs, *parameters)
        raise TypeError(
            f"{OP}: expected {len(INPUTS)} inputs or 1 of packed features, got {len(inputs)}"
        )

    def initial_state(
        self,
        batch: int,
        *,
        steps: int = 1,
        draft: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> HyenaState:
        """`initial_state` for this module's channels, by default on its device."""
        device = next(self.parameters()).device if device is None else device
        return initial_state(
            batch, self.channels, steps=steps, draft=draft, dtype=dtype, device=device
        )

    def decode(
        self,
        *inputs: Tensor,
        state: HyenaState | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """y of one step or a few after a state, which may come last of the inputs: `decode` with
        this module's parameters.

        Example: `y = module.decode(q, k, v, module.initial_state(batch))`
        """
        inputs, state = with_state(inputs, state)
        parameters = [getattr(self, name) for name in PARAMETERS]
        return decode(inputs, parameters, state, slots)

    def prefill(
        self,
        *inputs: Tensor,
        state: HyenaState | None = None,
        slots: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """y of a whole prompt, or of more of it, and the state after it: `prefill`."""
        inputs, state = with_state(inputs, state)
        parameters = [getattr(self, name) for name in PARAMETERS]
        return prefill(inputs, parameters, state, slots, lengths)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, groups={self.groups}"
