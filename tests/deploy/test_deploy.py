"""What is deployed is what the settings, the topology and the adapter say."""

import base64
import json
import re
import ssl
import subprocess
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any, ClassVar
from uuid import uuid4

import pytest
import yaml

from cml_tools.roles import secrets
from cml_workers.bus.users import read_users, settings_of
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.quarantine import QUARANTINE_STREAMS, RELAY, WORKERS, of_read_model
from cml_workers.eventstore.relay_stream import KEEP, RELAY_STREAM, begin_if_new
from cml_workers.lifecycle import denials
from cml_workers.lifecycle.denials import DENIALS_STREAM
from cml_workers.process.registry import ROLES
from cml_workers.readmodels.registry import READ_MODELS
from cml_workers.runtime.health import PORT
from cml_workers.runtime.role import Part, Replicas
from cml_workers.runtime.settings import OF_OTHERS, Settings, variable
from support.kurrentdb_standin import KurrentDbStandIn
from support.listed_calls import listed, listed_of_doctor
from support.secured import COMPOSE, ROOT, SECURED, made_secrets

PARTS = {Part.BUS: "rabbitmq", Part.STORE: "kurrentdb", Part.DATABASE: "postgresql", Part.EC2: "ec2"}
"""What each is in compose."""
ONCE = ("restrict", "migrate", "rights")
"""What prepares the servers of the secured stack, and ends."""
VARIABLES = {variable(name) for name in Settings.model_fields}
OF_THE_PLATFORM = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "USER"}
MANIFESTS: list[dict[str, Any]] = [
    manifest
    for path in sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text())
]
GROUPS = {"cml-writers", "cml-readers", "cml-relays", "cml-projectors"}
"""Of the roles' users at the event store."""
POLICY = json.loads((ROOT / "deploy/aws/iam-policy.json").read_text())


def of_kind(kind: str, name: str) -> dict[str, Any]:
    (found,) = (each for each in MANIFESTS if each["kind"] == kind and each["metadata"]["name"] == name)
    return found


def test_in_compose_there_are_the_roles_of_the_registry_and_no_others():
    services = COMPOSE["services"]
    assert {name for name in services if services[name].get("command", [None])[0] == "role"} == set(ROLES)
    assert set(SECURED["services"]) == {*ROLES, *PARTS.values(), "cli", *ONCE} - {"ec2"}


@pytest.mark.parametrize("role", ROLES)
def test_in_compose_every_role_is_a_confined_service_of_its_own(role: str):
    service = COMPOSE["services"][role]
    assert service["command"] == ["role", role]
    assert service["read_only"] is True
    assert service["user"] == "10001:10001"
    assert service["cap_drop"] == ["ALL"]
    assert service["depends_on"].keys() == {PARTS[part] for part in ROLES[role].needs}
    assert {each["condition"] for each in service["depends_on"].values()} == {"service_healthy"}


@pytest.mark.parametrize("compose", [COMPOSE, SECURED], ids=["insecure", "secured"])
def test_compose_sets_what_there_is_to_set(compose: dict[str, Any]):
    for role in (*ROLES, "cli"):
        assert compose["services"][role]["environment"].keys() <= VARIABLES | OF_THE_PLATFORM


def test_what_compose_replaces_is_no_misspelt_setting():
    """Whoever exports it for compose also runs the command line."""
    files = (ROOT / "docker-compose.yml", *(ROOT / "deploy").glob("compose.*.yml"))
    replaced = {name for path in files for name in re.findall(r"\$\{(CML_\w+)", path.read_text())}
    assert replaced
    assert {name for name in replaced - VARIABLES if not OF_OTHERS.fullmatch(name)} == set()


@pytest.mark.parametrize("role", ROLES)
def test_in_the_secured_stack_every_role_has_its_own_user(role: str):
    url = SECURED["services"][role]["environment"]["RABBITMQ_URL"]
    user = ROLES[role].user
    assert f"://{user}:${{{user.upper().replace('-', '_')}_PASSWORD:?" in url


