"""Whose a worker is, and who may command and see it: plain functions of what is recorded of it.

A right to a command is one for every worker, unless the deployment says that workers belong to somebody.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Ownership:
    """``fleet``: actors for whom no worker is another's; ``teams``: of each one, its actors, who share the workers with its tag.

    Not ``enforced``: who may send a command may send it for every worker, and everybody sees all of them.
    """

    enforced: bool = False
    fleet: frozenset[str] = frozenset()
    teams: Mapping[str, frozenset[str]] = field(default_factory=dict)
    team_tag: str = "team"

    def viewer(self, actor: str | None) -> "Viewer | None":
        """Whom it concerns; None: no worker is kept from the actor."""
        if not self.enforced or actor in self.fleet:
            return None
        return Viewer(actor or "", frozenset(self._teams_of(actor)), self.team_tag)

    def _teams_of(self, actor: str | None) -> Iterable[str]:
        return (team for team, members in self.teams.items() if actor in members)


@dataclass(frozen=True, slots=True)
class Viewer:
    """An actor to whom only its own workers are open, and those of its ``teams``, by the tag ``team_tag``."""

    actor: str
    teams: frozenset[str]
    team_tag: str

    def may(self, owner: str, tags: Mapping[str, str]) -> bool:
        """Whether a worker of this owner, with these tags, is open to the actor."""
        return owner == self.actor or tags.get(self.team_tag) in self.teams
