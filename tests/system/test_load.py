"""The load of mixed commands that long runs send."""

from uuid import UUID

from cml_contracts.commands import WorkerCommand
from cml_contracts.results import OperationResult
from support.load import Load


class Sent:
    """Callers who are answered at once."""

    def __init__(self) -> None:
        self.commands: list[WorkerCommand] = []
        self.ids: list[str] = []
        self.replies: dict[str, list[OperationResult]] = {}

    async def send(self, command: WorkerCommand, command_id: str, _address: str | None) -> None:
        self.commands.append(command)
        self.ids.append(command_id)

    async def answer(self, _address: str, _seconds: float) -> bool:
        return True

    def workers(self) -> list[UUID | None]:
        return [each.worker_id for each in self.commands]


async def test_the_same_seed_sends_the_same_to_other_workers_under_other_ids():
    """A store that was given has the workers and the command ids of the run before."""
    one, two = Sent(), Sent()
    for sent in (one, two):
        await Load(sent, total=200, fleet=20, seed=7).run()  # type: ignore[arg-type]
    assert len(one.commands) == 200
    without_worker = [
        [each.model_copy(update={"worker_id": None}) for each in sent.commands] for sent in (one, two)
    ]
    assert without_worker[0] == without_worker[1]
    assert [one.workers().index(each) for each in one.workers()] == [
        two.workers().index(each) for each in two.workers()
    ]
    assert set(one.workers()).isdisjoint(two.workers())
    assert set(one.ids).isdisjoint(two.ids)
    assert len(set(one.ids)) == len(one.ids)
