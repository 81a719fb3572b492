"""No two calls of a helper share a name and not a body (decision 12)."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sh2gen.base.errors import CheckFailed
from sh2gen.base.resources import folder
from sh2gen.build import worker as build_worker
from sh2gen.build.build import Compilers, build, kernel_job
from sh2gen.emit.emit import emit
from sh2gen.lower import plans
from sh2gen.plan.kernel import Role
from sh2gen.plan.plan import Plan
from sh2gen.plan.source import Alignment, KernelSource, Source
from sh2gen.schedule.config import DIRECTIONS, Schedule, partner, schedule
from sh2gen.schedule.space import search_space
from sh2gen.spec.decode import load_spec, spec_from_dict
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import target
from sh2gen.tuning.recheck import kernels_of_decision
from sh2gen.tuning.tables import Decision, read_tables
from tests.strategies import register_profiles, specs

register_profiles()

H200 = target("H200")
PARTS = sorted((Path(__file__).parents[2] / "templates" / "parts").glob("*.py"))
# Those of other widths have the same kernels.
DECISIONS = {
    (d.op, d.key.direction, d.config): d
    for d in read_tables([folder("schedules") / "tuned"])[0]
    if len(d.workloads) == 1
}

SHARED = """
import triton
import triton.language as tl


@triton.jit
def fir(x, taps{parameter}):
    total = taps[0] * x[{length} - 1]
    for lag in tl.static_range(1, {length}):
        total += taps[lag] * x[{length} - 1 - lag]
    return total


@triton.jit
def both(x_ptr, y_ptr):
    rows = ()
    for r in tl.static_range(6):
        rows = rows + (tl.load(x_ptr + r),)
    tl.store(y_ptr, fir(rows[0:4], rows[0:2]{two}))
    tl.store(y_ptr + 1, fir(rows[0:3], rows[0:3]{three}))
