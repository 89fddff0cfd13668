"""Everything that runs, as in production: a broker with the shipped definitions and limits, each role a process with its own user, EC2."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cml_tools.definitions import FROM_OUTSIDE_POLICY, OURS, SHIPPED, definitions
from cml_workers.bus.users import BrokerUser, broker_user, hashed, settings_of
from support.children import module, tied
from support.rabbitmq import NoRabbitMQError, SpawnedRabbitMQ, installed
from support.roles import Roles
from system.hostile import honest, messages

DEPLOY = Path(__file__).parents[3] / "deploy"
MIB = 1024 * 1024
KEY = "k" * 32
WATCHER = "watcher"
"""A user of ours that looks at every queue, which no role may."""


def _user(name: str, *may: str) -> BrokerUser:
    return BrokerUser(may=list(may), shared=False, password_hash=hashed(name, b"salt"))


USERS: Mapping[str, BrokerUser] = {
    **SHIPPED,
    honest.USER: _user(honest.USER, "*"),
    messages.USER: _user(messages.USER, *messages.MAY),
}
"""Their passwords are their names."""
SENDERS = [name for name, user in USERS.items() if not user.subscribe]


def largest_message() -> int:
    """Bytes, as ``deploy/`` configures the broker."""
    lines = (DEPLOY / "rabbitmq" / "secured.conf").read_text().splitlines()
    (line,) = (each for each in lines if each.startswith("max_message_size"))
    return int(line.partition("=")[2])


def memory_limit(role: str) -> int:
    """Bytes, by the manifest of the role."""
    for manifest in yaml.safe_load_all((DEPLOY / "kubernetes" / f"{role}.yaml").read_text()):
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            (container,) = manifest["spec"]["template"]["spec"]["containers"]
            limit: str = container["resources"]["limits"]["memory"]
            assert limit.endswith("Mi"), limit
            return int(limit.removesuffix("Mi")) * MIB
    raise LookupError(role)


@dataclass
class Parts:
    """What runs, and where."""

    folder: Path
    rabbitmq: SpawnedRabbitMQ
    roles: Roles
    definitions: Mapping[str, Any]
    settings: Mapping[str, str] = field(default_factory=dict)

    def url(self, user: str) -> str:
        return f"amqp://{user}:{user}@127.0.0.1:{self.rabbitmq.port}/"

    @property
    def store(self) -> Path:
        return self.folder / "data" / "events.sqlite3"

    @property
    def database(self) -> Path:
        return self.folder / "data" / "read-model.sqlite3"

    @property
    def broker_data(self) -> Path:
        return self.folder / "rabbitmq" / "mnesia"

    def hostile(self, seed: int, most: int | None) -> "subprocess.Popen[str]":
        """The hostile sender, begun; it ends with its input."""
        arguments = ["127.0.0.1", str(self.rabbitmq.port), "--seed", str(seed)]
        if most is not None:
            arguments += ["--most", str(most)]
        with (self.folder / "sender.log").open("ab") as log:
            return subprocess.Popen(
                tied(
                    *(sys.executable, "-m", "system.hostile.sender", *arguments),
                    *("--largest", str(largest_message())),
                ),
                cwd=Path(__file__).parents[2],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )


@asynccontextmanager
async def running(folder: Path, room: int | None, **settings: str) -> AsyncIterator[Parts]:
    """All of it; none of it is left at the end. ``room``: in queues that senders can fill, if not as shipped; ``settings``: of the roles."""
    script = installed()
    if script is None:
        raise NoRabbitMQError("a RabbitMQ of its own is needed: see tests/support/rabbitmq.py")
    shipped = definitions({user: user for user in OURS}, USERS)
    if room is not None:
        (limited,) = (
            each["definition"] for each in shipped["policies"] if each["name"] == FROM_OUTSIDE_POLICY
        )
        limited["max-length"] = room
    shipped["users"].append(broker_user(WATCHER, hashed(WATCHER, b"salt"), "", {}))
    shipped["permissions"].append(
        {"user": WATCHER, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
    )
    async with AsyncExitStack() as stack:
        rabbitmq = SpawnedRabbitMQ(script, folder / "rabbitmq", json.dumps(shipped))
        rabbitmq.configure(f"max_message_size = {largest_message()}")
        stack.callback(rabbitmq.close)
        rabbitmq.start()
        ec2 = stack.enter_context(module("cml_embedded.ec2_simulator", "--transition-seconds", "0.3"))
        assert ec2.stdout is not None
        given = {
            "AWS_ENDPOINT_URL": ec2.stdout.readline().strip(),
            "DATABASE_URL": f"sqlite:///{folder}/data/read-model.sqlite3",
            "CML_DECLARE_TOPOLOGY": "false",
            "CML_LOG_LEVEL": "error",
            "CML_ACTOR_TOKEN_KEYS": json.dumps([KEY]),
            **settings_of(USERS),
            **settings,
        }
        (folder / "data").mkdir()
        where = f"127.0.0.1:{rabbitmq.port}"
        roles = Roles(
            folder, each=lambda role: {"RABBITMQ_URL": f"amqp://cml-{role}:cml-{role}@{where}/"}, **given
        )
        stack.callback(roles.kill)
        yield Parts(folder, rabbitmq, roles, shipped, given)


def cpu_seconds(pid: int) -> float:
    """Of CPU that a process has used; 0 when it is gone (Linux: proc(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int, name: str = "VmRSS") -> int:
    """Bytes in memory, or ``VmHWM``: at most so far."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def size(folder: Path) -> int:
    """Bytes of all files."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # it is gone
    return total
