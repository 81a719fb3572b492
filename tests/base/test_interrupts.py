"""Signals, sent to commands as processes: what they leave behind, and how soon.

`python tests/base/test_interrupts.py` sends many, at all times.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from sh2gen.base import interrupts
from sh2gen.cli.cli import main

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
COMMANDS = (
    ("compile", "hyena_mr", "--lock=job.lock"),
    ("compile", "short_conv_3", "hyena_se", "--no-verify"),
    ("verify", "short_conv_3"),
    ("explain", "hyena_mr", "--stage=ptx"),
    ("tune", "hyena_se", "--effort=estimate"),
    ("doctor",),
)


def interrupted(
    place: Path, arguments: tuple[str, ...], number: signal.Signals, wait: float | str
) -> tuple[int, float, str]:
    """Exit code, seconds from the signal to the end, and stderr, of a command that is sent a
    signal after some seconds, or when it has said something, or "*.x" is among its files.
    """
    for name in ("tmp", "work"):
        (place / name).mkdir()
    environment = os.environ | {
        "TMPDIR": str(place / "tmp"),
        "TRITON_CACHE_DIR": str(place / "cache"),
        "SH2GEN_HOME": str(place / "home"),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "sh2gen", *arguments],
        cwd=place / "work",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    if isinstance(wait, str) and wait.startswith("*"):
        while not any((place / "tmp").rglob(wait)) and process.poll() is None:
            time.sleep(0.005)
    elif isinstance(wait, str):
        while wait not in said and (line := process.stderr.readline()):
            said += line
    else:
        time.sleep(wait)
    begin = time.monotonic()
    process.send_signal(number)
    _, rest = process.communicate()
    return process.returncode, time.monotonic() - begin, said + rest


def left(place: Path) -> list[str]:
    """What an interrupted command must not leave behind."""
    return [
        str(path.relative_to(place))
        for folder in ("tmp", "work")
        for path in (place / folder).rglob("*")
        if "torchinductor" not in str(path)  # torch's own
    ]


@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize(
    ("arguments", "number", "wait"),
    [
        (("explain", "short_conv_3", "--stage=ptx"), signal.SIGINT, "*.ptx"),  # while ptxas runs
        (COMMANDS[0], signal.SIGTERM, "verifying plain"),
        (COMMANDS[2], signal.SIGHUP, "verifying plain"),
        (COMMANDS[0], signal.SIGINT, 0.3),  # while torch is imported
    ],
)
def test_a_signal_ends_a_command_soon_and_leaves_nothing(
    tmp_path: Path, arguments: tuple[str, ...], number: signal.Signals, wait: float | str
) -> None:
    code, seconds, said = interrupted(tmp_path, arguments, number, wait)
    assert code == CODES[number] and said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said and left(tmp_path) == []
    assert seconds < 4  # of which a busy machine needs some


@pytest.mark.usefixtures("foreground")
def test_a_signal_within_a_destructor_arrives_again() -> None:
    class Late:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    hook = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), interrupts.raised():
        late = Late()
        del late
        for _ in range(500):
            time.sleep(0.01)  # it does not wake a long one
    assert interrupts.exit_code() == 143 and sys.unraisablehook is hook


@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize("number", [*CODES])
def test_what_a_library_makes_of_an_interrupt_is_one(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """As an import does in which a module of C begins."""

    def load(*_: object) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr("sh2gen.api.inputs.op_files", load)
    result = CliRunner().invoke(main, ["compile", "hyena_se"])
    assert (result.exit_code, result.stdout, result.stderr) == (CODES[number], "", "interrupted\n")


if __name__ == "__main__":
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 100):
        chosen, sent = random.choice(COMMANDS), random.choice([*CODES])
        after = 0.06 + random.choice([0.05, 0.5, 5.0]) * random.random()  # Python starts before
        with tempfile.TemporaryDirectory() as name:
            code, seconds, said = interrupted(Path(name), chosen, sent, after)
            good = code in (CODES[sent], -sent, 0) and "Traceback" not in said and seconds < 4
            good &= code == 0 or left(Path(name)) == []
            print("." if good else f"\n{chosen} {sent.name} {after}: {code} {seconds} {said}")
