"""A setting that holds a secret is reported without it when it is wrong, and shown without it when it is right."""

import json
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cml_tools.definitions import definitions
from cml_workers.runtime.settings import Settings
from support.canaries import Canaries
from support.certificates import Certificates
from support.ports import free_port
from support.postgresql import private_postgresql
from support.rabbitmq import private_rabbitmq
from support.running import COMMAND, RunningSystem, unconfigured
from support.secret_parts import everything_to

URLS = {
    "RABBITMQ_URL": ("amqp://me:{secret}@127.0.0.1:{rabbitmq}/", "amqp:/me:{secret}@127.0.0.1", "{secret}"),
    "RABBITMQ_MANAGEMENT_URL": ("http:/me:{secret}@127.0.0.1", "{secret}"),
    "KURRENTDB_URI": (
        "esdb://me:{secret}@127.0.0.1:{nothing}?TlsCaFile={authority}",
        "esdb://me:{secret}@127.0.0.1?TlsCaFile=/none.pem",
        "esdb:/me:{secret}@127.0.0.1",
        "{secret}",
    ),
    "DATABASE_URL": (
        "postgresql://cml:{secret}@127.0.0.1:{postgresql}/postgres",
        "postgresql://cml:{secret}@127.0.0.1:{nothing}/postgres",
        "postgresql://cml:{secret}@127.0.0.1:port/postgres",
        "postgresql:/cml:{secret}@127.0.0.1",
        "{secret}",
    ),
    "OTEL_EXPORTER_OTLP_HEADERS": ("{secret}", "authorization=Bearer {secret}", "authorization"),
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": ("authorization: {secret}",),
    "CML_REDRIVE_KEYS": ("{secret}", '["{secret}"]', '{"lifecycle": "{short}"}'),
    "CML_ACTOR_TOKEN_KEYS": ("{secret}", '["{secret}"', '["{short}"]', '[["{secret}"]]'),
}
"""Settings that hold a secret, each wrong in its own way."""


def test_these_are_all_the_settings_that_hold_secrets():
    secret = {
        field.validation_alias or f"CML_{name.upper()}"
        for name, field in Settings.model_fields.items()
        if "SecretStr" in repr(field.annotation)
    }
    assert URLS.keys() == secret


@pytest.fixture(scope="module")
def ports(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with (
        private_rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as rabbitmq,
        private_postgresql(password="another") as postgresql,
    ):
        yield {
            "rabbitmq": str(rabbitmq.port),
            "postgresql": str(postgresql.port),
            "nothing": str(free_port()),
            "authority": str(certificates.authority),
            "RABBITMQ_URL": rabbitmq.url,
        }


@pytest.mark.parametrize(
    ("setting", "value"), [(setting, value) for setting, values in URLS.items() for value in values]
)
def test_a_wrong_setting_is_reported_without_its_secret(
    ports: dict[str, str], tmp_path: Path, setting: str, value: str
):
    secrets = Canaries()
    short = secrets["a key that is too short"][:31]
    secrets.plant("a key that is too short", short)
    wrong = value
    for name, text in {**ports, "secret": secrets[setting], "short": short}.items():
        wrong = wrong.replace(f"{{{name}}}", text)
    out, said = tmp_path / "stdout", tmp_path / "stderr"
    with out.open("wb") as stdout, said.open("wb") as stderr:
        process = subprocess.Popen(
            [COMMAND, "role", "projector"],
            env={
                **unconfigured(),
                "RABBITMQ_URL": ports["RABBITMQ_URL"],
                "CML_AUTHORIZE": "false",
                "CML_LOG_LEVEL": "debug",
                "CML_LIBRARY_LOG_LEVEL": "debug",
                "CML_DATA_DIR": str(tmp_path / "data"),
                setting: wrong,
            },
            stdout=stdout,
            stderr=stderr,
        )
    if "{nothing}" in value:  # it waits for what may come
        end = time.monotonic() + 60
        while b"outage begins" not in said.read_bytes() and time.monotonic() < end:
            time.sleep(0.1)
        process.terminate()
    code = process.wait(timeout=60)
    lines = said.read_bytes()
    assert code in ((0,) if "{nothing}" in value else (2, 3)), lines
    assert setting.encode() in lines or b"RabbitMQ" in lines or b"KurrentDB" in lines
    assert secrets.found({"stdout": out.read_bytes(), "stderr": lines}) == []


def test_what_a_running_system_prints_has_no_password_and_what_it_writes_is_for_its_owner(tmp_path: Path):
    secrets = Canaries()
    users = json.dumps(definitions({"cml-client": secrets["a password"]}))
    with private_rabbitmq(tmp_path / "rabbitmq", everything_to("cml-client", users)) as rabbitmq:
        url = f"amqp://cml-client:{secrets['a password']}@127.0.0.1:{rabbitmq.port}/"
        running = RunningSystem(
            tmp_path / "data", RABBITMQ_URL=url, CML_LOG_LEVEL="debug", CML_LIBRARY_LOG_LEVEL="debug"
        )
        try:
            running.start()
            endpoints = running.data_dir / "endpoints.json"
            assert stat.S_IMODE(endpoints.stat().st_mode) == 0o600
            assert f"127.0.0.1:{rabbitmq.port}" in running.printed()
            assert secrets.found({"stdout": running.printed(), "stderr": running.log()}) == []
        finally:
            running.kill()
