"""What a hostile sender publishes with the rights of one user: frames as they go on the wire, made once, so that sending them costs it little.

The same for the same seed. ``MARK`` in a message is replaced by another id each time it is sent, where repetition is not the attack.
"""

import base64
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

from pamqp import body, commands, frame, header

from cml_contracts.commands import (
    CreateCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerTags,
)
from cml_contracts.envelope import JSON, MAX_BODY
from cml_contracts.queries import GetCMLWorker, GetOperation, ListCMLWorkers
from cml_contracts.tokens import TOKEN_HEADER
from cml_contracts.topology import COMMANDS_EXCHANGE, QUERIES_EXCHANGE, own_exchange
from cml_embedded.ec2_simulator import DEMO_IMAGES
from cml_workers.bus.rabbit.direct_replies import PREFIX

MARK = "00000000-0000-4000-8000-00000000beef"
USER = "mallory"
COMMANDS, QUERIES = (own_exchange(shared, USER).name for shared in (COMMANDS_EXCHANGE, QUERIES_EXCHANGE))
"""The exchanges that it may publish to."""
MAY = (CreateCMLWorker.TYPE, StartCMLWorker.TYPE, StopCMLWorker.TYPE, UpdateCMLWorkerTags.TYPE)
"""The rights that it has."""
REGION = "us-east-1"
DIRECT = "amq.rabbitmq.reply-to"
CHANNEL = 1
FRAME = 131_072 - 8
"""Bytes of content in a frame, as RabbitMQ proposes it."""
HOT = uuid5(UUID(int=0), "a hot worker")
POOL = 3_000
"""Messages that are made; then they are sent again, each marked with another id."""


@dataclass(frozen=True, slots=True)
class Hostile:
    """A message on the wire."""

    kind: str
    wire: bytes


