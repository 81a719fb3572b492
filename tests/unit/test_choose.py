"""Looking numbers up: what was tuned, the nearest of it, lock files; nothing is ever measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from sh2gen.choose import candidates, explain_misses, tables, wanted
from sh2gen.cli import main
from sh2gen.errors import Sh2genError
from sh2gen.lower import plans
from sh2gen.plan import Plan
from sh2gen.schedule import DIRECTIONS, Numbers, coupling, schedule, search_space
from sh2gen.spec import OpSpec, Workload, spec_from_dict
from sh2gen.tables import Decision, fields_of, in_order, write_decisions
from sh2gen.target import H100, H200, Target
from tests.fakes import SPEC

MODAL = spec_from_dict(
    {
        "op": "small_modal",
        "channels": 16,
        "filter": {"kind": "modal", "modes": 2, "groups": 16, "parametrisation": "complex"},
    }
)
DATE = "2026-11-25T10:00:00Z"

ON = "tuned on NVIDIA H200 (2026-11-25)"
TIME = "10.0 us at B=1 L=8192"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder; and a machine whose GPU, if it has one, nobody may touch."""
    monkeypatch.setenv("SH2GEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("choosing numbers needs no GPU")

    for name in ("_lazy_init", "init", "get_device_name", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, never)
    return tmp_path / "home"


def plan_of(spec: OpSpec) -> Plan:
    return candidates(spec, H200)[0].plan


def decide(
    spec: OpSpec,
    direction: str,
    numbers: Numbers,
    target: Target = H200,
    date: str = DATE,
    **key: str,
) -> Decision:
    """As a search on this machine would have decided, but for the parts of the key given."""
    want = wanted(spec, target, plan_of(spec), direction)
    times = tuple(10.0 for _ in want.workloads)
    return Decision(
        key=dataclasses.replace(want.key, **key),
        fields=fields_of(spec),
        op=spec.op,
        workloads=in_order(spec.workloads),
        numbers=numbers,
        us=times,
        low=times,
        high=times,
        bound_us=times,
        start_us=times,
        start=numbers,
        checks=21,
        effort="measure",
        date=date,
        versions={},
    )


def changed(direction: str = "forward", **knobs: int) -> Numbers:
    return schedule(SPEC, plan_of(SPEC), {direction: knobs}).numbers(direction)


DEFAULT = {d: schedule(SPEC, plans(SPEC)[0]).numbers(d) for d in DIRECTIONS}


def keep(home: Path, *decisions: Decision) -> None:
    for decision in decisions:
        write_decisions(home / "tuned", [decision])


def chosen(
    spec: OpSpec = SPEC,
    target: Target = H200,
    changes: Mapping[str, Mapping[str, int]] | None = None,
) -> tuple[dict[str, Numbers], Mapping[str, str]]:
    first = candidates(spec, target, changes=changes, known=tables())[0]
    return {d: first.schedule.numbers(d) for d in DIRECTIONS}, first.origins


# ---- which numbers ------------------------------------------------------------------------------


def test_without_tables_numbers_are_the_default() -> None:
    numbers, origins = chosen()
    assert numbers == DEFAULT and origins == {"forward": "default", "backward": "default"}


def test_what_was_tuned_for_exactly_this_is_taken(home: Path) -> None:
    exact, other = changed(TILES=4), changed(TILES=8)
    keep(
        home,
        decide(SPEC, "forward", other, triton="2.0"),
        decide(SPEC, "forward", exact),
        decide(SPEC, "forward", other, templates="00" * 32),
    )
    numbers, origins = chosen()
    assert numbers == DEFAULT | {"forward": exact}
    assert origins == {"forward": f"{ON}; {TIME}", "backward": "default"}


def test_else_the_nearest_and_what_differs_is_said(home: Path) -> None:
    other = dataclasses.replace(SPEC, workloads=(Workload(batch=1, length=1024),))
    keep(home, decide(other, "forward", changed(TILES=4)))
    keep(home, decide(SPEC, "backward", changed("backward", TILES=8), triton="2.0"))
    numbers, origins = chosen()
    assert numbers == {
        "forward": changed(TILES=4),
        "backward": changed("backward", TILES=8),
    }
    where = "nearest: tuned on NVIDIA H200 (2026-11-25)"
    assert origins["forward"] == (
        f"{where} for B=1 L=1024, here B=1 L=8192; 10.0 us at B=1 L=1024"
    )
    assert origins["backward"].startswith(f"{where} with Triton 2.0, here ")


def test_a_gpu_of_the_same_kind_lends_its_numbers(home: Path) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4)))
    numbers, origins = chosen(target=H100)
    assert numbers["forward"] == changed(TILES=4)
    assert origins["forward"].endswith(
        "; not measured on H100; by its bandwidth 14.3 us at B=1 L=8192"
    )
    own = decide(SPEC, "forward", changed(TILES=8), H100)
    keep(home, own)
    numbers, origins = chosen(target=H100)
    assert numbers["forward"] == changed(TILES=8)
    assert origins["forward"] == f"tuned on {H100.device_name} (2026-11-25); {TIME}"


