"""Everything that runs: one account, and two fleets of which each has parts of its own."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from support.callers import Callers
from support.children import module
from support.ec2 import SimulatorAdmin
from support.rabbitmq import private_rabbitmq
from support.roles import Roles

FLEETS = ("north", "south")
"""Their deployments; also their users and virtual hosts at the broker, and their access keys at EC2."""


@dataclass
class Fleet:
    """One deployment, and those who send it commands."""

    name: str
    roles: Roles
    callers: Callers
    store_uri: str
    database_url: str


@dataclass
class Account:
    """What both fleets share."""

    url: str
    admin: SimulatorAdmin
    fleets: Sequence[Fleet]


@asynccontextmanager
async def account(folder: Path) -> AsyncIterator[Account]:
    """All of it, running; none of it is left at the end."""
    async with AsyncExitStack() as stack:
        rabbitmq = stack.enter_context(private_rabbitmq(folder / "rabbitmq", json.dumps(_definitions())))
        ec2 = stack.enter_context(module("cml_embedded.ec2_simulator", "--data-dir", str(folder / "ec2")))
        assert ec2.stdout is not None
        url = ec2.stdout.readline().strip()
        fleets = []
        for name in FLEETS:
            own = folder / name
            (own / "data").mkdir(parents=True)
            amqp = f"amqp://{name}:{name}@127.0.0.1:{rabbitmq.port}/{name}"
            store_uri = f"sqlite:///{own}/data/events.sqlite3"
            database_url = f"sqlite:///{own}/data/read-model.sqlite3"
            roles = Roles(
                own,
                RABBITMQ_URL=amqp,
                DATABASE_URL=database_url,
                AWS_ENDPOINT_URL=url,
                AWS_ACCESS_KEY_ID=name,
                CML_DEPLOYMENT=name,
                CML_IMPORT_TAGS="{}",
                CML_AUTHORIZE="false",
                CML_VISIBILITY_GRACE_SECONDS="5",
            )
            stack.callback(roles.kill)
            callers = await stack.enter_async_context(Callers(amqp, f"cml.replies.fleets.{name}"))
            fleets.append(Fleet(name, roles, callers, store_uri, database_url))
        yield Account(url, SimulatorAdmin(url), fleets)


def _definitions() -> dict[str, object]:
    """A user and a virtual host for each fleet, who has no right in the other's; its password is its name."""
    return {
        "vhosts": [{"name": name} for name in FLEETS],
        "users": [
            {
                "name": name,
                "password_hash": _hashed(name),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "",
            }
            for name in FLEETS
        ],
        "permissions": [
            {"user": name, "vhost": name, "configure": ".*", "write": ".*", "read": ".*"} for name in FLEETS
        ],
    }


def _hashed(password: str) -> str:
    """See https://www.rabbitmq.com/docs/passwords#computing-password-hash."""
    salt = b"salt"
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
