"""Tuned tables outlive growth: of the language, and of the kernels' text."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sh2gen import lower
from sh2gen.base.errors import Sh2genError
from sh2gen.base.resources import folder
from sh2gen.build.build import Compilers, kernel_job
from sh2gen.build.worker import normalised_ptx, ptx_digest
from sh2gen.emit import emit
from sh2gen.emit.launched import kernel_digests
from sh2gen.plan.source import KernelSource, Source
from sh2gen.spec import decode, operator
from sh2gen.tuning import choose, tables
from sh2gen.tuning.choose import candidates
from sh2gen.tuning.recheck import Checked, Verdict, kernels_of_decision, recheck
from sh2gen.tuning.tables import Decision, read_tables, write_decisions
from tests.gpus import H200

TUNED = folder("schedules") / "tuned"
DECISIONS, _ = read_tables([TUNED])
SHORT = next(
    d
    for d in DECISIONS
    if (d.op, d.key.direction, len(d.workloads)) == ("short_conv", "forward", 1)
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grown(operator.OpSpec):
    """The language with one more field."""

    rotation: str = "none"


def test_a_new_field_and_a_renamed_helper_lose_no_decision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every shipped decision is found exactly as before by an operator of a later version."""
    load = {d.op: decode.load_spec(folder("ops") / f"{d.op}.yaml") for d in DECISIONS}
    real = emit.blocks

    def renamed(*arguments: Any) -> tuple[str, list[str]]:
        helpers = r"\b(fir|load_steps|toeplitz|modal)\b"
        before, after = real(*arguments)
        return before, [re.sub(helpers, r"\1_of_today", block) for block in after]

    monkeypatch.setattr(emit, "blocks", renamed)
    choose.kernels_of.cache_clear()
    known = choose.tables()
    for d in DECISIONS:
        now = {f.name: getattr(load[d.op], f.name) for f in dataclasses.fields(operator.OpSpec)}
        grown = Grown(**now | {"workloads": d.workloads})
        assert "rotation" not in grown.canonical() and grown.to_dict()["rotation"] == "none"
        chosen = candidates(grown, H200, known=known)[0]
        assert chosen.decided[d.key.direction] == d
        assert chosen.origins[d.key.direction].startswith("tuned on NVIDIA H200")
        other = dataclasses.replace(grown, rotation="left")
        assert tables.fields_of(other) != tables.fields_of(grown)
    choose.kernels_of.cache_clear()


def test_every_shipped_decision_says_what_its_kernels_were() -> None:
    for d in DECISIONS:
        _, kernels = kernels_of_decision(d)
        assert set(d.kernels) == set(kernel_digests(d.op, ((k, "") for k in kernels)))


def test_a_line_of_the_first_version_is_read() -> None:
    old = json.loads(SHORT.to_line())
    whole = operator.with_defaults(old["fields"])
    old |= {"v": 1, "fields": {k: v for k, v in whole.items() if k not in ("op", "workloads")}}
    old["key"] |= {"templates": "7e" * 8, "spec": "00" * 32}
    del old["kernels"]
    old["numbers"] = old.pop("config")
    assert Decision.from_line(json.dumps(old)) == dataclasses.replace(SHORT, kernels={})
    old["fields"]["filter"]["kind"] = "spiral"
    with pytest.raises(ValueError, match="fields describe no operator: "):
        Decision.from_line(json.dumps(old))
    with pytest.raises(ValueError, match="must be objects"):
        Decision.from_line('{"v": 1}')


# ---- what the compiler makes of a kernel --------------------------------------------------------

KERNEL = """
import triton
import triton.language as tl


@triton.jit
def {helper}(x, y):
    return x * y + {constant}


@triton.jit
def {kernel}(a_ptr, {extra} b_ptr, n):
    for i in range(n):
        value = {helper}(tl.load(a_ptr + i), 2.0)  # {comment}
        if value > 0.0:
            tl.store(b_ptr + i, value)
"""


def compiled(compilers: Compilers, extra: str = "", **words: str) -> str:
    words = {"helper": "fma", "kernel": "one", "comment": "", "constant": "1.0"} | words
    signature = [("a_ptr", "*fp32"), ("b_ptr", "*fp32"), ("n", "i32")]
    if extra:
        signature.insert(1, (extra, "*fp32"))
    source = Source(
        op="growth",
        text=KERNEL.format(extra=f"{extra}," * bool(extra), **words),
        kernels=(),
    )
    kernel = KernelSource(
        name=words["kernel"],
        role="forward",  # type: ignore[arg-type]
        signature=tuple(signature),
        constants=(),
        divisible=("a_ptr", "b_ptr"),
        unaligned_keeps=(),
        num_warps=1,
        num_stages=3,
    )
    job = kernel_job(source, H200, kernel, "aligned")  # type: ignore[arg-type]
    answer = compilers.submit(job).result()
    assert "ptx" in answer, answer
    assert answer["ptx_digest"] == ptx_digest(answer["ptx"])
    return str(answer["ptx"])


