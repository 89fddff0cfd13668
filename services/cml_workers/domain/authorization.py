"""Who may command, and in whose name: plain functions of what the broker vouches for.

RabbitMQ refuses a message whose ``user_id`` is not its connection's user, but lets one without pass
(https://www.rabbitmq.com/docs/validated-user-id): whoever sends none is refused here.
"""

from datetime import datetime

from cml_contracts.commands import ImportCMLWorker, WorkerCommand
from cml_contracts.results import Problem, ProblemCode
from cml_contracts.tokens import InvalidTokenError, verify
from cml_workers.domain.ownership import Ownership, Viewer
from cml_workers.domain.policy import EVERY_COMMAND, Access
from cml_workers.domain.worker import Worker


class UnauthorizedError(Exception):
    """The sender may not do this; nothing is done."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem.of(ProblemCode.UNAUTHORIZED, detail)


def authorized_actor(
    command: WorkerCommand,
    command_id: str,
    *,
    user_id: str | None,
    token: str | None,
    access: Access,
    now: datetime,
) -> str | None:
    """In whose name the command is done. Raises UnauthorizedError."""
    if not access.enforced:
        return command.actor
    if user_id is None:
        raise UnauthorizedError("the message has no user_id that the broker vouches for")
    allowed = access.users.get(user_id, frozenset())
    if not allowed & {EVERY_COMMAND, command.TYPE}:
        raise UnauthorizedError(f"user {user_id!r} may not send {command.TYPE}")
    if token is None and command.actor in (None, user_id):
        return user_id
    if user_id not in access.delegates:
        raise UnauthorizedError(f"user {user_id!r} may not send commands on behalf of {command.actor!r}")
    if token is None:
        raise UnauthorizedError(f"a token is needed to send a command on behalf of {command.actor!r}")
    try:
        actor = verify(token, access.keys, command_id=command_id, now=now)
    except InvalidTokenError as error:
        raise UnauthorizedError(str(error)) from error
    if command.actor not in (None, actor):
        raise UnauthorizedError(f"the token is for {actor!r}, the command says {command.actor!r}")
    return actor


def check_owner(command: WorkerCommand, actor: str | None, worker: Worker, ownership: Ownership) -> None:
    """Raises UnauthorizedError if the worker is another's, with whom the actor shares no team.

    One that is nobody's instance may be imported again by whoever may import: its first import failed.
    """
    viewer = ownership.viewer(actor)
    free = not worker.exists or (isinstance(command, ImportCMLWorker) and worker.instance is None)
    if viewer is None or free or viewer.may(worker.owner, worker.tags):
        return
    raise UnauthorizedError(f"worker {worker.id} is not {actor!r}'s, nor of a team of theirs")


def viewer_of(user: str | None, access: Access) -> Viewer | None:
    """To whom a query is answered; None: no worker is kept from the user.

    Whoever acts for others sees every worker, and shows each of them theirs: the query names no actor.
    """
    return None if user in access.delegates else access.ownership.viewer(user)
