"""Worker processes that can hang or crash without harm to anyone else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any


class Worker:
    """A process that answers jobs: a line of JSON in, a line of JSON out.

    It is started for its first job, and again for the next one after it died, with a job or idle,
    or answered that it is `broken`. Temporary files of it and of what it runs lie in a folder of
    its own, which goes with it: a compiler that is killed leaves some.

    Args:
        command: what to run.
        name: of the process in messages: "the compiler".
    """

    def __init__(self, command: Sequence[str], name: str) -> None:
        self._command, self._name = tuple(command), name
        self._process: subprocess.Popen[str] | None = None
        self._ended = threading.Event()
        self._temporary = contextlib.ExitStack()  # the folder of the process
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (see close)

    @property
    def running(self) -> bool:
        """Whether there is a process that has answered a job, and waits for the next."""
        return self._process is not None and self._process.poll() is None

    def run(self, job: str, time_limit: float) -> dict[str, Any]:
        """The answer to `job`, or `died`: why the process did, or that what it said is no answer;
        or `gave_up`: it was killed because it took longer than the limit (s). With `help` where
        the job was not to blame: what may be done.

        A process that ended before it got the job is replaced, and the next one gets the job: what
        ended the former was not this job.
        """
        fresh = self._process is None
        if self._process is not None and self._process.poll() is not None:
            self.stop()
            fresh = True
        try:
            process = self._process = self._process or self._start()
        except OSError as error:
            self.stop()
            help = "free memory, or room for temporary files, or end other processes"
            return {"died": f"{self._name} cannot be started: {error}", "help": help}
        if self._ended.is_set():  # while it was started
            self.kill()
        assert process.stdin is not None and process.stdout is not None
        unheard = False
        too_slow = threading.Event()

        def give_up() -> None:
            too_slow.set()
            self.kill()

        timer = threading.Timer(time_limit, give_up)
        timer.start()
        try:
            process.stdin.write(job + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line, unheard = "", True
        except BaseException:
            self.stop()  # else the next job would be given the answer to this one
            raise
        finally:
            timer.cancel()
            timer.join()  # it may be at the kill, which must not meet the next process
        if line.endswith("\n"):
            with contextlib.suppress(ValueError):
                if isinstance(answer := json.loads(line), dict):
                    if too_slow.is_set() or answer.get("broken"):
                        self.stop()  # the former: in time, just before it was killed
                    return answer
            problem = f"said what is no answer: {line[:200].rstrip()}"
        self.stop()
        if too_slow.is_set():
            return {"gave_up": True}
        if unheard and not fresh:
            return self.run(job, time_limit)
        if not line.endswith("\n"):
            problem = f"died {_ending(process.returncode)}"
        return {"died": f"{self._name} {problem}\n{self._words()}".rstrip()}

    def _words(self) -> str:
        """The last of what a process that has ended wrote to stderr."""
        self._errors.seek(0)
        return self._errors.read()[-2000:]

    def kill(self) -> None:
        """Make the process end, and those that it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Make the process end, and every other that a job would start; from any thread."""
        self._ended.set()
        self.kill()

    def stop(self) -> None:
        """End the process; the next job starts another."""
        self.kill()
        if self._process is not None:
            self._process.communicate()  # closes the pipes and waits
            self._process = None
        self._temporary.close()

    def close(self) -> None:
        """End the process for good."""
        self.stop()
        self._errors.close()

    def _start(self) -> subprocess.Popen[str]:
        from sh2gen.base.files import scratch  # here: build/worker.py runs this file alone

        self._errors.seek(0)
        self._errors.truncate()  # of words of the one before
        folder = self._temporary.enter_context(scratch())
        return subprocess.Popen(
            self._command,
            env=os.environ | {"TMPDIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            errors="replace",
            process_group=0,
        )


def _ending(status: int) -> str:
    """How a process ended: the name of the signal that killed it, or its exit status."""
    with contextlib.suppress(ValueError):
        return f"of {signal.Signals(-status).name}"
    return f"with status {status}"


def python_worker(module: str, name: str) -> Worker:
    """A process of `main` in a module, which imports from where this process does.

    Args:
        name: as of `Worker`.
    """
    paths = [str(path) for path in sys.path]  # not the working folder's, as with `python -m`
    start = f"import sys; sys.path[:] = {paths!r}; from {module} import main; main()"
    return Worker((sys.executable, "-P", "-c", start), name)


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer the jobs of a `Worker` in this process, until stdin or the process that asks ends.

    Nothing else reads them, and what else is written to stdout, also from C++, goes to stderr.
    """
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    jobs = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for line in jobs:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, even while it waits for the GPU, and what it
    started: a `Worker` leads a group of its own.
    """
    while os.getppid() == parent:
        time.sleep(1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
