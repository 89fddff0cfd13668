"""Consuming: each delivery goes to its handler and is settled by the delivery policy.

No message is lost: it is acknowledged only after what takes its place (the retry, the dead letter) has been confirmed.
Whatever goes wrong in between ends in a redelivery.

While a part is unavailable, a consumer keeps what it has, unacknowledged, so it gets no more than its prefetch.
"""

import asyncio
import contextlib
import random
from collections.abc import Mapping

import structlog
from aio_pika.abc import AbstractIncomingMessage

from cml_contracts.results import ProblemCode
from cml_workers.bus.delivery import Requeue, handled, settle
from cml_workers.bus.headers import FAULT_HEADER
from cml_workers.bus.port import (
    NOT_THE_MESSAGES_FAULT,
    Ack,
    BusUnavailableError,
    CallerRefusesError,
    DeadLetter,
    Handler,
    Message,
    Publish,
    Retry,
    Verdict,
)
from cml_workers.bus.rabbit.keeping import GivenBackError, Kept, KeptForLongError, NotHandledError
from cml_workers.bus.rabbit.messages import (
    counter,
    delivered,
    publishable,
    to_dead_letters,
    to_own_queue,
    to_retry_queue,
)
from cml_workers.bus.rabbit.properties import UNREADABLE_HEADER
from cml_workers.bus.topology import DEAD_LETTER_QUEUE, Queue
from cml_workers.bus.trust import Trust
from cml_workers.foundation.ids import about, bind
from cml_workers.foundation.metrics import MESSAGE_SECONDS, MESSAGES
from cml_workers.foundation.outages import NO_OUTAGES, Outages

log = structlog.get_logger(__name__)

UNSETTLED_PAUSE = 1.0
"""Seconds before a message goes back to its queue: no hot loop."""
SUSPECT = 3
"""Deliveries from which a message is suspected to kill the process, as two deaths in a row are no coincidence."""
SUSPENSE = 1.0
"""Seconds, at most, that a suspect waits for the others."""

_VERDICTS = {Ack: "done", Retry: "retried", DeadLetter: "dead_letter"}


