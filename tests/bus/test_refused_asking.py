"""What is said where RabbitMQ refuses to say whether a queue is there."""

from typing import Any

import pytest
from aiormq.exceptions import ChannelAccessRefused

from cml_workers.bus.port import TopologyError
from cml_workers.bus.rabbit.topology import CONFIGURE_NEEDED, _Asking

QUEUE = "cml.lifecycle.commands"


class Refusing:
    """A channel of a user without the right."""

    async def declare_queue(self, *_: object, **__: object) -> None:
        raise ChannelAccessRefused(f"ACCESS_REFUSED - access to queue '{QUEUE}' refused")


async def advice(version: str, *, passive: bool = True) -> str:
    channel: Any = Refusing()
    with pytest.raises(TopologyError) as error:
        await _Asking(channel, "cml-lifecycle", version, passive=passive).queue(QUEUE)
    assert f"queue {QUEUE!r} (ACCESS_REFUSED" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("version", CONFIGURE_NEEDED)
async def test_a_version_that_wants_more_rights_is_named(version: str):
    said = await advice(version)
    assert f"RabbitMQ {version} wants the right to configure" in said
    assert said.endswith("use a later version")


@pytest.mark.parametrize("version", ["3.13.7", "4.0.5", "4.2.5", "4.2.7", "4.3.1", ""])
async def test_with_another_one_the_user_or_its_rights_are_wrong(version: str):
    said = await advice(version)
    assert said.endswith("rights of deploy/rabbitmq/definitions.json")


async def test_who_may_not_declare_is_not_sent_to_another_version():
    said = await advice(CONFIGURE_NEEDED[-1], passive=False)
    assert "CML_DECLARE_TOPOLOGY=false" in said
