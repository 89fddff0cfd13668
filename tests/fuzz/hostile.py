"""A stream of hostile messages for every inbound queue: the same for the same seed, and each with its number.

Bodies come from the contracts (valid and nearly valid, drawn by Hypothesis) and from the frozen examples; then bytes,
sizes, encodings, ids, headers and properties are spoiled. The number travels in a header, in the correlation id and in
the message id, so that the outcome of each message can be found.

One file of more than 300 lines: a flat list of ways to spoil a message, which share one source of randomness.
"""

import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from cml_contracts.commands import COMMANDS
from cml_contracts.envelope import CLOUDEVENTS_JSON, JSON, MAX_BODY
from cml_contracts.queries import QUERIES
from cml_contracts.topology import COMMANDS_EXCHANGE, QUERIES_EXCHANGE, Exchange
from cml_embedded.ec2_simulator import DEMO_IMAGES
from cml_workers.bus.topology import EC2_TRIGGERS, INTERNAL_EXCHANGE
from cml_workers.domain.messages import REPORTS, LookupRequested
from fuzz.strategies import ODD, STEADY, commands, nearly, queries
from support.raw_amqp import Bytes, Seconds, nested

NUMBER_HEADER = "x-fuzz"
USER = "guest"
EXAMPLES = Path(__file__).parents[2] / "contracts" / "examples"
REGION = "us-east-1"
HUGE = 3 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Target:
    """Where messages of some types are sent: ``weight`` in a hundred of them."""

    name: str
    exchange: Exchange
    types: tuple[str, ...]
    weight: int
    routing_key: str | None = None
    """None: the type."""


TARGETS = (
    Target("commands", COMMANDS_EXCHANGE, tuple(COMMANDS), 50),
    Target("queries", QUERIES_EXCHANGE, tuple(QUERIES), 22),
    Target("reports", INTERNAL_EXCHANGE, tuple(REPORTS), 12, "cml.report.x"),
    Target("lookups", INTERNAL_EXCHANGE, (LookupRequested.TYPE,), 4, "cml.lookup.x"),
    Target("triggers", EC2_TRIGGERS.bindings[0].exchange, ("any",), 12, EC2_TRIGGERS.bindings[0].routing_key),
)


@dataclass(frozen=True, slots=True)
class Hostile:
    """A message as it is published. ``awaits``: its sender listens where its reply is to go."""

    number: int
    target: Target
    routing_key: str
    body: bytes
    properties: Mapping[str, Any]
    awaits: bool
    readable: bool


