"""Generated text: formatted, free of lint, the same every time, no user's text unescaped."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import intact
from sh2gen.base.resources import folder
from sh2gen.emit.config import width_of
from sh2gen.emit.emit import _words, emit, kernel_digest
from sh2gen.emit.kernels import splits_sequences
from sh2gen.emit.page import page
from sh2gen.emit.text import folded
from sh2gen.emit.words import class_name
from sh2gen.lower import ALGORITHMS, plans
from sh2gen.plan.kernel import Role
from sh2gen.plan.source import Source
from sh2gen.runtime.operator import Operator
from sh2gen.schedule.config import roles_of, schedule
from sh2gen.spec.decode import load_spec, spec_from_dict
from sh2gen.spec.operator import OpSpec
from tests.strategies import filter_for, register_profiles, specs
from tests.strategies_schedules import schedules

register_profiles()
LONGEST = "a" + "very_long_name_" * 4 + "end"


def make(**fields: Any) -> OpSpec:
    inner = {"kind": "explicit", "length": 4, "groups": 2}
    return spec_from_dict({"op": "probe", "channels": 6, "filter": inner} | fields)


def everything(op: str, packing: str, channels: int = 6) -> OpSpec:
    decay = {"preset": "strong", "cache_length": 123456, "repeats": 2}
    return make(
        op=op,
        channels=channels,
        filter={"kind": "decay", "length": 16, "groups": 2, "taps": "lag_last", "decay": decay},
        featurizer={"length": 16, "taps": "lag_first"},
        gates={"pre": True, "post": True},
        skip="group",
        bias="ungated",
        layout={"projection": packing},
    )


def spread() -> Iterator[OpSpec]:
    """Operators whose files differ in which lines they have, and in how long these are."""
    structures = itertools.product((False, True), (False, True), ("none", {"length": 3}))
    for number, (pre, post, featurizer) in enumerate(structures):
        extra = number % 3
        fields: dict[str, Any] = {"gates": {"pre": pre, "post": post}, "featurizer": featurizer}
        fields |= {"bias": "gated"} if extra == 1 else {}
        fields |= {"skip": "channel", "bias": "ungated"} if extra == 2 else {}
        fields |= {"activation": "silu"} if extra == 2 and not (pre or post) else {}
        yield make(**fields)
    yield everything("short", "thirds")
    yield everything(LONGEST, "interleaved", channels=2**20)
    yield make(op=LONGEST, channels=2**20, bias="ungated", activation="silu")
    yield make(filter={"kind": "freeform", "length": 10**6, "groups": 2})
    for path in sorted(folder("ops").glob("*.yaml")):
        yield load_spec(path)


def emitted(spec: OpSpec) -> Iterator[tuple[str, Source]]:
    for plan in plans(spec):
        yield plan.name, emit(spec, plan, schedule(spec, plan))


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of pages for every operator of the spread and every plan."""
    where = tmp_path_factory.mktemp("emitted")
    for number, spec in enumerate(spread()):
        for name, source in emitted(spec):
            (where / f"{number}_{name.replace('/', '_')}.py").write_text(source.text)
    assert len(list(where.iterdir())) > 70
    # As `page` does, all at once.
    options = ("--isolated", "--no-cache", "--line-length=99", "--target-version=py311")
    assert ruff("format", *options, str(where)).returncode == 0
    return where


def ruff(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ruff", *arguments], capture_output=True, text=True, check=False
    )


def test_generated_files_have_no_unused_and_no_unknown_names(generated: Path) -> None:
    result = ruff("check", "--isolated", "--no-cache", "--select=F", str(generated))
    assert result.returncode == 0, result.stdout[:3000]


def test_generated_lines_fit_on_a_page(generated: Path) -> None:
    for path in generated.iterdir():
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            assert len(line) <= 99, f"{path.name}:{number}: {line}"
            assert line == line.rstrip() and "\t" not in line


