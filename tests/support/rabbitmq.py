"""A private RabbitMQ for the tests: an address that was given, an installed server, or a container.

The server is spawned with everything of its own (node name, folders, ports, cookie, epmd), so that nothing on
the machine is touched and several can run side by side. See https://www.rabbitmq.com/docs/configure
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pamqp import frame
from pamqp.commands import Connection

from support.children import tied
from support.containers import container, docker_answers
from support.ports import free_port

GIVEN = "TEST_RABBITMQ_URL"
SERVER = "TEST_RABBITMQ_SERVER"
"""Names the start script of another server than the machine's own, e.g. one that ``debian-rabbitmq`` has made."""
IMAGE = os.environ.get("RABBITMQ_IMAGE", "rabbitmq:4.1")
# The wrapper in sbin refuses other users; the script behind it does not.
PLACES = (
    "/usr/lib/rabbitmq/bin/rabbitmq-server",
    "/opt/homebrew/sbin/rabbitmq-server",
    "/usr/local/sbin/rabbitmq-server",
)
EPMD = ("epmd", "/usr/lib/erlang/bin/epmd")
READY = 180.0
"""Seconds a server may take to answer: many at once on a busy machine took more than a minute."""
SAID = 3_000
"""Characters of a server's output that an error shows."""


class NoRabbitMQError(Exception):
    """None can be had; says how to get one."""


def installed() -> Path | None:
    """The start script of the server to spawn: the one that was named, or this machine's."""
    if named := os.environ.get(SERVER):
        return Path(named)
    for place in (*PLACES, shutil.which("rabbitmq-server")):
        if place and Path(place).exists():
            return Path(place)
    return None


