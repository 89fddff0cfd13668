"""The AsyncAPI 3.0 document of the public interface, generated from the contracts.

FastStream's own generator leaves out reply models and knows nothing of commands that share a queue.
Specification: https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

import inspect
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from cml_contracts.commands import COMMANDS, WorkerCommand
from cml_contracts.deadletters import (
    OPERATOR_REQUESTS,
    DeadLetterDetails,
    DeadLetterPage,
    DeadLetterView,
    DiscardDeadLetter,
    EditDeadLetter,
    GetDeadLetter,
    ListDeadLetters,
    OperatorRequest,
    RedriveDeadLetter,
)
from cml_contracts.envelope import CLOUDEVENTS_JSON, JSON, MAX_BODY
from cml_contracts.events import EVENTS, WorkerEvent
from cml_contracts.queries import (
    QUERIES,
    GetCMLWorker,
    GetOperation,
    ListCMLWorkers,
    OperationView,
    Query,
    WorkerPage,
    WorkerView,
)
from cml_contracts.results import OperationResult
from cml_contracts.topology import (
    COMMANDS_EXCHANGE,
    EVENTS_EXCHANGE,
    OPERATOR_EXCHANGE,
    QUERIES_EXCHANGE,
    Exchange,
)
from cml_tools.generated import write_or_check
from cml_workers import __version__

_ANSWERS: Mapping[type[BaseModel], type[BaseModel]] = {
    GetCMLWorker: WorkerView,
    ListCMLWorkers: WorkerPage,
    GetOperation: OperationView,
    ListDeadLetters: DeadLetterPage,
    GetDeadLetter: DeadLetterDetails,
    RedriveDeadLetter: DeadLetterView,
    EditDeadLetter: DeadLetterView,
    DiscardDeadLetter: DeadLetterView,
}
_REF = "#/components/schemas/{model}"


def document() -> dict[str, Any]:
    """The whole document as JSON values, always in the same order."""
    models: list[type[BaseModel]] = [
        *COMMANDS.values(),
        *QUERIES.values(),
        *OPERATOR_REQUESTS.values(),
        *EVENTS.values(),
        *_ANSWERS.values(),
        OperationResult,
    ]
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    channels: dict[str, Any] = {
        "results": {
            "address": None,
            "description": "The queue named in reply_to: amq.rabbitmq.reply-to, amq.gen-... or cml.replies.<user>.<name>.",
            "messages": {"OperationResult": {"$ref": "#/components/messages/OperationResult"}},
        }
    }
    operations: dict[str, Any] = {}
    for exchange, types in (
        (COMMANDS_EXCHANGE, COMMANDS),
        (QUERIES_EXCHANGE, QUERIES),
        (OPERATOR_EXCHANGE, OPERATOR_REQUESTS),
    ):
        for routing_key, model in types.items():
            channels[routing_key] = _channel(exchange, routing_key, model)
            operations[model.__name__] = {
                "action": "receive",
                "channel": {"$ref": f"#/channels/{routing_key}"},
                "summary": _summary(model),
                "reply": {
                    "address": {"location": "$message.header#/reply_to"},
                    "channel": {"$ref": "#/channels/results"},
                },
            }
    for routing_key, event in EVENTS.items():
        channels[routing_key] = _channel(EVENTS_EXCHANGE, routing_key, event)
        operations[f"publish{event.__name__}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{routing_key}"},
            "summary": _summary(event),
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "cml-workers",
            "version": __version__,
            "description": (
                "Commands, queries and events of a fleet of CML workers, and requests of its operators. A command's message_id is its "
                f"idempotency key and is required; bodies have at most {MAX_BODY} bytes. A sender publishes to the exchanges of its own user, "
                f"{COMMANDS_EXCHANGE.name}.<user> and {QUERIES_EXCHANGE.name}.<user>, where the deployment has made them, in place of those that the "
                "channels name."
            ),
        },
        "defaultContentType": JSON,
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": {
                **{
                    model.__name__: _request(model)
                    for model in (*COMMANDS.values(), *QUERIES.values(), *OPERATOR_REQUESTS.values())
                },
                **{event.__name__: _event(event) for event in EVENTS.values()},
                "OperationResult": {
                    "name": "OperationResult",
                    "contentType": JSON,
                    "correlationId": {"location": "$message.header#/correlation_id"},
                    "payload": {"$ref": _REF.format(model="OperationResult")},
                },
            },
            "schemas": schemas["$defs"],
        },
    }


def _channel(exchange: Exchange, routing_key: str, model: type[BaseModel]) -> dict[str, Any]:
    return {
        "address": routing_key,
        "messages": {model.__name__: {"$ref": f"#/components/messages/{model.__name__}"}},
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": exchange.name, "type": exchange.kind, "durable": True},
            }
        },
    }


def _request(model: type[WorkerCommand | Query | OperatorRequest]) -> dict[str, Any]:
    message = {
        "name": model.TYPE,
        "summary": _summary(model),
        "contentType": JSON,
        "payload": {"$ref": _REF.format(model=model.__name__)},
        "bindings": {"amqp": {"messageType": model.TYPE}},
    }
    if model in _ANSWERS:
        message["x-reply-data"] = {"$ref": _REF.format(model=_ANSWERS[model].__name__)}
    return message


def _event(model: type[WorkerEvent]) -> dict[str, Any]:
    """CloudEvents in structured mode: the event is the envelope's ``data``."""
    return {
        "name": model.TYPE,
        "summary": _summary(model),
        "contentType": CLOUDEVENTS_JSON,
        "payload": {
            "type": "object",
            "required": ["specversion", "id", "source", "type", "subject", "time", "streamrevision", "data"],
            "properties": {
                "specversion": {"const": "1.0"},
                "id": {"type": "string", "format": "uuid"},
                "source": {"type": "string"},
                "type": {"const": model.TYPE},
                "subject": {"type": "string", "format": "uuid", "description": "worker id"},
                "time": {"type": "string", "format": "date-time"},
                "datacontenttype": {"const": JSON},
                "streamrevision": {"type": "integer", "minimum": 0},
                **{
                    name: {"type": "string"}
                    for name in (
                        "commandid",
                        "correlationid",
                        "causationid",
                        "actor",
                        "reason",
                        "traceparent",
                    )
                },
                "data": {"$ref": _REF.format(model=model.__name__)},
            },
        },
    }


def _summary(model: type[BaseModel]) -> str:
    return (inspect.getdoc(model) or model.__name__).partition("\n")[0]


def main() -> None:
    """Write the document, or (``--check``) fail if the written one is not this one."""
    write_or_check(
        lambda: json.dumps(document(), indent=2) + "\n", what="the AsyncAPI document", source="the contracts"
    )


if __name__ == "__main__":
    main()
