"""An EC2 to try things on: moto's server, corrected where it differs from EC2, with faults on order.

For demo, development and tests only. It keeps EC2's promises that moto does not: client tokens, timed
transitions, refusals (https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html). An admin
endpoint under ``/simulator`` plants faults, takes away what an account has to have, and shows what was called.

Run alone with ``python -m cml_embedded.ec2_simulator --port 5000 --data-dir FOLDER``.
"""

import argparse
import logging
import signal
import socket
import threading
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from werkzeug.serving import WSGIRequestHandler, make_server

from cml_embedded.ec2.application import Application

DEMO_IMAGE_NAME = "cml-2.8.1"
DEMO_IMAGES = {
    "us-east-1": "ami-0c31000000000001e",
    "us-west-2": "ami-0c31000000000002e",
    "eu-west-1": "ami-0c31000000000003e",
}


class Ec2Simulator:
    """Start it, use ``url`` as EC2's endpoint, stop it.

    ``transition_seconds``: how long pending, stopping and shutting-down last; ``vcpu_limit``: vCPUs of
    instances that are not terminated, in each region. With ``data_dir`` instances survive any end of the
    process. ``hosts``: names by which it is asked, besides localhost and addresses. One simulator at a time in a process, as moto's state is global.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        data_dir: Path | None = None,
        transition_seconds: float = 0.5,
        vcpu_limit: int | None = None,
        hosts: Collection[str] = (),
    ) -> None:
        self._host = host
        self._port = port
        self._data_dir = data_dir
        self._transition_seconds = transition_seconds
        self._vcpu_limit = vcpu_limit
        self._hosts = frozenset(hosts)

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    def start(self) -> None:
        """Return when it answers. Raises OSError if the port is taken."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        images = {image_id: (region, DEMO_IMAGE_NAME) for region, image_id in DEMO_IMAGES.items()}
        application = Application(
            images, self._data_dir, self._transition_seconds, self._vcpu_limit, self._hosts
        )
        with socket.create_server(
            (self._host, self._port)
        ) as listening:  # make_server ends the process if it cannot
            self._server = make_server(
                self._host,
                self._port,
                application,
                threaded=True,
                request_handler=_QuietHandler,
                fd=listening.fileno(),
            )
        self._server.daemon_threads = True  # type: ignore[attr-defined]
        self._port = self._server.socket.getsockname()[1]
        self._application = application
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},
            name="ec2-simulator",
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and close the files."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._application.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.stop()


class _QuietHandler(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        pass


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="An EC2 simulator for development and tests.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--transition-seconds", type=float, default=0.5)
    parser.add_argument("--vcpu-limit", type=int)
    parser.add_argument(
        "--allow-host",
        dest="hosts",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which it is asked, besides localhost and addresses; may be repeated",
    )
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with Ec2Simulator(**vars(parser.parse_args())) as simulator:
        print(simulator.url, flush=True)  # noqa: T201 - the address is its output
        stopped.wait()


if __name__ == "__main__":
    main()
