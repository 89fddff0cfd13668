"""Hostile messages against the roles as processes; ``make fuzz`` is the same, longer."""

from pathlib import Path

import pytest

from fuzz.attack import Attack
from support.postgresql import database_of_its_own

MESSAGES = 2_000


@pytest.mark.timeout(240)
async def test_every_hostile_message_is_accounted_for_and_hurts_nobody(
    rabbitmq_url: str, postgresql_url: str, tmp_path: Path
):
    async with (
        database_of_its_own(postgresql_url) as database,
        Attack(rabbitmq_url, database, tmp_path) as attack,
    ):
        outcome = await attack.run(MESSAGES, seed=7, bodies=150, patient=False, report=lambda _line: None)
    print(outcome.summary())
    assert outcome.problems == []
    assert len(outcome.books.sent) == MESSAGES
    assert len(outcome.books.dead) > MESSAGES / 3
    assert len(outcome.books.answered) > MESSAGES / 3
