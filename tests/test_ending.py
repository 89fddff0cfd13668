"""A process ends on its signal, whatever the libraries it waits in do with a cancellation."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from cml_workers.foundation import tasks
from cml_workers.process.signals import ended_by_signals
from cml_workers.process.system import until_one_fails
from cml_workers.runtime.role import background


async def _loses_a_cancellation() -> None:
    """As ``asyncio.wait_for`` does before Python 3.12, when what it waits for is there at the same moment."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return


async def test_a_signal_that_is_lost_while_the_roles_start_ends_them_as_soon_as_they_run() -> None:
    reached = []

    async def serve() -> None:
        with ended_by_signals():
            os.kill(os.getpid(), signal.SIGINT)
            await _loses_a_cancellation()
            reached.append("started")
            await until_one_fails([])
            reached.append("never")

    serving = asyncio.create_task(serve())
    _, hanging = await asyncio.wait((serving,), timeout=30)
    assert reached == ["started"]
    assert not hanging


async def test_a_task_that_misses_its_cancellation_is_cancelled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "CANCEL_AGAIN", 0.01)
    missed = []

    async def work() -> None:
        while True:
            await _loses_a_cancellation()
            missed.append(1)
            await asyncio.Event().wait()

    async with asyncio.timeout(60):
        async with background(work, "work") as task:
            await asyncio.sleep(0)
    assert task.cancelled()
    assert missed == [1]


async def test_a_task_that_fails_while_it_is_ended_harms_nobody() -> None:
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ConnectionError("gone already")

    async with background(work, "work") as task:
        await asyncio.sleep(0)
    assert isinstance(task.exception(), ConnectionError)


def test_what_does_not_end_cleanly_ends_all_the_same_and_says_where_it_was() -> None:
    stuck = """
import asyncio, os, signal
from cml_workers.process import signals

async def never():
    await asyncio.Event().wait()

async def serve():
    with signals.ended_by_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await never()
        finally:
            await never()

signals.ENDING = 0.1
asyncio.run(serve())
"""
    done = subprocess.run(
        [sys.executable, "-c", stuck], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "did not end cleanly" in done.stdout + done.stderr
    assert "asyncio/locks.py" in done.stdout + done.stderr


STAYS = """
import asyncio, sys
from cml_workers.cli.terminal import run_to_end
from cml_workers.foundation.failures import RoleFailedError
from cml_workers.process import signals

signals.ENDING = 0.5

async def stays():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

async def work():
    with signals.ended_by_signals():
        task = asyncio.create_task(stays(), name="of a library")
        await asyncio.sleep(0)
        if "fails" in sys.argv:
            raise RoleFailedError("the relay ended")

run_to_end(work())
"""


@pytest.mark.parametrize(("how", "said"), [("fails", "'the relay ended'"), ("is done", "None")])
def test_it_ends_and_says_why_though_a_librarys_task_stays(how: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STAYS, how], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    for each in ("did not end cleanly", f"cause={said}", "of a library"):
        assert each in done.stdout
