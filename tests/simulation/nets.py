"""The safety nets: what makes up for a fault. Each is counted, with what it saved.

A net that works where nothing went wrong hides a fault of ours; one that never works in a whole campaign is not
needed, or not tested. ``World.nets`` has the counts.
"""

REDELIVERY = "redelivered"
RETRIED = "retried"
REDRIVE = "redriven by an operator"
SENT_AGAIN = "sent again by its caller"
REMINDER = "reminder"
PUBLISHED_AGAIN = "published again"
CONFLICT = "decided again"
DUPLICATE = "recognised"
RECONNECTED = "reconnected"

MEANING = {
    REDELIVERY: "a message came again, as its consumer was lost, and something new came of it",
    RETRIED: "a message waited, as a part was unavailable, and something new came of it",
    REDRIVE: "an operator took a message out of the dead letters, and something new came of it",
    SENT_AGAIN: "a caller got no answer, sent its command again, and something new came of it",
    REMINDER: "a reminder triggered the adapter, and something new came of it",
    PUBLISHED_AGAIN: "a message was not confirmed, and was published again",
    CONFLICT: "somebody else appended first, and the command was decided again",
    DUPLICATE: "a message came again after it had been handled, and nothing new came of it",
    RECONNECTED: "a connection was lost, and is there again",
}

ORDINARY = frozenset({CONFLICT, DUPLICATE})
"""What happens without any fault where commands overlap, where the same one is sent twice, and where two lifecycles
each keep a worker, of which one copy is old."""
