"""Answers queries from the read models."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cml_contracts.queries import QUERIES, GetOperation, Query
from cml_contracts.results import OperationResult, Problem, ProblemCode
from cml_workers.bus.codec import BadMessageError, read, reply, reply_address
from cml_workers.bus.port import Ack, DeadLetter, Message, Publish, Verdict
from cml_workers.eventstore.command_streams import answered_operation
from cml_workers.eventstore.port import EventStore
from cml_workers.readmodels.model import Found, ReadModel
from cml_workers.readmodels.registry import READ_MODELS
from cml_workers.sql.port import Database

ANSWERED_BY: Mapping[type[Any], ReadModel] = {
    query: model for model in READ_MODELS for query in model.answers
}


class Queries:
    """``unavailable``: why a read model cannot be asked now, None if it can."""

    def __init__(
        self, *, store: EventStore, database: Database, unavailable: Callable[[ReadModel], str | None]
    ) -> None:
        self._store = store
        self._database = database
        self._unavailable = unavailable

    async def on_query(self, message: Message, publish: Publish) -> Verdict:
        """Answer a query; one that nobody awaits is dropped.

        Raises DatabaseUnavailableError, StoreUnavailableError, BusUnavailableError: it is delivered again.
        """
        address = reply_address(message)
        verdict: Verdict = Ack()
        answer: Found | Problem
        try:
            query: Query = read(message, QUERIES)
            answer = await self._answer(query)
        except BadMessageError as error:
            answer = error.problem
            verdict = DeadLetter(error.problem.detail, error.problem.code)
        if address is not None:
            result = _result(message.message_id, answer)
            outgoing = reply(result, address)
            if isinstance(answer, Found):
                outgoing = replace(outgoing, body=_with_data(result, answer.data))
            await publish(outgoing)
        return verdict

    async def _answer(self, query: Query) -> Found | Problem:
        model = ANSWERED_BY[type(query)]
        unavailable = self._unavailable(model)
        if unavailable is not None:
            return Problem.of(ProblemCode.READ_MODEL_UNAVAILABLE, unavailable, retryable=True)
        answer = await model.answers[type(query)](self._database, query)
        if isinstance(query, GetOperation) and isinstance(answer, Problem):
            operation = await answered_operation(self._store, query.command_id)
            return Found(operation.model_dump_json(), operation.worker_id) if operation else answer
        return answer


def _result(query_id: str | None, answer: Found | Problem) -> OperationResult:
    if isinstance(answer, Found):
        return OperationResult(command_id=query_id, worker_id=answer.worker_id, outcome="succeeded")
    return OperationResult(command_id=query_id, outcome="rejected", problem=answer)


def _with_data(result: OperationResult, data: str) -> bytes:
    """The result as JSON around data that is JSON already."""
    rest = result.model_dump_json(exclude={"data"})
    return f'{rest[:-1]},"data":{data}}}'.encode()
