"""The delivery policy: what becomes of a message, as a plain function of how its handling ended.

The RabbitMQ adapter and the simulation both settle deliveries by it.
"""

from bisect import bisect_right
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cml_workers.bus.port import NOT_THE_MESSAGES_FAULT, Ack, CallerRefusesError, DeadLetter, Retry, Verdict
from cml_workers.bus.topology import DEAD_LETTER_QUEUE, RETRY_DELAYS, Queue
from cml_workers.foundation.outages import Dependency, Outages

MAX_FAULTS = 8
"""Unexpected errors of a handler with one message before the message counts as poison; tries of a reply that its caller's queue does not accept."""

TRIES = 2
"""How often a message is handled at once whose part fails though it answers: a lost connection is nobody's fault. Then it is retried."""


async def handled(
    handle: Callable[[], Awaitable[Verdict]],
    outages: Outages,
    wait: Callable[[Dependency], Awaitable[Verdict | None]],
) -> Verdict | Exception:
    """The handler's verdict, or what it raised. While a part is unavailable that it needs, it is not called.

    What an outage has caused is no result: the message is kept, and handled again when the outage is over.

    ``wait``: wait for the part to answer; what comes of the message if it is not to wait any longer.
    """
    tried = 0
    while True:
        while (part := outages.under_way()) is not None:
            if (verdict := await wait(part)) is not None:
                return verdict
        try:
            return await handle()
        except Exception as error:  # noqa: BLE001 - the delivery policy knows what it means
            if not outages.concern(error):
                return error
            tried = 0 if await outages.caused(error) else tried + 1
            if tried == TRIES:
                return error


@dataclass(frozen=True, slots=True)
class Requeue:
    """Give the message back to its queue, which counts its deliveries."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a delivery is settled; ``faults``: how many times handlers have failed with the message by now.

    ``Ack``: acknowledge it. ``Retry``: to the retry queue of that delay, one of ``RETRY_DELAYS``. ``DeadLetter``: to the dead
    letters. The latter two are acknowledged when the broker has confirmed what takes their place. ``Requeue``: instead of a
    retry, where the queue has no retry queues.
    """

    verdict: Verdict | Requeue
    faults: int


def settle(queue: Queue, ended: Verdict | Exception, *, attempt: int, faults: int) -> Settlement:
    """``ended``: the handler's verdict, or what it raised; ``attempt``: how often the message was retried before."""
    verdict: Verdict | Requeue
    match ended:
        case _ if isinstance(ended, NOT_THE_MESSAGES_FAULT):
            verdict = Retry()
        case CallerRefusesError():
            faults += 1
            verdict = Retry() if queue.retries and faults < MAX_FAULTS else Ack()  # the reply is dropped
        case Exception():
            faults += 1
            verdict = _fault(queue, faults, f"handler failed: {ended!r}")
        case Ack() | Retry() | DeadLetter():
            verdict = ended
    if isinstance(verdict, Retry):
        verdict = Retry(retry_delay(verdict.seconds, attempt)) if queue.retries else Requeue()
    return Settlement(verdict, faults)


LATER = (5, 15)
"""After how many attempts the next delay of ``RETRY_DELAYS`` is taken."""


def _fault(queue: Queue, faults: int, reason: str) -> Verdict:
    """Retry it, up to ``MAX_FAULTS`` times; a queue without retries dead-letters it at once."""
    if queue is DEAD_LETTER_QUEUE or (queue.retries and faults < MAX_FAULTS):
        return Retry()  # the dead-letter queue is the last resort
    return DeadLetter(f"{reason} ({faults} times)", "HandlerFailed")


def retry_delay(seconds: int | None, attempt: int) -> int:
    """The shortest delay of a retry queue that is long enough; by default 1 s, then 5 s, then 30 s."""
    if seconds is None:
        return RETRY_DELAYS[min(bisect_right(LATER, attempt), len(RETRY_DELAYS) - 1)]
    return next((delay for delay in RETRY_DELAYS if delay >= seconds), RETRY_DELAYS[-1])
