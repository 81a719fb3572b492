"""Streams in phases: the same meaning, and blocks that are there when they are read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sh2gen.emit.emit import emit
from sh2gen.lower import plans, toeplitz
from sh2gen.plan.blocks import Recall, Toeplitz
from sh2gen.plan.interpret import run
from sh2gen.plan.kernel import Kernel, Role, Variant
from sh2gen.plan.phases import phases
from sh2gen.plan.statements import Fir, LoadRows, Statement, StoreRows
from sh2gen.plan.values import Kind, Name, Operand
from sh2gen.runtime.operator import Operator
from sh2gen.schedule.config import schedule
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from tests.strategies import specs
from tests.strategies_schedules import random_tensors

STRUCTURES: dict[str, dict[str, Any]] = {
    "everything": {
        "featurizer": {"length": 3},
        "gates": {"pre": True, "post": True},
        "skip": "channel",
    },
    "wide featurizer": {"featurizer": {"length": 4}, "gates": {"pre": True, "post": True}},
    "no featurizer": {"gates": {"pre": True, "post": True}, "skip": "channel"},
    "pre gate": {"featurizer": {"length": 3}, "gates": {"pre": True}, "skip": "group"},
    "post gate": {"featurizer": {"length": 2}, "gates": {"post": True}, "bias": "gated"},
    "nothing": {},
}


def make(**fields: Any) -> OpSpec:
    base = {
        "op": "probe",
        "channels": 32,
        "filter": {"kind": "explicit", "length": 100, "groups": 2},
    }
    return spec_from_dict(base | fields)


def backward(spec: OpSpec) -> tuple[Kernel, Variant]:
    kernel = plans(spec, "toeplitz")[0].kernel(Role.BACKWARD)
    assert kernel is not None
    (variant,) = kernel.variants
    return kernel, variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolved(Statement):
    """A statement that nothing in sh2gen knows: what it declares is all."""

    fir: Fir
    source: Operand
    out: str

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (self.source,)

    @property
    def makes(self) -> Name:
        return Name(Kind.ROWS, self.out, self.fir.rows)


def test_phases_know_a_statement_by_what_it_declares() -> None:
    def unknown(statement: Statement) -> Statement:
        if not isinstance(statement, Fir):
            return statement
        return Convolved(fir=statement, source=statement.x, out=statement.out)

    def known(statement: Statement) -> Statement:
        if not isinstance(statement, Convolved):
            return statement
        return dataclasses.replace(statement.fir, x=statement.source, out=statement.out)

    program = backward(make(**STRUCTURES["everything"]))[0].program
    body = tuple(map(unknown, program.body))
    wanted, found = phases(program), phases(dataclasses.replace(program, body=body))
    assert wanted is not None and found is not None
    for field in dataclasses.fields(wanted):
        part = getattr(found, field.name)
        assert tuple(map(known, part)) == getattr(wanted, field.name)
        assert field.name != "own" or any(isinstance(s, Convolved) for s in part)


def by_toeplitz(spec: OpSpec) -> bool:
    return toeplitz.applies(spec).applies and spec.layout.activations != "BLD"


@given(st.data())
def test_phases_compute_what_the_program_computes(data: st.DataObject) -> None:
    spec = data.draw(specs(40, kinds=("explicit", "decay")).filter(by_toeplitz))
    length = data.draw(st.sampled_from((1, 7, 8, 41)))
    inputs, parameters, dy = random_tensors(spec, 2, length, dtype=torch.float64)
    kernel, variant = backward(spec)
    expected = run(kernel.program, spec, inputs | {"dy": dy}, parameters)
    found = run(kernel.phased(variant), spec, inputs | {"dy": dy}, parameters)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_gradient_is_stored_once_and_after_its_product(name: str) -> None:
    kernel, variant = backward(make(**STRUCTURES[name]))
    phases = variant.phases
    stores = [s.tensor for s in phases.body if isinstance(s, StoreRows)]
    assert sorted(stores) == sorted(kernel.program.stores)
    needs_it = any(isinstance(s, Toeplitz) and s.direction == +1 for s in phases.products)
    assert needs_it == bool(phases.convolved) == ("post" in STRUCTURES[name].get("gates", {}))


def test_what_is_computed_anyway_is_not_recalled() -> None:
    """z = k_hat v_hat is there for d_k and d_v; for d_q it would take two loads more."""
    phases = backward(make(**STRUCTURES["everything"]))[1].phases
    assert [s.blocks for s in phases.convolved if isinstance(s, Recall)] == ["z_blocks"]
    assert [s.blocks for s in phases.adjoint if isinstance(s, Recall)] == ["d_pre_skip_blocks"]
    assert {s.tensor for s in phases.convolved if isinstance(s, LoadRows)} == {"q", "dy"}


def variant_text(spec: OpSpec) -> str:
    """The text of the kernel for sm_90, which is of operators with many filters."""
    spec = dataclasses.replace(spec, groups_in_full=256)
    plan = plans(spec, "toeplitz")[0]
    text = emit(spec, plan, schedule(spec, plan, {"backward": {"TILES_SM90": 16}})).text
    return text[text.index("def probe_backward_sm90(") : text.index("def sum_partials(")]


def statements(text: str) -> list[tuple[str, Any]]:
    """Copies, waits and reads in order: loops over parts are one pass, calls on one line."""
    joined = re.sub(r"\(\n\s+(.*)\n\s+\)\n", r"(\1)\n", text)
    found: list[tuple[str, Any]] = []
    for line in joined.splitlines():
        if match := re.search(r"\bfetch\((\w+), \w+, \w+, edges, (\w+(?: - LEAD)?), ", line):
            found.append(("fetch", match.groups()))
        elif "commit_group()" in line:
            found.append(("commit", None))
        elif match := re.search(r"wait_group\((\d+)\)", line):
            found.append(("wait", int(match[1])))
        elif match := re.search(r"read_rows\((\w+), ", line):
            found.append(("read", match[1]))
    return found


def split_at(text: str, *marks: str) -> list[str]:
    parts = []
    for mark in marks:
        before, text = text.split(mark, 1)
        parts.append(before)
    return [*parts, text]


@pytest.mark.parametrize("taps", [1, 60, 129])
@pytest.mark.parametrize("name", STRUCTURES)
def test_a_block_is_there_when_it_is_read(name: str, taps: int) -> None:
    """Follow the copies of a kernel through its warm-up and four tiles."""
    spec = make(filter={"kind": "explicit", "length": taps, "groups": 2}, **STRUCTURES[name])
    text = variant_text(spec)
    loops = ("for _ in range(COUNT - 1):", "for back in range(")
    before, warmup, body, after = split_at(text, *loops, "newest = (newest + 1) % COUNT")
    count = -(-(taps - 1) // 64) + 1
    lead = (count - 1) * 64
    groups: list[list[tuple[str, int]]] = []  # committed: a slot, and the step of its block
    open_group: list[tuple[str, int]] = []
    slots: dict[str, int] = {}  # complete
    reads = 0

    def follow(lines: str, t: int) -> None:
        nonlocal open_group, reads
        for what, value in statements(lines):
            if what == "fetch":
                slot, time = value
                step = t - 64 if time.startswith("before") else t
                step -= lead if time.endswith("LEAD") else 0
                slots.pop(slot, None)
                open_group.append((slot, step))
            elif what == "commit":
                groups.append(open_group)
                open_group = []
            elif what == "wait":
                while len(groups) > value:
                    slots.update(groups.pop(0))
            else:
                early = value.endswith("_early")
                assert slots.get(value) == (t - lead if early else t), f"{value} at {t}"
                reads += 1

    steps = 512
    t = steps + lead
    follow(before, t)
    for _ in range(count - 1):
        follow(warmup, t)
        t -= 64
    for tile in range(4):
        follow(body, steps - 64 * tile)
    assert "async_copy.wait_group(0)" in after  # nothing is under way when the program ends
    assert reads >= 8


class _Tensor(SimpleNamespace):
    def data_ptr(self) -> int:
        return int(self.at)

    def stride(self, axis: int) -> int:
        return int(self.strides[axis])


def call(**changes: Any) -> tuple[Any, ...]:
    """Arguments of suits_sm90 for an input, dy and a gradient of 4096 steps."""
    fields = {
        "at": 4096,
        "strides": (0, 4096, 1),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda"),
    }
    tensors = [_Tensor(**fields) for _ in range(3)]
    for name, value in changes.items():
        if name in fields:
            setattr(tensors[-1 if name in ("at", "strides") else 0], name, value)
    bounds = changes.get("bounds", (0, 4096, 4096))
    config = {"BLOCK_T": 64, "SEGMENTS": 8}
    numbers = [
        changes.get(name, value) for name, value in {"unit": 1, "step": 8, "begin": 0}.items()
    ]
    return (tensors, *numbers, bounds, config)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The generated file of one input, as if on a GPU of sm_90."""
    spec = make()
    plan = plans(spec, "toeplitz")[0]
    path = tmp_path / "probe.py"
    path.write_text(emit(spec, plan, schedule(spec, plan)).text)
    module = Operator(path).namespace
    monkeypatch.setattr(module, "HAS_GLUON", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return module


@pytest.fixture
def suits(module: Any) -> Callable[..., bool]:
    found: Callable[..., bool] = module.suits_sm90
    return found


def test_a_plain_long_call_runs_the_variant(suits: Callable[..., bool]) -> None:
    assert suits(*call())
    assert suits(*call(bounds=(0, 904, 904)))
    assert suits(
        *call(begin=512, bounds=(-512, 4096, 1024))
    )  # a range of whole tiles inside a segment


@pytest.mark.parametrize(
    "changes",
    [
        {"device": torch.device("cpu")},
        {"dtype": torch.float16},
        {"unit": 3},
        {"step": 1},
        {"bounds": (0, 4095, 4095)},
        {"bounds": (-1, 4096, 4096)},
        {"bounds": (0, 4096, 1000)},  # a range that ends within a tile
        {"bounds": (0, 896, 896)},  # too short to gain
        {"begin": 4, "bounds": (-8, 4096, 4096)},  # dy would be read from an odd place on
        {"bounds": (0, 2**29, 2**29)},  # steps that 32-bit offsets could not tell apart
        {"at": 4098},
    ],
    ids=str,
)
def test_other_calls_run_the_kernel_that_takes_any(
    changes: dict[str, Any], suits: Callable[..., bool]
) -> None:
    assert not suits(*call(**changes))


@pytest.mark.parametrize("odd", [None, 0, 1, 3, 4])
def test_inputs_of_different_strides_do_not_run_the_variant(
    odd: int | None, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two inputs share a stride, and so do their gradients; dy, between them, has its own."""
    monkeypatch.setattr(module, "INPUTS", ("k", "v"))
    (x, *_), *rest = call()
    tensors = [_Tensor(**vars(x)) for _ in range(5)]
    tensors[2].strides = (0, 16384, 1)
    if odd is not None:
        tensors[odd].strides = (0, 8192, 1)
    assert module.suits_sm90(tensors, *rest) == (odd is None)


def test_other_gpus_do_not_run_the_variant(
    suits: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    assert not suits(*call())
