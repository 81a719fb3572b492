"""Whatever is in files, names and options: a message and an exit code, never a bug's.

Short by default; with `--hypothesis-profile=nightly --timeout=0` it takes ten minutes.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from sh2gen.base.files import signed
from sh2gen.base.resources import folder
from sh2gen.cli.cli import main
from tests.synthetic import LENGTHS, bench_results

ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m"
OP = "op: small_conv\nchannels: 4\nfilter: {kind: explicit, length: 3, groups: 4}\n"
LONG = "n" * 300
ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    require_harmless(result, arguments)
    return result


def require_harmless(result: Result, arguments: tuple[str, ...]) -> None:
    said = result.stdout + result.stderr
    assert result.exit_code in (0, 1, 2), (arguments, said)
    assert "Traceback" not in said, arguments
    assert all(c == "\n" or c.isprintable() for c in said), (arguments, said)
    if result.exit_code == 2:
        assert "error[" in result.stderr, (arguments, said)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, with one file of each kind that sh2gen reads."""
    folder, before = tmp_path_factory.mktemp("hostile"), Path.cwd()
    os.chdir(folder)
    (folder / "op.yaml").write_text(OP)
    (folder / "results.json").write_text(json.dumps(bench_results(LENGTHS[:2]).to_dict()))
    (folder / "tables" / "nvidia-h200").mkdir(parents=True)
    (folder / "tables" / "nvidia-h200" / "hyena_se.jsonl").write_bytes(TABLE)
    options = ("--lock=job.lock", "--out=out", "--no-verify", "--no-build")
    assert run("compile", "op.yaml", *options).exit_code == 0
    os.mkfifo("pipe.yaml")
    yield folder
    os.chdir(before)


TABLE = (folder("schedules") / "tuned" / "nvidia-h200" / "hyena_se.jsonl").read_bytes()
TABLE = b"".join(TABLE.splitlines(keepends=True)[:2])


# ---- what was found -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("compile", "op.yaml", f"--out={LONG}"),
        ("compile", "op.yaml", f"--out=new/{LONG}/new"),
        ("compile", "op.yaml", f"--lock={LONG}"),
        ("compile", "op.yaml", f"--locked={LONG}"),
        ("compile", "op.yaml", f"--tables={LONG}"),
        ("compile", "op.yaml", "--tables=" + "n/" * 3000),
        ("compile", "op.yaml", "--set=forward.TILES=" + "9" * 5000),
        ("compile", "op.yaml", "--length=" + "9" * 5000),
        ("compile", "op.yaml", "--length=" + "9" * 30),
        ("compile", f"{LONG}.yaml"),
        ("compile", LONG),
        ("compile", f"{LONG}/op.yaml"),
        ("compile", "pipe.yaml"),
        ("compile", "op.yaml", "--locked=pipe.yaml"),
        ("compile", "op.yaml", "--lock=pipe.yaml"),
        ("compile", "op.yaml", "--lock=/dev/null"),
        ("compile", "op.yaml", "--lock=/"),
        ("compile", "/dev/zero"),
        ("compile", "out/small_conv.py"),
        ("compile", f"op{ESCAPE}.yaml"),
        ("compile", "op.yaml", f"--target={ESCAPE}"),
        ("compile", "op.yaml", f"--plan={ESCAPE}"),
        ("compile", "op.yaml", f"--set={ESCAPE}"),
        ("compile", f"--{ESCAPE}"),
        (f"compile{ESCAPE}",),
        ("explain", "pipe.yaml"),
        ("verify", "pipe.yaml"),
        ("verify", f"{LONG}.py"),
        ("verify", "op.yaml", "--seed=" + "9" * 30),
        ("bench", "op.yaml", f"--plots={LONG}"),
        ("bench", f"--from={LONG}"),
        ("bench", "--from=pipe.yaml"),
        ("tune", "op.yaml", "--effort=estimate", "--budget=nan"),
        ("tune", LONG),
    ],
)
def test_what_cannot_be_is_refused(place: Path, arguments: tuple[str, ...]) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    if arguments[0] == "compile":
        arguments += ("--no-verify", "--no-build")
    assert run(*arguments).exit_code == 2
    after = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert before.items() <= after.items() and not set(after) - set(before)


@pytest.mark.parametrize("home", [LONG, "op.yaml", "/dev/null", "n/" * 3000])
def test_a_home_that_cannot_be_is_said_and_done_without(
    place: Path, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SH2GEN_HOME", home)
    assert run("doctor").exit_code == 0
    for arguments in (
        ("explain", "op.yaml"),
        ("compile", "op.yaml", "--no-verify", "--no-build"),
        ("tune", "op.yaml", "--effort=estimate"),
    ):
        result = run(*arguments)
        assert result.exit_code == 0 and "cannot be read: " in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), ("ops", "--json"), ("explain", "op.yaml"), ("ops", "--help")],
)
def test_a_device_that_is_full_is_said_in_one_line(
    place: Path, arguments: tuple[str, ...]
) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "sh2gen", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 2
    assert result.stderr == "error[C005]: cannot write to stdout: No space left on device\n"