def test_what_does_not_run_is_no_part_of_a_digest(compilers: Compilers) -> None:
    """Names of kernels and helpers, comments, lines, arguments that are not read."""
    plain = compiled(compilers)
    other = compiled(
        compilers, helper="a_b", kernel="two", comment="why\n        # so", extra="unread_ptr"
    )
    assert plain != other and normalised_ptx(plain) == normalised_ptx(other)
    assert ptx_digest(plain) != ptx_digest(compiled(compilers, constant="3.0"))
    text = normalised_ptx(plain)
    assert not re.search(r"//|\$|\.loc|\.file|debug|one|growth", text)
    assert "label0" in text and "[parameter0]" in text  # else nothing was left to compare


def test_where_in_a_block_a_parameter_is_read_is_no_part_of_a_digest(compilers: Compilers) -> None:
    plain = compiled(compilers)
    lines = plain.splitlines()
    reads = [i for i, line in enumerate(lines) if line.lstrip().startswith("ld.param")]
    ends = [i for i, line in enumerate(lines) if re.search(r"\bbra\b|^\$L__BB", line)]
    first, second = next(
        (i, j) for i, j in pairwise(reads) if not any(i < end < j for end in ends)
    )

    def moved(start: int, to: int) -> str:
        rest = lines[:start] + lines[start + 1 :]
        return "\n".join([*rest[:to], lines[start], *rest[to:]])

    swapped = moved(first, second)
    assert swapped != plain and normalised_ptx(swapped) == normalised_ptx(plain)
    later = next(end for end in ends if end > second)
    assert normalised_ptx(moved(second, later)) != normalised_ptx(plain), "in another block"


# ---- `tables check` -----------------------------------------------------------------------------


def checked(decision: Decision) -> Checked:
    (found,) = recheck([decision], workers=1)
    return found


def test_a_decision_is_of_the_kernels_of_today_or_is_named() -> None:
    same = checked(SHORT)
    assert (same.verdict, same.stale, same.kernels) == (Verdict.SAME, False, SHORT.kernels)

    changed = checked(dataclasses.replace(SHORT, kernels={"forward": "00" * 8}))
    assert (changed.verdict, changed.stale, changed.detail) == (Verdict.CHANGED, True, "forward")
    assert changed.command == (
        f"sh2gen tune short_conv.yaml --length {SHORT.workloads[0].length} --direction forward "
        f"--plan {SHORT.key.plan}"
    )
    assert checked(dataclasses.replace(SHORT, kernels={})).verdict is Verdict.UNKNOWN
    key = dataclasses.replace(SHORT.key, triton="3.5")
    assert checked(dataclasses.replace(SHORT, key=key)).verdict is Verdict.ELSEWHERE
    key = dataclasses.replace(SHORT.key, plan="direct/BDL/nothing")
    gone = checked(dataclasses.replace(SHORT, key=key))
    assert gone.verdict is Verdict.GONE and "has no plan" in gone.detail


QUICK = [d for d in DECISIONS if [w.length for w in d.workloads] == [8192]]


@pytest.mark.parametrize("decision", QUICK, ids=lambda d: f"{d.op}-{d.key.direction}")
def test_shipped_configs_are_of_the_kernels_of_today(decision: Decision) -> None:
    """A change of what kernels do is measured anew, or its config goes (`tables check`: all)."""
    found = checked(decision)
    assert (found.verdict, found.detail) == (Verdict.SAME, ""), found


def test_every_tuned_operator_is_among_them() -> None:
    kinds = {(d.op, d.key.direction) for d in DECISIONS}
    assert kinds == {(d.op, d.key.direction) for d in QUICK}


def test_compile_says_that_a_kernel_has_changed_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config is taken all the same."""
    from sh2gen.api.compile import compile_operator

    write_decisions(tmp_path, [dataclasses.replace(SHORT, kernels={"forward": "00" * 8})])
    op = dataclasses.replace(
        decode.load_spec(folder("ops") / "short_conv.yaml"), workloads=SHORT.workloads
    )
    options = {"target": H200, "verified": False, "write": False}
    changed = compile_operator(op, tables=tmp_path, **options).chosen
    assert changed.schedule.forward == SHORT.config
    assert changed.origins["forward"].endswith("; kernel changed since (`sh2gen tables check`)")
    same = compile_operator(op, **options).chosen
    assert not any("changed since" in origin for origin in same.origins.values())


def test_there_is_no_check_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sh2gen.tuning.recheck.triton_version", lambda: "none")
    with pytest.raises(Sh2genError, match="Triton is not installed"):
        next(recheck([SHORT]))
    assert lower.plans(SHORT.spec)