class Stranger:
    """Makes the messages; ``victims`` are workers that exist. ``patient``: some may take half a minute to settle."""

    def __init__(
        self, *, seed: int, reply_to: str, full: str, victims: Sequence[UUID], bodies: int, patient: bool
    ) -> None:
        self._random = random.Random(seed)
        self._numbers = itertools.count(1)
        self._reply_to = reply_to
        self._full = full
        self._victims = victims
        self._patient = patient
        self._bodies = _drawn(bodies)
        self._known_ids: list[str] = []
        self._huge_left = 40

    def message(self) -> Hostile:
        """The next one."""
        number, chance = next(self._numbers), self._random
        (target,) = chance.choices(TARGETS, [target.weight for target in TARGETS])
        kind = chance.choice(target.types)
        fields = self._fields(target, kind, number)
        body = json.dumps(fields, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
        if chance.random() < 0.6:
            body = chance.choice(self._spoilers)(self, body)
        properties: dict[str, Any] = {
            "message_id": f"{number}-{UUID(int=chance.getrandbits(128))}",
            "correlation_id": str(number),
            "reply_to": self._reply_to,
            "message_type": kind,
            "content_type": CLOUDEVENTS_JSON if target.name == "triggers" else JSON,
            "user_id": USER,
            "headers": {NUMBER_HEADER: number},
            "delivery_mode": 1,
        }
        routing_key = target.routing_key or kind
        readable = True
        if chance.random() < 0.02:
            body, readable = f"unreadable {number}".encode(), False
            properties |= chance.choice(UNREADABLE)
        elif chance.random() < 0.4:
            changed = chance.choice(self._oddities)(self, number)
            properties |= {**changed, "headers": {**changed.get("headers", {}), NUMBER_HEADER: number}}
        if target.routing_key is None and chance.random() < 0.05:
            routing_key = chance.choice(
                ("", "x" * 255, "a..b", "#", Bytes(b"\xff\xfe"), "cml.worker.create.v9")
            )
        if target.name == "commands" and readable and len(self._known_ids) < 500:
            self._known_ids.append(properties["message_id"] or "")
        inside = target.name in ("reports", "lookups")
        awaits = readable and (self.listens(body) if inside else properties["reply_to"] == self._reply_to)
        return Hostile(number, target, routing_key, body, properties, awaits, readable)

    def listens(self, body: bytes) -> bool:
        """Whether the reply to the command that a lookup or its answer brings along comes to us."""
        try:
            return bool(json.loads(body)["origin"]["reply"]["reply_to"] == self._reply_to)
        except (ValueError, TypeError, KeyError, RecursionError):
            return False

    # -- bodies -------------------------------------------------------------------------------------------

    def _fields(self, target: Target, kind: str, number: int) -> Any:
        match target.name:
            case "triggers":
                to_come = self._patient and self._random.random() < 0.02
                revision = 2**40 if to_come else self._random.choice((-1, -(2**70)))
                return {**_TRIGGER, "subject": str(self._worker()), "streamrevision": revision}
            case "reports" | "lookups":
                return self._report(dict(_example(kind)), number)
            case "commands":
                return self._addressed(kind, self._random.choice(self._bodies[kind]))
            case _:
                return self._random.choice(self._bodies[kind])

    def _addressed(self, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """To a worker that exists, now and then; by the user that sends it, mostly; seldom with work for EC2."""
        chance, fields = self._random, dict(body)
        if isinstance(fields.get("worker_id"), str):
            fields["worker_id"] = str(self._worker(existing=0.0 if "create" in kind else 0.1))
        if isinstance(fields.get("instance_id"), str):
            fields["instance_id"] = f"i-{chance.getrandbits(68):017x}"
        for name in fields.keys() & {"created_by", "started_by", "stopped_by", "terminated_by", "updated_by"}:
            if chance.random() < 0.8:
                fields[name] = USER
        if isinstance(fields.get("aws_region"), str) and fields["aws_region"] in DEMO_IMAGES:
            if "ami_id" in fields and chance.random() < 0.05:
                fields |= {"ami_id": DEMO_IMAGES[fields["aws_region"]], "instance_type": "m5.large"}
            elif chance.random() < 0.95:
                fields["aws_region"] = "xx-nowhere-9"
        return fields

    def _report(self, fields: dict[str, Any], number: int) -> dict[str, Any]:
        if "worker_id" in fields:
            fields["worker_id"] = str(self._worker(existing=0.0))
        if "origin" in fields:
            reply = {"reply_to": self._reply_to, "correlation_id": str(number)}
            origin = {**fields["origin"], "command_id": f"{number}-origin", "reply": reply}
            fields["origin"] = {**origin, "command": {"worker_id": str(self._worker(existing=0.0))}}
            fields["question"] = {**fields["question"], "aws_region": "xx-nowhere-9"}
        if self._random.random() < 0.4:
            place: Any = fields
            while isinstance(place, dict) and place:
                name = self._random.choice(sorted(place))
                if not isinstance(place[name], dict) or self._random.random() < 0.3:
                    place[name] = self._random.choice((None, 7, [], {}, {"a": {}}, 1e308, True, *ODD))
                    break
                place = place[name] = dict(place[name])
        return fields

    def _worker(self, *, existing: float = 0.1) -> UUID:
        if self._random.random() < existing:
            return self._random.choice(self._victims)
        return UUID(int=self._random.getrandbits(128))

    def _other_bytes(self, body: bytes) -> bytes:
        spoilt = bytearray(body)
        for _ in range(self._random.randint(1, 5)):
            at = self._random.randint(0, len(spoilt))
            spoilt[at : at + self._random.choice((0, 1, 1, 8))] = self._random.randbytes(
                self._random.randint(0, 3)
            )
        return bytes(spoilt)

    def _cut(self, body: bytes) -> bytes:
        return body[: self._random.randint(0, len(body))]

    def _encoded(self, body: bytes) -> bytes:
        text = body.decode("utf-8", "replace")
        encoding = self._random.choice(("utf-16", "utf-16-be", "utf-32", "utf-8-sig", "utf-7", "cp500"))
        return text.encode(encoding, "replace")

    def _replaced(self, body: bytes) -> bytes:
        """A value in the text, whatever it was."""
        start, end = sorted(self._random.choices(range(len(body) + 1), k=2))
        return body[:start] + self._random.choice(_VALUES) + body[end:]

    def _repeated_keys(self, body: bytes) -> bytes:
        return body[:-1] + b"," + body[1:]

    def _deep(self, _body: bytes) -> bytes:
        depth = self._random.choice((100, 300, 1_000, 5_000, 60_000))
        opening, closing = self._random.choice(((b"[", b"]"), (b'{"a":', b"1}")))
        return (opening * depth + closing * depth)[: self._random.choice((MAX_BODY, 10**6))]

    def _large(self, body: bytes) -> bytes:
        sizes = [MAX_BODY, MAX_BODY + 1, 100_000]
        if self._huge_left and self._random.random() < 0.1:
            self._huge_left -= 1
            sizes = [HUGE]
        padding = b" " * (self._random.choice(sizes) - len(body))
        return body[:-1] + padding + body[-1:]

    def _nonsense(self, _body: bytes) -> bytes:
        return self._random.choice(
            (
                *(b"", b" ", b"null", b"0", b'"text"', b"[]", b"{}", b"[{}]", b"{]", b"\x00", b"\xff\xfe"),
                self._random.randbytes(self._random.randint(1, 300)),
            )
        )

    _spoilers: Sequence[Callable[["Stranger", bytes], bytes]] = (
        _other_bytes,
        _other_bytes,
        _replaced,
        _replaced,
        _cut,
        _encoded,
        _repeated_keys,
        _deep,
        _large,
        _nonsense,
    )

    # -- properties ---------------------------------------------------------------------------------------

    def _odd_id(self, number: int) -> dict[str, Any]:
        odd = self._random.choice(
            (None, "", " ", "\x00", "\x1b[2J\n", "x" * 230, "\U0001f600" * 60, "\u202e")
        )
        return {"message_id": odd and f"{number}{odd}"}

    def _used_id(self, _number: int) -> dict[str, Any]:
        return {"message_id": self._random.choice(self._known_ids) or None} if self._known_ids else {}

    def _odd_correlation(self, number: int) -> dict[str, Any]:
        odd = self._random.choice((None, "\x00", "\x1b[2J\n", "x" * 240, "\U0001f600" * 60, "\u202e"))
        return {"correlation_id": odd and f"{number}{odd}"}

    def _nobody_there(self, number: int) -> dict[str, Any]:
        places = [
            *(None, "", f"gone-{number}", "\x00", "x" * 255, "amq.rabbitmq.reply-to.g1h2.x", "cml.commands"),
            *("cml.lifecycle.reports", "cml.lifecycle.commands", "cml.ec2.wakes", "cml.projector.queries.v2"),
        ]
        if self._patient and self._random.random() < 0.02:
            places = [self._full]
        return {"reply_to": self._random.choice(places)}

    def _odd_type(self, _number: int) -> dict[str, Any]:
        return {
            "message_type": self._random.choice(
                (
                    *(None, "", "cml.worker.create.v2", "cml.worker.create.v0", "CML.WORKER.CREATE.V1"),
                    *(
                        "cml.worker.create.v1 ",
                        "\x00",
                        "x" * 255,
                        "\U0001f600" * 60,
                        "cml.operation_result.v1",
                    ),
                    *("cml.worker.start.v1", "cml.worker.list.v1", "cml.report.operation_succeeded.v1"),
                )
            )
        }

    def _odd_properties(self, _number: int) -> dict[str, Any]:
        return self._random.choice(
            (
                {"content_type": "x" * 255},
                {"content_type": "text/html; charset=utf-16\x00"},
                {"content_encoding": "gzip"},
                {"priority": 255},
                {"expiration": "0"},
                {"expiration": "100000"},
                {"app_id": "\x00"},
                {"cluster_id": "x"},
                {"timestamp": Seconds.of(2**40)},
                {"user_id": None},
                {"delivery_mode": 2},
            )
        )

    def _odd_headers(self, number: int) -> dict[str, Any]:
        name = self._random.choice(
            (
                *("x-cml-attempt", "x-cml-faults", "x-cml-user-id", "x-cml-actor-token", "x-cml-reason"),
                *(
                    "x-cml-queue",
                    "traceparent",
                    "x-death",
                    "x-delivery-count",
                    "",
                    "\x00",
                    "k" * 128,
                    "\u202e",
                ),
            )
        )
        value = self._random.choice(
            (
                *(
                    -1,
                    0,
                    7,
                    2**31 - 1,
                    2**63 - 1,
                    "7",
                    "",
                    "root",
                    USER,
                    "x" * 10_000,
                    "\x00\x1b[2J",
                    True,
                    None,
                ),
                *(0.1, bytearray(b"\xff"), [1, ["a", {}]], {"a": {"b": [None]}}),
                *(
                    Seconds.of(0),
                    Seconds.of(2**33),
                    Bytes(b"\xff\xfe"),
                    [{"queue": "q", "reason": "expired"}],
                ),
            )
        )
        believed = {"x-cml-user-id": USER} if self._random.random() < 0.5 else {}
        if name in ("x-cml-attempt", "x-cml-faults") and isinstance(value, int) and value > 7:
            value = 7  # a longer wait is tried, and bounded, elsewhere
        return {"headers": {**believed, name: value}}

    _oddities: Sequence[Callable[["Stranger", int], dict[str, Any]]] = (
        _odd_id,
        _used_id,
        _odd_correlation,
        _nobody_there,
        _odd_type,
        _odd_properties,
        _odd_headers,
        _odd_headers,
    )


_NO_TEXT = Bytes(b"\xff\xfe\xed\xa0\x80")
UNREADABLE: Sequence[Mapping[str, Any]] = (
    {"correlation_id": _NO_TEXT},
    {"reply_to": _NO_TEXT},
    {"message_id": _NO_TEXT},
    {"message_type": _NO_TEXT},
    {"timestamp": Seconds.of(2**63)},
    {"headers": {"when": Seconds.of(2**64 - 1)}},
    {"headers": {_NO_TEXT: 1}},
    {"headers": nested(3_000)},
    {"headers": {"large": "x" * 100_000}},
    {"headers": dict.fromkeys(map(str, range(9_000)))},
)
_VALUES = (
    *(b"NaN", b"-Infinity", b"1e400", b"-0", b"1" * 5_000, b"0x1", b"null", b"true", b"[]", b"{}", b'"'),
    *(
        b'"\\u0000"',
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b'"\xed\xa0\x80"',
        b'"\x00"',
        b'"\xc0\x80"',
        b"/**/",
        b"//",
    ),
)


def _example(kind: str) -> dict[str, Any]:
    if kind not in _EXAMPLES:
        _EXAMPLES[kind] = json.loads((EXAMPLES / f"{kind}.json").read_text())
    return _EXAMPLES[kind]


_EXAMPLES: dict[str, dict[str, Any]] = {}
_TRIGGER: Mapping[str, Any] = {
    "specversion": "1.0",
    "id": "00000000-0000-0000-0000-000000000007",
    "source": "/stranger",
    "type": "cml.worker.start_requested.v1",
    "time": "2026-01-02T03:04:05Z",
    "data": {"operation_id": "x"},
}


def _drawn(count: int) -> dict[str, list[dict[str, Any]]]:
    """Bodies of commands and queries, half of them valid, by type."""
    drawn: dict[str, list[dict[str, Any]]] = {}
    valid = st.one_of(commands(), queries())

    @settings(STEADY, max_examples=count)
    @given(valid, st.data())
    def draw(body: Any, data: st.DataObject) -> None:
        fields = body.model_dump(mode="json", exclude_none=True)
        kept = drawn.setdefault(body.TYPE, [])
        kept.append(fields)
        kept.append(data.draw(nearly(st.just(fields))))

    draw()
    return drawn
