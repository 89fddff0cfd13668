"""What came of a run: what its subscribers got, the figures, and every promise that was broken."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aio_pika
from rich.table import Table

from cml_contracts.topology import EVENTS_EXCHANGE
from cml_workers.bus.headers import REASON_HEADER
from cml_workers.bus.topology import DEAD_LETTER_EXCHANGE
from support.load import Manner

SUBSCRIBER = "chaos.events"
MOURNER = "chaos.dead-letters"
_QUORUM = {"x-queue-type": "quorum"}


async def subscribe(url: str) -> None:
    """Keep every event that is published, and every dead letter, until the end."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for name, exchange in ((SUBSCRIBER, EVENTS_EXCHANGE), (MOURNER, DEAD_LETTER_EXCHANGE)):
            queue = await channel.declare_queue(name, durable=True, arguments=dict(_QUORUM))
            await queue.bind(exchange.name, "#")


async def taken(url: str, name: str) -> list[aio_pika.abc.AbstractIncomingMessage]:
    """Everything that lies in a queue."""
    async with await aio_pika.connect(url) as connection:
        queue = await (await connection.channel()).get_queue(name)
        messages: list[aio_pika.abc.AbstractIncomingMessage] = []
        while (message := await queue.get(no_ack=True, fail=False)) is not None:
            messages.append(message)
        return messages


async def dead_letters(url: str) -> list[str]:
    """Nobody sends anything broken, so there must be none."""
    return [
        f"9: {each.type} {each.message_id} became a dead letter: {each.headers.get(REASON_HEADER)!r}"
        for each in await taken(url, MOURNER)
    ]


@dataclass
class Outcome:
    """The figures, and every promise that was broken."""

    seed: int
    kills: Counter[str]
    faults: Counter[str]
    gave_up: Counter[str]
    missed: int
    sent: int
    manners: Counter[Manner]
    awaited: int
    """Addresses at which callers who send once wait."""
    unanswered: int
    repeated: int
    unconfirmed: int
    launched: int
    events: int
    returns: Mapping[str, float]
    """Seconds from the return of a server, by what had happened to it, to the last answer of what waited for it."""
    lost_bytes: int | None
    """Of the database's log, which those who took over had not got; None: not known."""
    seconds: float
    violations: list[str]

    @property
    def doubled(self) -> int:
        """Instances and decisions that were there twice."""
        return sum(each.startswith("1:") or "twice" in each for each in self.violations)

    @property
    def at_messages(self) -> dict[str, Counter[str]]:
        """The traps that fired, by part and kind."""
        fired: dict[str, Counter[str]] = {}
        for kind, number in sorted(self.faults.items()):
            part, found, what = kind.partition(": ")
            if found:
                fired.setdefault(part, Counter())[what] += number
        return fired

    @property
    def _but_at_messages(self) -> Counter[str]:
        return Counter({kind: number for kind, number in self.faults.items() if ": " not in kind})

    def _harms(self, part: str) -> Counter[str]:
        """How often its server was killed, frozen and failed over, in measuring too."""
        found: Counter[str] = Counter()
        for how in ("killed", "frozen", "failed over"):
            found[how] = self.faults[f"{part} {how}"] + (f"{part} {how}" in self.returns)
        return +found

    def table(self) -> Table:
        """For people."""
        table = Table(box=None, show_header=False)
        for name, figure in (
            ("kills", f"{self.kills.total()}: {_listed(self.kills)}"),
            ("faults", f"{self.faults.total()}: {_listed(self._but_at_messages)}"),
            *((f"at {part}'s messages", _listed(fired)) for part, fired in self.at_messages.items()),
            ("traps no message met", self.missed),
            ("ended by themselves", _listed(self.gave_up) or "none"),
            ("commands sent", f"{self.sent}: {_listed(self.manners)}"),
            ("replies awaited", self.awaited),
            ("unanswered", self.unanswered),
            # Nets that hide losses: what comes twice makes up for what was lost the first time.
            ("sent again", f"{self.repeated} by callers who did not wait, {self.unconfirmed} unconfirmed"),
            ("doubled", self.doubled),
            *(
                (f"{part} was", f"{_listed(self._harms(part))}")
                for part in ("kurrentdb", "postgresql")
                if self._harms(part)
            ),
            (
                "lost when the database failed over",
                "not known" if self.lost_bytes is None else f"{self.lost_bytes} bytes of its log",
            ),
            (
                "last answer after the return",
                ", ".join(f"{of_what} {seconds:.1f} s" for of_what, seconds in self.returns.items()),
            ),
            ("instances launched", self.launched),
            ("events", self.events),
            ("violations", len(self.violations)),
            ("seconds", f"{self.seconds:.0f}"),
        ):
            table.add_row(name, str(figure))
        return table


def _listed(counted: Counter[Any]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counted.items()))
