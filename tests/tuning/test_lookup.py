"""Which decision of tuned tables serves."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sh2gen.spec.language import Workload
from sh2gen.tuning.lookup import Found, Wanted, find, misses
from sh2gen.tuning.tables import (
    Decision,
    read_tables,
    write_decisions,
)
from tests.gpus import A100, H100, H200
from tests.strategies import register_profiles
from tests.tuning.wanted import LONG, SHORT, decide, found, make, want

register_profiles()


def test_an_exact_decision() -> None:
    result = found([decide(triton="3.5"), decide(), decide(workloads=(LONG,))], want())
    assert result == Found(decide(), ())
    assert result.exact
    assert result.label == "tuned on NVIDIA H200 (2026-11-25)"
    assert result.us(H200) == (10.0,)
    both = found([decide(workloads=(SHORT, LONG))], want(workloads=(LONG, SHORT)))
    assert both.exact  # a set


def test_an_operator_of_another_name_is_the_same() -> None:
    other = dataclasses.replace(make(), op="mine", workloads=(LONG,))
    assert found([decide()], want(other)).exact


@pytest.mark.parametrize(
    ("decision", "wanted", "label"),
    [
        (
            decide(triton="3.5"),
            want(workloads=(LONG,)),
            " for B=1 L=8192, here B=1 L=131072; with Triton 3.5, here 3.6",
        ),
        (decide(triton="3.5"), want(), " with Triton 3.5, here 3.6"),
        (
            decide(make(channels=256, groups=16)),
            want(),
            " for 256 channels, here 4096; for 16 groups, here 256",
        ),
        (
            decide(),
            want(
                workloads=tuple(
                    Workload(batch=b, length=n)
                    for b, n in ((2, 256), (1, 64), (1, 128), (2, 64), (2, 128))
                )
            ),
            " for B=1 L=8192, here B=1 L=64, 128, B=2 L=64, 128, 256",
        ),
    ],
)
def test_the_nearest_says_what_differs(decision: Decision, wanted: Wanted, label: str) -> None:
    result = found([decision], wanted)
    assert not result.exact and result.decision == decision
    assert result.label == "nearest: tuned on NVIDIA H200 (2026-11-25)" + label


def test_of_many_workloads_a_miss_names_those_that_differ() -> None:
    four = tuple(Workload(batch=b, length=64) for b in (1, 2, 3, 4))
    five = (*four[:3], Workload(batch=5, length=64), Workload(batch=5, length=99))
    assert not found([decide(workloads=four)], want(workloads=five)).exact

    def line(there: tuple[Workload, ...], here: tuple[Workload, ...]) -> str:
        (text,) = misses([decide(workloads=there)], want(workloads=here), H200)
        verdict, _, rest = text.partition("): ")[2].partition("differs in ")
        assert verdict == "nearest: "
        return rest

    assert line(four, five) == "workloads: B=5 L=64, 99 only here, B=4 L=64 only there"
    assert line(four[:1], four) == "workloads: B=2 L=64, B=3 L=64, B=4 L=64 only here"
    assert line(four, four[:3]) == "workloads: B=4 L=64 only there"
    assert line(four[:2], four[2:]) == (
        "workloads: B=3 L=64, B=4 L=64 here, B=1 L=64, B=2 L=64 there"
    )


def test_a_digest_that_has_another_meaning_by_now_is_said() -> None:
    """As after a change of how digests are made: the fields are the same."""
    old = decide()
    old = dataclasses.replace(old, key=dataclasses.replace(old.key, spec="00" * 32))
    assert found([old], want()).differences == ("with another digest of the operator",)


def test_another_gpu_of_the_same_capability_is_no_measurement() -> None:
    wanted = want(gpu=H100.device_name)
    result = found([decide()], wanted, H100)
    assert result.label == "nearest: tuned on NVIDIA H200 (2026-11-25); not measured on H100"
    assert result.other_gpu and not found([decide(triton="3.5")], want()).other_gpu
    (us,) = result.us(H100)
    assert us == pytest.approx(10.0 * H200.dram_bandwidth / H100.dram_bandwidth)
    assert result.us(H200) == (10.0,)
    own = decide(gpu=H100.device_name, triton="3.5")
    assert found([decide(), own], wanted, H100).decision == own
    assert found([own], wanted, H100).us(H100) == (10.0,)


def test_gpus_of_another_capability_and_unknown_ones_do_not_serve() -> None:
    assert find([decide()], want(gpu=A100.device_name), A100) is None
    assert find([decide(gpu="NVIDIA Mystery")], want(), H200) is None
    unknown = found([decide(gpu="NVIDIA Mystery")], want(gpu="NVIDIA Mystery"))
    assert unknown.exact and unknown.us(H200) == (10.0,)


def test_a_gpu_that_is_no_target_has_its_own_name() -> None:
    unknown = dataclasses.replace(H200, device_name="GH200 480GB")
    result = found([decide()], want(gpu="GH200 480GB"), unknown)
    assert result.differences == ("not measured on GH200 480GB",)


@pytest.mark.parametrize(
    ("decision", "line"),
    [
        (decide(make(length=7)), "filter.length: 128 here, 7 there"),
        (decide(make(gates={"pre": True})), "gates.pre: false here, true there"),
        (
            decide(make(state={"final": True})),
            "state: none here, {initial: false, final: true, width: K-1, dtype: float32} there",
        ),
        (decide(make(groups=128)), "group width: 16 here, 32 there"),
        (decide(make(channels=8192)), "group width: 16 here, 32 there"),
        (
            decide(make(channels=8192, groups=512), plan="direct/BDL"),
            "plan: toeplitz/BDL/recompute here, direct/BDL there",
        ),
        (decide(plan="direct/BDL"), "plan: toeplitz/BDL/recompute here, direct/BDL there"),
        (decide(direction="backward"), "direction: forward here, backward there"),
        (decide(gpu="NVIDIA B200"), "gpu: NVIDIA H200 here, NVIDIA B200 there"),
    ],
)
def test_a_miss_names_what_differs(decision: Decision, line: str) -> None:
    assert find([decision], want(), H200) is None
    (text,) = misses([decision], want(), H200)
    assert text.startswith(f"hyena_mr on {decision.key.gpu} (2026-11-25): ")
    excluding, _, others = text.partition(": ")[2].partition("; differs in ")
    assert excluding == f"excluded by {line}"
    assert all(part.split(":")[0] in FREE for part in others.split("; ") if part)


# What may differ, here also with the width: it is the width that stands in the way.
FREE = ("channels", "filter.groups")


def test_a_miss_says_what_excludes_and_what_would_serve() -> None:
    """Groups of 15 channels and of 16: neither the channels nor the groups stand in the way."""
    here = want(make(channels=1920, groups=128))
    near = decide(make(channels=1905, groups=127))
    far = decide(make(channels=4096, groups=256), triton="3.5")
    assert found([far, near], here).decision == near
    assert [line.partition("): ")[2] for line in misses([far, near], here, H200)] == [
        "nearest: differs in channels: 1920 here, 1905 there; filter.groups: 128 here, 127 there",
        "excluded by group width: 15 here, 16 there; differs in channels: 1920 here, 4096 there; "
        "filter.groups: 128 here, 256 there; triton: 3.6 here, 3.5 there",
    ]
    # What excludes comes first, also where not all is said.
    (line,) = misses([decide(workloads=(LONG,), triton="3.5", gpu="X")], here, H200)
    assert line.partition("): ")[2] == (
        "excluded by group width: 15 here, 16 there; gpu: NVIDIA H200 here, X there; "
        "differs in workloads: B=1 L=8192 here, B=1 L=131072 there; 3 more"
    )


def test_misses_are_nearest_first_and_not_too_many() -> None:
    decisions = [
        decide(make(length=7), direction="backward"),
        decide(make(length=7)),
        decide(triton="3.5"),
        decide(),
    ]
    *lines, last = misses(decisions, want(), H200)
    assert [line.partition("): ")[2] for line in lines] == [
        "nothing differs",
        "nearest: differs in triton: 3.6 here, 3.5 there",
    ]
    assert last == "and 2 of other operators"
    assert [line.partition("): ")[2] for line in misses(decisions[:2], want(), H200)] == [
        "excluded by filter.length: 128 here, 7 there",
        "excluded by direction: forward here, backward there; filter.length: 128 here, 7 there",
    ]
    many = [decide(triton=str(i)) for i in range(50)]
    assert len(misses(many, want(), H200)) == 11
    assert misses(many, want(), H200)[-1] == "and 40 more"
    assert misses([], want(), H200) == () and find([], want(), H200) is None


def test_of_other_operators_there_are_lines_only_if_of_this_one_there_is_nothing() -> None:
    """Another plan, GPU or number of channels makes no other operator."""
    others = [decide(make(length=n)) for n in range(2, 30)]
    own = [
        decide(make(channels=8192)),
        decide(gpu="NVIDIA B200"),
        decide(plan="direct/BLD", triton="3.5", direction="backward"),
    ]
    *lines, last = misses(others + own, want(), H200)
    assert last == "and 28 of other operators"
    assert [line.partition("): ")[2] for line in lines] == [
        "excluded by group width: 16 here, 32 there; differs in channels: 4096 here, 8192 there",
        "excluded by gpu: NVIDIA H200 here, NVIDIA B200 there",
        "excluded by plan: toeplitz/BDL/recompute here, direct/BLD there; "
        "direction: forward here, backward there; differs in triton: 3.6 here, 3.5 there",
    ]
    assert misses(others + own, want(), H200, limit=1)[-1] == "and 30 more, 28 of other operators"
    lines = list(misses(others, want(), H200))
    assert len(lines) == 4 and lines[-1] == "and 25 of other operators"
    strange = decide(make(length=7, gates={"pre": True, "post": True}, skip="group"), gpu="B200")
    (line,) = misses([strange], want(), H200)
    assert line.endswith("; 2 more") and line.count(";") == 3


def test_a_config_that_is_not_legal_here_does_not_serve() -> None:
    def legal(config: Any) -> bool:
        return dict(config)["ROWS"] <= 32

    near, far = decide(rows=64), decide(triton="3.5")
    assert found([near, far], want(legal=legal)).decision == far
    assert find([near], want(legal=legal), H200) is None
    assert misses([near], want(legal=legal), H200)[0].endswith(
        "excluded by a config that is not legal here"
    )

    def never(config: Any) -> bool:
        raise AssertionError("a config of another plan means nothing here")

    assert find([decide(plan="direct/BDL")], want(legal=never), H200) is None


RANKED = [  # nearest first
    decide(),
    decide(workloads=(SHORT, LONG)),  # all that is wanted, and more
    decide(workloads=(Workload(batch=2, length=8192),)),
    decide(workloads=(Workload(batch=2, length=16384),)),
    decide(workloads=(LONG,)),
    decide(make(channels=2048, groups=128)),
    decide(make(channels=256, groups=16)),
    decide(triton="3.5"),
    decide(triton="3.5", workloads=(LONG,)),
    decide(gpu=H100.device_name),
    decide(gpu=H100.device_name, triton="3.5"),
]


@given(st.randoms(use_true_random=False))
def test_the_nearest_whatever_the_order(chance: random.Random) -> None:
    left = list(RANKED)
    chance.shuffle(left)
    for expected in RANKED:
        assert found(left, want()).decision == expected
        left.remove(expected)


@pytest.mark.parametrize("triton", ["3.6", "3.5"])  # exact, and near
def test_of_equals_that_of_the_first_folder_serves_and_of_these_the_newest(
    tmp_path: Path, triton: str
) -> None:
    """Whatever the clocks said: those of others do not go before one's own for being newer."""
    half, twice = (Workload(batch=1, length=n) for n in (4096, 16384))  # as far from 8192
    places = [tmp_path / name for name in ("given", "own", "package")]
    if triton == "3.6":
        kept = [decide(rows=rows, date=f"20{rows}-11-25T10:00:00Z") for rows in (16, 32, 64)]
    else:
        kept = [
            decide(workloads=(w,), rows=rows, date=f"20{rows}-11-25T10:00:00Z", triton=triton)
            for w, rows in ((half, 16), (twice, 32), (half, 64))
        ]
        write_decisions(places[0], [dataclasses.replace(kept[1], date="2015-01-01T10:00:00Z")])
    for place, decision in zip(places, kept, strict=True):
        write_decisions(place, [decision])
    for i in range(len(places)):
        decisions, damages = read_tables(places[i:])
        assert not damages and found(list(decisions), want()).decision == kept[i]