BY_PART = {
    "RABBITMQ_URL": {
        role: f"{each.user}:{each.user.upper().replace('-', '_')}_PASSWORD" for role, each in ROLES.items()
    },
    "KURRENTDB_URI": {
        "lifecycle": "cml-writer:CML_WRITER_PASSWORD",
        "relay": "cml-relay:CML_RELAY_STORE_PASSWORD",
        "projector": "cml-projector:CML_PROJECTOR_STORE_PASSWORD",
        "ec2-adapter": "cml-reader:CML_READER_PASSWORD",
    },
    "DATABASE_URL": {"projector": "cml_projector:CML_PROJECTOR_DATABASE_PASSWORD"},
}
"""Who a role is at each part in the secured stack, and its password there."""


@pytest.mark.parametrize("role", ROLES)
def test_in_the_secured_stack_a_role_gets_its_own_passwords_and_no_others(role: str):
    service = {**COMPOSE["services"][role]["environment"], **SECURED["services"][role]["environment"]}
    own = {setting: users[role] for setting, users in BY_PART.items() if role in users}
    assert {setting for setting in BY_PART if setting in service} == own.keys()
    for setting, user in own.items():
        name, _, password = user.partition(":")
        assert f"://{name}:${{{password}:?run deploy/secure first}}@" in service[setting]
    replaced = set(re.findall(r"\$\{(\w+):\?", json.dumps(service)))
    assert {name for name in replaced if name.endswith("_PASSWORD")} == {
        user.partition(":")[2] for user in own.values()
    }


def test_in_the_secured_stack_no_service_that_goes_on_has_an_administrators_password():
    of_administrators = {"KURRENTDB_PASSWORD", "POSTGRES_PASSWORD", "CML_MIGRATOR_PASSWORD"}
    for name, service in SECURED["services"].items():
        if name not in (*ONCE, "kurrentdb", "postgresql"):
            assert not of_administrators & set(re.findall(r"\w+_PASSWORD", json.dumps(service))), name
    for name in ONCE:
        assert SECURED["services"][name]["restart"] == "no"
        assert [
            each
            for each in SECURED["services"].values()
            if each.get("depends_on", {}).get(name) == {"condition": "service_completed_successfully"}
        ], "`up --wait` takes its end for a failure where nobody depends on it"


def test_nothing_of_the_stack_is_open_to_the_network():
    for stack in (COMPOSE, SECURED):
        for service in stack["services"].values():
            assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_the_secured_stack_has_no_password_of_its_own_and_no_plain_connection():
    text = (ROOT / "deploy/compose.secured.yml").read_text()
    for url in re.findall(r"(?:amqp|amqps|esdb|postgresql)://\S+", text):
        assert re.search(r":\$\{\w+:\?run deploy/secure first\}@", url.replace(" ", " ")) or ":?run" in url
        assert url.startswith("amqps") or "TlsCaFile" in text
    assert "guest" not in text
    assert "tls=false" not in text
    assert "sslmode=verify-full" in text


@pytest.mark.parametrize("role", ROLES)
def test_in_kubernetes_every_role_has_probes_limits_and_a_budget(role: str):
    deployment = of_kind("Deployment", role)
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == ["role", role]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    for probe in ("startupProbe", "livenessProbe"):  # who waits for a part is alive, also while it starts
        assert container[probe]["httpGet"]["path"] == "/livez"
    assert container["resources"]["limits"].keys() == {"cpu", "memory"}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["serviceAccountName"] == of_kind("ServiceAccount", ROLES[role].user)["metadata"]["name"]
    assert [each["containerPort"] for each in container["ports"]] == [PORT]
    budget = of_kind("PodDisruptionBudget", role)["spec"]
    assert budget["selector"] == deployment["spec"]["selector"]
    from_secret = {each["name"] for each in container["env"] if "valueFrom" in each}
    assert from_secret == set(secrets(ROLES[role]))
    assert {each["name"] for each in container["env"]} - from_secret <= {Part.EC2} & set(ROLES[role].needs)
    for each in container["env"]:
        if "valueFrom" in each:
            secret = each["valueFrom"]["secretKeyRef"]
            assert (secret["name"], secret["key"]) == (ROLES[role].user, each["name"])
            assert secret.get("optional", False) is (each["name"] in ROLES[role].secrets)
    alone = ROLES[role].replicas is Replicas.ONE
    assert (deployment["spec"]["replicas"] == 1) is alone
    assert deployment["spec"]["strategy"]["type"] == ("Recreate" if alone else "RollingUpdate")


