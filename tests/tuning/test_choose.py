"""Looking configs up: what was tuned, the nearest of it; nothing is ever measured."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from sh2gen.api.inputs import resolve_target
from sh2gen.base.errors import Sh2genError
from sh2gen.schedule.config import DIRECTIONS, ROLES, coupling, schedule
from sh2gen.schedule.space import Config, search_space
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.language import Workload
from sh2gen.tuning.choose import candidates, explain_misses, passed_over, tables
from sh2gen.tuning.tables import write_decisions
from tests.fakes import SPEC
from tests.gpus import H100, H200
from tests.tuning.decisions import (
    CHEAPEST,
    DEFAULT,
    MODAL,
    NAMES,
    ON,
    RANKED,
    SECOND,
    TIME,
    changed,
    chosen,
    decide,
    keep,
    plan_of,
    tune,
)

pytestmark = pytest.mark.usefixtures("home")


def test_without_tables_the_config_is_the_default() -> None:
    configs, origins = chosen()
    assert configs == DEFAULT and origins == dict.fromkeys(ROLES, "default")


def test_what_was_tuned_for_exactly_this_is_taken(home: Path) -> None:
    exact, other = changed(TILES=4), changed(TILES=8)
    keep(
        home,
        decide(SPEC, "forward", other, triton="2.0"),
        decide(SPEC, "forward", exact),
    )
    configs, origins = chosen()
    assert configs == DEFAULT | {"forward": exact}
    assert origins == {"forward": f"{ON}; {TIME}", "backward": "default", "decode": "default"}


def test_else_the_nearest_and_what_differs_is_said(home: Path) -> None:
    other = dataclasses.replace(SPEC, workloads=(Workload(batch=1, length=1024),))
    keep(home, decide(other, "forward", changed(TILES=4)))
    keep(home, decide(SPEC, "backward", changed("backward", TILES=8), triton="2.0"))
    configs, origins = chosen()
    assert configs == {
        "forward": changed(TILES=4),
        "backward": changed("backward", TILES=8),
    }
    where = "nearest: tuned on NVIDIA H200 (2026-11-25)"
    assert origins["forward"] == (
        f"{where} for B=1 L=1024, here B=1 L=8192; there 10.0 us at B=1 L=1024"
    )
    assert origins["backward"].startswith(f"{where} with Triton 2.0, here ")


def test_a_gpu_of_the_same_kind_lends_its_config(home: Path) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4)))
    configs, origins = chosen(target=H100)
    assert configs["forward"] == changed(TILES=4)
    assert origins["forward"].endswith(
        "; not measured on H100; about 14.3 us at B=1 L=8192 here by bandwidth"
    )
    own = decide(SPEC, "forward", changed(TILES=8), H100)
    keep(home, own)
    configs, origins = chosen(target=H100)
    assert configs["forward"] == changed(TILES=8)
    assert origins["forward"] == f"tuned on {H100.device_name} (2026-11-25); {TIME}"


def test_a_folder_that_is_given_goes_before_ones_own_and_this_before_the_package(
    home: Path, tmp_path: Path
) -> None:
    """However new the others are: an update of the package takes no tuning back."""
    package, given = tmp_path / "package" / "schedules" / "tuned", tmp_path / "given"
    write_decisions(
        package, [decide(SPEC, "forward", changed(TILES=8), date="2028-01-01T00:00:00Z")]
    )
    assert chosen()[0]["forward"] == changed(TILES=8)
    keep(home, decide(SPEC, "forward", changed(TILES=4), date="2027-01-01T00:00:00Z"))
    assert chosen()[0]["forward"] == changed(TILES=4)
    write_decisions(
        given, [decide(SPEC, "forward", changed(TILES=2), date="2026-01-01T00:00:00Z")]
    )
    assert chosen()[0]["forward"] == changed(TILES=4)
    first = candidates(SPEC, H200, known=tables(given))[0]  # as tune starts, with --out
    assert first.schedule.forward == changed(TILES=2)


@pytest.mark.parametrize(
    "config",
    [
        (*DEFAULT["forward"], ("BLOCK_X", 1)),  # a knob that is no more
        DEFAULT["forward"][:-1],  # one that was not yet
        tuple((n, 7 if n == "TILES" else v) for n, v in DEFAULT["forward"]),
        tuple((n, 64 if n == "BLOCK_D" else v) for n, v in DEFAULT["forward"]),
    ],
)
def test_a_config_of_an_older_space_is_not_taken(home: Path, config: Config) -> None:
    keep(home, decide(SPEC, "forward", config))
    assert chosen() == (DEFAULT, dict.fromkeys(ROLES, "default"))
    keep(home, decide(SPEC, "forward", changed(TILES=2), triton="2.0"))
    assert chosen()[0]["forward"] == changed(TILES=2)
    want = plan_of(SPEC)
    lines = explain_misses(SPEC, H200, want, tables())["forward"]
    assert any("excluded by a config that is not legal here" in line for line in lines)


def older(config: Config) -> Config:
    """Without a knob that came later and says what kernels were before."""
    return tuple(pair for pair in config if pair[0] != "EVICT_LAST")


def test_a_config_older_than_a_knob_that_says_what_was_before_is_taken(home: Path) -> None:
    keep(home, decide(SPEC, "forward", older(changed(TILES=2))))
    configs, origins = chosen()
    assert configs == DEFAULT | {"forward": changed(TILES=2)}
    assert origins["forward"] == f"{ON}; {TIME}"


def test_a_table_that_is_damaged_is_no_table(home: Path) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4)))
    (path,) = (home / "tuned").glob("*/*.jsonl")
    path.write_text(path.read_text().replace('"v": 3', '"v": 99') + "{\n")
    assert chosen() == (DEFAULT, dict.fromkeys(ROLES, "default"))


def test_values_given_count_more_than_tuned_ones(home: Path) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4, BLOCK_T=2048)))
    configs, origins = chosen(changes={"forward": {"TILES": 8}})
    assert configs == DEFAULT | {"forward": changed(TILES=8, BLOCK_T=2048)}
    assert origins["forward"] == f"{ON}, with TILES=8 as given"  # which was not timed
    _, origins = chosen(changes={"forward": {"TILES": 4}})
    assert origins["forward"] == f"{ON}; {TIME}, with TILES=4 as given"
    assert origins["backward"] == "default"
    with pytest.raises(Sh2genError) as caught:
        chosen(changes={"forward": {"BLOCK_T": 8}})
    assert caught.value.code == "K003"
    with pytest.raises(Sh2genError) as caught:
        chosen(changes={"sideways": {"BLOCK_T": 8}})
    assert caught.value.code == "K001"


def test_times_of_other_channels_are_not_said_to_be_from_here(home: Path) -> None:
    filter_ = {"kind": "explicit", "length": 3, "groups": 8}
    other = spec_from_dict(SPEC.to_dict() | {"channels": 8, "filter": filter_})
    keep(home, decide(other, "forward", changed(TILES=4)))
    assert chosen()[1]["forward"].endswith(
        f" for 8 channels, here 4; for 8 groups, here 4; there {TIME}"
    )
    # Scaled by bandwidth it would still be of other channels.
    assert chosen(target=H100)[1]["forward"].endswith(f"not measured on H100; there {TIME}")


def test_a_config_for_a_gpu_that_is_no_target_is_not_called_exact(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(home, *(decide(SPEC, d, DEFAULT[d]) for d in DIRECTIONS))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 PCIe")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    first = candidates(SPEC, resolve_target(None), known=tables())[0]
    assert {first.origins[d] for d in DIRECTIONS} == {
        f"nearest: {ON}; not measured on NVIDIA H100 PCIe; there {TIME}"
    }
    assert not first.measured
    # Who names a target compiles for that one.
    first = candidates(SPEC, resolve_target("H200"), known=tables())[0]
    assert {first.origins[d] for d in DIRECTIONS} == {f"{ON}; {TIME}"}


def ranked() -> list[tuple[str, str]]:
    return [(c.plan.name, c.basis) for c in candidates(SPEC, H200, known=tables())]


def test_a_plan_that_was_tuned_and_is_faster_is_taken(home: Path) -> None:
    tune(home, SECOND, 0.9)
    assert ranked()[:2] == [(NAMES[1], "measured"), (NAMES[0], "predicted")]
    first, second, *_ = found = candidates(SPEC, H200, known=tables())
    assert first.score == pytest.approx(0.9 * second.score)
    assert all(first.origins[direction].startswith(ON) for direction in DIRECTIONS)
    assert passed_over(found) == ()


def test_a_plan_that_was_tuned_and_is_slower_is_named_with_what_takes_it(home: Path) -> None:
    tune(home, SECOND, 1.5)
    found = candidates(SPEC, H200, known=tables())
    assert found[0].plan == CHEAPEST and not found[0].measured
    assert passed_over(found) == (
        f"tuned config of {NAMES[1]}: 1.50x the cost, measured (of {NAMES[0]}: predicted); "
        f"--plan {NAMES[1]} takes it",
    )
    taken = candidates(SPEC, H200, NAMES[1], known=tables())
    assert taken[0].plan == SECOND and passed_over(taken) == ()


def test_who_tunes_the_cheapest_plan_keeps_it(home: Path) -> None:
    """However slow it was: what is predicted of others is no better founded."""
    tune(home, CHEAPEST, 1.5)
    assert ranked()[0] == (NAMES[0], "measured")
    assert [name for name, _ in ranked()] == NAMES
    tune(home, RANKED[2].plan, 1.7)
    assert ranked()[0] == (NAMES[0], "measured")
    tune(home, SECOND, 1.2)  # what was measured is
    assert ranked()[0] == (NAMES[1], "measured")


def test_only_what_was_measured_for_exactly_this_counts(home: Path) -> None:
    tune(home, SECOND, 0.5, triton="2.0")
    assert ranked()[0] == (NAMES[0], "predicted")
    (line,) = passed_over(candidates(SPEC, H200, known=tables()))
    said = re.match(rf"tuned config of {NAMES[1]}: ([\d.]+)x the cost, predicted ", line)
    first, second, *_ = RANKED
    assert said is not None and said[1] == f"{second.score / first.score:.2f}"
    config = schedule(SPEC, SECOND).forward
    keep(home, decide(SPEC, "forward", config, plan=SECOND, us=0.1))  # of one direction
    assert ranked()[0] == (NAMES[0], "predicted")


def test_plans_that_were_tuned_for_others_are_not_named(home: Path) -> None:
    filter_ = {"kind": "explicit", "length": 3, "groups": 8}
    other = spec_from_dict(SPEC.to_dict() | {"channels": 8, "filter": filter_})
    for d in DIRECTIONS:
        keep(home, decide(other, d, schedule(other, SECOND).config(d), plan=SECOND))
        keep(home, decide(SPEC, d, schedule(SPEC, SECOND).config(d), H100, plan=SECOND))
    assert passed_over(candidates(SPEC, H200, known=tables())) == ()


def test_a_config_given_is_predicted(home: Path) -> None:
    tune(home, CHEAPEST, 0.5)
    first = candidates(SPEC, H200, changes={"forward": {"TILES": 4}}, known=tables())[0]
    assert first.plan == CHEAPEST and not first.measured


def tiles(direction: str, steps: int) -> Config:
    plan = plan_of(MODAL)
    points = search_space(MODAL, plan, direction).points
    return next(point for point in points[1:] if coupling(plan, point) == steps)


def agreed(configs: Mapping[str, Config]) -> int | None:
    """The steps of a tile; the schedule is legal."""
    plan = plan_of(MODAL)
    schedule(MODAL, plan, {d: dict(found) for d, found in configs.items()})
    return coupling(plan, configs["forward"])


def test_pairs_that_were_tuned_together_are_taken_as_they_are(home: Path) -> None:
    pair = {d: tiles(d, 1024) for d in DIRECTIONS}
    keep(home, *(decide(MODAL, d, config) for d, config in pair.items()))
    configs, origins = chosen(MODAL)
    assert configs == pair and {origins[d] for d in DIRECTIONS} == {f"{ON}; {TIME}"}


def test_configs_that_do_not_go_together_are_made_to(home: Path) -> None:
    """By those of backward, which takes longer."""
    keep(home, decide(MODAL, "forward", tiles("forward", 512)))
    keep(home, decide(MODAL, "backward", tiles("backward", 1024)))
    configs, origins = chosen(MODAL)
    assert configs["backward"] == tiles("backward", 1024) and agreed(configs) == 1024
    assert origins["backward"] == f"{ON}; {TIME}"
    assert origins["forward"] == "goes with the tiles of backward"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_one_tuned_direction_decides_for_both(home: Path, direction: str) -> None:
    keep(home, decide(MODAL, direction, tiles(direction, 1024)))
    configs, origins = chosen(MODAL)
    assert configs[direction] == tiles(direction, 1024) and agreed(configs) == 1024
    (other,) = set(DIRECTIONS) - {direction}
    assert origins[other] == f"goes with the tiles of {direction}"