@pytest.mark.parametrize("arguments", [("--help",), ("explain", "op.yaml")])
def test_nobody_needs_to_read_on(place: Path, arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "sh2gen", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)
    process.stderr.close()


def test_what_comes_from_files_is_not_obeyed_by_terminals(place: Path) -> None:
    plain = json.loads((place / "results.json").read_text())
    plain["gpu"] = plain["date"] = plain["versions"]["torch"] = ESCAPE + "\ud800"
    plain["outcomes"][0]["does"] = plain["not_taken"] = [ESCAPE]
    plain["outcomes"][0]["does"] = plain["outcomes"][0]["baseline"] = ESCAPE + "\ud800 $\\frac$"
    (place / "wild.json").write_text(json.dumps(plain))
    assert run("bench", "--from=wild.json").exit_code == 0
    assert run("bench", "--from=wild.json", "--json").exit_code == 0
    pytest.importorskip("matplotlib")
    assert run("bench", "--from=wild.json", "--plots=figures").exit_code == 0
    assert len(list((place / "figures").iterdir())) == 4

    line = json.loads(TABLE.splitlines()[0])
    line["key"]["gpu"] = line["op"] = ESCAPE
    gpu = place / "wild" / f"gpu{ESCAPE}"
    gpu.mkdir(parents=True)
    for i, one in enumerate((line, line | {"op": "hyena_se"})):
        (gpu / f"{i}{ESCAPE}.jsonl").write_text(f"{json.dumps(one)}\n{ESCAPE}\n")
    for arguments in (("--miss",), ()):
        result = run("explain", "hyena_se", "--tables=wild", *arguments)
        assert result.exit_code == 0 and "skipped: " in result.stderr


def test_a_status_line_is_text(tmp_path: Path) -> None:
    """No mark-up, and nothing that a terminal would obey but what the line itself needs."""
    said = f"[/red] [link=x] {ESCAPE}"
    code = "from sh2gen.report.terminal import progress\n"
    code += f"with progress(False) as note: note({said!r}); import time; time.sleep(0.3)"
    begin, end = os.openpty()
    process = subprocess.run(
        [sys.executable, "-c", code], stderr=end, env=os.environ | {"TERM": "xterm"}, check=False
    )
    shown = os.read(begin, 100_000).decode()
    os.close(begin)
    os.close(end)
    assert process.returncode == 0 and "[/red] [link=x] " in shown
    assert not any(hostile in shown for hostile in ("\x1b]0;", "\u202e", "\x9b", "\x07"))


