"""The Job that migrates the database: what it may, and what it does."""

import subprocess
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest
import yaml

from support.missing import missing
from support.postgresql import NoPostgreSQLError, SpawnedPostgreSQL, private_postgresql
from support.running import COMMAND, unconfigured

ROOT = Path(__file__).parents[2]
POSTGRESQL, KUBERNETES = ROOT / "deploy/postgresql", ROOT / "deploy/kubernetes"
JOB, NETWORK = yaml.safe_load_all((KUBERNETES / "migrate/migrate.yaml").read_text())
POD: dict[str, Any] = JOB["spec"]["template"]["spec"]
(MIGRATE,), (RIGHTS,) = POD["initContainers"], POD["containers"]
SECRET = "cml-migrator"
DATABASE = {
    "name": "DATABASE_URL",
    "valueFrom": {"secretKeyRef": {"name": SECRET, "key": "DATABASE_URL"}},
}
pytestmark = pytest.mark.timeout(300)


def kustomization(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return found


def test_it_migrates_and_then_gives_the_rights_as_the_owner_and_is_confined():
    assert MIGRATE["args"] == ["migrate"]
    for container in (MIGRATE, RIGHTS):
        assert container["env"] == [DATABASE]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["resources"]["limits"].keys() == {"cpu", "memory"}
        named = {each["name"] for each in container["volumeMounts"]}
        assert named <= {each["name"] for each in POD["volumes"]}
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["automountServiceAccountToken"] is False
    assert NETWORK["spec"]["podSelector"]["matchLabels"] == JOB["spec"]["template"]["metadata"]["labels"]
    assert {each["port"] for rule in NETWORK["spec"]["egress"] for each in rule["ports"]} == {53, 5432}
    assert "ingress" not in NETWORK["spec"]


def test_no_role_has_the_owners_password():
    for path in KUBERNETES.glob("*.yaml"):
        assert SECRET not in path.read_text()


def test_it_is_of_the_version_of_the_roles_and_has_the_shipped_rights():
    job, roles = kustomization(KUBERNETES / "migrate"), kustomization(KUBERNETES)
    assert roles["images"] == [each for each in job["images"] if each["name"] == "cml-workers"]
    assert job["namespace"] == roles["namespace"]
    assert {each["name"] for each in job["images"]} == {MIGRATE["image"], RIGHTS["image"]}
    assert [(KUBERNETES / "migrate" / each).resolve() for each in job["resources"]] == [
        POSTGRESQL,
        KUBERNETES / "migrate/migrate.yaml",
    ]
    (rights,) = kustomization(POSTGRESQL)["configMapGenerator"]
    assert rights["files"] == ["rights.sql"]
    assert {"name": "rights", "configMap": {"name": rights["name"]}} in POD["volumes"]


@pytest.fixture(scope="module")
def server():
    try:
        with private_postgresql() as server:
            yield server
    except NoPostgreSQLError as error:
        missing(error)


def run(container: dict[str, Any], url: str) -> subprocess.CompletedProcess[str]:
    """As Kubernetes runs it, with the folders of this machine."""
    arguments = [*container.get("command", [COMMAND]), *container.get("args", [])]
    return subprocess.run(
        [str(each).replace("/rights/", f"{POSTGRESQL}/") for each in arguments],
        env={**unconfigured(), "DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


async def test_then_the_projector_may_start(server: SpawnedPostgreSQL):
    def url(user: str) -> str:
        return f"postgresql://{user}@127.0.0.1:{server.port}/cml"

    for at, script in (
        (server.url, "CREATE DATABASE cml ENCODING 'UTF8' TEMPLATE template0"),
        (url("cml"), (POSTGRESQL / "roles.sql").read_text()),
    ):
        connection = await asyncpg.connect(at)
        await connection.execute(script)
        await connection.close()
    early = run(RIGHTS, url("cml_migrator"))
    assert early.returncode != 0  # there are no tables yet
    for _ in range(2):  # again, for the next version
        for container in (MIGRATE, RIGHTS):
            done = run(container, url("cml_migrator"))
            assert done.returncode == 0, done.stderr
    look = run({"args": ["migrate", "--check"]}, url("cml_projector"))
    assert look.returncode == 0, look.stderr
    connection = await asyncpg.connect(url("cml_projector"))
    await connection.execute("SELECT 1 FROM dead_letters, read_model_generations, workers")
    await connection.close()
    assert (
        run(MIGRATE, url("cml_projector").replace("/cml", "/nowhere")).returncode == 2
    )  # the Job ends at once
