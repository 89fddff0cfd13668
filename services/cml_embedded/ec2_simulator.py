"""An EC2 to try things on: moto's server, corrected where it differs from EC2, with faults on order.

For demo, development and tests only. It keeps EC2's promises that moto does not: client tokens, timed
transitions, refusals (https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html). An admin
endpoint under ``/simulator`` plants faults and shows what was called.

Run alone with ``python -m cml_embedded.ec2_simulator --port 5000 --data-dir FOLDER``.
"""

import argparse
import json
import logging
import os
import random
import re
import signal
import socket
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode
from uuid import uuid4
from xml.sax.saxutils import escape

# Only our own images exist; unknown ones and unknown instance types are errors, as in EC2.
os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"
os.environ["MOTO_ENABLE_AMI_VALIDATION"] = "true"
os.environ["MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION"] = "true"

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.ec2.models import instances as moto_instances
from moto.ec2.models.amis import Ami
from moto.ec2.models.instance_types import INSTANCE_TYPES
from moto.moto_api._internal import mock_random
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

DEMO_IMAGE_NAME = "cml-2.8.1"
DEMO_IMAGES = {
    "us-east-1": "ami-0c31000000000001e",
    "us-west-2": "ami-0c31000000000002e",
    "eu-west-1": "ami-0c31000000000003e",
}

_CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
_ENDS = {"pending": "running", "stopping": "stopped", "shutting-down": "terminated"}
_POWER: Mapping[str, tuple[frozenset[str], str, frozenset[str]]] = {
    # action: states it acts on, the state that follows, states it leaves as they are; others are refused
    "StartInstances": (frozenset({"stopped"}), "pending", frozenset({"pending", "running"})),
    "StopInstances": (frozenset({"running"}), "stopping", frozenset({"stopping", "stopped"})),
    "TerminateInstances": (
        frozenset({"pending", "running", "stopping", "stopped"}),
        "shutting-down",
        frozenset({"shutting-down", "terminated"}),
    ),
}
_RESULT_ELEMENT = "instancesSet"
_NOWHERE = "i-00000000000000000"

Answer = tuple[int, bytes]


@dataclass(slots=True)
class _Known:
    """What the simulator knows of an instance beyond moto, and what it needs to bring it back."""

    instance_id: str
    region: str
    form: dict[str, str]
    state: str
    due: float
    launched_at: float
    tags: dict[str, str]
    response: str
    private_ip: str | None = None
    public_ip: str | None = None
    hidden_until: float = 0.0

    @property
    def token(self) -> str | None:
        return self.form.get("ClientToken")


@dataclass(slots=True)
class _Fault:
    """See ``POST /simulator/faults``."""

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


class _Refusal(Exception):  # noqa: N818 - an answer of EC2
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Ec2Simulator:
    """Start it, use ``url`` as EC2's endpoint, stop it.

    ``transition_seconds``: how long pending, stopping and shutting-down last; ``vcpu_limit``: vCPUs of
    instances that are not terminated, in each region. With ``data_dir`` instances survive any end of the
    process. One simulator at a time in a process, as moto's state is global.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        data_dir: Path | None = None,
        transition_seconds: float = 0.5,
        vcpu_limit: int | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._data_dir = data_dir
        self._transition_seconds = transition_seconds
        self._vcpu_limit = vcpu_limit

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    def start(self) -> None:
        """Return when it answers. Raises OSError if the port is taken."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        application = _Application(self._data_dir, self._transition_seconds, self._vcpu_limit)
        self._server = make_server(
            self._host, self._port, application, threaded=True, request_handler=_QuietHandler
        )
        self._server.daemon_threads = True  # type: ignore[attr-defined]
        self._port = self._server.server_port
        self._application = application
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},
            name="ec2-simulator",
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and close the files."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._application.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.stop()


