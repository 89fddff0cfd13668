"""The users that other services have at RabbitMQ: one list says what each may do, and rights and settings follow from it.

Whoever sends gets no events, and whoever gets events sends nothing: with the right to read ``cml.events`` and to write to
``cml.commands``, a user can bind the one to the other, and every event is then a command of the relay's.
See https://www.rabbitmq.com/docs/access-control
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, TypeAdapter, model_validator

from cml_contracts.commands import COMMANDS
from cml_contracts.model import Strict
from cml_contracts.topology import (
    COMMANDS_EXCHANGE,
    EVENTS_EXCHANGE,
    OPERATOR_EXCHANGE,
    QUERIES_EXCHANGE,
    Exchange,
    own_exchange,
    reply_queue,
    subscriber_queue,
)
from cml_workers.bus.topology import Queue, own_queues
from cml_workers.bus.usage import retry_queues
from cml_workers.domain.policy import EVERY_COMMAND
from cml_workers.foundation.failures import did_you_mean

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
"""With no dot: the queues of ``a`` would be those of ``a.b`` as well."""
GIVEN_NAMES = r"amq\.gen-"
"""What the names of queues begin with that the broker gives."""
NOTHING = "^$"
VIRTUAL_HOST = "/"

USER_LIMITS: Mapping[str, int] = {"max-connections": 100, "max-channels": 1000}
"""Of each user that is no role: connections and channels are memory of the broker's. RabbitMQ has no limit on one user's queues."""

Permission = tuple[str, str, str]
"""Regular expressions of what may be configured, written, read."""


def _command(kind: str) -> str:
    known = {EVERY_COMMAND, *COMMANDS}
    if kind not in known:
        raise ValueError(f"{kind!r} is no command{did_you_mean(kind, known)}")
    return kind


class BrokerUser(Strict):
    """``may``: which command types it may send, ``*`` for all; whoever does not subscribe may also query.

    ``delegate``: on behalf of others, with a token; ``operate``: it may deal with dead letters; ``subscribe``: it gets events, and
    nothing else; ``shared``: it may still publish to ``cml.commands`` and ``cml.queries``, as before there were exchanges of its own.
    A user without a ``password_hash`` cannot log in.
    """

    may: Annotated[list[Annotated[str, AfterValidator(_command)]], Field()] = []
    delegate: bool = False
    operate: bool = False
    subscribe: bool = False
    shared: bool = True
    password_hash: str | None = None

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.subscribe and (self.may or self.delegate or self.operate):
            raise ValueError("whoever subscribes may do nothing else: make two users")
        if self.delegate and not self.may:
            raise ValueError("a delegate must be allowed to send some command")
        return self


def _name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: at most 63 letters, digits, - and _, beginning with neither")
    return name


BrokerUsers = Mapping[str, BrokerUser]
_USERS: TypeAdapter[dict[str, BrokerUser]] = TypeAdapter(
    dict[Annotated[str, AfterValidator(_name)], BrokerUser]
)


def read_users(text: str | bytes) -> dict[str, BrokerUser]:
    """The list, by name. Raises ValidationError."""
    return _USERS.validate_json(text)


def write_users(users: BrokerUsers) -> str:
    """The list as ``read_users`` reads it."""
    return (
        json.dumps({name: user.model_dump(exclude_defaults=True) for name, user in users.items()}, indent=2)
        + "\n"
    )


def named(names: Iterable[str], own: Iterable[Queue] = ()) -> str:
    """The regular expression of these names and no others, and of every sender's own queues beside ``own``."""
    of_senders = (rf"{re.escape(queue.name)}\.{NAME.pattern}" for queue in own)
    listed = "|".join((*map(re.escape, names), *of_senders))
    return f"^({listed})$" if listed else NOTHING


def permission(name: str, user: BrokerUser) -> Permission:
    """Its own queues, and the exchanges that it needs. It writes to no queue of its own but to bind it to events."""
    replies = re.escape(reply_queue(name, ""))
    if user.subscribe:
        own = f"^({replies}|{re.escape(subscriber_queue(name, ''))}|{GIVEN_NAMES})"
        return own, own, f"{named((EVENTS_EXCHANGE.name,))}|{own}"
    own = f"^({replies}|{GIVEN_NAMES})"
    exchanges = exchanges_of(QUERIES_EXCHANGE, name, user)
    if user.may:
        exchanges += exchanges_of(COMMANDS_EXCHANGE, name, user)
    if user.operate:
        exchanges.append(OPERATOR_EXCHANGE)
    return own, named(exchange.name for exchange in exchanges), own


