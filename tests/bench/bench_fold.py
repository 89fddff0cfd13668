"""The fold of short and long streams: ``PYTHONPATH=tests python tests/bench/bench_fold.py``.

A load must cost as much for each event of a long stream as for those of a short one.
"""

import statistics
import time

from cml_contracts.events import CommandRejected, WorkerEvent
from cml_contracts.results import Problem
from cml_workers.worker import Recorded, Worker, fold
from support.given import NOW, WORKER, recorded

LENGTHS = (50, 500, 5_000)
PROBLEM = Problem(code="Conflict", title="not now", detail="it is stopped", retryable=False)


def _refused(number: int) -> WorkerEvent:
    return CommandRejected(
        operation_id=f"c-{number}", command_type="cml.worker.start.v1", outcome="rejected", problem=PROBLEM
    )


def _seconds(history: list[Recorded]) -> float:
    began = time.perf_counter()
    fold(WORKER, history)
    return time.perf_counter() - began


def main() -> None:
    worker = Worker(WORKER)
    histories = [
        [recorded(worker, _refused(number), NOW, "m") for number in range(length)] for length in LENGTHS
    ]
    rounds = [[_seconds(history) for history in histories] for _ in range(7)]
    for length, seconds in zip(LENGTHS, zip(*rounds, strict=True), strict=True):
        each = statistics.median(seconds)
        print(
            f"{length:6} events of as many commands: {each * 1e3:8.2f} ms, {each / length * 1e6:6.2f} us an event"
        )


if __name__ == "__main__":
    main()
