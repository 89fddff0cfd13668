"""Processes that the tests start: none outlives the one that started it."""

import ctypes
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def tied(*command: str | Path, user: str | None = None) -> list[str]:
    """The command as a process that ends with the thread that starts it, also when the test run is killed (Linux).

    ``user``: as that one, by the same program, where there is one; ``tied()`` is empty where there is none. Not by ``preexec_fn``: with it Python forks, and in a process with gRPC's threads the child may crash before it begins.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return [*map(str, command)]
    of_user = [f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
    return [setpriv, *of_user, "--pdeathsig=KILL", *map(str, command)]


def die_with_parent() -> None:
    """For ``preexec_fn``: end also when the test run is killed (Linux: PR_SET_PDEATHSIG is 1).

    The parent is the thread that starts the process: it must live for as long.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def started(name: str, *arguments: str, output: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """A module that runs as a program, ours or the tests'."""
    return subprocess.Popen(
        tied(sys.executable, "-m", name, *arguments),
        cwd=Path(__file__).parents[1],
        stdout=output,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> None:
    """End it, by SIGTERM if it can."""
    process.terminate()
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def module(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The same while the context lasts; it can be read what it prints."""
    process = started(name, *arguments, output=subprocess.PIPE)
    assert process.stdout is not None
    try:
        with process.stdout:
            yield process
    finally:
        ended(process)
