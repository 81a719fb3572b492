"""Exchanges that apply a filter to whole sequences: what comes when, and what is refused."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from sh2gen.base.errors import Sh2genError
from sh2gen.base.resources import folder
from sh2gen.cost.ranks import exchanges
from sh2gen.emit.ranks import by_kernels, exchange_of
from sh2gen.lower import plans
from sh2gen.runtime.operator import Operator, OperatorRunner
from sh2gen.runtime.ranks import SimulatedRank, simulated
from sh2gen.spec.decode import load_spec, spec_from_dict
from sh2gen.spec.language import ContextSpec, Exchange, Sharding, Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import target
from sh2gen.verify.verify import verify
from tests.ranks.test_ranks import OPERATORS, written


def long_spec(exchange: str, groups: int = 12, **context: Any) -> OpSpec:
    spec: dict[str, Any] = {"op": f"long_{exchange}", "channels": 12, **OPERATORS["long"]}
    spec["filter"] = spec["filter"] | {"groups": groups}
    return spec_from_dict(spec | {"context": {"ranks": 2, "exchange": exchange, **context}})


def called(operator: Operator, size: int, length: int, **options: Any) -> list[torch.Tensor]:
    """y of every rank, with gradients of everything."""
    names = operator.namespace
    weights = [p.detach().clone().requires_grad_() for p in operator.module().parameters()]
    whole = [torch.randn(1, 12, length) for _ in operator.spec.inputs]
    if operator.layout == "BLD":
        whole = [x.transpose(1, 2) for x in whole]
    function = getattr(names, f"{operator.spec.op}_over_ranks")

    def run(rank: int, group: str) -> torch.Tensor:
        own = [names.shard(x, rank, size).requires_grad_() for x in whole]
        y, _ = function(own, weights, group, length=length, **options)
        y.sum().backward()
        found: torch.Tensor = y.detach()
        return found

    return simulated(names, size, run)


def test_segments_travel_while_others_are_convolved(tmp_path: Path) -> None:
    """The order of what three segments do, forward; and backward the other way round."""
    operator = written(long_spec("all_to_all_pipelined", segments=3), tmp_path)
    assert operator.namespace.SEGMENTS == 3
    events: dict[int, list[str]] = defaultdict(list)

    def noting(what: str, function: Any) -> Any:
        def noted(*arguments: Any, **options: Any) -> Any:
            events[threading.get_ident()].append(what)
            return function(*arguments, **options)

        return noted

    names = operator.namespace
    with (
        mock.patch.object(SimulatedRank, "begin", noting("leave", SimulatedRank.begin)),
        mock.patch.object(SimulatedRank, "finish", noting("arrive", SimulatedRank.finish)),
        mock.patch.object(names, "eager_filter", noting("filter", names.eager_filter)),
        mock.patch.object(
            names, "eager_filter_backward", noting("filter", names.eager_filter_backward)
        ),
    ):
        called(operator, 2, 16)
    tails = ["leave", "arrive"]
    forward = [
        *("leave", "leave", "arrive", "filter", "leave"),
        *("leave", "arrive", "filter", "leave"),
        *("arrive", "filter", "leave"),
        *("arrive", "arrive", "arrive"),
    ]
    other = {"leave": "arrive", "arrive": "leave", "filter": "filter"}
    backward = [other[event] for event in reversed(forward)]
    assert list(events.values()) == 2 * [[*tails, *forward, *backward, *tails]]
    for order in (forward, backward):
        for i, event in enumerate(order):
            travelling = order[:i].count("leave") - order[:i].count("arrive")
            assert event != "filter" or travelling > 0  # something


def test_values_that_are_in_flight_are_none_for_who_looks(tmp_path: Path) -> None:
    """Anomaly detection reads every gradient: nothing may travel then. (Of one rank: PyTorch's
    detection does not come through two threads.)
    """
    operator = written(long_spec("all_to_all_pipelined", segments=3), tmp_path)
    flying = mock.MagicMock()
    flying.pop.return_value = (None, None)
    with mock.patch.object(operator.namespace, "IN_FLIGHT", flying):
        with torch.autograd.detect_anomaly(check_nan=True):
            called(operator, 1, 16)
        assert flying.pop.called and not flying.__setitem__.called
        called(operator, 1, 16)
        assert flying.__setitem__.called


def test_segments_are_whole_groups_of_every_rank(tmp_path: Path) -> None:
    names = written(long_spec("all_to_all_pipelined", segments=5), tmp_path).namespace
    assert [names.segments_of(24, 24, size) for size in (1, 2, 3, 4, 8, 24)] == [4, 4, 4, 3, 3, 1]
    assert names.segments_of(24, 1, 3) == 4  # one filter for all channels
    with pytest.raises(ValueError, match=r"24 groups are not as many for each of 5 ranks"):
        names.segments_of(48, 24, 5)
    assert written(long_spec("all_to_all"), tmp_path).namespace.SEGMENTS == 1
    # As predictions have it.
    spec = long_spec("all_to_all_pipelined", segments=5)
    for ranks, segments in ((2, 3), (3, 4), (4, 3), (6, 2), (12, 1)):
        found = exchanges(
            spec, Workload(batch=1, length=8192), target("H100"), ranks, Sharding.CONTIGUOUS
        )
        (one,) = (way for way in found if way.strategy is Exchange.ALL_TO_ALL_PIPELINED)
        assert one.waits == 2 * segments == 2 * names.segments_of(12, 12, ranks)


def test_what_is_refused(tmp_path: Path) -> None:
    """Each says what serves it."""
    operator = written(long_spec("all_to_all"), tmp_path)
    state = operator.namespace.initial_state(1, 12)
    for options in ({"final": "last"}, {"state": state}):
        with pytest.raises(ValueError, match="takes no state and gives none; `exchange: halo` d"):
            called(operator, 2, 16, **options)
    with pytest.raises(ValueError, match=r"12 groups are not .* 5 ranks, .*`exchange: halo` serv"):
        called(operator, 5, 20)
    operator = written(long_spec("p2p_fft"), tmp_path)
    for size, length in ((3, 24), (2, 18), (2, 0)):
        with pytest.raises(ValueError, match="a power of 2 of chunks of one length, not"):
            called(operator, size, length)
    with pytest.raises(Sh2genError, match="all_to_all is for `fft` alone: for kernels write"):
        plans(long_spec("all_to_all"), "direct")
    with pytest.raises(Sh2genError, match="segments"):
        long_spec("all_to_all_pipelined", segments=0)
    with pytest.raises(Sh2genError, match="segments with exchange p2p_fft"):
        long_spec("p2p_fft", segments=3)
    with pytest.raises(Sh2genError, match="over 5 ranks, which do not divide 12 groups"):
        long_spec("all_to_all", ranks=5)
    with pytest.raises(Sh2genError, match="over 6 ranks, which are no power of 2"):
        long_spec("p2p_fft", ranks=6)
    with pytest.raises(Sh2genError, match="p2p_fft of 8192 steps in 16384 chunks of one length"):
        long_spec("p2p_fft", ranks=8192)


@pytest.mark.parametrize("op", ["hyena_se", "hyena_mr", "hyena_li", "long_conv", "hyena"])
def test_auto_is_the_fastest_by_prediction(op: str) -> None:
    """Of shipped operators over eight ranks, at the length that their files speak of."""
    spec = load_spec(folder("ops") / f"{op}.yaml")
    workload = Workload(batch=1, length=max(spec.filter.length or 0, 131072))
    context = ContextSpec(ranks=8)
    spec = replace(spec, state=None, context=context, workloads=(workload,))
    plan = plans(spec)[0]
    found = exchanges(
        spec, workload, target("H100"), 8, context.sharding, by_kernels(spec, plan),
        bool(plan.kernels),
    )  # fmt: skip
    best = found[0]
    assert exchange_of(spec, plan) is best.strategy, [(one.strategy, one.seconds) for one in found]
    assert (best.strategy is Exchange.ALL_TO_ALL_PIPELINED) == (not plan.kernels)


@pytest.mark.parametrize("exchange", ["all_to_all_pipelined", "p2p_fft"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_travels_is_rounded_within_tolerance(
    exchange: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    spec = long_spec(exchange)
    report = verify(
        spec,
        OperatorRunner(written(spec, tmp_path), "eager", 2),
        dtype=dtype,
        shapes=[(2, 400)],
        properties=["ranks"],
        property_shapes=[(2, 400)],
    )
    assert report.checks
    report.require()


def test_auto_serves_every_call(tmp_path: Path) -> None:
    """A file of the other exchange has `halo` too: for states, and for any number of ranks."""
    spec = replace(long_spec("auto"), workloads=(Workload(batch=1, length=64),))
    operator = written(spec, tmp_path)
    names, layer = operator.namespace, operator.module()
    assert names.EXCHANGE == "all_to_all_pipelined"
    x = torch.randn(2, 12, 61) if operator.layout == "BDL" else torch.randn(2, 61, 12)
    weights = [p.detach() for p in layer.parameters()]
    y = layer(x, x, x).detach()
    for size, final in ((2, None), (2, "every"), (5, None)):

        def run(rank: int, group: str, size: int = size, final: str | None = final) -> Any:
            part = names.shard(x, rank, size)
            return names.long_auto_over_ranks([part] * 3, weights, group, None, 61, final)

        with mock.patch.object(
            names, "channels_over_ranks", wraps=names.channels_over_ranks
        ) as by:
            found = simulated(names, size, run)
        assert by.called == (size == 2 and final is None)
        torch.testing.assert_close(names.unshard([part for part, _ in found]), y)
        assert all((state is None) == (final is None) for _, state in found)


def test_frozen_parameters_and_inputs(tmp_path: Path) -> None:
    """Ranks of which nothing, or some, is asked for: gradients of the others are as they were."""
    operator = written(long_spec("all_to_all_pipelined"), tmp_path)
    names = operator.namespace
    layer = operator.module()
    whole = [torch.randn(1, 12, 40) for _ in operator.spec.inputs]
    function = getattr(names, f"{operator.spec.op}_over_ranks")

    def gradients(asked: set[str]) -> list[dict[str, torch.Tensor]]:
        def run(rank: int, group: str) -> dict[str, torch.Tensor]:
            weights = {
                name: p.detach().clone().requires_grad_(name in asked)
                for name, p in layer.named_parameters()
            }
            own = {
                name: names.shard(x, rank, 2).requires_grad_(name in asked)
                for name, x in zip(names.INPUTS, whole, strict=True)
            }
            y, _ = function([*own.values()], [*weights.values()], group)
            y.square().sum().backward()
            found = (own | weights).items()
            return {name: x.grad for name, x in found if x.grad is not None}

        return simulated(names, 2, run)

    everything = {*names.INPUTS, *names.PARAMETERS}
    right = gradients(everything)
    for asked in ({"filter"}, {"skip"}, {"q"}, {"k"}, {"featurizer", "v"}, everything - {"q"}):
        for found, wanted in zip(gradients(asked), right, strict=True):
            assert found.keys() == asked
            for name, x in found.items():
                torch.testing.assert_close(x, wanted[name])
    assert not names.IN_FLIGHT
