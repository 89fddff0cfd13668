"""How long callers and subscribers wait, in each phase of a run."""

import asyncio
import time
from dataclasses import dataclass, field


@dataclass
class Waits:
    """The longest wait of each kind of caller and subscriber, by phase."""

    phase: str = "starting"
    longest: dict[str, dict[str, float]] = field(default_factory=dict)
    """Seconds, by phase and kind."""
    _ended: dict[tuple[str, str], float] = field(default_factory=dict)
    """When the last wait of somebody began that is over."""

    def over(self, kind: str, who: str, began: float) -> None:
        """Somebody has waited since then, and does no more."""
        of_phase = self.longest.setdefault(self.phase, {})
        of_phase[kind] = max(time.monotonic() - began, of_phase.get(kind, 0.0))
        self._ended[kind, who] = began

    @property
    def served(self) -> int:
        """How many callers, for commands and for queries, and subscribers have had anything yet."""
        return len(self._ended)

    async def all_since(self, moment: float, seconds: float) -> list[str]:
        """Wait until everybody has had what they began to wait for later than that; those who have not."""
        end = time.monotonic() + seconds
        while late := [" of ".join(each) for each, began in self._ended.items() if began < moment]:
            if time.monotonic() > end:
                break
            await asyncio.sleep(0.2)
        return late
