"""Events in the followers' quarantines as dead letters: archived as they come, and decided about by operators."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from uuid import UUID, uuid5

import structlog

from cml_contracts.deadletters import DeadLetterState
from cml_workers.deadletters.archive import Archive, OperatorAction
from cml_workers.deadletters.letter import NAMESPACE, Letter
from cml_workers.eventstore.port import EventStore, StreamDeletedError, StreamNotFoundError
from cml_workers.eventstore.quarantine import LOOK_EVERY, Case, Decision, NotHeldError, Quarantine, What

log = structlog.get_logger(__name__)

CAUSE = "Quarantined"


class Quarantined:
    """The cases of these followers. What was decided is on record in the event store first, and in the archive second."""

    def __init__(
        self, archive: Archive, store: EventStore, followers: Iterable[str], *, now: Callable[[], datetime]
    ) -> None:
        self._archive = archive
        self._store = store
        self._now = now
        quarantines = (Quarantine(store, follower) for follower in followers)
        self._quarantines = {each.stream: each for each in quarantines}
        self._collected: dict[tuple[str, str], Case] = {}
        self._collecting = asyncio.Lock()

    def has(self, queue: str) -> bool:
        """Whether what died there is an event in quarantine, and this the name of its stream."""
        return queue in self._quarantines

    async def keep_collecting(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Archive what comes into quarantine, and what becomes of it. Does not end."""
        while True:
            try:
                await self.collect()
            except ConnectionError as error:
                log.info("the quarantines are looked at again", cause=str(error))
            await sleep(LOOK_EVERY)

    async def collect(self) -> None:
        """Archive what there is. Raises ConnectionError."""
        async with self._collecting:
            for quarantine in self._quarantines.values():
                await quarantine.load()
                for case in list(quarantine.cases.values()):
                    place = quarantine.stream, case.broken.stream
                    if self._collected.get(place) != case:
                        await self._archive_case(quarantine.stream, case)
                        self._collected[place] = case

    async def decide(self, letter: Letter, what: What, action: OperatorAction) -> None:
        """Decide about an archived one. Raises NotHeldError and ConnectionError."""
        quarantine = self._quarantines[letter.queue]
        decision = Decision(what, action.by, action.user, action.reason)
        stream, revision = letter.headers["stream"], letter.headers["revision"]
        async with self._collecting:
            await quarantine.load()
            case = quarantine.cases.get(stream)
            if case is None or letter_id(quarantine.stream, case) != letter.id:
                raise NotHeldError(f"{stream} does not wait at revision {revision} any more")
            await quarantine.decide(stream, revision, decision)
        await self.collect()

    async def _archive_case(self, quarantine: str, case: Case) -> None:
        letter = await self._letter_of(quarantine, case)
        if await self._archive.keep(letter, self._now()):
            log.warning(
                "dead letter archived", dead_letter_id=str(letter.id), queue=quarantine, cause=letter.cause
            )
        archived = await self._archive.find(letter.id)
        decision = case.decision
        if archived is None or decision is None:
            return
        done = decision.time or self._now(), decision.user, decision.by, decision.reason
        state = archived.view.state
        if decision.what is What.TAKEN_UP and state is not DeadLetterState.REDRIVEN:
            await self._archive.redriven(archived, letter, OperatorAction("redriven", *done))
        elif decision.what is What.SKIPPED and state is not DeadLetterState.DISCARDED:
            await self._archive.discarded(archived, OperatorAction("discarded", *done))

    async def _letter_of(self, quarantine: str, case: Case) -> Letter:
        broken = case.broken
        try:
            events = await self._store.read(broken.stream, after=broken.revision - 1, limit=1)
        except (StreamNotFoundError, StreamDeletedError):
            events = []
        return Letter(
            id=letter_id(quarantine, case),
            death=str(case.number),
            queue=quarantine,
            cause=CAUSE,
            reason=str(broken),
            type=broken.type,
            body=events[0].data if events else b"",
            message_id=str(broken.event_id),
            correlation_id=None,
            reply_to=None,
            content_type=None,
            user=None,
            headers={
                "stream": broken.stream,
                "revision": broken.revision,
                "position": broken.position,
            },
            deliveries=1,
            attempts=0,
            faults=0,
        )


def letter_id(quarantine: str, case: Case) -> UUID:
    """The dead letter that a case is: the same one if it comes again."""
    return uuid5(NAMESPACE, f"{quarantine}/{case.broken.stream}@{case.broken.revision}")