class SpawnedRabbitMQ:
    """A server process of our own in a folder; ``stop``, ``kill`` and ``start`` it again as you like.

    ``listens``: at ``port``, without TLS; if not, ``configure`` has to say that it listens at ``tls_port``.
    """

    def __init__(
        self,
        script: Path,
        folder: Path,
        definitions: str | None = None,
        tls: tuple[Path, Path] | None = None,
        *,
        home: Path | None = None,
        listens: bool = True,
        plugins: Sequence[str] = (),
    ) -> None:
        self._script = script
        self._folder = folder
        self._home = home or folder
        self._listens = listens
        self.port = free_port()
        self.dist_port = free_port()
        self.node = f"test{self.port}@localhost"
        self.epmd_port: int | None = None
        """Where one answers; without it the server gets one of its own."""
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "env.conf").touch()
        (folder / "plugins").write_text(f"[{','.join(plugins)}].")
        (folder / "rabbitmq.conf").touch()
        self.configure("raft.wal_max_size_bytes = 67108864")
        if listens:
            self.configure(f"listeners.tcp.1 = 127.0.0.1:{self.port}")
        if definitions:
            (folder / "definitions.json").write_text(definitions)
            self.configure(f"load_definitions = {folder / 'definitions.json'}")
        self.tls_port = free_port()
        if tls:
            self.configure(
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
                f"ssl_options.keyfile = {tls[0]}",
                f"ssl_options.certfile = {tls[1]}",
            )

    def configure(self, *lines: str) -> None:
        """More lines of its rabbitmq.conf; before it starts."""
        with (self._folder / "rabbitmq.conf").open("a") as configuration:
            configuration.writelines(f"{line}\n" for line in lines)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def group(self) -> int:
        """Its process group, once it was started."""
        assert self._server is not None
        return self._server.pid

    def start(self) -> None:
        """Start and wait until it speaks AMQP."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start, and do not wait: those of a cluster wait for each other."""
        if self.epmd_port is None:
            self.epmd_port = free_port()
            # As a child of ours: one that the server starts by itself would stay behind.
            epmd = next(path for path in (str(self._script.parent / "epmd"), *EPMD) if shutil.which(path))
            self._epmd = subprocess.Popen(
                tied(epmd, "-address", "127.0.0.1", "-port", str(self.epmd_port)),
                env=self._environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        with (self._folder / "output.log").open("ab") as output:
            self._server = subprocess.Popen(
                tied(self._script),
                env=self._environment(),
                stdout=output,
                stderr=output,
                process_group=0,
            )

    def _environment(self) -> dict[str, str]:
        own = {
            "HOME": self._home,
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_MNESIA_BASE": self._folder / "mnesia",
            "RABBITMQ_LOG_BASE": self._folder / "log",
            "RABBITMQ_CONFIG_FILE": self._folder / "rabbitmq.conf",
            "RABBITMQ_CONF_ENV_FILE": self._folder / "env.conf",
            "RABBITMQ_GENERATED_CONFIG_DIR": self._folder / "generated",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self._folder / "plugins",
            "RABBITMQ_PID_FILE": self._folder / "pid",
            "RABBITMQ_DIST_PORT": self.dist_port,
            "ERL_EPMD_PORT": self.epmd_port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        return {**os.environ, **{name: str(value) for name, value in own.items()}}

    def control(self, program: str, *arguments: str) -> str:
        """What one of RabbitMQ's own commands prints of this node. Raises CalledProcessError."""
        done = subprocess.run(
            [self._script.parent / program, *arguments],
            env=self._environment(),
            stdout=subprocess.PIPE,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout

    def wait(self) -> None:
        """Until it speaks AMQP. Raises NoRabbitMQError."""
        end = time.monotonic() + READY
        while time.monotonic() < end:
            if self._server is not None and self._server.poll() is not None:
                break
            if speaks_amqp("127.0.0.1", self.port) if self._listens else is_open("127.0.0.1", self.tls_port):
                return
            time.sleep(0.1)
        log = self._folder / "output.log"
        said = log.read_text(errors="replace")[-SAID:]
        raise NoRabbitMQError(
            f"RabbitMQ did not start within {READY:.0f} s, or ended; the end of {log}:\n{said}"
        )

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the server, by SIGKILL for a crash."""
        if self._server is not None:
            # The script's children too, also if the script has ended.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, number)
            self._server.wait(timeout=60)

    def signal(self, number: int) -> None:
        """To all its processes, e.g. SIGSTOP."""
        if self._server is not None:
            os.killpg(self._server.pid, number)

    def kill(self) -> None:
        """A crash."""
        self.stop(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start on the same data and port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End everything that was started."""
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()


@contextmanager
def private_rabbitmq(
    folder: Path, definitions: str | None = None, tls: tuple[Path, Path] | None = None
) -> Iterator[SpawnedRabbitMQ]:
    """A server of our own that may be stopped and killed. ``tls``: key and certificate. Raises NoRabbitMQError."""
    script = installed()
    if script is None:
        raise NoRabbitMQError(_how_to_get_one())
    server = SpawnedRabbitMQ(script, folder, definitions, tls)
    try:
        server.start()
        yield server
    finally:
        server.close()


@contextmanager
def any_rabbitmq(folder: Path) -> Iterator[tuple[str, str]]:
    """The URL of a RabbitMQ, and how it was had. Raises NoRabbitMQError, NoContainerError."""
    given = os.environ.get(GIVEN)
    if given:
        yield given, f"given by {GIVEN}"
    elif installed():
        with private_rabbitmq(folder) as server:
            yield server.url, f"{version('127.0.0.1', server.port)}, spawned privately from {installed()}"
    elif docker_answers():
        with container(IMAGE, 5672, speaks_amqp) as (host, port):
            yield f"amqp://guest:guest@{host}:{port}/", f"in a container of {IMAGE}"
    else:
        raise NoRabbitMQError(_how_to_get_one())


def _how_to_get_one() -> str:
    return (
        f"no RabbitMQ: set {GIVEN} to a URL, install the package rabbitmq-server (on Debian as root, `make test` "
        "does that itself), or start a Docker engine"
    )


def is_open(host: str, port: int) -> bool:
    """Whether somebody listens there, whatever it speaks."""
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def speaks_amqp(host: str, port: int) -> bool:
    """Whether the protocol header is answered with a method frame (type 1)."""
    try:
        with socket.create_connection((host, port), timeout=2) as probe:
            probe.sendall(b"AMQP\x00\x00\x09\x01")
            return probe.recv(1) == b"\x01"
    except OSError:
        return False


def version(host: str, port: int) -> str:
    """The server's name and version, as it says in its first frame."""
    with socket.create_connection((host, port), timeout=10) as probe, probe.makefile("rb") as sent:
        probe.sendall(b"AMQP\x00\x00\x09\x01")
        head = sent.read(7)
        start = frame.unmarshal(head + sent.read(int.from_bytes(head[3:], "big") + 1))[2]
    assert isinstance(start, Connection.Start)
    return "{product} {version}".format_map(start.server_properties)
