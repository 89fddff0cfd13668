"""The parts of a measurement over the wire: a RabbitMQ, each role in a process of its own, the reference; and their CPU."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.launcher import TRANSITION
from support.children import die_with_parent
from support.postgresql import any_postgresql, private_postgresql
from support.rabbitmq import any_rabbitmq

ROLES = ("lifecycle", "relay", "ec2-adapter", "projector")
CONFIGURING = ("RABBITMQ_URL", "KURRENTDB_URI", "DATABASE_URL", "AWS_", "CML_")
TICKS = os.sysconf("SC_CLK_TCK")
READY = 90.0
"""Seconds a process may take to start on a busy machine."""


@dataclass(frozen=True)
class System:
    """The addresses, and which processes are whose."""

    amqp_url: str
    store_uri: str
    rabbitmq: str
    pids: dict[str, Sequence[int]]

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU by role so far, and the broker's, the reference's and our own."""
        return {name: sum(map(cpu_seconds, pids)) for name, pids in self.pids.items()}


@contextmanager
def system(folder: Path, *, postgresql: bool = False) -> Iterator[System]:
    """Everything on loopback, files in ``folder``; a store that the environment gives is used, and of its database's server one of our own."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        before = set(_children_of_everybody())
        amqp_url, _ = stack.enter_context(any_rabbitmq(folder / "rabbitmq"))
        broker = _descendants(os.getpid(), set(_children_of_everybody()) - before)
        data = folder / "data"
        store_uri = os.environ.get("KURRENTDB_URI") or f"sqlite:///{data / 'events.sqlite3'}"
        settings = {
            **{name: value for name, value in os.environ.items() if not name.startswith(CONFIGURING)},
            **_given_store(),
            "RABBITMQ_URL": amqp_url,
            "CML_AUTHORIZE": "false",
            "CML_DATA_DIR": str(data),
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9/",
            TRANSITION: "0.2",
            **observation_age(),
            "BENCH_STORE": os.environ.get("KURRENTDB_URI") or f"sqlite:///{folder / 'least.sqlite3'}",
        }
        if postgresql:
            settings["DATABASE_URL"] = stack.enter_context(private_postgresql()).url
        elif os.environ.get("DATABASE_URL"):
            settings["DATABASE_URL"], _ = stack.enter_context(any_postgresql())
        started = {}
        for name in ROLES:
            started[name] = stack.enter_context(
                _process([sys.executable, "-m", "bench.launcher", name], settings, folder / f"{name}.log")
            )
        started["reference"] = stack.enter_context(
            _process([sys.executable, "-m", "bench.reference"], settings, folder / "reference.log")
        )
        for name, process in started.items():
            _await_ready(name, process, folder / f"{name}.log")
        pids: dict[str, Sequence[int]] = {name: [process.pid] for name, process in started.items()}
        yield System(
            amqp_url, store_uri, _rabbitmq_version(), {**pids, "broker": broker, "caller": [os.getpid()]}
        )


def _given_store() -> dict[str, str]:
    """Its setting, once the relay knows where to begin: where others have streams of workers, it would ask."""
    uri = os.environ.get("KURRENTDB_URI")
    if not uri:
        return {}
    # Of the checkout that is measured; an earlier one has no such things, and is measured on parts of its own.
    from cml_workers.eventstore.opening import open_event_store  # noqa: PLC0415
    from support.kurrentdb import relay_may_begin  # noqa: PLC0415

    async def begin() -> None:
        store = open_event_store(uri)
        await relay_may_begin(store)
        await store.close()

    asyncio.run(begin())
    return {"KURRENTDB_URI": uri}


def observation_age() -> dict[str, str]:
    """A no-op is measured without its look at EC2, as it was before there was one; a checkout of then has no such setting."""
    from cml_workers.runtime.settings import Settings  # noqa: PLC0415 - of the checkout that is measured

    name = "observation_age_seconds"
    return {f"CML_{name.upper()}": "3600"} if name in Settings.model_fields else {}


def _rabbitmq_version() -> str:
    """Of the installed one, from its folder's name."""
    found = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"))
    return found[-1].name.partition("-")[2] if found else "of an unknown version"


@contextmanager
def _process(
    command: Sequence[str], settings: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=settings,
            stdout=output,
            stderr=output,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one call of libc
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM if "launcher" in " ".join(command) else signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_ready(name: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + READY
    while b" is ready" not in log.read_bytes()[:65_536]:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{name} does not start:\n{log.read_text()[-4000:]}")
        time.sleep(0.1)


# -- what the machine does --------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """User and system time of a process; 0 of one that has ended (``man 5 proc``)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def busy_seconds() -> tuple[float, float]:
    """Seconds of CPU that all processes of the machine have used, and that there were."""
    fields = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / TICKS, sum(fields) / TICKS


def _children_of_everybody() -> dict[int, int]:
    """Every process with its parent."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    return parents


def _descendants(ancestor: int, among: set[int]) -> list[int]:
    parents = _children_of_everybody()

    def descends(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == ancestor:
                return True
        return False

    return [pid for pid in among if descends(pid)]
