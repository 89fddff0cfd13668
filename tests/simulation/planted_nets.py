"""A safety net that is taken away."""

import contextlib
from typing import Any
from uuid import UUID

import pytest

from cml_workers.bus.port import Ack, BusUnavailableError, Message, Outgoing, Retry, Verdict
from cml_workers.domain.worker import Worker
from cml_workers.ec2_adapter.executor import Executor
from cml_workers.ec2_adapter.reports import Reports
from cml_workers.ec2_adapter.retry_policy import HANDED_ON
from cml_workers.ec2_adapter.watching import Poller
from cml_workers.eventstore.following import follow_from
from cml_workers.eventstore.port import (
    WrongExpectedVersionError,
)
from cml_workers.lifecycle.transactions import Transactions
from cml_workers.relay.relay import Relay
from simulation import fleet
from simulation.bus import Broker
from simulation.delivery import Consumer, Delivery, QueueState
from simulation.world import Process


def no_redelivery(patch: pytest.MonkeyPatch) -> None:
    """What a consumer had when it was lost is gone."""

    def give_back(self: Broker, state: QueueState, consumer: Consumer, delivery: Delivery) -> None:
        if delivery.owner is consumer and delivery in state.taken:
            state.taken.remove(delivery)
            consumer.holding -= 1

    patch.setattr(Broker, "_give_back", give_back)


def not_retried(patch: pytest.MonkeyPatch) -> None:
    """What cannot be done as a part is unavailable is acknowledged all the same."""
    original = Broker._settle

    async def settle(self: Broker, state: QueueState, delivery: Delivery, verdict: Verdict, bus: Any) -> None:
        if delivery.after_error and isinstance(verdict, Retry):
            return
        await original(self, state, delivery, verdict, bus)

    patch.setattr(Broker, "_settle", settle)


def no_redrive(patch: pytest.MonkeyPatch) -> None:
    """No operator ever looks at the dead letters."""
    patch.setattr(Broker, "redrive", lambda _: None)


def not_published_again(patch: pytest.MonkeyPatch) -> None:
    """The relay goes on where an event was not confirmed."""

    async def once(self: Relay, message: Outgoing) -> None:
        with contextlib.suppress(BusUnavailableError):
            await self._publish(message)

    patch.setattr(Relay, "_confirmed", once)


def not_decided_again(patch: pytest.MonkeyPatch) -> None:
    """Whoever loses the race for a stream takes it for done."""
    original = Transactions._record

    async def record(self: Transactions, worker: Worker, *arguments: Any, **circumstances: Any) -> Any:
        try:
            return await original(self, worker, *arguments, **circumstances)
        except WrongExpectedVersionError:
            return worker, []

    patch.setattr(Transactions, "_record", record)


def not_followed_again(patch: pytest.MonkeyPatch) -> None:
    """A follower that has lost the store does not come back."""
    original = follow_from

    async def once(*arguments: Any, **options: Any) -> None:
        def never(_: int) -> float:
            return 1e9

        await original(*arguments, **{**options, "backoff": never})

    patch.setattr(fleet, "follow_from", once)


def not_consumed_again(patch: pytest.MonkeyPatch) -> None:
    """Who has lost the connection to the broker does not come back, and does not end either."""
    patch.setattr(Process, "_return", lambda _: None)


def not_rechecked(patch: pytest.MonkeyPatch) -> None:
    """A call that is carried out late is nobody's business."""

    async def nothing(_: Reports, __: UUID) -> None:
        return

    patch.setattr(Reports, "recheck", nothing)


def not_watched(patch: pytest.MonkeyPatch) -> None:
    """Nobody sees how an instance gets on."""
    patch.setattr(Poller, "watch", lambda *_: None)


def waits_in_memory_only(patch: pytest.MonkeyPatch) -> None:
    """The message of an operation that waits is acknowledged, and whoever waits dies."""
    original = Executor.on_trigger

    async def on_trigger(self: Executor, message: Message) -> Verdict:
        verdict = await original(self, message)
        return Ack() if verdict == Retry(HANDED_ON) else verdict

    patch.setattr(Executor, "on_trigger", on_trigger)


NETS = (
    no_redelivery,
    not_retried,
    no_redrive,
    not_published_again,
    not_decided_again,
    not_followed_again,
    not_consumed_again,
)
"""Each is missed in runs by chance."""
