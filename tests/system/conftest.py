"""The whole system on each broker: the one it embeds, and a real RabbitMQ."""

import pytest


@pytest.fixture(scope="module", params=["embedded", "rabbitmq"])
def amqp_broker(request: pytest.FixtureRequest) -> tuple[str, str | None]:
    """The broker's name, and its URL unless the system embeds it."""
    return request.param, None if request.param == "embedded" else request.getfixturevalue("rabbitmq_url")


@pytest.fixture(autouse=True)
def simulator_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator takes any."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "simulator")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "simulator")
