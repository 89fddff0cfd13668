"""Deliberate faults with messages: what they carry, and what becomes of those that nobody can read."""

from dataclasses import replace
from typing import Any

import pytest

from cml_contracts.results import ProblemCode
from cml_contracts.tokens import TOKEN_HEADER
from cml_workers.bus.delivery import Settlement, settle
from cml_workers.bus.port import Ack, DeadLetter, Message, Retry, Verdict
from cml_workers.lifecycle.handler import Lifecycle
from simulation import bus


def secret_recorded(patch: pytest.MonkeyPatch) -> None:
    """The token by which a caller shows for whom it sends becomes the name of the caller's thread of work."""
    original = Lifecycle.on_command

    async def on_command(self: Lifecycle, message: Message) -> Verdict:
        token = message.headers.get(TOKEN_HEADER)
        return await original(self, replace(message, correlation_id=str(token) if token else None))

    patch.setattr(Lifecycle, "on_command", on_command)


def _instead_of_unreadable(patch: pytest.MonkeyPatch, verdict: Verdict) -> None:
    def settled(*arguments: Any, **options: Any) -> Settlement:
        settlement = settle(*arguments, **options)
        ended = settlement.verdict
        unreadable = isinstance(ended, DeadLetter) and ended.cause == ProblemCode.VALIDATION_FAILED
        return replace(settlement, verdict=verdict) if unreadable else settlement

    patch.setattr(bus, "settle", settled)


def unreadable_retried(patch: pytest.MonkeyPatch) -> None:
    """What nobody can read is retried without end."""
    _instead_of_unreadable(patch, Retry(1))


def unreadable_without_reason(patch: pytest.MonkeyPatch) -> None:
    """What nobody can read is among the dead letters, and nobody knows why."""
    _instead_of_unreadable(patch, DeadLetter("", ProblemCode.VALIDATION_FAILED))


def unreadable_dropped(patch: pytest.MonkeyPatch) -> None:
    """What nobody can read is gone."""
    _instead_of_unreadable(patch, Ack())


MESSAGES = (secret_recorded, unreadable_retried, unreadable_without_reason, unreadable_dropped)
