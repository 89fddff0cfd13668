"""The EC2 simulator's admin endpoint, for tests: plant faults, look at calls and instances."""

import json
from typing import Any
from urllib.request import Request, urlopen


class SimulatorAdmin:
    """Blocking; a call takes a millisecond or two."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def fault(self, operation: str, code: str = "InternalError", **how: Any) -> None:
        """Plant a fault; ``how``: status, message, times, probability, delay_seconds, effect, ..."""
        self._ask("POST", "faults", {"operation": operation, "code": code, **how})

    def clear(self) -> None:
        """Take all faults back."""
        self._ask("DELETE", "faults")

    def calls(self, operation: str | None = None) -> list[dict[str, Any]]:
        """The calls so far, of one operation or all."""
        calls: list[dict[str, Any]] = self._ask("GET", "calls")
        return [call for call in calls if operation in (None, call["operation"])]

    def calls_after(self, number: int) -> list[dict[str, Any]]:
        """The calls since the one of that number; 0: all. The simulator keeps the latest 2,000."""
        found: list[dict[str, Any]] = self._ask("GET", f"calls/after/{number}")
        return found

    def forget_calls(self) -> None:
        self._ask("DELETE", "calls")

    def malformed(self) -> list[dict[str, Any]]:
        """Requests that were refused for what they are, whoever sent them."""
        found: list[dict[str, Any]] = self._ask("GET", "malformed")
        return found

    def instances(self) -> list[dict[str, Any]]:
        """Every instance ever launched."""
        found: list[dict[str, Any]] = self._ask("GET", "instances")
        return found

    def set_state(self, instance_id: str, state: str, **reason: str) -> None:
        """Somebody else stopped, started or terminated it; ``reason``: the ``code`` and ``message`` of EC2, if it was itself."""
        self._ask("POST", f"instances/{instance_id}/state", {"state": state, **reason})

    def add_image(self, region: str, name: str, image_id: str | None = None) -> str:
        """Register an image; its id."""
        return str(self._ask("POST", "images", {"region": region, "name": name, "id": image_id})["id"])

    def change_image(self, image_id: str, **changes: str | int) -> None:
        """Its ``state``, ``architecture``, ``owner_id``, ``root_device_name`` or ``root_size`` in GiB."""
        self._ask("POST", f"images/{image_id}", changes)

    def change_account(self, region: str, **changes: Any) -> None:
        """What the account is set up with there: see ``cml_embedded.ec2.account.Setup``."""
        self._ask("POST", f"account/{region}", changes)

    def reset_account(self) -> None:
        """Nothing is missing any more."""
        self._ask("DELETE", "account")

    def set_free_addresses(self, region: str, subnet_id: str, free: int) -> None:
        self._ask("POST", f"subnets/{region}/{subnet_id}", {"free_addresses": free})

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(f"{self.url}/simulator/{path}", data, method=method), timeout=30) as answer:
            return json.load(answer)
