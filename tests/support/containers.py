"""Servers in containers, where none is given or installed."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

READY = 60.0
"""Seconds a server may take to answer."""


class NoContainerError(Exception):
    """The container does not start, or its server does not answer; says why."""


def docker_answers() -> bool:
    """Whether containers can be started."""
    if not shutil.which("docker"):
        return False
    done = subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False)
    return done.returncode == 0


@contextmanager
def container(
    image: str, port: int, answers: Callable[[str, int], bool], **environment: str
) -> Iterator[tuple[str, int]]:
    """Host and port of the server of a new container, as soon as it ``answers`` there. Raises NoContainerError."""
    from docker.errors import DockerException  # type: ignore[import-untyped]  # noqa: PLC0415 - slow to load
    from requests.exceptions import RequestException  # noqa: PLC0415 - likewise
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - likewise

    server = DockerContainer(image).with_envs(**environment).with_exposed_ports(port)
    try:
        server.start()
    except (DockerException, RequestException, TimeoutError) as error:
        raise NoContainerError(f"the container of {image} does not start: {error}") from error
    try:
        host, outside = server.get_container_host_ip(), int(server.get_exposed_port(port))
        end = time.monotonic() + READY
        while not answers(host, outside):
            if time.monotonic() > end:
                raise NoContainerError(f"the server in the container of {image} does not answer")
            time.sleep(0.2)
        yield host, outside
    finally:
        server.stop()