class Consumer:
    """Consumes one queue. ``trust``: what is believed; ``own_user``: whom we publish as; ``outages``: of what the handler needs."""

    def __init__(
        self,
        queue: Queue,
        handler: Handler,
        *,
        publish: Publish,
        own_user: str,
        trust: Trust,
        outages: Outages = NO_OUTAGES,
    ) -> None:
        self._queue = queue
        self._handler = handler
        self._publish = publish
        self._own_user = own_user
        self._trust = trust
        self._outages = outages
        self._alone = asyncio.Lock()
        self._ending = asyncio.Event()
        self.in_flight: set[asyncio.Task[object]] = set()
        for verdict in (*_VERDICTS.values(), "given_back"):
            MESSAGES.labels(queue.name, verdict)  # there from the start, or its first increase is not seen
        self.replies_dropped = 0
        """Messages that are done although a caller's queue did not take its reply."""

    async def on_message(self, received: AbstractIncomingMessage) -> None:
        """Handle one delivery and settle it."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine
        self.in_flight.add(task)
        try:
            with MESSAGE_SECONDS.labels(self._queue.name).time(), about(queue=self._queue.name):
                await self._process(received)
        finally:
            self.in_flight.discard(task)

    def end(self) -> None:
        """Give back what waits for a part; it is consumed no more."""
        self._ending.set()

    async def _process(self, received: AbstractIncomingMessage) -> None:
        message, refusal = delivered(received, self._queue, self._trust)
        bind(message_id=message.message_id)
        headers = publishable(message.headers)
        try:
            ended: Verdict | Exception
            if refusal is not None:
                ended = DeadLetter(refusal, ProblemCode.UNAUTHORIZED)
            else:
                ended = await self._handle(received, message, headers)
        except NotHandledError as why:
            await self._leave(received, message, headers, why)
            return
        faults = counter(headers.get(FAULT_HEADER))
        settlement = settle(self._queue, ended, attempt=message.attempt, faults=faults)
        if settlement.faults:
            headers[FAULT_HEADER] = settlement.faults
        if isinstance(settlement.verdict, Requeue):
            await self._give_back(received)
            return
        try:
            await self._settle(message, headers, settlement.verdict)
            await received.ack()
            self._count(_VERDICTS[type(settlement.verdict)])
            if isinstance(ended, CallerRefusesError) and settlement.verdict == Ack():
                self._dropped(ended)
        except Exception as error:
            unexpected = None if isinstance(error, NOT_THE_MESSAGES_FAULT) else error
            log.warning("message not settled", cause=str(error), exc_info=unexpected)
            await self._give_back(received)

    def _count(self, verdict: str) -> None:
        MESSAGES.labels(self._queue.name, verdict).inc()

    async def _give_back(self, received: AbstractIncomingMessage) -> None:
        self._count("given_back")
        await asyncio.sleep(UNSETTLED_PAUSE)
        with contextlib.suppress(Exception):
            # Not `nack`, which RabbitMQ 4.3 leaves out of the delivery limit.
            await received.reject(requeue=True)

    async def _handle(
        self, received: AbstractIncomingMessage, message: Message, headers: Mapping[str, object]
    ) -> Verdict | Exception:
        """The handler's verdict, or what it raised. Raises NotHandledError."""
        if UNREADABLE_HEADER in headers and self._queue is not DEAD_LETTER_QUEUE:
            return DeadLetter(
                f"the AMQP properties cannot be read ({headers[UNREADABLE_HEADER]})", "Unreadable"
            )
        kept = Kept(received, self._queue, self._ending)

        async def handle() -> Verdict:
            async with contextlib.AsyncExitStack() as turn:
                if message.deliveries >= SUSPECT:
                    # One at a time, in another order each time: whichever kills the process, the others are handled
                    # before they reach their delivery limit.
                    await asyncio.sleep(random.uniform(0, SUSPENSE))  # noqa: S311 - shuffles, guards nothing
                    await turn.enter_async_context(self._alone)
                kept.check()  # what has waited says nothing of who is connected now
                return await self._handler(message)

        ended = await handled(handle, self._outages, kept.until)
        if isinstance(ended, NotHandledError):
            raise ended
        if isinstance(ended, Exception):
            _log(ended)
        return ended

    async def _leave(
        self,
        received: AbstractIncomingMessage,
        message: Message,
        headers: Mapping[str, object],
        why: NotHandledError,
    ) -> None:
        """See to a message that is not handled here: it is delivered once more, and nothing counts against it."""
        with contextlib.suppress(Exception):  # its channel is closed
            if isinstance(why, KeptForLongError):
                with contextlib.suppress(BusUnavailableError):
                    await self._publish(
                        to_own_queue(message, headers, queue=self._queue, own_user=self._own_user)
                    )
                    await received.ack()
                    return
            if isinstance(why, GivenBackError | KeptForLongError):
                await received.nack(requeue=True)

    async def _settle(self, message: Message, headers: Mapping[str, object], verdict: Verdict) -> None:
        match verdict:
            case Ack():
                return
            case Retry(delay):
                assert delay is not None  # noqa: S101 - the delivery policy has chosen one
                await self._publish(
                    to_retry_queue(message, headers, queue=self._queue, delay=delay, own_user=self._own_user)
                )
            case DeadLetter(reason, cause):
                log.warning("dead letter", cause=cause, reason=reason, user=message.user_id)
                await self._publish(
                    to_dead_letters(message, headers, verdict, queue=self._queue, own_user=self._own_user)
                )

    def _dropped(self, refused: CallerRefusesError) -> None:
        """The result stays on record, so the message is done."""
        self.replies_dropped += 1
        log.warning("reply dropped", cause=str(refused))


def _log(error: Exception) -> None:
    match error:
        case _ if isinstance(error, NOT_THE_MESSAGES_FAULT):
            log.warning("message will be retried", cause=str(error))
        case CallerRefusesError():
            log.warning("reply not accepted", cause=str(error))
        case _:
            log.error("handler failed", exc_info=error)