"""


def with_shared_names(**words: str) -> Source:
    pointers = ("x_ptr", "y_ptr")
    kernel = KernelSource(
        name="both",
        role=Role.FORWARD,
        signature=tuple((name, "*fp32") for name in pointers),
        constants=(),
        divisible=pointers,
        unaligned_keeps=pointers,
        num_warps=1,
        num_stages=3,
    )
    return Source(op="shared", text=SHARED.format(**words), kernels=(kernel,))


def test_the_build_refuses_calls_that_share_a_name(compilers: Compilers) -> None:
    """With whatever Triton: one that names them apart is no excuse."""
    source = with_shared_names(parameter="", length="len(taps)", two="", three="")
    with pytest.raises(CheckFailed) as refused:
        build(source, H200, alignments=[Alignment.ALIGNED], compilers=compilers)
    assert refused.value.code == "B001"
    assert "`fir` is called with x of 4, taps of 2, and with x of 3, taps of 3" in str(
        refused.value
    )
    sized = {"parameter": ", LENGTH: tl.constexpr", "length": "LENGTH"}
    build(with_shared_names(**sized, two=", 2", three=", LENGTH=3"), H200, compilers=compilers)


def refuse_shared_names(source: Source, kernels: tuple[KernelSource, ...] | None = None) -> int:
    """The first stage of the compiler over kernels, in this process; how many there were."""
    kernels = source.kernels if kernels is None else kernels
    for kernel in kernels:
        job = json.loads(kernel_job(source, H200, kernel, Alignment.ALIGNED))
        answer = build_worker.compile_kernel(job | {"names_only": True})
        assert "error" not in answer, answer["error"]
    return len(kernels)


def test_no_default_kernel_has_calls_that_share_a_name() -> None:
    """Of plans that are not built (test_defaults.py): few taps by products."""
    spec = load_spec(folder("ops") / "hyena_se.yaml")
    found = [emit(spec, p, schedule(spec, p)) for p in plans(spec, "toeplitz")]
    assert sum(map(refuse_shared_names, found)) > 6


@pytest.mark.parametrize("decision", DECISIONS.values(), ids=lambda d: f"{d.op}-{d.date}")
def test_no_tuned_kernel_has_calls_that_share_a_name(decision: Decision) -> None:
    assert refuse_shared_names(*kernels_of_decision(decision)) > 0


def any_schedule(spec: OpSpec, plan: Plan, number: int) -> Schedule:
    direction = DIRECTIONS[number % 2]
    points = search_space(spec, plan, direction).points
    point = points[number // 2 % len(points)]
    (other,) = set(DIRECTIONS) - {direction}
    pair = {direction: point, other: partner(spec, plan, direction, point)}
    return dataclasses.replace(schedule(spec, plan), **pair)


KINDS = ("explicit", "decay", "modal")
SHIFTED = spec_from_dict(  # its backward for sm_90 calls shift(x, bias)
    {
        "op": "shifted",
        "channels": 64,
        "filter": {"kind": "explicit", "length": 75, "groups": 4},
        "gates": {"pre": True, "post": True},
        "bias": "ungated",
        "dtype": {"io": "bfloat16"},
    }
)


@given(specs(160, kinds=KINDS, io=("bfloat16", "float32")), st.integers(0, 10**6))
def test_no_kernel_of_any_operator_has_calls_that_share_a_name(spec: OpSpec, number: int) -> None:
    found = [p for p in plans(spec) if p.kernels]
    if found:
        plan = found[number % len(found)]
        refuse_shared_names(emit(spec, plan, any_schedule(spec, plan, number)))


@given(specs(160, kinds=KINDS, io=("bfloat16", "float32")))
@example(SHIFTED)
def test_no_variable_of_a_kernel_hides_a_helper(spec: OpSpec) -> None:
    """Not one of any plan: `shift = ...` before a call of shift(x, bias) did not compile."""
    for plan in plans(spec):
        tree = ast.parse(emit(spec, plan, schedule(spec, plan)).text)
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        names = {function.name for function in functions}
        for function in functions:
            assigned = {
                node.id
                for node in ast.walk(function)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
            called = {
                ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)
            }
            assert not assigned & names & called, (plan.name, function.name)


@pytest.mark.parametrize(("taps", "featurizer"), [(2, 3), (3, 2), (5, 3), (7, 4)])
def test_channels_last_rows_of_one_block_are_not_taps(taps: int, featurizer: int) -> None:
    """There rows and taps have one type: these were wrong on a GPU."""
    spec = spec_from_dict(
        {
            "op": "short",
            "channels": 64,
            "filter": {"kind": "explicit", "length": taps, "groups": 64},
            "featurizer": {"length": featurizer},
            "gates": {"pre": True, "post": True},
            "layout": {"activations": "BLD"},
        }
    )
    for plan in plans(spec, "direct"):
        assert refuse_shared_names(emit(spec, plan, schedule(spec, plan))) == 4


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_helpers_of_two_tuples_take_the_size_of_one(path: Path) -> None:
    """Who asks for the lengths of two arguments has a body that their types do not decide."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        names = {argument.arg for argument in function.args.args}
        sized = {
            ast.unparse(call.args[0])
            for call in ast.walk(function)
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "len"
        }
        jit = any("jit" in ast.unparse(mark) for mark in function.decorator_list)
        assert not jit or len(sized & names) < 2, f"{function.name}: lengths of {sized & names}"


def test_a_tuple_of_other_fields_is_another_thing() -> None:
    @dataclasses.dataclass(frozen=True)
    class Leaf:
        type: object

    class Kind:
        @staticmethod
        def mangle() -> str:
            return "fp32"

    leaf = Leaf(Kind)
    one = build_worker._structure((leaf, (leaf, leaf)))
    other = build_worker._structure(((leaf, leaf), leaf))
    assert one != other
    flat = [[x for _, x in build_worker._leaves(part)] for part in (one, other)]
    assert flat == [["fp32"] * 3] * 2
