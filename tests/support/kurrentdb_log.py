"""The log of the KurrentDB stand-in: records by stream, in the order in which they were appended."""

import contextlib
import json
import os
import pickle
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from kurrentdbclient.protos.v1 import (
    shared_pb2,
    streams_pb2,
)

TOMBSTONE = 2**63 - 1
"""The revision of a tombstone, and the ``$tb`` (truncate before) of a soft-deleted stream."""


NO_STREAM, ANY, EXISTS = -1, -2, -4


ReadResponse = streams_pb2.ReadResp


@dataclass(frozen=True, slots=True)
class Record:
    """An event as it lies in the log."""

    stream: str
    revision: int
    position: int
    event_id: str
    type: str
    content_type: str
    data: bytes
    metadata: bytes
    created: int
    """In ticks of 100 ns since 1970."""


@dataclass(slots=True)
class Log:
    """Everything stored; survives a restart of the server."""

    records: list[Record] = field(default_factory=list)
    streams: dict[str, list[Record]] = field(default_factory=dict)
    _file: int | None = None

    def keep_in(self, path: Path) -> None:
        """Begin with what is kept in this file, and keep there what is appended: it outlives the process."""
        path.touch()
        with path.open("rb") as file, contextlib.suppress(EOFError):
            while True:
                for record in pickle.load(file):
                    self.records.append(record)
                    self.streams.setdefault(record.stream, []).append(record)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def append(self, stream: str, events: Iterable[streams_pb2.BatchAppendReq.ProposedMessage]) -> Record:
        """Write behind the stream's last event; return the last record."""
        there = self.streams.setdefault(stream, [])
        before = len(there)
        for event in events:
            # As at the server, a position is a place in bytes: it grows by more than one.
            position = self.records[-1].position + 64 + len(self.records[-1].data) if self.records else 0
            record = Record(
                stream=stream,
                revision=TOMBSTONE if event.metadata["type"] == "$streamDeleted" else len(there),
                position=position,
                event_id=event.id.string,
                type=event.metadata["type"],
                content_type=event.metadata["content-type"],
                data=event.data,
                metadata=event.custom_metadata,
                created=time.time_ns() // 100,
            )
            there.append(record)
            self.records.append(record)
        if self._file is not None:
            os.write(
                self._file, pickle.dumps(there[before:])
            )  # whole, or not at all if the process is killed
        return there[-1]

    def append_system(self, stream: str, type_: str, data: bytes) -> Record:
        return self.append(
            stream,
            [
                streams_pb2.BatchAppendReq.ProposedMessage(
                    id=shared_pb2.UUID(string=str(uuid4())),
                    metadata={"type": type_, "content-type": "application/json"},
                    data=data,
                )
            ],
        )

    def head(self, stream: str) -> int:
        there = self.streams.get(stream)
        return there[-1].revision if there else NO_STREAM

    def truncated_before(self, stream: str) -> int:
        described = self.streams.get(f"$${stream}")
        if not described:
            return 0
        metadata = json.loads(described[-1].data)
        counted = self.head(stream) + 1 - metadata["$maxCount"] if "$maxCount" in metadata else 0
        return int(max(metadata.get("$tb", 0), counted))

    def scavenge(self) -> None:
        """Take away what is truncated, as the server does now and then; the last record stays, with its part of the log."""
        self.records = [
            each
            for each in self.records
            if each is self.records[-1] or each.revision >= self.truncated_before(each.stream)
        ]

    def describe(self, stream: str, metadata: Mapping[str, int]) -> Record:
        return self.append_system(f"$${stream}", "$metadata", json.dumps(metadata).encode())


def read_event(record: Record) -> ReadResponse:
    return ReadResponse(
        event=ReadResponse.ReadEvent(
            event=ReadResponse.ReadEvent.RecordedEvent(
                id=shared_pb2.UUID(string=record.event_id),
                stream_identifier=shared_pb2.StreamIdentifier(stream_name=record.stream.encode()),
                stream_revision=record.revision,
                prepare_position=record.position,
                commit_position=record.position,
                metadata={
                    "type": record.type,
                    "content-type": record.content_type,
                    "created": str(record.created),
                },
                custom_metadata=record.metadata,
                data=record.data,
            ),
            commit_position=record.position,
        )
    )
