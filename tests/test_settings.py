"""What the environment may say, and what is said about it when it is wrong."""

import os

import pytest

from cml_workers.process.system import single_role, system
from cml_workers.runtime.settings import SettingsError, load_settings
from support.running import unconfigured


@pytest.fixture(autouse=True)
def nothing_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ.keys() - unconfigured().keys():
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


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CML_COMMAND_USERS", "foo", 'CML_COMMAND_USERS: must be JSON, e.g. {"portal": ["*"]}'),
        ("CML_COMMAND_USERS", "", 'CML_COMMAND_USERS: must be JSON, e.g. {"portal": ["*"]}'),
        ("CML_COMMAND_USERS", '["portal"]', "CML_COMMAND_USERS: Input should be a valid dictionary"),
        ("CML_DEFAULT_TAGS", "a=1", 'CML_DEFAULT_TAGS: must be JSON, e.g. {"name": "value"}'),
        ("CML_ACTOR_TOKEN_KEYS", "secret", 'CML_ACTOR_TOKEN_KEYS: must be JSON, e.g. ["one", "another"]'),
        ("CML_OPERATOR_USERS", "[" * 100_000, 'CML_OPERATOR_USERS: must be JSON, e.g. ["one", "another"]'),
        ("CML_WORKER_SUBNET_ID", "{", None),
        ("RABBITMQ_URL", "amqp://", "RABBITMQ_URL names no host: amqps://user:password@host:5671/"),
        ("RABBITMQ_URL", "http://nonsense", "RABBITMQ_URL must begin with amqp:// or amqps://"),
        ("CML_PREFETCH", "0", "CML_PREFETCH: Input should be greater than or equal to 1"),
    ],
)
def test_what_is_wrong_is_said_of_the_variable_it_is_in(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str | None
) -> None:
    monkeypatch.setenv(name, value)
    if said is None:
        load_settings()
        return
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert str(raised.value) == said


def test_every_variable_that_is_wrong_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CML_ALLOWED_REGIONS", "us-east-1")
    monkeypatch.setenv("CML_PREFETCH", "many")
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert [line.partition(":")[0] for line in str(raised.value).splitlines()] == [
        "CML_ALLOWED_REGIONS",
        "CML_PREFETCH",
    ]


def test_several_values_are_read_from_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CML_COMMAND_USERS", '{"portal": ["*"]}')
    monkeypatch.setenv("CML_WORKER_SECURITY_GROUP_IDS", '["sg-1", "sg-2"]')
    loaded = load_settings()
    assert loaded.command_users == {"portal": frozenset({"*"})}
    assert loaded.worker_security_group_ids == ("sg-1", "sg-2")
