"""Workers: every job is answered, whatever the process does, and by no other job's answer."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sh2gen.base.files import scratch, temporary_files
from sh2gen.base.process import Worker, python_worker

SCRIPT = """
import json, os, signal, sys, tempfile, time
for line in sys.stdin:
    job = json.loads(line)
    if job == "hang":
        tempfile.mkstemp()
        time.sleep(600)
    elif job == "die":
        sys.stderr.write("last words")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGSEGV)
    elif job == "mutter":
        print("mutter", file=sys.stderr, flush=True)
    elif job == "quietly":
        os._exit(3)
    elif job == "half":
        sys.stdout.write('{"half": ')
        sys.stdout.flush()
        os._exit(0)
    elif job == "bytes":
        sys.stdout.buffer.write(b"\\xff\\xfe\\n")
    elif job == "number":
        print(7)
    elif job == "twice":
        print("noise")
    elif job == "signal":
        os.kill(os.getpid(), 40)
    elif job == "deaf":
        print(json.dumps({"job": job}), flush=True)
        os.close(0)
        time.sleep(600)
    elif job == "broken":
        print(json.dumps({"broken": True}), flush=True)
        continue
    print(json.dumps({"job": job, "pid": os.getpid()}), flush=True)
"""


@pytest.fixture
def worker() -> Iterator[Worker]:
    with closing(Worker((sys.executable, "-S", "-E", "-c", SCRIPT), "the helper")) as worker:
        yield worker


def pid(worker: Worker) -> int:
    """Of a process that answers."""
    answer = worker.run('"hello"', 60)
    assert answer["job"] == "hello"
    return int(answer["pid"])


def test_one_process_answers_job_after_job(worker: Worker) -> None:
    assert pid(worker) == pid(worker)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("die", "the helper died of SIGSEGV\nlast words"),
        ("quietly", "the helper died with status 3"),
        ("half", "the helper died with status 0"),
        ("signal", "the helper died with status -40"),
        ("bytes", "the helper said what is no answer: \ufffd\ufffd"),
        ("number", "the helper said what is no answer: 7"),
        ("twice", "the helper said what is no answer: noise"),
    ],
)
def test_another_process_answers_after_one_that_failed(
    worker: Worker, job: str, words: str
) -> None:
    before = pid(worker)
    assert worker.run(f'"{job}"', 60) == {"died": words}
    assert pid(worker) != before


def test_a_process_that_hangs_is_replaced(worker: Worker) -> None:
    assert not worker.running
    before = pid(worker)
    assert worker.running
    assert worker.run('"hang"', 0.2) == {"gave_up": True}
    assert not worker.running
    assert pid(worker) != before


def test_a_process_that_is_killed_leaves_no_temporary_files(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As compilers do that are killed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_files():
        tempfile.mkstemp()
        thread = threading.Thread(target=worker.run, args=('"hang"', 60))
        thread.start()
        until(lambda: sum(path.is_file() for path in tmp_path.rglob("*")) == 2)
        worker.end()
        thread.join()
        assert sum(path.is_file() for path in tmp_path.rglob("*")) == 1  # of this process
        assert [path.name for path in tmp_path.iterdir()] == [Path(tempfile.gettempdir()).name]
    assert not [*tmp_path.iterdir()] and tempfile.gettempdir() == str(tmp_path)


def test_a_process_that_says_that_it_is_broken_is_replaced(worker: Worker) -> None:
    before = pid(worker)
    assert worker.run('"broken"', 60) == {"broken": True}
    assert pid(worker) != before


@pytest.mark.parametrize("job", ["hello", "die"])
def test_a_job_is_not_charged_with_the_death_of_an_idle_process(worker: Worker, job: str) -> None:
    before = pid(worker)
    os.kill(before, signal.SIGKILL)
    os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)
    answer = worker.run(f'"{job}"', 60)
    if job == "hello":
        assert answer["job"] == "hello" and answer["pid"] != before
    else:
        assert answer == {"died": "the helper died of SIGSEGV\nlast words"}


def test_a_job_that_could_not_be_written_is_given_to_another_process(worker: Worker) -> None:
    assert worker.run('"deaf"', 60) == {"job": "deaf"}
    process = worker._process
    assert process is not None

    def deaf() -> bool:
        return not Path(f"/proc/{process.pid}/fd/0").is_symlink()

    until(deaf)
    assert pid(worker) != process.pid


def test_a_job_is_given_to_one_fresh_process_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    start = Worker._start

    def counted(worker: Worker) -> subprocess.Popen[str]:
        process = start(worker)
        starts.append(process.wait())  # before it is given anything
        return process

    monkeypatch.setattr(Worker, "_start", counted)
    with closing(Worker(("false",), "the helper")) as worker:
        for _ in range(2):
            assert worker.run("1", 60) == {"died": "the helper died with status 1"}
    assert starts == [1, 1]


def test_a_process_that_cannot_be_started_is_an_answer(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*command: object, **options: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    before = pid(worker)
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", full)
        assert pid(worker) == before  # it needs no other
        worker.stop()
        answer = worker.run('"hello"', 60)
    assert set(answer) == {"died", "help"} and "memory" in answer["help"]
    assert answer["died"].startswith("the helper cannot be started: ")
    assert os.strerror(errno.EAGAIN) in answer["died"]
    assert pid(worker) != before


def test_words_are_of_the_process_that_died(worker: Worker) -> None:
    assert "last words" in worker.run('"die"', 60)["died"]
    assert "last words" not in worker.run('"quietly"', 60)["died"]
    worker.run('"mutter"', 60)
    worker.stop()
    assert "mutter" not in worker.run('"quietly"', 60)["died"]


def test_after_an_interrupt_no_answer_is_taken_for_another_jobs(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pid(worker)

    class Interrupting:
        def __init__(self, pipe: object) -> None:
            self.pipe = pipe

        def readline(self) -> str:
            raise KeyboardInterrupt

        def __getattr__(self, name: str) -> object:
            return getattr(self.pipe, name)

    process = worker._process
    assert process is not None
    monkeypatch.setattr(process, "stdout", Interrupting(process.stdout))
    with pytest.raises(KeyboardInterrupt):
        worker.run('"lost"', 60)
    monkeypatch.undo()
    assert pid(worker) != before


SERVING = """
import os
from sh2gen.base.process import serve