class _QuietHandler(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        pass


class _Application:
    """The WSGI application: moto's, with the corrections before and behind it."""

    def __init__(self, data_dir: Path | None, transition_seconds: float, vcpu_limit: int | None) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._transition_seconds = transition_seconds
        self._vcpu_limit = vcpu_limit
        self._lock = threading.RLock()
        self._instances: dict[str, _Known] = {}
        self._faults: list[_Fault] = []
        self._calls: deque[dict[str, Any]] = deque(maxlen=2000)
        self._regions: set[str] = set()
        self._images: dict[str, tuple[str, str]] = {
            image_id: (region, DEMO_IMAGE_NAME) for region, image_id in DEMO_IMAGES.items()
        }
        self._journal = _Journal(data_dir) if data_dir else None
        if self._journal:
            images, instances = self._journal.load()
            self._images |= images
            for known in instances:
                self._restore(known)

    def close(self) -> None:
        if self._journal:
            self._journal.close()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if environ["PATH_INFO"].startswith("/simulator"):
            status, content = self._admin(environ["REQUEST_METHOD"], environ["PATH_INFO"], body)
            kind = "application/json"
        else:
            form = dict(parse_qsl(body.decode(), keep_blank_values=True))
            fault = self._planted(form.get("Action", ""))
            if fault and fault.delay_seconds:
                time.sleep(fault.delay_seconds)
            status, content = self._ec2(environ, form, fault)
            kind = "text/xml"
            if fault and fault.close_connection:
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        start_response(
            f"{status} {'OK' if status == 200 else 'Error'}",
            [("Content-Type", kind), ("Content-Length", str(len(content)))],
        )
        return [content]

    # -- EC2 ----------------------------------------------------------------------------------------------

    def _ec2(self, environ: dict[str, Any], form: dict[str, str], fault: _Fault | None) -> Answer:
        action, region = form.get("Action", ""), _region(environ)
        with self._lock:
            self._prepare(region)
            planted = fault and (fault.status, _error(fault.code, fault.message))
            if planted and fault and fault.effect == "instead":
                answer = planted
            else:
                try:
                    answer = self._act(environ, action, region, form, fault)
                except _Refusal as refusal:
                    answer = 400, _error(refusal.code, str(refusal))
                if planted and fault and fault.effect == "after":
                    answer = planted
            code = re.search(rb"<Code>([^<]*)</Code>", answer[1]) if answer[0] != 200 else None
            self._calls.append(
                {
                    "operation": action,
                    "region": region,
                    "parameters": form,
                    "status": answer[0],
                    "code": code.group(1).decode() if code else None,
                    "time": time.time(),
                }
            )
            return answer

    def _act(
        self, environ: dict[str, Any], action: str, region: str, form: dict[str, str], fault: _Fault | None
    ) -> Answer:
        self._settle()
        for name, value in form.items():
            if re.fullmatch(r"InstanceId\.\d+", name):
                self._check_instance(value, region)
        if action in _POWER:
            return self._power(action, region, [v for k, v in form.items() if k.startswith("InstanceId.")])
        if action == "RunInstances":
            return self._run(environ, region, form, fault)
        if action in ("CreateTags", "DeleteTags"):
            return self._tag(environ, region, form)
        return self._ask_moto(environ, self._visible(action, region, form))

    def _ask_moto(self, environ: dict[str, Any], form: Mapping[str, str]) -> Answer:
        body = urlencode(form).encode()
        told: list[int] = []
        inner = {**environ, "wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}

        def started(status: str, _headers: Any, _info: Any = None) -> None:
            told.append(int(status.split(" ", 1)[0]))

        content = b"".join(self._moto(inner, started))
        return told[0], content.replace(b"<Code>AccessDenied</Code>", b"<Code>UnauthorizedOperation</Code>")

    def _run(
        self, environ: dict[str, Any], region: str, form: dict[str, str], fault: _Fault | None
    ) -> Answer:
        token = form.get("ClientToken")
        if token:
            for known in self._instances.values():
                if (known.region, known.token) == (region, token):
                    return 200, self._same_again(known, form).encode()
        self._check_vcpus(region, form.get("InstanceType", "m1.small"))
        status, content = self._ask_moto(environ, _with_volume_size(form))
        if status != 200:
            return status, content
        found = re.search(rb"<instanceId>(i-[0-9a-f]+)</instanceId>", content)
        assert found is not None  # noqa: S101 - moto launched one
        instance_id = found.group(1).decode()
        instance = self._moto_instance(instance_id, region)
        instance.disable_api_termination = form.get("DisableApiTermination") == "true"
        known = self._instances[instance_id] = _Known(
            instance_id=instance_id,
            region=region,
            form=form,
            state="pending",
            due=time.time() + self._transition_seconds,
            launched_at=time.time(),
            tags=_tags_of(instance),
            response=content.decode(),
            private_ip=instance.private_ip,
            public_ip=instance.public_ip,
            hidden_until=time.time() + fault.hide_seconds if fault else 0.0,
        )
        self._to(known, "pending")
        return 200, content

    def _same_again(self, known: _Known, form: Mapping[str, str]) -> str:
        """EC2 API reference, *Ensuring idempotency*."""
        if _what_counts(known.form) != _what_counts(form):
            raise _Refusal("IdempotentParameterMismatch", "The parameters of the first request were others.")
        if known.state in ("terminated", "shutting-down"):
            raise _Refusal("IdempotentInstanceTerminated", "The instance of this token was terminated.")
        return re.sub(
            r"(<instanceState>).*?(</instanceState>)",
            rf"\g<1><code>{_CODES[known.state]}</code><name>{known.state}</name>\g<2>",
            known.response,
            flags=re.DOTALL,
        )

    def _power(self, action: str, region: str, instance_ids: list[str]) -> Answer:
        acting, following, indifferent = _POWER[action]
        for instance_id in instance_ids:
            known = self._instances[instance_id]
            if known.state not in acting | indifferent:
                raise _Refusal(
                    "IncorrectInstanceState",
                    f"The instance '{instance_id}' is not in a state from which it can be "
                    f"{action.removesuffix('Instances').lower()}ed: {known.state}.",
                )
            if (
                action == "TerminateInstances"
                and self._moto_instance(instance_id, region).disable_api_termination
            ):
                raise _Refusal(
                    "OperationNotPermitted",
                    f"The instance '{instance_id}' may not be terminated. Modify its 'disableApiTermination' "
                    "instance attribute and try again.",
                )
        items = []
        for instance_id in instance_ids:
            known = self._instances[instance_id]
            before = known.state
            if before in acting:
                self._order(known, following)
            items.append(
                f"<item><instanceId>{instance_id}</instanceId>"
                f"<currentState><code>{_CODES[known.state]}</code><name>{known.state}</name></currentState>"
                f"<previousState><code>{_CODES[before]}</code><name>{before}</name></previousState></item>"
            )
        return 200, _response(action, f"<{_RESULT_ELEMENT}>{''.join(items)}</{_RESULT_ELEMENT}>")

    def _order(self, known: _Known, state: str) -> None:
        """Let moto do what is final there, then show the state that EC2 passes through."""
        instance = self._moto_instance(known.instance_id, known.region)
        {"pending": instance.start, "stopping": instance.stop, "shutting-down": instance.terminate}[state]()
        known.due = time.time() + self._transition_seconds
        self._to(known, state)

    def _tag(self, environ: dict[str, Any], region: str, form: dict[str, str]) -> Answer:
        resources = [value for name, value in form.items() if name.startswith("ResourceId.")]
        for resource in resources:
            if resource.startswith("i-"):
                self._check_instance(resource, region)
        for name, value in form.items():
            if re.fullmatch(r"Tag\.\d+\.Key", name) and (
                value.lower().startswith("aws:") or not 1 <= len(value) <= 128
            ):
                raise _Refusal(
                    "InvalidParameterValue", "Tag keys have 1 to 128 characters and never begin with aws:"
                )
            if re.fullmatch(r"Tag\.\d+\.Value", name) and len(value) > 256:
                raise _Refusal("InvalidParameterValue", "Tag values have at most 256 characters")
        answer = self._ask_moto(environ, form)
        if answer[0] == 200:
            for resource in resources:
                if resource in self._instances:
                    known = self._instances[resource]
                    known.tags = _tags_of(self._moto_instance(resource, region))
                    self._save(known)
        return answer

    def _visible(self, action: str, region: str, form: dict[str, str]) -> dict[str, str]:
        """The question without instances that are not visible yet, and without the filter moto lacks."""
        hidden = {i for i, known in self._instances.items() if known.hidden_until > time.time()}
        asked = dict(form)
        for name, value in form.items():
            if re.fullmatch(r"Filter\.\d+\.Name", name) and value == "client-token":
                prefix = name.removesuffix("Name")
                tokens = {v for k, v in form.items() if k.startswith(f"{prefix}Value.")}
                launched = [
                    known.instance_id
                    for known in self._instances.values()
                    if known.region == region and known.token in tokens
                ]
                asked = {k: v for k, v in asked.items() if not k.startswith(f"{prefix}Value.")}
                asked[name] = "instance-id"
                asked |= {f"{prefix}Value.{n}": i for n, i in enumerate(launched or [_NOWHERE], 1)}
        if hidden and action.startswith("DescribeInstance"):
            for name, value in asked.items():
                if value in hidden and name.startswith("InstanceId."):
                    raise _unknown(value)
                if value in hidden:
                    asked[name] = _NOWHERE
        return asked

    # -- instances ----------------------------------------------------------------------------------------

    def _check_instance(self, instance_id: str, region: str) -> None:
        if not re.fullmatch(r"i-[0-9a-f]{8}([0-9a-f]{9})?", instance_id):
            raise _Refusal("InvalidInstanceID.Malformed", f'Invalid id: "{instance_id}"')
        known = self._instances.get(instance_id)
        if known is None or known.region != region or known.hidden_until > time.time():
            raise _unknown(instance_id)

    def _check_vcpus(self, region: str, instance_type: str) -> None:
        if self._vcpu_limit is None or instance_type not in INSTANCE_TYPES:
            return
        types = [
            known.form.get("InstanceType", "m1.small")
            for known in self._instances.values()
            if known.region == region and known.state != "terminated"
        ]
        if sum(_vcpus(each) for each in [*types, instance_type]) > self._vcpu_limit:
            raise _Refusal(
                "VcpuLimitExceeded",
                f"You have requested more vCPU capacity than your current vCPU limit of {self._vcpu_limit} allows.",
            )

    def _settle(self) -> None:
        now = time.time()
        for known in self._instances.values():
            if known.state in _ENDS and known.due <= now:
                self._to(known, _ENDS[known.state])

    def _to(self, known: _Known, state: str) -> None:
        known.state = state
        moto_state = self._moto_instance(known.instance_id, known.region)._state  # noqa: SLF001 - what moto lacks
        moto_state.name, moto_state.code = state, _CODES[state]
        self._save(known)

    def _save(self, known: _Known) -> None:
        if self._journal:
            self._journal.save(known)

    def _moto_instance(self, instance_id: str, region: str) -> Any:
        return ec2_backends[DEFAULT_ACCOUNT_ID][region].get_instance(instance_id)

    def _prepare(self, region: str) -> None:
        """Empty the region and register its images at its first use.

        Its default network gets the same ids each time: instances that are restored keep their subnets.
        """
        if region in self._regions:
            return
        self._regions.add(region)
        mock_random.seed(region)
        ec2_backends[DEFAULT_ACCOUNT_ID][region].reset()
        mock_random.seed()
        for image_id, (where, name) in self._images.items():
            if where == region:
                self._register(region, image_id, name)

    def _register(self, region: str, image_id: str, name: str) -> None:
        backend = ec2_backends[DEFAULT_ACCOUNT_ID][region]
        backend.amis[image_id] = Ami(
            backend,
            image_id,
            name=name,
            description=name,
            virtualization_type="hvm",
            architecture="x86_64",
            hypervisor="xen",
            root_device_type="ebs",
            root_device_name="/dev/sda1",
            creation_date=datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None),
            region_name=region,
        )

    def _restore(self, known: _Known) -> None:
        """Launch it once more in moto, under its own id, and make it what it was."""
        self._prepare(known.region)
        module: Any = moto_instances
        fresh = module.random_instance_id
        module.random_instance_id = lambda: known.instance_id
        try:
            environ = {
                "REQUEST_METHOD": "POST",
                "PATH_INFO": "/",
                "SERVER_NAME": "localhost",
                "SERVER_PORT": "80",
                "wsgi.url_scheme": "http",
                "CONTENT_TYPE": "application/x-www-form-urlencoded",
                "HTTP_HOST": f"ec2.{known.region}.amazonaws.com",
                "HTTP_AUTHORIZATION": "AWS4-HMAC-SHA256 Credential=simulator/20260101/"
                f"{known.region}/ec2/aws4_request, SignedHeaders=host, Signature=0",
            }
            status, content = self._ask_moto(environ, _with_volume_size(known.form))
        finally:
            module.random_instance_id = fresh
        if status != 200:
            raise RuntimeError(f"{known.instance_id} could not be restored: {content.decode()[:400]}")
        instance = self._moto_instance(known.instance_id, known.region)
        instance.disable_api_termination = known.form.get("DisableApiTermination") == "true"
        instance.launch_time = datetime.fromtimestamp(known.launched_at, UTC).replace(tzinfo=None)
        instance.add_tags(known.tags)
        nic = instance.nics[0]
        nic.private_ip_address = known.private_ip
        nic.public_ip = known.public_ip
        if known.state in ("stopped", "stopping"):
            instance.stop()
        if known.state in ("terminated", "shutting-down"):
            instance.terminate()
        self._instances[known.instance_id] = known
        self._to(known, known.state)

    # -- administration -----------------------------------------------------------------------------------

    def _planted(self, action: str) -> _Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.operation == action and random.random() < fault.probability:  # noqa: S311 - no secret
                    if fault.times is not None:
                        fault.times -= 1
                        if fault.times <= 0:
                            self._faults.remove(fault)
                    return fault
        return None

    def _admin(self, method: str, path: str, body: bytes) -> Answer:
        try:
            asked = json.loads(body) if body else {}
            with self._lock:
                return 200, json.dumps(
                    self._administer(method, path.removeprefix("/simulator/"), asked)
                ).encode()
        except (KeyError, TypeError, ValueError) as error:
            return 400, json.dumps({"error": repr(error)}).encode()

    def _administer(self, method: str, path: str, asked: dict[str, Any]) -> Any:
        match method, path.split("/"):
            case "POST", ["faults"]:
                self._faults.append(_Fault(**asked))
            case "DELETE", ["faults"]:
                self._faults.clear()
            case "GET", ["faults"]:
                return [asdict(fault) for fault in self._faults]
            case "GET", ["calls"]:
                return list(self._calls)
            case "DELETE", ["calls"]:
                self._calls.clear()
            case "GET", ["instances"]:
                self._settle()
                return [
                    {"client_token": known.token, **asdict(known), "response": None}
                    for known in self._instances.values()
                ]
            case "POST", ["instances", instance_id, "state"]:
                self._settle()
                passing = {end: state for state, end in _ENDS.items()}[asked["state"]]
                known = self._instances[instance_id]
                self._order(known, passing)
                self._to(known, asked["state"])
            case "POST", ["images"]:
                image_id = asked.get("id") or f"ami-{uuid4().hex[:17]}"
                self._images[image_id] = (asked["region"], asked["name"])
                self._prepare(asked["region"])
                self._register(asked["region"], image_id, asked["name"])
                if self._journal:
                    self._journal.save_image(image_id, asked["region"], asked["name"])
                return {"id": image_id}
            case _:
                raise ValueError(f"{method} {path} is not known")
        return {}


class _Journal:
    """Instances and images in an SQLite file, written before a change is answered."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(
            folder / "ec2.sqlite3", isolation_level=None, check_same_thread=False
        )
        self._database.executescript(
            "PRAGMA journal_mode=WAL;"
            "CREATE TABLE IF NOT EXISTS instances (id TEXT PRIMARY KEY, known TEXT);"
            "CREATE TABLE IF NOT EXISTS images (id TEXT PRIMARY KEY, region TEXT, name TEXT)"
        )

    def load(self) -> tuple[dict[str, tuple[str, str]], list[_Known]]:
        images = {
            row[0]: (row[1], row[2]) for row in self._database.execute("SELECT id, region, name FROM images")
        }
        rows = self._database.execute("SELECT known FROM instances ORDER BY rowid")
        return images, [_Known(**json.loads(row[0])) for row in rows]

    def save(self, known: _Known) -> None:
        self._database.execute(
            "INSERT INTO instances VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET known = excluded.known",
            (known.instance_id, json.dumps(asdict(known))),
        )

    def save_image(self, image_id: str, region: str, name: str) -> None:
        self._database.execute("INSERT OR REPLACE INTO images VALUES (?, ?, ?)", (image_id, region, name))

    def close(self) -> None:
        self._database.close()


def _region(environ: Mapping[str, Any]) -> str:
    found = re.search(r"Credential=[^/]*/[^/]*/([^/]*)/", environ.get("HTTP_AUTHORIZATION", ""))
    return found.group(1) if found else "us-east-1"


def _with_volume_size(form: Mapping[str, str]) -> dict[str, str]:
    """EC2 takes the size from the image; moto wants to be told."""
    sizes = {}
    for name in form:
        found = re.fullmatch(r"(BlockDeviceMapping\.\d+\.Ebs\.)\w+", name)
        if found and f"{found.group(1)}VolumeSize" not in form:
            sizes[f"{found.group(1)}VolumeSize"] = "32"
    return {**form, **sizes}


def _what_counts(form: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in form.items() if name not in ("ClientToken", "DryRun", "Version")}


def _tags_of(instance: Any) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in instance.get_tags()}


def _vcpus(instance_type: str) -> int:
    return int(INSTANCE_TYPES[instance_type]["VCpuInfo"]["DefaultVCpus"])


def _unknown(instance_id: str) -> _Refusal:
    return _Refusal("InvalidInstanceID.NotFound", f"The instance ID '{instance_id}' does not exist")


def _error(code: str, message: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error>'
        f"<Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
        f"</Error></Errors><RequestID>{uuid4()}</RequestID></Response>"
    ).encode()


def _response(action: str, content: str) -> bytes:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><{action}Response '
        f'xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>{uuid4()}</requestId>'
        f"{content}</{action}Response>"
    ).encode()


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="An EC2 simulator for development and tests.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--transition-seconds", type=float, default=0.5)
    parser.add_argument("--vcpu-limit", type=int)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with Ec2Simulator(**vars(parser.parse_args())) as simulator:
        print(simulator.url, flush=True)  # noqa: T201 - the address is its output
        stopped.wait()


if __name__ == "__main__":
    main()
