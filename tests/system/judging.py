"""All who send commands in a long run, what they know together, and what is broken when it ends."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from uuid import UUID

from cml_contracts.envelope import EventEnvelope
from cml_contracts.results import OperationResult
from cml_workers.eventstore.opening import open_event_store
from cml_workers.eventstore.port import EventStore, StoreUnavailableError
from cml_workers.sql.errors import DatabaseUnavailableError
from support.callers import Callers
from support.canaries import CANARY
from support.ec2 import SimulatorAdmin
from support.invariants import violations
from support.load import Load, Manner
from support.malformed import in_words
from support.observed import Observed, observe
from support.roles import Roles
from system.chaos.outcome import SUBSCRIBER, dead_letters, taken

STILL = 200.0
"""Seconds after which an answer does not come any more where everything else is at rest. RabbitMQ itself holds a message in
a retry queue back for three minutes, if it had no confirm of its own when the broker died or was frozen
(``dead_letter_worker_publisher_confirm_timeout``, https://www.rabbitmq.com/docs/quorum-queues#dead-lettering)."""


@dataclass
class Senders:
    """Loads of commands, and those who send them."""

    loads: list[Load] = field(default_factory=list)
    callers: list[Callers] = field(default_factory=list)

    @property
    def sent(self) -> int:
        return sum(len(load.sent) for load in self.loads)

    @property
    def answered(self) -> int:
        return sum(load.answered for load in self.loads)

    @property
    def repeated(self) -> int:
        return sum(load.repeated for load in self.loads)

    @property
    def unconfirmed(self) -> int:
        return sum(callers.unconfirmed for callers in self.callers)

    @property
    def manners(self) -> Counter[Manner]:
        return sum((load.manners for load in self.loads), Counter())

    def replies(self) -> dict[str, list[OperationResult]]:
        """All that came, by command id."""
        replies: dict[str, list[OperationResult]] = {}
        for known in (
            *(callers.replies for callers in self.callers),
            *(load.of_client for load in self.loads),
        ):
            for command_id, results in known.items():
                replies.setdefault(command_id, []).extend(results)
        return replies

    def unanswered_of_client(self) -> list[str]:
        """Those who repeat by our client must be answered too, though they prove less."""
        return [
            f"10: command {command_id} was not answered to a client that repeats it"
            for load in self.loads
            for command_id, results in load.of_client.items()
            if not results
        ]

    async def observe(self, store: EventStore, places: "Places", published: list[EventEnvelope]) -> Observed:
        """Everything that the promises are about; ``published``: what a subscriber got."""
        return await observe(
            store,
            places.admin,
            places.database_url,
            replies=self.replies(),
            confirmed={
                *(command_id for callers in self.callers for command_id in callers.confirmed),
                *(command_id for load in self.loads for command_id, got in load.of_client.items() if got),
            },
            awaited={address: of for callers in self.callers for address, of in callers.awaited.items()},
            answered={address for callers in self.callers for address in callers.answered},
            published=published,
            status_updates={each for load in self.loads for each in load.status_updates},
            others=places.others,
        )


@dataclass(frozen=True, slots=True)
class Places:
    """Where to look. ``others``: workers that were in the store before."""

    bus_url: str
    store_uri: str
    database_url: str
    admin: SimulatorAdmin
    roles: Roles
    others: Collection[UUID] = frozenset()


async def judged(senders: Senders, places: Places, *, end: float) -> tuple[Observed, list[str]]:
    """What is broken still at ``end``, or nothing as soon as nothing is."""
    store = open_event_store(places.store_uri)
    published: list[EventEnvelope] = []
    broken, since = [""], time.monotonic()
    while True:
        published += [
            EventEnvelope.from_cloudevent(json.loads(each.body))
            for each in await taken(places.bus_url, SUBSCRIBER)
        ]
        try:
            seen = await senders.observe(store, places, published)
        except (StoreUnavailableError, DatabaseUnavailableError):  # a busy machine: a call took too long
            if time.monotonic() > end:
                raise
            continue
        before, broken = broken, violations(seen) + senders.unanswered_of_client()
        if broken != before:
            since = time.monotonic()
        still = time.monotonic() - since > STILL and all(each.startswith("10:") for each in broken)
        if not broken or still or time.monotonic() > end:
            break
        await asyncio.sleep(2)
    await store.close()
    broken += await dead_letters(places.bus_url)
    broken += in_words(await asyncio.to_thread(places.admin.malformed))
    broken += [
        f"8: a secret in {log}"
        for log in places.roles.logs.values()
        if log.exists() and CANARY in log.read_text()
    ]
    return seen, broken + places.roles.tracebacks()