def test_generated_files_compile_and_say_what_they_are(generated: Path) -> None:
    for path in generated.iterdir():
        tree = ast.parse(path.read_text())
        assert len((ast.get_docstring(tree) or "").splitlines()) > 5
        imported = {
            (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else name.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in node.names
        }
        beside = {"torch", "triton", "triton.language"}
        assert imported - beside <= sys.stdlib_module_names, path.name
        launchers = [n for n in tree.body if getattr(n, "name", "").startswith("launch_")]
        assert all(ast.get_docstring(n) for n in launchers)  # type: ignore[arg-type]


@given(st.data())
def test_any_operator_under_any_schedule(data: st.DataObject) -> None:
    spec = data.draw(specs(kinds=("explicit", "decay", "freeform")))
    plan = data.draw(st.sampled_from(plans(spec)))
    drawn = data.draw(schedules(spec, plan))
    source = emit(spec, plan, drawn)
    again = dataclasses.replace(spec_from_dict(spec.to_dict()), groups_in_full=spec.groups_in_full)
    assert source == emit(again, plan, drawn)
    namespace = constants_of_file(source.text)
    assert spec_from_dict(namespace["SPEC"]) == dataclasses.replace(spec, groups_in_full=None)
    assert namespace["PLAN"] == plan.name and namespace["LAYOUT"] == plan.layout
    assert (namespace["CHANNELS"], namespace["GROUPS"]) == (spec.channels, spec.filter.groups)
    configs = {role: dict(drawn.config(role)) for role in roles_of(plan)}
    configs = {("", spec.channels, spec.filter.groups): configs} if plan.kernels else {}
    assert source.configs == namespace.get("CONFIGS", {}) == configs


def constants_of_file(text: str) -> dict[str, Any]:
    """The plain data at the top of a generated file."""
    found: dict[str, Any] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                continue
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            names = ast.unparse(target).strip("()").split(", ")
            found |= {names[0]: value} if len(names) == 1 else zip(names, value, strict=True)
    return found


def test_emission_is_the_same_in_another_process() -> None:
    script = (
        "from tests.emit.test_emit import everything, emitted\n"
        "print([s.digest for _, s in emitted(everything('short', 'thirds'))])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    here = str([s.digest for _, s in emitted(everything("short", "thirds"))])
    assert runs == [here + "\n"] * 2


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "fft"])
def test_a_schedule_changes_the_configs_and_nothing_else(algorithm: str) -> None:
    """Also where they ask for the kernel for sm_90, or for split sequences, which are there
    whether or not a config launches them.
    """
    spec = make(channels=256, filter=filter_for(algorithm) | {"groups": 32})
    plan = plans(spec, algorithm)[0]
    config: dict[str, dict[str, int]] = {
        "direct": {"TILES": 2},
        "toeplitz": {"TILES_SM90": 16},
        "modal": {"PROGRAMS": 1024},
    }[algorithm]
    ((name, number),) = config.items()
    one, other = (emit(spec, plan, schedule(spec, plan, n)) for n in ({}, {"backward": config}))
    assert other.configs["", 256, 32]["backward"] == one.configs["", 256, 32]["backward"] | config
    assert one.frame == other.frame and one.configs != other.configs
    lines = [source.text.splitlines() for source in (one, other)]
    changed = [line for before, line in zip(*lines, strict=True) if line != before]
    assert len(changed) == 2
    assert changed[0].startswith("sha256, with zeros here: ")
    assert f'"{name}": {number}' in changed[1]


def test_a_config_is_of_the_gpu_that_it_was_decided_for() -> None:
    spec = make()
    plan = plans(spec, "direct")[0]
    made = schedule(spec, plan)
    source = emit(spec, plan, made, [width_of(spec, 'a "GPU"', made)])
    assert list(source.configs) == list(constants_of_file(source.text)["CONFIGS"])
    assert list(source.configs) == [('a "GPU"', 6, 2)]


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "fft"])
def test_the_digest_of_kernels_is_of_their_text(
    algorithm: str,
) -> None:
    """Not of an operator's name, its channels and groups or its workloads; but of what is
    computed.
    """
    inner = filter_for(algorithm)
    gates = {"gates": {"pre": True, "post": True}, "featurizer": {"length": 3}}

    def digests(channels: int = 96, groups: int = 32, **fields: Any) -> list[str]:
        fields = gates | {"skip": "channel"} | fields
        spec = make(channels=channels, filter=inner | {"groups": groups}, **fields)
        return [kernel_digest(spec, plan) for plan in plans(spec, algorithm)]

    found = digests()
    assert len(set(found)) == len(found)
    workloads = [{"batch": 512, "length": 64}]
    assert digests(channels=3 * 4096, groups=4096, op="other", workloads=workloads) == found
    assert digests(channels=128) == found
    for other in (
        digests(skip="none"),
        digests(gates={"pre": True}),
        digests(featurizer={"length": 2}),
    ):
        assert not set(other) & set(found)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_kernels_are_listed_as_the_text_defines_them(algorithm: str) -> None:
    spec = make(
        filter=filter_for(algorithm),
        gates={"pre": True, "post": True},
        featurizer={"length": 3},
        skip="channel",
    )
    for plan in plans(spec, algorithm):
        source = emit(spec, plan, schedule(spec, plan))
        functions = {n.name: n for n in ast.parse(source.text).body if hasattr(n, "args")}
        assert bool(source.kernels) == bool(plan.kernels)
        for kernel in source.kernels:
            arguments = [a.arg for a in functions[kernel.name].args.args]
            given_ = [name for name, _ in kernel.signature] + [
                name for name, _ in kernel.constants
            ]
            assert sorted(arguments) == sorted(given_), kernel.name
            order = [a for a in arguments if a in dict(kernel.signature)]
            assert order == [name for name, _ in kernel.signature]
            if kernel.role is Role.FORWARD and not kernel.name.endswith("_sums"):
                assert dict(kernel.signature)["q_ptr"] == "*bf16"
                assert dict(kernel.signature)["skip_ptr"] == "*fp32"


