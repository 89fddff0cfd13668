"""Answers queries from the read models."""

from collections.abc import Callable, Mapping
from typing import Any

from cml_contracts.envelope import MAX_REPLY
from cml_contracts.queries import QUERIES, Query
from cml_contracts.results import OperationResult, Problem, ProblemCode
from cml_workers.bus.codec import BadMessageError, read, reply, reply_address
from cml_workers.bus.port import Ack, DeadLetter, Message, Publish, Verdict
from cml_workers.domain.authorization import viewer_of
from cml_workers.domain.history import ReplyAddress
from cml_workers.domain.policy import Access
from cml_workers.readmodels.model import Found, ReadModel
from cml_workers.readmodels.registry import READ_MODELS
from cml_workers.sql.port import Database

ANSWERED_BY: Mapping[type[Any], ReadModel] = {
    query: model for model in READ_MODELS for query in model.answers
}
ENVELOPE = 8 * 1024
"""Bytes of a reply around its data, at most."""


class Queries:
    """``unavailable``: why a read model cannot be asked now, None if it can; ``access``: who may see which workers."""

    def __init__(
        self, *, database: Database, unavailable: Callable[[ReadModel], str | None], access: Access
    ) -> None:
        self._database = database
        self._access = access
        self._unavailable = unavailable

    async def on_query(self, message: Message, publish: Publish) -> Verdict:
        """Answer a query; one that nobody awaits is dropped.

        Raises DatabaseUnavailableError, BusUnavailableError: it is delivered again.
        """
        address: ReplyAddress | None = None
        verdict: Verdict = Ack()
        answer: Found | Problem
        try:
            address = reply_address(message, own=self._access.enforced)
            query: Query = read(message, QUERIES)
            answer = await self._answer(query, message.user_id)
        except BadMessageError as error:
            answer = error.problem
            verdict = DeadLetter(error.problem.detail, error.problem.code)
        if address is not None:
            data = answer.data if isinstance(answer, Found) else None
            await publish(reply(_result(message.message_id, answer), address, data))
        return verdict

    async def _answer(self, query: Query, user: str | None) -> Found | Problem:
        model = ANSWERED_BY[type(query)]
        unavailable = self._unavailable(model)
        if unavailable is not None:
            return Problem.of(ProblemCode.READ_MODEL_UNAVAILABLE, unavailable, retryable=True)
        viewer = viewer_of(user, self._access)
        asker = user if self._access.enforced else None
        found = await model.answers[type(query)](self._database, query, viewer, asker)
        if isinstance(found, Found) and (size := len(found.data.encode())) > MAX_REPLY - ENVELOPE:
            too_large = f"the answer would have {size} bytes; at most {MAX_REPLY - ENVELOPE} are sent"
            return Problem.of(ProblemCode.REPLY_TOO_LARGE, too_large)
        return found


def _result(query_id: str | None, answer: Found | Problem) -> OperationResult:
    if isinstance(answer, Found):
        return OperationResult(command_id=query_id, worker_id=answer.worker_id, outcome="succeeded")
    return OperationResult(command_id=query_id, outcome="rejected", problem=answer)
