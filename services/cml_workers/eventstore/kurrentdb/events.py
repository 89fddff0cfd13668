"""Recorded events as the port has them."""

from datetime import UTC, datetime

from kurrentdbclient import RecordedEvent

from cml_workers.eventstore.port import StoredEvent


def position(event: RecordedEvent) -> str:
    """Its place in the store, or that of a checkpoint."""
    return f"C:{event.commit_position}/P:{event.prepare_position}"


def stored(event: RecordedEvent) -> StoredEvent:
    """It."""
    return StoredEvent(
        event_id=event.id,
        type=event.type,
        data=event.data,
        metadata=event.metadata,
        stream=event.stream_name,
        revision=event.stream_position,
        position=position(event),
        recorded_at=event.recorded_at or datetime.fromtimestamp(0, UTC),
    )