@pytest.mark.parametrize(
    "numbers",
    [
        (*DEFAULT["forward"], ("BLOCK_X", 1)),  # a knob that is no more
        DEFAULT["forward"][:-1],  # one that was not yet
        tuple((n, 7 if n == "TILES" else v) for n, v in DEFAULT["forward"]),
        tuple((n, 64 if n == "BLOCK_D" else v) for n, v in DEFAULT["forward"]),
    ],
)
def test_numbers_of_an_older_space_are_not_taken(home: Path, numbers: Numbers) -> None:
    keep(home, decide(SPEC, "forward", numbers))
    assert chosen() == (DEFAULT, dict.fromkeys(DIRECTIONS, "default"))
    keep(home, decide(SPEC, "forward", changed(TILES=2), triton="2.0"))
    assert chosen()[0]["forward"] == changed(TILES=2)
    want = plan_of(SPEC)
    lines = explain_misses(SPEC, H200, want, tables())["forward"]
    assert any("its numbers are not legal here" in line for line in lines)


def test_a_table_that_is_damaged_is_no_table(home: Path) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4)))
    (path,) = (home / "tuned").glob("*/*.jsonl")
    path.write_text(path.read_text().replace('"v": 1', '"v": 99') + "{\n")
    assert chosen() == (DEFAULT, dict.fromkeys(DIRECTIONS, "default"))


def test_numbers_given_count_more_than_tuned_ones(home: Path) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4, BLOCK_T=2048)))
    numbers, origins = chosen(changes={"forward": {"TILES": 8}})
    assert numbers == DEFAULT | {"forward": changed(TILES=8, BLOCK_T=2048)}
    assert origins["forward"] == f"{ON}; {TIME}, with TILES=8 as given"
    assert origins["backward"] == "default"
    with pytest.raises(Sh2genError) as caught:
        chosen(changes={"forward": {"BLOCK_T": 8}})
    assert caught.value.code == "K003"
    with pytest.raises(Sh2genError) as caught:
        chosen(changes={"sideways": {"BLOCK_T": 8}})
    assert caught.value.code == "K001"


# ---- directions that must agree -----------------------------------------------------------------


def tiles(direction: str, steps: int) -> Numbers:
    plan = plan_of(MODAL)
    points = search_space(MODAL, plan, direction).points
    return next(point for point in points[1:] if coupling(plan, point) == steps)


def agreed(numbers: Mapping[str, Numbers]) -> int | None:
    """The steps of a tile; the schedule is legal."""
    plan = plan_of(MODAL)
    schedule(MODAL, plan, {d: dict(found) for d, found in numbers.items()})
    return coupling(plan, numbers["forward"])


def test_pairs_that_were_tuned_together_are_taken_as_they_are(home: Path) -> None:
    pair = {d: tiles(d, 1024) for d in DIRECTIONS}
    keep(home, *(decide(MODAL, d, numbers) for d, numbers in pair.items()))
    numbers, origins = chosen(MODAL)
    assert numbers == pair and set(origins.values()) == {f"{ON}; {TIME}"}


def test_numbers_that_do_not_go_together_are_made_to(home: Path) -> None:
    """By those of backward, which takes longer."""
    keep(home, decide(MODAL, "forward", tiles("forward", 512)))
    keep(home, decide(MODAL, "backward", tiles("backward", 1024)))
    numbers, origins = chosen(MODAL)
    assert numbers["backward"] == tiles("backward", 1024) and agreed(numbers) == 1024
    assert origins["backward"] == f"{ON}; {TIME}"
    assert origins["forward"] == "goes with the tiles of backward"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_one_tuned_direction_decides_for_both(home: Path, direction: str) -> None:
    keep(home, decide(MODAL, direction, tiles(direction, 1024)))
    numbers, origins = chosen(MODAL)
    assert numbers[direction] == tiles(direction, 1024) and agreed(numbers) == 1024
    (other,) = set(DIRECTIONS) - {direction}
    assert origins[other] == f"goes with the tiles of {direction}"


# ---- the command line ---------------------------------------------------------------------------


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def op(tmp_path: Path) -> str:
    path = tmp_path / "small_conv.yaml"
    path.write_text(SPEC.to_yaml())
    return str(path)


def compiled(op: str, out: Path, *arguments: str) -> Result:
    return run(
        "compile", op, "--out", str(out), "--no-verify", "--no-build", "--target=H200", *arguments
    )


