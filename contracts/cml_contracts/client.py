"""An asynchronous client: sends commands and awaits their results, queries, and follows events.

Many commands may be in flight at once on one connection. One that is lost is replaced, at the next node if there are
several, and every command that still awaits its result is sent again under its own id, which is harmless: a repeated
command has no second effect.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID, uuid4

try:
    import aio_pika
    from aio_pika.abc import AbstractIncomingMessage
    from aio_pika.exceptions import AMQPChannelError, DeliveryError
    from aiormq.exceptions import ConnectionFrameError, ConnectionSyntaxError

    from cml_contracts.amqp import outage
    from cml_contracts.broker import Nodes
    from cml_contracts.session import ClosedError, Session, Sessions
    from cml_contracts.subscription import Subscription
    from cml_contracts.unreadable import SteppedOver, Unreadable
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"cml_contracts.client needs {error.name}: pip install 'cml-contracts[client]'", name=error.name
    ) from error

from cml_contracts.commands import WorkerCommand
from cml_contracts.deadletters import OperatorRequest
from cml_contracts.envelope import JSON, EventEnvelope
from cml_contracts.model import encoded
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
    OPERATOR_EXCHANGE,
    QUERIES_EXCHANGE,
    Exchange,
    own_exchange,
)

T = TypeVar("T")


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


class ClientClosedError(NoResultYetError):
    """The client was closed before the result came. The command stands, as after ``NoResultYetError``."""

    def __str__(self) -> str:
        return f"the client was closed before the result of {self.command_id}; query its operation later"


class NotSentError(ConnectionError):
    """The broker could not be reached or did not confirm the message, or no service consumes it.

    It may have been taken all the same: send it again under ``command_id``, where it has one.
    """

    def __init__(self, why: str, command_id: str | None = None) -> None:
        super().__init__(why)
        self.command_id = command_id


@dataclass(slots=True)
class _Waiting:
    exchange: Exchange
    message: aio_pika.Message
    routing_key: str
    result: asyncio.Future[OperationResult]
    awaits_reply: bool = True
    publishing: bool = False
    confirmed: bool = False
    """At least once."""


class WorkerClient:
    """Use as ``async with WorkerClient("amqp://...") as client:``.

    The URL may name several hosts, ``amqps://user:password@one,two,three/``. Raises ValueError if it is none.
    ``own_exchanges``: publish to ``cml.commands.<user>`` and ``cml.queries.<user>``, where the user is the URL's and the deployment has
    made them, in place of those of all: nobody else's messages delay its own.

    A message that is no result or no event is stepped over, and counted; ``on_unreadable`` is called with each.
    """

    def __init__(
        self,
        url: str,
        *,
        deadline: float = 60.0,
        own_exchanges: bool = False,
        on_unreadable: Callable[[Unreadable], None] | None = None,
    ) -> None:
        self._nodes = Nodes(url)
        self._stepped_over = SteppedOver(on_unreadable)
        self._deadline = deadline
        own = self._nodes.user if own_exchanges else None
        self._commands, self._queries = (
            own_exchange(shared, own) if own else shared for shared in (COMMANDS_EXCHANGE, QUERIES_EXCHANGE)
        )
        self._waiting: dict[str, _Waiting] = {}
        self._resending: set[asyncio.Task[None]] = set()
        self._sessions = Sessions(self._nodes, on_reply=self._on_reply, on_new=self._on_new_session)

    async def __aenter__(self) -> Self:
        try:
            await self._sessions.open()
        except BaseException as error:
            if (cause := outage(error)) is None:
                raise
            raise NotSentError(f"cannot connect to RabbitMQ: {cause}") from error
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for task in self._resending:
            task.cancel()
        await self._sessions.close()
        for waiting in self._waiting.values():
            if not waiting.result.done():
                waiting.result.set_exception(ClosedError("the client is closed"))
                waiting.result.exception()  # seen, also if it is not awaited yet

    @property
    def unreadable(self) -> int:
        """How many messages were stepped over, as they could not be read."""
        return self._stepped_over.count

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
            NotSentError: the broker did not accept it, or did not confirm it before the deadline.
            ValueError: ``command_id`` cannot be one.
        """
        return await self._call(
            self._commands, command, _command_id(command_id), deadline or self._deadline, actor_token
        )

    async def post(self, command: WorkerCommand, *, command_id: str | None = None) -> str:
        """Send a command without awaiting its result; return its id. Raises NotSentError, ValueError."""
        command_id = _command_id(command_id)
        message = self._message(command, command_id)
        result: asyncio.Future[OperationResult] = asyncio.get_running_loop().create_future()
        posted = _Waiting(self._commands, message, command.TYPE, result, awaits_reply=False)
        await self._in_time(self._until_confirmed(posted), posted, self._deadline)
        return command_id

    async def query(self, query: Query, *, deadline: float | None = None) -> OperationResult:
        """Ask the read model. Raises NoAnswerError, NotSentError."""
        try:
            return await self._call(self._queries, query, str(uuid4()), deadline or self._deadline)
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

        With a ``queue`` name they are kept in a durable queue between subscriptions and connections, and an event is
        acknowledged when the next one is taken: at least once, and what was on its way when a connection was lost perhaps behind
        later events, which ``revision`` shows. It is a quorum queue, which a cluster keeps when a node is
        lost; one of that name that exists already is used as it is. Without one, those are missed that come while the
        connection is lost: its queue ends with it, and the next one has another name.

        The queue's whole name is ``cml.subscribers.<user>.<queue>``, where the user is the URL's. A ``queue`` that begins with
        ``cml.subscribers.``, or that exists under just this name, is used under it, with a warning if it is not the user's.
        """
        user = self._nodes.user
        async with Subscription(
            self._sessions, pattern, queue, user=user, stepped_over=self._stepped_over
        ) as events:
            yield events

    async def _call(
        self,
        exchange: Exchange,
        body: WorkerCommand | Query | OperatorRequest,
        message_id: str,
        deadline: float,
        actor_token: str | None = None,
    ) -> OperationResult:
        correlation_id = str(uuid4())
        message = self._message(body, message_id, correlation_id, actor_token)
        waiting = _Waiting(exchange, message, body.TYPE, asyncio.get_running_loop().create_future())
        self._waiting[correlation_id] = waiting

        async def answered() -> OperationResult:
            await self._until_confirmed(waiting)
            return await waiting.result

        try:
            return await self._in_time(answered(), waiting, deadline)
        finally:
            del self._waiting[correlation_id]

    async def _in_time(self, work: Coroutine[Any, Any, T], waiting: _Waiting, deadline: float) -> T:
        """Raises NotSentError, NoResultYetError."""
        message_id = waiting.message.message_id or ""
        try:
            async with asyncio.timeout(deadline):
                return await work
        except TimeoutError:
            if waiting.confirmed:
                raise NoResultYetError(message_id, deadline) from None
            raise NotSentError(
                f"{waiting.routing_key} was not confirmed within {deadline:g} s{self._sessions.trouble}",
                message_id,
            ) from None
        except ClosedError as error:
            if waiting.confirmed:
                raise ClientClosedError(message_id, deadline) from None
            raise NotSentError(f"{waiting.routing_key} was not sent: {error}", message_id) from None

    def _message(
        self,
        body: WorkerCommand | Query | OperatorRequest,
        message_id: str,
        correlation_id: str | None = None,
        actor_token: str | None = None,
    ) -> aio_pika.Message:
        return aio_pika.Message(
            encoded(body),
            message_id=message_id,
            type=body.TYPE,
            correlation_id=correlation_id,
            content_type=JSON,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            user_id=self._nodes.user,
            headers={**_trace_context(), **({TOKEN_HEADER: actor_token} if actor_token else {})},
        )

    async def _until_confirmed(self, waiting: _Waiting) -> None:
        """Publish on this session, on it again or, if it is lost meanwhile, on the next. Raises NotSentError, ClosedError."""
        waiting.publishing = True
        tries = 0
        try:
            while not await self._published(await self._sessions.current(), waiting, tries):
                tries += 1
        finally:
            waiting.publishing = False
        waiting.confirmed = True

    async def _published(self, session: Session, waiting: _Waiting, tries: int) -> bool:
        """Whether the broker confirmed it; otherwise it is to be published again. Raises NotSentError."""
        if waiting.awaits_reply:
            waiting.message.reply_to = session.reply_to
        try:
            exchange = await session.channel.get_exchange(waiting.exchange.name, ensure=False)
            async with asyncio.timeout_at(session.ask(tries)):
                await exchange.publish(waiting.message, waiting.routing_key, mandatory=True)
        except TimeoutError:
            if session.is_silent:
                session.lost.set()
            return False
        except (AMQPChannelError, DeliveryError, ConnectionFrameError, ConnectionSyntaxError) as error:
            raise NotSentError(
                f"{waiting.routing_key} was not accepted: {outage(error)}", waiting.message.message_id
            ) from error
        except BaseException as error:
            if outage(error) is None:
                raise
            session.lost.set()
            return False
        session.confirm()
        return True

    async def _on_reply(self, message: AbstractIncomingMessage) -> None:
        waiting = self._waiting.get(message.correlation_id or "")
        if waiting is None or waiting.result.done():
            return
        try:
            waiting.result.set_result(OperationResult.model_validate_json(message.body))
        except ValueError as error:
            self._stepped_over.add(message.routing_key or "", message, error)

    def _on_new_session(self) -> None:
        """Send again what was confirmed on another one: its reply would go to the address that is gone."""
        for waiting in self._waiting.values():
            if not waiting.publishing and not waiting.result.done():
                task = asyncio.create_task(self._send_again(waiting))
                self._resending.add(task)
                task.add_done_callback(self._resending.discard)

    async def _send_again(self, waiting: _Waiting) -> None:
        with suppress(NotSentError, ClosedError):
            await self._until_confirmed(waiting)


def _trace_context() -> dict[str, str]:
    """Of the caller's current span, where it uses OpenTelemetry (https://www.w3.org/TR/trace-context/#traceparent-header)."""
    trace: Any = sys.modules.get("opentelemetry.trace")  # not imported for who does not
    if trace is None or not (span := trace.get_current_span().get_span_context()).is_valid:
        return {}
    return {"traceparent": f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"}


def _command_id(given: str | None) -> str:
    """A new one, or the one that was given. Raises ValueError."""
    return str(uuid4()) if given is None else as_command_id(given)
