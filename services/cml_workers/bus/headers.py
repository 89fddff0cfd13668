"""The headers that our roles write beside a message; believed only of a message that one of our roles published."""

USER_HEADER = "x-cml-user-id"
"""The sender's user, as the property ``user_id`` must name the publisher."""
ATTEMPT_HEADER = "x-cml-attempt"
"""How often the message was retried before."""
RECEIVED_HEADER = "x-cml-received"
"""When the message was first delivered to us, in seconds since 1970: what expires later was valid in time."""
FAULT_HEADER = "x-cml-faults"
"""How many times a handler failed with it, unexpectedly."""
QUEUE_HEADER = "x-cml-queue"
"""The queue in which it died. A dead letter has this header and the next four."""
CAUSE_HEADER = "x-cml-cause"
REASON_HEADER = "x-cml-reason"
DELIVERIES_HEADER = "x-cml-deliveries"
DEATH_HEADER = "x-cml-death"
"""An id of its own for each death, so that a redelivered dead letter is not counted twice."""
REDRIVE_HEADER = "x-cml-redrive"
"""Which dead letter it was redriven from, and the number of that redrive: ``<id>/<number>``."""
OPERATOR_HEADER = "x-cml-operator"
"""Of a redriven message: who had it redriven, and whether they had edited it; a ``Redrive`` as JSON."""
SIGNATURE_HEADER = "x-cml-signature"
"""Of a message that was published again by a role that does not consume its queue: see ``trust``."""

OWN_HEADERS = frozenset(
    {
        USER_HEADER,
        ATTEMPT_HEADER,
        RECEIVED_HEADER,
        FAULT_HEADER,
        QUEUE_HEADER,
        CAUSE_HEADER,
        REASON_HEADER,
        DELIVERIES_HEADER,
        DEATH_HEADER,
        REDRIVE_HEADER,
        OPERATOR_HEADER,
        SIGNATURE_HEADER,
    }
)
