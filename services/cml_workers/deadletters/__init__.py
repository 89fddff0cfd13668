"""Dead letters: collected from their queue, archived, and redriven, edited or discarded by operators."""
