"""Calls over ranks that only eager PyTorch sees: interpreted kernels stand for compiled ones, and
threads for ranks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from sh2gen.runtime.ranks import simulated
from sh2gen.verify.case import poisoned

if TYPE_CHECKING:
    from tests.generated.conftest import Case

KINDS = [f"ranks_{name}" for name in ("bdl", "bld", "decay", "blocks")]


def of_ranks(
    case: Case,
    modules: list[ModuleType],
    inputs: list[Tensor],
    parameters: list[Tensor],
    dy: Tensor,
    trained: bool = True,
) -> list[list[Tensor]]:
    """y, and gradients of the inputs, and of parameters if they are trained, of every rank by its
    own module.
    """
    size, lengths = len(modules), dy.shape[case.time]

    def run(rank: int, group: str) -> list[Tensor]:
        names = modules[rank]
        own = [names.shard(x, rank, size).requires_grad_() for x in inputs]
        leaves = [p.detach().clone().requires_grad_(trained) for p in parameters]
        function = getattr(names, f"{case.spec.op}_over_ranks")
        y, _ = function(own, leaves, group, None, lengths)
        above = names.shard(dy, rank, size)
        asked = [*own, *leaves] if trained else own
        return [y.detach(), *torch.autograd.grad(y, asked, above)]

    with poisoned():
        return simulated(modules[0], size, run)


@pytest.mark.parametrize(
    ("case", "size"),
    [*((name, 2) for name in KINDS), ("ranks_bdl", 3)],
    indirect=["case"],
)
def test_ranks_equal_one_process(
    case: Case, launched: SimpleNamespace, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ranks that all launch kernels, and of some that compute in plain PyTorch."""
    length = 4 * 80 + 3 if "blocks" in case.name else 75
    check_against_one(case, launched, size, length, monkeypatch)


def check_against_one(
    case: Case,
    launched: SimpleNamespace,
    size: int,
    length: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = launched.module
    plain = case.operator.namespace
    monkeypatch.setattr(plain, "SIMULATED", module.SIMULATED)
    parameters = list(case.parameters().values())
    whole = getattr(plain, case.spec.op)
    for modules in ([module] * size, [module] * size, [module, *[plain] * (size - 1)]):
        inputs, dy = case.inputs(2, length), case.activation(2, length)
        before = len(launched.tapes)
        ranks = of_ranks(case, modules, inputs, parameters, dy)
        assert modules[-1] is plain or "backward" in " ".join(launched.tapes[before:])
        leaves = [x.detach().clone().requires_grad_() for x in (*inputs, *parameters)]
        y = whole(*leaves)[0]
        wanted = [y.detach(), *torch.autograd.grad(y, leaves, dy)]
        for i, x in enumerate(wanted[: 1 + len(inputs)]):
            found = module.unshard([one[i] for one in ranks])
            torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)
        for i, x in enumerate(wanted[1 + len(inputs) :], 1 + len(inputs)):
            for one in ranks:
                torch.testing.assert_close(one[i], x, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("case", ["ranks_bdl", "ranks_modal"], indirect=True)
@pytest.mark.parametrize("how", ["narrow", "frozen"])
def test_ranks_of_both_kinds_send_the_same(
    case: Case, launched: SimpleNamespace, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for what another does not send, whatever of parameters is asked for."""
    module, plain = launched.module, case.operator.namespace
    monkeypatch.setattr(plain, "SIMULATED", module.SIMULATED)
    length = 75
    if "modal" in case.name:
        length = small_tiles(case, module, monkeypatch) * 4
    values = case.parameters(torch.bfloat16 if how == "narrow" else torch.float32).values()
    inputs, dy = case.inputs(1, length), case.activation(1, length)
    given = (inputs, list(values), dy, how == "narrow")
    mixed, meant = (of_ranks(case, [one, plain], *given) for one in (module, plain))
    assert launched.tapes
    for one, other in zip(mixed, meant, strict=True):
        for a, b in zip(one, other, strict=True):
            wide = a.dtype == torch.float32
            tolerance = 1e-4 if wide else 0.05
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


def small_tiles(case: Case, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> int:
    """Steps of a tile of modes, which is small from now on."""
    small = {"SEGMENTS": 16, "BLOCK_T": 16}
    configs = {
        role: config | (small if "SEGMENTS" in config else {})
        for role, config in module.configs_of(torch.zeros(1), *sizes_of(case)).items()
    }
    monkeypatch.setattr(module, "configs_of", lambda *_: configs)
    return 256


@pytest.mark.parametrize(
    ("case", "size"), [("ranks_modal", 2), ("ranks_poles", 3)], indirect=["case"]
)
def test_ranks_of_modes_equal_one_process(
    case: Case, launched: SimpleNamespace, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of whole tiles send what sums of tiles add up to."""
    module = launched.module
    length = 2 * small_tiles(case, module, monkeypatch) * size * (1 + module.ZIGZAG)
    check_against_one(case, launched, size, length, monkeypatch)
    assert any(name.endswith("_backward_sums") for name in launched.tapes)


@pytest.mark.parametrize("case", KINDS, indirect=True)
def test_what_is_computed_while_messages_travel_is_the_same(
    case: Case, launched: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit, and in the order that is meant: messages, most steps, the first steps."""
    module = launched.module
    length = 2 * 160 * (1 + module.ZIGZAG)
    inputs, dy = case.inputs(1, length), case.activation(1, length)
    parameters = list(case.parameters().values())
    ranks: dict[int, int] = {}  # of threads
    events: list[tuple[int, str]] = []
    place_in, done, arrive = module.place_in, module.done, module.Travelling.arrive

    def placed(group: str) -> tuple[int, int]:
        rank, size = place_in(group)
        ranks[threading.get_ident()] = rank
        return rank, size

    def noted(launcher: Callable[..., Any], *arguments: Any) -> Any:
        events.append((threading.get_ident(), launcher.__name__))
        return done(launcher, *arguments)

    def arrived(travelling: Any) -> None:
        events.append((threading.get_ident(), "arrive"))
        arrive(travelling)

    monkeypatch.setattr(module, "place_in", placed)
    monkeypatch.setattr(module, "done", noted)
    monkeypatch.setattr(module.Travelling, "arrive", arrived)
    found = []
    for overlapped in (True, False):
        monkeypatch.setattr(module, "OVERLAPPED", overlapped)
        events.clear()
        found.append(of_ranks(case, [module] * 2, inputs, parameters, dy))
        last = [what for thread, what in events if ranks[thread] == 1]
        begun, arrived_at = last.index("forward_into"), last.index("arrive")
        assert (begun < arrived_at) == overlapped and "forward_into" in last[arrived_at:]
        assert last.index("backward_into") < last.index("arrive", arrived_at + 1)
    for one, other in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def sizes_of(case: Case) -> tuple[int, int]:
    return case.spec.channels, case.spec.filter.groups
