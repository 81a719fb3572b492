"""Operators whose sequences are split over ranks, against one process."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sh2gen.base.errors import Sh2genError
from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.runtime.operator import Operator, OperatorRunner
from sh2gen.runtime.ranks import simulated
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.language import ContextSpec, DecaySpec, Exchange, Sequences, Sharding
from sh2gen.spec.operator import OpSpec
from sh2gen.verify.verify import verify
from tests.strategies import specs

GATED = {
    "gates": {"pre": True, "post": True},
    "featurizer": {"length": 3},
    "skip": "channel",
    "dtype": {"io": "float32"},
}
DECAY = {"preset": "weak", "cache_length": 64}
POLES = {"kind": "modal", "modes": 4, "groups": 4}
OPERATORS: dict[str, dict[str, Any]] = {
    "se": {"filter": {"kind": "explicit", "length": 7, "groups": 2}, **GATED},
    "mr": {"filter": {"kind": "decay", "length": 20, "groups": 2, "decay": DECAY}, **GATED},
    "li": {"filter": POLES | {"parametrisation": "p_gamma"}, **GATED},
    "pairs": {"filter": POLES | {"parametrisation": "complex"}, "dtype": {"io": "float32"}},
    "one": {"filter": {"kind": "explicit", "length": 1, "groups": 4}, **GATED},
    "long": {"filter": {"kind": "freeform", "length": 50, "groups": 4}, **GATED},
}


def spec_of(op: str, sharding: str = "zigzag", exchange: str = "auto") -> OpSpec:
    context = {"ranks": 4, "sharding": sharding, "exchange": exchange}
    name = f"small_{op}" if exchange == "auto" else f"small_{op}_{exchange}"
    return spec_from_dict({"op": name, "channels": 4, **OPERATORS[op], "context": context})


def written(spec: OpSpec, folder: Path) -> Operator:
    plan = plans(spec)[0]
    path = folder / f"{spec.op}.py"
    path.write_text(emit(spec, plan, schedule(spec, plan)).text)
    return Operator(path)


@pytest.mark.parametrize(
    "exchange", [Exchange.AUTO, Exchange.ALL_TO_ALL_PIPELINED, Exchange.P2P_FFT]
)
@given(
    specs(9, kinds=("explicit", "decay", "modal"), io=("float32",)),
    st.sampled_from(Sharding),
    st.integers(1, 5),
    st.integers(1, 2),
    st.integers(1, 60),
)
def test_any_operator_over_any_number_of_ranks(
    tmp_path_factory: pytest.TempPathFactory,
    exchange: Exchange,
    spec: OpSpec,
    sharding: Sharding,
    ranks: int,
    batch: int,
    length: int,
) -> None:
    if (
        exchange is not Exchange.AUTO
    ):  # an FFT's error is that of a row, which few steps are none of
        length += 12
    if exchange is Exchange.ALL_TO_ALL_PIPELINED and spec.filter.groups > 1:
        # As many groups for each rank, in 1 to 3 segments.
        groups = ranks * (1 + length % 3)
        spec = replace(
            spec,
            channels=groups * spec.group_width,
            filter=replace(spec.filter, groups=groups, decay=repeated(spec.filter.decay, groups)),
        )
    elif exchange is Exchange.ALL_TO_ALL_PIPELINED:
        spec = replace(spec, channels=spec.channels * ranks)
    elif exchange is Exchange.P2P_FFT:
        ranks = 1 << ranks // 2
        length = (1 + length // 8) * ranks * 2
    context = ContextSpec(ranks=ranks, sharding=sharding, exchange=exchange)
    spec = replace(spec, state=None, context=context, groups_in_full=None)
    operator = written(spec, tmp_path_factory.mktemp("drawn"))
    report = verify(
        spec,
        OperatorRunner(operator, "eager", ranks),
        dtype=torch.float32,
        shapes=[(batch, length)],
        properties=["ranks"],
        property_shapes=[(batch, length)],
    )
    assert report.checks
    report.require()


@given(
    specs(9, kinds=("explicit", "decay", "freeform"), io=("float32",)),
    st.sampled_from(Sharding),
    st.integers(1, 5),
    st.integers(1, 90),
)
def test_documents_over_any_number_of_ranks(
    tmp_path_factory: pytest.TempPathFactory,
    spec: OpSpec,
    sharding: Sharding,
    ranks: int,
    length: int,
) -> None:
    """Also chunks of fewer steps than filters reach back by, and documents over several ranks."""
    context = ContextSpec(ranks=ranks, sharding=sharding)
    spec = replace(spec, state=None, context=context, sequences=Sequences.PACKED)
    operator = written(spec, tmp_path_factory.mktemp("drawn"))
    report = verify(
        spec,
        OperatorRunner(operator, "eager", ranks),
        dtype=torch.float32,
        shapes=[(1, length)],
        properties=["ranks"],
        property_shapes=[(1, length)],
    )
    assert report.checks
    report.require()


def test_calls_of_documents_over_ranks(tmp_path: Path) -> None:
    """By the module: without borders every row is a document, and borders are of the whole row."""
    spec = replace(spec_of("mr"), state=None, sequences=Sequences.PACKED)
    operator = written(spec, tmp_path)
    names, alone = operator.namespace, operator.module()
    torch.manual_seed(3)
    whole = [torch.randn(1, 4, 50) for _ in spec.inputs]
    ends = torch.tensor([0, 13, 13, 14, 50])
    for borders in (ends, None):
        wanted = alone(*whole, cu_seqlens=borders)

        def one(rank: int, group: str, borders: Tensor | None = borders) -> Tensor:
            layer = operator.module()
            layer.load_state_dict(alone.state_dict())
            layer.group = group
            own = [names.shard(x, rank, 3) for x in whole]
            y: Tensor = layer(*own, cu_seqlens=borders, length=50)
            return y

        torch.testing.assert_close(names.unshard(simulated(names, 3, one)), wanted)
    with pytest.raises(ValueError, match="expected numbers from 0 to the 50 steps of the row"):
        simulated(names, 3, lambda rank, group: names.small_mr_over_ranks(
            [names.shard(x, rank, 3) for x in whole], list(alone.parameters()), group,
            torch.tensor([0, 20]), length=50,
        ))  # fmt: skip


@pytest.mark.parametrize(
    ("op", "exchange", "reason"),
    [
        ("li", "auto", "packed rows of modes over ranks have no lowering yet"),
        ("se", "all_to_all", "not sent by all_to_all yet; write `exchange: halo`"),
    ],
)
def test_documents_that_are_not_sent_yet(op: str, exchange: str, reason: str) -> None:
    context = {"ranks": 2, "exchange": exchange}
    found = {"op": "small", "channels": 4, "sequences": "packed", "context": context}
    with pytest.raises(Sh2genError, match=reason):
        plans(spec_from_dict(found | OPERATORS[op]))


def repeated(decay: DecaySpec | None, groups: int) -> DecaySpec | None:
    """A ladder that so many groups can have."""
    return None if decay is None else replace(decay, repeats=math.gcd(decay.repeats, groups))


def floats(state: Any) -> list[Tensor]:
    return [x for x in state[:-1] if x.is_floating_point()]


def in_order(names: Any, state: Any) -> list[Tensor]:
    """What a state keeps, wherever it lies in its rings."""
    rows = torch.arange(len(state.count))
    kept = [name for name, (lag, _) in names.RINGS.items() if lag]
    found = [names.past_of(getattr(state, n), rows, state.count, names.RINGS[n][0]) for n in kept]
    return found + ([state.modes] if hasattr(state, "modes") else [])


@pytest.mark.parametrize("sharding", list(Sharding))
@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize(("size", "length"), [(1, 9), (2, 90), (3, 34), (4, 3)])
def test_states_before_and_after_a_sequence_over_ranks(
    op: str, sharding: str, size: int, length: int, tmp_path: Path
) -> None:
    """A state that is given, the one after the whole, and gradients of both; in float64."""
    operator = written(spec_of(op, sharding), tmp_path)
    names, layer = operator.namespace, operator.module().double()
    torch.manual_seed(length)
    inputs = [torch.randn(2, 4, length, dtype=torch.float64) for _ in operator.spec.inputs]
    if operator.layout == "BLD":
        inputs = [x.transpose(1, 2).contiguous() for x in inputs]
    dy = torch.randn_like(inputs[0])
    begin = names.initial_state(2, 4, dtype=torch.float64)
    begin = begin._replace(count=begin.count + 5, done=begin.done + 5)
    begin = names.STATE(
        *(torch.randn_like(x) if isinstance(x, Tensor) and x.is_floating_point() else x
          for x in begin)
    )  # fmt: skip
    d_after: list[Tensor] = []

    def leaves() -> tuple[list[Tensor], Any]:
        weights = [getattr(layer, name).detach().double() for name in names.PARAMETERS]
        state = names.STATE(
            *(x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
              for x in begin)
        )  # fmt: skip
        return [x.clone().requires_grad_() for x in weights], state

    def loss(y: Tensor, above: Tensor, after: Any) -> Tensor:
        pairs = zip(in_order(names, after), d_after, strict=True)
        return (y * above).sum() + sum((x * d).sum() for x, d in pairs)

    own, state = leaves()
    given = [x.clone().requires_grad_() for x in inputs]
    y, after = getattr(names, operator.spec.op)(*given, *own, state=state)
    d_after += [torch.randn_like(x) for x in in_order(names, after)]
    loss(y, dy, after).backward()

    def run(rank: int, group: str) -> tuple[Any, ...]:
        weights, before = leaves()
        parts = [names.shard(x, rank, size).requires_grad_() for x in inputs]
        function = getattr(names, f"{operator.spec.op}_over_ranks")
        y, ended = function(parts, weights, group, before, length, "every")
        # Each rank has a share of a loss of the last state, which all have.
        above = names.shard(dy, rank, size)
        ((y * above).sum() + (loss(y, 0 * above, ended) / size)).backward()
        grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in parts]
        return y.detach(), grads, [x.grad for x in (*weights, *floats(before))], ended

    found = simulated(names, size, run)
    torch.testing.assert_close(names.unshard([y for y, *_ in found]), y)
    for i, x in enumerate(given):
        torch.testing.assert_close(names.unshard([grads[i] for _, grads, *_ in found]), x.grad)
    for _, _, grads, ended in found:
        assert torch.equal(ended.count, after.count) and torch.equal(ended.done, after.done)
        for one, other in zip(in_order(names, ended), in_order(names, after), strict=True):
            torch.testing.assert_close(one, other)
        for grad, leaf in zip(grads, (*own, *floats(state)), strict=True):
            wanted = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            torch.testing.assert_close(torch.zeros_like(leaf) if grad is None else grad, wanted)


def test_who_has_which_steps(tmp_path: Path) -> None:
    for sharding, wanted in (
        ("contiguous", [[0, 1, 2], [3, 4], [5, 6]]),
        ("zigzag", [[0, 1, 6], [2, 5], [3, 4]]),
    ):
        names = written(spec_of("se", sharding), tmp_path).namespace
        whole = torch.arange(7.0).expand(1, 4, 7)
        parts = [names.shard(whole, rank, 3) for rank in range(3)]
        assert [part[0, 0].int().tolist() for part in parts] == wanted
        assert torch.equal(names.unshard(parts), whole)
        (tmp_path / "small_se.py").unlink()


# ---- processes


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("over-ranks")
    kinds = (
        ("se", "zigzag"),
        ("long", "zigzag", "all_to_all_pipelined"),
        ("li", "contiguous"),
        ("mr", "contiguous"),
        ("pairs", "zigzag"),
        ("mr", "contiguous", "p2p_fft"),
    )
    return [Path(written(spec_of(*kind), folder).namespace.__file__) for kind in kinds]


def processes(
    size: int, ways: str, files: list[Path], place: Path, debug: str = "OFF"
) -> Iterator[tuple[int, str]]:
    """The exit code and what was said of every rank."""
    script, root = Path(__file__).with_name("process.py"), Path(__file__).parent.parent.parent
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, place / "meet", str(rank), str(size), ways, *files],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment | {"TORCH_DISTRIBUTED_DEBUG": debug},
        )
        for rank in range(size)
    ]
    for rank in ranks:
        said = rank.communicate(timeout=240)[0]
        yield rank.returncode, said


@pytest.mark.parametrize(
    ("size", "ways", "debug"),
    [(2, "checkpoint", "DETAIL"), (2, "ddp,fsdp,compile", "OFF"), (4, "", "OFF")],
)
def test_processes_find_what_one_does(
    size: int, ways: str, debug: str, files: list[Path], tmp_path: Path
) -> None:
    """Outputs, states and all gradients; with DETAIL, PyTorch compares what ranks call. (DDP of
    PyTorch 2.13 does not come through that on gloo.)
    """
    some = files[:2] if "compile" in ways else files
    for code, said in processes(size, ways, some, tmp_path, debug):
        assert code == 0, said


def test_a_rank_that_dies_is_named(files: list[Path], tmp_path: Path) -> None:
    (code, said), (gone, _) = processes(2, "die", files[:1], tmp_path)
    assert gone == 9 and code not in (0, 9)
    assert "small_se: rank 0 waited in vain for rank 1" in said


def test_the_example_has_the_losses_of_one_process(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    script = str(root / "examples" / "over_ranks.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    alone, split = (
        subprocess.run(
            [sys.executable, *before, script],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            check=False,
        )
        for before in ([], launcher)
    )
    assert alone.returncode == 0 and split.returncode == 0, alone.stderr + split.stderr
    assert alone.stdout == split.stdout and "step 40: loss 0." in alone.stdout


# ---- refusals


def test_what_is_refused_of_ranks(tmp_path: Path) -> None:
    operator = written(spec_of("se"), tmp_path)
    names, x = operator.namespace, torch.zeros(1, 4, 10)
    weights = [getattr(operator.module(), name) for name in names.PARAMETERS]
    call = names.small_se_over_ranks

    def over_two(**options: Any) -> list[Any]:
        return simulated(names, 2, lambda rank, group: call([x] * 3, weights, group, **options))

    with pytest.raises(
        ValueError, match=r"q has 10 steps on rank \d, expected 8 of 15 steps|7 of"
    ):
        over_two(length=15)
    with pytest.raises(TypeError, match=r"steps of the whole sequence, not 2\.5"):
        over_two(length=2.5)
    with pytest.raises(ValueError, match='final must be "last", "every" or None, not True'):
        over_two(final=True)
    layer = operator.module()

    def second(rank: int, group: str) -> Any:
        leaf = x.clone().requires_grad_()
        y, _ = call([leaf, x, x], weights, group)
        return torch.autograd.grad(y.sum(), leaf, create_graph=True)

    with pytest.raises(NotImplementedError, match="small_se: no second derivatives over ranks"):
        simulated(names, 1, second)
    with pytest.raises(ValueError, match="q has 10 steps on rank 0, expected 12 of 12 steps"):
        layer(x, x, x, length=12)
    with pytest.raises(ValueError, match='final must be "last", "every" or None, not 1'):
        layer(x, x, x, final=1)
    with pytest.raises(TypeError, match="expected q, k, v or packed features, got 2 inputs"):
        layer(x, x)
    assert torch.equal(layer(torch.cat([x, x, x], 1)), layer(x, x, x))
    with pytest.raises(TypeError, match="group is a int, expected a process group"):
        operator.module(group=3)
    whole = Operator(Path(written(replace_context(spec_of("se")), tmp_path).namespace.__file__))
    with pytest.raises(TypeError, match="small_se is not split over ranks: write `context"):
        whole.module(group=3)


def replace_context(spec: OpSpec) -> OpSpec:
    return replace(spec, context=None, state=None)


def test_what_ranks_exchange_is_a_state_of_both() -> None:
    spec = spec_of("se")
    assert spec.state is not None and spec.state.initial and spec.state.final
    with pytest.raises(Sh2genError, match="ranks take and give the state of their chunks"):
        spec_from_dict(spec.to_dict() | {"state": {"initial": True}})
    context = {"ranks": 2, "exchange": "all_to_all"}
    (plan, *_) = plans(spec_from_dict(spec.to_dict() | {"context": context}))
    assert plan.algorithm == "fft"  # for all steps of some channels
