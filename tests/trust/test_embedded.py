"""The embedded parts, as somebody else on the machine, or a web page in a browser there, finds them."""

import asyncio
import json
import os
import socket
import stat
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import pytest
from aiormq.exceptions import AMQPConnectionError

from cml_embedded.amqp_broker import AmqpBroker
from cml_embedded.ec2_simulator import Ec2Simulator
from cml_workers.runtime.settings import Settings, SettingsError
from support.running import RunningSystem

SIGNED = "AWS4-HMAC-SHA256 Credential=me/20260101/us-east-1/{}/aws4_request, SignedHeaders=host, Signature=0"
FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def simulator() -> Iterator[str]:
    with Ec2Simulator(hosts=["ec2"]) as running:
        yield running.url


def ask(
    url: str,
    method: str = "POST",
    path: str = "/",
    body: str = "",
    service: str | None = "ec2",
    **headers: str,
) -> tuple[int, str]:
    """Status and content of the answer; ``service``: for which the request is signed."""
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=30)
    signature = {"Authorization": SIGNED.format(service)} if service else {}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"Content-Type": FORM, **signature, **named})
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer.status, content


DESCRIBE = "Action=DescribeInstances&Version=2016-11-15"


def test_the_simulator_answers_to_its_own_names(simulator: str):
    port = urlsplit(simulator).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", "ec2:5000", "10.0.0.7"):
        assert ask(simulator, body=DESCRIBE, Host=host)[0] == 200, host
        assert ask(simulator, "GET", "/simulator/faults", Host=host)[0] == 200, host


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "attacker.example:80"},  # whose name leads to 127.0.0.1 by now
        {"Host": "127.0.0.1.attacker.example"},
        {"Host": ""},
        {"Origin": "https://attacker.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-origin"},
    ],
)
def test_no_web_page_reaches_the_simulator(simulator: str, headers: dict[str, str]):
    assert ask(simulator, body=DESCRIBE, **headers)[0] == 403
    for method in ("GET", "POST", "DELETE"):
        assert ask(simulator, method, "/simulator/faults", json.dumps({}), **headers)[0] == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/moto-api/reset"),
        ("GET", "/moto-api/"),
        ("GET", "/moto-api/data.json"),
        ("GET", "/?Action=DescribeInstances&Version=2016-11-15"),
        ("PUT", "/bucket"),
        ("GET", "/bucket/key"),
        ("POST", "/2015-03-31/functions"),
        ("GET", "/simulator-of-others"),
    ],
)
def test_nothing_of_moto_is_served_but_ec2(simulator: str, method: str, path: str):
    for service in ("ec2", "s3", "lambda", None):
        status, content = ask(simulator, method, path, service=service)
        assert status in (403, 404), content


@pytest.mark.parametrize("service", ["s3", "sts", "iam", "sqs", None])
def test_a_request_for_another_service_is_not_answered(simulator: str, service: str | None):
    for body in (
        "Action=GetCallerIdentity&Version=2011-06-15",
        "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn=a&RoleSessionName=b&WebIdentityToken=c",
        "Action=CreateUser&UserName=mallory&Version=2010-05-08",
    ):
        assert ask(simulator, body=body, service=service)[0] == 403
    disguised = f"{SIGNED.format('iam')} Credential=me/1/us-east-1/ec2/aws4_request,"
    assert ask(simulator, body="Action=ListUsers&Version=2010-05-08", Authorization=disguised)[0] == 403


async def test_no_other_machine_reaches_the_embedded_parts(simulator: str):
    """What listens on 127.0.0.1 alone does not even answer on another address of this machine."""
    async with AmqpBroker(password="right") as broker:
        for url in (simulator, broker.url):
            port = urlsplit(url).port or 0
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", port), timeout=10).close()


async def test_the_embedded_broker_lets_in_who_knows_its_password():
    async with AmqpBroker(password="right") as broker:
        async with await aio_pika.connect(broker.url):
            pass
        for wrong in ("guest", "", "rightt", "righ"):
            with pytest.raises(AMQPConnectionError):
                await aio_pika.connect(broker.url.replace(":right@", f":{wrong}@"))
        mechanism = broker.url.replace("/", "/", 1) + "?auth=amqplain"
        with pytest.raises(Exception):  # noqa: B017, PT011 - the library refuses it, or the broker does
            await aio_pika.connect(mechanism)


def modes(folder: Path) -> dict[str, str]:
    """Of all in it that others than the owner may read."""
    found = [folder, *folder.rglob("*")]
    return {
        str(path.relative_to(folder.parent)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in found
        if path.stat().st_mode & 0o077
    }


@pytest.mark.parametrize("left", ["nothing", "what an earlier version left"])
def test_a_system_on_embedded_parts_is_its_owners_alone(tmp_path: Path, left: str):
    mask = os.umask(0)
    try:
        running = RunningSystem(tmp_path / "data")
        for again in range(2 if left != "nothing" else 1):
            endpoints = running.start()
            assert running.cli("create", "lab-1", "--type", "m5.large").returncode == 0 or again
            assert modes(running.data_dir) == {}
            url = urlsplit(endpoints["amqp"])
            assert url.password not in (None, "", "guest")
            assert url.password not in running.printed() + running.log()
            with pytest.raises(AMQPConnectionError):
                asyncio.run(connected(f"amqp://guest:guest@127.0.0.1:{url.port}/"))
            running.kill()
            for path in (running.data_dir, *running.data_dir.rglob("*")):
                path.chmod(0o777 if path.is_dir() else 0o666)
    finally:
        running.kill()
        os.umask(mask)


async def connected(url: str) -> None:
    async with await aio_pika.connect(url):
        pass


def test_a_folder_with_other_things_is_not_narrowed(tmp_path: Path):
    folder = tmp_path / "home"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "letters.txt").touch()
    running = RunningSystem(folder)
    try:
        running.start()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755
        assert {name for name in modes(folder) if "sqlite" in name or "endpoints" in name} == set()
        assert stat.S_IMODE((folder / "amqp-password").stat().st_mode) == 0o600
    finally:
        running.kill()


def test_real_instances_are_not_commanded_through_the_embedded_broker_by_mistake():
    with pytest.raises(SettingsError, match="CML_AWS=true needs RABBITMQ_URL") as said:
        Settings(aws=True).check_roles()
    assert "CML_AUTHORIZE=false" in str(said.value)
    Settings(aws=True, authorize=False).check_roles()
    Settings().check_roles()
