"""Queues that are not on all nodes of RabbitMQ: what the management API shows, and what readiness says of it."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from cml_workers.bus.rabbit.management import ManagementError, cluster
from cml_workers.bus.topology import PROBES
from cml_workers.bus.usage import EVERYTHING
from cml_workers.process.registry import ROLES
from cml_workers.process.system import queues_of
from cml_workers.runtime.health import report
from cml_workers.runtime.replicas import ReplicaWatch, described, replicas_watched
from cml_workers.runtime.settings import Settings
from support.management_api import NODES, PASSWORD, ManagementApi, management_api

LOOKUPS = "cml.ec2.lookups"


@pytest.fixture
def api() -> Iterator[ManagementApi]:
    """All queues have a replica on each of three nodes."""
    with management_api(dict.fromkeys((*EVERYTHING.queues, PROBES.name), 3)) as api:
        yield api


def settings(url: str, rabbitmq: str = "amqp://h/") -> Settings:
    return Settings(rabbitmq_url=SecretStr(rabbitmq), rabbitmq_management_url=SecretStr(url))


async def test_queues_on_all_nodes_are_fine(api: ManagementApi) -> None:
    seen = await cluster(api.url, "/")
    assert (seen.nodes, seen.short(EVERYTHING.queues)) == (3, {})


@pytest.mark.parametrize(("replicas", "counted"), [(1, 1), (2, 2), (0, 1)], ids=["one", "two", "classic"])
async def test_a_queue_with_fewer_replicas_is_found(api: ManagementApi, replicas: int, counted: int) -> None:
    api.queues[LOOKUPS] = replicas
    assert (await cluster(api.url, "/")).short(EVERYTHING.queues) == {LOOKUPS: counted}


@pytest.mark.parametrize(("idle", "counted"), [(1, {LOOKUPS: 1}), (0, {}), (None, {})])
async def test_a_replica_that_does_not_work_is_found(
    api: ManagementApi, idle: int | None, counted: dict[str, int]
) -> None:
    api.idle[LOOKUPS] = idle
    seen = await cluster(api.url, "/")
    assert seen.idle([*EVERYTHING.queues, "gone"]) == counted
    assert seen.short(EVERYTHING.queues) == {}
    said = f"replicas that do not work: {LOOKUPS} 1" if counted else None
    assert described(seen, EVERYTHING.queues) == said


async def test_a_partition_is_found(api: ManagementApi) -> None:
    assert described(await cluster(api.url, "/"), EVERYTHING.queues) is None
    one, two, _ = NODES
    api.partitions = {one: [two]}
    said = described(await cluster(api.url, "/"), EVERYTHING.queues)
    assert said == f"nodes that are partitioned from others: {one}"


async def test_a_queue_that_is_not_there_has_none(api: ManagementApi) -> None:
    assert (await cluster(api.url, "/")).short(["gone"]) == {"gone": 0}


@pytest.mark.parametrize(
    ("wrong", "vhost", "said"),
    [
        ({"password": "wrong"}, "/", "user or password is wrong"),
        ({"status": 401}, "/", "has not the tag monitoring"),
        ({"status": 503}, "/", "it answers 503"),
        ({"status": 302}, "/", "it answers 302"),
        ({}, "other", "there is no virtual host 'other'"),
        ({"port": "1"}, "/", "no management API of RabbitMQ at http://cml-monitor:***@127.0.0.1:1/"),
        ({"port": "x"}, "/", "no management API"),
    ],
)
async def test_what_cannot_be_seen_says_why_without_the_password(
    api: ManagementApi, wrong: dict[str, Any], vhost: str, said: str
) -> None:
    url = api.url
    api.status = wrong.get("status", 200)
    if "password" in wrong:
        url = url.replace(PASSWORD, wrong["password"])
    if "port" in wrong:
        url = f"http://cml-monitor:{PASSWORD}@127.0.0.1:{wrong['port']}/"
    with pytest.raises(ManagementError) as error:
        await cluster(url, vhost)
    assert said in str(error.value)
    assert PASSWORD not in str(error.value)
    assert not [path for path in api.asked if "elsewhere" in path]


async def test_readiness_says_it_for_as_long_as_it_is_so_and_stays_ready(
    api: ManagementApi,
) -> None:
    api.queues[LOOKUPS] = 1
    async with replicas_watched(settings(api.url), queues_of([ROLES["ec2-adapter"]], ())) as (watching,):
        (warning,) = watching.warnings
        async with asyncio.timeout(60):
            while warning() is None:
                await asyncio.sleep(0.01)
        ready, content = await report([watching], [])
    assert ready
    assert content["problems"] == {}
    assert content["warnings"] == {"rabbitmq": [f"fewer replicas than the 3 nodes of RabbitMQ: {LOOKUPS} 1"]}


@pytest.mark.parametrize("role", ROLES)
async def test_every_role_looks_at_the_queue_of_its_probes_and_for_partitions(
    api: ManagementApi, role: str
) -> None:
    """The relay, too, which consumes nothing."""
    watch = ReplicaWatch(settings(api.url), queues_of([ROLES[role]], ()))
    await watch.look()
    assert watch.warning() is None
    api.queues[PROBES.name] = 1
    api.partitions = {NODES[0]: [NODES[1]]}
    await watch.look()
    assert watch.warning() == (
        f"fewer replicas than the 3 nodes of RabbitMQ: {PROBES.name} 1; "
        f"nodes that are partitioned from others: {NODES[0]}"
    )


async def test_a_process_that_uses_no_queue_looks_for_partitions(api: ManagementApi) -> None:
    api.partitions = {NODES[0]: [NODES[1]]}
    async with replicas_watched(settings(api.url), ()) as (watching,):
        (warning,) = watching.warnings
        async with asyncio.timeout(60):
            while warning() is None:
                await asyncio.sleep(0.01)


async def test_it_is_logged_once_and_over_when_it_is_over(api: ManagementApi) -> None:
    api.queues[LOOKUPS] = 1
    watch = ReplicaWatch(settings(api.url), [LOOKUPS])
    with capture_logs() as logs:
        await watch.look()
        await watch.look()
        assert watch.warning()
        api.queues[LOOKUPS] = 3
        await watch.look()
        assert watch.warning() is None
        api.status = 503
        await watch.look()
        assert "503" in (watch.warning() or "")
    assert [LOOKUPS in log["cause"] for log in logs] == [True, False]


async def test_the_virtual_host_is_that_of_the_bus(api: ManagementApi) -> None:
    watch = ReplicaWatch(settings(api.url, "amqps://u:p@h:5671/of%2Fours?cafile=x"), [LOOKUPS])
    await watch.look()
    assert "'of/ours'" in (watch.warning() or "")


async def test_where_it_is_not_configured_nothing_is_said() -> None:
    async with replicas_watched(Settings(), [LOOKUPS]) as watching:
        assert watching == ()
