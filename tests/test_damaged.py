"""Ports that are taken, files that are not what was written, disks that are full: one line that says so, and an exit code."""

import asyncio
import contextlib
import fcntl
import os
import socket
import subprocess
from pathlib import Path

import aio_pika
import pytest
from aio_pika.exceptions import AMQPError

from support.running import COMMAND, RunningSystem, unconfigured


def ended(*arguments: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments],
        env={**unconfigured(), "CML_DATA_DIR": str(folder), **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def line(done: subprocess.CompletedProcess[str]) -> str:
    """The only one that it wrote to stderr."""
    assert done.returncode == 2, done.stderr
    (only,) = (each for each in done.stderr.splitlines() if each.startswith("cml-workers:"))
    assert "Traceback" not in done.stderr
    return only


@pytest.mark.parametrize("setting", ["CML_AMQP_PORT", "CML_EC2_PORT", "CML_HEALTH_PORT"])
def test_a_port_that_is_taken_is_said_with_its_setting(tmp_path: Path, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = line(ended("run", folder=tmp_path, **{setting: port}))
    assert said.startswith(f"cml-workers: {setting}: ")
    assert port in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("events.sqlite3", "restore it from a backup"),
        ("read-model.sqlite3", "read models are made again from the events"),
        ("amqp", "CML_DATA_DIR: "),
        ("ec2", "CML_DATA_DIR: "),
    ],
)
def test_a_file_that_is_none_of_ours_is_named(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(os.urandom(3_000))
    found = line(ended("run", folder=tmp_path))
    assert name in found
    assert said in found


@pytest.mark.parametrize("content", ["[]", '{"amqp": 7}', '"x"', "{", "\0"])
@pytest.mark.parametrize("command", ["list", "role"])
def test_endpoints_that_are_damaged_are_said_to_be(tmp_path: Path, content: str, command: str) -> None:
    (tmp_path / "endpoints.json").write_text(content)
    arguments = [command, "relay"] if command == "role" else [command]
    assert "endpoints.json is damaged: stop `cml-workers run` and start it again" in line(
        ended(*arguments, folder=tmp_path)
    )


def test_endpoints_that_are_gone_are_no_dead_end(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "endpoints.json is gone: stop it and start it again" in line(ended("list", folder=tmp_path))
    assert "start `cml-workers run` here" in line(ended("list", folder=tmp_path))


async def test_a_broker_that_cannot_write_any_more_ends_the_process(tmp_path: Path) -> None:
    """It would seem ready, and confirm nothing."""
    system = RunningSystem(tmp_path / "data")
    limited: list[str | Path] = [
        "bash",
        "-c",
        'ulimit -f 1024; exec "$@"',
        "bash",
        COMMAND,
        "run",
    ]  # no file of more than 1 MiB
    endpoints = await asyncio.to_thread(system.start, command=limited)
    connection = await aio_pika.connect(endpoints["amqp"])
    with contextlib.suppress(AMQPError, OSError):
        channel = await connection.channel()
        await channel.declare_queue("kept", durable=True)
        body = aio_pika.Message(b"x" * 100_000, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        for _ in range(100):
            await channel.default_exchange.publish(body, "kept")
    await connection.close()
    assert system.process
    assert await asyncio.to_thread(system.process.wait, 60) == 1
    last = system.log().splitlines()[-1]
    assert last.startswith("cml-workers: the embedded broker ended: "), system.log()
