"""A reply that is forgotten on one path, an event that one queue never gets or gets too soon, a trigger that is no trigger."""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from cml_contracts.commands import UpdateCMLWorkerStatus
from cml_contracts.events import (
    InstanceStarting,
    WorkerEvent,
)
from cml_workers.bus.port import Ack, Outgoing, Publish, Routed, Verdict
from cml_workers.bus.probes import PROBE
from cml_workers.bus.topology import EC2_TRIGGERS
from cml_workers.domain.ledger import Entry
from cml_workers.domain.messages import CommandMessage
from cml_workers.eventstore import worker_streams as stream
from cml_workers.lifecycle.handler import Lifecycle
from cml_workers.lifecycle.transactions import Transactions
from cml_workers.relay.subscribers import Subscribers
from simulation.bus import Broker
from support.planting import Plant

_PARTIAL: ContextVar[bool] = ContextVar("partly", default=False)


def _forget_others(patch: pytest.MonkeyPatch) -> None:
    """Whoever handles a message while ``_PARTIAL`` is set does not see what it settled."""

    original = Transactions._finish

    async def without_some(self: Transactions, settled: Sequence[Entry], due: Any) -> Ack:
        return await original(self, [] if _PARTIAL.get() else settled, due)

    patch.setattr(Transactions, "_finish", without_some)


def _finishes_without_others(patch: pytest.MonkeyPatch, *, pending: bool) -> None:
    original = Transactions.transact

    async def transact(self: Transactions, worker_id: UUID, cause: str, judge: Any, **more: Any) -> Any:
        found = await self.entry(worker_id, cause)
        token = _PARTIAL.set(found is not None and (found.result is None) is pending)
        try:
            return await original(self, worker_id, cause, judge, **more)
        finally:
            _PARTIAL.reset(token)

    _forget_others(patch)
    patch.setattr(Transactions, "transact", transact)


def reply_forgotten_while_pending(patch: pytest.MonkeyPatch) -> None:
    """A command that is found pending is done, and what it settled of others is forgotten (found on a real store)."""
    _finishes_without_others(patch, pending=True)


def reply_forgotten_when_settled(patch: pytest.MonkeyPatch) -> None:
    """A command that is found settled is answered, and nobody else."""
    _finishes_without_others(patch, pending=False)


def reply_forgotten_by_a_report(patch: pytest.MonkeyPatch) -> None:
    """A report of nothing new is done, and the replies of its first delivery are forgotten."""
    original = Lifecycle._settle

    async def settle(self: Lifecycle, report: Any, report_id: str, attempt: int) -> Verdict:
        ledger = await stream.load_ledger(self._store, report.worker_id)
        if ledger.settled_by(report_id):
            return Ack()
        return await original(self, report, report_id, attempt)

    patch.setattr(Lifecycle, "_settle", settle)


def reply_forgotten_of_a_rejection(patch: pytest.MonkeyPatch) -> None:
    """A rejection that is recorded and gets no reply."""
    original = Transactions._finish

    async def not_rejected(self: Transactions, settled: Sequence[Entry], due: Any) -> Ack:
        others = [each for each in settled if each.result and each.result.outcome != "rejected"]
        return await original(self, others, due)

    patch.setattr(Transactions, "_finish", not_rejected)


def reply_forgotten_by_a_status_update(patch: pytest.MonkeyPatch) -> None:
    """A status update answers its own caller, and forgets whose operations it ended."""
    original = Lifecycle._decide

    async def decide(self: Lifecycle, message: CommandMessage, **answered: Any) -> Verdict:
        token = _PARTIAL.set(isinstance(message.command, UpdateCMLWorkerStatus))
        try:
            return await original(self, message, **answered)
        finally:
            _PARTIAL.reset(token)

    _forget_others(patch)
    patch.setattr(Lifecycle, "_decide", decide)


def event_missing_in_one_queue(patch: pytest.MonkeyPatch) -> None:
    """The broker has the event, and one subscriber's queue never gets it."""
    original = Broker.to_subscriber

    def to_subscriber(self: Broker, message: Outgoing) -> None:
        if message.type != InstanceStarting.TYPE:
            original(self, message)

    patch.setattr(Broker, "to_subscriber", to_subscriber)


def event_out_of_order(patch: pytest.MonkeyPatch) -> None:
    """The relay takes an event for routed as soon as the broker answers it (found by the sweep), and sends the next one at once."""
    original = Subscribers.__init__

    def init(self: Subscribers, publish: Publish, routed: Routed, **more: Any) -> None:
        async def answers(message: Outgoing, /) -> bool:
            await routed(message)
            return True

        async def without_probe(message: Outgoing, /) -> None:
            if message is not PROBE:
                await publish(message)

        original(self, without_probe, answers, **more)

    patch.setattr(Subscribers, "__init__", init)
    patch.setattr(Subscribers, "_behind_others", lambda _, entry: entry.message)


def without_trigger(event: type[WorkerEvent]) -> Plant:
    """The adapter's queue is not bound to this type of event."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        original = Broker.__init__

        def init(self: Broker, *arguments: Any) -> None:
            original(self, *arguments)
            state = self.queues[EC2_TRIGGERS.name]
            left = tuple(each for each in EC2_TRIGGERS.bindings if each.routing_key != event.TYPE)
            assert len(left) == len(EC2_TRIGGERS.bindings) - 1
            state.queue = replace(EC2_TRIGGERS, bindings=left)

        patch.setattr(Broker, "__init__", init)

    return plant
