"""How often a message was delivered, as each version of RabbitMQ counts it."""

from types import SimpleNamespace
from typing import Any

import pytest

from cml_workers.bus.rabbit import RabbitBus
from cml_workers.bus.rabbit.consuming import SUSPECT
from cml_workers.bus.rabbit.messages import delivered
from cml_workers.bus.topology import DELIVERY_LIMIT, LIFECYCLE_COMMANDS
from cml_workers.bus.trust import Trust
from support.recorder import Recorder, outgoing

DIED = {"death": [{"reason": "delivery_limit", "queue": "cml.lifecycle.commands", "count": 1}]}
LIMIT_DELIVERIES = DELIVERY_LIMIT + 1


def raw(*, redelivered: bool, **headers: Any) -> Any:
    """A message as the library has it; the keywords are headers, without their ``x-``."""
    named = {f"x-{name.replace('_', '-')}": value for name, value in headers.items()}
    properties = dict.fromkeys(("type", "message_id", "correlation_id", "reply_to", "content_type"))
    return SimpleNamespace(
        body=b"",
        exchange="",
        routing_key="k",
        user_id="ann",
        headers=named,
        redelivered=redelivered,
        **properties,
    )


@pytest.mark.parametrize(
    ("message", "deliveries"),
    [
        (raw(redelivered=False), 1),
        (raw(redelivered=True, delivery_count=2), 3),
        (raw(redelivered=True, delivery_count=2, acquired_count=2), 3),
        (raw(redelivered=True, acquired_count=9), 1),
        (raw(redelivered=True, delivery_count=1, acquired_count=9), 2),
    ],
    ids=["the first one", "before 4.3", "4.3", "given back without a failure", "of which one failed"],
)
def test_what_failed_counts(message: Any, deliveries: int):
    assert delivered(message, LIFECYCLE_COMMANDS, Trust())[0].deliveries == deliveries


@pytest.mark.parametrize(
    ("message", "deliveries"),
    [
        (raw(redelivered=False, **DIED), 1),
        (raw(redelivered=True, delivery_count=1, **DIED), 2),
        (raw(redelivered=True, delivery_count=LIMIT_DELIVERIES, **DIED), 1),
        (raw(redelivered=True, delivery_count=LIMIT_DELIVERIES, acquired_count=LIMIT_DELIVERIES, **DIED), 1),
        (raw(redelivered=True, delivery_count=LIMIT_DELIVERIES + 2, acquired_count=2, **DIED), 3),
    ],
    ids=["3.10", "3.10, failed once", "4.0, of a lost consumer", "4.3", "4.3, failed twice"],
)
def test_what_the_limit_dead_lettered_begins_to_count_again(message: Any, deliveries: int):
    assert delivered(message, LIFECYCLE_COMMANDS, Trust())[0].deliveries == deliveries


async def test_what_a_sender_counts_makes_no_message_a_suspect(bus: RabbitBus, recorder: Recorder):
    made_up = {"x-delivery-count": SUSPECT + 4, "x-acquired-count": SUSPECT + 4, "mark": "x"}
    await bus.publish(outgoing(headers=made_up))
    (message,) = await recorder.until(1)
    assert (message.deliveries, dict(message.headers)) == (1, {"mark": "x"})
