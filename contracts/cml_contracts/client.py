"""An asynchronous client: sends commands and awaits their results, queries, and follows events.

Many commands may be in flight at once on one connection. A lost connection is restored, and every command
that still awaits its result is sent again under its own id, which is harmless: a repeated command has no
second effect.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

try:
    import aio_pika
    from aio_pika.abc import (
        AbstractIncomingMessage,
        AbstractQueueIterator,
        AbstractRobustChannel,
        AbstractRobustConnection,
    )
    from aio_pika.exceptions import AMQPError
    from yarl import URL
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"cml_contracts.client needs {error.name}: pip install 'cml-contracts[client]'", name=error.name
    ) from error

from cml_contracts.amqp import outage
from cml_contracts.commands import WorkerCommand
from cml_contracts.deadletters import OperatorRequest
from cml_contracts.envelope import JSON, EventEnvelope
from cml_contracts.queries import (
    GetCMLWorker,
    GetOperation,
    ListCMLWorkers,
    OperationView,
    Query,
    WorkerPage,
    WorkerView,
)
from cml_contracts.results import OperationResult
from cml_contracts.texts import as_command_id
from cml_contracts.tokens import TOKEN_HEADER
from cml_contracts.topology import (
    COMMANDS_EXCHANGE,
    EVENTS_EXCHANGE,
    OPERATOR_EXCHANGE,
    QUERIES_EXCHANGE,
    Exchange,
)


class NoResultYetError(TimeoutError):
    """No result within the deadline. The command stands: query its operation by ``command_id``."""

    def __init__(self, command_id: str, deadline: float) -> None:
        super().__init__(f"no result of {command_id} within {deadline:g} s; query its operation later")
        self.command_id = command_id
        self.deadline = deadline


class NoAnswerError(NoResultYetError):
    """No answer to a query within the deadline. Nothing has changed, and nothing comes of it: ask again."""

    def __str__(self) -> str:
        return f"no answer within {self.deadline:g} s; ask again"


class NotSentError(ConnectionError):
    """The broker could not be reached, or no service consumes the message."""


@dataclass(slots=True)
class _Waiting:
    exchange: Exchange
    message: aio_pika.Message
    routing_key: str
    result: asyncio.Future[OperationResult]


class WorkerClient:
    """Use as ``async with WorkerClient("amqp://...") as client:``."""

    def __init__(self, url: str, *, deadline: float = 60.0) -> None:
        self._url = url
        self._deadline = deadline
        self._user = URL(url).user or "guest"
        self._connection: AbstractRobustConnection | None = None
        self._channel: AbstractRobustChannel | None = None
        self._reply_queue = f"cml.replies.{uuid4()}"
        self._waiting: dict[str, _Waiting] = {}
        self._resending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            # Once connected, the library would try without end to open a channel.
            async with asyncio.timeout(20):
                self._connection = await aio_pika.connect_robust(
                    self._url, timeout=10, fail_fast=True, reconnect_interval=0.5
                )
                self._channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
                replies = await self._channel.declare_queue(
                    self._reply_queue, exclusive=True, auto_delete=True
                )
                await replies.consume(self._on_reply, no_ack=True)
        except (AMQPError, OSError, TimeoutError) as error:
            if self._connection is not None:
                await self._connection.close()
            raise NotSentError(f"cannot connect to RabbitMQ: {outage(error)}") from error
        self._connection.reconnect_callbacks.add(self._on_reconnected)
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for task in self._resending:
            task.cancel()
        for waiting in self._waiting.values():
            waiting.result.cancel()
        if self._connection is not None:
            await self._connection.close()

    async def send(
        self,
        command: WorkerCommand,
        *,
        command_id: str | None = None,
        deadline: float | None = None,
        actor_token: str | None = None,
    ) -> OperationResult:
        """Send a command and await its result.

        ``command_id``: the idempotency key, a new one by default; ``deadline``: seconds;
        ``actor_token``: see ``cml_contracts.tokens``, to send it on behalf of somebody else.

        Raises:
            NoResultYetError: the deadline passed; the command stands.
            NotSentError: the broker did not accept it.
            ValueError: ``command_id`` cannot be one.
        """
        return await self._call(
            COMMANDS_EXCHANGE, command, _command_id(command_id), deadline or self._deadline, actor_token
        )

    async def post(self, command: WorkerCommand, *, command_id: str | None = None) -> str:
        """Send a command without awaiting its result; return its id. Raises NotSentError, ValueError."""
        command_id = _command_id(command_id)
        message = self._message(command, command_id)
        await self._publish(_Waiting(COMMANDS_EXCHANGE, message, command.TYPE, asyncio.Future()))
        return command_id

    async def query(self, query: Query, *, deadline: float | None = None) -> OperationResult:
        """Ask the read model. Raises NoAnswerError, NotSentError."""
        try:
            return await self._call(QUERIES_EXCHANGE, query, str(uuid4()), deadline or self._deadline)
        except NoResultYetError as error:
            raise NoAnswerError(error.command_id, error.deadline) from None

    async def operate(self, request: OperatorRequest, *, deadline: float | None = None) -> OperationResult:
        """Send a request about dead letters, as an operator. Raises NoResultYetError, NotSentError."""
        return await self._call(OPERATOR_EXCHANGE, request, str(uuid4()), deadline or self._deadline)

    async def worker(self, worker_id: UUID) -> WorkerView | None:
        """A worker as the read model has it; None if it is not there (yet)."""
        result = await self.query(GetCMLWorker(worker_id=worker_id))
        return WorkerView.model_validate(result.data) if result.outcome == "succeeded" else None

    async def workers(self, wanted: ListCMLWorkers | None = None) -> WorkerPage:
        """A page of workers. Raises ValueError if a condition is not valid."""
        result = await self.query(wanted or ListCMLWorkers())
        if result.problem:
            raise ValueError(result.problem.detail)
        return WorkerPage.model_validate(result.data)

    async def operation(self, command_id: str) -> OperationView | None:
        """The operation of a command; None if none is recorded (yet)."""
        result = await self.query(GetOperation(command_id=command_id))
        return OperationView.model_validate(result.data) if result.outcome == "succeeded" else None

    @asynccontextmanager
    async def events(
        self, pattern: str = "cml.#", *, queue: str | None = None
    ) -> AsyncIterator[AsyncIterator[EventEnvelope]]:
        """Events whose type matches the topic pattern, from now on.

        With a ``queue`` name they are kept in that durable queue between subscriptions, and an event is
        acknowledged when the next one is taken: at least once.
        """
        assert self._connection is not None, "use the client in `async with`"  # noqa: S101
        channel = await self._connection.channel()
        await channel.set_qos(prefetch_count=100)
        try:
            events = await channel.declare_queue(
                queue or f"cml.subscribers.{uuid4()}",
                durable=bool(queue),
                exclusive=not queue,
                auto_delete=not queue,
            )
            await events.bind(EVENTS_EXCHANGE.name, pattern)
            async with events.iterator() as messages:
                yield _decoded(messages)
        finally:
            with suppress(AMQPError, OSError, RuntimeError):
                await channel.close()

    async def _call(
        self,
        exchange: Exchange,
        body: WorkerCommand | Query | OperatorRequest,
        message_id: str,
        deadline: float,
        actor_token: str | None = None,
    ) -> OperationResult:
        correlation_id = str(uuid4())
        message = self._message(body, message_id, self._reply_queue, correlation_id, actor_token)
        waiting = _Waiting(exchange, message, body.TYPE, asyncio.get_running_loop().create_future())
        self._waiting[correlation_id] = waiting
        try:
            async with asyncio.timeout(deadline):
                await self._publish(waiting)
                return await waiting.result
        except TimeoutError:
            raise NoResultYetError(message_id, deadline) from None
        finally:
            del self._waiting[correlation_id]

    def _message(
        self,
        body: WorkerCommand | Query | OperatorRequest,
        message_id: str,
        reply_to: str | None = None,
        correlation_id: str | None = None,
        actor_token: str | None = None,
    ) -> aio_pika.Message:
        return aio_pika.Message(
            body.model_dump_json(exclude_none=True).encode(),
            message_id=message_id,
            type=body.TYPE,
            reply_to=reply_to,
            correlation_id=correlation_id,
            content_type=JSON,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            user_id=self._user,
            headers={TOKEN_HEADER: actor_token} if actor_token else {},
        )

    async def _publish(self, waiting: _Waiting) -> None:
        assert self._channel is not None, "use the client in `async with`"  # noqa: S101
        try:
            exchange = await self._channel.get_exchange(waiting.exchange.name, ensure=False)
            await exchange.publish(waiting.message, waiting.routing_key, mandatory=True)
        except BaseException as error:
            if (cause := outage(error)) is None:
                raise
            raise NotSentError(f"{waiting.routing_key} was not accepted: {cause}") from error

    async def _on_reply(self, message: AbstractIncomingMessage) -> None:
        waiting = self._waiting.get(message.correlation_id or "")
        if waiting is not None and not waiting.result.done():
            waiting.result.set_result(OperationResult.model_validate_json(message.body))

    async def _on_reconnected(self, *_: Any) -> None:
        async def send_again() -> None:
            for waiting in list(self._waiting.values()):
                with suppress(NotSentError):
                    await self._publish(waiting)

        task = asyncio.create_task(send_again())
        self._resending.add(task)
        task.add_done_callback(self._resending.discard)


async def _decoded(messages: AbstractQueueIterator) -> AsyncIterator[EventEnvelope]:
    async for message in messages:
        yield EventEnvelope.from_cloudevent(json.loads(message.body))
        await message.ack()


def _command_id(given: str | None) -> str:
    """A new one, or the one that was given. Raises ValueError."""
    return str(uuid4()) if given is None else as_command_id(given)
