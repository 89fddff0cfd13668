"""Which RabbitMQ the tests run on, and the script that makes others."""

import subprocess
from pathlib import Path

import pytest
from yarl import URL

from support.rabbitmq import SERVER, installed, version

SCRIPT = Path(__file__).parent / "support/debian-rabbitmq"


def test_a_server_that_is_named_comes_before_the_machines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVER, "/made/bin/rabbitmq-server")
    assert installed() == Path("/made/bin/rabbitmq-server")


@pytest.mark.parametrize("asked", [[], ["3.13"]])
def test_only_versions_that_debian_has_can_be_made(asked: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [SCRIPT, *asked], env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "4.0|4.3" in done.stderr
    assert not any(tmp_path.iterdir())


def test_one_that_was_made_is_not_made_again(tmp_path: Path) -> None:
    commands = tmp_path / "cml-workers/rabbitmq-4.3/bin"
    commands.mkdir(parents=True)
    (commands / "rabbitmq-server").touch()
    done = subprocess.run(
        [SCRIPT, "4.3"], env={"XDG_CACHE_HOME": str(tmp_path)}, capture_output=True, check=True
    )
    assert Path(done.stdout.decode().strip()) == commands


def test_a_server_says_what_it_is(rabbitmq_url: str) -> None:
    url = URL(rabbitmq_url)
    assert url.host is not None
    assert url.port is not None
    assert version(url.host, url.port).startswith("RabbitMQ ")
