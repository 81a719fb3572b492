"""The state of a sequence between two calls: one value, and what each of its fields is."""

from __future__ import annotations

from dataclasses import dataclass

from sh2gen.plan.plan import Plan
from sh2gen.plan.values import Layout
from sh2gen.spec.operator import OpSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StateField:
    """One tensor of a state.

    Attributes:
        shape: in terms of `batch` and `channels`.
        io: whether it has the dtype of the inputs; float32 or wider otherwise.
        meaning: in words.
    """

    name: str
    shape: tuple[str, ...]
    io: bool
    meaning: str


def state_layout(spec: OpSpec, plan: Plan) -> tuple[StateField, ...]:
    """The fields of an operator's state, () if calls neither take nor give one."""
    if spec.state is None:
        return ()
    roles = f"{len(spec.inputs)} * " * (len(spec.inputs) > 1)
    shape = ("batch", f"{roles}channels", str(spec.history))
    if plan.layout is Layout.BLD:
        shape = (shape[0], shape[2], shape[1])
    history = StateField(
        name="history",
        shape=shape,
        io=True,
        meaning=(
            f"the last {spec.history} steps of the inputs, blocks of D channels, "
            f"{', '.join(spec.inputs)} in this order"
        ),
    )
    if not plan.states:
        return (history,)
    pairs = spec.filter.pairs
    modes = StateField(
        name="modes",
        shape=("batch", "channels", str(spec.filter.modes), *(("2",) if pairs else ())),
        io=False,
        meaning="the state of the modes" + ", which torch.view_as_complex reads" * pairs,
    )
    return (history, modes)
