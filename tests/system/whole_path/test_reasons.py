"""Why EC2 ended or stopped an instance: in worker, history and events, for those who only speak AMQP and JSON."""

import json
from typing import Any
from uuid import uuid4

import pytest

from support.whole_path import CREATE, System

REASONS = [
    ("Client.InvalidKMSKey.InvalidState", "The KMS key provided is in an incorrect state"),
    ("Client.VolumeLimitExceeded", "Client.VolumeLimitExceeded: Volume limit exceeded"),
    ("Server.InternalError", "Server.InternalError: Internal error on launch"),
]


def said(code: str, message: str) -> str:
    return message if message.startswith(code) else f"{code}: {message}"


@pytest.mark.parametrize(("code", "message"), REASONS)
async def test_a_create_whose_instance_died_while_pending_had_succeeded(
    system: System, code: str, message: str
):
    """It has failed with EC2's reason: for who still listens, in the operation, the worker and an event; and may be tried again."""
    system.admin.fault("RunInstances", code, message=message, effect="dies")
    worker_id = str(uuid4())
    create = json.dumps({**CREATE, "worker_id": worker_id}).encode()
    async with system.client() as client:
        sent = await client.publish("cml.commands", "cml.worker.create.v1", create, message_id=worker_id)
        launched, failed = await client.replies_to(sent, 2)
        assert launched["outcome"] == "succeeded"
        instance_id = launched["data"]["aws_instance_id"]
        assert failed["outcome"] == "failed"
        assert failed["problem"]["detail"] == (
            f"instance {instance_id} of worker {worker_id} is terminated and never ran: {said(code, message)}"
        )
        event = await client.until_event(worker_id, "cml.worker.launch_failed.v1")
        assert event["data"]["problem"] == failed["problem"]
        view = await client.until_status(worker_id, "FAILED")
        assert view["problem"] == failed["problem"]["detail"]
        operation = (await client.query("operation.get", command_id=worker_id))["data"]
        assert operation["result"] == failed
        assert operation["requested_at"] < operation["settled_at"]
        again = await client.command("create", **CREATE, worker_id=worker_id)
        assert again["outcome"] == "succeeded"
        assert again["data"]["aws_instance_id"] != instance_id
        # The worker that failed before is on its way again.
        running = await client.until_event(
            worker_id, "cml.worker.instance_state_observed.v1", instance_state="running"
        )
        assert running["streamrevision"] > event["streamrevision"]


async def test_an_instance_that_falls_back_after_a_start_says_why(system: System):
    async with system.client() as client:
        worker_id = (await client.command("create", **CREATE))["worker_id"]
        await client.until_status(worker_id, "RUNNING")
        assert (await client.command("stop", worker_id=worker_id))["data"] is True
        stopped = await client.until_status(worker_id, "STOPPED")
        assert stopped["reason"] == "Client.UserInitiatedShutdown: User initiated shutdown"
        assert stopped["instance"]["state_transition_reason"].startswith("User initiated (")
        system.admin.fault("StartInstances", "Server.InternalError", message="no host", effect="dies")
        start = json.dumps({"worker_id": worker_id}).encode()
        sent = await client.publish("cml.commands", "cml.worker.start.v1", start)
        accepted, failed = await client.replies_to(sent, 2)
        assert (accepted["outcome"], failed["outcome"]) == ("succeeded", "failed")
        assert failed["problem"]["detail"].endswith("never ran: Server.InternalError: no host")
        fallen: dict[str, Any] = await client.until_event(
            worker_id,
            "cml.worker.instance_state_observed.v1",
            instance_state="stopped",
            state_reason={"code": "Server.InternalError", "message": "no host"},
        )
        assert {"instance_state", "state_reason"} <= set(fallen["data"]["changed"])
        view = await client.until_status(worker_id, "STOPPED")
        while view["revision"] < fallen["streamrevision"]:  # the read model follows
            view = await client.until_status(worker_id, "STOPPED")
        assert view["reason"] == "Server.InternalError: no host"
        assert (await client.command("start", worker_id=worker_id))["data"] is True
        running = await client.until_status(worker_id, "RUNNING")
        assert running["reason"] is None
