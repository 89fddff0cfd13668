"""Events in a follower's quarantine as dead letters: seen by operators, and decided about."""

from uuid import uuid4

import pytest

from cml_contracts.deadletters import (
    DeadLetterDetails,
    DeadLetterState,
    DiscardDeadLetter,
    EditDeadLetter,
    RedriveDeadLetter,
)
from cml_workers.deadletters.archive import Archive
from cml_workers.eventstore.names import WORKER_STREAMS
from cml_workers.eventstore.port import StoreUnavailableError, StreamDeletedError
from cml_workers.eventstore.quarantine import RELAY, Broken, Quarantine, What
from support.broken import append_raw, binary, newer_type
from support.dead_letter_service import Service


async def held(
    service: Service, *, stream: str | None = None, gone: bool = False
) -> tuple[Quarantine, DeadLetterDetails]:
    """What the relay records of a broken event, and its dead letter."""
    if stream is None:
        stream = f"{WORKER_STREAMS}{uuid4()}"
        await append_raw(service.store, stream, newer_type(), binary())
    _, event = await service.store.read(stream)
    quarantine = Quarantine(service.store, RELAY)
    await quarantine.load()
    error = StreamDeletedError("truncated") if gone else ValueError("it is no JSON")
    await quarantine.hold(Broken.of(event, error))
    await service.quarantined.collect()
    letter = await service.the_letter(cause="Quarantined", state="waiting")
    assert letter.reason.startswith(f"{stream}@1 at position {event.position}: ")
    return quarantine, letter


async def test_an_event_in_quarantine_is_a_dead_letter_until_it_is_taken_up(service: Service):
    quarantine, letter = await held(service)
    assert (letter.queue, letter.state, letter.deaths) == ("cml_quarantine-relay", "waiting", 1)
    assert (letter.headers["revision"], letter.encoding) == (1, "base64")
    await service.quarantined.collect()  # once
    stream = letter.headers["stream"]
    result = await service.ask(RedriveDeadLetter(dead_letter_id=letter.id, by="ann", reason="updated"))
    assert result.problem is None
    letter = await service.until(letter, state=DeadLetterState.REDRIVEN, redrives=1)
    last = letter.history[-1]
    assert (last.what, last.by, last.reason, last.user) == ("redriven", "ann", "updated", "guest")
    await quarantine.load()
    decision = quarantine.cases[stream].decision
    assert decision is not None
    assert (decision.what, decision.by, decision.user) == (What.TAKEN_UP, "ann", "guest")
    again = await service.ask(RedriveDeadLetter(dead_letter_id=letter.id))
    assert again.problem
    assert again.problem.detail == f"{stream}@1 was taken up already"

    # It cannot be handled yet: the same dead letter.
    _, same = await held(service, stream=stream)
    assert (same.id, same.deaths, same.redrives) == (letter.id, 2, 1)


async def test_what_is_discarded_is_skipped_for_good_with_its_reason(service: Service):
    quarantine, letter = await held(service)
    result = await service.ask(DiscardDeadLetter(dead_letter_id=letter.id, reason="not ours", by="ann"))
    assert result.problem is None
    letter = await service.until(letter, state=DeadLetterState.DISCARDED)
    await quarantine.load()
    stream = letter.headers["stream"]
    assert quarantine.skips(stream, 1)
    assert not quarantine.skips(stream, 2)
    decision = quarantine.cases[stream].decision
    assert decision is not None
    assert (decision.what, decision.reason) == (What.SKIPPED, "not ours")
    for request in (
        RedriveDeadLetter(dead_letter_id=letter.id),
        DiscardDeadLetter(dead_letter_id=letter.id, reason="again"),
    ):
        again = await service.ask(request)
        assert again.problem
        assert again.problem.code == "Conflict"
        assert "was skipped already" in again.problem.detail


async def test_what_was_truncated_can_be_taken_up_again_once_it_is_restored(service: Service):
    quarantine, letter = await held(service, gone=True)
    stream = letter.headers["stream"]
    await service.ask(DiscardDeadLetter(dead_letter_id=letter.id, reason="lost"))
    await quarantine.load()
    assert quarantine.omits(stream, 7)
    result = await service.ask(RedriveDeadLetter(dead_letter_id=letter.id))
    assert result.problem is None
    await quarantine.load()
    assert not quarantine.omits(stream)
    await service.until(letter, state=DeadLetterState.REDRIVEN)


async def test_an_event_is_never_edited(service: Service):
    _, letter = await held(service)
    result = await service.ask(EditDeadLetter(dead_letter_id=letter.id, body="{}"))
    assert result.problem
    assert result.problem.code == "Conflict"
    assert "an event is never changed" in result.problem.detail


async def test_a_decision_counts_though_the_archive_does_not_know_it_yet(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    """The projector dies between the two."""
    quarantine, letter = await held(service)

    async def dies(*_: object) -> None:
        raise StoreUnavailableError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(Archive, "discarded", dies)
        archived = await service.archive.find(letter.id)
        assert archived is not None
        with pytest.raises(StoreUnavailableError):
            await service.letters._decide(
                DiscardDeadLetter(dead_letter_id=letter.id, reason="not ours"), archived.letter, "guest"
            )
    await quarantine.load()
    assert quarantine.skips(letter.headers["stream"], 1)
    await service.until(letter, state=DeadLetterState.WAITING)
    await service.quarantined.collect()
    letter = await service.until(letter, state=DeadLetterState.DISCARDED)
    assert [each.what for each in letter.history] == ["died", "discarded"]
