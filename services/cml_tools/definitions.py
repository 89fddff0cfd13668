"""RabbitMQ's definitions file, generated from the topology: queues, and a user for each role with least rights.

Import it with ``load_definitions`` (https://www.rabbitmq.com/docs/definitions) and run the roles with
``CML_DECLARE_TOPOLOGY=false``: no role then needs the right to configure anything.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cml_contracts.topology import (
    COMMANDS_EXCHANGE,
    EVENTS_EXCHANGE,
    OPERATOR_EXCHANGE,
    QUERIES_EXCHANGE,
    Exchange,
)
from cml_tools.generated import check
from cml_workers.bus.topology import EXCHANGES, INTERNAL_EXCHANGE, QUEUES
from cml_workers.bus.usage import Usage, retry_queues
from cml_workers.process.registry import ROLES

DEFAULT_EXCHANGE = "amq.default"
"""The default exchange's name in permissions: replies and retries go through it."""

SUBSCRIBERS = r"^cml\.subscribers\."
SUBSCRIBERS_LIMITS: Mapping[str, str | int] = {
    "max-length": 100_000,
    "message-ttl": 7 * 24 * 3600 * 1000,
    "overflow": "reject-publish",
}
"""A queue that nobody reads must not fill the disk. It takes no more, which the relay says; to drop its oldest would go unseen."""

Permission = tuple[str, str, str]
"""Regular expressions of what may be configured, written, read."""


def _names(names: Iterable[str]) -> str:
    listed = "|".join(re.escape(name) for name in names)
    return f"^({listed})$" if listed else "^$"


def _client(*exchanges: Exchange) -> Permission:
    """What a service needs to send to these, get replies and follow events: queues of its own."""
    own = r"^cml\.(replies|subscribers)\..*$|^amq\.gen.*$"
    return (
        own,
        f"{_names(exchange.name for exchange in exchanges)}|{own}",
        f"{_names((EVENTS_EXCHANGE.name,))}|{own}",
    )


def _role(uses: Usage) -> Permission:
    """Nothing to configure; replies and retries go through the default exchange, and retries come back by themselves.

    It may read its retry queues as it asks whether they are there, for which RabbitMQ 4.3 wants any right to them.
    """
    through_the_default_exchange = (DEFAULT_EXCHANGE,) if uses.consumes else ()
    return (
        "^$",
        _names((*through_the_default_exchange, *(exchange.name for exchange in uses.exchanges))),
        _names(uses.queues),
    )


PERMISSIONS: Mapping[str, Permission] = {
    **{role.user: _role(role.uses) for role in ROLES.values()},
    "cml-client": _client(COMMANDS_EXCHANGE, QUERIES_EXCHANGE),
    "cml-operator": _client(QUERIES_EXCHANGE, OPERATOR_EXCHANGE),
    "cml-monitor": ("^$", "^$", "^$"),
}
INTERNAL_TYPES: Mapping[str, tuple[str, ...]] = {
    role.user: role.uses.internal for role in ROLES.values() if role.uses.internal
}
"""By user, the routing keys with which it may publish to ``INTERNAL_EXCHANGE``: https://www.rabbitmq.com/docs/access-control#topic-authorisation."""
TAGS = {"cml-monitor": "monitoring"}
"""What is more than a right: the management API says nothing to a user without one, nor to one without any right."""


def definitions(passwords: Mapping[str, str]) -> dict[str, Any]:
    """The definitions; a user without a password cannot log in until it is given one."""
    queues = [
        *((queue.name, queue.arguments) for queue in QUEUES),
        *(waiting for queue in QUEUES for waiting in retry_queues(queue).items()),
    ]
    return {
        "vhosts": [{"name": "/"}],
        "users": [
            {
                "name": user,
                "password_hash": _hashed(passwords[user]) if user in passwords else "",
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": TAGS.get(user, ""),
            }
            for user in PERMISSIONS
        ],
        "permissions": [
            {"user": user, "vhost": "/", "configure": configure, "write": write, "read": read}
            for user, (configure, write, read) in PERMISSIONS.items()
        ],
        "topic_permissions": [
            {
                "user": user,
                "vhost": "/",
                "exchange": INTERNAL_EXCHANGE.name,
                "write": _names(types),
                "read": "^$",
            }
            for user, types in INTERNAL_TYPES.items()
        ],
        "exchanges": [
            {
                "name": exchange.name,
                "vhost": "/",
                "type": exchange.kind,
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": {},
            }
            for exchange in EXCHANGES
        ],
        "policies": [
            {
                "vhost": "/",
                "name": "cml-subscribers",
                "pattern": SUBSCRIBERS,
                "apply-to": "queues",
                "priority": 0,
                "definition": dict(SUBSCRIBERS_LIMITS),
            }
        ],
        "queues": [
            {
                "name": name,
                "vhost": "/",
                "durable": True,
                "auto_delete": False,
                "arguments": dict(arguments),
            }
            for name, arguments in queues
        ],
        "bindings": [
            {
                "source": binding.exchange.name,
                "vhost": "/",
                "destination": queue.name,
                "destination_type": "queue",
                "routing_key": binding.routing_key,
                "arguments": {},
            }
            for queue in QUEUES
            for binding in queue.bindings
        ],
    }


def _hashed(password: str) -> str:
    """See https://www.rabbitmq.com/docs/passwords#computing-password-hash."""
    salt = os.urandom(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def _variable(user: str) -> str:
    return f"{user.upper().replace('-', '_')}_PASSWORD"


def main() -> None:
    """Print the definitions, with passwords from the environment; or check that a file has their topology."""
    named = ", ".join(_variable(user) for user in PERMISSIONS)
    parser = argparse.ArgumentParser(
        description="Generate RabbitMQ's definitions file.",
        epilog=f"Passwords are taken from {named}; a user without one cannot log in until it is given one.",
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write it, readable by the owner alone")
    parser.add_argument(
        "--check", type=Path, metavar="FILE", help="fail if it is not the one without passwords"
    )
    parser.add_argument("--variables", action="store_true", help="print the names of the passwords instead")
    chosen = parser.parse_args()
    if chosen.variables:
        sys.stdout.write("".join(f"{_variable(user)}\n" for user in PERMISSIONS))
        return
    passwords = {user: os.environ[_variable(user)] for user in PERMISSIONS if os.environ.get(_variable(user))}
    text = json.dumps(definitions({} if chosen.check else passwords), indent=2) + "\n"
    if chosen.check:
        check(chosen.check, text, "the topology")
    elif chosen.write:
        chosen.write.touch(mode=0o600)
        chosen.write.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
