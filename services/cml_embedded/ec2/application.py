"""The simulator over HTTP: EC2's API, and ``/simulator`` to plant faults and to see what was called."""

import json
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

from cml_embedded.ec2.account import Account
from cml_embedded.ec2.actions import Actions
from cml_embedded.ec2.answers import Answer, Refusal, error
from cml_embedded.ec2.backend import Backend, Environ
from cml_embedded.ec2.faults import Fault, Faults
from cml_embedded.ec2.instances import Instances
from cml_embedded.ec2.journal import Journal
from cml_embedded.ec2.malformed import MalformedRequests
from cml_embedded.ec2.requests import check

_SIGNED = re.compile(r"AWS4-HMAC-SHA256 Credential=[^/,\s]*/[^/,\s]*/[^/,\s]*/ec2/aws4_request(,|$)")
"""By moto, too, the service is taken from here."""

REMEMBERED = 2000
"""Calls that ``GET /simulator/calls`` shows."""


class Application:
    """A WSGI application. ``images``: those that there are from the beginning, id to region and name; ``hosts``: see ``_stranger``."""

    def __init__(
        self,
        images: Mapping[str, tuple[str, str]],
        data_dir: Path | None,
        transition_seconds: float,
        vcpu_limit: int | None,
        hosts: Collection[str] = frozenset(),
    ) -> None:
        self._hosts = hosts
        self._lock = threading.RLock()
        self._journal = Journal(data_dir) if data_dir else None
        added, left = self._journal.load() if self._journal else ({}, [])
        self._backend = Backend({**images, **added})
        self._instances = Instances(self._backend, self._journal, transition_seconds)
        self._account = Account(self._backend, vcpu_limit)
        self._actions = Actions(self._backend, self._instances, self._account)
        self._faults = Faults()
        self._calls: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)
        self._answered = 0
        self._malformed = MalformedRequests()
        for instance in left:
            self._instances.restore(instance)

    def close(self) -> None:
        if self._journal:
            self._journal.close()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length)
        if (
            len(body) < length
        ):  # whoever asked was cut off before the end of the request; EC2 acts on none of it
            start_response("400 Error", [("Content-Length", "0")])
            return []
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if stranger := _stranger(environ, self._hosts):
            status, content, kind = 403, stranger.encode(), "text/plain"
        elif path.startswith("/simulator/"):
            status, content = self._admin(method, path, body)
            kind = "application/json"
        elif path != "/" or method != "POST":  # moto has more, its own administration among it
            status, content, kind = 404, b"EC2 is POST /", "text/plain"
        elif target := environ.get("HTTP_X_AMZ_TARGET"):
            status, content = self._other_service(environ, target, body)
            kind = "application/x-amz-json-1.1"
        elif not _SIGNED.match(environ.get("HTTP_AUTHORIZATION", "")):
            status, content = 403, error("MissingAuthenticationToken", "Request is not signed for EC2")
            kind = "text/xml"
        else:
            form = dict(parse_qsl(body.decode(), keep_blank_values=True))
            with self._lock:
                fault = self._faults.due(form.get("Action", ""), _signer(environ)[1])
            if fault:
                self._faults.hold_back(fault)
            status, content = self._ec2(environ, form, fault)
            kind = "text/xml"
            if fault and fault.close_connection:
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        start_response(
            f"{status} {'OK' if status == 200 else 'Error'}",
            [("Content-Type", kind), ("Content-Length", str(len(content)))],
        )
        return [content]

    def _ec2(self, environ: Environ, form: dict[str, str], fault: Fault | None) -> Answer:
        access_key, region = _signer(environ)
        user_agent = environ.get("HTTP_USER_AGENT", "")
        with self._lock:
            self._backend.prepare(region)
            refused = _refusal(form)
            if refused is not None:
                self._malformed.add(form, refused, user_agent)
            planted = fault and (fault.status, error(fault.code, fault.message))
            if planted and fault and fault.effect == "instead":
                answer = planted
            else:
                try:
                    if refused is not None:
                        raise refused
                    answer = self._actions.act(environ, (access_key, region), form, fault)
                except Refusal as refusal:
                    answer = refusal.status, error(refusal.code, str(refusal))
                if planted and fault and fault.effect == "after":
                    answer = planted
            code = re.search(rb"<Code>([^<]*)</Code>", answer[1]) if answer[0] != 200 else None
            self._answered += 1
            self._calls.append(
                {
                    "number": self._answered,
                    "access_key": access_key,
                    "user_agent": user_agent,
                    "malformed": refused is not None,
                    "operation": form.get("Action", ""),
                    "region": region,
                    "parameters": form,
                    "status": answer[0],
                    "code": code.group(1).decode() if code else None,
                    "time": time.time(),
                }
            )
            return answer

    def _other_service(self, environ: Environ, target: str, body: bytes) -> Answer:
        with self._lock:
            return self._account.other_service(_signer(environ)[1], target, body)

    def _admin(self, method: str, path: str, body: bytes) -> Answer:
        try:
            asked = json.loads(body) if body else {}
            with self._lock:
                return 200, json.dumps(
                    self._administer(method, path.removeprefix("/simulator/"), asked)
                ).encode()
        except (KeyError, TypeError, ValueError, Refusal) as fault:
            return 400, json.dumps({"error": repr(fault)}).encode()

    def _administer(self, method: str, path: str, asked: dict[str, Any]) -> Any:
        match method, path.split("/"):
            case "POST", ["faults"]:
                self._faults.planted.append(Fault(**asked))
            case "DELETE", ["faults"]:
                self._faults.remove()
            case "GET", ["faults"]:
                return [asdict(fault) for fault in self._faults.planted]
            case "GET", ["calls"]:
                return list(self._calls)
            case "GET", ["calls", "after", number]:
                return [each for each in self._calls if each["number"] > int(number)]
            case "DELETE", ["calls"]:
                self._calls.clear()
            case "GET", ["malformed"]:
                return list(self._malformed)
            case "GET", ["instances"]:
                self._instances.settle()
                return [
                    {"client_token": each.token, **asdict(each), "response": None} for each in self._instances
                ]
            case "POST", ["instances", instance_id, "state"]:
                self._instances.settle()
                reason = (asked["code"], asked.get("message", asked["code"])) if "code" in asked else None
                self._instances.end(self._instances[instance_id], asked["state"], reason)
            case "POST", ["account", region]:
                return self._account.change(region, asked)
            case "GET", ["account", region]:
                return asdict(self._account.of(region))
            case "DELETE", ["account"]:
                self._account.reset()
            case "POST", ["subnets", region, subnet_id]:
                self._backend.set_free_addresses(subnet_id, region, asked["free_addresses"])
            case "POST", ["images", image_id]:
                self._backend.change_image(image_id, asked)
            case "POST", ["images"]:
                image_id = asked.get("id") or f"ami-{uuid4().hex[:17]}"
                self._backend.add_image(image_id, asked["region"], asked["name"])
                if self._journal:
                    self._journal.save_image(image_id, asked["region"], asked["name"])
                return {"id": image_id}
            case _:
                raise ValueError(f"{method} {path} is not known")
        return {}


