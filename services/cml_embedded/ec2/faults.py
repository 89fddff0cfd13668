"""Faults that a test plants by ``POST /simulator/faults``."""

import random
from dataclasses import dataclass, field
from uuid import uuid4


@dataclass(slots=True)
class Fault:
    """What happens to calls of an operation.

    ``effect``: the error comes *instead* of what was asked for or *after* it; with any other there is no error, and the
    call is only slow or cut off. ``hide_seconds``: how long a new instance is not visible.
    """

    operation: str
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

    def due(self, operation: str) -> Fault | None:
        """The fault that this call meets."""
        for fault in self.planted:
            if fault.operation == operation and random.random() < fault.probability:  # noqa: S311 - no secret
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.planted.remove(fault)
                return fault
        return None
