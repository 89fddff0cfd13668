"""Adding and overwriting tags of an instance."""

from cml_contracts.events import TagsUpdateRequested
from cml_contracts.instance import CONSENT_TAG, DEPLOYMENT_TAG, WORKER_TAG, Ec2Instance, InstanceState
from cml_workers.domain.messages import OperationSucceeded
from cml_workers.domain.operations import is_adoption
from cml_workers.ec2_adapter.attempts import Turn
from cml_workers.ec2_adapter.errors import EC2Exception, EC2TagOperationException, Remedy
from cml_workers.ec2_adapter.instances import Instances
from cml_workers.ec2_adapter.tenure import NotYet

_OWNERS = {DEPLOYMENT_TAG: "deployment", WORKER_TAG: "worker"}


async def update_tags(turn: Turn, intent: TagsUpdateRequested, here: Instances) -> OperationSucceeded:
    """Write them, then look at the instance: EC2 also takes tags of one that has ended. Raises NotYet, Gone, EC2Error.

    An adoption looks before, too: what bears another deployment's tag by now, or its owner's consent no more, is left alone.
    """
    instance = turn.instance
    if is_adoption(intent.operation_id):
        shown = await here.see(turn.worker)
        if intent.tags.items() <= shown.tags.items():
            return turn.succeeded(
                shown
            )  # an earlier call got through, and the consent may have been taken away since
        _check_owner(intent, shown)
        _check_consent(intent, shown)
    region, instance_id = instance.aws_region, instance.instance_id
    try:
        await here.change(
            turn.worker,
            turn.lease,
            lambda lease: here.calls.add_tags(region, instance_id, intent.tags, lease),
        )
    except EC2Exception as error:
        if error.remedy is Remedy.DESCRIBE:
            await here.noted(turn.worker, await here.see(turn.worker))  # it is not there yet, or not any more
        raise
    turn.attempt.uncertain_since = here.now()
    instance = await here.see(turn.worker)
    if instance.state is InstanceState.TERMINATED:
        raise await here.ended(turn.worker, instance)
    if intent.tags.items() <= instance.tags.items():
        return turn.succeeded(instance)
    _check_owner(intent, instance)
    await here.noted(turn.worker, instance)
    raise NotYet  # what was written is not visible yet


def _check_owner(intent: TagsUpdateRequested, shown: Ec2Instance) -> None:
    """Raise a refusal of an instance that another deployment, or another worker, has adopted meanwhile."""
    for tag in (DEPLOYMENT_TAG, WORKER_TAG):
        if tag in intent.tags and shown.tags.get(tag) not in (None, intent.tags[tag]):
            raise EC2TagOperationException(
                f"instance {shown.instance_id} belongs to another {_OWNERS[tag]} already", remedy=Remedy.FAIL
            )


def _check_consent(intent: TagsUpdateRequested, shown: Ec2Instance) -> None:
    """Raise a refusal where the owner has withdrawn the consent before the instance became ours."""
    deployment = intent.tags[DEPLOYMENT_TAG]
    if shown.tags.get(CONSENT_TAG) != deployment:
        raise EC2TagOperationException(
            f"instance {shown.instance_id} does not bear the tag {CONSENT_TAG}={deployment}, by which its owner consents",
            remedy=Remedy.FAIL,
        )


async def are_updated(turn: Turn, intent: TagsUpdateRequested, here: Instances) -> OperationSucceeded | None:
    """Whether it is done, as far as EC2 shows."""
    instance = await here.see(turn.worker)
    await here.noted(turn.worker, instance)
    if instance.state is InstanceState.TERMINATED:
        return None
    return turn.succeeded(instance) if intent.tags.items() <= instance.tags.items() else None
