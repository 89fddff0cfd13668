"""A consumer of commands that dies of one of them, begun again each time, as an orchestrator does.

Run as a program: takes the broker's URL, says which messages it has done and when it died, one a line.
"""

import asyncio
import os
import signal
import sys

from cml_workers.bus.port import Ack, Message, Verdict
from cml_workers.bus.rabbit import RabbitBus, consuming
from cml_workers.bus.topology import LIFECYCLE_COMMANDS
from support.children import die_with_parent

POISON = "poison"


async def consume(url: str) -> None:
    async def handle(message: Message) -> Verdict:
        if message.message_id == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(0.01)  # what every handler does: wait for a store
        print("done", message.message_id, flush=True)
        return Ack()

    bus = RabbitBus(url, name="mortal", declare=False)
    bus.consume(LIFECYCLE_COMMANDS, handle, prefetch=10)
    async with bus:
        await asyncio.Event().wait()


def main() -> None:
    consuming.SUSPENSE = 0.2
    for _ in range(60):
        process = os.fork()
        if process == 0:
            die_with_parent()
            asyncio.run(consume(sys.argv[1]))
        os.waitpid(process, 0)
        print("died", flush=True)


if __name__ == "__main__":
    main()
