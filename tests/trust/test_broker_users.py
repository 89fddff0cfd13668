"""``cml-workers broker-user``: one list, from which rights and settings follow."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cml_contracts.commands import COMMANDS, StartCMLWorker, UpdateCMLWorkerTags
from cml_workers.bus.topology import LIFECYCLE_COMMANDS, PROJECTOR_QUERIES, counts_as
from cml_workers.bus.usage import Usage
from cml_workers.bus.users import read_users, settings_of
from cml_workers.cli.app import app


@pytest.fixture
def users(tmp_path: Path) -> Path:
    return tmp_path / "list"


def broker_user(users: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["broker-user", *arguments, "--list", str(users)])


def test_a_service_that_does_both_gets_two_users_whose_passwords_are_shown_once(users: Path):
    added = broker_user(users, "add", "portal", "--may", "start,update-tags", "--delegate", "--subscribe")
    assert added.exit_code == 0
    listed = read_users(users.read_bytes())
    assert {name: user.subscribe for name, user in listed.items()} == {"portal": False, "portal-events": True}
    assert listed["portal"].may == [StartCMLWorker.TYPE, UpdateCMLWorkerTags.TYPE]
    shown = [line.split()[1] for line in added.output.splitlines() if line.strip().startswith("password:")]
    for password, user in zip(shown, listed.values(), strict=True):
        salted = base64.b64decode(user.password_hash or "")
        assert salted[4:] == hashlib.sha256(salted[:4] + password.encode()).digest()
        assert password not in users.read_text()
    assert users.stat().st_mode & 0o077 == 0
    again = broker_user(users, "list").output
    assert "portal-events: gets events" in again
    assert not any(password in again for password in shown)


def test_passwords_may_go_to_a_file_for_its_owner_alone(users: Path, tmp_path: Path):
    passwords = tmp_path / "passwords"
    passwords.write_text("OTHER_PASSWORD=x\n")
    passwords.chmod(0o644)
    done = broker_user(users, "add", "lab-portal", "--subscribe", "--passwords", str(passwords))
    other, own = passwords.read_text().splitlines()
    assert other == "OTHER_PASSWORD=x"
    assert own.startswith("LAB_PORTAL_PASSWORD=")
    assert own.partition("=")[2] not in done.output
    assert passwords.stat().st_mode & 0o077 == 0


def test_rights_and_settings_follow_from_the_list(users: Path):
    for arguments in (
        ("a", "--may", "start", "--delegate"),
        ("b", "--may", "*"),
        ("c", "--operate"),
        ("d", "--subscribe"),
        ("e",),
    ):
        assert broker_user(users, "add", *arguments).exit_code == 0
    lines = broker_user(users, "settings").output.splitlines()
    settings = {name: json.loads(value.strip("'")) for name, value in (line.split("=", 1) for line in lines)}
    assert settings == {
        "CML_COMMAND_USERS": {"a": [StartCMLWorker.TYPE], "b": ["*"]},
        "CML_DELEGATE_USERS": ["a"],
        "CML_OPERATOR_USERS": ["c"],
        "CML_SENDERS": ["a", "b", "c", "e"],
    }
    definitions = json.loads(broker_user(users, "definitions").output)
    assert [user["name"] for user in definitions["users"]] == ["a", "b", "c", "d", "e"]
    assert all(user["password_hash"] for user in definitions["users"])
    writes = {each["user"]: each["write"] for each in definitions["permissions"]}
    assert writes["a"] == r"^(cml\.queries\.a|cml\.commands\.a)$"
    assert [name for name, write in writes.items() if r"cml\.commands" in write] == ["a", "b"]
    assert [name for name, write in writes.items() if r"cml\.operator" in write] == ["c"]
    (topic,) = definitions["topic_permissions"]
    assert (topic["user"], topic["exchange"]) == ("a", "cml.commands.a")
    bound = {each["destination"]: each["source"] for each in definitions["bindings"]}
    assert {each["name"] for each in definitions["queues"]} == bound.keys()
    assert bound == {
        f"{queue}.{name}": f"{exchange}.{name}"
        for queue, exchange in (
            ("cml.lifecycle.commands", "cml.commands"),
            ("cml.projector.queries.v2", "cml.queries"),
        )
        for name in ("a", "b", "c", "e")
    }
    assert {each["name"] for each in definitions["exchanges"]} == set(bound.values())


def test_who_was_in_the_list_before_and_who_is_added_with_shared_may_publish_by_both_ways(users: Path):
    users.write_text('{"earlier": {"may": ["cml.worker.start.v1"]}}')
    assert broker_user(users, "add", "portal", "--may", "start", "--shared").exit_code == 0
    assert broker_user(users, "password", "earlier").exit_code == 0
    definitions = json.loads(broker_user(users, "definitions").output)
    for each in definitions["permissions"]:
        for exchange in ("commands", "queries"):
            for own in (f"cml.{exchange}.{each['user']}", f"cml.{exchange}"):
                assert re.match(each["write"], own), (each, own)
    limited = [(each["user"], each["exchange"]) for each in definitions["topic_permissions"]]
    assert limited == [
        ("earlier", "cml.commands.earlier"),
        ("earlier", "cml.commands"),
        ("portal", "cml.commands.portal"),
        ("portal", "cml.commands"),
    ]


def test_a_user_that_is_removed_or_has_no_password_is_not_imported(users: Path):
    users.write_text('{"a": {"may": ["*"]}, "b": {"subscribe": true}}')
    assert "no password" in broker_user(users, "list").output
    assert json.loads(broker_user(users, "definitions").output)["users"] == []
    assert broker_user(users, "password").exit_code == 0
    before = read_users(users.read_bytes())
    assert broker_user(users, "password", "a").exit_code == 0
    after = read_users(users.read_bytes())
    assert (before["a"] == after["a"], before["b"] == after["b"]) == (False, True)
    assert "rabbitmqctl delete_user a" in broker_user(users, "remove", "a").output
    assert read_users(users.read_bytes()).keys() == {"b"}


def test_who_is_removed_leaves_in_an_order_in_which_nothing_is_lost_and_no_role_ends(users: Path):
    assert broker_user(users, "add", "portal", "--may", "start", "--subscribe").exit_code == 0
    assert broker_user(users, "remove", "portal-events").output.splitlines()[1:] == [
        "  rabbitmqctl delete_user portal-events"
    ]
    assert broker_user(users, "remove", "portal").output.splitlines()[1:] == [
        "  rabbitmqctl delete_user portal",
        "  wait until cml.lifecycle.commands.portal and cml.projector.queries.v2.portal are empty",
        "  set what `settings` prints, and restart lifecycle and projector",
        "  rabbitmqctl delete_queue cml.lifecycle.commands.portal",
        "  rabbitmqctl delete_queue cml.projector.queries.v2.portal",
        "  delete the exchanges cml.commands.portal and cml.queries.portal",
    ]


def test_whose_queues_the_roles_read_has_queues_also_without_a_password(users: Path):
    users.write_text('{"earlier": {"may": ["*"]}}')
    assert broker_user(users, "add", "portal", "--may", "start", "--subscribe").exit_code == 0
    read = settings_of(read_users(users.read_bytes()))["CML_SENDERS"]
    definitions = json.loads(broker_user(users, "definitions").output)
    assert [each["name"] for each in definitions["users"]] == ["portal", "portal-events"]
    wanted = Usage((LIFECYCLE_COMMANDS, PROJECTOR_QUERIES)).with_own(json.loads(read)).queues
    made = {each["name"] for each in definitions["queues"]}
    assert made == {name for name in wanted if counts_as(name) not in (name, None)}
    assert len(made) == 4


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("add", "a.b"), "cannot be a name"),
        (("add", "cml-lifecycle"), "none of our own"),
        (("add", "cml-monitor"), "none of our own"),
        (("add", "a", "--may", "strat"), "'strat' is no command; did you mean start?"),
        (("add", "a", "--delegate"), "a delegate must be allowed to send some command"),
        (("add", "there"), "there is a user there already"),
        (("remove", "nobody"), "there is no user nobody"),
        (("password", "nobody"), "there is no user nobody"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(users: Path, arguments: tuple[str, ...], why: str):
    assert broker_user(users, "add", "there").exit_code == 0
    before = users.read_bytes()
    done = broker_user(users, *arguments)
    assert done.exit_code != 0
    assert why in done.output
    assert users.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": {"may": ["*"], "subscribe": true}}', "make two users"),
        ('{"a": {"may": ["cml.worker.strat.v1"]}}', "is no command"),
        ('{"a.b": {}}', "is no name"),
        ('{"a": {"sees": "all"}}', "sees"),
        ("{", "Invalid JSON"),
    ],
)
def test_a_list_that_was_edited_wrongly_says_what_is_wrong(users: Path, text: str, why: str):
    users.write_text(text)
    done = broker_user(users, "definitions")
    assert done.exit_code == 2
    assert why in done.output


def test_every_command_has_a_short_name(users: Path):
    names = broker_user(users, "add", "--help").output
    for kind in COMMANDS:
        assert kind.split(".")[2] in names
