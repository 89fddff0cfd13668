"""Workers as they are now, and the operations that commands asked for.

One view, so that whoever sees the outcome of an operation also sees the worker as it left it.
"""

from cml_contracts.queries import GetCMLWorker, GetOperation, ListCMLWorkers
from cml_workers.readmodels.model import ReadModel
from cml_workers.readmodels.workers.fold import of_event, of_worker
from cml_workers.readmodels.workers.queries import get_operation, get_worker, list_workers
from cml_workers.readmodels.workers.tables import TABLES, USABLE, VERSION

WORKERS_VIEW = ReadModel(
    name="workers",
    version=VERSION,
    tables=TABLES,
    of_worker=of_worker,
    of_event=of_event,
    usable=USABLE,
    answers={GetCMLWorker: get_worker, ListCMLWorkers: list_workers, GetOperation: get_operation},
)
