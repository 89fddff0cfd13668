"""RabbitMQ's definitions file, generated from the topology: queues, and a user for each role with least rights.

Import it with ``load_definitions`` (https://www.rabbitmq.com/docs/definitions) and run the roles with
``CML_DECLARE_TOPOLOGY=false``: no role then needs the right to configure anything.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cml_tools.generated import check
from cml_workers.bus.topology import (
    DEAD_LETTER_EXCHANGE,
    DEAD_LETTER_QUEUE,
    EXCHANGES,
    INTERNAL_EXCHANGE,
    PUBLIC,
    QUEUES,
    SHARED,
)
from cml_workers.bus.usage import Usage, retry_queues
from cml_workers.bus.users import (
    NOTHING,
    USER_LIMITS,
    BrokerUsers,
    Permission,
    broker_user,
    hashed,
    named,
    password_variable,
    permission,
    queues_of,
    read_users,
    topic_permissions,
    topology_of,
)
from cml_workers.process.registry import ROLES

DEFAULT_EXCHANGE = "amq.default"
"""The default exchange's name in permissions: replies and retries go through it."""

SUBSCRIBERS = r"^cml\.subscribers\."
SUBSCRIBERS_LIMITS: Mapping[str, str | int] = {
    "max-length": 100_000,
    "max-length-bytes": 1024**3,
    "expires": 30 * 24 * 3600 * 1000,
    "message-ttl": 7 * 24 * 3600 * 1000,
    "overflow": "reject-publish",
}
"""A queue that nobody reads must not fill the disk. It takes no more, which the relay says; to drop its oldest would go unseen.

One that nobody has used for a month goes; the events in it had gone after a week."""
REPLIES = r"^(cml\.replies\.|amq\.gen)"
REPLIES_LIMITS: Mapping[str, str | int] = {
    "max-length": 10_000,
    "max-length-bytes": 256 * 1024**2,
    "expires": 3600 * 1000,
    "overflow": "reject-publish",
}
"""Of queues that wait for replies, or that the broker named. A caller who does not read them can ask for the outcome later."""
FROM_OUTSIDE_POLICY = "cml-from-outside"
FROM_OUTSIDE = named(
    (
        name
        for queue in QUEUES
        if queue.name in PUBLIC or queue is DEAD_LETTER_QUEUE
        for name in (queue.name, *retry_queues(queue))
    ),
    SHARED,
)
FROM_OUTSIDE_LIMITS: Mapping[str, str | int] = {
    "max-length": 100_000,
    "max-length-bytes": 512 * 1024**2,
    "overflow": "reject-publish",
}
"""Of what senders can fill faster than it is read. Whoever asks for confirms learns that a message was not taken, and nothing that was is lost."""
VHOST_LIMITS: Mapping[str, int] = {"max-connections": 2000, "max-queues": 5000}

LIST = Path(__file__).parents[2] / "deploy" / "rabbitmq" / "broker-users.json"
"""The users of other services that the shipped definitions have."""
SHIPPED = read_users(LIST.read_bytes())


def _role(uses: Usage) -> Permission:
    """Nothing to configure; replies and retries go through the default exchange, and retries come back by themselves.

    It may read its retry queues as it asks whether they are there, for which RabbitMQ 4.3 wants any right to them.
    """
    through_the_default_exchange = (DEFAULT_EXCHANGE,) if uses.consumes else ()
    return (
        NOTHING,
        named((*through_the_default_exchange, *(exchange.name for exchange in uses.exchanges))),
        named(uses.queues, (queue for queue in SHARED if queue in uses.consumes)),
    )


OURS: Mapping[str, Permission] = {
    **{role.user: _role(role.uses) for role in ROLES.values()},
    "cml-monitor": (NOTHING, NOTHING, NOTHING),
}
_ROLES = frozenset(role.user for role in ROLES.values())
INTERNAL_TYPES: Mapping[str, tuple[str, ...]] = {
    role.user: role.uses.internal for role in ROLES.values() if role.uses.internal
}
"""By user, the routing keys with which it may publish to ``INTERNAL_EXCHANGE``: https://www.rabbitmq.com/docs/access-control#topic-authorisation."""
NO_KEY = "(?!)"
"""Matches no routing key. ``NOTHING`` matches the empty one, with which a command may have been published."""
TAGS = {"cml-monitor": "monitoring"}
"""What is more than a right: the management API says nothing to a user without one, nor to one without any right."""


