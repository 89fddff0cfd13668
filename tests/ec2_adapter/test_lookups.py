"""What a command has to know before it can be decided: asked, and answered, whatever EC2 does."""

import dataclasses

import pytest

from cml_contracts.commands import UpdateCMLWorkerStatus
from cml_contracts.envelope import MAX_BODY
from cml_contracts.results import ProblemCode
from cml_workers.bus.port import Ack, DeadLetter, Message, Retry, Verdict
from cml_workers.domain.messages import (
    CommandMessage,
    ImageLookup,
    InstanceLookup,
    Lookup,
    LookupAnswered,
    LookupRequested,
    LookupResult,
)
from cml_workers.ec2_adapter.errors import EC2AuthenticationException, Remedy
from cml_workers.ec2_adapter.retry_policy import LOOKUP_ATTEMPTS
from support.given import WORKER, instance
from support.given_adapter import Adapter, Given
from support.histories import UNKNOWN

IMAGE = ImageLookup(aws_region="us-east-1", ami_name="cml")
INSTANCE = InstanceLookup(aws_region="us-east-1", instance_id=instance().instance_id, seen_revision=2)


def lookup(lookup: Lookup, attempt: int = 0) -> Message:
    status = UpdateCMLWorkerStatus(worker_id=WORKER)
    origin = CommandMessage(command_id="c", command=status, command_type=status.TYPE, correlation_id="t")
    request = LookupRequested(origin=origin, lookup=lookup)
    return Message(
        body=request.model_dump_json().encode(), type=request.TYPE, message_id="lookup", attempt=attempt
    )


async def handled(adapter: Adapter, message: Message) -> Verdict:
    return await adapter.clock.until_done(adapter.executor.on_lookup(message))


async def result(adapter: Adapter, message: Message) -> LookupResult:
    assert await handled(adapter, message) == Ack()
    return adapter.reports(LookupAnswered)[-1].looked_up


async def test_an_image_is_looked_up_by_its_name(given: Given):
    adapter = given()
    assert await result(adapter, lookup(IMAGE)) == LookupResult()
    adapter.ec2.images["us-east-1", "cml"] = "ami-1"
    assert (await result(adapter, lookup(IMAGE))).image_id == "ami-1"


async def test_an_instance_is_looked_up_with_its_status_checks(given: Given):
    adapter = given().observed(instance())
    seen = await result(adapter, lookup(INSTANCE))
    assert seen.instance == instance(instance_status_check="ok", ec2_system_status_check="ok")
    assert adapter.ec2.calls == ["describe_many", "status_checks"]


async def test_an_instance_that_is_not_there_is_looked_for_twice(given: Given):
    adapter = given()
    assert await result(adapter, lookup(INSTANCE)) == LookupResult()
    assert adapter.ec2.calls == ["describe_many", "describe_many"]


async def test_a_lookup_ec2_does_not_answer_is_repeated_but_not_without_end(given: Given):
    adapter = given().refusing("describe_many", UNKNOWN, times=2)
    assert await handled(adapter, lookup(INSTANCE)) == Retry()
    answer = await result(adapter, lookup(INSTANCE, attempt=LOOKUP_ATTEMPTS))
    assert answer.problem
    assert answer.problem.retryable


async def test_refused_credentials_are_read_again_for_that_region(given: Given):
    expired = EC2AuthenticationException("expired", remedy=Remedy.REFRESH)
    adapter = given().observed(instance()).refusing("describe_many", expired)
    assert await handled(adapter, lookup(INSTANCE)) == Retry()
    assert adapter.ec2.refreshed == ["us-east-1"]
    assert (await result(adapter, lookup(INSTANCE))).instance


async def test_a_definite_no_is_an_answer(given: Given):
    adapter = given().refusing("find_image", EC2AuthenticationException("not allowed"))
    answer = await result(adapter, lookup(IMAGE))
    assert answer.problem
    assert answer.problem.code is ProblemCode.EC2_AUTHENTICATION


async def test_a_lookup_for_the_largest_command_is_answered(given: Given):
    request = lookup(INSTANCE)
    largest = dataclasses.replace(request, body=request.body + b" " * MAX_BODY)
    assert await handled(given(), largest) == Ack()


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
async def test_a_broken_request_is_a_dead_letter(given: Given, body: bytes):
    broken = Message(body=body, type=LookupRequested.TYPE, message_id="m")
    assert isinstance(await given().executor.on_lookup(broken), DeadLetter)
