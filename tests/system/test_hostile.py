"""A short run of ``make hostile``: everything honest is answered, and what a hostile sender takes up is bounded; and its judgement sees what it must."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from system.hostile.messages import KINDS
from system.hostile.outcome import ALONE, BESIDE, Outcome
from system.hostile.run import Plan, attack


@pytest.mark.timeout(600)
async def test_a_hostile_sender_at_full_speed_fills_nothing_and_no_honest_message_goes_without_its_answer(
    tmp_path: Path,
):
    out = Console(width=200)
    plan = Plan(hostile=12, alone=4, seed=5, rate=5, most=6_000, room=200, timed=False)
    outcome = await attack(tmp_path, plan, out)
    out.print(outcome.table())
    assert outcome.violations == []
    assert len(outcome.times(BESIDE, list(outcome.took[BESIDE]))) == 60
    assert outcome.sent["sent"].keys() >= KINDS.keys()
    assert outcome.longest >= 200, "no queue was ever full"


GOOD = Outcome(
    seed=1,
    took={ALONE: {"tags": [0.1] * 99 + [0.2], "get": [0.1]}, BESIDE: {"tags": [0.2] * 100, "get": [0.2]}},
    answers={"succeeded": 202},
    not_sent=0,
    asked_again=0,
    unanswered=[],
    sent={"sent": {"malformed": 100}, "bytes": 0},
    seconds=1.0,
    recovery=1.0,
    cpu={},
    figures=[("memory of lifecycle", "MiB", 512.0, 512.0)],
    also={},
    longest=0,
    timed=True,
)


def test_what_is_within_its_bounds_is_no_violation():
    assert GOOD.violations == []
    assert dict(GOOD.ratios) == {"commands": 2.0, "queries": 2.0}


@pytest.mark.parametrize(
    "broken",
    [
        {"figures": [("memory of lifecycle", "MiB", 513.0, 512.0)]},
        {"unanswered": ["tags"]},
        {"took": {**GOOD.took, BESIDE: {"tags": [0.2] * 98 + [0.3] * 2, "get": [0.1]}}},
        {"took": {**GOOD.took, BESIDE: {"tags": [0.2], "get": []}}},
    ],
)
def test_every_bound_that_is_broken_is_seen(broken: dict[str, object]):
    outcome = replace(GOOD, **broken)  # type: ignore[arg-type]
    assert len(outcome.violations) == 1
    assert outcome.table().row_count > 10
