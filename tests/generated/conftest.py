"""A few small operators, generated once a session as `sh2gen compile` would, and calls of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.runtime.operator import Operator, OperatorRunner
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from tests.generated.launched import launched

__all__ = ["launched"]

GATES = {"pre": True, "post": True}
HYENA: dict[str, Any] = {
    "op": "tiny_hyena",
    "channels": 6,
    "filter": {"kind": "explicit", "length": 7, "groups": 2, "taps": "lag_last"},
    "featurizer": {"length": 3},
    "gates": GATES,
}
SHORT: dict[str, Any] = {
    "op": "tiny_short",
    "channels": 6,
    "filter": {"kind": "explicit", "length": 4, "groups": 6, "taps": "lag_last"},
    "bias": "ungated",
    "activation": "silu",
}
INTERLEAVED: dict[str, Any] = {
    "op": "tiny_interleaved",
    "channels": 4,
    "filter": {"kind": "explicit", "length": 5, "groups": 2},
    "featurizer": {"length": 3},
    "gates": GATES,
    "skip": "channel",
    "layout": {"projection": "interleaved"},
}
FFT: dict[str, Any] = {  # more taps than many of the sequences have steps
    "op": "tiny_fft",
    "channels": 4,
    "filter": {"kind": "explicit", "length": 40, "groups": 2},
    "gates": GATES,
    "skip": "group",
}
DECAY: dict[str, Any] = {
    "op": "tiny_decay",
    "channels": 6,
    "filter": {
        "kind": "decay",
        "length": 5,
        "groups": 3,
        "decay": {"preset": "strong", "cache_length": 9},
    },
    "gates": {"post": True},
    "bias": "gated",
}
BLOCKS: dict[str, Any] = {  # more taps than `direct` takes, enough for taps of one term
    "op": "tiny_blocks",
    "channels": 8,
    "filter": {"kind": "explicit", "length": 65, "groups": 2, "taps": "lag_last"},
    "featurizer": {"length": 3},
    "gates": GATES,
    "skip": "channel",
}
MODAL: dict[str, Any] = {
    "op": "tiny_modal",
    "channels": 6,
    "filter": {"kind": "modal", "modes": 3, "groups": 3, "parametrisation": "p_gamma"},
    "featurizer": {"length": 3},
    "gates": GATES,
    "skip": "channel",
}
POLES: dict[str, Any] = {
    "op": "tiny_poles",
    "channels": 3,
    "filter": {"kind": "modal", "modes": 2, "groups": 3, "parametrisation": "log_poles"},
    "bias": "ungated",
}
PAIRS: dict[str, Any] = {
    "op": "tiny_pairs",
    "channels": 6,
    # torch's opcheck cannot copy the states of an empty batch where a sequence has 32 numbers
    "filter": {"kind": "modal", "modes": 2, "groups": 3, "parametrisation": "complex"},
    "featurizer": {"length": 3},
    "gates": GATES,
    "skip": "channel",
}
PACKED = {"sequences": "packed"}
# Name -> what is computed, and by which plan. All of them differ in more than one way.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "hyena_bdl": (HYENA, "direct/BDL/recompute"),
    "hyena_bld": (HYENA, "direct/BLD/save-conv"),
    "short_bdl": (SHORT, "direct/BDL/recompute"),
    "short_bld": (SHORT, "direct/BLD/recompute"),
    "interleaved": (INTERLEAVED, "direct/BLD/save-pre_skip"),
    "fft_bdl": (FFT, "fft/BDL/recompute"),
    "fft_bld": (FFT, "fft/BLD/recompute"),
    "decay": (DECAY, "direct/BDL/recompute"),
    "blocks_bdl": (BLOCKS, "toeplitz/BDL/recompute"),
    "blocks_bld": (BLOCKS, "toeplitz/BLD/recompute"),
    "modal": (MODAL, "modal/BDL/save-states"),
    "modal_fft": (MODAL, "fft/BLD/recompute"),
    "poles": (POLES, "modal/BDL/save-states"),
    "pairs": (PAIRS, "modal/BDL/save-states"),
    "pairs_fft": (PAIRS, "fft/BDL/recompute"),
    "documents": (INTERLEAVED | PACKED, "direct/BLD/save-pre_skip"),
    "documents_decay": (DECAY | PACKED, "direct/BDL/recompute"),
    "documents_modal": (MODAL | PACKED, "modal/BDL/save-states"),
    "documents_fft": (FFT | PACKED, "fft/BDL/recompute"),
}


CARRIED = {"state": {"initial": True, "final": True}}
# The same for operators that take a state and give one: what users pass, and what comes of it.
STATEFUL: dict[str, tuple[dict[str, Any], str]] = {
    "taps_bdl": (HYENA | CARRIED, "direct/BDL/recompute"),
    "taps_bld": (INTERLEAVED | CARRIED, "direct/BLD/save-pre_skip"),
    "taps_fft": (FFT | CARRIED, "fft/BDL/recompute"),
    "one_tap": (
        SHORT | {"filter": {"kind": "explicit", "length": 1, "groups": 6}} | CARRIED,
        "direct/BLD/recompute",
    ),
    "modal": (MODAL | CARRIED, "modal/BDL/save-states"),
    "poles": (
        POLES | {"filter": POLES["filter"] | {"groups": 1}} | CARRIED,
        "modal/BDL/save-states",
    ),
    "pairs": (PAIRS | CARRIED, "modal/BDL/save-states"),
    "modes_bld": (MODAL | CARRIED, "fft/BLD/recompute"),
}


def over(sharding: str, **more: Any) -> dict[str, Any]:
    return {"context": {"ranks": 2, "sharding": sharding, **more}}


# The same for operators whose sequences are split over ranks.
RANKS: dict[str, tuple[dict[str, Any], str]] = {
    "bdl": (HYENA | over("zigzag"), "direct/BDL/recompute"),
    "bld": (HYENA | over("contiguous"), "direct/BLD/recompute"),
    "decay": (DECAY | over("zigzag"), "direct/BDL/recompute"),
    "blocks": (BLOCKS | over("contiguous"), "toeplitz/BDL/recompute"),
    "modal": (MODAL | over("zigzag"), "modal/BDL/save-states"),
    "poles": (POLES | over("contiguous"), "modal/BDL/save-states"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A generated operator, and tensors that fit it: (B, L, D) or (B, D, L) as it asks."""

    name: str
    spec: OpSpec
    path: Path
    operator: Operator

    @property
    def time(self) -> int:
        """The axis of time in an activation."""
        return 1 if self.operator.layout == "BLD" else 2

    def shape(self, batch: int = 2, length: int = 19, *, roles: int = 1) -> tuple[int, ...]:
        channels = roles * self.spec.channels
        if self.operator.layout == "BLD":
            return (batch, length, channels)
        return (batch, channels, length)

    def activation(
        self,
        batch: int = 2,
        length: int = 19,
        *,
        roles: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        return torch.randn(self.shape(batch, length, roles=roles)).to(dtype)

    def inputs(
        self, batch: int = 2, length: int = 19, *, dtype: torch.dtype = torch.float32
    ) -> list[Tensor]:
        """One tensor for every name of `spec.inputs`."""
        return [self.activation(batch, length, dtype=dtype) for _ in self.spec.inputs]

    def packed(
        self, batch: int = 2, length: int = 19, *, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        return self.activation(batch, length, roles=len(self.spec.inputs), dtype=dtype)

    def parameters(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Of order one, unlike freshly initialised ones; log-poles are negative."""
        drawn = {p.name: torch.randn(p.shape) for p in self.spec.parameters}
        drawn |= {name: -0.1 * x.abs() for name, x in drawn.items() if name == "log_poles"}
        drawn |= {name: x / 4 - 1 for name, x in drawn.items() if name in ("p", "gamma")}
        return {name: x.to(dtype) for name, x in drawn.items()}

    def module(self) -> nn.Module:
        """A module whose parameters are of order one."""
        module = self.operator.module()
        module.load_state_dict(self.parameters())
        return module

    def reference(self, inputs: list[Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        return self.operator.reference(*inputs, **parameters)

    @property
    def runner(self) -> OperatorRunner:
        return OperatorRunner(self.operator, "eager")


def made_in(
    folder: Path, wanted_by_name: dict[str, tuple[dict[str, Any], str]]
) -> dict[str, Case]:
    """Each operator by the plan beside it, as a file of this folder."""
    made = {}
    for name, (description, wanted) in wanted_by_name.items():
        spec = spec_from_dict(description)
        plan = next(p for p in plans(spec) if p.name == wanted)
        path = folder / f"{name}.py"
        path.write_text(emit(spec, plan, schedule(spec, plan)).text)
        made[name] = Case(name=name, spec=spec, path=path, operator=Operator(path))
    return made


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Every operator of CASES."""
    return made_in(tmp_path_factory.mktemp("generated"), CASES)


@pytest.fixture(scope="session")
def stateful_cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Every operator of STATEFUL."""
    return made_in(tmp_path_factory.mktemp("stateful"), STATEFUL)


@pytest.fixture(scope="session")
def rank_cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Every operator of RANKS."""
    return made_in(tmp_path_factory.mktemp("ranks"), RANKS)


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    """Each operator of CASES in turn, or those that `parametrize(..., indirect=True)` names; also
    those of STATEFUL and RANKS, with a word before their names.
    """
    name = request.param
    for word, others in (("stateful_", "stateful_cases"), ("ranks_", "rank_cases")):
        if name.startswith(word):
            return request.getfixturevalue(others)[name.removeprefix(word)]
    return cases[name]


@pytest.fixture(params=list(STATEFUL))
def stateful(request: pytest.FixtureRequest, stateful_cases: dict[str, Case]) -> Case:
    """Each operator of STATEFUL in turn."""
    return stateful_cases[request.param]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small wait for threads far longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def same_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