@pytest.mark.parametrize("algorithm", ["direct", "toeplitz"])
@pytest.mark.parametrize(("channels", "groups"), [(6, 2), (96, 2), (520, 8)])
def test_sums_of_partials_are_built_as_they_are_launched(
    channels: int, groups: int, algorithm: str, tmp_path: Path
) -> None:
    inner = {"kind": "explicit", "length": 4, "groups": groups}
    gates = {"pre": True, "post": True}
    spec = make(
        channels=channels, filter=inner, gates=gates, featurizer={"length": 3}, skip="group"
    )
    for number, plan in enumerate(plans(spec, algorithm)):
        source = emit(spec, plan, schedule(spec, plan))
        (tmp_path / f"file_{number}.py").write_text(source.text)
        file = Operator(tmp_path / f"file_{number}.py").namespace
        (listed,) = (kernel for kernel in source.kernels if kernel.reduces)
        assert listed.role is Role.BACKWARD
        nodes = list(ast.walk(ast.parse(source.text)))
        (kernel,) = (n for n in nodes if isinstance(n, ast.FunctionDef) and n.name == listed.name)
        constants = dict(listed.constants)
        arguments = [*(name for name, _ in listed.signature), *constants]
        assert arguments == [a.arg for a in kernel.args.args]
        sections = [n for n in ast.walk(kernel) if isinstance(n, ast.Call)]
        stored = [n.args for n in sections if ast.unparse(n.func) == "store_gradient"]
        made = [n for n in ast.walk(kernel) if isinstance(n, ast.Assign)]
        summed = {id(n.value): ast.unparse(n.targets[0]) for n in made}
        sections = [n for n in sections if ast.unparse(n.func) == "sum_rows"]
        assert len(sections) == 3
        calls = (n for n in nodes if isinstance(n, ast.Call))
        (call,) = (n for n in calls if ast.unparse(n.func) == "reduce_partials")
        assert list(constants) == [k.arg for k in call.keywords]
        parameters = call.args[3]
        assert isinstance(parameters, ast.List)
        outputs = [f"d_{ast.unparse(tensor)}_ptr" for tensor in parameters.elts]
        assert [ast.unparse(place) for place, _ in stored] == outputs
        assert [f"{summed[id(section)]}_ptr" for section in sections] == outputs
        assert [f"{ast.unparse(value)}_ptr" for _, value in stored] == outputs
        # Every section has as many programs as its rows need, and the launch has all of them.
        programs = 0
        for index, section in enumerate(sections):
            numbers = {k.arg: eval(ast.unparse(k.value), constants) for k in section.keywords}
            sharing = numbers["COLUMNS"] // numbers["WIDTH"]
            rows = numbers["ROLES"] * numbers["LENGTH"]
            programs += rows * -(-sharing // file.rows_at_once(numbers["WIDTH"]))
            assert file.section_end(index, **dict(listed.constants)) == programs
        last = f"section_end({len(sections) - 1}, "
        assert ast.unparse(call.args[1]).startswith(last)
        assert constants_of_file(source.text)["SUMS"] == {"num_warps": listed.num_warps}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_only_helpers_that_are_called_are_copied(algorithm: str) -> None:
    spec = make(filter=filter_for(algorithm))
    for plan in plans(spec, algorithm):
        text = emit(spec, plan, schedule(spec, plan)).text
        functions = [n.name for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)]
        named = {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
        public = {"probe", "_"}
        assert not [f for f in functions if f not in named | public]
        assert "featuriz" not in text.replace('"featurizer": "none"', "")


def test_parts_are_copied_as_they_are_written() -> None:
    decay = {"preset": "weak", "cache_length": 8192}
    inner = {"kind": "decay", "length": 7, "groups": 3, "decay": decay}
    spec = make(gates={"pre": True, "post": True}, filter=inner)
    for plan in plans(spec, "direct"):
        text = emit(spec, plan, schedule(spec, plan)).text
        before: set[str] = set()  # the first part that defines a name wins
        for part in plan.kernels[0].parts:
            written = (folder("templates") / "parts" / f"{part}.py").read_text()
            helpers = [n for n in ast.parse(written).body if isinstance(n, ast.FunctionDef)]
            copied = [h for h in helpers if f"\ndef {h.name}(" in text and h.name not in before]
            assert copied
            before |= {helper.name for helper in copied}
            for helper in copied:
                assert ast.get_source_segment(written, helper) in text  # type: ignore[operator]


@pytest.mark.parametrize(
    "op", ['x"; import os #', "a b", "../up", "x\ny", "{{ 7 * 7 }}", "{% raw %}", 'a"""', "a\\n"]
)
def test_a_name_that_is_no_identifier_never_arrives(op: str) -> None:
    with pytest.raises(Exception, match="operator name"):
        make(op=op)
    with pytest.raises(Exception, match="operator name"):
        emit_of(dataclasses.replace(make(), op=op))


def emit_of(spec: OpSpec) -> str:
    plan = plans(spec)[0]
    return emit(spec, plan, schedule(spec, plan)).text


@pytest.mark.parametrize(
    ("op", "expected"),
    [("hyena_se", "HyenaSe"), ("gg", "Gg"), ("short_conv_3", "ShortConv3"), ("a__b", "AB")],
)
def test_class_names(op: str, expected: str) -> None:
    assert class_name(op) == expected
    assert f"\nclass {expected}(nn.Module):\n" in emit_of(make(op=op))


# ---- pages --------------------------------------------------------------------------------------


def test_a_page_is_the_same_program_and_laid_out_once() -> None:
    both, carried = {"pre": True, "post": True}, {"initial": True, "final": True}
    spec = make(op=LONGEST, channels=2**20, gates=both, state=carried)
    source = emit(spec, plans(spec)[0], schedule(spec, plans(spec)[0]))
    laid = page(source)
    assert max(map(len, source.text.splitlines())) > 99 >= max(map(len, laid.text.splitlines()))
    assert intact(laid.text) and page(laid) == laid
    trees = [ast.parse(one.text) for one in (source, laid)]
    for tree in trees:  # which says the digest of the text
        tree.body.pop(0)
    assert ast.dump(trees[0]) == ast.dump(trees[1])


def test_without_a_formatter_lines_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make()
    source = emit(spec, plans(spec)[0], schedule(spec, plans(spec)[0]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert page(source) is source


def test_words_of_a_docstring_are_folded_between_them() -> None:
    words = " ".join(["word"] * 25)
    text = f'    """{words}\n\n    Args:\n        x: {words}\n    """\n'
    found = folded(text)
    assert max(map(len, found.splitlines())) <= 99
    assert found.split() == text.split()
    assert "\n            word" in found, "a description hangs"
    short = '    """A word."""\n'
    assert folded(short) == short
    line = f'    """{words}"""'
    assert folded(line).endswith('word\n    """') and folded(line).count('"""') == 2


def test_names_are_looked_for_once_whatever_the_config() -> None:
    """Which they do not depend on: a search writes hundreds of files."""
    _words.cache_clear()
    spec = make()
    plan = plans(spec)[0]
    for warps in (1, 2):
        emit(spec, plan, schedule(spec, plan, {"forward": {"num_warps": warps}}))
    assert _words.cache_info().misses == 1


@pytest.mark.parametrize(
    "op", ["scale", "tensor", "none", "launch", "eager", "filter", "x", "check", "s_p_e_c", "save"]
)
def test_names_with_a_meaning_in_the_file_are_refused(op: str) -> None:
    with pytest.raises(Sh2genError) as caught:
        emit_of(make(op=op, skip="channel"))
    assert caught.value.code == "S007"
    assert caught.value.help == f"try `{op}_conv`"
    assert f"\ndef {op}_conv(" in emit_of(make(op=f"{op}_conv"))


@pytest.mark.parametrize(("channels", "split"), [(128, True), (129, False), (4096, False)])
def test_kernels_for_splits_are_built_where_a_sequence_may_be_split(
    channels: int, split: bool
) -> None:
    """In forward, up to a quarter of 512 channels; the text has them for those that are fewer."""
    spec = make(channels=channels, filter=filter_for("modal") | {"groups": channels})
    plan = plans(spec, "modal")[0]
    made = schedule(spec, plan)
    source = emit(spec, plan, made)
    assert any(kernel.name.endswith("_sums") for kernel in source.kernels) == split
    assert splits_sequences(spec, plan, made) == split
    assert "def probe_forward_sums(" in source.text and "def probe_backward_sums(" in source.text
