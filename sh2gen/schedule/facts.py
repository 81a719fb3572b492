"""What constraints, defaults and searches may refer to of an operator, beside knobs."""

from __future__ import annotations

from sh2gen.plan.geometry import counted_together
from sh2gen.plan.step import MOST_LOADED
from sh2gen.spec.language import Bias, DType, FilterKind, Precision, Sequences, Skip
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target, known

# What constraints, defaults and searches may refer to, beside knobs.
FACTS = {
    "CHANNELS": "channels of the operator",
    "WIDTH": "channels that share a filter",
    "WIDTH2": "WIDTH, rounded up to a power of two",
    "OPERAND": "bytes that products read for an element: 2 for bfloat16, else 4",
    "K": "taps of the filter; 0 for a modal one",
    "MODES": "numbers of a channel's state, two for a pair of complex modes; 0 without modes",
    "PAIRS": "1 if modes are pairs of complex ones",
    "COUNTED": "channels side by side whose decoded steps are counted together: 16, or fewer of "
    "many modes",
    "BLOCKS": "1 if decoding reads taps in blocks: those of more than 16",
    "PACKED": "1 if rows may hold several documents",
    "STATEFUL": "1 if kernels take and give a state, for which they need more registers",
    "INPUTS": "activations that forward reads, 1 to 3",
    "F": "taps of the featurizer, 1 without one",
    "TAP_TERMS": "operands whose sum a tap is: 2 where few taps carry the result",
    "TERMS": "how many of skip and bias there are",
    "BATCH": "the least batch of the operator's workloads",
    "SHARED": "bytes of shared memory that a program may take on the target",
    "PRODUCT_ROWS": "rows of a product instruction of the target: 16 where a warp multiplies "
    "alone, of operands in registers, 64 or more where four warps multiply together",
}


def operand_bytes(spec: OpSpec) -> int:
    """Bytes of an element as matrix products read it: 2 for bfloat16 that need not be exact."""
    narrow = spec.dtype.io is DType.BFLOAT16
    return 2 if narrow and spec.precision is not Precision.EXACT else 4


def tap_terms(spec: OpSpec, io: DType | None = None) -> int:
    """How many operands of products a tap is: two where few taps may carry all that comes out,
    one else. For activations of `io`: one of float32, which products read as it is.

    The rounding error of a tap is the same at all times and for all channels of its group. Where a
    result hangs on few taps, by bad luck most are rounded by nearly half a unit of the last place,
    which alone is 2.4 times what rounding costs on average. Of 32 filters luck evens out, or of as
    many taps that decay with nothing; two terms are `balanced` for the others too
    (docs/decisions/013).
    """
    carriers = spec.groups_in_full or spec.filter.groups
    if spec.filter.kind is FilterKind.EXPLICIT and spec.filter.length is not None:
        carriers *= max(1, spec.filter.length // 4)
    few = carriers < 32 and spec.precision is Precision.BALANCED
    return 2 if few and io is not DType.FLOAT32 else 1


def facts_of(spec: OpSpec, target: Target | None = None) -> dict[str, int]:
    """The FACTS of an operator on a target, by default that of `targets`."""
    target = target or known()[0]
    return {
        "CHANNELS": spec.channels,
        "WIDTH": spec.group_width,
        "WIDTH2": 1 << (spec.group_width - 1).bit_length(),
        "OPERAND": operand_bytes(spec),
        "K": spec.filter.length or 0,
        "MODES": spec.filter.state_size,
        "PAIRS": int(spec.filter.pairs),
        "COUNTED": counted_together(spec.filter.modes or 0),
        "BLOCKS": int(max(spec.filter.length or 0, spec.lag + 1) > MOST_LOADED),
        "PACKED": int(spec.sequences is Sequences.PACKED),
        "STATEFUL": int(spec.state is not None),
        "INPUTS": len(spec.inputs),
        "F": spec.featurizer.length if spec.featurizer else 1,
        "TAP_TERMS": tap_terms(spec, spec.dtype.io),
        "TERMS": (spec.skip is not Skip.NONE) + (spec.bias is not Bias.NONE),
        "BATCH": min(workload.batch for workload in spec.workloads),
        "SHARED": target.shared_per_block,
        "PRODUCT_ROWS": target.product_rows,
    }
