"""Processes that the tests start: none outlives the one that started it."""

import ctypes
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def die_with_parent() -> None:
    """For ``preexec_fn``: end also when the test run is killed (Linux: PR_SET_PDEATHSIG is 1).

    The parent is the thread that starts the process: it must live for as long.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextmanager
def module(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A module that runs as a program, ours or the tests'; SIGTERM at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", name, *arguments],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one call of libc
    )
    assert process.stdout is not None
    try:
        with process.stdout:
            yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
