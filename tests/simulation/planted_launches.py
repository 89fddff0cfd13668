"""Deliberate faults of launching a worker again."""

from uuid import UUID

import pytest

from cml_contracts.commands import CreateCMLWorker
from cml_workers.domain import creation, observations
from cml_workers.domain.worker import Worker


def old_token_again(patch: pytest.MonkeyPatch) -> None:
    """Each launch of a worker has the token of its first."""
    original = creation.launch_token

    def launch_token(deployment: str, worker_id: UUID, _generation: int) -> str:
        return original(deployment, worker_id, 1)

    patch.setattr(creation, "launch_token", launch_token)


def old_generation_again(patch: pytest.MonkeyPatch) -> None:
    """A worker that is launched again is launched as it was."""
    original = creation._next_generation

    def next_generation(worker: Worker, command: CreateCMLWorker) -> int:
        return original(worker, command) and (worker.generation or 1)

    patch.setattr(creation, "_next_generation", next_generation)


def again_while_pending(patch: pytest.MonkeyPatch) -> None:
    """A worker is launched again before it is known that its launch has failed."""
    original = creation._next_generation

    def next_generation(worker: Worker, command: CreateCMLWorker) -> int:
        pending = worker.exists and not worker.terminated and worker.instance is None
        return worker.generation + 1 if pending else original(worker, command)

    patch.setattr(creation, "_next_generation", next_generation)


def dead_at_birth_ignored(patch: pytest.MonkeyPatch) -> None:
    """EC2 accepted the launch, so it is done, whatever becomes of its instance."""
    patch.setattr(observations, "died_at_birth", lambda *_: [])


LAUNCHES = (old_token_again, old_generation_again, again_while_pending)