def test_in_kubernetes_there_are_the_roles_of_the_registry_and_no_others():
    deployments = {each["metadata"]["name"] for each in MANIFESTS if each["kind"] == "Deployment"}
    assert deployments == set(ROLES)


def test_the_probes_are_where_they_are_asked():
    assert f"CML_HEALTH_PORT={PORT} " in (ROOT / "deploy/Dockerfile").read_text()
    assert of_kind("NetworkPolicy", "roles")["spec"]["ingress"] == [{"ports": [{"port": PORT}]}]


def test_the_settings_of_the_manifests_exist():
    (kustomization,) = (each for each in MANIFESTS if each["kind"] == "Kustomization")
    for literal in kustomization["configMapGenerator"][0]["literals"]:
        assert literal.partition("=")[0] in VARIABLES
    files = {path.name for path in (ROOT / "deploy/kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == files


def test_the_iam_policy_allows_what_the_adapter_calls_and_no_more():
    allowed = set()
    for statement in POLICY["Statement"]:
        assert statement["Effect"] == "Allow"
        # What changes something is bound to our resources or our tags.
        if statement["Sid"] not in ("See", "Doctor"):
            assert statement["Resource"] != "*"
        if statement["Sid"] != "Doctor":
            allowed |= actions_of(statement)
    assert {action for action in allowed if action.startswith("ec2:")} == {
        f"ec2:{action}" for action in listed()
    }


def test_whoever_launches_may_give_workers_one_role_and_use_one_key_for_their_volumes():
    """EC2 user guide, *Grant permissions to pass an IAM role to an instance*; EBS user guide, *Permissions for encryption*."""
    of_others = {
        action: statement
        for statement in POLICY["Statement"]
        for action in actions_of(statement)
        if not action.startswith("ec2:") and statement["Sid"] != "Doctor"
    }
    assert of_others.keys() == {
        "iam:PassRole",
        "kms:CreateGrant",
        "kms:Decrypt",
        "kms:DescribeKey",
        "kms:GenerateDataKeyWithoutPlaintext",
        "kms:ReEncryptFrom",
        "kms:ReEncryptTo",
    }
    for action, statement in of_others.items():
        conditions = statement["Condition"]["StringEquals"]
        if action == "iam:PassRole":
            assert statement["Resource"].endswith(":role/WORKER_ROLE")
            assert conditions == {"iam:PassedToService": "ec2.amazonaws.com"}
        else:
            assert statement["Resource"].endswith(":key/KEY_ID")
            assert conditions == {"kms:ViaService": "ec2.REGION.amazonaws.com"}
    assert of_others["kms:CreateGrant"]["Condition"]["Bool"] == {"kms:GrantIsForAWSResource": "true"}


def test_the_file_of_profiles_is_mounted_where_it_is_read():
    for role in ("lifecycle", "ec2-adapter"):  # by the doctor in the latter
        service = COMPOSE["services"][role]
        assert {"CML_WORKER_AMI_IDS", "CML_PROFILES_FILE"} <= service["environment"].keys()
        assert service["volumes"] == ["${CML_PROFILES_FOLDER:-./deploy/profiles}:/profiles:ro"]
        pod = of_kind("Deployment", role)["spec"]["template"]["spec"]
        mount = {"name": "profiles", "mountPath": "/profiles", "readOnly": True}
        assert mount in pod["containers"][0]["volumeMounts"]
        assert {"name": "profiles", "configMap": {"name": "cml-profiles", "optional": True}} in pod["volumes"]


def test_the_iam_policy_allows_what_the_doctor_asks_beyond_that_and_no_more():
    (statement,) = (each for each in POLICY["Statement"] if each["Sid"] == "Doctor")
    beyond = listed_of_doctor().keys() - listed().keys()
    assert actions_of(statement) == {action if ":" in action else f"ec2:{action}" for action in beyond}
    assert all(re.search(r":(Describe|Get)", action) for action in actions_of(statement))


def actions_of(statement: dict[str, Any]) -> set[str]:
    action = statement["Action"]
    return {action} if isinstance(action, str) else set(action)


def test_every_action_of_ec2_that_is_named_where_it_is_deployed_is_called():
    """A right or a text about a call that is never made."""
    named = set()
    for path in (*(ROOT / "deploy").rglob("*"), ROOT / "docker-compose.yml", ROOT / "docs/deployment.md"):
        if path.is_file() and "secrets" not in path.parts:
            named |= set(re.findall(r"\bec2:((?:Describe|Get|[A-Z][a-z]+)[A-Z]\w+)\b", path.read_text()))
    conditions = {"InstanceType", "MetadataHttpTokens", "CreateAction"}
    """Keys of conditions (Service Authorization Reference, *Condition keys for Amazon EC2*)."""
    assert named - conditions == {each for each in {**listed(), **listed_of_doctor()} if ":" not in each}


def test_the_database_is_reached_by_those_who_have_something_in_it():
    rule = of_kind("NetworkPolicy", "database")["spec"]
    (chosen,) = rule["podSelector"]["matchExpressions"]
    assert set(chosen["values"]) == {name for name in ROLES if Part.DATABASE in secrets(ROLES[name])}
    assert [each["ports"] for each in rule["egress"]] == [[{"port": 5432}]]
    everybody = of_kind("NetworkPolicy", "roles")["spec"]["egress"]
    assert 5432 not in {each["port"] for allowed in everybody for each in allowed["ports"]}


class Users(BaseHTTPRequestHandler):
    """The users of a store, as EventStoreDB 23.10 answers: who is there already is created again with the same password only."""

    passwords: ClassVar[dict[str, str]] = {}

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = 404
        if self.headers["Authorization"] != "Basic " + base64.b64encode(b"admin:changeit").decode():
            status = 401
        elif self.path == "/users/":
            name = content["loginName"]
            status = (
                201 if self.passwords.setdefault(name, content["password"]) == content["password"] else 409
            )
        elif (
            name := self.path.removeprefix("/users/").removesuffix("/command/reset-password")
        ) in self.passwords:
            self.passwords[name] = content["newPassword"]
            status = 200
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not to the terminal."""


def test_users_of_the_store_are_created_and_get_other_passwords(restrict: ModuleType):
    with ThreadingHTTPServer(("127.0.0.1", 0), Users) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"127.0.0.1:{server.server_port}?tls=false"
            for password in ("first", "first", "second"):
                restrict.create_user(
                    f"esdb://admin:changeit@{address}", "cml-writer", "cml-writers", password
                )
                assert Users.passwords == {"cml-writer": password}
            with pytest.raises(SystemExit, match="cml-writer could not be created: 401"):
                restrict.create_user(f"esdb://admin:other@{address}", "cml-writer", "cml-writers", "third")
        finally:
            server.shutdown()
            thread.join()


async def test_the_default_access_lists_go_into_the_settings_stream(restrict: ModuleType):
    acl = (ROOT / "deploy/kurrentdb/default-acl.json").read_text()
    node = KurrentDbStandIn()
    await node.start()
    await restrict.set_default_acl(node.uri, acl)
    await restrict.describe_streams(node.uri, {**restrict.streams(), **restrict.users_streams()})
    store = KurrentDbEventStore(node.uri)
    await begin_if_new(store, uuid4)
    await store.trim(RELAY_STREAM, KEEP)  # which needs no right of the relay's then
    await denials.Denials(store, now=lambda: datetime.now(UTC), new_id=uuid4).record({"user": "portal"})
    await store.close()
    await node.stop()
    assert restrict.RELAY_STREAM == RELAY_STREAM
    (record,) = node.log.streams[f"$${RELAY_STREAM}"]
    of_relay = json.loads(record.data)
    assert of_relay["$maxCount"] == KEEP
    assert of_relay["$acl"]["$w"] == ["$admins", "cml-writers", "cml-relays"]
    assert (of_relay["$acl"]["$d"], of_relay["$acl"]["$mw"]) == ("$admins", "$admins")
    assert {group for group, _ in restrict.USERS.values()} == GROUPS
    followers = {RELAY: ["cml-relays"], **{of_read_model(model.name): [] for model in READ_MODELS}}
    assert {*restrict.streams()} == {
        RELAY_STREAM,
        DENIALS_STREAM,
        *(f"{QUARANTINE_STREAMS}{each}" for each in followers),
    }
    (record,) = node.log.streams[f"$${DENIALS_STREAM}"]  # and lifecycle, which may not, has set nothing there
    of_denials = json.loads(record.data)
    assert of_denials["$maxCount"] == denials.KEEP
    assert (of_denials["$acl"]["$w"], of_denials["$acl"]["$mw"]) == (["$admins", "cml-writers"], "$admins")
    for follower, own in followers.items():
        (record,) = node.log.streams[f"$${QUARANTINE_STREAMS}{follower}"]
        acl = json.loads(record.data)["$acl"]
        # Each is written by its follower, and by the projector, which records what operators decide.
        assert acl["$w"] == ["$admins", *own, "cml-projectors"]
        assert {*own, "cml-projectors"} <= {*acl["$r"]}
        if follower == WORKERS:  # lifecycle and the EC2 adapter skip what was skipped there
            for right in ("$r", "$mr"):
                assert {"cml-writers", "cml-readers"} <= {*acl[right]}
        assert (acl["$d"], acl["$mw"]) == ("$admins", "$admins")
    (record,) = node.log.streams["$settings"]
    kept = json.loads(record.data)
    assert kept["$userStreamAcl"]["$w"] == ["$admins", "cml-writers"]
    assert kept["$userStreamAcl"]["$d"] == "$admins"
    assert {*kept["$userStreamAcl"]["$r"]} >= GROUPS
    assert {*kept["$systemStreamAcl"]["$r"]} == {"$admins", "cml-relays", "cml-projectors"}
    for user in ("admin", "ops", *restrict.USERS):
        (record,) = node.log.streams[f"$$$user-{user}"]
        assert set(json.loads(record.data)["$acl"].values()) == {"$admins"}


def test_the_smoke_script_says_what_is_missing(tmp_path: Path):
    done = subprocess.run(
        [ROOT / "deploy/smoke"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "DOCKER_HOST": "unix:///nowhere.sock"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "no Docker engine answers" in done.stderr


def test_the_secrets_are_made_once_and_readable_by_nobody_else(tmp_path: Path):
    first, second = made_secrets(tmp_path), made_secrets(tmp_path)
    assert first.returncode == 0, first.stderr
    assert second.returncode == 1
    assert "exists already" in second.stderr
    secrets = tmp_path / "deploy/secrets"
    assert {
        "ca.pem",
        "rabbitmq.pem",
        "kurrentdb.key",
        "postgresql.pem",
        "definitions.json",
        "broker-users.json",
        "secrets.env",
    } <= {path.name for path in secrets.iterdir()}
    assert secrets.stat().st_mode & 0o077 == 0
    for path in secrets.iterdir():
        wide = {".pem": 0o644, "kurrentdb.key": 0o640}
        assert path.stat().st_mode & 0o777 == wide.get(path.name, wide.get(path.suffix, 0o600)), path.name
    users = json.loads((secrets / "definitions.json").read_text())["users"]
    assert all(user["password_hash"] for user in users)
    listed = read_users((secrets / "broker-users.json").read_bytes())
    hashes = {user["name"]: user["password_hash"] for user in users}
    assert {name: user.password_hash for name, user in listed.items()}.items() <= hashes.items()
    assert f"CML_COMMAND_USERS='{settings_of(listed)['CML_COMMAND_USERS']}'" in (
        (secrets / "secrets.env").read_text().splitlines()
    )
    for server in ("rabbitmq", "kurrentdb", "postgresql"):
        certificate, key = secrets / f"{server}.pem", secrets / f"{server}.key"
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
        openssl("verify", "-CAfile", str(secrets / "ca.pem"), "-verify_hostname", server, str(certificate))
    openssl("rsa", "-in", str(secrets / "kurrentdb.key"), "-check", "-noout")  # it reads no other kind
    subject = openssl("x509", "-in", str(secrets / "kurrentdb.pem"), "-noout", "-subject")
    assert "eventstoredb-node" in subject


def openssl(*arguments: str) -> str:
    """What it says; it must succeed."""
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_shipped_settings_follow_from_the_list_of_users():
    listed = settings_of(read_users((ROOT / "deploy/rabbitmq/broker-users.json").read_bytes()))
    (kustomization,) = (each for each in MANIFESTS if each["kind"] == "Kustomization")
    (config,) = kustomization["configMapGenerator"]
    given = dict(each.split("=", 1) for each in config["literals"])
    assert {
        name: listed[name] for name in ("CML_COMMAND_USERS", "CML_OPERATOR_USERS")
    }.items() <= given.items()
    assert given["CML_SENDERS"] == ""  # a broker may not have their queues yet
