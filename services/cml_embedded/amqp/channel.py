"""An AMQP channel: carries out its methods on the broker's state and answers them."""

from pamqp import base
from pamqp.commands import Basic, Confirm, Exchange, Queue

from cml_embedded.amqp.broker import Broker
from cml_embedded.amqp.consuming import Consuming
from cml_embedded.amqp.errors import AmqpError, Code, precondition_failed, unsupported
from cml_embedded.amqp.publishing import Publishing
from cml_embedded.amqp.wire import Wire


class ServerChannel:
    """Raises ``AmqpError`` from ``method`` and from ``publishing``; the connection then closes what it must."""

    def __init__(self, number: int, broker: Broker, wire: Wire) -> None:
        self.number = number
        self.consuming = Consuming(number, broker, wire)
        self.publishing = Publishing(number, broker, wire, lambda: self.consuming.reply_address)
        self._broker = broker
        self._wire = wire
        self._held_replies = 0
        self._closed = False

    def detach(self) -> None:
        """Stop consuming and answering; before ``release``, on all channels of a connection that ends."""
        self._closed = self.publishing.closed = True
        self.consuming.detach()

    def release(self) -> None:
        """Give back what is unacknowledged, and let other consumers have it."""
        self.consuming.release()

    def method(self, frame: base.Frame) -> None:
        if self.publishing.under_way:
            raise AmqpError(Code.UNEXPECTED_FRAME, "expected content header, got method frame instead")
        match frame:
            case Basic.Publish():
                self.publishing.begin(frame)
            case Basic.Ack():
                self.consuming.acknowledge(frame.delivery_tag, multiple=frame.multiple)
            case Basic.Nack():
                self.consuming.reject(frame.delivery_tag, requeue=frame.requeue, multiple=frame.multiple)
            case Basic.Reject():
                self.consuming.reject(frame.delivery_tag, requeue=frame.requeue)
            case Basic.Consume():
                tag = self.consuming.consume(frame)
                self._reply(Basic.ConsumeOk(consumer_tag=tag), nowait=frame.nowait)
                self.consuming.resume()
            case Basic.Cancel():
                self._reply(Basic.CancelOk(consumer_tag=frame.consumer_tag), nowait=frame.nowait)
                self.consuming.cancel(frame.consumer_tag)
            case Basic.Get():
                if not self.consuming.get(frame):
                    self._reply(Basic.GetEmpty())
            case Basic.Qos():
                self.consuming.qos(frame)
                self._reply(Basic.QosOk())
            case Confirm.Select():
                self.publishing.confirming = True
                self._reply(Confirm.SelectOk(), nowait=frame.nowait)
            case Queue.Declare():
                self._declare_queue(frame)
            case Queue.Bind():
                self._broker.bind(frame.queue, frame.exchange, frame.routing_key, self._wire)
                self._changed(Queue.BindOk(), nowait=frame.nowait)
            case Queue.Unbind():
                self._broker.unbind(frame.queue, frame.exchange, frame.routing_key, self._wire)
                self._changed(Queue.UnbindOk())
            case Queue.Purge():
                count = self._broker.queue(frame.queue, self._wire).purge()
                self._changed(Queue.PurgeOk(message_count=count), nowait=frame.nowait)
            case Queue.Delete():
                self._delete_queue(frame)
            case Exchange.Declare():
                self._declare_exchange(frame)
            case Exchange.Delete():
                if frame.if_unused:
                    raise unsupported("if-unused")
                self._broker.delete_exchange(frame.exchange)
                self._changed(Exchange.DeleteOk(), nowait=frame.nowait)
            case _:
                raise unsupported(frame.name)

    def _reply(self, frame: base.Frame, *, nowait: bool = False) -> None:
        """Answer; after the answers that still wait for a commit."""
        if nowait:
            return
        if self._held_replies:
            self._changed(frame)
        else:
            self._wire.send(self.number, frame)

    def _changed(self, frame: base.Frame, *, nowait: bool = False) -> None:
        """Answer once the change is on disk."""
        if nowait:
            return

        def answer() -> None:
            self._held_replies -= 1
            if not self._closed:
                self._wire.send(self.number, frame)

        self._held_replies += 1
        self._broker.journal.after_commit(answer)

    def _declare_queue(self, frame: Queue.Declare) -> None:
        if self._broker.has_reply_address(frame.queue):
            self._reply(Queue.DeclareOk(frame.queue, 0, 1), nowait=frame.nowait)
            return
        if frame.passive:
            queue = self._broker.queue(frame.queue, self._wire)
        else:
            queue = self._broker.declare_queue(
                frame.queue,
                durable=frame.durable,
                exclusive=frame.exclusive,
                auto_delete=frame.auto_delete,
                arguments=frame.arguments or {},
                owner=self._wire,
            )
        reply = Queue.DeclareOk(queue.name, len(queue), len(queue.consumers))
        if queue.persistent and not frame.passive:
            self._changed(reply, nowait=frame.nowait)
        else:
            self._reply(reply, nowait=frame.nowait)

    def _delete_queue(self, frame: Queue.Delete) -> None:
        count = 0
        if frame.queue in self._broker.queues:
            queue = self._broker.queue(frame.queue, self._wire)
            count = len(queue)
            if frame.if_unused and queue.consumers:
                raise precondition_failed(f"{queue} in use")
            if frame.if_empty and count:
                raise precondition_failed(f"{queue} is not empty")
            self._broker.delete_queue(queue)
        self._changed(Queue.DeleteOk(message_count=count), nowait=frame.nowait)

    def _declare_exchange(self, frame: Exchange.Declare) -> None:
        if frame.passive:
            self._broker.exchange(frame.exchange)
            self._reply(Exchange.DeclareOk(), nowait=frame.nowait)
            return
        if frame.auto_delete or frame.internal or frame.arguments:
            raise unsupported("exchanges that are internal, delete themselves or have arguments")
        self._broker.declare_exchange(frame.exchange, frame.exchange_type, durable=frame.durable)
        self._changed(Exchange.DeclareOk(), nowait=frame.nowait)
