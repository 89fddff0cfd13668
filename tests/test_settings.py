"""What the environment may say, and what is said about it when it is wrong."""

import json
import os
from pathlib import Path

import pytest

from cml_contracts.broker import EXAMPLE
from cml_workers.process.system import single_role, system
from cml_workers.runtime.settings import Settings, SettingsError, load_settings, variable
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
        ("CML_COMMAND_USERS", '["portal"]', "CML_COMMAND_USERS: Input should be a valid dictionary"),
        ("CML_DEFAULT_TAGS", "a=1", 'CML_DEFAULT_TAGS: must be JSON, e.g. {"name": "value"}'),
        ("CML_ACTOR_TOKEN_KEYS", "secret", 'CML_ACTOR_TOKEN_KEYS: must be JSON, e.g. ["one", "another"]'),
        ("CML_OPERATOR_USERS", "[" * 100_000, 'CML_OPERATOR_USERS: must be JSON, e.g. ["one", "another"]'),
        ("CML_WORKER_KEY_NAME", "{", None),
        (
            "RABBITMQ_URL",
            "amqp://one,",
            f"RABBITMQ_URL has no valid host at place 2: {EXAMPLE}; in a password, @ / ? and # must be percent-encoded",
        ),
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
    monkeypatch.setenv("CML_WORKER_SECURITY_GROUP_IDS", '["sg-11111111", "sg-22222222"]')
    loaded = load_settings()
    assert loaded.command_users == {"portal": frozenset({"*"})}
    assert loaded.worker_security_group_ids == ("sg-11111111", "sg-22222222")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CML_DEFAULT_TAGS", '{"AWS:x": "1"}', "tag key 'AWS:x' begins with a reserved prefix"),
        ("CML_DEFAULT_TAGS", '{"": "1"}', "tag key '' has 0 characters"),
        ("CML_DEFAULT_TAGS", json.dumps({"a": "x" * 300}), "the value of tag 'a' has 300 characters"),
        ("CML_DEFAULT_TAGS", json.dumps({str(each): "" for each in range(60)}), "60 tags"),
        ("CML_ALLOWED_REGIONS", '["everywhere"]', "must be an AWS region, such as us-east-1"),
        ("CML_ALLOWED_INSTANCE_TYPES", '["big"]', "must be an EC2 instance type, such as c5.2xlarge"),
        ("CML_DEFAULT_INSTANCE_TYPE", "big", "must be an EC2 instance type"),
        ("CML_WORKER_AMI_IDS", '{"us-east-1": "cml-2.7"}', "must be the id of an image"),
        ("CML_WORKER_AMI_IDS", '{"here": "ami-11111111"}', "must be an AWS region"),
        ("CML_WORKER_AMI_NAMES", '{"us-east-1": ""}', "String should have at least 1 character"),
        ("CML_WORKER_SECURITY_GROUP_IDS", '["default"]', "must be the id of a security group"),
        ("CML_WORKER_SUBNET_ID", "{", "must be the id of a subnet"),
        (
            "CML_COMMAND_USERS",
            '{"portal": ["cml.worker.strat.v1"]}',
            "'cml.worker.strat.v1' is no command; did you mean cml.worker.start.v1?",
        ),
    ],
)
def test_settings_are_held_to_the_rules_of_callers(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    """Whoever launches with them would get an instance that no command could have asked for, or none."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    (line,) = str(raised.value).splitlines()
    assert line.startswith(name)
    assert said in line


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("CML_ALOWED_REGIONS", "did you mean CML_ALLOWED_REGIONS?"),
        ("cml_prefetsh", "did you mean CML_PREFETCH?"),
        ("CML_RABBITMQ_URL", "there is no such setting"),
        ("CML_ZZZZZZZZ", "see docs/configuration.md"),
    ],
)
def test_a_misspelt_variable_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    """It would be ignored without a word, and a launch in a forbidden region would go through."""
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CML_PREFETCH", "many")
    with pytest.raises(SettingsError) as raised:
        load_settings()
    ours, other = str(raised.value).splitlines()
    assert ours.startswith(f"{name}: there is no such setting")
    assert said in ours
    assert other.startswith("CML_PREFETCH: ")


@pytest.mark.parametrize(
    "name",
    [
        "CML_LIFECYCLE_PASSWORD",
        "CML_WORKERS_IMAGE",
        "CML_LIFECYCLE_SERVICE_HOST",
        "CML_LIFECYCLE_SERVICE_PORT_HTTP",
        "CML_EC2_PORT_8080_TCP_ADDR",
    ],
)
def test_variables_of_the_deployment_and_of_kubernetes_are_none_of_ours(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "x")
    load_settings()


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """As compose files and Kubernetes pass what nobody has set."""
    for name in Settings.model_fields:
        monkeypatch.setenv(variable(name), "")
    loaded = load_settings()
    assert loaded == Settings()
    assert loaded.data_dir == Path(".cml-workers")


def test_a_default_that_no_command_may_ask_for_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CML_ALLOWED_INSTANCE_TYPES", '["m5.large"]')
    with pytest.raises(SettingsError, match=r"^CML_DEFAULT_INSTANCE_TYPE: .* is not among"):
        load_settings()
    monkeypatch.setenv("CML_DEFAULT_INSTANCE_TYPE", "m5.large")
    load_settings()


@pytest.mark.parametrize(
    ("settings", "tags"),
    [
        ({}, {}),
        ({"CML_AUTHORIZE": "true"}, None),
        ({"RABBITMQ_URL": "amqp://there/"}, None),
        ({"CML_AUTHORIZE": "true", "CML_IMPORT_TAGS": '{"pool": "cml"}'}, {"pool": "cml"}),
        ({"CML_AUTHORIZE": "true", "CML_IMPORT_TAGS": "{}"}, {}),
    ],
)
def test_imports_are_off_in_production_unless_tags_are_named(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], tags: dict[str, str] | None
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert load_settings().policy.import_tags == tags
