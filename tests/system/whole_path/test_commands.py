"""Commands, replies, events and queries with nothing but AMQP and JSON, also many at once and after a restart."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest

from cml_contracts.instance import LaunchParameters
from cml_workers.ec2_adapter.aws import AwsEc2Client
from support.mailbox import Mailbox
from support.whole_path import CREATE, System

LAUNCHED = ("created", "launch_requested", "instance_launched", "instance_state_observed")


@pytest.mark.parametrize("direct", [False, True], ids=["reply-queue", "direct-reply-to"])
async def test_seven_commands_and_the_queries_with_nothing_but_amqp_and_json(system: System, direct: bool):
    async with system.client(direct=direct) as client:
        created = await client.command("create", **CREATE, tags={"course": "ccna"})
        worker_id, instance = created["worker_id"], created["data"]
        assert created["outcome"] == "succeeded"
        assert instance["instance_state"] == "pending"
        assert instance["tags"]["course"] == "ccna"
        await client.until_status(worker_id, "RUNNING")

        tagged = await client.command(
            "update_tags", worker_id=worker_id, tags={"lab": "ospf"}, updated_by="ann"
        )
        assert tagged["data"] == {
            "course": "ccna",
            "lab": "ospf",
            "Name": "lab",
            "cml:worker-id": worker_id,
            "cml:deployment": "default",
        }
        observed = await client.command("update_status", worker_id=worker_id)
        assert observed["data"]["instance_state"] == "running"
        assert (await client.command("stop", worker_id=worker_id))["data"] is True
        await client.until_status(worker_id, "STOPPED")
        assert (await client.command("start", worker_id=worker_id))["data"] is True
        running = await client.until_status(worker_id, "RUNNING")
        assert running["instance"]["aws_instance_id"] == instance["aws_instance_id"]

        listed = await client.query("worker.list", tag="lab=ospf", status="RUNNING")
        assert worker_id in [each["id"] for each in listed["data"]["workers"]]
        operation = await client.query("operation.get", command_id=created["command_id"])
        assert operation["data"]["result"] == created

        assert (await client.command("terminate", worker_id=worker_id))["data"] is True
        await client.until_event(worker_id, "cml.worker.terminated.v1")
        assert [each["state"] for each in system.instances_of(worker_id)] == ["terminated"]

        seen = [each for each in client.events if each["subject"] == worker_id]
        assert [each["streamrevision"] for each in seen] == list(range(len(seen)))
        assert [each["type"] for each in seen if "observed" not in each["type"]] == [
            f"cml.worker.{name}.v1"
            for name in (
                *(
                    "created",
                    "launch_requested",
                    "instance_launched",
                    "tags_update_requested",
                    "tags_updated",
                ),
                *("stop_requested", "instance_stopping", "start_requested", "instance_starting"),
                *("termination_requested", "terminated"),
            )
        ]
        assert seen[0]["commandid"] == created["command_id"]
        assert seen[0]["actor"] == "ann"
        assert all(each["specversion"] == "1.0" for each in seen)

        async with AwsEc2Client(endpoint_url=system.ec2) as ec2:
            outside = await ec2.launch(
                LaunchParameters(
                    aws_region="us-east-1",
                    ami_id=instance["ami_id"],
                    instance_type="m5.large",
                    tags={"Name": "found", "cml:import": "default"},
                    generation=1,
                    client_token=uuid4().hex,
                )
            )
        adopt = {"aws_region": "us-east-1", "instance_id": outside.instance_id, "created_by": "ann"}
        imported = await client.command("import", **adopt)
        again = await client.command("import", **adopt)
        assert imported["data"]["instance_name"] == "found"
        assert again["worker_id"] == imported["worker_id"]


@pytest.mark.parametrize("same_correlation", [False, True])
async def test_the_same_message_five_times_has_the_effect_the_events_and_the_reply_of_once(
    system: System, same_correlation: bool
):
    async with system.client() as client:
        command_id, shared = str(uuid4()), str(uuid4()) if same_correlation else None
        sent = await asyncio.gather(
            *(
                client.publish(
                    "cml.commands",
                    "cml.worker.create.v1",
                    json.dumps(CREATE).encode(),
                    message_id=command_id,
                    correlation_id=shared,
                )
                for _ in range(5)
            )
        )
        if shared:  # one address: what comes while the first is pending has its reply with that one
            (reply,) = await client.replies_to(shared)
        else:
            replies = [(await client.replies_to(each))[0] for each in sent]
            reply = replies[0]
            assert replies == [reply] * 5
        assert reply["outcome"] == "succeeded"
        assert len(system.instances_of(reply["worker_id"])) == 1
        await client.until_status(reply["worker_id"], "RUNNING")
        seen = [each["type"] for each in client.events if each["subject"] == reply["worker_id"]]
        assert seen == [f"cml.worker.{name}.v1" for name in LAUNCHED]


async def test_an_id_that_was_used_before_with_another_body_is_rejected(system: System):
    async with system.client() as client:
        client.dead_expected = 1
        command_id = str(uuid4())
        for name, code in (("one", None), ("two", "DuplicateCommand")):
            body = json.dumps({**CREATE, "name": name, "worker_id": str(uuid4())}).encode()
            sent = await client.publish("cml.commands", "cml.worker.create.v1", body, message_id=command_id)
            (reply,) = await client.replies_to(sent)
            assert (reply["problem"] or {}).get("code") == code


@pytest.mark.timeout(300)
async def test_many_commands_in_flight_all_get_their_own_reply(system: System):
    crowd = 200
    async with system.client() as client:

        async def all_of(name: str, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
            sent = [
                await client.publish("cml.commands", f"cml.worker.{name}.v1", json.dumps(body).encode())
                for body in bodies
            ]
            return [(await client.replies_to(each, seconds=110))[0] for each in sent]

        results = await all_of("create", [{**CREATE, "name": f"crowd-{n}"} for n in range(crowd)])
        assert [result["problem"] for result in results] == [None] * crowd
        assert [result["data"]["instance_name"] for result in results] == [f"crowd-{n}" for n in range(crowd)]
        assert len({result["data"]["aws_instance_id"] for result in results}) == crowd
        ended = await all_of("terminate", [{"worker_id": result["worker_id"]} for result in results])
        assert [result["outcome"] for result in ended] == ["succeeded"] * crowd
        for result in ended:
            await client.until_event(result["worker_id"], "cml.worker.terminated.v1")
    running = {each["instance_id"] for each in system.admin.instances() if each["state"] != "terminated"}
    assert not running & {result["data"]["aws_instance_id"] for result in results}


async def test_commands_that_race_for_a_worker_all_end_and_agree_with_ec2(system: System):
    async with system.client() as client:
        created = await client.command("create", **CREATE)
        worker_id = created["worker_id"]
        await client.until_status(worker_id, "RUNNING")
        sent = [("update_tags", {"tags": {"n": str(number)}}) for number in range(10)]
        sent += [(name, {}) for name in ("stop", "start", "update_status") * 5]
        replies = await asyncio.gather(
            *(client.command(name, worker_id=worker_id, **fields) for name, fields in sent)
        )
        rejected = [reply["problem"] for reply in replies if reply["outcome"] != "succeeded"]
        assert {(each["code"], each["retryable"]) for each in rejected} <= {("Conflict", True)}
        assert [reply["outcome"] for reply in replies[:10]] == ["succeeded"] * 10
        async with asyncio.timeout(30):
            while True:  # the read model follows, and the instance settles
                view = (await client.query("worker.get", worker_id=worker_id))["data"]
                (there,) = system.instances_of(worker_id)
                shown = view["instance"]["instance_state"], view["tags"]
                if shown == (there["state"], there["tags"]) and there["state"] in ("running", "stopped"):
                    break
                await asyncio.sleep(0.2)
        assert (await client.command("terminate", worker_id=worker_id))["data"] is True


async def test_a_termination_meets_a_launch_and_a_start_under_way(system: System):
    async with system.client() as client:
        worker_id = str(uuid4())
        create, terminate = await asyncio.gather(
            client.command("create", **CREATE, worker_id=worker_id),
            client.command("terminate", worker_id=worker_id),
        )
        assert create["outcome"] == "succeeded"
        if terminate["outcome"] == "rejected":  # it came first, and there was no such worker
            problem = terminate["problem"]
            assert (problem["code"], problem["retryable"]) == ("WorkerNotFound", True)
            terminate = await client.command("terminate", worker_id=worker_id)
        assert terminate["data"] is True
        assert [each["state"] for each in system.instances_of(worker_id)] == ["terminated"]


async def test_drift_is_recorded_when_somebody_asks(system: System):
    async with system.client() as client:
        created = await client.command("create", **CREATE)
        await client.until_status(created["worker_id"], "RUNNING")
        system.admin.set_state(created["data"]["aws_instance_id"], "stopped")
        observed = await client.command("update_status", worker_id=created["worker_id"])
        assert observed["data"]["instance_state"] == "stopped"
        await client.until_status(created["worker_id"], "STOPPED")
        stopped = await client.until_event(
            created["worker_id"], "cml.worker.instance_state_observed.v1", instance_state="stopped"
        )
        assert stopped["data"]["drift"] is True
        assert "actor" not in stopped


async def test_after_a_restart_everything_is_still_there(system: System):
    async with system.client() as client:
        created = await client.command("create", **CREATE)
        worker_id = created["worker_id"]
        await client.until_status(worker_id, "RUNNING")
        await client.command("stop", worker_id=worker_id)
        before = await client.until_status(worker_id, "STOPPED")
        unfinished = await client.command("create", **{**CREATE, "name": "unfinished"})
    assert await asyncio.to_thread(system.running.stop) == 0, system.running.log()
    await asyncio.to_thread(system.begin)
    async with system.client() as client:
        after = (await client.query("worker.get", worker_id=worker_id))["data"]
        assert after == before
        operation = await client.query("operation.get", command_id=created["command_id"])
        assert operation["data"]["result"] == created
        assert (await client.command("start", worker_id=worker_id))["data"] is True
        await client.until_status(worker_id, "RUNNING")
        await client.until_status(unfinished["worker_id"], "RUNNING")
        # Who starts looks for what is unsettled, also while we look on.
        client.reminded = [each for each in client.reminded if each != unfinished["worker_id"]]
    assert len(system.instances_of(worker_id)) == 1


async def test_killed_at_any_moment_it_goes_on_where_it_was_and_answers_who_sent_once(system: System):
    ids = [str(uuid4()) for _ in range(4)]
    replies = await Mailbox.opened(system.amqp)
    for number, command_id in enumerate(ids):
        async with system.client(disturbed=True) as client:
            body = json.dumps({**CREATE, "name": f"killed-{number}"}).encode()
            await client.publish(
                "cml.commands", "cml.worker.create.v1", body, message_id=command_id, reply_to=replies.name
            )
            await asyncio.sleep(0.04 * number)
            system.running.kill()
        await asyncio.to_thread(system.begin)
    answers: dict[str, list[dict[str, Any]]] = {}
    for result in await replies.taken(system.amqp, len(ids), differing="command_id"):
        answers.setdefault(result["command_id"], []).append(result)
    assert answers.keys() == set(ids)
    async with system.client(disturbed=True) as client:
        for command_id, (answer, *again) in answers.items():
            assert answer["outcome"] == "succeeded"
            assert again == [answer] * len(again)
            assert len(system.instances_of(answer["worker_id"])) == 1
            await client.until_status(answer["worker_id"], "RUNNING")
            recorded = await client.query("operation.get", command_id=command_id)
            assert recorded["data"]["result"] == answer
