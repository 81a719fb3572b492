"""What ranks send each other, by strategy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from sh2gen.base.resources import folder
from sh2gen.cli.cli import main
from sh2gen.cost.ranks import exchanges, link_of
from sh2gen.spec.decode import load_spec
from sh2gen.spec.language import Exchange, Sharding, Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import target

H100 = target("H100")
MILLION = Workload(batch=1, length=2**20)


def shipped(op: str) -> OpSpec:
    return load_spec(folder("ops") / f"{op}.yaml")


def test_a_halo_is_the_past_that_chunks_begin_with() -> None:
    """2 steps of three inputs in bfloat16, and 127 of what the filter reads in float32, for each
    of the two chunks of a rank; half of it where a rank has one.
    """
    spec = shipped("hyena_mr")
    border = 4096 * (2 * 3 * 2 + 4 * 127)
    for sharding, chunks in ((Sharding.ZIGZAG, 2), (Sharding.CONTIGUOUS, 1)):
        found = {one.strategy: one for one in exchanges(spec, MILLION, H100, 8, sharding)}
        halo = found[Exchange.HALO]
        assert halo.bytes == chunks * border and halo.messages == 2 * chunks
        assert halo.waits == 1 and halo.passes == 0
        overlapped = found[Exchange.HALO_OVERLAPPED]
        assert overlapped.bytes == halo.bytes and overlapped.seconds < halo.seconds
        assert Exchange.STATE not in found


def test_chunks_that_are_shorter_than_the_filter_take_several_messages() -> None:
    spec = shipped("hyena_mr")
    short = Workload(batch=1, length=8 * 2 * 50)  # chunks of 50 steps
    (halo,) = (
        one
        for one in exchanges(spec, short, H100, 8, Sharding.ZIGZAG)
        if one.strategy is Exchange.HALO
    )
    assert halo.messages == 2 * (1 + 3) and halo.waits == 2


def test_states_are_some_450th_of_an_all_to_all() -> None:
    """The gathered states of a million steps over eight ranks, and the tails of the featurizer."""
    ways = exchanges(shipped("hyena_li"), MILLION, H100, 8, Sharding.ZIGZAG)
    found = {one.strategy: one for one in ways}
    state, everything = found[Exchange.STATE], found[Exchange.ALL_TO_ALL]
    assert everything.bytes == 2 * 7 * 2 * 4096 * 2**20 // 64
    assert state.bytes == 2 * 7 * 4096 * 16 * 4 + 2 * 4096 * 3 * 2 * 2
    assert 430 < everything.bytes / state.bytes < 520
    assert ways[0] is state and state.passes == 2
    assert Exchange.HALO not in found


def test_what_cannot_be_is_left_out() -> None:
    spec = shipped("hyena_li")
    few = replace(spec, filter=replace(spec.filter, groups=4096))
    names = {one.strategy for one in exchanges(few, MILLION, H100, 6, Sharding.CONTIGUOUS)}
    assert names == {Exchange.STATE}  # neither groups nor steps are six alike
    assert not exchanges(spec, MILLION, H100, 1, Sharding.ZIGZAG)
    assert not exchanges(spec, MILLION, target("RTX 4090"), 64, Sharding.ZIGZAG)


def test_ranks_of_one_node_have_its_link() -> None:
    assert [link.name for n in (2, 8, 9, 1024) if (link := link_of(H100, n))] == [
        "NVLink", "NVLink", "InfiniBand", "InfiniBand",
    ]  # fmt: skip
    near, far = (
        exchanges(shipped("hyena_mr"), MILLION, H100, n, Sharding.CONTIGUOUS)[-1] for n in (8, 16)
    )
    assert near.link == "NVLink" and far.link == "InfiniBand"


@pytest.mark.parametrize(
    ("op", "strategy"), [("hyena_mr", "halo_overlapped"), ("hyena_li", "state")]
)
def test_explain_says_what_is_sent(op: str, strategy: str, tmp_path: Path) -> None:
    text = (folder("ops") / f"{op}.yaml").read_text()
    path = tmp_path / f"{op}.yaml"
    path.write_text(f"{text}\ncontext: {{ranks: 8}}\n")
    result = CliRunner().invoke(main, ["explain", str(path), "--target=H100"])
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if " messages, " in line]
    marked = {row[0]: " ".join(row) for row in rows}
    assert marked[strategy].endswith("us (taken)")
    assert marked["all_to_all"].endswith("us") and marked["p2p_fft"].endswith("us")
    result = CliRunner().invoke(main, ["explain", str(path), "--target=H100", "--json"])
    plain = {one["strategy"]: one for one in json.loads(result.stdout)["ranks"]}
    assert [name for name, one in plain.items() if one["taken"]] == [strategy]
    assert plain[strategy]["bytes"] > 0 and plain[strategy]["length"] == 131072