# ---- anything else ------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        ESCAPE, "\\ud800", "\\u001b[31m", "null", "none", "-1", "0", "1e999", "NaN", "9" * 30,
        "9" * 5000, "2147483647", "2147483648", "{", "}", "[", "]", "[" * 2000, '"', "'", ":", ",",
        "\n", "\t", "\0", "&a", "*a", "!!python/object", "- ", "#", "%", "true", "op",
        "\u2028", "\ufeff", "x" * 3000, "$\\frac$", "../", "__import__('os')", "\r",
    ]
).map(lambda word: word.encode())  # fmt: skip
BYTES = st.one_of(WORDS, st.binary(max_size=4))
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]),
    st.just({}), st.sampled_from([ESCAPE, "\ud800", 2**31, 2**63, -1, 0, 1e308, 1e-308, "x" * 500,
    "$\\frac$", "H200", "small_conv"]),
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file in which some bytes are others, are missing or are there again."""
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(whole)))
        end = min(len(whole), begin + draw(st.integers(0, 12)))
        put = draw(st.one_of(BYTES, st.just(whole[begin : begin + 40])))
        whole = whole[:begin] + put + whole[end:]
    return whole


@st.composite
def altered(draw: st.DrawFn, plain: Any) -> Any:
    """Plain values, of which one or two are others."""
    plain = copy.deepcopy(plain)
    for _ in range(draw(st.integers(1, 2))):
        inside = plain
        while True:
            keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(inside[key], dict | list) and draw(st.booleans()):
                inside = inside[key]
                continue
            inside[key] = draw(VALUES)
            break
    return plain


OPS = [
    (ROOT / "ops" / f"{name}.yaml").read_bytes()
    for name in ("hyena_se", "hyena_li_stateful", "hyena_mr", "long_conv", "s4d")
]
RESULTS = bench_results(LENGTHS[:2]).to_dict()


@given(st.sampled_from([OP.encode(), *OPS]).flatmap(damaged), st.sampled_from(["spec", ""]))
def test_any_operator_file(place: Path, text: bytes, stage: str) -> None:
    (place / "fuzz.yaml").write_bytes(text)
    run("explain", "fuzz.yaml", *([f"--stage={stage}"] if stage else ["--json"]))
    with tempfile.TemporaryDirectory(dir=place) as out:
        options = ("--no-verify", "--no-build", f"--out={out}/new", f"--lock={out}/new/job.lock")
        result = run("compile", "fuzz.yaml", *options)
        assert len(list(Path(out).rglob("*"))) == (3 if result.exit_code == 0 else 0)


@given(damaged(TABLE), altered([json.loads(line) for line in TABLE.splitlines()]))
def test_any_table(place: Path, text: bytes, lines: Any) -> None:
    gpu = place / "fuzz" / "nvidia-h200"
    gpu.mkdir(parents=True, exist_ok=True)
    (gpu / "one.jsonl").write_bytes(text)
    (gpu / "two.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    run("explain", "hyena_se", "--tables=fuzz", "--miss")
    run("compile", "hyena_se", "--tables=fuzz", "--no-verify", "--no-build", "--out=fuzzed")


@given(st.data())
def test_any_lock_file(place: Path, data: st.DataObject) -> None:
    whole = (place / "job.lock").read_bytes()
    if data.draw(st.booleans()):
        text = data.draw(damaged(whole))
    else:
        text = json.dumps(data.draw(altered(json.loads(whole)))).encode()
    (place / "fuzz.lock").write_bytes(text)
    for option in ("locked", "lock"):
        arguments = (f"--{option}=fuzz.lock", "--no-verify", "--no-build", "--out=fuzzed")
        run("compile", "op.yaml", *arguments)


@given(st.one_of(damaged(json.dumps(RESULTS).encode()), altered(RESULTS).map(json.dumps)))
def test_any_results(place: Path, text: bytes | str) -> None:
    (place / "fuzz.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    if run("bench", "--from=fuzz.json", "--json").exit_code == 0:
        run("bench", "--from=fuzz.json")


@given(st.data())
def test_any_generated_file_that_is_not_whole(place: Path, data: st.DataObject) -> None:
    """Also one that is signed again: whoever does so gets what the text is, and that is no bug."""
    whole = (place / "out" / "small_conv.py").read_bytes()
    text = data.draw(damaged(whole).filter(lambda text: text.replace(b"\r", b"") != whole))
    path = place / "damaged.py"
    path.write_bytes(text)
    result = run("verify", "damaged.py", "--device=cpu", "--examples=1")
    assert result.exit_code == 2 and "error[B005]" in result.stderr
    head, *_ = text.decode("utf-8", "replace").partition("import torch")  # harmless
    path.write_text(signed(head))
    result = run("verify", "damaged.py", "--device=cpu")
    assert result.exit_code == 2 and "error[B005]" in result.stderr


def options(verb: click.Command) -> list[tuple[str, bool]]:
    """Options of a verb, and whether they take a value."""
    return [
        (option.opts[0], not option.is_flag)
        for option in verb.params
        if isinstance(option, click.Option)
    ]


ARGUMENTS = st.sampled_from(
    [
        "", "-1", "0", "1", "2", "7", "1e3", "nan", "inf", "9" * 25, "9" * 5000, "2147483648",
        LONG, ESCAPE, "\udcff", ".", "..", "/", "/dev/null", "/dev/full", "pipe.yaml", "op.yaml",
        "out",
        "job.lock", "results.json", "tables", "none", "direct", "fft/BDL", "toeplitz", "H200",
        "forward", "backward", "forward.TILES=2", "backward.BLOCK_T=512", "forward.X=1", "cpu",
        "spec", "graph", "config", "estimate", "fft,conv1d", "out/small_conv.py", "new/deep",
    ]
)  # fmt: skip


@given(st.data())
def test_any_call(place: Path, data: st.DataObject) -> None:
    verb = data.draw(st.sampled_from(["compile", "explain", "tune", "bench", "ops", "doctor"]))
    arguments = [verb]
    if verb not in ("ops", "doctor"):
        names = ["op.yaml", "op.yaml", "hyena_se", ".", "tables", "pipe.yaml", "results.json"]
        arguments += data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2))
    for option, takes in data.draw(st.lists(st.sampled_from(options(main.commands[verb])))):
        arguments.append(f"{option}={data.draw(ARGUMENTS)}" if takes else option)
    if verb == "compile":
        arguments += ["--no-verify", "--no-build"]
    CliRunner().invoke(main, ["--help"])
    result = CliRunner().invoke(main, arguments)
    require_harmless(result, tuple(arguments))
