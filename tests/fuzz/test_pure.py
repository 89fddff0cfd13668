"""What is read, decided and folded, for any input: an answer or a refusal, and never another error."""

import base64
import contextlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from aiormq import spec
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from cml_contracts.commands import COMMANDS
from cml_contracts.envelope import EventEnvelope
from cml_contracts.events import (
    EVENTS,
    InstanceLaunched,
    InstanceStopping,
    LaunchRequested,
    StartRequested,
    StopRequested,
    TagsUpdateRequested,
    WorkerEvent,
)
from cml_contracts.instance import InstanceState
from cml_contracts.queries import QUERIES, ListCMLWorkers
from cml_contracts.results import OperationResult
from cml_contracts.tokens import InvalidTokenError, sign, verify
from cml_workers.bus.codec import BadMessageError, identity, read, reply
from cml_workers.bus.port import Message
from cml_workers.bus.rabbit.properties import UNREADABLE_HEADER, read_tolerantly
from cml_workers.domain.decide import decide
from cml_workers.domain.decisions import Decision, Record
from cml_workers.domain.fold import evolve
from cml_workers.domain.history import ReplyAddress, decode_event
from cml_workers.domain.messages import (
    REPORTS,
    CommandMessage,
    InstanceObserved,
    LookupRequested,
    OperationFailed,
    OperationSucceeded,
)
from cml_workers.domain.policy import Policy
from cml_workers.domain.reports import decide_report
from cml_workers.domain.worker import Worker
from cml_workers.ec2_adapter.next_action import next_actions
from cml_workers.readmodels.workers.fold import of_event, worker_row
from cml_workers.readmodels.workers.queries import InvalidCursorError, _read_cursor
from fuzz.strategies import (
    STEADY,
    anything,
    commands,
    instances,
    lookup_results,
    moments,
    nearly,
    problems,
    queries,
    texts,
)
from support.given import NOW, POLICY, WORKER, created, evolved, instance, launch, recorded

EXAMPLES = Path(__file__).parents[2] / "contracts" / "examples"
INBOUND: dict[str, type[BaseModel]] = {
    **COMMANDS,
    **QUERIES,
    **REPORTS,
    LookupRequested.TYPE: LookupRequested,
}


