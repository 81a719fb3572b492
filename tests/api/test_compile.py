"""What calls refuse before they do any work, and what `verify` says of a changed file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sh2gen
from sh2gen.api.compile import compile, compile_operator, compile_operators, stale
from sh2gen.api.inputs import op_files
from sh2gen.api.tune import tune_operator
from sh2gen.api.verify import _described, verify_operator
from sh2gen.base.errors import CheckFailed, Sh2genError
from sh2gen.base.files import UNVERIFIED, intact, signed, stated, statement
from sh2gen.base.resources import folder
from sh2gen.lower import plans
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.language import StateSpec, StateWidth
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import target
from sh2gen.tuning.choose import candidates
from sh2gen.verify import checks
from sh2gen.verify.checks import VerificationStep, quick_checks

SPEC: OpSpec = spec_from_dict(
    {
        "op": "small_conv",
        "channels": 4,
        "filter": {"kind": "explicit", "length": 3, "groups": 4},
    }
)


def written(folder: Path) -> Path:
    return compile_operator(SPEC, out=folder, verified=False, built=False).path


@pytest.mark.parametrize("directions", [(), ("sideways",), "forward"])
def test_tuning_needs_a_direction(directions: Any) -> None:
    with pytest.raises(
        ValueError, match="directions must be of forward, backward, decode, at least one"
    ):
        next(tune_operator(SPEC, directions=directions))


def test_a_file_of_the_users_is_not_replaced(tmp_path: Path) -> None:
    own = tmp_path / "small_conv.py"
    own.write_text("precious = 1\n")
    with pytest.raises(Sh2genError) as caught:
        written(tmp_path)
    assert caught.value.code == "C005"
    assert own.read_text() == "precious = 1\n"


def test_a_file_of_ours_is_replaced_unless_it_was_changed(tmp_path: Path) -> None:
    path = written(tmp_path)
    text = path.read_text()
    assert written(tmp_path) == path
    path.write_bytes(text.replace("\n", "\r\n").encode())  # git did that
    assert written(tmp_path).read_text() == text
    path.write_text(f"{text}\nprecious = 1\n")
    with pytest.raises(Sh2genError, match="was changed after sh2gen wrote it") as caught:
        written(tmp_path)
    assert caught.value.code == "C005" and "precious" in path.read_text()
    path.write_text(re.sub("^sha256, .*$", "", text, flags=re.M))  # older than digests
    assert written(tmp_path).read_text() == text


def test_a_changed_kernel_is_not_called_verified(tmp_path: Path) -> None:
    """Nor executed, although a digest is easily made."""
    path = written(tmp_path)
    text = path.read_text()
    changed = text.replace("total += taps[lag] * x[r - lag]", "total -= taps[lag] * x[r - lag]")
    assert changed != text
    changed += f"\nopen({str(tmp_path / 'executed')!r}, 'w')\n"
    path.write_text(signed(changed))
    with pytest.raises(CheckFailed) as caught:
        verify_operator(path, device="cpu", examples=1)
    assert caught.value.code == "V003" and not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SPEC", "dict()"),
        ("PLAN", "5"),
        ("WIDTHS", "5"),
        ("WIDTHS", "{4: 1}"),
        ("CONFIGS", "[*()]"),
        ("CONFIGS", "{5: {}}"),
        ("CONFIGS", "{('', 4): {}}"),
        ("CONFIGS", "{('', 4, 4): 5}"),
        ("CONFIGS", "{('', 4, 4): {'forward': 5}}"),
        ("SPEC", "("),
    ],
)
def test_a_file_that_does_not_say_what_it_is(tmp_path: Path, name: str, text: str) -> None:
    path = written(tmp_path)
    changed = re.sub(
        f"\n{name}(: dict)? = ", rf"\n{name}\1 = {text}; {name}_WAS = ", path.read_text()
    )
    assert changed != path.read_text()
    path.write_text(signed(changed))
    with pytest.raises(Sh2genError, match="lacks what a generated file has: ") as caught:
        verify_operator(path, device="cpu")
    assert caught.value.code == "B005"


def test_an_unknown_plan_in_a_file(tmp_path: Path) -> None:
    path = written(tmp_path)
    text = path.read_text().replace("direct/BDL/recompute", "direct/BDL/save-zzz")
    path.write_text(signed(text))
    with pytest.raises(Sh2genError) as caught:
        verify_operator(path, device="cpu")
    assert caught.value.code == "L003"


def test_a_plan_beside_a_generated_file(tmp_path: Path) -> None:
    with pytest.raises(Sh2genError) as caught:
        verify_operator(written(tmp_path), device="cpu", plan="direct/BLD")
    assert caught.value.code == "C006"


def test_all_operators_are_written_or_none(tmp_path: Path) -> None:
    """Also if the last is refused only by its lowering, or by the folder."""
    out = tmp_path / "out"
    last = dataclasses.replace(SPEC, op="last_conv")
    later = dataclasses.replace(last, state=StateSpec(final=True, width=StateWidth.K))
    with pytest.raises(Sh2genError, match="last_conv"):
        compile_operators([SPEC, later], out=out, verified=False, built=False)
    assert not out.exists()
    out.mkdir()
    (out / "last_conv.py").write_text("precious = 1\n")
    with pytest.raises(Sh2genError, match="sh2gen did not write it"):
        compile_operators([SPEC, last], out=out, verified=False, built=False)
    (out / "last_conv.py").unlink()
    assert not list(out.iterdir())
    both = compile_operators([SPEC, last], out=out, verified=False, built=False)
    assert [c.path for c in both] == [out / "small_conv.py", out / "last_conv.py"]
    assert all(c.path.read_text() == c.source.text for c in both)


def test_a_wrong_result_of_one_leaves_all_unwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = dataclasses.replace(SPEC, op="last_conv")

    def checks(spec: OpSpec, *_: Any) -> Iterator[VerificationStep]:
        shapes = ((1, 3),) if spec is SPEC else ()  # of nothing: a report without checks
        for step in quick_checks(spec, *_):
            yield dataclasses.replace(step, shapes=shapes)

    monkeypatch.setattr("sh2gen.api.compilation.quick_checks", checks)
    with pytest.raises(CheckFailed, match="nothing of last_conv was verified"):
        compile_operators([SPEC, last], out=tmp_path / "out", plan="fft")
    assert not (tmp_path / "out").exists()


def test_operators_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(SPEC.to_yaml())
    with pytest.raises(Sh2genError) as caught:
        compile_operators(op_files([tmp_path]), out=tmp_path / "out", verified=False)
    assert caught.value.code == "C006"
    for word in ("2 operators are named `small_conv`", "a.yaml", "b.yaml"):
        assert word in caught.value.message
    assert not (tmp_path / "out").exists()


def test_a_config_is_of_the_plan_that_is_taken() -> None:
    """Other plans have other knobs, or none: what is legal for them does not matter."""
    default = candidates(SPEC, target("H200"))
    assert len({c.plan.algorithm for c in default}) > 1
    changed = candidates(SPEC, target("H200"), changes={"forward": {"BLOCK_T": 512}})
    assert [c.plan for c in changed] == [c.plan for c in default]
    assert changed[1:] == default[1:]
    assert dict(changed[0].schedule.forward)["BLOCK_T"] == 512
    with pytest.raises(Sh2genError) as caught:
        candidates(SPEC, target("H200"), changes={"forward": {"BLOCK_T": 8}})
    assert caught.value.code == "K003"


def test_a_bad_name_is_refused_before_a_config_is_looked_at() -> None:
    spec = dataclasses.replace(SPEC, op="launch")
    with pytest.raises(Sh2genError) as caught:
        candidates(spec, target("H200"), changes={"forward": {"ROWS": 7}})
    assert caught.value.code == "S007"


def test_compile_imports_what_it_writes() -> None:
    with pytest.raises(TypeError, match="write=False"):
        compile(SPEC, write=False)


@pytest.mark.parametrize("path", sorted((folder("ops").parent / "generated").glob("*.py")))
def test_the_plan_of_a_generated_file_is_found(path: Path) -> None:
    """On a CPU only if this version writes the file, from the configs that stand in it."""
    spec, plan = _described(path, "cpu")
    assert spec.op == path.stem and f'\nPLAN = "{plan.name}"\n' in path.read_text()


# ---- how a file was verified --------------------------------------------------------------------

INTERPRETED = "by Triton's interpreter, not yet run on a GPU."


def said(path: Path) -> str:
    text = path.read_text()
    assert intact(text)  # its digest is of what it says too
    return statement(text)


def test_a_file_says_how_it_was_verified_and_no_less_than_before(tmp_path: Path) -> None:
    first = compile_operator(SPEC, out=tmp_path, built=False)
    path = first.path
    assert first.verified == said(path) == INTERPRETED
    assert first.to_dict()["verified"] == INTERPRETED
    assert len(verify_operator(path, device="cpu", examples=1)) > 2
    # The same program, not verified again, and another.
    unverified = {"out": tmp_path, "built": False, "verified": False}
    assert said(compile_operator(SPEC, **unverified).path) == INTERPRETED
    path.write_text(stated(path.read_text(), "on NVIDIA H100."))
    assert not stale(compile_operator(SPEC, write=False, **unverified))
    assert said(compile_operator(SPEC, out=tmp_path, built=False).path) == "on NVIDIA H100."
    changes = {"forward": {"TILES": 4}}
    assert stale(compile_operator(SPEC, write=False, changes=changes, **unverified))
    assert said(compile_operator(SPEC, changes=changes, **unverified).path) == UNVERIFIED


def test_what_is_said_on_a_gpu_and_of_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, plain = plans(SPEC, "direct")[0], plans(SPEC, "fft")[0]
    assert checks.statement(plain).startswith("by plain PyTorch, which is all of it, not yet run")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA B200")
    for plan in (kernels, plain):
        here = checks.statement(plan)
        assert here == "on NVIDIA B200."
        for less in (UNVERIFIED, INTERPRETED, checks.PLAIN_ALONE):
            assert checks.stronger(less, here) == checks.stronger(here, less) == here
    assert checks.stronger(here, "on NVIDIA H200.") == here  # the later one


def test_other_widths_of_a_file_stay_in_it(tmp_path: Path) -> None:
    """If it is a file that this sh2gen writes, and was verified."""
    wide = SPEC.with_width(8, 8)
    path = tmp_path / "small_conv.py"

    def compiled(*specs: OpSpec, rows: int = 1, batch: int | None = None) -> Any:
        changes = {"forward": {"ROWS": rows}} if rows > 1 else None
        options: dict[str, Any] = {"out": tmp_path, "built": False, "target": "H200"}
        found = compile_operators(specs, changes=changes, batch=batch, **options)
        for one in specs:  # the other way round too
            assert not stale(
                compile_operator(one, changes=changes, batch=batch, write=False, **options)
            )
        assert {c.path for c in found} == {path}
        return sh2gen.load(path).namespace

    both = compiled(SPEC, wide)
    assert both.WIDTHS == {(4, 4): 1, (8, 8): 1} and both.CONFIGS == {}, "defaults are rules"
    text = path.read_text()
    assert compiled(SPEC).WIDTHS == both.WIDTHS and path.read_text() == text
    changed = compiled(SPEC, rows=16)
    ((key, config),) = changed.CONFIGS.items()
    assert key == ("NVIDIA H200", 4, 4) and config["forward"]["ROWS"] == 16
    assert changed.WIDTHS == both.WIDTHS
    assert list(compiled(wide).WIDTHS) == [(4, 4), (8, 8)], "the file's own width stays"
    assert compiled(wide).CHANNELS == 4
    assert sh2gen.compile(wide, out=tmp_path, built=False).spec.channels == 8
    assert sh2gen.load(path).namespace.CONFIGS == changed.CONFIGS, "nothing is lost"
    assert compiled(wide, batch=3).WIDTHS == {(4, 4): 1, (8, 8): 3}
    # A default of this GPU is stated where that of another of its capability would be taken.
    mine, there = ("NVIDIA H200", 4, 4), ("NVIDIA H100 80GB HBM3", 4, 4)
    path.write_text(signed(path.read_text().replace(str(mine[0]), str(there[0]))))
    found = compiled(SPEC).CONFIGS
    assert list(found) == [mine, there] and found[there] == config != found[mine]
    assert found == compiled(SPEC).CONFIGS and found == compiled(wide).CONFIGS
    path.write_text(stated(path.read_text(), UNVERIFIED))
    gone = r"will not serve 8 channels in 8 groups, the config of NVIDIA H100 80GB HBM3 for 4 "
    with pytest.warns(UserWarning, match=gone):
        sh2gen.compile(SPEC, out=tmp_path, built=False, target="H200")
    assert list(compiled(SPEC).WIDTHS) == [(4, 4)]
    path.write_text(signed(text.replace("# least batch by", "# batch by")))
    assert list(compiled(SPEC).WIDTHS) == [(4, 4)], "written by another sh2gen"
