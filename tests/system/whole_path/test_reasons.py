"""Why EC2 ended or stopped an instance: in worker, history and events, for those who only speak AMQP and JSON."""

from typing import Any

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
async def test_an_instance_that_dies_after_its_launch_says_why(system: System, code: str, message: str):
    system.admin.fault("RunInstances", code, message=message, effect="dies")
    async with system.client() as client:
        created = await client.command("create", **CREATE)
        worker_id = created["worker_id"]
        ended = await client.until_event(worker_id, "cml.worker.terminated.v1")
        assert ended["data"]["reason"] == said(code, message)
        assert ended["data"]["state_reason"] == {"code": code, "message": message}
        view = await client.until_status(worker_id, "TERMINATED")
        assert view["reason"] == said(code, message)
        assert view["instance"]["state_reason"]["code"] == code


async def test_an_instance_that_falls_back_after_a_start_says_why(system: System):
    async with system.client() as client:
        worker_id = (await client.command("create", **CREATE))["worker_id"]
        await client.until_status(worker_id, "RUNNING")
        assert (await client.command("stop", worker_id=worker_id))["data"] is True
        stopped = await client.until_status(worker_id, "STOPPED")
        assert stopped["reason"] == "Client.UserInitiatedShutdown: User initiated shutdown"
        assert stopped["instance"]["state_transition_reason"].startswith("User initiated (")
        system.admin.fault("StartInstances", "Server.InternalError", message="no host", effect="dies")
        assert (await client.command("start", worker_id=worker_id))["data"] is True
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
