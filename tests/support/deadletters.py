"""What is kept of dead letters, as an operator sees it over the bus."""

import asyncio
from typing import Any

from cml_contracts.client import WorkerClient
from cml_contracts.deadletters import DeadLetterDetails, DeadLetterPage, GetDeadLetter, ListDeadLetters


async def dead_letters(client: WorkerClient, count: int = 1, **conditions: Any) -> list[DeadLetterDetails]:
    """Wait until that many, or more, meet the conditions; all there is to know of them, the latest first."""
    wanted = ListDeadLetters.model_validate({"limit": 500, **conditions})
    async with asyncio.timeout(60):
        while True:
            page = DeadLetterPage.model_validate((await client.operate(wanted)).data)
            if len(page.dead_letters) >= count:
                break
            await asyncio.sleep(0.1)
    asked = [await client.operate(GetDeadLetter(dead_letter_id=each.id)) for each in page.dead_letters]
    return [DeadLetterDetails.model_validate(result.data) for result in asked]
