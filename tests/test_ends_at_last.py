"""A process whose work is over ends, also where a task of a library does not let itself be cancelled."""

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, sys
from cml_workers.cli import terminal
from cml_workers.foundation.failures import RoleFailedError

terminal.LATEST_END = 0.5

async def stays():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

async def work():
    task = asyncio.create_task(stays())
    await asyncio.sleep(0)
    if "fails" in sys.argv:
        raise RoleFailedError("the relay ended")

terminal.run_to_end(work())
"""


@pytest.mark.parametrize(("how", "said"), [("fails", "the relay ended"), ("is done", "ended")])
def test_it_ends_and_says_why(how: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "a task of a library did not end" in done.stderr