def _stranger(environ: Environ, hosts: Collection[str]) -> str | None:
    """Why a request is not answered: a web page has it sent by a browser, or reached us by a name of its own (DNS rebinding).

    Such a name is never an address. ``hosts``: names by which we are asked, besides localhost.
    """
    if "HTTP_ORIGIN" in environ or environ.get("HTTP_SEC_FETCH_SITE", "none") != "none":
        return "not for web pages"
    host = re.sub(r":\d*$", "", environ.get("HTTP_HOST", "")).strip("[]").lower()
    if host == "localhost" or host in hosts:
        return None
    try:
        ip_address(host)
    except ValueError:
        return "asked by a name that is not known here; --allow-host adds one"
    return None


def _signer(environ: Mapping[str, Any]) -> tuple[str, str]:
    """Access key and region of the credentials that a request is signed with."""
    found = re.search(r"Credential=([^/]*)/[^/]*/([^/]*)/", environ.get("HTTP_AUTHORIZATION", ""))
    return (found.group(1), found.group(2)) if found else ("", "us-east-1")


def _refusal(form: Mapping[str, str]) -> Refusal | None:
    """What EC2 says to a request that it would not take, in whatever state its instances are."""
    try:
        check(form)
    except Refusal as refusal:
        return refusal
    return None
