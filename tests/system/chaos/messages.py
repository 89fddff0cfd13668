"""Messages that pass in clear between each role and each part: where chaos breaks the network."""

from collections.abc import Mapping, Sequence
from typing import Literal

from cml_contracts.commands import (
    CreateCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
    UpdateCMLWorkerTags,
)
from cml_contracts.events import (
    CommandRejected,
    InstanceLaunched,
    InstanceStateObserved,
    InstanceStopping,
    LaunchRequested,
    StartRequested,
    StopFailed,
    StopRequested,
    TagsUpdateRequested,
    TerminationRequested,
    WorkerTerminated,
)
from cml_workers.bus.codec import RESULT_TYPE
from cml_workers.domain.messages import InstanceObserved, LookupAnswered, LookupRequested, OperationSucceeded
from cml_workers.eventstore.command_streams import BOUND
from support.tcp_proxy import Towards

Part = Literal["rabbitmq", "postgresql", "ec2", "kurrentdb"]
Passing = tuple[bytes, Towards]

COMMANDS = (
    CreateCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerTags,
    UpdateCMLWorkerStatus,
)
EVENTS = (
    LaunchRequested,
    InstanceLaunched,
    StartRequested,
    StopRequested,
    InstanceStopping,
    TagsUpdateRequested,
    TerminationRequested,
    WorkerTerminated,
    InstanceStateObserved,
)
REPORTS = (OperationSucceeded, InstanceObserved, LookupAnswered)
SUPERSEDED_REPLY = b"superseded by the termination"
"""In the body of a reply to the caller of a start or stop: sent by whoever handles another caller's termination."""
TERMINATION_APPENDED = TerminationRequested.TYPE.encode()


def _all(towards: Towards, *types: type) -> list[Passing]:
    return [(each.TYPE.encode(), towards) for each in types]  # type: ignore[attr-defined]  # each has one


_REPLY: Passing = (RESULT_TYPE.encode(), "server")
_STATEMENTS: list[Passing] = [(b"BEGIN;", "server"), (b"COMMIT;", "server"), (b"COMMIT\0", "client")]
_CALLS = (
    "RunInstances",
    "StartInstances",
    "StopInstances",
    "TerminateInstances",
    "CreateTags",
    "DescribeInstances",
)

MESSAGES: Mapping[tuple[str, Part], Sequence[Passing]] = {
    ("callers", "rabbitmq"): [*_all("server", *COMMANDS), (RESULT_TYPE.encode(), "client")],
    ("lifecycle", "rabbitmq"): [
        *_all("client", *COMMANDS, *REPORTS),
        *[_REPLY] * 6,
        *_all("server", LookupRequested),
    ],
    ("relay", "rabbitmq"): _all("server", *EVENTS),
    ("ec2-adapter", "rabbitmq"): [
        *_all("client", LaunchRequested, StopRequested, TerminationRequested, LookupRequested),
        *_all("server", *REPORTS),
    ],
    ("lifecycle", "kurrentdb"): [
        *_all("server", *EVENTS, StopFailed, CommandRejected),
        *_all("client", StopRequested, TerminationRequested),
        (BOUND.encode(), "server"),
    ],
    ("relay", "kurrentdb"): _all("client", *EVENTS),
    ("ec2-adapter", "kurrentdb"): _all("client", *EVENTS),
    ("projector", "kurrentdb"): _all("client", *EVENTS),
    ("relay", "postgresql"): _STATEMENTS,
    ("projector", "postgresql"): [*_STATEMENTS, (b"INSERT 0 1", "client")],
    ("ec2-adapter", "ec2"): [
        *[(f"Action={call}".encode(), "server") for call in _CALLS],
        *[(f"<{call}Response".encode(), "client") for call in _CALLS],
    ],
}
"""By role and part; what is there more often is chosen more often."""

SILENCES: Mapping[Part, tuple[float, float]] = {
    "rabbitmq": (7.0, 10.0),
    "kurrentdb": (11.0, 14.0),
    "postgresql": (2.0, 8.0),
    "ec2": (2.0, 6.0),
}
"""Seconds: longer than the heartbeat, than a call's deadline. For EC2 see ``GRACE``."""
