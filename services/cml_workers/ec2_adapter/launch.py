"""Launching an instance under the stored token, and looking up what was launched before."""

import structlog

from cml_contracts.instance import DEPLOYMENT_TAG, WORKER_TAG, Ec2Instance, InstanceState, LaunchParameters
from cml_workers.domain.messages import OperationSucceeded
from cml_workers.ec2_adapter.attempts import Turn
from cml_workers.ec2_adapter.calls import Calls
from cml_workers.ec2_adapter.errors import OutcomeUnknownError
from cml_workers.ec2_adapter.instances import Instances
from cml_workers.ec2_adapter.tenure import NotYet

log = structlog.get_logger(__name__)


async def launch(turn: Turn, parameters: LaunchParameters, here: Instances) -> OperationSucceeded:
    """Launch; where answers keep failing to come, see whether it was done before.

    Raises NotYet, EC2Error.
    """
    if parameters.generation > 1:
        left = await _left_behind(parameters, here.calls)
        if left is not None:
            log.warning("adopted what an earlier call launched", instance_id=left.instance_id)
            return turn.succeeded(left)
    try:
        return turn.succeeded(await here.calls.launch(parameters, turn.lease))
    except OutcomeUnknownError:
        if not turn.attempt.is_uncertain:
            raise
        launched = await launched_before(parameters, here.calls)
        if launched is None:
            raise
        log.warning("adopted what was launched before", instance_id=launched.instance_id)
        return turn.succeeded(launched)


async def _left_behind(parameters: LaunchParameters, calls: Calls) -> Ec2Instance | None:
    """The worker's instance of an earlier launch, which came later than any launch should; else there would be two.

    Raises NotYet while there is one that is about to end.
    """
    ours = {tag: parameters.tags[tag] for tag in (WORKER_TAG, DEPLOYMENT_TAG)}
    alive = [state for state in InstanceState if state is not InstanceState.TERMINATED]
    found = await calls.find_tagged(parameters.aws_region, ours, alive)
    if any(each.state is InstanceState.SHUTTING_DOWN for each in found):
        raise NotYet
    return found[0] if found else None


async def is_launched(turn: Turn, parameters: LaunchParameters, here: Instances) -> OperationSucceeded | None:
    """Whether an attempt got through, as far as EC2 shows."""
    launched = await launched_before(parameters, here.calls)
    return turn.succeeded(launched) if launched else None


async def launched_before(parameters: LaunchParameters, calls: Calls) -> Ec2Instance | None:
    """What was launched under the token, unless its tags say that it is another worker's or deployment's."""
    for found in await calls.find_launched(parameters.aws_region, parameters.client_token):
        owner = {tag: found.tags[tag] for tag in (WORKER_TAG, DEPLOYMENT_TAG) if tag in found.tags}
        if owner.items() <= parameters.tags.items():
            return found
        log.error("somebody else used our token", instance_id=found.instance_id, tags=found.tags)
    return None
