"""What EC2 refuses or does not answer, and messages that cannot be read."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest

from cml_contracts.client import WorkerClient
from cml_contracts.deadletters import DeadLetterDetails
from support.deadletters import dead_letters
from support.whole_path import CREATE, System

FAULTS = [
    ("VcpuLimitExceeded", "EC2QuotaExceeded"),
    ("InsufficientInstanceCapacity", "EC2Capacity"),
    ("InvalidParameterValue", "EC2InvalidParameter"),
    ("UnauthorizedOperation", "EC2Authentication"),
]


@pytest.mark.parametrize(("aws_code", "code"), FAULTS)
async def test_what_aws_refuses_fails_with_its_own_code(system: System, aws_code: str, code: str):
    system.admin.fault("RunInstances", aws_code)
    system.expected = ["EC2 refused for good", "EC2 refused, trying again"]
    async with system.client() as client:
        reply = await client.command("create", **CREATE)
        assert (reply["outcome"], reply["problem"]["code"]) == ("failed", code)
        assert aws_code in reply["problem"]["detail"]
        assert system.instances_of(reply["worker_id"]) == []
        await client.until_status(reply["worker_id"], "FAILED")


async def test_a_create_that_failed_for_capacity_could_not_be_retried_with_its_id(system: System):
    system.admin.fault("RunInstances", "InsufficientInstanceCapacity")
    system.expected = ["EC2 refused for good"]
    worker_id = str(uuid4())
    async with system.client() as client:
        create = {**CREATE, "worker_id": worker_id}
        first = await client.command("create", **create)
        assert (first["problem"]["code"], first["problem"]["retryable"]) == ("EC2Capacity", True)
        again = await asyncio.gather(*(client.command("create", **create) for _ in range(2)))
        assert sorted(each["outcome"] for each in again) == ["rejected", "succeeded"]
        view = await client.until_status(worker_id, "RUNNING")
        assert (view["generation"], view["problem"]) == (2, None)
        assert len(system.instances_of(worker_id)) == 1
        assert (await client.command("terminate", worker_id=worker_id))["data"] is True
        ended = await client.command("create", **create)
        assert (ended["outcome"], ended["problem"]["code"]) == ("rejected", "WorkerTerminated")
        assert len(system.instances_of(worker_id)) == 1


async def test_no_image_for_a_region_is_rejected_a_bad_type_and_a_bad_image_fail(system: System):
    system.expected = ["EC2 refused for good", "EC2 refused, trying again"]
    async with system.client() as client:
        reply = await client.command("create", **{**CREATE, "aws_region": "ap-south-1"})
        assert (reply["outcome"], reply["problem"]["code"]) == ("rejected", "ValidationFailed")
        for changes in (
            {"instance_type": "m99.huge"},
            {"ami_id": "ami-00000000000000000"},
            {"ami_name": "no such image"},
        ):
            reply = await client.command("create", **{**CREATE, **changes})
            assert (reply["outcome"], reply["problem"]["code"]) == ("failed", "EC2InvalidParameter"), reply


async def test_a_launch_whose_answer_is_lost_gives_one_instance(system: System):
    system.admin.fault("RunInstances", "InternalError", status=500, effect="after", times=4)
    system.expected = ["outcome unknown, asking again", "adopted what was launched before"]
    async with system.client() as client:
        reply = await client.command("create", **CREATE)
        assert reply["outcome"] == "succeeded"
        assert len(system.instances_of(reply["worker_id"])) == 1


async def test_a_launch_whose_answer_is_lost_and_whose_repetition_is_refused_is_not_leaked(system: System):
    system.admin.fault("RunInstances", effect="after", close_connection=True, times=1)
    system.admin.fault("RunInstances", "UnauthorizedOperation", status=403, times=1)
    system.expected = ["outcome unknown, asking again", "EC2 refused for good", "refused, but done before"]
    async with system.client() as client:
        reply = await client.command("create", **CREATE)
        assert reply["outcome"] == "succeeded"
        assert len(system.instances_of(reply["worker_id"])) == 1
        assert (await client.command("terminate", worker_id=reply["worker_id"]))["data"] is True
        assert [each["state"] for each in system.instances_of(reply["worker_id"])] == ["terminated"]


BROKEN: list[tuple[bytes, dict[str, Any], str]] = [
    (b"{", {}, "JSON"),
    (b"\xff\x00", {}, "JSON"),
    (b'"text"', {}, "object"),
    (b'{"worker_id": 7}', {}, "worker_id"),
    (json.dumps({"worker_id": str(uuid4()), "colour": "red"}).encode(), {}, "colour"),
    (b"{}", {"type": "cml.worker.explode.v1"}, "not known"),
    (json.dumps({"worker_id": str(uuid4())}).encode(), {"message_id": "two words"}, "message_id"),
    (b'{"x": "' + b"y" * 65536 + b'"}', {}, "bytes"),
]


async def kept(system: System, queue: str, *marks: str) -> dict[str, DeadLetterDetails]:
    """The dead letters with these marks, once all are there: each one once."""
    async with WorkerClient(system.amqp) as operator, asyncio.timeout(60):
        while True:
            letters = await dead_letters(operator, len(marks), queue=queue)
            found = [str(letter.headers.get("mark")) for letter in letters]
            if set(marks) <= set(found):
                break
    assert [found.count(mark) for mark in marks] == [1] * len(marks)
    return dict(zip(found, letters, strict=True))


async def test_broken_messages_are_answered_and_kept_with_their_reason_and_block_nobody(system: System):
    marks = {str(uuid4()): broken for broken in BROKEN}
    async with system.client() as client:
        for mark, (body, properties, reason) in marks.items():
            sent = await client.publish(
                "cml.commands", "cml.worker.start.v1", body, headers={"mark": mark}, **properties
            )
            (reply,) = await client.replies_to(sent)
            assert (reply["outcome"], reply["problem"]["code"]) == ("rejected", "ValidationFailed")
            assert reason in reply["problem"]["detail"]
        unknown = await client.command("start", worker_id=str(uuid4()))
        assert (unknown["outcome"], unknown["problem"]["code"]) == ("rejected", "WorkerNotFound")
        letters = await kept(system, "cml.lifecycle.commands", *marks)
        client.dead_expected = len(BROKEN)
    for mark, (_, _, reason) in marks.items():
        assert reason in letters[mark].reason
        assert (letters[mark].cause, letters[mark].deaths) == ("ValidationFailed", 1)


async def test_broken_queries_are_answered_and_kept(system: System):
    broken = [("worker.list", {"limit": 0}), ("worker.nothing", {}), ("worker.get", {})]
    marks = [str(uuid4()) for _ in broken]
    async with system.client() as client:
        for mark, (name, fields) in zip(marks, broken, strict=True):
            body = json.dumps(fields).encode()
            sent = await client.publish("cml.queries", f"cml.{name}.v1", body, headers={"mark": mark})
            (reply,) = await client.replies_to(sent)
            assert (reply["outcome"], reply["problem"]["code"]) == ("rejected", "ValidationFailed")
        missing = await client.query("worker.get", worker_id=str(uuid4()))
        assert missing["problem"]["code"] == "WorkerNotFound"
        letters = await kept(system, "cml.projector.queries.v2", *marks)
        client.dead_expected = len(broken)
    assert {letters[mark].cause for mark in marks} == {"ValidationFailed"}