class Stranger:
    """Makes them. ``largest``: bytes of the largest message that the broker takes; ``unread``: a queue of its own that nobody reads."""

    def __init__(self, *, seed: int, largest: int, unread: str) -> None:
        self._random = random.Random(seed)
        self._largest = largest
        self._unread = unread

    def pool(self, size: int = POOL) -> list[Hostile]:
        """Every kind by its weight, in no order; all of them at least once."""
        kinds = self._random.choices(list(KINDS), [weight for weight, _ in KINDS.values()], k=size)
        return [self._made(kind) for kind in (*KINDS, *kinds)]

    def creates(self, count: int) -> list[Hostile]:
        """Workers that it has a right to, the hot one first: EC2 is to be asked for no more than these."""
        ids = [HOT, *(UUID(int=self._random.getrandbits(128), version=4) for _ in range(count - 1))]
        return [self._wire("create", *self._create(each), {}) for each in ids]

    def _made(self, kind: str) -> Hostile:
        _, make = KINDS[kind]
        return self._wire(kind, *make(self))

    def _wire(
        self, kind: str, exchange: str, routing_key: str, content: bytes, odd: Mapping[str, Any]
    ) -> Hostile:
        given: dict[str, Any] = {
            "message_id": MARK,
            "correlation_id": "x",
            "reply_to": self._random.choices((DIRECT, self._unread), (3, 1))[0],
            "message_type": routing_key,
            "content_type": JSON,
            "user_id": USER,
            "delivery_mode": self._random.choice((1, 2)),
            **odd,
        }
        properties = commands.Basic.Properties(
            **{name: value for name, value in given.items() if value is not None}
        )
        parts = [
            frame.marshal(commands.Basic.Publish(exchange=exchange, routing_key=routing_key), CHANNEL),
            frame.marshal(header.ContentHeader(0, len(content), properties), CHANNEL),
            *(
                frame.marshal(body.ContentBody(content[at : at + FRAME]), CHANNEL)
                for at in range(0, len(content), FRAME)
            ),
        ]
        return Hostile(kind, b"".join(parts))

    # -- kinds --------------------------------------------------------------------------------------------

    def _command(
        self, kind: str, fields: Mapping[str, Any], **odd: Any
    ) -> tuple[str, str, bytes, dict[str, Any]]:
        return COMMANDS, kind, json.dumps(fields).encode(), odd

    def _stop(self, **odd: Any) -> tuple[str, str, bytes, dict[str, Any]]:
        worker_id = str(UUID(int=self._random.getrandbits(128), version=4))
        return self._command(StopCMLWorker.TYPE, {"worker_id": worker_id}, **odd)

    def _create(self, worker_id: UUID) -> tuple[str, str, bytes]:
        fields = {
            "name": "hostile",
            "aws_region": REGION,
            "ami_id": DEMO_IMAGES[REGION],
            "instance_type": "t3.micro",
            "created_by": USER,
            "worker_id": str(worker_id),
        }
        return COMMANDS, CreateCMLWorker.TYPE, json.dumps(fields).encode()

    def _malformed(self) -> tuple[str, str, bytes, dict[str, Any]]:
        content = json.dumps({"worker_id": MARK}).encode()
        at = self._random.randrange(len(content))
        spoilt = self._random.choice(
            (content[:at], content[:at] + self._random.randbytes(3) + content[at:], b"", b"\xff\xfe", b"null")
        )
        return COMMANDS, self._random.choice(MAY), spoilt, {}

    def _deep(self) -> tuple[str, str, bytes, dict[str, Any]]:
        opening, closing = self._random.choice(((b"[", b"]"), (b'{"a":', b"1}")))
        depth = self._random.choice((300, 5_000, MAX_BODY // (len(opening) + len(closing)) - 1))
        exchange, kind = self._random.choice(
            ((COMMANDS, self._random.choice(MAY)), (QUERIES, ListCMLWorkers.TYPE))
        )
        return exchange, kind, opening * depth + closing * depth, {}

    def _long(self) -> tuple[str, str, bytes, dict[str, Any]]:
        """As long as it is read, and all of it has to be."""
        tags = {str(number): "x" * 200 for number in range(MAX_BODY // 220)}
        return self._command(UpdateCMLWorkerTags.TYPE, {"worker_id": str(HOT), "tags": tags})

    def _oversized(self) -> tuple[str, str, bytes, dict[str, Any]]:
        size = self._random.choices((MAX_BODY + 1, 300_000, self._largest), (6, 3, 1))[0]
        exchange, kind = self._random.choice(((COMMANDS, StopCMLWorker.TYPE), (QUERIES, GetCMLWorker.TYPE)))
        return exchange, kind, b'{"worker_id": "' + b"x" * (size - 17) + b'"}', {}

    def _unknown(self) -> tuple[str, str, bytes, dict[str, Any]]:
        kind = self._random.choice(("cml.worker.explode.v1", "", "x" * 255, "\x1b[2J"))
        exchange, key = self._random.choice(
            ((COMMANDS, self._random.choice(MAY)), (QUERIES, GetCMLWorker.TYPE))
        )
        return exchange, key, b"{}", {"message_type": kind}

    def _denied(self) -> tuple[str, str, bytes, dict[str, Any]]:
        """Of a type that it has no right to, under a routing key that the broker lets pass."""
        return self._stop(message_type=TerminateCMLWorker.TYPE)

    def _hot(self) -> tuple[str, str, bytes, dict[str, Any]]:
        number = str(self._random.randrange(1_000))
        return self._command(UpdateCMLWorkerTags.TYPE, {"worker_id": str(HOT), "tags": {"number": number}})

    def _rejected(self) -> tuple[str, str, bytes, dict[str, Any]]:
        exchange, kind, content = self._create(HOT)
        fields = {**json.loads(content), "worker_id": None, "aws_region": "xx-nowhere-9"}
        return exchange, kind, json.dumps(fields).encode(), {}

    def _duplicate(self) -> tuple[str, str, bytes, dict[str, Any]]:
        return self._stop(message_id=f"the same {self._random.randrange(20)}")

    def _forged(self) -> tuple[str, str, bytes, dict[str, Any]]:
        made_up = base64.urlsafe_b64encode(self._random.randbytes(90)).decode()
        token = self._random.choice((f"v2.{made_up}.{made_up}", "v2." + "x" * 3_000, "", made_up))
        return self._stop(headers={TOKEN_HEADER: token})

    def _nonsense_reply(self) -> tuple[str, str, bytes, dict[str, Any]]:
        nowhere = self._random.choice(
            ("cml.lifecycle.reports", "cml.replies.ann.x", f"amq.gen-{MARK}", "x" * 255, "\x00", None)
        )
        return self._stop(reply_to=nowhere)

    def _made_up_address(self) -> tuple[str, str, bytes, dict[str, Any]]:
        node = b"rabbit@made-up-%d" % self._random.randrange(10_000)
        process = base64.b64encode(b"\x83Xv" + len(node).to_bytes(2, "big") + node + bytes(12)).decode()
        return self._stop(reply_to=f"{PREFIX}{process}.key")

    def _odd(self) -> tuple[str, str, bytes, dict[str, Any]]:
        odd: Mapping[str, Any] = self._random.choice(
            (
                {"priority": 255},
                {"expiration": "600000"},
                {"headers": {"x-delivery-count": 19}},
                {"headers": {"x-cml-attempt": 5, "x-cml-user-id": "cml-lifecycle"}},
                {"headers": {"x-death": [{"queue": "q", "reason": "expired"}]}},
                {"headers": {f"h{number}": "x" * 1_000 for number in range(50)}},
                {"user_id": None},
                {"correlation_id": "\u202e" * 60},
                {"app_id": "\x1b[2J"},
            )
        )
        return self._stop(**odd)

    def _list(self) -> tuple[str, str, bytes, dict[str, Any]]:
        return QUERIES, ListCMLWorkers.TYPE, json.dumps({"limit": 500}).encode(), {}

    def _lookup(self) -> tuple[str, str, bytes, dict[str, Any]]:
        kind, fields = self._random.choice(
            ((GetCMLWorker.TYPE, {"worker_id": str(HOT)}), (GetOperation.TYPE, {"command_id": MARK}))
        )
        return QUERIES, kind, json.dumps(fields).encode(), {}


KINDS: Mapping[str, tuple[int, Callable[[Stranger], tuple[str, str, bytes, dict[str, Any]]]]] = {
    "malformed": (12, Stranger._malformed),
    "deep": (4, Stranger._deep),
    "long": (2, Stranger._long),
    "oversized": (2, Stranger._oversized),
    "of an unknown type": (8, Stranger._unknown),
    "denied": (12, Stranger._denied),
    "for a hot worker": (8, Stranger._hot),
    "for unknown workers": (12, Stranger._stop),
    "rejected creates": (5, Stranger._rejected),
    "duplicates": (6, Stranger._duplicate),
    "with forged tokens": (6, Stranger._forged),
    "with nonsense to reply to": (5, Stranger._nonsense_reply),
    "with made-up addresses": (2, Stranger._made_up_address),
    "with odd properties": (6, Stranger._odd),
    "long lists": (4, Stranger._list),
    "queries": (6, Stranger._lookup),
}
"""How often in a hundred, and how."""