def test_the_distance_of_workloads_is_a_mean_of_the_nearest() -> None:
    wanted = want(workloads=(SHORT, LONG))
    one = decide(workloads=(SHORT,))  # 0 and 4 octaves
    other = decide(workloads=(LONG,))  # 4 and 0: as far
    two = decide(workloads=(SHORT, Workload(batch=1, length=65536)))  # 0 and 1
    assert found([one, other, two], wanted).decision == two
    for first, second in ((one, other), (other, one)):
        assert found([first, second], wanted).decision == first


def test_a_config_for_the_nearest_size_alone_goes_before_one_for_more_sizes() -> None:
    """However new the latter are: they had to be good for sizes that are far from here too."""
    sizes = [Workload(batch=1, length=n) for n in (2048, 8192, 32768, 131072)]
    alone = decide(workloads=(sizes[3],))
    two = decide(workloads=(sizes[2], sizes[3]), date="2027-11-25T10:00:00Z")
    four = decide(workloads=tuple(sizes), date="2028-11-25T10:00:00Z")
    for n in (100_000, 131_073, 2**20):
        wanted = want(workloads=(Workload(batch=1, length=n),))
        for order in ([four, two, alone], [two, alone, four], [alone, four, two]):
            assert found(order, wanted).decision == alone
            assert found([d for d in order if d != alone], wanted).decision == two
