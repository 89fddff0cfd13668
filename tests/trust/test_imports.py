"""What somebody with the right to import can learn of an instance, or do to it, whose owner has not consented: nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cml_contracts.commands import ImportCMLWorker
from cml_contracts.instance import CONSENT_TAG, DEPLOYMENT_TAG, WORKER_TAG, Ec2Instance, InstanceState
from cml_workers.domain.authorization import UnauthorizedError, authorized_actor
from cml_workers.domain.policy import EVERY_COMMAND, Access
from support.given import NOW, instance
from support.service import Service, opened

VICTIM = instance().instance_id
IMPORT = ImportCMLWorker(aws_region="us-east-1", instance_id=VICTIM, created_by="mallory")
OURS = str(IMPORT.worker("any"))
CONSENT = {CONSENT_TAG: "default"}


def victim(tags: Mapping[str, str], state: InstanceState = InstanceState.RUNNING) -> Ec2Instance:
    tags = {"Name": "payroll", "secret": "s3cret", **tags}
    return instance(state, tags=tags, public_ip="192.0.2.7", private_ip="10.9.8.7")


NOT_TO_BE_HAD: Mapping[str, Ec2Instance | None] = {
    "does not exist": None,
    "has no consent": victim({}),
    "has consent for another deployment": victim({CONSENT_TAG: "other"}),
    "belongs to another deployment": victim({**CONSENT, DEPLOYMENT_TAG: "other", WORKER_TAG: OURS}),
    "belongs to another worker of ours": victim({**CONSENT, DEPLOYMENT_TAG: "default", WORKER_TAG: "w"}),
    "was launched by us": victim({DEPLOYMENT_TAG: "default", WORKER_TAG: "w"}),
    "is stopped": victim({}, InstanceState.STOPPED),
    "is about to end": victim(CONSENT, InstanceState.SHUTTING_DOWN),
    "has ended": victim(CONSENT, InstanceState.TERMINATED),
}


async def answered(folder: Path, found: Ec2Instance | None) -> tuple[Mapping[str, Any], list[str]]:
    """The reply to an import of what EC2 shows so, and all that was recorded of it."""
    folder.mkdir(exist_ok=True)
    async with opened(folder) as service:
        await service.command(IMPORT, "import")
        await service.answer(found)
        (result,) = service.outbox.results()
        stored = await service.store.read(f"cml_worker-{OURS}")
        return result.model_dump(mode="json"), [f"{each.type} {each.data!r}" for each in stored]


@pytest.mark.parametrize("what", NOT_TO_BE_HAD)
async def test_one_refusal_for_every_instance_that_is_not_to_be_had(tmp_path: Path, what: str):
    """Before: adopted and then terminated at will, or refused with its state, its owner and its tags."""
    result, stored = await answered(tmp_path / "it", NOT_TO_BE_HAD[what])
    nowhere, _ = await answered(tmp_path / "nowhere", None)
    assert result["outcome"] == "failed"
    assert result == nowhere
    assert len(stored) == 1
    for part in ("payroll", "s3cret", "192.0.2.7", "10.9.8.7", "other"):
        assert part not in str((result, stored))


async def test_with_its_owners_consent_it_is_imported(service: Service):
    await service.command(IMPORT, "import")
    await service.answer(victim(CONSENT))
    assert service.outbox.results() == []
    stored = await service.store.read(f"cml_worker-{OURS}")
    assert [each.type for each in stored] == ["cml.worker.imported.v1", "cml.worker.tags_update_requested.v1"]


def test_whoever_may_do_everything_may_not_import():
    access = Access(
        enforced=True,
        users={
            "all": frozenset({EVERY_COMMAND}),
            "importer": frozenset({EVERY_COMMAND, ImportCMLWorker.TYPE}),
        },
    )
    command = IMPORT.model_copy(update={"created_by": "importer"})
    given: dict[str, Any] = {"body": b"", "token": None, "access": access, "now": NOW}
    assert authorized_actor(command, "c", user_id="importer", **given) == "importer"
    command = IMPORT.model_copy(update={"created_by": "all"})
    with pytest.raises(UnauthorizedError, match="may not send"):
        authorized_actor(command, "c", user_id="all", **given)