def test_compile_writes_tuned_numbers_and_says_where_they_are_from(
    home: Path, op: str, tmp_path: Path
) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4)))
    out = tmp_path / "out"
    result = compiled(op, out)
    assert result.exit_code == 0, result.output
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"numbers forward: {ON}; {TIME}" in rows
    assert "numbers backward: default" in rows
    space: dict[str, Any] = {}
    text = (out / "small_conv.py").read_text()
    block = text[text.index("NUMBERS = ") :].partition("}  # the schedule")[0] + "}"
    exec(block, space)  # of a file that was written a line above
    assert space["NUMBERS"]["forward"] == dict(changed(TILES=4))
    assert space["NUMBERS"]["backward"] == dict(DEFAULT["backward"])
    (data,) = json.loads(compiled(op, out, "--json").stdout)
    assert data["origins"]["forward"].startswith("tuned on ")
    assert data["schedule"]["forward"] == dict(changed(TILES=4))


def test_a_lock_file_keeps_files_as_they_are_whatever_was_tuned_since(
    home: Path, op: str, tmp_path: Path
) -> None:
    lock, out, path = str(tmp_path / "job.lock"), tmp_path / "out", tmp_path / "out/small_conv.py"
    keep(home, decide(SPEC, "forward", changed(TILES=4)))
    assert compiled(op, out, "--lock", lock).exit_code == 0
    before = path.read_bytes()
    keep(home, decide(SPEC, "forward", changed(TILES=16), date="2027-01-01T00:00:00Z"))
    assert compiled(op, out).exit_code == 0
    assert path.read_bytes() != before
    result = compiled(op, out, "--locked", lock)
    assert result.exit_code == 0 and f"pinned by {lock}" in result.stdout
    assert path.read_bytes() == before
    again = str(tmp_path / "again.lock")
    assert compiled(op, out, "--locked", lock, "--lock", again).exit_code == 0
    assert Path(again).read_bytes() == Path(lock).read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"filter": {"kind": "explicit", "length": 4, "groups": 4}}, "pins another operator"),
        ({"op": "new_conv", "channels": 8}, "does not pin `new_conv`"),
    ],
)
def test_an_operator_that_a_lock_file_does_not_pin(
    op: str, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    lock, out = str(tmp_path / "job.lock"), tmp_path / "out"
    assert compiled(op, out, "--lock", lock).exit_code == 0
    other = tmp_path / "other.yaml"
    other.write_text(spec_from_dict(SPEC.to_dict() | changes).to_yaml())
    result = compiled(str(other), tmp_path / "none", "--locked", lock)
    assert result.exit_code == 2 and "error[R003]" in result.stderr and words in result.stderr
    assert not (tmp_path / "none").exists()


def test_a_lock_file_pins_an_operator_whatever_it_is_called(op: str, tmp_path: Path) -> None:
    lock, out = str(tmp_path / "job.lock"), tmp_path / "out"
    assert compiled(op, out, "--lock", lock, "--set=forward.TILES=4").exit_code == 0
    other = tmp_path / "other.yaml"
    other.write_text(dataclasses.replace(SPEC, op="other_conv").to_yaml())
    (data,) = json.loads(compiled(str(other), out, "--locked", lock, "--json").stdout)
    assert data["schedule"]["forward"] == dict(changed(TILES=4))
    result = compiled(op, out, "--locked", lock, "--plan=fft")
    assert result.exit_code == 2 and "error[R003]" in result.stderr


def test_explain_names_what_differs(home: Path, op: str) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4), triton="2.0", templates="00" * 32))
    other = dataclasses.replace(SPEC, op="other", workloads=(Workload(batch=4, length=99),))
    keep(home, decide(other, "forward", changed(TILES=2)))
    result = run("explain", op, "--miss", "--target=H200")
    assert result.exit_code == 0
    first, nearest, next_, last, nothing = result.stdout.splitlines()
    assert first.startswith("direct/BDL/recompute forward: nearest: tuned on NVIDIA H200")
    assert nearest == (
        "  other on NVIDIA H200 (2026-11-25): workloads: B=1 L=8192 here, B=4 L=99 there"
    )
    assert "triton: " in next_ and "2.0 there" in next_ and "templates: " in next_
    assert last == "direct/BDL/recompute backward: default"
    assert nothing == "  nothing was tuned for this direction"
    data = json.loads(run("explain", op, "--miss", "--target=H200", "--json").stdout)
    assert data["directions"]["backward"] == {"origin": "default", "tuned": []}
    assert len(data["directions"]["forward"]["tuned"]) == 2


def test_who_asks_for_the_default_gets_it(home: Path) -> None:
    keep(home, decide(SPEC, "forward", changed(TILES=4)))
    assert candidates(SPEC, H200)[0].schedule.forward == DEFAULT["forward"]
