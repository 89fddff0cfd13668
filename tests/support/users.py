"""A RabbitMQ with the users and rights that are shipped; the password of each user is its name."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cml_embedded.ec2_simulator import Ec2Simulator
from cml_tools.definitions import SHIPPED, definitions, permissions
from cml_workers.bus.users import BrokerUsers
from support.rabbitmq import NoRabbitMQError, SpawnedRabbitMQ, private_rabbitmq
from support.roles import Roles

REDRIVE_KEYS = {"lifecycle": "l" * 32, "ec2-adapter": "e" * 32, "projector": "p" * 32}
EVERYTHING = {"configure": ".*", "write": ".*", "read": ".*"}


@contextmanager
def broker_with_users(
    folder: Path, *too_many_rights: str, users: BrokerUsers = SHIPPED
) -> Iterator[SpawnedRabbitMQ]:
    """Skips where there is no RabbitMQ. ``too_many_rights``: further users, who may do everything by mistake; ``users``: of other services."""
    shipped = definitions({user: user for user in (*permissions(users), *too_many_rights)}, users)
    (like, *_) = shipped["users"]
    for user in too_many_rights:
        hashed = definitions({like["name"]: user})["users"][0]["password_hash"]
        shipped["users"].append({**like, "name": user, "password_hash": hashed, "tags": ""})
        shipped["permissions"].append({"user": user, "vhost": "/", **EVERYTHING})
    try:
        with private_rabbitmq(folder, json.dumps(shipped)) as server:
            yield server
    except NoRabbitMQError as error:
        pytest.skip(str(error))


def url_of(rabbitmq: SpawnedRabbitMQ, user: str) -> str:
    """Where this user connects."""
    return f"amqp://{user}:{user}@127.0.0.1:{rabbitmq.port}/"


def _keys_of(role: str) -> dict[str, str]:
    """What it has to know of the keys: the projector all."""
    return {name: key for name, key in REDRIVE_KEYS.items() if role in (name, "projector")}


@contextmanager
def roles_with_users(rabbitmq: SpawnedRabbitMQ, folder: Path, **settings: str) -> Iterator[Roles]:
    """Each role a process with its own user, and an EC2 simulator."""
    with Ec2Simulator(transition_seconds=0.3) as simulator:
        roles = Roles(
            folder,
            each=lambda role: {
                "RABBITMQ_URL": url_of(rabbitmq, f"cml-{role}"),
                "CML_REDRIVE_KEYS": json.dumps(_keys_of(role)),
            },
            AWS_ENDPOINT_URL=simulator.url,
            CML_DECLARE_TOPOLOGY="false",
            CML_REMINDER_SECONDS="3600",
            **settings,
        )
        try:
            yield roles
        finally:
            roles.kill()
