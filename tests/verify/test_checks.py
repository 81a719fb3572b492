"""What `compile` and `verify` verify by default and thoroughly, and how far they say they are."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from sh2gen.api.compile import compile_operator
from sh2gen.api.verify import verify_operator
from sh2gen.base.resources import folder
from sh2gen.cli.cli import main
from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.plan.plan import Plan
from sh2gen.plan.source import Alignment
from sh2gen.report import terminal
from sh2gen.runtime.operator import Operator
from sh2gen.schedule.config import Schedule, interpreter_schedule, schedule
from sh2gen.spec.decode import load_spec, parse_spec
from sh2gen.spec.operator import OpSpec
from sh2gen.verify import checks
from sh2gen.verify.checks import (
    VerificationStep,
    example_lengths,
    quick_checks,
    quick_count,
    thorough_checks,
    usual_checks,
)
from sh2gen.verify.properties import PROPERTIES
from sh2gen.verify.stages import long_ones, of_quick_checks, of_step
from tests.gpus import H200

OPS = ["hyena_se", "hyena_mr", "hyena_li_stateful", "s4d", "conv_512", "long_conv"]
SPEC = parse_spec("{op: one, channels: 2, filter: {kind: explicit, length: 3, groups: 2}}")


def made(op: str, tmp_path: Path) -> tuple[OpSpec, Plan, Schedule, Operator]:
    spec = load_spec(folder("ops") / f"{op}.yaml")
    plan = plans(spec)[0]
    scheduled = schedule(spec, plan)
    path = tmp_path / f"{op}.py"
    path.write_text(emit(spec, plan, scheduled).text)
    return spec, plan, scheduled, Operator(path)


def seen(steps: list[VerificationStep]) -> set[str]:
    """Runners with properties."""
    return {
        f"{step.runner.name} {name}"
        for step in steps
        for name in step.properties or tuple(PROPERTIES)
    }


# How often a property runs forward, or forward and backward, about.
CALLS = {"equality": 2, "causality": 6, "packed": 2, "strides": 6, "chunks": 6, "decode": 1}


def walks(step: VerificationStep, algorithm: str) -> int:
    """How many blocks of taps the interpreter multiplies blocks of time by, about: what a step
    costs, on any machine. A program loads as many before its tiles as one of them needs.
    """
    if step.runner.name != "interpreter":
        return 0
    spec = step.spec
    config = dict(interpreter_schedule(spec, plans(spec, algorithm)[0]).backward)
    block, tiles = config["BLOCK_T"], config.get("TILES", 1)
    walked = block * tiles * config.get("SEGMENTS", 1)
    wide = ceil(spec.group_width / config.get("BLOCK_D", 1)) * spec.filter.groups
    return sum(
        CALLS[name] * batch * wide * ceil(length / walked) * (tiles + 1)
        for name in step.properties or ()
        for batch, length in (step.shapes if name == "equality" else step.shapes[-1:])
    ) * (1 + (spec.filter.length or 1) // block)


@pytest.mark.parametrize("op", OPS)
def test_what_is_verified_without_a_gpu(op: str, tmp_path: Path) -> None:
    spec, plan, scheduled, operator = made(op, tmp_path)
    assert quick_count(plan, scheduled) == len(
        list(quick_checks(spec, plan, scheduled, operator, tmp_path))
    )
    lengths = example_lengths(spec, None, "cpu", thorough=True)
    assert lengths == example_lengths(spec, 6, "cpu", thorough=True) and len(lengths) == 6
    thorough = list(thorough_checks(spec, plan, operator, tmp_path, "cpu", lengths))
    # All properties at full width, in both dtypes, and of kernels.
    for dtype in (torch.float32, torch.bfloat16):
        (plain,) = (s for s in thorough if s.runner.name == "eager" and s.dtype is dtype)
        assert plain.spec is spec and plain.properties is None
        assert [length for _, length in plain.shapes] == list(lengths[:4])
    kernels = [s for s in thorough if s.runner.name == "interpreter"]
    assert bool(kernels) == bool(plan.kernels)
    if kernels:
        assert kernels[0].properties is None
        assert [length for _, length in kernels[0].shapes] == list(lengths)
    # By default equality at full width, all that plain PyTorch promises on a miniature, and of
    # kernels what is their own, also across the borders of blocks, taps, groups and sequences.
    short = example_lengths(spec, None, "cpu")
    assert 2 <= len(short) <= 3 and (spec.filter.length or 1) + 1 in short
    usual = list(usual_checks(spec, plan, operator, tmp_path, short))
    assert usual[0].spec is spec and usual[0].properties == ("equality",)
    promised = {name for name in PROPERTIES if name != "batch_invariance"}
    assert {f"eager {name}" for name in promised} <= seen(usual) <= seen(thorough)
    if kernels:
        own = ("equality", "causality", "packed", "strides", "chunks", "decode")
        assert {f"interpreter {name}" for name in own} <= seen(usual)
        assert {s.dtype for s in usual if s.runner.name == "interpreter"} == {
            torch.float32,
            torch.float16,
        }
        # All taps act on what kernels compute, although some properties take few.
        assert any(
            step.spec.filter.length == spec.filter.length
            and max(length for _, length in step.shapes) > (spec.filter.length or 1)
            for step in usual
            if step.runner.name == "interpreter"
        )
    # Those of 3000 take a core of today 15 s.
    assert sum(walks(step, plan.algorithm) for step in usual) < 4000
    assert not long_ones(spec, sum(map(sum, (of_step(step, plan) for step in usual))))
    assert max(batch for step in usual for batch, _ in step.shapes) > 1
    assert sum(step.stages for step in usual) < sum(step.stages for step in thorough)


LONG = {
    "many_modes": "channels: 1, filter: {kind: modal, groups: 1, modes: 100000, "
    "parametrisation: log_poles}",
    "many_taps": "channels: 4096, filter: {kind: explicit, length: 1024, groups: 256}, "
    "gates: {pre: true, post: true}, featurizer: {length: 3}",
    "wide_modes": "channels: 65536, filter: {kind: modal, groups: 16, modes: 4, "
    "parametrisation: log_poles}, gates: {pre: true, post: true}, featurizer: {length: 3}",
}


@pytest.mark.parametrize("op", LONG)
def test_what_takes_long_is_told_before(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them take more than a minute."""
    spec = parse_spec(f"{{op: {op}, {LONG[op]}}}")
    told: list[str] = []

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    plan = {"many_taps": "toeplitz", "wide_modes": "modal"}.get(op)
    monkeypatch.setattr(checks.VerificationStep, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        verify_operator(spec, device="cpu", plan=plan, warn=told.append)
    assert len(told) == 1 and told[0].startswith(f"verifying {op} takes about ")
    if op == "wide_modes":  # which `compile` verifies for longer too
        told.clear()
        with pytest.raises(KeyboardInterrupt):
            compile_operator(spec, out=tmp_path, built=False, warn=told.append)
        assert len(told) == 1 and told[0].endswith("--no-verify (verified=False) leaves it out")


def test_stages_are_told_as_they_are_done(tmp_path: Path) -> None:
    told: list[tuple[int, int, float, float]] = []
    reports = verify_operator(SPEC, device="cpu", advance=lambda *now: told.append(now))
    totals = {total for _, total, *_ in told}
    assert len(totals) == 1 and [done for done, *_ in told] == list(range(*totals))
    passed = [seconds for _, _, seconds, _ in told]
    assert passed[0] == 0 < passed[1] and passed == sorted(passed)
    assert {whole for *_, whole in told} == {told[0][3]} and passed[-1] < told[0][3]
    assert len(reports) == 6
    told.clear()
    two = replace(SPEC, op="two")
    for spec in (SPEC, two):
        compile_operator(spec, out=tmp_path, advance=lambda *now: told.append(now))
        stages = told[0][1]
        assert told[0][0] == told[0][2] == 0 and told[-1][0] == stages
        assert told[-1][2] == told[-1][3] > 0  # all is done
        assert [done for done, *_ in told] == sorted(done for done, *_ in told)
        assert len({seconds for _, _, seconds, _ in told}) > stages
        told.clear()


# Seconds of the stages of kernels on a machine with two cores; those of decoding on another.
SEEN = {
    "short_conv_3": [0.43, 0.087, 0.091, 0.339, 0.067, 0.398, 0.001, 0.05, 0.286],
    "hyena_se": [1.717, 0.389, 0.395, 1.796, 0.329, 1.863, 0.001, 0.14, 0.789],
    "hyena_mr": [4.525, 6.294, 2.308, 5.508, 0.842, 7.166, 0.001, 0.21, 2.434],
    "s4d": [2.192, 1.331, 1.283, 3.236, 0.298, 3.903, 0.001, 0.14, 1.513, 5.662],
}


@pytest.mark.parametrize("op", SEEN)
def test_how_long_is_left_is_right_within_a_factor_of_two(op: str, tmp_path: Path) -> None:
    """From the first stage on; and 2 s are neither here nor there."""
    spec, plan, _, operator = made(op, tmp_path)
    steps = list(usual_checks(spec, plan, operator, tmp_path, example_lengths(spec, None, "cpu")))
    expected = [of_step(step, plan) for step in steps]
    assert [len(found) for found in expected] == [step.stages for step in steps]
    plain = sum(step.stages for step in steps if step.runner.name == "eager")
    seen = [1.0, *[0.01] * (plain - 1), *SEEN[op]]
    flat = [seconds for found in expected for seconds in found]
    now = 0.0
    estimate = terminal.Estimate(lambda: now)
    assert estimate.text == "0:00"
    for done, seconds in enumerate(seen):
        now += seconds
        estimate.advance(sum(flat[: done + 1]), sum(flat))
        left = sum(seen[done + 1 :])
        assert estimate.left is not None
        assert left / 2 - 2 < estimate.left < 2 * left + 2, (done, left)
    assert estimate.text == f"0:{now:02.0f}, 0:00 left"


def test_how_long_is_left_passes() -> None:
    now = 100.0
    estimate = terminal.Estimate(lambda: now)
    now = 110.0
    estimate.advance(2.5, 32.5)  # it takes twice as long as was predicted
    assert estimate.text == "0:10, 1:00 left"
    now = 150.0
    assert estimate.text == "0:50, 0:20 left"
    now = 250.0
    assert estimate.text == "2:30, 0:00 left"


@pytest.mark.parametrize("op", OPS)
def test_every_way_of_a_compilation_has_its_time(op: str) -> None:
    spec = load_spec(op)
    plan = plans(spec)[0]
    scheduled = schedule(spec, plan)
    ways = of_quick_checks(spec, plan, scheduled)
    assert len(ways) == quick_count(plan, scheduled) and all(seconds > 0 for seconds in ways)


@pytest.mark.parametrize("thorough", [False, True])
def test_kernels_of_odd_calls_are_built_if_asked_for(thorough: bool, tmp_path: Path) -> None:
    found = compile_operator(SPEC, out=tmp_path, verified=False, thorough=thorough, target=H200)
    assert found.built is not None
    alignments = {kernel.alignment for kernel in found.built.kernels}
    assert alignments == (set(Alignment) if thorough else {Alignment.ALIGNED})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_and_json_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with terminal.progress(False, stages=True) as note:
        note("verifying [bold] plain\x1b[2J")
        note.advance(3, 8, 10.0, 50.0)
    shown = screen.getvalue()
    assert (
        "3/8" in shown
        and " left" in shown
        and "verifying [bold] plain\\x1b[2J" in shown
        and "━" in shown
    )
    monkeypatch.undo()
    (tmp_path / "one.yaml").write_text(SPEC.to_yaml())
    quiet = CliRunner().invoke(
        main, ["compile", str(tmp_path / "one.yaml"), f"--out={tmp_path}", "--json", "--no-build"]
    )
    assert quiet.exit_code == 0 and quiet.stderr == ""
    assert json.loads(quiet.stdout)[0]["verified"] == checks.statement(plans(SPEC)[0])
