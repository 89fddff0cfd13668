"""Faults that a test plants by ``POST /simulator/faults``."""

import random
import threading
from dataclasses import dataclass, field
from uuid import uuid4


@dataclass(slots=True)
class Fault:
    """What happens to calls of an operation, ``*``: of any; in a region, None: in all.

    ``effect``: the error comes *instead* of what was asked for or *after* it; *dies*: RunInstances or StartInstances
    succeeds, but the instance is terminated, or stopped, instead of running, and ``code`` and ``message`` are the reason that
    EC2 shows. With any other there is no error, and the call is only slow or cut off. ``hide_seconds``: how long a new
    instance is not visible.
    """

    operation: str
    region: str | None = None
    code: str = "InternalError"
    status: int = 400
    message: str = "planted"
    times: int | None = 1
    probability: float = 1.0
    delay_seconds: float = 0.0
    effect: str = "instead"
    close_connection: bool = False
    hide_seconds: float = 0.0
    id: str = field(default_factory=lambda: uuid4().hex[:8])


class Faults:
    """Those that are planted; each lasts for its number of times, or until all are removed."""

    def __init__(self) -> None:
        self.planted: list[Fault] = []
        self._removed = threading.Event()

    def due(self, operation: str, region: str) -> Fault | None:
        """The fault that this call meets."""
        for fault in self.planted:
            if (
                fault.operation in ("*", operation)
                and fault.region in (None, region)
                and random.random() < fault.probability  # noqa: S311 - no secret
            ):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.planted.remove(fault)
                return fault
        return None

    def remove(self) -> None:
        """None is left, and no call is held back any longer."""
        self.planted.clear()
        self._removed.set()
        self._removed = threading.Event()

    def hold_back(self, fault: Fault) -> None:
        """Return when the fault's delay is over, or all faults are removed."""
        if fault.delay_seconds:
            self._removed.wait(fault.delay_seconds)
