"""Actions: what a call of one role does, one after another.

`emit` (launchers), `interpret` (meaning) and `cost` (time) are three folds over one tuple of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sh2gen.graph.nodes import Graph
from sh2gen.plan.arguments import Argument
from sh2gen.plan.kernel import Kernel, Reduction, Role


class Room(StrEnum):
    """What kind of tensor is made."""

    ACTIVATION = "activation"  # (B, D, L) or (B, L, D) of the inputs' dtype
    GRADIENTS = "gradients"  # of all inputs, which are packed in one tensor if these are
    STATES = "states"  # float32, before every tile of a sequence
    FLOAT32 = "float32"  # of a shape of its own
    LIKE = "like"  # of the shape of another tensor


class When(StrEnum):
    """On what it depends whether a tensor is made, or a kernel launched."""

    ALWAYS = "always"
    SPLIT = "split"  # if a sequence is cut into splits
    PAST = "past"  # of the first steps, which a past may reach
    KEPT = "kept"  # if what forward stores for backward is to be kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocate:
    """Make room for tensors, which are empty where `when` does not hold.

    Attributes:
        names: of the tensors.
        shape: of FLOAT32, each size a product of these: numbers, and names of sizes of a launch:
            batch, channels, splits, sums, columns (`Grid`).
        like: of LIKE, the other tensor.
        io: of LIKE, whether in its dtype too; float32 otherwise.
    """

    names: tuple[str, ...]
    room: Room
    shape: tuple[tuple[str | int, ...], ...] = ()
    like: str = ""
    io: bool = False
    when: When = When.ALWAYS


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Launch a kernel: if `when` is SPLIT, for all splits of a sequence but one; if it is PAST,
    for the first steps alone, which the others of its role then leave out.
    """

    kernel: Kernel
    when: When = When.ALWAYS


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """Where a sequence is split, compute the gradients of inputs that two splits share."""

    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduce:
    """Add partial sums to the gradients of parameters, by one kernel."""

    reductions: tuple[Reduction, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recompute:
    """Compute what another role stores, if it was not kept."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Eager:
    """Compute a graph in plain PyTorch, in chunks of channels."""

    graph: Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Give:
    """Return tensors.

    Attributes:
        names: of the tensors; `gradients` are those of GRADIENTS and of `Reduce`.
        doc: what they are, for whoever calls the launcher.
    """

    names: tuple[str, ...]
    doc: str


Action = Allocate | Launch | Join | Reduce | Recompute | Eager | Give
