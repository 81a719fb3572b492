"""Ops of torch.library, defined and implemented directly: those of `custom_op` look at each call
anew, and import torch's compiler at the first.
"""

from collections.abc import Callable, Sequence

import torch

from templates.parts.op import in_turn

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
