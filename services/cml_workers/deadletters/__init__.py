"""Dead letters as work: collected from their queue, kept for good, and redriven, edited or discarded by operators."""
