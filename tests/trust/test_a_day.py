"""After a day of honest and hostile use the audit trail is true, and whatever would not be is seen; ``make day`` is the same, longer."""

import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from rich.console import Console

from cml_workers.domain.history import Recorded
from trust.day.ledger import Expected, Ledger, Trail, judged
from trust.day.run import Outcome, live

SECONDS = float(os.environ.get("TEST_DAY_SECONDS", "25"))
SEED = int(os.environ.get("TEST_DAY_SEED", "4"))


def _changed(trail: Trail, change: Callable[[Recorded], dict[str, Any]]) -> Trail:
    """The first event of a command has other metadata."""
    events = {worker_id: list(history) for worker_id, history in trail.events.items()}
    worker_id, place = next(
        (worker_id, place)
        for worker_id, history in events.items()
        for place, each in enumerate(history)
        if each.metadata.user
    )
    recorded = events[worker_id][place]
    metadata = recorded.metadata.model_copy(update=change(recorded))
    events[worker_id][place] = replace(recorded, metadata=metadata)
    return replace(trail, events=events)


def _counted(trail: Trail, by: int) -> Trail:
    """Of the user who was denied last, as many more attempts are counted."""
    denials = deepcopy([*trail.denials])
    last: Any = denials[-1]
    user = next(iter(last["users"]))
    last["users"][user] += by
    last["total"] += by
    return replace(trail, denials=denials)


def _described(trail: Trail) -> Trail:
    """A denied attempt names a victim."""
    denials = deepcopy([*trail.denials])
    attempt: Any = next(each for content in denials for each in content["attempts"])
    attempt["user"] = "ann"
    return replace(trail, denials=denials)


UNTRUE: dict[str, tuple[Callable[[Trail], Trail], str]] = {
    "another actor": (lambda trail: _changed(trail, lambda _: {"actor": "ceo"}), "names"),
    "another user": (lambda trail: _changed(trail, lambda _: {"user": "ceo"}), "names 'ceo'"),
    "another command": (
        lambda trail: _changed(trail, lambda _: {"command_id": str(uuid4())}),
        "who sent []",
    ),
    "another's reason": (lambda trail: _changed(trail, lambda _: {"reason": "mine"}), "who sent"),
    "nobody": (lambda trail: _changed(trail, lambda _: {"user": None, "actor": None}), "names no user"),
    "an actor of no user": (lambda trail: _changed(trail, lambda _: {"user": None}), "of no user"),
    "an event is gone": (
        lambda trail: replace(trail, events={**trail.events, next(iter(trail.events)): []}),
        "no event is of",
    ),
    "one attempt more": (lambda trail: _counted(trail, 1000), "are counted as denied"),
    "one attempt less": (lambda trail: _counted(trail, -1), "are counted as denied"),
    "a victim's attempt": (_described, "is described"),
    "a dead letter of a victim": (
        lambda trail: replace(
            trail, letters=[trail.letters[0].model_copy(update={"user": "ann"}), *trail.letters[1:]]
        ),
        "names 'ann'",
    ),
    "a dead letter less": (
        lambda trail: replace(
            trail, letters=[each for each in trail.letters if each.cause == "Unauthorized"]
        ),
        "is a dead letter 0 times",
    ),
    "an instance more": (
        lambda trail: replace(
            trail,
            instances=[*trail.instances, {"instance_id": "i-1", "tags": {"cml:worker-id": "x"}, "state": ""}],
        ),
        "instances that nobody asked for",
    ),
    "an instance was tagged": (
        lambda trail: replace(trail, foreign={each: tags and {} for each, tags in trail.foreign.items()}),
        "is nobody's here",
    ),
    "published as another's": (
        lambda trail: replace(
            trail, published=[each.model_copy(update={"actor": "ceo"}) for each in trail.published]
        ),
        "is published as",
    ),
    "published and not recorded": (
        lambda trail: replace(
            trail, published=[*trail.published, trail.published[0].model_copy(update={"id": uuid4()})]
        ),
        "is not recorded",
    ),
}


def _unseen(ledger: Ledger, trail: Trail) -> list[str]:
    """What is not true, and is not seen to be so."""
    return [
        what
        for what, (change, said) in UNTRUE.items()
        if not any(said in each for each in judged(ledger, change(trail)))
    ]


def _never(outcome: Outcome) -> list[str]:
    """What was to be tried, and was not."""
    done = {name.partition(": ")[2] for name, count in outcome.counts.items() if count}
    return [each for each in outcome.attacks if each not in done]


@pytest.mark.timeout(580)
async def test_the_audit_trail_is_true_after_a_day_of_honest_and_hostile_use(tmp_path: Path):
    outcome = await live(tmp_path, seed=SEED, seconds=SECONDS)
    Console(width=200).print(outcome.table(), *outcome.violations, sep="\n", markup=False)
    assert outcome.violations == []
    assert _never(outcome) == []
    assert all(outcome.ledger.of(expected) for expected in Expected)
    assert _unseen(outcome.ledger, outcome.trail) == []
