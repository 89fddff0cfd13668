"""Which errors of the AMQP libraries (aio-pika, aiormq) mean that the connection was lost.

aiormq ends a call under way in several ways when it closes the connection: with its own errors, with a plain
``Exception``, or with a ``CancelledError`` although nobody cancelled the task.
"""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager

from aio_pika.exceptions import AMQPError


def outage(error: BaseException) -> str | None:
    """What happened to the connection, if that is what the error means; otherwise None."""
    match error:
        case asyncio.CancelledError():
            task = asyncio.current_task()
            return None if task is not None and task.cancelling() else "the connection was closed"
        case StopAsyncIteration():
            return "the connection was closed while it was being opened"
        case BaseExceptionGroup():  # of FastStream, which stops its subscribers one after the other
            causes = [outage(each) for each in error.exceptions]
            return None if None in causes else causes[0]
        case AMQPError() | OSError() | RuntimeError():
            return str(error) or type(error).__name__
        case _:
            return "the connection was closed" if type(error) is Exception else None


@contextmanager
def despite_outage() -> Iterator[None]:
    """For what needs no connection to be done: closing it, acknowledging what is delivered again otherwise."""
    try:
        yield
    except BaseException as error:
        if outage(error) is None:
            raise


CLOSE_SECONDS = 5.0
"""How long a connection, a channel or a consumer may take to close before it is left to itself."""


async def closed(closing: Awaitable[object]) -> None:
    """Wait for it, not for long: what a lost connection, or a broker that hangs, leaves undone is over with the connection."""
    with despite_outage():
        async with asyncio.timeout(CLOSE_SECONDS):
            await closing