def examples(types: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The frozen examples of these types."""
    return st.sampled_from([json.loads((EXAMPLES / f"{name}.json").read_text()) for name in sorted(types)])


def refused_readably(message: Message) -> None:
    """Read, or refused in words that can be logged, sent and kept."""
    try:
        read(message, INBOUND)
    except BadMessageError as error:
        detail = error.problem.detail
        assert detail
        assert len(detail) < 4_000
        address = ReplyAddress(reply_to="caller")
        result = OperationResult(command_id=message.message_id, outcome="rejected", problem=error.problem)
        assert OperationResult.model_validate_json(reply(result, address).body) == result


@STEADY
@given(body=st.binary(), kind=st.sampled_from(sorted(INBOUND)) | st.text(max_size=255))
def test_any_bytes_of_any_type_are_read_or_refused(body: bytes, kind: str):
    refused_readably(Message(body=body, type=kind))


@STEADY
@given(fields=nearly(examples(INBOUND)), kind=st.sampled_from(sorted(INBOUND)))
def test_what_is_nearly_valid_is_read_or_refused(fields: dict[str, Any], kind: str):
    refused_readably(Message(body=json.dumps(fields).encode(), type=kind))


@STEADY
@given(st.data())
def test_examples_with_other_bytes_are_read_or_refused(data: st.DataObject):
    kind = data.draw(st.sampled_from(sorted(INBOUND)))
    body = bytearray((EXAMPLES / f"{kind}.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body)))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    refused_readably(Message(body=bytes(body), type=kind))


@STEADY
@given(body=st.one_of(commands(), queries()))
def test_what_the_contracts_take_is_read_as_it_was_meant(body: Any):
    message = Message(body=body.model_dump_json(exclude_none=True).encode(), type=body.TYPE)
    assert read(message, INBOUND) == body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        "{}".encode("utf-32"),
        b'{"name": "\xed\xa0\x80"}',
        b'{"name": "\\ud800"}',
        b'{"name": NaN}',
        b'{"name": 1e400}',
        b'{"name": ' + b"1" * 5_000 + b"}",
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"name": "a\x00b"}',
        b'{"name": "a\\u0000b"}',
        b'{"name": "' + b"x" * 70_000 + b'"}',
    ],
    ids=range(14),
)
def test_what_is_no_json_of_ours_is_refused(body: bytes):
    with pytest.raises(BadMessageError):
        read(Message(body=body, type="cml.worker.create.v1"), INBOUND)


@pytest.mark.parametrize(("spelt", "refused"), [(r"\u0000", True), (r"\\u0000", False), (r"\\\u0000", True)])
def test_nul_is_seen_however_it_is_escaped(spelt: str, refused: bool):
    message = Message(body=b'{"tag": "%s"}' % spelt.encode(), type=ListCMLWorkers.TYPE)
    with pytest.raises(BadMessageError) if refused else contextlib.nullcontext():
        read(message, INBOUND)


@STEADY
@given(st.none() | st.text() | texts(200))
def test_an_identity_is_printable_or_refused(message_id: str | None):
    message = Message(body=b"", type="", message_id=message_id)
    with contextlib.suppress(BadMessageError):
        known = identity(message)
        assert known == message_id
        assert known.isprintable()
        assert " " not in known


@STEADY
@given(nearly(st.just(json.loads((EXAMPLES / "cml.event_envelope.v1.json").read_text()))) | anything())
def test_a_cloudevent_is_read_or_refused(attributes: Any):
    with contextlib.suppress(ValidationError, AttributeError, TypeError):
        envelope = EventEnvelope.from_cloudevent(attributes)
        assert EventEnvelope.from_cloudevent(envelope.to_cloudevent()).worker_id == envelope.worker_id


@STEADY
@given(kind=st.sampled_from(sorted(EVENTS)), fields=nearly(examples(dict(EVENTS))))
def test_a_stored_event_decodes_or_is_refused(kind: str, fields: dict[str, Any]):
    with contextlib.suppress(ValidationError):
        event = decode_event(kind, json.dumps(fields))
        assert decode_event(kind, event.model_dump_json()) == event


@STEADY
@given(token=st.text() | st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode() + "."))
def test_a_token_is_ours_or_refused(token: str):
    with pytest.raises(InvalidTokenError):
        verify(token, [b"k" * 32], user="u", command_id="c", command_type="t", body=b"", now=NOW)


@STEADY
@given(st.data())
def test_no_part_of_a_token_can_be_changed(data: st.DataObject):
    token = sign(b"k" * 32, actor="ann", user="u", command_id="c", command_type="t", body=b"", expires=NOW)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda letter: letter != token[at]))
    with pytest.raises(InvalidTokenError):
        verify(
            token[:at] + other + token[at + 1 :],
            [b"k" * 32],
            user="u",
            command_id="d",
            command_type="t",
            body=b"",
            now=NOW,
        )


@STEADY
@given(st.text(max_size=300) | anything().map(json.dumps).map(str.encode).map(base64.urlsafe_b64encode))
def test_a_cursor_is_ours_or_refused(cursor: str | bytes):
    text = cursor.decode() if isinstance(cursor, bytes) else cursor
    with pytest.raises(InvalidCursorError):
        _read_cursor(ListCMLWorkers.model_construct(cursor=text, sort="name"))


@STEADY
@given(flags=st.integers(0, 2**16 - 1), data=st.binary(max_size=200))
def test_any_properties_are_read_or_said_to_be_unreadable(flags: int, data: bytes):
    read_tolerantly()
    properties = spec.Basic.Properties()
    properties.unmarshal(flags, data)
    if UNREADABLE_HEADER in (properties.headers or {}):
        assert properties.message_id is None


# -- histories --------------------------------------------------------------------------------------------

CREATED = created()
LAUNCH = LaunchRequested(operation_id="create", launch=launch())
RUNNING = InstanceLaunched(operation_id="create", instance=instance())
STOP = StopRequested(operation_id="stop")
STOPPED = InstanceStopping(operation_id="stop", instance=instance(InstanceState.STOPPED))
LIVES: list[list[WorkerEvent]] = [
    [],
    [CREATED, LAUNCH],
    [CREATED, LAUNCH, RUNNING],
    [CREATED, LAUNCH, RUNNING, STOP],
    [CREATED, LAUNCH, RUNNING, STOP, STOPPED],
    [CREATED, LAUNCH, RUNNING, STOP, STOPPED, StartRequested(operation_id="start")],
    [CREATED, LAUNCH, RUNNING, TagsUpdateRequested(operation_id="tags", tags={"a": "1"})],
]
"""Where a worker may have come to before the steps are taken."""
STEP = st.one_of(
    st.tuples(st.just("command"), commands(), st.none() | lookup_results()),
    st.tuples(st.just("succeeded"), instances(), st.none() | st.text(max_size=8)),
    st.tuples(st.just("succeeded"), st.none(), st.none()),
    st.tuples(st.just("failed"), problems(), st.none()),
    st.tuples(st.just("observed"), st.none() | instances(), st.integers(-1, 9)),
)


def decision_on(step: tuple[str, Any, Any], number: int, worker: Worker, policy: Policy, at: Any) -> Decision:
    """What the rules make of it; they raise nothing."""
    kind, what, more = step
    if kind == "command":
        message = CommandMessage(
            command_id=f"c-{number}", command=what, command_type=what.TYPE, correlation_id="thread"
        )
        return decide(message, worker, policy=policy, now=at, looked_up=more)
    if kind == "observed":
        return decide_report(InstanceObserved(worker_id=WORKER, seen_revision=more, instance=what), worker)
    pending = list(worker.operations)
    operation_id = pending[number % len(pending)] if pending else "never-asked"
    report = (
        OperationSucceeded(worker_id=WORKER, operation_id=operation_id, instance=what, warning=more)
        if kind == "succeeded"
        else OperationFailed(worker_id=WORKER, operation_id=operation_id, problem=what)
    )
    return decide_report(report, worker)


def can_be_kept(worker: Worker, events: list[WorkerEvent], at: datetime, cause: str) -> None:
    """The read model's columns hold what the worker shows after these events, and their operations."""
    for event in events:
        happened = recorded(worker, event, at, cause)
        before, worker = worker, evolve(worker, happened)
        for change in of_event(before, happened, worker):
            ids = {"command_id", "sent_id", "operation_id"} & change.row.keys()
            assert all(len(change.row[each]) <= 256 for each in ids)
    row = worker_row(worker)
    if row is not None:
        assert len(row.name) <= 256
        assert len(row.owner) <= 128
        assert len(row.aws_region) <= 32
        assert all(len(key) <= 128 and len(value) <= 256 for key, value in row.tags.items())
        assert "\x00" not in row.name + row.owner + "".join([*row.tags, *row.tags.values()])


@settings(STEADY, max_examples=600)
@given(life=st.sampled_from(LIVES), steps=st.lists(st.tuples(STEP, moments()), min_size=3, max_size=12))
def test_whatever_is_decided_can_be_folded_shown_and_decided_upon(life: list[WorkerEvent], steps: list[Any]):
    worker = evolved(Worker(WORKER), life)
    for number, (step, at) in enumerate(steps):
        before = worker
        decision = decision_on(step, number, worker, POLICY, at)
        if not isinstance(decision, Record):
            continue
        events = list(decision.events)
        assert [
            decode_event(event.TYPE, event.model_dump_json(exclude_none=True)) for event in events
        ] == events
        worker = evolved(worker, events, at, f"c-{number}")
        assert worker.revision == before.revision + len(events)
        next_actions(worker)
        can_be_kept(before, events, at, f"c-{number}")
    if worker.terminated:
        assert next_actions(worker) == []
