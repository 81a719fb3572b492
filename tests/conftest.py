"""For every test: the repository on the path, a hypothesis profile, one thread a worker, and no
records or tuned tables of whoever runs them.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from sh2gen.build.build import Compilers
from tests.strategies import register_profiles

register_profiles()
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
    torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    home = tempfile.TemporaryDirectory(prefix="sh2gen-home-")
    config.add_cleanup(home.cleanup)
    os.environ["SH2GEN_HOME"] = home.name
    # Inductor takes its folder when it is first asked, which may be within a command that a test
    # runs, whose temporary files are gone after it.
    place = os.path.join(tempfile.gettempdir(), "sh2gen-tests-inductor")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", place)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the garbage collector look at what tests make alone, and less often: what is imported
    and collected stays, half a million objects, which it walked through for a tenth of the time.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def compilers() -> Iterator[Compilers]:
    """Compilers for all tests: a process of them takes a second to begin."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    with closing(Compilers(os.cpu_count() or 1 if alone else 1, 120.0)) as compilers:
        yield compilers


@pytest.fixture
def foreground() -> Iterator[None]:
    """Signals as a shell hands them to what it runs in the foreground: nohup and `&` have some
    ignored, which stays so in all processes below.
    """
    usual = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGTERM: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
