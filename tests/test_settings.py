"""What the environment may say, and what is said about it when it is wrong."""

import os

import pytest

from cml_workers.process import single_role, system
from cml_workers.settings import SettingsError, load_settings
from support.running import CONFIGURING


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(CONFIGURING):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"RABBITMQ_URL": "amqp://127.0.0.1:1/"}, "CML_COMMAND_USERS must say who may send commands"),
        ({"CML_DELEGATE_USERS": '["portal"]'}, "CML_DELEGATE_USERS needs CML_ACTOR_TOKEN_KEYS"),
    ],
)
async def test_who_may_command_is_asked_of_roles_and_of_no_client(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], said: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    loaded = load_settings()
    with pytest.raises(SettingsError, match=f"^{said}"):
        async with single_role("lifecycle", loaded):
            pass
    with pytest.raises(SettingsError, match=f"^{said}"):
        async with system(loaded):
            pass
