"""Promise 8, with secrets that are really there: none is in an event, a log line, a reply, a probe, a dead letter, or what the doctor says.

Every role is a process of its own and logs all it can, and each part fails once, as errors quote what they are about. Each secret has all the
characters that are escaped anywhere, and each part of it between them is looked for.
"""

import asyncio
import json
import signal
from pathlib import Path
from uuid import uuid4

import pytest

from cml_contracts.commands import StopCMLWorker, UpdateCMLWorkerTags
from cml_embedded.ec2_simulator import DEMO_IMAGES
from support.certificates import Certificates
from support.given import create
from support.secret_parts import SecretParts, secret_parts

CREATE = create(ami_id=DEMO_IMAGES["us-east-1"], worker_id=uuid4())


async def used(parts: SecretParts) -> None:
    """A worker's life, on behalf of somebody, and messages of all kinds that become dead letters."""
    async with await parts.sender() as connection:
        channel = await connection.channel()
        body = CREATE.model_dump_json(exclude_none=True)
        created = await parts.send(channel, CREATE.TYPE, body.encode(), actor="ann")
        assert (await parts.reply_to(created)).outcome == "succeeded"
        tagged = UpdateCMLWorkerTags(worker_id=CREATE.worker_id or uuid4(), tags={"a": "1"})
        assert (
            await parts.reply_to(await parts.send(channel, tagged.TYPE, tagged.model_dump_json().encode()))
        ).data

        hidden = parts.contents
        fields = json.loads(body)
        for what, kind, broken in (
            ("a body that is no JSON", CREATE.TYPE, hidden["no JSON"]),
            (
                "a value of the wrong form",
                CREATE.TYPE,
                json.dumps({**fields, "aws_region": hidden["a value"]}),
            ),
            ("an unknown field", CREATE.TYPE, json.dumps({**fields, "password": hidden["an unknown field"]})),
            ("an unknown type", "cml.worker.none.v1", json.dumps({"password": hidden["an unknown type"]})),
            ("on behalf of another", CREATE.TYPE, json.dumps({**fields, "reason": hidden["a reason"]})),
        ):
            actor = "bob" if what == "on behalf of another" else None
            if kind == "cml.worker.none.v1":
                await parts.send(channel, "cml.worker.none.v1", broken.encode())
                continue
            refused = await parts.reply_to(await parts.send(channel, kind, broken.encode(), actor=actor))
            assert refused.outcome == "rejected", what


async def failing(parts: SecretParts) -> None:
    """Each part fails while there is something to do."""
    assert CREATE.worker_id
    tag = UpdateCMLWorkerTags(worker_id=CREATE.worker_id, tags={"b": "2"}).model_dump_json().encode()
    async with await parts.sender() as connection:
        channel = await connection.channel()
        parts.admin.fault("StopInstances", "AuthFailure", status=401, times=1)
        stop = StopCMLWorker(worker_id=CREATE.worker_id).model_dump_json().encode()
        await parts.reply_to(await parts.send(channel, StopCMLWorker.TYPE, stop))

        parts.postgresql.stop()
        await parts.send(channel, CREATE.TYPE, parts.contents["while the database is away"].encode())
        await parts.until_logged("projector", "outage begins")
        await parts.probe("while the database is away")
        await parts.doctor("while the database is away")
        parts.postgresql.start()

        parts.store.send_signal(signal.SIGSTOP)
        while_away = await parts.send(channel, UpdateCMLWorkerTags.TYPE, tag)
        await parts.until_logged("lifecycle", "outage begins")
        await parts.probe("while the store does not answer")
        await parts.doctor("while the store does not answer")
        parts.store.send_signal(signal.SIGCONT)
        assert (await parts.reply_to(while_away)).data
    parts.rabbitmq.stop()
    await parts.doctor("while RabbitMQ is away")
    parts.rabbitmq.start()
    await parts.probe("after RabbitMQ is back")
    await parts.until_ready()
    await parts.probe("at the end")
    await parts.doctor("at the end")


@pytest.mark.timeout(580)
async def test_no_secret_is_seen_anywhere(tmp_path: Path, certificates: Certificates):
    async with secret_parts(tmp_path, certificates) as parts:
        await used(parts)
        await failing(parts)
        assert len(await parts.events()) > 5
        async with asyncio.timeout(60):
            while len((await parts.rows())["dead_letters"]) < 6:
                await asyncio.sleep(0.2)
        assert await parts.leaks() == []
        assert parts.wide() == []
        assert "DATABASE_URL" in parts.probed["the doctor while the database is away"]
        assert "unknown" not in parts.probed["the doctor at the end"]  # it got its answer from each


async def test_a_secret_that_is_logged_is_seen(tmp_path: Path, certificates: Certificates):
    """The fault that this planted for promise 8: one role logs the headers of commands."""
    async with secret_parts(tmp_path, certificates, plant="headers_logged") as parts:
        await used(parts)
        leaks = await parts.leaks()
    assert {each.rpartition(" in ")[2] for each in leaks} == {"the log of lifecycle"}
    assert any(each.startswith("the token of ") for each in leaks)
    assert any(each.startswith("Authorization of ") for each in leaks)
