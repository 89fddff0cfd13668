"""Messages as frames of AMQP: what the library reads of them is what was published; and what it is when nobody answers."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body, commands, frame, header

from cml_contracts.topology import EVENTS_EXCHANGE
from cml_workers.bus.port import Outgoing
from cml_workers.bus.rabbit import RabbitBus
from cml_workers.bus.rabbit.frames import frames

TEXTS = st.text(max_size=60)
MESSAGES = st.builds(
    Outgoing,
    exchange=st.sampled_from([None, EVENTS_EXCHANGE]),
    routing_key=TEXTS,
    body=st.binary(max_size=50),
    type=TEXTS,
    message_id=TEXTS.filter(bool),
    correlation_id=st.none() | TEXTS,
    reply_to=st.none() | TEXTS,
    content_type=st.none() | TEXTS,
    headers=st.dictionaries(
        st.text(max_size=20), TEXTS | st.integers(-(2**31), 2**31) | st.booleans(), max_size=3
    ),
    user_id=st.none() | TEXTS,
    mandatory=st.booleans(),
)


def read(data: bytes) -> list[tuple[int, Any]]:
    """All frames, each with its channel."""
    found = []
    while data:
        size, channel, each = frame.unmarshal(data)
        found.append((channel, each))
        data = data[size:]
    return found


@given(MESSAGES, st.integers(1, 65535), st.integers(1, 20), TEXTS)
def test_what_is_written_is_the_message(message: Outgoing, channel: int, most: int, app_id: str):
    data = frames(
        message,
        message_id=message.message_id,
        user_id=message.user_id,
        app_id=app_id,
        channel=channel,
        most=most,
    )
    found = read(data)
    assert {number for number, _ in found} == {channel}
    publish, content, *parts = [each for _, each in found]
    assert isinstance(publish, commands.Basic.Publish)
    assert isinstance(content, header.ContentHeader)
    assert (publish.exchange, publish.routing_key, publish.mandatory) == (
        message.exchange.name if message.exchange else "",
        message.routing_key,
        message.mandatory,
    )
    assert all(isinstance(part, body.ContentBody) and 0 < len(part) <= most for part in parts)
    assert b"".join(part.value for part in parts) == message.body
    assert content.body_size == len(message.body)
    found_properties = {
        name: getattr(content.properties, name) for name in commands.Basic.Properties.__slots__
    }
    written_at = found_properties.pop("timestamp")
    assert isinstance(written_at, datetime)
    assert abs((datetime.now(UTC) - written_at).total_seconds()) < 5
    assert found_properties == dict.fromkeys(found_properties) | {
        "content_type": message.content_type or None,
        "headers": dict(message.headers),
        "delivery_mode": 2,
        "correlation_id": message.correlation_id or None,
        "reply_to": message.reply_to or None,
        "message_id": message.message_id,
        "message_type": message.type or None,
        "user_id": message.user_id or None,
        "app_id": app_id or None,
        "cluster_id": found_properties["cluster_id"],
    }


async def test_what_cannot_be_written_is_its_senders_fault_and_nobody_elses(bus: RabbitBus):
    message = Outgoing(EVENTS_EXCHANGE, "e", b"{}", "e", "m", correlation_id="c" * 256, mandatory=False)
    with pytest.raises(ValueError, match="AMQP allows 255"):
        await bus.publish(message)
    await bus.publish(Outgoing(EVENTS_EXCHANGE, "e", b"{}", "e", "m", mandatory=False))