def permissions(users: BrokerUsers = SHIPPED) -> dict[str, Permission]:
    """Of our own users, and of those of the list."""
    return {**OURS, **{name: permission(name, user) for name, user in users.items()}}


PERMISSIONS = permissions()
"""In the shipped definitions."""


def definitions(passwords: Mapping[str, str], users: BrokerUsers = SHIPPED) -> dict[str, Any]:
    """The definitions; a user without a password, here or in the list, cannot log in until it is given one."""
    rights = permissions(users)
    hashes = {name: hashed(password, os.urandom(4)) for name, password in passwords.items()}
    hashes |= {name: user.password_hash for name, user in users.items() if user.password_hash}
    return {
        "vhosts": [{"name": "/"}],
        "users": [
            broker_user(name, hashes.get(name, ""), TAGS.get(name, ""), {} if name in _ROLES else USER_LIMITS)
            for name in rights
        ],
        "permissions": [
            {"user": user, "vhost": "/", "configure": configure, "write": write, "read": read}
            for user, (configure, write, read) in rights.items()
        ],
        "topic_permissions": [
            *(
                {
                    "user": user,
                    "vhost": "/",
                    "exchange": INTERNAL_EXCHANGE.name,
                    "write": named(types),
                    "read": NOTHING,
                }
                for user, types in INTERNAL_TYPES.items()
            ),
            *(
                {
                    "user": role.user,
                    "vhost": "/",
                    "exchange": DEAD_LETTER_EXCHANGE.name,
                    "write": ".*",
                    "read": NO_KEY,
                }
                for role in ROLES.values()
                if DEAD_LETTER_EXCHANGE in role.uses.exchanges
            ),
            *topic_permissions(users),
        ],
        **topology_of((*QUEUES, *queues_of(users)), EXCHANGES),
        "parameters": [
            {"component": "vhost-limits", "name": "limits", "vhost": "/", "value": dict(VHOST_LIMITS)}
        ],
        "policies": [
            {
                "vhost": "/",
                "name": name,
                "pattern": pattern,
                "apply-to": "queues",
                "priority": 0,
                "definition": dict(limits),
            }
            for name, pattern, limits in (
                ("cml-subscribers", SUBSCRIBERS, SUBSCRIBERS_LIMITS),
                ("cml-replies", REPLIES, REPLIES_LIMITS),
                (FROM_OUTSIDE_POLICY, FROM_OUTSIDE, FROM_OUTSIDE_LIMITS),
            )
        ],
    }


def main() -> None:
    """Print the definitions, with passwords from the environment; or check that a file has their topology."""
    variables = ", ".join(password_variable(user) for user in PERMISSIONS)
    parser = argparse.ArgumentParser(
        description="Generate RabbitMQ's definitions file.",
        epilog=f"Passwords are those of the list, or else from {variables}; a user without one cannot log in until it is given one.",
    )
    parser.add_argument(
        "--users", type=Path, default=LIST, metavar="FILE", help="the list of `cml-workers broker-user`"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write it, readable by the owner alone")
    parser.add_argument(
        "--check", type=Path, metavar="FILE", help="fail if it is not the one without passwords"
    )
    parser.add_argument(
        "--without-users",
        action="store_true",
        help="leave the users and their passwords out: for a broker that has them, where an import would replace the passwords",
    )
    parser.add_argument(
        "--variables", action="store_true", help="print the names of our own users' passwords instead"
    )
    chosen = parser.parse_args()
    if chosen.variables:
        sys.stdout.write("".join(f"{password_variable(user)}\n" for user in OURS))
        return
    users = read_users(chosen.users.read_bytes())
    given = {user: os.environ.get(password_variable(user)) for user in permissions(users)}
    passwords = {user: password for user, password in given.items() if password}
    found = definitions({} if chosen.check else passwords, users)
    if chosen.without_users:
        del found["users"]
    text = json.dumps(found, indent=2) + "\n"
    if chosen.check:
        check(chosen.check, text, "the topology")
    elif chosen.write:
        chosen.write.touch(mode=0o600)
        chosen.write.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
