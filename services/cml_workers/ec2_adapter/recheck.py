"""Comparing an instance with what is recorded, after a call that EC2 may carry out late.

Such a call may be carried out behind whatever came next, and undo it. The message that asks for the recheck is all that is
known of it, so it waits in the broker and not in memory.
"""

from datetime import datetime, timedelta

import structlog

from cml_workers.domain.ledger import Ledger
from cml_workers.domain.operations import REVERSIBLE, intents
from cml_workers.domain.worker import Worker
from cml_workers.ec2_adapter.errors import EC2Error, EC2Exception, OutcomeUnknownError, Remedy
from cml_workers.ec2_adapter.instances import Gone, Instances
from cml_workers.ec2_adapter.tenure import Lease, NotFreshError, NotYet

LATEST = timedelta(minutes=15)
"""How late a call may be carried out: EC2 refuses requests that were signed longer ago (facts of AWS Signature Version 4)."""

log = structlog.get_logger(__name__)


async def recheck(ledger: Ledger, since: datetime, lease: Lease, here: Instances) -> bool:
    """Whether it is done; otherwise it has to be looked at again, until no such call can come any more.

    Tags of our own last updates are written again. Whatever else is not as recorded is reported, and not undone.
    """
    worker = ledger.worker
    if worker.terminated or worker.instance is None:
        return True
    if worker.pending(*intents(REVERSIBLE)):
        return False  # not before it is known what is to stand
    try:
        instance = await here.see(worker)
    except Gone:
        return True
    except (NotYet, EC2Error):
        return False
    tags, written = instance.tags, _written(ledger, here.now())
    changed = {key: value for key, value in written.items() if tags.get(key) != value}
    moved = await here.noted(worker, instance.model_copy(update={"tags": {**tags, **changed}}))
    if changed:
        return await _write_again(worker, changed, lease, here)
    return not moved and here.now() - since >= here.settling


def _written(ledger: Ledger, now: datetime) -> dict[str, str]:
    """What our tag updates wrote so lately that a call from before may still undo it."""
    written: dict[str, str] = {}
    for entry in ledger.entries.values():
        succeeded = entry.result is not None and entry.result.outcome == "succeeded"
        if entry.operation and entry.settled_at and succeeded and now - entry.settled_at <= LATEST:
            written.update(entry.operation.tags)
    return written


async def _write_again(worker: Worker, tags: dict[str, str], lease: Lease, here: Instances) -> bool:
    """Write the tags; True: a recheck that lasts longer takes over."""
    log.warning("tags are not as recorded and are written again", tags=sorted(tags))
    instance = worker.instance
    assert instance is not None  # noqa: S101 - `recheck` saw it
    try:
        await here.change(
            worker,
            lease,
            lambda lease: here.calls.add_tags(worker.aws_region, instance.instance_id, tags, lease),
        )
    except OutcomeUnknownError:
        await here.reports.recheck(worker.id)
        return True
    except NotFreshError:
        return False  # nothing was written
    except NotYet:
        return True  # one was published, as this came too late
    except EC2Exception as error:
        if error.remedy is Remedy.FAIL:
            log.warning("the tags cannot be written", code=error.aws_code, cause=str(error))
            return True  # it would be refused each time
    except EC2Error:
        return False
    return False
