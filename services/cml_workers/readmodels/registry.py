"""Every read model there is."""

from cml_workers.readmodels.model import ReadModel
from cml_workers.readmodels.workers import WORKERS_VIEW

READ_MODELS: tuple[ReadModel, ...] = (WORKERS_VIEW,)
