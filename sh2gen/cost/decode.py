"""What a step of decoding moves: the least that any kernel can take."""

from __future__ import annotations

from dataclasses import dataclass

from sh2gen.cost.work import BYTES
from sh2gen.plan.rings import rings
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target

BATCHES = (1, 64, 256)
# What a config of decoding is chosen for, one step a call.
STEPS = tuple(Workload(batch=batch, length=1) for batch in BATCHES)
_MODE = 4  # bytes of a number of a state of modes


@dataclass(frozen=True, slots=True)
class Decoding:
    """Bytes of one sequence, whose past is in the dtype of the inputs.

    Attributes:
        state: what is kept of it.
        step: what a step must read and write: the past, what takes its place, inputs and output.
    """

    state: int
    step: int

    def bound(self, batch: int, target: Target) -> float:
        """Seconds that a step of so many sequences takes at least."""
        return batch * self.step / target.elementwise_bandwidth


def decoding(spec: OpSpec) -> Decoding:
    """Of an operator, one step a call."""
    io, modes = BYTES[spec.dtype.io], _MODE * spec.filter.state_size
    read = io * sum(ring.lag * ring.roles for ring in rings(spec))
    written = io * sum(ring.roles for ring in rings(spec) if ring.lag)
    each = read + written + 2 * modes + io * (len(spec.inputs) + 1)
    return Decoding(state=spec.channels * (read + written + modes), step=spec.channels * each)