def answer(job):
    print("this is no answer", flush=True)
    os.system("echo nor is this")
    return {"job": job, "heard": os.read(0, 100).decode()}

def main():
    serve(answer)
"""


def test_a_module_that_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found where this process finds it, nothing is found in the working folder, and jobs
    and answers are not mixed up with what else is read and written.
    """
    for folder, text in (("packages", SERVING), ("here", "raise SystemExit")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "serving.py").write_text(text)
    (tmp_path / "here" / "json.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    with closing(python_worker("serving", "the helper")) as worker:
        for job in ("1", '"\u00e9"'):
            assert worker.run(job, 60) == {"job": json.loads(job), "heard": ""}


HANGING = """
import json, sys, threading
from pathlib import Path

TEXT = '''
import triton
import triton.language as tl
HANG = tl.constexpr(__import__("hanging").answer(["compiler"]))
'''

def answer(job):
    import fcntl, os, subprocess, tempfile, time

    tempfile.mkstemp()
    file = open("lock of the " + job[0], "w")
    fcntl.flock(file, fcntl.LOCK_EX)  # until this process ends and the one that it starts
    child = subprocess.Popen(["sleep", "600"], pass_fds=[file.fileno()])
    open("locked by the " + job[0], "w").close()
    child.wait()

def main():
    from sh2gen.base.process import serve

    serve(answer)

if __name__ == "__main__":
    from sh2gen.build import worker as build_worker
    from sh2gen.base.process import Worker, python_worker

    job = json.dumps({"file": "op.py", "text": TEXT, "module": "op", "name": "op", "gluon": False})
    compiler = Worker((sys.executable, "-P", build_worker.__file__), "the compiler")
    threading.Thread(target=compiler.run, args=(job, 600)).start()
    python_worker("hanging", "the helper").run('["helper"]', 600)
"""


def test_processes_that_hang_end_with_their_parent_and_so_do_their_own(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    paths = os.pathsep.join(map(str, (*sys.path, tmp_path)))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "hanging.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "TMPDIR": str(temporary)},
    )
    names = ("helper", "compiler")
    try:
        until(lambda: all((tmp_path / f"locked by the {name}").exists() for name in names))
    finally:
        parent.kill()
        parent.wait()

    def free(name: str) -> bool:
        path = tmp_path / f"lock of the {name}"
        with path.open("w") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    until(lambda: all(map(free, names)))
    with scratch(temporary) as folder:  # as a later run does
        assert [*temporary.iterdir()] == [folder]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_process_that_is_being_started_can_be_ended(worker: Worker) -> None:
    """Whoever ends it is another thread, and looks before there is a process."""
    start = worker._start

    def slow() -> subprocess.Popen[str]:
        worker.end()
        return start()

    worker._start = slow  # type: ignore[method-assign]
    begin = time.monotonic()
    assert "died" in worker.run('"hang"', 60)
    assert "died" in worker.run('"hang"', 60)
    assert time.monotonic() - begin < 10
