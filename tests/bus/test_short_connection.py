"""What a connection that was refused leaves behind."""

import gc

import aio_pika
import pytest

from cml_workers.bus.rabbit.short_connection import connect
from support.rabbitmq import free_port


async def test_a_connection_that_was_refused_is_closed_and_leaves_nothing_to_be_done_when_it_is_collected():
    port = free_port()
    with pytest.raises(OSError, match="Connect") as refused:
        await connect(f"amqp://guest:guest@127.0.0.1:{port}/")
    made = [each for each in gc.get_objects() if isinstance(each, aio_pika.Connection)]
    assert [each.is_closed for each in made if each.url.port == port] == [True], refused