def exchanges_of(shared: Exchange, name: str, user: BrokerUser) -> list[Exchange]:
    """Where it may publish what goes through the shared one, or went."""
    return [own_exchange(shared, name), *([shared] if user.shared else [])]


def queues_of(users: BrokerUsers) -> list[Queue]:
    """The senders' own."""
    return [queue for name, user in users.items() if not user.subscribe for queue in own_queues(name)]


def permissions(users: BrokerUsers) -> list[dict[str, Any]]:
    """As RabbitMQ's definitions have them."""
    rights = {name: permission(name, user) for name, user in users.items()}
    return [
        {"user": name, "vhost": VIRTUAL_HOST, "configure": configure, "write": write, "read": read}
        for name, (configure, write, read) in rights.items()
    ]


def topic_permissions(users: BrokerUsers) -> list[dict[str, Any]]:
    """Under which routing keys each may publish commands; whoever has none here, and may publish, may under any."""
    return [
        {
            "user": name,
            "vhost": VIRTUAL_HOST,
            "exchange": exchange.name,
            "write": named(user.may),
            "read": NOTHING,
        }
        for name, user in users.items()
        if user.may and EVERY_COMMAND not in user.may
        for exchange in exchanges_of(COMMANDS_EXCHANGE, name, user)
    ]


def broker_user(
    name: str, password_hash: str, tags: str = "", limits: Mapping[str, int] = USER_LIMITS
) -> dict[str, Any]:
    """As RabbitMQ's definitions have it."""
    return {
        "name": name,
        "password_hash": password_hash,
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": tags,
        "limits": dict(limits),
    }


def topology_of(queues: Iterable[Queue], exchanges: Iterable[Exchange] = ()) -> dict[str, Any]:
    """The queues with those in which their retries wait, their bindings, and the exchanges they are bound to, as RabbitMQ's definitions have them."""
    found = list(queues)
    bound = (binding.exchange for queue in found for binding in queue.bindings)
    waiting = (each for queue in found for each in retry_queues(queue).items())
    kept = {"durable": True, "auto_delete": False}
    return {
        "exchanges": [
            {
                "name": exchange.name,
                "vhost": VIRTUAL_HOST,
                "type": exchange.kind,
                **kept,
                "internal": False,
                "arguments": {},
            }
            for exchange in dict.fromkeys((*exchanges, *bound))
        ],
        "queues": [
            {"name": name, "vhost": VIRTUAL_HOST, **kept, "arguments": dict(arguments)}
            for name, arguments in (*((queue.name, queue.arguments) for queue in found), *waiting)
        ],
        "bindings": [
            {
                "source": binding.exchange.name,
                "vhost": VIRTUAL_HOST,
                "destination": queue.name,
                "destination_type": "queue",
                "routing_key": binding.routing_key,
                "arguments": {},
            }
            for queue in found
            for binding in queue.bindings
        ],
    }


def users_only(users: BrokerUsers) -> dict[str, Any]:
    """Definitions of those who can log in, and of all senders' queues: a running broker takes them in beside what it has.

    The queues of the others, too: ``settings_of`` has the roles read them.
    """
    able = {name: user for name, user in users.items() if user.password_hash}
    return {
        "users": [broker_user(name, user.password_hash or "") for name, user in able.items()],
        "permissions": permissions(able),
        "topic_permissions": topic_permissions(able),
        **topology_of(queues_of(users)),
    }


def settings_of(users: BrokerUsers) -> dict[str, str]:
    """The roles' settings that follow from the list, by name."""
    return {
        "CML_COMMAND_USERS": _compact({name: user.may for name, user in users.items() if user.may}),
        "CML_DELEGATE_USERS": _compact([name for name, user in users.items() if user.delegate]),
        "CML_OPERATOR_USERS": _compact([name for name, user in users.items() if user.operate]),
        "CML_SENDERS": _compact([name for name, user in users.items() if not user.subscribe]),
    }


def hashed(password: str, salt: bytes) -> str:
    """``salt``: four random bytes. See https://www.rabbitmq.com/docs/passwords#computing-password-hash."""
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def password_variable(user: str) -> str:
    """The environment variable of its password, where there is one."""
    return f"{user.upper().replace('-', '_')}_PASSWORD"


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
