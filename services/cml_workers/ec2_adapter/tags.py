"""Adding and overwriting tags of an instance."""

from cml_contracts.events import TagsUpdateRequested
from cml_contracts.instance import DEPLOYMENT_TAG, WORKER_TAG, Ec2Instance, InstanceState
from cml_workers.domain.messages import OperationSucceeded
from cml_workers.domain.operations import is_adoption
from cml_workers.ec2_adapter.attempts import Turn
from cml_workers.ec2_adapter.errors import EC2Exception, EC2TagOperationException, Remedy
from cml_workers.ec2_adapter.instances import Instances
from cml_workers.ec2_adapter.tenure import NotYet


async def update_tags(turn: Turn, intent: TagsUpdateRequested, here: Instances) -> OperationSucceeded:
    """Write them, then look at the instance: EC2 also takes tags of one that has ended. Raises NotYet, Gone, EC2Error.

    An adoption looks before, too: what bears another deployment's tag by now is left alone.
    """
    instance = turn.instance
    if is_adoption(intent.operation_id):
        _check_owner(intent, await here.see(turn.worker))
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
        owner = shown.tags.get(tag)
        if tag in intent.tags and owner not in (None, intent.tags[tag]):
            raise EC2TagOperationException(
                f"instance {shown.instance_id} belongs to {tag.removeprefix('cml:')} {owner!r} already",
                remedy=Remedy.FAIL,
            )


async def are_updated(turn: Turn, intent: TagsUpdateRequested, here: Instances) -> OperationSucceeded | None:
    """Whether it is done, as far as EC2 shows."""
    instance = await here.see(turn.worker)
    await here.noted(turn.worker, instance)
    if instance.state is InstanceState.TERMINATED:
        return None
    return turn.succeeded(instance) if intent.tags.items() <= instance.tags.items() else None
