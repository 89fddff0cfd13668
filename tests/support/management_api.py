"""A stand-in for RabbitMQ's management API, which answers as RabbitMQ 4.3.6 did on a cluster of three."""

import base64
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

NODES = ("rmq4@localhost", "rmq5@localhost", "rmq6@localhost")
PASSWORD = "s3cret"


class ManagementApi:
    """``queues``: how many replicas each has; 0: a classic queue. ``idle``: how many of them do not work; None: not known yet."""

    def __init__(self, queues: Mapping[str, int]) -> None:
        self.queues = dict(queues)
        self.idle: dict[str, int | None] = {}
        self.partitions: dict[str, list[str]] = {}
        """Of nodes: from which others they are partitioned."""
        self.status = 200
        """Another one is all that it answers."""
        self.asked: list[str] = []
        self.url = ""

    def answer(self, path: str) -> tuple[int, Any]:
        """Its status and its JSON."""
        match path.removeprefix("/api/").partition("?")[0].split("/"):
            case _ if self.status != 200:
                return self.status, {"error": "not_authorised", "reason": "Not monitor user"}
            case ["nodes"]:
                return 200, [{"name": name, "partitions": self.partitions.get(name, [])} for name in NODES]
            case ["queues", "%2F"]:
                return 200, [self._queue(name, count) for name, count in self.queues.items()]
            case _:
                return 404, {"error": "not_found", "reason": "Not Found"}

    def _queue(self, name: str, replicas: int) -> dict[str, Any]:
        if not replicas:
            return {"name": name}
        idle = self.idle.get(name, 0)
        online = {} if idle is None else {"online": NODES[: replicas - idle]}
        return {"name": name, "members": NODES[:replicas], **online}


@contextmanager
def management_api(queues: Mapping[str, int], password: str = PASSWORD) -> Iterator[ManagementApi]:
    """It runs, and ``url`` has the user's password."""
    api = ManagementApi(queues)
    expected = "Basic " + base64.b64encode(f"cml-monitor:{password}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            api.asked.append(self.path)
            status, content = api.answer(self.path)
            if self.headers["Authorization"] != expected:
                status, content = 401, {"error": "not_authorised", "reason": "Login failed"}
            body = json.dumps(content).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", f"{api.url}elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    api.url = f"http://cml-monitor:{quote(password, safe='')}@127.0.0.1:{server.server_port}/"
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
