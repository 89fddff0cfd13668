"""A KurrentDB stand-in with TLS, users and access lists: at one port its gRPC calls, and the server's HTTP API of users."""

import asyncio
import json
import ssl
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from support.certificates import Certificates
from support.kurrentdb_rights import ADMINS, Rights, User
from support.kurrentdb_standin import KurrentDbStandIn

H2 = b"\x02h2"
"""Is in the first bytes of a TLS connection whose client offers HTTP/2, as gRPC does."""


class SecuredKurrentDb:
    """A new server, whose only user is ``admin``."""

    def __init__(self, certificates: Certificates) -> None:
        key, certificate = certificates.key.read_bytes(), certificates.certificate.read_bytes()
        self.node = KurrentDbStandIn(tls=(key, certificate))
        self.node.rights = self.rights = Rights(self.node.log)
        self._certificates = certificates
        self._servers: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def uri(self, user: str, password: str) -> str:
        """Where this user connects."""
        port = _port(self._servers[-1])
        return f"esdb://{user}:{password}@127.0.0.1:{port}?TlsCaFile={self._certificates.authority}"

    async def start(self) -> None:
        await self.node.start()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._certificates.certificate, self._certificates.key)
        self._servers = [
            await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=context),
            await asyncio.start_server(self._connected, "127.0.0.1", 0),
        ]

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        await self.node.stop()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.create_task(self._forward(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """To gRPC, or to the users: the server has both at one port."""
        with suppress(OSError):
            hello = await reader.read(65_536)
            port = self.node.port if H2 in hello else _port(self._servers[0])
            inner, outer = await asyncio.open_connection("127.0.0.1", port)
            self._writers.add(outer)
            outer.write(hello)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(_pump(reader, outer))
                pumps.create_task(_pump(inner, writer))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request of HTTP."""
        request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        content = json.loads(await reader.readexactly(int(headers["content-length"])))
        _, path, _ = request.split()
        status = self._posted(path, content, headers.get("authorization"))
        answer = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        writer.write(answer.encode())
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    def _posted(self, path: str, content: dict[str, Any], authorization: str | None) -> HTTPStatus:
        """As EventStoreDB 23.10 answers: who is there is created again with the same password only."""
        who = self.rights.user(authorization)
        if who is None or ADMINS not in self.rights.users[who].groups:
            return HTTPStatus.UNAUTHORIZED
        if path == "/users/":
            name = content["loginName"]
            if name not in self.rights.users:
                self._set(name, User(content["password"], tuple(content["groups"])))
            elif self.rights.users[name].password != content["password"]:
                return HTTPStatus.CONFLICT
            return HTTPStatus.CREATED
        name = path.removeprefix("/users/").removesuffix("/command/reset-password")
        if name not in self.rights.users:
            return HTTPStatus.NOT_FOUND
        self._set(name, User(content["newPassword"], self.rights.users[name].groups))
        return HTTPStatus.OK

    def _set(self, name: str, user: User) -> None:
        """Users lie in streams of the server, which is why these must not be read."""
        self.rights.users[name] = user
        self.node.log.append_system("$users", "$User", json.dumps(name).encode())
        kept = {"loginName": name, "groups": user.groups, "hash": "of its password"}
        self.node.log.append_system(f"$user-{name}", "$UserCreated", json.dumps(kept).encode())
        self.node.notify()


def _port(server: asyncio.Server) -> int:
    return int(server.sockets[0].getsockname()[1])


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
    sink.close()
