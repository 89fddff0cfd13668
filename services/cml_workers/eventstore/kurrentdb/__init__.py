"""The event store on KurrentDB or EventStoreDB."""

from cml_workers.eventstore.kurrentdb.store import KurrentDbEventStore

__all__ = ["KurrentDbEventStore"]
