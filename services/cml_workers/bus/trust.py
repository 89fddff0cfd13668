"""What a consumer believes of a message: which role it comes from, and for whom it was published again.

RabbitMQ vouches for the property ``user_id``, which names the publisher. Who publishes a message again names its sender in a header
(``USER_HEADER``). It is believed of the role that consumes the queue, as a retry; of others, as of a redrive, if it is signed with a
key of that role.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cml_workers.bus.headers import OWN_HEADERS, QUEUE_HEADER, SIGNATURE_HEADER, USER_HEADER
from cml_workers.bus.port import Message, NoKeyError, Outgoing
from cml_workers.bus.topology import DEAD_LETTER_EXCHANGE, DEAD_LETTER_QUEUE, INTERNAL_EXCHANGE, QUEUES, Queue
from cml_workers.bus.usage import Usage, retry_queues


@dataclass(frozen=True, slots=True)
class Judgment:
    """``believed``: our own headers are; ``refusal``: why the message is not handled, None if it is."""

    believed: bool
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Trust:
    """What there is to know of the roles, each by its name.

    ``uses``: what it consumes and publishes; ``users``: who it is at the broker; ``keys``: with which is signed what others publish
    again into its queues. Not ``enforced``: every role is believed everything.
    """

    uses: Mapping[str, Usage] = field(default_factory=dict)
    users: Mapping[str, frozenset[str]] = field(default_factory=dict)
    keys: Mapping[str, bytes] = field(default_factory=dict)
    enforced: bool = False

    @property
    def everybody(self) -> frozenset[str]:
        """The users of all roles."""
        return frozenset().union(*self.users.values())

    def judge(self, message: Message, queue: Queue, exchange: str) -> Judgment:
        """``message``: as its publisher wrote it, who is its ``user_id``; ``exchange``: which it was published to."""
        names_sender = USER_HEADER in message.headers
        ours = message.user_id in self.everybody
        if not self.enforced:
            return Judgment(names_sender and ours)
        signed = names_sender and self._is_signed(message, queue)
        retried = names_sender and not signed and self._is_retry(message, queue)
        believed = signed or retried
        if retried or queue is DEAD_LETTER_QUEUE:  # where all is archived, as what it is
            return Judgment(believed)
        if names_sender and ours and not believed:
            return Judgment(
                False,
                f"user {message.user_id!r} does not consume {queue.name}, and its message for another user has no valid signature "
                "(CML_REDRIVE_KEYS): if it was redriven, redrive it again",
            )
        user = str(message.headers[USER_HEADER]) if signed else message.user_id
        return Judgment(signed, self._refusal(message.type, user, queue, "" if signed else exchange))

    def signed(self, message: Outgoing) -> Outgoing:
        """What is published again, with a signature if it is not believed without one. Raises NoKeyError."""
        if not self.enforced or USER_HEADER not in message.headers:
            return message
        queue = _goes_to(message)
        role = self._consumer(queue)
        if queue is None or role is None:
            return message
        key = self.keys.get(role)
        own = message.user_id in self.users.get(role, ())
        if own and not (key and self._must_sign(role, queue)):
            return message
        if not own and message.exchange is not None:
            return message  # what another role dead-letters
        if key is None:
            raise NoKeyError(f"CML_REDRIVE_KEYS has no key of {role}: it would not believe for whom this is")
        signature = _signature(key, queue, message)
        return replace(message, headers={**message.headers, SIGNATURE_HEADER: signature})

    def _consumer(self, queue: Queue | None) -> str | None:
        return next((role for role, uses in self.uses.items() if queue in uses.consumes), None)

    def _is_signed(self, message: Message, queue: Queue) -> bool:
        key = self.keys.get(self._consumer(queue) or "")
        signature = str(message.headers.get(SIGNATURE_HEADER, ""))
        return key is not None and hmac.compare_digest(
            _signature(key, queue, message).encode(), signature.encode(errors="replace")
        )

    def _must_sign(self, role: str | None, queue: Queue) -> bool:
        """Whether also its consumer is believed only if it signs: whoever could make up an operator, or what died, could redrive it."""
        return role in self.keys and (queue is DEAD_LETTER_QUEUE or not queue.retries)

    def _is_retry(self, message: Message, queue: Queue) -> bool:
        """Or, in the dead letters, whether it comes from the role that it died of."""
        consumer = self._consumer(queue)
        must_sign = self._must_sign(consumer, queue)
        believed = set() if must_sign else {consumer}
        if queue is DEAD_LETTER_QUEUE:
            of_role = self._consumer(_BY_NAME.get(str(message.headers.get(QUEUE_HEADER))))
            believed |= {of_role} - ({consumer} if must_sign else set())
        return any(message.user_id in self.users.get(role or "", ()) for role in believed)

    def _refusal(self, kind: str, user: str | None, queue: Queue, exchange: str) -> str | None:
        internal = any(kind in uses.internal for uses in self.uses.values())
        bound = {binding.exchange for binding in queue.bindings}
        published = {each for uses in self.uses.values() for each in uses.publishes}
        if not bound & published:
            return None  # other services send these, and the handler knows who may
        ways = bound & {INTERNAL_EXCHANGE} if internal else bound - {INTERNAL_EXCHANGE}
        roles = [
            role
            for role, uses in self.uses.items()
            if ways & set(uses.publishes) and (kind in uses.internal or not internal)
        ]
        users = {user for role in roles for user in self.users[role]}
        # Earlier versions published without the property; who may publish to the exchange, the broker knows.
        if user in users or (user is None and exchange in {each.name for each in ways}):
            return None
        return f"user {user!r} may not send {kind[:80]!r} to {queue.name}; who may: {', '.join(sorted(users)) or 'nobody'}"


_BY_NAME = {queue.name: queue for queue in QUEUES}
_INTO = {name: queue for queue in QUEUES for name in (queue.name, *retry_queues(queue))}
"""By the name of a queue, which one its messages come to."""


def _goes_to(message: Outgoing) -> Queue | None:
    """The queue that a message that is published again is for."""
    if message.exchange is None:
        return _INTO.get(message.routing_key)
    return DEAD_LETTER_QUEUE if message.exchange == DEAD_LETTER_EXCHANGE else None


def _signature(key: bytes, queue: Queue, message: Message | Outgoing) -> str:
    own = {
        name: value
        for name, value in message.headers.items()
        if name in OWN_HEADERS and name != SIGNATURE_HEADER
    }
    said = [
        queue.name,
        message.message_id or "",
        message.type or queue.name,
        message.correlation_id or "",
        message.reply_to or "",
        hashlib.sha256(message.body).hexdigest(),
        own,
    ]
    return hmac.new(key, json.dumps(said, sort_keys=True, default=str).encode(), hashlib.sha256).hexdigest()
