"""The secured stack of ``deploy/``, without its containers: what ``deploy/secure`` makes, and the settings of compose.secured.yml."""

import base64
import json
import os
import re
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from cml_workers.bus.users import broker_user, password_variable
from support.ports import free_port
from support.rabbitmq import NoRabbitMQError, SpawnedRabbitMQ, installed
from support.running import COMMAND, unconfigured

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv/bin/python"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SECURED: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.secured.yml").read_text())
ADDED = (
    ("portal", "--may", "start,stop", "--subscribe"),
    ("billing", "--may", "*", "--subscribe"),
    ("agent", "--may", "stop", "--delegate"),
    ("desk", "--operate"),
    ("dashboard",),
)
"""After ``cml-workers broker-user add``: a user of each kind."""
OTHER_VHOST = "other"
UNSET = "unset"
"""A user who has every right, and no password yet."""
_INSTALLED = re.compile(r"install .* (/secrets/\S+) (/\S+)")
_REPLACED = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
"""A variable in a compose file, and its default."""


def made_secrets(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``deploy/secure`` in a copy in this folder, as the script writes beside itself, to ``deploy/secrets``."""
    deploy = folder / "deploy"
    deploy.mkdir(exist_ok=True)
    for name in ("services", "contracts", "deploy/rabbitmq"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    script = deploy / "secure"
    script.write_text((ROOT / "deploy/secure").read_text())
    script.chmod(0o755)
    return subprocess.run(
        [script],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(PYTHON)},
        capture_output=True,
        text=True,
        check=False,
    )


class Secured:
    """Secrets, and the places of the servers that have them: this machine's, in place of the stack's."""

    def __init__(self, folder: Path, places: Mapping[str, str] | None = None) -> None:
        done = made_secrets(folder)
        assert done.returncode == 0, done.stderr
        self.folder = folder / "deploy/secrets"
        self.list = self.folder / "broker-users.json"
        self.places = dict(places or {})
        """By what compose calls them, e.g. ``rabbitmq:5671``."""
        self._secrets: dict[str, str] = {}

    def secrets(self) -> Mapping[str, str]:
        """``secrets.env`` as a shell reads it: what comes later counts."""
        if not self._secrets:
            self._secrets = self._read()
        return self._secrets

    def _read(self) -> dict[str, str]:
        read: list[str | Path] = ["sh", "-c", 'set -a; . "$0"; exec env -0', self.folder / "secrets.env"]
        done = subprocess.run(read, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True)
        return dict(line.split("=", 1) for line in done.stdout.split("\0") if line)

    def add(self, *users: tuple[str, ...]) -> None:
        """Users of other services, and the settings and definitions that follow, as docs/deployment.md says."""
        for arguments in users:
            self._broker_user("add", *arguments, "--passwords", str(self.folder / "secrets.env"))
        with (self.folder / "secrets.env").open("a") as file:
            file.write(self._broker_user("settings"))
        self._secrets.clear()
        written: tuple[str | Path, ...] = ("--users", self.list, "--write", self.folder / "definitions.json")
        command = [PYTHON, "-m", "cml_tools.definitions", *written]
        subprocess.run(command, env={**os.environ, **self.secrets()}, check=True)

    def _broker_user(self, *arguments: str) -> str:
        command = [str(COMMAND), "broker-user", *arguments, "--list", str(self.list)]
        done = subprocess.run(command, env=unconfigured(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def files(self, service: str) -> dict[str, Path]:
        """What the service finds in its container, by the path there: what is mounted, and what its entry point copies."""
        mounted = {}
        for volume in SECURED["services"][service]["volumes"]:
            source, target, _ = volume.split(":")
            in_secrets = source.removeprefix("./deploy/secrets/")
            mounted[target] = ROOT / source if in_secrets == source else self.folder / in_secrets
        script = "\n".join(SECURED["services"][service].get("entrypoint", ()))
        return {**mounted, **{to: mounted[source] for source, to in _INSTALLED.findall(script)}}

    def prepare_database(self, port: int) -> None:
        """On a server at this port, what compose's services do with it before the roles start."""
        secrets, at = self.secrets(), {"PGHOST": "127.0.0.1", "PGPORT": str(port)}
        superuser = {
            **at,
            "POSTGRES_USER": "cml",
            "POSTGRES_DB": "cml",
            "PGPASSWORD": secrets["POSTGRES_PASSWORD"],
        }
        files = self.files("postgresql").items()
        roles, passwords = (
            path for to, path in sorted(files) if to.startswith("/docker-entrypoint-initdb.d/")
        )
        psql = ["psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--username=cml"]
        for command, environment in (
            ([*psql, "--dbname=postgres", "--command=CREATE DATABASE cml"], superuser),
            ([*psql, "--dbname=cml", f"--file={roles}"], superuser),
            (["sh", str(passwords)], {**superuser, **self.settings("postgresql")}),
            ([str(COMMAND), *SECURED["services"]["migrate"]["command"]], self.settings("migrate")),
            (self._entry_point("rights"), self.settings("rights")),
        ):
            done = subprocess.run(
                command, env={**unconfigured(), **environment}, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr

    def _entry_point(self, service: str) -> list[str]:
        """What it runs, with the files of this machine."""
        words = [word.replace("$$", "$") for word in SECURED["services"][service]["entrypoint"]]
        for there, here in self.files(service).items():
            words = [word.replace(f"={there}", f"={here}") for word in words]
        return words

    def settings(self, service: str) -> dict[str, str]:
        """The environment of a service of the stack, here."""
        given = {
            **COMPOSE["services"].get(service, {}).get("environment", {}),
            **SECURED["services"][service]["environment"],
        }
        secrets = self.secrets()
        return {name: self._here(_replaced(str(value), secrets)) for name, value in given.items()}

    def _here(self, value: str) -> str:
        for place, here in {**self.places, "/certificates/": f"{self.folder}/"}.items():
            value = value.replace(place, here)
        return value


def _replaced(value: str, secrets: Mapping[str, str]) -> str:
    def one(found: re.Match[str]) -> str:
        name, kind, default = found.groups()
        return secrets[name] if kind != "-" else secrets.get(name, default)

    return _REPLACED.sub(one, value).replace("$$", "$")


class SecuredBroker:
    """A RabbitMQ with the files that the stack's has, and the plugin for management; no other port than those two, both with TLS."""

    def __init__(self, secured: Secured, folder: Path) -> None:
        script = installed()
        if script is None:
            raise NoRabbitMQError("no RabbitMQ to configure")
        self.secured = secured
        self.server = SpawnedRabbitMQ(script, folder, listens=False, plugins=("rabbitmq_management",))
        self.management_port = free_port()
        files = secured.files("rabbitmq")
        (conf,) = (path for target, path in files.items() if target.startswith("/etc/rabbitmq/conf.d/"))
        lines = conf.read_text()
        here = {target: str(path) for target, path in files.items()}
        here["listeners.ssl.default = 5671"] = f"listeners.ssl.default = 127.0.0.1:{self.server.tls_port}"
        here["ssl.port = 15671"] = f"ssl.port = {self.management_port}\nmanagement.ssl.ip = 127.0.0.1"
        for there, place in here.items():
            lines = lines.replace(there, place)
        self.server.configure(lines)
        secured.places["rabbitmq:5671"] = f"127.0.0.1:{self.server.tls_port}"

    @property
    def authority(self) -> Path:
        return self.secured.folder / "ca.pem"

    def url(self, user: str, password: str | None = None, vhost: str = "", **options: str) -> str:
        """Where this user connects; with its own password, and our authority, unless others are given."""
        password = self.secured.secrets()[password_variable(user)] if password is None else password
        chosen = {"cafile": str(self.authority), **options}
        query = "&".join(f"{name}={value}" for name, value in chosen.items() if value)
        return f"amqps://{user}:{quote(password, safe='')}@127.0.0.1:{self.server.tls_port}/{vhost}?{query}"

    def management_url(self, user: str) -> str:
        """As ``RABBITMQ_MANAGEMENT_URL``."""
        password = quote(self.secured.secrets()[password_variable(user)], safe="")
        return f"https://{user}:{password}@127.0.0.1:{self.management_port}/?cafile={self.authority}"

    def asked(self, user: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """What the management API answers: the status and the content."""
        password = self.secured.secrets().get(password_variable(user), user)
        authorization = base64.b64encode(f"{user}:{password}".encode()).decode()
        context = ssl.create_default_context(cafile=str(self.authority))
        connection = HTTPSConnection("127.0.0.1", self.management_port, timeout=60, context=context)
        headers = {"Authorization": f"Basic {authorization}", "Content-Type": "application/json"}
        with closing(connection):
            sent = None if body is None else json.dumps(body)
            connection.request(method, f"/api/{path}", sent, headers)
            answer = connection.getresponse()
            content = answer.read()
        return answer.status, json.loads(content or "null")

    def seen(self, path: str) -> Any:
        """What the monitor sees there."""
        status, content = self.asked("cml-monitor", "GET", path)
        assert status == 200, path
        return content

    def version(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.seen("overview")["rabbitmq_version"].split(".")[:2])


@contextmanager
def secured_broker(folder: Path) -> Iterator[SecuredBroker]:
    """It runs, with a user of each kind. Raises NoRabbitMQError."""
    secured = Secured(folder)
    secured.add(*ADDED)
    definitions = secured.folder / "definitions.json"
    changed = json.loads(definitions.read_text())
    changed["vhosts"].append({"name": OTHER_VHOST})
    changed["users"].append(broker_user(UNSET, ""))
    everything = dict.fromkeys(("configure", "write", "read"), ".*")
    changed["permissions"].append({"user": UNSET, "vhost": "/", **everything})
    definitions.write_text(json.dumps(changed))
    broker = SecuredBroker(secured, folder / "server")
    try:
        broker.server.start()
        yield broker
    finally:
        broker.server.close()
