"""Who may command, and in whose name."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from cml_contracts.commands import StartCMLWorker, TerminateCMLWorker, UpdateCMLWorkerStatus, WorkerCommand
from cml_contracts.model import encoded
from cml_workers.domain.authorization import UnauthorizedError, authorized_actor
from cml_workers.domain.policy import Access
from support.buses import token_for

KEY = b"k" * 32
NOW = datetime(2026, 1, 2, tzinfo=UTC)
ACCESS = Access(
    enforced=True,
    users={"portal": frozenset({"*"}), "starter": frozenset({StartCMLWorker.TYPE}), "nobody": frozenset()},
    delegates=frozenset({"portal"}),
    keys=(KEY,),
)
WORKER = uuid4()
START = StartCMLWorker(worker_id=WORKER)
TERMINATE = TerminateCMLWorker(worker_id=WORKER)
START_FOR_ANN = StartCMLWorker(worker_id=WORKER, started_by="ann")


def token(
    actor: str = "ann", command_id: str = "c-1", minutes: float = 1, command: WorkerCommand | None = None
) -> str:
    expires = NOW + timedelta(minutes=minutes)
    return token_for(KEY, command or START_FOR_ANN, command_id, actor=actor, user="portal", expires=expires)


def actor(
    command: WorkerCommand, user_id: str | None, token: str | None = None, access: Access = ACCESS
) -> str | None:
    return authorized_actor(
        command, "c-1", body=encoded(command), user_id=user_id, token=token, access=access, now=NOW
    )


@pytest.mark.parametrize(
    ("command", "user", "token", "expected"),
    [
        (START, "portal", None, "portal"),
        (TERMINATE, "portal", None, "portal"),
        (START, "starter", None, "starter"),
        (StartCMLWorker(worker_id=WORKER, started_by="starter"), "starter", None, "starter"),
        (UpdateCMLWorkerStatus(worker_id=WORKER), "portal", None, "portal"),
        (START_FOR_ANN, "portal", token(), "ann"),
        (START, "portal", token(command=START), "ann"),
    ],
)
def test_who_may_is_the_actor(command: WorkerCommand, user: str, token: str | None, expected: str):
    assert actor(command, user, token) == expected


@pytest.mark.parametrize(
    ("command", "user", "token", "why"),
    [
        (START, None, None, "no user_id"),
        (START, "stranger", None, "may not send"),
        (START, "nobody", None, "may not send"),
        (TERMINATE, "starter", None, "may not send"),
        (START_FOR_ANN, "starter", None, "on behalf"),
        (START_FOR_ANN, "starter", token(), "on behalf"),
        (START_FOR_ANN, "portal", None, "token is needed"),
        (START_FOR_ANN, "portal", token(actor="ben"), "the token is for 'ben'"),
        (START_FOR_ANN, "portal", token(command_id="c-2"), "another command"),
        (START_FOR_ANN, "portal", token(minutes=-1), "expired"),
        (START_FOR_ANN, "portal", "forged", "signature|malformed"),
        (TERMINATE, "portal", token(), "another command"),
        (START_FOR_ANN, None, token(), "no user_id"),
    ],
)
def test_a_denied_sender_gets_the_reason(
    command: WorkerCommand, user: str | None, token: str | None, why: str
):
    with pytest.raises(UnauthorizedError, match=why) as refused:
        actor(command, user, token)
    assert refused.value.problem.code == "Unauthorized"


def test_where_it_is_off_everybody_is_who_they_say():
    assert actor(START_FOR_ANN, None, access=Access()) == "ann"
    assert actor(START, None, access=Access()) is None
