"""The hostile sender, a process of its own: it publishes at full speed until its standard input ends, or has published as many messages as it is asked for, and prints what it sent.

    python -m system.hostile.sender HOST PORT --seed 1 --largest 4194304

No confirms are asked for, so nothing but the broker holds it back. Direct replies are read, those to a queue of its own are not; many more
connections are only open.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from pamqp import commands, frame, header
from pamqp.constants import FRAME_METHOD

from system.hostile.messages import CHANNEL, DIRECT, MARK, USER, Hostile, Stranger

SENDING = 4
"""Connections that publish."""
IDLE = 120
"""Connections that it tries to have beside these; the broker has a limit."""
CREATES = 10
BATCH = 20
"""Messages between two looks at whether the broker takes them."""
READY = "ready"
"""What it prints when its messages are made."""
HEAD = 1_500
"""Bytes within which the ids are."""
UNREAD = f"cml.replies.{USER}.unread"


class Closed(Exception):  # noqa: N818 - it is what happened
    """The broker has closed the channel or the connection."""


class Connection:
    """AMQP as far as it is needed here: one channel, and whatever comes is thrown away."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.received = 0
        self._closed = False

    async def open(self) -> None:
        """Raises Closed, OSError."""
        self._writer.write(header.ProtocolHeader(0, 9, 1).marshal())
        await self._answer()
        self._say(commands.Connection.StartOk({}, "PLAIN", f"\0{USER}\0{USER}", "en_US"), 0)
        await self._answer()
        self._say(commands.Connection.TuneOk(2047, 131_072, 0), 0)
        self._say(commands.Connection.Open("/"), 0)
        await self._answer()
        self._say(commands.Channel.Open(), CHANNEL)
        await self._answer()

    async def declare_unread(self) -> None:
        """A queue for replies that nobody reads."""
        self._say(commands.Queue.Declare(queue=UNREAD, durable=True), CHANNEL)
        await self._answer()

    async def listen(self) -> None:
        """For direct replies."""
        self._say(commands.Basic.Consume(queue=DIRECT, no_ack=True), CHANNEL)
        await self._answer()

    async def send(self, wire: bytes) -> None:
        """As fast as the broker reads. Raises Closed, OSError."""
        if self._closed:
            raise Closed
        self._writer.write(wire)
        await self._writer.drain()

    async def read(self) -> None:
        """Until the broker closes it."""
        try:
            while True:
                kind, _, size = await self._head()
                content = await self._reader.readexactly(size + 1)
                if kind != FRAME_METHOD:
                    continue
                method = int.from_bytes(content[:4], "big")
                self.received += method == commands.Basic.Deliver.index
                if method in (commands.Channel.Close.index, commands.Connection.Close.index):
                    return
        finally:
            self._closed = True

    async def _head(self) -> tuple[int, int, int]:
        head = await self._reader.readexactly(7)
        return head[0], int.from_bytes(head[1:3], "big"), int.from_bytes(head[3:], "big")

    async def _answer(self) -> Any:
        kind, channel, size = await self._head()
        content = await self._reader.readexactly(size + 1)
        whole = bytes([kind]) + channel.to_bytes(2, "big") + size.to_bytes(4, "big") + content
        answer = frame.unmarshal(whole)[2]
        if isinstance(answer, commands.Connection.Close | commands.Channel.Close):
            raise Closed(answer.reply_text)
        return answer

    def _say(self, method: Any, channel: int) -> None:
        self._writer.write(frame.marshal(method, channel))


@asynccontextmanager
async def connected(host: str, port: int) -> AsyncIterator[Connection]:
    """Raises Closed, OSError, IncompleteReadError."""
    reader, writer = await asyncio.open_connection(host, port)
    connection = Connection(reader, writer)
    try:
        await connection.open()
        yield connection
    finally:
        writer.close()


class Sender:
    """Everything it does at once."""

    def __init__(self, host: str, port: int, *, seed: int, largest: int, most: int | None) -> None:
        self._where = host, port
        self._seed = seed
        self._most = most
        stranger = Stranger(seed=seed, largest=largest, unread=UNREAD)
        self._creates = stranger.creates(CREATES)
        self._pool = stranger.pool()
        self.sent: Counter[str] = Counter()
        self.bytes = 0
        self.received = 0
        self.closed = 0
        self.refused = 0
        self._idle: Counter[bool] = Counter()

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(SENDING):
                group.create_task(self._publish(number))
            for _ in range(IDLE):
                group.create_task(self._sit())

    def figures(self) -> dict[str, Any]:
        return {
            "sent": self.sent,
            "bytes": self.bytes,
            "replies read": self.received,
            "closed by the broker": self.closed,
            "connections refused": self.refused,
        }

    async def _publish(self, number: int) -> None:
        chance = random.Random(self._seed + number)
        first: Sequence[Hostile] = self._creates if number == 0 else ()
        while True:
            with contextlib.suppress(OSError, Closed, EOFError):
                async with connected(*self._where) as connection, asyncio.TaskGroup() as group:
                    if number == 0:
                        await connection.declare_unread()
                    await connection.listen()
                    reading = group.create_task(self._read(connection))
                    try:
                        await self._flood(connection, itertools.chain(first, self._endless(chance)))
                    except (OSError, Closed):
                        pass
                    finally:
                        reading.cancel()
                        self.received += connection.received
            first = ()
            self.closed += 1
            await asyncio.sleep(0.1)

    @staticmethod
    async def _read(connection: Connection) -> None:
        with contextlib.suppress(OSError, EOFError):
            await connection.read()

    def _endless(self, chance: random.Random) -> Any:
        while True:
            yield chance.choice(self._pool)

    async def _flood(self, connection: Connection, messages: Any) -> None:
        mark = MARK.encode()
        for batch in iter(lambda: list(itertools.islice(messages, BATCH)), []):
            ids = [str(uuid4()).encode() for _ in batch]
            heads = [each.wire[:HEAD].replace(mark, own) for each, own in zip(batch, ids, strict=True)]
            wire = b"".join(
                part for each, head in zip(batch, heads, strict=True) for part in (head, each.wire[HEAD:])
            )
            while self._most is not None and self.sent.total() >= self._most:
                await asyncio.sleep(0.5)
            await connection.send(wire)
            self.bytes += len(wire)
            self.sent.update(each.kind for each in batch)

    async def _sit(self) -> None:
        """Be connected, and do nothing."""
        while True:
            with contextlib.suppress(OSError, Closed, EOFError):
                async with connected(*self._where) as connection:
                    await connection.read()
            self.refused += 1
            await asyncio.sleep(5)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--largest", type=int, required=True)
    parser.add_argument("--most", type=int, help="messages")
    asked = parser.parse_args()
    sender = Sender(asked.host, asked.port, seed=asked.seed, largest=asked.largest, most=asked.most)
    print(READY, flush=True)
    sending = asyncio.create_task(sender.run())
    await asyncio.to_thread(sys.stdin.read)
    while asked.most is not None and sender.sent.total() < asked.most:
        await asyncio.sleep(0.1)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    print(json.dumps(sender.figures()))


if __name__ == "__main__":
    asyncio.run(main())
