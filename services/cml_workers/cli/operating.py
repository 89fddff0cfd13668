"""Requests about dead letters: their results, or one line that says what is wrong."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from uuid import UUID

from cml_contracts.client import NoResultYetError, NotSentError, WorkerClient
from cml_contracts.deadletters import (
    DeadLetterDetails,
    DeadLetterPage,
    DeadLetterView,
    GetDeadLetter,
    ListDeadLetters,
    OperatorRequest,
    RedriveDeadLetter,
)
from cml_contracts.results import OperationResult
from cml_workers.cli.terminal import (
    NO_RESULT_YET,
    NOT_DONE,
    UNREACHABLE,
    fail,
    with_client,
)

T = TypeVar("T")


AT_ONCE = 20
"""Redrives in flight."""


def details_of(dead_letter_id: UUID) -> DeadLetterDetails:
    """All that is kept of a dead letter."""
    return DeadLetterDetails.model_validate(ask(GetDeadLetter(dead_letter_id=dead_letter_id)).data)


def find_all(wanted: ListDeadLetters) -> list[DeadLetterView]:
    """All dead letters that meet the conditions, from all pages."""

    async def pages(client: WorkerClient) -> list[DeadLetterView]:
        found: list[DeadLetterView] = []
        cursor = None
        while True:
            result = await client.operate(wanted.model_copy(update={"cursor": cursor}))
            page = DeadLetterPage.model_validate(_accepted(result).data)
            found += page.dead_letters
            cursor = page.next_cursor
            if cursor is None:
                return found

    return _with_operator(pages)


def ask(request: OperatorRequest) -> OperationResult:
    """The result of a request that succeeded."""
    return _accepted(_with_operator(lambda client: client.operate(request)))


def ask_all(requests: list[RedriveDeadLetter]) -> list[OperationResult]:
    """The result of each request, in their order."""

    async def gather(client: WorkerClient) -> list[OperationResult]:
        at_once = asyncio.Semaphore(AT_ONCE)

        async def one(request: RedriveDeadLetter) -> OperationResult:
            async with at_once:
                return await client.operate(request)

        return await asyncio.gather(*map(one, requests))

    return _with_operator(gather)


def _with_operator(use: Callable[[WorkerClient], Coroutine[Any, Any, T]]) -> T:
    async def operator(client: WorkerClient) -> T:
        try:
            return await use(client)
        except NoResultYetError:
            fail(
                "no answer: is the projector running? Try again; doing the same twice is harmless",
                NO_RESULT_YET,
            )
        except NotSentError as error:
            fail(
                f"{error}. On a RabbitMQ of your own, only a user like cml-operator may do this", UNREACHABLE
            )

    return with_client(operator)


def _accepted(result: OperationResult) -> OperationResult:
    if result.problem:
        fail(f"{result.problem.code}: {result.problem.detail}", NOT_DONE)
    return result
